"""The HTML report and the terminal summary, made from analysis tables alone."""

from __future__ import annotations

from entropy_lab.report.report import write_report
from entropy_lab.report.text import summary_lines

__all__ = ["summary_lines", "write_report"]
