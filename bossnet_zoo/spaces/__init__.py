"""Search spaces: what an architecture may be, how it is written down, what it costs. No torch."""

from __future__ import annotations

from ..errors import unknown
from .hytra import HyTraArch, HyTraSpace
from .space import Arch, Cost, Entry, Path, Space

__all__ = ["Arch", "Cost", "Entry", "HyTraArch", "HyTraSpace", "Path", "Space", "get_space", "space_names"]

_SPACES: dict[str, type] = {"hytra": HyTraSpace}


def space_names() -> tuple[str, ...]:
    """The names that `get_space` takes."""
    return tuple(_SPACES)


def get_space(name: str, **options) -> Space:
    """The search space of that name.

    Args:
        name: one of `space_names()`.
        options: fields of the space's dataclass, for instance `base_width=8` for a narrow HyTra.

    Raises:
        UsageError: the name is unknown.
    """
    if name not in _SPACES:
        raise unknown("space", name, _SPACES)
    return _SPACES[name](**options)
