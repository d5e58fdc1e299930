"""What the package does without: an error that names the extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from entropy_lab.errors import ConfigError


@contextmanager
def train_extra() -> Iterator[None]:
    """Around imports and calls of the trainer, which imports its packages where it needs them:
    ConfigError where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("entropy_lab"):
            raise
        raise ConfigError(
            f"training needs {error.name}: install it with pip install 'entropy-lab[train]'"
        ) from None
