"""The learning rate by step: its ends, transformers' own schedules, and runs made longer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from entropy_lab import load
from entropy_lab.errors import ConfigError
from entropy_lab.train.config import Config, load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.schedule import lr_factor
from tiny import TINY


def settings(**changes: object) -> Config:
    """Ten steps: five rollouts of two."""
    words = [f"optimizer.{name}={value}" for name, value in changes.items()]
    return load_config(None, ["train.rollouts=5", *words])


def test_constant_after_the_warm_up() -> None:
    config = settings(warmup_steps=4)
    assert [lr_factor(config, s) for s in (0, 1, 3, 4, 9, 10_000)] == [0.25, 0.5, 1, 1, 1, 1]
    assert lr_factor(settings(), 0) == 1


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_the_ends_are_the_rate_and_its_share(schedule: str, share: float) -> None:
    config = settings(schedule=schedule, min_lr_share=share, warmup_steps=2)
    assert lr_factor(config, 1) == lr_factor(config, 2) == 1  # the end of the warm-up, and after
    assert lr_factor(config, 6) == pytest.approx((1 + share) / 2, abs=1e-15)  # half-way
    assert lr_factor(config, 10) == lr_factor(config, 99) == pytest.approx(share, abs=1e-15)
    falling = [lr_factor(config, s) for s in range(2, 11)]
    assert falling == sorted(falling, reverse=True) and len(set(falling)) == 9
    assert falling[-2] > share  # the last step of the run still moves


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_falls_as_in_transformers(schedule: str, theirs, warmup: int) -> None:
    config = settings(schedule=schedule, warmup_steps=warmup, schedule_steps=8)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = theirs(optimizer, warmup, 8)
    for step in range(9):  # beyond its last step their cosine rises again
        if step >= warmup:  # its warm-up starts with a step at rate 0, ours with 1/warmup
            assert lr_factor(config, step) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


def test_the_rate_that_is_used_is_the_one_in_the_log(tmp_path: Path) -> None:
    words = [*TINY, "optimizer.schedule=linear", "optimizer.warmup_steps=2", "train.rollouts=3"]
    out = run_training(None, words, tmp_path / "run")
    lr = load(out).metrics()["lr"].tolist()
    assert lr == pytest.approx([5e-4, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4], rel=1e-12)


def test_a_longer_run_keeps_the_rates_it_had(tmp_path: Path) -> None:
    falling = [*TINY, "train.rollouts=2", "optimizer.schedule=cosine"]
    out = run_training(None, falling, tmp_path / "over_the_run")
    with pytest.raises(ConfigError) as caught:
        run_training(None, ["train.rollouts=3"], out, resume=True)
    text = str(caught.value)
    assert "train.rollouts cannot change: optimizer.schedule = 'cosine' falls over" in text
    assert "the run's 4 steps" in text and "set optimizer.schedule_steps" in text
    assert load(out).info["status"] == "finished"

    fixed = [*falling, "optimizer.schedule_steps=6", "optimizer.min_lr_share=0.1"]
    out = run_training(None, fixed, tmp_path / "over_six")
    run_training(None, ["train.rollouts=4"], out, resume=True)
    whole = run_training(None, [*fixed, "train.rollouts=4"], tmp_path / "whole")
    assert load(out).metrics()["lr"].tolist() == load(whole).metrics()["lr"].tolist()
    assert load(out).metrics()["lr"].tolist()[6:] == pytest.approx([1e-4, 1e-4])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["optimizer.schedule=linear", "optimizer.warmup_steps=120"],
            "optimizer.warmup_steps = 120 leaves nothing of the 120 steps",
        ),
        (["optimizer.schedule=cosin"], 'optimizer.schedule must be "constant", "linear" or'),
        (["optimizer.min_lr_share=1.5"], "optimizer.min_lr_share must be less than or equal to 1"),
        (["train.best_on=aime24"], "train.best_on = 'aime24' names a benchmark, which only"),
        (
            ["train.keep_best=avg_at_k"],
            'needs a checkpoint at each evaluation: eval.every = 0 must be a multiple of '
            "train.checkpoint_every = 20",
        ),
        (
            ["train.keep_best=avg_at_k", "eval.every=30", "task.held_out_share=0.1"],
            "eval.every = 30 must be a multiple of train.checkpoint_every = 20",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_one_line(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, words)
    assert text in str(caught.value) and "\n" not in str(caught.value)
