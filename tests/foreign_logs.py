"""A run of ours written as other trainers write theirs, field by field as their sources do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from entropy_lab import load

PAD = 0


def responses(run_dir: Path) -> list[tuple[int, dict, pd.DataFrame]]:
    """(step, samples row, token rows) of every response that a step trained on."""
    run = load(run_dir)
    tokens, samples = run.tokens(), run.samples().set_index("uid")
    tokens = tokens[tokens["flags"] & 32 == 0]
    parts = tokens.groupby(["step", "uid"], sort=True)
    return [(step, dict(samples.loc[uid]), rows) for (step, uid), rows in parts]


def prompt_ids(sample: dict) -> list[int]:
    return [3, 1, int(sample["prompt_id"]) % 97 + 5]


def prime_rl(run_dir: Path, out: Path) -> Path:
    for step, sample, rows in responses(run_dir):
        prompt = prompt_ids(sample)
        blank, none = [0.0] * len(prompt), [None] * len(prompt)
        line = {
            "schema_version": 1, "step": step, "export_step": step, "rank": 0,
            "micro_step": int(rows["micro"].iloc[0]), "run_id": None, "env_name": "sums",
            "token_ids": prompt + rows["token_id"].tolist(),
            "loss_mask": [False] * len(prompt) + [True] * len(rows),
            "advantages": blank + rows["advantage"].tolist(),
            "rewards": none + [float(sample["reward"])] * len(rows),
            "inference_logprobs": blank + rows["old_logp"].tolist(),
            "trainer_logprobs": blank + rows["logp"].tolist(),
            "entropy": [6.0] * len(prompt) + rows["entropy"].tolist(),
            "is_masked_high": none + [i == 0 for i in range(len(rows))],
            "is_masked_low": none + [False] * len(rows),
        }  # fmt: skip
        folder = out / "token_exports" / f"step_{step + 7}"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "rank_0.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    return out


def slime(run_dir: Path, out: Path, version: int = 2) -> Path:
    out.mkdir()
    by_step: dict[int, list[dict]] = {}
    for step, sample, rows in responses(run_dir):
        tensors = {
            theirs: torch.tensor(rows[ours].to_numpy())
            for theirs, ours in {
                "log_probs": "old_logp",
                "rollout_log_probs": "old_logp",
                "advantages": "advantage",
                "entropy": "entropy",
            }.items()
        }
        by_step.setdefault(step, []).append(
            {
                "tokens": torch.tensor(prompt_ids(sample) + rows["token_id"].tolist()),
                "response_lengths": len(rows),
                "total_lengths": len(rows) + 3,
                "loss_masks": torch.ones(len(rows), dtype=torch.int),
                "rewards": float(sample["reward"]),
                **tensors,
            }
        )
    for step, rows in by_step.items():
        if version == 2:
            dump = {"format_version": 2, "rollout_id": step, "rank": 0, "samples": rows}
        else:
            data = {name: [row[name] for row in rows] for name in rows[0]}
            dump = {"rollout_id": step, "rank": 0, "rollout_data": data}
        torch.save(dump, out / f"train_{step}_0.pt")
    return out


def nemo_rl(run_dir: Path, out: Path) -> Path:
    found = responses(run_dir)
    width = 3 + max(len(rows) for _, _, rows in found)
    out.mkdir()
    for step, sample, rows in found:

        def padded(values: list, fill: float = 0, length: int = width) -> list:
            return values + [fill] * (length - len(values))

        line = {
            "idx": 0,
            "rewards": float(sample["reward"]),
            "input_lengths": 3 + len(rows),
            "token_loss_mask": padded([0, 0, 0] + [1] * len(rows)),
            "sample_loss_mask": 1.0,
            "advantages": padded([0.0] * 3 + rows["advantage"].tolist()),
            "generation_logprobs": padded([0.0] * 3 + rows["old_logp"].tolist()),
            "prev_logprobs": padded([0.0] * 3 + rows["old_logp"].tolist()),
            "token_ids": padded(prompt_ids(sample) + rows["token_id"].tolist(), PAD),
            "approx_entropy": 0.7,
        }
        with (out / f"train_data_step{step + 1}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    return out


def openrlhf(run_dir: Path, out: Path) -> Path:
    """Left-padded prompts, right-padded responses: what an Experience holds."""
    out.mkdir()
    by_step: dict[int, list] = {}
    for step, sample, rows in responses(run_dir):
        by_step.setdefault(step, []).append((sample, rows))
    for step, items in by_step.items():
        width, count = max(len(rows) for _, rows in items), len(items)
        fields = {
            n: torch.zeros(count, width)
            for n in ("action_log_probs", "advantages", "entropy", "action_mask")
        }
        sequences = torch.zeros(count, 5 + width, dtype=torch.long)
        attention = torch.zeros(count, 5 + width, dtype=torch.long)
        for i, (sample, rows) in enumerate(items):
            sequences[i, 2:5] = torch.tensor(prompt_ids(sample))
            sequences[i, 5 : 5 + len(rows)] = torch.tensor(rows["token_id"].to_numpy())
            attention[i, 2 : 5 + len(rows)] = 1
            fields["action_mask"][i, : len(rows)] = 1
            for name, ours in {
                "action_log_probs": "old_logp", "advantages": "advantage", "entropy": "entropy"
            }.items():  # fmt: skip
                fields[name][i, : len(rows)] = torch.tensor(rows[ours].to_numpy())
        rewards = torch.tensor([float(sample["reward"]) for sample, _ in items])
        batch = {"sequences": sequences, "attention_mask": attention, "rewards": rewards, **fields}
        torch.save([batch], out / f"experience_{step:05d}.pt")
    return out


def verl(run_dir: Path, out: Path) -> Path:
    out.mkdir()
    for step, sample, _ in responses(run_dir):
        line = {
            "input": sample["prompt"], "output": sample["response"], "gts": "1",
            "score": float(sample["reward"]), "step": step + 1, "acc": 1.0,
        }  # fmt: skip
        with (out / f"{step + 1}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    return out


def generic_tokens(run_dir: Path, out: Path) -> Path:
    """One Parquet row a token, and the mapping beside it."""
    out.mkdir()
    frames = []
    for step, sample, rows in responses(run_dir):
        frame = rows[["token_id", "advantage", "old_logp", "logp", "entropy", "dH"]].copy()
        frame.columns = ["tok", "adv", "lp_old", "lp", "ent", "change"]
        frame["global_step"], frame["who"] = step, int(rows["uid"].iloc[0])
        frame["score"], frame["problem"] = float(sample["reward"]), int(sample["group"])
        frames.append(frame)
    pd.concat(frames).to_parquet(out / "log.parquet")
    (out / "map.toml").write_text(
        'layout = "tokens"\nstep = "global_step"\nresponse = "who"\nentropy_is = "exact"\n'
        '[columns]\ntoken_id = "tok"\nadvantage = "adv"\nold_logp = "lp_old"\nlogp = "lp"\n'
        'entropy = "ent"\ndH = "change"\nreward = "score"\ngroup = "problem"\n'
    )
    return out


def equal_rows(ours: Path, theirs: Path, columns: list[str]) -> None:
    """The imported token rows are those of the run, in the order of (step, response)."""
    expected = pd.concat([rows for _, _, rows in responses(ours)])
    run = load(theirs)
    found = run.tokens().sort_values(["step", "uid", "pos"])
    assert len(found) == len(expected)
    assert (found["flags"] & 64 > 0).all()
    for name in columns:
        np.testing.assert_array_equal(found[name].to_numpy(), expected[name].to_numpy(), name)
