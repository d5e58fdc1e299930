"""The table that `entropy-lab eval` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def eval_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each benchmark and k, and how the responses were drawn."""
    width = max(len("benchmark"), *(len(str(row["benchmark"])) for row in rows))
    lines = [f"{'benchmark':<{width}}  problems      k  {'avg':>21}  {'pass@k':>21}  entropy"]
    for row in rows:
        lines.append(
            f"{row['benchmark']:<{width}}  {row['n']:>8,}  {row['k']:>5}  {_range(row, 'avg_at_k')}"
            f"  {_range(row, 'pass_at_k')}  {row['entropy']:>7.3f}"
        )
    one = rows[0]
    drawn = f"temperature {one['temperature']:g}, top_p {one['top_p']:g}"
    lines.append(
        f"{one['samples']} responses a problem, "
        f"{'greedy' if one['temperature'] == 0 else drawn}, at most {one['max_tokens']:,} tokens; "
        f"avg is avg@{one['samples']}; [95 %]: bootstrap over problems; entropy in nats per token"
    )
    return lines


def _range(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    ends = "[  –  ,   –  ]" if low is None else f"[{low:.3f}, {high:.3f}]"
    return f"{row[name]:>6.3f} {ends:<14}"
