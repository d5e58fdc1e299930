"""The mathematical reward: what hostile input may cost, and the processes that it costs."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rewards import POISON
from entropy_lab.errors import RunError
from entropy_lab.train.rewards import RewardConfig, equality, make_rewarder, math_reward, worker
from entropy_lab.train.rewards import pool as pool_module
from entropy_lab.train.rewards.math_judge import judged
from entropy_lab.train.rewards.pool import Pool
from entropy_lab.train.tasks import Arithmetic, Problem


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    shared = Pool(workers=2, timeout=30.0)
    yield shared
    shared.close()


# --- hostile input --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", POISON)
def test_what_hangs_is_stopped_and_the_next_answer_is_right(bad: str) -> None:
    pool = Pool(workers=1, timeout=1.0)
    pool.compare([("2", r"\sqrt{4}")])
    [verdict] = judged(pool, [rf"\boxed{{{bad}}}"], ["34"])
    # Some are decided in time on a fast machine; the first never is.
    assert verdict.reward == 0.0 and verdict.note in ("timeout", "")
    assert verdict.note == "timeout" or bad != POISON[0]
    assert judged(pool, [r"\boxed{\sqrt{4}}"], ["2"])[0].reward == 1.0
    pool.close()


STRANGE = {
    "deep braces": "{" * 400 + "34" + "}" * 400,
    "deep fractions": r"\frac{" * 200 + "1" + "}{2}" * 200,
    "open braces": r"\boxed{" * 300,
    "a megabyte of digits": "3" * 2**20,
    "a megabyte of blanks": " " * 2**20,
    "a megabyte of dollars": "$" * 2**20,
    "many answers": "\nAnswer:" * 10**5,
    "NUL": "34\0",
    "a surrogate": "34\ud800",
    "control characters": "".join(map(chr, range(32))),
    "right to left": "\u202e34",
    "digits of another script": "٣٤",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_texts_are_wrong_and_harmless(kind: str, pool: Pool) -> None:
    text = STRANGE[kind]
    texts = [text, rf"\boxed{{{text}}}", f"Answer: {text}", r"\boxed{34}"]
    found = judged(pool, texts, ["35"] * 3 + ["34"])
    assert [v.reward for v in found] == [0.0, 0.0, 0.0, 1.0]


def test_what_cannot_be_written_is_not_passed_over(pool: Pool) -> None:
    found = pool.compare([("34", "34\0"), ("34", "34\ud800"), ("34", " 34 ")])
    assert [same for same, _ in found] == [False, False, True]


def test_long_answers_are_compared_as_text(pool: Pool) -> None:
    long = "+".join(["x"] * 2000)
    found = judged(pool, [rf"\boxed{{{long}}}", rf"\boxed{{{long}+1}}"], [long, long])
    assert [(v.reward, v.note) for v in found] == [(1.0, ""), (0.0, "compared as text")]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="reads a limit of Linux")
def test_the_memory_of_a_process_has_a_limit(pool: Pool) -> None:
    pool.compare([("2", r"\sqrt{4}")])
    limits = {resource.prlimit(w.process.pid, resource.RLIMIT_AS) for w in pool._team if w.ready}
    assert limits == {(worker.MEMORY, worker.MEMORY)}


@pytest.mark.parametrize(
    ("error", "note"),
    [(MemoryError(), "out of memory"), (RecursionError("deep"), "RecursionError")],
)
def test_where_algebra_fails_the_texts_decide(
    error: Exception, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: str) -> bool:
        raise error

    monkeypatch.setattr(equality, "same_answer", fails)
    assert worker.verdict(r"\dfrac{x}{y}", r"\frac xy", 60.0) == (False, note)
    assert worker.verdict(r"\dfrac{x}{y}", r"\frac{x} {y}", 60.0) == (True, note)


@given(st.text(max_size=40))
def test_any_text_can_be_a_response(text: str) -> None:
    [verdict] = judged(_POOL, [text], ["34"])
    assert verdict.reward in (0.0, 1.0)


_POOL = Pool(workers=1, timeout=10.0)


# --- processes ------------------------------------------------------------------------------------


def test_verdicts_do_not_depend_on_the_number_of_processes(pool: Pool) -> None:
    asked = [("2", "\\sqrt{4}"), ("x=5", "5"), ("2k", "k+k"), ("2k", "3k"), ("34", "35")]
    one = Pool(workers=1, timeout=30.0)
    assert one.compare(asked) == pool.compare(asked) == pool.compare([*asked, *asked])[len(asked) :]
    one.close()


def test_processes_end_with_the_rewarder_and_start_again() -> None:
    problem = Problem("?", "2", 0)
    config = RewardConfig(name="math", workers=1, timeout=30.0)
    with make_rewarder(config, Arithmetic()) as rewarder:
        grade = {"lengths": [1], "max_tokens": 8, "seed": 0}
        assert rewarder.grade([r"\boxed{\sqrt4}"], [problem], **grade).accuracy == [1.0]
        [first] = rewarder.judge.pool._team  # type: ignore[attr-defined]
        first.process.kill()  # as the system does where memory is short
        first.process.wait()
        found = rewarder.grade([r"\boxed{\sqrt4}"] * 2, [problem] * 2, lengths=[1, 1],
                               max_tokens=8, seed=0)  # fmt: skip
        assert found.accuracy == [1.0] * 2 and found.note == [""] * 2  # no answer was lost
        assert rewarder.grade([r"\boxed{\sqrt4}"], [problem], **grade).accuracy == [1.0]
        [second] = rewarder.judge.pool._team  # type: ignore[attr-defined]
    assert second.process.poll() is not None
    assert rewarder.grade([r"\boxed{\sqrt4}"], [problem], **grade).accuracy == [1.0]
    rewarder.close()


def test_math_reward_is_a_plain_function_in_any_thread() -> None:
    found: list[float] = []
    said = ["\\boxed{\\sqrt{4}}", "\\boxed{3}"]
    threads = [threading.Thread(target=lambda s=s: found.append(math_reward(s, "2"))) for s in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0.0, 1.0]


def test_a_program_that_cannot_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_PROGRAM", "entropy_lab.nowhere")
    with pytest.raises(RunError, match="did not start .*: try `.*python.* -m entropy_lab.nowhere`"):
        Pool(1).compare([("1", "2")])


def test_the_lack_of_math_verify_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('none here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RunError, match="cannot be compared: ImportError: none here; install entr"):
        Pool(1).compare([("1", "2")])
