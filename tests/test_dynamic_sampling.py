"""Dynamic sampling: groups with equal rewards are left out and more prompts drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from entropy_lab import load
from entropy_lab.analysis.doctor import Checkpoint, doctor
from entropy_lab.train.draws import choose_groups, draw_rollout, unequal, warnings_of
from entropy_lab.train.gather import Scored
from entropy_lab.train.launch import run_training
from entropy_lab.train.replay import replay
from entropy_lab.train.rescore import open_rescorer
from ragged import ragged
from tiny import TINY, assert_same_run

DYNAMIC = [*TINY, "rollout.dynamic_sampling=true", "rollout.max_draws=6", "train.rollouts=4"]
SETTINGS = [*DYNAMIC, "train.micro_tokens=40", "train.replay_every=2"]


def drawn(name: str, rewards: list[list[float]]) -> Scored:
    """Groups of 4 responses, told apart by their texts."""
    count = 4 * len(rewards)
    whole = ragged()
    rows = torch.arange(count) % 16
    return Scored(
        whole.responses.rows(rows),
        [SimpleNamespace(prompt_id=f"{name}{g}") for g in range(len(rewards))],  # type: ignore
        [f"{name}{i // 4}.{i % 4}" for i in range(count)],
        torch.tensor(rewards).flatten(),
        torch.tensor(rewards).flatten(),
        [""] * count,
        4,
    )


ONE, NONE, SOME, HALF = [1.0] * 4, [0.0] * 4, [0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.25]


def names(scored: Scored) -> list[Any]:
    return [p.prompt_id for p in scored.problems]


def test_groups_are_chosen_in_their_order_and_the_rest_is_left_out() -> None:
    a, b = drawn("a", [ONE, SOME, NONE]), drawn("b", [HALF, NONE, SOME])
    assert [unequal(a), unequal(b)] == [1, 2]
    chosen = choose_groups([a, b], 2)
    assert names(chosen) == ["a1", "b0"] and chosen.left_out is not None
    assert names(chosen.left_out) == ["a0", "a2", "b1", "b2"]  # b2: a surplus
    assert chosen.texts == [f"{g}.{i}" for g in ("a1", "b0") for i in range(4)]
    assert chosen.reward.tolist() == SOME + HALF
    assert chosen.facts == {
        "draws": 2, "groups_drawn": 6, "groups_unequal": 3, "groups_filled": 0
    }  # fmt: skip
    rows = [4, 5, 6, 7, 0, 1, 2, 3]
    for i, row in enumerate(rows):
        got, want = chosen.responses, ragged().responses
        assert torch.equal(got.token_id[i][got.mask[i]], want.token_id[row][want.mask[row]])
    assert int(chosen.responses.mask.sum(1).max()) == chosen.responses.token_id.shape[1]


def test_too_few_groups_are_filled_up_with_the_first_equal_ones() -> None:
    chosen = choose_groups([drawn("a", [ONE, SOME, NONE]), drawn("b", [NONE, ONE, ONE])], 3)
    assert names(chosen) == ["a0", "a1", "a2"] and chosen.facts is not None
    assert chosen.facts["groups_filled"] == 2 and chosen.facts["groups_unequal"] == 1
    said = warnings_of(chosen, 7)
    assert said == {
        "filled": "rollout 7: 2 of 3 groups have equal rewards after 2 draws (rollout.max_draws) "
        "and train nothing"
    }
    assert warnings_of(replace(chosen, facts={}), 7) == {}


def test_one_draw_with_enough_groups_is_itself() -> None:
    a = drawn("a", [SOME, HALF])
    chosen = choose_groups([a], 2)
    assert chosen.responses is a.responses and chosen.left_out is None and names(chosen) == names(a)


def parts_of(script: list[list[list[float]]], prompts: int, most: int) -> tuple[Any, list[tuple]]:
    asked: list[tuple] = []

    def sample(count: int, name: str, number: int) -> Scored:
        asked.append((count, name, number))
        made = drawn(f"{len(asked)}-", script[len(asked) - 1])
        return replace(made, facts={"prompts_cut": 1.0})

    rollout = SimpleNamespace(prompts=prompts, dynamic_sampling=True, max_draws=most)
    return SimpleNamespace(sample=sample, config=SimpleNamespace(rollout=rollout)), asked


def test_draws_go_on_until_there_are_enough_or_too_many() -> None:
    script = [[ONE, NONE], [SOME, NONE], [HALF, SOME], [SOME, SOME]]
    parts, asked = parts_of(script, 2, 10)
    chosen = draw_rollout(parts, 5)
    assert asked == [(2, "rollout", 5), (2, "rollout draw 1", 5), (2, "rollout draw 2", 5)]
    assert names(chosen) == ["2-0", "3-0"] and chosen.facts is not None
    assert chosen.facts["prompts_cut"] == 3.0
    parts, asked = parts_of(script, 2, 2)
    chosen = draw_rollout(parts, 5)
    assert len(asked) == 2 and names(chosen) == ["1-0", "2-0"]
    parts.config.rollout.dynamic_sampling = False
    parts, asked = parts_of(script, 2, 10)
    parts.config.rollout.dynamic_sampling = False
    assert names(draw_rollout(parts, 5)) == ["1-0", "1-1"] and len(asked) == 1


# --- through the real trainer -------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_training(None, SETTINGS, tmp_path_factory.mktemp("dynamic") / "run")


def test_what_is_trained_on_has_an_advantage(run: Path) -> None:
    log = load(run)
    samples, metrics, tokens = log.samples(), log.metrics(), log.tokens()
    trained = samples[samples["trained"]]
    assert (trained.groupby("rollout").size() == 16).all() and not samples["trained"].all()
    spread = trained.groupby("group")["reward"].nunique()
    assert (spread == 2).all() and (metrics["groups_filled"] == 0).all()
    assert (trained["advantage"] != 0).all()
    assert set(tokens["uid"]) == set(trained["uid"])
    assert samples["uid"].is_unique and (samples.groupby("group").size() == 4).all()
    assert (samples["uid"] // 2**32 == samples["rollout"]).all()
    sample = samples["uid"] % 2**32
    assert (sample[samples["trained"]] < 16).all() and (sample[~samples["trained"]] >= 16).all()
    left = samples[~samples["trained"]]
    for name in ("advantage", "inclusion_prob", "micro", "prompt_width"):
        assert left[name].isna().all(), name
    assert left[["reward", "prompt", "response", "length"]].notna().all(axis=None)
    per = metrics.groupby("rollout").first()
    assert (per["groups_drawn"] * 4 == samples.groupby("rollout").size()).all()
    assert (per["groups_drawn"] == per["draws"] * 4).all() and per["draws"].max() > 1
    groups = samples.groupby(["rollout", "group"])["reward"].nunique()
    assert ((groups > 1).groupby("rollout").sum() == per["groups_unequal"]).all()


def test_a_rollout_is_a_function_of_weights_and_seed(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    torch.manual_seed(5)
    run_training(None, [*SETTINGS, "train.rollouts=2"], out)
    run_training(None, ["train.rollouts=4"], out, resume=True)
    assert_same_run(run, out)
    rows = replay(run, {}, inner=2, deep=False).rows
    steps = load(run).steps().set_index("step")
    for _, row in rows.iterrows():
        assert row["grad_norm"] == steps.loc[row["point"] + row["inner"], "grad_norm"]


def test_the_first_draw_is_that_of_a_run_without(run: Path, tmp_path: Path) -> None:
    plain = run_training(None, [*TINY, "train.rollouts=1"], tmp_path / "run")
    one, other = load(plain).samples(), load(run).samples()
    first = other[other["rollout"] == 0]
    drawn_first = one[["prompt", "response", "reward"]].apply(tuple, axis=1)
    assert set(drawn_first) <= set(first[["prompt", "response", "reward"]].apply(tuple, axis=1))
    kept = one.groupby("group")["reward"].nunique() > 1
    rows = one[one["group"].map(kept)]
    assert 0 < len(rows) < 16
    assert first["response"].tolist()[: len(rows)] == rows["response"].tolist()


def test_doctor_finds_nothing_wrong(run: Path) -> None:
    found = doctor(run, Checkpoint(**open_rescorer(run)._asdict()))
    assert [f.check for f in found.of_level("error")] == []


def test_a_run_without_variance_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from entropy_lab.train.tasks.arithmetic import Arithmetic

    monkeypatch.setattr(Arithmetic, "reward", lambda self, response, problem: 1.0)
    more = ["train.rollouts=2", "rollout.max_draws=3"]
    run = load(run_training(None, [*DYNAMIC, *more], tmp_path / "run"))
    said = capsys.readouterr().err
    text = "rollout 0: 4 of 4 groups have equal rewards after 3 draws (rollout.max_draws)"
    assert said.count(text) == 1 and "rollout 1:" not in said
    assert (run.metrics()["groups_filled"] == 4).all() and (run.metrics()["draws"] == 3).all()
    assert (run.metrics()["grad_norm"] == 0).all()
    samples = run.samples()
    assert len(samples) == 2 * 3 * 16 and samples["trained"].sum() == 32
    assert samples["group"].nunique() == 24


def test_the_dry_run_says_how_many_may_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(None, DYNAMIC, tmp_path / "run", dry_run=True)
    assert "# dynamic sampling draws up to 96 responses for each rollout" in capsys.readouterr().out
