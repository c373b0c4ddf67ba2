"""Optional packages: imported where they are needed; a missing one is answered with the extra that installs it."""

from __future__ import annotations

import importlib
from types import ModuleType

from bossnet_zoo.errors import UsageError


def need(module: str, extra: str) -> ModuleType:
    """The imported `module`, which `extra` of this package installs.

    Raises:
        UsageError: it is not installed, or one of its libraries cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"this needs the package {module!r}, which cannot be imported ({error}); "
            f'type: pip install "bossnet-zoo[{extra}]"'
        ) from None


def need_onnx() -> None:
    """Import everything that writing an ONNX file takes, before time is spent on the network. Raises `UsageError`."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package, "onnx")
