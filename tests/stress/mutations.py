"""Damage as disks, copies and editors do it to files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

_FOREIGN: tuple[Any, ...] = (None, True, -1, 0, 10**400, 1e308, "", "x", "../../x", [], {}, [None], {"a": {}})


def truncate(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.choice((0, 1, len(content) - 1, chance.randrange(len(content))))]


def zero(content: bytes, chance: random.Random) -> bytes:
    """Zeros from somewhere to somewhere, as after a power failure."""
    start, end = sorted(chance.sample(range(len(content) + 1), 2))
    if chance.random() < 0.3:
        start, end = 0, len(content)
    return content[:start] + bytes(end - start) + content[end:]


def flip(content: bytes, chance: random.Random) -> bytes:
    """One to eight bits."""
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 8))):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def edit(content: bytes, chance: random.Random) -> bytes:
    """JSON whose form is right and whose content is not: a value of another type, or a name missing."""
    value = json.loads(content)
    places = list(_places(value))
    holder, key = chance.choice(places)
    if chance.random() < 0.3:
        del holder[key]
    else:
        holder[key] = chance.choice([other for other in _FOREIGN if type(other) is not type(holder[key])])
    return json.dumps(value).encode()


def _places(value: Any) -> Any:
    """Every (container, key) within a JSON value; long lists count by their first entries."""
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 3)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def swap(file: Path, root: Path, chance: random.Random) -> bytes:
    """The content of another file of the same kind, else of any other."""
    others = [other for other in sorted(root.rglob("*")) if other.is_file() and other != file]
    alike = [other for other in others if other.suffix == file.suffix]
    return chance.choice(alike or others).read_bytes()


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
