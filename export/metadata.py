"""What an exported file says about itself, so that it can be used without the code that made it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config
from torch import nn

from bossnet_zoo.checkpoint import hash_tensors
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.fresh import FRESH_NOTE, is_fresh

from .extras import need

_PACKAGES = ("bossnet-zoo", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu")
CHECKSUM = "checksum"  # an entry beside the fields below


UNTRAINED = "random"  # tag of a network that was exported with random weights
UNTRAINED_NOTE = "its weights are random (--untrained), and its answers mean nothing"


@dataclass(frozen=True)
class Metadata:
    """Everything needed to prepare images for a network and to read its answers.

    Attributes:
        model: timm's name of the network.
        architecture: its written form in a search space; the timm name for other networks.
        input_size: (C, H, W) of a prepared image.
        mean, std: per channel, of pixels scaled to 0..1.
        crop_pct, crop_mode, interpolation: timm's names of how an image is resized and cropped.
        class_names: one per output, or empty.
        weights_sha256: hash of names, types and values of all weights; see `hash_weights`.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        runtime: `any`, or for INT8 the one runtime the file is meant for: `onnxruntime` or `tensorrt`.
        pixels: whether `input` takes uint8 pixels (B, H, W, C) and normalises them itself, instead of normalised
            float32 (B, C, H, W).
        softmax: whether the output is probabilities instead of logits.
        batches: smallest and largest number of images at once; None for any.
        sizes: smallest and largest side of an image, where sizes are open; None for the `input_size` alone.
        notes: what else a user should know, such as nodes that keep another precision.
        versions: of the packages that made the file.
    """

    model: str
    architecture: str
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str
    interpolation: str
    class_names: tuple[str, ...] = ()
    weights_sha256: str = ""
    precision: str = "fp32"
    runtime: str = "any"
    pixels: bool = False
    softmax: bool = False
    batches: tuple[int, int] | None = None
    sizes: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        input_size: tuple[int, int, int] | None = None,
        class_names: tuple[str, ...] = (),
        data_config: Mapping[str, Any] | None = None,
    ) -> Metadata:
        """The metadata of a timm model; `data_config` overrides its pretrained configuration.

        Raises:
            UsageError: as many class names as the network has outputs are needed, or none.
        """
        num_classes = getattr(model, "num_classes", len(class_names))
        if class_names and len(class_names) != num_classes:
            raise UsageError(f"{len(class_names)} class names were given for a network with {num_classes} outputs")
        overrides = {**(data_config or {}), **({"input_size": input_size} if input_size else {})}
        config = resolve_data_config(overrides, model=model)
        pretrained_cfg: Any = getattr(model, "pretrained_cfg", {})
        name = pretrained_cfg.get("architecture") or type(model).__name__
        return cls(
            model=name,
            architecture=str(getattr(model, "arch", name)),
            input_size=tuple(config["input_size"]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            crop_pct=float(config["crop_pct"]),
            crop_mode=config["crop_mode"],
            interpolation=config["interpolation"],
            class_names=tuple(class_names),
            weights_sha256=hash_weights(model),
            notes=(UNTRAINED_NOTE,) if pretrained_cfg.get("tag") == UNTRAINED else (FRESH_NOTE,) * is_fresh(model),
            versions=_installed(_PACKAGES),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Metadata:
        """The inverse of `dataclasses.asdict`, after a trip through JSON."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)

    @property
    def data_config(self) -> dict[str, Any]:
        """Arguments of `timm.data.create_transform`."""
        names = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")
        return {name: getattr(self, name) for name in names}

    def write(self, proto: Any) -> None:
        """Put everything into a finished `onnx.ModelProto`: one entry per field, in JSON, and a checksum of it all."""
        onnx = need("onnx", "onnx")
        values = {name: json.dumps(value) for name, value in dataclasses.asdict(self).items()}
        onnx.helper.set_model_props(proto, values | {CHECKSUM: checksum(proto, values)})

    @classmethod
    def read(cls, entries: Mapping[str, str], path: Path) -> Metadata:
        """From the metadata entries of an ONNX file.

        Raises:
            BossNetError: the file was not written by `bossnet export`.
        """
        try:
            names = [field.name for field in dataclasses.fields(cls)]
            return cls.from_json({name: json.loads(entries[name]) for name in names if name in entries})
        except (TypeError, json.JSONDecodeError):
            raise BossNetError(
                f"{path} carries no metadata of bossnet-zoo, so its preprocessing is unknown; "
                "export the network again with: bossnet export"
            ) from None


def _installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are here: a network runs in PyTorch without the optional ones."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def checksum(proto: Any, entries: Mapping[str, str]) -> str:
    """SHA-256 of a model's graph and of what it says about itself: a copy that lost a bit has another."""
    digest = hashlib.sha256(proto.graph.SerializeToString(deterministic=True))
    for operators in proto.opset_import:
        digest.update(operators.SerializeToString(deterministic=True))
    digest.update(json.dumps({**entries, CHECKSUM: ""}, sort_keys=True).encode())
    return digest.hexdigest()


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, the same for the same weights whatever file they came from."""
    return hash_tensors(model.state_dict())
