"""The probe on TRL's GRPOTrainer: `attach(trainer, run_dir)` before `trainer.train()`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from entropy_lab.adapters.trl.attachment import Attachment
from entropy_lab.adapters.trl.callback import make_callback
from entropy_lab.adapters.trl.carrier import make_carrier
from entropy_lab.adapters.trl.checks import check_options, check_trainer
from entropy_lab.interventions import Method

__all__ = ["Attachment", "attach"]


def attach(
    trainer: Any,
    run_dir: str | Path,
    *,
    method: str | dict[str, Any] | Method | None = None,
    held_out: bool = True,
    **options: Any,
) -> Attachment:
    """Measure every optimizer step of a `trl.GRPOTrainer` (trl >= 1.9, < 2) into `run_dir`.

    Call it before `trainer.train()`. Nothing is subclassed and nothing of the training changes:
    weights, random numbers and the trainer's own log are bitwise those of a run without it.
    run_dir gets the log that the bundled trainer writes: token rows, steps, samples with their
    texts, metrics with TRL's own entropy, clip ratios and reward beside ours (`trl_*`).

    method: a method of `entropy_lab.interventions` (its name, {"name": ..., settings}, or the
    object) that TRL's own loss carries out: its weights (>= 0) and dropped tokens as advantages
    per token, its clip bounds and entropy bonus as TRL's. Averages stay those of `loss_type`.
    held_out: measure around a step the next one's responses too, where the rollout has some that
    are not trained on yet. options: those of `entropy_lab.Probe` (every, fraction, deep_every,
    floor_every, dtype, profile, ...); seed is the trainer's where it is left out.

    Returns the attachment, whose `probe` exists from the first step on; the end of `train`, however
    it comes, closes it. Raises ConfigError for a trainer, setting or method that it cannot
    serve, RunError where run_dir cannot hold a run.
    """
    check_trainer(trainer)
    check_options(trainer, run_dir, options)
    options = {"seed": int(trainer.args.seed), **options}
    carrier = make_carrier(trainer, method) if method is not None else None
    attachment = Attachment(trainer, run_dir, carrier, held_out, options)
    attachment.callback = make_callback(attachment)
    trainer.add_callback(attachment.callback)
    return attachment
