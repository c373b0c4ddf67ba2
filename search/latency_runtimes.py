"""What latencies are measured with: PyTorch, ONNX Runtime or TensorRT, in float32 on one device.

A network is timed as a whole, the way its user runs it, and part by part *in place*: one part after the other in one
run, each on what the part before has left in the caches, with weights that no other layer shares. On its own, over and
over, a layer would find its weights in a cache that whole networks do not fit into.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor

from bossnet_zoo import __version__
from bossnet_zoo.errors import UsageError, unknown
from bossnet_zoo.runtime import Runtime, gpu_name, processor_name

from .latency_parts import Network, Part, fill

RUNTIMES = ("torch", "onnxruntime", "tensorrt")
Call = Callable[[Tensor], Tensor]


class Prepared(Protocol):
    """A network that is ready to be timed."""

    def whole(self) -> float:
        """Seconds of one run."""

    def parts(self) -> None:
        """One more run, timed part by part; only where the network was prepared for it."""

    def close(self) -> list[list[float]]:
        """The seconds of every part, for every run of `parts` so far. Afterwards nothing can be run."""


class Engine(Protocol):
    """One way of running networks.

    Attributes:
        runtime: one of `RUNTIMES`.
        versions: of the packages that matter, by name.
        device: `NVIDIA L4, 8.9`, or the CPU's name.
        threads: of the CPU.
        on_gpu: whether the device is one.
    """

    runtime: str
    versions: dict[str, str]
    device: str
    threads: int
    on_gpu: bool

    def learn(self, parts: Mapping[str, Part]) -> None:
        """What has to be done once for every operation, before networks of them are prepared."""

    def prepare(self, network: Network, in_parts: bool) -> Prepared:
        """A network on the device, with weights of its own; `in_parts` if it shall also be timed part by part."""


def make_engine(name: str, device: str = "cpu", threads: int | None = None) -> Engine:
    """The engine of that name.

    Args:
        name: one of `RUNTIMES`.
        device: `cpu` or `cuda`.
        threads: of the CPU, for one operation; by default as many as PyTorch takes.

    Raises:
        UsageError: an unknown name or device, or a package or device that is not there.
    """
    if name not in RUNTIMES:
        raise unknown("runtime", name, RUNTIMES)
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads} is not possible; type 1 or more")
    if name != "torch":
        from bossnet_zoo.export.extras import need

        need(name, {"onnxruntime": "onnx", "tensorrt": "trt"}[name])
        need("onnxscript", "onnx")
    runtime = Runtime.open(device, "float32")
    if runtime.device.type not in ("cpu", "cuda"):
        raise UsageError(f"latencies are not measured on {device!r}; type --device cpu or --device cuda")
    if name == "tensorrt" and runtime.device.type != "cuda":
        raise UsageError("TensorRT runs on a GPU alone; type --device cuda, or another --runtime")
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "torch":
        return TorchEngine(runtime)
    from . import latency_onnx

    if runtime.device.type == "cpu":
        return latency_onnx.OnnxEngine(torch.get_num_threads())
    return latency_onnx.OnnxCudaEngine(runtime) if name == "onnxruntime" else latency_onnx.TensorRTEngine(runtime)


def device_name(device: torch.device) -> str:
    """`NVIDIA L4, 8.9`, or the CPU's name as its maker writes it."""
    if device.type == "cuda":
        return gpu_name() or "cuda"
    return processor_name()


def memory_bytes() -> int:
    """Of the machine; 8 GB where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return 8 * 10**9


def time_in_turn(calls: Sequence[Call], x: Tensor) -> list[float]:
    """Seconds of each of several calls that run one after the other, each on what the one before puts out."""
    if x.device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        events[0].record()
        for call, event in zip(calls, events[1:], strict=True):
            x = call(x)
            event.record()
        events[-1].synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in itertools.pairwise(events)]
    stamps = [time.perf_counter()]
    for call in calls:
        x = call(x)
        stamps.append(time.perf_counter())
    return [end - begin for begin, end in itertools.pairwise(stamps)]


class InTurn:
    """A network as one call, and its parts as one call each.

    Args:
        whole, parts: what runs them.
        x: the network's input, on the device.
    """

    def __init__(self, whole: Call, parts: Sequence[Call], x: Tensor, runtime: Runtime):
        self._whole, self._parts, self._x, self._runtime = whole, parts, x, runtime
        self._taken: list[list[float]] = []

    def whole(self) -> float:
        self._runtime.synchronize()
        begin = time.perf_counter()
        with torch.inference_mode():
            self._whole(self._x)
        self._runtime.synchronize()
        return time.perf_counter() - begin

    def parts(self) -> None:
        self._runtime.synchronize()
        with torch.inference_mode():
            self._taken.append(time_in_turn(self._parts, self._x))

    def close(self) -> list[list[float]]:
        del self._whole, self._parts
        return self._taken


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, as ONNX Runtime and GPUs do anyway.

    By default glibc gives it back to the system after some runs and not after others, as the heap happens to lie. Then
    the next run has to ask for it page by page: for the same network in the same process a fifth of its time or
    nothing. Where there is no glibc, this does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3  # their numbers in glibc's malloc.h
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 2**30)
        mallopt(mmap_threshold, 2**25)  # the largest that glibc takes


class TorchEngine:
    """PyTorch, eager.

    On a CPU freed memory is kept, as in a program that is started with `MALLOC_TRIM_THRESHOLD_=1073741824
    MALLOC_MMAP_THRESHOLD_=33554432`; see `keep_freed_memory`.
    """

    runtime = "torch"

    def __init__(self, runtime: Runtime):
        self._on = runtime
        self.versions = {"bossnet-zoo": __version__, "torch": torch.__version__}
        self.device, self.threads = device_name(runtime.device), torch.get_num_threads()
        self.on_gpu = runtime.device.type == "cuda"
        if not self.on_gpu:
            keep_freed_memory()

    def learn(self, parts: Mapping[str, Part]) -> None:
        """Nothing."""

    def prepare(self, network: Network, in_parts: bool) -> Prepared:
        model, parts = deepcopy((network.model, [part.module for part in network.parts]))  # parts of that model
        fill(model, self._on.device)
        x = torch.rand(network.shape, device=self._on.device)
        return InTurn(model, parts, x, self._on)
