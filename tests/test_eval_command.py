"""entropy-lab eval: the numbers by hand, every response kept, continued where it was stopped."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from data_files import jsonl, parquet, tiny_folder, verl_rows
from entropy_lab import cli, load
from entropy_lab.errors import RunError
from entropy_lab.train import eval_files
from entropy_lab.train.config import load_config
from entropy_lab.train.eval_files import Asked, evaluate_files
from entropy_lab.train.launch import run_training
from entropy_lab.train.model import load_model
from entropy_lab.train.rollout import HFEngine, Responses


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """once.parquet (5 problems), often.parquet (each of them 32 times), and a model."""
    folder = tmp_path_factory.mktemp("files")
    rows = verl_rows(5)
    text = parquet(folder / "once.parquet", rows)
    parquet(folder / "often.parquet", [row for row in rows for _ in range(32)])
    tiny_folder(folder / "model", text)
    return folder


class Guesser(HFEngine):
    """Answers "What is i + i?" right with chance 0.1, 0.3, ... for i = 0, 1, ...; notes calls."""

    tokenizer: Any = None
    calls: list[dict[str, Any]] = []

    def generate(self, model, prompts, n, max_tokens, temperature, seed, top_p=1.0) -> Responses:
        self.calls.append({"prompts": len(prompts), "n": n, "seed": seed})
        rng, rows = random.Random(seed), []
        for ids in prompts:
            i = int(re.search(r"What is (\d+)", self.tokenizer.decode(ids))[1])
            for _ in range(n):
                right = rng.random() < 0.1 + 0.2 * i
                text = f"Answer: {2 * i if right else 2 * i + 1}"
                rows.append([*self.tokenizer.encode(text), self.tokenizer.eos_token_id])
        longest = max(map(len, rows))
        token_id = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
        mask = torch.tensor([[t < len(r) for t in range(longest)] for r in rows])
        prompt_id = torch.ones(len(rows), 1, dtype=torch.long)
        ended = torch.zeros(len(rows), dtype=torch.bool)
        return Responses(prompt_id, prompt_id.bool(), token_id, mask, ended)


@pytest.fixture
def guesser(files: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The engine is the guesser; returns the calls that it notes."""
    config = load_config(None, [f"model.path={files}/model"])
    monkeypatch.setattr(Guesser, "tokenizer", load_model(config)[1])
    monkeypatch.setattr(Guesser, "calls", [])
    monkeypatch.setitem(eval_files.ENGINES, "hf", Guesser)
    return Guesser.calls


def answers(out: Path) -> pd.DataFrame:
    return pd.concat([pq.read_table(p).to_pandas() for p in sorted(out.rglob("part-*.parquet"))])


def evals(out: Path) -> pd.DataFrame:
    return pq.read_table(out / "evals.parquet").to_pandas()


def asking(files: Path, *names: str, **more: Any) -> Asked:
    return Asked(benchmarks=tuple(f"{files}/{name}" for name in names), **more)


def test_a_file_that_repeats_its_problems_gives_the_numbers_of_one_that_does_not(
    files: Path, tmp_path: Path, guesser: list
) -> None:
    asked = asking(files, "once.parquet", "often.parquet", ks=(1, 5, 32))
    evaluate_files(files / "model", asked, tmp_path)
    table = evals(tmp_path)
    once, often = (table[table["benchmark"] == name] for name in ("once", "often"))
    pd.testing.assert_frame_equal(
        once.drop(columns="benchmark").reset_index(drop=True),
        often.drop(columns="benchmark").reset_index(drop=True),
    )
    assert once["k"].tolist() == [1, 5, 32] and set(once["samples"]) == {32} == {*once["samples"]}
    assert set(once["n"]) == {5} and 0.3 < once["avg_at_k"].iloc[0] < 0.7


def test_the_numbers_are_those_of_the_rows_that_are_kept(
    files: Path, tmp_path: Path, guesser: list
) -> None:
    asked = asking(files, "once.parquet", ks=(10, 3, 1), samples=20)
    found = evaluate_files(files / "model", asked, tmp_path)
    rows = answers(tmp_path)
    assert len(rows) == 100 and rows[["problem", "sample"]].drop_duplicates().shape[0] == 100
    right = rows["response"] == "Answer: " + rows["answer"]
    assert (rows["accuracy"] == right).all() and (rows["reward"] == right).all()
    assert rows["prompt"].str.startswith("user: What is").all()
    assert set(rows["data_source"]) == {"sums"} and not rows["truncated"].any()
    counts = right.groupby(rows["problem"]).sum()
    assert (counts > 0).sum() >= 4 and counts.nunique() > 2
    for row in found.rows:
        k = row["k"]
        by_hand = [1 - math.comb(20 - c, k) / math.comb(20, k) for c in counts]
        assert row["pass_at_k"] == pytest.approx(np.mean(by_hand), rel=1e-12)
        assert row["avg_at_k"] == pytest.approx(right.mean(), rel=1e-12)
        assert row["avg_at_k_lo"] < row["avg_at_k"] < row["avg_at_k_hi"]
        assert row["entropy"] == pytest.approx(rows["entropy"].sum() / rows["length"].sum())
    assert [row["k"] for row in found.rows] == [1, 3, 10]
    assert evals(tmp_path).to_dict("records") == found.rows


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", [1, 2, 4])
def test_what_was_answered_before_a_kill_is_not_asked_again(
    files: Path, tmp_path: Path, guesser: list, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Two benchmarks of five problems in three calls each, killed within one of them."""
    asked = asking(files, "once.parquet", "often.parquet", ks=(4,), batch=8)
    evaluate_files(files / "model", asked, tmp_path / "whole")
    whole = list(guesser)
    assert [c["prompts"] for c in whole] == [2, 2, 1, 2, 2, 1]
    original = eval_files.ask

    def killing(*args):
        if len(guesser) == call:
            raise Killed
        return original(*args)

    guesser.clear()
    with monkeypatch.context() as patch:
        patch.setattr(eval_files, "ask", killing)
        with pytest.raises(Killed):
            evaluate_files(files / "model", asked, tmp_path / "cut")
    evaluate_files(files / "model", asked, tmp_path / "cut")
    assert guesser == whole  # each once, with its own seed
    contents = [
        {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for out in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert contents[0] == contents[1]
    guesser.clear()
    again = evaluate_files(files / "model", asked, tmp_path / "cut")
    assert not guesser
    assert {r["benchmark"]: r for r in again.rows} == {
        r["benchmark"]: r for r in evals(tmp_path / "whole").to_dict("records")
    }
    part = next((tmp_path / "cut").rglob("part-00000002*.parquet"))
    part.write_bytes(b"cut off")
    with pytest.raises(RunError, match="part-00000002.* is damaged .* its problems are asked ag"):
        evaluate_files(files / "model", asked, tmp_path / "cut")


def test_other_settings_and_weights_are_asked_anew_and_stored_beside(
    files: Path, tmp_path: Path, guesser: list
) -> None:
    out = tmp_path / "out"
    model = tmp_path / "model"
    shutil.copytree(files / "model", model)
    evaluate_files(model, asking(files, "once.parquet", ks=(2,)), out)
    evaluate_files(model, asking(files, "once.parquet", greedy=True), out)
    evaluate_files(model, asking(files, "once.parquet", ks=(1, 2), temperature=0.6, top_p=0.9), out)
    table = evals(out)
    drawn = ["temperature", "top_p", "samples", "k"]
    assert sorted(map(tuple, table[drawn].to_numpy().tolist())) == [
        (0.0, 1.0, 1, 1), (0.6, 0.9, 2, 1), (0.6, 0.9, 2, 2), (1.0, 1.0, 2, 2)
    ]  # fmt: skip
    assert len([p for p in (out / "answers").iterdir() if p.is_dir()]) == 3
    settings = [json.loads(p.read_text()) for p in (out / "answers").glob("*/_settings.json")]
    assert {s["temperature"] for s in settings} == {0.0, 0.6, 1.0}
    before = len(guesser)
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    evaluate_files(model, asking(files, "once.parquet", ks=(2,)), out)
    assert len(guesser) == before + 1  # another folder of weights, as far as one can see


def test_greedy_is_one_response_that_no_seed_changes(files: Path, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        asked = asking(files, "once.parquet", greedy=True, max_tokens=5, seed=seed)
        evaluate_files(files / "model", asked, tmp_path / str(seed))
        found.append(answers(tmp_path / str(seed)))
    pd.testing.assert_frame_equal(*found)
    sampled = asking(files, "once.parquet", max_tokens=5, ks=(1,))
    evaluate_files(files / "model", sampled, tmp_path / "s")
    assert (answers(tmp_path / "s")["response"] != found[0]["response"]).any()


@pytest.fixture(scope="module")
def run(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rollouts of two steps each, evaluated before, between and after."""
    return run_training(
        None,
        [
            "run.threads=1",
            "task.name=data",
            f"task.train={files}/once.parquet",
            f"task.validation={files}/often.parquet",
            f"model.path={files}/model",
            "rollout.prompts=4",
            "rollout.group_size=2",
            "rollout.max_tokens=6",
            "train.rollouts=2",
            "train.micro_batch=4",
            "train.checkpoint_every=1",
            "optimizer.lr=1e-2",
            "probe.enabled=false",
            "eval.every=1",
            "eval.samples=4",
            "eval.k=[1, 3]",
        ],
        tmp_path_factory.mktemp("runs") / "run",
    )


def test_a_run_and_its_checkpoints_give_the_numbers_of_the_training(run: Path) -> None:
    trained = load(run).evals()
    assert trained["step"].tolist() == [0, 0, 2, 2, 4, 4] and set(trained["k"]) == {1, 3}
    newest = evaluate_files(run, Asked())
    earlier = evaluate_files(run / "checkpoints" / "step-000002", Asked())
    assert newest.out == earlier.out == run / "eval"
    for step, found in ((4, newest), (2, earlier)):
        expected = trained[trained["step"] == step].reset_index(drop=True)
        pd.testing.assert_frame_equal(
            pd.DataFrame(found.rows)[[*expected]].astype(expected.dtypes), expected
        )
    assert trained["entropy"].nunique() == 3
    kept = pd.read_parquet(run / "eval" / "answers")
    assert len(kept) == 2 * 5 * 4
    assert sorted(set(evals(run / "eval")["step"])) == [2, 4]


def test_the_command_prints_a_table_and_writes_beside_the_run(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bench", f"{files}/once.parquet", f"{files}/often.parquet", "-k", "1,2", "-k", "4"]
    assert cli.run(["eval", str(run), *words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "once: 20 of 20 responses\noften: 20 of 20 responses" in said.err
    lines = said.out.splitlines()
    assert [line.split()[:3] for line in lines[1:7]] == [
        [name, "5", k] for name in ("once", "often") for k in ("1", "2", "4")
    ]
    assert lines[7].startswith("4 responses a problem, temperature 1, top_p 1, at most 6 tokens")
    assert lines[8] == f"numbers: {tmp_path}/out/evals.parquet; responses: {tmp_path}/out/answers"
    words += ["--greedy", "--json"]
    assert cli.run(["eval", str(run), *words[:3], "--greedy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == str(run / "eval") and found["rows"][0]["temperature"] == 0


def test_files_with_other_keys_are_read_with_set(files: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "own.jsonl", [{"q": "1+1?", "gold": "2"}])
    keys = ("task.prompt_key=q", "task.answer_key=gold", "task.chat=true")
    asked = Asked(benchmarks=(path,), overrides=keys, max_tokens=4)
    evaluate_files(files / "model", asked, tmp_path / "out")
    assert answers(tmp_path / "out")["prompt"].tolist() == ["user: 1+1?"]


def test_a_run_of_a_made_task_is_asked_what_it_holds_out(tmp_path: Path) -> None:
    from tiny import TINY

    more = ["task.held_out_share=0.3", "train.rollouts=1", "eval.problems=6"]
    out = run_training(None, [*TINY, *more], tmp_path / "run")
    found = evaluate_files(out, Asked(ks=(1, 2)))
    assert {(r["benchmark"], r["n"], r["samples"]) for r in found.rows} == {
        ("arithmetic_heldout", 6, 2)
    }
