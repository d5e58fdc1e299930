"""A stand-in for the `config` that verl hands to its registered policy losses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

# Values of verl 0.9.1 (workers/config/actor.py); a dot leads into a nested section.
DEFAULTS: dict[str, Any] = {
    "clip_ratio": 0.2,
    "clip_ratio_low": 0.2,
    "clip_ratio_high": 0.2,
    "clip_ratio_c": 3.0,
    "loss_agg_mode": "token-mean",
    "loss_scale_factor": None,
    "entropy_coeff": 0.0,
    "tau_pos": 1.0,
    "tau_neg": 1.05,
    "use_kl_loss": False,
    "policy_loss.loss_mode": "vanilla",
    "policy_loss.clip_cov_ratio": 2e-4,
    "policy_loss.clip_cov_lb": 1.0,
    "policy_loss.clip_cov_ub": 5.0,
    "policy_loss.kl_cov_ratio": 2e-4,
    "policy_loss.ppo_kl_coef": 0.1,
    "policy_loss.dro_beta": None,
}


class VerlConfig:
    """Attributes, [key] and .get(key, default) over `values`, whose keys may have a section.

    `reads` collects the full names that were asked for. Where verl's ActorConfig is at hand, the
    object passes for an instance of it: some of verl's losses ask.
    """

    def __init__(
        self,
        values: dict[str, Any],
        reads: set[str],
        mimics: type | None = None,
        section: str = "",
    ) -> None:
        self._values, self._reads, self._section = values, reads, section
        self._mimics = mimics or VerlConfig

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return self._mimics

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        full = self._section + name
        self._reads.add(full)
        if full in self._values:
            return self._values[full]
        if any(key.startswith(f"{full}.") for key in self._values):
            return VerlConfig(self._values, self._reads, section=f"{full}.")
        raise AttributeError(
            f"config.{full} has no value here: set it, as in --method FILE.py:loss:{full}=..."
        )

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError as error:
            raise KeyError(str(error)) from error

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where there is none."""
        return getattr(self, name, default)


def actor_config(function: Callable[..., Any]) -> type | None:
    """verl's own ActorConfig as the loss's module knows it, None where it does not."""
    module = sys.modules.get("verl.workers.config")
    found = getattr(function, "__globals__", {}).get("ActorConfig")
    found = found or getattr(module, "ActorConfig", None)
    return found if isinstance(found, type) else None
