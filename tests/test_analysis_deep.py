"""Error budget, influence scores, floor and ceiling against the plain formulas on the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from entropy_lab.analysis import Analysis, analyze
from entropy_lab.analysis.budget import _words
from entropy_lab.analysis.influence import push_free
from entropy_lab.analysis.strata import reversals
from entropy_lab.analysis.tables import FIRST_STEP, LADDER
from entropy_lab.stats import token_stats
from synthetic import DEEP, PLANTED, write_run

Blocks = list[dict[str, np.ndarray]]
RUNGS = ("steer", "softmax", "softmax_state", "jvp_grad", "jvp")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Blocks, Analysis]:
    path = tmp_path_factory.mktemp("deep") / "run"
    blocks = write_run(path, steps=24, length=12, deep_every=2, floor=1e-5, held_out=False)
    return blocks, analyze([path])


def deep(blocks: Blocks) -> Blocks:
    return [b for b in blocks if b["step"][0] >= FIRST_STEP and np.isfinite(b["dH_pred_jvp"][0])]


def column(block: dict[str, np.ndarray], name: str) -> np.ndarray:
    return block[name if name in block else f"dH_pred_{name}"].astype(np.float64)


def scaled(block: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The form times its own least-squares factor, by numpy's fit of a line."""
    x = column(block, name)
    return np.polyfit(x, column(block, "dH"), 1)[0] * x


def test_explained_added_and_difference_are_those_of_scaled_forms(planted) -> None:
    blocks, found = planted
    table = found.tables["budget"].set_index("form")
    assert list(table.index) == [*RUNGS, "dH", "cov", "head", "last_block"]
    assert list(table["rung"]) == [1, 2, 3, 4, 5, 6, 0, 0, 0]
    below: list[np.ndarray] | None = None
    for name in (*RUNGS, "dH"):
        rest, gap, pcc = [], [], []
        lines = [scaled(b, name) if name != "dH" else column(b, "dH") for b in deep(blocks)]
        for i, (b, line) in enumerate(zip(deep(blocks), lines, strict=True)):
            y = column(b, "dH")
            rest.append(1 - (y - line).var() / y.var())
            pcc.append(stats.pearsonr(line, y)[0] if name != "dH" else 1.0)
            gap.append((line - below[i]).var() / y.var() if below else np.nan)
        row = table.loc[name]
        assert row["explained"] == pytest.approx(np.mean(rest), rel=1e-6), name
        assert row["pcc"] == pytest.approx(np.median(pcc), rel=1e-6)
        assert row["difference"] == pytest.approx(np.mean(gap), rel=1e-5, nan_ok=True)
        assert row["steps"] == len(lines) == 9
        assert row["added_lo"] < row["added"] < row["added_hi"]
        below = lines
    ladder = table[table["rung"] > 0]
    assert ladder["added"].sum() == pytest.approx(1)
    np.testing.assert_allclose(ladder["added"].cumsum(), ladder["explained"])
    assert table.loc["jvp", "explained"] == pytest.approx(DEEP["jvp"] ** 2, abs=0.02)


def test_a_rung_that_the_log_lacks_hands_its_words_to_the_next(planted) -> None:
    _, found = planted
    words = found.tables["budget"].set_index("form")["adds"]
    assert words["steer"] == LADDER["steer"] and words["dH"] == "curvature"
    assert _words("softmax", "jvp_grad") == "repeated states, parameter sharing and preconditioning"


def test_influence_rows_are_scipys_and_a_plain_count(planted) -> None:
    blocks, found = planted
    table = found.tables["influence"].set_index(["target", "kind", "predictor"])
    for target in ("dH", "influence", "influence_marginal"):
        for name in ("steer", "cov", "jvp"):
            expected = {k: [] for k in ("pcc", "srcc", "sign", "capture", "oracle")}
            for b in deep(blocks):
                x, y = column(b, f"dH_pred_{name}"), column(b, target)
                top = max(1, int(0.01 * len(x)))
                size = np.abs(y)
                expected["pcc"].append(stats.pearsonr(x, y)[0])
                expected["srcc"].append(stats.spearmanr(x, y)[0])
                expected["sign"].append((np.sign(x) == np.sign(y)).mean())
                expected["capture"].append(size[np.argsort(-np.abs(x))[:top]].sum() / size.sum())
                expected["oracle"].append(np.sort(size)[-top:].sum() / size.sum())
            row = table.loc[(target, "form", name)]
            for key, values in expected.items():
                assert row[key] == pytest.approx(np.median(values), rel=1e-6), (target, name, key)
            assert row["pcc_lo"] <= row["pcc"] <= row["pcc_hi"]
    # influence_marginal was planted as the opposite of influence.
    signs = [table.loc[(t, "form", "steer"), "pcc"] for t in ("influence", "influence_marginal")]
    assert signs[0] > 0.8 and signs[1] < -0.8
    assert set(table.loc["dH", "form"].index) == {*PLANTED, *DEEP}


def test_push_free_scores_are_the_forms_over_their_push() -> None:
    """Against autograd of H: of the sampled logit alone, and of a step along d logp(a) / dz."""
    torch.manual_seed(0)
    logits = torch.randn(40, 7, dtype=torch.float64)
    token = torch.randint(0, 7, (40,))
    s = token_stats(logits, token)
    columns = {k: getattr(s, k).numpy() for k in ("logp", "entropy", "m0", "m1")}
    found = push_free(columns, np.ones(40))
    free = logits.clone().requires_grad_()
    logp = torch.log_softmax(free, -1)
    (slope,) = torch.autograd.grad(-(logp.exp() * logp).sum(), free)  # -S_v
    action = torch.nn.functional.one_hot(token, 7)
    pi = logp.exp().detach()
    # d logp(a)/dz = onehot - pi: a step along it moves H by slope . (onehot - pi).
    expected = (slope * (action - pi)).sum(-1)
    np.testing.assert_allclose(found["softmax"], expected.numpy(), atol=1e-6)
    sampled = (slope * action).sum(-1)
    np.testing.assert_allclose(found["discriminant"], sampled.numpy(), atol=1e-6)
    weight = (action * (1 - pi)).sum(-1)
    np.testing.assert_allclose(found["steer"], (sampled * weight).numpy(), atol=1e-6)
    np.testing.assert_allclose(found["cov"].mean(), 0, atol=1e-9)


def test_floor_ceiling_and_identity_error_are_in_the_summary_and_the_json(planted) -> None:
    blocks, found = planted
    data = found.to_json()
    assert isinstance(data, dict)
    steps = np.array([0, 10, 20])
    rows = 10.0 * (1 + steps)
    floor = np.sqrt((rows * (1e-5 * (1 + steps)) ** 2).sum() / rows.sum())
    used = [b["dH"].astype(np.float64) for b in blocks if b["step"][0] >= FIRST_STEP]
    assert data["floor"] == pytest.approx(floor)
    ceiling = np.median([np.sqrt(1 - floor**2 / y.var()) for y in used])
    assert data["ceiling"] == pytest.approx(ceiling, rel=1e-9)
    assert data["identity_error"] == pytest.approx(23e-6)
    share = (np.abs(np.concatenate(used)) < 2 * floor).mean()
    assert 0 < share < 1
    assert found.tables["summary"]["under_floor"].item() == pytest.approx(share)


def test_rows_under_two_floors_are_counted_in_every_kind_of_token(planted) -> None:
    blocks, found = planted
    two = 2 * found.tables["summary"]["floor"].item()
    rows = pd.concat(
        pd.DataFrame({k: b[k] for k in ("dH", "logp", "entropy", "advantage", "pos")})
        for b in blocks
        if b["step"][0] >= FIRST_STEP
    )
    under = rows["dH"].abs() < two
    t = found.tables
    for table, kind, keep in (
        (t["regions"].query("bin == 'H[0.7,1.5)'"), "regions",
         (rows["entropy"] >= np.float32(0.7)) & (rows["entropy"] < 1.5)),
        (t["strata"].query("stratum == '4-15'"), "strata", rows["pos"] >= 4),
        (t["validation"].query("stratum == 'pos_unlikely'"), "validation",
         (rows["advantage"] > 0) & (rows["logp"] <= -rows["entropy"])),
        (t["quadrants"].query("quadrant == 'zero'"), "quadrants", rows["advantage"] == 0),
    ):  # fmt: skip
        share = under[keep].mean()
        assert 0 < share < 1
        assert len(table) and table["under_floor"].to_numpy() == pytest.approx(share), kind
    assert (t["density_panels"]["floor"] == two / 2).all()
    falls = t["quadrants"].query("quadrant == 'zero'")["falls"]
    assert falls.to_numpy() == pytest.approx((rows["dH"] < 0)[rows["advantage"] == 0].mean())


def test_a_log_without_deep_or_floor_steps_says_nothing_of_them(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=8)
    found = analyze([tmp_path / "run"])
    assert found.tables["budget"].empty and found.tables["influence"].empty
    data = found.to_json()
    assert isinstance(data, dict)
    assert [data[k] for k in ("floor", "ceiling", "identity_error")] == [None] * 3
    assert isinstance(found.tables["budget"], pd.DataFrame)
    for name in ("validation", "strata", "regions", "quadrants"):
        assert found.tables[name]["under_floor"].isna().all()


def test_strata_are_medians_of_scipys_on_their_rows(planted) -> None:
    blocks, found = planted
    table = found.tables["strata"].set_index(["kind", "stratum", "predictor"])
    used = [b for b in blocks if b["step"][0] >= FIRST_STEP]
    kinds = {
        ("entropy", "H[0.1,0.3)"): lambda b: (b["entropy"] >= 0.1) & (b["entropy"] < 0.3),
        ("advantage", "A > 0"): lambda b: b["advantage"] > 0,
        ("position", "1-3"): lambda b: (b["pos"] >= 1) & (b["pos"] <= 3),
        ("position", "4-15"): lambda b: b["pos"] >= 4,
    }
    for (kind, name), keep in kinds.items():
        values = [
            stats.pearsonr(b["dH_pred_softmax"][k].astype(float), b["dH"][k].astype(float))[0]
            for b in used
            if (k := keep(b)).any()
        ]
        row = table.loc[(kind, name, "softmax")]
        assert row["pcc"] == pytest.approx(np.median(values), rel=1e-6), (kind, name)
        assert row["n"] == sum(int(keep(b).sum()) for b in used)
        assert row["pcc_lo"] < row["pcc"] < row["pcc_hi"]
    stage = table.loc["stage"]
    assert list(dict.fromkeys(stage.index.get_level_values(0))) == [
        "first third", "middle third", "last third"
    ]  # fmt: skip
    last = [
        stats.pearsonr(b["dH_pred_steer"].astype(float), b["dH"].astype(float))[0]
        for b in used[-6:]
    ]
    assert stage.loc[("last third", "steer"), "pcc"] == pytest.approx(np.median(last), rel=1e-6)


def test_rows_alone_in_their_state_are_apart_from_rows_that_share_it(tmp_path: Path) -> None:
    blocks = write_run(tmp_path / "run", steps=10, held_out=True)
    for part in (tmp_path / "run" / "tokens").rglob("*.parquet"):
        table = pq.read_table(part)
        crowded = np.where(table["pos"].to_numpy() < 2, 7, table["state"].to_numpy())
        at = table.schema.get_field_index("state")
        pq.write_table(table.set_column(at, table.schema.field(at), [crowded]), part)
    found = analyze([tmp_path / "run"]).tables["strata"].query("kind == 'states'")
    table = found.set_index(["stratum", "predictor"])
    values: dict[str, list[float]] = {}
    rows = dict.fromkeys(("1", "2-7", "64-"), 0)
    for b in blocks:
        if b["flags"][0] or b["step"][0] < FIRST_STEP:  # held-out rows share no state with others
            continue
        state = pd.Series(np.where(b["pos"] < 2, 7, b["state"]))
        count = state.map(state.value_counts()).to_numpy()
        for name, keep in {
            "1": count == 1, "2-7": (count >= 2) & (count < 8), "64-": count >= 64
        }.items():  # fmt: skip
            x, y = (b[k][keep].astype(float) for k in ("dH_pred_softmax", "dH"))
            values.setdefault(name, []).append(stats.pearsonr(x, y)[0])
            rows[name] += keep.sum()
    assert list(dict.fromkeys(found["stratum"])) == list(values)
    for name, expected in values.items():
        row = table.loc[(name, "softmax")]
        assert row["pcc"] == pytest.approx(np.median(expected), rel=1e-6), name
        assert row["n"] == rows[name] and row["steps"] == 5


def test_a_log_without_states_has_no_such_stratum(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=8)
    for part in (tmp_path / "run" / "tokens").rglob("*.parquet"):
        table = pq.read_table(part)
        at = table.schema.get_field_index("state")
        zero = np.zeros(len(table), np.int64)
        pq.write_table(table.set_column(at, table.schema.field(at), [zero]), part)
    found = analyze([tmp_path / "run"]).tables["strata"]
    assert len(found) and not (found["kind"] == "states").any()


def test_a_sign_that_pooling_reverses_is_pointed_out() -> None:
    def row(scope: str, low: float, high: float) -> dict:
        return {"predictor": "steer", "stratum": "all", "scope": scope, "pcc": (low + high) / 2,
                "pcc_lo": low, "pcc_hi": high}  # fmt: skip

    rows = [row("pooled", 0.2, 0.4), row("within_step", -0.5, -0.1), row("within_group", -0.2, 0.1)]
    (text,) = reversals(pd.DataFrame(rows))
    assert text.startswith("steer reverses its sign: PCC 0.30 over all rows, -0.30 inside a step")
    rows[1] = row("within_step", -0.5, 0.1)  # not clear of zero
    assert reversals(pd.DataFrame(rows)) == []
