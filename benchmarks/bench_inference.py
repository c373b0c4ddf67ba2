"""ONNX Runtime against PyTorch, and INT8 against float32: `python benchmarks/bench_inference.py [--json]`.

Bars, for bossnet_t0 at 224 pixels on two CPU threads, geometric mean of batch 1 and 8: ONNX Runtime at least 1.6 times
as fast as eager PyTorch, INT8 at least 1.3 times as fast as float32, both in ONNX Runtime. All three take turns in
bursts, so that a busy moment of the machine meets each of them, and the ratio is that of the medians. Weights are fresh
random ones: speed does not depend on them. What INT8 gains does depend on the processor: with VNNI (or AMX) one
instruction does four multiply-adds of 8 bits for each of 32, without it three instructions are needed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bossnet_zoo.export.benchmark import measure_in_turn
from bossnet_zoo.export.graph import GraphOptions, trace
from bossnet_zoo.export.metadata import Metadata
from bossnet_zoo.export.onnx import write_onnx
from bossnet_zoo.export.report import Tolerance
from bossnet_zoo.export.sessions import Session, TorchSession, open_session
from bossnet_zoo.runs import build_model
from bossnet_zoo.runtime import Runtime, processor_name

BATCHES = (1, 8)
BARS = {"ONNX Runtime / PyTorch": ("eager", "fp32", 1.6), "INT8 / fp32 in ONNX Runtime": ("fp32", "int8", 1.3)}


def open_sessions(name: str, threads: int, folder: Path) -> dict[str, Session]:
    """The network in eager PyTorch, and in ONNX Runtime in float32 and INT8."""
    model = build_model(name).eval()
    metadata = Metadata.of(model)
    traced = trace(model, metadata, GraphOptions())
    noise = np.random.default_rng(0).standard_normal((4, *metadata.input_size), dtype=np.float32)
    write_onnx(traced, folder / "fp32.onnx")
    # The difference of INT8 on noise, with random weights, says nothing about a trained network.
    write_onnx(traced, folder / "int8.onnx", "int8", calibration=[noise], tolerance=Tolerance(None, 0.0))
    exported = {kind: open_session(folder / f"{kind}.onnx", "cpu", threads=threads) for kind in ("fp32", "int8")}
    return {"eager": TorchSession(model, Runtime.open("cpu", "float32")), **exported}


def run(name: str, threads: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of every kind and batch, and the ratios that have bars."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        sessions = open_sessions(name, threads, Path(folder))
        size = sessions["eager"].metadata.input_size
        milliseconds: dict[str, dict[int, float]] = {kind: {} for kind in sessions}
        for batch in BATCHES:
            images = np.random.default_rng(batch).standard_normal((batch, *size), dtype=np.float32)
            calls = {kind: (lambda s=session, x=images: s(x)) for kind, session in sessions.items()}
            for kind, times in measure_in_turn(calls, seconds).items():
                milliseconds[kind][batch] = 1e3 * statistics.median(times)
    ratios = {}
    for what, (slow, fast, bar) in BARS.items():
        by_batch = {batch: milliseconds[slow][batch] / milliseconds[fast][batch] for batch in BATCHES}
        mean = math.exp(statistics.mean(math.log(ratio) for ratio in by_batch.values()))
        ratios[what] = {"by_batch": by_batch, "geometric_mean": mean, "bar": bar, "met": mean >= bar}
    machine = {"processor": processor_name(), "vnni": has_vnni(), "threads": threads}
    return {"model": name, "machine": machine, "median_ms": milliseconds, "ratios": ratios}


def has_vnni() -> bool:
    """Whether the processor multiplies and adds 8-bit numbers in one instruction."""
    file = Path("/proc/cpuinfo")
    about = file.read_text() if file.exists() else ""
    return any(flag in about for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="bossnet_t0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring, for each kind and batch size")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = run(arguments.model, arguments.threads, arguments.seconds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    machine = result["machine"]
    print(f"{result['model']}, {machine['processor']} (VNNI: {machine['vnni']}), {machine['threads']} threads")
    for kind, by_batch in result["median_ms"].items():
        print(f"{kind:6}", "  ".join(f"batch {batch}: {value:8.1f} ms" for batch, value in by_batch.items()))
    for what, ratio in result["ratios"].items():
        verdict = "met" if ratio["met"] else "missed"
        by_batch = ", ".join(f"{value:.2f} at batch {batch}" for batch, value in ratio["by_batch"].items())
        print(f"{what}: {ratio['geometric_mean']:.2f}x ({by_batch}); bar {ratio['bar']}: {verdict}")


if __name__ == "__main__":
    main()
