"""What building and running TensorRT engines have in common: the package, its log, and the precision of a network."""

from __future__ import annotations

import functools
import importlib
import re
from types import ModuleType
from typing import Any

from bossnet_zoo.errors import BossNetError, UsageError

from .report import ExportError

MIN_VERSION = {"tensorrt": 11, "tensorrt_rtx": 1}
INSTALL = {
    "tensorrt": 'pip install "bossnet-zoo[trt]" (its libraries come from NVIDIA\'s own package index)',
    "tensorrt_rtx": 'pip install "bossnet-zoo[trt-rtx]"',
}
ENGINE_NAMES = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8"}  # in the inspector's report


def load_tensorrt(package: str) -> ModuleType:
    """The builder's module.

    Raises:
        UsageError: it is not installed, cannot be loaded, or is too old.
    """
    alternative = (
        "; an engine for RTX GPUs needs neither it nor a GPU to be built: --trt-rtx" if package == "tensorrt" else ""
    )
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        what = f"this needs the package {package!r}, which cannot be imported ({error})"
        raise UsageError(f"{what}; type: {INSTALL[package]}{alternative}") from None
    if int(module.__version__.split(".")[0]) < MIN_VERSION[package]:
        raise UsageError(f"{package} {module.__version__} is too old; type: {INSTALL[package]}{alternative}")
    return module


class Log:
    """TensorRT explains failures in its log alone: this one keeps what it says."""

    def __init__(self, trt: ModuleType):
        messages: list[str] = []
        self.messages = messages
        severities = trt.ILogger.Severity

        class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                    messages.append(" ".join(message.split()))

        self.logger = Logger()

    @property
    def reason(self) -> str:
        """The first thing that went wrong."""
        return self.messages[0][:300] if self.messages else "it gives no reason"


@functools.cache
def _only_log(trt: ModuleType) -> Log:
    """TensorRT listens to the first logger of a process alone."""
    return Log(trt)


def fresh_log(trt: ModuleType) -> Log:
    """The log, emptied."""
    log = _only_log(trt)
    log.messages.clear()
    return log


def check_network(trt: ModuleType, network: Any, types: dict[str, str]) -> None:
    """Raise `ExportError` unless every multiply-add of a parsed network has the precision of its ONNX node.

    Args:
        types: precision of the ONNX nodes by name, from `precision.arithmetic_types`.
    """
    names = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}
    kinds = [trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY, getattr(trt.LayerType, "ATTENTION_INPUT", None)]
    dequantized = set()
    found = {}
    for layer in network:
        if layer.type == trt.LayerType.DEQUANTIZE:
            dequantized.add(layer.get_output(0).name)
        if layer.type in kinds:
            tensors = [tensor for index in range(layer.num_inputs) if (tensor := layer.get_input(index)) is not None]
            # A float32 kernel is none of the inputs; a layer of one may well read what was quantised for its neighbour.
            int8 = len(tensors) > 1 and all(tensor.name in dequantized for tensor in tensors[:2])
            # Opset 23's attention is two layers, for what goes into it and for what comes out.
            name = layer.name.removesuffix("_AttentionInput")
            found[name] = "int8" if int8 else names.get(tensors[0].dtype, str(tensors[0].dtype))
    for name, wanted in types.items():
        if name not in found:
            raise ExportError(
                f"TensorRT parsed a network without node {name}, whose precision is unknown therefore; "
                "this is a fault of the export: please report it, and try another --opset meanwhile"
            )
        if found[name] != wanted:
            raise ExportError(
                f"TensorRT parsed node {name} as {found[name]}, and the ONNX file says {wanted}; "
                "this is a fault of the export: please report it, and use another precision meanwhile"
            )


def open_engine(trt: ModuleType, plan: Any, what: str) -> Any:
    """A deserialised engine, and on failure the reason that TensorRT logs.

    Raises:
        BossNetError: it is damaged, or for another version or GPU.
    """
    log = fresh_log(trt)
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise BossNetError(f"{trt.__name__} {trt.__version__} cannot open {what}: {log.reason}; build it again here")
    return engine


def check_engine(trt: ModuleType, plan: Any, precision: str) -> None:
    """Raise `ExportError` unless a built engine computes in the precision asked for. Needs the GPU it is for."""
    engine = open_engine(trt, plan, "the new engine")
    layers = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    if not re.search(rf"\b{ENGINE_NAMES[precision]}\b", layers):  # BFloat16 is no Float
        raise ExportError(
            f"{precision} was asked for, and no layer of the engine computes in {ENGINE_NAMES[precision]}; "
            "use another precision"
        )
