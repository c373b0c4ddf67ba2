"""Refusals that name what was typed, in plain words, with exit code 2 where the request cannot be carried out."""

from __future__ import annotations

import json

import pytest
from exporting import trained
from PIL import Image
from test_export_cli import TINY, call
from typer.testing import CliRunner

from bossnet_zoo.cli_evaluate import app as evaluate_app
from bossnet_zoo.errors import UsageError
from bossnet_zoo.export import sessions
from bossnet_zoo.export.cli import _name
from bossnet_zoo.export.metadata import Metadata
from bossnet_zoo.export.pipeline import parse_range
from bossnet_zoo.export.sessions import EngineSession, check_providers
from bossnet_zoo.image_files import FileSource, load_image, why_unreadable


def run(*arguments: object):
    result = CliRunner().invoke(evaluate_app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--batch", "0", "--batch 0 is not possible; type 1 or more"),
        ("--batch", "0:4:8", "--batch 0:4:8 is not possible; type 1 or more"),
        ("--sizes", "128:64:32", "--sizes 128:64:32 does not rise; write smallest:usual:largest, as in 32:64:128"),
        ("--sizes", "64", "--sizes 64 is one size; write a range as in 160:224:288, or --input-size 64"),
        ("--batch", "\u00b2", "is no number and no range"),
    ],
)
def test_a_range_that_cannot_be_is_named_as_it_was_typed(option, text, message):
    with pytest.raises(UsageError, match=message):
        parse_range(text, option)


def test_a_large_image_is_read_without_a_warning_and_a_huge_one_is_told_in_words(tmp_path, monkeypatch):
    Image.new("L", (150, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert load_image(str(tmp_path / "a.png")).size == (150, 100)  # warnings are errors here
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        FileSource([str(tmp_path / "a.png")], None, None).read(0)
    error = Image.DecompressionBombError("Image size (240000000 pixels) exceeds limit of 178956970 pixels, could be")
    assert why_unreadable(error) == "it has 240 million pixels, and at most 179 million are read"


def test_a_file_that_is_no_image_is_told_without_an_object_of_python(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(OSError, match="cannot identify") as error:
        FileSource([str(tmp_path / "a.png")], None, None).read(0)
    assert why_unreadable(error.value) == "it is of no known kind, or damaged"
    assert why_unreadable(OSError("broken <_io.BytesIO object>")) == "broken"
    assert why_unreadable(PermissionError(13, "Permission denied", "a.png")) == "Permission denied"


def test_predict_lists_unreadable_images_in_its_json(whole_run, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    Image.new("RGB", (40, 40)).save(tmp_path / "b.png")
    first, second = json.loads(run("predict", whole_run, tmp_path, "--device", "cpu", "--json").stdout)
    assert first["error"].startswith("cannot be read as an image")
    assert "classes" not in first
    assert "error" not in second
    lines = run("predict", whole_run, tmp_path, "--device", "cpu").stdout.splitlines()
    assert lines[0] == str(tmp_path / "b.png")


def test_labels_that_a_network_does_not_have_are_refused_before_any_work(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr("bossnet_zoo.evaluate.measure_accuracy", None)
    with pytest.raises(UsageError, match=r"labels up to 9, and the network tells \d classes apart"):
        run("eval", whole_run, "--data", "digits", "--out", tmp_path, "--device", "cpu")


def test_a_folder_without_images_is_a_wrong_request(whole_run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty has no images"):
        run("eval", whole_run, "--data", tmp_path / "empty", "--out", tmp_path, "--device", "cpu")


def test_a_provider_that_is_not_there_is_a_wrong_request():
    with pytest.raises(UsageError, match="CUDAExecutionProvider was asked for"):
        check_providers(["CPUExecutionProvider"], ["CUDAExecutionProvider"], ["CPUExecutionProvider"])


def test_a_file_of_a_run_is_exported_under_the_name_of_the_run(whole_run):
    assert _name(str(whole_run)) == _name(str(whole_run / "best.safetensors")) == "whole"
    assert _name(str(whole_run / "last_ema.safetensors")) == "whole-last_ema"


@pytest.mark.parametrize(
    ("gpu", "where"), [(False, 'on a machine with a GPU and "bossnet-zoo[onnx-gpu]", '), (True, "")]
)
def test_what_comes_next_after_bf16_works_where_it_is_said(tmp_path, monkeypatch, gpu, where):
    monkeypatch.setattr(sessions, "takes_gpu", lambda: gpu)
    result = call("export", *TINY, "--bf16", "--input-size", "32", "--out", str(tmp_path))
    assert f"next: {where}bossnet predict {tmp_path / 'test_bossnet_t.bf16.onnx'}" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("precision", "remedy"), [("bf16", "export the network with --fp16"), ("fp16", "use the .onnx")]
)
def test_an_engine_without_a_gpu_names_a_file_that_a_cpu_takes(tmp_path, monkeypatch, precision, remedy):
    values = vars(Metadata.of(trained())) | {"precision": precision}
    about = {"metadata": values, "profile": [[1, 3, 32, 32]], "builder": "tensorrt_rtx"}
    monkeypatch.setattr(sessions, "read_side_car", lambda _: about)
    monkeypatch.setattr(sessions, "gpu_name", lambda: None)
    with pytest.raises(UsageError, match=rf"runs on a GPU only; this machine has none that works; {remedy}"):
        EngineSession(tmp_path / "net.engine")
