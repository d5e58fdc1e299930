"""What the token viewer holds: numbers, texts and the choice of responses."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_lab.errors import RunError
from entropy_lab.record import load
from entropy_lab.report.viewer.choose import choose, survey
from entropy_lab.report.viewer.encode import PRECISION, halves, packed_json, plain_json, planes
from entropy_lab.report.viewer.pack import pack_run
from entropy_lab.report.viewer.section import packed
from synthetic import write_run
from viewer_runs import write_texts


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def floats(data: bytes, n: int) -> np.ndarray:
    """As the page reads them: high bytes, then low bytes, of the upper half of a float32."""
    high, low = np.frombuffer(data, np.uint8, 2 * n).reshape(2, n).astype(np.uint32)
    return ((high << 24) | (low << 16)).view(np.float32)


@given(st.lists(st.floats(width=32, allow_infinity=False, allow_nan=False), max_size=20))
def test_numbers_are_kept_to_their_precision(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    values = values[(np.abs(values) < 3e38) & ((values == 0) | (np.abs(values) > 1e-37))]
    back = floats(halves(values), len(values))
    assert (np.abs(back - values) <= PRECISION * np.abs(values)).all()
    assert (np.sign(back) == np.sign(values)).all()


def test_what_is_no_number_stays_none() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    assert np.isnan(floats(halves(odd), 4)).tolist() == [True, True, True, False]


def test_integers_lie_in_planes_the_highest_byte_first() -> None:
    assert planes(np.array([0x010203, 0x0A0B0C]), 3) == bytes([1, 10, 2, 11, 3, 12])


def test_no_text_ends_the_element_that_holds_it() -> None:
    text = "</script><!--\u2028\ud800\x00&"
    plain = plain_json([text])
    assert not set("<>&") & set(plain) and plain.isascii()
    assert json.loads(plain) == [text]
    assert json.loads(unpacked(packed_json([text]))) == [text]


def test_the_page_holds_the_rows_of_the_log(tmp_path: Path) -> None:
    responses = [(f"p{i // 2}", f"r{i}", list(range(i, i + 3 + i))) for i in range(4)]
    blocks = write_texts(tmp_path / "run", responses, ["a", "b", None], steps=2)
    data = pack_run(load(tmp_path / "run"), "run", {(1, "steer"): 3.0})
    texts = json.loads(unpacked(data.blobs["responses"]))
    assert texts["response"] == ["r0", "r1", "r2", "r3"] * 2
    assert [texts["prompts"][i] for i in texts["prompt"]] == ["p0", "p0", "p1", "p1"] * 2
    assert texts["group"] == [0, 0, 1, 1] * 2 and texts["n"] == [3, 4, 5, 6] * 2
    vocabulary = json.loads(unpacked(data.blobs["vocabulary"]))
    named = dict(zip(vocabulary["ids"], vocabulary["texts"], strict=True))
    assert named[0] == "a" and named[2] is None and named[8] is None
    for i, block in enumerate(blocks):
        step, chunk = data.meta["steps"][i], unpacked(data.blobs[f"step-{i}"])
        n = len(block["uid"])
        for at, column in enumerate(step["columns"]):
            kept = floats(chunk[2 * n * at :], n)
            assert kept == pytest.approx(block[column], rel=PRECISION), column
        rest = np.frombuffer(chunk[2 * n * len(step["columns"]) :], np.uint8).reshape(4, n)
        places = (rest[0].astype(int) << 16) | (rest[1].astype(int) << 8) | rest[2]
        assert [vocabulary["ids"][p] for p in places] == block["token_id"].tolist()
    assert data.meta["steps"][1]["slopes"] == {"error_steer": 3.0, "error_softmax": None}
    names = [q["name"] for q in data.meta["quantities"]]
    assert names == ["dH", "entropy", "dH_pred_softmax", "dH_pred_steer", "error_softmax",
                     "error_steer", "grad_logp", "weight"]  # fmt: skip
    step, response = divmod(data.meta["strongest"]["dH"][0][0], 4)
    uid = blocks[step]["uid"] & 0xFFFF
    place = np.flatnonzero(uid == response)[data.meta["strongest"]["dH"][0][1]]
    most = max(float(np.abs(b["dH"]).max()) for b in blocks)
    assert abs(blocks[step]["dH"][place]) == pytest.approx(most)


def test_held_out_rows_are_left_out_and_odd_positions_kept(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=3)
    run = load(tmp_path / "run")
    rows = run.tokens().query("flags < 32")
    data = pack_run(run, "run", {})
    assert data.meta["tokens"] == len(rows) == int(survey(run)["n"].sum())
    assert all(step["regular"] for step in data.meta["steps"])


def test_what_does_not_fit_is_chosen_by_a_stated_rule() -> None:
    rng = np.random.default_rng(0)
    size = 400
    at = np.arange(size)
    rows = pd.DataFrame({"step": at // 40, "group": at // 4,
                         "uid": at, "n": 10, "strength": rng.random(size)})  # fmt: skip
    whole = choose(rows, 4000)
    assert len(whole.responses) == size and whole.how.startswith("all 400 responses")
    some = choose(rows, 1000, seed=1)
    assert some.responses["n"].sum() <= 1000
    assert some.responses.groupby("group").size().eq(4).all()  # groups stay whole
    assert {0, 9} <= set(some.responses["step"])
    means = rows.groupby("group")["strength"].mean()
    assert means.idxmax() in set(some.responses["group"])
    assert "of 400 responses" in some.how and "seed 1" in some.how
    pd.testing.assert_frame_equal(some.responses, choose(rows, 1000, seed=1).responses)
    assert not some.responses.equals(choose(rows, 1000, seed=2).responses)
    assert len(choose(rows, 1).responses) == 4  # never nothing


def test_a_page_stays_within_its_budget(tmp_path: Path) -> None:
    responses = [("p", "r", list(range(200)))] * 32
    write_texts(tmp_path / "run", responses, steps=3, group_size=4)
    run = load(tmp_path / "run")
    all_of_it = pack_run(run, "run", {})
    some = pack_run(run, "run", {}, budget=all_of_it.size // 3)
    assert some.size <= all_of_it.size // 3
    assert 0 < some.meta["responses"] < all_of_it.meta["responses"] == 96


def test_a_run_without_rows_says_what_to_record(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=2, probed=False)
    steps = pd.DataFrame(columns=["run", "step", "predictor", "slope", "stratum"])
    said = packed(tmp_path / "run", "run", {"validation_steps": steps})
    assert isinstance(said, str) and "probe.enabled = true" in said
    with pytest.raises(RunError):
        survey(load(tmp_path / "run"))
