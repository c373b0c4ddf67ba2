"""ONNX: one file with fixed names, a dynamic batch and its own description, checked against PyTorch at once.

    input   float32 (B, C, H, W), normalised; or uint8 (B, H, W, C) pixels where normalisation is in the graph
    logits  float32 (B, classes); called `probabilities` where softmax is in the graph

The graph comes from `torch.export`, which refuses a network whose batch is not free. (`torch.onnx.export(model)` would
silently fix the batch instead.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bossnet_zoo.checkpoint import save_json, sha256, write_atomically
from bossnet_zoo.errors import BossNetError, UsageError

from .extras import need
from .metadata import Metadata
from .report import ExportReport, Parity, Tolerance, compare, require_parity

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT, LOGITS, PROBABILITIES = "input", "logits", "probabilities"
OPSETS = range(18, 26)  # the exporter writes nothing older than 18; onnx itself refuses 26
DEFAULT_OPSET = 20  # the last that ONNX Runtime quantises and TensorRT parses without exceptions
CHECK_BATCHES = (1, 2, 8)


@dataclass(frozen=True)
class GraphOptions:
    """What the graph looks like.

    Attributes:
        batch: a fixed number of images; None for a dynamic batch.
        sizes: smallest and largest side of an image where sizes are dynamic; None for the one size of the metadata.
        opset: version of ONNX's operator set, 18 to 25. From 23 on attention is one `Attention` node.
        pixels: take uint8 pixels (B, H, W, C) and normalise them in the graph.
        softmax: put out probabilities.

    Raises:
        UsageError: a value outside what is allowed.
    """

    batch: int | None = None
    sizes: tuple[int, int] | None = None
    opset: int = DEFAULT_OPSET
    pixels: bool = False
    softmax: bool = False

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise UsageError(f"opset {self.opset} is out of range; allowed: {OPSETS.start} to {OPSETS.stop - 1}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch {self.batch} is not possible; a fixed batch is 1 or more")
        if self.sizes is not None and not 1 <= self.sizes[0] < self.sizes[1]:
            raise UsageError(f"sizes {self.sizes} are not possible; give the smallest, then the largest side in pixels")


class Deployed(nn.Module):
    """A network in evaluation mode, with what deployment puts around it."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, metadata: Metadata, options: GraphOptions):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.pixels, self.softmax = options.pixels, options.softmax
        self.register_buffer("mean", 255 * torch.tensor(metadata.mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(metadata.std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.pixels:
            x = (x.permute(0, 3, 1, 2).float() - self.mean) / self.std  # (B, H, W, C) -> (B, C, H, W)
        x = self.model(x)
        return x.softmax(dim=1) if self.softmax else x


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: tuple[int, int, int] | None = None,
    class_names: Sequence[str] = (),
    metadata: Metadata | None = None,
    options: GraphOptions | None = None,
    tolerance: Tolerance | None = None,
) -> ExportReport:
    """Write a network as float32 ONNX, compare it with PyTorch, and store the comparison beside it as PATH.json.

    Args:
        model: any network that maps (B, C, H, W) images to (B, classes) logits; it is left as it is.
        path: the file to write.
        input_size: (C, H, W) of an image; by default the network's own.
        class_names: one per output, stored in the file.
        metadata: instead of `input_size` and `class_names`, everything that the file shall say about itself.
        options: batch, sizes, opset, and what else goes into the graph.
        tolerance: how far the file may be from PyTorch.

    Raises:
        UsageError: a package is missing, or the network cannot be exported with these options.
        ExportError: the file computes something else than PyTorch; `path` is as it was before.
    """
    path, options = Path(path), options or GraphOptions()
    metadata = metadata or Metadata.of(model, input_size=input_size, class_names=tuple(class_names))
    metadata = replace(metadata, pixels=options.pixels, softmax=options.softmax)
    deployed = Deployed(model, metadata, options)
    proto = trace(deployed, metadata, options)
    metadata.write(proto)
    batches = list(example_batches(metadata, options))
    expected = [reference(deployed, images) for images in batches]
    return write_checked(proto, path, batches, expected, metadata, tolerance or Tolerance())


def trace(deployed: Deployed, metadata: Metadata, options: GraphOptions) -> ModelProto:
    """The network as an ONNX graph, without a trace of the machine it was made on.

    Raises:
        UsageError: the network's code fixes a dimension that shall be dynamic.
    """
    onnx = need("onnx", "onnx")
    need("onnxscript", "onnx")
    example = torch.from_numpy(next(iter(example_batches(metadata, options, batches=(options.batch or 2,)))))
    shapes = _dynamic_shapes(options)
    try:
        # Deferred assertions: stride-2 layers on a dynamic size would otherwise ask for even sizes.
        program = torch.export.export(
            deployed, (example,), dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
        )
    except torch._dynamo.exc.UserError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{metadata.model} cannot be exported with a dynamic {'size' if options.sizes else 'batch'}: {reason}; "
            f"{'leave out --dynamic-size' if options.sizes else 'fix the batch with --batch N'}"
        ) from error
    exported = torch.onnx.export(
        program,
        input_names=[INPUT],
        output_names=[PROBABILITIES if options.softmax else LOGITS],
        dynamic_shapes=shapes,
        opset_version=options.opset,
        verbose=False,
    )
    assert exported is not None
    proto = exported.model_proto
    strip_origins(proto)
    onnx.checker.check_model(proto, full_check=True)
    _check_form(proto, options)
    return proto


def _dynamic_shapes(options: GraphOptions) -> tuple[dict[int, Any]] | None:
    dims: dict[int, Any] = {}
    if options.batch is None:
        dims[0] = torch.export.Dim("batch", min=1)
    if options.sizes is not None:
        height_axis = 1 if options.pixels else 2
        smallest, largest = options.sizes
        dims[height_axis] = torch.export.Dim("height", min=smallest, max=largest)
        dims[height_axis + 1] = torch.export.Dim("width", min=smallest, max=largest)
    return (dims,) if dims else None


def strip_origins(proto: ModelProto) -> None:
    """Remove the exporter's notes about every node, which hold source paths of the machine it ran on."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""


def _check_form(proto: ModelProto, options: GraphOptions) -> None:
    """The exporter may answer a request it cannot meet with a warning in the log: read back what it made."""
    opset = opset_of(proto)
    if opset != options.opset:
        raise BossNetError(f"opset {options.opset} was asked for and opset {opset} was written; try another --opset")
    names = [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    axis = 1 if options.pixels else 2
    wanted = ["" if options.batch else "batch", "", "", ""]
    if options.sizes:
        wanted[axis : axis + 2] = ["height", "width"]
    assert names == wanted, f"the graph's input has dimensions {names}, not {wanted}"


def opset_of(proto: ModelProto) -> int:
    """Version of ONNX's own operators in a file."""
    return next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


# --- comparison with PyTorch


def example_batches(
    metadata: Metadata, options: GraphOptions, batches: Sequence[int] = CHECK_BATCHES
) -> Iterable[np.ndarray]:
    """Noise with the statistics of normalised images (or of pixels), the same on every machine.

    A fixed batch gives one array of it. Where sizes are dynamic, each array has another size, odd ones among them.
    """
    generator = np.random.default_rng(0)
    C, H, W = metadata.input_size
    sizes = [(H, W)]
    if options.sizes:
        smallest, largest = options.sizes
        sizes += [(smallest + 1, min(smallest + 14, largest)), (min(smallest + 31, largest), smallest)]
    for number, batch in enumerate((options.batch,) if options.batch else batches):
        height, width = sizes[number % len(sizes)]
        if options.pixels:
            yield generator.integers(0, 256, (batch, height, width, C), dtype=np.uint8)
        else:
            yield generator.standard_normal((batch, C, height, width)).astype(np.float32)


def reference(deployed: nn.Module, images: np.ndarray) -> np.ndarray:
    """PyTorch's answer to a batch."""
    with torch.inference_mode():
        return deployed(torch.from_numpy(images)).numpy()


def write_checked(
    proto: ModelProto,
    path: Path,
    batches: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    metadata: Metadata,
    tolerance: Tolerance,
) -> ExportReport:
    """Write a graph under a temporary name, compare it in ONNX Runtime, and only then give it its name."""
    onnx = need("onnx", "onnx")
    parity: list[Parity] = []

    def write(temporary: Path) -> None:
        onnx.save(proto, temporary)
        session = open_runtime(temporary)
        for images, logits in zip(batches, expected, strict=True):
            (given,) = session.run(None, {INPUT: images})
            parity.append(compare(logits, given))
        require_parity(parity, tolerance, f"{path.name} in ONNX Runtime")

    write_atomically(path, write)
    report = ExportReport(
        file=path,
        bytes=path.stat().st_size,
        sha256=sha256(path),
        precision=metadata.precision,
        opset=opset_of(proto),
        tolerance=tolerance,
        parity=tuple(parity),
        checked_with="ONNX Runtime, CPU",
    )
    save_json(path.with_name(path.name + ".json"), report.to_json())
    return report


def open_runtime(path: Path) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU."""
    runtime = need("onnxruntime", "onnx")
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
