"""Half precision: every operator in float16 or bfloat16, with float32 inputs, outputs and islands.

One conversion for both types. A node runs in one type, and casts stand only where a tensor is read in another, so that
neighbouring islands share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .extras import need

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Sums over many values, and exponentials: 11 bits of mantissa (bf16: 8) are too few for them.
ISLAND_OPS = frozenset({"Softmax", "BatchNormalization", "LayerNormalization", "ReduceMean", "GlobalAveragePool"})
FLOAT16_LIMIT = 65504.0 / 2  # half of the largest float16, since the next image may go further than those seen


def to_half(proto: ModelProto, precision: str, keep: Sequence[str] = ()) -> ModelProto:
    """A float32 graph in float16 or bfloat16, with float32 inputs and outputs.

    Args:
        proto: the float32 graph; left as it is.
        precision: `fp16` or `bf16`.
        keep: names of nodes that stay float32, beside all nodes of `ISLAND_OPS`.
    """
    onnx = need("onnx", "onnx")
    return _HalfGraph(onnx, proto, precision, frozenset(keep)).convert()


class _HalfGraph:
    """The conversion: every node runs in one type, and a cast stands wherever a tensor is read in another."""

    def __init__(self, onnx: Any, proto: ModelProto, precision: str, keep: frozenset[str]):
        self.onnx, self.keep, self.precision = onnx, keep, precision
        self.full = onnx.TensorProto.FLOAT
        self.half = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
        self.numpy_half = np.float16 if precision == "fp16" else need("ml_dtypes", "onnx").bfloat16
        inferred = onnx.shape_inference.infer_shapes(proto)
        self.graph = inferred.graph
        self.proto = inferred
        graph = self.graph
        self.types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
        self.types |= {value.name: value.type.tensor_type.elem_type for value in graph.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.nodes: list[NodeProto] = []
        self.made: dict[tuple[str, int], str] = {}  # (tensor, type) -> the same tensor in that type

    def convert(self) -> ModelProto:
        graph = self.graph
        outputs = {value.name for value in graph.output}
        floats = {name for name, kind in self.types.items() if kind == self.full}
        for node in graph.node:
            kind = self.full if self._is_island(node) else self.half
            for index, name in enumerate(node.input):
                if name in floats:
                    node.input[index] = self._in_type(name, kind)
            self.nodes.append(node)
            for index, name in enumerate(node.output):
                if name not in floats:
                    continue
                self.types[name] = kind
                if name in outputs and kind != self.full:
                    node.output[index] = f"{name}_{self.precision}"
                    self.nodes.append(self._cast(node.output[index], name, self.full))
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        self._drop_unused_constants()
        return self.proto

    def _is_island(self, node: NodeProto) -> bool:
        # Constants and casts to float32 are left alone: what reads them casts.
        return node.op_type in ISLAND_OPS or node.op_type in ("Constant", "Cast") or node.name in self.keep

    def _in_type(self, name: str, kind: int) -> str:
        if self.types[name] == kind:
            return name
        if (name, kind) not in self.made:
            self.made[name, kind] = new = f"{name}_{'fp32' if kind == self.full else self.precision}"
            if name in self.constants:
                values = self.onnx.numpy_helper.to_array(self.constants[name]).astype(self.numpy_half)
                self.graph.initializer.append(self.onnx.numpy_helper.from_array(values, new))
            else:
                self.nodes.append(self._cast(name, new, kind))
        return self.made[name, kind]

    def _cast(self, source: str, target: str, kind: int) -> NodeProto:
        return self.onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind)

    def _drop_unused_constants(self) -> None:
        used = {name for node in self.graph.node for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def emulated(proto: ModelProto) -> ModelProto:
    """A half-precision graph as float32 operators whose every result is rounded to half precision.

    ONNX Runtime's CPU provider has no bfloat16 kernels, and computes chains of float16 operators in float32. The twin
    shows what a GPU would store.
    """
    onnx = need("onnx", "onnx")
    full, halves = onnx.TensorProto.FLOAT, (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    twin = onnx.shape_inference.infer_shapes(proto)
    graph = twin.graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    for tensor in graph.initializer:
        if tensor.data_type in halves:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if types.get(name) in halves:
                exact, rounded = f"{name}_exact", f"{name}_rounded"
                node.output[index] = exact
                nodes.append(onnx.helper.make_node("Cast", [exact], [rounded], to=types[name]))
                nodes.append(onnx.helper.make_node("Cast", [rounded], [name], to=full))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return twin


def overflowing(proto: ModelProto, batches: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Names of the nodes of a float32 graph that read or write values beyond float16 on the given inputs."""
    onnx = need("onnx", "onnx")
    runtime = need("onnxruntime", "onnx")
    exposed = onnx.shape_inference.infer_shapes(proto)
    graph = exposed.graph
    answers = {value.name for value in graph.output}
    values = [value for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    graph.output.extend(value for value in values if value.name not in answers)
    names = [value.name for value in graph.output]
    session = runtime.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = dict.fromkeys(names, 0.0)
    for images in batches:
        for name, value in zip(names, session.run(names, {graph.input[0].name: images}), strict=True):
            largest[name] = max(largest[name], float(np.abs(value).max(initial=0)))
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            largest[tensor.name] = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0))
    return tuple(
        node.name
        for node in graph.node
        if any(largest.get(name, 0.0) > FLOAT16_LIMIT for name in (*node.input, *node.output))
    )
