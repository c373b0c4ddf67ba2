"""One network in every runtime and precision: how fast, how large, how far from PyTorch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bossnet_zoo.errors import BossNetError, UsageError, unknown
from bossnet_zoo.runtime import Runtime, gpu_name

from .graph import GraphOptions, Traced, example_batches, trace
from .images import calibration_batches
from .metadata import Metadata
from .onnx import write_onnx
from .pipeline import default_opset
from .report import Tolerance, compare
from .sessions import Session, TorchSession, open_session, run_in_parts
from .side_car import read_record
from .tensorrt import BUILDERS, EngineOptions, build_engine

# By name: what runs it, and the precisions it is measured in.
RUNTIMES: dict[str, tuple[str, ...]] = {
    "torch": ("fp32",),
    "torch-cuda": ("fp32", "bf16"),
    "onnx": ("fp32", "fp16", "int8"),
    "onnx-cuda": ("fp32", "fp16", "bf16"),
    "onnx-trt": ("fp32", "fp16", "int8"),
    "trt": ("fp32", "fp16", "bf16", "int8"),
    "trt-rtx": ("fp32", "fp16", "bf16", "int8"),
}
ON_CPU = ("torch", "onnx")
DEVICES = {"onnx": "cpu", "onnx-cuda": "cuda", "onnx-trt": "tensorrt"}  # of `open_session`
BATCHES = (1, 8)  # measured unless told otherwise
BURST = 5  # calls
SHOWN = Tolerance(None, 0.0)  # a benchmark shows differences, and judges none


@dataclass(frozen=True)
class Row:
    """One runtime in one precision at one batch size.

    Attributes:
        model: its name.
        runtime: one of `RUNTIMES`.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        batch: images at once; None where the runtime cannot run here at any batch size.
        median_ms, p90_ms: of one batch; 9 in 10 take no longer than p90.
        images_per_second: at the median.
        megabytes: of the file; of PyTorch, of the weights.
        max_rel: largest difference to PyTorch, divided by its largest output.
        top1_agreement: share of images with PyTorch's best class.
        note: what ran it; or, in a row without figures, why it cannot run here.
    """

    model: str
    runtime: str
    precision: str
    batch: int | None = None
    median_ms: float | None = None
    p90_ms: float | None = None
    images_per_second: float | None = None
    megabytes: float | None = None
    max_rel: float | None = None
    top1_agreement: float | None = None
    note: str = ""


def check_runtimes(names: Sequence[str]) -> None:
    """Raise `UsageError` for a name that is none of `RUNTIMES`."""
    for name in names:
        if name not in RUNTIMES:
            raise unknown("runtime", name, (*RUNTIMES, "all"))


def benchmark_network(
    model: nn.Module,
    name: str,
    folder: Path,
    *,
    runtimes: Sequence[str] = ("torch", "onnx"),
    batches: Sequence[int] = BATCHES,
    threads: int = 0,
    calibration: str | None = None,
    seconds: float = 3.0,
) -> list[Row]:
    """Measure a network, all runtimes in turn, so that a busy moment of the machine meets each of them.

    Args:
        folder: where exported files go.
        runtimes: names from `RUNTIMES`.
        batches: images at once.
        threads: of the CPU; 0 for all cores.
        calibration: images for INT8, and to compare on; without them INT8 is not measured and noise is compared.
        seconds: of measuring, for each runtime and batch size.

    Raises:
        UsageError: an unknown runtime.
    """
    check_runtimes(runtimes)
    if threads:
        torch.set_num_threads(threads)
    candidates = _Candidates(model, folder, max(batches), threads, calibration)
    sessions: dict[tuple[str, str], Session] = {}
    failed: dict[tuple[str, str], str] = {}
    for key in [(runtime, precision) for runtime in runtimes for precision in RUNTIMES[runtime]]:
        try:
            sessions[key] = candidates.open(*key)
        except BossNetError as error:
            failed[key] = str(error)
    rows = [Row(name, *key, note=reason) for key, reason in failed.items()]
    parity = {key: candidates.compare(session) for key, session in sessions.items()}
    for batch in batches:
        images = candidates.images(batch)
        times = measure_in_turn({key: _call(session, images) for key, session in sessions.items()}, seconds)
        for key, session in sessions.items():
            row = Row(name, *key, batch, megabytes=candidates.megabytes[key], note=session.runtime)
            rows.append(replace(row, **_figures(times[key], batch), **parity[key]))
    order = {key: place for place, key in enumerate((r, p) for r, ps in RUNTIMES.items() for p in ps)}
    return sorted(rows, key=lambda row: (order[row.runtime, row.precision], row.batch or 0))


def benchmark_file(
    path: Path, *, batches: Sequence[int] | None, device: str, threads: int, seconds: float
) -> list[Row]:
    """Measure one exported file; its difference to PyTorch is what was found when it was exported, if that is there.

    Without `batches` it is measured at `BATCHES`, or at the nearest that it takes.
    """
    session = open_session(path, device, threads=threads)
    smallest, largest = session.batches
    batches = batches or sorted({min(max(batch, smallest), largest) for batch in BATCHES})
    recorded = _recorded(path)
    what_ran = session.runtime + ("; compared with PyTorch when it was exported" if recorded else "")
    options = GraphOptions(pixels=session.metadata.pixels)
    rows = []
    for batch in batches:
        row = Row(path.name, path.suffix[1:], session.metadata.precision, batch, note=what_ran)
        images = _noise(session.metadata, options, batch)
        try:
            session(images)
        except UsageError as error:  # a batch that the file does not take
            rows.append(replace(row, note=str(error)))
            continue
        times = measure_in_turn({path.name: _call(session, images)}, seconds)[path.name]
        rows.append(replace(row, **_figures(times, batch), megabytes=path.stat().st_size / 1e6, **recorded))
    return rows


def _recorded(path: Path) -> dict[str, Any]:
    """The worst of what the record beside an ONNX file tells of its comparison with PyTorch."""
    record = read_record(path) if path.suffix == ".onnx" else None
    if record is None:
        return {}
    entries = [*record["parity"], *([record["on_images"]] if record["on_images"] else [])]
    judged = [record["on_images"]] if record["on_images"] else entries  # noise is near no class
    return {
        "max_rel": max(entry["max_rel"] for entry in entries),
        "top1_agreement": min(entry["top1_agreement"] for entry in judged),
    }


def measure_in_turn(calls: Mapping[Any, Callable[[], object]], seconds: float) -> dict[Any, list[float]]:
    """Seconds of repeated calls, for about `seconds` each, at least `BURST` times, after two to warm up.

    The calls take turns, so that a busy moment of the machine meets each of them, but in bursts whose first call is not
    counted: threads of a runtime spin for some milliseconds after its last call, in wait for the next one, and take the
    cores from whoever comes then. (Single calls in turn were seen to take 1.8 times as long, on two cores.)
    """
    for call in calls.values():
        call()
        call()
    times: dict[Any, list[float]] = {key: [] for key in calls}
    start = time.perf_counter()
    while calls and (not next(iter(times.values())) or time.perf_counter() - start < seconds * len(calls)):
        for key, call in calls.items():
            call()
            for _ in range(BURST):
                before = time.perf_counter()
                call()
                times[key].append(time.perf_counter() - before)
    return times


def _call(session: Session, images: np.ndarray) -> Callable[[], object]:
    return lambda: session(images)


def _figures(times: Sequence[float], batch: int) -> dict[str, Any]:
    median, p90 = np.percentile(times, (50, 90))
    return {"median_ms": 1e3 * median, "p90_ms": 1e3 * p90, "images_per_second": batch / median}


def _noise(metadata: Metadata, options: GraphOptions, batch: int) -> np.ndarray:
    (images,) = example_batches(metadata, options, batches=(batch,))
    return images


class _Candidates:
    """Makes the sessions, tracing the network once for each operator set."""

    def __init__(self, model: nn.Module, folder: Path, largest: int, threads: int, calibration: str | None):
        self.model, self.folder, self.largest, self.threads = model, folder, largest, threads
        self.metadata = Metadata.of(model)
        self.torch = TorchSession(model, Runtime.open("cpu", "float32"))
        self.calibration: list[np.ndarray] = []
        self.comparison = [_noise(self.metadata, GraphOptions(), 8)]
        if calibration is not None:
            self.calibration, self.comparison = calibration_batches(calibration, self.metadata, 256)
        self.expected = np.concatenate([self.torch(images) for images in self.comparison])
        self.traced: dict[int, Traced] = {}
        self.megabytes: dict[tuple[str, str], float] = {}

    def open(self, runtime: str, precision: str) -> Session:
        """A session, its file written first. Raises `BossNetError` where it cannot run here."""
        if runtime not in ON_CPU and gpu_name() is None:
            raise UsageError("needs a GPU, and this machine has none that works")
        if runtime.startswith("torch"):
            self.megabytes[runtime, precision] = sum(t.nbytes for t in self.model.state_dict().values()) / 1e6
            return self.torch if runtime == "torch" else self._torch_on_gpu(precision)
        if precision == "int8" and not self.calibration:
            raise UsageError("int8 needs calibration images: --calib")
        path = self._write(runtime, precision)
        if runtime in BUILDERS:
            source, path = path, self.folder / f"{runtime}.{precision}.engine"
            build_engine(source, path, BUILDERS[runtime], EngineOptions((1, self.largest, self.largest)))
        self.megabytes[runtime, precision] = path.stat().st_size / 1e6
        return open_session(path, DEVICES.get(runtime, "cuda"), threads=self.threads)

    def _torch_on_gpu(self, precision: str) -> Session:
        runtime = Runtime.open("cuda", {"fp32": "float32", "bf16": "bfloat16"}[precision])
        return TorchSession(copy.deepcopy(self.model), runtime)

    def _write(self, runtime: str, precision: str) -> Path:
        """The ONNX file for a runtime; INT8 has one for each of two."""
        meant_for = "onnxruntime" if runtime in ("onnx", "onnx-cuda") else "tensorrt"
        path = self.folder / f"{meant_for if precision == 'int8' else 'any'}.{precision}.onnx"
        if not path.exists():
            graph = self._trace(default_opset(precision))
            write_onnx(graph, path, precision, runtime=meant_for, calibration=self.calibration, tolerance=SHOWN)
        return path

    def _trace(self, opset: int) -> Traced:
        if opset not in self.traced:
            self.traced[opset] = trace(self.model, self.metadata, GraphOptions(opset=opset))
        return self.traced[opset]

    def images(self, batch: int) -> np.ndarray:
        return _noise(self.metadata, GraphOptions(), batch)

    def compare(self, session: Session) -> dict[str, Any]:
        """The difference to PyTorch on the comparison images."""
        parity = compare(self.expected, np.concatenate([run_in_parts(session, images) for images in self.comparison]))
        return {"max_rel": parity.max_rel, "top1_agreement": parity.top1_agreement}
