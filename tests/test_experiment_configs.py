"""The settings under experiments/configs: the loader takes them, and their numbers are right."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from entropy_lab import load
from entropy_lab.train.config import load_config
from entropy_lab.train.dry_run import describe
from entropy_lab.train.launch import run_training
from experiments.run import EXPERIMENTS, PAPER, TABLE_3
from experiments.sweep import CONFIGS, jobs_of
from tiny import TINY

CODE = CONFIGS / "paper" / "code.toml"
PAPER_FILES = sorted({*(CONFIGS / "paper").glob("*.toml")} - {CODE})
EVERY = sorted(CONFIGS.rglob("*.toml"))


@pytest.mark.parametrize("path", EVERY, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_the_loader_takes_every_file(path: Path) -> None:
    assert load_config(path).run.name


@pytest.mark.parametrize("path", PAPER_FILES, ids=lambda p: p.stem)
def test_the_papers_numbers(path: Path) -> None:
    """arXiv 2510.10150: 512 x 8 responses, 32 prompts an update, lr 1e-6, 1024 + 3072 tokens."""
    config, text = load_config(path), tomllib.loads(path.read_text(encoding="utf-8"))
    r, t, o = config.rollout, config.train, config.optimizer
    assert (r.prompts, r.group_size, r.max_tokens, r.temperature) == (512, 8, 3072, 1.0)
    assert text["rollout"]["max_prompt_tokens"] == 1024
    assert r.prompts // t.minibatches == 32 and t.minibatches == 16 and t.micro_batch == 8
    assert (o.lr, o.schedule, o.warmup_steps, t.rollouts) == (1e-6, "constant", 0, 200)
    assert (t.keep_best, t.best_on, config.eval.top_p) == ("avg_at_k", "aime24", 0.7)
    assert (config.eval.samples, config.eval.problems) == (32, 0)
    assert config.reward.name == "math" and r.engine == "vllm"
    assert config.eval.every % t.checkpoint_every == 0
    assert any(t.best_on in Path(p).stem for p in text["task"]["validation"])
    extreme = {"clip_low": 0.99, "clip_high": 5.0}
    assert config.method.params == (extreme if path.stem == "extreme_clipping" else {})
    assert len(path.read_text().splitlines()) <= 35


def test_the_papers_numbers_for_programs() -> None:
    """The same training, judged by tests: avg@4 on LiveCodeBench-v5, 6 s a test."""
    config, maths = load_config(CODE), load_config(PAPER_FILES[-1])
    for name in ("prompts", "group_size", "max_tokens", "max_prompt_tokens", "temperature"):
        assert getattr(config.rollout, name) == getattr(maths.rollout, name)
    assert (config.train.rollouts, config.train.minibatches) == (200, 16)
    assert (config.reward.name, config.reward.timeout, config.eval.samples) == ("code", 6.0, 4)
    assert set(EXPERIMENTS["paper/code"].arms) == {"grpo", "steer"}


def test_every_model_has_every_method_of_the_table() -> None:
    assert {p.stem for p in PAPER_FILES} == {*PAPER, "extreme_clipping"}
    assert len(TABLE_3) == 10  # of twelve rows two are models of others
    for path in PAPER_FILES:
        name = f"paper/{path.stem}"
        arms = EXPERIMENTS[name].arms
        jobs = jobs_of(name, arms, [0], Path("runs"))
        assert [job.config for job in jobs] == [path] * len(arms)
        for arm, job in zip(arms, jobs, strict=True):
            config = load_config(path, list(job.overrides))
            assert config.run.name == arm
            assert config.method.name == ("entropy_bonus" if arm == "entropy_loss" else arm)
            assert job.out == Path("runs") / name / f"{arm}-s0"


def test_the_smoke_test_has_the_shape_of_a_real_model() -> None:
    config = load_config(CONFIGS / "gpu_smoke.toml")
    said = describe(config, Path("run"))
    # 24 (4 x 896^2 + 3 x 896 x 4864 + 3 x 896 + 2 x 896) + 896 + 151936 x 896, tied
    assert "24 layers of 896, vocabulary 151,936, 527.1 M parameters" in said
    assert config.model.warmup_iterations == 0 and not config.model.path


def test_rows_beyond_the_tokenizer_are_sampled_and_decoded_as_nothing(tmp_path: Path) -> None:
    words = [*TINY, "model.vocab=400", "model.warmup_iterations=0", "train.rollouts=1"]
    run = load(run_training(None, words, tmp_path / "run"))
    drawn = run.tokens()["token_id"]
    assert 15 < drawn.max() < 400
    # Of 400 tokens 13 are characters.
    assert run.samples()["response"].str.len().sum() < 0.1 * len(drawn)
    # An untrained head is nearly uniform over all of its rows.
    assert run.steps()["entropy_token_mean"].iloc[0] == pytest.approx(np.log(400), rel=0.02)
