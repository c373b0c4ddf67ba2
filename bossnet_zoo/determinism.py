"""Randomness as a pure function of a key, so that a run cut short and resumed draws what it would have drawn.

A key is a few integers, for instance (seed, epoch, position in the epoch). Nothing depends on how many numbers were
drawn before, on how many workers load the images or on the process that does it.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_everything(*key: int) -> None:
    """Set the global generators of Python, NumPy and torch (every device) from `key`."""
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within the block the generators of the CPU follow `key`; afterwards they go on as if nothing had happened."""
    words = np.random.SeedSequence(key).generate_state(3)
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def seed_of(*parts: object) -> int:
    """A seed that depends on every part (numbers, names), the same in each process and version of Python.

    For generators of one's own: `torch.Generator().manual_seed(seed_of(seed, "views", epoch))`.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")
