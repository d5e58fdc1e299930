"""From texts to rewards: a judge's verdicts, shaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from entropy_lab.errors import ConfigError, nearest
from entropy_lab.train.rewards.judge import Judge, RandomJudge, TaskJudge
from entropy_lab.train.rewards.math_judge import MathJudge
from entropy_lab.train.rewards.pool import Pool
from entropy_lab.train.rewards.settings import RewardConfig
from entropy_lab.train.rewards.shaping import is_well_formed, overlong_penalty
from entropy_lab.train.rewards.user import FORMS, user_judge
from entropy_lab.train.tasks.base import Problem, Task
from entropy_lab.train.tasks.worked import WorkedTask


@dataclass(frozen=True)
class Graded:
    """One entry a response. reward: shaped; accuracy: unshaped correctness; note: "" or why."""

    reward: list[float]
    accuracy: list[float]
    note: list[str]


@dataclass
class Rewarder:
    """Grades responses, and owns the processes that it takes; close it, or use it in a `with`.

    reward = verdict + format_weight · [an answer is stated] + overlong_penalty · penalty, with
    penalty in [-1, 0] (`shaping.overlong_penalty`).
    """

    config: RewardConfig
    judge: Judge

    def grade(
        self,
        texts: Sequence[str],
        problems: Sequence[Problem],
        *,
        lengths: Sequence[int],
        max_tokens: int,
        seed: int,
    ) -> Graded:
        """Rewards of `texts`, each with its problem and its length in tokens.

        A pure function of its arguments, whatever the number of workers, but for responses that
        reach the time limit. seed: drives "random" alone. Raises ValueError for unequal numbers
        of texts, problems and lengths; ConfigError as the judge does, and for a buffer above
        max_tokens.
        """
        if not len(texts) == len(problems) == len(lengths):
            raise ValueError(
                f"{len(texts)} texts, {len(problems)} problems and {len(lengths)} lengths: give "
                "one problem and one length for each text"
            )
        config = self.config
        verdicts = self.judge.judge(texts, problems, seed)
        penalties = [overlong_penalty(n, max_tokens, config.overlong_buffer) for n in lengths]
        formed = [config.format_weight > 0 and is_well_formed(text) for text in texts]
        return Graded(
            [
                v.reward + config.format_weight * good + config.overlong_penalty * penalty
                for v, good, penalty in zip(verdicts, formed, penalties, strict=True)
            ],
            [v.accuracy for v in verdicts],
            [v.note for v in verdicts],
        )

    def check(self, problems: Iterable[Problem]) -> None:
        """Raise ConfigError for the first problem that cannot be graded, where that can be told."""
        check = getattr(self.judge, "check", None)
        if check is not None:
            check(problems)

    def close(self) -> None:
        """End the processes; the next `grade` would start new ones."""
        self.judge.close()

    def __enter__(self) -> Rewarder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


NAMES = ("task", "math", "code", "random", "constant")


def make_rewarder(config: RewardConfig, task: Task) -> Rewarder:
    """The rewarder that [reward] describes; processes start with the first `grade`.

    Raises ConfigError for an unknown name, a user's function that cannot be loaded, and
    format_weight with a reward that does not read answers.
    """
    name = config.name
    if config.format_weight and name in NAMES and name != "math":
        raise ConfigError(
            f'reward.format_weight = {config.format_weight} has no effect on reward.name = "{name}"'
            ': set it to 0, or take "math" or a function of your own'
        )
    return Rewarder(config, _judge(config, task))


def _judge(config: RewardConfig, task: Task) -> Judge:
    name = config.name
    # A task of data files has no reward of its own: its answers are graded as mathematics.
    if name == "math" or (name == "task" and not isinstance(task, WorkedTask)):
        return MathJudge(Pool(config.workers, config.timeout))
    if name == "task":
        assert isinstance(task, WorkedTask)
        return TaskJudge(task)
    if name in ("random", "constant"):
        own = _judge(replace(config, name="task"), task)
        return RandomJudge(own, config.value, config.probability if name == "random" else 1.0)
    if name == "code":
        from entropy_lab.train.rewards.code_judge import CodeJudge

        return CodeJudge(config)
    if ".py" in name:
        return user_judge(name)
    raise ConfigError(
        f"unknown reward.name {name!r}: {nearest(name, NAMES)}, FILE.py:CALLABLE with {FORMS}"
    )
