"""ONNX files, made from a traced network in the precision asked for; compared with PyTorch before they get a name.

The comparison is made on the CPU. ONNX Runtime has no bf16 there, and runs a float32 twin of such a file instead, whose
every result is rounded to bf16; a file in fp16 is compared itself, and as its twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from bossnet_zoo.checkpoint import sha256, write_atomically
from bossnet_zoo.errors import BossNetError, UsageError

from .extras import need
from .graph import INPUT, GraphOptions, Traced, batches_of, example_batches, opset_of, trace
from .half import emulated
from .metadata import CHECKSUM, Metadata, checksum
from .precision import check_graph, check_opset, convert
from .report import TOLERANCES, TWIN_NOTE, ExportReport, Parity, Tolerance, compare, require_parity
from .side_car import read_record, write_side_car

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["GraphOptions", "export_onnx", "open_runtime", "read_onnx", "write_onnx"]


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: tuple[int, int, int] | None = None,
    class_names: Sequence[str] = (),
    metadata: Metadata | None = None,
    options: GraphOptions | None = None,
    precision: str = "fp32",
    tolerance: Tolerance | None = None,
) -> ExportReport:
    """Write a network as ONNX, compare it with PyTorch, and store the comparison beside it as PATH.json.

    Args:
        model: any network that maps (B, C, H, W) images to (B, classes) logits; it is left as it is.
        path: the file to write.
        input_size: (C, H, W) of an image; by default the network's own.
        class_names: one per output, stored in the file.
        metadata: instead of `input_size` and `class_names`, everything that the file shall say about itself.
        options: batch, sizes, opset, and what else goes into the graph.
        precision: `fp32`, `fp16` or `bf16`; INT8 needs images, see `write_onnx`.
        tolerance: how far the file may be from PyTorch; by default `report.TOLERANCES`.

    Raises:
        UsageError: a package is missing, or the network cannot be exported with these options.
        ExportError: the file computes something else than PyTorch; `path` is as it was before.
    """
    metadata = metadata or Metadata.of(model, input_size=input_size, class_names=tuple(class_names))
    return write_onnx(trace(model, metadata, options or GraphOptions()), Path(path), precision, tolerance=tolerance)


def write_onnx(
    traced: Traced,
    path: Path,
    precision: str = "fp32",
    *,
    runtime: str = "onnxruntime",
    calibration: Sequence[np.ndarray] = (),
    images: Sequence[np.ndarray] = (),
    tolerance: Tolerance | None = None,
) -> ExportReport:
    """Write one file of a traced network, compared with PyTorch before it gets its name.

    Args:
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        runtime: whom an INT8 file is for: `onnxruntime` or `tensorrt`.
        calibration: batches, as the graph's input takes them, that show the range of activations; INT8 needs them.
        images: batches to compare on, beside noise; by default those of `calibration`.

    Raises:
        UsageError: INT8 without calibration, or an opset that the precision does not have.
        ExportError: the file computes something else than PyTorch, or in another precision than asked.
    """
    check_opset(precision, traced.options.opset)
    if precision == "int8" and not calibration:
        raise UsageError("int8 needs calibration images; type --calib with a folder of images or a data set's name")
    images = images or calibration
    examples = _examples(traced, precision, images)
    converted = convert(traced.proto, precision, runtime, calibration, seen=[*examples, *calibration, *images])
    check_graph(converted.proto, precision, converted.exempt)
    meant_for = runtime if precision == "int8" else "any"
    notes = (*traced.metadata.notes, *converted.notes)
    metadata = replace(traced.metadata, precision=precision, runtime=meant_for, notes=notes)
    metadata.write(converted.proto)
    tolerance = tolerance or TOLERANCES[precision]
    reports: list[ExportReport] = []

    def write(temporary: Path) -> None:
        need("onnx", "onnx").save(converted.proto, temporary)
        sessions = _judges(temporary, converted.proto, metadata)
        parity = tuple(_worst(sessions, batch, traced.deployed.answer(batch)) for batch in examples)
        on_images = _on_images(sessions, traced, images)
        require_parity(parity, on_images, tolerance, f"{path.name} in ONNX Runtime")
        report = ExportReport(
            file=path,
            bytes=temporary.stat().st_size,
            onnx_sha256=sha256(temporary),
            precision=precision,
            opset=opset_of(converted.proto),
            tolerance=tolerance,
            parity=parity,
            on_images=on_images,
            notes=(*notes, *([TWIN_NOTE] if precision == "bf16" else [])),
        )
        write_side_car(path, report.to_json())  # before the file has a name: never without
        reports.append(report)

    write_atomically(path, write)
    return reports[0]


def _examples(traced: Traced, precision: str, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What a file is compared on at three batch sizes: INT8 knows the range of images, and is judged on them alone."""
    if precision == "int8":
        return list(batches_of(images[0], traced.metadata, traced.options))
    return list(example_batches(traced.metadata, traced.options))


def read_onnx(path: Path) -> tuple[ModelProto, Metadata]:
    """An ONNX file of this program, and what it says about itself.

    Raises:
        UsageError: there is no such file.
        BossNetError: it is damaged, of another program, or beside the record of another file.
    """
    onnx = need("onnx", "onnx")
    if not path.is_file():
        raise UsageError(f"{path} does not exist; make it with: bossnet export MODEL")
    try:
        proto = onnx.load(path)
    except Exception as error:  # protobuf's error, which has no public name
        raise BossNetError(f"{path} is damaged or no ONNX file ({error}); export it again") from error
    if not proto.graph.output:
        raise BossNetError(f"{path} is damaged or no ONNX file: it holds no graph; export it again")
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    metadata = Metadata.read(entries, path)
    if entries.get(CHECKSUM) != checksum(proto, entries):
        raise BossNetError(f"{path} is damaged or was edited: its checksum does not fit its content; export it again")
    read_record(path)  # it is this file's, if it is there
    return proto, metadata


def open_runtime(
    source: Path | bytes,
    *,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    exact: bool = False,
    threads: int = 0,
) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        source: a file, or its content.
        providers: what runs it, in order of preference: names, or names with settings.
        exact: compute quantised graphs in float32 operators, as they are written. (8-bit kernels of CPUs without VNNI
            saturate on TensorRT's files.)
        threads: for one operator; 0 for all cores.

    Raises:
        BossNetError: no ONNX file, a damaged one, or one with operators that the providers do not have.
    """
    runtime = need("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if exact:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return runtime.InferenceSession(source, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        name = source if isinstance(source, Path) else "the graph"
        raise BossNetError(
            f"ONNX Runtime cannot open {name}: {str(error).splitlines()[0]}; export it again with: bossnet export"
        ) from error


def _judges(path: Path, proto: ModelProto, metadata: Metadata) -> list[Any]:
    """Every session whose answers count: the file's own where the CPU can run it, and its twin in half precision."""
    sessions = []
    if metadata.precision in ("fp16", "bf16"):
        sessions.append(open_runtime(emulated(proto).SerializeToString(), exact=True))
    if metadata.precision != "bf16":
        sessions.append(open_runtime(path, exact=metadata.runtime == "tensorrt"))
    return sessions


def _worst(sessions: Sequence[Any], images: np.ndarray, expected: np.ndarray) -> Parity:
    entries = [compare(expected, session.run(None, {INPUT: images})[0]) for session in sessions]
    return max(entries, key=lambda entry: entry.max_rel)


def _on_images(sessions: Sequence[Any], traced: Traced, batches: Sequence[np.ndarray]) -> Parity | None:
    """The comparison on all given images as one entry; nothing where none were given."""
    if not batches:
        return None
    expected = np.concatenate([traced.deployed.answer(images) for images in batches])
    entries = [
        compare(expected, np.concatenate([session.run(None, {INPUT: images})[0] for images in batches]))
        for session in sessions
    ]
    return max(entries, key=lambda entry: entry.max_rel)
