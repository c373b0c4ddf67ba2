"""The formats that `bossnet export` writes, in one table, and the names of their files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One row of `bossnet export --formats`.

    Attributes:
        name: what it is.
        option: of `bossnet export`.
        file: its name; NAME stands for the network's, with `.fp16` or `.bf16` behind it in half precision.
        device: what runs it.
        precisions: which it comes in.
        dynamic: dimensions that may be left open.
        install: what to type before making and running it.
    """

    name: str
    option: str
    file: str
    device: str
    precisions: str
    dynamic: str
    install: str


FORMATS = (
    Format("ONNX", "--onnx", "NAME.onnx", "CPU, CUDA", "fp32, fp16", "batch, size", 'pip install "bossnet-zoo[onnx]"'),
    Format("ONNX", "--onnx", "NAME.bf16.onnx", "CUDA", "bf16", "batch, size", 'pip install "bossnet-zoo[onnx-gpu]"'),
    Format(
        "ONNX for ONNX Runtime",
        "--onnx --int8",
        "NAME.int8.ort.onnx",
        "CPU",
        "int8",
        "batch, size",
        'pip install "bossnet-zoo[onnx]"',
    ),
    Format(
        "ONNX for TensorRT",
        "--trt --int8",
        "NAME.int8.trt.onnx",
        "CUDA, by TensorRT",
        "int8",
        "batch, size",
        'pip install "bossnet-zoo[onnx]"',
    ),
    Format(
        "TensorRT engine",
        "--trt",
        "NAME.trt.engine",
        "the GPU that built it",
        "fp32, fp16, bf16, int8",
        "batch, size, in a range",
        'pip install "bossnet-zoo[onnx]" tensorrt',
    ),
    Format(
        "TensorRT for RTX engine",
        "--trt-rtx",
        "NAME.rtx.engine",
        "RTX GPUs, Ampere and later",
        "fp32, fp16, bf16, int8",
        "batch, size, in a range",
        'pip install "bossnet-zoo[trt-rtx]"',
    ),
    Format(
        "Triton model repository",
        "--triton DIR",
        "DIR/NAME/config.pbtxt",
        "Triton Inference Server",
        "those of the file in it",
        "batch",
        "(nothing)",
    ),
)
ENGINE_SUFFIX = {"tensorrt": ".trt.engine", "tensorrt_rtx": ".rtx.engine"}


def onnx_name(name: str, precision: str, runtime: str) -> str:
    """Of an ONNX file: `NAME.onnx`, `NAME.fp16.onnx`, `NAME.int8.ort.onnx`, `NAME.int8.trt.onnx`."""
    if precision == "int8":
        return f"{name}.int8.{'ort' if runtime == 'onnxruntime' else 'trt'}.onnx"
    return f"{name}.onnx" if precision == "fp32" else f"{name}.{precision}.onnx"


def engine_name(name: str, precision: str, package: str) -> str:
    """Of an engine: `NAME.fp16.trt.engine`, `NAME.rtx.engine`."""
    return name + ("" if precision == "fp32" else f".{precision}") + ENGINE_SUFFIX[package]
