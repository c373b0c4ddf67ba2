"""TensorRT engines from ONNX files, by TensorRT 11 (`tensorrt`) or TensorRT for RTX (`tensorrt_rtx`).

The two builders share their interface. `tensorrt` builds for the GPU of this machine and needs it; `tensorrt_rtx`
builds on any machine for all RTX GPUs from Ampere on, where the engine is finished on first use. Both take the
precision from the graph. An engine FILE has a side-car FILE.json that says what it was built from and for; it is
checked before the engine is run, and an engine with the same key is not built twice.

What is compared with PyTorch is the ONNX file. An engine is built from it and its precision is read back, but it is not
run: it may be for another machine than this one, and TensorRT multiplies float32 in TF32, which no tolerance here is
for. `sessions.open_session` and `report.compare` do it where the GPU is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bossnet_zoo.checkpoint import sha256, write_atomically
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.runtime import gpu_name

from .graph import INPUT
from .onnx import read_onnx
from .precision import arithmetic_types
from .side_car import describe_build, find_built, write_side_car
from .trt_common import check_engine, check_network, fresh_log, load_tensorrt

BUILDERS = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}
Range = tuple[int, int, int]  # smallest, usual, largest


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is built for.

    Attributes:
        batch: smallest, usual and largest number of images; the engine is tuned for the usual one.
        sizes: the same for the sides of an image, where the ONNX file leaves them open.
        workspace_mib: memory the engine may use for intermediate results; by default what the GPU has.
        version_compatible: run on later versions of TensorRT too (`tensorrt` only).
        hardware_compatible: run on every GPU from Ampere on, somewhat slower (`tensorrt` only).

    Raises:
        UsageError: a range that does not rise, or no memory at all.
    """

    batch: Range = (1, 8, 64)
    sizes: Range | None = None
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        for what, values in (("batch", self.batch), ("sizes", self.sizes or (1, 1, 1))):
            if not 1 <= values[0] <= values[1] <= values[2]:
                given = ":".join(map(str, values))
                raise UsageError(f"{what} {given} does not rise; give smallest:usual:largest, as in 1:8:64")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"--workspace {self.workspace_mib} is not possible; type 1 or more MiB")


@dataclass(frozen=True)
class EngineReport:
    """What was built.

    Attributes:
        file: the engine; its side-car is `file` + `.json`.
        bytes: its size.
        builder: package and version.
        gpu: the GPU it is for; None for every RTX GPU.
        onnx: name of the file it was built from, which was compared with PyTorch.
        precision: of the graph in that file; read back from the engine, or for RTX GPUs from the parsed network.
        profile: smallest, usual and largest shape of the input.
        reused: whether it lay there already, with the same key.
    """

    file: Path
    bytes: int
    builder: str
    gpu: str | None
    onnx: str
    precision: str
    profile: tuple[tuple[int, ...], ...]
    reused: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "file": self.file.name}


def build_engine(
    onnx_file: Path,
    engine_file: Path,
    package: str = "tensorrt_rtx",
    options: EngineOptions | None = None,
    timing_cache: Path | None = None,
) -> EngineReport:
    """Build an engine from an ONNX file of this program, or take the one that lies there with the same key.

    Args:
        onnx_file: written by `export_onnx`; an INT8 file must be the one for TensorRT.
        engine_file: the file to write; its side-car gets the same name and `.json`.
        package: `tensorrt` or `tensorrt_rtx`.
        options: shapes, and what the engine shall run on.
        timing_cache: where `tensorrt` keeps its measurements, to build similar engines faster.

    Raises:
        UsageError: package or GPU missing, a file for another runtime, an option the builder does not have.
        ExportError: the parsed network has another precision than the file.
        BossNetError: the file is damaged, or TensorRT cannot build it.
    """
    options = options or EngineOptions()
    trt, gpu = open_builder(package, options, timing_cache)
    proto, metadata = read_onnx(onnx_file)
    if metadata.runtime == "onnxruntime":
        raise UsageError(f"{onnx_file} is quantised for ONNX Runtime; TensorRT needs the file NAME.int8.trt.onnx")
    about = describe_build(package, trt.__version__, gpu, onnx_file, dataclasses.asdict(options))
    built = find_built(engine_file, about["key"])
    reused = built is not None
    if built is None:
        plan, profile = _Build(trt, onnx_file).run(arithmetic_types(proto), options, timing_cache)
        if gpu is not None:
            check_engine(trt, plan, metadata.precision)
        built = about | {
            "profile": profile,
            "classes": proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value,
            "metadata": dataclasses.asdict(metadata),
        }
        _save(engine_file, plan, built)
    return EngineReport(
        file=engine_file,
        bytes=engine_file.stat().st_size,
        builder=f"{package} {trt.__version__}",
        gpu=gpu,
        onnx=onnx_file.name,
        precision=metadata.precision,
        profile=tuple(tuple(shape) for shape in built["profile"]),
        reused=reused,
    )


def open_builder(
    package: str, options: EngineOptions, timing_cache: Path | None = None
) -> tuple[ModuleType, str | None]:
    """The builder's module, and the GPU it builds for (None: every RTX GPU). For callers that want to fail early.

    Raises:
        UsageError: package or GPU missing, or an option that the builder does not have.
    """
    trt = load_tensorrt(package)
    gpu = _required_gpu(package)
    _check_options(package, options, timing_cache)
    return trt, gpu


def _save(engine_file: Path, plan: Any, about: dict[str, Any]) -> None:
    """The side-car first, and then the engine's name: there is no engine without one."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(plan)
        write_side_car(engine_file, about | {"engine_sha256": sha256(temporary)})

    write_atomically(engine_file, write)


def _required_gpu(package: str) -> str | None:
    if package == "tensorrt_rtx":
        return None
    gpu = gpu_name()
    if gpu is None:
        raise UsageError(
            "TensorRT builds an engine on the GPU that will run it, and this machine has none that works; "
            "build it there, or for RTX GPUs without one: --trt-rtx"
        )
    return gpu


def _check_options(package: str, options: EngineOptions, timing_cache: Path | None) -> None:
    if package == "tensorrt_rtx":
        only_tensorrt = {
            "--version-compatible": options.version_compatible,
            "--hardware-compatible": options.hardware_compatible,
            "--timing-cache": timing_cache is not None,
        }
        for option, given in only_tensorrt.items():
            if given:
                raise UsageError(f"{option} is for --trt; engines of --trt-rtx are finished on the GPU that runs them")


class _Build:
    """One run of a builder."""

    def __init__(self, trt: ModuleType, onnx_file: Path):
        self.trt, self.file = trt, onnx_file
        self.log = fresh_log(trt)
        self.builder = trt.Builder(self.log.logger)
        self.network = self.builder.create_network(0)  # strongly typed

    def run(
        self, types: dict[str, str], options: EngineOptions, timing_cache: Path | None
    ) -> tuple[Any, list[list[int]]]:
        """The serialised engine, and its profile's three shapes."""
        trt = self.trt
        self._parse()
        check_network(trt, self.network, types)
        self._let_attention_decompose()
        config = self.builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the engine can be inspected
        shapes = profile_shapes(tuple(self.network.get_input(0).shape), options)
        profile = self.builder.create_optimization_profile()
        profile.set_shape(INPUT, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise BossNetError(f"TensorRT refuses the shapes {shapes}: {self.log.reason}")
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        cache = self._open_cache(config, timing_cache)
        plan = self.builder.build_serialized_network(self.network, config)
        if plan is None:
            raise BossNetError(
                f"{trt.__name__} {trt.__version__} built no engine from {self.file}: {self.log.reason}; "
                "try another precision, or more --workspace"
            )
        if cache is not None and timing_cache is not None:
            content = bytes(cache.serialize())
            write_atomically(timing_cache, lambda temporary: temporary.write_bytes(content))  # type: ignore[arg-type, func-returns-value]
        return plan, [list(shape) for shape in shapes]

    def _parse(self) -> None:
        parser = self.trt.OnnxParser(self.network, self.log.logger)
        parsed = parser.parse_from_file(str(self.file))
        if parsed and self.network.num_outputs:  # an empty file parses, into an empty network
            return
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        where = f"node {errors[0].node_name()}: {errors[0].desc()}" if errors else self.log.reason
        raise BossNetError(
            f"TensorRT cannot parse {self.file}: {' '.join(where.split())[:300]}; export it again with: bossnet export"
        )

    def _let_attention_decompose(self) -> None:
        """Opset 23's attention has kernels for a few types and head sizes; the rest it may compute step by step."""
        for layer in self.network:
            if layer.type == getattr(self.trt.LayerType, "ATTENTION_INPUT", None):
                layer.__class__ = self.trt.IAttentionInputLayer
                layer.attention.decomposable = True

    def _open_cache(self, config: Any, timing_cache: Path | None) -> Any:
        if timing_cache is None:
            return None
        cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.exists() else b"")
        if not config.set_timing_cache(cache, False):
            raise BossNetError(f"{timing_cache} is no timing cache of this TensorRT and GPU; remove it")
        return cache


def profile_shapes(shape: tuple[int, ...], options: EngineOptions) -> tuple[tuple[int, ...], ...]:
    """Smallest, usual and largest shape of an input whose open dimensions are -1: the batch, then height and width.

    Raises:
        UsageError: the batch is fixed to another number, or open sizes without a range.
    """
    if shape[0] != -1 and options.batch != (shape[0],) * 3:
        raise UsageError(
            f"the ONNX file has a fixed batch of {shape[0]}, and the engine's shall be {options.batch}; "
            f"type --batch {shape[0]}, or leave the batch of the ONNX file open"
        )
    if -1 in shape[1:] and options.sizes is None:
        raise UsageError("the ONNX file leaves the image size open; give a range: --sizes 160:224:288")
    sizes = options.sizes or (0, 0, 0)
    return tuple(
        (batch, *(size if side == -1 else side for side in shape[1:]))
        for batch, size in zip(options.batch, sizes, strict=True)
    )
