"""What an import may cost: the lower layers need torch, numpy and pyarrow; tables need no torch."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIGHT = {"torch", "numpy", "pyarrow"}

# Refuses the packages in argv[1], imports the modules in argv[2] and prints what came along.
BARE = """
import importlib, json, sys

refused, wanted = json.loads(sys.argv[1]), json.loads(sys.argv[2])

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r} (refused by the test)")

sys.meta_path.insert(0, Refuse())
for name in wanted:
    module, _, attribute = name.partition(":")
    found = importlib.import_module(module)
    if attribute:
        getattr(found, attribute)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def loaded(wanted: list[str], refused: set[str]) -> set[str]:
    """Import `wanted` (module or module:name) where `refused` cannot be imported."""
    command = [sys.executable, "-c", BARE, json.dumps(sorted(refused)), json.dumps(wanted)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


def declared() -> set[str]:
    """The import names of everything that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {re.match(r"[\w.-]+", line).group().lower().replace("-", "_") for line in asked}
    assert LIGHT < names
    return names


def modules(*parts: str) -> list[str]:
    """Every module under these parts of the package."""
    found = []
    for part in parts:
        paths = [*(ROOT / "entropy_lab" / part).rglob("*.py")] or [ROOT / f"entropy_lab/{part}.py"]
        for path in paths:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.append(name.removesuffix(".__init__"))
    return sorted(found)


def public_names() -> dict[str, str]:
    """Public name -> module, as the type checker reads them in `entropy_lab/__init__.py`."""
    tree = ast.parse((ROOT / "entropy_lab" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_import_entropy_lab_brings_nothing_heavy():
    assert not loaded(["entropy_lab"], refused=set()) & declared() - LIGHT


def test_the_lower_layers_need_only_torch_numpy_and_pyarrow():
    names = modules("types", "errors", "stats", "loss", "advantages", "interventions")
    names += modules("predictors", "probe", "record")
    names.remove("entropy_lab.stats.kernels")  # what only CUDA tensors need
    assert len(names) > 20
    loaded(names, refused=declared() - LIGHT)


def test_every_public_name_is_where_the_type_checker_looks():
    import entropy_lab

    names = public_names()
    assert names == {name: f"entropy_lab.{home}" for name, home in entropy_lab._HOME.items()}
    assert set(names) <= set(dir(entropy_lab))
    loaded([f"entropy_lab:{name}" for name in names], refused=declared() - LIGHT)


def test_an_unknown_name_is_an_attribute_error():
    import entropy_lab

    with pytest.raises(AttributeError, match="'entropy_lab' has no attribute 'Prob'"):
        entropy_lab.Prob  # noqa: B018


def test_records_tables_and_figures_do_without_torch():
    names = [n for n in modules("record", "analysis", "plots", "report") if "audit" not in n]
    loaded(["entropy_lab", *names], refused={"torch", "transformers", "vllm"})


def test_the_refusal_works():
    with pytest.raises(AssertionError, match="No module named 'torch' .refused by the test."):
        loaded(["entropy_lab:policy_loss"], refused={"torch"})
