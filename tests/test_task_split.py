"""The split of a task's problems: training never draws what evaluation asks."""

from __future__ import annotations

import random
from hashlib import blake2b, sha256

import pytest

from entropy_lab.errors import ConfigError
from entropy_lab.train.config import load_config
from entropy_lab.train.model import model_hash
from entropy_lab.train.tasks import (
    TASKS,
    Arithmetic,
    Countdown,
    Problem,
    WorkedTask,
    make_task,
)
from entropy_lab.train.tasks.split import is_held_out
from entropy_lab.train.tokenizer import character_tokenizer
from entropy_lab.train.warmup import _batch

WORKED = sorted(name for name, task in TASKS.items() if issubclass(task, WorkedTask))


@pytest.fixture(params=WORKED)
def task(request: pytest.FixtureRequest):
    return make_task(request.param, held_out_share=0.1)


def numbers(problem: Problem) -> tuple[str, ...]:
    """What a problem asks, whatever the order of its numbers: written here once more."""
    given, _, target = problem.prompt.rstrip("=").partition(":")
    mark = "," if "," in given else "+"
    return (*sorted(given.split(mark), key=int), target)


def refusal(name: str, n: int = 4, **params) -> str:
    with pytest.raises(ConfigError) as caught:
        make_task(name, **params).held_out(n, random.Random(0))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "prompts", "digest"),
    [
        ("arithmetic", ["34+14=", "11+27=", "57+16="], "0bb2fb1b97bf1add"),
        ("countdown", ["6,5,17:22=", "11,8,15:34=", "2,14,3:28="], "90981d5ef8ce1b69"),
    ],
)
def test_without_a_share_the_stream_is_that_of_earlier_runs(name, prompts, digest) -> None:
    """Numbers written down before tasks could hold anything out: 20 rollouts of 32 problems."""
    task, rng = make_task(name), random.Random("0 rollout problems 0")
    drawn = [p.prompt for _ in range(20) for p in task.problems(32, rng)]
    assert drawn[:3] == prompts
    assert sha256(" ".join(drawn).encode()).hexdigest()[:16] == digest


def test_the_sides_never_meet_in_any_order_of_the_numbers(task) -> None:
    trained = {numbers(p) for seed in range(40) for p in task.problems(200, random.Random(seed))}
    asked = {numbers(p) for seed in range(10) for p in task.held_out(200, random.Random(seed))}
    assert len(trained) > 2500 and len(asked) > 300
    assert not trained & asked


def test_all_problems_are_on_one_side() -> None:
    """Small enough to see everything: 81 sums, of which each is on exactly one side."""
    task = Arithmetic(digits=1, held_out_share=0.3)
    trained = {p.prompt for p in task.problems(81, random.Random(0))}
    asked = [p.prompt for p in task.held_out(81 - len(trained), random.Random(0))]
    assert len(set(asked)) == len(asked) and not trained & set(asked)
    assert trained | set(asked) == {f"{a}+{b}=" for a in range(1, 10) for b in range(1, 10)}


def test_the_share_is_that_of_the_problems() -> None:
    unordered = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    held = sum(is_held_out(f"arithmetic {a}+{b}", 0.1) for a, b in unordered)
    assert held / len(unordered) == pytest.approx(0.1, abs=3 * (0.09 / len(unordered)) ** 0.5)
    assert not any(is_held_out(f"arithmetic {a}+{b}", 0.0) for a, b in unordered)


def test_the_hash_decides_and_a_larger_share_holds_the_smaller_one() -> None:
    share = int.from_bytes(blake2b(b"arithmetic 1+2", digest_size=8).digest(), "big") / 2**64
    assert is_held_out("arithmetic 1+2", share + 1e-9)
    assert not is_held_out("arithmetic 1+2", share - 1e-9)
    small = {numbers(p) for p in Arithmetic(held_out_share=0.1).held_out(300, random.Random(0))}
    trained = {numbers(p) for p in Arithmetic(held_out_share=0.3).problems(5000, random.Random(0))}
    assert not small & trained


def test_held_out_problems_are_distinct_right_and_depend_on_the_generator(task) -> None:
    first = task.held_out(200, random.Random(3))
    assert first == task.held_out(200, random.Random(3)) != task.held_out(200, random.Random(4))
    assert len({p.prompt_id for p in first}) == len({p.prompt for p in first}) == 200
    rng = random.Random(0)
    assert all(task.reward(task.trace(p, rng), p) == 1.0 for p in first)


def test_problems_to_train_on_stay_distinct_while_there_are_enough(task) -> None:
    assert len({p.prompt for p in task.problems(500, random.Random(1))}) == 500
    few = Arithmetic(digits=1, held_out_share=0.3).problems(200, random.Random(1))
    assert len(few) == 200 and len({p.prompt for p in few[:50]}) == 50


def test_warm_up_traces_hold_no_held_out_problem(task) -> None:
    tokenizer, rng = character_tokenizer(task.alphabet), random.Random(0)
    asked = {numbers(p) for p in task.held_out(400, random.Random(0))}
    seen = set()
    for _ in range(60):
        ids, _ = _batch(tokenizer, task, load_config().model, rng)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        seen |= {numbers(Problem(text.partition("=")[0], "", 0)) for text in texts}
    assert len(seen) > 1500 and not seen & asked


def test_another_share_is_another_model() -> None:
    hashes = {
        model_hash(load_config(None, [f"task.held_out_share={share}"])) for share in (0, 0.1, 0.2)
    }
    assert len(hashes) == 3
    assert model_hash(load_config()) in hashes


def test_what_cannot_be_held_out_is_one_line() -> None:
    assert refusal("countdown") == (
        "task countdown holds no problems out: set task.held_out_share, for example to 0.1"
    )
    assert refusal("arithmetic", digits=1, held_out_share=0.1) == (
        "task arithmetic gave 2 held-out problems at held_out_share = 0.1, fewer than the 4 asked "
        "for: ask for fewer or raise task.held_out_share"
    )
    tiny = {"numbers": 2, "largest": 4, "top": 10}
    assert "gave 0 held-out problems at held_out_share = 0.01, fewer than the 4 asked" in refusal(
        "countdown", held_out_share=0.01, **tiny
    )
    assert "gave 1 held-out problems" in refusal("countdown", held_out_share=0.1, **tiny)


def test_a_side_without_problems_to_train_on_is_one_line(monkeypatch) -> None:
    for name in ("arithmetic", "countdown"):
        monkeypatch.setattr(f"entropy_lab.train.tasks.{name}.is_held_out", lambda *_: True)
    monkeypatch.setattr("entropy_lab.train.tasks.countdown._TRIES", 100)
    for task in (Arithmetic(held_out_share=0.9), Countdown(held_out_share=0.9)):
        with pytest.raises(ConfigError, match="has no problem left to train on at held_out_share"):
            task.problems(1, random.Random(0))


@pytest.mark.parametrize("share", ["1.0", "0.005", "-0.1", "0.95", "nan", "half"])
def test_a_share_out_of_range_is_refused(share: str) -> None:
    with pytest.raises(ConfigError, match="task.held_out_share must be ") as caught:
        load_config(None, [f"task.held_out_share={share}"])
    if share != "half":
        assert "must be 0 or from 0.01 to 0.9, got " in str(caught.value)
