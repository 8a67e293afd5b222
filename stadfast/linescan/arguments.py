"""Sizes that come from outside."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UsageError


def check_multiple(name: str, value: Any, unit: int) -> int:
    """``value`` as an integer of Python's own: NumPy's overflow, and JSON has none of them."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1 or value % unit:
        wanted = "a whole number from 1" if unit == 1 else f"a multiple of {unit}"
        raise UsageError(f"{name}: expected {wanted}, got {value!r}")
    return int(value)


def check_positive(name: str, value: Any) -> int:
    return check_multiple(name, value, 1)
