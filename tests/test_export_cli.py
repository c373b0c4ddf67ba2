"""The commands export and benchmark: what they print, write and refuse."""

from __future__ import annotations

import copy
import csv
import importlib.metadata
import io
import json
import sys

import numpy as np
import pytest
import torch
from exporting import traced, trained, unseen
from PIL import Image
from typer.testing import CliRunner

from bossnet_zoo.cli import main
from bossnet_zoo.cli_evaluate import app as evaluate_app
from bossnet_zoo.errors import UsageError
from bossnet_zoo.export import benchmark, pipeline
from bossnet_zoo.export.benchmark_table import COLUMNS, markdown
from bossnet_zoo.export.cli import _name, app
from bossnet_zoo.export.formats import FORMATS
from bossnet_zoo.export.graph import GraphOptions
from bossnet_zoo.export.images import calibration_batches
from bossnet_zoo.export.onnx import export_onnx, read_onnx, write_onnx
from bossnet_zoo.export.pipeline import parse_range
from bossnet_zoo.export.sessions import open_session
from bossnet_zoo.export.side_car import side_car

TINY = ["test_bossnet_t", "--untrained", "--option", "num_classes=10"]


def call(*arguments: str):
    """The result of a command; a user's mistake is raised as it is."""
    result = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def traced_once(monkeypatch):
    """The commands with the trained network in place of the one they would open and trace."""
    requests = []

    def trace(model, metadata, options):
        requests.append((metadata, options))
        return traced(options.opset)

    monkeypatch.setattr(pipeline, "trace", trace)
    monkeypatch.setattr(benchmark, "trace", trace)
    model = copy.deepcopy(trained())
    model.pretrained_cfg |= {"input_size": (3, 32, 32)}
    monkeypatch.setattr("bossnet_zoo.runs.build_model", lambda *_, **__: model)
    return requests


def test_export_prints_files_and_differences(tmp_path):
    result = call("export", *TINY, "--out", str(tmp_path), "--input-size", "32")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'test_bossnet_t.onnx'}  ")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [f"batch {n} of noise" for n in (1, 2, 8)]
    assert f"next: bossnet predict {tmp_path / 'test_bossnet_t.onnx'} IMAGE" in result.stderr


def test_an_untrained_network_is_known_by_its_file(tmp_path):
    call("export", *TINY, "--out", str(tmp_path), "--input-size", "32")
    (note,) = read_onnx(tmp_path / "test_bossnet_t.onnx")[1].notes
    assert "random" in note
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    arguments = ("predict", str(tmp_path / "test_bossnet_t.onnx"), str(tmp_path / "a.png"))
    assert note in " ".join(CliRunner().invoke(evaluate_app, arguments).stderr.split())


def test_the_triton_repository_is_named(tmp_path, traced_once):
    result = call("export", *TINY, "--out", str(tmp_path), "--triton", str(tmp_path / "served"))
    assert str(tmp_path / "served" / "test_bossnet_t") in result.stdout


def test_export_in_int8_writes_one_file_for_each_runtime(tmp_path, traced_once):
    arguments = ("--int8", "--calib", "digits", "--calib-n", "64", "--onnx", "--trt-rtx", "--agreement", "0")
    result = call("export", *TINY, *arguments, "--out", str(tmp_path), "--json")
    names = [entry["file"] for entry in json.loads(result.stdout)["files"]]
    assert names == [f"test_bossnet_t.int8.{end}" for end in ("ort.onnx", "trt.onnx", "rtx.engine")]
    about = json.loads(side_car(tmp_path / names[2]).read_text())
    assert about["onnx"] == "test_bossnet_t.int8.trt.onnx"
    assert about["metadata"]["precision"] == "int8"


def test_options_reach_the_graph_and_the_engine(tmp_path, traced_once):
    arguments = ("--dynamic-size", "--sizes", "32:64:96", "--opset", "20", "--softmax", "--pixels", "--batch", "1:2:4")
    result = call("export", *TINY, *arguments, "--fp16", "--out", str(tmp_path))
    assert "fp16 is compared on noise alone; --calib DATA" in " ".join(result.stderr.split())
    (metadata, options) = traced_once[0]
    assert (options.batch, options.sizes, options.softmax, options.pixels) == (None, (32, 96), True, True)
    assert options.batches == (1, 4)
    assert metadata.class_names[3] == "class 3"


def test_a_file_keeps_to_the_batches_that_were_asked_for(tmp_path):
    """ONNX has no place for a range: it is what is compared, and stands in the metadata and Triton's configuration."""
    arguments = ("--input-size", "32", "--batch", "1:2:4", "--out", str(tmp_path), "--triton", str(tmp_path / "served"))
    lines = call("export", *TINY, *arguments).stdout.splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:4]] == [f"batch {n} of noise" for n in (1, 2, 4)]
    session = open_session(tmp_path / "test_bossnet_t.onnx", "cpu")
    assert session.batches == (1, 4)
    assert session(np.zeros((4, 3, 32, 32), np.float32)).shape == (4, 10)
    with pytest.raises(UsageError, match=r"a batch of 5 was given; the file was exported for 1 to 4 .*--batch that"):
        session(np.zeros((5, 3, 32, 32), np.float32))
    assert "max_batch_size: 4\n" in (tmp_path / "served" / "test_bossnet_t" / "config.pbtxt").read_text()


def test_a_second_export_reuses_the_engine(tmp_path, traced_once):
    arguments = ("export", *TINY, "--trt-rtx", "--out", str(tmp_path), "--json")
    reused = [json.loads(call(*arguments).stdout)["files"][-1]["reused"] for _ in range(2)]
    assert reused == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8"], "--int8 needs calibration images; type --calib"),
        (["--fp16", "--int8"], "--fp16 and --int8 exclude each other"),
        (["--opset", "17"], "opset 17 is out of range; allowed: 18 to 25"),
        (["--bf16", "--opset", "20"], "--bf16 needs opset 22 or later"),
        (["--batch", "8:1"], "--batch '8:1' is no number and no range"),
        (["--batch", "8:4:1"], "batch 8:4:1 does not rise"),
        (["--trt-rtx", "--int8", "--calib", "digits", "--triton", "x"], "Triton loads neither .*; type --onnx too"),
        (["--batch", ""], "--batch '' is no number and no range"),
        (["--batch", "2:4:8", "--triton", "x"], "Triton sends as few images as come, and --batch asks for 2 or more"),
        (["--batch", "0"], "--batch 0 is not possible; type 1 or more"),
        (["--sizes", "32:64:96"], "--sizes is the range of --dynamic-size"),
        (["--timing-cache", "x"], "--timing-cache is for engines of TensorRT; type --trt too"),
        (["--workspace", "64"], "--workspace is for engines"),
        (["--calib", "no-such-folder", "--int8"], "no-such-folder"),
        (["--calib-n", "0"], "--calib-n 0 is not possible"),
        (["--input-size", "0"], "--input-size 0 is not possible"),
        (["--agreement", "99"], "--agreement 99.0 is not possible; .* as in 0.99"),
        (["--trt-rtx", "--workspace", "0"], "--workspace 0 is not possible"),
        (["--trt"], "--trt-rtx"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(tmp_path, traced_once, arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        call("export", *TINY, *arguments, "--out", str(tmp_path))
    assert error.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_exit_code_3_when_the_file_computes_something_else(tmp_path, traced_once, monkeypatch, capsys):
    arguments = ["bossnet", "export", *TINY, "--tolerance", "1e-12", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 3
    assert "error: test_bossnet_t.onnx in ONNX Runtime differs from PyTorch by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_formats_lists_every_format_and_fits_a_terminal():
    lines = call("export", "--formats").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1 : 1 + len(FORMATS)]] == [row.option for row in FORMATS]
    assert max(map(len, lines)) <= 80
    assert json.loads(call("export", "--formats", "--json").stdout)[0]["precisions"] == ["fp32", "fp16"]


def test_the_extras_of_the_formats_exist():
    extras = importlib.metadata.metadata("bossnet-zoo").get_all("Provides-Extra")
    assert {row.extra for row in FORMATS} <= set(extras)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("bossnet_t0", "bossnet_t0"),
        ("hytra:4c-8c-16ca-32ac", "hytra-4c-8c-16ca-32ac"),
        ("8:16:24:32:64", "8-16-24-32-64"),
        ("hf-hub:team/flowers", "flowers"),
        ("no/such/run/best.safetensors", "best"),
    ],
)
def test_names_of_files(model, name):
    assert _name(model) == name


def test_a_folder_is_called_by_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert _name(".") == _name("local-dir:.") == "run"


def test_an_exported_file_is_not_exported_again(tmp_path):
    with pytest.raises(UsageError, match=r"net.onnx is exported already; give the network it came from"):
        call("export", "net.onnx", "--out", str(tmp_path))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("x.pth", r"x.pth does not exist; give a run's folder, or a network's name with --weights FILE"),
        ("runs/x/best.safetensors", "best.safetensors does not exist"),
        ("runs/x", "runs/x does not exist; give a run's folder or a network's name"),
        ("here.pth", "here.pth does not say which network it is of; type its name, and --weights here.pth"),
        ("bosnet_t0", r"unknown model 'bosnet_t0'; did you mean bossnet_t0"),
    ],
)
@pytest.mark.parametrize("command", ["export", "benchmark"])
def test_a_model_that_is_not_there_is_told_for_what_it_is(tmp_path, monkeypatch, command, model, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.pth").write_bytes(b"weights")
    with pytest.raises(UsageError, match=message):
        call(command, model)


def test_an_interrupted_command_says_so_and_ends_with_130(tmp_path, monkeypatch, capfd):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "export_network", interrupted)
    monkeypatch.setattr(sys, "argv", ["bossnet", "export", *TINY, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert capfd.readouterr().err.startswith("interrupted; no file is half-written")


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("onnx", [], "onnx"),
        ("onnxscript", [], "onnx"),
        ("onnxruntime", ["--int8", "--calib", "digits"], "onnx"),
        ("tensorrt_rtx", ["--trt-rtx"], "trt-rtx"),
        ("tensorrt", ["--trt"], "trt"),
    ],
)
def test_a_missing_extra_is_told_before_anything_is_opened(tmp_path, monkeypatch, missing, arguments, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("bossnet_zoo.runs.build_model", None)
    with pytest.raises(UsageError, match=rf"'{missing}', which cannot be imported .*\[{extra}\]"):
        call("export", *TINY, *arguments, "--out", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_ranges():
    assert parse_range("8", "--batch") == (8, 8, 8)
    assert parse_range("1:8:64", "--batch") == (1, 8, 64)


# --- benchmark


def test_benchmark_measures_what_runs_and_says_why_the_rest_does_not(traced_once, monkeypatch):
    monkeypatch.setattr(benchmark, "gpu_name", lambda: None)
    arguments = ("--formats", "all", "--batch", "1,2", "--seconds", "0", "--calib", "digits")
    rows = json.loads(call("benchmark", *TINY, *arguments, "--json").stdout)
    measured = {(row["runtime"], row["precision"], row["batch"]) for row in rows if row["median_ms"]}
    on_cpu = [("torch", "fp32"), ("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8")]
    assert measured == {(*key, batch) for key in on_cpu for batch in (1, 2)}
    others = {(row["runtime"], row["precision"]) for row in rows if not row["median_ms"]}
    assert others | set(on_cpu) == {(name, kind) for name, kinds in benchmark.RUNTIMES.items() for kind in kinds}
    assert {row["note"] for row in rows if not row["median_ms"]} == {
        "needs a GPU, and this machine has none that works"
    }
    for row in rows:
        if row["median_ms"]:
            assert row["p90_ms"] >= row["median_ms"]
            assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["median_ms"])
            assert row["max_rel"] <= (0 if row["runtime"] == "torch" else 0.5)


def test_benchmark_compares_in_the_batches_that_an_engine_takes(tmp_path, monkeypatch):
    """An engine for at most one image is compared on sixteen at once, in parts."""
    candidates = benchmark._Candidates(trained(), tmp_path, 1, 1, None)

    class Engine:
        batches = (1, 1)

        def __call__(self, images):
            assert len(images) == 1
            return candidates.torch(images)

    assert candidates.compare(Engine()) == {"max_rel": pytest.approx(0, abs=1e-5), "top1_agreement": 1.0}


def test_benchmark_without_an_extra_says_so_in_the_rows(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    rows = json.loads(call("benchmark", *TINY, "--batch", "1", "--seconds", "0", "--json").stdout)
    assert [row["median_ms"] is None for row in rows] == [False, True, True, True]
    assert all("bossnet-zoo[onnx]" in row["note"] for row in rows[1:3])
    assert rows[3]["note"] == "int8 needs calibration images: --calib"


def test_peers_are_measured_beside_a_network():
    arguments = ("--formats", "torch", "--peers", "test_bossnet_m,nats_size", "--batch", "1", "--seconds", "0")
    rows = json.loads(call("benchmark", *TINY, *arguments, "--json").stdout)
    assert [row["model"] for row in rows] == ["test_bossnet_t", "test_bossnet_m", "nats_size"]


def test_benchmark_of_a_file_prints_csv_and_markdown(tmp_path):
    report = write_onnx(traced(), tmp_path / "net.onnx", images=unseen())
    arguments = ("benchmark", str(tmp_path / "net.onnx"), "--batch", "3", "--seconds", "0")
    (row,) = csv.DictReader(io.StringIO(call(*arguments, "--csv").stdout))
    assert (row["runtime"], row["precision"], row["batch"]) == ("onnx", "fp32", "3")
    assert row["note"] == "ONNX Runtime, CPU; compared with PyTorch when it was exported"
    assert float(row["max_rel"]) == max(entry.max_rel for entry in (*report.parity, report.on_images))
    assert float(row["top1_agreement"]) == report.on_images.top1_agreement == 1
    side_car(report.file).unlink()
    lines = call(*arguments).stdout.splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "runtime",
        "batch",
        "median",
        "p90",
        "img/s",
        "MB",
    ]
    assert "onnx fp32: ONNX Runtime, CPU" in lines


def test_a_batch_that_a_file_does_not_take_is_a_row_that_says_so(tmp_path):
    export_onnx(Mean(), tmp_path / "two.onnx", input_size=(3, 8, 8), options=GraphOptions(batch=2))
    rows = json.loads(
        call("benchmark", str(tmp_path / "two.onnx"), "--batch", "1,2", "--seconds", "0", "--json").stdout
    )
    assert [row["median_ms"] is None for row in rows] == [True, False]
    assert rows[0]["note"] == "a batch of shape (1, 3, 8, 8) was given; the file takes (2, 3, 8, 8)"


class Mean(torch.nn.Module):
    """A network as small as one can be."""

    num_classes = 3

    def forward(self, x):
        return x.mean((2, 3))


def test_tables_fit_a_terminal_however_large_the_figures():
    row = benchmark.Row("a", "torch-cuda", "bf16", 64, 12345.6, 99999.9, 123456.7, 1234.5, 1.234e-10, 1.0, "why " * 40)
    others = [
        benchmark.Row("a", name, kind, note="no GPU") for name, kinds in benchmark.RUNTIMES.items() for kind in kinds
    ]
    lines = markdown([row, *others]).splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.count("|") for line in lines if line.startswith("|")} == {len(COLUMNS) + 1}
    assert "trt fp32, fp16, bf16, int8" in " ".join(lines)


def test_a_table_for_each_model():
    rows = [benchmark.Row(name, "torch", "fp32", 1, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, "here") for name in "ab"]
    text = markdown(rows)
    assert [line for line in text.splitlines() if line.startswith("#")] == ["### a", "### b"]


def test_unknown_runtimes_and_batches_are_refused(capfd):
    with pytest.raises(UsageError, match="unknown runtime 'onxx'; did you mean onnx"):
        call("benchmark", *TINY, "--formats", "onnx,onxx")
    assert "measuring" not in capfd.readouterr().err
    with pytest.raises(UsageError, match="'1:8' is no list of numbers"):
        call("benchmark", *TINY, "--batch", "1:8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net.onnx", "--formats", "all"], "leave out --formats, or give the network"),
        (["net.onnx", "--peers", "resnet50"], "leave out --peers"),
        (["net.engine", "--untrained"], "leave out --untrained"),
        ([*TINY, "--device", "cuda"], "--device is for exported files"),
    ],
)
def test_options_that_nothing_would_honour_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        call("benchmark", *arguments)


def test_runtimes_are_measured_in_bursts_whose_first_call_does_not_count():
    calls = []
    times = benchmark.measure_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0)
    assert "".join(calls) == "aabb" + "a" * 6 + "b" * 6
    assert {name: len(values) for name, values in times.items()} == {"a": 5, "b": 5}


def test_calibration_images_are_spread_over_the_set_and_prepared(tmp_path):
    metadata = traced().metadata
    train, test = calibration_batches("digits", metadata, 40)
    assert [len(batch) for batch in train] == [16, 16, 8]
    assert all(batch.shape[1:] == (3, 32, 32) and batch.dtype == np.float32 for batch in (*train, *test))
    fixed, _ = calibration_batches("digits", metadata, 40, batch=12)
    assert [len(batch) for batch in fixed] == [12, 12, 12]
