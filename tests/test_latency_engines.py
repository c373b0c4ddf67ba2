"""The engines that time networks: their ONNX graphs, two of them in small, and what is said where one is missing."""

from __future__ import annotations

import platform
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from small_spaces import SMALL_HYTRA, SMALL_NATS
from typer.testing import CliRunner

from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.export.onnx import open_runtime
from bossnet_zoo.search.cli_latency import app
from bossnet_zoo.search.latency import read_latency
from bossnet_zoo.search.latency_onnx import build_plan, export_parts, join, read_profile
from bossnet_zoo.search.latency_parts import cut, fill
from bossnet_zoo.search.latency_runtimes import device_name, make_engine
from bossnet_zoo.spaces import HyTraSpace

# --- ONNX graphs


@pytest.fixture(scope="module")
def attention():
    """A network with both operations in it, its parts as ONNX graphs, and these joined."""
    network = cut(SMALL_HYTRA, SMALL_HYTRA.parse("8c-16ca-32a"), 32, batch=2)
    graphs = export_parts({part.operation: part for part in network.parts})
    return network, graphs, join([graphs[operation] for operation in network.operations])


def optimised(graph: bytes, folder) -> Counter[str]:
    """Kinds of nodes that ONNX Runtime makes of a graph."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.slow
def test_joined_parts_are_what_the_exporter_makes_of_the_whole_network(attention, tmp_path):
    network, _, joined = attention
    model = fill(cut(SMALL_HYTRA, network.arch, 32, batch=2).model)
    program = torch.export.export(model, (torch.rand(network.shape),))
    whole = torch.onnx.export(program, opset_version=20, verbose=False).model_proto
    parts = optimised(joined.SerializeToString(), tmp_path)
    assert parts == optimised(whole.SerializeToString(), tmp_path)
    assert parts.total() > 20


def test_joined_parts_compute_what_they_compute_one_after_the_other(attention):
    network, graphs, joined = attention
    x = np.random.default_rng(0).random(network.shape, dtype=np.float32)
    answer = answer_of(joined, x)
    for operation in network.operations:
        x = answer_of(graphs[operation], x)
    assert answer.shape == (2, 4)
    np.testing.assert_allclose(answer, x, rtol=1e-4, atol=1e-5)


def answer_of(graph, x):
    session = open_runtime(graph.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def event(name: str, microseconds: int, kind: str = "Node") -> dict:
    return {"cat": kind, "name": name, "dur": microseconds}


def test_nodes_belong_to_the_part_that_their_name_tells():
    run = [
        event("0/conv_nchwc_kernel_time", 10),
        event("ReorderOutput_token_1_kernel_time", 2),  # of the part before
        event("ReorderInput_token_2_kernel_time", 3),  # of the part that follows
        event("1/silu/QuickGeluFusion/_kernel_time", 20),
        event("1/silu/QuickGeluFusion/_fence_before", 500),
        event("SequentialExecutor::Execute", 900, "Session"),
        event("model_run", 1000, "Session"),
    ]
    other = [event("0/conv_nchwc_kernel_time", 30), event("1/silu_kernel_time", 40), event("model_run", 80, "Session")]
    begin = [event("session_initialization", 7, "Session")]
    rows = read_profile([*begin, *run, *other], 2)
    assert rows == [pytest.approx([12e-6, 23e-6]), pytest.approx([30e-6, 40e-6])]
    with pytest.raises(BossNetError, match="does not tell which layer"):
        read_profile([*run, *other], 3)


def test_tensorrt_builds_engines_of_parts(attention):
    rtx = pytest.importorskip("tensorrt_rtx")
    _, graphs, _ = attention
    graph = next(iter(graphs.values()))
    assert len(bytes(build_plan(rtx, graph))) > 10_000
    broken = type(graph)()
    broken.CopyFrom(graph)
    broken.graph.node[0].op_type = "Konv"
    with pytest.raises(BossNetError, match=r"built no engine: .*Konv"):
        build_plan(rtx, broken)


# --- real engines, in small


def run(*arguments: str) -> str:
    return CliRunner().invoke(app, ["build", *arguments], catch_exceptions=False).stdout


@pytest.mark.parametrize("runtime", ["torch", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_a_table_is_measured_checked_and_written(tmp_path, runtime):
    out = tmp_path / "latency.json"
    options = ["--option=block_layers=[1,1]", "--option=base_width=8", "--resolution=32", "--batch=2"]
    sizes = ["--check=4", "--rounds=2", "--threads=1"]
    printed = run("hytra", *options, *sizes, f"--runtime={runtime}", f"--out={out}")
    assert printed.startswith("4 networks of ")
    assert "mean relative error" in printed
    table = read_latency(out)
    assert table.space == HyTraSpace(block_layers=(1, 1), base_width=8)
    assert (table.runtime, table.resolution, table.batch, table.threads) == (runtime, 32, 2, 1)
    assert table.versions["torch"] == torch.__version__
    assert table.device == device_name(torch.device("cpu"))
    assert all(operation.ms > 0 and operation.timings >= 2 for operation in table.operations.values())
    assert table.scale > 0
    assert len(table.check["networks"]) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["latency.json"]
    with pytest.raises(UsageError, match=r"latency\.json exists; type another --out, or --overwrite"):
        run("hytra", f"--out={out}")


def test_onnx_runtime_tells_the_time_of_every_layer(tmp_path):
    """The one network of a space of one width: seven operations."""
    out = tmp_path / "latency.json"
    printed = run(
        "nats", "--option=widths=[8]", "--resolution=16", "--rounds=2", "--runtime=onnxruntime", f"--out={out}"
    )
    assert printed == "not checked on whole networks\n"
    table = read_latency(out)
    assert len(table.operations) == 7
    assert all(operation.ms > 0 and operation.timings == 20 for operation in table.operations.values())
    assert set(table.versions) == {"bossnet-zoo", "torch", "onnxruntime"}


def test_weights_are_given_back_after_a_group():
    network = cut(SMALL_NATS, SMALL_NATS.sample(random.Random(0)), 8, batch=1)
    prepared = make_engine("torch").prepare(network, in_parts=True)
    assert prepared.whole() > 0
    prepared.parts()
    assert [len(row) for row in prepared.close()] == [7]
    assert all(parameter.is_meta for parameter in network.model.parameters())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is no glibc")
def test_freed_memory_is_kept():
    """64 MB in blocks of 1 MB, freed in an order in which glibc would give most of it back to the system."""
    program = """
import torch
from bossnet_zoo.search.latency_runtimes import make_engine

make_engine("torch")
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
tensors = [torch.ones(2**18) for _ in range(64)]
full = resident()
del tensors
print(full - resident())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 2**25


# --- what is not there


def test_an_unknown_runtime_names_the_known_ones():
    with pytest.raises(UsageError, match="unknown runtime 'onnx'; did you mean onnxruntime"):
        make_engine("onnx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_missing_gpu_is_said(runtime):
    with pytest.raises(UsageError, match="device 'cuda' is not available here; type --device auto or --device cpu"):
        make_engine(runtime, "cuda")


@pytest.mark.parametrize(("runtime", "extra"), [("tensorrt", "trt"), ("onnxruntime", "onnx")])
def test_a_missing_package_is_said_with_what_installs_it(monkeypatch, runtime, extra):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(UsageError, match=rf'needs the package {runtime!r}.*pip install "bossnet-zoo\[{extra}\]"'):
        make_engine(runtime, "cuda" if runtime == "tensorrt" else "cpu")


def test_other_devices_and_no_threads_are_refused():
    with pytest.raises(UsageError, match="--threads 0 is not possible; type 1 or more"):
        make_engine("torch", threads=0)
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        make_engine("torch", "gpu")
