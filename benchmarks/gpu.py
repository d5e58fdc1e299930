"""G1, G2, G4: the statistics on one CUDA device, at the output heads of 1.5B and 7B models.

    python -m benchmarks.gpu        (make bench-gpu)

Without a CUDA device it says so and exits with 0. N 16384 tokens, bfloat16, medians of ten runs
between CUDA events. A training step is taken as 6 P N operations at the speed of the bare product.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks._bars import line
from entropy_lab.stats import linear_token_stats, token_stats

N = 16384


class Model(NamedTuple):
    name: str
    width: int
    vocab: int
    parameters: float
    bar: float  # G2


MODELS = (
    Model("7B", 3584, 152_064, 7.6e9, 1.25),
    Model("1.5B", 1536, 151_936, 1.54e9, 1.45),
)


def seconds(run: Callable[[], object], runs: int = 10) -> float:
    """Median time of `run` on the device, after two runs that compile and allocate."""
    for _ in range(2):
        run()
    taken = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken)


def copy_bandwidth() -> float:
    """Bytes read and written per second by copying 2 GiB."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source))


def given_logits(model: Model, tokens: int, copy: float, rate: float) -> None:
    """G1 on bfloat16 and float32 logits; G4 on bfloat16 ones."""
    logits = torch.randn(tokens, model.vocab, device="cuda", dtype=torch.bfloat16).mul_(3)
    token_id = torch.randint(model.vocab, (tokens,), device="cuda")
    for z in (logits, logits[: tokens // 2].float()):
        ids = token_id[: len(z)]
        taken = seconds(lambda z=z, ids=ids: token_stats(z, ids))
        share = z.numel() * z.element_size() / taken / copy
        kind = str(z.dtype).removeprefix("torch.")
        line(
            "G1",
            f"{model.name}, {kind}: of copy bandwidth",
            f"{share:.2f}",
            ">= 0.75",
            share >= 0.75,
        )
        if z is logits:
            # Whoever computes logp reads the logits once; the statistics are what comes on top.
            extra = taken - z.numel() * z.element_size() / copy
            part = extra * rate / (6 * model.parameters * tokens)
            what = f"{model.name}: beyond one reading, share of a step"
            line("G4", what, f"{part:.2%}", "<= 0.5%", part <= 0.005)


def from_head(model: Model, tokens: int) -> float:
    """G2; returns the operations per second of the bare product."""
    hidden = torch.randn(tokens, model.width, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(model.vocab, model.width, device="cuda", dtype=torch.bfloat16)
    weight.mul_(3 / model.width**0.5)
    token_id = torch.randint(model.vocab, (tokens,), device="cuda")
    product = bare_product(hidden, weight)
    taken = seconds(lambda: linear_token_stats(hidden, weight, token_id))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_token_stats(hidden, weight, token_id)
    extra = (torch.cuda.max_memory_allocated() - before) / 2**20
    ratio = taken / product
    what = f"{model.name}: statistics / bf16 product"
    line("G2", what, f"{ratio:.2f}", f"<= {model.bar}", ratio <= model.bar)
    line("G2", f"{model.name}: extra memory, MB", f"{extra:.0f}", "<= 256", extra <= 256)
    check(hidden[:256], weight, token_id[:256])
    return 2 * tokens * model.width * model.vocab / product


def bare_product(hidden: Tensor, weight: Tensor) -> float:
    shape = len(hidden), len(weight)
    buffer = torch.empty(shape, device="cuda", dtype=hidden.dtype)
    return seconds(lambda: torch.mm(hidden, weight.t(), out=buffer))


def check(hidden: Tensor, weight: Tensor, token_id: Tensor) -> None:
    """The error of what was timed, against float64."""
    log_pi = torch.log_softmax(hidden.double() @ weight.double().t(), -1)
    entropy = -(log_pi.exp() * log_pi).sum(-1)
    error = float((linear_token_stats(hidden, weight, token_id).entropy - entropy).abs().max())
    line("C3", "entropy against float64, nats", f"{error:.1e}", "<= 5e-6", error <= 5e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description="G1, G2, G4: the statistics on a CUDA device")
    parser.add_argument("--tokens", type=int, default=N)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("No CUDA device here: bars G1, G2 and G4 are not measured.")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, N {args.tokens}")
    copy = copy_bandwidth()
    print(f"    copy bandwidth {copy / 1e12:.2f} TB/s")
    for model in MODELS:
        rate = from_head(model, args.tokens)
        print(f"    {model.name}: bare product {rate / 1e12:.0f} TFLOP/s")
        given_logits(model, args.tokens, copy, rate)


if __name__ == "__main__":
    main()
