"""Every page of docs/ does what it shows: its ```python and ```sh blocks run, in order.

A page runs in an empty folder, its python blocks in one namespace. Other fences (```text, ```toml,
```bash) are only read. A page that needs packages says so on its first line,
<!-- needs: trl, accelerate -->, and is left out where one of them is not installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.M | re.S)
_NEEDS = re.compile(r"<!-- needs: ([\w ,.-]+) -->")


def needed(page: Path) -> list[str]:
    """The packages that the first line of a page names."""
    found = _NEEDS.fullmatch(page.read_text().split("\n", 1)[0].strip())
    return [name.strip() for name in found[1].split(",")] if found else []


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """(line, language, text) of every block that is to be run."""
    text = page.read_text()
    return [(text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in _BLOCK.finditer(text)]


def run_python(text: str, page: Path, line: int, namespace: dict[str, Any]) -> None:
    padded = "\n" * (line - 1) + text  # so that a traceback names the line of the page
    exec(compile(padded, str(page), "exec"), namespace)  # noqa: S102 - our own text


def run_shell(text: str, page: Path, line: int, folder: Path) -> None:
    """In bash -e, where `entropy-lab` and `python` are those that run this test."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    for name, args in (("entropy-lab", " -m entropy_lab"), ("python", "")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}"{args} "$@"\n')
        tool.chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-ec", text], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    said = f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    assert done.returncode == 0, f"{page.name}, line {line}: exit {done.returncode}\n{said}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_page_does_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in needed(page):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{page.name} needs {package}")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, language, text in blocks(page):
        if language == "python":
            run_python(text, page, line, namespace)
        else:
            run_shell(text, page, line, tmp_path)


def test_a_page_that_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- needs: torch, nowhere -->\n```python\na = 1\n```\n\n```sh\nfalse\n```\n")
    assert needed(page) == ["torch", "nowhere"]
    (first, one, text), (second, two, command) = blocks(page)
    assert (first, one, second, two) == (3, "python", 7, "sh")
    namespace: dict[str, Any] = {}
    run_python(text, page, first, namespace)
    assert namespace["a"] == 1
    with pytest.raises(ZeroDivisionError) as raised:
        run_python("a / 0\n", page, 3, namespace)
    assert raised.traceback[-1].lineno == 2  # counted from 0: line 3 of the page
    with pytest.raises(AssertionError, match="page.md, line 7: exit 1"):
        run_shell(command, page, second, tmp_path)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
