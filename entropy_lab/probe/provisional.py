"""The step that an optimizer would take on a gradient, and what it would do to mean entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from entropy_lab.interventions import EntropyTarget, Method, plan_step
from entropy_lab.interventions.clip_higher import ClipHigher
from entropy_lab.interventions.influence_steer import without_influence
from entropy_lab.loss import policy_loss
from entropy_lab.probe.influence import dot, marginal_direction
from entropy_lab.probe.path import Named, Path
from entropy_lab.probe.scorer import Scorer, untouched_rng, without_dropout
from entropy_lab.probe.update import Update, provisional_step
from entropy_lab.types import TokenBatch, TokenStats


@dataclass(frozen=True)
class Provisional:
    """One optimizer step that is about to be taken: its forwards (graphs kept), its optimizer as
    it stands, and G, the gradient of the mean entropy of the step's own tokens."""

    scorer: Scorer
    optimizer: torch.optim.Optimizer
    clip_norm: float
    inputs: Sequence[Any]
    batches: list[TokenBatch]
    forwards: list[TokenStats]
    G: Named

    @classmethod
    def begin(
        cls,
        scorer: Scorer,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        inputs: Sequence[Any],
        batches: list[TokenBatch],
        forwards: list[TokenStats],
    ) -> Provisional:
        """forwards: loss forwards (B, T) of the micro-batches, whose graphs are kept."""
        count = sum(int(b.mask.sum()) for b in batches)
        pairs = zip(forwards, batches, strict=True)
        mean = sum(torch.where(b.mask, s.entropy, 0.0).sum() / count for s, b in pairs)
        assert isinstance(mean, Tensor)
        given = (scorer, optimizer, clip_norm, inputs, batches, forwards)
        return cls(*given, G=_gradient(scorer, mean))

    def gradient(self, method: Method, state: Any) -> tuple[Named, list[Tensor], list[Tensor]]:
        """(g, c, e) of the method's plan with `state`: the gradient of the loss of the whole step
        by name, and of each micro-batch -dL/dlogp and -dL/dentropy (B, T)."""
        known = [s.detach() for s in self.forwards] if method.needs else None
        plans = plan_step(method, self.batches, known, state)
        total = torch.zeros(())
        leaves: list[tuple[Tensor, Tensor]] = []
        for forward, batch, (plan, share) in zip(self.forwards, self.batches, plans, strict=True):
            total = total + policy_loss(forward, batch, plan, share).loss
            leaves.append((forward.logp, forward.entropy))
        flat = [x for pair in leaves for x in pair]
        pulls = torch.autograd.grad(total, flat, retain_graph=True, allow_unused=True)
        pulls = [torch.zeros_like(x) if p is None else p for x, p in zip(flat, pulls, strict=True)]
        g = _gradient(self.scorer, flat, pulls)
        return g, [-p for p in pulls[::2]], [-p for p in pulls[1::2]]

    def step(self, g: Named) -> tuple[Update, float]:
        """The parts of the step on gradient g, and the clipping factor kappa."""
        kappa = 1.0
        if self.clip_norm:
            kappa = min(1.0, self.clip_norm / (dot(g, g) ** 0.5 + 1e-6))
        clipped = {n: kappa * x for n, x in g.items()}
        return provisional_step(self.scorer.model, self.optimizer, clipped), kappa

    def change(self, g: Named) -> float:
        """G . delta of the step on g: the first-order change of mean entropy, nats."""
        update, _ = self.step(g)
        return sum(dot(self.G, part) for part in (update.grad, update.momentum, update.decay))

    def measured_change(self, g: Named) -> float:
        """Change of the mean entropy of the step's tokens at theta + delta(g), by one forward."""
        update, _ = self.step(g)
        scorer, total, count = self.scorer, 0.0, 0
        values = {
            n: p.detach() + update.grad[n] + update.momentum[n] + update.decay[n]
            for n, p in scorer.model.named_parameters()
            if n in g
        }
        for inputs, batch, start in zip(self.inputs, self.batches, self.forwards, strict=True):
            with torch.no_grad(), untouched_rng(scorer.model), without_dropout(scorer.model):
                with scorer.precision.applied(scorer.model, values):
                    end = scorer.score(inputs).entropy
            total += float((end - start.entropy.detach())[batch.mask].double().sum())
            count += int(batch.mask.sum())
        return total / count

    def eventual_change(self, g: Named) -> float:
        """What the push of this gradient will have done once momentum has passed it on, nats:
        its part of G . delta times (1 - beta1^k)/(1 - beta1), plus the decay of this step."""
        update, _ = self.step(g)
        return dot(self.G, update.eventual) + dot(self.G, update.decay)

    def marginal(self, g: Named, c: list[Tensor], e: list[Tensor]) -> list[Tensor]:
        """influence_marginal of every token (B, T) of each micro-batch, by one forward-mode pass:
        the derivative of `change` by a factor on the token's contribution to g."""
        update, kappa = self.step(g)
        d = marginal_direction(self.G, update, kappa)
        model = self.scorer.model
        here = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        path = Path(model, here, self.scorer.precision)
        out = []
        for inputs, batch, push, pull in zip(self.inputs, self.batches, c, e, strict=True):
            dlogp, dentropy = path.jvp(self.scorer.score, inputs, d)
            value = push * dlogp + pull * dentropy
            out.append(torch.where(batch.mask, value, 0.0))
        return out


def _gradient(scorer: Scorer, outputs: Any, pulls: Any = None) -> Named:
    named = [(n, p) for n, p in scorer.model.named_parameters() if p.requires_grad]
    parts = torch.autograd.grad(
        outputs, [p for _, p in named], pulls, retain_graph=True, allow_unused=True
    )
    return {
        n: torch.zeros_like(p) if part is None else part
        for (n, p), part in zip(named, parts, strict=True)
    }


def take_influence(
    method: Method, ahead: Provisional, state: Mapping[str, float]
) -> tuple[list[TokenBatch], dict[str, float]]:
    """What a method that needs influence_marginal is given: the batches with it, and its state.

    It is measured where every weight is 1. A method with a `solve` chooses its dose as well: its
    gradient is linear in the dose, so predicting the change at any of them takes no pass.
    """
    assert isinstance(method, ClipHigher)
    g, c, e = ahead.gradient(without_influence(method), None)
    marginal = ahead.marginal(g, c, e)
    pairs = zip(ahead.batches, marginal, strict=True)
    batches = [replace(batch, influence_marginal=m) for batch, m in pairs]
    if not isinstance(method, EntropyTarget):
        return batches, dict(state)
    off, _, _ = replace(ahead, batches=batches).gradient(method, {"dose": 0.0})
    change = ahead.change if method.aim == "step" else ahead.eventual_change

    def mixed(dose: float) -> Named:
        return {n: off[n] + dose * (g[n] - off[n]) for n in g}

    chosen = method.solve(
        lambda dose: change(mixed(dose)), lambda dose: ahead.measured_change(mixed(dose))
    )
    return batches, {**state, **chosen}
