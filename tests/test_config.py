"""Settings: one TOML, overrides, and one clear line for everything a user can get wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pydantic import ValidationError

from entropy_lab.errors import ConfigError
from entropy_lab.train.config import Config, TrainConfig, config_from_dict, load_config

ROOT = Path(__file__).parents[1]


def refusal(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_packaged_demo_is_the_one_under_experiments() -> None:
    packaged = ROOT / "entropy_lab" / "train" / "demo.toml"
    shown = ROOT / "experiments" / "configs" / "demo.toml"
    assert packaged.read_bytes() == shown.read_bytes()
    assert len(packaged.read_text().splitlines()) <= 30
    assert load_config() == load_config(shown)


def test_the_demo_has_the_size_that_the_readme_promises() -> None:
    config = load_config()
    assert config.rollout.prompts * config.rollout.group_size == 256
    assert config.train.rollouts >= 60 and config.train.minibatches == 2
    assert config.task.name == "arithmetic" and config.method.name == "grpo"


def test_overrides_are_toml_values_or_bare_strings() -> None:
    config = load_config(
        None,
        [
            "train.rollouts=7",
            "optimizer.lr = 1e-3",
            "run.name=steer run",
            'task.name="arithmetic"',
            "probe.enabled=false",
            "method.name=clip_higher",
            "method.clip_high=inf",
        ],
    )
    assert config.train.rollouts == 7 and config.optimizer.lr == 1e-3
    assert config.run.name == "steer run" and config.task.name == "arithmetic"
    assert config.probe.enabled is False
    assert config.method.params == {"clip_high": float("inf")}


def test_an_override_cannot_smuggle_in_a_second_key() -> None:
    assert load_config(None, ["run.name=1\nseed = 5"]).run.name == "1\nseed = 5"


def test_a_whole_number_is_a_valid_float() -> None:
    assert load_config(None, ["rollout.temperature=2"]).rollout.temperature == 2.0


def test_settings_survive_toml_and_json_unchanged(tmp_path: Path) -> None:
    config = load_config(None, ['run.name=a "b" \\ c', "optimizer.lr=1e-7", "task.digits=3"])
    saved = tmp_path / "run.toml"
    saved.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(saved) == config
    assert config_from_dict(config.to_dict()) == config


def test_the_dict_has_the_layout_of_the_file() -> None:
    saved = load_config(None, ["method.name=clip_higher", "method.clip_high=0.3"]).to_dict()
    assert saved["method"] == {"name": "clip_higher", "clip_high": 0.3}
    assert saved["task"] == {"name": "arithmetic", "digits": 2}
    assert set(saved) == {f.name for f in dataclasses.fields(Config)}


def test_sections_are_frozen_and_check_themselves() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config().train.rollouts = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        TrainConfig(rollouts=-1)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    assert refusal(path=tmp_path / "none.toml") == (
        f"no such settings file: {tmp_path / 'none.toml'}; give the path of a TOML file"
    )
    broken = tmp_path / "broken.toml"
    broken.write_text("[run]\nseed = 1\nname = oops\n")
    text = refusal(path=broken)
    assert f"{broken} is not valid TOML" in text and "line 3" in text
    assert "cannot read the settings file" in refusal(path=tmp_path)
    broken.write_bytes(b"name = '\xff'")
    assert "cannot read the settings file" in refusal(path=broken)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("trian.rollouts=3", "unknown section [trian]; did you mean train?"),
        ("train.rolouts=3", "unknown key train.rolouts; did you mean rollouts?"),
        ("probe.zzzz=3", "unknown key probe.zzzz; valid: enabled, every, fraction"),
        ("train.rollouts=sixty", 'train.rollouts must be a whole number, got "sixty" (a string)'),
        ("train.rollouts='60'", 'train.rollouts must be a whole number, got "60" (a string)'),
        ("train.rollouts=6.5", "train.rollouts must be a whole number, got 6.5 (a float)"),
        ("train.rollouts=true", "train.rollouts must be a whole number, got true (a boolean)"),
        ("optimizer.lr=fast", 'optimizer.lr must be a number, got "fast" (a string)'),
        ("optimizer.lr=nan", "optimizer.lr must be"),
        ("optimizer.lr=inf", "optimizer.lr must be a finite number"),
        ("optimizer.lr=-1e-4", "optimizer.lr must be greater than or equal to 0, got -0.0001"),
        ("probe.enabled=1", "probe.enabled must be true or false, got 1 (an integer)"),
        ("run.name=3", "run.name must be a string, got 3 (an integer)"),
        ("rollout.prompts=-4", "rollout.prompts must be greater than or equal to 1, got -4"),
        ("rollout.group_size=1", "rollout.group_size must be greater than or equal to 2, got 1"),
        ("rollout.temperature=0", "rollout.temperature must be greater than 0, got 0"),
        ("probe.fraction=1.5", "probe.fraction must be less than or equal to 1, got 1.5"),
        ("optimizer.name=adam", 'optimizer.name must be "adamw" or "sgd", got "adam"'),
        ("rollout.engine=vlm", 'rollout.engine must be "hf"'),
        ("train.minibatches=3", "256 responses cannot be divided into train.minibatches = 3"),
        ("model.heads=5", "model.hidden = 128 must be a multiple of 2 x model.heads = 10"),
        ("task.name=arithmetik", "unknown task 'arithmetik'; did you mean arithmetic?"),
        ("task.digit=3", "unknown key task.digit of task arithmetic; did you mean digits?"),
        ("task.digits=0", "task.digits must be greater than or equal to 1, got 0"),
        ("method.name=gpro", "did you mean gspo or grpo"),
        ("method.clip_hihg=0.3", "clip_high"),
        ("train=3", "cannot read the override 'train=3': write section.key=value"),
        ("train.rollouts", "cannot read the override 'train.rollouts': write section.key=value"),
        (".=", "cannot read the override"),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_to_do(override: str, text: str) -> None:
    assert text in refusal(override)


def test_a_wrong_mapping_names_the_nearest() -> None:
    text = refusal("method.name=steer", "method.mapping=exponentiel")
    assert "exp" in text and "exponentiel" in text


def test_a_section_must_be_a_section(tmp_path: Path) -> None:
    file = tmp_path / "flat.toml"
    file.write_text("train = 3\n")
    assert "train must be a section [train], got 3 (an integer)" in refusal(path=file)
    assert "train must be a section, got 3" in refusal("train.rollouts=2", path=file)


def test_the_file_is_named_in_the_error(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nrollouts = 0\n")
    assert refusal(path=file).startswith(f"{file}: train.rollouts must be")


def test_another_task_or_method_brings_its_own_parameters(tmp_path: Path) -> None:
    """The demo sets task.digits; choosing countdown must not carry it over, in either order."""
    for order in (1, -1):
        config = load_config(None, ["task.numbers=4", "task.name=countdown"][::order])
        assert config.task.name == "countdown" and config.task.params == {"numbers": 4}
    assert load_config(None, ["task.name=arithmetic"]).task.params == {"digits": 2}
