"""verl's registered losses, unmodified, against the steps that they really make.

A tabular softmax policy takes one SGD step on a verl loss. What the audit of that loss predicts
from the log is exact to first order there, so its error falls with the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from entropy_lab import Probe, TokenBatch, load, token_stats
from entropy_lab.analysis.audit import audit, candidate_of
from entropy_lab.analysis.audit.candidate import Part
from entropy_lab.analysis.audit.log import Log
from entropy_lab.analysis.audit.losses import loss_candidate
from entropy_lab.analysis.audit.view import View
from verl_losses import ActorConfig, verl_losses

STATES, VOCABULARY, RESPONSES, LENGTH = 12, 7, 16, 6
# Settings under which each loss clips, drops or penalises some of the tokens below.
SETTINGS: dict[str, dict[str, Any]] = {
    "vanilla": {"clip_ratio_high": 0.28},
    "dppo_tv": {"clip_ratio_low": 0.05, "clip_ratio_high": 0.05},
    "dppo_kl": {"clip_ratio_low": 0.02, "clip_ratio_high": 0.02},
    "gspo": {"clip_ratio_low": 0.05, "clip_ratio_high": 0.05},
    "sapo": {},
    "gpg": {},
    # All candidates are dropped, so that the random draw plays no part.
    "clip_cov": {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.3, "clip_cov_ub": 2.0},
    "kl_cov": {"kl_cov_ratio": 0.1, "ppo_kl_coef": 1.0},
    "geo_mean": {},
    "dro": {"dro_beta": 0.5},
    "cispo": {"loss_agg_mode": "seq-mean-token-mean"},
}
NESTED = ("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef", "dro_beta")


@pytest.fixture(scope="module")
def losses() -> Iterator[dict[str, Callable[..., Any]]]:
    with verl_losses() as found:
        if not found:
            pytest.skip("verl is not there: set VERL_PATH or install it")
        yield found


class Config(ActorConfig):
    """What verl would hand over, written out here and not taken from the audit."""

    def __init__(self, **changes: Any):
        self.clip_ratio = self.clip_ratio_low = self.clip_ratio_high = 0.2
        self.clip_ratio_c = 3.0
        self.tau_pos, self.tau_neg = 1.0, 1.05
        self.__dict__.update(changes)

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


def config_for(name: str, counts: dict[str, Any]) -> Config:
    own = {k: v for k, v in SETTINGS[name].items() if k not in NESTED}
    nested = {k: v for k, v in SETTINGS[name].items() if k in NESTED}
    return Config(**own, policy_loss=Config(**nested), global_batch_info=counts)


def one_step(path: Path, name: str, function: Callable[..., Any], lr: float) -> None:
    """Two micro-batches, one SGD step on verl's loss, in float64, logged by the probe."""
    g = torch.Generator().manual_seed(5)
    table = nn.Embedding(STATES, VOCABULARY, dtype=torch.float64)
    table.weight.data = torch.randn(STATES, VOCABULARY, generator=g, dtype=torch.float64)
    optimizer = torch.optim.SGD(table.parameters(), lr=lr)
    state = torch.randint(STATES, (RESPONSES, LENGTH), generator=g)
    token = torch.randint(VOCABULARY, (RESPONSES, LENGTH), generator=g)
    mask = torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (RESPONSES, 1), generator=g)
    advantage = torch.randn(RESPONSES, 1, generator=g, dtype=torch.float64).float().double()
    advantage = advantage.expand(-1, LENGTH)
    drift = torch.randn(RESPONSES, LENGTH, generator=g, dtype=torch.float64) * 0.3

    def score(rows: torch.Tensor):
        return token_stats(table(state[rows]), token[rows])

    probe = Probe(table, optimizer, path, score)
    counts = {
        "dp_size": 1,
        "batch_num_tokens": int(mask.sum()),
        "global_batch_size": RESPONSES,
        "loss_scale_factor": None,
    }
    aggregation = {"gspo": "seq-mean-token-mean"}.get(name, "token-mean")
    for rows in torch.arange(RESPONSES).chunk(2):
        with torch.no_grad():
            old = (score(rows).logp + drift[rows]).float().double()  # as the log will hold it
        batch = TokenBatch(token[rows], mask[rows], advantage[rows], old, state=state[rows] + 1)
        stats = probe.record(rows, batch)
        loss, _ = function(
            old_log_prob=old,
            log_prob=stats.logp,
            advantages=advantage[rows],
            response_mask=mask[rows],
            loss_agg_mode=SETTINGS[name].get("loss_agg_mode", aggregation),
            config=config_for(name, counts),
            rollout_is_weights=None,
        )
        loss.backward()
    optimizer.step()
    probe.close()


def settings_of(name: str) -> dict[str, Any]:
    return {f"policy_loss.{k}" if k in NESTED else k: v for k, v in SETTINGS[name].items()}


def relative_error(path: Path, name: str, function: Callable[..., Any]) -> float:
    """|predicted - measured| / |measured| over the tokens of the step, by softmax_state."""
    (rollout,) = Log(load(path)).rollouts()
    (step,) = rollout.steps
    candidate = loss_candidate(name, function, settings_of(name))
    parts = [Part(b, s) for b, s in zip(step.batches, step.stats, strict=True)]
    view = View.of(step, step.whole.advantage)
    view.take(name, candidate.push(parts, None))
    predicted = view.predicted(name)["softmax_state"]
    return float(np.linalg.norm(predicted - step.dH) / np.linalg.norm(step.dH))


@pytest.mark.parametrize("name", SETTINGS)
def test_first_order_error_falls_with_the_step(losses, name: str, tmp_path: Path) -> None:
    function = losses[name]
    errors = []
    for lr in (0.3, 0.03):
        one_step(tmp_path / str(lr), name, function, lr)
        errors.append(relative_error(tmp_path / str(lr), name, function))
    assert errors[0] < 0.2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_audit_has_the_gradient_that_verl_had(losses, name: str, tmp_path: Path) -> None:
    one_step(tmp_path / "run", name, losses[name], 0.03)
    (tmp_path / "mine.py").write_text(f"from verl.trainer.ppo.core_algos import "
                                      f"{losses[name].__name__} as loss\n")  # fmt: skip
    params = ",".join(f"{k}={v}" for k, v in settings_of(name).items())
    label = f"{tmp_path / 'mine.py'}:loss" + (f":{params}" if params else "")
    found = audit(tmp_path / "run", [label], out=tmp_path / "out")
    table = found.tables["audit"].set_index("method")
    row = table.loc[label]
    assert row["kind"] == "verl loss"
    assert row["distance_run_max"] < 1e-6 and row["distance_run_entropy"] == 0
    assert row["distance"] > 0.05  # it is not GRPO
    measured = load(tmp_path / "run").steps()["dH_train"].item()
    assert row["dH_softmax_state"] == pytest.approx(measured, rel=0.1)
    note = "run.json does not name the method that made the run: advantages are the logged ones"
    assert table.loc["run", "notes"].splitlines()[0].startswith("only ")
    assert note in table.loc["run", "notes"]


def test_at_least_eight_losses_are_audited(losses) -> None:
    assert len(set(SETTINGS) & set(losses)) >= 8


def test_a_setting_that_is_never_read_is_said(losses, tmp_path: Path) -> None:
    one_step(tmp_path / "run", "gpg", losses["gpg"], 0.03)
    candidate = candidate_of(losses["gpg"])
    assert candidate.kind == "verl loss" and candidate.settings == {}
    candidate = loss_candidate("gpg", losses["gpg"], {"clip_ration": 0.1})
    (rollout,) = Log(load(tmp_path / "run")).rollouts()
    step = rollout.steps[0]
    candidate.push([Part(step.whole, step.statistics)], None)
    candidate.finish()
    assert candidate.notes[0].startswith("clip_ration was set but never read: ")
