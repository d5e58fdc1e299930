"""What the audit rebuilds from flat rows is what the trainer had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from audit_runs import trained
from entropy_lab import load
from entropy_lab.analysis.audit import audit, candidate_of
from entropy_lab.analysis.audit.log import Log
from entropy_lab.analysis.audit.profile import Profile
from entropy_lab.analysis.audit.rebuild import _Rows
from entropy_lab.analysis.audit.runner import Runner
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import Grpo
from entropy_lab.record import open_run
from entropy_lab.types import TokenBatch
from toy import Toy, adamw, run_loop


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("log"), "grpo", "train.micro_batch=3", "run.seed=5")


def steps_of(path: Path):
    return [step for rollout in Log(open_run(path)).rollouts() for step in rollout.steps]


def test_batches_hold_the_rows_of_the_log(run: Path) -> None:
    rows = load(run).tokens()
    rows = rows[(rows["flags"] & 32) == 0]
    samples = load(run).samples().set_index("uid")
    lr = load(run).steps().set_index("step")["lr"]
    steps = steps_of(run)
    assert [s.step for s in steps] == list(range(12))
    for step in steps:
        own = rows[rows["step"] == step.step]
        assert [len(b.mask) for b in step.batches] == [3, 3, 2] and step.complete
        assert step.age == step.step % 4 == step.whole.age and step.lr == lr[step.step]
        whole = step.whole
        assert whole.step == step.step and whole.seed == 5
        assert whole.group is not None and whole.reward is not None and whole.uid is not None
        pairs = {"advantage": whole.advantage, "old_logp": whole.old_logp, "m2": step.statistics.m2,
                 "logp": step.statistics.logp, "token_id": whole.token_id, "state": whole.state,
                 "old_entropy": whole.old_entropy}  # fmt: skip
        for name, values in pairs.items():
            found = values[whole.mask].numpy()
            np.testing.assert_array_equal(found, own[name].to_numpy(), err_msg=name)
        assert step.recorded is not None
        c = step.recorded.grad_logp
        np.testing.assert_array_equal(c[whole.mask].numpy(), own["grad_logp"].to_numpy())
        assert not c[~whole.mask].any()
        # Every value sits in its response and at its position.
        row, pos = whole.mask.nonzero().T
        np.testing.assert_array_equal(whole.uid[row].numpy(), own["uid"].to_numpy())
        np.testing.assert_array_equal(pos.numpy(), own["pos"].to_numpy())
        known = samples.loc[whole.uid.numpy()]
        np.testing.assert_array_equal(whole.group.numpy(), known["group"])
        np.testing.assert_array_equal(whole.reward.numpy(), known["reward"])


def test_steps_are_gathered_by_rollout(run: Path, tmp_path: Path) -> None:
    found = [[s.step for s in r.steps] for r in Log(open_run(run)).rollouts()]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    for every, expected in ((3, [[0, 3], [6], [9]]), (5, [[0], [5], [10]])):
        thin = trained(tmp_path / str(every), "grpo", f"probe.every={every}")
        found = [[s.step for s in r.steps] for r in Log(open_run(thin)).rollouts()]
        assert found == expected  # 0, 5 and 10 are of ages 0, 1 and 2, but of three rollouts


@dataclass(frozen=True, kw_only=True)
class Again(Grpo):
    """GRPO that counts as making advantages of its own."""

    def advantages(self, batch: TokenBatch):
        return super().advantages(batch)


@pytest.mark.parametrize("change", ["probe.every=1", "probe.every=3", "probe.fraction=0.4"])
def test_advantages_are_those_of_training_however_little_is_logged(
    change: str, tmp_path: Path
) -> None:
    """Groups are taken from the samples, which hold every response."""
    path = trained(tmp_path, "grpo", change, "rollout.prompts=4", "rollout.group_size=8")
    known = 0
    for rollout in Log(open_run(path)).rollouts():
        assert len(rollout.everyone.mask) == 32
        for step, found in zip(rollout.steps, rollout.advantages(Again()), strict=True):
            torch.testing.assert_close(found, step.whole.advantage)
            known += int((found != 0).sum())
    assert known > 20
    logged = audit(path, [Again()], out=tmp_path / "out").tables["audit"].set_index("method")
    assert logged.loc["Again", "distance"] < 1e-6


def test_an_advantage_that_needs_rows_outside_the_log_says_so(tmp_path: Path) -> None:
    class ByLogp(Grpo):
        def advantages(self, batch: TokenBatch):
            total = torch.where(batch.mask, batch.old_logp, 0.0).sum(1)
            return torch.where(batch.mask, (total - total.mean())[:, None], 0.0)

    path = trained(tmp_path, "grpo", "probe.fraction=0.4")
    with pytest.raises(ConfigError, match="ByLogp makes its own advantages: advantages are not"):
        audit(path, [ByLogp()], out=tmp_path / "out")

    class Flat(Grpo):
        def advantages(self, batch: TokenBatch):
            return batch.reward

    with pytest.raises(ConfigError, match=r"advantages returned \(32,\) for a batch of \(32,"):
        audit(path, [Flat()], out=tmp_path / "out")


def test_the_own_methods_memory_is_that_of_the_log() -> None:
    candidate = candidate_of("grpo")
    log = SimpleNamespace(own=candidate.method)
    runner = Runner(log, [candidate], "grpo", Profile.over(1))  # type: ignore[arg-type]
    step = SimpleNamespace(memory={"beta": 0.25, "weight_mean": 1.0})
    remembered = runner._remembered(candidate, step, {"beta": 0.0, "other": 3.0})  # type: ignore
    assert remembered == {"beta": 0.25, "other": 3.0}
    stranger = candidate_of("steer")
    assert runner._remembered(stranger, step, {"beta": 0.0}) == {"beta": 0.0}  # type: ignore


# --- logs that are not whole ------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    model = Toy()
    run_loop(model, adamw(model), tmp_path / "toy", steps=3, size=8)
    return tmp_path / "toy"


def change_rows(run: Path, change) -> None:
    """Write the run's one token part again with other rows."""
    (part,) = (run / "tokens").rglob("part-*.parquet")
    table = pq.read_table(part)
    data = change(table.to_pandas())
    schema = table.schema
    pq.write_table(pa.Table.from_pandas(data, schema=schema, preserve_index=False), part)


def test_rows_that_cannot_be_scored_are_left_out_and_counted(toy: Path) -> None:
    def spoil(data: pd.DataFrame) -> pd.DataFrame:
        data.loc[data.index[[3, 40]], "logp"] = np.nan
        return data

    change_rows(toy, spoil)
    found = audit(toy, ["grpo"]).tables["audit"]
    assert "2 token rows cannot be scored and were left out" in found.loc[0, "notes"]
    assert not found["complete"].any() and np.isfinite(found.loc[1, "distance_run"])


def test_missing_rows_make_a_step_incomplete(toy: Path) -> None:
    change_rows(toy, lambda data: data.drop(index=data.index[5:9]))
    found = audit(toy, ["grpo"]).tables["audit"]
    assert "1 of 3 steps are logged in part" in found.loc[0, "notes"]
    assert not found["complete"].any()


def test_double_rows_are_refused(toy: Path) -> None:
    change_rows(toy, lambda data: pd.concat([data.iloc[:1], data]))
    with pytest.raises(RunError, match="step 0 holds rows of one response twice or out of order"):
        audit(toy, ["grpo"])


def test_a_log_without_the_gradient_is_audited_without_it(toy: Path) -> None:
    (part,) = (toy / "tokens").rglob("part-*.parquet")
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["grad_logp"]), part)
    found = audit(toy, ["steer"]).tables["audit"]
    assert list(found["method"]) == ["steer", "grpo"]
    assert "the gradient of the run's own loss is not in the log" in found.loc[0, "notes"]
    assert found["distance_run"].isna().all() and found.loc[0, "distance"] > 0


@pytest.mark.parametrize(
    ("micro", "uid", "expected"),
    [
        ([0, 0, 1, 1], [1, 2, 3, 4], [(0, 2), (2, 4)]),
        # A second rank begins again with micro-batch 0, and with smaller uids where it is the same.
        ([0, 1, 0, 1], [1, 2, 3, 4], [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ([0, 0, 0, 0], [3, 4, 1, 2], [(0, 2), (2, 4)]),
    ],
)
def test_micro_batches_of_several_ranks(
    micro: list[int], uid: list[int], expected: list[tuple[int, int]]
) -> None:
    columns = {"micro": np.array(micro), "uid": np.array(uid), "pos": np.zeros(4, np.int32)}
    assert [(s.start, s.stop) for s in _Rows.of(0, columns).micros()] == expected
