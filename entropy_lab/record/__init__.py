"""The record of a run: what is written while it trains, and how it is read afterwards."""

from __future__ import annotations

from entropy_lab.record.evals import write_evals
from entropy_lab.record.lock import run_lock
from entropy_lab.record.manifest import create_run, set_status
from entropy_lab.record.rewind import rewind
from entropy_lab.record.run import Run, load, open_run
from entropy_lab.record.schema import SCHEMA_VERSION, token_schema
from entropy_lab.record.vocab import read_vocab, write_vocab
from entropy_lab.record.writer import RunWriter

__all__ = [
    "SCHEMA_VERSION",
    "Run",
    "RunWriter",
    "create_run",
    "load",
    "open_run",
    "read_vocab",
    "rewind",
    "run_lock",
    "set_status",
    "token_schema",
    "write_evals",
    "write_vocab",
]
