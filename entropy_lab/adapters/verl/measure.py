"""One pass without gradients over a minibatch, through the engine's own forward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from entropy_lab.adapters.verl.data import ROW
from entropy_lab.adapters.verl.engine import flag
from entropy_lab.probe.scorer import untouched_rng, without_dropout
from entropy_lab.stats import token_stats
from entropy_lab.types import TokenStats

_KEY = "entropy_lab_"
_NAMES = tuple(f.name for f in fields(TokenStats))
# What the pass does not need and some engines would compute or refuse.
_OFF = ("calculate_sum_pi_squared", "distillation_use_topk", "distillation_only")
_COPY_ELEMENTS = 1 << 26  # logits that are divided by a temperature at a time


def share_of_rows(data: Any, fraction: float) -> int:
    """How many of this rank's rows a probed step measures: at least `fraction` of them.

    Without dynamic batches verl wants whole micro-batches, so the number is rounded up to them.
    It is equal on all ranks, whose minibatches have the same size.
    """
    size, unit = len(data), 1
    if not flag(data, "use_dynamic_bsz", True):
        unit = int(flag(data, "micro_batch_size_per_gpu", 1))
        unit *= int(flag(data, "force_group_size", 1))
    least = max(1, math.ceil(fraction * size - 1e-9))
    return min(size, -(-least // unit) * unit)


def measure(engine: Any, data: Any, rows: Tensor | None, width: int) -> TokenStats | None:
    """TokenStats of the rows (B',) of the minibatch, or of all, at the present weights.

    (B', width) float32 on the CPU, from the engine's `infer_batch` on the same rows in the same
    micro-batches each time. The five numbers come from the logits where the engine shows them
    (`prepare_model_outputs`); otherwise logp and entropy are verl's own and the moments NaN. None
    on ranks that have no model output (other pipeline stages).
    """
    tools = import_module("verl.utils.tensordict_utils")
    part = data.copy() if rows is None else tools.index_select_tensor_dict(data, rows)
    size = len(part)
    part[ROW] = torch.arange(size, device=part[ROW].device)
    tools.assign_non_tensor(part, calculate_entropy=True, **dict.fromkeys(_OFF, False))
    found: list[tuple[Tensor, TokenStats]] = []

    def capture(model_output: Any, data: Any, dp_group: Any = None, **_: Any) -> tuple[Any, dict]:
        stats = micro_stats(model_output, data)
        found.append((data[ROW].cpu(), stats))
        return torch.zeros((), device=model_output["log_probs"].device), {}

    model = getattr(engine, "module", None)
    known = model if isinstance(model, nn.Module) else nn.Module()
    with torch.no_grad(), untouched_rng(known), without_dropout(known), _logits_seen(engine):
        engine.infer_batch(part, capture)
    return assemble(found, size, width) if found else None


def micro_stats(model_output: Any, data: Any) -> TokenStats:
    """The statistics of a micro-batch's responses (B, T), on the CPU."""
    cut = import_module("verl.workers.utils.padding").no_padding_2_padding

    def response(value: Any) -> Tensor:
        return cut(value.detach(), data).float().cpu()

    if _KEY + "logp" in model_output:
        return TokenStats(**{name: response(model_output[_KEY + name]) for name in _NAMES})
    logp = response(model_output["log_probs"])
    unknown = torch.full_like(logp, float("nan"))
    return TokenStats(logp, response(model_output["entropy"]), unknown, unknown, unknown)


def assemble(found: Sequence[tuple[Tensor, TokenStats]], size: int, width: int) -> TokenStats:
    """Micro-batches (rows, statistics) as one (size, width), each row in its place.

    Raises ValueError where a row is missing or came twice.
    """
    order = torch.cat([rows for rows, _ in found])
    if sorted(order.tolist()) != list(range(size)):
        raise ValueError(
            f"the engine returned {len(order)} rows, {len(order.unique())} of them different, of a "
            f"minibatch of {size}"
        )
    out = {name: torch.zeros(size, width) for name in _NAMES}
    for rows, stats in found:
        place(out, rows, {name: getattr(stats, name) for name in _NAMES})
    return TokenStats(**out)


def place(out: dict[str, Tensor], rows: Tensor, values: dict[str, Tensor]) -> None:
    """Copy (B, T) values to their rows; columns beyond the narrower of the two are left out."""
    for name, value in values.items():
        width = min(out[name].shape[1], value.shape[1])
        out[name][rows, :width] = value[:, :width].to(out[name].dtype)


@contextmanager
def _logits_seen(engine: Any) -> Iterator[None]:
    """Within it the engine's model output also holds the five numbers, for each token."""
    inner = getattr(engine, "prepare_model_outputs", None)
    if inner is None:
        yield
        return

    def outer(output: Any, output_args: Any, micro_batch: Any, *args: Any, **kwargs: Any) -> Any:
        stats = None
        if isinstance(getattr(output, "logits", None), Tensor):
            # Before verl's own: it scales the logits by the temperature in place.
            stats = _stats_of_logits(engine, output.logits, output_args, micro_batch)
        result = inner(output, output_args, micro_batch, *args, **kwargs)
        if stats is not None:
            offsets = micro_batch["input_ids"].offsets()
            for name in _NAMES:
                flat = getattr(stats, name)
                result[_KEY + name] = torch.nested.nested_tensor_from_jagged(flat, offsets)
        return result

    engine.prepare_model_outputs = outer
    try:
        yield
    finally:
        del engine.prepare_model_outputs


def _stats_of_logits(engine: Any, logits: Tensor, output_args: Any, micro_batch: Any) -> TokenStats:
    """The five numbers at every token of the packed micro-batch, (total tokens,)."""
    if hasattr(logits, "full_tensor"):
        logits = logits.full_tensor()  # type: ignore[operator]
    labels = output_args["input_ids_rmpad_rolled"]
    if "temperature_rmpad" in output_args:
        flat, temperature = logits.squeeze(0), output_args["temperature_rmpad"]
    else:
        length = micro_batch["input_ids"].offsets().diff()  # (B,)
        inside = torch.arange(logits.shape[1], device=logits.device) < length[:, None]
        flat = logits[inside]
        temperature = output_args["temperature"].to(logits.device).repeat_interleave(length)
    stats = _scaled_stats(flat, labels, temperature)
    pad = output_args.get("pad_size", 0)
    return stats.map(lambda x: _gathered(engine, x, pad))


def _scaled_stats(logits: Tensor, labels: Tensor, temperature: Tensor) -> TokenStats:
    """Statistics of softmax(logits / temperature), (N, V), (N,), (N,) -> (N,)."""
    lowest, highest = (float(t) for t in temperature.aminmax())
    if lowest == highest:
        return token_stats(logits, labels, temperature=lowest)
    rows = max(1, _COPY_ELEMENTS // logits.shape[-1])
    parts = [
        token_stats(x.float() / t.float()[:, None], y)
        for x, y, t in zip(
            logits.split(rows), labels.split(rows), temperature.split(rows), strict=True
        )
    ]
    return TokenStats(**{n: torch.cat([getattr(p, n) for p in parts]) for n in _NAMES})


def _gathered(engine: Any, value: Tensor, pad: int) -> Tensor:
    """All tokens of the packed sequence, where sequence parallelism leaves a rank its slice."""
    own = getattr(engine, "_gather_and_unpad_packed", None)
    if own is not None:
        return own(value, pad)
    if getattr(engine, "use_ulysses_sp", False):  # verl < 0.9
        gather = import_module("verl.utils.ulysses").gather_outputs_and_unpad
        return gather(value, gather_dim=0, unpad_dim=0, padding_size=pad)
    return value
