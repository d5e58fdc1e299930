"""Measuring around one optimizer step, from any PyTorch loop."""

from entropy_lab.probe.probe import Probe
from entropy_lab.probe.scorer import Scorer, take_rows

__all__ = ["Probe", "Scorer", "take_rows"]
