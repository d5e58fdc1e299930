"""The token viewer: a run's responses, token by token, inside the report."""

from __future__ import annotations

from entropy_lab.report.viewer.section import elements, packed, script, section, without

__all__ = ["elements", "packed", "script", "section", "without"]
