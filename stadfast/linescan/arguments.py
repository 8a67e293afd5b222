"""Sizes that come from outside."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UsageError


def is_whole(value: Any) -> bool:
    """Whether it is an integer, Python's or NumPy's; ``True`` and ``False`` are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """``value`` as an integer of Python's own: NumPy's overflow, and JSON has none of them."""
    if not is_whole(value) or value < least or (most is not None and value > most):
        wanted = f"a whole number from {least}" + ("" if most is None else f" to {most}")
        raise UsageError(f"{name}: expected {wanted}, got {value!r}")
    return int(value)


def check_positive(name: str, value: Any) -> int:
    return check_whole(name, value, 1)


def check_multiple(name: str, value: Any, unit: int) -> int:
    if unit == 1:
        return check_positive(name, value)
    if not is_whole(value) or value < 1 or value % unit:
        raise UsageError(f"{name}: expected a multiple of {unit}, got {value!r}")
    return int(value)
