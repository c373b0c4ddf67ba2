"""One interface for whatever a network was exported to; what was asked for is what runs."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import tensorrt_rtx
import torch
from exporting import calibration, digits, traced, trained, unseen

from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.export import sessions
from bossnet_zoo.export.graph import GraphOptions, trace
from bossnet_zoo.export.metadata import Metadata
from bossnet_zoo.export.onnx import export_onnx, write_onnx
from bossnet_zoo.export.sessions import (
    EngineSession,
    OnnxSession,
    TorchSession,
    check_input,
    check_providers,
    open_session,
    predictor,
)
from bossnet_zoo.export.side_car import check_side_car, read_side_car, side_car, write_side_car
from bossnet_zoo.export.tensorrt import build_engine
from bossnet_zoo.runtime import Runtime


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The trained network as ONNX, in fp32 and in INT8 for either runtime, and as engine."""
    folder = tmp_path_factory.mktemp("exported")
    write_onnx(traced(), folder / "net.onnx")
    for runtime in ("onnxruntime", "tensorrt"):
        write_onnx(traced(), folder / f"{runtime}.int8.onnx", "int8", runtime=runtime, calibration=calibration(32))
    build_engine(folder / "net.onnx", folder / "net.engine")
    return folder


def test_pytorch_and_onnx_runtime_answer_alike(files):
    images = unseen()[0]
    torch_session = TorchSession(trained(), Runtime.open("cpu", "float32"))
    onnx_session = open_session(files / "net.onnx", "cpu", threads=1)
    np.testing.assert_allclose(onnx_session(images), torch_session(images), atol=1e-3)
    assert torch_session.runtime == "PyTorch, cpu, float32, 1 process"
    assert onnx_session.runtime == "ONNX Runtime, CPU"


def test_a_session_knows_how_to_prepare_images(files):
    session = open_session(files / "net.onnx")
    assert session.metadata.data_config["input_size"] == (3, 32, 32)
    assert session.metadata.class_names == tuple("0123456789")


def test_cuda_asked_and_not_given_is_an_error(files):
    with pytest.raises(BossNetError, match=r"CUDAExecutionProvider was asked for .* instead: .*onnx-gpu"):
        open_session(files / "net.onnx", "cuda")
    with pytest.raises(BossNetError, match="TensorrtExecutionProvider was asked for"):
        open_session(files / "net.onnx", "tensorrt")


def test_a_provider_that_fell_back_in_silence_is_an_error():
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    check_providers([cuda, cpu], [cuda, cpu], [cuda, cpu])
    with pytest.raises(BossNetError, match="run on CPUExecutionProvider instead: its libraries cannot be loaded"):
        check_providers([cpu], [cuda, cpu], [cuda, cpu])


def test_an_unknown_device_is_refused(files):
    with pytest.raises(UsageError, match="unknown device 'cdua'; did you mean cuda"):
        open_session(files / "net.onnx", "cdua")


def test_the_tensorrt_file_is_refused_by_onnx_runtime(files):
    with pytest.raises(UsageError, match=r"quantised for TensorRT, .* take the file NAME.int8.ort.onnx"):
        open_session(files / "tensorrt.int8.onnx", "cpu")
    assert OnnxSession(files / "onnxruntime.int8.onnx", "cpu")(unseen()[0]).shape == (71, 10)


@pytest.mark.parametrize("images", [np.zeros((1, 3, 32, 32)), np.zeros((3, 32, 32), np.float32)])
def test_wrong_types_and_shapes_are_refused(files, images):
    with pytest.raises(UsageError, match=r"test_bossnet_t takes float32 \(B, C, H, W\)"):
        open_session(files / "net.onnx")(images)


def test_a_wrong_size_is_refused_in_one_line(files):
    with pytest.raises(
        UsageError, match=r"^a batch of shape \(1, 3, 64, 64\) was given; the file takes \(batch, 3, 32, 32\)$"
    ):
        open_session(files / "net.onnx")(np.zeros((1, 3, 64, 64), np.float32))


def test_a_file_takes_any_batch_where_none_was_asked_for(files):
    session = open_session(files / "net.onnx", "cpu")
    assert session(np.zeros((65, 3, 32, 32), np.float32)).shape == (65, 10)


def test_sizes_beyond_those_that_were_compared_are_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.num_classes = 3
    options = GraphOptions(sizes=(16, 64), pixels=True)
    report = export_onnx(model, tmp_path / "x.onnx", input_size=(3, 32, 32), options=options)
    session = open_session(report.file, "cpu")
    assert session(np.zeros((2, 16, 64, 3), np.uint8)).shape == (2, 3)
    for shape in ((15, 32), (32, 65)):
        with pytest.raises(
            UsageError, match=rf"images of {shape[0]} x {shape[1]} pixels .*sides of 16 to 64; .*--sizes"
        ):
            session(np.zeros((2, *shape, 3), np.uint8))


def test_bf16_is_refused_on_a_cpu(tmp_path):
    write_onnx(traced(22), tmp_path / "x.bf16.onnx", "bf16")
    with pytest.raises(UsageError, match=r"x.bf16.onnx is in bf16, which ONNX Runtime does not compute on a CPU"):
        open_session(tmp_path / "x.bf16.onnx", "cpu")


def test_a_network_in_pytorch_needs_no_optional_package(monkeypatch):
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", version)
    assert TorchSession(trained(), Runtime.open("cpu", "float32")).metadata.versions == {}


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "a bit of the weights", "a bit of the metadata"])
def test_a_damaged_file_is_an_error(files, tmp_path, damage):
    content = bytearray((files / "net.onnx").read_bytes())
    if damage.startswith("a bit"):
        place = content.index(b"0.485") if damage.endswith("metadata") else len(content) // 2
        content[place] ^= 1
    content = {"empty": b"", "garbage": b"garbage" * 100, "cut": content[:5000]}.get(damage, content)
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(BossNetError, match=r"x.onnx is damaged") as error:
        open_session(tmp_path / "x.onnx")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 1


def test_a_file_of_another_program_is_an_error(tmp_path):
    model = torch.nn.Flatten().eval()
    program = torch.onnx.export(model, (torch.zeros(1, 3, 2, 2),), verbose=False)
    program.save(tmp_path / "x.onnx", external_data=False)
    with pytest.raises(BossNetError, match="carries no metadata of bossnet-zoo"):
        open_session(tmp_path / "x.onnx")


def test_missing_and_other_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"does not exist; make it with: bossnet export"):
        open_session(tmp_path / "x.onnx")
    (tmp_path / "x.txt").touch()
    with pytest.raises(UsageError, match=r"files ending in .onnx or .engine"):
        open_session(tmp_path / "x.txt")


def test_the_record_of_a_comparison_is_that_of_its_file(files, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes((files / "net.onnx").read_bytes())
    open_session(path)  # it describes itself, and runs without a record
    record = json.loads(side_car(files / "net.onnx").read_text())
    side_car(path).write_text(json.dumps(record))
    open_session(path)
    side_car(path).write_text(json.dumps(record | {"parity": []}))
    with pytest.raises(BossNetError, match=r"x.onnx.json is not as it was written: .*export x.onnx again, or remove"):
        open_session(path)
    side_car(path).write_bytes(side_car(files / "onnxruntime.int8.onnx").read_bytes())
    with pytest.raises(BossNetError, match=r"x.onnx.json tells of another file than .*x.onnx; export x.onnx again"):
        open_session(path)


# --- engines, as far as no GPU is needed


def test_an_engine_without_a_gpu_is_refused(files, monkeypatch):
    monkeypatch.setattr(sessions, "gpu_name", lambda: None)
    with pytest.raises(UsageError, match=r"is an engine, and runs on a GPU only; .*; use the .onnx"):
        open_session(files / "net.engine")


def test_an_engine_that_does_not_open_gives_tensorrts_reason(files, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("TensorRT for RTX opens this engine on a GPU")
    monkeypatch.setattr(sessions, "gpu_name", lambda: "NVIDIA RTX 4090, 8.9")
    monkeypatch.setattr(sessions.Runtime, "open", lambda *_: Runtime(torch.device("cpu")))
    with pytest.raises(BossNetError, match=r"tensorrt_rtx .* cannot open .*net.engine: .*build it again here"):
        EngineSession(files / "net.engine")


def test_an_engine_and_its_side_car_belong_together(files, tmp_path):
    engine = tmp_path / "net.engine"
    engine.write_bytes((files / "net.engine").read_bytes()[:5000])
    with pytest.raises(BossNetError, match=r"net.engine.json is missing"):
        open_session(engine)
    side_car(engine).write_bytes(side_car(files / "net.engine").read_bytes())
    with pytest.raises(BossNetError, match="is damaged, or not the engine that"):
        open_session(engine)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null", '{"sha256": ""}'])
def test_a_damaged_side_car_is_an_error(files, tmp_path, content):
    (tmp_path / "net.engine").write_bytes((files / "net.engine").read_bytes())
    side_car(tmp_path / "net.engine").write_text(content)
    with pytest.raises(BossNetError, match=r"net.engine.json .*(not valid JSON|not as it was written)"):
        open_session(tmp_path / "net.engine")


@pytest.mark.parametrize("change", [{"profile": [[1, 3, 32, 32]] * 3}, {"gpu": "NVIDIA L4, 8.9"}, {"version": "1.0"}])
def test_an_edited_side_car_is_an_error(files, tmp_path, change):
    (tmp_path / "net.engine").write_bytes((files / "net.engine").read_bytes())
    about = json.loads(side_car(files / "net.engine").read_text())
    side_car(tmp_path / "net.engine").write_text(json.dumps(about | change))
    with pytest.raises(BossNetError, match=r"net.engine.json is not as it was written"):
        open_session(tmp_path / "net.engine")


def test_a_side_car_of_another_format_is_an_error(files, tmp_path):
    (tmp_path / "net.engine").write_bytes((files / "net.engine").read_bytes())
    write_side_car(tmp_path / "net.engine", read_side_car(files / "net.engine") | {"format": 99})
    with pytest.raises(BossNetError, match=r"written by another version of bossnet-zoo; export the engine again"):
        open_session(tmp_path / "net.engine")


def test_engines_of_another_version_or_gpu_are_refused(files):
    path, version = files / "net.engine", tensorrt_rtx.__version__
    about = json.loads(side_car(path).read_text())
    check_side_car(about, path, version, "NVIDIA L4, 8.9")
    with pytest.raises(BossNetError, match=r"and tensorrt_rtx 99 is installed here"):
        check_side_car(about, path, "99", "NVIDIA L4, 8.9")
    with pytest.raises(BossNetError, match=r"built for NVIDIA H100, 9.0, and this machine has NVIDIA L4, 8.9"):
        check_side_car({**about, "gpu": "NVIDIA H100, 9.0"}, path, version, "NVIDIA L4, 8.9")
    options = {**about["options"], "version_compatible": True, "hardware_compatible": True}
    check_side_car({**about, "gpu": "NVIDIA H100, 9.0", "options": options}, path, "99", "NVIDIA L4, 8.9")


def test_a_batch_outside_the_profile_is_refused(files):
    about = json.loads(side_car(files / "net.engine").read_text())
    metadata = Metadata.from_json(about["metadata"])
    check_input(np.zeros((64, 3, 32, 32), np.float32), metadata, about["profile"])
    with pytest.raises(UsageError, match=r"outside the engine's profile, \(1, 3, 32, 32\) to \(64, 3, 32, 32\)"):
        check_input(np.zeros((65, 3, 32, 32), np.float32), metadata, about["profile"])


# --- for bossnet eval and bossnet predict


def test_predictor_restores_pixels_and_logits(tmp_path):
    class Means(torch.nn.Module):
        num_classes = 3

        def forward(self, x):
            return x.mean((2, 3))

    metadata = Metadata.of(Means(), input_size=(3, 8, 8))
    graph = trace(Means(), metadata, GraphOptions(pixels=True, softmax=True))
    write_onnx(graph, tmp_path / "x.onnx")
    pixels = torch.randint(0, 256, (4, 3, 8, 8))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (metadata.mean, metadata.std))
    normalised = (pixels / 255 - mean) / std
    logits = predictor(open_session(tmp_path / "x.onnx"))(normalised)
    torch.testing.assert_close(logits.softmax(1), normalised.mean((2, 3)).softmax(1), atol=1e-5, rtol=0)


class Recorded:
    """A session that takes two or three images, and notes how many it was given."""

    metadata = Metadata("x", "x", (3, 8, 8), (0.5,) * 3, (0.25,) * 3, 1.0, "center", "bicubic")
    runtime, batches = "a test", (2, 3)

    def __init__(self, answer=lambda images: images.mean((2, 3))):
        self.answer, self.given = answer, []

    def __call__(self, images):
        self.given.append(len(images))
        return self.answer(images)


def test_any_number_of_images_is_cut_and_filled_up_to_what_the_file_takes():
    images = torch.arange(7.0)[:, None, None, None].expand(7, 3, 8, 8)
    for count, given in ((7, [3, 3, 2]), (1, [2]), (3, [3]), (4, [3, 2])):
        session = Recorded()
        assert predictor(session)(images[:count])[:, 0].tolist() == list(range(count))
        assert session.given == given


def test_a_file_with_a_fixed_batch_tells_it(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.num_classes = 3
    export_onnx(model, tmp_path / "x.onnx", input_size=(3, 8, 8), options=GraphOptions(batch=4))
    session = open_session(tmp_path / "x.onnx")
    assert session.batches == (4, 4)
    images = torch.randn(9, 3, 8, 8)
    torch.testing.assert_close(predictor(session)(images), images.mean((2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_an_error(value):
    session = Recorded(lambda images: np.full((len(images), 3), value, np.float32))
    with pytest.raises(BossNetError, match=r"x \(a test\) answers with values that are not finite"):
        predictor(session)(torch.zeros(2, 3, 8, 8))


def test_accuracy_is_that_of_pytorch(files):
    images, labels = (part[1300:] for part in digits())
    predict = predictor(open_session(files / "net.onnx"))
    with torch.inference_mode():
        expected = (trained()(images).argmax(1) == labels).sum()
    assert (predict(images).argmax(1) == labels).sum() == expected
