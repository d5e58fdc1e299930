"""Settings that have to fit one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from entropy_lab.errors import ConfigError

if TYPE_CHECKING:
    from entropy_lab.train.config import Config
    from entropy_lab.train.tasks import Task


def check_together(config: Config) -> None:
    """Raise ConfigError for the first settings that do not fit, naming all that take part."""
    from entropy_lab.interventions import make_method
    from entropy_lab.train.tasks import make_task

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
    task = make_task(config.task.name, **config.task.params)
    make_method(config.method.name, **config.method.params)
    _check_schedule(config)
    _check_best(config)
    _check_eval(config, task)


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
    from entropy_lab.train.tasks import held_out_problems

    e = config.eval
    if e.max_k > e.samples:
        raise ConfigError(
            f"eval.max_k = {e.max_k} is more than eval.samples = {e.samples}: pass@k needs at "
            "least k samples of each problem, so raise eval.samples or lower eval.max_k"
        )
    if e.top_p < 1:
        raise ConfigError(
            f"eval.top_p = {e.top_p}: the engine {config.rollout.engine!r} samples from the whole "
            "softmax alone, so leave it at 1.0"
        )
    if not e.every:
        return
    try:
        held_out_problems(task, e.problems)
    except ConfigError as error:
        raise ConfigError(
            f"eval.every = {e.every} needs eval.problems = {e.problems} held-out problems, but "
            f"{error}"
        ) from None
