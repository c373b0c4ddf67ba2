"""Where and how a program runs: device, precision and process group in one value.

Nothing else in this project names a device. One process, `torchrun` on one machine and `torchrun` on several all give
the same `Runtime`; with one process its collective operations do nothing.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import console
from .errors import BossNetError, UsageError


@dataclass(frozen=True)
class Runtime:
    """Made once by `Runtime.open`, passed as an argument, closed as a context manager.

    Attributes:
        device: where networks and batches live.
        amp_dtype: dtype of autocast; float32 means no autocast.
        rank, local_rank, world_size: this process among all, among those on this machine, and how many there are.
    """

    device: torch.device
    amp_dtype: torch.dtype = torch.float32
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def open(cls, device: str = "auto", precision: str = "auto") -> Runtime:
        """The runtime of this process, from `device` and the environment that torchrun sets.

        Args:
            device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1` or `mps`.
            precision: `auto` (bf16 on devices that compute it natively), `float32` or `bfloat16`.

        Raises:
            UsageError: an unknown device or precision, or one that this machine does not have.
        """
        rank = int(os.environ.get("RANK", 0))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        chosen = _device(device, local_rank)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if world_size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(chosen, _precision(precision, chosen), rank, local_rank, world_size)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, _: type | None, error: BaseException | None, __: object) -> None:
        """Leave the process group. A lost connection becomes a `BossNetError`."""
        if self.world_size > 1 and isinstance(error, BossNetError):
            console.let_first_process_speak()  # before it loses its connection to this one, and speaks of that
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise BossNetError(
                f"process {self.rank} of {self.world_size} stopped, for another one has ended or does not answer; what "
                "that one says last is the reason; then go on from the last checkpoint, with --resume on every process"
            ) from error

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def description(self) -> str:
        """`cpu, float32, 1 process`, for logs."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        processes = "1 process" if self.world_size == 1 else f"{self.world_size} processes"
        return f"{name}, {str(self.amp_dtype).removeprefix('torch.')}, {processes}"

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Mixed precision where this runtime has it."""
        if self.amp_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype)

    @contextlib.contextmanager
    def threads(self, number: int | None) -> Iterator[None]:
        """Computes with so many threads on a CPU, and with as many as before afterwards; None changes nothing.

        The threads of a small network mostly wait for one another: one is faster, and leaves a core to load images.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(number or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in one collective operation per dtype."""
        if self.world_size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for group in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            flat /= self.world_size
            parts = flat.split([tensor.numel() for tensor in group])
            for tensor, part in zip(group, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace the tensor, on whatever device, by its sum over all processes."""
        if self.world_size > 1:
            summed = tensor.to(self.device)  # NCCL takes nothing but tensors of its GPU
            dist.all_reduce(summed)
            tensor.copy_(summed)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """One picklable value from every process, in order of rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.device if self.device.type == "cuda" else None)
        return values[0]

    def synchronize(self) -> None:
        """Wait until the device has done all it was given, as before reading a clock."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def barrier(self) -> None:
        """Wait until every process has come this far."""
        if self.world_size > 1:
            dist.barrier()

    def shard(self, num_items: int) -> range:
        """This process's share of `num_items` items: every world_size-th, from rank."""
        return range(self.rank, num_items, self.world_size)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; allowed: auto, cpu, cuda, cuda:N, mps") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise UsageError(f"device {name!r} is not available here; type --device auto or --device cpu")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", local_rank)
    return device


def _precision(name: str, device: torch.device) -> torch.dtype:
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if name not in choices:
        raise UsageError(f"unknown precision {name!r}; allowed: auto, float32, bfloat16")
    return choices[name]


def processor_name() -> str:
    """The CPU's name, as far as the system tells."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpu_name() -> str | None:
    """Name and compute capability of the GPU in use, as in `NVIDIA L4, 8.9`; None without one that works."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, {major}.{minor}"


def count_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux, where some may be set aside for others
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
