r"""Rewards that can be checked: answers to mathematics, a user's own functions, and controls."""

from entropy_lab.train.rewards.math_judge import math_reward
from entropy_lab.train.rewards.rewarder import Graded, Rewarder, make_rewarder
from entropy_lab.train.rewards.settings import RewardConfig

__all__ = ["Graded", "RewardConfig", "Rewarder", "make_rewarder", "math_reward"]
