"""The audit's numbers on planted weights, scores and gradients, by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from entropy_lab import load
from entropy_lab.analysis.audit import audit
from entropy_lab.analysis.audit.candidate import Part, Push
from entropy_lab.analysis.audit.collapse import Collapse, splits
from entropy_lab.analysis.audit.log import Log
from entropy_lab.analysis.audit.view import View
from entropy_lab.interventions import Grpo
from entropy_lab.stats import token_stats
from entropy_lab.types import TokenGrad
from toy import Toy, adamw, run_loop


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of a small model in two micro-batches of eight responses."""
    path = tmp_path_factory.mktemp("measures") / "run"
    model = Toy()
    run_loop(model, adamw(model), path, steps=12, size=8)
    return path


def rows_of(run: Path) -> pd.DataFrame:
    rows = load(run).tokens()
    return rows.assign(p=np.exp(rows["logp"].astype(float)), a=rows["advantage"].astype(float))


@dataclass(frozen=True, kw_only=True)
class Unclipped(Grpo):
    """The plain policy gradient."""

    clip_low: float = float("inf")
    clip_high: float = float("inf")
    dual_clip: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Rare(Unclipped):
    """Doubles tokens of probability below 0.1 and halves the push of those with A < 0 above."""

    def plan(self, batch, stats, state=None):
        p = stats.logp.exp()
        weight = torch.where(p < 0.1, 2.0, torch.where(batch.advantage < 0, 0.5, 1.0))
        return self._plan(weight=weight, omega=p - 0.5)


def test_touched_shares_by_hand(run: Path, tmp_path: Path) -> None:
    found = audit(run, [Rare()], reference=Unclipped(), out=tmp_path)
    rows = rows_of(run)
    touched = (rows["p"] < 0.1) | (rows["a"] < 0)
    row = found.tables["audit"].set_index("method").loc["Rare"]
    assert row["touched"] == pytest.approx(touched.mean())
    table = found.tables["audit_touched"].query("method == 'Rare'").set_index(["axis", "bin"])
    likely = rows["logp"].astype(float) > -rows["entropy"].astype(float)
    by_hand = {
        ("quadrant", "pos_likely"): (rows["a"] > 0) & likely,
        ("quadrant", "neg_unlikely"): (rows["a"] < 0) & ~likely,
        ("probability", "p[0,0.1)"): rows["p"] < 0.1,
        ("probability", "p[0.1,0.3)"): rows["p"].between(0.1, 0.3, inclusive="left"),
        ("entropy", "H[0.7,1.5)"): rows["entropy"].between(0.7, 1.5, inclusive="left"),
    }
    for key, inside in by_hand.items():
        got = table.loc[key]
        assert got["n"] == inside.sum() > 0
        assert got["share"] == pytest.approx(inside.mean())
        assert got["touched"] == pytest.approx(touched[inside].mean())
        assert got["of_touched"] == pytest.approx((touched & inside).sum() / touched.sum())
    for _, part in table.groupby("axis"):
        assert part["share"].sum() == pytest.approx(1)
        assert part["of_touched"].sum() == pytest.approx(1)
    # A share with an interval lies in it, and the interval is not a point.
    middle = table.loc[("probability", "p[0.1,0.3)")]
    assert middle["touched_lo"] < middle["touched"] < middle["touched_hi"]


def test_tokens_are_touched_through_their_entropy_as_well(run: Path, tmp_path: Path) -> None:
    beta = 0.1
    found = audit(run, [f"entropy_bonus:beta={beta}"], reference="grpo", out=tmp_path)
    rows = rows_of(run).astype({"entropy": float, "m0": float, "m1": float, "m2": float})
    h = rows["entropy"]
    on_entropy = np.sqrt(rows["m2"] + 2 * h * rows["m1"] + h**2 * rows["m0"])
    on_logp = np.sqrt(1 - 2 * rows["p"] + rows["m0"])
    count = rows.groupby("step")["uid"].transform("size")
    # The run's own method is GRPO, so c is the recorded one.
    touched = beta / count * on_entropy > 0.01 * rows["grad_logp"].abs() * on_logp
    assert 0.1 < touched.mean() < 0.99
    row = found.tables["audit"].iloc[1]
    assert row["touched"] == pytest.approx(touched.mean()) and row["distance"] == 0
    assert row["distance_logits"] > 0.01 and not row["inert"]


def test_agreement_by_hand(run: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sure(Unclipped):
        """Halves tokens of probability above 0.05."""

        name: ClassVar[str] = "sure"

        def plan(self, batch, stats, state=None):
            return self._plan(weight=torch.where(stats.logp.exp() > 0.05, 0.5, 1.0))

    found = audit(run, [Rare(), Sure()], reference=Unclipped(), out=tmp_path)
    table = found.tables["audit_agreement"].set_index(["a", "b"])
    rows = rows_of(run)
    first = (rows["p"] < 0.1) | (rows["a"] < 0)
    second = rows["p"] > 0.05
    got = table.loc[("Rare", "Sure")]
    assert got["jaccard"] == pytest.approx((first & second).sum() / (first | second).sum())
    push = rows["a"] * np.exp(rows["logp"].astype(float) - rows["old_logp"].astype(float))
    rare = np.where(rows["p"] < 0.1, 2.0, np.where(rows["a"] < 0, 0.5, 1.0))
    sure = np.where(second, 0.5, 1.0)
    by_step = pd.DataFrame({"step": rows["step"], "x": push * rare, "y": push * sure})
    pcc = [np.corrcoef(part["x"], part["y"])[0, 1] for _, part in by_step.groupby("step")]
    assert got["pcc"] == pytest.approx(np.median(pcc), rel=1e-5)
    assert got["steps"] == 12 and got["n"] == len(rows)
    assert got["pcc_lo"] < got["pcc"] < got["pcc_hi"]
    # The reference touches nothing, so having touched tokens in common means nothing.
    assert np.isnan(table.loc[("Rare", "Unclipped"), "jaccard"])


def test_push_on_the_entropy_counts_at_the_logits() -> None:
    """|c (e_a - pi) - e S| from five numbers, against the gradient by autograd."""
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 6, 9, generator=g, dtype=torch.float64, requires_grad=True)
    token = torch.randint(9, (1, 6), generator=g)
    stats = token_stats(logits, token)
    c, e = torch.randn(2, 1, 6, generator=g, dtype=torch.float64)
    (c * stats.logp + e * stats.entropy).sum().backward()
    assert logits.grad is not None
    expected = (logits.grad**2).sum(-1)[0].numpy()
    view = View.__new__(View)
    known = stats.detach()
    p, h = known.logp.exp()[0].numpy(), known.entropy[0].numpy()
    m0, m1, m2 = (x[0].numpy() for x in (known.m0, known.m1, known.m2))
    view.norm_logp = 1 - 2 * p + m0
    view.cross = p * (np.log(p) + h) - m1 - h * m0
    view.norm_entropy = m2 + 2 * h * m1 + h * h * m0
    np.testing.assert_allclose(view.squared(c[0].numpy(), e[0].numpy()), expected, rtol=1e-10)


# --- weights that hang on single tokens -------------------------------------------------------


def test_pinned_peak_and_argmax_of_planted_scores() -> None:
    collapse = Collapse()
    collapse.add_weights(np.array([1.0, 0.995, 0.98, 0.5]))  # two of four
    collapse.add_weights(np.array([0.2, 0.2, 0.2]))  # all of three
    omega = torch.zeros(2, 101)
    omega[0] = torch.linspace(0, 1, 101)
    omega[0, 7] = -9.9
    omega[1] = torch.linspace(0, 2, 101)
    omega[1, 3] = 50.0  # outside the mask
    mask = torch.ones(2, 101, dtype=torch.bool)
    mask[1, 3] = False
    logp = torch.full((2, 101), 0.5).log()
    logp[0, 7] = float(np.log(0.02))
    units = (slice(0, 1), slice(1, 2))
    zero = TokenGrad(torch.zeros(2, 101), torch.zeros(2, 101))
    collapse.add_omega(Push(zero, omega=omega.double(), units=units), mask, logp.double())
    numbers = collapse.numbers()
    assert numbers["pinned"] == pytest.approx((0.5 + 1.0) / 2)
    # The 99 % quantile of 101 values is their second largest; of 100 it lies just above it.
    tail = [np.quantile(np.abs(omega[0].numpy()), 0.99), np.quantile(omega[1][mask[1]], 0.99)]
    assert numbers["omega_peak"] == pytest.approx(np.median([9.9 / tail[0], 2.0 / tail[1]]))
    assert tail[0] == pytest.approx(1.0) and 1 < numbers["omega_peak"] < 9.9
    assert numbers["argmax_probability"] == pytest.approx((0.02 + 0.5) / 2)
    assert numbers["argmax_rare"] == 0.5
    nothing = Collapse().numbers()
    assert all(np.isnan(value) for value in nothing.values())


def test_splits_cut_every_micro_batch_and_deal_out_ranks(run: Path) -> None:
    step = next(Log(load(run)).rollouts()).steps[0]
    parts = [Part(b, s) for b, s in zip(step.batches, step.stats, strict=True)]
    assert [len(p.batch.mask) for p in parts] == [8, 8]
    found = {(k, d): [len(p.batch.mask) for p in pieces] for k, d, pieces in splits(step, parts)}
    assert found == {
        ("micro-batch", 1): [8, 8],
        ("micro-batch", 2): [4] * 4,
        ("micro-batch", 4): [2] * 8,
        ("rank", 2): [8, 8],
        ("rank", 4): [4] * 4,
    }
    for _, _, pieces in splits(step, parts):
        uid = torch.cat([p.batch.uid for p in pieces])
        assert torch.equal(uid, step.whole.uid)


def test_dependence_on_the_split_by_hand(run: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Relative(Unclipped):
        """Weight 1 - p / max p over whatever it sees."""

        def plan(self, batch, stats, state=None):
            p = torch.where(batch.mask, stats.logp.exp(), 0.0)
            return self._plan(weight=1 - p / p.max())

    found = audit(run, [Relative()], reference=Unclipped(), out=tmp_path)
    scope = found.tables["audit_scope"].set_index(["method", "split", "divisor"])
    rows = rows_of(run)
    count = rows.groupby("step")["uid"].transform("size")
    push = rows["a"] * np.exp(rows["logp"].astype(float) - rows["old_logp"].astype(float)) / count
    response = (rows["uid"] % 2**32).astype(int)

    def gradient(block: pd.Series) -> pd.Series:
        largest = rows.groupby([rows["step"], block])["p"].transform("max")
        return push * (1 - rows["p"] / largest)

    whole = gradient(rows["step"] * 0)
    for key, size in {("micro-batch", 1): 8, ("micro-batch", 4): 2, ("rank", 4): 4}.items():
        distance = np.linalg.norm(gradient(response // size) - whole) / np.linalg.norm(whole)
        got = scope.loc[("Relative", *key)]
        assert got["distance"] == pytest.approx(distance, rel=1e-4) and distance > 0.01
        assert got["responses"] == size and got["steps"] == 12
    # The plain policy gradient looks at one token at a time.
    assert (scope.loc["Unclipped", "distance"] < 1e-6).all()
