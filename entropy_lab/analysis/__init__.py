"""Analysis of recorded runs: token rows in, small tables out (names and columns in tables.py)."""

from __future__ import annotations

from entropy_lab.analysis.pipeline import Analysis, analyze
from entropy_lab.analysis.store import read_tables
from entropy_lab.analysis.tables import TABLES

__all__ = ["TABLES", "Analysis", "analyze", "read_tables"]
