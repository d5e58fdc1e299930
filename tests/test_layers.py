"""Imports point down and the lower layers stay pure; planted violations show that this can fail."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "entropy_lab"

LAYER = {
    **dict.fromkeys(["types", "errors"], 0),
    **dict.fromkeys(["stats", "loss", "advantages", "interventions", "predictors"], 1),
    **dict.fromkeys(["probe", "record", "user_code"], 2),
    **dict.fromkeys(["analysis", "train", "adapters"], 3),
    **dict.fromkeys(["plots", "report", "cli", "__main__"], 4),
}
# Layers whose members are strangers to one another, and the pairs that may still meet.
STRANGERS = {3, 4}
ACQUAINTED = {("report", "plots"), ("cli", "plots"), ("cli", "report"), ("__main__", "cli")}

# Pure mathematics needs no more than this; anything else could be I/O, a clock or a global state.
PURE = {
    "__future__", "abc", "collections", "dataclasses", "difflib", "enum", "functools", "inspect",
    "itertools", "math", "operator", "torch", "types", "typing",
    "jaxtyping",  # for the type checker alone: test_import_light refuses it at run time
}  # fmt: skip
# Imported only where a tensor lies on a CUDA device.
PURE_AFTER_ALL = {("stats.kernels", "triton")}
IMPURE_CALLS = {
    "open", "print", "input", "torch.save", "torch.load", "torch.seed", "torch.manual_seed",
    "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.set_rng_state",
    "torch.set_num_threads", "torch.set_default_dtype", "torch.set_default_device",
}  # fmt: skip
RANDOM_CALLS = {
    f"torch.{name}"
    for name in ("rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal",
                 "rand_like", "randn_like", "randint_like")
}  # fmt: skip
WITHOUT = {
    "record": {"torch"},
    "plots": {"torch"},
    "report": {"torch"},
    "analysis": {"torch", "transformers", "vllm"},
}
MAY_AFTER_ALL = {("analysis.audit", "torch")}


def _imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, at any depth; relative ones are resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                keep = len(parts) - node.level + is_package
                base = ".".join(["entropy_lab", *parts[:keep], *filter(None, [base])])
            # `from entropy_lab import stats` imports a module, so the names count as well.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _dotted(node.func).endswith(
            ("import_module", "__import__")
        ):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _import_fault(module: str, imported: str) -> str | None:
    own = module.split(".")[0]
    root, *rest = imported.split(".")
    if root != "entropy_lab":
        pure = root in PURE or (module, root) in PURE_AFTER_ALL
        if LAYER[own] <= 1 and not pure:
            return f"imports {root}, but layers 0 and 1 are pure"
        allowed = any(module.startswith(who) and root == what for who, what in MAY_AFTER_ALL)
        if root in WITHOUT.get(own, ()) and not allowed:
            return f"imports {root}, which {own} does without"
        return None
    other = rest[0] if rest else ""
    if other not in LAYER:
        # A public name, whose home only `entropy_lab/__init__.py` knows; the version is data.
        return None if other == "__version__" else f"imports {imported} instead of its module"
    if LAYER[other] > LAYER[own]:
        return f"imports {other} of layer {LAYER[other]} from layer {LAYER[own]}"
    if LAYER[own] == LAYER[other] and LAYER[own] in STRANGERS and own != other:
        if (own, other) not in ACQUAINTED:
            return f"imports {other}, its sibling in layer {LAYER[own]}"
    return None


def _call_faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func)
        if name in IMPURE_CALLS:
            yield node.lineno, f"calls {name}, but layers 0 and 1 are pure"
        if name in RANDOM_CALLS and not any(k.arg == "generator" for k in node.keywords):
            yield node.lineno, f"calls {name} without a generator"


def violations(package: Path) -> list[str]:
    """One line for each import or call that breaks the layers."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        if not module:
            continue
        where = path.relative_to(package).as_posix()
        if module.split(".")[0] not in LAYER:
            found.append(f"{where}: belongs to no layer")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        faults = [
            (line, fault)
            for line, name in _imports(tree, module, is_package)
            if (fault := _import_fault(module, name))
        ]
        if LAYER[module.split(".")[0]] <= 1:
            faults += _call_faults(tree)
        found += [f"{where}:{line} {fault}" for line, fault in faults]
    return found


def test_the_package_keeps_its_layers():
    assert violations(PACKAGE) == []


def test_the_checker_reads_every_layer():
    read = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in PACKAGE.rglob("*.py")}
    assert set(LAYER) - read <= {"adapters"}, "a layer was moved: LAYER must follow"


PLANTED = {
    "upward": ("loss.py", "from entropy_lab.record import load", "imports record of layer 2"),
    "upward, relative": ("stats/tiles.py", "from ..probe import Probe", "imports probe of layer 2"),
    "upward, relative name": ("stats/__init__.py", "from .. import cli", "imports cli of layer 4"),
    "inside a function": (
        "record/run.py",
        "def f():\n    from entropy_lab.analysis import validate",
        "run.py:2 imports analysis of layer 3",
    ),
    "as a module": ("probe/probe.py", "import entropy_lab.train.loop", "imports train of layer 3"),
    "by a string": (
        "predictors/cov.py",
        "import_module('entropy_lab.train')",
        "imports train of layer 3",
    ),
    "siblings": ("analysis/audit.py", "from entropy_lab.train import loop", "its sibling"),
    "siblings at the top": ("plots/style.py", "from entropy_lab import cli", "its sibling"),
    "by a public name": ("train/loop.py", "from entropy_lab import Probe", "instead of its module"),
    "clock": ("loss.py", "import time", "imports time, but layers 0 and 1 are pure"),
    "file system": ("stats/x.py", "from pathlib import Path", "imports pathlib"),
    "a kernel at large": ("stats/reference.py", "import triton", "imports triton, but layers 0"),
    "global seed": ("interventions/kl_cov.py", "torch.manual_seed(0)", "calls torch.manual_seed"),
    "global draw": ("interventions/x.py", "y = torch.rand(3)", "torch.rand without a generator"),
    "print": ("advantages.py", "print(1)", "calls print"),
    "torch in a figure": ("plots/curves.py", "import torch", "torch, which plots does without"),
    "torch in the record": ("record/run.py", "import torch.nn", "which record does without"),
    "torch in analysis": ("analysis/validate.py", "import torch", "which analysis does without"),
    "a model in analysis": ("analysis/audit.py", "import transformers", "which analysis does"),
    "no layer": ("utils.py", "", "utils.py: belongs to no layer"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_violation_is_found(case: str, tmp_path: Path):
    name, source, message = PLANTED[case]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(source)
    found = violations(tmp_path)
    assert len(found) == 1 and message in found[0], found


def test_what_is_allowed_is_not_reported(tmp_path: Path):
    allowed = {
        "__init__.py": "from entropy_lab.cli import main",
        "loss.py": "import torch, math\nfrom entropy_lab.types import TokenPlan",
        "interventions/steer.py": "from ..stats import quadrant\ntorch.rand(3, generator=g)",
        "analysis/audit.py": "import torch\nfrom entropy_lab.loss import policy_loss",
        "report/html.py": "from entropy_lab.plots import style",
        "cli.py": "from entropy_lab import __version__, train, report",
        "__main__.py": "from .cli import main",
    }
    for name, source in allowed.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    assert violations(tmp_path) == []
