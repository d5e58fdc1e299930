"""figures/ drawn anew from the tables in experiments/results: `make figures`.

    python -m experiments.figures [--out figures] [NAME ...]

Each file of figures/ is one line of SET: its name, the figure or table, and the result it is of.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from entropy_lab.errors import RunError
from entropy_lab.plots import PLOTS, draw
from entropy_lab.plots.sheet import FORMATS
from experiments.results import RESULTS

OUT = Path(__file__).parents[1] / "figures"
README = "README.md"
BEGIN, END = "<!-- made by python -m experiments.figures -->", "<!-- end -->"


@dataclass(frozen=True)
class Item:
    """file: name below figures/ without ending; of: folders of experiments/results."""

    file: str
    name: str
    of: tuple[str, ...]


DEMO = ("00_demo",)
SET = (
    Item("estimators", "estimators", ("01_predictors",)),
    Item("factors", "factors", DEMO),
    Item("benchmarks", "benchmarks", ("02_methods",)),
    Item("extreme_clipping", "extreme_clipping", ("06_extreme_clipping",)),
    Item("clip_sweep", "clip_sweep", ("04_random_reward",)),
    Item("mapping", "mapping", ("05_lambda_min",)),
    Item("lambda_min", "lambda_min", ("05_lambda_min",)),
    Item("demo_change_distribution", "change_distribution", DEMO),
    Item("demo_regions", "regions", DEMO),
    Item("demo_quadrants", "quadrants", DEMO),
    Item("demo_plane", "plane", DEMO),
    Item("method_changes", "method_changes", DEMO),
    Item("pass_at_k", "pass_at_k", ("02_methods",)),
    Item("accuracy_entropy", "accuracy_entropy", ("02_methods",)),
    Item("demo_predicted_vs_actual", "predicted_vs_actual", DEMO),
    Item("demo_calibration", "calibration", DEMO),
    Item("demo_entropy_reward", "entropy_reward", DEMO),
    Item("demo_error_budget", "error_budget", DEMO),
    Item("demo_influence_scores", "influence_scores", DEMO),
    Item("demo_layer_shares", "layer_shares", DEMO),
    Item("demo_words", "words", DEMO),
    Item("demo_train_heldout", "train_heldout", DEMO),
    Item("entropy_target", "entropy_target", ("00_entropy_target",)),
    Item("weight_collapse", "weight_collapse", ("00_steer", "00_demo")),
    Item("scope_effect", "scope_effect", DEMO),
    Item("scope_runs", "scope_runs", ("07_scope",)),
    Item("replay", "replay", ("03_replay",)),
    Item("demo_drift", "drift", DEMO),
    Item("methods_curves", "methods_curves", ("02_methods",)),
    Item("methods_summary", "methods_summary", ("02_methods",)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw figures/ from experiments/results")
    parser.add_argument("names", nargs="*", metavar="NAME", help="files of figures/; default: all")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    chosen = [item for item in SET if not args.names or item.file in args.names]
    started, reasons = time.monotonic(), {}
    for i, item in enumerate(chosen, start=1):
        files, reasons[item.file] = drawn(item, args.out)
        spent = time.monotonic() - started
        told = ", ".join(files) or reasons[item.file]
        print(f"[{i}/{len(chosen)}, {spent:.0f} s] {item.file}: {told}", flush=True)
    if args.out == OUT:
        rows = [
            line(item, there(item, OUT), reasons.get(item.file) or "see `make figures`")
            for item in SET
        ]
        rewrite(OUT / README, rows)


def there(item: Item, out: Path) -> list[str]:
    """The item's files that lie in figures/."""
    names = [f"{item.file}.{ending}" for ending in ("pdf", "png", *FORMATS)]
    return [name for name in names if (out / name).exists()]


def drawn(item: Item, out: Path) -> tuple[list[str], str]:
    """(files of figures/ that were written, "" or why there are none)."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            paths = draw(item.name, [RESULTS / name for name in item.of], folder)
        except RunError as error:
            return [], str(error).replace(f"{RESULTS}/", "")
        out.mkdir(parents=True, exist_ok=True)
        for path in paths:
            if path.suffix == ".png":
                shrink(path)
            shutil.move(path, out / f"{item.file}{path.suffix}")
        return [f"{item.file}{path.suffix}" for path in paths], ""


def shrink(path: Path) -> None:
    """Few colours instead of millions: a third of the size, and no difference that one sees."""
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(192, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def line(item: Item, files: list[str], why: str) -> str:
    """One row of the README: item, picture, what it shows, command, tables read."""
    plot = PLOTS[item.name]
    links = ", ".join(f"[{Path(f).suffix[1:]}]({f})" for f in files)
    given = " ".join(f"--from experiments/results/{name}" for name in item.of)
    cells = [
        ", ".join(plot.items) or "own", f"`{item.file}`: {links}" if files else why, plot.title,
        f"`entropy-lab plot {item.name} {given} --out DIR`", ", ".join(plot.needs),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def rewrite(path: Path, lines: list[str]) -> None:
    """Put the rows between the marks of the README."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    head = ["| item | files | what it shows | command | tables read |", "|---|---|---|---|---|"]
    path.write_text("\n".join([before + BEGIN, *head, *lines, END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
