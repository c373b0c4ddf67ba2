"""A search is clear about what it cannot do, and leaves nothing behind then."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from searching import CPU
from tiny_search import RUN_FILES, assert_same_search, run_until_killed, tiny_settings, write_images

from bossnet_zoo import checkpoint
from bossnet_zoo.checkpoint import load_json, save_json
from bossnet_zoo.datasets import open_images
from bossnet_zoo.errors import BossNetError, CheckpointError, DataError, UsageError
from bossnet_zoo.recipes import BOSSNET_M
from bossnet_zoo.search import distillation
from bossnet_zoo.search import run as run_module
from bossnet_zoo.search import stage as stage_module
from bossnet_zoo.search.rating_table import read_ratings
from bossnet_zoo.search.run import search, start_run
from bossnet_zoo.search.run_folder import read_config, resume_settings
from bossnet_zoo.search.states import load_stage, state_file
from bossnet_zoo.search.truth import Study, start_study


def test_a_folder_that_holds_a_run_is_not_touched_without_overwrite(search_settings, whole_search):
    before = {file.name: file.stat().st_mtime_ns for file in whole_search.iterdir()}
    with pytest.raises(
        UsageError, match=r"already holds a run; type bossnet search --resume .* --overwrite to replace it, or"
    ):
        start_run(whole_search, search_settings, CPU)
    assert {file.name: file.stat().st_mtime_ns for file in whole_search.iterdir()} == before


def test_overwrite_replaces_a_run_and_keeps_what_a_search_did_not_write(search_settings, tmp_path):
    out = tmp_path / "run"
    start_run(out, search_settings, CPU)
    (out / "blocks").mkdir()
    for name in ("ratings.json", "blocks/block1-any.safetensors", "state-block1-any-epoch0001.pt", "notes.txt"):
        (out / name).write_text("old")
    start_run(out, replace(search_settings, seed=3), CPU, overwrite=True)
    assert {file.name for file in out.iterdir()} == {"config.json", "notes.txt"}
    assert read_config(out)["seed"] == 3


@pytest.mark.parametrize("content", ["notes.txt", "config.json"])
def test_overwrite_never_removes_what_is_no_run(search_settings, tmp_path, content):
    """Someone's model folder has a config.json too."""
    (tmp_path / "model").mkdir()
    save_json(tmp_path / "model" / content, {"architecture": "resnet50"})
    with pytest.raises(UsageError, match="already holds other files; type another --out"):
        start_run(tmp_path / "model", search_settings, CPU, overwrite=True)
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
def test_resuming_under_other_settings_is_an_error(whole_search, change, said):
    with pytest.raises(UsageError, match=said):
        resume_settings(whole_search, change)


def test_resuming_with_the_same_settings_again_is_none(search_settings, whole_search):
    again = {"epochs": 2, "data": search_settings.data, "space_options": {"base_width": 8}}
    assert resume_settings(whole_search, again).to_json() == load_json(whole_search / "config.json")["settings"]


def test_resuming_with_the_ratings_of_another_search_is_an_error(whole_search, tmp_path):
    run = Path(shutil.copytree(whole_search, tmp_path / "run"))
    save_json(run / "ratings.json", load_json(run / "ratings.json") | {"seed": 1})
    with pytest.raises(
        CheckpointError, match=r"ratings\.json: seed is '1', and in this search it is '0'; bring back a copy"
    ):
        search(resume_settings(run), run, CPU)


def edit_split(stored: dict) -> None:
    stored["search_val"] = stored["search_val"][1:]


def edit_ratings(stored: dict) -> None:
    ratings = stored["blocks"][0]["entries"]["any"]
    best = min(ratings, key=ratings.get)
    ratings[best] += 1.0


def edit_settings(stored: dict) -> None:
    stored["settings"]["base_lr"] /= 2


@pytest.mark.parametrize(
    ("name", "edit", "number", "remedy"),
    [
        ("split.json", edit_split, 4, "bring back a copy, or start a new run"),  # in the first block
        ("split.json", edit_split, 8, "bring back a copy, or start a new run"),
        ("ratings.json", edit_ratings, 8, "bring back a copy, or remove it: every block is then trained again"),
        ("config.json", edit_settings, 4, "bring back a copy, or start a new search with another --out"),
    ],
)
def test_what_was_edited_between_a_kill_and_a_resume_is_noticed(
    search_settings, whole_search, tmp_path, monkeypatch, name, edit, number, remedy
):
    out = tmp_path / "run"
    start_run(out, search_settings, CPU)
    assert run_until_killed(search_settings, out, monkeypatch, number, "after")
    file = out / name
    whole, stored = file.read_bytes(), load_json(file)
    edit(stored)
    save_json(file, stored)
    before = {path: path.read_bytes() for path in out.rglob("*.json*")}
    with pytest.raises(CheckpointError) as error:
        search(resume_settings(out), out, CPU)
    said = f"{file} is not as it was written: its checksum does not fit, so it was edited or damaged; {remedy}"
    assert str(error.value) == said
    assert {path: path.read_bytes() for path in before} == before
    file.write_bytes(whole)
    search(resume_settings(out), out, CPU)
    assert_same_search(out, whole_search)


def test_the_split_of_another_run_is_noticed(search_settings, tmp_path, monkeypatch):
    for seed in (0, 1):
        start_run(tmp_path / f"run{seed}", replace(search_settings, seed=seed), CPU)
        run_until_killed(replace(search_settings, seed=seed), tmp_path / f"run{seed}", monkeypatch, 3, "after")
    (tmp_path / "run0" / "split.json").write_bytes((tmp_path / "run1" / "split.json").read_bytes())
    with pytest.raises(DataError, match=r"with seed 1, not of .* with seed 0; bring back this run's own, or start"):
        search(resume_settings(tmp_path / "run0"), tmp_path / "run0", CPU)


def test_held_out_images_can_be_listed(search_settings, search_images, tmp_path):
    listed = tmp_path / "nas_val.txt"
    pool = open_images(str(search_images), "train").indices
    listed.write_text("".join(f"{index}\n" for index in pool[:5]))
    settings = replace(search_settings, search_val=str(listed), epochs=1, rating_every=0)
    start_run(tmp_path / "run", settings, CPU)
    table = search(settings, tmp_path / "run", CPU).table
    assert load_json(tmp_path / "run" / "split.json")["search_val"] == pool[:5].tolist()
    assert table.meta["split"]["drawn"] == f"as {listed} lists them"
    assert f"4 to rate on, divided as {listed} lists them" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(UsageError, match=r"nowhere\.txt cannot be read"):
        start_run(tmp_path / "other", replace(settings, search_val="nowhere.txt"), CPU)
    assert not (tmp_path / "other").exists()


def test_resuming_what_is_no_search_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"is no run directory: it has no config.json; start one with: bossnet search"):
        resume_settings(tmp_path)
    save_json(tmp_path / "config.json", {"kind": "train"})
    with pytest.raises(UsageError, match="no configuration of a search"):
        resume_settings(tmp_path)
    save_json(tmp_path / "config.json", {"format": 1, "settings": {"epochs": 2, "colour": "red"}})
    with pytest.raises(UsageError, match="settings colour are not known to this version"):
        resume_settings(tmp_path)


def test_an_output_that_cannot_be_written_is_one_sentence(search_settings, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match=r"run cannot be made a folder, for .*/file is a file; type another --out"):
        start_run(tmp_path / "file" / "run", search_settings, CPU)
    with pytest.raises(UsageError, match=r"^[^ ]*/file is a file; type another --out"):
        start_run(tmp_path / "file", search_settings, CPU)
    with pytest.raises(UsageError, match=r"file is a file; give the folder that bossnet search"):
        resume_settings(tmp_path / "file")


@pytest.mark.parametrize("bound", ["max_madds", "max_params"])
def test_a_bound_that_nothing_meets_is_refused_before_training(search_settings, tmp_path, bound):
    with pytest.raises(UsageError, match=r"at most 1 .*; the smallest possible is \d.*, so type --max-"):
        start_run(tmp_path / "run", replace(search_settings, **{bound: 1}), CPU)
    assert not (tmp_path / "run").exists()


def test_a_bound_that_nothing_rated_meets_names_the_command_for_others(search_settings, tmp_path, monkeypatch):
    start_run(tmp_path / "run", search_settings, CPU)
    monkeypatch.setattr(run_module, "_check_bounds", lambda *_: None)  # what was rated may cost more than all the rest
    with pytest.raises(UsageError, match=r"or more, with: bossnet solve --ratings .*/run/ratings\.json"):
        search(replace(search_settings, max_madds=1), tmp_path / "run", CPU)
    assert read_ratings(tmp_path / "run") == read_ratings(tmp_path / "run" / "ratings.json")
    with pytest.raises(UsageError, match=r"leave it out to resume; its ratings take any: bossnet solve"):
        resume_settings(tmp_path / "run", {"max_madds": 2})


@pytest.mark.parametrize("data", ["empty", "missing", "texts", "few"])
def test_images_that_cannot_be_searched_on_are_found_before_anything_is_written(
    search_settings, whole_search, tmp_path, data
):
    folder = tmp_path / data
    if data != "missing":
        folder.mkdir()
    if data == "texts":
        (folder / "a.txt").write_text("no image")
    if data == "few":
        write_images(folder, count=6)
    with pytest.raises((UsageError, DataError)) as error:
        start_run(tmp_path / "run", replace(search_settings, data=str(folder)), CPU)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises((UsageError, DataError)):  # nor is an earlier run removed
        start_run(whole_search, replace(search_settings, data=str(folder)), CPU, overwrite=True)
    assert {file.name for file in whole_search.iterdir()} == RUN_FILES


def test_one_image_to_rate_on_is_too_few(search_settings, tmp_path):
    folder = write_images(tmp_path / "images", count=7)  # of which a quarter is 1
    few = replace(search_settings, data=str(folder), global_batch=4, rating_images=None)
    with pytest.raises(UsageError, match=r"images has 1 image to rate paths on, which takes 2; add more images$"):
        start_run(tmp_path / "run", few, CPU)
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_is_named_and_replaced(search_settings, tmp_path, capfd):
    folder = write_images(tmp_path / "images")
    for file in sorted(folder.iterdir())[:12]:
        file.write_bytes(file.read_bytes()[:60])
    damaged = replace(search_settings, data=str(folder), epochs=1, rating_every=0)
    start_run(tmp_path / "run", damaged, CPU)
    search(damaged, tmp_path / "run", CPU)
    assert "cannot be read as an image" in capfd.readouterr().err


def test_images_none_of_which_can_be_read_are_an_error(search_settings, tmp_path):
    folder = write_images(tmp_path / "images")
    for file in folder.iterdir():
        file.write_bytes(b"no image")
    start_run(tmp_path / "run", replace(search_settings, data=str(folder)), CPU)
    with pytest.raises(DataError, match=r"none of its .* images can be read"):
        search(replace(search_settings, data=str(folder)), tmp_path / "run", CPU)


def test_images_that_went_missing_before_a_resume_are_an_error(search_settings, tmp_path):
    folder = write_images(tmp_path / "images")
    moved = replace(search_settings, data=str(folder))
    out = tmp_path / "run"
    start_run(out, moved, CPU)
    with pytest.MonkeyPatch.context() as patch:
        run_until_killed(moved, out, patch, 3, "after")
    next(folder.iterdir()).unlink()
    with pytest.raises(DataError, match="bring the missing images back, or start a new run"):
        search(resume_settings(out), out, CPU)


def test_a_loss_that_is_not_finite_stops_and_names_step_and_last_good_state(search_settings, tmp_path, monkeypatch):
    bootstrap, calls = stage_module.bootstrap, 0

    def diverging(*args, **kwargs):
        nonlocal calls
        calls += 1
        return bootstrap(*args, **kwargs) if calls < 4 else float("nan")

    monkeypatch.setattr(stage_module, "bootstrap", diverging)
    out = tmp_path / "run"
    start_run(out, search_settings, CPU)
    with pytest.raises(BossNetError) as error:
        search(search_settings, out, CPU)
    assert str(error.value).startswith("the loss became nan in block1-any at step 2 (epoch 2); the last good state is ")
    assert state_file(out, "block1-any", 1).exists()
    assert str(state_file(out, "block1-any", 1)) in str(error.value)
    assert load_stage(out, "block1-any")["epoch"] == 1


def test_a_full_disk_is_one_sentence_and_the_search_can_go_on(search_settings, whole_search, tmp_path, monkeypatch):
    out = tmp_path / "run"
    start_run(out, search_settings, CPU)
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
            search(search_settings, out, CPU)
    search(resume_settings(out), out, CPU)
    assert_same_search(out, whole_search)


def test_pictures_of_any_mode_and_size_can_be_searched_on(search_settings, tmp_path):
    folder = write_images(tmp_path / "images", count=20)
    for number, mode in enumerate(("L", "P", "RGBA", "LA", "1", "CMYK")):
        Image.new(mode, (20 + 30 * number, 50)).convert("RGB" if mode == "CMYK" else mode).save(
            folder / f"odd{number}.png"
        )
    odd = replace(search_settings, data=str(folder), epochs=1, rating_every=0, max_madds=None)
    start_run(tmp_path / "run", odd, CPU)
    assert search(odd, tmp_path / "run", CPU).best


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("resnetfoo", "unknown model 'resnetfoo'"),
        ("vit_tiny_patch16_224", r"does not take images of 32 px: .*\(224\); type another --resolution or --teacher$"),
    ],
)
def test_a_teacher_that_cannot_teach_leaves_no_folder(search_images, tmp_path, teacher, message):
    with pytest.raises(UsageError, match=message):
        start_run(tmp_path / "run", tiny_settings(search_images, method="dna", teacher=teacher), CPU)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_cannot_be_fetched_leaves_no_folder(search_images, tmp_path, monkeypatch):
    def offline(name: str) -> None:
        raise BossNetError(f"{name} could not be fetched (no route); try again with a connection")

    monkeypatch.setattr(distillation, "open_model", offline)
    settings = tiny_settings(search_images, method="dna", teacher_pretrained=True)
    with pytest.raises(BossNetError, match=r"test_resnet could not be downloaded .*, or --no-teacher-pretrained"):
        start_run(tmp_path / "run", settings, CPU)
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_published_weights_says_what_else_can_teach(search_images, tmp_path):
    settings = tiny_settings(search_images, method="dna", teacher="test_bossnet_t", teacher_pretrained=True)
    with pytest.raises(BossNetError, match=r"are not published; type --teacher RUN .* or --no-teacher-pretrained"):
        start_run(tmp_path / "run", settings, CPU)
    assert not (tmp_path / "run").exists()


def test_resuming_on_other_processes_says_on_how_many_it_was_begun(search_settings, tmp_path):
    start_run(tmp_path / "run", search_settings, CPU)
    said = (
        r"was begun on 1 process, and its batches of 8 images cannot be shared by 3 processes; resume it on 1 process"
    )
    with pytest.raises(UsageError, match=said):
        run_module._open(search_settings, tmp_path / "run", replace(CPU, world_size=3), tmp_path / "run" / "split.json")


def test_a_study_of_images_without_labels_leaves_no_folder(search_images, tmp_path):
    study = Study("nats", str(search_images), BOSSNET_M.smoke(), 3)
    with pytest.raises(DataError, match="has no labels"):
        start_study(tmp_path / "study", study, CPU)
    assert not (tmp_path / "study").exists()


def test_lost_records_of_a_log_are_told(search_settings, whole_search, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    start_run(out, search_settings, CPU)
    assert run_until_killed(search_settings, out, monkeypatch, 4, "before")
    (out / "metrics.jsonl").unlink()
    search(resume_settings(out), out, CPU)
    assert "has lost records of block1-any" in " ".join(capfd.readouterr().err.split())
    assert load_json(out / "ratings.json")["blocks"] == load_json(whole_search / "ratings.json")["blocks"]
