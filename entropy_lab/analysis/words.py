"""Which tokens raise and lower entropy: the tables words and words_change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from entropy_lab.analysis.strata import STAGES
from entropy_lab.analysis.tables import frame
from entropy_lab.analysis.token_sums import KeyedSums, TrainRows, banded

MOST = 60  # tokens with a row of their own: those with the largest sums of |dH|
REST = -1
_SUMS = {
    "w": "1",
    "y": "dH",
    "size": "abs(dH)",
    "p": "exp(logp)",
}
_INFLUENCE = "coalesce(isfinite(influence), false)"


def words(
    rows: TrainRows | None, texts: Sequence[str | None], influence: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(words, words_change), without the run's name; empty without token rows.

    texts: by token id, [] where the run has none. influence: the rows have that column.
    """
    if rows is None:
        return frame("words", []), frame("words_change", [])
    deep = {
        "known": f"{_INFLUENCE}::INT",
        "pushed": f"CASE WHEN {_INFLUENCE} THEN influence ELSE 0 END",
    }
    wanted = _SUMS | (deep if influence else {})
    largest = rows.frame(
        f"SELECT token_id FROM rows GROUP BY 1 ORDER BY sum(w * abs(dH)) DESC, 1 LIMIT {MOST}"
    )["token_id"]
    chosen = ", ".join(str(int(t)) for t in largest)
    key = {"token": f"CASE WHEN token_id IN ({chosen}) THEN token_id ELSE {REST} END"}
    sums = KeyedSums.of(rows.sums(key, wanted), "token", ("n", *wanted), rows.steps)
    order = np.argsort(-sums.total("size"), kind="stable")
    table = _common(sums, texts) | {
        "steps": (sums.values[..., 0].sum(axis=1) > 0).sum(axis=0),
        "probability": sums.total("p") / sums.total("w"),
        "unit": rows.unit,
    }
    if influence:
        counted = KeyedSums.of(
            rows.sums(key, {"known": f"{_INFLUENCE}::INT"}, where=_INFLUENCE), "token", ("n",),
            rows.steps,
        )  # fmt: skip
        rows_of = dict(zip(counted.keys, counted.total("n").astype(int), strict=True))
        table["influence_n"] = [rows_of.get(k, 0) for k in sums.keys]
        table |= banded("influence", sums.ratio("pushed", "known"))
    found = pd.DataFrame(table).iloc[order].reset_index(drop=True)
    return frame("words", found), _change(sums, rows, texts, order)


def _common(sums: KeyedSums, texts: Sequence[str | None]) -> dict:
    weight = sums.total("w")
    return {
        "token_id": sums.keys,
        "text": [text_of(texts, int(k)) for k in sums.keys],
        "n": sums.total("n").astype(np.int64),
        "share": weight / weight.sum(),
        **banded("dH", sums.ratio("y", "w")),
        **banded("contribution", sums.ratio("y", "w", of_all=True)),
        **banded("abs_share", sums.ratio("size", "size", of_all=True)),
    }


def _change(
    sums: KeyedSums, rows: TrainRows, texts: Sequence[str | None], order: np.ndarray
) -> pd.DataFrame:
    parts = []
    every = np.arange(len(rows.steps))
    for stage, third in zip(STAGES, np.array_split(every, len(STAGES)), strict=True):
        if not len(third):
            continue
        part = sums.without(np.isin(every, third))
        unit = TrainRows(rows.rows, [rows.steps[i] for i in third], rows.grouped).unit
        table = pd.DataFrame(_common(part, texts) | {"stage": stage, "unit": unit})
        table["steps"] = len(third)
        table = table.iloc[order]
        parts.append(table[table["n"] > 0])
    return frame("words_change", pd.concat(parts, ignore_index=True))


def text_of(texts: Sequence[str | None], token: int) -> str:
    """The text of a token id, "" where it is not known (REST has none).

    A lone surrogate, which no table can hold, becomes U+FFFD.
    """
    known = (texts[token] if 0 <= token < len(texts) else None) or ""
    return known.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
