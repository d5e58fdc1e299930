"""Training by several processes that torchrun has started: one run, one log, the same numbers.

All ranks hold all responses of a rollout and everything that is known about their tokens, which is
small, and so all of them make the same plan, whatever a method reads. What is dealt out is the
work: prompts to sample from, and micro-batches to run the model on. Gradients are summed.
"""

from entropy_lab.train.parallel.ranks import Ranks
from entropy_lab.train.parallel.start import joined

__all__ = ["Ranks", "joined"]
