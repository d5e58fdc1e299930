"""The method that AGENTS.md adds step by step is real: its blocks run as they stand there."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import test_interventions
import test_method_hooks
import test_plan_step
from entropy_lab.interventions import INTERVENTIONS

AGENTS = Path(__file__).parents[1] / "AGENTS.md"


def blocks() -> list[str]:
    """The code of "How to add a method": file, registry line, EVERY_METHOD line, tests."""
    section = AGENTS.read_text(encoding="utf-8").split("## How to add a method\n")[1]
    section = section.split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def add(source: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the file's text where the package would have it, and its line into the registry."""
    path = folder / "below_mean.py"
    path.write_text(source, encoding="utf-8")
    name = f"entropy_lab.interventions.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    [(key, method)] = eval("{" + line + "}", vars(module)).items()
    monkeypatch.setitem(INTERVENTIONS, key, method)
    return key


def checks_in(code: str) -> list[Callable[[], None]]:
    names: dict[str, Any] = {}
    exec(compile(code, str(AGENTS), "exec"), names)
    return [value for name, value in names.items() if name.startswith("test_")]


def test_the_example_passes_its_own_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, line, _, tests = blocks()
    name = add(source, line, tmp_path, monkeypatch)
    assert INTERVENTIONS[name].name == name
    found = checks_in(tests)
    assert len(found) == 2
    for test in found:
        test()


@pytest.mark.parametrize(
    "check",
    [
        test_interventions.test_gradient_by_hook_equals_autograd_on_a_leaf,
        test_interventions.test_a_plan_ignores_what_the_padding_holds,
        test_plan_step.test_minibatch_scope_depends_on_neither_split_nor_order,
        test_method_hooks.test_a_state_is_flat_json_and_never_mutated,
        test_method_hooks.test_needs_names_all_that_any_hook_reads,
        test_method_hooks.test_without_a_state_the_batch_is_its_own_first_rollout,
    ],
)
def test_the_example_passes_what_every_method_has_to(
    check: Callable[[str, dict[str, Any]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, line, entry, _ = blocks()
    add(source, line, tmp_path, monkeypatch)
    [(name, params)] = eval(f"[{entry}]")
    check(name, params)


def test_a_wrong_example_would_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, line, _, tests = blocks()
    assert "factor: float = 0.5" in source
    add(source.replace("float = 0.5", "float = 0.6"), line, tmp_path, monkeypatch)
    with pytest.raises(AssertionError):
        checks_in(tests)[0]()
