"""verl's own FSDP2 engine on a CPU: what its GPU workers run, under gloo, with a tiny model.

verl registers its engines for accelerators only. Here its plugin points (a platform, an engine
key) are given the CPU; the engine, its loss functions and its data format stay verl's own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import types
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

VOCABULARY = 31
SETTINGS = {"ppo_mini_batch_size": 8, "ppo_micro_batch_size_per_gpu": 2, "rollout_n": 2}


def use_cpu() -> None:
    """Make the CPU a platform of verl, before anything asks for one; 0.8 knows it already."""
    module = types.SimpleNamespace(
        current_device=lambda: "cpu",
        memory_allocated=lambda: 0,
        memory_reserved=lambda: 0,
        max_memory_allocated=lambda: 0,
        max_memory_reserved=lambda: 0,
        mem_get_info=lambda: (0, 1),
        is_available=lambda: True,
        synchronize=lambda *a: None,
        empty_cache=lambda: None,
        manual_seed=lambda seed: None,
    )
    try:
        from verl.plugin.platform import platform_base, platform_manager
    except ImportError:
        import verl.utils.device as device

        device.get_torch_device = lambda: module
        return
    names = {n for n in dir(platform_base.PlatformBase) if not n.startswith("__")}
    nothing = {n: (lambda self, *a, **k: None) for n in names}
    given = {
        "device_name": property(lambda self: "cpu"),
        "vendor_name": property(lambda self: "cpu"),
        "device_module": property(lambda self: module),
        "is_available": lambda self: True,
        "current_device": lambda self: "cpu",
        "communication_backend_name": lambda self: "gloo",
        "get_device_capability": lambda self, index=0: (None, None),
    }
    platform = type("Cpu", (platform_base.PlatformBase,), {**nothing, **given})
    platform_manager.set_platform(platform())


@contextlib.contextmanager
def one_process():
    """A process group of one rank, over which verl's engine shards nothing."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def save_model(folder: Path) -> Path:
    """A model of two layers, its weights a function of nothing but this file."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_engine(model: Path, lr: float = 1e-2, clip: float = 1.0, **model_settings: Any) -> Any:
    """verl's FSDPEngineWithLMHead, strategy fsdp2, float32, through its EngineRegistry."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead

    known = EngineRegistry._engines["language_model"]["fsdp2"]
    if "cpu" not in known:
        EngineRegistry.register("language_model", "fsdp2", device="cpu")(FSDPEngineWithLMHead)
    given = {"use_remove_padding": False, "load_tokenizer": False, **model_settings}
    config = HFModelConfig(
        path=str(model),
        override_config={"attn_implementation": "eager"},
        enable_gradient_checkpointing=False,
        **given,
    )
    config.model_type = "language_model"
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=config,
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            use_torch_compile=False,
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32"},
        ),
        optimizer_config=FSDPOptimizerConfig(lr=lr, clip_grad=clip, total_training_steps=100),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


def as_new(engine: Any, start: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Put an engine back to the weights `start`, without optimizer state and without a recorder;
    returns its weights."""
    if start is not None:
        engine.module.load_state_dict(start)
    engine.optimizer.state.clear()
    engine.optimizer.zero_grad()
    vars(engine).pop("_entropy_lab", None)
    return {name: value.clone() for name, value in engine.module.state_dict().items()}


def actor_config(loss_mode: str = "vanilla", method: dict[str, Any] | None = None, **changes: Any):
    """verl's actor config with our policy_loss section, as a worker holds it."""
    from verl.workers.config import FSDPActorConfig

    from entropy_lab.adapters.verl import PolicyLossConfig

    policy = {k: changes.pop(k) for k in list(changes) if hasattr(PolicyLossConfig, k)}
    section = {"method": method} if method else {}
    section |= changes.pop("entropy_lab", {})
    return FSDPActorConfig(
        strategy="fsdp2",
        policy_loss=PolicyLossConfig(loss_mode=loss_mode, entropy_lab=section, **policy),
        **{**SETTINGS, **changes},
    )


def loss_function(config: Any):
    """What verl's worker gives to the engine."""
    from functools import partial

    from verl.workers.utils.losses import ppo_loss

    return partial(ppo_loss, config=config)


def minibatch(rows: int = 8, seed: int = 0, rank: int = 0, nested: bool = True, **more: Any):
    """The data of one rank's minibatch as verl's trainer hands it over, prompts in groups of two.

    nested: the layout of trainer v1, else that of v0 (padded, with attention_mask). Some response
    tokens are masked, as a tool's are.
    """
    from verl.utils import tensordict_utils as tu

    g = torch.Generator().manual_seed(1000 * rank + seed)

    def jagged(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.nested.as_nested_tensor(parts, layout=torch.jagged)

    prompts, responses = [], []
    for row in range(rows):
        if row % 2 == 0:
            prompt = torch.randint(
                3, VOCABULARY, (int(torch.randint(2, 5, (), generator=g)),), generator=g
            )
        prompts.append(prompt)
        length = int(torch.randint(2, 8, (), generator=g))
        responses.append(torch.randint(3, VOCABULARY, (length,), generator=g))
    inputs = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    masks = [torch.ones(len(r), dtype=torch.int64) for r in responses]
    masks[1][0] = 0
    per_token = {
        "response_mask": masks,
        "loss_mask": masks,
        "old_log_probs": [-2.5 - torch.rand(len(r), generator=g) * 2 for r in responses],
        "rollout_log_probs": [-2.5 - torch.rand(len(r), generator=g) * 2 for r in responses],
        "advantages": [torch.randn((), generator=g).expand(len(r)).clone() for r in responses],
        "rm_scores": [torch.eye(len(r))[-1] * (row % 2) for row, r in enumerate(responses)],
    }
    tensors = {
        "prompts": jagged(prompts),
        "responses": jagged(responses),
        "input_ids": jagged(inputs),
        "position_ids": jagged([torch.arange(len(i)) for i in inputs]),
        **{name: jagged(values) for name, values in per_token.items()},
    }
    if not nested:
        found = _as_v0(tensors)
        tensors = {n: v for n, v in found.items() if isinstance(v, torch.Tensor)}
        more = {n: v for n, v in found.items() if n not in tensors} | more
    return tu.get_tensordict(
        {**tensors, "uid": [f"prompt-{rank}-{row // 2}" for row in range(rows)]},
        {
            "temperature": 1.0, "global_batch_size": rows, "use_dynamic_bsz": False,
            "micro_batch_size_per_gpu": 2, "use_remove_padding": False, "pad_token_id": 0,
            "calculate_entropy": False, "update_lr_scheduler": True, **more,
        },
    )  # fmt: skip


def _as_v0(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same minibatch by verl's own conversion from prompts padded left, responses right."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import left_right_2_no_padding

    right = {n: torch.nested.to_padded_tensor(t.float(), 0).to(t.dtype) for n, t in tensors.items()}
    lengths = [len(p) for p in tensors["prompts"].unbind()]
    width = max(lengths)
    prompts = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        prompts[row, width - length :] = right["prompts"][row, :length]
    real = torch.arange(right["responses"].shape[1]) < torch.tensor(
        [[len(r)] for r in tensors["responses"].unbind()]
    )
    mask = torch.cat([prompts > 0, real], 1).long()  # no real token is 0
    data = tu.get_tensordict(
        {
            **{n: t for n, t in right.items() if n not in ("loss_mask", "position_ids")},
            "prompts": prompts,
            "input_ids": torch.cat([prompts, right["responses"]], 1),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        }
    )
    return {name: value for name, value in left_right_2_no_padding(data).items()}


def joined(parts: list[Any]) -> Any:
    """The minibatches of several ranks as that of one."""
    from verl.utils import tensordict_utils as tu

    whole = tu.concat_tensordict(parts)
    return tu.assign_non_tensor(whole, global_batch_size=sum(len(p) for p in parts))
