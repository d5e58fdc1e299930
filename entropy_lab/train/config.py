"""The settings of a run: read from a TOML file with overrides, complete and checked."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from entropy_lab.errors import ConfigError
from entropy_lab.train.checks import check_together
from entropy_lab.train.messages import explain, nearest, shown
from entropy_lab.train.rewards.settings import RewardConfig
from entropy_lab.train.settings import (
    STRICT,
    EvalConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    RolloutConfig,
    RunConfig,
    TaskConfig,
    TrackerConfig,
    TrainConfig,
    VllmConfig,
)


@dataclass(frozen=True, config=STRICT)
class Config:
    """All sections of a run."""

    run: RunConfig = RunConfig()
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    rollout: RolloutConfig = RolloutConfig()
    method: MethodConfig = MethodConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig = ProbeConfig()
    eval: EvalConfig = EvalConfig()
    tracker: TrackerConfig = TrackerConfig()
    vllm: VllmConfig = VllmConfig()
    reward: RewardConfig = RewardConfig()

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Sections as plain dicts in the layout of the TOML file."""
        sections = asdict(self)
        for name in _OPEN_SECTIONS:
            sections[name].update(sections[name].pop("params"))
        return sections

    def to_toml(self) -> str:
        """The complete settings as TOML; `load_config` of that text gives an equal Config."""
        blocks = [
            "\n".join([f"[{name}]", *(f"{key} = {_toml(v)}" for key, v in values.items())])
            for name, values in self.to_dict().items()
        ]
        return "\n\n".join(blocks) + "\n"


_SECTIONS: dict[str, type] = {
    "run": RunConfig,
    "task": TaskConfig,
    "model": ModelConfig,
    "rollout": RolloutConfig,
    "method": MethodConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "probe": ProbeConfig,
    "eval": EvalConfig,
    "tracker": TrackerConfig,
    "vllm": VllmConfig,
    "reward": RewardConfig,
}
_OPEN_SECTIONS = ("task", "method")
_NAMES = tuple(f"{section}.name" for section in _OPEN_SECTIONS)


def load_config(path: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """Read a TOML file (None: the packaged demo), apply "section.key=value" overrides, check all.

    A value is read as TOML and, where it is none, taken as a bare string. Raises ConfigError with
    one line that names the key, the value seen and what would do.
    """
    source = str(path) if path is not None else "demo.toml"
    data = _read(path)
    # A new name first: it brings its own parameters, whatever the order they are given in.
    for text in sorted(overrides or [], key=lambda t: t.partition("=")[0].strip() not in _NAMES):
        override(data, text)
    return config_from_dict(data, source)


def config_from_dict(data: dict[str, dict[str, Any]], source: str = "run.json") -> Config:
    """The Config that `Config.to_dict` wrote; raises ConfigError as `load_config` does."""
    _check_sections(data, source)
    config = Config(**{name: _section(name, data.get(name, {}), source) for name in _SECTIONS})
    check_together(config)
    return config


def _read(path: str | Path | None) -> dict[str, Any]:
    resource = files("entropy_lab.train").joinpath("demo.toml") if path is None else Path(path)
    try:
        return tomllib.loads(resource.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such settings file: {path}; give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read the settings file {path}: {e}") from None
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path} is not valid TOML: {e}") from None


def override(data: dict[str, Any], text: str) -> None:
    """Apply "section.key=value" to `data` in place; raises ConfigError where it cannot be read."""
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise ConfigError(f"cannot read the override {text!r}: write section.key=value")
    if not isinstance(data.setdefault(section, {}), dict):
        raise ConfigError(f"{section} must be a section, got {shown(data[section])}")
    new = _value(value.strip())
    if key.strip() in _NAMES and data[section].get("name") != new:
        data[section] = {}  # the parameters of another task or method
    data[section][name] = new


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _check_sections(data: dict[str, Any], source: str) -> None:
    for name, values in data.items():
        if name not in _SECTIONS:
            raise ConfigError(f"{source}: unknown section [{name}]; {nearest(name, _SECTIONS)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: {name} must be a section [{name}], got {shown(values)}")


def _section(name: str, values: dict[str, Any], source: str) -> Any:
    cls = _SECTIONS[name]
    keys = [f.name for f in fields(cls)]
    if name in _OPEN_SECTIONS:
        rest = {k: v for k, v in values.items() if k != "name"}
        values = {k: v for k, v in values.items() if k == "name"} | {"params": rest}
    for key in values:
        if key not in keys:
            raise ConfigError(f"{source}: unknown key {name}.{key}; {nearest(key, keys)}")
    try:
        return cls(**values)
    except ValidationError as e:
        raise ConfigError(f"{source}: {name}.{explain(e)}") from None


def reward_config(values: dict[str, Any]) -> RewardConfig:
    """The section [reward] alone; ConfigError as `load_config`."""
    return _section("reward", values, "settings")


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)
