"""Programs judged by their tests, in the sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from entropy_lab.train.rewards.code import CodeGrader
from entropy_lab.train.rewards.judge import Verdict
from entropy_lab.train.rewards.settings import RewardConfig
from entropy_lab.train.tasks.base import Problem


@dataclass
class CodeJudge:
    """1.0 where all tests of the problem's answer pass, or with `partial` the share that does."""

    grader: CodeGrader
    partial: bool = False

    def judge(self, texts: Sequence[str], problems: Sequence[Problem], seed: int) -> list[Verdict]:
        graded = self.grader.grade(texts, [p.answer for p in problems])
        return [
            Verdict(g.reward(self.partial), float(g.passed), "" if g.passed else g.reason)
            for g in graded
        ]

    def close(self) -> None:
        self.grader.close()


def make_judge(config: RewardConfig) -> CodeJudge:
    """The judge of reward.name = "code"; timeout is that of one test."""
    return CodeJudge(
        CodeGrader(
            workers=config.workers,
            timeout=config.timeout,
            memory_mb=config.memory_mb,
            total_timeout=config.total_timeout,
            partial=config.partial,
            allow_unsandboxed=config.allow_unsandboxed,
        ),
        config.partial,
    )
