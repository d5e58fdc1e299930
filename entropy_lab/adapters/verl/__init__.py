"""verl: importing this module, in its workers, measures and registers.

Through `actor_rollout_ref.model.external_lib=entropy_lab.adapters.verl`, or the entry point of the
group verl.plugins (see plugin.py). It wraps `BaseEngine.train_batch`, once, and registers the
methods as policy losses, entropy_lab_<name>. Which run directory, and how densely: `Settings`,
from the environment or from verl's own config where `policy_loss._target_` is PolicyLossConfig
below. Needs verl >= 0.8, < 0.11. The recipe is docs/verl.md.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    from verl.workers import config as _config  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f"entropy_lab.adapters.verl needs {_error.name}: pip install 'entropy-lab[verl]'",
        name=_error.name,
    ) from _error

from entropy_lab.adapters.verl.hook import recorder_of, wrap_engines
from entropy_lab.adapters.verl.losses import register_methods
from entropy_lab.adapters.verl.settings import Settings, read_settings

__all__ = ["PolicyLossConfig", "Settings", "install", "read_settings", "recorder_of"]

logger = logging.getLogger(__name__)
_TESTED = ((0, 8), (0, 11))


@dataclass
class PolicyLossConfig(_config.PolicyLossConfig):
    """verl's section actor.policy_loss with one more, entropy_lab: the fields of `Settings`."""

    entropy_lab: dict[str, Any] = field(default_factory=dict)


def install() -> bool:
    """Wrap verl's engines and register the methods; False where that has been done.

    Says so in the log, and warns of a version of verl that was not looked at.
    """
    names = register_methods()
    if not wrap_engines():
        return False
    found = _verl_version()
    logger.warning("entropy-lab: verl %s is instrumented; %d policy losses", found, len(names))
    low, high = _TESTED
    parts = found.split(".")
    if parts[0].isdigit() and not low <= tuple(int(p) for p in parts[:2] if p.isdigit()) < high:
        logger.warning(
            "entropy-lab: verl %s is outside 0.8 to 0.10, of which the engines are known: compare "
            "the first steps with verl's own entropy", found
        )  # fmt: skip
    return True


def _verl_version() -> str:
    try:
        return version("verl")
    except PackageNotFoundError:
        return "of unknown version"


install()
