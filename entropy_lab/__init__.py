"""entropy-lab: what did this update do to the policy's entropy, and which tokens did it?

The public names live in the modules below and are imported when first used, so that neither
the command line nor the figures wait for torch. All of them need torch, numpy and pyarrow only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entropy_lab.errors import ConfigError as ConfigError
    from entropy_lab.errors import EntropyLabError as EntropyLabError
    from entropy_lab.errors import RunError as RunError
    from entropy_lab.interventions import INTERVENTIONS as INTERVENTIONS
    from entropy_lab.interventions import Intervention as Intervention
    from entropy_lab.interventions import make_method as make_method
    from entropy_lab.loss import LossOutput as LossOutput
    from entropy_lab.loss import policy_loss as policy_loss
    from entropy_lab.loss import token_share as token_share
    from entropy_lab.predictors import PREDICTORS as PREDICTORS
    from entropy_lab.probe import Probe as Probe
    from entropy_lab.record import Run as Run
    from entropy_lab.record import RunWriter as RunWriter
    from entropy_lab.record import load as load
    from entropy_lab.record import open_run as open_run
    from entropy_lab.stats import QUADRANTS as QUADRANTS
    from entropy_lab.stats import Moments as Moments
    from entropy_lab.stats import entropy_slopes as entropy_slopes
    from entropy_lab.stats import linear_token_stats as linear_token_stats
    from entropy_lab.stats import quadrant as quadrant
    from entropy_lab.stats import state_hash as state_hash
    from entropy_lab.stats import token_stats as token_stats
    from entropy_lab.types import TokenBatch as TokenBatch
    from entropy_lab.types import TokenGrad as TokenGrad
    from entropy_lab.types import TokenPlan as TokenPlan
    from entropy_lab.types import TokenStats as TokenStats

__version__ = "0.1.0"

_PUBLIC = {
    "errors": ("ConfigError", "EntropyLabError", "RunError"),
    "interventions": ("INTERVENTIONS", "Intervention", "make_method"),
    "loss": ("LossOutput", "policy_loss", "token_share"),
    "predictors": ("PREDICTORS",),
    "probe": ("Probe",),
    "record": ("Run", "RunWriter", "load", "open_run"),
    "stats": (
        "QUADRANTS",
        "Moments",
        "entropy_slopes",
        "linear_token_stats",
        "quadrant",
        "state_hash",
        "token_stats",
    ),
    "types": ("TokenBatch", "TokenGrad", "TokenPlan", "TokenStats"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
