"""The processes of one run, each with its part of the weights: FSDP2."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from entropy_lab.probe.path import layer_stack
from entropy_lab.train.parallel.pieces import chunk
from entropy_lab.train.parallel.ranks import Ranks
from entropy_lab.train.parallel.watch import Watch
from entropy_lab.types import TokenStats


class Shards(Ranks):
    """Weights, gradients and optimizer state split over ranks (`train.parallel = "fsdp"`).

    The loss runs through `fully_shard`, layer by layer. Passes without a backward (sampling,
    statistics, every measurement) run on a second module of the same weights, which `fill` puts
    together from all ranks and `empty` gives up: a sampled token would else cost every rank a
    gather of all layers, and ranks of unlike responses would wait for one another for ever.
    What the probe computes on parameters (delta, momentum, gradients, inner products) is computed
    on parts; a point of the path is put together when a pass needs it, so path forms and influence
    are those of one process, forward-mode AD included, to the order of additions.
    """

    def __init__(self, rank: int, size: int, watch: Watch, device: torch.device) -> None:
        super().__init__(rank, size, watch, device)
        self._weights: dict[str, nn.Parameter] = {}
        self._whole: dict[str, nn.Parameter] = {}
        self._moves = 0
        self._filled: int | None = None

    def prepare(
        self, model: nn.Module, make_score: Callable[..., Any]
    ) -> tuple[nn.Module, nn.Module, Any]:
        # Each call of a layer gathers its weights from all ranks, so all make the same calls.
        loss = _Loss(model, make_score(model, share_prompts=False))
        whole, mesh = copy.deepcopy(model), init_device_mesh(self.device.type, (self.size,))
        stack = layer_stack(model)
        for layer in model.get_submodule(stack).children() if stack else ():
            fully_shard(layer, mesh=mesh)
        fully_shard(loss, mesh=mesh)
        for module in loss.modules():
            if isinstance(module, FSDPModule):
                # The sum, not the mean: shares are of the whole minibatch. Gloo has no scaled sum.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self._weights = dict(model.named_parameters())
        self._whole = dict(whole.named_parameters())
        self._filled = self._moves
        self._watch_passes(whole)
        self._watch_passes(loss)

        def loss_score(inputs: Any) -> TokenStats:
            return TokenStats(*loss(inputs))

        return whole, model, loss_score

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        def moved(*_: Any) -> None:
            self._moves += 1

        optimizer.register_step_post_hook(moved)

    def fill(self) -> None:
        if self._filled == self._moves:
            return
        for name, whole in self._whole.items():
            with self._together("the gathering of the weights"):
                now: Any = self._weights[name].detach()
                whole.data = now.full_tensor()
        self._filled = self._moves

    def empty(self) -> None:
        for whole in self._whole.values():
            whole.data = whole.data.new_zeros(()).expand(whole.shape)  # one number, the same shape
        self._filled = None

    def sum_gradients(
        self, params: Sequence[nn.Parameter], passes: int, fill_in: Callable[[], Any]
    ) -> None:
        """Every backward pass has summed; a rank with a micro-batch less makes up for it by a
        backward pass of zeros."""
        if self.rank >= passes % self.size > 0:
            stats = fill_in()
            (0.0 * (stats.logp + stats.entropy).sum()).backward()

    def weight(self, model: nn.Module, name: str) -> nn.Parameter:
        return self._weights[name]

    def trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._weights.items() if p.requires_grad}

    def part(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def summed(self, gradient: Tensor) -> Tensor:
        return chunk(super().summed(gradient), self.rank, self.size)

    def whole(self, name: str, part: Tensor) -> Tensor:
        like: Any = self._weights[name]
        with self._together():
            return DTensor.from_local(
                part.contiguous(),
                like.device_mesh,
                like.placements,
                run_check=False,
                shape=like.shape,
                stride=like.stride(),
            ).full_tensor()

    def over_parts(self, value: float) -> float:
        total = torch.tensor([value], dtype=torch.float64)
        with self._together():
            dist.all_reduce(total)
        return float(total)


class _Loss(nn.Module):
    """A score as the outermost module: it may use the head's weight beside the model's forward."""

    def __init__(self, model: nn.Module, score: Callable[[Any], TokenStats]) -> None:
        super().__init__()
        self.model, self.score = model, score

    def forward(self, inputs: Any) -> tuple[Tensor, ...]:
        s = self.score(inputs)
        return s.logp, s.entropy, s.m0, s.m1, s.m2  # FSDP2 finds tensors in plain containers
