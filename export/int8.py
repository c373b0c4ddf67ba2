"""INT8 by ONNX Runtime's static quantisation: pairs of QuantizeLinear and DequantizeLinear around Conv and Gemm."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bossnet_zoo.errors import BossNetError

from .extras import need

if TYPE_CHECKING:
    from onnx import ModelProto

POOLINGS = ("ReduceMean", "GlobalAveragePool")
POINTWISE = ("Conv", "Relu", "Sigmoid", "Mul")  # what squeeze-excite is made of, after pooling


def kept_in_float(proto: ModelProto) -> dict[str, tuple[str, ...]]:
    """Names of the convolutions and linear layers that stay float32, by why they do.

    Squeeze-excite gates see one pixel: a few thousandths of the arithmetic, and an error in one scales a channel.
    Depth-wise convolutions are bound by memory, so that INT8 gained nothing there (bossnet_t0, ONNX Runtime); without
    them and the classifier, the error of the logits was a fifth to a quarter smaller on tiny BossNet-Ms, whose every
    layer has one, and a twentieth on a tiny BossNet-T.
    """
    pooled = _after_pooling(proto)
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    linear = [node.name for node in proto.graph.node if node.op_type == "Gemm"]
    per_group = {tensor.name: tensor.dims[1] for tensor in proto.graph.initializer if len(tensor.dims) == 4}
    grouped = [node for node in convolutions if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    depthwise = [node.name for node in grouped if per_group.get(node.input[1]) == 1]
    return {
        "squeeze-excite": tuple(node.name for node in convolutions if node.name in pooled),
        "depth-wise": tuple(name for name in depthwise if name not in pooled),
        "classifier": tuple(linear[-1:]),
    }


def _after_pooling(proto: ModelProto) -> set[str]:
    """Names of the nodes between a global pooling and the product that spreads its answer over the pixels again."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    one_pixel: set[str] = set()
    names = set()
    for node in proto.graph.node:
        pooled = node.op_type in POOLINGS
        follows = node.op_type in POINTWISE and one_pixel.issuperset(
            name for name in node.input if name not in constants
        )
        if pooled or follows:
            one_pixel.update(node.output)
            names.add(node.name)
    return names


class _Batches:
    """What ONNX Runtime calls a calibration data reader."""

    def __init__(self, name: str, batches: Sequence[np.ndarray]):
        self.name, self.rest = name, iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self.rest, None)
        return None if images is None else {self.name: images}


def quantize(proto: ModelProto, batches: Sequence[np.ndarray], runtime: str) -> ModelProto:
    """A float32 graph with INT8 convolutions and linear layers, as quantise/dequantise pairs (QDQ).

    Weights per channel; activations by their smallest and largest value on the calibration images (percentiles and
    entropy were no better). Attention's matrix products, softmax, normalisation and additions stay float32, and what
    `kept_in_float` names: quantised, they lose accuracy and, on CPUs, time.

    Args:
        proto: the float32 graph; left as it is.
        batches: calibration images, as the graph's input takes them.
        runtime: `onnxruntime` (unsigned activations, 7-bit weights: the 16-bit sums of CPUs without VNNI would overflow
            with 8) or `tensorrt` (signed and symmetric throughout, float32 bias: its parser takes nothing else).
    """
    quantization = need("onnxruntime.quantization", "onnx")
    onnx = need("onnx", "onnx")

    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    kind = quantization.QuantType
    try:
        with tempfile.TemporaryDirectory() as folder, _without_advice():
            source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            onnx.save(proto, source)  # handed over as an object, it would be moved to external data in place
            quantization.quantize_static(
                source,
                target,
                _Batches(proto.graph.input[0].name, batches),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm"],
                nodes_to_exclude=[name for names in kept_in_float(proto).values() for name in names],
                per_channel=True,
                reduce_range=runtime == "onnxruntime",
                weight_type=kind.QInt8,
                activation_type=kind.QInt8 if runtime == "tensorrt" else kind.QUInt8,
                extra_options=symmetric if runtime == "tensorrt" else {},
            )
            return onnx.load(target)
    except OSError as error:
        raise BossNetError(
            f"INT8 needs room for two copies of the network in {tempfile.gettempdir()}: {error}; free some, or set "
            "TMPDIR to another folder"
        ) from error


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Hide ONNX Runtime's advice to pre-process the graph: on graphs of this exporter that changes nothing."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Please consider")

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
