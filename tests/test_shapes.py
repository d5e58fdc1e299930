"""The shapes written on the dataclasses and public functions of layers 0 and 1 are true."""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from jaxtyping import Float, jaxtyped
from torch import Tensor

from entropy_lab.interventions import make_method, plan_step
from entropy_lab.loss import LossOutput, TokenShare, policy_loss
from entropy_lab.predictors import PREDICTORS
from entropy_lab.types import TokenBatch, TokenGrad, TokenPlan, TokenStats
from shapes import (
    fault,
    hints,
    is_array,
    modules,
    parts,
    shapeless,
)
from step_example import B, T, full_example, gradient, tensor_leaves
from token_examples import EVERY_METHOD

RECORDS = (TokenBatch, TokenStats, TokenGrad, TokenPlan, TokenShare, LossOutput)


@pytest.mark.parametrize("module", list(modules()), ids=lambda m: m.__name__)
def test_every_public_tensor_has_a_shape(module: ModuleType):
    assert shapeless(module) == []


PLANTED = {
    "argument": ("def f(x: Tensor) -> int: ...", "f: x is a Tensor without a shape"),
    "return": ("def f(x: int) -> Tensor | None: ...", "f: return is a Tensor without a shape"),
    "inside": ("def f() -> list[tuple[Tensor, int]]: ...", "f: return is a Tensor without"),
    "no hint": ("def f(x) -> int: ...", "f: x has no annotation"),
    "no return": ("def f(x: int): ...", "f: return has no annotation"),
    "method": ("class M:\n    def f(self, x: Tensor) -> int: ...", "M.f: x is a Tensor without"),
    "classmethod": (
        "class M:\n    @classmethod\n    def f(cls) -> Tensor: ...",
        "M.f: return is a Tensor without",
    ),
    "field": ("@dataclass\nclass D:\n    x: Tensor | float = 0.0", "D.x is a Tensor without"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_tensor_without_a_shape_is_found(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, message = PLANTED[case]
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    name = f"planted_{case.replace(' ', '_')}"
    (tmp_path / f"{name}.py").write_text(f"{head}from torch import Tensor\n{source}\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = shapeless(importlib.import_module(name))
    assert len(found) == 1 and message in found[0], found


# --- one binding of B and T for everything that belongs to one step --------------------------


def step_records(name: str, params: dict[str, Any]) -> list[list[Any]]:
    """Everything made for each of two micro-batches, of 4 and 2 rows, by one optimizer step."""
    _, batch, stats = full_example()
    method = make_method(name, **params)
    cuts = [slice(0, 4), slice(4, B)]
    batches, known = [batch.rows(c) for c in cuts], [stats.rows(c) for c in cuts]
    made = []
    for part, now, (plan, share) in zip(
        batches, known, plan_step(method, batches, known), strict=True
    ):
        output, grad = gradient(part, now, plan, share)
        made.append([part, now, plan, share, output, grad])
    return made


def bound(axes: str) -> Any:
    """The size that the present context has bound to an axis (None where it has not)."""
    return next((n for n in range(100) if isinstance(torch.zeros(n), Float[Tensor, axes])), None)


@pytest.mark.parametrize(("name", "params"), EVERY_METHOD)
def test_one_binding_of_b_and_t_holds_for_a_whole_step(name: str, params: dict[str, Any]):
    for rows, records in zip((4, B - 4), step_records(name, params), strict=True):
        assert tuple(map(type, records)) == (
            TokenBatch, TokenStats, TokenPlan, TokenShare, LossOutput, TokenGrad
        )  # fmt: skip
        batch, stats, *_, output, grad = records
        with jaxtyped("context"):
            assert [fault(r, type(r), type(r).__name__) for r in records] == [None] * 6
            for predict in PREDICTORS.values():
                result = predict(batch, stats, grad, output.flags, 1e-3)
                assert fault(result, hints(predict)["return"], predict.__name__) is None
            assert (bound("B"), bound("T")) == (rows, T)


def test_the_steps_above_show_every_tensor_field_as_a_tensor():
    made = [r for n, p in EVERY_METHOD for part in step_records(n, p) for r in part]
    seen = {f"{type(r).__name__}.{n}" for r in made for (n, *_), _ in tensor_leaves(r)}
    annotated = {
        f"{record.__name__}.{name}"
        for record in RECORDS
        for name, hint in hints(record).items()
        if any(map(is_array, parts(hint)))
    }
    # Fields that no method of ours sets per token; the test below fills them.
    spare = {"clip_low", "clip_high", "beyond_low", "beyond_high", "dual_clip", "entropy_coef"}
    assert annotated - seen == {f"TokenPlan.{name}" for name in spare}


@pytest.mark.parametrize("shape", [(), (B, T)])
def test_every_coefficient_of_a_plan_may_be_a_tensor(shape: tuple[int, ...]):
    _, batch, stats = full_example()
    for f in fields(TokenPlan):
        if f.type != "PerToken":
            continue
        plan = TokenPlan(**{f.name: torch.full(shape, 2.0)})
        with jaxtyped("context"):
            assert fault(batch, TokenBatch) is None and fault(plan, TokenPlan) is None
        assert policy_loss(stats, batch, plan).loss.isfinite()
        wrong = TokenPlan(**{f.name: torch.full((T, B), 2.0)})
        with jaxtyped("context"):
            assert fault(batch, TokenBatch) is None
            assert f"plan.{f.name} is torch.float32[8, 6]" in str(fault(wrong, TokenPlan, "plan"))
