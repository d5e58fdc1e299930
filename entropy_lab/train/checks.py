"""Settings that have to fit one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropy_lab.errors import ConfigError

if TYPE_CHECKING:
    from entropy_lab.train.config import Config
    from entropy_lab.train.settings import EvalConfig
    from entropy_lab.train.tasks import Task


def check_together(config: Config) -> None:
    """Raise ConfigError for the first settings that do not fit, naming all that take part."""
    from entropy_lab.interventions import make_method
    from entropy_lab.train.tasks import make_task, worked_task

    responses = config.rollout.prompts * config.rollout.group_size
    if responses % config.train.minibatches:
        raise ConfigError(
            f"rollout.prompts x rollout.group_size = {responses} responses cannot be divided into "
            f"train.minibatches = {config.train.minibatches} equal parts: change one of the three"
        )
    if config.model.hidden % (2 * config.model.heads):
        raise ConfigError(
            f"model.hidden = {config.model.hidden} must be a multiple of 2 x model.heads = "
            f"{2 * config.model.heads}: rotary positions need heads of even width"
        )
    _check_model(config)
    task = make_task(config.task.name, **config.task.params)
    if not config.model.path:
        worked_task(task)
    make_method(config.method.name, **config.method.params)
    _check_schedule(config)
    _check_lengths(config)
    _check_best(config)
    _check_eval(config, task)


def _check_model(config: Config) -> None:
    m = config.model
    if m.attention == "flash_attention_2" and "bfloat16" not in (m.dtype, m.autocast):
        raise ConfigError(
            "model.attention = 'flash_attention_2' works in half precision alone: set "
            "model.autocast = 'bfloat16' (float32 master weights) or model.dtype = 'bfloat16'"
        )
    if m.lora_rank and config.rollout.engine != "hf":
        raise ConfigError(
            f"model.lora_rank = {m.lora_rank}: the engine {config.rollout.engine!r} takes no "
            'adapters, so set rollout.engine to "hf"'
        )
    if m.lora_targets and not m.lora_rank:
        raise ConfigError(
            f"model.lora_targets = {m.lora_targets} needs a rank: set model.lora_rank, e.g. 16"
        )


def _check_lengths(config: Config) -> None:
    r, buffer = config.rollout, config.reward.overlong_buffer
    if buffer > r.max_tokens:
        raise ConfigError(
            f"reward.overlong_buffer = {buffer} is more than the rollout.max_tokens = "
            f"{r.max_tokens} of a response: lower it"
        )
    ahead = config.task.params.get("max_prompt_tokens")
    if ahead and r.max_prompt_tokens:
        raise ConfigError(
            f"task.max_prompt_tokens = {ahead} leaves long prompts out when files are read, "
            f"rollout.max_prompt_tokens = {r.max_prompt_tokens} as they are drawn: set one of them"
        )


def _check_schedule(config: Config) -> None:
    o, train = config.optimizer, config.train
    steps = o.schedule_steps or train.rollouts * train.minibatches
    if o.schedule != "constant" and o.warmup_steps >= steps:
        raise ConfigError(
            f"optimizer.warmup_steps = {o.warmup_steps} leaves nothing of the {steps} steps over "
            f"which optimizer.schedule = {o.schedule!r} falls: lower the former"
        )


def _check_best(config: Config) -> None:
    """Every evaluation has to be one of weights that are saved."""
    train, every = config.train, config.eval.every
    if train.best_on and train.keep_best != "avg_at_k":
        raise ConfigError(
            f"train.best_on = {train.best_on!r} names a benchmark, which only "
            'train.keep_best = "avg_at_k" reads'
        )
    if train.keep_best != "avg_at_k":
        return
    if not every or not train.checkpoint_every or every % train.checkpoint_every:
        raise ConfigError(
            f'train.keep_best = "avg_at_k" needs a checkpoint at each evaluation: eval.every = '
            f"{every} must be a multiple of train.checkpoint_every = {train.checkpoint_every}"
        )


def _check_eval(config: Config, task: Task) -> None:
    e = config.eval
    check_samples(e)
    if not e.every:
        return
    try:
        task.check_evaluable(e.problems)
    except ConfigError as error:
        raise ConfigError(
            f"eval.every = {e.every} needs eval.problems = {e.problems} held-out problems, but "
            f"{error}"
        ) from None


def check_samples(e: EvalConfig) -> None:
    """Raise ConfigError where the responses to a problem are too few, or more than there are."""
    if e.k and e.max_k:
        raise ConfigError(
            f"eval.k = {e.k} and eval.max_k = {e.max_k} both say which pass@k: set one of them"
        )
    for name, k in (("max_k", e.max_k), ("k", max(e.k, default=0))):
        if k > e.samples:
            raise ConfigError(
                f"eval.{name} = {k} is more than eval.samples = {e.samples}: pass@k needs at least "
                f"k samples of each problem, so raise eval.samples or lower eval.{name}"
            )
    if not e.temperature and e.samples > 1:
        raise ConfigError(
            f"eval.temperature = 0 takes the likeliest response, of which there is one: set "
            f"eval.samples to 1, not {e.samples}"
        )
