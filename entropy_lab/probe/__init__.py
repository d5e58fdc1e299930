"""Measuring around one optimizer step, from any PyTorch loop."""

from entropy_lab.probe.inputs import take_rows
from entropy_lab.probe.probe import Probe
from entropy_lab.probe.scorer import Scorer

__all__ = ["Probe", "Scorer", "take_rows"]
