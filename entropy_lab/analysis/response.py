"""The entropy of whole responses: the means over steps of its local and visitation term."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from entropy_lab.analysis.bootstrap import t_interval

NAN = float("nan")


def response_terms(steps: pd.DataFrame) -> dict[str, Any]:
    """The columns of `summary` about E[sum_t H_t], nats per response; NaN where nothing is logged.

    Means over steps of local_heldout and visitation_heldout, of the steps of age 0 as for the
    change of the policy; where no step has them, of local_train and visitation_train over all
    steps, which hold each response's own push. The t interval is over steps: a step's value holds
    the noise of its own responses.
    """
    for side in ("heldout", "train"):
        names = [f"local_{side}", f"visitation_{side}"]
        if not set(names) <= set(steps):
            continue
        known = steps[names].apply(pd.to_numeric, errors="coerce").notna().all(axis=1)
        if side == "heldout" and "age" in steps:
            known &= steps["age"] == 0
        if known.any():
            values = steps.loc[known, names].to_numpy(dtype=np.float64)
            out: dict[str, Any] = {"terms_of": side, "terms_steps": len(values)}
            for name, column in zip(("local_term", "visitation_term"), values.T, strict=True):
                low, high = t_interval(column)
                out |= {name: float(column.mean()), f"{name}_lo": low, f"{name}_hi": high}
            return out
    return {"terms_of": "", "terms_steps": 0, "local_term": NAN, "visitation_term": NAN}
