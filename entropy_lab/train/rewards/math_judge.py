r"""The reward of a mathematical answer: 1 where it is the ground truth, else 0."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from entropy_lab.errors import ConfigError
from entropy_lab.train.rewards.answers import answer_of
from entropy_lab.train.rewards.judge import Verdict
from entropy_lab.train.rewards.pool import Pool
from entropy_lab.train.tasks.base import Problem, prompt_text

_LONGEST = 1000  # characters of an answer that is read as mathematics


def math_reward(response: str, ground_truth: str) -> float:
    r"""1.0 if the answer that the response states is the ground truth, else 0.0.

    The answer is the last \boxed{...}, else the last "Answer: ..." (see `answers.answer_of`); it
    is compared by value (`equality.same_answer`: numbers exactly, the rest by math-verify) in a
    process of its own, so that an input that hangs (3 s) or explodes (2 GiB) costs that process
    and counts as wrong. The process is started by the first call, shared by the later ones, and
    ends with the program; calls from several threads take turns. Many responses are faster
    through a `Rewarder`. Raises ConfigError for a ground truth that is no text, number or list of
    them.
    """
    with _LOCK:
        return judged(_SHARED, [response], [ground_truth])[0].reward


_LOCK = threading.Lock()
_SHARED = Pool(workers=1)


@dataclass(frozen=True)
class MathJudge:
    """`math_reward` of many responses at once, in the processes of `pool`."""

    pool: Pool

    def judge(self, texts: Sequence[str], problems: Sequence[Problem], seed: int) -> list[Verdict]:
        return judged(self.pool, texts, [p.answer for p in problems])

    def check(self, problems: Iterable[Problem]) -> None:
        """Raise ConfigError for the first problem whose answer is none."""
        for problem in problems:
            if isinstance(problem.answer, dict):
                text = " ".join(prompt_text(problem.prompt).split())[:60]
                raise ConfigError(
                    f"the problem {text!r} has {', '.join(problem.answer)} for its answer, not a "
                    'text or number: for tests of programs set reward.name = "code"'
                )

    def close(self) -> None:
        self.pool.close()


def judged(pool: Pool, texts: Sequence[str], truths: Sequence[Any]) -> list[Verdict]:
    """A verdict per response; of several accepted ground truths any one will do."""
    answers = [answer_of(text) for text in texts]
    golds = [_accepted(truth) for truth in truths]
    short = {
        (gold, answer)
        for answer, accepted in zip(answers, golds, strict=True)
        for gold in accepted
        if answer is not None and max(len(gold), len(answer)) <= _LONGEST
    }
    ordered = sorted(short)
    known = dict(zip(ordered, pool.compare(ordered), strict=True))
    return [_verdict(a, accepted, known) for a, accepted in zip(answers, golds, strict=True)]


def _verdict(
    answer: str | None, accepted: list[str], known: dict[tuple[str, str], tuple[bool, str]]
) -> Verdict:
    if answer is None:
        return Verdict(0.0, 0.0, "no answer")
    found = [known.get((gold, answer)) or (_same_text(gold, answer)) for gold in accepted]
    right = float(any(same for same, _ in found))
    return Verdict(right, right, "" if right else next((n for _, n in found if n), ""))


def _same_text(gold: str, answer: str) -> tuple[bool, str]:
    return "".join(gold.split()) == "".join(answer.split()), "compared as text"


def _accepted(truth: Any) -> list[str]:
    """The ground truths as answers: a worked solution is reduced to what it states."""
    truth = truth.tolist() if hasattr(truth, "tolist") else truth  # a column of lists gives arrays
    truths = truth if isinstance(truth, list | tuple) else [truth]
    if not truths or not all(isinstance(t, str | int | float) for t in truths):
        raise ConfigError(
            f"{truth!r:.80} is no ground truth for the math reward: give a text, a number or a "
            "list of accepted answers"
        )
    texts = [str(t) for t in truths]
    return [answer_of(t) or t if "\\boxed" in t or "####" in t else t for t in texts]
