"""What `bossnet export` says was compared with PyTorch is what was: ONNX files, in bf16 as a twin, and no engines."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from bossnet_zoo.export.cli import app
from bossnet_zoo.export.report import TWIN_NOTE
from bossnet_zoo.export.side_car import side_car

TINY = ("test_bossnet_t", "--untrained", "--option", "num_classes=10", "--input-size", "32")


def told(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["export", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_bf16_file_is_said_to_be_compared_as_its_twin(tmp_path):
    assert f"  {TWIN_NOTE}\n" in told(*TINY, "--bf16", "--out", str(tmp_path))
    assert TWIN_NOTE in json.loads(side_car(tmp_path / "test_bossnet_t.bf16.onnx").read_text())["notes"]
    assert "twin" not in told(*TINY, "--fp16", "--out", str(tmp_path))


def test_an_engine_is_said_to_be_built_from_what_was_compared_and_not_run(tmp_path):
    assert (
        "  built from test_bossnet_t.onnx, which was compared with PyTorch; not run here, the precision of its network "
        "was read back\n"
    ) in told(*TINY, "--trt-rtx", "--out", str(tmp_path))


def test_the_help_says_that_engines_are_not_run():
    text = " ".join(told("--help").split())
    assert "An engine is built from the compared file and its precision is read back; it is not run" in text
