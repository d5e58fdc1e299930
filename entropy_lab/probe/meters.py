"""The scorers of one run: the training step's own arithmetic, and those of the measurements."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from entropy_lab.probe.precision import Precision, Setting, watched_autocast
from entropy_lab.probe.scorer import Score, Scorer
from entropy_lab.types import TokenStats


class Meters:
    """training: passes as the loss forward runs; main: what all probed rows are measured with;
    deep: path forms and influence; fine: a few responses again in float32, or None.

    They are one object where their arithmetic is the same, so that a pass is paid once. Until the
    first loss forward has shown under which autocast training runs, all run as `score` does.
    loss_score: the loss forward, where another module makes it than the one that measures.
    """

    def __init__(
        self,
        model: nn.Module,
        score: Score,
        optimizer: torch.optim.Optimizer,
        setting: Setting,
        loss_score: Score | None = None,
    ):
        self.training = Scorer(model, score, optimizer)
        self.dtype, self.policy = "", setting.policy
        self._model, self._score, self._optimizer = model, score, optimizer
        self._setting, self._loss_score = setting, loss_score or score
        self._all: dict[Precision, Scorer] = {}
        self._settle(None)
        self._settled = False

    def forward(self, inputs: Any) -> TokenStats:
        """A loss forward, the first of which settles how the run is measured."""
        if self._settled:
            return self._loss_score(inputs)
        with watched_autocast(next(self._model.parameters()).device.type) as seen:
            stats = self._loss_score(inputs)
        self._settle(seen[-1] if seen else None)
        self._settled = True
        return stats

    def _settle(self, autocast: torch.dtype | None) -> None:
        found = self._setting.resolve(self._model, autocast)
        self.training.use(found.training)
        for scorer in self._all.values():
            if scorer is not self.training:
                scorer.close()
        self._all = {found.training: self.training}
        self.main, self.deep = self._scorer(found.main), self._scorer(found.deep)
        self.fine = self._scorer(found.fine) if found.fine else None
        self.dtype, self.policy = found.dtype, found.policy

    def _scorer(self, precision: Precision) -> Scorer:
        if precision not in self._all:
            self._all[precision] = Scorer(self._model, self._score, self._optimizer, precision)
        return self._all[precision]

    def close(self) -> None:
        for scorer in self._all.values():
            scorer.close()
