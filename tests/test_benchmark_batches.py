"""bossnet benchmark: at which batches it measures, and how it ends where it could measure nothing."""

from __future__ import annotations

import json

import pytest
from test_export_cli import TINY, Mean, call

from bossnet_zoo.errors import BossNetError
from bossnet_zoo.export import benchmark
from bossnet_zoo.export.graph import GraphOptions
from bossnet_zoo.export.onnx import export_onnx


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        (GraphOptions(batch=4), [4]),
        (GraphOptions(batches=(2, 4)), [2, 4]),
        (GraphOptions(batches=(1, 64)), [1, 8]),
        (GraphOptions(), [1, 8]),
    ],
)
def test_a_file_is_measured_at_batches_that_it_takes(tmp_path, options, batches):
    export_onnx(Mean(), tmp_path / "net.onnx", input_size=(3, 8, 8), options=options)
    rows = json.loads(call("benchmark", str(tmp_path / "net.onnx"), "--seconds", "0", "--json").stdout)
    assert [(row["batch"], row["median_ms"] is not None) for row in rows] == [(batch, True) for batch in batches]


def test_where_nothing_was_measured_the_command_fails(tmp_path):
    export_onnx(Mean(), tmp_path / "two.onnx", input_size=(3, 8, 8), options=GraphOptions(batch=2))
    with pytest.raises(BossNetError, match=r"nothing of .*two.onnx was measured: a batch of shape .* takes") as error:
        call("benchmark", str(tmp_path / "two.onnx"), "--batch", "1,3", "--seconds", "0")
    assert error.value.exit_code == 1


def test_runtimes_that_all_need_a_gpu_measure_nothing_without_one(monkeypatch):
    monkeypatch.setattr(benchmark, "gpu_name", lambda: None)
    with pytest.raises(BossNetError, match="nothing of test_bossnet_t was measured: needs a GPU"):
        call("benchmark", *TINY, "--formats", "torch-cuda", "--batch", "1", "--seconds", "0")
