"""A user's own functions, loaded from a file or a module for the audit and for rewards."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from entropy_lab.errors import ConfigError


def load_file(path: Path, otherwise: str) -> ModuleType:
    """The module that a Python file makes, run once for this call.

    otherwise: what else may stand in the file's place, for the error of a missing one. Raises
    ConfigError where there is no such file or it cannot be run.
    """
    if not path.is_file():
        raise ConfigError(f"no such file: {path}; give FILE.py:CALLABLE, or {otherwise}")
    name = f"_entropy_lab_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look their module up there
    home = str(path.resolve().parent)
    sys.path.insert(0, home)  # as if the file were run as a script
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own file may raise whatever it likes
        raise ConfigError(f"cannot load {path}: {first_line(error)}") from error
    finally:
        sys.path.remove(home)
    return module


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def own_names(module: ModuleType) -> list[str]:
    """Callables and methods that the module itself defines; "CALLABLE" where it has none."""
    own = [
        k
        for k, v in vars(module).items()
        if not k.startswith("_")
        and (callable(v) or callable(getattr(v, "plan", None)))
        and getattr(v, "__module__", module.__name__) == module.__name__
        and not inspect.ismodule(v)
    ]
    return own or ["CALLABLE"]
