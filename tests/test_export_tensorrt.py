"""Real engines, built by TensorRT for RTX on the CPU; and what is said where one cannot be built or run."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import tensorrt_rtx
from exporting import calibration, lively, traced

from bossnet_zoo.checkpoint import sha256
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.export import side_car as side_cars
from bossnet_zoo.export import tensorrt
from bossnet_zoo.export.graph import GraphOptions, trace
from bossnet_zoo.export.metadata import Metadata
from bossnet_zoo.export.onnx import export_onnx, read_onnx, write_onnx
from bossnet_zoo.export.precision import arithmetic_types
from bossnet_zoo.export.report import ExportError, Tolerance
from bossnet_zoo.export.side_car import side_car
from bossnet_zoo.export.tensorrt import EngineOptions, build_engine, profile_shapes
from bossnet_zoo.export.trt_common import check_engine, check_network

LOOSE = Tolerance(1e-1, 0.0)  # the classes of untrained networks lie close together


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory):
    """The tiny BossNet-T in each precision."""
    folder = tmp_path_factory.mktemp("onnx")
    images = {"calibration": calibration(32), "runtime": "tensorrt"}
    for precision in ("fp32", "fp16", "int8"):
        write_onnx(traced(), folder / f"{precision}.onnx", precision, **images)
    write_onnx(traced(), folder / "int8.ort.onnx", "int8", calibration=calibration(32))
    return folder


@pytest.fixture(scope="module")
def engine(onnx_files):
    return build_engine(onnx_files / "fp32.onnx", onnx_files / "reused.engine")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_bossnet_t_engine_of_each_precision(onnx_files, precision):
    report = build_engine(onnx_files / f"{precision}.onnx", onnx_files / f"{precision}.engine")
    assert report.bytes > 100_000
    assert report.precision == precision
    assert report.profile == ((1, 3, 32, 32), (8, 3, 32, 32), (64, 3, 32, 32))


@pytest.fixture(scope="module")
def bossnet_t_of_two():
    model = lively("hytra", arch="8c-16a", base_width=16, num_classes=10)
    return trace(model, Metadata.of(model, input_size=(3, 64, 64)), GraphOptions(batch=2))


@pytest.fixture(scope="module")
def bossnet_m_of_two():
    model = lively("test_bossnet_m", num_classes=10)
    return trace(model, Metadata.of(model), GraphOptions(batch=2))


@pytest.fixture(scope="module")
def bossnet_m_of_any():
    model = lively("test_bossnet_m", num_classes=10)
    return trace(model, Metadata.of(model), GraphOptions())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("network", ["bossnet_t_of_two", "bossnet_m_of_two", "bossnet_m_of_any"])
def test_engines_with_a_static_and_a_dynamic_batch(tmp_path, request, network, precision):
    graph = request.getfixturevalue(network)
    images = np.random.default_rng(0).standard_normal((4, 2, 3, 64, 64), dtype=np.float32)
    write_onnx(graph, tmp_path / "x.onnx", precision, runtime="tensorrt", calibration=list(images), tolerance=LOOSE)
    batch = (1, 2, 4) if graph.options.batch is None else (2, 2, 2)
    report = build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", options=EngineOptions(batch))
    assert report.profile == tuple((count, 3, 64, 64) for count in batch)
    assert report.precision == precision
    assert (tmp_path / "x.engine").stat().st_size == report.bytes > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_bossnet_t", "test_bossnet_m"])
@pytest.mark.parametrize("opset", [20, 23])
def test_engine_with_dynamic_sizes_at_both_forms_of_attention(tmp_path, name, opset):
    options = GraphOptions(sizes=(32, 128), opset=opset, pixels=True)
    export_onnx(lively(name, num_classes=10), tmp_path / "x.onnx", options=options)
    report = build_engine(
        tmp_path / "x.onnx", tmp_path / "x.engine", options=EngineOptions((1, 2, 4), sizes=(32, 64, 128))
    )
    assert report.profile[0] == (1, 32, 32, 3)
    assert report.profile[2] == (4, 128, 128, 3)


def test_side_car_says_what_the_engine_is(engine, onnx_files):
    about = json.loads(side_car(engine.file).read_text())
    assert (about["builder"], about["version"]) == ("tensorrt_rtx", tensorrt_rtx.__version__)
    assert about["onnx_sha256"] == sha256(onnx_files / "fp32.onnx")
    assert about["engine_sha256"] == sha256(engine.file)
    assert Metadata.from_json(about["metadata"]).class_names == tuple("0123456789")
    assert about["profile"][1] == [8, 3, 32, 32]


def test_the_same_key_reuses_the_engine_and_another_builds_anew(engine, onnx_files):
    before = engine.file.read_bytes()
    assert build_engine(onnx_files / "fp32.onnx", engine.file).reused
    assert engine.file.read_bytes() == before
    engine.file.write_bytes(before[:1000])  # damaged
    assert not build_engine(onnx_files / "fp32.onnx", engine.file).reused
    assert not build_engine(onnx_files / "fp32.onnx", engine.file, options=EngineOptions((1, 1, 2))).reused


def test_a_failed_build_leaves_the_old_engine(tmp_path, onnx_files):
    path = tmp_path / "x.engine"
    path.write_bytes(b"old")
    with pytest.raises(BossNetError, match=r"built no engine from .*workspace"):
        build_engine(onnx_files / "fp32.onnx", path, options=EngineOptions(workspace_mib=1))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_side_car_is_no_hindrance_to_a_new_build(tmp_path, onnx_files):
    engine = build_engine(onnx_files / "fp32.onnx", tmp_path / "x.engine").file
    side_car(engine).write_text("{")
    assert not build_engine(onnx_files / "fp32.onnx", engine).reused
    assert build_engine(onnx_files / "fp32.onnx", engine).reused


def test_a_disk_that_fills_up_with_the_side_car_leaves_no_engine(tmp_path, onnx_files, monkeypatch):
    def full(path, value):
        raise BossNetError(f"{path} could not be written: [Errno 28] No space left on device")

    monkeypatch.setattr(side_cars, "save_json", full)
    with pytest.raises(BossNetError, match=r"x.engine.json could not be written: .*No space left"):
        build_engine(onnx_files / "fp32.onnx", tmp_path / "x.engine")
    assert list(tmp_path.iterdir()) == []


def test_the_onnx_runtime_file_is_refused(onnx_files, tmp_path):
    with pytest.raises(UsageError, match=r"quantised for ONNX Runtime; TensorRT needs the file NAME.int8.trt.onnx"):
        build_engine(onnx_files / "int8.ort.onnx", tmp_path / "x.engine")


@pytest.mark.parametrize(("content", "kind"), [(b"", "holds no graph"), (b"garbage" * 9, "damaged or no ONNX file")])
def test_a_damaged_onnx_file_is_an_error(tmp_path, content, kind):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(BossNetError, match=kind):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.engine")


def test_without_tensorrt_the_alternative_is_named(onnx_files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        UsageError, match=r"'tensorrt', which cannot be imported .*pip install \"bossnet-zoo\[trt\]\".*--trt-rtx"
    ):
        build_engine(onnx_files / "fp32.onnx", tmp_path / "x.engine", "tensorrt")


@pytest.fixture
def tensorrt_11(monkeypatch):
    """TensorRT 11's interface, as far as it is TensorRT-RTX's."""
    module = types.ModuleType("tensorrt")
    module.__dict__.update(vars(tensorrt_rtx))
    module.__name__, module.__version__ = "tensorrt", "11.4.0"
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


class NotingConfig:
    """A builder's configuration that notes what it is asked for, and has what TensorRT for RTX does not."""

    def __init__(self, config, cache: bytes):
        object.__setattr__(self, "asked", {"config": config, "cache": cache})

    def __getattr__(self, name):
        return getattr(self.asked["config"], name)

    def __setattr__(self, name, value):
        self.asked[name] = value

    def set_flag(self, flag):
        self.asked["flag"] = flag

    def set_memory_pool_limit(self, pool, size):
        self.asked["limit"] = (pool, size)

    def create_timing_cache(self, content):
        self.asked["content"] = content
        return types.SimpleNamespace(serialize=lambda: self.asked["cache"])

    def set_timing_cache(self, cache, ignore_mismatch):
        return self.asked["content"] != b"of another GPU"


@pytest.fixture
def configured(monkeypatch, tensorrt_11):
    """Builds of TensorRT 11 by TensorRT for RTX; everything asked of the last build's configuration."""
    monkeypatch.setattr(tensorrt, "gpu_name", lambda: "NVIDIA L4, 8.9")
    monkeypatch.setattr(tensorrt, "check_engine", lambda *_: None)
    asked = {}

    class Builder:
        def __init__(self, logger):
            self.builder = tensorrt_rtx.Builder(logger)
            self.create_network = self.builder.create_network
            self.create_optimization_profile = self.builder.create_optimization_profile

        def create_builder_config(self):
            asked["config"] = NotingConfig(self.builder.create_builder_config(), b"measurements")
            return asked["config"]

        def build_serialized_network(self, network, config):
            return self.builder.build_serialized_network(network, config.asked["config"])

    monkeypatch.setattr(tensorrt_11, "Builder", Builder)
    return lambda: asked["config"].asked


def test_every_option_of_tensorrt_11_reaches_its_builder(onnx_files, tmp_path, configured, tensorrt_11):
    options = EngineOptions((1, 2, 4), None, 64, version_compatible=True, hardware_compatible=True)
    report = build_engine(onnx_files / "fp32.onnx", tmp_path / "x.engine", "tensorrt", options, tmp_path / "cache")
    asked = configured()
    assert asked["flag"] == tensorrt_11.BuilderFlag.VERSION_COMPATIBLE
    assert asked["hardware_compatibility_level"] == tensorrt_11.HardwareCompatibilityLevel.AMPERE_PLUS
    assert asked["limit"] == (tensorrt_11.MemoryPoolType.WORKSPACE, 64 * 2**20)
    assert (report.builder, report.gpu) == ("tensorrt 11.4.0", "NVIDIA L4, 8.9")


def test_the_timing_cache_is_kept_and_read_again(onnx_files, tmp_path, configured):
    for content in (b"", b"measurements"):
        build_engine(onnx_files / "fp32.onnx", tmp_path / f"{content}.engine", "tensorrt", None, tmp_path / "cache")
        assert configured()["content"] == content
        assert (tmp_path / "cache").read_bytes() == b"measurements"
    (tmp_path / "cache").write_bytes(b"of another GPU")
    with pytest.raises(BossNetError, match="cache is no timing cache of this TensorRT and GPU; remove it"):
        build_engine(onnx_files / "fp32.onnx", tmp_path / "x.engine", "tensorrt", None, tmp_path / "cache")


def test_without_a_gpu_the_alternative_is_named(onnx_files, tmp_path, monkeypatch, tensorrt_11):
    monkeypatch.setattr(tensorrt, "gpu_name", lambda: None)
    with pytest.raises(UsageError, match=r"this machine has none that works; .*--trt-rtx"):
        build_engine(onnx_files / "fp32.onnx", tmp_path / "x.engine", "tensorrt")


def test_an_old_tensorrt_is_refused(onnx_files, tmp_path, tensorrt_11):
    tensorrt_11.__version__ = "10.9.0"
    with pytest.raises(UsageError, match=r"tensorrt 10.9.0 is too old; type: pip install \"bossnet-zoo\[trt\]\""):
        build_engine(onnx_files / "fp32.onnx", tmp_path / "x.engine", "tensorrt")


def test_options_the_builder_does_not_have_are_refused(onnx_files, tmp_path):
    with pytest.raises(UsageError, match="--version-compatible is for --trt"):
        build_engine(onnx_files / "fp32.onnx", tmp_path / "x", options=EngineOptions(version_compatible=True))
    with pytest.raises(UsageError, match="--timing-cache is for --trt"):
        build_engine(onnx_files / "fp32.onnx", tmp_path / "x", timing_cache=tmp_path / "cache")


def test_profiles():
    options = EngineOptions((1, 4, 8), sizes=(160, 224, 288))
    assert profile_shapes((-1, 3, -1, -1), options)[1] == (4, 3, 224, 224)
    assert profile_shapes((-1, 3, 96, 96), options) == ((1, 3, 96, 96), (4, 3, 96, 96), (8, 3, 96, 96))
    with pytest.raises(UsageError, match="fixed batch of 2"):
        profile_shapes((2, 3, 96, 96), options)
    with pytest.raises(UsageError, match="leaves the image size open"):
        profile_shapes((-1, 3, -1, -1), EngineOptions())
    with pytest.raises(UsageError, match="batch 8:4:1 does not rise"):
        EngineOptions((8, 4, 1))


def test_a_network_parsed_in_another_precision_is_an_error(onnx_files):
    build = tensorrt._Build(tensorrt_rtx, onnx_files / "fp32.onnx")
    build._parse()
    check_network(tensorrt_rtx, build.network, {"node_linear": "fp32"})
    with pytest.raises(ExportError, match="parsed node node_linear as fp32, and the ONNX file says fp16"):
        check_network(tensorrt_rtx, build.network, {"node_linear": "fp16"})
    with pytest.raises(ExportError, match="parsed a network without node another, whose precision is unknown"):
        check_network(tensorrt_rtx, build.network, {"node_linear": "fp32", "another": "fp32"})


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_precision_of_opset_23s_attention_is_read_back(tmp_path, precision):
    """It is one node of ONNX, and two layers of TensorRT by names of their own."""
    write_onnx(traced(23), tmp_path / "x.onnx", precision, tolerance=LOOSE)
    types = arithmetic_types(read_onnx(tmp_path / "x.onnx")[0])
    attention = [name for name in types if name.startswith("node_scaled_dot_product_attention")]
    build = tensorrt._Build(tensorrt_rtx, tmp_path / "x.onnx")
    build._parse()
    check_network(tensorrt_rtx, build.network, types)
    with pytest.raises(ExportError, match=f"parsed node {attention[0]} as {precision}, and the ONNX file says int8"):
        check_network(tensorrt_rtx, build.network, types | {attention[0]: "int8"})


def test_an_engine_in_another_precision_is_an_error(monkeypatch):
    """The inspector needs a GPU; its report is replaced here, the reading of it is not."""

    class Inspected:
        def __init__(self, log):
            pass

        def deserialize_cuda_engine(self, plan):
            return self

        def create_engine_inspector(self):
            return self

        def get_engine_information(self, form):
            return '{"Layers": [{"Outputs": [{"Format/Datatype": "Row major linear Half"}]}]}'

    monkeypatch.setattr(tensorrt_rtx, "Runtime", Inspected)
    check_engine(tensorrt_rtx, b"plan", "fp16")
    with pytest.raises(ExportError, match="int8 was asked for, and no layer of the engine computes in Int8"):
        check_engine(tensorrt_rtx, b"plan", "int8")
    monkeypatch.setattr(Inspected, "get_engine_information", lambda self, form: '{"Format/Datatype": "BFloat16"}')
    check_engine(tensorrt_rtx, b"plan", "bf16")
    with pytest.raises(ExportError, match="fp32 was asked for"):
        check_engine(tensorrt_rtx, b"plan", "fp32")
