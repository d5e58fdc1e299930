"""`analyze` on runs with planted correlations, against scipy on the very same rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from entropy_lab import types
from entropy_lab.analysis import Analysis, analyze, read_tables, tables
from entropy_lab.analysis.rows import CODES, MEMBER, STRATA, Groups, split
from entropy_lab.analysis.tables_runs import OF_SEVERAL
from entropy_lab.stats import QUADRANTS, quadrant
from planted import unmerged
from synthetic import PLANTED, Plan, write_run

Blocks = list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Blocks, Analysis]:
    path = tmp_path_factory.mktemp("runs") / "planted"
    blocks = write_run(path, steps=24, groups=8, group_size=4, length=12, tail=0.01, seed=3)
    return path, blocks, analyze([path])


def rows_of(found: Analysis, **equal: object) -> pd.DataFrame:
    data = found.tables["validation"]
    for name, value in equal.items():
        data = data[data[name] == value]
    return data


def one(found: Analysis, **equal: object) -> pd.Series:
    (row,) = (r for _, r in rows_of(found, **equal).iterrows())
    return row


def training(blocks: Blocks) -> Blocks:
    return [b for b in blocks if b["flags"][0] == 0 and b["step"][0] >= tables.FIRST_STEP]


@pytest.mark.parametrize("name", PLANTED)
def test_within_step_numbers_are_medians_of_scipys(planted, name: str) -> None:
    _, blocks, found = planted
    pcc, srcc, slope, mse, trimmed = [], [], [], [], []
    for b in training(blocks):
        x, y = (b[k].astype(np.float64) for k in (f"dH_pred_{name}", "dH"))
        keep = np.abs(b["dH"]) <= np.quantile(np.abs(b["dH"]), 0.99)
        pcc.append(stats.pearsonr(x, y)[0])
        trimmed.append(stats.pearsonr(x[keep], y[keep])[0])
        srcc.append(stats.spearmanr(x, y)[0])
        slope.append(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])
        mse.append(((x - y) ** 2).mean())
    row = one(found, scope="within_step", stratum="all", predictor=name)
    for column, values in (
        ("pcc", pcc), ("pcc_trim99", trimmed), ("srcc", srcc), ("slope", slope), ("mse", mse)
    ):  # fmt: skip
        assert row[column] == pytest.approx(np.median(values), rel=1e-6), column
    assert row["steps"] == len(pcc) == 19
    assert row["n"] == sum(len(b["dH"]) for b in training(blocks))
    assert row["pcc_lo"] < row["pcc"] < row["pcc_hi"]


@pytest.mark.parametrize("name", PLANTED)
def test_pooled_numbers_are_scipys_on_all_rows(planted, name: str) -> None:
    _, blocks, found = planted
    x, y = (
        np.concatenate([b[k] for b in training(blocks)]).astype(np.float64)
        for k in (f"dH_pred_{name}", "dH")
    )
    keep = np.abs(y) <= np.quantile(np.abs(y), 0.99)
    row = one(found, scope="pooled", stratum="all", predictor=name)
    assert row["pcc"] == pytest.approx(stats.pearsonr(x, y)[0], rel=1e-6)
    assert row["pcc_trim99"] == pytest.approx(stats.pearsonr(x[keep], y[keep])[0], rel=1e-5)
    assert row["srcc"] == pytest.approx(stats.spearmanr(x, y)[0], rel=1e-6)
    assert row["sign"] == pytest.approx((np.sign(x) == np.sign(y)).mean(), rel=1e-6)
    assert row["mse"] == pytest.approx(((x - y) ** 2).mean(), rel=1e-6)
    # Trimming the wild one per cent gives back what was planted.
    assert row["pcc_trim99"] == pytest.approx(PLANTED[name], abs=0.05)
    assert abs(row["pcc"]) < row["pcc_trim99"]


def test_within_group_numbers_are_of_deviations_from_group_means(planted) -> None:
    _, blocks, found = planted
    values = []
    for b in training(blocks):
        data = pd.DataFrame({"x": b["dH_pred_steer"], "y": b["dH"]}).astype(np.float64)
        group = (b["uid"] & 0xFFFFFFFF) // Plan.group_size
        deviations = data - data.groupby(group).transform("mean")
        values.append(stats.pearsonr(deviations["x"], deviations["y"])[0])
    row = one(found, scope="within_group", stratum="all", predictor="steer")
    assert row["pcc"] == pytest.approx(np.median(values), rel=1e-6)


def test_strata_split_the_rows_as_stats_does(planted) -> None:
    _, blocks, found = planted
    for name, low, high in (("p[0.3,0.7)", 0.3, 0.7), ("p[0.99,1]", 0.99, 1.0)):
        rows = sum(
            int(((p >= np.float32(low)) & ((p < high) | (high == 1))).sum())
            for p in (np.exp(b["logp"].astype(np.float64)) for b in training(blocks))
        )
        table = found.tables["regions"]
        assert table[table["bin"] == name]["n"].item() == rows
    counts = dict.fromkeys(QUADRANTS, 0)
    for b in training(blocks):
        index = quadrant(*(torch.as_tensor(b[k]) for k in ("advantage", "logp", "entropy")))
        for i, name in enumerate(QUADRANTS):
            counts[name] += int((index == i).sum())
    measured = found.tables["quadrants"].query("quantity == 'dH'")
    assert dict(zip(measured["quadrant"], measured["n"], strict=True)) == counts
    assert tables.QUADRANTS == QUADRANTS
    assert (tables.HELD_OUT, tables.NOT_SCORABLE) == (types.HELD_OUT, types.NOT_SCORABLE)


def test_every_row_lies_in_one_stratum_of_each_kind() -> None:
    assert MEMBER.shape == (CODES, len(STRATA))
    assert (MEMBER[:, 0] == 1).all()
    assert (MEMBER[:, 1:6].sum(1) == 1).all()
    assert (MEMBER[:, 6:12].sum(1) == 1).all()
    assert (MEMBER[:, 12:].sum(1) == 1).all()


def test_contributions_of_quadrants_add_up_to_the_mean_change(planted) -> None:
    _, blocks, found = planted
    data = found.tables["quadrants"]
    for quantity in ("dH", "softmax"):
        column = "dH" if quantity == "dH" else f"dH_pred_{quantity}"
        mean = np.concatenate([b[column] for b in training(blocks)]).astype(np.float64).mean()
        here = data[data["quantity"] == quantity]
        assert here["contribution"].sum() == pytest.approx(mean, rel=1e-6, abs=1e-12)
        assert here["share"].sum() == pytest.approx(1)
        assert (here["contribution_lo"] <= here["contribution"]).all()
        assert (here["contribution_hi"] >= here["contribution"]).all()


def test_density_counts_every_row_inside_its_ranges_once(planted) -> None:
    _, blocks, found = planted
    panel = found.tables["density_panels"].query("predictor == 'cov'").iloc[0]
    x, y = (np.concatenate([b[k] for b in training(blocks)]) for k in ("dH_pred_cov", "dH"))
    edges = [np.linspace(-panel[r], panel[r], panel["bins"] + 1) for r in ("x_range", "y_range")]
    expected, _, _ = np.histogram2d(x, y, edges)
    cells = found.tables["density"].query("predictor == 'cov'")
    # Rows on the very edge of a bin may fall on either side in float32.
    assert cells["count"].sum() == panel["shown"]
    assert panel["shown"] == pytest.approx(expected.sum(), abs=2)
    got = np.zeros_like(expected)
    at = [
        np.rint((cells[c] / panel[r] + 1) * panel["bins"] / 2 - 0.5).astype(int)
        for c, r in (("x", "x_range"), ("y", "y_range"))
    ]
    got[tuple(at)] = cells["count"]
    assert np.abs(got - expected).sum() <= 6


def test_held_out_rows_are_a_stratum_of_their_own(planted) -> None:
    _, blocks, found = planted
    values = [
        stats.pearsonr(b["dH_pred_softmax_state"].astype(float), b["dH"].astype(float))[0]
        for b in blocks
        if b["flags"][0] == 32 and b["step"][0] >= tables.FIRST_STEP
    ]
    row = one(found, scope="within_step", stratum="heldout", predictor="softmax_state")
    assert row["pcc"] == pytest.approx(np.median(values), rel=1e-6)


def test_unique_states_and_tokens_count_training_rows(planted) -> None:
    _, blocks, found = planted
    rows = [b for b in blocks if b["flags"][0] == 0]
    states = np.unique(np.concatenate([b["state"] for b in rows]))
    summary = found.tables["summary"].iloc[0]
    assert summary["tokens"] == sum(len(b["dH"]) for b in rows)
    assert summary["unique_states"] == len(states)


def test_row_order_does_not_matter(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=8)
    before = analyze([tmp_path / "run"]).tables["validation"]
    rng = np.random.default_rng(0)
    for path in (tmp_path / "run" / "tokens").rglob("*.parquet"):
        table = pq.read_table(path)
        order = np.lexsort((rng.random(table.num_rows), table["step"].to_numpy()))
        pq.write_table(table.take(order), path, row_group_size=1000)
    after = analyze([tmp_path / "run"]).tables["validation"]
    pd.testing.assert_frame_equal(before, after, rtol=1e-9)


def test_rows_are_weighted_by_inverse_inclusion_probability(tmp_path: Path) -> None:
    blocks = write_run(tmp_path / "run", steps=6, inclusion_prob=0.25, held_out=False)
    found = analyze([tmp_path / "run"])
    (last,) = training(blocks)
    size = Plan.groups * Plan.group_size
    weight = np.where((last["uid"] & 0xFFFFFFFF) < size // 2, 1.0, 4.0)
    x, y = (last[k].astype(np.float64) for k in ("dH_pred_steer", "dH"))
    cov = np.cov(x, y, aweights=weight, ddof=0)
    row = one(found, scope="within_step", stratum="all", predictor="steer")
    assert row["pcc"] == pytest.approx(cov[0, 1] / math.sqrt(cov[0, 0] * cov[1, 1]), rel=1e-6)
    quadrants = found.tables["quadrants"].query("quantity == 'dH'")
    mean = np.average(y, weights=weight)
    assert quadrants["contribution"].sum() == pytest.approx(mean, rel=1e-6)


def test_rows_that_cannot_be_scored_are_left_out() -> None:
    columns = {
        "uid": np.array([1, 1, 2, 2]), "flags": np.array([0, 128, 32, 0], np.uint8),
        "advantage": np.ones(4, np.float32), "logp": -np.ones(4, np.float32),
        "entropy": np.ones(4, np.float32),
        "dH": np.array([1, 2, 3, np.nan], np.float32),
        "dH_pred_a": np.array([1, 2, np.nan, 4], np.float32),
    }  # fmt: skip
    train, held_out = split(0, columns, Groups.of({}), 0.5)
    assert train.y.tolist() == [1] and held_out.y.tolist() == [3]
    assert list(train.x) == ["a"] and not held_out.x  # one NaN makes the form absent there
    assert train.weight.tolist() == [2.0]


def test_a_prediction_that_is_missing_in_some_steps_is_judged_on_the_others(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run"
    with unmerged():
        blocks = write_run(path, steps=12, flush_steps=4)
    first = sorted((path / "tokens").rglob("*.parquet"))[1]  # steps 4 to 7
    pq.write_table(pq.read_table(first).drop_columns(["dH_pred_cov"]), first)
    found = analyze([path])
    row = one(found, scope="within_step", stratum="all", predictor="cov")
    values = [
        stats.pearsonr(b["dH_pred_cov"].astype(float), b["dH"].astype(float))[0]
        for b in training(blocks)
        if b["step"][0] >= 8
    ]
    assert row["steps"] == 4
    assert row["pcc"] == pytest.approx(np.median(values), rel=1e-6)
    pooled = one(found, scope="pooled", stratum="all", predictor="cov")
    x, y = (
        np.concatenate([b[k] for b in training(blocks) if b["step"][0] >= 8]).astype(float)
        for k in ("dH_pred_cov", "dH")
    )
    assert pooled["pcc"] == pytest.approx(stats.pearsonr(x, y)[0], rel=1e-6)
    assert any("dH_pred_cov is missing in 4 steps" in t for t in found.tables["warnings"]["text"])


def test_json_is_the_contract_and_equals_the_table(planted) -> None:
    _, _, found = planted
    data = found.to_json()
    assert isinstance(data, dict)
    assert list(data) == [
        "run", "steps", "tokens", "unique_states", "entropy", "predictors", "floor", "ceiling",
        "identity_error", "gradient_audit",
    ]  # fmt: skip
    assert list(data["predictors"]) == list(PLANTED)
    keys = ["n", "steps", "pcc", "pcc_lo", "pcc_hi", "pcc_pooled", "pcc_trim99", "srcc", "sign",
            "slope", "mse"]  # fmt: skip
    for name, numbers in data["predictors"].items():
        assert list(numbers) == keys
        row = one(found, scope="within_step", stratum="all", predictor=name)
        pooled = one(found, scope="pooled", stratum="all", predictor=name)
        assert numbers["pcc"] == row["pcc"] and numbers["pcc_pooled"] == pooled["pcc"]
    assert set(data["entropy"]) == {"first", "last"}
    assert data["floor"] is None and data["gradient_audit"] == pytest.approx(1e-6)
    json.dumps(data, allow_nan=False)


def test_tables_on_disk_have_the_contracted_columns_with_meanings(planted) -> None:
    path, _, found = planted
    for name, columns in tables.TABLES.items():
        if name in OF_SEVERAL:
            continue
        schema = pq.read_schema(path / "analysis" / f"{name}.parquet")
        assert list(columns) == schema.names[: len(columns)], name
        assert all(field.metadata[b"meaning"] for field in schema)
    again = read_tables([path], ["validation"])["validation"]
    pd.testing.assert_frame_equal(again, found.tables["validation"], check_dtype=False)


def test_equal_runs_give_equal_tables(planted, tmp_path: Path) -> None:
    path, _, found = planted
    again = analyze([path], tmp_path / "again")
    for name, table in found.tables.items():
        pd.testing.assert_frame_equal(table, again.tables[name])
