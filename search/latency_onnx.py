"""Latencies in ONNX Runtime and TensorRT.

Operations are exported once, a few dozen in one go (the exporter's own preparations take longer than a layer), and
joined to networks: the same nodes as an export of the whole network, in seconds instead of minutes.

On a CPU, ONNX Runtime's profiler times every node of the whole, optimised graph. Layers are told apart by the names of
their nodes. So what ONNX Runtime fuses, and the layouts that it keeps between layers, cost what they cost in a network:
layers in sessions of their own would each convert their input and output.

On a GPU neither runtime tells the time of a node without slowing the others down. There each layer is a session or an
engine of its own, and they are queued one after the other on one stream.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bossnet_zoo import __version__, console
from bossnet_zoo.errors import BossNetError
from bossnet_zoo.export.extras import need
from bossnet_zoo.export.graph import DEFAULT_OPSET
from bossnet_zoo.export.onnx import open_runtime
from bossnet_zoo.export.sessions import PROVIDERS, check_providers
from bossnet_zoo.export.trt_common import fresh_log, load_tensorrt, open_engine
from bossnet_zoo.runtime import Runtime

from .latency_parts import Network, Part, fill
from .latency_runtimes import Call, InTurn, Prepared, device_name

if TYPE_CHECKING:
    from onnx import ModelProto

_TOGETHER = 24  # operations in one call of the exporter


def _versions(package: Any) -> dict[str, str]:
    """Of the runtime, and of PyTorch, whose exporter writes the graphs."""
    return {"bossnet-zoo": __version__, "torch": torch.__version__, package.__name__: package.__version__}


# --- graphs


class _SideBySide(nn.Module):
    """Modules that have nothing to do with each other, as one: a tuple of inputs -> a tuple of outputs."""

    def __init__(self, modules: Iterable[nn.Module]):
        super().__init__()
        self.each = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(x) for module, x in zip(self.each, inputs, strict=True))


def export_parts(parts: Mapping[str, Part]) -> dict[str, ModelProto]:
    """Each operation as an ONNX graph with one input, one output, fixed shapes and weights of its own."""
    graphs: dict[str, ModelProto] = {}
    groups = [list(parts)[first : first + _TOGETHER] for first in range(0, len(parts), _TOGETHER)]
    for names in console.track(groups, "exporting", len(groups)):
        graphs |= zip(names, _export([parts[name] for name in names]), strict=True)
    return graphs


def _export(parts: Sequence[Part]) -> list[ModelProto]:
    from onnx.utils import Extractor

    modules = _SideBySide(fill(deepcopy(part.module)) for part in parts).eval()
    inputs = [f"x{number}" for number in range(len(parts))]
    outputs = [f"y{number}" for number in range(len(parts))]
    program = torch.export.export(modules, tuple(torch.rand(part.shape) for part in parts))
    exported = torch.onnx.export(
        program, input_names=inputs, output_names=outputs, opset_version=DEFAULT_OPSET, verbose=False
    )
    assert exported is not None
    extractor = Extractor(exported.model_proto)
    return [extractor.extract_model([x], [y]) for x, y in zip(inputs, outputs, strict=True)]


def join(parts: Sequence[ModelProto]) -> ModelProto:
    """One graph that runs several in turn. What belongs to part 3 has a name that begins with `3/`."""
    from onnx.compose import add_prefix

    first, *others = (add_prefix(part, f"{number}/") for number, part in enumerate(parts))
    for part in others:
        given, wanted = first.graph.output[0].name, part.graph.input[0].name
        for node in part.graph.node:
            node.input[:] = [given if name == wanted else name for name in node.input]
        first.graph.node.extend(part.graph.node)
        first.graph.initializer.extend(part.graph.initializer)
        first.graph.value_info.extend(part.graph.value_info)
        del first.graph.output[:]
        first.graph.output.extend(part.graph.output)
    return first


# --- ONNX Runtime on a CPU


class OnnxEngine:
    """ONNX Runtime on the CPU, profiled."""

    runtime = "onnxruntime"
    on_gpu = False

    def __init__(self, threads: int):
        self._package = need("onnxruntime", "onnx")
        self.versions = _versions(self._package)
        self.device, self.threads = device_name(torch.device("cpu")), threads
        self._graphs: dict[str, ModelProto] = {}

    def learn(self, parts: Mapping[str, Part]) -> None:
        self._graphs = export_parts(parts)

    def prepare(self, network: Network, in_parts: bool) -> Prepared:
        graph = join([self._graphs[operation] for operation in network.operations]).SerializeToString()
        folder = tempfile.TemporaryDirectory(prefix="bossnet-latency-") if in_parts else None
        profiled = self._open(graph, folder.name) if folder else None
        return _Profiled(self._open(graph), profiled, folder, network.shape, len(network.parts))

    def _open(self, graph: bytes, profile_folder: str | None = None) -> Any:
        options = self._package.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        # Threads wait busily for the next operation: within a run they shall, as always, but not on behind it, where
        # they would take the cores from the next network's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if profile_folder:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(profile_folder) / "profile")
        return self._package.InferenceSession(graph, options, providers=list(PROVIDERS["cpu"]))


class _Profiled:
    """A network in one session for its time as a whole, and in another, profiled, for that of its parts."""

    def __init__(
        self,
        plain: Any,
        profiled: Any,
        folder: tempfile.TemporaryDirectory[str] | None,
        shape: tuple[int, ...],
        num_parts: int,
    ):
        self._plain, self._profiled, self._folder, self._num_parts = plain, profiled, folder, num_parts
        self._feed = {plain.get_inputs()[0].name: np.random.default_rng(0).random(shape, dtype=np.float32)}

    def whole(self) -> float:
        begin = time.perf_counter()
        self._plain.run(None, self._feed)
        return time.perf_counter() - begin

    def parts(self) -> None:
        self._profiled.run(None, self._feed)

    def close(self) -> list[list[float]]:
        del self._plain
        if self._folder is None:
            return []
        with self._folder:
            events = json.loads(Path(self._profiled.end_profiling()).read_text(encoding="utf-8"))
            del self._profiled
        return read_profile(events, self._num_parts)


def read_profile(events: Sequence[Mapping[str, Any]], num_parts: int) -> list[list[float]]:
    """Seconds of each part in each run, from ONNX Runtime's profile of a graph that `join` made.

    Conversions of layout have names of their own: that of an input belongs to the part that follows, that of an output
    to the part before.

    Raises:
        BossNetError: a part has no node that can be told by its name.
    """
    runs: list[list[float]] = []
    taken, part, pending = [0.0] * num_parts, 0, 0.0
    for event in events:
        name, seconds = str(event["name"]), event["dur"] / 1e6
        if event["cat"] == "Node" and name.endswith("_kernel_time"):
            number, slash, _ = name.partition("/")
            if slash and number.isdigit():
                part = int(number)
                taken[part] += seconds + pending
                pending = 0.0
            elif name.startswith("ReorderInput"):
                pending += seconds
            else:
                taken[part] += seconds
        elif name == "model_run":
            runs.append(taken)
            taken, part, pending = [0.0] * num_parts, 0, 0.0
    if not all(any(run[part] for run in runs) for part in range(num_parts)):
        raise BossNetError(
            "this version of ONNX Runtime does not tell which layer its nodes belong to; please report it, and measure "
            "with --runtime torch meanwhile"
        )
    return runs


# --- ONNX Runtime and TensorRT on a GPU


class OnnxCudaEngine:
    """ONNX Runtime on a GPU, each layer in a session of its own."""

    runtime = "onnxruntime"
    on_gpu = True

    def __init__(self, runtime: Runtime):
        self._package = need("onnxruntime", "onnx")
        self._on, self._providers = runtime, PROVIDERS["cuda"]
        self._available = self._package.get_available_providers()
        check_providers(self._available, self._providers, self._available)
        self.versions = _versions(self._package)
        self.device, self.threads = device_name(runtime.device), torch.get_num_threads()
        self._graphs: dict[str, ModelProto] = {}

    def learn(self, parts: Mapping[str, Part]) -> None:
        self._graphs = export_parts(parts)

    def prepare(self, network: Network, in_parts: bool) -> Prepared:
        graphs = [self._graphs[operation] for operation in network.operations]
        parts = [self._load(graph, part.shape) for graph, part in zip(graphs, network.parts, strict=True) if in_parts]
        x = torch.rand(network.shape, device=self._on.device)
        return InTurn(self._load(join(graphs), network.shape), parts, x, self._on)

    def _load(self, graph: ModelProto, shape: tuple[int, ...]) -> Call:
        """Inputs and outputs stay on the GPU, and one stream, PyTorch's, runs all of it."""
        device = self._on.device
        stream = str(torch.cuda.current_stream(device).cuda_stream)
        settings = [{"device_id": str(device.index), "user_compute_stream": stream}, {}]
        providers = list(zip(self._providers, settings, strict=True))
        session = open_runtime(graph.SerializeToString(), providers=providers, threads=self.threads)
        check_providers(session.get_providers(), self._providers, self._available)
        queued = self._package.RunOptions()
        queued.add_run_config_entry("disable_synchronize_execution_providers", "1")
        x = torch.rand(shape, device=device)
        binding = session.io_binding()
        binding.bind_input(session.get_inputs()[0].name, "cuda", device.index, np.float32, shape, x.data_ptr())
        binding.bind_output(session.get_outputs()[0].name, "cuda", device.index)

        def call(_: Tensor) -> Tensor:
            session.run_with_iobinding(binding, queued)
            return x  # which lives as long as the call does

        return call


class TensorRTEngine:
    """TensorRT, each layer in an engine of its own."""

    runtime = "tensorrt"
    on_gpu = True

    def __init__(self, runtime: Runtime):
        self._trt: Any = load_tensorrt("tensorrt")
        self._on = runtime
        self.versions = _versions(self._trt)
        self.device, self.threads = device_name(runtime.device), torch.get_num_threads()
        self._graphs: dict[str, ModelProto] = {}
        self._plans: dict[str, Any] = {}

    def learn(self, parts: Mapping[str, Part]) -> None:
        self._graphs = export_parts(parts)
        names = console.track(parts, "building", len(parts))
        self._plans = {name: build_plan(self._trt, self._graphs[name]) for name in names}

    def prepare(self, network: Network, in_parts: bool) -> Prepared:
        plan = build_plan(self._trt, join([self._graphs[operation] for operation in network.operations]))
        parts = [self._load(self._plans[part.operation], part.shape) for part in network.parts if in_parts]
        x = torch.rand(network.shape, device=self._on.device)
        return InTurn(self._load(plan, network.shape), parts, x, self._on)

    def _load(self, plan: Any, shape: tuple[int, ...]) -> Call:
        engine = open_engine(self._trt, plan, "an engine that was just built")
        context = engine.create_execution_context()
        given, answer = (engine.get_tensor_name(number) for number in range(2))
        x = torch.rand(shape, device=self._on.device)
        y = torch.empty(tuple(context.get_tensor_shape(answer)), device=self._on.device)
        context.set_tensor_address(given, x.data_ptr())
        context.set_tensor_address(answer, y.data_ptr())
        stream = torch.cuda.current_stream(self._on.device).cuda_stream
        alive = {"engine": engine, "x": x, "y": y}  # as long as the call is

        def call(_: Tensor) -> Tensor:
            if not context.execute_async_v3(stream):
                raise BossNetError(f"TensorRT {self._trt.__version__} failed to run a layer")
            return alive["y"]

        return call


def build_plan(trt: Any, graph: ModelProto) -> Any:
    """A serialised engine in float32, as the graph is: TensorRT is strongly typed. Raises `BossNetError`."""
    log = fresh_log(trt)
    builder = trt.Builder(log.logger)
    network = builder.create_network(0)
    parsed = trt.OnnxParser(network, log.logger).parse(graph.SerializeToString())
    plan = builder.build_serialized_network(network, builder.create_builder_config()) if parsed else None
    if plan is None:
        raise BossNetError(f"TensorRT {trt.__version__} built no engine: {log.reason}")
    return plan
