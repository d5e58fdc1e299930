"""The first loss forward of a rollout is its old-logprob pass: one pass less, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from entropy_lab.train.gather import make_micros
from entropy_lab.train.launch import run_training
from tiny import TINY, assert_same_run


def test_the_first_loss_forward_is_the_old_logprob_pass_bit_for_bit(tmp_path: Path) -> None:
    kept: list[int] = []

    def watched(*args: Any, forward: Any = None, **kwargs: Any) -> Any:
        steps = make_micros(*args, forward=forward, **kwargs)
        kept.extend(m.forward is not None for part in steps for m in part)
        return steps

    def apart(*args: Any, forward: Any = None, **kwargs: Any) -> Any:
        return make_micros(*args, **kwargs)

    settings = [*TINY, "train.rollouts=3", "train.minibatches=2"]
    with patch("entropy_lab.train.parts.make_micros", watched):
        one = run_training(None, settings, tmp_path / "one")
    with patch("entropy_lab.train.parts.make_micros", apart):
        two = run_training(None, settings, tmp_path / "two")
    assert sum(kept) == 3  # one micro-batch of each rollout, none of the fixed set
    assert_same_run(one, two)
