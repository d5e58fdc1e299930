"""The tables of one run that single figures are drawn from: those of tables_items."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from entropy_lab.analysis.distribution import distribution, plane
from entropy_lab.analysis.layers import layers, train_heldout
from entropy_lab.analysis.targets import targets
from entropy_lab.analysis.token_sums import train_rows
from entropy_lab.analysis.weights import OMEGA, weight_tables
from entropy_lab.analysis.words import words
from entropy_lab.errors import RunError
from entropy_lab.record import Run, read_vocab

Tables = dict[str, pd.DataFrame]


def item_tables(
    run: Run, rows: pd.DataFrame, curves: pd.DataFrame, method: str, first: int, floor: float
) -> Tables:
    """Without the run's name. rows: of the steps; curves: the run's table of that name.

    first: the first step that is used, -1: no token rows are read. floor: of dH, nats; NaN where
    none was measured. What the log has no columns for is empty.
    """
    tables = {
        "layers": layers(rows),
        "train_heldout": train_heldout(curves, method),
    }
    tables["targets"], tables["target_sums"] = targets(run.info, rows)
    return tables | _of_tokens(run, method, first, floor)


def _of_tokens(run: Run, method: str, first: int, floor: float) -> Tables:
    have = set(run.columns("tokens")) if first >= 0 else set()

    def rows(*columns: str):
        return train_rows(run, columns, first) if first >= 0 else None

    texts = _texts(run)
    influence = "influence" in have
    where = rows("advantage", "logp", "entropy")
    deep = ("influence",) if influence else ()
    found = {"distribution": distribution(where, floor), "plane": plane(where)}
    found["words"], found["words_change"] = words(rows("token_id", "logp", *deep), texts, influence)
    found["weight_steps"], found["weights"] = weight_tables(
        rows("token_id", "advantage", "logp", "weight", OMEGA), texts, method
    )
    return found


def _texts(run: Run) -> Sequence[str | None]:
    """Text by token id; none where the file is damaged: texts are for reading, no number's."""
    try:
        return read_vocab(run.path)
    except RunError:
        return []
