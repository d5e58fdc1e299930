"""Loops in plain PyTorch: what a probe has to be told of a GradScaler or of DeepSpeed's engine.

Without either, `entropy_lab.Probe` alone is the adapter. Every function here wraps methods of the
object that it is given, never of its class, and takes the wrap off when the probe is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from entropy_lab.probe import Probe
from entropy_lab.probe.log import OnAlarm
from entropy_lab.probe.optimizers import Given
from entropy_lab.probe.scorer import Score


def attach(
    model: nn.Module,
    optimizer: Given,
    run_dir: str | Path,
    score: Score,
    *,
    scaler: Any = None,
    engine: Any = None,
    **options: Any,
) -> Probe:
    """A probe on a loop with mixed precision or DeepSpeed; the rest is that of `Probe`.

    scaler: the loop's torch.amp.GradScaler (accelerate: accelerator.scaler). Its scale is taken
    out of everything that is read from gradients, and an update that it skips is an event.
    engine: a DeepSpeed engine; pass engine.module as `model` and [] as `optimizer`. engine.step is
    wrapped: hooks inside it would meet weights that are not yet those of the next forward.
    options: those of Probe. Raises ValueError for a model with sharded parameters (FSDP2), and for
    what the probe cannot do with an engine.
    """
    refuse_sharded(model)
    if engine is not None:
        return _on_engine(engine, model, optimizer, run_dir, score, options)
    probe = Probe(model, optimizer, run_dir, score, **options)
    if scaler is not None:
        watch_scaler(probe, scaler)
    return probe


def refuse_sharded(model: nn.Module) -> None:
    """Raise ValueError where parameters are DTensors: a pass of the probe needs them whole."""
    for name, p in model.named_parameters():
        if type(p.data).__name__ == "DTensor":
            raise ValueError(
                f"parameter {name} is sharded (FSDP2): the probe measures one process or "
                "DistributedDataParallel; with sharded weights use the bundled trainer under "
                "torchrun, or TRL or verl with their adapters"
            )


def watch_scaler(probe: Probe, scaler: Any) -> None:
    """Take a GradScaler's scale out of the gradients, and notice the updates that it skips.

    It calls no optimizer.step() where it has found an overflow, so torch's hooks do not run; its
    update() ends every iteration, taken or not.
    """
    probe.loss_scale = scaler.get_scale

    def ended(update: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        probe.end_iteration("GradScaler met an overflow")
        return update(*args, **kwargs)

    _wrap(probe, scaler, "update", ended)


def _on_engine(
    engine: Any, model: nn.Module, optimizer: Given, run_dir: str | Path, score: Score, options: Any
) -> Probe:
    if optimizer not in ([], ()):
        raise ValueError(
            "with engine= pass [] as the optimizer: DeepSpeed's inner optimizer steps on other "
            "tensors than the weights"
        )
    if any(hasattr(p, "ds_id") for p in model.parameters()):  # ZeRO-3: no rank has the weights
        if options.get("floor_every"):
            raise ValueError(
                "with ZeRO stage 3 no process holds the weights, which the checks of floor steps "
                "copy: set floor_every=0"
            )
        options = {**options, "floor_every": 0}
    probe = Probe(model, [], run_dir, score, **options)
    probe.grads_in_place = False
    probe.learning_rate = lambda: float(engine.get_lr()[0])
    probe.loss_scale = lambda: float(getattr(engine.optimizer, "loss_scale", 1.0) or 1.0)

    def step(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not engine.is_gradient_accumulation_boundary():
            return plain(*args, **kwargs)
        skipped = engine.skipped_steps
        probe.before_step()
        result = plain(*args, **kwargs)
        if engine.skipped_steps > skipped:
            probe.discard("DeepSpeed met an overflow")
        else:
            probe.after_step()
        return result

    _wrap(probe, engine, "step", step)
    return probe


def _wrap(probe: Probe, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """owner.name(...) becomes around(owner.name, ...), until the probe is closed."""
    plain = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(plain, *args, **kwargs)

    setattr(owner, name, wrapped)

    def unwrap() -> None:
        if owner.__dict__.get(name) is wrapped:
            delattr(owner, name)

    probe.on_close(unwrap)


def tell(tracker: Any) -> OnAlarm:
    """A listener for Probe(on_alarm=...) that tells the user's own tracker of the alarm.

    tracker: a wandb run or the wandb module, the trackio module (both have `alert`), or a
    tensorboard SummaryWriter (`add_text`). TypeError for anything else.
    """
    title = "entropy collapse"
    alert, add_text = getattr(tracker, "alert", None), getattr(tracker, "add_text", None)
    if callable(alert):
        return lambda alarm: alert(title=title, text=f"step {alarm.step}: {alarm.text}")
    if callable(add_text):
        return lambda alarm: add_text(title, alarm.text, alarm.step)
    raise TypeError(
        f"{type(tracker).__name__} has neither alert(title=, text=) (wandb, trackio) nor "
        "add_text(tag, text, step) (tensorboard): pass on_alarm a function of the alarm instead"
    )

