"""Which steps and rows are probed, and what the scorer remembers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from entropy_lab import Probe, load
from entropy_lab.probe.inputs import join_rows, take_rows
from entropy_lab.probe.rows import NewResponses
from entropy_lab.probe.sampling import inclusion_prob, is_every_nth, is_probed, sampled_rows
from entropy_lab.probe.scorer import Scorer, active_dropout
from toy import Toy, adamw, batches, run_loop, score_of


def test_probed_steps_and_rows_are_pure_functions() -> None:
    assert [s for s in range(9) if is_probed(s, 4)] == [0, 4, 8]
    assert not any(is_probed(s, 0) for s in range(5))
    assert [s for s in range(17) if is_every_nth(s, 4, 2)] == [0, 8, 16]
    a = sampled_rows(3, 5, 1, 64, 0.25)
    torch.manual_seed(99)
    assert torch.equal(a, sampled_rows(3, 5, 1, 64, 0.25))
    assert len(a) == 16 and len(set(a.tolist())) == 16
    others = [sampled_rows(*key, 64, 0.25) for key in ((4, 5, 1), (3, 6, 1), (3, 5, 2))]
    assert not any(torch.equal(a, o) for o in others)
    assert sampled_rows(3, 5, 1, 64, 1.0) is None
    assert inclusion_prob(0.1, 4) == 0.25  # at least one response


def test_every_response_is_drawn_with_its_inclusion_probability() -> None:
    counts = np.zeros(12)
    for step in range(3000):
        rows = sampled_rows(0, step, 0, 12, 0.25)
        assert rows is not None
        counts[rows.numpy()] += 1
    # Binomial sd of each frequency is sqrt(p (1-p) / n) = 0.008.
    assert np.abs(counts / 3000 - inclusion_prob(0.25, 12)).max() < 5 * 0.008


def test_sampled_rows_carry_their_own_measurement(tmp_path: Path) -> None:
    whole, part = Toy(dtype=torch.float64), Toy(dtype=torch.float64)
    run_loop(whole, adamw(whole), tmp_path / "whole", steps=2)
    run_loop(part, adamw(part), tmp_path / "part", steps=2, fraction=0.5)
    keys = ["step", "uid", "pos"]
    full = load(tmp_path / "whole").tokens().set_index(keys)
    some = load(tmp_path / "part").tokens().set_index(keys)
    steps = load(tmp_path / "part").steps()
    assert (steps["inclusion_prob"] == 0.5).all() and len(some) < len(full)
    for column in ("dH", "entropy", "grad_logp", "dH_pred_softmax_state", "dH_pred_cov"):
        np.testing.assert_allclose(some[column], full.loc[some.index][column], rtol=1e-6, atol=1e-9)
    # Predicted means never depend on what is probed.
    np.testing.assert_allclose(
        steps["dH_pred_steer"], load(tmp_path / "whole").steps()["dH_pred_steer"], rtol=1e-12
    )


def test_unprobed_steps_log_entropy_and_predictions_by_quadrant(tmp_path: Path) -> None:
    model = Toy()
    run_loop(model, adamw(model), tmp_path / "run", steps=4, every=3)
    run = load(tmp_path / "run")
    steps = run.steps()
    assert steps["probed"].tolist() == [True, False, False, True]
    assert sorted(set(run.tokens()["step"])) == [0, 3]
    assert steps["dH_train"].isna().tolist() == [False, True, True, False]
    for name in ("entropy_token_mean", "dH_pred_softmax", "dH_pred_cov", "share_pos_likely"):
        assert steps[name].notna().all()
    shares = steps[[c for c in steps if c.startswith("share_")]].sum(axis=1)
    np.testing.assert_allclose(shares, 1.0, atol=1e-12)
    assert run.metrics()["entropy_seq_mean"].notna().all()


def test_the_scorer_remembers_until_the_step_and_no_longer() -> None:
    model = Toy()
    calls = []
    score = score_of(model)

    def counted(rows):
        calls.append(rows)
        return score(rows)

    optimizer = adamw(model)
    scorer = Scorer(model, counted, optimizer)
    rows, _ = batches(model, 1, 16)[0]
    first = scorer.measure(rows)
    assert scorer.measure(rows) is first and len(calls) == 1
    score(rows).logp.sum().backward()
    optimizer.step()
    assert not torch.equal(scorer.measure(rows).entropy, first.entropy) and len(calls) == 2
    scorer.close()


def test_dropout_is_found_by_module_and_by_attribute() -> None:
    model = Toy(dropout=0.1).train()
    assert active_dropout(model) == [model.drop]
    assert active_dropout(model.eval()) == []
    model.train().drop.p = 0.0
    assert active_dropout(model) == []
    model.mix.attention_dropout = 0.2
    assert active_dropout(model) == [model.mix]


def test_take_rows_reaches_into_containers() -> None:
    rows, batch = batches(Toy(), 1, 16)[0]
    index = torch.tensor([3, 1])
    assert torch.equal(take_rows(rows, index).ids, rows.ids[index])
    nested = take_rows({"a": (rows.ids, "text"), "b": [batch.mask]}, index)
    assert torch.equal(nested["a"][0], rows.ids[index]) and nested["a"][1] == "text"
    assert torch.equal(nested["b"][0], batch.mask[index])


@dataclass(frozen=True)
class Kept:
    """A micro-batch with something beside its rows."""

    ids: torch.Tensor
    more: dict
    width: int = 3


def test_rows_of_several_micro_batches_are_joined_where_their_layouts_agree() -> None:
    a, b = torch.arange(6).view(2, 3), torch.arange(9).view(3, 3) + 10
    one = Kept(a, {"x": [a[:, 0]], "name": "k", "t": torch.tensor(0.7)})
    two = Kept(b, {"x": [b[:, 0]], "name": "k", "t": torch.tensor(0.7)})
    joined = join_rows([one, two])
    assert torch.equal(joined.ids, torch.cat([a, b])) and joined.width == 3
    assert torch.equal(joined.more["x"][0], torch.cat([a[:, 0], b[:, 0]]))
    assert joined.more["name"] == "k" and joined.more["t"].ndim == 0
    for other in (
        Kept(b[:, :2], two.more),
        Kept(b.float(), two.more),
        Kept(b, {**two.more, "name": "other"}),
        Kept(b, {**two.more, "t": torch.tensor(0.8)}),
        Kept(b, {"x": two.more["x"]}),
        Kept(b, {**two.more, "x": two.more["x"] * 2}),
        Kept(b, two.more, width=4),
        b,
    ):
        assert join_rows([one, other]) is None


@pytest.mark.parametrize("ragged", [False, True])
def test_sampled_rows_share_a_pass_no_larger_than_a_micro_batch(
    tmp_path: Path, ragged: bool
) -> None:
    """Four micro-batches of 4, two rows of each: two passes of 4 rows, before and after."""
    model = Toy(dtype=torch.float64)
    optimizer, plain = adamw(model), score_of(model)
    sizes: list[int] = []

    def score(rows):
        if not torch.is_grad_enabled():
            sizes.append(len(rows.ids))
        return plain(rows)

    micros = batches(model, 1, 4, torch.float64)
    if ragged:  # each its own width: they cannot be joined
        micros = [
            (replace(rows, ids=rows.ids[:, : 8 - i]), batch.map(lambda x, i=i: x[:, : 5 - i] if
             x.ndim == 2 else x))
            for i, (rows, batch) in enumerate(micros)
        ]  # fmt: skip
    with Probe(model, optimizer, tmp_path / "run", score, fraction=0.5, floor_every=0) as probe:
        for rows, batch in micros:
            (-(probe.record(rows, batch).logp * batch.advantage * batch.mask).mean()).backward()
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.step()
    assert sizes == ([2] * 8 if ragged else [4] * 4)
    tokens = load(tmp_path / "run").tokens()
    assert tokens.groupby("micro")["uid"].nunique().tolist() == [2] * 4
    with torch.no_grad():
        after = {int(u): plain(r).entropy[i] for r, b in micros for i, u in enumerate(b.uid)}
        for name, p in model.named_parameters():
            p.copy_(start[name])
        before = {int(u): plain(r).entropy[i] for r, b in micros for i, u in enumerate(b.uid)}
    for uid, rows in tokens.groupby("uid"):
        dH = (after[uid] - before[uid]).numpy()[rows["pos"]]
        np.testing.assert_allclose(rows["dH"], dH, rtol=1e-5, atol=1e-10)


def test_the_scorer_notices_weights_that_others_change(tmp_path: Path) -> None:
    model = Toy()
    optimizer = adamw(model)
    scorer = Scorer(model, score_of(model), optimizer)
    rows, _ = batches(model, 1, 16)[0]
    first = scorer.measure(rows)
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model.head.bias[0] += 1.0
    assert not torch.equal(scorer.measure(rows).entropy, first.entropy)
    model.load_state_dict(saved)
    assert torch.equal(scorer.measure(rows).entropy, first.entropy)
    scorer.close()


def test_a_loop_that_slips_is_told_how(tmp_path: Path) -> None:
    model = Toy()
    optimizer = adamw(model)
    score = score_of(model)
    (rows, batch), (other, second) = batches(model, 1, 8)
    probe = Probe(model, optimizer, tmp_path / "run", score, strict=True)
    with pytest.raises(RuntimeError, match="call record"):
        probe.annotate(weight=1.0)
    probe.record(rows, batch)
    with pytest.raises(ValueError, match="recorded twice before a step"):
        probe.record(rows, batch)
    nan = replace(second, advantage=torch.full_like(second.advantage, float("nan")))
    with pytest.raises(ValueError, match="advantage is NaN or infinite at valid tokens"):
        probe.record(other, nan)
    # The first got no backward pass, so it is in no update.
    (-(probe.record(other, second).logp * second.mask).mean()).backward()
    with pytest.warns(UserWarning, match="1 of 2 recorded micro-batches got no gradient"):
        optimizer.step()
    optimizer.zero_grad()
    # A skipped update leaves nothing behind.
    (-(probe.record(rows, batch).logp * batch.mask).mean()).backward()
    optimizer.zero_grad()
    probe.discard()
    (-(probe.record(other, second).logp * second.mask).mean()).backward()
    with pytest.raises(RuntimeError, match=r"step\(closure\): run backward"):
        optimizer.step(lambda: 0.0)
    optimizer.step()
    probe.close()
    with pytest.raises(RuntimeError, match=r"after probe\.close"):
        probe.record(rows, batch)
    run = load(tmp_path / "run")
    assert run.steps()["n_tokens"].tolist() == [int(second.mask.sum())] * 2
    # The second step trained the same responses again: still one sample each.
    assert run.samples()["uid"].tolist() == second.uid.tolist()


def test_held_out_and_fixed_rows_need_no_uid(tmp_path: Path) -> None:
    model = Toy()
    optimizer = adamw(model)
    (rows, batch), (other, second) = batches(model, 1, 8)
    bare = replace(second, uid=None)
    with Probe(model, optimizer, tmp_path / "run", score_of(model)) as probe:
        probe.fix([(other, bare)])
        (-(probe.record(rows, batch).logp * batch.mask).mean()).backward()
        probe.hold_out([(other, bare)])
        optimizer.step()
    row = load(tmp_path / "run").steps().iloc[0]
    assert row["dH_heldout"] == row["dH_fixed"] != 0


def test_a_response_is_new_once_and_old_rollouts_are_forgotten():
    responses = NewResponses(rollouts=2)
    first, second, third = (n << 32 for n in (5, 6, 7))
    assert responses.take([first, first + 1, second]) == [True, True, True]
    assert responses.take([first, first + 2, second, second]) == [False, True, False, False]
    assert responses.take([third]) == [True]  # the third rollout: the first one is forgotten
    assert responses.take([second, third]) == [False, False]
    assert responses.take([first]) == [True]
