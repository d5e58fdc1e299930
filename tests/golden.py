"""Loads the golden vectors of published loss implementations that live beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "policy_losses.npz"


def load_golden() -> dict[str, np.ndarray]:
    """All arrays of the golden file by key; skips the calling test where the file is absent."""
    if not GOLDEN.exists():
        pytest.skip(f"golden vectors not found at {GOLDEN}")
    with np.load(GOLDEN) as archive:
        return {key: archive[key] for key in archive.files}
