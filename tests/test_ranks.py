"""Two ranks, with whole or split weights, take the very steps that one process takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from entropy_lab import load
from entropy_lab.analysis.doctor import doctor
from entropy_lab.train.checkpoint import complete_checkpoints
from entropy_lab.train.launch import run_training
from ranks import Job, run_ranks
from tiny import TINY, metrics, weights

# 8 responses a step in micro-batches of 3: rank 0 has two of them, rank 1 has one.
MAIN = [
    *TINY,
    "method.name=steer",
    "train.rollouts=2",
    "train.micro_batch=3",
    "train.checkpoint_every=1",
    "train.replay_every=2",
    "probe.deep_every=2",
    "probe.floor_every=2",
    "probe.fixed_responses=4",
    "task.held_out_share=0.3",
    "eval.every=1",
    "eval.problems=6",
    "eval.samples=4",
]
PLAIN = [
    *TINY,
    "task.held_out_share=0.3",
    "train.rollouts=2",
    "train.micro_batch=2",
    "probe.fixed_responses=0",
    "probe.deep_every=0",
]
METHODS = {
    "clip_cov": [
        "method.name=clip_cov",
        "method.ratio=0.1",
        "method.lb=0.0",
        "method.ub=9.0",
        "probe.fraction=0.5",
    ],
    "kl_cov": ["method.name=kl_cov", "method.ratio=0.1", "train.micro_tokens=40"],
    "bapo": ["method.name=bapo", "optimizer.name=sgd", "optimizer.clip_norm=0.1"],
    "pos_adv_reweight": ["method.name=pos_adv_reweight", "rollout.dynamic_sampling=true"],
}
NOISE = {"gradient_audit", "floor", "bias", "other_term", "identity_error"}  # of rounding alone
MEASURED = {"dH", "dlogp"} | {f"{k}_{s}" for s in ("train", "heldout", "fixed")
                              for k in ("dH", "local", "visitation")}  # fmt: skip
MEASURED |= {f"dH_pred_{k}" for k in ("head", "last_block", "slope", "second_order")}
LATER = ["train.rollouts=3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the tests below compare, made by one process and by one pair of ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.set_num_threads(1)
    run_training(None, MAIN, folder / "one")
    for name, settings in METHODS.items():
        run_training(None, [*PLAIN, *settings], folder / f"{name}-1")
    shutil.copytree(folder / "one", folder / "up")
    split = "train.parallel=fsdp"
    jobs = [Job(MAIN, folder / "ddp"), Job([*MAIN, split], folder / "fsdp")]
    jobs += [Job([*PLAIN, *s], folder / f"{name}-2") for name, s in METHODS.items()]
    run_ranks(jobs, 2)
    # In new processes: torch may keep a device mesh of one process group for the next.
    run_ranks([Job([*LATER, split], folder / "up", resume=True)], 2)
    for name in ("one", "fsdp"):
        shutil.copytree(folder / name, folder / f"{name}-on")
        run_training(None, LATER, folder / f"{name}-on", resume=True)
    return folder


def assert_equal_runs(a: Path, b: Path) -> None:
    """Equal in every table and number to 1e-5 of the largest value of a column."""
    one, other = load(a), load(b)
    for table in ("steps", "tokens", "samples", "fixed", "evals"):
        file = {"fixed": "probe/fixed.parquet", "evals": "evals.parquet"}.get(table, "")
        if not (a / file).exists():
            assert not (b / file).exists()
            continue
        left, right = getattr(one, table)(), getattr(other, table)()
        assert_equal_tables(left, right, table)
    lines, others = (pd.DataFrame(metrics(run)) for run in (a, b))
    assert_equal_tables(lines, others, "metrics")
    mine, theirs = weights(a), weights(b)
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[k], theirs[k], rtol=0, atol=1e-6) for k in mine)


def assert_equal_tables(left: pd.DataFrame, right: pd.DataFrame, table: str) -> None:
    keys = [k for k in ("step", "micro", "uid", "pos") if k in left]
    left, right = (t.sort_values(keys, kind="stable").reset_index(drop=True) for t in (left, right))
    assert set(left) == set(right) and len(left) == len(right), table
    for name in left:
        a, b = left[name], right[name]
        if a.dtype.kind != "f":
            assert a.astype(str).equals(b.astype(str)), (table, name)
            continue
        assert a.isna().equals(b.isna()), (table, name)
        if name in NOISE:
            assert max(a.abs().max(), b.abs().max()) < 1e-4, (table, name)
            continue
        scale = a.abs().fillna(0.0).max()
        # Split weights read rows whole, one process their prompts once: other roundings.
        bound = (1e-4 if name == "slope_error" else 2e-5) * scale
        if name in MEASURED or name.startswith(("dH_pos", "dH_neg", "dH_zero")):
            bound += 1e-6  # a few roundings of an entropy of order 1
        assert (a - b).abs().fillna(0.0).max() <= bound, (table, name)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_measure_what_one_process_does(runs: Path, kind: str) -> None:
    """Metrics, dH, plans, path forms, influence, held-out and fixed rows, evaluations, weights."""
    assert_equal_runs(runs / "one", runs / kind)
    assert load(runs / kind).info["ranks"] == [[0, 2]]


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_make_the_plan_of_one(runs: Path, name: str) -> None:
    """Thresholds, top-k, random choices and controllers are of the whole minibatch."""
    one, two = runs / f"{name}-1", runs / f"{name}-2"
    assert_equal_runs(one, two)
    weight, flags = (load(two).tokens()[k] for k in ("weight", "flags"))
    assert (weight != 1).any() or (flags != 0).any() or name == "bapo"


def test_each_row_is_written_once_by_the_rank_that_measured_it(runs: Path) -> None:
    for kind in ("ddp", "fsdp"):
        run = load(runs / kind)
        parts = [pd.read_parquet(path) for path in run.token_files]
        ranks = [int(path.parent.name.removeprefix("rank=")) for path in run.token_files]
        assert set(ranks) == {0, 1}
        keys = pd.concat([p[["step", "uid", "pos"]] for p in parts])
        assert not keys.duplicated().any() and len(keys) == len(load(runs / "one").tokens())
        held_out = 32
        for rank, part in zip(ranks, parts, strict=True):
            own = part[(part["flags"] & held_out) == 0]
            assert (own["micro"] % 2 == rank).all()
        samples = [pd.read_parquet(f) for f in (runs / kind / "samples").glob("rank=*/*.parquet")]
        assert len(samples) >= 2 and not pd.concat(samples)["uid"].duplicated().any()


def test_a_checkpoint_loads_on_another_number_of_ranks(runs: Path) -> None:
    assert_equal_runs(runs / "one-on", runs / "fsdp-on")  # 2 ranks, then 1
    assert_equal_runs(runs / "one-on", runs / "up")  # 1 rank, then 2
    assert load(runs / "up").info["ranks"] == [[0, 1], [4, 2]]
    assert load(runs / "fsdp-on").info["ranks"] == [[0, 2], [4, 1]]


def test_a_checkpoint_of_two_ranks_is_a_model_without_pickles(runs: Path) -> None:
    from transformers import AutoModelForCausalLM

    last = complete_checkpoints(runs / "fsdp")[-1]
    model = AutoModelForCausalLM.from_pretrained(last)
    saved = weights(runs / "one")
    assert all(torch.allclose(model.state_dict()[k], v, atol=1e-6) for k, v in saved.items())
    kinds = {path.suffix for path in (runs / "fsdp").rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".jsonl", ".parquet", ".jinja", ".lock", ""}


@pytest.mark.parametrize("name", ["ddp", "fsdp", "up", "fsdp-on"])
def test_the_log_of_several_ranks_is_believable(runs: Path, name: str) -> None:
    found = doctor(runs / name)
    assert not [f for f in found.findings if f.level == "error"]
    assert load(runs / name).info["world_size"] == 2
