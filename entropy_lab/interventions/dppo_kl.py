"""DPPO with the binary KL divergence as its trust region (2602.04879)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from entropy_lab.interventions.dppo_tv import DppoTv

# As in verl: keeps log(1 - pi) finite where a token is certain.
_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class DppoKl(DppoTv):
    """dppo_tv with the binary KL in nats in place of |dpi|, on the same side of pi_old.

    KL = pi_old log(pi_old / pi) + (1 - pi_old) log((1 - pi_old) / (1 - pi)), with 1e-8 added to
    both 1 - pi. arXiv 2602.04879.
    """

    name: ClassVar[str] = "dppo_kl"

    delta: float = 0.05

    def _divergence(self, logp: Tensor, old_logp: Tensor) -> Tensor:
        """The KL divergence of "this token or another" from the old policy, nats, (B, T)."""
        new, old = logp.exp(), old_logp.exp()
        rest = (1 - old) * ((1 - old + _EPS) / (1 - new + _EPS)).log()
        return old * (old_logp - logp) + rest
