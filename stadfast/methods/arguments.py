"""What a detector's arguments may be, told from their defaults and names."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from ..errors import UsageError

MINIMUM_SIZE = 32
# Numbers, too, although their default is None.
_NUMBERS = ("weight_decay", "validation_fraction", "cache_gb", "lam", "background_quantile")
_MAX_SEED = 2**63


def argument_names(cls: type) -> list[str]:
    """Of the constructor."""
    return list(inspect.signature(cls).parameters)


def check_known(method: str, cls: type, given: Iterable[str]) -> None:
    """
    Raises:
        UsageError: a name that the method does not have.
    """
    known = argument_names(cls)
    for name in given:
        if name not in known:
            raise UsageError(f"{method} has no argument {name!r}; it has {', '.join(known)}")


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, least: int = 1) -> bool:
    """Whether it is a whole number from ``least``."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def as_python(value: Any) -> Any:
    """Numbers such as NumPy's as Python's, in lists and tuples, too: torch and JSON want these."""
    if isinstance(value, (list, tuple)):
        found = [as_python(item) for item in value]
        return found if isinstance(value, list) else tuple(found)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def both_sides(size: Any) -> tuple[Any, ...]:
    """(H, W) of a size that is given so, or as the side of a square."""
    return tuple(as_python(size)) if isinstance(size, (tuple, list)) else (as_python(size),) * 2


def check_arguments(
    cls: type, given: Mapping[str, Any], counts: Sequence[str], choices: Mapping[str, Sequence[str]]
) -> None:
    """What holds for every method: numbers are numbers, switches are switches, choices are known.

    Args:
        cls: the method's class; where a default is None, the argument may be None.
        given: name -> value.
        counts: names of those that are whole numbers from 1.
        choices: name -> the words that are one of.

    Raises:
        UsageError: names the argument.
    """
    for name, parameter in inspect.signature(cls).parameters.items():
        default = parameter.default
        if name not in given or (given[name] is None and default is None):
            continue
        value = given[name]
        if name == "seed":
            _expect(is_count(value, 0) and value < _MAX_SEED, name, "a whole number from 0 below 2^63", value)
        elif name in counts:
            _expect(is_count(value), name, "a whole number from 1", value)
        elif name in choices:
            known = choices[name]
            _expect(isinstance(value, str) and value in known, name, f"one of {', '.join(known)}", value)
        elif isinstance(default, bool):
            _expect(isinstance(value, bool), name, "true or false", value)
        elif name == "learning_rate":
            _expect(is_number(value) and value > 0, name, "a number above 0", value)
        elif isinstance(default, float) or name in _NUMBERS:
            _expect(is_number(value) and value >= 0, name, "a number from 0", value)
    size = given["image_size"]
    if size is not None:
        sides = both_sides(size)
        _expect(len(sides) == 2 and all(map(is_count, sides)), "image_size", "a number or (H, W)", size)
        _expect(min(sides) >= MINIMUM_SIZE, "image_size", f"at least {MINIMUM_SIZE} x {MINIMUM_SIZE}", size)


def _expect(fits: bool, name: str, wanted: str, value: Any) -> None:
    if not fits:
        raise UsageError(f"{name}: expected {wanted}, got {value!r}")
