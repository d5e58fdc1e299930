"""The entry point of the group verl.plugins, which every `import verl` loads.

Importing this module instruments verl where ENTROPY_LAB_RUN_DIR or ENTROPY_LAB_METHOD is set and
does nothing elsewhere. It says loudly what went wrong, because verl (>= 0.9, which loads plugins)
swallows their errors.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module

logger = logging.getLogger("entropy_lab.adapters.verl")
_SWITCHES = ("ENTROPY_LAB_RUN_DIR", "ENTROPY_LAB_METHOD")


def load() -> bool:
    """Instrument verl where the environment asks for it; whether it did."""
    if not any(os.environ.get(name) for name in _SWITCHES):
        return False
    try:
        import_module("entropy_lab.adapters.verl")
    except Exception:
        logger.exception(
            "entropy-lab could not instrument verl, so this run is NOT recorded; unset %s, or mend "
            "what the traceback names", " and ".join(_SWITCHES)
        )  # fmt: skip
        raise
    return True


load()
