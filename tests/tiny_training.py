"""A training run so small that it can be repeated, killed and compared."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from bossnet_zoo.recipes import BOSSNET_T
from bossnet_zoo.runs import WEIGHTS
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.train import TrainResult, train

ARCH, OPTIONS = "4c-8c-16a", {"base_width": 4}
CPU = Runtime(torch.device("cpu"))
# Everything random in BossNet-T stays on: repeated augmentation, RandAugment, erasing, Mixup, CutMix, drop-path.
TINY = replace(BOSSNET_T, epochs=2, warmup_epochs=1, global_batch=8, image_size=32, lr=0.05, ema_decay=0.9)
STEPS = 3  # of an epoch
FROZEN = replace(TINY, epochs=1, lr=0.0, min_lr=0.0, warmup_epochs=0)  # weights stay what they were


def write_pictures(root: Path) -> Path:
    """Two classes of 12 pictures each to train on, and 4 each to test on."""
    for part, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                colour = (40 + 150 * label, 10 * number, 99)
                Image.new("RGB", (36, 36), colour).save(root / part / name / f"{number}.png")
    return root


def fit(data: Path, out: Path, recipe=TINY, runtime=CPU, **options) -> TrainResult:
    options = {"tensorboard": False, "model_options": OPTIONS, **options}
    return train(ARCH, str(data), recipe, out, runtime, **options)


def assert_same_weights(first: Path, second: Path) -> None:
    """The weights of two runs, of every kind, are the same to the bit."""
    for name in WEIGHTS.values():
        one, other = load_file(first / name), load_file(second / name)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), f"{name}: {key}"


class Killed(BaseException):
    """Stands for the end of the process: everything in memory is lost."""


SCRIPT = """
import os, signal, sys
from pathlib import Path
from tiny_training import fit
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.training_run import State

data, out, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
saves, save = 0, State.save

def save_and_die(self, path):
    global saves
    save(self, path)
    saves += 1
    if saves == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

State.save = save_and_die
with Runtime.open("cpu") as runtime:
    fit(data, out, runtime=runtime, save_every=2, device_batch=4 if runtime.world_size > 1 else None)
"""


def start(data: Path, out: Path, kill_at: int = 0, **environment: str) -> subprocess.Popen:
    """The run in a process of its own, which sends itself SIGKILL after the state was saved `kill_at` times."""
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": str(torch.get_num_threads()), **environment}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(data), str(out), str(kill_at)], env=environment)
