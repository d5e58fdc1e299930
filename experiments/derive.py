"""Tables that follow from those kept in experiments/results, without the runs.

    python -m experiments.derive

benchmarks (from pass_at_k) and predictor_seeds (from validation and influence), for results that
were kept by a version without them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from entropy_lab.analysis.benchmarks import benchmarks
from entropy_lab.analysis.predictor_seeds import predictor_seeds
from entropy_lab.analysis.seeds import stratified
from entropy_lab.analysis.store import write_tables
from experiments.results import RESULTS


def main() -> None:
    for folder in sorted(p for p in RESULTS.iterdir() if p.is_dir()):
        found = {}
        if (folder / "pass_at_k.parquet").exists():
            found["benchmarks"] = benchmarks(_read(folder, "pass_at_k"), {})
        if (folder / "predictor_seeds.parquet").exists():
            methods = _read(folder, "summary").set_index("run")["method"].to_dict()
            draws = stratified(Counter(methods.values()))
            validation, influence = _read(folder, "validation"), _read(folder, "influence")
            found["predictor_seeds"] = predictor_seeds(validation, influence, methods, draws)
        if found:
            write_tables(folder, found)
            print(f"{folder.name}: {', '.join(found)}")


def _read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"{name}.parquet")


if __name__ == "__main__":
    main()
