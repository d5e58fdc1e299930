"""Naming the bug in a user's method: what went wrong, where, and what to do, in one line."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropy_lab.errors import ConfigError
from entropy_lab.types import TokenBatch, TokenGrad

ALLOW_PRODUCT = "weights_carry_grad"  # parameter that says such a product is meant
_PRODUCTS = ("Mul", "Dot", "Mv", "Mm", "Bmm", "Addcmul", "Einsum")
_IN_PLACE = ("in-place operation", "inplace operation")


def called(label: str, function: Callable[..., Any], inputs: Mapping[str, Tensor], **named: Any):
    """function(**named); `inputs` are the tensors in there by name, which must stay as they are.

    Raises ConfigError where it raises anything, or changes one of them.
    """
    before = {name: value._version for name, value in inputs.items()}
    try:
        result = function(**named)
    except ConfigError:
        raise
    except Exception as error:  # a user's code may raise whatever it likes
        raise ConfigError(_raised(label, error)) from error
    for name, value in inputs.items():
        if value._version != before[name]:
            raise ConfigError(
                f"{label} changes {name} in place: write a new tensor, as in {name}.clamp(...) "
                f"without the underscore, or {name}.clone() first"
            )
    return result


def _raised(label: str, error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    where = _place(label, error)
    if any(words in text for words in _IN_PLACE):
        return (
            f"{label} changes its input in place{where}: log-probabilities and entropies are "
            "leaves of the gradient; write a new tensor, as in x.clamp(...) without the underscore"
        )
    return f"{label} raised {type(error).__name__}{where}: {text}"


def _place(label: str, error: Exception) -> str:
    """Where in the user's own file, or in the innermost one."""
    frames = traceback.extract_tb(error.__traceback__)
    file = Path(label.partition(":")[0]).name
    own = [f for f in frames if Path(f.filename).name == file]
    last = own[-1] if own else frames[-1]
    return f" ({Path(last.filename).name}, line {last.lineno})"


def scalar(label: str, returned: Any) -> Tensor:
    """The loss in what a loss function returned: a scalar, or the first of a tuple (verl).

    Raises ConfigError where it is none, is NaN, or depends on no log-probability.
    """
    loss = returned[0] if isinstance(returned, tuple) and returned else returned
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f"{label} returned {type(loss).__name__}, not a tensor: return the loss, or "
            "(loss, metrics)"
        )
    if loss.numel() != 1:
        raise ConfigError(
            f"{label} returned one value per token, of shape {tuple(loss.shape)}: return a scalar, "
            "such as their mean over the tokens with mask"
        )
    if not loss.requires_grad:
        raise ConfigError(
            f"{label} does not depend on the log-probabilities: they were detached on the way to "
            "the loss, so it would train nothing"
        )
    if not bool(loss.isfinite()):
        raise ConfigError(
            f"{label} is {float(loss.detach())}: look for log(0), 0/0 or a ratio that is not "
            "clamped; values outside the mask are 0"
        )
    return loss.squeeze()


def check_weights(label: str, loss: Tensor) -> None:
    """Raise ConfigError where the loss multiplies two different factors that both carry gradient.

    A policy-gradient loss is a weight times a ratio or a log-probability; where the weight carries
    gradient as well, the step also follows d(weight), which nobody meant. Squares are let pass.
    """
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        factors = {(fn, index) for fn, index in node.next_functions if fn is not None}
        if node.name().startswith(_PRODUCTS) and len(factors) > 1:
            raise ConfigError(
                f"{label} lets gradient through its weights: it multiplies two factors that both "
                "depend on the policy with gradient; write weight.detach(), or pass "
                f"{ALLOW_PRODUCT}=true where the product is meant"
            )
        stack += [fn for fn, _ in node.next_functions]


def backward(label: str, loss: Tensor) -> None:
    """loss.backward(); ConfigError where an operation in place has spoilt the graph."""
    try:
        loss.backward()
    except RuntimeError as error:
        raise ConfigError(_raised(label, error)) from error


def check_gradient(label: str, grad: TokenGrad, batch: TokenBatch) -> None:
    """Raise ConfigError where c or e is not finite, or is not 0 outside the mask."""
    for name, values in (("log-probability", grad.grad_logp), ("entropy", grad.grad_entropy)):
        bad = ~values.isfinite()
        if bool(bad.any()):
            row, pos = (int(i) for i in bad.nonzero()[0])
            what = "NaN" if bool(values[row, pos].isnan()) else "infinite"
            raise ConfigError(
                f"{label} has a gradient by {name} that is {what} at {int(bad.sum())} of "
                f"{int(batch.mask.sum())} tokens of step {batch.step}, the first at response "
                f"{row}, position {pos}: look for log(0), 0/0 or 0 x inf, also in branches that "
                "torch.where does not take"
            )
        outside = values.masked_fill(batch.mask, 0.0) != 0
        if bool(outside.any()):
            raise ConfigError(
                f"{label} ignores the mask: {int(outside.sum())} positions outside it get a "
                f"gradient by {name} in step {batch.step}; multiply by the mask before the sum"
            )


def inputs_of(*records: Any) -> dict[str, Tensor]:
    """The tensors of dataclasses by field name."""
    found = {}
    for record in records:
        found |= {k: v for k, v in vars(record).items() if isinstance(v, torch.Tensor)}
    return found
