"""README's fine-tuning example, run as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def example() -> str:
    """The commands under README's heading `Fine-tune`."""
    block = re.search(
        r"^## Fine-tune\n.*?^```bash\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert block is not None, "README has no fine-tuning example"
    return block[1]


@pytest.mark.slow
def test_the_fine_tuning_example_reaches_its_accuracy_in_two_minutes(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    start = _seconds()
    command = ["bash", "-euo", "pipefail", "-c", example()]
    found = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    seconds = _seconds() - start
    tuned = json.loads((tmp_path / "runs" / "tuned" / "summary.json").read_text())
    assert tuned["top1"] > 95  # the same six epochs from a fresh network: 50 %
    assert seconds < 240  # of one processor: two minutes on two


def _seconds() -> float:
    """Processor time of this process and of those that it has waited for."""
    return sum(os.times()[:4])
