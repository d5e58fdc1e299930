"""The settings of a run: one frozen dataclass per section of the TOML file, checked on loading."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from entropy_lab.errors import ConfigError
from entropy_lab.train.checks import check_together
from entropy_lab.train.messages import explain, nearest, shown

Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Threads = Annotated[int, Field(ge=0, le=1024)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, config=_STRICT)
class RunConfig:
    """name labels the run; seed drives problems, sampling and probing; threads 0 keeps torch's."""

    name: str = "demo"
    seed: Seed = 0
    threads: Threads = 0


@dataclass(frozen=True, config=_STRICT)
class TaskConfig:
    """A name in `TASKS`; every other key of the section is a field of that task."""

    name: str = "arithmetic"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """Sizes and warm-up of the model made here; `path` loads a local model folder instead.

    autocast: "bfloat16" runs the passes of the trainer in it, on float32 master weights.
    warmup_corrupt: the chance that a written step of a training trace is wrong; warmup_ramp:
    iterations of linear learning-rate rise; warmup_decay: the last share of them, falling to 0.
    """

    path: str = ""
    autocast: Literal["none", "bfloat16"] = "none"
    seed: Seed = 0
    layers: Positive = 3
    hidden: Positive = 128
    intermediate: Positive = 384
    heads: Positive = 4
    warmup_iterations: Count = 700
    warmup_sequences: Positive = 48
    warmup_lr: Rate = 4e-3
    warmup_beta1: Decay = 0.9
    warmup_beta2: Decay = 0.98
    warmup_ramp: Count = 40
    warmup_decay: Share = 0.3
    warmup_corrupt: Share = 0.35


@dataclass(frozen=True, config=_STRICT)
class RolloutConfig:
    """One rollout = prompts x group_size responses of at most max_tokens tokens, EOS included."""

    engine: Literal["hf"] = "hf"
    prompts: Positive = 32
    group_size: Annotated[int, Field(ge=2)] = 8
    max_tokens: Positive = 12
    temperature: Rate = 1.0


@dataclass(frozen=True, config=_STRICT)
class MethodConfig:
    """A name in `INTERVENTIONS`; every other key of the section is a field of that method."""

    name: str = "grpo"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class OptimizerConfig:
    """clip_norm 0 is off; the rate rises over warmup_steps optimizer steps, then stays.

    beta1 is the momentum of "sgd"; beta2 and eps belong to "adamw" alone.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: NonNegative = 2e-4
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Rate = 1e-8
    weight_decay: NonNegative = 0.0
    clip_norm: NonNegative = 1.0
    warmup_steps: Count = 0


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    """Each rollout feeds `minibatches` optimizer steps; micro_batch counts responses.

    checkpoint_every counts rollouts (0: only at the end); keep_checkpoints 0 keeps all.
    replay_every: rollouts between two replay points (0: none), for `audit --replay`.
    """

    rollouts: Positive = 60
    minibatches: Positive = 2
    micro_batch: Positive = 64
    checkpoint_every: Count = 20
    keep_checkpoints: Count = 2
    replay_every: Count = 0
    keep_replays: Count = 0


@dataclass(frozen=True, config=_STRICT)
class ProbeConfig:
    """What is measured around the steps; every: each n-th step; fraction: of its responses.

    floor_every: gradient audit, repeat check and noise floor on each n-th probed step;
    deep_every: path forms and influence, 0 for none. jvp, entropy_of, dtype, policy: as in Probe;
    snapshots: where the weights before a deep step are kept.
    """

    enabled: bool = True
    every: Positive = 1
    fraction: PositiveShare = 1.0
    profile: Literal["core", "full"] = "full"
    held_out: bool = True
    fixed_responses: Count = 64
    floor_every: Positive = 10
    deep_every: Count = 0
    jvp: Literal["forward", "slope"] = "forward"
    entropy_of: Literal["train", "held_out", "fixed"] = "train"
    dtype: Literal["auto", "same", "float32", "float64"] = "auto"
    policy: Literal["master", "cast"] = "master"
    snapshots: Literal["device", "cpu"] = "device"


@dataclass(frozen=True, config=_STRICT)
class EvalConfig:
    """Evaluation on held-out problems of the task, before, after and every `every` rollouts.

    every 0: never. samples: responses to each of `problems` problems; max_k: pass@k for k = 1, 2,
    4, ... up to it (0: up to samples); max_tokens 0: that of [rollout].
    """

    every: Count = 0
    problems: Positive = 64
    samples: Positive = 64
    max_k: Count = 0
    temperature: Rate = 1.0
    top_p: PositiveShare = 1.0
    max_tokens: Count = 0


@dataclass(frozen=True, config=_STRICT)
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


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)
