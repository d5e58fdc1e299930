"""Whole files only: a file of a run is complete under its name, or absent.

Data goes to `<name>.tmp`, is fsynced, renamed, and the folder fsynced, so a process that dies at
any moment leaves at most a `.tmp`, which every reader ignores.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from entropy_lab.errors import RunError
from entropy_lab.record.schema import parquet_options

_PART = re.compile(r"part-(\d{8,})-(\d{8,})\.parquet")
_HINTS = {
    errno.ENOSPC: "free space on that disk, then resume the run",
    errno.EDQUOT: "free some of the disk quota, then resume the run",
    errno.EFBIG: "raise the file size limit (ulimit -f), then resume the run",
    errno.EACCES: "make the folder writable or choose another one",
    errno.EPERM: "make the folder writable or choose another one",
    errno.EROFS: "choose a folder on a writable disk",
    errno.ENOTDIR: "part of that path is a file: choose another folder",
}


class Part(NamedTuple):
    """A finished part file and the first and last step of its window, as its name says."""

    first: int
    last: int
    path: Path


def write_error(error: OSError, path: Path | str) -> RunError:
    """The one-line RunError for a file or folder that could not be written."""
    text = f"cannot write {path}: {error.strerror or error}"
    hint = _HINTS.get(error.errno or 0)
    return RunError(f"{text}: {hint}" if hint else text)


def fsync_dir(path: Path) -> None:
    """Make renames and deletions inside the folder durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte; os.write may stop early (a nearly full disk does that)."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path` so that it is durable and complete, or leave what was there.

    Raises RunError when the system refuses (disk full, no permission).
    """
    tmp = path.with_name(path.name + ".tmp")
    try:
        fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(tmp, path)
        fsync_dir(path.parent)
    except OSError as error:
        _discard(tmp)
        raise write_error(error, path) from error


@contextmanager
def stream_file(path: Path) -> Iterator[BinaryIO]:
    """`write_file` for more than fits in memory: what is written in the block, or nothing.

    An error in the block leaves what was at `path`. Raises RunError when the system refuses.
    """
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
        fsync_dir(path.parent)
    except OSError as error:
        _discard(tmp)
        raise write_error(error, path) from error
    except Exception:
        _discard(tmp)
        raise


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # the reason the write failed is already on its way; readers ignore a .tmp


def make_folder(path: Path) -> None:
    """Create the folder and its parents durably; RunError when that is not possible."""
    try:
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            fsync_dir(path.parent)
    except OSError as error:
        raise write_error(error, path) from error


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as one Parquet file with our encodings; equal tables give equal bytes."""
    # Encoded in memory first: a failing encoder then never touches the disk.
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **parquet_options(table.schema))
    write_file(path, memoryview(sink.getvalue()))


def part_name(first: int, last: int) -> str:
    return f"part-{first:08d}-{last:08d}.parquet"


def list_parts(folder: Path) -> list[Part]:
    """The finished parts of a folder by first step; [] where there is no such folder.

    A part whose steps all lie within another's is left out: it was merged into that one, and a
    kill came before it could be removed.
    """
    found: list[Part] = []
    for part in _all_parts(folder):
        if not found or part.last > found[-1].last:
            found.append(part)
    return found


def remove_merged(folder: Path) -> None:
    """Delete the parts that `list_parts` leaves out; RunError where the system refuses."""
    for part in sorted(set(_all_parts(folder)) - set(list_parts(folder))):
        guard(part.path, part.path.unlink)


def _all_parts(folder: Path) -> list[Part]:
    """By first step; of parts with the same one the widest comes first."""
    if not folder.is_dir():
        return []
    named = [(path, _PART.fullmatch(path.name)) for path in folder.iterdir()]
    found = [Part(int(m[1]), int(m[2]), path) for path, m in named if m]
    return sorted(found, key=lambda part: (part.first, -part.last))


def rank_folder(run_dir: Path, kind: str, rank: int) -> Path:
    """tokens/rank=0003 and the like."""
    return run_dir / kind / f"rank={rank:04d}"


def part_folders(run_dir: Path, kind: str) -> list[Path]:
    """The folders that hold parts of a kind: steps/ itself, tokens/ and samples/ per rank."""
    if kind == "steps":
        return [run_dir / kind]
    return sorted(path for path in (run_dir / kind).glob("rank=*") if path.is_dir())


def guard(path: Path, action: Callable[[], object]) -> None:
    """Run a change of files and turn what the system refuses into a RunError about `path`."""
    try:
        action()
    except OSError as error:
        raise write_error(error, path) from error
