"""From a micro-batch of TRL to token statistics: its own loss forward, and passes like it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from entropy_lab.probe import Probe
from entropy_lab.stats import linear_token_stats, token_stats
from entropy_lab.types import TokenStats

logger = logging.getLogger("entropy_lab.trl")

Way = Literal["hidden", "logits", "method"]
FORWARD = "_get_per_token_logps_and_entropies"


@dataclass(frozen=True)
class Inputs:
    """What one pass reads, in TRL's layout: prompts padded on the left, completions on the right.

    input_ids, attention_mask: (B, P+T); token_id (B, T): the completions. more: further inputs of
    the model with one row per response (token_type_ids and the like).
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_id: Tensor
    more: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class LossCall:
    """One call of the trainer's forward for its loss: made exactly once, whoever asks first."""

    forward: Callable[..., tuple]
    args: tuple
    kwargs: dict[str, Any]
    result: tuple | None = None
    error: BaseException | None = None

    def run(self) -> tuple:
        if self.error is not None:
            raise self.error
        if self.result is None:
            try:
                self.result = self.forward(*self.args, **self.kwargs)
            except BaseException as error:
                self.error = error
                raise
        return self.result


class TrlScore:
    """score(inputs) -> TokenStats (B, T) of softmax(logits / temperature) at completion tokens.

    way "hidden": from the backbone's hidden states and the head, on the same kernel for the loss
    forward, whose hidden states are caught on their way, and for passes of the probe. "logits":
    where logits are more than hidden states times a weight. "method": through the trainer's own
    forward, where neither agrees with what the loss reads; there are no moments then. The first
    loss forward decides.
    """

    def __init__(self, trainer: Any, forward: Callable[..., tuple]) -> None:
        self.trainer, self.forward = trainer, forward
        self.way: Way | None = None
        self.busy = False  # a pass of ours, which the trainer's wrapped forward lets through
        self._loss: tuple[LossCall, Inputs] | None = None

    def loss_forward(self, probe: Probe, call: LossCall, inputs: Inputs) -> TokenStats:
        """Make `call` and return its statistics, detached, on our own kernel."""
        self._loss = (call, inputs)
        try:
            return probe.meters.forward(inputs)
        finally:
            self._loss = None

    def __call__(self, inputs: Inputs) -> TokenStats:
        if self._loss is not None:
            (call, inputs), self._loss = self._loss, None
            return self._of_loss(call, inputs)
        return self._pass(inputs, self.way or "logits")

    def _of_loss(self, call: LossCall, inputs: Inputs) -> TokenStats:
        with _hidden_states(backbone(self.model)) as seen:
            result = call.run()
        with torch.no_grad():
            hidden = seen[-1].detach() if seen else None
            if self.way is None:
                self.way = self._choose(inputs, hidden, result)
            if self.way == "hidden" and hidden is not None:
                return self._from_hidden(hidden, inputs)
            return _without_moments(result)

    def _choose(self, inputs: Inputs, hidden: Tensor | None, result: tuple) -> Way:
        """The first way whose logp and entropy are those that the loss reads."""
        ways: tuple[Way, ...] = ("hidden", "logits") if hidden is not None else ("logits",)
        for way in ways:
            try:
                stats = (
                    self._from_hidden(hidden, inputs)
                    if way == "hidden" and hidden is not None
                    else self._pass(inputs, way)
                )
            except (AttributeError, TypeError, ValueError, RuntimeError) as error:
                logger.debug("statistics from %s failed: %s", way, error)
                continue
            if _agree(stats, result, inputs, 0.2 if self._low else 1e-3):
                return way
        logger.warning(
            "the trainer's %s is not log softmax(logits / temperature) of its model: both passes "
            "go through it, closed forms that need more than logp and entropy are left out",
            FORWARD,
        )
        return "method"

    @property
    def _low(self) -> bool:
        """Whether the model computes in half precision, whatever its outputs are in."""
        own = {p.dtype for p in self.model.parameters()}
        mixed = str(getattr(self.trainer.accelerator, "mixed_precision", "no"))
        return mixed != "no" or bool(own & {torch.bfloat16, torch.float16})

    @property
    def model(self) -> nn.Module:
        return self.trainer.model

    def _pass(self, inputs: Inputs, way: Way) -> TokenStats:
        if way == "method":
            return self._by_method(inputs)
        read = {
            "input_ids": inputs.input_ids,
            "attention_mask": inputs.attention_mask,
            "use_cache": False,
            **inputs.more,
        }
        width = inputs.token_id.shape[1]
        if way == "hidden":
            with self.trainer.accelerator.autocast():
                hidden = backbone(self.model)(**read).last_hidden_state
            return self._from_hidden(hidden, inputs)
        with self.trainer.accelerator.autocast():
            logits = self.model(**read).logits[:, -width - 1 : -1]
        return token_stats(logits, inputs.token_id, self.trainer.temperature)

    def _by_method(self, inputs: Inputs) -> TokenStats:
        own, self.busy = self.busy, True
        try:
            result = self.forward(
                self.model,
                inputs.input_ids,
                inputs.attention_mask,
                inputs.token_id.shape[1],
                compute_entropy=True,
                **inputs.more,
            )
        finally:
            self.busy = own
        return _without_moments(result)

    def _from_hidden(self, hidden: Tensor, inputs: Inputs) -> TokenStats:
        """Of the hidden states (B, P+T, D) or (B, T+1, D) of a pass."""
        width = inputs.token_id.shape[1]
        states = hidden[:, -width - 1 : -1]  # position t predicts token t + 1
        head = _plain(self.model).get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise ValueError("the head has a bias")
        weight = head.weight
        if getattr(self.trainer.args, "cast_lm_head_to_fp32", False):
            states, weight = states.float(), weight.float()
        else:
            kind = states.device.type
            with self.trainer.accelerator.autocast():
                # Asked, not read from the settings: a measurement may have switched it off.
                if torch.is_autocast_enabled(kind):
                    low = torch.get_autocast_dtype(kind)
                    states, weight = states.to(low), weight.to(low)
        return linear_token_stats(states, weight, inputs.token_id, self.trainer.temperature)


def backbone(model: nn.Module) -> nn.Module:
    """The part of a causal LM below its head, adapters and wrappers taken off."""
    plain = _plain(model)
    return getattr(plain, "base_model", plain)


def _plain(model: nn.Module) -> Any:
    model = getattr(model, "module", model)
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


@contextmanager
def _hidden_states(module: nn.Module) -> Iterator[list[Tensor]]:
    """The hidden states that `module` returns while this lasts."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", None)
        if isinstance(hidden, Tensor):
            seen[:] = [hidden]

    handle = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _without_moments(result: tuple) -> TokenStats:
    logp, entropy = result[0], result[1]
    nan = torch.full_like(logp.detach(), float("nan"))
    return TokenStats(logp, entropy, nan, nan, nan)


def _agree(stats: TokenStats, result: tuple, inputs: Inputs, most: float) -> bool:
    """Whether logp and entropy are the same to `most` nats at every token."""
    width = inputs.token_id.shape[1]
    mask = inputs.attention_mask[:, -width:].bool()
    pairs = ((stats.logp, result[0]), (stats.entropy, result[1]))
    return all(bool(((a - b.detach()).abs()[mask] <= most).all()) for a, b in pairs)
