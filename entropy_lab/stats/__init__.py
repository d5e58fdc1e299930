"""Vocabulary statistics: the five numbers per token that replace the logits, and what follows.

Of single positions, and of whole responses (`response_terms`).
"""

from __future__ import annotations

from entropy_lab.stats.derived import QUADRANTS, entropy_slopes, quadrant
from entropy_lab.stats.linear import linear_token_stats
from entropy_lab.stats.moments import Moments
from entropy_lab.stats.reference import token_stats
from entropy_lab.stats.state import state_hash
from entropy_lab.stats.visitation import ResponseTerms, response_terms

__all__ = [
    "QUADRANTS",
    "Moments",
    "ResponseTerms",
    "entropy_slopes",
    "linear_token_stats",
    "quadrant",
    "response_terms",
    "state_hash",
    "token_stats",
]
