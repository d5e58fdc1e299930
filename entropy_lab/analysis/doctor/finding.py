"""What a check of a log says: how grave, what was seen, what it means, what to do."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")  # ascending in gravity


@dataclass(frozen=True)
class Verdict:
    """level; seen: the numbers; means: why they matter; do: the next step. ok needs only `seen`."""

    level: Level
    seen: str
    means: str = ""
    do: str = ""


@dataclass(frozen=True)
class Finding(Verdict):
    """The verdict of the check named `check`."""

    check: str = ""

    @classmethod
    def of(cls, check: str, verdict: Verdict) -> Finding:
        return cls(verdict.level, verdict.seen, verdict.means, verdict.do, check)


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found about one run, the gravest first; `healthy`: no error."""

    run: str
    findings: list[Finding]

    @property
    def healthy(self) -> bool:
        return all(f.level != "error" for f in self.findings)

    def of_level(self, *levels: Level) -> list[Finding]:
        return [f for f in self.findings if f.level in levels]

    def to_json(self) -> dict[str, Any]:
        """{run, healthy, counts: {level: n}, findings: [{check, level, seen, means, do}]}."""
        return {
            "run": self.run,
            "healthy": self.healthy,
            "counts": {level: len(self.of_level(level)) for level in LEVELS},
            "findings": [{"check": f.check, **asdict(f)} for f in self.findings],
        }

    def lines(self) -> list[str]:
        """The same for people: a headline, a paragraph per finding, and the checks passed."""
        passed = [f.check for f in self.of_level("ok")]
        counts = [
            f"{n} {level}{'s' if n > 1 else ''}"
            for level in reversed(LEVELS[1:])
            if (n := len(self.of_level(level)))
        ]
        verdict = "nothing speaks against this log" if self.healthy else "do not believe this log"
        out = [f"{self.run}: {verdict}: {', '.join([*counts, f'{len(passed)} checks passed'])}"]
        for f in self.of_level("note", "warning", "error"):
            out.append(f"{f.level:<8}{f.check}: {f.seen}")
            out += [f"        {text}" for text in (f.means, f.do and f"-> {f.do}") if text]
        return [*out, *_wrapped("ok", ", ".join(passed))] if passed else out


def _wrapped(first: str, text: str) -> list[str]:
    return textwrap.wrap(text, 96, initial_indent=f"{first:<8}", subsequent_indent=" " * 8)


def ranked(findings: list[Finding]) -> list[Finding]:
    """The gravest first, otherwise in the order given."""
    return sorted(findings, key=lambda f: -LEVELS.index(f.level))
