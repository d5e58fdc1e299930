"""What the methods' own steps from one state did, against the baseline: paired differences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from entropy_lab.analysis.bootstrap import interval

METRICS = {
    "dH_train": "mean dH of the step's own tokens, nats",
    "dH_heldout": "mean dH of the next minibatch's tokens, nats",
    "G_dtheta": "first-order change of the mean entropy of the step's tokens, nats",
    "kl": "mean KL of the start from the end over the step's tokens, k3 estimate, nats",
    "dlogp_correct": "mean change of logp over tokens of rewarded responses, nats",
    "dlogp_wrong": "the same of the other responses, nats",
    "touched_share": "share of tokens clipped, selected or reweighted",
    "grad_norm": "gradient norm before clipping",
    "influence_marginal": "sum over tokens: derivative of G.delta by a factor on every push, nats",
}
REPLAY_COLUMNS = {
    "run": "name of the run directory",
    "method": "label of the method",
    "own": "whether this method made the run",
    "point": "optimizer step of the run at which the state was kept",
    "inner": "successive steps taken before this one",
    **METRICS,
}
PAIR_COLUMNS = {
    "run": "name of the run directory",
    "method": "label of the method",
    "baseline": "the method it is compared with",
    "steps": "successive steps compared: the first of a rollout alone, and all that were taken",
    "metric": "what is compared; sums over the steps for dH, means for the rest",
    "n": "replay points that both have a value for",
    "mean": "mean of the method over the points",
    "baseline_mean": "mean of the baseline",
    "difference": "mean over the points of method - baseline",
    "difference_lo": "lower end of the 95 % interval: bootstrap over replay points",
    "difference_hi": "upper end of it",
    "unit": "what the interval resamples",
}
REPLAY_TABLES = {"replay": REPLAY_COLUMNS, "replay_pairs": PAIR_COLUMNS}
_ADDED = ("dH_train", "dH_heldout", "G_dtheta")
REPLICATES = 2000


def pairs(rows: pd.DataFrame, baseline: str, seed: int = 0) -> pd.DataFrame:
    """Paired differences of every method to `baseline`, over the points that both were played from.

    The first step of a rollout by itself, where every ratio is still 1, and, where more were
    taken, all of them together. rows: as `REPLAY_COLUMNS`. Raises ValueError where the baseline
    was not played.
    """
    if baseline not in set(rows["method"]):
        raise ValueError(f"baseline {baseline!r} was not replayed: {sorted(set(rows['method']))}")
    taken = int(rows["inner"].max()) + 1
    parts = [_pairs(rows[rows["inner"] < n], baseline, seed, n) for n in sorted({1, taken})]
    return pd.concat(parts, ignore_index=True)


def _pairs(rows: pd.DataFrame, baseline: str, seed: int, steps: int) -> pd.DataFrame:
    metrics = [m for m in METRICS if m in rows]
    # The last minibatch of a rollout has no held-out one: such a step adds nothing to a sum.
    how = {m: _total if m in _ADDED else "mean" for m in metrics}
    per_point = rows.groupby(["method", "point"], sort=False).agg(how)
    base = per_point.loc[baseline]
    out = []
    for method in dict.fromkeys(rows["method"]):
        mine = per_point.loc[method]
        for metric in metrics:
            both = pd.concat([mine[metric], base[metric]], axis=1, keys=["a", "b"]).dropna()
            difference = (both["a"] - both["b"]).to_numpy(dtype=np.float64)
            low, high = _interval(difference, seed)
            out.append(
                {
                    "method": method,
                    "baseline": baseline,
                    "steps": steps,
                    "metric": metric,
                    "n": len(both),
                    "mean": float(both["a"].mean()),
                    "baseline_mean": float(both["b"].mean()),
                    "difference": float(difference.mean()) if len(both) else float("nan"),
                    "difference_lo": low,
                    "difference_hi": high,
                    "unit": "bootstrap over replay points",
                }
            )
    return pd.DataFrame(out)


def _total(values: pd.Series) -> float:
    return float(values.sum(min_count=1))


def _interval(difference: np.ndarray, seed: int) -> tuple[float, float]:
    n = len(difference)
    if n < 2:
        return float("nan"), float("nan")
    if np.ptp(difference) == 0:  # as where a method does nothing from any state
        return float(difference[0]), float(difference[0])
    rng = np.random.default_rng(seed)
    means = difference[rng.integers(n, size=(REPLICATES, n))].mean(axis=1)
    return interval(means, n)


def lines(table: pd.DataFrame) -> list[str]:
    """The paired differences of dH as terminal lines, for each number of steps."""
    baseline = str(table["baseline"].iloc[0])
    out = [
        f"replayed from {int(table['n'].max())} states; difference to {baseline}, 95 % interval "
        f"(bootstrap over replay points)"
    ]
    for steps, part in table.groupby("steps"):
        out.append("the first step of a rollout:" if steps == 1 else f"the first {steps} steps:")
        out += _block(part, baseline)
    return out


def _block(table: pd.DataFrame, baseline: str) -> list[str]:
    names = list(dict.fromkeys(table["method"]))
    width = max(len("method"), *(len(str(n)) for n in names))
    out = [f"{'method':<{width}}  {'dH train':>32}  {'dH held-out':>32}  {'KL':>8}  touched"]
    for name in names:
        cells = table[table["method"] == name].set_index("metric")
        shown = [_difference(cells.loc[m], name == baseline) for m in _ADDED[:2]]
        kl = cells.loc["kl", "mean"] if "kl" in cells.index else float("nan")
        touched = cells.loc["touched_share", "mean"] if "touched_share" in cells.index else np.nan
        out.append(f"{name:<{width}}  {shown[0]:>32}  {shown[1]:>32}  {kl:>8.1e}  {touched:>7.1%}")
    return out


def _difference(row: pd.Series, is_baseline: bool) -> str:
    if is_baseline:
        return f"{row['mean']:+.2e} itself"
    if row["difference_lo"] == row["difference_hi"] == 0:
        return "0 at every state"
    return f"{row['difference']:+.2e} [{row['difference_lo']:+.1e}, {row['difference_hi']:+.1e}]"
