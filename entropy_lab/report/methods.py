"""The part of the report that compares methods over seeds, and what one run shows of the same."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from entropy_lab.analysis.tables import Row, records
from entropy_lab.report import html
from entropy_lab.report.html import Cell, Raw
from entropy_lab.report.numbers import fixed, short

Tables = Mapping[str, pd.DataFrame]

SINGLE = "1 seed: no interval"
_SUMS, _EARLIER = "Predicted and realised sums", "Earlier evaluations"
MANY_RUNS = 6  # above this many, single runs stand in the tables alone


def verdict(tables: Tables) -> list[str]:
    """What was compared, who ends with the most reward, and who beats the baseline."""
    rows = records(tables["methods"])
    one, runs = rows[0], sum(r["seeds"] for r in rows)
    lines = [
        f"{runs} runs of {len(rows)} method{'s' * (len(rows) > 1)}, compared over "
        f"{one['axis']}s {one['first']:g} to {one['last']:g}, as far as all of them reach."
    ]
    known = [r for r in rows if math.isfinite(r["reward"])]
    if known:
        best = max(known, key=lambda r: r["reward"])
        lines.append(
            f"Most reward at the end: {best['method']}, {_plain(best, 'reward')}, at an entropy of "
            f"{_plain(best, 'entropy')} nats per token."
        )
    return lines + _against(rows)


def _against(rows: list[Row]) -> list[str]:
    kinds: dict[str, list[str]] = {"more": [], "less": [], "undecided": [], "no interval": []}
    for r in rows:
        low, high = r["improvement_lo"], r["improvement_hi"]
        if r["method"] == r["baseline"] or not math.isfinite(r["improvement"]):
            continue
        sides = "more" if low > 0.5 else "less" if high < 0.5 else "undecided"
        kinds[sides if math.isfinite(low) else "no interval"].append(r["method"])
    parts = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    if not parts:
        return []
    return [
        f"Reward against {rows[0]['baseline']} (is P clear of an even chance?) {'; '.join(parts)}."
    ]


def methods(tables: Tables) -> str:
    """A row per method: seeds, last values, areas, chance to beat the baseline."""
    rows = records(tables["methods"])
    shown = ("entropy", "reward", "entropy_area", "reward_area")
    lines: list[list[Cell]] = []
    for r in rows:
        chance = "baseline" if r["method"] == r["baseline"] else _band(r, "improvement")
        lines.append([r["method"], _seeds(r), *(_band(r, name) for name in shown), chance])
    base = rows[0]["baseline"]
    head = ["method", "seeds", "last entropy", "last reward", "entropy area", "reward area",
            f"P(more reward than {base})"]  # fmt: skip
    axis = rows[0]["axis"]
    note = (
        f"Runs are aligned on the {'optimizer step' if axis == 'step' else axis}; every number is "
        f"of {axis}s {rows[0]['first']:g} to {rows[0]['last']:g}, which all runs reach. Last: "
        "interquartile mean of the last five values of all seeds. Area: under the curve, over its "
        f"length, interquartile mean over seeds. P: chance that a seed ends above one of {base}, "
        "ties half. Brackets: 95 % intervals, seeds resampled within each method and the interval "
        "widened as Student's t widens it for few seeds (P: score interval). With two to five "
        "seeds they are rough."
    )
    if len(rows) > 2:
        note += f" The {len(rows) - 1} comparisons with {base} are not adjusted for their number."
    caption = "Methods over seeds"
    return html.table(head, lines, words=2, caption=caption) + _note(note)


def equal_levels(tables: Tables) -> str:
    """Entropy at equal reward and reward at equal entropy, a row per method."""
    rows = records(tables["equal_levels"], level="method")
    base = tables["methods"]["baseline"].iloc[0]
    parts = []
    for matched, other in (("reward", "entropy"), ("entropy", "reward")):
        here = [r for r in rows if r["matched"] == matched]
        if not here:
            continue
        levels = list(dict.fromkeys((r["share"], r["target"]) for r in here))
        cells = {(r["method"], r["share"]): _level(r) for r in here}
        names = list(dict.fromkeys(r["method"] for r in here))
        lines = [[name, *(cells[name, share] for share, _ in levels)] for name in names]
        head = ["method", *(f"{matched} {short(t)} ({s:.0%})" for s, t in levels)]
        title = f"{other.capitalize()} at equal {matched}"
        parts.append(html.table(head, lines, caption=title))
    note = (
        f"Levels: shares of the way that the mean running mean of {base} goes from its first to "
        "its last value. Each run is read where its own running mean passes the level first, "
        "whichever way; runs that never do are left out, and (m of n) says how many are left. "
        "Brackets: 95 % intervals over those seeds."
    )
    return "".join(parts) + _note(note) if parts else ""


def _level(row: Row) -> Cell:
    if not row["reached"]:
        return "not reached"
    some = f" ({row['reached']} of {row['seeds']})" if row["reached"] < row["seeds"] else ""
    return Raw(_band(row, "value").text + some)


def fits(tables: Tables) -> str:
    """R = -a e^H + b for every method, and for every run below."""
    rows = records(tables["exponential_fit"])
    if not any(math.isfinite(r["a"]) for r in rows):
        return ""
    head = ["", "seeds", "a", "b", "residual sd", "R²", "steps"]

    def table(level: str) -> str:
        lines = [
            [r["name"], str(r["seeds"]), _band(r, "a"), _band(r, "b"), short(r["residual_sd"]),
             fixed(r["r2"]), f"{r['n']:,}"]
            for r in rows
            if r["level"] == level
        ]  # fmt: skip
        return html.table(head, lines, caption=f"Fit of every {level}")

    note = (
        "Least squares over the steps of a run, or of all runs of a method; e to the mean entropy "
        "of the step's tokens. Steps follow one another, so they give no interval; brackets: 95 % "
        "intervals from refits to resampled seeds. The residuals are in fit_residuals.parquet."
    )
    title = "<h3>Reward as a function of entropy: R = −a·e<sup>H</sup> + b</h3>"
    return title + table("method") + _note(note) + _details("Fits of every run", table("run"))


def drifts(tables: Tables) -> str:
    """The sums of every predictor against the fixed set; of methods where there are several."""
    level = "method" if "methods" in tables else "run"
    rows = records(tables["drift_final"], level=level)
    if not rows:
        return ""
    lines: list[list[Cell]] = [
        [
            r["name"], r["predictor"], short(r["predicted"]), short(r["realised"]),
            _band(r, "drift"), short(r["factor"]), _band(r, "drift_scaled"),
            f"{r['steps']:g} ({r['covered']:.0%})",
        ]
        for r in rows
    ]  # fmt: skip
    head = [level, "predictor", "predicted", "realised", "drift", "factor", "drift, scaled",
            "steps summed"]  # fmt: skip
    note = (
        "Predicted: sum of the step means over the step's own tokens. Realised: change of the "
        "entropy of the fixed probe set, in the steps that are summed. Drift: predicted less "
        "realised, nats; scaled: after the factor that fits the first half best."
    )
    table = html.table(head, lines, words=2, caption=_SUMS)
    return _details("Sums in numbers", table + _note(note))


def passes(tables: Tables) -> str:
    """pass@k of held-out problems beside entropy: the last evaluations, and all folded away."""
    level = "method" if "methods" in tables else "run"
    rows = records(tables["pass_at_k"], level=level)
    if not rows:
        return ""
    last: dict[tuple[str, str], float] = {}
    for r in rows:
        key = r["name"], r["benchmark"]
        last[key] = max(r["step"], last.get(key, 0))
    head = [level, "benchmark", "step", "seeds", "k", "avg@k", "pass@k", "entropy",
            "training entropy", "problems", "sampling"]  # fmt: skip
    lines: dict[bool, list[list[Cell]]] = {True: [], False: []}
    for r in rows:
        lines[r["step"] == last[r["name"], r["benchmark"]]].append(_evaluation(r))
    note = (
        "The last evaluation of each. Entropy: of the evaluated responses, at temperature 1; "
        "training entropy: running mean at that step. Brackets: 95 % intervals over seeds; they "
        "hold no uncertainty about the problems, which is pass_at_k_se in pass_at_k.parquet."
    )
    title = "<h3>pass@k on held-out problems</h3>"
    last_ones = html.table(head, lines[True], words=2, caption="Last evaluations")
    shown = title + last_ones + _note(note)
    if not lines[False]:
        return shown
    return shown + _details(_EARLIER, html.table(head, lines[False], words=2, caption=_EARLIER))


def _evaluation(r: Row) -> list[Cell]:
    sampling = f"T {r['temperature']:g}, top-p {r['top_p']:g}"
    if math.isfinite(r["samples"]):
        sampling = f"{r['samples']:g} each, {sampling}"
    return [
        r["name"], r["benchmark"], f"{r['step']:g}", str(r["seeds"]), f"{r['k']:g}",
        _band(r, "avg_at_k"), _band(r, "pass_at_k"), _band(r, "entropy"),
        _band(r, "train_entropy"), f"{r['n']:g}", sampling,
    ]  # fmt: skip


def runs(tables: Tables) -> str:
    """First, last and mean of every run, folded away."""
    lines: list[list[Cell]] = [
        [
            r["level"], r["name"], r["method"], r["metric"], str(r["runs"]), short(r["first"]),
            short(r["last"]), _band(r, "change"),
        ]
        for r in records(tables["comparison"])
    ]  # fmt: skip
    head = ["level", "name", "method", "metric", "runs", "first", "last", "change"]
    note = (
        "First and last: means of five steps, each run over its own length. Brackets: 95 % t "
        "interval over the runs of a method; a single run has none."
    )
    table = html.table(head, lines, words=4, caption="First, last and change")
    return _details("First, last and change of every run", table + _note(note))


def _seeds(row: Row) -> Cell:
    if row["seeds"] == 1:
        return SINGLE
    which = f" <small>({html.text(row['which'])})</small>" if row["which"] else ""
    return Raw(f"{row['seeds']}{which}")


def _band(row: Row, name: str) -> Raw:
    low = row.get(f"{name}_lo", math.nan)
    if not math.isfinite(low):
        return Raw(short(row[name]))
    return Raw(f"{short(row[name])} <small>[{short(low)}, {short(row[f'{name}_hi'])}]</small>")


def _plain(row: Row, name: str) -> str:
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    band = f"[{low:.2f}, {high:.2f}]" if math.isfinite(low) else f"({SINGLE})"
    return f"{row[name]:.2f} {band}"


def _note(text: str) -> str:
    return f'<p class="note">{html.text(text)}</p>'


def _details(title: str, inner: str) -> str:
    return f"<details><summary>{html.text(title)}</summary>{inner}</details>"
