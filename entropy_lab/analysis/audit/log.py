"""A run as the audit reads it: its rollouts one after another, and the method that made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from entropy_lab.analysis.audit.rebuild import (
    FLOATS,
    KEYS,
    MOMENTS,
    OPTIONAL,
    LoggedStep,
    Responses,
    StepFacts,
    rebuild,
)
from entropy_lab.analysis.curves import step_rows
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import Method, make_method
from entropy_lab.loss import CorrectionLevel
from entropy_lab.record import Run
from entropy_lab.types import TokenBatch, TokenStats

_SAMPLES = ("uid", "group", "reward", "inclusion_prob", "length", "step", "trained", "micro")


@dataclass(frozen=True)
class Rollout:
    """The probed steps of one batch of responses, and what the samples table says of all of it.

    samples: rows of the rollout's responses by uid, None where there are none.
    """

    steps: list[LoggedStep]
    samples: pd.DataFrame | None

    @cached_property
    def logged(self) -> tuple[TokenBatch, TokenStats]:
        """All logged rows as one batch, with their statistics at the policy that generated.

        The moments are those of each row's own step: the log has no earlier ones.
        """
        batch = TokenBatch.cat([s.whole for s in self.steps])
        stats = TokenStats.cat([s.statistics for s in self.steps])
        entropy = stats.entropy if batch.old_entropy is None else batch.old_entropy
        return batch, replace(stats, logp=batch.old_logp, entropy=entropy)

    @cached_property
    def everyone(self) -> TokenBatch:
        """Every response of the rollout, as advantages are computed: logged rows, and of the
        responses that are not logged group, reward and length (their other fields NaN or 0)."""
        batch, _ = self.logged
        if self.samples is None:
            return batch
        assert batch.uid is not None
        rest = self.samples[~self.samples.index.isin(batch.uid.numpy())]
        if rest.empty:
            return batch
        length = torch.tensor(rest["length"].to_numpy(np.int64))
        mask = torch.arange(int(length.max())) < length[:, None]
        unknown = torch.where(mask, float("nan"), 0.0)
        other = TokenBatch(
            token_id=torch.zeros_like(mask, dtype=torch.int64),
            mask=mask,
            advantage=unknown,
            old_logp=unknown,
            old_entropy=None if batch.old_entropy is None else unknown,
            uid=torch.tensor(rest.index.to_numpy(np.int64)),
            group=torch.tensor(rest["group"].to_numpy(np.int64)),
            reward=torch.tensor(rest["reward"].to_numpy(np.float32)),
            age=batch.age,
            seed=batch.seed,
        )
        return TokenBatch.cat([batch, other])

    def advantages(self, method: Any) -> list[Tensor]:
        """What the method makes of the rewards: one (B, T) for each step.

        Raises ValueError where it needs what the log does not have.
        """
        # As in training, the batch of a rollout belongs to no step yet.
        found = method.advantages(replace(self.everyone, step=0, age=0))
        if not isinstance(found, Tensor) or found.shape != self.everyone.mask.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"advantages returned {shape} for a batch of {tuple(self.everyone.mask.shape)}: "
                "return one advantage a token, (B, T)"
            )
        parts, start = [], 0
        for step in self.steps:
            rows, width = step.whole.mask.shape
            part, start = found[start : start + rows, :width], start + rows
            if not bool(part[step.whole.mask].isfinite().all()):
                raise ValueError(
                    f"advantages are not finite in step {step.step}: they need rewards, or values "
                    "of responses that are not in the log"
                )
            parts.append(torch.where(step.whole.mask, part, 0.0))
        return parts


class Log:
    """Rollouts of a run in order, one in memory at a time."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.name = run.path.resolve().name
        self.steps = step_rows(run)
        have = set(run.columns("tokens"))
        lacking = [name for name in (*KEYS, *FLOATS) if name not in have]
        if lacking:
            lacks = (run.info.get("imported") or {}).get("lacks")
            why = f"its log lacks {lacks}" if lacks else "nothing to audit"
            raise RunError(f"{run.path} has no token column {lacking[0]!r}: {why}")
        self.columns = [name for name in (*KEYS, *FLOATS, *OPTIONAL) if name in have]
        self.has_moments = have.issuperset(MOMENTS)
        self.ranks = len(list((run.path / "tokens").glob("rank=*")))
        self.own, self.own_name = _own_method(run)

    @cached_property
    def samples(self) -> pd.DataFrame | None:
        """The samples by uid, without groups that dynamic sampling left out; None where the run
        has none with groups."""
        try:
            have = self.run.columns("samples")
            if not {"uid", "group", "reward", "length", "step"} <= set(have):
                return None
            data = self.run.samples([name for name in _SAMPLES if name in have])
        except RunError:  # an importer may have none
            return None
        if {"trained", "micro"} <= set(data):
            data = data[data["micro"].notna() | (data["trained"] != False)]  # noqa: E712  (null)
        return data.drop_duplicates("uid", keep="last").set_index("uid")

    @cached_property
    def correction(self) -> tuple[CorrectionLevel, float] | None:
        """Level and cap of the run's importance weights between sampler and trainer."""
        train = (self.run.info.get("config") or {}).get("train")
        train = train if isinstance(train, dict) else {}
        level = train.get("rollout_correction", "none")
        return None if level == "none" else (level, float(train["rollout_correction_cap"]))

    @cached_property
    def seed(self) -> int:
        seeds = self.run.info.get("seeds")
        if isinstance(seeds, dict):
            seeds = seeds.get("run", seeds.get("seed"))
        return seeds if isinstance(seeds, int) else 0

    def rollouts(self) -> Iterator[Rollout]:
        """Probed steps gathered by rollout: steps of one have the same step - age."""
        held: list[LoggedStep] = []
        for step, table in self.run.iter_steps(self.columns):
            found = rebuild(step, table, self._facts(step), self._responses)
            if found is None:
                continue
            if held and found.step - found.age != held[0].step - held[0].age:
                yield self._rollout(held)
                held = []
            held.append(found)
        if held:
            yield self._rollout(held)

    def _rollout(self, steps: list[LoggedStep]) -> Rollout:
        if self.samples is None:
            return Rollout(steps, None)
        first = steps[0].step - steps[0].age
        return Rollout(steps, self.samples[self.samples["step"] == first])

    @cached_property
    def _by_step(self) -> dict[int, dict[str, Any]]:
        return {int(r["step"]): r for r in self.steps.to_dict("records")}  # type: ignore[misc]

    def _facts(self, step: int) -> StepFacts:
        row = self._by_step.get(step, {})
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
        memory = {
            k.removeprefix("method_"): v
            for k, v in numbers.items()
            if k.startswith("method_") and np.isfinite(v)
        }
        tokens = numbers.get("n_tokens", 0.0)
        chance = numbers.get("inclusion_prob", 1.0)
        return StepFacts(
            lr=numbers.get("lr", float("nan")),
            n_tokens=int(tokens) if np.isfinite(tokens) else 0,
            inclusion=chance if 0 < chance <= 1 else 1.0,
            memory=memory,
            seed=self.seed,
            correction=self.correction,
        )

    def _responses(self, uid: NDArray[np.int64], default: float) -> Responses:
        chance = np.full(len(uid), default)
        nothing = Responses(None, None, chance)
        if self.samples is None:
            return nothing
        found = self.samples.reindex(uid)
        if "inclusion_prob" in found:
            said = found["inclusion_prob"].to_numpy(np.float64)
            chance = np.where((said > 0) & (said <= 1), said, default)
        if found["group"].isna().any():
            return replace(nothing, inclusion=chance)
        reward = found["reward"].to_numpy(np.float32)
        group = found["group"].to_numpy(np.int64)
        return Responses(group, reward if np.isfinite(reward).all() else None, chance)


def _own_method(run: Run) -> tuple[Method | None, str]:
    """The method of run.json with its settings, None where it names none that is known here."""
    said = run.info.get("method") or (run.info.get("config") or {}).get("method") or {}
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return None, ""
    params = {k: _restored(v) for k, v in said.items() if k not in ("name", "source")}
    try:
        return make_method(said["name"], **params), said["name"]
    except ConfigError:  # of another version, or a name that only the user's loop knows
        return None, said["name"]


def _restored(value: Any) -> Any:
    # run.json writes infinities as strings.
    return float(value) if value in ("inf", "-inf") else value
