"""The sentences that a reader takes away, each made from numbers in the tables."""

from __future__ import annotations

import math

import pandas as pd

from entropy_lab.analysis.tables import records

QUADRANT_WORDS = {
    "pos_likely": "likely tokens pushed up (A > 0)",
    "pos_unlikely": "unlikely tokens pushed up (A > 0)",
    "neg_likely": "likely tokens pushed down (A < 0)",
    "neg_unlikely": "unlikely tokens pushed down (A < 0)",
    "zero": "tokens without advantage (A = 0)",
}


def verdict(summary: dict, validation: pd.DataFrame, quadrants: pd.DataFrame) -> list[str]:
    """What happened to entropy, which prediction to trust and how far, where the change lives."""
    lines = [_entropy(summary)]
    if not validation.empty:
        lines += _trust(validation)
    if not quadrants.empty:
        lines += _where(quadrants)
    return lines


def _entropy(s: dict) -> str:
    first, last = s["entropy_first"], s["entropy_last"]
    if not (math.isfinite(first) and math.isfinite(last)):
        return f"No entropy was logged in {s['steps']} steps."
    change = (last - first) / first if first > 0 else 0.0
    if change <= -0.5:
        what = "collapsed"
    elif change < -0.05:
        what = "fell"
    elif change > 0.05:
        what = "rose"
    else:
        what = "held"
    text = (
        f"Entropy {what}: {first:.3f} to {last:.3f} nats per token ({change:+.0%}) over "
        f"{s['steps']} steps"
    )
    before, after = s["reward_first"], s["reward_last"]
    if math.isfinite(before) and math.isfinite(after):
        word = "rose" if after > before else "fell" if after < before else "stayed"
        text += f"; reward {word} from {before:.2f} to {after:.2f}"
    return text + "."


def _trust(validation: pd.DataFrame) -> list[str]:
    within = records(validation, stratum="all", scope="within_step")
    if not within:
        return []
    best = max(within, key=lambda r: r["pcc"])
    low, high = best["pcc_lo"], best["pcc_hi"]
    band = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else ""
    lines = [
        f"Best predictor of a token's change: {best['predictor']}, within-step PCC "
        f"{best['pcc']:.2f}{band}, about {max(best['pcc'], 0) ** 2:.0%} of the variance. "
        f"{_grade(low if math.isfinite(low) else best['pcc'])}."
    ]
    slope = best["slope"]
    if math.isfinite(slope) and not 0.5 < slope < 2:
        lines.append(
            f"Its size is not to be taken literally: real changes are {_factor(slope)} the "
            "prediction (median slope), so use it to rank tokens, not to add up entropy."
        )
    return lines


def _grade(low: float) -> str:
    for limit, words in (
        (0.9, "Close to exact"),
        (0.7, "Good"),
        (0.4, "Useful for ranking tokens, but most of a token's change comes from elsewhere"),
        (0.2, "Weak: it sees a tendency, not single tokens"),
        (0.0, "Hardly any use for single tokens"),
    ):
        if low > limit:
            return words
    return "Not distinguishable from no relation"


def _factor(slope: float) -> str:
    if slope < 0:
        return f"of the opposite sign, {abs(slope):.2g} times"
    rounded = float(f"{slope:.2g}")
    return f"{rounded:,.0f} times" if rounded >= 10 else f"{rounded:g} times"


def _where(quadrants: pd.DataFrame) -> list[str]:
    measured = {r["quadrant"]: r for r in records(quadrants, quantity="dH")}
    if not measured:
        return []
    total = sum(r["contribution"] for r in measured.values())
    choose = min if total < 0 else max
    name = choose(measured, key=lambda q: measured[q]["contribution"])
    row = measured[name]
    low, high = row["contribution_lo"], row["contribution_hi"]
    band = f" [{low:.2g}, {high:.2g}]" if math.isfinite(low) else ""
    part = f"{QUADRANT_WORDS[name]}, {row['share']:.0%} of the tokens"
    size = f"{row['contribution']:.2g}{band} of the mean {total:.2g} nats per token and step"
    if low <= 0 <= high:
        return [f"No kind of token stands out; the largest part: {part}, {size}."]
    return [f"What {'lowers' if total < 0 else 'raises'} it most: {part}, {size}."]
