"""Rollouts with vLLM, in a process of its own that gets the weights before every rollout."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropy_lab.errors import ConfigError, RunError
from entropy_lab.train.rollout.base import Responses, end_tokens, left_pad
from entropy_lab.train.rollout.process import Process
from entropy_lab.train.settings import VllmConfig

_WORKER = Path(__file__).with_name("vllm_worker.py")
_TOLERANCE = {"float32": 1e-3}  # nats on average; measured: 8e-7 in float32, 0.012 in bfloat16
_BELOW = 0.05
# What a launcher of several trainers tells each of them is not meant for the engine.
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR",
             "MASTER_PORT")  # fmt: skip


class VLLMEngine:
    """vLLM behind the `RolloutEngine` protocol; its process starts with the first `generate`.

    Every `generate` first hands the model's weights over, so it cannot sample from older ones.
    Each response has a seed of its own, made from (seed, number of the prompt, number of the
    sample): equal weights, prompts and seeds give equal responses on the same machine and
    versions. They are not those of the engine "hf". Raises ConfigError where vllm is missing.
    """

    def __init__(self, settings: VllmConfig | None = None, autocast: str = "none"):
        self.settings = settings or VllmConfig()
        self._autocast = autocast
        self.dtype = ""
        self._process: Process | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._limit = 0
        python = self.settings.python
        if python and shutil.which(python) is None:
            raise ConfigError(
                f"vllm.python = {python!r} is no program: give the path of a Python that has vllm"
            )
        if not python and importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "rollout.engine = 'vllm' needs vllm, which this Python lacks: pip install "
                "'entropy-lab[vllm]', or set vllm.python to a Python that has it (make vllm)"
            )

    @property
    def tolerance(self) -> float:
        """Largest mean |rollout_logp - logp| in nats that rounding explains."""
        return self.settings.tolerance or _TOLERANCE.get(self.dtype, _BELOW)

    def generate(
        self,
        model: Any,
        prompts: list[list[int]],
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
        top_p: float = 1.0,
    ) -> Responses:
        """n responses to each prompt (token ids); see `RolloutEngine`.

        top_p < 1: logp is of the tokens that are left. Raises ValueError for an
        empty prompt, RunError where the engine fails.
        """
        eos, pad = end_tokens(model)
        prompt_id, prompt_mask = left_pad(prompts, pad, model.device)
        process = self.update(model)
        needed = prompt_id.shape[1] + max_tokens
        if needed > self._limit:
            raise RunError(
                f"the longest prompt and {max_tokens} tokens make {needed}, but the vllm engine "
                f"holds {self._limit}: raise vllm.max_model_len or lower rollout.max_tokens"
            )
        out = self._path("responses")
        try:
            self._ask(
                process,
                "generate",
                prompts=prompts,
                seeds=request_seeds(seed, len(prompts), n),
                out=str(out),
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p if temperature else 1.0,
                stop_token_ids=eos,
            )
            token_id, mask, logp = padded(out, pad)
        finally:
            out.unlink(missing_ok=True)
        if not torch.isfinite(logp).all():
            raise RunError(
                "cannot sample: the model's logits are not finite, so training has diverged; "
                "lower optimizer.lr and start anew"
            )
        truncated = ~(torch.isin(token_id, torch.tensor(eos)) & mask).any(dim=1)
        found = (t.to(model.device) for t in (token_id, mask, truncated, logp))
        return Responses(
            prompt_id.repeat_interleave(n, dim=0),  # (B, P)
            prompt_mask.repeat_interleave(n, dim=0),
            *found,
        )

    def update(self, model: Any) -> Process:
        """The engine's process with the present weights of `model`, started where there is none."""
        process = self._process or self._start(model)
        weights = self._path("weights")
        try:
            aliases = store(model, weights, getattr(torch, self.dtype))
            self._ask(process, "update", weights=str(weights), aliases=aliases)
        finally:
            weights.unlink(missing_ok=True)
        return process

    def close(self) -> None:
        """End the engine's process and free its memory; the next `generate` starts another."""
        if self._process is not None:
            self._process.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._process = self._folder = None

    def _ask(self, process: Process, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer; after any exception there is no process, and the next call starts one."""
        try:
            return process.ask(do, **arguments)
        except BaseException:
            self.close()
            raise

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{name}.safetensors"

    def _start(self, model: Any) -> Process:
        if hasattr(model, "peft_config"):
            raise ConfigError(
                "rollout.engine = 'vllm' is handed whole weights, and this model has adapters: "
                "set rollout.engine = 'hf'"
            )
        chosen = self.settings.dtype if self.settings.dtype != "auto" else self._autocast
        self.dtype = str(model.dtype).removeprefix("torch.") if chosen == "none" else chosen
        self._folder = tempfile.TemporaryDirectory(
            prefix="entropy-lab-vllm-", dir=roomy(model, getattr(torch, self.dtype))
        )
        folder = Path(self._folder.name)
        python = self.settings.python or sys.executable
        try:
            save_shape(model, folder / "model")
            process = Process(
                [python, str(_WORKER), str(folder)],
                environment(model.device, bool(self.settings.python), self.settings.enforce_eager),
                folder / "log.txt",
                "the vllm engine",
            )
        except BaseException:
            self.close()
            raise
        options = engine_options(self.settings, folder / "model", self.dtype, model.device)
        started = self._ask(process, "start", timeout=self.settings.start_timeout, options=options)
        if "error" in started:
            process.close()
            self.close()
            raise ConfigError(
                f"vllm.python = {python!r} cannot run vllm: {started['error']}; make an "
                "environment that can (make vllm) and name its Python"
            )
        self._process, self._limit = process, int(started["max_model_len"])
        return process


def request_seeds(seed: int, prompts: int, n: int) -> list[list[int]]:
    """A seed in [0, 2^63) for every sample of every prompt."""
    return [
        (np.random.SeedSequence([seed, i]).generate_state(n, np.uint64) >> np.uint64(1)).tolist()
        for i in range(prompts)
    ]


def padded(path: Path, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """(token_id, mask, logp), each (B, T), right-padded, from the file of a rollout."""
    from safetensors.torch import load_file

    found = load_file(path)
    length = found["length"]  # (B,)
    mask = torch.arange(int(length.max())) < length[:, None]  # (B, T)
    token_id = torch.full(mask.shape, pad).masked_scatter(mask, found["token_id"])
    return token_id, mask, torch.zeros(mask.shape).masked_scatter(mask, found["logp"])


def store(model: Any, path: Path, dtype: torch.dtype) -> list[list[str]]:
    """Write the parameters once each; returns the other names of tied ones, (name, stored)."""
    from safetensors.torch import save_file

    names: dict[int, str] = {}
    kept: dict[str, Tensor] = {}
    aliases = []
    for name, p in model.named_parameters(remove_duplicate=False):
        if id(p) in names:
            aliases.append([name, names[id(p)]])
        else:
            names[id(p)] = name
            kept[name] = p.detach().to("cpu", dtype).contiguous()
    try:
        save_file(kept, path)
    except Exception as e:  # the library has an error type of its own for a full disk
        raise RunError(
            f"cannot write the weights for the vllm engine to {path.parent}: {e}; set TMPDIR to a "
            "folder with room"
        ) from None
    return aliases


def roomy(model: Any, dtype: torch.dtype) -> str | None:
    """A folder in memory where the weights fit there, else the usual one for temporary files."""
    needed = 2 * sum(p.numel() for p in model.parameters()) * dtype.itemsize
    memory = "/dev/shm"
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > needed:
        return memory
    return None


def save_shape(model: Any, folder: Path) -> None:
    """The model's config without weights: these come with the first update, as with every one."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)


def engine_options(
    settings: VllmConfig, folder: Path, dtype: str, device: torch.device
) -> dict[str, Any]:
    """Arguments of vllm.LLM: nothing of the model's own sampling settings, logp as sampled."""
    return {
        "model": str(folder),
        "dtype": dtype,
        "max_model_len": settings.max_model_len or None,
        "enforce_eager": settings.enforce_eager,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        # A prompt read in parts draws a token that is then undrawn, which a generator on a CPU
        # cannot do. None leaves it to vLLM.
        "enable_chunked_prefill": None if device.type == "cuda" else False,
        "enable_sleep_mode": device.type == "cuda",
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "seed": 0,
    }


def environment(device: torch.device, other_python: bool, eager: bool) -> dict[str, str]:
    """The variables of the engine's process: offline, one device, and as many threads as here."""
    env = {k: v for k, v in os.environ.items() if k not in _LAUNCHER and "TORCHELASTIC" not in k}
    if other_python:
        env.pop("PYTHONPATH", None)
        env.pop("PYTHONHOME", None)
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        # Bound threads would share their cores with the trainer's.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    # No process of vLLM's own below ours; and without compiling, none of its kernels is compiled.
    threads = str(torch.get_num_threads())
    forced = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": threads}
    if eager:
        forced["TORCHDYNAMO_DISABLE"] = "1"
    if device.type == "cuda":
        seen = env.get("CUDA_VISIBLE_DEVICES", "")
        index = device.index or 0
        forced["CUDA_VISIBLE_DEVICES"] = seen.split(",")[index] if seen else str(index)
    return {**defaults, **env, **forced}
