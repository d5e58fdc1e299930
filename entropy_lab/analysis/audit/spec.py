"""`--method` texts: a registry name, file.py:callable or module:callable, with parameters."""

from __future__ import annotations

import importlib
import re
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from entropy_lab.analysis.audit.candidate import Candidate
from entropy_lab.analysis.audit.losses import loss_candidate
from entropy_lab.analysis.audit.planned import Planned, instance
from entropy_lab.errors import ConfigError, nearest
from entropy_lab.interventions import INTERVENTIONS, make_method
from entropy_lab.user_code import load_file, own_names

_FILE = re.compile(r"(?P<place>.+?\.py)(?::(?P<name>\w+))?(?::(?P<params>.*))?", re.DOTALL)
_MODULE = re.compile(r"(?P<place>[\w.]+):(?P<name>[A-Za-z_]\w*)(?::(?P<params>.*))?", re.DOTALL)


def candidate_of(method: Any) -> Candidate:
    """The method that a text names, or that an object is (a method, its class, a loss).

    Texts: `steer`, `steer:lambda_min=0.5,mapping=linear` (values as in TOML, bare words are
    strings), `mine.py:loss`, `mine.py:loss:alpha=0.1`, `package.module:loss`. Raises ConfigError
    naming what is wrong with it.
    """
    if not isinstance(method, str):
        return _from_object(_name_of(method), method, {})
    name, _, params = method.partition(":")
    found = _FILE.fullmatch(method) or _MODULE.fullmatch(method)
    if found is None or name in INTERVENTIONS:
        return _from_registry(method, name, parameters(method, params))
    place, name = found["place"], found["name"]
    settings = parameters(method, found["params"] or "")
    from_file = place.endswith(".py")
    module = load_file(Path(place), "a registry name") if from_file else _import(method, place)
    if name is None:
        raise ConfigError(f"{method} names no callable: write {place}:{own_names(module)[0]}")
    if not hasattr(module, name):
        raise ConfigError(f"{place} has no {name!r}: {nearest(name, own_names(module))}")
    return _from_object(method, getattr(module, name), settings)


def parameters(method: str, text: str) -> dict[str, Any]:
    """key=value pairs between commas; ConfigError for a piece that is none."""
    found = {}
    for piece in _pieces(text):
        key, equals, value = piece.partition("=")
        if not (equals and key.strip() and value.strip()):
            raise ConfigError(
                f"cannot read {piece.strip()!r} in --method {method}: write "
                "NAME:key=value,key=value"
            )
        found[key.strip()] = _value(value.strip())
    return found


def _pieces(text: str) -> list[str]:
    """Split at commas that stand in no quotes or brackets."""
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not quote and not depth:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece for piece in pieces if piece.strip()]


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _from_registry(label: str, name: str, params: dict[str, Any]) -> Planned:
    if name not in INTERVENTIONS:
        raise ConfigError(
            f"unknown method {name!r}: {nearest(name, INTERVENTIONS)}, FILE.py:CALLABLE"
        )
    method = make_method(name, **params)
    return Planned(label, "registry", asdict(method), method)


def _from_object(label: str, thing: Any, params: dict[str, Any]) -> Candidate:
    if callable(getattr(thing, "plan", None)):
        if type(thing) in INTERVENTIONS.values() and not params:
            return Planned(label, "registry", asdict(thing), thing)
        return instance(label, thing, params)
    if not callable(thing) or isinstance(thing, type):
        raise ConfigError(
            f"{label} is {type(thing).__name__!r}: a method is a class or object with plan, or a "
            "loss function"
        )
    return loss_candidate(label, thing, params)


def _name_of(thing: Any) -> str:
    if type(thing) in INTERVENTIONS.values():
        return thing.name
    return getattr(thing, "__name__", type(thing).__name__)


def _import(method: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # an import runs a stranger's code
        known = f"; {nearest(name, INTERVENTIONS)}" if "." not in name else ""
        line = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"cannot import {name!r} for --method {method}: {line}{known}") from error
