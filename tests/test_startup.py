"""Starting is light: what is heavy is imported by the commands that need it, when they run.

Times are not asserted, since they depend on what else the machine does. `import bossnet_zoo` and `bossnet --help` are
fast because nothing in `HEAVY` comes with them.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "timm", "numpy", "scipy", "onnx", "onnxruntime", "matplotlib", "sklearn", "PIL", "huggingface_hub")


def heavy_after(program: str) -> list[str]:
    """Which of `HEAVY` a fresh Python has imported after a program."""
    report = f"import json, sys; print('HEAVY', json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout.rpartition("HEAVY ")[2])


def test_importing_the_package_imports_nothing_heavy():
    assert heavy_after("import bossnet_zoo, bossnet_zoo.cli, bossnet_zoo.errors, bossnet_zoo.spaces") == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["search", "--help"], ["export", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    program = f"""
import contextlib, sys
sys.argv = ["bossnet", *{arguments!r}]
from bossnet_zoo.cli import main
with contextlib.suppress(SystemExit):
    main()"""
    assert heavy_after(program) == []
