"""The sections of a run's settings: one frozen dataclass each, checked when they are made."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Threads = Annotated[int, Field(ge=0, le=1024)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]

STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """name labels the run; seed drives problems, sampling and probing; threads 0 keeps torch's."""

    name: str = "demo"
    seed: Seed = 0
    threads: Threads = 0


@dataclass(frozen=True, config=STRICT)
class TaskConfig:
    """A name in `TASKS`; every other key of the section is a field of that task."""

    name: str = "arithmetic"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """path: a local folder or hub name of a causal LM; empty for the model made here, whose sizes
    and warm-up the other keys are.

    dtype: of the weights; autocast: "bfloat16" runs the passes of the trainer in it (on float32
    weights those are the masters). attention auto: as `transformers` chooses for the model; device
    auto: CUDA where there is one. gradient_checkpointing: layers are computed again in the backward
    pass instead of kept. trainable: globs of parameter names, all others are frozen (empty: none
    is). lora_rank > 0 trains adapters of that rank (peft) instead, beside what `trainable` names;
    lora_targets: names of the layers that get one, empty for all linear ones but the head.
    vocab: rows of embedding and head, where more than the tokenizer has (to load a device).
    warmup_corrupt: the chance that a written step of a training trace is wrong; warmup_ramp:
    iterations of linear learning-rate rise; warmup_decay: the last share of them, falling to 0.
    """

    path: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"
    autocast: Literal["none", "bfloat16"] = "none"
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gradient_checkpointing: bool = False
    trainable: list[str] = field(default_factory=list)
    lora_rank: Count = 0
    lora_alpha: Positive = 8
    lora_targets: list[str] = field(default_factory=list)
    seed: Seed = 0
    layers: Positive = 3
    hidden: Positive = 128
    intermediate: Positive = 384
    heads: Positive = 4
    vocab: Count = 0
    warmup_iterations: Count = 700
    warmup_sequences: Positive = 48
    warmup_lr: Rate = 4e-3
    warmup_beta1: Decay = 0.9
    warmup_beta2: Decay = 0.98
    warmup_ramp: Count = 40
    warmup_decay: Share = 0.3
    warmup_corrupt: Share = 0.35


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """One rollout = prompts x group_size responses of at most max_tokens tokens, EOS included.

    truncated: what a response without an EOS is to the training: "keep" as any other, "mask" out
    of the loss (it stays in its group's baseline), "zero" reward 0. max_prompt_tokens 0: no limit;
    long_prompts: what a training prompt beyond it is: "refuse" an error, "drop" replaced by
    another problem, "left" cut on the left. dynamic_sampling: prompts are drawn until `prompts`
    groups have unequal rewards, in at most max_draws batches (DAPO, arXiv 2503.14476).
    """

    engine: Literal["hf", "vllm"] = "hf"
    prompts: Positive = 32
    group_size: Annotated[int, Field(ge=2)] = 8
    max_tokens: Positive = 12
    temperature: Rate = 1.0
    truncated: Literal["keep", "mask", "zero"] = "keep"
    max_prompt_tokens: Count = 0
    long_prompts: Literal["refuse", "drop", "left"] = "refuse"
    dynamic_sampling: bool = False
    max_draws: Positive = 10


@dataclass(frozen=True, config=STRICT)
class VllmConfig:
    """The engine "vllm" of [rollout], a process of its own beside the trainer's.

    python: the interpreter that has vllm, "" for this one. dtype: "auto" is model.autocast, or the
    trainer's. tolerance: mean |rollout_logp - old_logp| in nats that stops the run; 0 is 1e-3 in
    float32 and 0.05 below. max_model_len: tokens of prompt and response, 0 for the model's own.
    gpu_memory_utilization: the engine's share of the GPU while it is awake. start_timeout: seconds.
    """

    python: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tolerance: NonNegative = 0.0
    max_model_len: Count = 0
    gpu_memory_utilization: PositiveShare = 0.3
    enforce_eager: bool = True
    start_timeout: Rate = 600.0


@dataclass(frozen=True, config=STRICT)
class MethodConfig:
    """A name in `INTERVENTIONS`; every other key of the section is a field of that method."""

    name: str = "grpo"
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """clip_norm 0 is off; beta1 is the momentum of "sgd"; beta2 and eps are of "adamw" alone.

    The rate rises over warmup_steps optimizer steps, then follows `schedule` down to min_lr_share
    of itself, which it has reached after schedule_steps (0: the steps of the run).
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: NonNegative = 2e-4
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Rate = 1e-8
    weight_decay: NonNegative = 0.0
    clip_norm: NonNegative = 1.0
    warmup_steps: Count = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    min_lr_share: Share = 0.0
    schedule_steps: Count = 0


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Each rollout feeds `minibatches` optimizer steps; micro_batch counts responses.

    micro_tokens above 0: micro-batches of responses of like length, at most so many padded tokens
    each, instead. rollout_correction: the loss weighted with the truncated ratio of trainer to
    sampler, min(exp(old_logp - rollout_logp), rollout_correction_cap), of a token or a sequence.
    tiled_head: statistics without the logits as a whole; "auto" where these take over 256 MiB.
    checkpoint_every counts rollouts (0: only at the end); keep_checkpoints 0 keeps all, any other
    number the newest ones and the best by keep_best: "reward", the mean of the last 10 rollouts,
    or "avg_at_k", the evaluation of these weights on the benchmark best_on ("": mean of all).
    replay_every: rollouts between two replay points (0: none), for `audit --replay`; keep_replays:
    how many of the newest stay (0: all). max_log_gb: past it token rows and the texts of samples
    are left out, and the log says so (0: no limit).
    Of several processes (torchrun) "ddp", which is "auto", keeps a whole model in each; "fsdp"
    splits weights, gradients and optimizer state (FSDP2). hang_timeout: seconds without progress
    after which a rank counts as hung, above the longest call of a reward.
    """

    rollouts: Positive = 60
    minibatches: Positive = 2
    micro_batch: Positive = 64
    micro_tokens: Count = 0
    rollout_correction: Literal["none", "token", "sequence"] = "none"
    rollout_correction_cap: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    tiled_head: Literal["auto", True, False] = "auto"
    checkpoint_every: Count = 20
    keep_checkpoints: Count = 2
    keep_best: Literal["", "reward", "avg_at_k"] = ""
    best_on: str = ""
    replay_every: Count = 0
    keep_replays: Count = 0
    max_log_gb: NonNegative = 0.0
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    hang_timeout: Rate = 1800.0


@dataclass(frozen=True, config=STRICT)
class ProbeConfig:
    """What is measured around the steps; every: each n-th step; fraction: of its responses.

    floor_every: gradient audit, repeat check and noise floor on each n-th probed step;
    deep_every: path forms and influence, 0 for none. jvp, entropy_of, dtype, policy: as in Probe;
    snapshots: where the weights before a deep step are kept.
    """

    enabled: bool = True
    every: Positive = 1
    fraction: PositiveShare = 1.0
    profile: Literal["core", "full"] = "full"
    held_out: bool = True
    fixed_responses: Count = 64
    floor_every: Positive = 10
    deep_every: Count = 0
    jvp: Literal["forward", "slope"] = "forward"
    entropy_of: Literal["train", "held_out", "fixed"] = "train"
    dtype: Literal["auto", "same", "float32", "float64"] = "auto"
    policy: Literal["master", "cast"] = "master"
    snapshots: Literal["device", "cpu"] = "device"


@dataclass(frozen=True, config=STRICT)
class EvalConfig:
    """Evaluation on held-out problems of the task, before, after and every `every` rollouts.

    every 0: never. problems: how many (of data: at most that many of each validation file, 0 for
    all). samples: responses to each; temperature 0: the likeliest one. k: those of pass@k; empty:
    1, 2, 4, ... up to max_k (0: up to samples); max_tokens 0: that of [rollout]. keep_answers:
    every response is kept under RUN/eval/training, as `entropy-lab eval` keeps them.
    """

    every: Count = 0
    problems: Count = 64
    samples: Positive = 64
    k: list[Positive] = field(default_factory=list)
    max_k: Count = 0
    temperature: NonNegative = 1.0
    top_p: PositiveShare = 1.0
    max_tokens: Count = 0
    keep_answers: bool = False


@dataclass(frozen=True, config=STRICT)
class TrackerConfig:
    """Where else the numbers of metrics.jsonl go: a name in `TRACKERS`, and its project."""

    name: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    project: str = "entropy-lab"
