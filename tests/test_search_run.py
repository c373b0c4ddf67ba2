"""A search as a whole: repeatable, resumable whatever happens to it, and clear about what it cannot do."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from searching import CPU
from tiny_search import tiny_settings, write_images

from bossnet_zoo import checkpoint
from bossnet_zoo.checkpoint import load_json, read_jsonl, save_json
from bossnet_zoo.errors import BossNetError, DataError, UsageError
from bossnet_zoo.search import stage as stage_module
from bossnet_zoo.search.run import read_config, resume_settings, search, start_run
from bossnet_zoo.search.settings import SearchSettings
from bossnet_zoo.search.states import load_stage, save_stage, state_file

stress = pytest.mark.stress
RUN_FILES = {
    "architectures.json",
    "blocks",
    "config.json",
    "metrics.jsonl",
    "ratings.json",
    "report.html",
    "split.json",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def settings(images) -> SearchSettings:
    options = {"block_layers": [1, 1], "base_width": 8, "default_resolution": 32}
    small = {"epochs": 2, "rating_every": 1, "calibration_images": 4, "max_madds": 860_000}
    return tiny_settings(images, space_options=options, **small)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> Path:
    """A search that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    start_run(out, settings, CPU, "demo")
    search(settings, out, CPU)
    return out


def untimed(run: Path) -> list[dict]:
    records = read_jsonl(run / "metrics.jsonl")
    return [{key: r[key] for key in r if key not in ("seconds", "images_per_second")} for r in records]


def assert_same_search(run: Path, expected: Path) -> None:
    """Ratings, architectures, weights and log are equal to the bit."""
    for name in ("ratings.json", "architectures.json", "split.json"):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    blocks = sorted(file.name for file in (expected / "blocks").iterdir())
    assert sorted(file.name for file in (run / "blocks").iterdir()) == blocks
    for name in blocks:
        tensors, others = load_file(run / "blocks" / name), load_file(expected / "blocks" / name)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[key], others[key]) for key in tensors), name
    assert untimed(run) == untimed(expected)
    assert {file.name for file in run.iterdir()} == RUN_FILES


# --- what a search leaves


def test_a_search_leaves_ratings_architectures_weights_and_a_report(settings, whole):
    assert {file.name for file in whole.iterdir()} == RUN_FILES
    space, config = settings.make_space(), read_config(whole)
    assert config["settings"] == settings.to_json()
    assert (config["preset"], config["method"], config["runtime"]) == ("demo", "bossnas", CPU.description)
    ratings = load_json(whole / "ratings.json")
    first, second = (block["entries"] for block in ratings["blocks"])
    assert set(first["any"]) == {space.path_text(path) for path in space.paths(0)}
    (entry,) = second
    best = space.parse_path(0, min(first["any"], key=first["any"].get))
    assert entry == space.entry_text(best[-1].scale)  # greedy
    listed = load_json(whole / "architectures.json")
    assert listed == sorted(listed, key=lambda row: row["score"])
    assert all(row["madds"] <= 860_000 for row in listed)
    assert all(space.cost(space.parse(row["architecture"])).madds == row["madds"] for row in listed)
    assert "<svg" in (whole / "report.html").read_text()


def test_the_log_has_every_step_epoch_and_rating(settings, whole):
    records = read_jsonl(whole / "metrics.jsonl")
    kinds = [(record["block"], record["kind"]) for record in records]
    steps_per_epoch = 14 // settings.global_batch
    for block in (0, 1):
        assert kinds.count((block, "step")) == 2 * steps_per_epoch
        assert kinds.count((block, "epoch")) == 2
        assert kinds.count((block, "rating")) == 2  # after the first epoch, and in the end
    step = next(record for record in records if record["kind"] == "step")
    assert {"epoch", "step", "loss", "lr", "momentum", "paths", "entry"} <= set(step)
    assert len(step["paths"]) == settings.num_paths
    final = [record for record in records if record["kind"] == "rating" and record["block"] == 0][-1]
    assert final["ratings"] == load_json(whole / "ratings.json")["blocks"][0]["entries"]["any"]


def test_the_same_seed_gives_the_same_search_and_another_seed_another(settings, whole, tmp_path):
    start_run(tmp_path / "again", settings, CPU)
    search(settings, tmp_path / "again", CPU)
    assert_same_search(tmp_path / "again", whole)
    other = replace(settings, seed=1, epochs=1)
    start_run(tmp_path / "other", other, CPU)
    search(other, tmp_path / "other", CPU)
    assert load_json(tmp_path / "other" / "ratings.json")["blocks"] != load_json(whole / "ratings.json")["blocks"]
    assert load_json(tmp_path / "other" / "split.json") != load_json(whole / "split.json")


def test_full_coverage_rates_the_whole_space(images, tmp_path):
    settings = tiny_settings(images, coverage="full", rating_images=2)
    start_run(tmp_path / "run", settings, CPU)
    table = search(settings, tmp_path / "run", CPU).table
    assert table.coverage(settings.make_space()) == 1.0
    assert set(table.blocks[1]) == {"4", "8", "16", "32"}
    assert {file.stem for file in (tmp_path / "run" / "blocks").iterdir()} == {
        "block1-any", "block2-4", "block2-8", "block2-16", "block2-32"
    }  # fmt: skip


def test_no_label_is_ever_read(settings, images, whole, tmp_path):
    """The same images in one folder for each class: search them, and nothing changes but the name of the source."""
    (tmp_path / "classes").mkdir()
    for number, file in enumerate(sorted(images.iterdir())):
        folder = tmp_path / "classes" / f"{number // 12}"
        folder.mkdir(exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    labelled = replace(settings, data=str(tmp_path / "classes"), epochs=1, rating_every=0)
    start_run(tmp_path / "run", labelled, CPU)
    assert search(labelled, tmp_path / "run", CPU).best


# --- interrupted


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, so nothing is cleaned up but what the system would."""


def run_until_killed(settings: SearchSettings, out: Path, monkeypatch, number: int, when: str) -> bool:
    """Search, and die before or after the given number of files got their names. Whether it came to that."""
    replacements, rename = 0, os.replace

    def renaming(source, target):
        nonlocal replacements
        replacements += 1
        if replacements == number and when == "before":
            leftover = Path(target).with_name(Path(source).name.replace(".tmp", "0.tmp"))
            leftover.write_bytes(Path(source).read_bytes())  # kill -9 leaves the temporary file
            raise Killed
        rename(source, target)
        if replacements == number and when == "after":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", renaming)
        try:
            search(settings, out, CPU)
        except Killed:
            return True
    return False


# Files in order: split; per epoch a checksum and a state; block weights; ratings; the same for block 2; ratings again,
# architectures and report. A few moments by default, all of them with -m stress.
MOMENTS = [(4, "before"), (6, "after"), (9, "before")]
ALL_MOMENTS = [(number, when) for number in range(1, 17) for when in ("before", "after")]


@pytest.mark.parametrize(
    ("number", "when"),
    [
        pytest.param(*moment, marks=[] if moment in MOMENTS else stress, id=f"{moment[1]} file {moment[0]}")
        for moment in ALL_MOMENTS
    ],
)
def test_a_killed_search_resumes_to_the_same_bits(settings, whole, tmp_path, monkeypatch, number, when):
    out = tmp_path / "run"
    start_run(out, settings, CPU)
    assert run_until_killed(settings, out, monkeypatch, number, when)
    search(resume_settings(out), out, CPU)
    assert_same_search(out, whole)


SCRIPT = """
import sys
from pathlib import Path
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.search.run import resume_settings, search
run = Path(sys.argv[1])
with Runtime.open("cpu") as runtime:
    search(resume_settings(run), run, runtime)
"""


def start_process(out: Path, **environment: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **environment}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], env=environment)


def kill_after(process: subprocess.Popen, out: Path, records: int) -> None:
    """kill -9 as soon as the log has that many records."""
    deadline = time.monotonic() + 120
    while len(read_jsonl(out / "metrics.jsonl")) < records:
        assert process.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_kill_9_of_a_process_then_resume_gives_the_same_bits(settings, whole, tmp_path):
    out = tmp_path / "run"
    start_run(out, settings, CPU)
    kill_after(start_process(out), out, records=8)  # in the second block, or just before
    search(resume_settings(out), out, CPU)
    assert_same_search(out, whole)


@stress
@pytest.mark.parametrize("seed", range(5))
def test_kill_9_again_and_again_at_random_moments(settings, whole, tmp_path, seed):
    generator, out = random.Random(seed), tmp_path / "run"
    start_run(out, settings, CPU)
    for _ in range(3):
        process = start_process(out)
        time.sleep(generator.uniform(2, 8))
        process.kill()
        process.wait()
    assert start_process(out).wait() == 0
    assert_same_search(out, whole)


@pytest.mark.parametrize("damage", ["cut", *(pytest.param(kind, marks=stress) for kind in ("flipped", "no checksum"))])
def test_a_damaged_state_is_named_and_the_one_before_it_used(settings, whole, tmp_path, monkeypatch, capsys, damage):
    out = tmp_path / "run"
    start_run(out, settings, CPU)
    assert run_until_killed(settings, out, monkeypatch, 5, "after")  # both epochs of block 1 are saved
    newest = state_file(out, "block1-any", 2)
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    else:
        newest.with_name(newest.name + ".sha256").unlink()
    capsys.readouterr()
    assert load_stage(out, "block1-any")["epoch"] == 1
    said = capsys.readouterr().err
    assert newest.name in said
    assert "going back to the state before it" in said
    search(resume_settings(out), out, CPU)
    assert_same_search(out, whole)


def test_the_last_two_states_of_the_stage_in_training_are_kept(tmp_path):
    for epoch in range(1, 13):
        save_stage(tmp_path, "block1-any", epoch, {"epoch": epoch})
    assert load_stage(tmp_path, "block1-any") == {"epoch": 12}
    kept = {f"state-block1-any-epoch00{epoch}.pt{suffix}" for epoch in (11, 12) for suffix in ("", ".sha256")}
    assert {file.name for file in tmp_path.iterdir()} == kept
    os.utime(state_file(tmp_path, "block1-any", 11))  # as after a copy of the folder: age is no measure
    assert load_stage(tmp_path, "block1-any") == {"epoch": 12}
    save_stage(tmp_path, "block2-8", 1, {"epoch": 1})
    assert len(list(tmp_path.iterdir())) == 2
    assert load_stage(tmp_path, "block1-any") is None


def test_a_finished_search_can_be_resumed_and_stays_as_it_is(settings, whole, tmp_path):
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file() and file.suffix != ".html"}
    search(resume_settings(whole), whole, CPU)
    assert {file: file.read_bytes() for file in before} == before


# --- requests that cannot be carried out


def test_a_folder_that_holds_a_run_is_not_touched_without_overwrite(settings, whole):
    before = {file.name: file.stat().st_mtime_ns for file in whole.iterdir()}
    with pytest.raises(UsageError, match=r"already holds a run; type --resume .* --overwrite to replace it, or"):
        start_run(whole, settings, CPU)
    assert {file.name: file.stat().st_mtime_ns for file in whole.iterdir()} == before


def test_overwrite_replaces_a_run_and_keeps_what_a_search_did_not_write(settings, tmp_path):
    out = tmp_path / "run"
    start_run(out, settings, CPU)
    (out / "blocks").mkdir()
    for name in ("ratings.json", "blocks/block1-any.safetensors", "state-block1-any-epoch0001.pt", "notes.txt"):
        (out / name).write_text("old")
    start_run(out, replace(settings, seed=3), CPU, overwrite=True)
    assert {file.name for file in out.iterdir()} == {"config.json", "notes.txt"}
    assert read_config(out)["seed"] == 3


@pytest.mark.parametrize("content", ["notes.txt", "config.json"])
def test_overwrite_never_removes_what_is_no_run(settings, tmp_path, content):
    """Someone's model folder has a config.json too."""
    (tmp_path / "model").mkdir()
    save_json(tmp_path / "model" / content, {"architecture": "resnet50"})
    with pytest.raises(UsageError, match="already holds other files; type another --out"):
        start_run(tmp_path / "model", settings, CPU, overwrite=True)
    assert [file.name for file in (tmp_path / "model").iterdir()] == [content]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 5}, r"was started with --epochs 2, not 5; leave it out to resume, or choose another --out"),
        ({"data": "digits"}, r"was started with --data .*images, not digits"),
        ({"ensemble": False}, r"was started with --ensemble True, not False"),
        ({"max_madds": 7}, r"was started with --max-madds 860000, not 7"),
        ({"space_options": {"base_width": 16}}, r"was started with --space-options"),
    ],
)
def test_resuming_under_other_settings_is_an_error(whole, change, said):
    with pytest.raises(UsageError, match=said):
        resume_settings(whole, change)


def test_resuming_with_the_same_settings_again_is_none(settings, whole):
    again = {"epochs": 2, "data": settings.data, "space_options": {"base_width": 8}}
    assert resume_settings(whole, again).to_json() == load_json(whole / "config.json")["settings"]


def test_resuming_what_is_no_search_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"is no run directory: it has no config.json; start one with: bossnet search"):
        resume_settings(tmp_path)
    save_json(tmp_path / "config.json", {"kind": "train"})
    with pytest.raises(UsageError, match="no configuration of a search"):
        resume_settings(tmp_path)
    save_json(tmp_path / "config.json", {"format": 1, "settings": {"epochs": 2, "colour": "red"}})
    with pytest.raises(UsageError, match="settings colour are not known to this version"):
        resume_settings(tmp_path)


def test_an_output_that_cannot_be_written_is_one_sentence(settings, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BossNetError, match=r"config.json could not be written: .*; free some space or choose another"):
        start_run(tmp_path / "file" / "run", settings, CPU)
    with pytest.raises(UsageError, match="already holds other files"):
        start_run(tmp_path / "file", settings, CPU)


@pytest.mark.parametrize("data", ["empty", "missing", "texts", "few"])
def test_images_that_cannot_be_searched_on_are_found_before_anything_is_written(settings, whole, tmp_path, data):
    folder = tmp_path / data
    if data != "missing":
        folder.mkdir()
    if data == "texts":
        (folder / "a.txt").write_text("no image")
    if data == "few":
        write_images(folder, count=6)
    with pytest.raises((UsageError, DataError)) as error:
        start_run(tmp_path / "run", replace(settings, data=str(folder)), CPU)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises((UsageError, DataError)):  # nor is an earlier run removed
        start_run(whole, replace(settings, data=str(folder)), CPU, overwrite=True)
    assert {file.name for file in whole.iterdir()} == RUN_FILES


def test_an_unreadable_image_is_named_and_replaced(settings, tmp_path, capsys):
    folder = write_images(tmp_path / "images")
    for file in sorted(folder.iterdir())[:12]:
        file.write_bytes(file.read_bytes()[:60])
    damaged = replace(settings, data=str(folder), epochs=1, rating_every=0)
    start_run(tmp_path / "run", damaged, CPU)
    search(damaged, tmp_path / "run", CPU)
    assert "cannot be read as an image" in capsys.readouterr().err


def test_images_none_of_which_can_be_read_are_an_error(settings, tmp_path):
    folder = write_images(tmp_path / "images")
    for file in folder.iterdir():
        file.write_bytes(b"no image")
    start_run(tmp_path / "run", replace(settings, data=str(folder)), CPU)
    with pytest.raises(DataError, match=r"none of its .* images can be read"):
        search(replace(settings, data=str(folder)), tmp_path / "run", CPU)


def test_images_that_went_missing_before_a_resume_are_an_error(settings, tmp_path):
    folder = write_images(tmp_path / "images")
    moved = replace(settings, data=str(folder))
    out = tmp_path / "run"
    start_run(out, moved, CPU)
    with pytest.MonkeyPatch.context() as patch:
        run_until_killed(moved, out, patch, 3, "after")
    next(folder.iterdir()).unlink()
    with pytest.raises(DataError, match="bring the missing images back, or start a new run"):
        search(resume_settings(out), out, CPU)


def test_bounds_that_nothing_meets_say_what_is_the_smallest(settings, tmp_path):
    impossible = replace(settings, max_madds=1000, epochs=1, rating_every=0)
    start_run(tmp_path / "run", impossible, CPU)
    with pytest.raises(UsageError, match=r"at most 1,000 MAdds; the smallest possible is \d"):
        search(impossible, tmp_path / "run", CPU)


def test_a_loss_that_is_not_finite_stops_and_names_step_and_last_good_state(settings, tmp_path, monkeypatch):
    bootstrap, calls = stage_module.bootstrap, 0

    def diverging(*args, **kwargs):
        nonlocal calls
        calls += 1
        return bootstrap(*args, **kwargs) if calls < 4 else float("nan")

    monkeypatch.setattr(stage_module, "bootstrap", diverging)
    out = tmp_path / "run"
    start_run(out, settings, CPU)
    with pytest.raises(BossNetError) as error:
        search(settings, out, CPU)
    assert str(error.value).startswith("the loss became nan in block1-any at step 2 (epoch 2); the last good state is ")
    assert state_file(out, "block1-any", 1).exists()
    assert str(state_file(out, "block1-any", 1)) in str(error.value)
    assert load_stage(out, "block1-any")["epoch"] == 1


def test_a_full_disk_is_one_sentence_and_the_search_can_go_on(settings, whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    start_run(out, settings, CPU)
    replacements, rename = 0, os.replace

    def full(source, target):
        nonlocal replacements
        replacements += 1
        if replacements == 5:
            raise OSError(28, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", full)
        with pytest.raises(BossNetError, match=r"could not be written: .*No space left on device; free some space"):
            search(settings, out, CPU)
    search(resume_settings(out), out, CPU)
    assert_same_search(out, whole)


def test_pictures_of_any_mode_and_size_can_be_searched_on(settings, tmp_path):
    folder = write_images(tmp_path / "images", count=20)
    for number, mode in enumerate(("L", "P", "RGBA", "LA", "1", "CMYK")):
        Image.new(mode, (20 + 30 * number, 50)).convert("RGB" if mode == "CMYK" else mode).save(
            folder / f"odd{number}.png"
        )
    odd = replace(settings, data=str(folder), epochs=1, rating_every=0, max_madds=None)
    start_run(tmp_path / "run", odd, CPU)
    assert search(odd, tmp_path / "run", CPU).best
