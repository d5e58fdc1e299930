"""dH of a few responses measured again in float32, beside a measurement in half precision.

Rounding a body to bfloat16 moves an entropy by about 1e-3 nats, as much as a step at lr 1e-6 does,
and shared by all tokens: more tokens do not average it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropy_lab.probe.inputs import take_rows
from entropy_lab.probe.scorer import Scorer
from entropy_lab.probe.window import Probed
from entropy_lab.probe.world import ALONE, World

MOST_RESPONSES = 8


@dataclass
class FineRows:
    """Some responses of one probed part: rows into it, and their entropy in float32 (inputs and
    before are None on the ranks that the part does not belong to)."""

    part: Probed
    rows: Tensor
    inputs: Any
    before: Tensor | None
    dH: Tensor | None = None

    @classmethod
    def choose(cls, parts: Sequence[Probed], seed: int, step: int, scorer: Scorer) -> FineRows:
        """At most MOST_RESPONSES of one of `parts`: a pure function of (seed, step)."""
        rng = np.random.default_rng([seed, step, 0xF10A7])
        part = parts[int(rng.integers(len(parts)))]
        size = len(part.batch.mask)
        picked = rng.choice(size, min(MOST_RESPONSES, size), replace=False)
        rows = torch.from_numpy(np.sort(picked))
        if part.inputs is None:
            return cls(part, rows, None, None)
        inputs = take_rows(part.inputs, rows)
        return cls(part, rows, inputs, scorer.measure(inputs).entropy)

    def finish(self, scorer: Scorer, world: World = ALONE) -> None:
        """Second pass, after the step."""
        own = None
        if self.before is not None:
            own = scorer.measure(self.inputs).entropy - self.before
        self.dH = world.told(own)

    def column(self, part: Probed) -> dict[str, Tensor]:
        """`dH_float32` (B', T) of `part`, NaN on rows that were not measured again."""
        if part is not self.part or self.dH is None:
            return {}
        rows = self.rows.to(self.dH.device)
        column = torch.full_like(part.before.entropy, float("nan"), dtype=self.dH.dtype)
        return {"dH_float32": column.index_copy(0, rows, self.dH)}

    def scalars(self) -> dict[str, float]:
        """dH_float32, dH_float32_same: means over the responses' tokens, in float32 and as all
        rows were measured; rounding: rms of the difference; nats. float32_rows: tokens."""
        assert self.dH is not None
        rows = self.rows.to(self.dH.device)
        mask = self.part.batch.mask[rows]
        fine, same = self.dH[mask].double(), self.part.dH[rows][mask].double()
        if not len(fine):
            return {}
        return {
            "dH_float32": float(fine.mean()),
            "dH_float32_same": float(same.mean()),
            "rounding": float((same - fine).square().mean().sqrt()),
            "float32_rows": len(fine),
        }
