"""verl's registered policy losses, loaded from its own source without its dependencies.

VERL_PATH names the folder that holds the package `verl` (pip install --no-deps --target FOLDER
verl); otherwise an installed verl is found. Only files that the losses need are executed: packages
whose import would start Ray and the like are stood in for by empty modules.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Packages whose own __init__ is not run; their files are found below the folder.
_BARE = ("verl", "verl.trainer", "verl.trainer.ppo", "verl.utils", "verl.workers")


class ActorConfig:
    """Stands in for verl's: some losses ask whether their config is one."""


def verl_folder() -> Path | None:
    """The package folder, None where there is none."""
    if os.environ.get("VERL_PATH"):
        return Path(os.environ["VERL_PATH"]) / "verl"
    found = importlib.util.find_spec("verl")  # finds it without importing it
    places = list(found.submodule_search_locations or []) if found else []
    return Path(places[0]) if places else None


def _stubs(folder: Path) -> dict[str, ModuleType]:
    modules = {name: ModuleType(name) for name in _BARE}
    for name, module in modules.items():
        module.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
    given: dict[str, dict[str, Any]] = {
        "omegaconf": {"DictConfig": dict},
        "tensordict": {"TensorDict": dict},
        "verl.trainer.config": {"AlgoConfig": type("AlgoConfig", (), {})},
        "verl.workers.config": {"ActorConfig": ActorConfig},
        "verl.utils.device": {"get_device_name": lambda: "cpu", "get_torch_device": lambda: None},
    }
    for name, values in given.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(values)
    # Only advantage estimators call these.
    modules["verl.utils"].as_torch_index = modules["verl.utils"].group_mean_std = None  # type: ignore[attr-defined]
    return modules


@contextlib.contextmanager
def verl_losses() -> Iterator[dict[str, Callable[..., Any]]]:
    """verl's registry of policy losses: name -> function; {} where verl is not there."""
    folder = verl_folder()
    if folder is None:
        yield {}
        return
    stubs = _stubs(folder)
    names = {n for n in sys.modules if n.split(".")[0] in {"verl", "omegaconf", "tensordict"}}
    before = {n: sys.modules.pop(n) for n in names}
    sys.modules.update(stubs)
    try:
        yield importlib.import_module("verl.trainer.ppo.core_algos").POLICY_LOSS_REGISTRY
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "verl" or n in stubs]:
            del sys.modules[name]
        sys.modules.update(before)
