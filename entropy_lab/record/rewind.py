"""Cut a run back to the end of a step, so that it can be continued from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.errors import RunError
from entropy_lab.record.evals import cut_evals
from entropy_lab.record.manifest import read_info
from entropy_lab.record.metrics import cut_metrics, read_metrics
from entropy_lab.record.parts import (
    Part,
    fsync_dir,
    guard,
    list_parts,
    part_folders,
    part_name,
    remove_merged,
    write_table,
)


def rewind(run_dir: Path | str, step: int) -> None:
    """Drop everything that was recorded after `step` (-1: everything), of every rank.

    Later lines of metrics.jsonl and a torn one, later parts, later evaluations and *.tmp leftovers
    are deleted; a part that straddles `step` is rewritten. Killed half-way, it can simply be
    called again. Raises RunError where the run does not reach `step` or cannot be written.
    """
    path = Path(run_dir)
    read_info(path)
    last_line = read_metrics(path).last_step
    parts = list_parts(path / "steps")
    reached = min(-1 if last_line is None else last_line, parts[-1].last if parts else -1)
    if step > reached:
        what = f"step {reached}" if reached >= 0 else "no step"
        raise RunError(f"cannot rewind {path} to step {step}: it is recorded through {what}")
    # The commit log first: from here on readers ignore what is deleted below.
    cut_metrics(path, step)
    for kind in ("steps", "tokens", "samples"):
        for folder in part_folders(path, kind):
            remove_merged(folder)  # before the part that stands for them covers less
            for part in list_parts(folder):
                if part.last > step:
                    _cut(part, step)
            guard(folder, lambda folder=folder: fsync_dir(folder) if folder.is_dir() else None)
    cut_evals(path, step + 1)  # the policy after `step` has taken one step more
    for leftover in _leftovers(path):
        guard(leftover, leftover.unlink)


def resumable_line(run_dir: Path, rank: int) -> dict[str, Any]:
    """The last line of metrics.jsonl of a run that can be continued as it is, {} of a new one.

    Raises RunError where it has to be rewound first.
    """
    log = read_metrics(run_dir)
    if not rank:
        parts = list_parts(run_dir / "steps")
        written = parts[-1].last if parts else None
        if log.torn or log.bad or written != log.last_step:
            raise RunError(
                f"{run_dir} was interrupted: metrics.jsonl ends at step {log.last_step}"
                f"{' with a torn line' if log.torn else ''} and its rows at step {written}; rewind "
                "it to a checkpoint first (--resume does)"
            )
    return log.lines[-1] if log.lines else {}


def _leftovers(run_dir: Path) -> list[Path]:
    folders = [run_dir, run_dir / "probe"]
    for kind in ("steps", "tokens", "samples"):
        folders += part_folders(run_dir, kind)
    return [path for folder in folders for path in sorted(folder.glob("*.tmp")) if path.is_file()]


def _cut(part: Part, step: int) -> None:
    if part.first > step:
        guard(part.path, part.path.unlink)
        return
    try:
        table = pq.ParquetFile(part.path).read()
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"{part.path} is damaged ({str(error).splitlines()[0]}) and holds steps through "
            f"{step}: rewind to before step {part.first}"
        ) from error
    kept = table.filter(table["step"].to_numpy() <= step)
    if not kept.num_rows:
        guard(part.path, part.path.unlink)
        return
    # Rewritten under the old name, then renamed: no moment has the same rows twice.
    write_table(kept, part.path)
    new = part.path.with_name(part_name(part.first, step))
    guard(new, lambda: part.path.replace(new))
