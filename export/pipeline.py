"""Everything that one call of `bossnet export` writes: ONNX files, engines from them, a Triton repository."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import nn

from bossnet_zoo import console
from bossnet_zoo.errors import UsageError
from bossnet_zoo.runs import class_names_of

from .extras import need_onnx
from .formats import ENGINE_SUFFIX, engine_name, onnx_name
from .graph import DEFAULT_OPSET, GraphOptions, trace
from .images import calibration_batches
from .metadata import Metadata
from .onnx import write_onnx
from .precision import MIN_OPSET, check_opset
from .provenance import public_name
from .report import TOLERANCES, ExportReport, Tolerance
from .tensorrt import EngineOptions, EngineReport, Range, build_engine, open_builder
from .triton import write_triton

FEW_IMAGES = 100  # to calibrate with: with fewer, ranges depend on which they are


@dataclass(frozen=True)
class Request:
    """What shall be exported.

    Attributes:
        onnx: keep an ONNX file for ONNX Runtime. Engines keep the one they are built from in any case.
        builders: packages that build engines: `tensorrt`, `tensorrt_rtx`.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        graph, engine: batch and the like; their sizes are set from the following.
        input_size: pixels of a side; by default the network's own.
        dynamic_size: take images of any size within a range.
        sizes: that range: smallest, usual and largest side; by default half to double the `input_size`.
        calibration: images that show INT8 the range of activations, as `open_images` takes them; the comparison is made
            on others of the same source, in every precision.
        calibration_count: how many of each.
        tolerance: how far a file may be from PyTorch; by default the precision's.
        timing_cache: of `tensorrt`.
        triton: folder of a Triton model repository.
    """

    onnx: bool = True
    builders: tuple[str, ...] = ()
    precision: str = "fp32"
    graph: GraphOptions = field(default_factory=GraphOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    input_size: int | None = None
    dynamic_size: bool = False
    sizes: Range | None = None
    calibration: str | None = None
    calibration_count: int = 512
    tolerance: Tolerance | None = None
    timing_cache: Path | None = None
    triton: Path | None = None

    def check(self) -> None:
        """Refuse what cannot be met whatever the network is, before time is spent on it.

        Raises:
            UsageError: a missing package, GPU or image source, or a combination that is not possible.
        """
        need_onnx()
        for option, value in (("--calib-n", self.calibration_count), ("--input-size", self.input_size)):
            if value is not None and value < 1:
                raise UsageError(f"{option} {value} is not possible; type 1 or more")
        if self.precision == "int8" and self.calibration is None:
            raise UsageError(
                "--int8 needs calibration images; type --calib with a folder of images or a data set's name"
            )
        if self.sizes is not None and not self.dynamic_size:
            raise UsageError("--sizes is the range of --dynamic-size; type both, or --input-size for one other size")
        if self.sizes is not None:
            replace(self.graph, sizes=(self.sizes[0], self.sizes[2]))  # each refuses what it cannot be
            replace(self.engine, sizes=self.sizes)
        self._check_triton()
        check_opset(self.precision, self.graph.opset)
        for package in self.builders:
            open_builder(package, self.engine, self.timing_cache_of(package))

    def _check_triton(self) -> None:
        if self.triton is None:
            return
        if self.graph.batch is None and self.engine.batch[0] > 1:
            raise UsageError(
                f"Triton sends as few images as come, and --batch asks for {self.engine.batch[0]} or more; type a "
                "range from 1 on, as in 1:8:64, or one number"
            )
        if self.precision == "int8" and not self.onnx and "tensorrt" not in self.builders:
            raise UsageError("Triton loads neither engines of --trt-rtx nor the INT8 file for them; type --onnx too")

    def timing_cache_of(self, package: str) -> Path | None:
        """TensorRT for RTX has none."""
        return self.timing_cache if package == "tensorrt" else None


def parse_range(text: str, what: str) -> Range:
    """`8` -> (8, 8, 8) and `1:8:64` -> (1, 8, 64). Raises `UsageError`."""
    parts = text.split(":")
    if not (len(parts) in (1, 3) and all(part.isdecimal() for part in parts)):
        raise UsageError(f"{what} {text!r} is no number and no range; write 8, or smallest:usual:largest as in 1:8:64")
    smallest, usual, largest = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    if min(smallest, usual, largest) < 1:
        raise UsageError(f"{what} {text} is not possible; type 1 or more")
    if not smallest <= usual <= largest:
        rising = ":".join(map(str, sorted((smallest, usual, largest))))
        raise UsageError(f"{what} {text} does not rise; write smallest:usual:largest, as in {rising}")
    if what == "--sizes" and smallest == largest:
        raise UsageError(f"--sizes {text} is one size; write a range as in 160:224:288, or --input-size {largest}")
    return smallest, usual, largest


def default_opset(precision: str) -> int:
    """The operator set that a precision is written in unless another is asked for."""
    return max(DEFAULT_OPSET, MIN_OPSET.get(precision, 0))


def export_network(model: nn.Module, name: str, out: Path, request: Request) -> list[ExportReport | EngineReport]:
    """Write what is asked for into a folder: ONNX files, compared with PyTorch, and engines built from them, not run.

    Args:
        model: a timm model.
        name: what the files' names begin with.
        out: the folder.

    Raises:
        UsageError: INT8 without images, a missing package or GPU, an impossible combination.
        ExportError: a file that does not compute what PyTorch does, or not in the precision asked for.
        BossNetError: TensorRT cannot build an engine.
    """
    request.check()
    metadata = _metadata(model, request.input_size)
    sizes = _sizes(request, metadata.input_size[-1])
    graph = replace(request.graph, sizes=(sizes[0], sizes[2]) if sizes else None)
    calibration, images = _images(metadata, graph, request)
    count = sum(map(len, calibration))
    if request.precision in ("fp16", "bf16") and not images:
        console.note(f"{request.precision} is compared on noise alone; --calib DATA compares it on images too")
    if request.precision == "int8" and count < FEW_IMAGES:
        console.note(f"INT8 learns its ranges from {count} images alone; {FEW_IMAGES} or more are usual")
    if request.precision == "int8":
        metadata = replace(metadata, notes=(*metadata.notes, _calibrated(count, request)))
    traced = trace(model, metadata, graph)
    reports: list[ExportReport | EngineReport] = []
    for runtime in _runtimes(request):
        path = out / onnx_name(name, request.precision, runtime)
        report = write_onnx(
            traced,
            path,
            request.precision,
            runtime=runtime,
            calibration=calibration,
            images=images,
            tolerance=request.tolerance,
        )
        reports.append(report)
    source = reports[-1].file
    for package in request.builders:
        engine, options = out / engine_name(name, request.precision, package), replace(request.engine, sizes=sizes)
        reports.append(build_engine(source, engine, package, options, request.timing_cache_of(package)))
    if request.triton is not None:
        # Triton loads TensorRT's engines; those of TensorRT for RTX it does not, and gets the ONNX file instead.
        engines = [report.file for report in reports if report.file.name.endswith(ENGINE_SUFFIX["tensorrt"])]
        write_triton(request.triton, name, engines[0] if engines else reports[0].file)
    return reports


def _calibrated(count: int, request: Request) -> str:
    return f"calibrated on {count} images of {public_name(str(request.calibration))}"


def _metadata(model: nn.Module, input_size: int | None) -> Metadata:
    metadata = Metadata.of(model, class_names=class_names_of(model))
    if input_size is None:
        return metadata
    return replace(metadata, input_size=(metadata.input_size[0], input_size, input_size))


def _sizes(request: Request, size: int) -> Range | None:
    """Smallest, usual and largest side of an image; None where there is but one."""
    return (request.sizes or (size // 2, size, 2 * size)) if request.dynamic_size else None


def _runtimes(request: Request) -> tuple[str, ...]:
    """Whom to write an ONNX file for; engines are built from the last."""
    if request.precision != "int8":
        return ("any",)
    wanted = {"onnxruntime": request.onnx, "tensorrt": bool(request.builders)}
    return tuple(runtime for runtime, is_wanted in wanted.items() if is_wanted)


def _images(metadata: Metadata, graph: GraphOptions, request: Request) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Batches to calibrate with and to compare on."""
    if request.calibration is None:
        return [], []
    metadata = replace(metadata, pixels=graph.pixels)
    return calibration_batches(request.calibration, metadata, request.calibration_count, graph.batch)


def tolerance_for(precision: str, max_rel: float | None, agreement: float | None) -> Tolerance:
    """The precision's tolerance, with what is given instead. Raises `UsageError`."""
    if agreement is not None and not 0 <= agreement <= 1:
        raise UsageError(f"--agreement {agreement} is not possible; type a share of the images, as in 0.99")
    tolerance = TOLERANCES[precision]
    if max_rel is not None and not 0 <= max_rel < math.inf:
        raise UsageError(f"--tolerance {max_rel} is not possible; type a relative difference, as in 1e-4")
    if max_rel is not None:
        tolerance = replace(tolerance, max_rel=max_rel)
    return tolerance if agreement is None else replace(tolerance, top1_agreement=agreement)
