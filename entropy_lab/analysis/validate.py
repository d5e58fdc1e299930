"""How well each prediction matches the measured dH: the tables validation and validation_steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entropy_lab.analysis.bootstrap import Draws, draw, nan_median, recentred
from entropy_lab.analysis.reduce import MIN_ROWS, pair_sums, sign_sums
from entropy_lab.analysis.scan import Scan
from entropy_lab.analysis.side import Side
from entropy_lab.analysis.statistics import (
    mean_squared_error,
    pearson,
    ratio,
    slope_through_origin,
    spearman,
    stacked,
    without,
)
from entropy_lab.analysis.tables import SCOPES, frame

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Padded:
    """One side's sums from step `first` on; (S, G, ...) with empty groups filled with zeros."""

    side: Side
    at: list[int]
    groups: NDArray[np.int64]
    draws: Draws

    @classmethod
    def of(cls, side: Side, first: int, seed: int = 0) -> Padded:
        """The side's steps and the resampling plan that all of its intervals share."""
        at = [i for i, step in enumerate(side.steps) if step >= first]
        groups = np.array([len(side.cells[i]) for i in at], dtype=np.int64)
        return cls(side, at, groups, draw(groups, seed))

    def cells(self, stratum: int) -> Array:
        """(S, G, columns) of one stratum."""
        out, _ = stacked([self.side.cells[i][:, stratum] for i in self.at])
        return out

    def cuts(self, kind: str, place: int) -> Array:
        """(S, G, columns) of one bin of a kind of CUTS."""
        out, _ = stacked([block[:, place] for block in self.side.cuts[kind]])
        return out

    def of_steps(self, values: list[Array]) -> Array:
        """(S, ...) of a per-step list."""
        return np.stack([values[i] for i in self.at])


def validation(found: Scan) -> pd.DataFrame:
    """Rows of the table `validation`, without the run's name.

    Slope and MSE of a within-step row are medians over its steps; its sign is over all rows.
    A stratum in which a prediction never varies has no row.
    """
    rows: list[dict] = []
    for side in (found.train, found.held_out):
        padded = Padded.of(side, found.first)
        if not padded.at:
            continue
        trimmed, trimmed_within, srcc = (
            padded.of_steps(values) for values in (side.trimmed, side.trimmed_within, side.srcc)
        )
        kept, code = np.concatenate(side.kept, axis=1), np.concatenate(side.kept_code)
        states = side.states.value() or np.nan
        for s in range(side.correlated):
            cells = padded.cells(s)
            pairs, signs = pair_sums(cells), sign_sums(cells)  # (S, G, predictors, 6 and 2)
            under = found.under_floor(cells.sum(axis=(0, 1)))
            within, _ = stacked([side.within[i][:, s] for i in padded.at])
            inside = kept[:, side.member[code, s]]
            tops = stacked(side.tops)[0] if s == 0 else None
            for k, name in enumerate(found.predictors):
                one = _Stratum(
                    draws=padded.draws,
                    pairs=pairs[:, :, k],
                    within=within[:, :, k],
                    rows=np.where(pairs[:, :, k, 0] > 0, cells[..., 0], 0.0).sum(axis=1),
                    trimmed=trimmed[:, s, k],
                    trimmed_within=trimmed_within[:, s, k],
                    srcc=srcc[:, s, k],
                    signs=signs[:, :, k],
                    tail=side.tail[s, k],
                    kept=inside[[0, 1 + k]],
                    tops=tops[..., [k, -2, -1]] if tops is not None else None,
                )
                common: dict = {"stratum": side.strata[s], "predictor": name}
                common |= {"unique_states": states if s == 0 else np.nan, "under_floor": under}
                rows += [{**common, **row} for row in one.scopes()]
    return frame("validation", rows)


@dataclass(frozen=True)
class _Stratum:
    """One predictor in one stratum: pairs, within (S, G, 6), signs (S, G, 2), rows (S,), tail.

    tops (S, G, 3), of all rows alone: |dH| in the form's top rows, in its own, in all.
    """

    draws: Draws
    pairs: Array
    within: Array
    rows: Array
    trimmed: Array
    trimmed_within: Array
    srcc: Array
    signs: Array
    tail: Array
    kept: NDArray[np.float32]
    tops: Array | None

    def scopes(self) -> list[dict]:
        """Rows for SCOPES; none where no step has a correlation."""
        sums = self.pairs.sum(axis=1)
        used = (self.rows >= MIN_ROWS) & np.isfinite(pearson(sums))
        if not used.any():
            return []
        sign = self._sign(used)
        per_step = [
            self._per_step(used, self.pairs, self.trimmed),
            self._pooled(),
            self._per_step(used, self.within, self.trimmed_within),
        ]
        per_step[0]["srcc"] = _middle(self.srcc[used])
        per_step[0]["mse"] = _middle(mean_squared_error(sums[used]))
        if self.tops is not None:
            per_step[0] |= self._capture(used, self.tops)
        return [
            {"scope": scope, **sign, **row} for scope, row in zip(SCOPES, per_step, strict=True)
        ]

    def _sign(self, used: NDArray[np.bool_]) -> dict:
        sums = np.where(used[:, None, None], self.signs, 0.0)
        hits, pairs = sums.sum(axis=(0, 1))
        replicates = self.draws.totals(self.draws.pool(sums))
        steps = int((sums[..., 1].sum(axis=1) > 0).sum())
        low, high = self.draws.interval(ratio(replicates[:, 0], replicates[:, 1]), steps)
        return {"sign": float(ratio(hits, pairs)), "sign_lo": low, "sign_hi": high}

    def _capture(self, used: NDArray[np.bool_], tops: Array) -> dict:
        held, best, whole = np.moveaxis(tops.sum(axis=1), -1, 0)
        value = np.where(used, ratio(held, whole), np.nan)
        pool = self.draws.pool(tops)
        replicates = self.draws.medians(ratio(pool[..., 0], pool[..., 2]), value, 0.0)
        low, high = self.draws.interval(replicates, int(used.sum()))
        most = _middle(ratio(best, whole)[used])
        return {"capture": _middle(value), "capture_lo": low, "capture_hi": high, "oracle": most}

    def _per_step(self, used: NDArray[np.bool_], pairs: Array, trimmed: Array) -> dict:
        sums = np.where(used[:, None], pairs.sum(axis=1), 0.0)
        value = pearson(sums)
        resampled = self.draws.pool(pairs)
        pool = pearson(resampled)
        steps = int(np.isfinite(value).sum())
        low, high = self.draws.interval(self.draws.medians(pool, value), steps)
        slope = slope_through_origin(sums)
        slopes = self.draws.medians(slope_through_origin(resampled), slope, -np.inf, np.inf)
        least, most = self.draws.interval(slopes, steps)
        return {
            "n": int(self.rows[used].sum()),
            "steps": steps,
            "pcc": _middle(value),
            "pcc_lo": low,
            "pcc_hi": high,
            "pcc_trim99": _middle(pearson(trimmed[used])),
            "slope": _middle(slope),
            "slope_lo": least,
            "slope_hi": most,
        }

    def _pooled(self) -> dict:
        total = self.pairs.sum(axis=(0, 1))
        value = float(pearson(total))
        replicates = self.draws.totals(self.draws.pool(self.pairs))
        steps = int((self.rows > 0).sum())
        low, high = self.draws.interval(recentred(pearson(replicates), value), steps)
        least, most = self.draws.interval(slope_through_origin(replicates), steps)
        y, x = self.kept[:, np.isfinite(self.kept[1])]
        return {
            "n": int(self.rows.sum()),
            "steps": steps,
            "pcc": value,
            "pcc_lo": low,
            "pcc_hi": high,
            "pcc_trim99": float(pearson(without(total, self.tail))),
            "srcc": float(spearman([x], y)[0]) if len(y) >= MIN_ROWS else np.nan,
            "slope": float(slope_through_origin(total)),
            "slope_lo": least,
            "slope_hi": most,
            "mse": float(mean_squared_error(total)),
        }


def _middle(values: Array) -> float:
    return float(nan_median(values, 0))


def validation_steps(found: Scan) -> pd.DataFrame:
    """Rows of the table `validation_steps`, all probed steps, without the run's name."""
    rows: list[dict] = []
    for side in (found.train, found.held_out):
        for i, step in enumerate(side.steps):
            cells = side.cells[i][:, 0].sum(axis=0)  # NaN where a form is absent
            sums = pair_sums(cells)  # (predictors, 6)
            for k, name in enumerate(found.predictors):
                if sums[k, 0] > 0:
                    rows.append(
                        {
                            "step": step,
                            "stratum": side.strata[0],
                            "predictor": name,
                            "n": int(cells[0]),
                            "pcc": float(pearson(sums[k])),
                            "srcc": side.srcc[i][0, k],
                            "slope": float(slope_through_origin(sums[k])),
                            "mean_dH": sums[k, 2] / sums[k, 0],
                            "mean_predicted": sums[k, 1] / sums[k, 0],
                        }
                    )
    return frame("validation_steps", rows)
