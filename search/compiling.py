"""Compiled candidate operations: `bossnet search --compile`.

Each candidate is compiled by itself, at its first use, and those of the same structure share what was compiled. Only
training runs compiled: ratings meet other batch sizes, and BN in other modes, and would compile everything again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from bossnet_zoo.errors import UsageError
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Path

from .supernets import SupernetBlock

# All candidates run through the same few lines of torch.nn, where torch counts how often they were compiled; beyond its
# own limit of 8 it would run them uncompiled from then on.
_MOST_COMPILED = 4096


def check_compiler(runtime: Runtime) -> None:
    """Compile a sine. Raises `UsageError` where PyTorch has no compiler for the device."""
    try:
        torch.compile(torch.sin)(torch.ones(2, device=runtime.device))
    except Exception as error:  # of whatever torch, the C++ compiler or Triton cannot do here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--compile: PyTorch cannot compile here ({reason}); leave it out") from error


def compile_candidates(blocks: Iterable[tuple[SupernetBlock, Sequence[Path]]]) -> None:
    """Have every candidate operation compiled at its first use; the names of weights stay what they are.

    Args:
        blocks: each with its legal paths.
    """
    import torch._dynamo.config  # takes a second

    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = _MOST_COMPILED
    done: set[nn.Module] = set()
    for block, paths in blocks:
        for path in paths:
            for index in range(len(path)):
                for module in set(block.step_modules(path, index)) - done:
                    module.compile(dynamic=False)  # a layer sees images of one size, in batches of one size
                    done.add(module)


def uncompiled(is_compiled: bool) -> contextlib.AbstractContextManager[object]:
    """Within it, what was compiled runs as it is written."""
    return torch.compiler.set_stance("force_eager") if is_compiled else contextlib.nullcontext()
