"""What an intervention is, the fields methods share, and the plan of one optimizer step."""

from __future__ import annotations

import types
from dataclasses import dataclass, fields, replace
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
from torch import Tensor

from entropy_lab.advantages import group_relative
from entropy_lab.errors import ConfigError
from entropy_lab.loss import TokenShare, token_share
from entropy_lab.types import Normaliser, TokenBatch, TokenPlan, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float

# A method's memory: flat, what JSON can hold, a value that nobody mutates.
State = dict[str, float]
Scope = Literal["minibatch", "microbatch"]
# For methods whose statistics may also span a whole rollout.
RolloutScope = Literal["rollout", "minibatch", "microbatch"]
_P = TypeVar("_P", TokenPlan, TokenShare)


class Intervention(Protocol):
    """A method: what it reads, its advantages, what it does to each token, and what it remembers.

    `needs` names the TokenStats fields (and "old_entropy" of the batch) that `plan`,
    `begin_rollout` or `end_step` read; where it is empty, all three take stats=None. A method with
    batch statistics has a field `scope`: "minibatch" (the whole optimizer step), "microbatch", or
    "rollout", whose thresholds `begin_rollout` leaves in the state. The state is the method's
    memory, which its caller keeps::

        state = method.initial_state()
        each rollout:   state = method.begin_rollout(whole rollout, its stats, state)
            each step:  plan_step(method, batches, stats, state); the optimizer's step;
                        state = method.end_step(whole step, its stats before the step, state)
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def initial_state(self) -> State: ...

    def advantages(self, batch: TokenBatch) -> Float[Tensor, "B T"]: ...

    def begin_rollout(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State: ...

    def plan(
        self, batch: TokenBatch, stats: TokenStats | None, state: State | None = None
    ) -> TokenPlan: ...

    def end_step(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State: ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """Fields of every method: how the loss is averaged, and the group-relative advantage.

    normaliser, constant_length: as in TokenPlan. unconfirmed: what of its constants could not be
    confirmed. Raises ConfigError for a wrong type or value.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    unconfirmed: ClassVar[str] = ""

    normaliser: Normaliser = "token_mean"
    constant_length: int | None = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            self._check_type(f.name, getattr(self, f.name), hints[f.name])
        needs_length = self.normaliser == "constant"
        self._check(
            "constant_length",
            self.constant_length is None if not needs_length else (self.constant_length or 0) > 0,
            "a positive number of tokens with normaliser 'constant', and left out otherwise",
        )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def initial_state(self) -> State:
        """The memory before the first rollout; nothing, for most methods."""
        return {}

    def advantages(self, batch: TokenBatch) -> Float[Tensor, "B T"]:
        """A = (R - mean)/(std + 1e-6) within the group, std with n-1; (B, T), 0 outside the mask.

        Raises ValueError where batch.reward or batch.group is None. arXiv 2402.03300.
        """
        reward, group = self._read(batch, "reward", "group")
        return self._per_token(batch, group_relative(reward, group))

    def begin_rollout(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State:
        """The memory with which the steps of a rollout are planned; a new value, or `state`.

        batch, stats: (B, T), all minibatches of the rollout and their statistics at the policy
        that generated it. Raises ValueError where stats are needed and None.
        """
        return state

    def plan(
        self, batch: TokenBatch, stats: TokenStats | None, state: State | None = None
    ) -> TokenPlan:
        """Every token treated alike, by the fields of the method.

        Methods with a memory take state=None as the start of a run whose rollout is `batch`.
        """
        return self._plan()

    def end_step(self, batch: TokenBatch, stats: TokenStats | None, state: State) -> State:
        """The memory after an optimizer step; here controllers move. A new value, or `state`.

        batch, stats: (B, T), the step's minibatch and its statistics just before the step. Raises
        ValueError where stats are needed and None.
        """
        return state

    def _started(self, batch: TokenBatch, stats: TokenStats | None, state: State | None) -> State:
        return self.begin_rollout(batch, stats, self.initial_state()) if state is None else state

    def _recall(self, state: State, key: str) -> float:
        if key not in state:
            raise ValueError(
                f"{self.name}.plan reads state[{key!r}], but the state holds "
                f"{', '.join(state) or 'nothing'}: pass what begin_rollout returned"
            )
        return state[key]

    def _plan(self, **changes: Any) -> TokenPlan:
        return TokenPlan(
            normaliser=self.normaliser, constant_length=self.constant_length, **changes
        )

    def _read(self, batch: TokenBatch, *names: str) -> list[Tensor]:
        """Fields of the batch that `advantages` cannot do without, each (B,)."""
        for name in names:
            if getattr(batch, name) is None:
                raise ValueError(
                    f"{self.name}.advantages reads batch.{name}, which is None: pass {name} (B,)"
                )
        return [getattr(batch, name) for name in names]

    def _per_token(self, batch: TokenBatch, advantage: Tensor) -> Tensor:
        """The advantage (B,) of each response on all of its tokens: (B, T), 0 outside the mask."""
        return torch.where(batch.mask, advantage.to(batch.old_logp.dtype)[:, None], 0.0)

    def _stats(self, stats: TokenStats | None, hook: str = "plan") -> TokenStats:
        if stats is None:
            raise ValueError(
                f"{self.name}.{hook} reads {', '.join(sorted(self.needs))} but got stats=None: "
                "pass the TokenStats of a no-grad pass over the same batch"
            )
        return stats.detach()

    def _check(self, field: str, ok: bool, wanted: str) -> None:
        if not ok:
            value = getattr(self, field)
            raise ConfigError(f"{self.name}: {field} = {value!r} is not valid: set {wanted}")

    def _check_type(self, field: str, value: Any, hint: Any) -> None:
        if get_origin(hint) is Literal:
            self._check(field, value in get_args(hint), f"one of {', '.join(get_args(hint))}")
            return
        union = get_origin(hint) in (Union, types.UnionType)
        accepted = get_args(hint) if union else (hint,)
        # A bool is an int to Python, never to a user; a whole number is a valid float.
        wider = (*accepted, int) if float in accepted else accepted
        ok = bool in accepted if isinstance(value, bool) else isinstance(value, wider)
        names = ["nothing" if t is types.NoneType else t.__name__ for t in accepted]
        self._check(field, ok, f"a value of type {' or '.join(names)}, not {type(value).__name__}")


@dataclass(frozen=True, kw_only=True)
class Clipped(Method):
    """A method with a ratio clip: the interval is [1 - clip_low, 1 + clip_high].

    dual_clip > 1 bounds the loss of tokens with A < 0 at dual_clip * |A|; inf switches it off.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = float("inf")

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("clip_low", "clip_high"):
            self._check(field, getattr(self, field) >= 0, "a number >= 0 (inf: no clip)")
        self._check("dual_clip", self.dual_clip > 1, "a number > 1 (inf: no dual clip)")

    def _plan(self, **changes: Any) -> TokenPlan:
        return super()._plan(
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
            **changes,
        )

    def _beyond(self, batch: TokenBatch, stats: TokenStats) -> Tensor:
        """Where the ratio clip stops the gradient (I_clip = 0): (B, T) bool."""
        ratio = torch.exp(stats.logp - batch.old_logp)
        high = (batch.advantage > 0) & (ratio > 1 + self.clip_high)
        low = (batch.advantage < 0) & (ratio < 1 - self.clip_low)
        return high | low


def plan_step(
    method: Intervention,
    batches: list[TokenBatch],
    stats: list[TokenStats] | None,
    state: State | None = None,
) -> list[tuple[TokenPlan, TokenShare]]:
    """The plan and the token shares of every micro-batch of one optimizer step.

    batches, stats: the step's micro-batches (B_i, T_i), stats None where method.needs is empty.
    A method of scope "microbatch" plans each of them alone, any other all at once; the shares
    (B_i, T_i), from `token_share`, belong to the whole step either way. state: what
    method.begin_rollout returned, or end_step since; None as in `Method.plan`. The weights are the
    method's times batch.rollout_weight, where the batches have it. Raises ValueError where
    the lists are empty or differ in length, and whatever token_share raises.
    """
    if not batches or (stats is not None and len(stats) != len(batches)):
        found = "None" if stats is None else len(stats)
        raise ValueError(
            f"plan_step got {len(batches)} batches and {found} stats: pass one TokenStats for "
            "each of at least one TokenBatch"
        )
    whole = TokenBatch.cat(batches)
    if getattr(method, "scope", "minibatch") == "microbatch":
        each = [None] * len(batches) if stats is None else stats
        plans = [
            _corrected(method.plan(b, s, state), b) for b, s in zip(batches, each, strict=True)
        ]
        share = token_share(whole, TokenPlan.cat(plans))
    else:
        known = None if stats is None else TokenStats.cat(stats)
        plan = _corrected(method.plan(whole, known, state), whole)
        plans = [_part(plan, rows, length) for rows, length in _parts(batches)]
        share = token_share(whole, plan)
    shares = [_part(share, rows, length) for rows, length in _parts(batches)]
    return list(zip(plans, shares, strict=True))


def _corrected(plan: TokenPlan, batch: TokenBatch) -> TokenPlan:
    if batch.rollout_weight is None:
        return plan
    return replace(plan, weight=plan.weight * batch.rollout_weight)


def _parts(batches: list[TokenBatch]) -> list[tuple[slice, int]]:
    """Where each micro-batch sits in their concatenation: its rows and its own T."""
    parts, start = [], 0
    for batch in batches:
        rows, length = batch.token_id.shape
        parts.append((slice(start, start + rows), length))
        start += rows
    return parts


def _part(values: _P, rows: slice, length: int) -> _P:
    return values.rows(rows).map(lambda x: x[:, :length] if x.ndim == 2 else x)
