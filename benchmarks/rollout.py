"""Rollouts: tokens per second of the engines "hf" and "vllm" on the demo's model, in one run.

    VLLM_PYTHON=.venv-vllm/bin/python python -m benchmarks.rollout      (after `make vllm`)

Both sample the same prompts with one thread each, in turn, after one rollout that is not counted.
The seconds of vllm hold the weight update before each rollout, which is also told alone. Without a
Python that has vllm (this one, or $VLLM_PYTHON) only "hf" is timed.
"""

from __future__ import annotations

import importlib.util
import os
import random
import statistics
import time

import torch

from benchmarks._bars import note
from entropy_lab.train.config import load_config
from entropy_lab.train.model import load_model
from entropy_lab.train.prompts import encode_prompt
from entropy_lab.train.rollout import HFEngine, Responses, RolloutEngine, VLLMEngine
from entropy_lab.train.settings import VllmConfig
from entropy_lab.train.tasks import make_task

ROUNDS = 5
SIZES = {"demo's rollout": (32, 8, 12), "long responses": (64, 8, 64)}  # prompts, n, tokens


def seconds(engine: RolloutEngine, model, prompts: list, n: int, tokens: int, seed: int):
    begun = time.perf_counter()
    out: Responses = engine.generate(model, prompts, n, tokens, 1.0, seed)
    return time.perf_counter() - begun, int(out.mask.sum())


def main() -> None:
    torch.set_num_threads(1)
    config = load_config(None, ["run.threads=1"])
    model, tokenizer = load_model(config)
    engines: dict[str, RolloutEngine] = {"hf": HFEngine()}
    python = os.environ.get("VLLM_PYTHON", "")
    if python or importlib.util.find_spec("vllm"):
        engines["vllm"] = VLLMEngine(VllmConfig(python=python))
    else:
        note("vllm", "not here: make vllm, and set VLLM_PYTHON")
    task = make_task(config.task.name, **config.task.params)
    for size, (count, n, tokens) in SIZES.items():
        problems = task.problems(count, random.Random(0))
        prompts = [encode_prompt(tokenizer, p.prompt) for p in problems]
        if size == "long responses":
            model.generation_config.eos_token_id = None  # every response has all its tokens
        rates: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(ROUNDS + 1):
            for name, engine in engines.items():
                taken, drawn = seconds(engine, model, prompts, n, tokens, turn)
                if turn:
                    rates[name].append(drawn / taken)
        middle = {name: statistics.median(values) for name, values in rates.items()}
        for name, rate in middle.items():
            note(f"{name}, {size}, {count * n} x {tokens}, tokens/s, 1 thread", f"{rate:,.0f}")
        if "vllm" in middle:
            note(f"vllm over hf, {size}", f"{middle['vllm'] / middle['hf']:.2f}")
    if isinstance(vllm := engines.get("vllm"), VLLMEngine):
        begun = time.perf_counter()
        vllm.update(model)
        note("weight update of vllm, ms", f"{1000 * (time.perf_counter() - begun):.0f}")
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
