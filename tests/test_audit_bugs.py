"""A user's method with a bug gets one line that names it; without one, it is audited."""

from __future__ import annotations

from pathlib import Path

import pytest

from entropy_lab.analysis.audit import audit, candidate_of
from entropy_lab.errors import ConfigError
from toy import Toy, adamw, run_loop

VERL = "def loss(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, **_):\n"
SIMPLE = "def loss(batch, stats):\n"
MEAN = "(x * response_mask).sum() / config.global_batch_info['batch_num_tokens']"
RATIO = "    ratio = torch.exp(log_prob - old_log_prob)\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bugs") / "run"
    model = Toy()
    run_loop(model, adamw(model), path, steps=2, size=8)
    return path


def mine(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(f"import torch\n{text}")
    return f"{folder / 'mine.py'}:loss"


SOUND = {
    "verl": VERL + RATIO + f"    x = -advantages * ratio\n    return {MEAN}, {{}}",
    "simple": SIMPLE + "    r = torch.exp(stats.logp - batch.old_logp)\n"
    "    return -(r * batch.advantage)[batch.mask].mean()",
    "weight detached": VERL + RATIO + "    w = (1 - log_prob.exp()).detach()\n"
    f"    x = -w * advantages * ratio\n    return {MEAN}",
    "square": VERL + "    d = log_prob - old_log_prob\n    x = d * d - advantages * log_prob\n"
    f"    return {MEAN}",
    "entropy bonus": SIMPLE + "    pg = -(stats.logp * batch.advantage)[batch.mask].mean()\n"
    "    return pg - 0.01 * stats.entropy[batch.mask].mean()",
    "in place on a copy": VERL + RATIO + "    x = -advantages * ratio\n"
    f"    x[response_mask == 0] = 0.0\n    return {MEAN}",
}


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_loss_is_audited(case: str, run: Path, tmp_path: Path) -> None:
    label = mine(tmp_path, SOUND[case])
    row = audit(run, [label], out=tmp_path / "out").tables["audit"].set_index("method").loc[label]
    assert 0 < row["distance"] < 10 and row["weight_sd"] >= 0
    assert row["entropy_push"] == (case == "entropy bonus")


BUGS = {
    "per token": (
        VERL + RATIO + "    return -advantages * ratio",
        "returned one value per token, of shape (8, 5): return a scalar, such as their mean",
    ),
    "per response": (
        SIMPLE + "    return -(stats.logp * batch.advantage).sum(1)",
        "returned one value per token, of shape (16,): return a scalar",
    ),
    "no tensor": (SIMPLE + "    return 0.5", "returned float, not a tensor: return the loss"),
    "nothing": (SIMPLE + "    stats.logp.mean()", "returned NoneType, not a tensor"),
    "wrong shape": (
        VERL + RATIO + "    x = -advantages[:, :-1] * ratio\n    return x.mean()",
        "raised RuntimeError (mine.py, line 4): The size of tensor a (4) must match the size of "
        "tensor b (5)",
    ),
    "NaN": (
        VERL + f"    x = -advantages * torch.log(log_prob)\n    return {MEAN}",
        "is nan: look for log(0), 0/0 or a ratio that is not clamped",
    ),
    "NaN gradient": (
        VERL + "    d = log_prob - log_prob.detach()\n"
        "    x = torch.where(d > 0, d.sqrt(), d) - advantages * log_prob\n"
        f"    return {MEAN}",
        "has a gradient by log-probability that is NaN at",
    ),
    "in place on a leaf": (
        VERL + RATIO + "    log_prob.clamp_(min=-5)\n    return (ratio * response_mask).mean()",
        "changes its input in place (mine.py, line 4): log-probabilities and entropies are leaves "
        "of the gradient; write a new tensor",
    ),
    "in place without gradient": (
        VERL + "    with torch.no_grad():\n        log_prob.clamp_(min=-5)\n"
        f"    x = -advantages * log_prob\n    return {MEAN}",
        "changes log_prob in place: write a new tensor, as in log_prob.clamp(...)",
    ),
    "in place on an input": (
        VERL + f"    advantages -= advantages.mean()\n    x = -advantages * log_prob\n"
        f"    return {MEAN}",
        "changes advantages in place",
    ),
    "in place after use": (
        VERL + RATIO + f"    x = -advantages * ratio.exp()\n    ratio.mul_(2)\n    y = x\n"
        f"    x = ratio.exp()\n    ratio.mul_(0)\n    return {MEAN} + y.sum()",
        "changes its input in place",
    ),
    "gradient through weights": (
        VERL + RATIO + "    w = 1 - log_prob.exp()\n    x = -w * advantages * ratio\n"
        f"    return {MEAN}",
        "lets gradient through its weights: it multiplies two factors that both depend on the "
        "policy with gradient; write weight.detach()",
    ),
    "gradient through a scalar": (
        SIMPLE + "    k = 1 / stats.entropy.max()\n"
        "    return -(k * stats.logp * batch.advantage)[batch.mask].mean()",
        "lets gradient through its weights",
    ),
    "detached": (
        VERL + "    log_prob = log_prob.detach()\n    return (log_prob * advantages).mean()",
        "does not depend on the log-probabilities",
    ),
    "mask ignored": (
        VERL + "    return -(advantages + 1).mul(log_prob).mean()",
        "ignores the mask: ",
    ),
    "unknown setting": (
        VERL + RATIO + "    return (config.strength * ratio * response_mask).mean()",
        "config.strength has no value here: set it, as in --method FILE.py:loss:strength=...",
    ),
    "its own error": (
        SIMPLE + "    def inner():\n        raise KeyError('alpha')\n    return inner()",
        "raised KeyError (mine.py, line 4): 'alpha'",
    ),
}


@pytest.mark.parametrize("case", BUGS)
def test_a_bug_is_named(case: str, run: Path, tmp_path: Path) -> None:
    source, message = BUGS[case]
    label = mine(tmp_path, source)
    with pytest.raises(ConfigError) as caught:
        audit(run, [label], out=tmp_path / "out")
    text = str(caught.value)
    assert text.startswith(label) and message in text and "\n" not in text
    assert not (tmp_path / "out").exists()


def test_a_product_that_is_meant_can_be_allowed(run: Path, tmp_path: Path) -> None:
    source, _ = BUGS["gradient through weights"]
    label = mine(tmp_path, source) + ":weights_carry_grad=true"
    found = audit(run, [label], out=tmp_path / "out").tables["audit"]
    assert found.loc[1, "distance"] > 0.1 and found.loc[1, "notes"] == ""


METHOD = """
from entropy_lab.interventions import Grpo
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class loss(Grpo):
    scale: float = 1.0
    def plan(self, batch, stats, state=None):
        {body}
"""
METHOD_BUGS = {
    "wrong shape": (
        "return self._plan(weight=batch.advantage[:, 0])",
        "TokenPlan.weight has shape (16,)",
    ),
    "NaN": (
        "return self._plan(weight=(stats.logp - stats.logp) / 0)",
        "has a gradient by log-probability that is NaN at ",
    ),
    "gradient through weights": (
        "return self._plan(weight=stats.logp.clone().requires_grad_())",
        "TokenPlan.weight requires gradients: a plan is fixed before the loss",
    ),
    "in place": ("batch.advantage.mul_(2); return self._plan()", "changes advantage in place"),
    "mask of numbers": (
        "return self._plan(mask=batch.advantage)",
        "TokenPlan.mask must be bool",
    ),
    "no plan": ("return 3.0", "'float' object has no attribute"),
    "its own error": ("return batch.nonsense", "has no attribute 'nonsense'"),
}


@pytest.mark.parametrize("case", METHOD_BUGS)
def test_a_bug_of_a_plan_is_named(case: str, run: Path, tmp_path: Path) -> None:
    body, message = METHOD_BUGS[case]
    label = mine(tmp_path, METHOD.format(body=body))
    with pytest.raises(ConfigError) as caught:
        audit(run, [label], out=tmp_path / "out")
    text = str(caught.value)
    assert text.startswith(label) and message in text and "\n" not in text


def test_a_plan_of_ones_own_is_audited_with_its_settings(run: Path, tmp_path: Path) -> None:
    label = mine(tmp_path, METHOD.format(body="return self._plan(weight=self.scale)"))
    found = audit(run, [label, f"{label}:scale=0.5"], out=tmp_path / "out").tables["audit"]
    table = found.set_index("method")
    assert table.loc[label, "kind"] == "intervention" and table.loc[label, "distance"] == 0
    assert table.loc[f"{label}:scale=0.5", "distance"] == pytest.approx(0.5)
    assert table.loc[f"{label}:scale=0.5", "settings"] == '{"scale": 0.5}'
    with pytest.raises(ConfigError, match="unexpected keyword argument 'scala'"):
        candidate_of(f"{label}:scala=0.5")


def test_a_random_loss_is_a_function_of_seed_and_step(run: Path, tmp_path: Path) -> None:
    source = VERL + RATIO + "    x = -advantages * ratio * torch.rand(ratio.shape)\n"
    label = mine(tmp_path, source + f"    return {MEAN}")
    one = audit(run, [label], out=tmp_path / "one").tables["audit"]
    other = audit(run, [label], out=tmp_path / "other").tables["audit"]
    assert one["distance"].tolist() == other["distance"].tolist() and one.loc[1, "distance"] > 0.1
