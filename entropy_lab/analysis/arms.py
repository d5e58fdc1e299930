"""Which runs belong to one method, and what else differs between the runs of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entropy_lab.record import Run

Settings = Mapping[str, Any]

_LABELS = ("name", "source")  # keys of the method that are no settings
_NOT_GIVEN = "default"
# Settings that say how a run is named, seeded, measured and kept, not how it trains.
_FREE_SECTIONS = ("run", "method", "probe", "eval")
_FREE = ("train.checkpoint_every", "train.keep_checkpoints")
_SHOWN = 3  # differing settings that a warning spells out


@dataclass(frozen=True)
class Arm:
    """The method label of a run and its seed; None where run.json states none."""

    method: str
    seed: int | None


def arms(runs: Sequence[Run], names: Sequence[str]) -> list[Arm]:
    """The arm of each run: method.name plus those settings that differ between its runs.

    Settings are those of the method as run.json resolved them, defaults included, else those of
    its configuration. A run without a method is an arm of its own, called as the run.
    """
    methods = [_method(run.info, name) for run, name in zip(runs, names, strict=True)]
    labels = []
    for name, settings in methods:
        same = [other for label, other in methods if label == name]
        keys = dict.fromkeys(key for other in same for key in other)
        differ = [k for k in keys if len({_shown(o.get(k, _NOT_GIVEN)) for o in same}) > 1]
        values = [f"{key}={_shown(settings.get(key, _NOT_GIVEN))}" for key in differ]
        labels.append(" ".join([name, *values]))
    return [Arm(label, _seed(run.info)) for label, run in zip(labels, runs, strict=True)]


def baseline(methods: Sequence[str]) -> str:
    """The first label whose method is grpo, else the first one given."""
    return next((m for m in methods if m.split(" ")[0] == "grpo"), methods[0])


def mixed(runs: Sequence[Run], names: Sequence[str], found: Sequence[Arm]) -> list[str]:
    """What to know before trusting a comparison of these runs: one sentence each."""
    texts = []
    seeds: dict[tuple[str, int], str] = {}
    for arm, name in zip(found, names, strict=True):
        if arm.seed is not None:
            first = seeds.setdefault((arm.method, arm.seed), name)
            if first != name:
                texts.append(
                    f"{first} and {name} are both {arm.method} with seed {arm.seed} and count as "
                    "two seeds: give one of them"
                )
    configs = [dict(_flat(run.info.get("config") or {})) for run in runs]
    configs = [config for config in configs if config]
    keys = dict.fromkeys(key for config in configs for key in config)
    other = [k for k in keys if len({_shown(c.get(k, _NOT_GIVEN)) for c in configs}) > 1]
    if other:
        shown = [f"{key} ({_values(configs, key)})" for key in other[:_SHOWN]]
        more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        texts.append(
            f"the runs differ in more than method and seed: {', '.join(shown)}{more}; such a "
            "difference is not the method's. Compare runs that are equal in the rest"
        )
    return texts


def _method(info: Settings, run: str) -> tuple[str, dict[str, Any]]:
    given = (info.get("config") or {}).get("method") or {}
    resolved = info.get("method")
    name = str(given.get("name") or run)
    full = resolved if isinstance(resolved, dict) and resolved.get("name") == name else given
    return name, {key: value for key, value in full.items() if key not in _LABELS}


def _seed(info: Settings) -> int | None:
    section = (info.get("config") or {}).get("run")
    seed = section.get("seed") if isinstance(section, dict) else None
    return seed if isinstance(seed, int) else None


def _flat(config: Settings) -> Iterator[tuple[str, Any]]:
    for section, values in config.items():
        if section in _FREE_SECTIONS or not isinstance(values, dict):
            continue
        for key, value in values.items():
            if key != "seed" and f"{section}.{key}" not in _FREE:
                yield f"{section}.{key}", value


def _values(configs: Sequence[Settings], key: str) -> str:
    shown = list(dict.fromkeys(_shown(config.get(key, _NOT_GIVEN)) for config in configs))
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
