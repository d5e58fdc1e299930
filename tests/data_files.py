"""Small data files in the layouts that users have, and a tiny model that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments import tiny_model


def question(i: int) -> str:
    return f"What is {i} + {i}? Write it as Answer: ..."


def verl_rows(count: int, first: int = 0, source: str = "sums") -> list[dict[str, Any]]:
    """Rows in verl's layout: the sum of i and i, asked in a chat."""
    return [
        {
            "data_source": source,
            "prompt": [{"role": "user", "content": question(i)}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(2 * i)},
            "extra_info": {"split": "train", "index": i},
        }
        for i in range(first, first + count)
    ]


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def jsonl(path: Path, rows: list[Any]) -> str:
    """Rows as JSON lines; text stands as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def saved_to_disk(folder: Path, rows: list[dict[str, Any]], shards: int = 2) -> str:
    """What `datasets.Dataset.save_to_disk` leaves: Arrow streams, state.json, dataset_info.json."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    size, names = -(-len(rows) // shards), []
    for shard in range(shards):
        names.append(f"data-{shard:05d}-of-{shards:05d}.arrow")
        part = table.slice(shard * size, size)
        with pa.OSFile(str(folder / names[-1]), "wb") as sink:
            with pa.ipc.new_stream(sink, part.schema) as writer:
                writer.write_table(part, max_chunksize=3)
    state = {"_data_files": [{"filename": n} for n in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}, "citation": ""}))
    return str(folder)


def tiny_folder(folder: Path, text: str, vocabulary: int = 400) -> str:
    """A model folder of about 20 k parameters whose tokenizer has read the prompts of `text`."""
    sizes = ["--hidden", "16", "--layers", "1", "--heads", "2", "--vocabulary", str(vocabulary)]
    tiny_model.main(["--text", text, "--out", str(folder), *sizes])
    return str(folder)
