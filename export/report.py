"""How far an exported network is from the PyTorch network it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bossnet_zoo.errors import BossNetError

TWIN_NOTE = (
    "ONNX Runtime has no bf16 on a CPU, so what was compared is a float32 twin, whose every result is rounded to bf16"
)


class ExportError(BossNetError):
    """An exported network that computes something else than the PyTorch network, or in another precision than asked."""

    exit_code = 3


class Parity(NamedTuple):
    """One comparison with PyTorch.

    Attributes:
        batch: how many images were compared.
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
    """What a comparison may show at most and at least.

    Attributes:
        max_rel: largest relative difference; None where it is not judged (INT8, by its best classes alone).
        top1_agreement: smallest share of given images with the same best class. One image may always differ, so that
            a handful of images does not fail on a tie.
    """

    max_rel: float | None
    top1_agreement: float


TOLERANCES = {
    "fp32": Tolerance(1e-4, 1.0),
    "fp16": Tolerance(1e-2, 0.995),
    # fp16's, times 2 to the power of the 3 bits of mantissa that bf16 lacks. 5e-2 was too little: a trained BossNet-M
    # differed by 5.7e-2 on noise, and had PyTorch's best class on 497 of 497 images.
    "bf16": Tolerance(8e-2, 0.98),
    "int8": Tolerance(None, 0.98),
}


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares.

    Attributes:
        file: the exported file.
        bytes: its size.
        onnx_sha256: its hash.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        opset: version of ONNX's operator set.
        tolerance: what was asked of the comparison.
        parity: one entry per batch of noise; for INT8, which is calibrated on images, of images.
        on_images: the comparison on all images given, if any were.
        notes: what a user should know, such as which nodes keep another precision, and whether a twin was compared.
    """

    file: Path
    bytes: int
    onnx_sha256: str
    precision: str
    opset: int
    tolerance: Tolerance
    parity: tuple[Parity, ...]
    on_images: Parity | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `save_json`."""
        values = {**dataclasses.asdict(self), "file": self.file.name}
        values["parity"] = [entry._asdict() for entry in self.parity]
        values["on_images"] = self.on_images._asdict() if self.on_images else None
        return values


def compare(expected: np.ndarray, given: np.ndarray) -> Parity:
    """Compare two (B, classes) outputs; an output that is not finite counts as infinitely far."""
    if not np.isfinite(given).all():
        return Parity(len(expected), float("inf"), float("inf"), 0.0)
    max_abs = float(np.abs(expected - given).max())
    scale = float(np.abs(expected).max())
    agreement = float(np.mean(expected.argmax(1) == given.argmax(1)))
    return Parity(len(expected), max_abs, max_abs / scale if scale else max_abs, agreement)


def require_parity(parity: Sequence[Parity], on_images: Parity | None, tolerance: Tolerance, what: str) -> None:
    """Raise `ExportError` where a comparison is worse than `tolerance`."""
    worst = max(entry.max_rel for entry in (*parity, *([on_images] if on_images else [])))
    limit = float("inf") if tolerance.max_rel is None else tolerance.max_rel
    if not worst <= limit or worst == float("inf"):
        raise ExportError(
            f"{what} differs from PyTorch by {worst:.1e} of the largest output; allowed: {limit:.1e}; "
            "nothing was written; allow more with --tolerance, or choose another precision"
        )
    if on_images is not None:
        differing = round((1 - on_images.top1_agreement) * on_images.batch)
        if differing > max(1, (1 - tolerance.top1_agreement) * on_images.batch):
            raise ExportError(
                f"{what} has another best class than PyTorch on {differing} of {on_images.batch} images; asked: "
                f"agreement on {tolerance.top1_agreement:.1%}; nothing was written; lower --agreement, give more "
                "--calib-n images, or choose another precision"
            )
