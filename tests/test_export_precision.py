"""Half precision and INT8: as accurate as promised on a trained network, in the precision asked for, or an error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from exporting import calibration, lively, traced, unseen

from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.export.graph import GraphOptions, Traced, batches_of, trace
from bossnet_zoo.export.half import ISLAND_OPS, emulated, overflowing, to_half
from bossnet_zoo.export.int8 import kept_in_float, quantize
from bossnet_zoo.export.metadata import Metadata
from bossnet_zoo.export.onnx import open_runtime, write_onnx
from bossnet_zoo.export.precision import arithmetic_types, check_graph, convert
from bossnet_zoo.export.report import ExportError, Parity, Tolerance, require_parity


def files_metadata(path) -> Metadata:
    return Metadata.read({entry.key: entry.value for entry in onnx.load(path).metadata_props}, path)


@pytest.mark.parametrize(("precision", "opset", "agreement"), [("fp16", 20, 0.995), ("bf16", 22, 0.98)])
def test_half_precision_agrees_on_a_trained_network(tmp_path, precision, opset, agreement):
    report = write_onnx(traced(opset), tmp_path / "half.onnx", precision, images=unseen())
    assert report.on_images.batch == 497
    assert report.on_images.top1_agreement >= agreement
    assert report.bytes < 0.6 * 4 * sum(p.numel() for p in traced().deployed.parameters())
    assert files_metadata(report.file).precision == precision


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_int8_agrees_on_a_trained_network(tmp_path, runtime):
    report = write_onnx(
        traced(), tmp_path / "int8.onnx", "int8", runtime=runtime, calibration=calibration(), images=unseen()
    )
    assert report.on_images.top1_agreement >= 0.99
    assert [entry.batch for entry in report.parity] == [1, 2, 8]
    assert max(entry.max_rel for entry in report.parity) < 0.2
    assert files_metadata(report.file).runtime == runtime


def test_int8_is_compared_on_images_of_every_size():
    graph = replace(traced(), options=GraphOptions(sizes=(16, 64)))
    shapes = [batch.shape for batch in batches_of(unseen(3)[0], graph.metadata, graph.options)]
    assert shapes == [(1, 3, 32, 32), (2, 3, 17, 64), (8, 3, 47, 16)]
    pixels = replace(graph.options, pixels=True, sizes=None)
    whole = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    assert np.array_equal(list(batches_of(whole, graph.metadata, pixels))[1], whole)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "opset", "agreement"), [("fp16", 20, 0.995), ("bf16", 22, 0.98)])
def test_half_precision_agrees_on_a_bossnet_m(tmp_path, precision, opset, agreement):
    graph = traced(opset, "test_bossnet_m", epochs=16)
    report = write_onnx(graph, tmp_path / "half.onnx", precision, images=unseen())
    assert report.on_images.top1_agreement >= agreement


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_int8_agrees_on_a_bossnet_m_that_knows_the_digits(tmp_path, runtime):
    """After four epochs it errs on 8 % of them, and INT8 then decides another 2 % otherwise; sixteen are enough."""
    graph = traced(name="test_bossnet_m", epochs=16)
    report = write_onnx(
        graph, tmp_path / "int8.onnx", "int8", runtime=runtime, calibration=calibration(), images=unseen()
    )
    assert report.on_images.top1_agreement >= 0.99


def test_half_precision_keeps_its_ends_and_its_islands_in_float32():
    proto = to_half(traced().proto, "fp16")
    assert {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)} == {1}
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    by_op = {}
    for node in inferred.node:
        by_op.setdefault(node.op_type, set()).add(types[node.output[0]])
    assert by_op["Softmax"] == by_op["BatchNormalization"] == by_op["ReduceMean"] == {onnx.TensorProto.FLOAT}
    assert by_op["Conv"] == by_op["MatMul"] == by_op["Gemm"] == {onnx.TensorProto.FLOAT16}
    assert ISLAND_OPS & by_op.keys()


@pytest.mark.parametrize("opset", [20, 23])
def test_a_softmax_within_attention_is_not_called_an_island(opset):
    notes = convert(traced(opset).proto, "fp16", "any", [], [unseen(8)[0]]).notes
    assert any("softmax inside Attention has the precision that the runtime gives it" in note for note in notes) == (
        opset == 23
    )


def test_neighbouring_islands_share_their_casts():
    proto = to_half(traced().proto, "fp16")
    casts = [(*node.input, node.attribute[0].i) for node in proto.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))


def huge_activations() -> Traced:
    """A network with one convolution that leaves float16's range, and one that brings values back."""
    model = lively("test_bossnet_t", num_classes=10)
    model.layer2[0].bn1.weight.data *= 1e3
    model.layer2[0].bn2.weight.data *= 1e3
    model.layer2[0].conv3.weight.data /= 1e6
    metadata = Metadata.of(model, input_size=(3, 32, 32))
    return trace(model, metadata, GraphOptions())


@pytest.mark.slow
def test_values_beyond_float16_become_islands(tmp_path):
    graph = huge_activations()
    noise = [np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32)]
    nodes = overflowing(graph.proto, noise)
    assert nodes
    assert set(nodes) < {node.name for node in graph.proto.graph.node}
    broken = open_runtime(emulated(to_half(graph.proto, "fp16")).SerializeToString(), exact=True)
    assert not np.isfinite(broken.run(None, {"input": noise[0]})[0]).all()
    report = write_onnx(graph, tmp_path / "half.onnx", "fp16")
    assert max(entry.max_rel for entry in report.parity) < 1e-2
    assert nodes[0] in report.notes[-1]


def test_the_twin_rounds_every_value():
    half = to_half(traced().proto, "fp16")
    twin = emulated(half)
    full = [node.op_type for node in half.graph.node].count("Conv")
    rounded = [node for node in twin.graph.node if node.op_type == "Cast" and node.output[0].endswith("_rounded")]
    assert len(rounded) > full
    images = unseen()[0]
    answers = [
        open_runtime(proto.SerializeToString(), exact=True).run(None, {"input": images})[0]
        for proto in (traced().proto, twin)
    ]
    assert 1e-5 < np.abs(answers[0] - answers[1]).max() / np.abs(answers[0]).max() < 1e-2


def test_int8_leaves_gates_depthwise_convolutions_classifier_and_attention_alone():
    kept = kept_in_float(traced().proto)
    # Four ResConv layers with two convolutions each in their gates; a depth-wise one in each of the six layers.
    assert {why: len(names) for why, names in kept.items()} == {"squeeze-excite": 8, "depth-wise": 6, "classifier": 1}
    proto = quantize(traced().proto, calibration(32), "onnxruntime")
    types, exempt = arithmetic_types(proto), {name for names in kept.values() for name in names}
    kinds = {node.name: node.op_type for node in proto.graph.node}
    assert {types[name] for name in exempt} == {"fp32"}
    assert {types[name] for name in types if kinds[name] == "MatMul"} == {"fp32"}
    assert {types[name] for name in types if kinds[name] == "Conv" and name not in exempt} == {"int8"}


def test_int8_without_images_is_refused(tmp_path):
    with pytest.raises(UsageError, match="calibration images; type --calib"):
        write_onnx(traced(), tmp_path / "int8.onnx", "int8")


@pytest.mark.parametrize(("precision", "opset"), [("bf16", 20), ("int8", 22)])
def test_opsets_that_a_precision_does_not_have_are_refused(tmp_path, precision, opset):
    graph = replace(traced(), options=GraphOptions(opset=opset))
    with pytest.raises(UsageError, match=f"--{precision} needs opset"):
        write_onnx(graph, tmp_path / "x.onnx", precision, calibration=calibration(32))


def test_a_graph_in_another_precision_than_asked_is_an_error():
    with pytest.raises(ExportError, match="fp16 was asked for"):
        check_graph(traced().proto, "fp16")
    with pytest.raises(ExportError, match="int8 was asked for"):
        check_graph(quantize(traced().proto, calibration(32), "tensorrt"), "int8")  # gates and others, not exempted


def test_too_many_differing_images_are_an_error():
    tolerance = Tolerance(None, 0.99)
    require_parity([], Parity(10, 0.1, 0.1, 0.9), tolerance, "x")  # one image may always differ
    with pytest.raises(ExportError, match="another best class than PyTorch on 2 of 10 images") as error:
        require_parity([], Parity(10, 0.1, 0.1, 0.8), tolerance, "x")
    assert error.value.exit_code == 3


def test_an_output_that_is_not_finite_is_an_error():
    with pytest.raises(ExportError):
        require_parity([Parity(1, float("inf"), float("inf"), 0.0)], None, Tolerance(None, 0.0), "x")


def test_no_room_for_the_temporary_files_of_int8_is_an_error(monkeypatch):
    def full(proto, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(BossNetError, match=r"INT8 needs room .*No space left.* set TMPDIR to another folder") as error:
        quantize(traced().proto, calibration(32), "onnxruntime")
    assert error.value.exit_code == 1
