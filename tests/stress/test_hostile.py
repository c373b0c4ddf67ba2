"""Files made to do harm: a pickle that runs something, names that lead out of a folder. Nothing of it happens."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import warm
from PIL import Image

from bossnet_zoo.checkpoint import save_json, sha256

pytestmark = pytest.mark.stress


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path, call=os.system):
        self.path, self.call = path, call

    def __reduce__(self):
        return self.call, (f"touch {self.path}",)


def pickles(folder: Path, mark: Path) -> dict[str, Path]:
    """The same attack in every form in which a file of weights may come."""
    harm = {"model": {"fc.weight": torch.ones(2)}, "extra": Touch(mark)}
    torch.save(harm, folder / "zip.pth")
    torch.save(harm, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(Touch(mark, eval), folder / "eval.pt")
    (folder / "plain.bin").write_bytes(pickle.dumps(harm["extra"]))
    (folder / "renamed.safetensors").write_bytes(pickle.dumps(harm["extra"]))
    with zipfile.ZipFile(folder / "climbing.pth", "w") as archive:
        archive.writestr("../../archive/data.pkl", pickle.dumps(harm["extra"]))
        archive.writestr(f"..{mark}", "climbed")
    return {file.name: file for file in sorted(folder.iterdir())}


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, images, trained, tally):
    mark = tmp_path / "executed"
    files = tmp_path / "files"
    files.mkdir()
    with tally("hostile pickles offered as weights or state") as counts:
        for name, file in pickles(files, mark).items():
            for line in (
                f"predict test_bossnet_t {images / '000.png'} --weights {file} --device cpu",
                f"eval test_bossnet_t --weights {file} --data digits --device cpu",
                f"train test_bossnet_t --init {file} --data digits --recipe finetune --smoke --device cpu --out run",
            ):
                outcome = warm.run(line.split(), tmp_path / "work")
                counts.count(outcome.is_sentence and not mark.exists(), f"{name}: {outcome}")
        run = tmp_path / "run"
        run.mkdir()
        for file in trained.iterdir():
            if file.is_file():
                (run / file.name).write_bytes(file.read_bytes())
        torch.save({"model": Touch(mark)}, run / "state.pt")
        (run / "state.pt.sha256").write_text(sha256(run / "state.pt"))  # an attacker can compute it too
        outcome = warm.run(["train", "--resume", run, "--device", "cpu"], tmp_path / "work")
        counts.count(outcome.is_sentence and not mark.exists(), f"state: {outcome}")


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("name", ["../outside.png", "/tmp/outside-of-bossnet.png", "a/../../../outside.png"])
def test_names_in_shards_lead_nowhere(name, tmp_path, trained, tally):
    """Shards are read by offset, and never unpacked."""
    folder = tmp_path / "shards" / "inner"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "000.tar", "w") as tar:
        for number, member in enumerate((name, "good.png")):
            content = {member: _png(), str(Path(member).with_suffix(".cls")): str(number).encode()}
            for path, data in content.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    before = {str(file) for file in tmp_path.rglob("*")}
    outcome = warm.run(["eval", trained, "--data", folder / "000.tar", "--part", "all", "--out", tmp_path], tmp_path)
    made = (
        {str(file) for file in tmp_path.rglob("*")} - before - {str(tmp_path / "eval.json"), str(tmp_path / "eval.csv")}
    )
    with tally("paths that lead out of a folder, offered by an archive or a Hub listing") as counts:
        wrong = made or Path("/tmp/outside-of-bossnet.png").exists() or not (outcome.code == 0 or outcome.is_sentence)
        counts.count(not wrong, f"{outcome}; made {made}")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "a/../../outside"])
def test_a_name_in_a_local_network_leads_nowhere(name, tmp_path, images, tally):
    """A downloaded config.json may name a file of weights: none outside of its folder is read, and none written."""
    folder = tmp_path / "network"
    folder.mkdir()
    given = {"file": name, "hf_hub_filename": name}
    save_json(folder / "config.json", {"architecture": "test_bossnet_t", "num_classes": 2, "pretrained_cfg": given})
    outcome = warm.run(["predict", f"local-dir:{folder}", images / "000.png", "--device", "cpu"], tmp_path)
    with tally("paths that lead out of a folder, offered by an archive or a Hub listing") as counts:
        counts.count(outcome.is_sentence, outcome)
