"""What a verl run sets: where and how densely to measure, and the fields of a method."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from entropy_lab.errors import ConfigError, nearest

PREFIX = "ENTROPY_LAB_"
Profile = Literal["core", "full"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the updates of one verl run are measured.

    run_dir: the run directory, "" measures nothing; every rank writes below it, so on several
    nodes it lies on a file system that they share. every: probe each `every`-th optimizer step,
    0 none; fraction: this share of each rank's responses in a probed step. repeat_every: on every
    so many probed steps the first pass is made twice, to see that it repeats bit for bit (0:
    never). profile, seed: as in `Probe`. strict: an error of the probe ends training. method:
    fields of the method that policy_loss.loss_mode names. Raises ConfigError for a wrong value.
    """

    run_dir: str = ""
    every: int = 1
    fraction: float = 1.0
    repeat_every: int = 10
    profile: Profile = "full"
    seed: int = 0
    strict: bool = False
    method: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("repeat_every", 0), ("seed", 0)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            self._check(name, whole and value >= least, "a whole number >= 0")
        real = isinstance(self.fraction, float | int) and not isinstance(self.fraction, bool)
        self._check("fraction", real and 0 < self.fraction <= 1, "a share in (0, 1]")
        self._check("profile", self.profile in get_args(Profile), "core or full")
        self._check("strict", isinstance(self.strict, bool), "true or false")
        self._check("run_dir", isinstance(self.run_dir, str), "a folder")
        named = self.method is None or isinstance(self.method, Mapping)
        self._check("method", named, "a table of the method's fields")

    def _check(self, name: str, ok: bool, wanted: str) -> None:
        if not ok:
            value = getattr(self, name)
            raise ConfigError(f"entropy_lab.{name} = {value!r} is not valid: set {wanted}")


_NAMES = tuple(f.name for f in fields(Settings))


def read_settings(
    section: Mapping[str, Any] | None, environment: Mapping[str, str] | None = None
) -> Settings:
    """The settings of `section` (actor.policy_loss.entropy_lab), and of ENTROPY_LAB_<NAME> where
    the section does not say.

    ENTROPY_LAB_METHOD holds name=value pairs between commas. Raises ConfigError for an unknown
    name in the section, naming the nearest valid one, and for a wrong value.
    """
    given = dict(section or {})
    for name in given:
        if name not in _NAMES:
            raise ConfigError(f"entropy_lab has no setting {name!r}: {nearest(str(name), _NAMES)}")
    found = os.environ if environment is None else environment
    for name in _NAMES:
        text = found.get(PREFIX + name.upper(), "")
        if name not in given and text:
            given[name] = _pairs(text) if name == "method" else _as(name, text)
    return Settings(**given)


def _as(name: str, text: str) -> Any:
    return text if name in ("run_dir", "profile") else parse_value(text)


def _pairs(text: str) -> dict[str, Any]:
    out = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(
                f"{PREFIX}METHOD = {text!r} is not valid: set name=value pairs between commas, "
                "e.g. lambda_min=0.5,mapping=linear"
            )
        out[name.strip()] = parse_value(value.strip())
    return out


def parse_value(text: str) -> Any:
    """A whole number, a float, true, false or null of this text, or else the text."""
    named = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
