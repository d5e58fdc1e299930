"""The one place where verl is changed: `BaseEngine.train_batch`, wrapped once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from entropy_lab.adapters.verl.data import ROW, is_policy_update
from entropy_lab.adapters.verl.recorder import Recorder
from entropy_lab.adapters.verl.settings import read_settings
from entropy_lab.adapters.verl.watch import Watch
from entropy_lab.errors import ConfigError

logger = logging.getLogger("entropy_lab.adapters.verl")
_ATTRIBUTE = "_entropy_lab"


def wrap_engines() -> bool:
    """Wrap `train_batch` of verl's engines; False where that has been done."""
    base = import_module("verl.workers.engine.base").BaseEngine
    original = base.train_batch
    if getattr(original, _ATTRIBUTE, False):
        return False

    @functools.wraps(original)
    def train_batch(self: Any, data: Any, loss_function: Callable) -> Any:
        return _train_batch(original, self, data, loss_function)

    setattr(train_batch, _ATTRIBUTE, True)
    base.train_batch = train_batch
    return True


def _train_batch(original: Callable, engine: Any, data: Any, loss_function: Callable) -> Any:
    if not is_policy_update(data):
        return original(engine, data, loss_function)
    data[ROW] = torch.arange(len(data))
    try:
        return _watched(original, engine, data, loss_function)
    finally:
        data.pop(ROW, None)


def _watched(original: Callable, engine: Any, data: Any, loss_function: Callable) -> Any:
    recorder = _recorder(engine, loss_function)
    if recorder is None:
        return original(engine, data, _carrier(loss_function, _count(engine)))
    # What carries the entropy to our methods works without the probe too.
    watch: Callable = _carrier(loss_function, recorder.step, recorder.rank)

    def begin() -> None:
        nonlocal watch
        recorder.begin(engine, data)
        watch = recorder.watch(loss_function)

    _boundary(recorder, begin)
    try:
        outputs = original(engine, data, watch)
    except BaseException:
        recorder.discard()
        raise
    _boundary(recorder, lambda: recorder.end(engine, data, outputs))
    return outputs


def _carrier(loss_function: Callable, step: int, rank: int = 0) -> Watch:
    return Watch(loss_function, step, rank, False, lambda error: None)


def _boundary(recorder: Recorder, action: Callable[[], None]) -> None:
    """No error of the adapter itself reaches the training, unless strict."""
    try:
        action()
    except Exception as error:
        if recorder.settings.strict:
            raise
        recorder.give_up(error)


def _count(engine: Any) -> int:
    """Steps of an engine that is not recorded: random choices of a method differ between them."""
    number = getattr(engine, f"{_ATTRIBUTE}_steps", 0)
    setattr(engine, f"{_ATTRIBUTE}_steps", number + 1)
    return number


def _recorder(engine: Any, loss_function: Callable) -> Recorder | None:
    """The engine's recorder, made at its first step; None where nothing is to be recorded."""
    if hasattr(engine, _ATTRIBUTE):
        return getattr(engine, _ATTRIBUTE)
    config = getattr(loss_function, "keywords", {}).get("config")
    policy = config.get("policy_loss", None) if config is not None else None
    section = policy.get("entropy_lab", None) if policy is not None else None
    recorder = None
    try:
        settings = read_settings(section)
        if settings.run_dir:
            recorder = Recorder(engine, settings, config)
        else:
            logger.warning(
                "entropy-lab: nothing is recorded: set ENTROPY_LAB_RUN_DIR in the workers or "
                "actor_rollout_ref.actor.policy_loss.entropy_lab.run_dir"
            )
    except ConfigError as error:
        logger.error("entropy-lab: %s; nothing is recorded, training goes on", error)
    setattr(engine, _ATTRIBUTE, recorder)
    return recorder


def recorder_of(engine: Any) -> Recorder | None:
    """The recorder of an engine that has taken a step."""
    return getattr(engine, _ATTRIBUTE, None)
