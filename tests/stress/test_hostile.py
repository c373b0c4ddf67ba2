"""Files made to do harm: a pickle that runs something, names that lead out of a folder. Nothing of it happens."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import warm
from hostile_hub import serve
from PIL import Image

from bossnet_zoo.checkpoint import save_json, sha256

pytestmark = pytest.mark.stress
OUTSIDE = "paths that lead out of a folder, offered by an archive or a Hub listing"


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
    with tally(OUTSIDE) as counts:
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
    with tally(OUTSIDE) as counts:
        counts.count(outcome.is_sentence, outcome)


def climbing(folder: Path) -> list[str]:
    """Names that lead out of wherever they are unpacked; the last two to `folder`, from the root."""
    return ["../evil.png", "../../../../../../evil.png", "train/../../../evil.png", f"{folder}/evil.png"]


def zipped(names: list[str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, _png())
    return stream.getvalue()


def tarred(names: list[str]) -> bytes:
    """With a link out of the folder, and a file through it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        link = tarfile.TarInfo("train/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../../.."
        archive.addfile(link)
        for name in [*names, "train/link/evil.png"]:
            info = tarfile.TarInfo(name)
            info.size = len(_png())
            archive.addfile(info, io.BytesIO(_png()))
    return stream.getvalue()


def offers(folder: Path) -> dict[str, tuple[dict[str, bytes], str]]:
    """By kind, the files of a repository, and the command that fetches it; `{0}` is a network, `{1}` an image."""
    names = climbing(folder)
    data = "eval {0} --data hf:team/x --part all --device cpu"
    configuration = {
        "architecture": "test_bossnet_t",
        "num_classes": 2,
        "pretrained_cfg": {"file": names[1], "hf_hub_filename": names[1], "hf_hub_id": "../../evil", "url": names[3]},
    }
    described = {"config.json": json.dumps(configuration).encode(), **dict.fromkeys(names, b"evil")}
    return {
        "files": ({name: _png() for name in ["train/good.png", *names]}, data),
        "zip": ({"train.zip": zipped(["train/good.png", *names])}, data),
        "damaged zip": ({"train.zip": zipped(["train/good.png", *names])[:-9]}, data),
        "tar": ({"train.tar.gz": tarred(["train/good.png", *names])}, data),
        "data_files": (
            {
                "README.md": b"---\nconfigs:\n- config_name: default\n  data_files: ../../../../../../../etc/*\n---\n",
                "train/good.png": _png(),
            },
            data,
        ),
        "program": ({"x.py": b"open('evil.png', 'w')", "train/good.png": _png()}, data),
        "network": (described, "predict hf-hub:team/x {1} --device cpu"),
        "network with weights": (
            {**described, "model.safetensors": b"evil"},
            "predict hf-hub:team/x {1} --device cpu",
        ),
    }


def started(arguments: list[str], **environment: object) -> warm.Outcome:
    """A command in a Python of its own, for what is read from the environment when packages are imported."""
    changed = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    command = [sys.executable, "-m", "bossnet_zoo", *arguments]
    done = subprocess.run(command, env=changed, capture_output=True, text=True, timeout=120)
    return warm.Outcome(tuple(arguments), done.returncode, done.stdout, done.stderr)


def test_what_a_hub_offers_stays_in_its_cache(tmp_path, images, trained, tally):
    home = tmp_path / "deep" / "deeper" / "home"
    with tally(OUTSIDE) as counts:
        for kind, (files, line) in offers(tmp_path).items():
            with serve(files) as server:
                outcome = started(
                    line.format(trained, images / "000.png").split(), HF_ENDPOINT=server.url, HF_HOME=home
                )
            found = [file for file in tmp_path.rglob("evil*") if file.is_file()]
            ended = outcome.code == 0 or outcome.is_sentence
            counts.count(bool(server.asked) and ended and not found, f"{kind}: {outcome}; {found}")
            shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "team/../../evil", "team/..", "a/b/c"])
def test_a_repository_name_that_leads_out_is_refused(name, tmp_path, trained, tally):
    before = {str(file) for file in tmp_path.rglob("*")}
    outcome = warm.run(["publish", trained, "--repo", name, "--dry-run"], tmp_path)
    with tally(OUTSIDE) as counts:
        made = {str(file) for file in tmp_path.rglob("*")} - before
        counts.count(outcome.code == 2 and outcome.is_sentence and not made, f"{outcome}; {made}")
