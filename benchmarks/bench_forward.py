"""BossNet-T0's forward pass in eager PyTorch, on a CPU: `python benchmarks/bench_forward.py [--threads 2] [--json]`.

In one run, images in turn: T0 as it is, in channels-last; the same weights with attention written out (two matrix
products and a softmax) and in PyTorch's default layout; and timm's resnet50 in channels-last. Times are the fastest of
the repeats. Bars: at most 1.0x the time of the written-out form, at most 1.15x resnet50's time per multiply-add.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from bossnet_zoo.models.hytra_layers import Attention
from bossnet_zoo.models.table import measure

NAIVE_BAR, RESNET_BAR = 1.0, 1.15


class WrittenOutAttention(nn.Module):
    """`Attention` as one writes it by hand: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.to_qkv, self.num_heads, self.scale = attention.to_qkv, attention.num_heads, attention.scale

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        q, k, v = self.to_qkv(x).reshape(B, 3, self.num_heads, C // self.num_heads, H * W).transpose(-2, -1).unbind(1)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        return (weights @ v).transpose(-2, -1).reshape(B, C, H, W)


def written_out(model: nn.Module) -> nn.Module:
    """A copy of a HyTra network whose attention is written out."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Attention):
                setattr(module, name, WrittenOutAttention(child))
    return model


@torch.inference_mode()
def fastest(calls: Iterable[Callable[[], Any]], repeats: int) -> list[float]:
    """Seconds of each call, taken in turn, so that whatever else the machine does disturbs all of them."""
    calls = list(calls)
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):  # the first turn warms up
        for call, taken in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
    return [min(taken[1:]) for taken in times]


def run(threads: int, batch: int, resolution: int, repeats: int) -> dict[str, Any]:
    """Seconds per batch, the two ratios, and the largest difference between the two forms' logits."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ours, resnet = timm.create_model("bossnet_t0").eval(), timm.create_model("resnet50").eval()
    for module in ours.modules():  # a fresh network's layers put out nothing: their last BN starts at zero
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.4)
    naive, images = written_out(ours), torch.randn(batch, 3, resolution, resolution)
    ours, resnet = (model.to(memory_format=torch.channels_last) for model in (ours, resnet))
    channels_last = images.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        difference = (ours(channels_last) - naive(images)).abs().max() / naive(images).abs().max()
    calls = (lambda: ours(channels_last), lambda: naive(images), lambda: resnet(channels_last))
    ours_time, naive_time, resnet_time = fastest(calls, repeats)
    madds, resnet_madds = measure(ours, resolution).madds, measure(resnet, resolution).madds
    to_naive, to_resnet = ours_time / naive_time, (ours_time / madds) / (resnet_time / resnet_madds)
    return {
        "threads": threads,
        "batch": batch,
        "resolution": resolution,
        "seconds": {"bossnet_t0": ours_time, "written out": naive_time, "resnet50": resnet_time},
        "madds": {"bossnet_t0": madds, "resnet50": resnet_madds},
        "largest_relative_difference": difference.item(),
        "time_to_written_out": to_naive,
        "time_per_madd_to_resnet50": to_resnet,
        "bars": {"written out": NAIVE_BAR, "resnet50": RESNET_BAR},
        "passed": to_naive <= NAIVE_BAR and to_resnet <= RESNET_BAR and difference.item() < 1e-3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    result = run(arguments.threads, arguments.batch, arguments.resolution, arguments.repeats)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for name, seconds in result["seconds"].items():
            print(f"{1e3 * seconds:8.1f} ms  {name}, {result['batch']} images")
        print(f"{result['time_to_written_out']:.2f}x the time of the written-out form (bar: {NAIVE_BAR})")
        print(f"{result['time_per_madd_to_resnet50']:.2f}x resnet50's time per multiply-add (bar: {RESNET_BAR})")
        print("passed" if result["passed"] else "FAILED")
    raise SystemExit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
