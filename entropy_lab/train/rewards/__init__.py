"""Rewards that a program can verify."""
