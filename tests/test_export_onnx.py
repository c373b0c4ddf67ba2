"""ONNX files: names, dimensions, description, and what happens where they would be wrong."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from exporting import lively, traced, trained
from torch import nn

from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.export.metadata import Metadata, hash_weights
from bossnet_zoo.export.onnx import GraphOptions, export_onnx, write_onnx
from bossnet_zoo.export.report import ExportError, Tolerance


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = lively("test_bossnet_t", num_classes=4)
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    report = export_onnx(model, path, input_size=(3, 64, 64), class_names=("a", "b", "c", "d"))
    return model, path, report


def test_parity_is_measured_at_three_batches_and_stored(exported):
    _, path, report = exported
    assert [entry.batch for entry in report.parity] == [1, 2, 8]
    assert all(entry.max_rel <= 1e-4 and entry.top1_agreement == 1.0 for entry in report.parity)
    assert path.with_name("tiny.onnx.json").exists()


def test_names_and_dimensions_are_fixed(exported):
    _, path, _ = exported
    session = onnxruntime.InferenceSession(path)
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("input", ["batch", 3, 64, 64])]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("logits", ["batch", 4])]


def test_any_batch_gives_pytorchs_answer(exported):
    model, path, _ = exported
    images = np.random.default_rng(1).standard_normal((7, 3, 64, 64)).astype(np.float32)
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"input": images})
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_file_describes_itself(exported):
    model, path, _ = exported
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    metadata = Metadata.read(entries, path)
    assert (metadata.model, metadata.architecture) == ("test_bossnet_t", "4c-8c-16ca-32ac")
    assert (metadata.input_size, metadata.class_names) == ((3, 64, 64), ("a", "b", "c", "d"))
    assert (metadata.crop_pct, metadata.interpolation) == (0.875, "bicubic")
    assert metadata.weights_sha256 == hash_weights(model)
    for package in ("torch", "timm", "onnx", "onnxruntime", "bossnet-zoo"):
        assert metadata.versions[package] == importlib.metadata.version(package)


def test_file_holds_no_source_paths(exported):
    assert b"stack_trace" not in exported[1].read_bytes()
    assert b".py" not in exported[1].read_bytes()


def test_a_difference_beyond_tolerance_leaves_no_file(tmp_path):
    with pytest.raises(
        ExportError, match=r"differs from PyTorch by .*; allowed: 1.0e-12; nothing was written"
    ) as error:
        write_onnx(traced(), tmp_path / "tiny.onnx", tolerance=Tolerance(1e-12, 1.0))
    assert error.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_file(tmp_path):
    (tmp_path / "tiny.onnx").write_text("old")
    with pytest.raises(ExportError):
        write_onnx(traced(), tmp_path / "tiny.onnx", tolerance=Tolerance(1e-12, 1.0))
    assert (tmp_path / "tiny.onnx").read_text() == "old"


def test_the_same_network_gives_the_same_bytes(tmp_path):
    hashes = {write_onnx(traced(), tmp_path / f"{number}.onnx").onnx_sha256 for number in range(2)}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("batches", "checked"),
    [(None, (1, 2, 8)), ((1, 64), (1, 2, 8)), ((4, 16), (4, 5, 8)), ((16, 64), (16, 17, 18)), ((1, 2), (1, 2))],
)
def test_what_is_compared_lies_in_the_range_of_batches(batches, checked):
    assert GraphOptions(batches=batches).checked_batches == checked


def test_a_range_of_batches_that_falls_is_refused():
    with pytest.raises(UsageError, match=r"batches \(8, 1\) are not possible"):
        GraphOptions(batches=(8, 1))


@pytest.mark.parametrize("opset", [9, 17, 26])
def test_opset_out_of_range_is_refused(opset):
    with pytest.raises(UsageError, match=f"opset {opset} is out of range; allowed: 18 to 25"):
        GraphOptions(opset=opset)


class FixesItsBatch(nn.Module):
    """A network whose code depends on the number of images."""

    num_classes = 4

    def forward(self, x):
        return x.reshape(2, -1)[:, :4] if x.shape[0] == 2 else x.flatten(1)[:, :4]


def test_a_network_that_fixes_its_batch_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"FixesItsBatch cannot be exported with a dynamic batch: .*--batch N"):
        export_onnx(FixesItsBatch(), tmp_path / "x.onnx", input_size=(3, 8, 8))
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch_is_compared_at_that_batch(tmp_path):
    report = export_onnx(FixesItsBatch(), tmp_path / "x.onnx", input_size=(3, 8, 8), options=GraphOptions(batch=2))
    assert [entry.batch for entry in report.parity] == [2]
    assert onnxruntime.InferenceSession(report.file).get_inputs()[0].shape == [2, 3, 8, 8]


class Mean(nn.Module):
    """A network as small as one can be."""

    num_classes = 3

    def forward(self, x):
        return x.mean((2, 3))


def test_pixels_and_softmax_in_the_graph(tmp_path):
    options = GraphOptions(pixels=True, softmax=True)
    export_onnx(Mean(), tmp_path / "x.onnx", input_size=(3, 8, 8), options=options)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    assert session.get_outputs()[0].name == "probabilities"
    (given,) = session.run(None, {"input": pixels})
    means = (pixels / 255 - timm.data.IMAGENET_DEFAULT_MEAN) / timm.data.IMAGENET_DEFAULT_STD
    expected = torch.from_numpy(means).mean((1, 2)).softmax(1).numpy()
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_dynamic_sizes_take_odd_sizes(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), Mean())
    export_onnx(model, tmp_path / "x.onnx", input_size=(3, 32, 32), options=GraphOptions(sizes=(16, 64)))
    images = np.random.default_rng(0).standard_normal((2, 3, 33, 47), dtype=np.float32)
    (given,) = onnxruntime.InferenceSession(tmp_path / "x.onnx").run(None, {"input": images})
    np.testing.assert_allclose(given, model(torch.from_numpy(images)).detach().numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("name", timm.list_models(module=["hytra", "mbconv", "nats"]))
def test_every_registered_model_exports(tmp_path, name, weights):
    """Random weights at the network's own size; weights trained on the digits at theirs, beyond which they explode."""
    if weights == "random":
        report = export_onnx(lively(name), tmp_path / "x.onnx")
    else:
        model = trained.__wrapped__(name)  # without keeping it
        report = export_onnx(model, tmp_path / "x.onnx", input_size=(3, 32, 32))
    assert [entry.batch for entry in report.parity] == [1, 2, 8]
    assert max(entry.max_rel for entry in report.parity) <= 1e-4


def test_wrong_number_of_class_names_is_refused():
    with pytest.raises(UsageError, match="2 class names were given for a network with 4 outputs"):
        Metadata.of(lively("test_bossnet_t", num_classes=4), class_names=("a", "b"))


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r'pip install "bossnet-zoo\[onnx\]"'):
        export_onnx(Mean(), tmp_path / "x.onnx", input_size=(3, 8, 8))


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(proto, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(BossNetError, match=r"could not be written: .*No space left") as error:
        write_onnx(traced(), tmp_path / "x.onnx")
    assert error.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []
