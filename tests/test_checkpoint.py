"""Checkpoints: bit-for-bit continuation, complete or absent, damage is named."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from entropy_lab.errors import RunError
from entropy_lab.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint


class Tied(nn.Module):
    """An embedding whose transpose is the head, and a buffer."""

    def __init__(self, seed: int = 0, width: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Embedding(10, width)
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, 10, bias=False)
        self.register_buffer("seen", torch.zeros(2))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.embed(x)).tanh())


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    groups = [
        {"params": [model.inner.weight, model.inner.bias], "lr": 0.01},  # type: ignore[union-attr]
        {"params": [model.embed.weight]},  # type: ignore[union-attr]
    ]
    return torch.optim.AdamW(groups, lr=0.003, betas=(0.9, 0.95), weight_decay=0.1)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randint(10, (8,), generator=generator)
        loss = nn.functional.cross_entropy(model(x), x.flip(0))
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] *= 0.97
        optimizer.step()
        model.seen += 1  # type: ignore[operator]


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b) and a.dtype == b.dtype
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b and type(a) is type(b)


@pytest.mark.parametrize("make", [adamw, sgd])
def test_a_restored_run_continues_bit_for_bit(tmp_path: Path, make) -> None:
    whole = Tied()
    optimizer = make(whole)
    advance(whole, optimizer, range(5))
    state = {"rollout": 3, "rate": 0.1 + 0.2, "none": None, "list": [1, 2]}
    tensors = {"rng": torch.get_rng_state(), "big": torch.arange(3) * 2**40}
    path = save_checkpoint(tmp_path, 5, whole, optimizer, state, tensors)
    assert path == tmp_path / "checkpoints" / "step-000005" == latest_checkpoint(tmp_path)
    assert not list(path.glob("*.pt")) and (path / "model.safetensors").is_file()

    fresh = Tied(seed=1)
    restored = make(fresh)
    got_state, got_tensors = load_checkpoint(path, fresh, restored)
    assert_equal(got_state, state)
    assert_equal(got_tensors, tensors)
    assert fresh.head.weight is fresh.embed.weight
    assert_equal(restored.state_dict(), optimizer.state_dict())
    advance(whole, optimizer, range(5, 9))
    advance(fresh, restored, range(5, 9))
    assert_equal(dict(fresh.state_dict()), dict(whole.state_dict()))
    assert_equal(restored.state_dict(), optimizer.state_dict())


def test_before_the_first_step_and_without_tensors(tmp_path: Path) -> None:
    model = Tied()
    path = save_checkpoint(tmp_path, 0, model, adamw(model), {})
    fresh = Tied(seed=1)
    optimizer = adamw(fresh)
    assert load_checkpoint(path, fresh, optimizer) == ({}, {})
    assert optimizer.state_dict()["state"] == {}
    assert_equal(dict(fresh.state_dict()), dict(model.state_dict()))


def test_the_model_alone_can_be_read_and_is_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = Tied()
    path = save_checkpoint(tmp_path, 1, model, adamw(model), {"a": 1})
    fresh = Tied(seed=2)
    assert load_checkpoint(path, fresh)[0] == {"a": 1}
    stored = load_file(path / "model.safetensors")
    assert set(stored) == {"embed.weight", "inner.weight", "inner.bias", "seen"}  # tied: once
    assert torch.equal(stored["inner.weight"], fresh.inner.weight)


def test_keep_leaves_the_newest(tmp_path: Path) -> None:
    model = Tied()
    optimizer = adamw(model)
    for step in (9, 40, 1000000, 200):
        save_checkpoint(tmp_path, step, model, optimizer, {}, keep=2)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000200", "step-1000000"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-1000000"


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    model = Tied()
    optimizer = adamw(model)
    save_checkpoint(tmp_path, 3, model, optimizer, {"n": 1})
    path = save_checkpoint(tmp_path, 3, model, optimizer, {"n": 2})
    assert load_checkpoint(path, model, optimizer)[0] == {"n": 2}
    assert [p.name for p in path.parent.iterdir()] == ["step-000003"]


def test_unfinished_ones_are_passed_over(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    model = Tied()
    optimizer = adamw(model)
    good = save_checkpoint(tmp_path, 2, model, optimizer, {})
    folder = good.parent
    (folder / "step-000004.tmp").mkdir()
    (folder / "step-000005").mkdir()
    (folder / "step-000006").mkdir()
    (folder / "step-000006" / "state.json").write_text('{"files"')
    (folder / "notes").mkdir()
    short = save_checkpoint(tmp_path, 7, model, optimizer, {})
    weights = short / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert latest_checkpoint(tmp_path) == good


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_damage_is_named(tmp_path: Path, name: str, damage: str) -> None:
    model = Tied()
    optimizer = adamw(model)
    advance(model, optimizer, range(2))
    path = save_checkpoint(tmp_path, 2, model, optimizer, {})
    before = [p.clone() for p in model.parameters()]
    if damage == "missing":
        (path / name).unlink()
    else:
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2 if name != "state.json" else 0] ^= 1
        (path / name).write_bytes(data)
    with pytest.raises(RunError) as caught:
        load_checkpoint(path, model, optimizer)
    text = str(caught.value)
    assert str(path) in text and name in text and "damaged" in text and "\n" not in text
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_another_model_or_optimizer_is_refused(tmp_path: Path) -> None:
    model = Tied()
    path = save_checkpoint(tmp_path, 1, model, adamw(model), {})
    other = Tied(width=4)
    with pytest.raises(RunError, match="holds another model"):
        load_checkpoint(path, other, adamw(other))
    with pytest.raises(RunError, match="other parameter groups"):
        load_checkpoint(path, model, sgd(model))


def test_a_full_disk_is_one_line_and_keeps_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Tied()
    optimizer = adamw(model)
    good = save_checkpoint(tmp_path, 1, model, optimizer, {})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="cannot write the checkpoint .*No space left on device"):
        save_checkpoint(tmp_path, 2, model, optimizer, {})
    assert latest_checkpoint(tmp_path) == good
    load_checkpoint(good, model, optimizer)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_kill_before_the_rename_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    model = Tied()
    optimizer = adamw(model)
    first = save_checkpoint(tmp_path, 1, model, optimizer, {})
    save = os.replace

    class Killed(BaseException):
        pass

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == "step-000002":
            raise Killed
        save(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        save_checkpoint(tmp_path, 2, model, optimizer, {})
    assert latest_checkpoint(tmp_path) == first
    monkeypatch.undo()
    second = save_checkpoint(tmp_path, 2, model, optimizer, {})
    assert latest_checkpoint(tmp_path) == second
    assert json.loads((second / "state.json").read_text())["step"] == 2
