"""Coding benchmarks as they are published: read, asked, graded in the sandbox, kept by test."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from data_files import jsonl, parquet, tiny_folder
from entropy_lab import load
from entropy_lab.errors import ConfigError
from entropy_lab.record.evals import read_answers
from entropy_lab.train import eval_files
from entropy_lab.train.eval_files import Asked, evaluate_files
from entropy_lab.train.launch import run_training
from entropy_lab.train.pass_at_k import pass_at_k
from entropy_lab.train.rewards import RewardConfig, make_rewarder
from entropy_lab.train.rewards.code_tests import read_tests
from entropy_lab.train.rewards.isolation import isolation
from entropy_lab.train.rollout import HFEngine, Responses
from entropy_lab.train.tasks import Data, Problem

isolated = pytest.mark.skipif(not isolation().isolated, reason="nothing isolates code here")

LCB = [
    {
        "question_title": "Twice", "question_content": "Print twice the number.",
        "platform": "made", "question_id": "a", "starter_code": "",
        "public_test_cases": json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}]),
        "private_test_cases": json.dumps([{"input": "5\n", "output": "10\n", "testtype": "stdin"}]),
        "metadata": "{}",
    },
    {
        "question_title": "Add", "question_content": "Add two numbers.",
        "platform": "made", "question_id": "b",
        "starter_code": "class Solution:\n    def plus(self, a: int, b: int) -> int:",
        "public_test_cases": json.dumps(
            [{"input": "1\n2", "output": "3", "testtype": "functional"}]),
        "private_test_cases": json.dumps(
            [{"input": "5\n-7", "output": "-2", "testtype": "functional"}]),
        "metadata": json.dumps({"func_name": "plus"}),
    },
]  # fmt: skip
MBPP = [
    {
        "task_id": 1, "text": "Write a function to square a number.", "code": "...",
        "test_list": ["assert square(3) == 9", "assert square(-2) == 4"],
        "test_setup_code": "", "challenge_test_list": [],
    }
]  # fmt: skip
HUMANEVAL = [
    {
        "task_id": "Made/0", "prompt": 'def half(n):\n    """Half of n, rounded down."""\n',
        "canonical_solution": "    return n // 2\n", "entry_point": "half",
        "test": "def check(candidate):\n    assert candidate(5) == 2 and candidate(-1) == -1",
    }
]  # fmt: skip
VERL = [
    {
        "data_source": "made", "ability": "code",
        "prompt": [{"role": "user", "content": f"Print {n} times the number."}],
        "reward_model": {"style": "rule", "ground_truth": json.dumps(
            {"inputs": ["2\n", "-1\n"], "outputs": [f"{2 * n}\n", f"{-n}\n"]})},
        "extra_info": {"index": n},
    }
    for n in (2, 3, 4)
]  # fmt: skip
# By a word of the question, a program that passes all of its tests.
SOLUTIONS = {
    "twice": "print(2 * int(input()))",
    "Add": "class Solution:\n    def plus(self, a, b):\n        return a + b",
    "square": "def square(n):\n    return n * n",
    "Half": "def half(n):\n    return n // 2",
}


def problems(path: str, **settings: Any) -> list[Problem]:
    [found] = Data(train=[path], **settings).source(lambda _: [0]).train
    return found.problems


@pytest.mark.parametrize("write", [jsonl, parquet])
@pytest.mark.parametrize(
    ("rows", "asked", "tests"),
    [
        (LCB, ["reads standard input", "Begin with this code:\n```python\nclass Solution"], [2, 2]),
        (MBPP, ["has to pass these tests:\n```python\nassert square(3) == 9"], [2]),
        (HUMANEVAL, ['"""Half of n, rounded down."""'], [1]),
        (VERL, ["Print 2 times", "Print 3 times", "Print 4 times"], [2, 2, 2]),
    ],
    ids=["livecodebench", "mbpp", "humaneval", "verl"],
)
def test_every_layout_is_read_without_a_word_about_it(
    tmp_path: Path, write: Any, rows: list, asked: list[str], tests: list[int]
) -> None:
    found = problems(write(tmp_path / f"x.{write.__name__}", rows))
    for problem, words, count in zip(found, asked, tests, strict=True):
        text = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]
        assert words in text and "canonical" not in text
        read = read_tests(problem.answer)
        assert len(getattr(read, "inputs", None) or getattr(read, "tests")) == count  # noqa: B009
    assert len({p.prompt_id for p in found}) == len(rows)
    with make_rewarder(RewardConfig(name="code"), Data(train=["x"])) as rewarder:
        rewarder.check(found)


def test_tests_that_cannot_be_read_and_tests_given_to_another_reward_are_refused(
    tmp_path: Path,
) -> None:
    broken = [{**MBPP[0], "test_list": []}, *MBPP]
    with pytest.raises(ConfigError, match=r"'Write a function to .* cannot be graded: .* no"):
        make_rewarder(RewardConfig(name="code"), Data(train=["x"])).check(
            problems(jsonl(tmp_path / "broken.jsonl", broken))
        )
    with pytest.raises(ConfigError, match=r'has test_list, .*set reward.name = "code"'):
        make_rewarder(RewardConfig(), Data(train=["x"])).check(
            problems(jsonl(tmp_path / "mbpp.jsonl", MBPP))
        )


class Programmer(HFEngine):
    """Solves a problem with chance 0.6, and prints 0 otherwise."""

    tokenizer: Any = None

    def generate(self, model, prompts, n, max_tokens, temperature, seed, top_p=1.0) -> Responses:
        rng, rows = random.Random(seed), []
        for ids in prompts:
            question = self.tokenizer.decode(ids)
            [program] = [p for word, p in SOLUTIONS.items() if word in question]
            for _ in range(n):
                text = f"```python\n{program if rng.random() < 0.6 else 'print(0)'}\n```"
                rows.append([*self.tokenizer.encode(text), self.tokenizer.eos_token_id])
        longest = max(map(len, rows))
        token_id = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
        mask = torch.tensor([[t < len(r) for t in range(longest)] for r in rows])
        prompt_id = torch.ones(len(rows), 1, dtype=torch.long)
        return Responses(
            prompt_id, prompt_id.bool(), token_id, mask, torch.zeros(len(rows), dtype=torch.bool)
        )


@isolated
def test_eval_grades_programs_and_keeps_what_became_of_each_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    files = [jsonl(tmp_path / f"{n}.jsonl", rows) for n, rows in
             (("lcb", LCB), ("mbpp", MBPP), ("humaneval", HUMANEVAL))]  # fmt: skip
    model = tiny_folder(tmp_path / "model", files[0])
    monkeypatch.setattr(Programmer, "tokenizer", AutoTokenizer.from_pretrained(model))
    monkeypatch.setitem(eval_files.ENGINES, "hf", Programmer)
    asked = Asked(tuple(files), ks=(1, 2, 4), samples=4, overrides=("reward.name=code",))
    found = evaluate_files(Path(model), asked, tmp_path / "out")
    rows = [{**row, "file": path.parent.name.partition("-")[0]}
            for path in sorted((tmp_path / "out").rglob("part-*.parquet"))
            for row in pq.read_table(path).to_pylist()]  # fmt: skip
    assert len(rows) == 4 * 4
    for row in rows:
        right = "print(0)" not in row["response"]
        assert row["accuracy"] == row["reward"] == right
        count = 1 if "half" in row["prompt"] else 2
        assert row["note"] == f"tests {'p' * count}" if right else "1 of" in row["note"]
        assert row["note"].startswith("tests p" if right else ("tests w", "tests e"))
    lcb = [[r["accuracy"] for r in rows if (r["file"], r["problem"]) == ("lcb", p)] for p in (0, 1)]
    assert 0 < sum(map(sum, lcb)) < 8
    table = {(r["benchmark"], r["k"]): r for r in found.rows}
    assert table["lcb", 1]["avg_at_k"] == pytest.approx(sum(map(sum, lcb)) / 8)
    expected = sum(pass_at_k(4, int(sum(c)), 2) for c in lcb) / 2
    assert table["lcb", 2]["pass_at_k"] == pytest.approx(expected)


@isolated
def test_a_run_on_a_verl_file_of_code_keeps_the_tests_in_its_samples(tmp_path: Path) -> None:
    data = parquet(tmp_path / "code.parquet", VERL)
    model = tiny_folder(tmp_path / "model", data)
    words = [
        "task.name=data", f"task.train={data}", f"task.validation={data}", "reward.name=code",
        f"model.path={model}", "rollout.prompts=2", "rollout.group_size=2", "rollout.max_tokens=8",
        "train.rollouts=1", "train.minibatches=1", "train.micro_batch=4", "eval.every=1",
        "eval.samples=1", "probe.fixed_responses=0", "eval.keep_answers=true",
    ]  # fmt: skip
    run = load(run_training(None, words, tmp_path / "run"))
    samples = run.samples()
    assert samples["note"].str.match(r"tests [we]-: test 1 of 2: ").all()
    assert set(run.evals()["avg_at_k"]) == {0.0}
    assert run.info["unconfirmed"] == ""
    for step in (0, 1):
        kept = read_answers(tmp_path / "run" / "eval" / "training" / f"step-{step:06d}" / "code")
        assert [r["problem"] for rows in kept.values() for r in rows] == [0, 1, 2]
        assert all(r["response"] is not None and r["note"] for rows in kept.values() for r in rows)


def test_a_completion_without_its_head_is_put_behind_the_prompt() -> None:
    from entropy_lab.train.rewards.code import completed

    tests = read_tests(HUMANEVAL[0])
    body = "    return n // 2\n"
    assert completed(body, tests) == HUMANEVAL[0]["prompt"] + body
    whole = "def half(n):\n    return n // 2"
    assert completed(whole, tests) == whole and completed("not ) python", tests) == "not ) python"
