"""Triton's model repository: configurations that Triton's schema accepts, files under the names it looks for."""

from __future__ import annotations

import pytest
from exporting import calibration, traced
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from test_export_cli import Mean

from bossnet_zoo.errors import UsageError
from bossnet_zoo.export.graph import GraphOptions
from bossnet_zoo.export.onnx import export_onnx, write_onnx
from bossnet_zoo.export.side_car import read_side_car, write_side_car
from bossnet_zoo.export.tensorrt import build_engine
from bossnet_zoo.export.triton import write_triton


def triton_config(text: str):
    """A config.pbtxt, read by protobuf against the part of Triton's schema (model_config.proto) that is used here."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    data_type = file.enum_type.add(name="DataType")
    for number, name in ((0, "TYPE_INVALID"), (2, "TYPE_UINT8"), (11, "TYPE_FP32")):
        data_type.value.add(name=name, number=number)

    def message(name: str, *fields: tuple) -> None:
        target = file.message_type.add(name=name)
        for number, field, kind, repeated, type_name in fields:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            target.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)

    tensor = (
        (1, "name", kinds.TYPE_STRING, False, None),
        (2, "data_type", kinds.TYPE_ENUM, False, ".inference.DataType"),
        (3, "dims", kinds.TYPE_INT64, True, None),
    )
    message("ModelInput", *tensor)
    message("ModelOutput", *tensor, (4, "label_filename", kinds.TYPE_STRING, False, None))
    message("ModelDynamicBatching")
    message(
        "ModelConfig",
        (1, "name", kinds.TYPE_STRING, False, None),
        (17, "backend", kinds.TYPE_STRING, False, None),
        (8, "default_model_filename", kinds.TYPE_STRING, False, None),
        (4, "max_batch_size", kinds.TYPE_INT32, False, None),
        (5, "input", kinds.TYPE_MESSAGE, True, ".inference.ModelInput"),
        (6, "output", kinds.TYPE_MESSAGE, True, ".inference.ModelOutput"),
        (11, "dynamic_batching", kinds.TYPE_MESSAGE, False, ".inference.ModelDynamicBatching"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()
    return text_format.Parse(text, config)


def test_triton_repository_of_an_onnx_file(tmp_path):
    write_onnx(traced(), tmp_path / "net.onnx")
    folder = write_triton(tmp_path / "triton", "digits", tmp_path / "net.onnx")
    config = triton_config((folder / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("digits", "onnxruntime", 64)
    assert (config.input[0].name, list(config.input[0].dims), config.input[0].data_type) == ("input", [3, 32, 32], 11)
    assert (config.output[0].name, list(config.output[0].dims)) == ("logits", [10])
    assert (folder / config.output[0].label_filename).read_text().split() == list("0123456789")
    served = folder / "1" / config.default_model_filename
    assert served.read_bytes() == (tmp_path / "net.onnx").read_bytes()


def test_triton_gets_engines_of_tensorrt_alone(tmp_path):
    write_onnx(traced(), tmp_path / "net.onnx")
    build_engine(tmp_path / "net.onnx", tmp_path / "net.engine")
    with pytest.raises(UsageError, match="Triton loads engines of --trt"):
        write_triton(tmp_path / "triton", "digits", tmp_path / "net.engine")
    write_side_car(tmp_path / "net.engine", {**read_side_car(tmp_path / "net.engine"), "builder": "tensorrt"})
    folder = write_triton(tmp_path / "triton", "digits", tmp_path / "net.engine")
    config = triton_config((folder / "config.pbtxt").read_text())
    assert (config.backend, config.max_batch_size, list(config.output[0].dims)) == ("tensorrt", 64, [10])
    assert (folder / "1" / config.default_model_filename).suffix == ".plan"


def test_triton_refuses_the_file_that_is_meant_for_a_builder(tmp_path):
    write_onnx(traced(), tmp_path / "net.onnx", "int8", runtime="tensorrt", calibration=calibration(32))
    with pytest.raises(UsageError, match="is for TensorRT to build an engine from"):
        write_triton(tmp_path / "triton", "digits", tmp_path / "net.onnx")


def test_a_fixed_batch_is_part_of_tritons_shape(tmp_path):
    export_onnx(Mean(), tmp_path / "fixed.onnx", input_size=(3, 8, 8), options=GraphOptions(batch=2))
    folder = write_triton(tmp_path / "triton", "means", tmp_path / "fixed.onnx")
    config = triton_config((folder / "config.pbtxt").read_text())
    assert config.max_batch_size == 0
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([2, 3, 8, 8], [2, 3])
    assert not config.HasField("dynamic_batching")
