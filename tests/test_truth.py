"""`bossnet truth`: sampled architectures trained from scratch, resumable at any moment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from searching import CPU

from bossnet_zoo.checkpoint import load_json
from bossnet_zoo.errors import ArchitectureError, UsageError
from bossnet_zoo.recipes import BOSSNET_M
from bossnet_zoo.search import truth
from bossnet_zoo.search.truth import Study, measure_truth, resume_study, start_study
from bossnet_zoo.search.truth_table import read_truth
from bossnet_zoo.train import TrainResult

RECIPE = replace(BOSSNET_M.smoke(), epochs=1, global_batch=128, image_size=8, warmup_epochs=0)
STUDY = Study("nats", "digits", RECIPE, sample=3, space_options={"widths": (8, 16)})


class FakeTraining:
    """In place of `train`: an accuracy that depends on architecture and seed, and a log of the calls."""

    def __init__(self, fail_at: int | None = None):
        self.calls: list[tuple[str, int, bool]] = []
        self.fail_at = fail_at

    def __call__(self, arch, data, recipe, out: Path, runtime, *, seed, resume, **options) -> TrainResult | None:
        self.calls.append((str(arch), seed, resume))
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text("{}")
        (out / "state.pt").write_text("state")
        if len(self.calls) - 1 == self.fail_at:
            raise KeyboardInterrupt
        accuracy = sum(arch.widths) + seed
        (out / "last.safetensors").write_text("weights")
        (out / "summary.json").write_text(json.dumps({"top1": accuracy, "ema_top1": accuracy + 0.5}))
        return None


def test_architectures_are_distinct_and_decided_by_the_seed():
    archs = replace(STUDY, sample=20).architectures()
    assert len(set(archs)) == 20
    assert archs == replace(STUDY, sample=20).architectures()
    assert archs[:3] == STUDY.architectures()
    assert archs != replace(STUDY, sample=20, seed=1).architectures()
    assert len(replace(STUDY, sample=32).architectures()) == STUDY.make_space().count()


def test_a_study_survives_json():
    again = Study.from_json(json.loads(json.dumps(STUDY.to_json())))
    assert again.architectures() == STUDY.architectures()
    assert (again.recipe, again.parts, again.sample) == (STUDY.recipe, STUDY.parts, STUDY.sample)


def test_the_truth_file_is_what_rank_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(truth, "train", FakeTraining())
    start_study(tmp_path / "study", STUDY, CPU)
    table = measure_truth(STUDY, tmp_path / "study", CPU)
    written = read_truth(tmp_path / "study" / "truth.json")
    assert (written.space, written.accuracy) == (table.space, table.accuracy)
    assert table.architectures(STUDY.make_space()) == {arch: sum(arch.widths) for arch in STUDY.architectures()}
    folders = sorted(path.name for path in (tmp_path / "study" / "networks").iterdir())
    assert folders == sorted(str(arch).replace(":", "_") for arch in STUDY.architectures())
    assert not list((tmp_path / "study").rglob("*.safetensors"))  # what is finished keeps its figures, not its weights
    assert not list((tmp_path / "study").rglob("state.pt"))


def test_several_seeds_are_averaged_and_kept(tmp_path, monkeypatch):
    fake = FakeTraining()
    monkeypatch.setattr(truth, "train", fake)
    study = replace(STUDY, seeds=3, seed=5, weights="ema")
    table = measure_truth(study, tmp_path, CPU)
    assert [seed for _, seed, _ in fake.calls[:3]] == [5, 6, 7]
    for text, accuracy in table.accuracy.items():
        base = sum(map(int, text.split(":")))
        assert table.meta["runs"][text] == [base + 5.5, base + 6.5, base + 7.5]
        assert accuracy == base + 6.5


def test_an_interrupted_study_trains_only_what_is_missing(tmp_path, monkeypatch):
    interrupted = FakeTraining(fail_at=1)
    monkeypatch.setattr(truth, "train", interrupted)
    start_study(tmp_path, STUDY, CPU)
    with pytest.raises(KeyboardInterrupt):
        measure_truth(STUDY, tmp_path, CPU)
    texts = [str(arch) for arch in STUDY.architectures()]
    assert list(read_truth(tmp_path / "truth.json").accuracy) == texts[:1]
    rest = FakeTraining()
    monkeypatch.setattr(truth, "train", rest)
    (tmp_path / ".truth.json.0a1b2c3d.tmp").write_text("{")  # as kill -9 leaves it
    measure_truth(resume_study(tmp_path), tmp_path, CPU)
    assert not list(tmp_path.glob(".*.tmp"))
    assert rest.calls == [(texts[1], 0, True), (texts[2], 0, False)]
    assert list(read_truth(tmp_path / "truth.json").accuracy) == texts


def test_a_real_training_gives_the_accuracy_of_its_last_epoch(tmp_path):
    study = replace(STUDY, sample=1, parts=("search-val", "test"))
    table = measure_truth(study, tmp_path, CPU, workers=0)
    (folder,) = (tmp_path / "networks").iterdir()
    summary = load_json(folder / "summary.json")
    assert table.accuracy == {str(study.architectures()[0]): summary["top1"]}
    assert load_json(folder / "config.json")["parts"] == ["search-val", "test"]
    assert 0 <= summary["top1"] <= 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": 33}, "33 architectures cannot be sampled; space 'nats' has 32"),
        ({"sample": 0}, "0 architectures cannot be sampled"),
        ({"seeds": 0}, "--seeds 1 or more"),
        ({"weights": "best"}, "unknown kind of weights 'best'"),
        ({"space": "nat"}, "did you mean nats"),
    ],
)
def test_an_impossible_study_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        replace(STUDY, **changes)


def test_a_study_neither_overwrites_nor_resumes_what_is_none(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="another --out"):
        start_study(tmp_path, STUDY, CPU, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="holds no study"):
        resume_study(tmp_path)
    start_study(tmp_path / "study", STUDY, CPU)
    with pytest.raises(UsageError, match="--resume"):
        start_study(tmp_path / "study", STUDY, CPU)
    start_study(tmp_path / "study", replace(STUDY, sample=2), CPU, overwrite=True)
    assert resume_study(tmp_path / "study").sample == 2
    with pytest.raises(ArchitectureError):
        STUDY.make_space().parse("8:8:8:8:64")


@pytest.mark.stress
def test_kill_9_at_any_moment_changes_nothing(tmp_path):
    options = [
        "--space",
        "nats",
        "--space-option",
        "widths=[8,16]",
        "--data",
        "digits",
        "--sample",
        "3",
        "--recipe",
        "bossnet-m",
        "--smoke",
    ]
    options += ["--epochs", "2", "--global-batch", "128", "--image-size", "8", "--device", "cpu"]

    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "bossnet_zoo", "-q", "truth", *arguments]

    subprocess.run(command(*options, "--out", str(tmp_path / "whole")), check=True)
    killed = tmp_path / "killed"
    arguments = [*options, "--out", str(killed)]
    for wanted in ("networks/*/state.pt", "networks/*/summary.json", "truth.json"):
        process = subprocess.Popen(command(*arguments))
        before = len(list(killed.glob(wanted)))
        while process.poll() is None and len(list(killed.glob(wanted))) <= before:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        arguments = ["--resume", str(killed), "--device", "cpu"]
    subprocess.run(command(*arguments), check=True)
    assert load_json(killed / "truth.json") == load_json(tmp_path / "whole" / "truth.json")
