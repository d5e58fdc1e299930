"""Programs judged by their tests, in the sandbox."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from entropy_lab.errors import ConfigError
from entropy_lab.train.rewards.code import CodeGrader
from entropy_lab.train.rewards.code_tests import read_tests
from entropy_lab.train.rewards.isolation import isolation
from entropy_lab.train.rewards.judge import Verdict
from entropy_lab.train.rewards.settings import RewardConfig
from entropy_lab.train.tasks.base import Problem, prompt_text


@dataclass
class CodeJudge:
    """1.0 where all tests of the problem's answer pass, or with reward.partial the share that does.

    The note says what became of each test, as `CodeGraded.marks`, and why the first one failed.
    Its servers start with the first judgement. Raises ConfigError where nothing isolates them.
    """

    config: RewardConfig
    _grader: CodeGrader | None = None

    def __post_init__(self) -> None:
        if not self.config.allow_unsandboxed:
            isolation().demand()  # before anything is trained

    def judge(self, texts: Sequence[str], problems: Sequence[Problem], seed: int) -> list[Verdict]:
        graded = self._started().grade(texts, [p.answer for p in problems])
        partial = self.config.partial
        return [
            Verdict(g.reward(partial), float(g.passed), f"tests {g.marks}{_because(g.reason)}")
            for g in graded
        ]

    def check(self, problems: Iterable[Problem]) -> None:
        """Raise ConfigError for the first problem whose tests cannot be read."""
        for problem in problems:
            try:
                read_tests(problem.answer)
            except ConfigError as error:
                text = " ".join(prompt_text(problem.prompt).split())[:60]
                raise ConfigError(f"the problem {text!r} cannot be graded: {error}") from None

    def close(self) -> None:
        if self._grader is not None:
            self._grader.close()
            self._grader = None

    def _started(self) -> CodeGrader:
        if self._grader is None:
            c = self.config
            self._grader = CodeGrader(
                workers=c.workers,
                timeout=c.timeout,
                memory_mb=c.memory_mb,
                total_timeout=c.total_timeout,
                partial=c.partial,
                allow_unsandboxed=c.allow_unsandboxed,
            )
        return self._grader


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
