"""How far an exported network is from the PyTorch network it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bossnet_zoo.errors import BossNetError


class ExportError(BossNetError):
    """An exported network that computes something else than the PyTorch network, or in another precision than asked."""

    exit_code = 3


class Parity(NamedTuple):
    """One comparison with PyTorch.

    Attributes:
        batch: images in the batch.
        max_abs: largest absolute difference of two outputs.
        max_rel: the same, divided by PyTorch's largest absolute output.
        top1_agreement: share of the images whose best class is the same.
    """

    batch: int
    max_abs: float
    max_rel: float
    top1_agreement: float


@dataclass(frozen=True)
class Tolerance:
    """What a comparison may show at most (`max_rel`) and at least (`top1_agreement`, over all images compared)."""

    max_rel: float = 1e-4
    top1_agreement: float = 0.0


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares.

    Attributes:
        file: the exported file.
        bytes: its size.
        sha256: its hash.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        opset: version of ONNX's operator set.
        tolerance: what was asked of the parity.
        parity: one entry per batch compared.
        checked_with: the runtime that computed the outputs compared with PyTorch's.
    """

    file: Path
    bytes: int
    sha256: str
    precision: str
    opset: int
    tolerance: Tolerance
    parity: tuple[Parity, ...]
    checked_with: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `save_json`."""
        parity = [entry._asdict() for entry in self.parity]
        return {**dataclasses.asdict(self), "file": self.file.name, "parity": parity}


def compare(expected: np.ndarray, given: np.ndarray) -> Parity:
    """Compare two (B, classes) outputs; anything that is not finite counts as infinitely far."""
    if not np.isfinite(given).all():
        return Parity(len(expected), float("inf"), float("inf"), 0.0)
    max_abs = float(np.abs(expected - given).max())
    scale = float(np.abs(expected).max())
    agreement = float(np.mean(expected.argmax(1) == given.argmax(1)))
    return Parity(len(expected), max_abs, max_abs / scale if scale else max_abs, agreement)


def require_parity(parity: Sequence[Parity], tolerance: Tolerance, what: str) -> None:
    """Raise `ExportError` where the comparison is worse than `tolerance`."""
    worst = max(entry.max_rel for entry in parity)
    agreement = sum(entry.batch * entry.top1_agreement for entry in parity) / sum(entry.batch for entry in parity)
    if not worst <= tolerance.max_rel:
        raise ExportError(
            f"{what} differs from PyTorch by {worst:.1e} of the largest output; allowed: {tolerance.max_rel:.1e}; "
            "nothing was written; allow more with --tolerance, or choose another precision"
        )
    if agreement < tolerance.top1_agreement:
        raise ExportError(
            f"{what} agrees with PyTorch on the best class of {agreement:.1%} of the images; asked: "
            f"{tolerance.top1_agreement:.1%}; nothing was written; lower --agreement, or choose another precision"
        )
