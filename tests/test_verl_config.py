"""How a verl run is configured: its real Hydra config with the overrides of docs/verl.md, the
environment, the entry point that every `import verl` loads, and the settings themselves."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="needs verl: make test-verl")

import verl

import verl_cpu
from entropy_lab.errors import ConfigError

pytestmark = pytest.mark.verl
ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "docs" / "verl.md"


@pytest.fixture(scope="module", autouse=True)
def cpu() -> None:
    verl_cpu.use_cpu()


def composed(overrides: list[str]):
    from hydra import compose, initialize_config_dir

    folder = str(Path(verl.__file__).parent / "trainer" / "config")
    with initialize_config_dir(folder, version_base=None):
        return compose("ppo_trainer", overrides=overrides)


def recipes() -> list[list[str]]:
    """The overrides of every call of verl's trainer in the recipe, variables as they stand."""
    blocks = re.findall(r"```bash\n(.*?)```", RECIPE.read_text(), re.S)
    found = []
    for block in blocks:
        if "verl.trainer.main_ppo" not in block:
            continue
        call = block[block.index("verl.trainer.main_ppo") :].replace("\\\n", " ")
        lines = [line for line in call.splitlines() if line.strip()]
        words = shlex.split(lines[0].replace("$SHARED", "/shared"), comments=True)
        found.append(words[1:])
    return found


@pytest.mark.parametrize("number", range(3))
def test_the_recipes_overrides_pass_verls_config(number: int) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    from entropy_lab.adapters.verl import PolicyLossConfig, read_settings

    overrides = recipes()[number]
    config = composed(overrides)
    assert config.actor_rollout_ref.model.external_lib == "entropy_lab.adapters.verl"
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert isinstance(actor.policy_loss, PolicyLossConfig)
    settings = read_settings(actor.policy_loss.entropy_lab)
    assert settings.run_dir.startswith("/shared/runs/")
    assert settings.every > 1 and 0 < settings.fraction < 1
    if "steer" in " ".join(overrides):
        from entropy_lab.adapters.verl.losses import method_for

        assert actor.calculate_entropy
        name = actor.policy_loss.loss_mode.removeprefix("entropy_lab_")
        method = method_for(name, settings.method or {}, actor)
        assert (method.clip_low, method.clip_high) == (0.2, 0.28)
        assert method.scope == "microbatch" and method.lambda_min == 0.7


def test_the_recipe_has_three_runs() -> None:
    assert len(recipes()) == 3
    assert sum("trainer.nnodes=2" in r for r in recipes()) == 1


def test_without_our_section_verl_refuses_the_settings() -> None:
    """Why the recipe sets policy_loss._target_."""
    from verl.utils.config import omega_conf_to_dataclass

    overrides = [
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        "+actor_rollout_ref.actor.policy_loss.entropy_lab.every=10",
    ]
    with pytest.raises(Exception, match="unexpected keyword argument 'entropy_lab'"):
        omega_conf_to_dataclass(composed(overrides).actor_rollout_ref.actor)


# The settings.


def test_the_environment_fills_what_the_config_leaves_out() -> None:
    from entropy_lab.adapters.verl import read_settings

    environment = {
        "ENTROPY_LAB_RUN_DIR": "/shared/7", "ENTROPY_LAB_EVERY": "4", "ENTROPY_LAB_STRICT": "true",
        "ENTROPY_LAB_FRACTION": "0.5", "ENTROPY_LAB_METHOD": "lambda_min=0.5, mapping=linear",
        "ENTROPY_LAB_PROFILE": "core",
    }  # fmt: skip
    found = read_settings({"every": 8}, environment)
    assert (found.run_dir, found.every, found.fraction, found.strict, found.profile) == (
        "/shared/7", 8, 0.5, True, "core",
    )  # fmt: skip
    assert found.method == {"lambda_min": 0.5, "mapping": "linear"}
    assert read_settings(None, {}).run_dir == ""


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"fraction": 0}, r"entropy_lab\.fraction = 0 is not valid: set a share in \(0, 1\]"),
        ({"fraction": 1.5}, "set a share in"),
        ({"every": -1}, r"entropy_lab\.every = -1 is not valid: set a whole number >= 0"),
        ({"every": True}, "set a whole number"),
        ({"every": 1.5}, "set a whole number"),
        ({"profile": "tiny"}, "set core or full"),
        ({"strict": "no"}, "set true or false"),
        ({"method": "steer"}, "set a table of the method's fields"),
        ({"run_dri": "x"}, "entropy_lab has no setting 'run_dri': did you mean run_dir?"),
    ],
)
def test_a_wrong_setting_is_named(section: dict, message: str) -> None:
    from entropy_lab.adapters.verl import read_settings

    with pytest.raises(ConfigError, match=message):
        read_settings(section, {})


def test_a_wrong_method_in_the_environment_is_named() -> None:
    from entropy_lab.adapters.verl import read_settings

    with pytest.raises(ConfigError, match="METHOD = 'lambda_min' is not valid: set name=value"):
        read_settings({}, {"ENTROPY_LAB_METHOD": "lambda_min"})


# The entry point.


def imported(tmp_path: Path, code: str, module: str, **environment: str):
    """A process that imports verl, in which only our entry point is registered as its plugin."""
    info = tmp_path / "entropy_lab_plugin-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: entropy-lab-plugin\nVersion: 0.1\n"
    )
    (info / "entry_points.txt").write_text(f"[verl.plugins]\nentropy_lab = {module}\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ENTROPY_LAB")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**kept, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


ASK = (
    "import verl, sys; base = sys.modules.get('verl.workers.engine.base'); "
    "print('instrumented', bool(base and getattr(base.BaseEngine.train_batch, '_entropy_lab', 0)))"
)
PLUGIN = "entropy_lab.adapters.verl_plugin"
has_plugins = pytest.mark.skipif(
    not hasattr(verl, "_plugins_policy"), reason="verl loads plugins since 0.9"
)


@has_plugins
def test_the_entry_point_is_declared() -> None:
    assert f'entropy_lab = "{PLUGIN}"' in (ROOT / "pyproject.toml").read_text()


@has_plugins
@pytest.mark.parametrize("asked", [True, False])
def test_import_verl_instruments_where_the_environment_asks(tmp_path: Path, asked: bool) -> None:
    run_dir = {"ENTROPY_LAB_RUN_DIR": str(tmp_path / "run")} if asked else {}
    done = imported(tmp_path, ASK, PLUGIN, **run_dir)
    assert done.returncode == 0, done.stderr
    assert f"instrumented {asked}" in done.stdout
    assert ("entropy-lab: verl" in done.stderr) == asked
    assert not (tmp_path / "run").exists()  # nothing is made before a step is taken


@has_plugins
def test_a_plugin_that_fails_is_loud_though_verl_swallows_it(tmp_path: Path) -> None:
    """verl itself would say nothing; a broken installation is planted by a method file."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['entropy_lab.interventions'] = None\n"
    )
    done = imported(tmp_path, ASK, PLUGIN, ENTROPY_LAB_RUN_DIR=str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "instrumented False" in done.stdout
    assert "could not instrument verl, so this run is NOT recorded" in done.stderr
    assert "entropy_lab.interventions" in done.stderr


def test_a_response_is_known_by_all_of_its_tokens_whatever_the_padding() -> None:
    import torch

    from entropy_lab.adapters.verl.data import _keys

    group = torch.tensor([7, 7, 8])
    tokens = torch.tensor([[3, 4, 0], [5, 4, 0], [3, 4, 0]])
    mask = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 1, 0]]).bool()  # a tool's token, then its own
    keys = _keys({}, tokens, mask, group)
    assert len(set(keys)) == 3
    assert _keys({}, tokens[:, :2], mask[:, :2], group) == keys
