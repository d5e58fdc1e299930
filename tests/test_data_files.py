"""Data files of every layout give the same problems; what cannot be read is one clear line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from data_files import jsonl, parquet, question, saved_to_disk, verl_rows
from entropy_lab.errors import ConfigError
from entropy_lab.train.tasks import Problem
from entropy_lab.train.tasks.data import Reading, load_data
from entropy_lab.train.tasks.data.find import data_files, data_name

ROWS = verl_rows(7)


def load(path: str | Path, **settings) -> list[Problem]:
    return load_data(str(path), Reading(**settings), lambda prompt: [0]).problems


def refusal(path: str | Path, **settings) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_layout_gives_the_same_problems(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    parquet(hub / "data" / "train-00000-of-00002.parquet", ROWS[:4])
    parquet(hub / "data" / "train-00001-of-00002.parquet", ROWS[4:])
    (hub / "README.md").write_text("# a data set")
    (hub / "dataset_infos.json").write_text("{}")
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(tmp_path / "feather.arrow"), "wb") as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "list.json").write_text(json.dumps(ROWS))
    paths = [
        parquet(tmp_path / "verl.parquet", ROWS),
        jsonl(tmp_path / "verl.jsonl", ROWS),
        jsonl(tmp_path / "lines.json", ROWS),
        saved_to_disk(tmp_path / "saved", ROWS),
        tmp_path / "feather.arrow",
        tmp_path / "list.json",
        hub,
        hub / "data" / "train-*.parquet",
    ]
    by_hand = [
        Problem(
            ({"role": "user", "content": question(i)},),
            str(2 * i),
            load(paths[0])[i].prompt_id,
            "sums",
            {
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(2 * i)},
                "split": "train",
                "index": i,
            },
        )
        for i in range(7)
    ]
    for path in paths:
        assert load(path) == by_hand, path


def test_plain_json_lines_go_by_the_usual_keys_or_by_those_that_are_named(tmp_path: Path) -> None:
    rows = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": 4}]
    usual = load(jsonl(tmp_path / "usual.jsonl", rows))
    assert [(p.prompt, p.answer) for p in usual] == [("1+1?", "2"), ("2+2?", 4)]
    assert {p.data_source for p in usual} == {"usual"}  # the file's name, where a row has none
    other = [{"q": {"text": r["question"]}, "gold": r["answer"], "set": "x"} for r in rows]
    path = jsonl(tmp_path / "other.jsonl", other)
    named = load(path, prompt_key="q.text", answer_key="gold", source_key="set")
    assert [(p.prompt, p.answer) for p in named] == [("1+1?", "2"), ("2+2?", 4)]
    assert [p.prompt_id for p in named] == [p.prompt_id for p in usual]
    assert {p.data_source for p in named} == {"x"}
    assert refusal(path) == (
        f"{path} has no prompt in 'prompt', 'problem', 'question': its columns are q, gold, set; "
        "name one with task.prompt_key"
    )
    assert "has no answer in 'key': its columns are question" in refusal(
        tmp_path / "usual.jsonl", answer_key="key"
    )


def test_trl_rows_keep_their_columns_and_text_can_become_a_chat(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "trl.jsonl", [{"prompt": "1+1?", "solution": "2", "level": 3}])
    assert load(path)[0].extra == {"level": 3}
    [chat] = load(path, chat=True, suffix=" Box it.")
    assert chat.prompt == ({"role": "user", "content": "1+1? Box it."},)
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    path = jsonl(tmp_path / "system.jsonl", [{"prompt": system, "answer": "2"}])
    assert load(path, suffix="!")[0].prompt[1]["content"] == "1+1?!"
    assert load(path)[0].prompt == tuple(system)


def test_equal_content_has_one_id_in_every_file(tmp_path: Path) -> None:
    """63 bits of BLAKE2b of the JSON text, in every version the same."""
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "1+1?", "answer": "2"}])
    [known] = load(path)
    digest = hashlib.blake2b(b'["1+1?", "2"]', digest_size=8).hexdigest()
    assert known.prompt_id == int(digest, 16) >> 1 == 6859101554530719132
    [other] = load(jsonl(tmp_path / "b.jsonl", [{"prompt": "1+1?", "answer": "3"}]))
    assert other.prompt_id != known.prompt_id and 0 <= other.prompt_id < 2**63


# --- what is refused ------------------------------------------------------------------------------

GOOD = {"prompt": "1+1?", "answer": "2"}
BAD = [
    ({"prompt": "1+1?"}, "no answer in 'answer'"),
    ({"prompt": "1+1?", "answer": None}, "no answer in 'answer'"),
    ({"prompt": "1+1?", "answer": "  "}, "the answer is empty"),
    ({"prompt": "1+1?", "answer": []}, "the answer is empty"),
    ({"prompt": "1+1?", "answer": True}, "the answer is a boolean, neither text nor a number"),
    ('{"prompt": "1+1?", "answer": NaN}', "the answer is nan, which is no number"),
    ({"answer": "2"}, "no prompt in 'prompt'"),
    ({"prompt": "", "answer": "2"}, "the prompt is empty"),
    ({"prompt": " \n", "answer": "2"}, "the prompt is empty"),
    ({"prompt": [], "answer": "2"}, "the prompt is empty"),
    ({"prompt": 7, "answer": "2"}, "the prompt is a whole number, neither text nor a list of"),
    ({"prompt": ["1+1?"], "answer": "2"}, "message 1 of the prompt is no {role, content}"),
    (
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "2"},
        "message 1 of the prompt is no {role, content} of texts",
    ),
    ({"prompt": [{"role": "user", "content": " "}], "answer": "2"}, "the prompt is empty"),
    (
        {"prompt": [{"role": "assistant", "content": "2"}], "answer": "2"},
        "the prompt ends with a message of the assistant",
    ),
    ('{"prompt": "1+1?", "answer"', "is not JSON"),
    ('["1+1?", "2"]', "is no JSON object"),
]


@pytest.mark.parametrize(("row", "why"), BAD)
def test_a_bad_row_is_named_with_its_number(tmp_path: Path, row, why: str) -> None:
    path = jsonl(tmp_path / "some.jsonl", [GOOD, row, GOOD, ""])
    text = refusal(path)
    assert text.startswith(f"{path}: 1 of 3 rows cannot be used: row 2 ({why}")
    assert text.endswith('or leave them out with task.bad_rows = "skip"')
    found = load_data(path, Reading(bad_rows="skip"), lambda p: [0])
    assert len(found.problems) == 2 and [(n, w[:20]) for _, n, w in found.bad] == [(2, why[:20])]
    assert found.facts()["bad_rows"][0][:2] == [path, 2]


def test_many_bad_rows_are_counted_and_those_of_several_files_told_apart(tmp_path: Path) -> None:
    for name in "ab":
        jsonl(tmp_path / f"{name}.jsonl", [GOOD, *[{"prompt": "x"}] * 8])
    text = refusal(tmp_path)
    assert "16 of 18 rows cannot be used: a.jsonl row 2 (no answer in 'answer')" in text
    assert "b.jsonl row 3 (no answer in 'answer') and 6 more (the first row is 1)" in text
    path = jsonl(tmp_path / "none.jsonl", ['"a"', '"b"'])
    assert "none.jsonl holds no problem: 2 of 2 rows cannot be used: row 1 (is no JSON object)" in (
        refusal(path, bad_rows="skip")
    )


def test_text_that_is_not_utf8_is_a_bad_row_and_a_byte_order_mark_is_none(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    line = json.dumps(GOOD).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\n" + b'{"prompt": "\xe9", "answer": "2"}\n')
    assert "row 2 (is not UTF-8)" in refusal(path)
    assert len(load(path, bad_rows="skip")) == 1


def test_null_rows_of_parquet_are_named_as_well(tmp_path: Path) -> None:
    rows = verl_rows(3)
    rows[1]["reward_model"] = {"style": "rule", "ground_truth": None}
    rows[2]["prompt"] = None
    text = refusal(parquet(tmp_path / "verl.parquet", rows))
    assert "2 of 3 rows cannot be used: row 2 (no answer in 'reward_model.ground_truth'), " in text
    assert "row 3 (no prompt in 'prompt')" in text


def test_folders_that_mean_several_things_are_refused(tmp_path: Path) -> None:
    both = tmp_path / "splits" / "data"
    for split in ("train", "test"):
        parquet(both / f"{split}-00000-of-00001.parquet", ROWS)
    assert refusal(both) == (
        f"{both} holds several splits ('test', 'train'): name one, such as {both}/test*.parquet"
    )
    assert len(load(both / "test*.parquet")) == 7
    for config in ("main", "socratic"):
        parquet(tmp_path / "configs" / config / "train.parquet", ROWS)
    text = refusal(tmp_path / "configs")
    assert "holds several folders ('main', 'socratic'): name one, such as" in text
    saved = tmp_path / "dict"
    saved_to_disk(saved / "train", ROWS)
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert refusal(saved) == (
        f"{saved} holds the splits train, test: name one, for example {saved}/train"
    )
    assert len(load(saved / "train")) == 7
    mixed = tmp_path / "mixed"
    parquet(mixed / "a.parquet", ROWS)
    jsonl(mixed / "a.jsonl", ROWS)
    assert "holds several kinds ('.jsonl', '.parquet')" in refusal(mixed)


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    assert f"no such data file: {tmp_path}/x.parquet" in refusal(tmp_path / "x.parquet")
    assert "no data file matches" in refusal(tmp_path / "*.parquet")
    (tmp_path / "x.csv").write_text("a,b")
    assert "x.csv is no data file: its name must end in .parquet, " in refusal(tmp_path / "x.csv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    assert f"cannot read the data file {tmp_path}/bad.parquet: " in (
        refusal(tmp_path / "bad.parquet")
    )
    (tmp_path / "bad.arrow").write_bytes(b"neither stream nor file")
    assert "cannot read the data file" in refusal(tmp_path / "bad.arrow")
    (tmp_path / "bad.json").write_text("[1, 2")
    assert "cannot read the data file" in refusal(tmp_path / "bad.json")
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl holds no problem" in refusal(tmp_path / "empty.jsonl")
    (tmp_path / "nothing").mkdir()
    assert "nothing holds no data file" in refusal(tmp_path / "nothing")
    saved = Path(saved_to_disk(tmp_path / "saved", ROWS))
    (saved / "data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow is missing, though" in refusal(saved)
    (saved / "state.json").write_text("{}")
    assert "state.json is damaged: save the data again" in refusal(saved)


def test_names_are_those_of_file_or_folder() -> None:
    for path, name in {
        "data/aime24.parquet": "aime24",
        "data/gsm8k.v2.jsonl": "gsm8k.v2",
        "sets/math": "math",
        "sets/math/": "math",
        "hub/data/test-*.parquet": "test",
        "hub/*.parquet": "hub",
    }.items():
        assert data_name(path) == name


def test_prompts_that_are_too_long_are_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "x" * n, "answer": "2"} for n in range(1, 9)])
    found = load_data(path, Reading(max_prompt_tokens=5), lambda prompt: list(range(len(prompt))))
    assert (len(found.problems), found.overlong, found.rows) == (5, 3, 8)
    with pytest.raises(ConfigError, match="all 8 prompts have more than task.max_prompt_tokens = "):
        load_data(path, Reading(max_prompt_tokens=1), lambda prompt: [0, 0])


def test_files_are_found_in_one_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        jsonl(tmp_path / f"{name}.jsonl", [GOOD])
    assert [p.name for p in data_files(str(tmp_path))] == ["a.jsonl", "b.jsonl", "c.jsonl"]
