"""Whether what a JSON file or an option says is of the type that it has to be."""

from __future__ import annotations

import math
import types
import typing
from typing import Any


def fits_type(value: Any, hint: Any) -> bool:
    """Whether a decoded JSON value is of a type, as far as JSON can tell; lists stand for tuples."""
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(fits_type(value, argument) for argument in arguments)
    if kind is typing.Literal:
        return value in arguments
    if kind is tuple and isinstance(value, list | tuple):
        items = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return len(items) == len(value) and all(map(fits_type, value, items))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind is Any or isinstance(value, kind)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that float64 cannot hold
        return False
