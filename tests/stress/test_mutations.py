"""Damaged files: checkpoints, weights, ratings, ONNX files, side-cars, configurations; each is refused in a sentence.

A command on a damaged file either ends in one sentence and changes nothing, or does what it does on the whole file:
because it goes back to an older state, or because what is damaged is not needed. What no check can tell from a user's
own edit, a figure in a JSON file for instance, is only asked not to end in a traceback.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import mutations
import pytest
import warm
from killing import content, differences
from warm import SEARCH

from bossnet_zoo.checkpoint import read_jsonl

pytestmark = pytest.mark.stress
BINARY = ("truncate", "zero", "flip", "swap")  # checked by a checksum or by their form
TEXT = ("truncate", "zero", "swap", "edit")
EACH = 2  # mutations of each kind, for every file and command

# What is damaged, and the command that meets it; {0} is the damaged copy of the folder.
CASES = (
    ("searching", "config.json", "search --resume {0} --device cpu"),
    ("searching", "split.json", "search --resume {0} --device cpu"),
    ("searching", "ratings.json", "search --resume {0} --device cpu"),
    ("searching", "metrics.jsonl", "search --resume {0} --device cpu"),
    ("searching", "state-block2*.pt", "search --resume {0} --device cpu"),
    ("searching", "state-block2*.sha256", "search --resume {0} --device cpu"),
    ("searching", "blocks/block1*.safetensors", "search --resume {0} --device cpu"),
    ("searched", "config.json", "report {0}"),
    ("searched", "config.json", "extract {0} --out {0}/extracted"),
    ("searched", "ratings.json", "report {0}"),
    ("searched", "ratings.json", "solve --ratings {0}/ratings.json"),
    ("searched", "ratings.json", "rank --ratings {0}/ratings.json --truth {0}/truth.json"),
    ("searched", "truth.json", "rank --ratings {0}/ratings.json --truth {0}/truth.json"),
    ("searched", "truth.json", "solve --ratings {0}/ratings.json --lambda {0}/truth.json"),
    ("searched", "ranking.json", "report {0}"),
    ("searched", "metrics.jsonl", "report {0}"),
    ("searched", "architectures.json", "report {0}"),
    ("searched", "architectures.json", "extract {0} --out {0}/extracted"),
    ("searched", "blocks/block1*.safetensors", "extract {0} --out {0}/extracted"),
    ("training", "config.json", "train --resume {0} --device cpu"),
    ("training", "state.pt", "train --resume {0} --device cpu"),
    ("training", "state.pt.sha256", "train --resume {0} --device cpu"),
    ("training", "metrics.jsonl", "train --resume {0} --device cpu"),
    ("training", "last.safetensors", "train --resume {0} --device cpu"),
    ("training", "best.safetensors", "train --resume {0} --device cpu"),
    ("trained", "last.safetensors", "train --resume {0} --device cpu"),
    ("trained", "config.json", "predict {0} {image} --device cpu"),
    ("trained", "config.json", "eval {0} --device cpu"),
    ("trained", "config.json", "publish {0} --repo team/x --dry-run --out {0}/hub"),
    ("trained", "summary.json", "publish {0} --repo team/x --dry-run --out {0}/hub"),
    ("trained", "best.safetensors", "predict {0} {image} --device cpu"),
    ("trained", "best.safetensors", "publish {0} --repo team/x --dry-run --out {0}/hub"),
    ("trained", "last.safetensors", "predict {0} {image} --weights model --device cpu"),
    ("trained", "last_ema.safetensors", "predict {0} {image} --weights ema --device cpu"),
    ("exported", "net.onnx", "predict {0}/net.onnx {image}"),
    ("exported", "net.onnx.json", "predict {0}/net.onnx {image}"),
    ("published", "config.json", "predict local-dir:{0} {image} --device cpu"),
    ("published", "model.safetensors", "predict local-dir:{0} {image} --device cpu"),
    ("measuring", "config.json", "truth --resume {0} --device cpu"),
    ("measuring", "truth.json", "truth --resume {0} --device cpu"),
    ("measuring", "networks/*/summary.json", "truth --resume {0} --device cpu"),
    ("measuring", "networks/*/config.json", "truth --resume {0} --device cpu"),
)


@pytest.fixture(scope="session")
def folders(tmp_path_factory, images, labelled, trained, searched) -> dict[str, Path]:
    """By name, folders as the commands leave them, finished or killed on the way."""
    root = tmp_path_factory.mktemp("folders")
    search = f"{SEARCH} --data {images} --out"
    train = f"train test_bossnet_t --data {labelled} --recipe bossnet-t --smoke --epochs 3 --global-batch 16 --out"
    truth = (
        f"truth --space nats --space-option widths=[8,16] --data {labelled} --sample 3 --recipe bossnet-m --smoke "
        "--epochs 1 --global-batch 16 --image-size 8 --device cpu --out"
    )
    _leave(f"{search} {root}/searching", root, lambda run: any(run.glob("state-block2*epoch0001.pt")))
    shutil.copytree(searched, root / "searched")
    train += f" {root}/training --image-size 32 --save-every 1 --device cpu"
    _leave(train, root, lambda run: len(read_jsonl(run / "metrics.jsonl")) == 2)
    _leave(f"{truth} {root}/measuring", root, lambda study: (study / "truth.json").exists())
    _leave(f"export {trained} --onnx --out {root}/exported", root)
    for name, end in (("run.onnx", "onnx"), ("run.onnx.json", "onnx.json")):
        (root / "exported" / name).rename(root / "exported" / f"net.{end}")
    _leave(f"publish {trained} --repo team/x --dry-run --out {root}/published", root)
    shutil.copytree(trained, root / "trained")
    return {folder.name: folder for folder in root.iterdir() if folder.is_dir()}


def _leave(line: str, scratch: Path, killed_when: Callable[[Path], bool] | None = None) -> None:
    """Run a command, to its end or until its folder is as wanted."""
    command = warm.Command(line.split(), scratch)
    folder = Path(line.rpartition("--out ")[2].split()[0])
    while killed_when and command.is_running() and not killed_when(folder):
        time.sleep(0.001)
    if killed_when:
        command.kill()
    outcome = command.wait()
    assert outcome.code == (-9 if killed_when else 0), outcome


@pytest.mark.parametrize(("name", "pattern", "line"), CASES, ids=lambda value: str(value).partition(" ")[0])
def test_a_damaged_file_ends_in_a_sentence(name, pattern, line, folders, images, tmp_path, tally):
    def command(folder: Path) -> list[str]:
        return line.format(folder, image=images / "000.png").split()

    whole = shutil.copytree(folders[name], tmp_path / "whole")
    expected = warm.run(command(whole), tmp_path)
    assert expected.code == 0, expected
    result = content(whole)
    text = pattern.endswith((".json", ".jsonl"))
    kinds = [kind for kind in (TEXT if text else BINARY) if not (kind == "edit" and pattern.endswith("jsonl"))]
    with tally("damaged files, met by the command that reads them") as counts:
        for kind in kinds:
            for turn in range(EACH):
                folder = shutil.copytree(folders[name], tmp_path / f"{kind}{turn}")
                damage(folder, pattern, kind, random.Random(f"{name} {pattern} {line} {kind} {turn}"))
                before = mutations.snapshot(folder)
                outcome = warm.run(command(folder), tmp_path)
                if outcome.code == 0:
                    wrong = (
                        "" if _without(outcome.out, folder) == _without(expected.out, whole) else "printed otherwise; "
                    )
                    wrong += differences(result, folder)
                    counts.count(text or not wrong, f"{kind} {turn} was not noticed: {wrong}; {outcome}")
                else:
                    changed = [file for file, was in before.items() if mutations.snapshot(folder).get(file) != was]
                    counts.count(outcome.is_sentence and not changed, f"{kind} {turn}: {outcome}; changed: {changed}")
                shutil.rmtree(folder)


def damage(folder: Path, pattern: str, kind: str, chance: random.Random) -> None:
    """Damage the newest file of that pattern."""
    file = sorted(folder.glob(pattern))[-1]
    if kind == "swap":
        file.write_bytes(mutations.swap(file, folder, chance))
    else:
        file.write_bytes(getattr(mutations, kind)(file.read_bytes(), chance))


def _without(text: str, folder: Path) -> str:
    return text.replace(str(folder), "")
