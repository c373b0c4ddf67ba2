"""ONNX files: names, dimensions, description, and what happens where they would be wrong."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from bossnet_zoo.errors import UsageError
from bossnet_zoo.export.metadata import Metadata, hash_weights
from bossnet_zoo.export.onnx import GraphOptions, export_onnx
from bossnet_zoo.export.report import ExportError, Tolerance


def lively(name: str, **options) -> nn.Module:
    """A network whose every branch counts: residual branches are initialised to zero, which would hide a fault."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


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
    assert metadata.versions["torch"] == importlib.metadata.version("torch")


def test_file_holds_no_source_paths(exported):
    assert b"stack_trace" not in exported[1].read_bytes()
    assert b".py" not in exported[1].read_bytes()


def test_a_difference_beyond_tolerance_leaves_no_file(tmp_path):
    model = lively("test_bossnet_t", num_classes=4)
    with pytest.raises(ExportError, match="differs from PyTorch") as error:
        export_onnx(model, tmp_path / "tiny.onnx", tolerance=Tolerance(1e-12, 1.0))
    assert error.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [9, 17, 26])
def test_opset_out_of_range_is_refused(opset):
    with pytest.raises(UsageError, match=f"opset {opset} is out of range; allowed: 18 to 25"):
        GraphOptions(opset=opset)
