"""Real engines, built by TensorRT for RTX on the CPU; and what is said where one cannot be built or run."""

from __future__ import annotations

import json
import sys
import types

import pytest
import tensorrt_rtx
from exporting import calibration, lively, traced

from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.export import tensorrt
from bossnet_zoo.export.graph import GraphOptions, trace
from bossnet_zoo.export.metadata import Metadata
from bossnet_zoo.export.onnx import export_onnx, write_onnx
from bossnet_zoo.export.report import ExportError
from bossnet_zoo.export.tensorrt import EngineOptions, build_engine, profile_shapes
from bossnet_zoo.export.trt_common import check_engine, check_network


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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_bossnet_m_engine_with_a_static_batch(tmp_path, bossnet_m, precision):
    write_onnx(bossnet_m, tmp_path / "m.onnx", precision)
    report = build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", options=EngineOptions(batch=(2, 2, 2)))
    assert report.profile == ((2, 3, 64, 64),) * 3


@pytest.fixture(scope="module")
def bossnet_m():
    model = lively("test_bossnet_m", num_classes=10)
    return trace(model, Metadata.of(model), GraphOptions(batch=2))


def test_bossnet_m_engine_in_int8(tmp_path, bossnet_m):
    batches = [bossnet_m.deployed.mean.new_zeros(2, 3, 64, 64).normal_().numpy() for _ in range(4)]
    write_onnx(bossnet_m, tmp_path / "m.onnx", "int8", runtime="tensorrt", calibration=batches)
    report = build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", options=EngineOptions(batch=(2, 2, 2)))
    assert report.precision == "int8"


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
    about = json.loads(tensorrt.side_car(engine.file).read_text())
    assert (about["builder"], about["version"]) == ("tensorrt_rtx", tensorrt_rtx.__version__)
    assert about["onnx_sha256"] == tensorrt.sha256(onnx_files / "fp32.onnx")
    assert about["engine_sha256"] == tensorrt.sha256(engine.file)
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
    with pytest.raises(UsageError, match=r"'tensorrt', which cannot be imported .*pip install tensorrt.*--trt-rtx"):
        build_engine(onnx_files / "fp32.onnx", tmp_path / "x.engine", "tensorrt")


@pytest.fixture
def tensorrt_11(monkeypatch):
    """TensorRT 11's interface, as far as it is TensorRT-RTX's."""
    module = types.ModuleType("tensorrt")
    module.__dict__.update(vars(tensorrt_rtx))
    module.__name__, module.__version__ = "tensorrt", "11.4.0"
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def test_without_a_gpu_the_alternative_is_named(onnx_files, tmp_path, monkeypatch, tensorrt_11):
    monkeypatch.setattr(tensorrt, "gpu_name", lambda: None)
    with pytest.raises(UsageError, match=r"this machine has none that works; .*--trt-rtx"):
        build_engine(onnx_files / "fp32.onnx", tmp_path / "x.engine", "tensorrt")


def test_an_old_tensorrt_is_refused(onnx_files, tmp_path, tensorrt_11):
    tensorrt_11.__version__ = "10.9.0"
    with pytest.raises(UsageError, match=r"tensorrt 10.9.0 is too old; type: pip install tensorrt"):
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
    with pytest.raises(ExportError, match="without any"):
        check_network(tensorrt_rtx, build.network, {"another": "fp32"})


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
