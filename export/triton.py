"""A model repository for NVIDIA's Triton Inference Server: `tritonserver --model-repository DIR`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from bossnet_zoo.checkpoint import removing_empty, save_text, write_atomically
from bossnet_zoo.errors import BossNetError, RemediableError, UsageError

from .graph import INPUT, LOGITS, PROBABILITIES
from .metadata import Metadata
from .onnx import read_onnx
from .side_car import read_side_car

MAX_BATCH = 64  # that Triton gathers for an ONNX file of any batch

CONFIG = """\
# {note}
name: "{name}"
backend: "{backend}"
default_model_filename: "{file}"
max_batch_size: {max_batch}
input [
  {{
    name: "{input}"
    data_type: {data_type}
    dims: [ {dims} ]
  }}
]
output [
  {{
    name: "{output}"
    data_type: TYPE_FP32
    dims: [ {classes} ]{labels}
  }}
]
"""
BATCHING = """\
dynamic_batching { }
"""


@dataclass(frozen=True)
class _Served:
    """What Triton has to know of a file."""

    metadata: Metadata
    backend: str
    file: str
    max_batch: int  # 0: the file has one fixed batch, which is part of the shape
    dims: tuple[int, ...]
    classes: int


def write_triton(folder: Path, name: str, source: Path) -> Path:
    """Add one network to a model repository: `folder/name/config.pbtxt`, labels, and version 1 of the file.

    Args:
        folder: the repository.
        name: of the network in it.
        source: an ONNX file, or an engine of TensorRT (not of TensorRT for RTX, which Triton does not load).

    Returns:
        The network's folder.

    Raises:
        UsageError: a file that Triton does not load.
        BossNetError: the disk is full; what this call made is removed.
    """
    served = _engine(source) if source.suffix == ".engine" else _onnx(source)
    target, is_new = folder / name, not (folder / name).exists()
    with removing_empty(target / "1"):
        try:
            _write(served, name, source, target)
        except BaseException as error:
            if is_new:
                shutil.rmtree(target, ignore_errors=True)
            if isinstance(error, RemediableError):
                raise BossNetError(f"{error.what}; free some space or choose another --triton") from error
            raise
    return target


def _write(served: _Served, name: str, source: Path, target: Path) -> None:
    metadata = served.metadata
    write_atomically(target / "1" / served.file, lambda temporary: _copy(source, temporary))
    if metadata.class_names:
        save_text(target / "labels.txt", "\n".join(metadata.class_names) + "\n")
    size = metadata.input_size[-1]
    resize = f"resize to {round(size / metadata.crop_pct)} ({metadata.interpolation}), crop the centre to {size}"
    normalise = "uint8 pixels" if metadata.pixels else f"scale to 0..1, mean {metadata.mean}, std {metadata.std}"
    config = CONFIG.format(
        note=f"{metadata.model}, {metadata.precision}. Images: {resize}; {normalise}.",
        name=name,
        backend=served.backend,
        file=served.file,
        max_batch=served.max_batch,
        input=INPUT,
        data_type="TYPE_UINT8" if metadata.pixels else "TYPE_FP32",
        dims=", ".join(map(str, served.dims)),
        output=PROBABILITIES if metadata.softmax else LOGITS,
        classes=", ".join(map(str, (served.classes,) if served.max_batch else (served.dims[0], served.classes))),
        labels='\n    label_filename: "labels.txt"' if metadata.class_names else "",
    )
    save_text(target / "config.pbtxt", config + (BATCHING if served.max_batch else ""))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _onnx(source: Path) -> _Served:
    proto, metadata = read_onnx(source)
    if metadata.runtime == "tensorrt":
        raise UsageError(f"{source} is for TensorRT to build an engine from; serve that engine, or NAME.int8.ort.onnx")
    batch, *sides = (dim.dim_value or -1 for dim in proto.graph.input[0].type.tensor_type.shape.dim)
    classes = proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    is_open = batch == -1
    dims = tuple(sides) if is_open else (batch, *sides)
    largest = metadata.batches[1] if metadata.batches else MAX_BATCH
    return _Served(metadata, "onnxruntime", "model.onnx", largest if is_open else 0, dims, classes)


def _engine(source: Path) -> _Served:
    about = read_side_car(source)
    if about["builder"] != "tensorrt":
        raise UsageError(f"Triton loads engines of --trt; {source} is one of --trt-rtx; serve the .onnx instead")
    smallest, _, largest = about["profile"]
    sides = tuple(low if low == high else -1 for low, high in zip(smallest[1:], largest[1:], strict=True))
    metadata = Metadata.from_json(about["metadata"])
    return _Served(metadata, "tensorrt", "model.plan", largest[0], sides, about["classes"])
