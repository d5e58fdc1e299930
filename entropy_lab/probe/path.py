"""The update as a path theta(alpha) = theta + alpha * delta, and measurements along it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from entropy_lab.errors import RunError
from entropy_lab.probe.precision import SAME, Precision, plain_kernels
from entropy_lab.probe.scorer import Score, untouched_rng, without_dropout
from entropy_lab.probe.world import ALONE, World
from entropy_lab.types import TokenStats

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Path:
    """theta (a copy) and theta' (the parameters as they are now) of the trainable parameters.

    precision: how every measurement along the path is computed. The ends are the weights as it
    takes them and points between lie in its dtype, so that rounded weights move along it smoothly.
    Of several processes each keeps its part of the weights, and does arithmetic on that alone; the
    whole of a point is put together where a pass needs it, so all of them have to go there.
    """

    model: nn.Module
    start: Named
    precision: Precision = SAME
    world: World = ALONE

    @classmethod
    def begin(
        cls,
        model: nn.Module,
        device: str | torch.device | None = None,
        precision: Precision = SAME,
        world: World = ALONE,
    ) -> Path:
        """Remember theta before the step, on `device` (None: where the parameters are)."""
        start = {
            name: p.to(device, copy=True) if device else p.clone()
            for name, p in ((n, world.part(p.detach())) for n, p in world.trained(model).items())
        }
        return cls(model, start, precision, world)

    def start_of(self, name: str) -> Tensor:
        start = self.start[name].to(self.world.weight(self.model, name).device)
        return self.precision.weights(start)

    def end_of(self, name: str) -> Tensor:
        now = self.world.weight(self.model, name).detach()
        return self.precision.weights(self.world.part(now))

    def delta(self) -> Named:
        """theta' - theta of every trainable parameter."""
        return {n: self.end_of(n) - self.start_of(n) for n in self.start}

    @contextmanager
    def moved(self, names: Iterable[str] | None = None, alpha: float = 1.0) -> Iterator[None]:
        """Only `names` (None: all) moved by alpha of their delta, the others at theta.

        At alpha = 1 a moved parameter is theta' itself, at 0 everything is theta, both exactly.
        """
        chosen = set(self.start if names is None else names)
        values: Named = {}
        for name in self.start:
            if name not in chosen or alpha == 0.0:
                values[name] = self.start_of(name)
            elif alpha != 1.0:
                values[name] = torch.lerp(self.start_of(name), self.end_of(name), alpha)
            if name in values:
                values[name] = self.world.whole(name, values[name])
        with self.precision.applied(self.model, values):
            yield

    def measure(
        self, score: Score, inputs: Any, names: Iterable[str] | None = None, alpha: float = 1.0
    ) -> TokenStats:
        """Statistics of a micro-batch at a point of the path, without gradients."""
        return self.measure_each(score, [inputs], names, alpha)[0]

    def measure_each(
        self,
        score: Score,
        inputs: Sequence[Any],
        names: Iterable[str] | None = None,
        alpha: float = 1.0,
    ) -> list[TokenStats]:
        """The same of several micro-batches, for which the point is made once."""
        with torch.no_grad(), untouched_rng(self.model), without_dropout(self.model):
            with self.moved(names, alpha):
                return [score(x).detach() for x in inputs]

    def jvp(self, score: Score, inputs: Any, tangent: Named) -> tuple[Tensor, Tensor]:
        """(d logp, d entropy) (B, T) along `tangent`, exact to rounding, by forward-mode AD at
        theta. Raises RunError where an operation of the model has no forward rule."""
        return self.jvp_each(score, [inputs], tangent)[0]

    def jvp_each(
        self, score: Score, inputs: Sequence[Any], tangent: Named
    ) -> list[tuple[Tensor, Tensor]]:
        """The same of several micro-batches, for which the weights are put together once."""
        with ExitStack() as stack:
            stack.enter_context(untouched_rng(self.model))
            stack.enter_context(without_dropout(self.model))
            stack.enter_context(plain_kernels(self.model))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the others have no forward rule
            stack.enter_context(forward_ad.dual_level())
            duals = {}
            for name in self.start:
                theta = duals[name] = self.world.whole(name, self.start_of(name))
                if name in tangent:
                    along = self.world.whole(name, tangent[name].to(theta.dtype))
                    duals[name] = forward_ad.make_dual(theta, along)
            stack.enter_context(self.precision.applied(self.model, duals))
            try:
                return [_tangents(score(x)) for x in inputs]
            except NotImplementedError as e:
                raise RunError(
                    "forward-mode AD cannot pass an operation of this model "
                    f"({str(e).strip().splitlines()[0]}): set probe.jvp=slope, in a loop of your "
                    "own Probe(..., jvp='slope')"
                ) from None

    def central(self, score: Score, inputs: Any, tangent: Named) -> tuple[Tensor, Tensor]:
        """(d logp, d entropy) (B, T) along `tangent` by a central difference at theta, for any
        kernel; the step is as long as the update itself (float32) or 1e-3 of it (float64)."""
        return self.central_each(score, [inputs], tangent)[0]

    def central_each(
        self, score: Score, inputs: Sequence[Any], tangent: Named
    ) -> list[tuple[Tensor, Tensor]]:
        """The same of several micro-batches."""
        size = self._norm(tangent)
        if size == 0:
            still = [torch.zeros_like(s.logp) for s in self.measure_each(score, inputs, alpha=0.0)]
            return [(zero, zero) for zero in still]
        moved = self._norm(self.delta())
        double = all(self.start_of(n).dtype == torch.float64 for n in tangent)
        h = (1e-3 if double else 1.0) * (moved or 1.0) / size
        ends = []
        for sign in (1.0, -1.0):
            values = {n: self.start_of(n) for n in self.start}
            values |= {n: values[n] + sign * h * tangent[n] for n in tangent}
            values = {n: self.world.whole(n, value) for n, value in values.items()}
            with torch.no_grad(), untouched_rng(self.model), without_dropout(self.model):
                with self.precision.applied(self.model, values):
                    ends.append([score(x).detach() for x in inputs])
        return [
            ((up.logp - down.logp) / (2 * h), (up.entropy - down.entropy) / (2 * h))
            for up, down in zip(*ends, strict=True)
        ]

    def _norm(self, named: Named) -> float:
        square = float(sum(t.double().square().sum() for t in named.values()))
        return self.world.over_parts(square) ** 0.5


def _tangents(stats: TokenStats) -> tuple[Tensor, Tensor]:
    """(d logp, d entropy) of statistics taken inside of a dual level."""
    parts = [forward_ad.unpack_dual(x) for x in (stats.logp, stats.entropy)]
    dlogp, dentropy = (
        torch.zeros_like(p.primal) if p.tangent is None else p.tangent for p in parts
    )
    return dlogp.detach().clone(), dentropy.detach().clone()


def layer_groups(model: nn.Module) -> dict[str, list[str]]:
    """Trainable parameter names by place: embed, layer_00.., final, head; [] where all is frozen.

    head: the output embedding (a tied one is counted here, and moving it moves the input
    embedding too), or the last module with parameters. Layers: the longest ModuleList or
    Sequential of blocks with parameters; without one every parameter but the head's is `embed`.
    """
    head, stack = _head_names(model), layer_stack(model)
    groups: dict[str, list[str]] = {}
    seen_layer = False
    for name, parameter in model.named_parameters():
        inside = re.match(re.escape(stack) + r"\.(\d+)\.", name) if stack else None
        seen_layer = seen_layer or inside is not None
        if name in head:
            key = "head"
        elif inside:
            key = f"layer_{int(inside[1]):02d}"
        else:
            key = "final" if seen_layer else "embed"
        # A frozen place stays in the list: the last block is the last one, trained or not.
        groups.setdefault(key, []).extend([name] if parameter.requires_grad else [])
    return groups


def last_block(groups: Mapping[str, list[str]]) -> list[str]:
    """Names of the head, the final norm and the last layer."""
    layers = sorted(k for k in groups if k.startswith("layer_"))
    return [n for k in (*layers[-1:], "final", "head") for n in groups.get(k, [])]


def _head_names(model: nn.Module) -> set[str]:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    if not isinstance(head, nn.Module):
        owners = [m for m in model.modules() if any(p is not None for p in m._parameters.values())]
        head = owners[-1] if owners else None
    own = {id(p) for p in head.parameters()} if head is not None else set()
    return {name for name, p in model.named_parameters() if id(p) in own}


def layer_stack(model: nn.Module) -> str:
    """The name of the longest ModuleList of blocks with parameters; "" where there is none."""
    lists = {
        name: sum(1 for child in module if next(child.parameters(), None) is not None)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name
    }
    return max(lists, key=lambda n: lists[n]) if lists else ""
