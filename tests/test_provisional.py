"""The step that is about to be taken, and the methods that read it before it is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from entropy_lab.errors import ConfigError
from entropy_lab.interventions import make_method, plan_step
from entropy_lab.loss import policy_loss
from entropy_lab.probe.influence import dot
from entropy_lab.probe.provisional import Provisional, take_influence
from entropy_lab.probe.scorer import Scorer
from entropy_lab.probe.update import provisional_step
from test_influence import OPTIMIZERS
from token_examples import hand_made, loss_and_grad
from toy import Toy, adamw, batches, score_of

F64 = torch.float64


class Ahead:
    """A toy with a little history in its optimizer, about to take a step."""

    def __init__(self, make=adamw, clip: float = 0.0):
        self.model = Toy(dtype=F64)
        self.optimizer = make(self.model)
        self.score = score_of(self.model)
        self.clip = clip
        for step in range(2):
            self.pull(batches(self.model, step, 8, F64), make_method("clip_higher"))
            self.move()
        self.micros = batches(self.model, 7, 8, F64)

    def pull(self, micros, method, state=None) -> None:
        plans = plan_step(method, [b for _, b in micros], None, state)
        for (rows, batch), (plan, share) in zip(micros, plans, strict=True):
            policy_loss(self.score(rows), batch, plan, share).loss.backward()

    def move(self) -> dict[str, torch.Tensor]:
        """Clip and step; the change of every parameter."""
        named = dict(self.model.named_parameters())
        start = {n: p.detach().clone() for n, p in named.items()}
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {n: p.detach() - start[n] for n, p in named.items()}

    def provisional(self) -> Provisional:
        return Provisional.begin(
            Scorer(self.model, self.score, self.optimizer),
            self.optimizer,
            self.clip,
            [rows for rows, _ in self.micros],
            [batch for _, batch in self.micros],
            [self.score(rows) for rows, _ in self.micros],
        )


@pytest.mark.parametrize("clip", [0.0, 0.02], ids=["free", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_parts_of_a_step_not_taken_are_those_of_the_step_then_taken(name, clip) -> None:
    ahead = Ahead(OPTIMIZERS[name], clip)
    look, method = ahead.provisional(), make_method("clip_higher")
    g, _, _ = look.gradient(method, None)
    update, _ = look.step(g)
    predicted = look.change(g)
    ahead.pull(ahead.micros, method)
    for n, p in ahead.model.named_parameters():
        torch.testing.assert_close(g[n], p.grad, rtol=1e-12, atol=1e-15)
    delta = ahead.move()
    for n, moved in delta.items():
        parts = update.grad[n] + update.momentum[n] + update.decay[n]
        torch.testing.assert_close(parts, moved, rtol=1e-9, atol=1e-14)
    assert predicted == pytest.approx(dot(look.G, delta), rel=1e-9)


def test_the_eventual_change_is_what_momentum_passes_on() -> None:
    """SGD, G held: the push of one step alone, followed by 300 steps without any gradient."""
    total = 0.0
    for push in (1.0, 0.0):
        ahead = Ahead(OPTIMIZERS["sgd_momentum"])
        for group in ahead.optimizer.param_groups:
            group["weight_decay"] = 0.0
        look = ahead.provisional()
        g, _, _ = look.gradient(make_method("clip_higher"), None)
        expected = look.eventual_change(g)
        for k in range(300):
            for n, p in ahead.model.named_parameters():
                p.grad = g[n] * push if k == 0 else torch.zeros_like(p)
            total += dot(look.G, ahead.move()) * (1 if push else -1)
    assert total == pytest.approx(expected, rel=1e-9)


def test_the_eventual_step_of_adam_is_the_whole_preconditioned_gradient() -> None:
    ahead = Ahead(OPTIMIZERS["adamw"])
    look = ahead.provisional()
    g, _, _ = look.gradient(make_method("clip_higher"), None)
    update, _ = look.step(g)
    for group in ahead.optimizer.param_groups:
        group["weight_decay"] = 0.0
    for n, p in ahead.model.named_parameters():
        p.grad = g[n]
    ahead.move()
    lr = {p: group["lr"] for group in ahead.optimizer.param_groups for p in group["params"]}
    for n, p in ahead.model.named_parameters():
        v = ahead.optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**3)
        torch.testing.assert_close(update.eventual[n], -lr[p] * g[n] / (v.sqrt() + 1e-8))


@pytest.mark.parametrize("clip", [0.0, 0.02], ids=["free", "clipped"])
def test_influence_marginal_is_the_derivative_by_a_tokens_weight(clip: float) -> None:
    ahead = Ahead(clip=clip)
    look = ahead.provisional()
    g, c, e = look.gradient(make_method("entropy_bonus", beta=0.05), None)
    found = look.marginal(g, c, e)
    params = [p for _, p in ahead.model.named_parameters()]
    for micro, row, pos in ((0, 3, 0), (1, 5, 0), (1, 0, 0)):
        s = look.forwards[micro]
        push = c[micro][row, pos] * s.logp[row, pos] + e[micro][row, pos] * s.entropy[row, pos]
        own = torch.autograd.grad(push, params, retain_graph=True)
        names = [n for n, _ in ahead.model.named_parameters()]

        def change(w: float, own=own, names=names) -> float:
            return look.change({n: g[n] - w * part for n, part in zip(names, own, strict=True)})

        fd = (change(1e-4) - change(-1e-4)) / 2e-4
        assert float(found[micro][row, pos]) == pytest.approx(fd, rel=1e-5)


def test_a_dose_is_found_and_the_step_then_does_what_was_predicted() -> None:
    probe = Ahead()
    look = probe.provisional()
    base, _, _ = look.gradient(make_method("clip_higher"), None)
    target = 0.6 * look.change(base)
    method = make_method("entropy_target", target=target, curvature="ignored")
    weighed, state = take_influence(method, look, {})
    assert state["feasible"] == 1 and state["predicted"] == pytest.approx(target, rel=5e-2)
    assert min(state["at_0"], state["at_max"]) < target < max(state["at_0"], state["at_max"])
    micros = [(rows, b) for (rows, _), b in zip(probe.micros, weighed, strict=True)]
    probe.pull(micros, method, state)
    assert dot(look.G, probe.move()) == pytest.approx(state["predicted"], rel=1e-9)


def test_curvature_is_measured_where_the_step_would_end() -> None:
    ahead = Ahead()
    look = ahead.provisional()
    mask = [b.mask for _, b in ahead.micros]
    base, _, _ = look.gradient(make_method("clip_higher"), None)
    target = 0.7 * look.change(base)
    realised = {}
    for curvature in ("ignored", "measured"):
        ahead = Ahead()
        method = make_method("entropy_target", target=target, curvature=curvature, trials=6)
        weighed, state = take_influence(method, ahead.provisional(), {})
        micros = [(rows, b) for (rows, _), b in zip(ahead.micros, weighed, strict=True)]

        def mean(model=ahead.model, micros=micros) -> float:
            with torch.no_grad():
                ends = [score_of(model)(rows).entropy for rows, _ in micros]
            parts = [h[m] for h, m in zip(ends, mask, strict=True)]
            return float(torch.cat(parts).mean())

        start = mean()
        ahead.pull(micros, method, state)
        ahead.move()
        realised[curvature] = mean() - start
        if curvature == "measured":
            assert state["predicted"] == pytest.approx(target, rel=1e-2)
    off = {k: abs(v - target) for k, v in realised.items()}
    assert off["measured"] < 0.2 * off["ignored"]


def test_a_target_out_of_reach_takes_the_nearest_end() -> None:
    method = make_method("entropy_target", target=-5.0)
    assert method.solve(lambda dose: -1.0 - dose) == {
        "dose": 2.0, "predicted": -3.0, "at_0": -1.0, "at_1": -2.0, "at_max": -3.0, "feasible": 0.0,
    }  # fmt: skip
    assert method.solve(lambda dose: dose - 1)["dose"] == 0.0


def test_the_search_takes_at_most_its_trials() -> None:
    asked = []

    def bent(dose: float) -> float:
        asked.append(dose)
        return -(dose**3)

    found = make_method("entropy_target", target=-4.0).solve(bent)
    assert len(asked) == 6 and found["predicted"] == pytest.approx(-4.0, rel=0.05)
    found = make_method("entropy_target", target=-4.0, trials=20).solve(bent)
    assert found["dose"] == pytest.approx(4 ** (1 / 3), rel=1e-3)
    straight = make_method("entropy_target", target=-1.0).solve(lambda dose: 1 - 4 * dose)
    assert straight["dose"] == 0.5 and straight["feasible"] == 1


def test_weights_touch_exactly_the_tokens_that_lower_entropy() -> None:
    batch, stats = hand_made([1.0, 1.0, -1.0], [-0.5, -2.0, -1.0])
    batch = replace(batch, influence_marginal=torch.tensor([[-2e-5, 1e-5, 0.0]], dtype=F64))
    base = loss_and_grad(batch, stats, make_method("grpo").plan(batch, stats))[1]
    dosed = make_method("entropy_target").plan(batch, stats, {"dose": 0.25})
    grad = loss_and_grad(batch, stats, dosed)[1]
    torch.testing.assert_close(grad, base * torch.tensor([[0.25, 1.0, 1.0]], dtype=F64))
    assert dosed.selected.tolist() == [[True, False, False]]
    # exp(-k |x|), k = -ln 0.7 / 2e-5: 0.7 at the largest, sqrt(0.7) at half of it.
    steered = make_method("influence_steer").plan(batch, stats)
    grad = loss_and_grad(batch, stats, steered)[1]
    weights = torch.tensor([[0.7, 0.7**0.5, 1.0]], dtype=F64)
    torch.testing.assert_close(grad, base * weights)
    still = replace(batch, influence_marginal=torch.zeros(1, 3, dtype=F64))
    assert (make_method("influence_steer").plan(still, stats).weight == 1).all()


@pytest.mark.parametrize("name", ["entropy_target", "influence_steer"])
def test_a_log_of_tokens_is_not_enough(name: str) -> None:
    batch, stats = hand_made([1.0], [-0.5])
    with pytest.raises(ValueError, match=f"{name}.plan reads batch.influence_marginal, which is"):
        make_method(name).plan(batch, stats)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"target": float("nan")}, "target = nan is not valid: set a finite change in nats"),
        ({"lambda_max": 0.0}, "lambda_max = 0.0 is not valid: set a finite weight > 0"),
        ({"trials": 0}, "trials = 0 is not valid: set at least 1"),
        ({"aim": "eventual", "curvature": "measured"}, "set ignored with aim 'eventual'"),
        ({"aim": "later"}, "aim = 'later' is not valid: set one of step, eventual"),
    ],
)
def test_wrong_settings_are_named(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_method("entropy_target", **params)


def test_a_step_of_an_unknown_optimizer_is_refused() -> None:
    model = Toy()
    optimizer = torch.optim.RMSprop(model.parameters())
    zero = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="cannot take apart a step of RMSprop"):
        provisional_step(model, optimizer, zero)
