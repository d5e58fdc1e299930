"""Deliberately broken logs: each entry of a dict below is one defect of a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from entropy_lab.record.parts import write_table

Frame = Callable[[pd.DataFrame], Any]


def unmerged() -> AbstractContextManager[object]:
    """Runs that finish in here keep the parts that they wrote."""
    return mock.patch("entropy_lab.record.writer.merge_parts")


def parts(run: Path, kind: str) -> list[Path]:
    return sorted((run / kind).rglob("*.parquet"))


def edit(run: Path, change: Frame, kind: str = "tokens", every: bool = True) -> None:
    """Rewrite the columns of all parts (or of the second one): `change` edits the frame."""
    for path in parts(run, kind) if every else parts(run, kind)[1:2]:
        table = pq.read_table(path, partitioning=None)
        frame = table.to_pandas()
        changed = change(frame)
        frame = frame if changed is None else changed
        write_table(pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False), path)


def column(name: str, value: Callable[[pd.DataFrame], Any]) -> Callable[[Path], None]:
    return lambda run: edit(run, lambda frame: frame.__setitem__(name, value(frame)))


def set_info(run: Path, **fields: Any) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def bf16(values: pd.Series) -> np.ndarray:
    return torch.tensor(values.to_numpy()).bfloat16().float().numpy()


def shifted(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Every response's values one position later: the mask of the score is off by one."""
    for name in names:
        rows = frame.groupby(["step", "micro", "uid"])[name]
        frame[name] = rows.shift(-1).fillna(frame[name]).astype(np.float32)
    return frame


def one_nan(frame: pd.DataFrame) -> None:
    frame.loc[7, "entropy"] = np.nan


def doubled(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame.head(20), frame]).sort_values(["step", "micro", "uid", "pos"])


def two_ranks(run: Path, keep_second: bool) -> None:
    """Half of the responses go to rank 1, whose folder is then lost."""
    first = run / "tokens" / "rank=0000"
    second = run / "tokens" / "rank=0001"
    second.mkdir()
    for path in parts(run, "tokens"):
        table = pq.read_table(path, partitioning=None)
        odd = table["uid"].to_numpy() % 2 == 1
        if keep_second:
            write_table(table.filter(odd), second / path.name)
        write_table(table.filter(~odd), first / path.name)
    if not keep_second:
        second.rmdir()


def without_rank(run: Path) -> None:
    two_ranks(run, keep_second=False)
    set_info(run, world_size=2)


def short_rank(run: Path) -> None:
    two_ranks(run, keep_second=True)
    parts(run, "tokens")[-1].unlink()


def without_part(kind: str) -> Callable[[Path], None]:
    return lambda run: parts(run, kind)[1].unlink()


def torn_part(run: Path) -> None:
    path = parts(run, "tokens")[1]
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(data)


def flipped(run: Path) -> None:
    for kind in ("tokens", "samples"):
        edit(run, lambda f: f.__setitem__("advantage", -f["advantage"]), kind)


def trained_held_out(frame: pd.DataFrame) -> None:
    """The held-out rows of a step are given the uids of its training rows."""
    held = (frame["flags"] & 32) > 0
    offset = frame.loc[held, "uid"].min() - frame.loc[~held, "uid"].min()
    frame.loc[held, "uid"] -= offset


def last_token_lost(frame: pd.DataFrame) -> pd.DataFrame:
    last = frame.groupby(["step", "micro", "uid"])["pos"].transform("max")
    return frame[frame["pos"] < last]


def rng(frame: pd.DataFrame) -> np.ndarray:
    return np.random.default_rng(0).normal(size=len(frame))


def in_steps(name: str, value: float, step: int = 4) -> Callable[[Path], None]:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[frame["step"] == step, name] = value

    return lambda run: edit(run, change, "steps")


# defect: (what is done to a healthy run, the checks that must call it an error)
LOGS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "a NaN row": (lambda run: edit(run, one_nan), ("finite",)),
    "duplicated rows": (lambda run: edit(run, doubled, every=False), ("duplicates", "lengths")),
    "a missing rank": (without_rank, ("ranks", "samples", "row_counts")),
    "a rank that stopped early": (short_rank, ("ranks",)),
    "a part of tokens deleted": (without_part("tokens"), ("token_steps",)),
    "a part of steps deleted": (without_part("steps"), ("steps",)),
    "a part of samples deleted": (without_part("samples"), ("samples",)),
    "a part with torn bytes": (torn_part, ("damaged",)),
    "the last token of every response lost": (
        lambda run: edit(run, last_token_lost), ("lengths", "row_counts", "step_means"),
    ),
    "the first token masked": (
        lambda run: edit(run, lambda f: f[f["pos"] > 0]), ("positions", "lengths"),
    ),
    "mask shifted by one": (
        lambda run: edit(run, lambda f: shifted(f, "logp", "entropy", "dH")),
        ("same_state", "rescored", "old_logp"),
    ),
    "token ids shifted by one": (
        column("token_id", lambda f: f["token_id"].shift(1, fill_value=1)),
        ("state_path", "rescored"),
    ),
    "entropy of the wrong row": (
        column("entropy", lambda f: np.roll(f["entropy"], 7)),
        ("entropy_of_row", "moments", "same_state", "chain", "rescored"),
    ),
    "dH of the wrong row": (
        column("dH", lambda f: np.roll(f["dH"], 7)), ("same_state_change", "chain", "rescored"),
    ),
    "-logp in place of entropy": (
        column("entropy", lambda f: -f["logp"]), ("entropy_of_row", "same_state"),
    ),
    "H in bf16": (column("entropy", lambda f: bf16(f["entropy"])), ("precision",)),
    "logp in bf16": (column("logp", lambda f: bf16(f["logp"])), ("precision",)),
    "positive logp": (column("logp", lambda f: f["logp"] + 0.5), ("logp_range",)),
    "entropy above ln V": (column("entropy", lambda f: f["entropy"] + 3), ("entropy_range",)),
    "moments of another temperature": (
        column("m0", lambda f: f["m0"] ** 2), ("moments",),
    ),
    "wrong sign of A in the log": (
        column("advantage", lambda f: -f["advantage"]), ("advantage", "grad_sign"),
    ),
    "wrong sign of A everywhere": (flipped, ("advantage_sign", "grad_sign")),
    "stale old_logp": (
        column("old_logp", lambda f: f["old_logp"] - 0.3 * np.abs(rng(f))), ("old_logp",),
    ),
    "clipped tokens counted": (
        column("grad_logp", lambda f: f["grad_logp"].mask((f["flags"] & 3) > 0, 1e-3)),
        ("clip_gradient",),
    ),
    "clip flags lost": (column("flags", lambda f: f["flags"] & 252), ("clip_flags",)),
    "everything on-policy": (column("age", lambda f: f["age"] * 0), ("age",)),
    "held-out rows from the update": (lambda run: edit(run, trained_held_out), ("held_out",)),
    "a sampler of another temperature": (
        column("rollout_logp", lambda f: 0.5 * f["old_logp"] - 0.3), ("sampler",),
    ),
    "dH where nothing moved": (in_steps("lr", 0.0), ("lr_zero",)),
    "a fixed set that jumps": (in_steps("entropy_fixed", 9.0), ("fixed_chain",)),
    "a repeat that differs": (in_steps("repeat_max", 1e-3), ("repeat",)),
    "a floor above the signal": (
        lambda run: edit(run, lambda f: f.__setitem__("floor", f["floor"] * 1e6), "steps"),
        ("floor",),
    ),
    "influence that does not add up": (in_steps("identity_error", 0.2), ("identity",)),
    "rows that could not be scored": (
        column("flags", lambda f: f["flags"].mask(f["pos"] == 1, f["flags"] | 128)), ("scorable",),
    ),
    "a loss that bypasses the probe": (column("grad_logp", lambda f: f["grad_logp"] * 0),
                                       ("untouched",)),
    "inclusion probability 0": (in_steps("inclusion_prob", 0.0), ("inclusion",)),
}  # fmt: skip

# The same for what may be right in somebody's run: warnings.
DOUBTS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "truncation lost": (column("flags", lambda f: f["flags"] ^ 16), ("truncated",)),
    "a step that something else moved": (in_steps("dH_pred_jvp_momentum", 5.0, 3), ("splits",)),
    "a tenth of the gradients against A": (
        column("grad_logp", lambda f: f["grad_logp"].mask(f["uid"] % 10 == 0, -f["grad_logp"])),
        ("grad_sign",),
    ),
    "a small part of the gradient elsewhere": (
        in_steps("gradient_audit", 2e-3, 3),
        ("gradient_audit",),
    ),
    "a run that failed": (lambda run: set_info(run, status="failed"), ("status",)),
}
