"""The formats that `bossnet export` writes, in one table, and the names of their files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One row of `bossnet export --formats`.

    Attributes:
        format: what it is.
        option: of `bossnet export`.
        file: its name.
        device: what runs it.
        precisions: which it comes in.
        dynamic: dimensions that may be left open.
        extra: of this package, to install before making and running it.
    """

    format: str
    option: str
    file: str
    device: str
    precisions: tuple[str, ...]
    dynamic: str
    extra: str


ALL = ("fp32", "fp16", "bf16", "int8")
FORMATS = (
    Format("ONNX", "--onnx", "NAME.onnx", "CPU, CUDA", ("fp32", "fp16"), "batch, size", "onnx"),
    Format("ONNX", "--onnx --bf16", "NAME.bf16.onnx", "CUDA", ("bf16",), "batch, size", "onnx-gpu"),
    Format("ONNX", "--onnx --int8", "NAME.int8.ort.onnx", "CPU", ("int8",), "batch, size", "onnx"),
    Format("ONNX", "--trt --int8", "NAME.int8.trt.onnx", "TensorRT", ("int8",), "batch, size", "onnx"),
    Format("TensorRT engine", "--trt", "NAME.trt.engine", "its GPU", ALL, "in a range", "trt"),
    Format("TensorRT for RTX", "--trt-rtx", "NAME.rtx.engine", "RTX GPUs", ALL, "in a range", "trt-rtx"),
    Format("Triton repository", "--triton DIR", "DIR/NAME/", "Triton", ALL, "batch, size", "onnx"),
)
NOTES = """\
Install an extra with: pip install "bossnet-zoo[EXTRA]". NAME has .fp16, .bf16 or .int8 behind it in those precisions;
all four: fp32, fp16, bf16 and int8, in a Triton repository whichever its file has. Batch and sizes of an engine stay
open within --batch and --sizes; of ONNX too, where these are given. trt: TensorRT 11, whose libraries come from
NVIDIA's own package index; its engine is for the GPU that built it. RTX GPUs: from Ampere on. The two INT8 files hold
the same network for two runtimes, and neither takes the other's."""
ENGINE_SUFFIX = {"tensorrt": ".trt.engine", "tensorrt_rtx": ".rtx.engine"}


def onnx_name(name: str, precision: str, runtime: str) -> str:
    """Of an ONNX file: `NAME.onnx`, `NAME.fp16.onnx`, `NAME.int8.ort.onnx`, `NAME.int8.trt.onnx`."""
    if precision == "int8":
        return f"{name}.int8.{'ort' if runtime == 'onnxruntime' else 'trt'}.onnx"
    return f"{name}.onnx" if precision == "fp32" else f"{name}.{precision}.onnx"


def engine_name(name: str, precision: str, package: str) -> str:
    """Of an engine: `NAME.fp16.trt.engine`, `NAME.rtx.engine`."""
    return name + ("" if precision == "fp32" else f".{precision}") + ENGINE_SUFFIX[package]
