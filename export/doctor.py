"""`bossnet doctor`: what this machine has, and whether a tiny network really runs on it; to be pasted into a report.

The checks do what users do, on a network of a few thousand parameters: forward and backward in PyTorch on every device,
an ONNX file compared with PyTorch in every provider of ONNX Runtime that this project asks for, an engine from every
TensorRT builder. Nothing is downloaded, and no path, token or user name is told.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import textwrap
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import timm
import torch

from bossnet_zoo import __version__, console
from bossnet_zoo.errors import BossNetError
from bossnet_zoo.runtime import Runtime, gpu_name, processor_name

from .metadata import Metadata
from .trt_common import INSTALL

REQUIRED = (
    "torch",
    "torchvision",
    "timm",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "matplotlib",
    "jinja2",
    "rich",
    "typer",
)
OPTIONAL = {  # package: what is missing without it
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "onnxruntime-gpu": "onnx-gpu",
    "tensorrt": "trt",
    "tensorrt-rtx": "trt-rtx",
    "datasets": "data",
    "nats_bench": "data",
    "tensorboard": "tensorboard",
}
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")
NEEDED_SPACE = 2 * 2**30  # bytes: a search of HyTra at full width keeps two states of one block and the finished ones


def examine() -> dict[str, Any]:
    """Everything that `bossnet doctor` says.

    Returns:
        `versions`, `optional` (a version, or None), `machine`, and `checks`: name, whether it went well (None where
        this machine lacks what it takes) and what there is to say.
    """
    return {
        "bossnet-zoo": __version__,
        "versions": {package: _version(package) for package in REQUIRED},
        "optional": {package: _version(package) for package in OPTIONAL},
        "machine": _machine(),
        "checks": _checks(),
    }


def as_text(about: dict[str, Any]) -> str:
    """What `examine` found, in lines of 80 columns: a heading, and behind it what belongs to it."""
    machine, marks = about["machine"], {True: "ok", None: "-", False: "FAIL"}
    missing = [name for name, number in about["optional"].items() if number is None]
    rows = [
        ("bossnet-zoo", f"{about['bossnet-zoo']}, Python {machine['python']}"),
        ("system", machine["system"]),
        ("processor", f"{machine['processor']}, {machine['cores']} cores, PyTorch takes {machine['threads']}"),
        *(("GPU", f"{gpu}, CUDA {machine['cuda']}") for gpu in machine["gpus"]),
        ("packages", _listed(about["versions"])),
        ("optional", _listed(about["optional"]) or "none"),
        *([("missing", ", ".join(missing))] if missing else []),
    ]
    lines = [line for name, text in rows for line in _wrapped(f"{name:<13}", text)]
    width = max(len(check["name"]) for check in about["checks"])
    lines.append("")
    for check in about["checks"]:
        lines += _wrapped(f"{marks[check['ok']]:<5} {check['name']:<{width}}  ", check["says"])
    return "\n".join(lines)


def _listed(packages: dict[str, str | None]) -> str:
    return ", ".join(f"{name}=={number}" for name, number in packages.items() if number)


def _wrapped(heading: str, text: str) -> list[str]:
    """Text in lines of 80 columns, behind a heading."""
    indent = " " * len(heading)
    return textwrap.wrap(text, 80, initial_indent=heading, subsequent_indent=indent, break_on_hyphens=False)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    free = shutil.disk_usage(Path.cwd()).free
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else [],
        "cuda": torch.version.cuda,
        "free_disk_gib": round(free / 2**30, 1),
    }


def _processor() -> str:
    """The processor's name, and which it has of the instructions that decide about the speed of INT8 and bf16."""
    cpuinfo, flags = Path("/proc/cpuinfo"), set[str]()
    for line in cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else ():
        if line.startswith(("flags", "Features")):
            flags.update(line.partition(":")[2].split())
    found = ", ".join(name for name in INSTRUCTIONS if name in flags)
    return f"{processor_name()} ({found})" if found else processor_name()


def _gpu(index: int) -> str:
    about = torch.cuda.get_device_properties(index)
    return f"{about.name}, {about.major}.{about.minor}, {about.total_memory / 2**30:.0f} GiB"


# --- checks


class NotHereError(Exception):
    """This machine lacks what a check takes; nothing is wrong."""


def _checks() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tiny.onnx"
        checks: dict[str, Callable[[], str]] = {
            "free disk space": _check_disk,
            "PyTorch, CPU": lambda: _check_torch("cpu"),
            "PyTorch, GPU": _check_gpu,
            "ONNX export": lambda: _check_export(file),
            "ONNX Runtime, CPU": lambda: _check_session(file, "cpu"),
            "ONNX Runtime, CUDA": lambda: _check_session(file, "cuda"),
            "TensorRT": lambda: _check_builder(file, "tensorrt"),
            "TensorRT for RTX": lambda: _check_builder(file, "tensorrt_rtx"),
            "Hub token": _check_token,
        }
        return [_outcome(name, check) for name, check in checks.items()]


def _outcome(name: str, check: Callable[[], str]) -> dict[str, Any]:
    try:
        with console.working_on(f"trying: {name}"):
            return {"name": name, "ok": True, "says": check()}
    except NotHereError as missing:
        return {"name": name, "ok": None, "says": str(missing)}
    except BossNetError as error:
        return {"name": name, "ok": False, "says": str(error)}
    except Exception as error:  # whatever goes wrong, here it is the answer
        return {"name": name, "ok": False, "says": f"{type(error).__name__}: {error}".splitlines()[0]}


def _check_disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < NEEDED_SPACE:
        raise BossNetError(f"{free / 2**30:.1f} GiB are free here; a search at full width wants {NEEDED_SPACE >> 30}")
    return f"{free / 2**30:.1f} GiB here"


def _tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_bossnet_t", num_classes=10).eval()


def _check_gpu() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        raise NotHereError("no GPU that PyTorch can use")
    return _check_torch(accelerator.type)


def _check_torch(device: str) -> str:
    with Runtime.open(device) as runtime:
        model = _tiny().to(runtime.device).train()
        size = Metadata.of(model).input_size
        with runtime.autocast():
            loss = model(torch.randn(2, *size, device=runtime.device)).float().square().mean()
        loss.backward()
        if not torch.isfinite(loss):
            raise BossNetError("a tiny network's loss is not finite")
        return f"trained a step ({runtime.description})"


def _check_export(file: Path) -> str:
    if None in (_version("onnx"), _version("onnxscript"), _runtime_version()):
        raise NotHereError('not installed: pip install "bossnet-zoo[onnx]"')
    from .onnx import export_onnx

    report = export_onnx(_tiny(), file)
    return f"differs from PyTorch by {max(parity.max_abs for parity in report.parity):.1e} at most"


def _runtime_version() -> str | None:
    return _version("onnxruntime") or _version("onnxruntime-gpu")


def _check_session(file: Path, device: str) -> str:
    if not file.exists():
        raise NotHereError("no ONNX file to run")
    if device == "cuda":
        if gpu_name() is None:
            raise NotHereError("no GPU")
        if _version("onnxruntime-gpu") is None:
            raise NotHereError('not installed: pip install "bossnet-zoo[onnx-gpu]"')
    from .sessions import open_session

    session = open_session(file, device)
    images = torch.randn(2, *session.metadata.input_size).numpy()
    session(images)
    return f"ran two images ({session.runtime})"


def _check_builder(file: Path, package: str) -> str:
    if _version(package.replace("_", "-")) is None:
        raise NotHereError(f"not installed: {INSTALL[package]}")
    if package == "tensorrt" and gpu_name() is None:
        raise NotHereError("no GPU")
    if not file.exists():
        raise NotHereError("no ONNX file to build from")
    from .tensorrt import build_engine

    report = build_engine(file, file.with_suffix(".engine"), package)
    return f"built an engine of {report.bytes / 1e6:.1f} MB for {report.gpu or 'RTX GPUs'} ({report.builder})"


def _check_token() -> str:
    from huggingface_hub import get_token

    if get_token() is None:
        raise NotHereError("none; publishing needs one: hf auth login")
    return "there is one"
