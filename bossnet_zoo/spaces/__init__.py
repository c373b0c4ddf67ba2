"""Search spaces: what an architecture may be, how it is written down, what it costs. No torch."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
import typing
from typing import Any

from ..errors import ArchitectureError, UsageError, unknown
from ..json_types import fits_type
from .hytra import HyTraArch, HyTraSpace
from .mbconv import MBConvArch, MBConvSpace
from .nats import NatsArch, NatsSpace
from .space import Arch, Cost, Entry, Path, Space

__all__ = [
    "Arch",
    "Cost",
    "Entry",
    "HyTraArch",
    "HyTraSpace",
    "MBConvArch",
    "MBConvSpace",
    "NatsArch",
    "NatsSpace",
    "Path",
    "Space",
    "add_space",
    "changed_options",
    "describe_in_words",
    "get_space",
    "options_in_words",
    "parse_arch",
    "program_for",
    "require_networks",
    "space_command",
    "space_names",
]

_SPACES: dict[str, type] = {"hytra": HyTraSpace, "mbconv": MBConvSpace, "nats": NatsSpace}
_BUILT_IN = tuple(_SPACES)


def add_space(space: type) -> type:
    """Make a space of your own known by its `name`, to `get_space`, ratings files and the command line; a decorator."""
    _SPACES[space.name] = space  # type: ignore[attr-defined]
    return space


def require_networks(space: str, command: str) -> None:
    """Raise `UsageError` for a space of your own: what trains its networks, or takes them elsewhere, has no timm name.

    Args:
        command: what was typed, for the message.
    """
    if space not in _BUILT_IN:
        raise UsageError(
            f"{command} makes networks by their names in timm, and those of space {space!r} have none; "
            f"allowed: {', '.join(_BUILT_IN)}; for your own: bossnet_zoo.models.build(architecture)"
        )


def program_for(space: str) -> str:
    """What is typed in front of a command on that space: `bossnet`, or for one of your own the file that adds it.

    That is the program that runs, if it knows the space: `python kernels.py`. If not, nobody here can say.
    """
    if space in _BUILT_IN:
        return "bossnet"
    is_file = str(getattr(sys.modules["__main__"], "__file__", "")).endswith(".py")  # it is none in a notebook
    return shlex.join(["python", sys.argv[0] if is_file and space in _SPACES else "YOUR_FILE.py"])


def space_names() -> tuple[str, ...]:
    """The names that `get_space` takes."""
    return tuple(_SPACES)


def get_space(name: str, **options) -> Space:
    """The search space of that name.

    Args:
        name: one of `space_names()`.
        options: fields of the space's dataclass, for instance `base_width=8` for a narrow HyTra.

    Raises:
        UsageError: the name, an option or its value is unknown.
    """
    if name not in _SPACES:
        raise unknown(
            "space", name, _SPACES, f"a space of your own is known to the file that adds it: {program_for(name)}"
        )
    fields = {field.name: field for field in dataclasses.fields(_SPACES[name])}
    for option in options:
        if option not in fields:
            raise unknown(f"option of the {name} space", option, fields)
    types = typing.get_type_hints(_SPACES[name]) if options else {}
    for option, value in options.items():
        if not fits_type(value, types[option]):
            default = "" if fields[option].default is dataclasses.MISSING else f", such as {fields[option].default}"
            raise UsageError(
                f"option {option} of the {name} space is {value!r}, which it cannot be; it is a "
                f"{fields[option].type}{default}"
            )
    # Options that come from a JSON file have lists where a frozen value needs tuples.
    return _SPACES[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def changed_options(space: Space) -> dict[str, Any]:
    """The options that make `space` differ from the one that its name alone stands for."""
    return {
        field.name: getattr(space, field.name)
        for field in dataclasses.fields(space)  # type: ignore[arg-type]
        if getattr(space, field.name) != field.default
    }


def options_in_words(space: Space) -> str:
    """`widths=[8,16], default_resolution=16 (32,768 architectures without options)`; empty where there are none.

    The number stands there only where the options leave fewer.
    """
    options = changed_options(space)
    text = ", ".join(map(_typed, options.items()))
    try:
        whole = get_space(space.name).count()
    except TypeError:  # a space of your own that has no defaults
        return text
    return f"{text} ({whole:,} architectures without options)" if space.count() < whole else text


def describe_in_words(space: Space) -> str:
    """`nats: 32 architectures, with widths=[8,16] (32,768 architectures without options)`."""
    options, number = options_in_words(space), space.count()
    return f"{space.name}: {number:,} architecture{'s' * (number > 1)}" + (f", with {options}" if options else "")


def space_command(space: Space) -> str:
    """What shows this very space: `bossnet space nats --option 'widths=[8,16]'`."""
    options = [word for option in changed_options(space).items() for word in ("--option", _typed(option))]
    return f"{program_for(space.name)} {shlex.join(['space', space.name, *options])}"


def _typed(option: tuple[str, Any]) -> str:
    """An option as it is typed: `se=false`, `widths=[8,16]`, `act_layer=relu`."""
    name, value = option
    return f"{name}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"


def parse_arch(text: str) -> Arch:
    """The architecture that `text` stands for; its form tells the space.

    >>> parse_arch("8:16:24:32:64").widths
    (8, 16, 24, 32, 64)

    Raises:
        ArchitectureError: `text` has no space's form, or breaks its space's rule.
    """
    if ":" in text:
        return NatsArch.parse(text)
    if re.fullmatch(r"[\d-]+", text):
        return MBConvArch.parse(text)
    if re.fullmatch(r"\d+[a-z]+(-\d+[a-z]+)*", text):
        return HyTraArch.parse(text)
    raise ArchitectureError(
        f"{text!r} is no architecture; allowed: 4c-8c-16cccac-32aaacaaaaa (hytra), 11-1111-1101-1011-1101 (mbconv) "
        "and 8:16:24:32:64 (nats) are their forms; the rules: bossnet space hytra, mbconv or nats"
    )
