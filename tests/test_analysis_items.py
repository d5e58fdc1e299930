"""The tables behind single figures equal what pandas makes of the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from entropy_lab.analysis import analyze
from entropy_lab.analysis.benchmarks import AVERAGE, PROBLEMS, benchmarks
from entropy_lab.analysis.layers import layers, train_heldout
from entropy_lab.analysis.over_steps import mean, median, over_steps
from entropy_lab.analysis.tables import QUADRANTS, TABLES, frame
from entropy_lab.analysis.targets import targets
from entropy_lab.analysis.token_sums import train_rows
from entropy_lab.analysis.weights import weight_tables
from entropy_lab.analysis.words import MOST, REST
from entropy_lab.record import open_run, write_vocab
from synthetic import write_run

TEXTS = [" the", "\n", "$x$", *"abcdefghijklm"]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A run whose second half of responses has inclusion probability 1/2, and its training rows."""
    path = tmp_path_factory.mktemp("items") / "run"
    blocks = write_run(path, steps=12, deep_every=3, inclusion_prob=0.5, floor=1e-5)
    write_vocab(path, TEXTS)
    rows = pd.concat([pd.DataFrame(b) for b in blocks], ignore_index=True)
    rows = rows[((rows["flags"] & 32) == 0) & (rows["step"] >= 5)].reset_index(drop=True)
    first_half = (rows["uid"] & 0xFFFFFFFF) < 16
    return path, rows.assign(w=np.where(first_half, 1.0, 2.0))


@pytest.fixture(scope="module")
def tables(logged: tuple[Path, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return analyze([logged[0]]).tables


def test_every_word_has_the_weighted_sums_of_its_rows(logged, tables) -> None:
    rows, words = logged[1], tables["words"].set_index("token_id")
    whole, size = rows["w"].sum(), (rows["w"] * rows["dH"].abs()).sum()
    assert set(words.index) == set(rows["token_id"])
    for token, part in rows.groupby("token_id"):
        word, w = words.loc[token], part["w"]
        assert word["n"] == len(part) and word["text"] == TEXTS[int(str(token))]
        assert word["dH"] == pytest.approx((w * part["dH"]).sum() / w.sum())
        assert word["contribution"] == pytest.approx((w * part["dH"]).sum() / whole)
        assert word["abs_share"] == pytest.approx((w * part["dH"].abs()).sum() / size)
        deep = part[part["influence"].notna()]
        expected = (deep["w"] * deep["influence"]).sum() / deep["w"].sum()
        assert word["influence"] == pytest.approx(expected, rel=1e-5)
        assert word["influence_n"] == len(deep)
        assert word["dH_lo"] < word["dH"] < word["dH_hi"]
    assert words["contribution"].sum() == pytest.approx((rows["w"] * rows["dH"]).sum() / whole)
    assert words["abs_share"].is_monotonic_decreasing
    assert set(words["unit"]) == {"two-stage bootstrap: steps, then prompt groups"}


def test_words_beyond_the_most_share_one_row(logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entropy_lab.analysis.words.MOST", 4)
    assert MOST == 60
    from entropy_lab.analysis.words import words

    rows = train_rows(open_run(logged[0]), ["token_id", "logp", "influence"], 5)
    table, change = words(rows, [], True)
    assert len(table) == 5 and REST in set(table["token_id"]) and set(table["text"]) == {""}
    whole = logged[1]
    assert table["n"].sum() == len(whole)
    largest = whole.groupby("token_id").apply(lambda p: (p["w"] * p["dH"].abs()).sum())
    assert set(table["token_id"]) - {REST} == set(largest.nlargest(4).index)
    third = change[change["stage"] == "first third"].set_index("token_id")
    part = whole[whole["step"].isin([5, 6, 7])]
    for token in set(third.index) - {REST}:
        own = part[part["token_id"] == token]
        assert third.loc[token, "n"] == len(own)
        assert third.loc[token, "dH"] == pytest.approx(
            (own["w"] * own["dH"]).sum() / own["w"].sum()
        )


def test_thirds_of_few_steps_resample_prompt_groups_too(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=20, groups=4, group_size=2, length=4, held_out=False)
    from entropy_lab.analysis.words import words

    rows = train_rows(open_run(tmp_path / "run"), ["token_id", "logp"], 5)
    table, change = words(rows, [], False)
    assert set(table["unit"]) == {"bootstrap over steps"}
    assert set(change["unit"]) == {"two-stage bootstrap: steps, then prompt groups"}
    wide = change["dH_hi"] - change["dH_lo"]
    assert (wide[change["n"] > 10] > 0).all()


def test_the_distribution_counts_every_row_once(logged, tables) -> None:
    rows, found = logged[1], tables["distribution"]
    assert set(found["region"]) == {"all", *QUADRANTS}
    for _, part in found.groupby("region"):
        assert part["share"].sum() == pytest.approx(1)
    whole = found[found["region"] == "all"]
    assert whole["n"].sum() == len(rows) and whole["abs_share"].sum() == pytest.approx(1)
    size, sign = rows["dH"].abs(), np.sign(rows["dH"])
    for cell in whole.to_dict("records"):
        inside = rows[(sign == cell["sign"]) & (size >= cell["lo"]) & (size < cell["hi"])]
        assert cell["n"] == len(inside)
        assert cell["share"] == pytest.approx(inside["w"].sum() / rows["w"].sum())
    assert set(found["floor"]) != {np.nan}


def test_cells_of_the_plane_add_up_to_the_mean_change(logged, tables) -> None:
    rows, plane = logged[1], tables["plane"]
    overall = (rows["w"] * rows["dH"]).sum() / rows["w"].sum()
    assert plane["contribution"].sum() == pytest.approx(overall)
    assert plane["share"].sum() == pytest.approx(1)
    cell = plane[(plane["sign"] == "A > 0") & (plane["probability"] == "p[0.3,0.7)")]
    cell = cell[cell["entropy"] == "H[0.3,0.7)"].iloc[0]
    p = np.exp(rows["logp"].astype(np.float64))
    own = rows[(rows["advantage"] > 0) & (p >= 0.3) & (p < 0.7)]
    own = own[(own["entropy"] >= 0.3) & (own["entropy"] < 0.7)]
    assert cell["n"] == len(own)
    assert cell["dH"] == pytest.approx((own["w"] * own["dH"]).sum() / own["w"].sum())
    assert cell["likely"] == pytest.approx(
        own["w"][own["logp"] > -own["entropy"]].sum() / own["w"].sum()
    )


def test_weights_near_the_largest_are_pinned_and_the_tail_of_omega_is_told(tmp_path: Path) -> None:
    import duckdb

    from entropy_lab.analysis.token_sums import TrainRows

    rng = np.random.default_rng(0)
    omega = rng.normal(size=1000)
    omega[7] = 50.0
    rows = pd.DataFrame(
        {"step": 0, "advantage": 1.0, "weight": np.linspace(0.5, 1.0, 1000), "logp": -3.0,
         "dH_pred_steer": omega, "token_id": np.arange(1000), "w": 1.0, "grp": 0}
    )  # fmt: skip
    flat = rows.assign(step=1, weight=1.0, logp=-1.0)
    idle = flat.assign(step=2, advantage=0.0)
    everything = pd.concat([rows, flat, idle])
    relation = duckdb.from_df(everything)
    steps, sums = weight_tables(TrainRows(relation, [0, 1, 2], False), [], "steer")
    assert list(steps["step"]) == [0, 1] and list(steps["varies"]) == [True, False]
    first = steps.iloc[0]
    assert first["pinned"] == pytest.approx((rows["weight"] >= 0.99).mean())
    assert first["omega_peak"] == pytest.approx(50 / np.quantile(np.abs(omega), 0.99))
    assert first["argmax_token"] == 7 and first["argmax_probability"] == pytest.approx(np.exp(-3))
    row = sums.iloc[0]
    assert row["varying_steps"] == 1 and row["pinned"] == pytest.approx(first["pinned"])
    assert row["argmax_rare"] == 0.5 and row["n"] == 2000


def test_layers_keep_their_order_and_their_shares_add_up() -> None:
    parts = {"layer_head": [3.0, -1.0], "layer_02": [1.0, 1.0], "layer_10": [0.0, 2.0],
             "layer_embed": [-4.0, 0.0]}  # fmt: skip
    rows = pd.DataFrame({"step": [0, 1, 2], **{k: [*v, np.nan] for k, v in parts.items()}})
    found = layers(rows)
    assert list(found["layer"]) == ["embed", "02", "10", "head"]
    assert found["part"].tolist() == [-2.0, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(found["share"], [0.25, (1 / 8 + 1 / 4) / 2, 0.25, 5 / 16])
    assert found["share"].sum() == pytest.approx(1) and set(found["steps"]) == {2}
    assert layers(pd.DataFrame({"step": [0]})).empty


def test_train_and_heldout_are_compared_in_pairs_of_steps() -> None:
    curves = pd.DataFrame(
        {"age": [0, 1, 0, 1, 0], "dH_train": [-2.0, -3.0, -4.0, -1.0, -9.0],
         "dH_heldout": [-1.0, -2.0, -2.0, -1.0, np.nan]}
    )  # fmt: skip
    found = train_heldout(curves, "grpo").set_index("age")
    assert found.loc[-1, "steps"] == 4 and found.loc[0, "steps"] == 2
    assert found.loc[0, "ratio"] == pytest.approx(2.0)
    assert found.loc[-1, "difference"] == pytest.approx(-1.0)
    assert found.loc[-1, "ratio_lo"] <= 10 / 6 <= found.loc[-1, "ratio_hi"]


def test_targets_are_read_from_the_method_and_missed_by_the_measured_rest() -> None:
    info = {"method": {"name": "entropy_target", "target": -1e-3}}
    rows = pd.DataFrame(
        {"step": range(4), "method_predicted": [-1e-3] * 3 + [-5e-4], "method_dose": 0.5,
         "method_feasible": [1.0, 1.0, 1.0, 0.0], "dH_train": [-1.2e-3, -0.9e-3, -0.9e-3, 0.0]}
    )  # fmt: skip
    steps, sums = targets(info, rows)
    assert steps["realised"].tolist() == rows["dH_train"].tolist()
    reached, other = sums.set_index("kind").loc["feasible"], sums.set_index("kind").iloc[1]
    assert reached["steps"] == 3 and reached["missed"] == pytest.approx(0, abs=1e-12)
    assert other["missed"] == pytest.approx(1e-3) and np.isnan(other["missed_lo"])
    assert targets({"method": {"name": "grpo"}}, rows)[0].empty
    assert targets({"method": {"name": "adaptive_entropy", "target": 0.3}}, rows.iloc[:, :1])[
        1
    ].empty


def evaluation(name: str, method: str, benchmark: str, score: float, step: int = 8, k: int = 1):
    return {"level": "run", "name": name, "method": method, "seeds": 1, "benchmark": benchmark,
            "step": step, "n": 30, "samples": 8, "k": k, "avg_at_k": score, "pass_at_k": score,
            "pass_at_k_se": 0.03, "temperature": 1.0, "top_p": 1.0, "max_tokens": 9}  # fmt: skip


def test_benchmarks_are_of_the_last_evaluation_and_averaged_over_sets() -> None:
    rows = [evaluation("a0", "grpo", "aime", 0.1, step=0)]
    for seed, (aime, math) in enumerate([(0.2, 0.6), (0.4, 0.8)]):
        rows += [
            evaluation(f"a{seed}", "grpo", "aime", aime),
            evaluation(f"a{seed}", "grpo", "math", math),
        ]
        rows += [evaluation(f"a{seed}", "grpo", "aime", aime, k=8)]
    rows += [evaluation("b0", "grpo", "aime", 0.5), evaluation("b0", "grpo", "math", 0.9)]
    found = benchmarks(frame("pass_at_k", rows), {"a0": "small", "a1": "small", "b0": "large"})
    small = found[found["model"] == "small"].set_index("benchmark")
    assert small["accuracy"].tolist() == pytest.approx([0.3, 0.7, 0.5])
    assert set(small["seeds"]) == {2} and small.loc["aime", "step"] == 8
    assert (small["accuracy_lo"] < small["accuracy"]).all()
    large = found[found["model"] == "large"].set_index("benchmark")
    assert large.loc[AVERAGE, "accuracy"] == pytest.approx(0.7)
    assert set(large["unit"]) == {PROBLEMS}
    half = large.loc["aime", "accuracy_hi"] - large.loc["aime", "accuracy"]
    assert half == pytest.approx(0.03 * 2.045, rel=1e-3)  # Student's t, 29 degrees
    of_both = large.loc[AVERAGE, "accuracy_hi"] - large.loc[AVERAGE, "accuracy"]
    assert of_both == pytest.approx(half / 2**0.5, rel=1e-3)
    assert benchmarks(frame("pass_at_k", []), {}).empty


def test_intervals_over_steps_hold_the_mean_and_widen_to_students_t() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for i in range(200):
        value, low, high = over_steps(rng.normal(size=(12, 1)), mean, seed=i)
        inside += low[0] <= 0 <= high[0]
    assert 0.91 <= inside / 200 <= 0.99
    value, low, high = over_steps(np.array([[1.0]]), median)
    assert value[0] == 1 and np.isnan(low[0]) and np.isnan(high[0])


def test_a_log_without_dh_has_these_tables_empty(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=6, probed=False)
    found = analyze([tmp_path / "run"]).tables
    for name in ("distribution", "plane", "words", "words_change", "weight_steps", "weights"):
        assert found[name].empty and list(found[name].columns) == list(TABLES[name])
    assert len(found["train_heldout"])
