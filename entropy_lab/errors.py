"""Errors that a user can act on; the command line prints their text without a traceback."""


class EntropyLabError(Exception):
    """Base of every error whose text says what was wrong, the value seen and what to do."""


class ConfigError(EntropyLabError):
    """A setting or a command-line argument is wrong; the command line exits with 2."""


class RunError(EntropyLabError):
    """A run directory cannot be read or written as asked; the command line exits with 1."""
