"""How the benchmarks print: one line a measured value, with its bar."""

from __future__ import annotations


def line(bar: str, what: str, value: str, demand: str, met: bool) -> None:
    print(f"{bar:<3} {what:<44} {value:>12}   {demand:<14} {'met' if met else 'MISSED'}")


def note(what: str, value: str) -> None:
    print(f"    {what:<44} {value:>12}   no bar")
