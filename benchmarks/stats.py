"""C1-C6: cost and error of the vocabulary statistics at the output head of a 0.5B model.

    python -m benchmarks.stats [--tokens N] [--rounds R]

D 896, V 151936, N 512 by default: the ratios hardly depend on N, and 2048 take four times as long.
Costs are ratios of the best of R interleaved rounds, in CPU seconds of one thread, so that other
users of the cores change little; --threads 2 gives ratios of wall time. The bare product writes
into a buffer that is already there. C5 asks about processors without bf16 arithmetic, so
its two sides run in a process that is held to AVX2.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._bars import line, note
from entropy_lab.stats import Moments, linear_token_stats, token_stats
from entropy_lab.types import TokenStats

D, V, TILE = 896, 151_936, 8192
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
BARS = {("logp", "entropy"): 5e-6, ("m0",): 2e-6, ("m1", "m2"): 2e-6}
NAMES = [name for names in BARS for name in names]


def head(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (N, D), weight (V, D) whose logits have a spread of 3, token ids."""
    gen = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, D, generator=gen)
    weight = torch.randn(V, D, generator=gen).mul_(3 / D**0.5)
    return hidden.to(dtype), weight.to(dtype), torch.randint(V, (tokens,), generator=gen)


def best(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least seconds of each side, all of them once a round."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, run in sides.items():
            start = clock()
            run()
            seconds[name] = min(seconds[name], clock() - start)
    return seconds


def cost(tokens: int, rounds: int) -> None:
    hidden, weight, token_id = head(tokens)
    buffer = torch.empty(tokens, V)
    sides: dict[str, Callable[[], object]] = {
        "product": lambda: torch.mm(hidden, weight.t(), out=buffer),
        "eager": lambda: linear_token_stats(hidden, weight, token_id),
        "compiled": lambda: linear_token_stats(hidden, weight, token_id, compile=True),
    }
    linear_token_stats(hidden[:1], weight, token_id[:1], compile=True)  # pays for compiling
    seconds = best(sides, rounds)
    for name, bar in (("eager", 1.4), ("compiled", 1.15)):
        ratio = seconds[name] / seconds["product"]
        what = f"statistics / fp32 product, N {tokens}, {name}"
        line("C1", what, f"{ratio:.2f}", f"<= {bar}", ratio <= bar)


def half_cost(tokens: int, rounds: int) -> float:
    hidden, weight, token_id = head(tokens, torch.bfloat16)
    buffer = torch.empty(tokens, V, dtype=torch.bfloat16)
    seconds = best(
        {
            "product": lambda: torch.mm(hidden, weight.t(), out=buffer),
            "stats": lambda: linear_token_stats(hidden, weight, token_id),
        },
        rounds,
    )
    return seconds["stats"] / seconds["product"]


def half(tokens: int, rounds: int) -> None:
    command = [sys.executable, "-m", "benchmarks.stats", "--half", "--tokens", str(tokens)]
    command += ["--rounds", str(rounds), "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, env={**os.environ, **AVX2}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    ratio = float(done.stdout)
    what = f"bf16 inputs / bf16 product, N {tokens}, AVX2"
    line("C5", what, f"{ratio:.2f}", "<= 0.7", ratio <= 0.7)
    capability = torch.backends.cpu.get_cpu_capability()
    note(f"  the same unrestricted ({capability})", f"{half_cost(tokens, rounds):.2f}")


def resident(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def extra_memory(tokens: int) -> float:
    """MB by which the resident peak of one call exceeds what was resident before it."""
    hidden, weight, token_id = head(tokens)
    torch.mm(hidden[:256], weight[:2048].t())  # the library's own buffers
    ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier calls left
    Path("/proc/self/clear_refs").write_text("5")  # restarts the peak
    before = resident("VmRSS")
    linear_token_stats(hidden, weight, token_id)
    return resident("VmHWM") - before


def memory(tokens: int) -> None:
    if not Path("/proc/self/clear_refs").exists():
        print("C2  needs Linux: peak memory is read from /proc")
        return
    for n in (tokens, 4 * tokens):
        mb = extra_memory(n)
        line("C2", f"extra memory, N {n}, MB", f"{mb:.0f}", "<= 64", mb <= 64)


def float64_stats(hidden: Tensor, weight: Tensor, token_id: Tensor) -> TokenStats:
    """From float64 logits, by log_softmax and vocabulary sums."""
    tiles = [hidden.double() @ weight[i : i + TILE].double().t() for i in range(0, V, TILE)]
    return softmax_stats(torch.cat(tiles, 1), token_id)


def softmax_stats(logits: Tensor, token_id: Tensor) -> TokenStats:
    log_pi = torch.log_softmax(logits.double(), -1)
    pi = log_pi.exp()
    logp = log_pi.gather(-1, token_id[:, None]).squeeze(-1)
    log_pi = torch.where(pi > 0, log_pi, 0.0)
    sums = [(pi**2 * log_pi**k).sum(-1) for k in range(3)]
    return TokenStats(logp, -(pi * log_pi).sum(-1), *sums)


def worst(got: TokenStats, want: TokenStats) -> dict[str, float]:
    """Largest error of each statistic; of m1 and m2 relative to the largest value."""
    found = {}
    for name in NAMES:
        a, b = getattr(got, name).double(), getattr(want, name)
        scale = float(b.abs().max()) if name in ("m1", "m2") else 1.0
        # A NaN counts as an infinite error.
        found[name] = float((a - b).abs().nan_to_num(nan=float("inf")).max()) / scale
    return found


def report(bar: str, what: str, errors: dict[str, float]) -> None:
    for names, limit in BARS.items():
        value = max(errors[name] for name in names)
        line(bar, f"{what}: {', '.join(names)}", f"{value:.1e}", f"<= {limit:.0e}", value <= limit)


def errors(tokens: int) -> None:
    hidden, weight, token_id = head(tokens)
    logits = hidden @ weight.t()
    got, exact = token_stats(logits, token_id), softmax_stats(logits, token_id)
    report("C3", f"error, {tokens} rows", worst(got, exact))
    wide = float64_stats(hidden, weight, token_id)
    whole, product = worst(linear_token_stats(hidden, weight, token_id), wide), worst(exact, wide)
    for names in BARS:
        both, alone = (max(e[name] for name in names) for e in (whole, product))
        shown = f"{both:.1e} ({alone:.1e})"
        note(f"with (of) the head's product: {', '.join(names)}", shown)
    moved = [token_stats(logits + s, token_id).entropy - got.entropy for s in (40.0, -40.0)]
    move = max(float(m.abs().max()) for m in moved)
    line("C4", "+-40 on all logits moves H by, nats", f"{move:.1e}", "<= 1e-5", move <= 1e-5)
    hard(logits[:6].clone(), token_id[:6])


def hard(logits: Tensor, token_id: Tensor) -> None:
    """Rows that break others: V % block != 0, all negative, -inf, one-hot, a far maximum."""
    logits[0] -= 500.0
    logits[1, ::2] = -torch.inf
    logits[2] = -torch.inf
    logits[2, 77] = 1.0
    logits[3, :100_000] = -torch.inf
    logits[4, 50_000:] = -torch.inf
    logits[5] *= 30.0
    token_id[:] = torch.tensor([3, 5, 77, 120_000, 9, int(logits[5].argmax())])
    want = softmax_stats(logits, token_id)
    report("C6", "hard rows", worst(token_stats(logits, token_id), want))
    parts = [Moments.of(part) for part in logits.tensor_split(4, 1)]
    merged = parts[3].merge(parts[1]).merge(parts[0].merge(parts[2]))
    z_a = logits.gather(1, token_id[:, None]).squeeze(1)
    report("C6", "hard rows, 4 shards merged", worst(merged.stats(z_a), want))


def main() -> None:
    parser = argparse.ArgumentParser(description="C1-C6: cost and error of the statistics")
    parser.add_argument("--tokens", type=int, default=512, help="N of the costs")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--half", action="store_true", help="only print C5 on this processor")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.half:
        print(half_cost(args.tokens, args.rounds))
        return
    memory(args.tokens)
    cost(args.tokens, args.rounds)
    half(args.tokens // 2, min(args.rounds, 2))
    errors(32)


if __name__ == "__main__":
    main()
