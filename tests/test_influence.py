"""Influence adds up to G . delta, and influence_marginal is the derivative by a token's weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from entropy_lab.interventions import make_method
from entropy_lab.loss import policy_loss
from entropy_lab.probe import deep
from entropy_lab.probe.influence import dot, entropy_gradient
from entropy_lab.probe.scorer import Scorer
from entropy_lab.probe.update import check_supported
from entropy_lab.probe.window import Chosen, MicroRecord, Window, measure_before
from toy import Toy, batches, score_of

Make = Callable[[nn.Module], torch.optim.Optimizer]


def two_groups(kind, **options) -> Make:
    """Two parameter groups with their own learning rates."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        params = list(model.parameters())
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 3e-3}]
        return kind(groups, lr=1e-2, **options)

    return make


OPTIMIZERS: dict[str, Make] = {
    "sgd": two_groups(torch.optim.SGD),
    "sgd_momentum": two_groups(torch.optim.SGD, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "adam": two_groups(torch.optim.Adam, weight_decay=0.1),
    "adamw": two_groups(torch.optim.AdamW, weight_decay=0.1),
    "adamw_foreach": two_groups(torch.optim.AdamW, weight_decay=0.1, foreach=True),
    "adamw_fused": two_groups(torch.optim.AdamW, weight_decay=0.1, fused=True),
    "adamw_single": two_groups(torch.optim.AdamW, foreach=False, betas=(0.0, 0.99)),
}


class Step:
    """A toy trained for two steps, ready to take its third with a weight on one response."""

    def __init__(self, make: Make, clip: float, dtype: torch.dtype):
        self.make, self.clip, self.dtype = make, clip, dtype

    def take(self, weight: float = 1.0, response: int = 5, clipped: bool = True):
        """The third step; returns (model, deep result, window)."""
        model = Toy(dtype=self.dtype)
        optimizer = self.make(model)
        score = score_of(model)
        scorer = Scorer(model, score, optimizer)
        plan_of = make_method("entropy_bonus", beta=0.1)
        for step in range(3):
            micros = batches(model, step, 8, self.dtype)
            window = Window()
            share = 1 / sum(int(b.mask.sum()) for _, b in micros)
            for number, (rows, batch) in enumerate(micros):
                record = MicroRecord(rows, batch, stats := score(rows))
                scale = torch.ones(len(batch.mask), 1, dtype=self.dtype)
                if step == 2 and number == response // 8:
                    scale[response % 8] = weight
                plan = plan_of.plan(batch, None)
                single = policy_loss(stats, batch, plan)
                # The step's mean, with the response's whole contribution scaled.
                ratio = torch.exp(stats.logp - batch.old_logp) * batch.advantage
                value = torch.where(batch.mask, scale * (ratio + 0.1 * stats.entropy), 0.0)
                assert single.loss.isfinite()
                (-value.sum() * share).backward()
                window.records.append(record)
            kappa = 1.0
            if self.clip and clipped:
                norm = float(nn.utils.clip_grad_norm_(model.parameters(), self.clip))
                kappa = min(1.0, self.clip / (norm + 1e-6))
            if step == 2:
                chosen = [Chosen(r.inputs, r.batch, None, 1.0) for r in window.records]
                probed = measure_before(chosen, scorer)
                start = deep.begin(scorer, (optimizer,), probed)
            optimizer.step()
            if step == 2:
                for part in probed:
                    part.after = scorer.measure(part.inputs)
                result = deep.finish(start, scorer, (optimizer,), window, probed, kappa, "forward")
                return model, start, result, window
            optimizer.zero_grad()
        raise AssertionError


@pytest.mark.parametrize("clip", [0.0, 0.05], ids=["free", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_the_parts_add_up_to_the_first_order_change(name: str, clip: float, dtype) -> None:
    _, start, result, _ = Step(OPTIMIZERS[name], clip, dtype).take()
    sums = result.accounts
    assert sums.G_dtheta == pytest.approx(dot(start.G, start.path.delta()), rel=1e-12)
    assert sums.error <= (1e-6 if dtype == torch.float64 else 1e-3)
    assert abs(sums.influence_sum) > 0
    assert sum(sums.layers.values()) == pytest.approx(sums.G_dtheta, rel=1e-9)
    if "momentum" in name or ("adam" in name and "single" not in name):
        assert abs(sums.momentum_term) > 0
    for columns in result.path:
        parts = sum(columns[f"dH_pred_{k}"] for k in deep.SPLITS)
        size = columns["dH_pred_jvp"].abs().max()
        tolerance = 1e-6 if dtype == torch.float64 else 1e-3
        assert (parts - columns["dH_pred_jvp"]).abs().max() <= tolerance * size


@pytest.mark.parametrize("clip", [0.0, 0.05], ids=["free", "clipped"])
@pytest.mark.parametrize("name", ["sgd", "sgd_momentum", "adam", "adamw"])
def test_marginal_influence_is_the_derivative_by_a_responses_weight(name: str, clip: float) -> None:
    """G . delta(w) with G held, central difference in the weight of one response's loss."""
    step = Step(OPTIMIZERS[name], clip, torch.float64)
    _, start, result, _ = step.take()
    marginal = torch.cat([c["influence_marginal"] for c in result.influence])[5].sum()
    plain = torch.cat([c["influence"] for c in result.influence])[5].sum()
    h = 1e-4
    ends = [dot(start.G, step.take(1 + s * h)[1].path.delta()) for s in (1, -1)]
    fd = (ends[0] - ends[1]) / (2 * h)
    assert float(marginal) == pytest.approx(fd, rel=1e-6)
    same = float(plain) == pytest.approx(fd, rel=1e-6)
    # What the step did and what a weight would change agree only without v and without clipping.
    assert same == (name.startswith("sgd") and clip == 0.0)


def test_entropy_gradient_is_the_gradient_of_the_mean() -> None:
    model = Toy(dtype=torch.float64)
    micros = batches(model, 3, 8, torch.float64)
    scorer = Scorer(model, score_of(model), torch.optim.SGD(model.parameters()))
    G = entropy_gradient(scorer, [(r, b, 1.0) for r, b in micros])
    whole = batches(model, 3, 16, torch.float64)[0]
    mean = score_of(model)(whole[0]).entropy[whole[1].mask].mean()
    expected = torch.autograd.grad(mean, list(model.parameters()))
    for (name, _), e in zip(model.named_parameters(), expected, strict=True):
        assert (G[name] - e).abs().max() < 1e-15
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.RMSprop(p), "a step of RMSprop: it supports SGD"),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "AdamW with amsgrad=True"),
        (lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True), "nesterov=True"),
        (lambda p: torch.optim.Adam(p, maximize=True), "maximize=True"),
    ],
)
def test_unsupported_optimizers_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_supported(make(Toy().parameters()))
