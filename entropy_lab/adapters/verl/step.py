"""One optimizer step of all ranks: its closed forms, its token rows and its row of steps/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_lab.probe import rows as to_rows
from entropy_lab.probe.predict import predict_step
from entropy_lab.probe.window import Probed
from entropy_lab.types import TRUNCATED, TokenBatch, TokenGrad, TokenStats, _Rows


@dataclass(frozen=True)
class Share(_Rows):
    """The rows of one rank in a step, (B, T) each, probed (B,).

    before and after are NaN in rows that are not probed, but for before.logp, which is that of
    the loss forward there. grad is that of the whole step's loss.
    """

    batch: TokenBatch
    before: TokenStats
    after: TokenStats
    grad: TokenGrad
    weight: Tensor
    flags: Tensor
    probed: Tensor

    def rows(self, index: Tensor | slice) -> Share:  # type: ignore[override]
        """The responses chosen by `index`, in that order."""
        parts = (self.batch, self.before, self.after, self.grad)
        rest = (self.weight, self.flags, self.probed)
        return Share(*(p.rows(index) for p in parts), *(t[index] for t in rest))  # type: ignore[arg-type]

    @classmethod
    def join(cls, parts: Sequence[Share]) -> Share:
        """The rows of all ranks, one after the other, padded to the longest."""
        width = max(p.weight.shape[1] for p in parts)

        def wide(name: str) -> Tensor:
            values = [getattr(p, name) for p in parts]
            short = [(0, width - v.shape[1]) for v in values]
            padded = [torch.nn.functional.pad(v, s) for v, s in zip(values, short, strict=True)]
            return torch.cat(padded)

        return cls(
            TokenBatch.cat([p.batch for p in parts]),
            TokenStats.cat([p.before for p in parts]),
            TokenStats.cat([p.after for p in parts]),
            TokenGrad.cat([p.grad for p in parts]),
            wide("weight"),
            wide("flags"),
            torch.cat([p.probed for p in parts]),
        )

    def measured(self, inclusion_prob: float) -> Probed:
        """The rows as the functions of the probe take them."""
        nothing = slice(0, 0)
        return Probed(
            None, self.batch, None, inclusion_prob, None, nothing, self.before, self.after
        )


def spread(stats: TokenStats, rows: Tensor, size: int) -> TokenStats:
    """Statistics of the rows (B',) as those of all `size`, NaN in the others."""

    def wide(x: Tensor) -> Tensor:
        out = torch.full((size, x.shape[1]), float("nan"))
        out[rows] = x
        return out

    return stats.map(wide)


def flags_of(batch: TokenBatch, flags: Tensor) -> Tensor:
    """The method's flags (B, T) uint8 with those of the responses."""
    if batch.truncated is None:
        return flags
    return flags | TRUNCATED * batch.truncated.to(torch.uint8)[:, None]


def predict(whole: Share, names: Sequence[str], lr: float) -> dict[str, Tensor]:
    """The closed forms on the step of all ranks: N, means and repeated states are the step's.

    (B, T) nats; NaN where a form reads what is not there: statistics of rows that are not probed,
    moments that the engine does not show, the entropy of the old policy.
    """
    found = predict_step(whole.batch, whole.before, whole.grad, whole.flags, lr)
    return {name: found[name] for name in names}


def step_row(
    whole: Share, predicted: Mapping[str, Tensor], inclusion_prob: float, method: bool
) -> dict[str, float]:
    """The scalars of the step over the probed rows of all ranks; n_tokens counts all rows.

    method: whether a method of ours set the flags; the clip fractions of any other loss are
    unknown to the log (NaN).
    """
    some = whole.rows(whole.probed)
    part = some.measured(inclusion_prob)
    own = {name: value[whole.probed] for name, value in predicted.items()}
    row = to_rows.loss_scalars(part.batch, part.before, some.flags, some.weight, own)
    if not method:
        acted = ("clip_high_frac", "clip_low_frac", "dual_clip_frac", "touched_share")
        row |= dict.fromkeys(acted, float("nan"))
    return {
        **row,
        "n_tokens": int(whole.batch.mask.sum()),
        "n_probed": int(part.batch.mask.sum()),
        "inclusion_prob": inclusion_prob,
        "dH_train": to_rows.mean_change([part]),
        **to_rows.change_by_quadrant([part]),
        **to_rows.response_scalars([part], "train"),
    }


def token_rows(
    own: Share,
    predicted: Mapping[str, Tensor],
    micro: Tensor,
    step: int,
    inclusion_prob: float,
    columns: Sequence[str],
) -> to_rows.Columns:
    """The rows of tokens/ of one rank's probed responses; micro (B, T) numbers micro-batches."""
    keep = own.probed
    some = own.rows(keep)
    part = some.measured(inclusion_prob)
    named = {name: value[keep] for name, value in predicted.items()}
    rows = to_rows.token_columns(step, 0, part, some.grad, some.weight, some.flags, named)
    rows["micro"] = micro[keep][some.batch.mask].numpy().astype("int16")
    return {name: values for name, values in rows.items() if name in set(columns)}
