"""Models that exist: where they come from, what is refused, and where responses end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from entropy_lab import load
from entropy_lab.errors import ConfigError
from entropy_lab.train.config import config_from_dict, load_config
from entropy_lab.train.launch import run_training
from entropy_lab.train.model import cached_folder, load_model
from entropy_lab.train.pretrained import device_of
from entropy_lab.train.prompts import encode_prompt, turn_end
from entropy_lab.train.rollout import HFEngine
from tiny import TINY
from tiny_models import SHORT, any_reward, make_model, save_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML


def opened(source: Path | str, *more: str) -> tuple[Any, Any]:
    return load_model(load_config(None, [*SHORT, f"model.path={source}", *more]))


def refusal(source: Path | str, *more: str) -> str:
    with pytest.raises(ConfigError) as caught:
        opened(source, *more)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- where it comes from ----


def test_a_hub_name_is_read_from_the_cache_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repo = tmp_path / "hub" / "models--someone--tiny-model"
    save_model("llama", repo / "snapshots" / ("a" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    model, tokenizer = opened("someone/tiny-model")
    assert torch.equal(model.lm_head.weight, make_model("llama").lm_head.weight)
    assert tokenizer.eos_token_id == 1 and not model.training
    text = refusal("someone/other-model")
    assert "'someone/other-model' cannot be read as a local folder or a hub name: " in text


@pytest.mark.parametrize("source", ["/no/such/folder", "./models/x", "a/b/c", "~/model"])
def test_what_is_neither_a_folder_nor_a_name_is_said_at_once(source: str) -> None:
    assert "holds no model (config.json is missing): give a local folder, the" in refusal(source)


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path)
    _edit(folder / "config.json", model_type="mine", auto_map={
        "AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.MineForCausalLM"})  # fmt: skip
    (folder / "code.py").write_text("raise SystemExit('this was run')")
    assert refusal(folder).endswith("it brings code of its own, which is never run here")


def test_a_model_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model("llama", tmp_path)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "lacks weights of LlamaForCausalLM, e.g. model.norm.weight" in refusal(folder)
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be read: " in refusal(folder)


def test_a_recurrent_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_is_stateful", True)
    assert "LlamaForCausalLM keeps a recurrent state" in refusal(save_model("llama", tmp_path))


def _edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


# ---- dtype, attention, device ----


def test_settings_reach_the_model(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path)
    model, _ = opened(folder)
    assert model.dtype == torch.float32 and model.config._attn_implementation == "sdpa"
    model, _ = opened(folder, "model.dtype=bfloat16", "model.attention=eager")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    angles = model.model.rotary_emb.inv_freq
    assert angles.dtype == torch.float32
    # The model made here follows the same settings, and its cache does not depend on them.
    made = [*TINY, "model.dtype=bfloat16", "model.attention=eager"]
    model, _ = load_model(load_config(None, made))
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    assert cached_folder(load_config(None, made)) == cached_folder(load_config(None, TINY))


def test_soft_capped_scores_are_never_left_to_a_kernel_without_them(tmp_path: Path) -> None:
    folder = save_model("gemma2", tmp_path)
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    model, _ = opened(folder)
    capped = model(input_ids=ids).logits
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert (model(input_ids=ids).logits - capped).abs().max() > 0.01  # why it matters
    assert "would leave out this model's soft-capping of attention scores (at 2.0)" in refusal(
        folder, "model.attention=sdpa"
    )


def test_flash_attention_needs_half_precision_and_a_cuda_device(tmp_path: Path) -> None:
    flash = "model.attention=flash_attention_2"
    with pytest.raises(ConfigError, match="works in half precision alone: set model.autocast"):
        load_config(None, [flash])
    folder = save_model("llama", tmp_path)
    assert "'flash_attention_2' needs a CUDA device" in refusal(
        folder, flash, "model.autocast=bfloat16"
    )


def test_the_device_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, auto in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device_of("auto").type == auto and device_of("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="'cuda', but torch sees no CUDA device: set model.de"):
        device_of("cuda")


def test_a_run_of_an_earlier_version_has_the_defaults(tmp_path: Path) -> None:
    out = run_training(None, [*TINY, "train.rollouts=1"], tmp_path / "run")
    new = {"dtype", "attention", "device", "gradient_checkpointing", "trainable", "lora_rank",
           "lora_alpha", "lora_targets"}  # fmt: skip
    saved = json.loads((out / "run.json").read_text())
    assert saved["device"] == "cpu"
    for key in new:
        del saved["config"]["model"][key]
    config = config_from_dict(saved["config"])
    assert config.model.trainable == [] and config.model.dtype == "float32"
    (out / "run.json").write_text(json.dumps(saved))
    run_training(None, ["train.rollouts=2"], out, resume=True)
    assert load(out).last_step == 3


# ---- bfloat16 weights ----


@pytest.mark.parametrize("lr", ["1e-6", "3e-2"])
def test_half_precision_weights_train_and_say_what_they_lose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], lr: str
) -> None:
    any_reward(monkeypatch)
    folder = save_model("llama", tmp_path / "model")
    given = [*SHORT, f"model.path={folder}", "model.dtype=bfloat16", f"optimizer.lr={lr}"]
    steps = load(run_training(None, given, tmp_path / "run")).steps()
    assert steps["measured_in"].eq("bfloat16").all() and steps["policy"].eq("cast").all()
    assert (steps["float32_rows"] > 0).all()
    said = "of the weights; model.dtype = float32 with model.autocast = bfloat16 keeps it"
    text = capfd.readouterr().err
    assert (said in text) == (lr == "1e-6")
    if lr == "1e-6":
        share = float(text.split("lost to rounding in ")[1].split("%")[0]) / 100
        assert share > 0.95 and steps["moved_share"].max() < 1.5 * (1 - share) + 0.01
    else:
        assert steps["moved_share"].min() > 0.5 and (steps["dH_train"] != 0).all()


# ---- ends, padding, beginnings ----


def words(folder: Path, template: str | None = None, bos: bool = False, **special: str) -> Path:
    """A folder with a random model and a tokenizer of words, with these special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "user", "assistant", "question", "answer",
             "hello", "what"]  # fmt: skip
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="what"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    save_model("llama", folder)
    for stale in (*folder.glob("*token*"), *folder.glob("*template*")):
        stale.unlink()
    tokenizer.save_pretrained(folder)
    _edit(folder / "config.json", eos_token_id=None, pad_token_id=None)
    _edit(folder / "generation_config.json", eos_token_id=None, pad_token_id=None)
    return folder


def test_a_model_without_pad_token_pads_with_an_end(tmp_path: Path) -> None:
    folder = words(tmp_path, eos_token="</s>")
    model, tokenizer = opened(folder)
    assert tokenizer.pad_token_id == 1 == model.generation_config.pad_token_id
    assert len(tokenizer) == 10 and model.get_input_embeddings().padding_idx is None
    out = HFEngine().generate(model, [[8, 9, 8], [8]], 20, 6, 1.0, 0)
    shown = [t[m].tolist() for t, m in zip(out.token_id, out.mask, strict=True)]
    assert any(row[-1] == 1 for row in shown)  # the end itself counts, padding after it does not
    assert all(1 not in row[:-1] for row in shown)


def test_a_model_without_an_end_is_refused(tmp_path: Path) -> None:
    text = refusal(words(tmp_path))
    assert "names no end-of-sequence token, so no response could end: set eos_token" in text


def test_responses_end_at_every_end_that_is_known(tmp_path: Path) -> None:
    """The tokenizer's EOS, those of generation_config, and the template's end of a turn."""
    folder = words(tmp_path, CHATML, eos_token="</s>")
    _edit(folder / "generation_config.json", eos_token_id=[7, 6])
    model, tokenizer = opened(folder)
    assert model.generation_config.eos_token_id == [7, 6, 1, 3]
    out = HFEngine().generate(model, [[8]], 200, 12, 1.0, 0)
    last = {t[m][-1].item() for t, m, cut in zip(out.token_id, out.mask, out.truncated, strict=True)
            if not cut}  # fmt: skip
    assert last == {1, 3, 6, 7}


def test_the_end_of_a_turn_is_read_from_the_template(tmp_path: Path) -> None:
    def end(template: str | None) -> int | None:
        return turn_end(opened(words(tmp_path, template, eos_token="</s>"))[1])

    assert end(CHATML) == 3 and end(None) is None
    assert end("{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}") == 1
    assert end("{% for m in messages %}{{ m.content }} hello {% endfor %}") is None
    assert end("{{ raise_exception('no chats of two') }}") is None


def test_a_prompt_has_one_beginning(tmp_path: Path) -> None:
    chat = ({"role": "user", "content": "hello"},)
    for template, opening in ((CHATML, []), (WITH_BOS, [0])):
        folder = words(
            tmp_path / str(len(opening)), template, True, bos_token="<s>", eos_token="</s>"
        )
        _, tokenizer = opened(folder)
        assert encode_prompt(tokenizer, chat) == [*opening, 2, 4, 8, 3, 2, 5]
        assert encode_prompt(tokenizer, "hello what") == [0, 8, 9]
        assert encode_prompt(tokenizer, "<s> hello what") == [0, 8, 9]
