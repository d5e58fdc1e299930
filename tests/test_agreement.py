"""The sampler against the trainer: numbers made by hand, and what stops a run."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from entropy_lab.errors import RunError
from entropy_lab.train import parts
from entropy_lab.train.agreement import check_agreement
from entropy_lab.train.launch import run_training
from entropy_lab.train.policy import make_score, model_inputs
from entropy_lab.train.rollout import HFEngine, Responses
from tiny import TINY, metrics


def responses(gap: list[list[float]]) -> tuple[Responses, torch.Tensor]:
    """Two responses each to two prompts, of 3 and 1 tokens; the last token of row 1 is padding."""
    prompt_mask = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 1]]).bool()
    mask = torch.ones(4, 2).bool()
    mask[1, 1] = False
    logp = torch.tensor([[-1.0, -2.0], [-0.5, -9.0], [-3.0, -0.1], [-1.0, -1.0]])
    rollout_logp = torch.where(mask, logp + torch.tensor(gap), 0.0)
    token_id = torch.zeros(4, 2, dtype=torch.long)
    truncated = torch.zeros(4).bool()
    ids = torch.tensor([[4, 5, 6], [4, 5, 6], [0, 0, 6], [0, 0, 6]])
    return Responses(ids, prompt_mask, token_id, mask, truncated, rollout_logp), logp


def engine(tolerance: float) -> SimpleNamespace:
    return SimpleNamespace(tolerance=tolerance)


def test_mean_max_and_kl_are_those_of_the_real_tokens() -> None:
    found, logp = responses([[0.2, -0.3], [0.0, 50.0], [0.0, 0.0], [0.0, 0.2]])
    check_agreement(found, logp, engine(0.1001))  # the mean is 0.7 / 7
    kl = sum(math.exp(-d) - 1 + d for d in (0.2, -0.3, 0.2)) / 7
    wanted = (
        r"is 0\.1 on average over 7 tokens \(tolerance 0\.099\), at most 0\.3, "
        rf"KL {kl:.2g}, and 0\.17 on the worst prompt, of 3 tokens\. .*stale prefix cache; .*"
        "raise vllm.tolerance"
    )
    with pytest.raises(RunError, match=wanted):
        check_agreement(found, logp, engine(0.099))


def test_one_prompt_alone_is_enough() -> None:
    """3 tokens of 403 are off by 1: little on average, but all of that prompt's."""
    found, logp = responses([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    rows = torch.tensor([0, 1] + [2, 3] * 100)
    found = Responses(**{k: v[rows] for k, v in vars(found).items()})
    check_agreement(found, logp[rows], engine(0.11))
    with pytest.raises(RunError, match=r"0\.0074 on average .* and 1 on the worst prompt, of 3 to"):
        check_agreement(found, logp[rows], engine(0.09))


def test_no_number_is_no_agreement_and_no_report_is_not_judged() -> None:
    found, logp = responses([[0.0, math.nan], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    with pytest.raises(RunError, match="is nan on average"):
        check_agreement(found, logp, engine(0.1))
    check_agreement(replace(found, logp=None), logp, SimpleNamespace())


class Reporting(HFEngine):
    """The trainer's own sampler, which reports its logp, wrong ones after `good` rollouts."""

    tolerance = 1e-3

    def __init__(self, good: int):
        object.__setattr__(self, "left", [good])

    def generate(self, model, *args, **kwargs) -> Responses:
        out = super().generate(model, *args, **kwargs)
        with torch.no_grad():
            logp = make_score(model, kwargs["temperature"])(model_inputs(out, slice(None))).logp
        self.left[0] -= 1
        return replace(out, logp=torch.where(out.mask, logp + 0.01 * (self.left[0] < 0), 0.0))


EVALUATED = ["eval.every=1", "eval.problems=2", "eval.samples=2", "task.held_out_share=0.2"]


@pytest.mark.parametrize(("settings", "steps"), [
    ([], 4),  # the fixed set and two rollouts of two steps are good
    (EVALUATED, 2),  # the fixed set, an evaluation and a rollout, not the evaluation after it
])  # fmt: skip
def test_a_run_stops_before_it_trains_on_foreign_samples(
    tmp_path, monkeypatch, settings: list[str], steps: int
) -> None:
    made = Reporting(good=3)
    monkeypatch.setitem(parts.ENGINES, "hf", lambda config: made)
    with pytest.raises(RunError, match=r"is 0\.01 on average .* \(tolerance 0\.001\)"):
        run_training(None, [*TINY, *settings], tmp_path / "run")
    assert made.left == [-1]
    assert len(metrics(tmp_path / "run")) == steps
