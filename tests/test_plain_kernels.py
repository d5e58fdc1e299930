"""Measurements in float32 and float64 never go through kernels of half precision alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from entropy_lab import load
from entropy_lab.probe import Scorer
from entropy_lab.probe.precision import SAME, Precision
from entropy_lab.train.launch import run_training
from entropy_lab.train.policy import make_score, model_inputs
from entropy_lab.train.rollout import HFEngine
from tiny_models import SHORT, any_reward, make_model, save_model


def rounded(module: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **more: Any):
    """Attention as flash kernels compute it: in bfloat16, whatever it is given."""
    low = (x.to(torch.bfloat16) for x in (q, k, v))
    out, weights = sdpa_attention_forward(module, *low, *rest, **more)
    return out.to(q.dtype), weights


AttentionInterface.register("rounded", rounded)


def test_a_wide_pass_has_wide_attention_and_the_model_keeps_its_own() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

    ALL_MASK_ATTENTION_FUNCTIONS.register("rounded", sdpa_mask)
    model, plain = make_model("llama"), make_model("llama")
    model.set_attn_implementation("rounded")
    inputs = model_inputs(HFEngine().generate(plain, [[3, 4, 5], [6]], 3, 6, 1.0, 0), slice(None))

    def entropy(of: Any, precision: Precision) -> Tensor:
        optimizer = torch.optim.SGD(of.parameters())
        return Scorer(of, make_score(of, 1.0), optimizer, precision).fresh(inputs).entropy.double()

    exact = entropy(plain, Precision(torch.float64))
    assert (entropy(model, SAME) - exact).abs().max() > 1e-4
    assert (entropy(model, Precision(torch.float32)) - exact).abs().max() < 1e-5
    assert (entropy(model, Precision(torch.float64)) - exact).abs().max() < 1e-12
    assert model.config._attn_implementation == "rounded"


def test_the_floor_and_forward_mode_of_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grouped product of experts knows neither float64 nor tangents; it is back afterwards."""
    any_reward(monkeypatch)
    given = [*SHORT, f"model.path={save_model('mixtral', tmp_path / 'model')}"]
    seen = []
    from transformers.models.mixtral.modeling_mixtral import MixtralForCausalLM

    plain = MixtralForCausalLM.set_experts_implementation

    def noted(self: Any, name: Any) -> None:
        seen.append(name)
        plain(self, name)

    monkeypatch.setattr(MixtralForCausalLM, "set_experts_implementation", noted)
    steps = load(run_training(None, given, tmp_path / "run")).steps()
    assert steps["floor"].max() < 3e-6 and steps["dH_pred_jvp"].notna().all()
    assert seen[:2] == ["eager", "grouped_mm"] and seen.count("eager") == seen.count("grouped_mm")


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_an_expert_s_token_does_not_see_the_batch(wide: torch.dtype) -> None:
    model = make_model("qwen3_moe")
    out = HFEngine().generate(model, [[3, 4, 5], [6], [7, 8]], 4, 8, 1.0, 0)
    scorer = Scorer(
        model, make_score(model, 1.0), torch.optim.SGD(model.parameters()), Precision(wide)
    )
    whole = scorer.fresh(model_inputs(out, slice(None)))
    limit = 1e-5 if wide == torch.float32 else 1e-12
    for row in range(12):
        one = scorer.fresh(model_inputs(out, slice(row, row + 1)))
        mask = out.mask[row]
        assert (one.logp[0][mask] - whole.logp[row][mask]).abs().max() < limit
