"""What a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from bossnet_zoo.runtime import gpu_name, processor_name

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "onnxruntime")


def describe() -> dict[str, str | int | None]:
    """Processor, cores that this process may use, threads of PyTorch, and the GPU if there is one."""
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": gpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that do the work; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
