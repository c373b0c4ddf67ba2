"""How images are made ready for a network: timm's data configuration, checked where it comes from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from timm.data import resolve_model_data_config
from torch import nn

from .checkpoint import check_fields
from .errors import UsageError

COLOURS = 3  # red, green, blue: how images are read
_LARGEST_SIDE, _SMALLEST_CROP = 2**14, 1 / 64  # of an image that a network takes


@dataclass(frozen=True)
class Preprocessing:
    """How images are made ready for a network: timm's data configuration."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: Literal["center", "squash", "border"]
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]


def check_preprocessing(values: Any, what: str) -> None:
    """Make sure that values from a file are a `Preprocessing` that images can be given. Raises `UsageError`."""
    check_fields(Preprocessing, values, what)
    channels, *sides = values["input_size"]
    possible = {
        "input_size": channels > 0 and all(0 < side <= _LARGEST_SIDE for side in sides),
        "mean": len(values["mean"]) in (1, channels),
        "std": len(values["std"]) in (1, channels) and all(deviation > 0 for deviation in values["std"]),
        "crop_pct": values["crop_pct"] >= _SMALLEST_CROP,
    }
    for name, is_possible in possible.items():
        if not is_possible:
            raise UsageError(
                f"{what}: {name} is {str(values[name])[:80]}, which cannot be; bring the file back from a copy"
            )


def preprocessing_of(model: nn.Module, input_size: int | None = None) -> dict[str, Any]:
    """How a network wants its images, in timm's names; at `input_size` pixels if given.

    Raises:
        UsageError: what its files say cannot be.
    """
    config = resolve_model_data_config(model)
    check_preprocessing(config, f"preprocessing of {type(model).__name__}")
    channels = getattr(model, "in_chans", config["input_size"][0])
    if channels != COLOURS:
        raise UsageError(
            f"this network takes images of {channels} channel{'s' * (channels > 1)}, and images are read in colour; "
            f"build it with in_chans={COLOURS}"
        )
    if input_size is not None:
        config["input_size"] = (config["input_size"][0], input_size, input_size)
    return config
