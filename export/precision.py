"""Precision lives in the graph, since TensorRT 11 takes it from there: what was asked for is made, then read back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bossnet_zoo.errors import UsageError

from .extras import need
from .half import ISLAND_OPS, overflowing, to_half
from .int8 import kept_in_float, quantize
from .report import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto

ARITHMETIC_OPS = ("Conv", "Gemm", "MatMul", "Attention")  # where the multiply-adds are
MIN_OPSET = {"bf16": 22}  # convolution in bf16
MAX_OPSET = {"int8": 20}  # ONNX Runtime refuses quantised activations of later files


def check_opset(precision: str, opset: int) -> None:
    """Raise `UsageError` where no runtime would take a file of that precision and opset."""
    smallest, largest = MIN_OPSET.get(precision, opset), MAX_OPSET.get(precision, opset)
    if not smallest <= opset <= largest:
        allowed = f"{smallest} or later" if opset < smallest else f"{largest} or earlier"
        raise UsageError(f"--{precision} needs opset {allowed}; {opset} was given")


class Converted(NamedTuple):
    """A graph in the precision asked for.

    Attributes:
        proto: the graph.
        exempt: names of nodes of `ARITHMETIC_OPS` that keep float32.
        notes: which nodes keep float32, and why, in words.
    """

    proto: ModelProto
    exempt: tuple[str, ...]
    notes: tuple[str, ...]


def convert(
    proto: ModelProto,
    precision: str,
    runtime: str,
    calibration: Sequence[np.ndarray],
    seen: Sequence[np.ndarray],
) -> Converted:
    """A float32 graph in another precision; `proto` is left as it is.

    Args:
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        runtime: whom an INT8 graph is for: `onnxruntime` or `tensorrt`.
        calibration: batches that show INT8 the range of activations.
        seen: batches on which no value may leave float16's range.
    """
    if precision == "fp32":
        return Converted(copy.deepcopy(proto), (), ())
    if precision == "int8":
        kept = kept_in_float(proto)
        notes = ["quantised: Conv and Gemm; float32: everything else, and these of them"]
        notes += [f"{why}: {_listed(names)}" for why, names in kept.items()]
        exempt = tuple(name for names in kept.values() for name in names)
        return Converted(quantize(proto, calibration, runtime), exempt, tuple(notes))
    exempt = overflowing(proto, seen) if precision == "fp16" else ()
    notes = [f"float32 islands: {_listed(sorted(ISLAND_OPS))}"]
    if any(node.op_type == "Attention" and node.name not in exempt for node in proto.graph.node):
        # ONNX could say in which, and TensorRT refuses a file that does.
        notes.append(
            "the softmax inside Attention has the precision that the runtime gives it; --opset 20 makes it fp32"
        )
    if exempt:
        notes.append(f"float32 because their values leave float16's range: {_listed(exempt)}")
    return Converted(to_half(proto, precision, exempt), exempt, tuple(notes))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "(none)"


# --- reading back


def arithmetic_types(proto: ModelProto) -> dict[str, str]:
    """The precision of every node that multiplies and adds, by name, from the types of its inputs."""
    onnx = need("onnx", "onnx")
    names = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    graph = onnx.shape_inference.infer_shapes(proto).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    quantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    found = {}
    for node in graph.node:
        if node.op_type in ARITHMETIC_OPS:
            int8 = all(name in quantized for name in node.input[:2])
            found[node.name] = "int8" if int8 else names[types[node.input[0]]]
    return found


def check_graph(proto: ModelProto, precision: str, exempt: Sequence[str] = ()) -> None:
    """Raise `ExportError` unless every multiply-add of the graph has the precision asked for.

    Args:
        exempt: names of nodes known to have another.
    """
    of_interest = ("Conv", "Gemm") if precision == "int8" else ARITHMETIC_OPS
    kinds = {node.name: node.op_type for node in proto.graph.node}
    wrong = {
        name: found
        for name, found in arithmetic_types(proto).items()
        if found != precision and name not in exempt and kinds[name] in of_interest
    }
    if wrong:
        name, found = next(iter(wrong.items()))
        raise ExportError(
            f"{precision} was asked for, but {len(wrong)} nodes of the graph are not, {name} ({found}) among them; "
            "this is a fault of the export: please report it, and use another precision meanwhile"
        )
