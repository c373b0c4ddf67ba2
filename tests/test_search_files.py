"""Files of a search that were edited, damaged or mixed with another search's, and what is said of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from example_run import make_search
from searching import CPU
from tiny_search import tiny_settings
from typer.testing import CliRunner

from bossnet_zoo import console
from bossnet_zoo.checkpoint import load_json, save_json, save_weights
from bossnet_zoo.errors import BossNetError, CheckpointError
from bossnet_zoo.search.cli import app
from bossnet_zoo.search.extract import extract
from bossnet_zoo.search.report import write_report
from bossnet_zoo.search.run import search, start_run
from bossnet_zoo.search.run_folder import resume_settings

AGAIN = "bring back a copy, or remove it: every block is then trained again"


@pytest.fixture
def run(whole_search, tmp_path) -> Path:
    return Path(shutil.copytree(whole_search, tmp_path / "run"))


def edit(file: Path) -> None:
    stored = load_json(file)
    ratings = stored["blocks"][0]["entries"]["any"]
    ratings[min(ratings)] += 0.25
    save_json(file, stored)


@pytest.mark.parametrize("command", ["solve", "report", "extract"])
def test_ratings_that_were_edited_are_used_and_told_once(run, tmp_path, command):
    console.note_once.cache_clear()
    arguments = {
        "solve": ["--ratings", str(run / "ratings.json")],
        "report": [str(run)],
        "extract": [str(run), "--out", str(tmp_path / "warm")],
    }[command]
    said = f"{run / 'ratings.json'} is not as it was written, for its checksum does not fit"
    if command != "extract":  # which writes to an empty folder only
        assert said not in CliRunner().invoke(app, [command, *arguments], catch_exceptions=False).stderr
    edit(run / "ratings.json")
    result = CliRunner().invoke(app, [command, *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stderr.count(said) == 1


def test_ratings_without_a_checksum_are_taken_as_they_are(run):
    stored = load_json(run / "ratings.json")
    del stored["sha256"]
    save_json(run / "ratings.json", stored)
    result = CliRunner().invoke(app, ["solve", "--ratings", str(run / "ratings.json")], catch_exceptions=False)
    assert "checksum" not in result.stderr


def test_files_of_two_searches_in_one_folder_are_noticed(search_images, tmp_path):
    nats = make_search(tmp_path / "nats", "nats")
    out = tmp_path / "run"
    start_run(out, tiny_settings(search_images), CPU)
    shutil.copy(nats / "ratings.json", out)
    said = (
        r"config\.json and ratings\.json are of different searches: .*: space is 'nats', and in this search .*'hytra'"
    )
    with pytest.raises(CheckpointError, match=said):
        write_report(out)
    with pytest.raises(CheckpointError, match=said):
        extract(out, "4c-8cc", tmp_path / "warm", CPU)
    with pytest.raises(CheckpointError, match=said):
        search(resume_settings(out), out, CPU)


def test_searches_of_one_space_with_other_seeds_are_different_searches(run):
    stored = load_json(run / "ratings.json")
    save_json(run / "ratings.json", stored | {"seed": 9})
    with pytest.raises(CheckpointError, match=r"different searches: .*: seed is '9', and in this search it is '0'"):
        write_report(run)


@pytest.mark.parametrize("content", ['{"space": "hytra", "blo', "[]", '{"space": "hytra", "blocks": [{"8c": null}]}'])
def test_damaged_ratings_say_what_removing_them_means(run, content):
    (run / "ratings.json").write_text(content)
    with pytest.raises(BossNetError) as error:
        search(resume_settings(run), run, CPU)
    assert str(error.value).endswith(f"; {AGAIN}")
    assert str(run / "ratings.json") in str(error.value)


def test_a_block_of_another_network_is_one_plain_sentence(run, tmp_path):
    import torch

    file = next(iter((run / "blocks").glob("block1-*")))
    save_weights(file, {"stem.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError) as error:
        extract(run, None, tmp_path / "warm", CPU)
    assert str(error.value) == (
        f"a finished block cannot be used: {file} holds other weights than that block of this search has; "
        "bring the file back from a copy, or search again (--overwrite)"
    )
