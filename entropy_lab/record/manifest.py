"""run.json: what ran, on what, with which settings, and how it ended."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from entropy_lab.errors import RunError
from entropy_lab.record.metrics import plain
from entropy_lab.record.parts import guard, make_folder, write_file
from entropy_lab.record.schema import SCHEMA_VERSION

NAME = "run.json"
_PACKAGES = ("torch", "transformers", "numpy", "pyarrow", "pandas", "duckdb", "safetensors")
# All that a run may hold (DESIGN §6): what `overwrite` removes, and nothing else.
_CONTENTS = (
    "run.json",
    "metrics.jsonl",
    "vocab.json",
    "evals.parquet",
    "eval",
    "steps",
    "tokens",
    "samples",
    "probe",
    "checkpoints",
    "replay",
    "analysis",
)


def create_run(
    run_dir: Path | str,
    config: dict[str, Any],
    *,
    seeds: dict[str, int] | int,
    extra: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Start a run directory: write run.json with status "running" and return the directory.

    `config` is the resolved configuration; `extra` are further keys (gpu, threads, ...), which
    win over ours. Raises RunError where the directory already holds a run (unless `overwrite`,
    which deletes that run) or cannot be written.
    """
    path = Path(run_dir)
    if any((path / name).exists() for name in (NAME, "metrics.jsonl")):
        if not overwrite:
            raise RunError(
                f"{path} already holds a run: continue it with --resume or choose another --out"
            )
        guard(path, lambda: _clear(path))
    make_folder(path)
    info = {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "started": _now(),
        "finished": None,
        "dropped_windows": 0,
        "seeds": seeds,
        "config": config,
        "versions": _versions(),
        "cpu": _cpu(),
        "gpu": None,
        "threads": os.cpu_count(),
        "git_commit": _git_commit(),
        **(extra or {}),
    }
    _write(path, info)
    return path


def set_status(run_dir: Path | str, status: str, **fields: Any) -> None:
    """Set the status of a run and any further keys of run.json.

    "running" clears `finished`; every other status sets it to the time now. Raises RunError for
    a directory that is not a run or cannot be written.
    """
    finished = None if status == "running" else _now()
    update_info(Path(run_dir), status=status, finished=finished, **fields)


def update_info(run_dir: Path, **fields: Any) -> None:
    """Set keys of run.json and keep the others."""
    _write(run_dir, {**read_info(run_dir), **fields})


def read_info(run_dir: Path) -> dict[str, Any]:
    """run.json of a run that this version can read.

    Raises RunError where it is missing or broken, or where the schema is newer than ours.
    """
    path = run_dir / NAME
    if not run_dir.is_dir():
        what = "is a file" if run_dir.exists() else "does not exist"
        raise RunError(f"{run_dir} {what}: give the directory of a run")
    try:
        info = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(
            f"{run_dir} is not a run: it has no run.json (give the directory that `entropy-lab "
            "train` printed)"
        ) from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON ({error}): restore it or rerun") from error
    version = info.get("schema_version") if isinstance(info, dict) else None
    if type(version) is not int:
        raise RunError(f"{path} states no schema_version: it was not written by entropy-lab")
    versions = info.get("versions")
    if version > SCHEMA_VERSION:
        writer = versions.get("entropy_lab") if isinstance(versions, dict) else None
        writer = writer or "a newer release"
        raise RunError(
            f"{run_dir} has schema {version} and this version reads up to {SCHEMA_VERSION}: "
            f"needs entropy-lab >= {writer}"
        )
    _check_shape(info, path)
    return info


def _check_shape(info: dict[str, Any], path: Path) -> None:
    """What readers rely on; a file changed by hand is named rather than stumbled over."""
    config = info.setdefault("config", {})
    sections = [config] + [config.get(k) for k in ("method", "task") if isinstance(config, dict)]
    count = info.setdefault("dropped_windows", 0)
    if not all(s is None or isinstance(s, dict) for s in sections) or type(count) is not int:
        raise RunError(
            f"{path} is not as entropy-lab wrote it (config must be a table of sections, "
            "dropped_windows a number): restore it or rerun"
        )


def _write(run_dir: Path, info: dict[str, Any]) -> None:
    text = json.dumps(plain(info), indent=2, allow_nan=False, default=str)
    write_file(run_dir / NAME, (text + "\n").encode())


def _clear(run_dir: Path) -> None:
    for name in _CONTENTS:
        path = run_dir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    found = {name: _version(name) for name in _PACKAGES}
    return {"entropy_lab": _version("entropy-lab"), "python": platform.python_version(), **found}


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the folder that the run was started from, if that is a repository."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
