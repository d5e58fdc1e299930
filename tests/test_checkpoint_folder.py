"""A checkpoint is a model folder, written without a second copy of the weights, best ones kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_lab import load
from entropy_lab.errors import RunError
from entropy_lab.record import create_run, write_evals
from entropy_lab.train import checkpoint
from entropy_lab.train.best import checkpoint_score
from entropy_lab.train.checkpoint import (
    best_checkpoint,
    complete_checkpoints,
    cut_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from entropy_lab.train.config import load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.tensor_files import file_digest, read_tensors, shards, write_tensors
from record_rows import eval_rows
from test_checkpoint import Tied, adamw, advance, assert_equal
from tiny import TINY, assert_same_run

SHORT = [*TINY, "train.rollouts=2", "train.checkpoint_every=1"]
IDS = torch.tensor([[2, 3, 12, 4, 13]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_training(None, SHORT, tmp_path_factory.mktemp("runs") / "run")


def last(run_dir: Path) -> Path:
    return complete_checkpoints(run_dir)[-1]


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "é": torch.arange(5),
        "half": torch.tensor(1.5, dtype=torch.bfloat16),
        "none": torch.zeros(0, 3),
        "flags": torch.tensor([True, False, True]),
        "turned": torch.randn(4, 6).t(),
    }
    found = write_tensors(tmp_path / "mine", tensors)
    plain = {name: t.contiguous() for name, t in tensors.items()}
    expected = save(plain, metadata={"format": "pt"})
    assert (tmp_path / "mine").read_bytes() == expected
    assert found == {"size": len(expected), "sha256": file_digest(tmp_path / "mine")}
    assert_equal(read_tensors(tmp_path / "mine"), plain)


def test_a_type_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot save the tensor z: .* no type complex128"):
        write_tensors(tmp_path / "x", {"z": torch.zeros(1, dtype=torch.complex128)})


def test_shards_keep_the_order_and_the_limit() -> None:
    tensors = {name: torch.zeros(n) for name, n in (("a", 2), ("b", 2), ("c", 9), ("d", 1))}
    assert [list(part) for part in shards(tensors, 16)] == [["a", "b"], ["c"], ["d"]]
    assert [list(part) for part in shards({}, 16)] == [[]]


def test_writing_takes_no_second_copy_of_the_model(tmp_path: Path) -> None:
    """Four tensors of 64 MB: a copy of them all would raise the peak by 256 MB."""
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from entropy_lab.train.tensor_files import write_tensors\n"
        "t = {str(i): torch.ones(4096, 4096).t() for i in range(4)}\n"
        "write_tensors(Path(sys.argv[1]), {'x': torch.ones(2, 2)})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_tensors(Path(sys.argv[1]), t)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150_000  # kB; transposed, so one tensor has to be copied


def test_transformers_opens_a_checkpoint(run: Path) -> None:
    folder = last(run)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in stored
    own = model.state_dict()
    assert all(torch.equal(own[name], t) for name, t in stored.items())
    assert set(own) - set(stored) == {"lm_head.weight"}
    assert tokenizer.decode(tokenizer.encode("1+2=")) == "1+2="
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    named = json.loads((folder / "state.json").read_text())["files"]
    assert set(named) == {p.name for p in folder.iterdir()} - {"state.json"}


def test_a_run_can_start_from_a_checkpoint(run: Path, tmp_path: Path) -> None:
    settings = [*SHORT, f"model.path={last(run)}", "optimizer.lr=0.0", "train.rollouts=1"]
    out = run_training(None, settings, tmp_path / "on")
    assert_equal(load_file(last(out) / "model.safetensors"), load_file(
        last(run) / "model.safetensors"))  # fmt: skip


def test_shards_are_read_by_transformers_and_by_a_resume(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20_000)
    out = run_training(None, [*SHORT, "train.rollouts=1"], tmp_path / "run")
    names = sorted(p.name for p in last(out).glob("model*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    whole = load_file(complete_checkpoints(run)[0] / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(last(out))
    assert all(torch.equal(model.state_dict()[name], t) for name, t in whole.items())
    monkeypatch.undo()
    run_training(None, ["train.rollouts=2"], out, resume=True)
    assert_same_run(run, out)


def test_a_checkpoint_of_an_earlier_version_goes_on(run: Path, tmp_path: Path) -> None:
    """Those had the weights, the optimizer and state.json alone, and no score in it."""
    out = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(last(out))
    folder = last(out)
    document = json.loads((folder / "state.json").read_text())
    del document["score"]
    for path in folder.iterdir():
        if path.suffix != ".safetensors" and path.name != "state.json":
            path.unlink()
            del document["files"][path.name]
    (folder / "state.json").write_text(json.dumps(document))
    assert set(document["files"]) == {p.name for p in folder.glob("*.safetensors")}
    run_training(None, [], out, resume=True)
    assert_same_run(run, out)


def saved(folder: Path, scores: list[float | None], keep: int = 1) -> list[str]:
    model = Tied()
    for step, score in enumerate(scores, start=1):
        save_checkpoint(folder, step, model, adamw(model), {}, keep=keep, score=score)
    return [path.name for path in complete_checkpoints(folder)]


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([0.1, 0.5, 0.2, 0.3], ["step-000002", "step-000004"], ("step-000002", 0.5)),
        ([0.5, 0.5, 0.2], ["step-000001", "step-000003"], ("step-000001", 0.5)),  # ties: first
        ([0.1, 0.2, 0.3], ["step-000003"], ("step-000003", 0.3)),
        ([-0.5, -0.7, None], ["step-000001", "step-000003"], ("step-000001", -0.5)),
        ([None, None], ["step-000002"], None),
    ],
)
def test_the_best_stays_beside_the_newest(tmp_path: Path, scores, kept, best) -> None:
    assert saved(tmp_path, scores) == kept
    found = best_checkpoint(tmp_path)
    assert (found and (found[0].name, found[1])) == best


def test_killed_before_the_old_ones_go_the_best_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, [0.5, 0.1])
    model = Tied()

    class Killed(BaseException):
        pass

    def killed(path: Path) -> None:
        if path.exists():
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_remove", killed)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, 3, model, adamw(model), {}, keep=1, score=0.9)
    assert [p.name[-1] for p in complete_checkpoints(tmp_path)] == ["1", "2", "3"]
    assert saved(tmp_path, [None]) == ["step-000003"]  # step 1 anew, and the rest is made up for


def test_cutting_leaves_what_a_resume_starts_from(tmp_path: Path) -> None:
    model = Tied()
    optimizer = adamw(model)
    advance(model, optimizer, range(1))
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, step, model, optimizer, {})
        save_checkpoint(tmp_path, step, model, optimizer, {}, kind="replay")
    (tmp_path / "checkpoints" / "step-000004.tmp").mkdir()
    gone = cut_checkpoints(tmp_path, 4)
    assert [str(p.relative_to(tmp_path)) for p in gone] == [
        "checkpoints/step-000006",
        "checkpoints/step-000004.tmp",
        "replay/step-000006",
    ]
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*"))
    assert left == [f"{k}/step-00000{n}" for k in ("checkpoints", "replay") for n in (2, 4)]
    load_checkpoint(tmp_path / "checkpoints" / "step-000004", model, optimizer)
    assert cut_checkpoints(tmp_path / "nowhere", 0) == []


def test_a_run_keeps_its_best_and_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*TINY, "train.checkpoint_every=1", "train.keep_checkpoints=1"]
    settings += ["train.keep_best=avg_at_k", "task.held_out_share=0.3", "eval.every=1"]
    settings += ["eval.problems=6", "eval.samples=4", "optimizer.lr=0.02"]
    out = run_training(None, settings, tmp_path / "run")
    evals = load(out).evals()
    values = evals[evals["step"] > 0].groupby("step")["avg_at_k"].first()
    best = int(values.idxmax())  # the first of equal ones
    assert [int(p.name[5:]) for p in complete_checkpoints(out)] == sorted({best, 12})
    found = best_checkpoint(out)
    assert found is not None and found[1] == pytest.approx(values.max(), rel=1e-12)
    said = capsys.readouterr().out
    assert f"best checkpoint by avg@k on all benchmarks: {found[0]} ({found[1]:.4g})" in said


def test_the_running_reward_is_the_mean_of_the_last_rollouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entropy_lab.train.best.ROLLOUTS", 2)
    out = run_training(None, [*TINY, "train.keep_best=reward"], tmp_path / "run")
    reward = load(out).metrics()["reward"].to_numpy()  # two steps a rollout
    for path in complete_checkpoints(out):
        step = int(path.name[5:])
        score = json.loads((path / "state.json").read_text())["score"]
        assert score == pytest.approx(reward[max(0, step - 4) : step].mean(), rel=1e-12)


def test_the_evaluation_of_these_weights_counts_and_no_other(tmp_path: Path) -> None:
    found = {("aime24", 4): 0.2, ("amc23", 4): 0.6, ("aime24", 8): 0.3, ("amc23", 8): 0.3}
    rows = [row for (name, step), mean in found.items() for row in eval_rows(step, name, mean)]
    write_evals(create_run(tmp_path / "run", {}, seeds=0), rows)
    words = ["train.keep_best=avg_at_k", "train.checkpoint_every=1", "eval.every=1"]
    words.append("task.held_out_share=0.1")

    def score(step: int, *more: str) -> float | None:
        return checkpoint_score(load_config(None, [*words, *more]), tmp_path / "run", step)

    assert score(4) == pytest.approx(0.4) and score(8) == pytest.approx(0.3)
    assert score(4, "train.best_on=aime24") == pytest.approx(0.2)
    assert score(6) is None and score(4, "train.best_on=math500") is None
    assert score(4, "train.keep_best=") is None
