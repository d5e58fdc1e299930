"""Analysis tables made by hand, or from synthetic runs, for the tests of the figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.analysis import analyze
from entropy_lab.analysis.audit_tables import audit_frame
from entropy_lab.analysis.bins import entropy_names, probability_names
from entropy_lab.analysis.replay import pairs
from entropy_lab.analysis.tables import QUADRANTS, frame
from entropy_lab.record import write_vocab
from synthetic import write_run

Tables = dict[str, pd.DataFrame]

# What a model may say: markup, marks of direction, a lone surrogate, NUL, a formula, a long one.
HOSTILE = [" the", "\n", "$x_1$", "<script>", "\u202eabc", "\ud800", "\x00", "語", "🙂", "%", "_",
           "\\frac{", "w" * 100, "", "&", "#"]  # fmt: skip
EVALS = {"n": 24, "samples": 16, "temperature": 1.0, "top_p": 1.0, "max_tokens": 8}


def with_evals(path: Path, level: float, steps: int = 12) -> None:
    """Write evaluations of two benchmarks at the start and the end, k = 1, 4, 16."""
    rows = [
        {"benchmark": b, "step": step, "k": k, "avg_at_k": share, "pass_at_k": share ** (1 / k),
         "pass_at_k_se": 0.05, "entropy": 0.4, **EVALS}
        for b, easier in (("aime", 0.0), ("math", 0.2))
        for step, share in ((0, 0.1 + easier), (steps, level + easier))
        for k in (1, 4, 16)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path / "evals.parquet")


def one_run(path: Path, **changes) -> Tables:
    """Tables of one synthetic run with deep steps, a floor and hostile token texts."""
    plan = {"steps": 12, "deep_every": 2, "held_out": False, "floor": 1e-5, "drift": -0.02}
    write_run(path, **(plan | changes))
    write_vocab(path, HOSTILE)
    return analyze([path]).tables


def several_runs(folder: Path, arms: dict[str, int], **changes) -> Tables:
    """Tables of arms (label of a method with settings -> seeds), all evaluated."""
    plan = {"steps": 12, "deep_every": 4, "held_out": False, "groups": 4, "group_size": 2}
    paths = []
    for arm, seeds in arms.items():
        name, *given = arm.split(" ")
        settings = {k: float(v) for k, v in (word.split("=") for word in given)}
        for seed in range(seeds):
            paths.append(folder / f"{arm.replace(' ', '-')}-{seed}")
            write_run(paths[-1], **(plan | changes), method=name, settings=settings, seed=seed,
                      entropy=(0.5, 0.1 + 0.03 * seed))  # fmt: skip
            with_evals(paths[-1], 0.3 + 0.1 * seed)
    return analyze(paths).tables


def without_dh(folder: Path, path: Path) -> Tables:
    """Tables of the run at `path`, copied without dH and predictions, as an importer leaves it."""
    shutil.copytree(path, folder)
    shutil.rmtree(folder / "analysis", ignore_errors=True)
    for part in folder.glob("tokens/*/*.parquet"):
        table = pq.ParquetFile(part).read()
        gone = [c for c in table.column_names if c.startswith("dH") or c.startswith("influence")]
        pq.write_table(table.drop_columns(gone), part)
    for part in folder.glob("steps/*.parquet"):
        table = pq.ParquetFile(part).read()
        gone = [c for c in table.column_names if c.startswith("dH") or c == "entropy_fixed"]
        pq.write_table(table.drop_columns(gone), part)
    log = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith("dH")} for line in lines]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    return analyze([folder]).tables


def audited(run: str = "run", touched: float = 0.2) -> Tables:
    """Audit of three methods by hand; with touched = 0 none clips or selects anything."""
    methods = [("grpo", 0.0), ("steer", 1.0), ("clip_cov ratio=0.02", touched)]
    rows, regions, scopes = [], [], []
    for i, (name, share) in enumerate(methods):
        common = {"run": run, "method": name, "unit": "bootstrap over steps"}
        shares = {f"{k}_{f}": 0.2 * i if i else np.nan for k in ("alone", "only")
                  for f in ("clip", "advantage", "probability", "entropy")}  # fmt: skip
        bands = {f"alone_{f}_{e}": 0.2 * i + d if i else np.nan
                 for f in ("clip", "advantage", "probability", "entropy")
                 for e, d in (("lo", -0.1), ("hi", 0.1))}  # fmt: skip
        rows.append(common | shares | bands | {
            "kind": "registry", "reference": "grpo", "n": 1000, "steps": 12, "touched": share,
            "touched_lo": share, "touched_hi": share, "explained": 0.5 if i else np.nan,
            "explained_lo": 0.4 if i else np.nan, "explained_hi": 0.6 if i else np.nan,
            "pinned": 0.9 if name == "steer" else np.nan,
        })  # fmt: skip
        for axis, bins in (("quadrant", QUADRANTS), ("probability", probability_names()),
                           ("entropy", entropy_names())):  # fmt: skip
            regions += [common | {"axis": axis, "bin": b, "n": 50, "touched": share * (j + 1) / 9}
                        for j, b in enumerate(bins)]  # fmt: skip
        scopes += [common | {"split": split, "divisor": d, "responses": 16 / d, "steps": 12,
                             "distance": 0.05 * d * (i > 0), "distance_lo": 0.04 * d * (i > 0),
                             "distance_hi": 0.06 * d * (i > 0)}
                   for split, divisors in (("micro-batch", (1, 2, 4)), ("rank", (2, 4)))
                   for d in divisors]  # fmt: skip
    found = {"audit": rows, "audit_touched": regions, "audit_scope": scopes}
    return {name: audit_frame(name, data) for name, data in found.items()}


def replayed() -> Tables:
    """Four states; method b lowers entropy by 1e-3 more than grpo at each, c by as much."""
    rows = pd.DataFrame(
        [
            {"run": "r", "method": m, "own": m == "grpo", "point": p, "inner": 0,
             "kl": 1e-4 * (p + 1),
             "dH_train": -3e-3 - 1e-3 * (m == "b") + 1e-4 * p * (m == "c") - 1e-3 * p,
             "dH_heldout": -2e-3}
            for m in ("grpo", "b", "c") for p in range(4)
        ]
    )  # fmt: skip
    return {"replay": rows, "replay_pairs": pairs(rows, "grpo").assign(run="r")}


def aimed(run: str = "run", steps: int = 6) -> Tables:
    """Targets of a run by hand: the last step is out of reach where there are several."""
    from entropy_lab.analysis.targets import targets

    rows = pd.DataFrame(
        {"step": range(steps), "method_predicted": [-1e-3] * steps, "method_dose": 0.5,
         "method_feasible": [1.0] * max(1, steps - 1) + [0.0] * (steps > 1),
         "dH_train": [-1e-3 + 1e-4 * (i % 3) for i in range(steps)]}
    )  # fmt: skip
    found, sums = targets({"method": {"name": "entropy_target", "target": -1e-3}}, rows)
    return {"targets": found.assign(run=run), "target_sums": sums.assign(run=run)}


def layered(run: str = "run") -> Tables:
    """Parts of five layers by hand."""
    from entropy_lab.analysis.layers import layers

    names = ["embed", "00", "01", "final", "head"]
    rows = pd.DataFrame(
        {f"layer_{n}": [(-1) ** i * 1e-3 * (i + 1), -1e-3] for i, n in enumerate(names)}
    )
    return {"layers": frame("layers", layers(rows)).assign(run=run)}
