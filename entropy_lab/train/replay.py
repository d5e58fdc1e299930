"""The counterfactual experiment: every method takes its own real step from one stored state."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import Method, make_method
from entropy_lab.probe import Probe
from entropy_lab.record import create_run, load, open_run
from entropy_lab.train import loop
from entropy_lab.train.checkpoint import load_checkpoint
from entropy_lab.train.config import Config, config_from_dict
from entropy_lab.train.gather import advantages
from entropy_lab.train.launch import is_ours, restored
from entropy_lab.train.model import skeleton
from entropy_lab.train.packing import unpack
from entropy_lab.train.parts import Parts, make_optimizer, on_device
from entropy_lab.train.policy import Micro, make_score
from entropy_lab.train.replay_point import replay_points
from entropy_lab.train.rewards import RewardConfig, make_rewarder
from entropy_lab.train.rollout import HFEngine
from entropy_lab.train.tasks import make_task
from entropy_lab.types import HELD_OUT

Told = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Replayed:
    """rows: one per (point, method, inner step), columns as in the table `replay`; own: the label
    of the method that made the run."""

    rows: pd.DataFrame
    own: str


def replay(
    run_dir: Path | str,
    methods: Mapping[str, Method],
    *,
    inner: int = 1,
    points: int = 0,
    deep: bool = True,
    told: Told | None = None,
) -> Replayed:
    """Let each method take `inner` successive steps from every replay point of a bundled run.

    methods: by label; the run's own method is added where it is not among them. Each starts from
    the identical weights and optimizer state, bit for bit, on the identical responses; advantages
    are its own. points: how many, evenly spread (0: all); deep: path forms and influence as well.
    Raises RunError where the run has no replay point or another trainer wrote it, ConfigError for
    an `inner` that the stored rollouts do not hold.
    """
    run = open_run(run_dir)
    settings = restored(run.info.get("config") or {})
    if not is_ours(settings):
        raise RunError(f"{run_dir} is not a run of the bundled trainer: it cannot be replayed")
    config = config_from_dict(settings, "run.json")
    found = replay_points(run.path)
    if not found:
        raise RunError(
            f"{run_dir} has no replay point: train with --set train.replay_every=N (rollouts)"
        )
    if not 1 <= inner <= config.train.minibatches:
        raise ConfigError(
            f"inner = {inner}: a replay point holds the {config.train.minibatches} minibatches of "
            f"one rollout, so 1 to {config.train.minibatches} steps can be taken"
        )
    own = make_method(config.method.name, **config.method.params)
    label = next((k for k, m in methods.items() if m == own), config.method.name)
    if methods.get(label, own) != own:  # the same name with other settings
        label = f"{label} (run)"
    chosen = {label: own, **methods}
    if points:
        spread = np.linspace(0, len(found) - 1, min(points, len(found)))
        found = [found[int(i)] for i in dict.fromkeys(spread.round().astype(int))]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="entropy-lab-replay-") as scratch:
        stage = _Stage(config, Path(scratch), deep, _accuracy(run.path))
        for number, point in enumerate(found):
            for name, method in chosen.items():
                if told is not None:
                    told(number, len(found), name)
                taken = stage.play(point, method, inner)
                rows += [{"method": name, "own": name == label, **row} for row in taken]
    return Replayed(pd.DataFrame(rows), label)


class _Stage:
    """Model and optimizer that every step starts on, set back to the point each time."""

    def __init__(self, config: Config, scratch: Path, deep: bool, accuracy: Mapping[int, float]):
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        # Held-out rows are measured whether the run itself did so or not.
        self.config = replace(config, probe=replace(config.probe, held_out=True))
        self.scratch, self.deep, self.accuracy = scratch, deep, accuracy
        self.model, self.tokenizer = skeleton(config)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.count = 0

    def play(self, point: Path, method: Method, inner: int) -> list[dict[str, Any]]:
        """The steps of one method from one point, as rows."""
        config = self.config
        optimizer = make_optimizer(config, self.params)
        state, tensors = load_checkpoint(point, self.model, optimizer)
        tensors = on_device(tensors, self.model)
        step = int(point.name.removeprefix("step-"))
        out = create_run(self.scratch / f"{self.count}", {}, seeds={})
        self.count += 1
        own = make_method(config.method.name, **config.method.params) == method
        memory = state["method"] if own else method.initial_state()
        with self._probe(optimizer, out, step) as probe:
            task = make_task(config.task.name, **config.task.params)
            parts = Parts(
                config=config,
                task=task,
                method=method,
                model=self.model,
                tokenizer=self.tokenizer,
                params=self.params,
                optimizer=optimizer,
                engine=HFEngine(),  # nothing is sampled: the responses are stored
                probe=probe,
                rewarder=make_rewarder(RewardConfig(), task),  # graded long ago
            )
            steps = self._minibatches(tensors, method, step)
            memory = loop.begin_rollout(parts, steps, memory)
            taken = []
            for k in range(inner):
                later = steps[k + 1] if k + 1 < len(steps) else []
                memory = loop.update(parts, steps[k], later, state["rollout"], memory)
                taken.append({"point": step, "inner": k, **_scalars(probe.last_row)})
        return [{**row, **_tokens(out, step + row["inner"], self.accuracy)} for row in taken]

    def _probe(self, optimizer: torch.optim.Optimizer, out: Path, step: int) -> Probe:
        config = self.config
        t, train = config.rollout.temperature, config.train
        score = make_score(self.model, t, config.model.autocast, train.tiled_head)
        return Probe(
            self.model,
            optimizer,
            out,
            score,
            floor_every=0,
            deep_every=int(self.deep),
            jvp=config.probe.jvp,
            dtype=config.probe.dtype,
            policy=config.probe.policy,
            seed=config.run.seed,
            temperature=config.rollout.temperature,
            start_step=step,
            write_samples=False,
            strict=True,
            tell_cost=False,
            on_alarm=None,
        )

    def _minibatches(
        self, tensors: dict[str, Tensor], method: Method, step: int
    ) -> list[list[Micro]]:
        size, seed = self.config.train.micro_batch, self.config.run.seed
        steps = [
            unpack(tensors, f"age{age}", size, age=age, step=step + age, seed=seed)
            for age in range(self.config.train.minibatches)
        ]
        return advantages(method, steps)


_KEPT = (
    "n_tokens", "entropy_token_mean", "dH_train", "dH_heldout", "touched_share", "clip_high_frac",
    "clip_low_frac", "grad_norm", "kappa", "G_dtheta", "influence_sum", "momentum_term",
    "decay_term", "dH_pred_jvp", "dH_pred_second_order", "dH_pred_softmax", "dH_pred_softmax_state",
)  # fmt: skip


def _scalars(row: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {k: row[k] for k in _KEPT if k in row}
    return chosen | {k: v for k, v in row.items() if k.startswith("method_")}


def _accuracy(run_dir: Path) -> dict[int, float]:
    """How right each response of a run is, by uid: its reward in logs that do not say."""
    samples = load(run_dir).samples()
    right = samples["reward"] if "accuracy" not in samples else samples["accuracy"]
    return dict(zip(samples["uid"].astype(int), right.astype(float), strict=True))


def _tokens(out: Path, step: int, accuracy: Mapping[int, float]) -> dict[str, float]:
    """dlogp of correct and wrong responses, KL to the start and the sum of influence_marginal.

    kl: mean over the step's tokens of exp(dlogp) - 1 - dlogp, the k3 estimate of KL(start | after)
    on tokens of the start.
    """
    tokens = load(out).tokens(step=step)
    own = tokens[(tokens["flags"] & HELD_OUT) == 0]
    dlogp = own["dlogp"].astype(np.float64)
    correct = own["uid"].map(dict(accuracy)).to_numpy(dtype=np.float64) > 0
    found = {
        "dlogp_correct": float(dlogp[correct].mean()) if correct.any() else float("nan"),
        "dlogp_wrong": float(dlogp[~correct].mean()) if (~correct).any() else float("nan"),
        "kl": float((np.expm1(dlogp) - dlogp).mean()),
    }
    if "influence_marginal" in own:
        found["influence_marginal"] = float(own["influence_marginal"].sum())
    return found
