"""How the token viewer's numbers are kept: 16 bits each, in byte planes, deflated, base64.

A number is the upper half of its float32 (sign, exponent, 7 bits of the mantissa), rounded to the
nearest: at most 0.4 % off. Its two bytes lie in planes of their own, which deflate better.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import numpy as np

PRECISION = 2.0**-8  # largest relative error of a kept number


def halves(values: np.ndarray) -> bytes:
    """float32 (n,) as the planes of the high and the low byte: 2 n bytes. NaN stays NaN."""
    with np.errstate(over="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    upper[~np.isfinite(values)] = 0x7FC0
    return planes(upper, 2)


def planes(values: np.ndarray, width: int) -> bytes:
    """Integers (n,) below 256^width as `width` planes, the highest byte first."""
    whole = values.astype(np.uint64)
    return b"".join(
        ((whole >> (8 * i)) & 255).astype(np.uint8).tobytes() for i in reversed(range(width))
    )


def packed(data: bytes) -> str:
    """Deflated (zlib) and base64."""
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def packed_json(data: Any) -> str:
    """JSON, deflated and base64; any text is safe in it, lone surrogates too."""
    return packed(plain_json(data).encode("ascii"))


def plain_json(data: Any) -> str:
    """ASCII JSON without `<`, so that no text ends the script element that holds it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def known(value: Any) -> Any:
    """A number for JSON: None where it is missing or not finite."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
