"""From a network to an ONNX graph in float32.

    input   float32 (B, C, H, W), normalised; or uint8 (B, H, W, C) pixels where normalisation is in the graph
    logits  float32 (B, classes); called `probabilities` where softmax is in the graph

The graph comes from `torch.export`, which refuses a network whose batch is not free. (`torch.onnx.export(model)` would
fix the batch in silence.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bossnet_zoo.errors import BossNetError, UsageError

from .extras import need
from .metadata import Metadata

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT, LOGITS, PROBABILITIES = "input", "logits", "probabilities"
OPSETS = range(18, 26)  # the exporter writes nothing older than 18; onnx itself refuses 26
DEFAULT_OPSET = 20  # the last that ONNX Runtime quantises, and one that every TensorRT builder parses


@dataclass(frozen=True)
class GraphOptions:
    """What the graph looks like.

    Attributes:
        batch: a fixed number of images; None for a dynamic batch.
        batches: smallest and largest number of images of a dynamic batch; None for any. ONNX has no place for such a
            range: the file's metadata say it, and sessions keep to it.
        sizes: smallest and largest side of an image where sizes are dynamic; None for the one size of the metadata.
        opset: version of ONNX's operator set, 18 to 25. From 23 on attention is one `Attention` node.
        pixels: take uint8 pixels (B, H, W, C) and normalise them in the graph.
        softmax: put out probabilities.

    Raises:
        UsageError: a value outside what is allowed.
    """

    batch: int | None = None
    batches: tuple[int, int] | None = None
    sizes: tuple[int, int] | None = None
    opset: int = DEFAULT_OPSET
    pixels: bool = False
    softmax: bool = False

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise UsageError(f"opset {self.opset} is out of range; allowed: {OPSETS.start} to {OPSETS.stop - 1}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch {self.batch} is not possible; a fixed batch is 1 or more")
        if self.batches is not None and not 1 <= self.batches[0] <= self.batches[1]:
            raise UsageError(f"batches {self.batches} are not possible; give the smallest, then the largest number")
        if self.sizes is not None and not 1 <= self.sizes[0] < self.sizes[1]:
            raise UsageError(f"sizes {self.sizes} are not possible; give the smallest, then the largest side in pixels")

    @property
    def checked_batches(self) -> tuple[int, ...]:
        """Numbers of images at which a file is compared with PyTorch: three, or as many as the range has."""
        if self.batch is not None:
            return (self.batch,)
        smallest, largest = self.batches or (1, 8)
        return tuple(dict.fromkeys(min(count, largest) for count in (smallest, smallest + 1, max(smallest + 2, 8))))

    @property
    def height_axis(self) -> int:
        """Of the input; the width's is the next."""
        return 1 if self.pixels else 2

    @property
    def output(self) -> str:
        """Name of the graph's output."""
        return PROBABILITIES if self.softmax else LOGITS


class Deployed(nn.Module):
    """A network in evaluation mode, with what deployment puts around it."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, metadata: Metadata):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.pixels, self.softmax = metadata.pixels, metadata.softmax
        self.register_buffer("mean", 255 * torch.tensor(metadata.mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(metadata.std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.pixels:
            x = x.float().permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W); TensorRT moves no uint8
            x = (x - self.mean) / self.std
        x = self.model(x)
        return x.softmax(dim=1) if self.softmax else x

    def answer(self, images: np.ndarray) -> np.ndarray:
        """PyTorch's output for a batch, to compare with."""
        with torch.inference_mode():
            return self(torch.from_numpy(images)).numpy()


@dataclass(frozen=True)
class Traced:
    """A network as a float32 graph, with all that is needed to derive files from it and to judge them."""

    proto: ModelProto
    deployed: Deployed
    metadata: Metadata
    options: GraphOptions


def trace(model: nn.Module, metadata: Metadata, options: GraphOptions) -> Traced:
    """The network as an ONNX graph, without a trace of the machine it was made on.

    Raises:
        UsageError: a package is missing, or the network's code fixes a dimension that shall be dynamic.
    """
    onnx = need("onnx", "onnx")
    need("onnxscript", "onnx")
    batches = (options.batch, options.batch) if options.batch else options.batches
    metadata = replace(metadata, pixels=options.pixels, softmax=options.softmax, batches=batches, sizes=options.sizes)
    deployed = Deployed(model, metadata)
    (example,) = example_batches(metadata, options, batches=(2,))
    try:
        program = torch.export.export(
            deployed,
            (torch.from_numpy(example),),
            # Open, in whatever range the network allows; an error where it allows but one value.
            dynamic_shapes=_dynamic_shapes(options, lambda name: torch.export.Dim.DYNAMIC),
            # Stride-2 layers on an open size would otherwise ask for even sizes.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    except (torch._dynamo.exc.UserError, ValueError) as error:
        raise _fixed_dimension(metadata.model, options, error) from error
    exported = torch.onnx.export(
        program,
        input_names=[INPUT],
        output_names=[options.output],
        dynamic_shapes=_dynamic_shapes(options, torch.export.Dim),  # their names in the file
        opset_version=options.opset,
        verbose=False,
    )
    assert exported is not None
    proto = exported.model_proto
    strip_origins(proto)
    onnx.checker.check_model(proto, full_check=True)
    _check_form(proto, options)
    return Traced(proto, deployed, metadata, options)


def _dynamic_shapes(options: GraphOptions, dim: Callable[[str], Any]) -> tuple[dict[int, Any]] | None:
    """The open dimensions, each as `dim` of its name."""
    dims: dict[int, Any] = {}
    if options.batch is None:
        dims[0] = dim("batch")
    if options.sizes is not None:
        dims[options.height_axis], dims[options.height_axis + 1] = dim("height"), dim("width")
    return (dims,) if dims else None


def _fixed_dimension(name: str, options: GraphOptions, error: Exception) -> UsageError:
    reason = str(error).strip().splitlines()[0].rstrip(".")
    if options.sizes:
        return UsageError(f"{name} cannot be exported with a dynamic size: {reason}; leave out --dynamic-size")
    return UsageError(f"{name} cannot be exported with a dynamic batch: {reason}; fix the batch with --batch N")


def strip_origins(proto: ModelProto) -> None:
    """Remove the exporter's notes about every node, which hold source paths of the machine it ran on."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""


def _check_form(proto: ModelProto, options: GraphOptions) -> None:
    """The exporter may answer a request it cannot meet with a warning in the log: read back what it made."""
    if opset_of(proto) != options.opset:
        raise BossNetError(
            f"opset {options.opset} was asked for and opset {opset_of(proto)} was written; try another --opset"
        )
    names = [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    wanted = ["" if options.batch else "batch", "", "", ""]
    if options.sizes:
        wanted[options.height_axis : options.height_axis + 2] = ["height", "width"]
    assert names == wanted, f"the graph's input has dimensions {names}, not {wanted}"


def opset_of(proto: ModelProto) -> int:
    """Version of ONNX's own operators in a file."""
    return next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def checked_shapes(
    metadata: Metadata, options: GraphOptions, batches: Sequence[int] = ()
) -> Iterable[tuple[int, int, int]]:
    """(B, H, W) at which a file is compared with PyTorch, by default at `checked_batches`.

    Where sizes are dynamic, each batch has another size, odd ones among them.
    """
    H, W = metadata.input_size[1:]
    sizes = [(H, W)]
    if options.sizes:
        smallest, largest = options.sizes
        sizes += [(min(smallest + 1, largest), largest), (min(smallest + 31, largest), smallest)]
    for number, batch in enumerate(batches or options.checked_batches):
        yield batch, *sizes[number % len(sizes)]


def example_batches(metadata: Metadata, options: GraphOptions, batches: Sequence[int] = ()) -> Iterable[np.ndarray]:
    """Noise with the statistics of normalised images (or of pixels), the same on every machine; see `checked_shapes`.

    A fixed batch gives one array of it.
    """
    generator = np.random.default_rng(0)
    C = metadata.input_size[0]
    for batch, height, width in checked_shapes(metadata, options, (options.batch,) if options.batch else batches):
        if options.pixels:
            yield generator.integers(0, 256, (batch, height, width, C), dtype=np.uint8)
        else:
            yield generator.standard_normal((batch, C, height, width), dtype=np.float32)


def batches_of(images: np.ndarray, metadata: Metadata, options: GraphOptions) -> Iterable[np.ndarray]:
    """The same shapes, filled with some images, which are repeated or cut where they are too few or too small."""
    axis = options.height_axis
    for batch, height, width in checked_shapes(metadata, options):
        part = images.take(range(batch), axis=0, mode="wrap").take(range(height), axis=axis, mode="wrap")
        yield np.ascontiguousarray(part.take(range(width), axis=axis + 1, mode="wrap"))
