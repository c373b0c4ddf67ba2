"""One way to run a network, whatever it was exported to: `session(images) -> logits`.

    session = open_session("bossnet_t0.onnx", device="cpu")
    logits = session(images)          # (B, C, H, W) float32 -> (B, classes) float32

Every session carries the `Metadata` of its network, so that `session.metadata.data_config` prepares images for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bossnet_zoo.errors import BossNetError, UsageError, unknown
from bossnet_zoo.runtime import Runtime, gpu_name

from .extras import need
from .graph import INPUT
from .metadata import Metadata
from .onnx import open_runtime, read_onnx
from .side_car import check_side_car, read_side_car
from .trt_common import load_tensorrt, open_engine

# By --device, in the order in which ONNX Runtime asks them for each node; the last takes what the others leave.
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
EXPORTED = (".onnx", ".engine")
ANY_BATCH = (1, sys.maxsize)


class Session(Protocol):
    """A network that is ready to run.

    Attributes:
        metadata: how to prepare images, and what the outputs are.
        runtime: in words, for tables.
        batches: smallest and largest number of images at once.
    """

    metadata: Metadata
    runtime: str
    batches: tuple[int, int]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits (or probabilities, where softmax is in the graph) of a batch.

        Raises:
            UsageError: a batch, size or type that the network does not take.
        """


def is_exported(source: str | Path) -> bool:
    """Whether `source` names an exported file, instead of a network for PyTorch."""
    return str(source).endswith(EXPORTED)


def open_session(path: str | Path, device: str = "auto", *, threads: int = 0) -> Session:
    """Open an ONNX file or a TensorRT engine.

    Args:
        path: a file that `bossnet export` wrote.
        device: `cpu`, `cuda` or `tensorrt` (ONNX Runtime's provider); `auto` is a GPU where there is one. Engines run
            on a GPU only.
        threads: of the CPU, for one operator; 0 for all cores.

    Raises:
        UsageError: no such file or device, or a file for another runtime.
        BossNetError: a damaged file, one of another version or GPU, or a device that was asked for and not given.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist; make it with: bossnet export MODEL")
    if path.suffix == ".engine":
        return EngineSession(path)
    if path.suffix == ".onnx":
        return OnnxSession(path, device, threads=threads)
    raise UsageError(f"{path} is no exported network; allowed: files ending in {' or '.join(EXPORTED)}")


def check_range(images: np.ndarray, metadata: Metadata) -> None:
    """Raise `UsageError` for a batch beyond what an ONNX file was exported for, though its graph may take it."""
    smallest, largest = metadata.batches or ANY_BATCH
    if not smallest <= len(images) <= largest:
        raise UsageError(
            f"a batch of {len(images)} was given; the file was exported for {smallest} to {largest} images at once; "
            "export it again with a --batch that spans it"
        )
    height, width = images.shape[1:3] if metadata.pixels else images.shape[2:]
    if metadata.sizes and not metadata.sizes[0] <= min(height, width) <= max(height, width) <= metadata.sizes[1]:
        raise UsageError(
            f"images of {height} x {width} pixels were given; the file was exported for sides of {metadata.sizes[0]} "
            f"to {metadata.sizes[1]}; export it again with --sizes that span them"
        )


def check_input(images: np.ndarray, metadata: Metadata, shapes: Sequence[Sequence[int]] = ()) -> None:
    """Raise `UsageError` unless the batch has the type and shape that the network takes.

    Args:
        shapes: smallest and largest (or smallest, usual, largest) shape allowed; by default any batch.
    """
    wanted = np.uint8 if metadata.pixels else np.float32
    if images.dtype != wanted or images.ndim != 4:
        layout = "(B, H, W, C)" if metadata.pixels else "(B, C, H, W)"
        raise UsageError(
            f"a batch of {images.dtype} with shape {images.shape} was given; "
            f"{metadata.model} takes {np.dtype(wanted)} {layout}"
        )
    if shapes and not all(
        low <= side <= high for low, side, high in zip(shapes[0], images.shape, shapes[-1], strict=True)
    ):
        raise UsageError(
            f"a batch of shape {images.shape} is outside the engine's profile, {tuple(shapes[0])} to "
            f"{tuple(shapes[-1])}; build another engine with --batch MIN:USUAL:MAX"
        )


# --- PyTorch


class TorchSession:
    """A PyTorch network."""

    def __init__(self, model: nn.Module, runtime: Runtime, class_names: tuple[str, ...] = ()):
        self.metadata = Metadata.of(model, class_names=class_names)
        self.batches = ANY_BATCH
        self.device, self.autocast = runtime.device, runtime.autocast
        self.model = model.eval().to(runtime.device)
        self.runtime = f"PyTorch, {runtime.description}"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        check_input(images, self.metadata)
        with torch.inference_mode(), self.autocast():
            return self.model(torch.from_numpy(images).to(self.device)).float().cpu().numpy()


# --- ONNX Runtime


class OnnxSession:
    """An ONNX file in ONNX Runtime."""

    def __init__(self, path: Path, device: str = "auto", *, threads: int = 0):
        _, self.metadata = read_onnx(path)
        providers, settings = _providers(device)
        self._check_device(path, providers)
        available = need("onnxruntime", "onnx").get_available_providers()
        check_providers(available, providers, available)
        self.session = open_runtime(path, providers=list(zip(providers, settings, strict=True)), threads=threads)
        check_providers(self.session.get_providers(), providers, available)
        self.batches = self.metadata.batches or ANY_BATCH
        self.runtime = f"ONNX Runtime, {self.session.get_providers()[0].removesuffix('ExecutionProvider')}"

    def _check_device(self, path: Path, providers: Sequence[str]) -> None:
        """Raise `UsageError` where a file is not for the provider that would run it."""
        if self.metadata.runtime == "tensorrt" and providers[0] != "TensorrtExecutionProvider":
            raise UsageError(
                f"{path} is quantised for TensorRT, and wrong and slow in ONNX Runtime's own kernels; "
                "take the file NAME.int8.ort.onnx, or --device tensorrt"
            )
        if self.metadata.precision == "bf16" and providers[0] == "CPUExecutionProvider":
            raise UsageError(
                f"{path} is in bf16, which ONNX Runtime does not compute on a CPU; choose --device cuda, or export "
                "the network with --fp16"
            )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        check_input(images, self.metadata)
        wanted = tuple(self.session.get_inputs()[0].shape)  # numbers, and names where the file takes any
        if any(isinstance(side, int) and side != given for side, given in zip(wanted, images.shape, strict=True)):
            raise UsageError(f"a batch of shape {images.shape} was given; the file takes {_shape_text(wanted)}")
        check_range(images, self.metadata)
        try:
            return self.session.run(None, {INPUT: images})[0]
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise UsageError(
                f"ONNX Runtime refuses a batch of shape {images.shape}; the file takes {_shape_text(wanted)}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error


def _shape_text(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"


def _providers(device: str) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The providers that a device stands for, and the settings of each."""
    kind, _, index = device.partition(":")
    if kind == "auto":
        available = need("onnxruntime", "onnx").get_available_providers()
        kind = "cuda" if gpu_name() and "CUDAExecutionProvider" in available else "cpu"
    if kind not in PROVIDERS or (index and (kind == "cpu" or not index.isdigit())):
        raise unknown("device", device, ("auto", *PROVIDERS, "cuda:1"))
    on_gpu = {"device_id": index} if index else {}
    return PROVIDERS[kind], [{} if name.startswith("CPU") else on_gpu for name in PROVIDERS[kind]]


def takes_gpu() -> bool:
    """Whether an ONNX file runs on a GPU here where no device is named."""
    return _providers("auto")[0] != PROVIDERS["cpu"]


def check_providers(given: Sequence[str], asked: Sequence[str], installed: Sequence[str]) -> None:
    """Raise `UsageError` where ONNX Runtime does not run on what was asked for: it falls back in silence."""
    for name in asked:
        if name in given:
            continue
        why = "its libraries cannot be loaded" if name in installed else "this build of ONNX Runtime does not have it"
        raise UsageError(
            f"{name} was asked for and ONNX Runtime would run on {', '.join(given)} instead: {why}; choose --device "
            'cpu, or type: pip uninstall onnxruntime, then pip install "bossnet-zoo[onnx-gpu]"'
        )


# --- TensorRT


class EngineSession:
    """A TensorRT engine on the GPU it was built for."""

    def __init__(self, path: Path):
        about = read_side_car(path)
        self.metadata = Metadata.from_json(about["metadata"])
        self.shapes = about["profile"]
        self.batches = (self.shapes[0][0], self.shapes[-1][0])
        gpu = gpu_name()
        if gpu is None:
            other = "export the network with --fp16" if self.metadata.precision == "bf16" else "use the .onnx"
            raise UsageError(f"{path} is an engine, and runs on a GPU only; this machine has none that works; {other}")
        trt = load_tensorrt(about["builder"])
        check_side_car(about, path, trt.__version__, gpu)
        self.runtime = f"{'TensorRT' if about['builder'] == 'tensorrt' else 'TensorRT for RTX'} {trt.__version__}"
        self.device = Runtime.open("cuda").device
        self.engine = open_engine(trt, path.read_bytes(), str(path))
        self.context = self.engine.create_execution_context()
        self.output = self.engine.get_tensor_name(self.engine.num_io_tensors - 1)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        check_input(images, self.metadata, self.shapes)
        x = torch.from_numpy(images).to(self.device).contiguous()
        self.context.set_input_shape(INPUT, tuple(x.shape))
        logits = torch.empty(tuple(self.context.get_tensor_shape(self.output)), device=self.device)
        self.context.set_tensor_address(INPUT, x.data_ptr())
        self.context.set_tensor_address(self.output, logits.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise BossNetError(f"{self.runtime} failed to run a batch of shape {images.shape}")
        stream.synchronize()
        return logits.cpu().numpy()


# --- for bossnet eval and bossnet predict


def predictor(session: Session) -> Callable[[Tensor], Tensor]:
    """The session as a function of tensors, for `bossnet_zoo.evaluate`.

    Normalised images (B, C, H, W) -> logits (B, classes), on the images' device. Where the graph normalises pixels
    itself, they are restored: normalisation of uint8 can be inverted exactly. Where it ends in softmax, the logarithm
    of probabilities serves as logits.
    """
    metadata = session.metadata
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (metadata.mean, metadata.std))

    def predict(x: Tensor) -> Tensor:
        images = x.cpu()
        if metadata.pixels:
            images = (
                ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            )
        answer = torch.from_numpy(run_in_parts(session, images.numpy())).to(x.device)
        if not answer.isfinite().all():
            raise BossNetError(
                f"{metadata.model} ({session.runtime}) answers with values that are not finite; export it again, or in "
                "another precision"
            )
        return answer.clamp_min(1e-12).log() if metadata.softmax else answer

    return predict


def run_in_parts(session: Session, images: np.ndarray) -> np.ndarray:
    """The answers for any number of images: in batches that the session takes, filled up with repeated images."""
    smallest, largest = session.batches
    answers = []
    for start in range(0, len(images), largest):
        part = images[start : start + largest]
        filling = np.repeat(part[-1:], max(0, smallest - len(part)), axis=0)
        answers.append(session(np.concatenate([part, filling]) if len(filling) else part)[: len(part)])
    return np.concatenate(answers)
