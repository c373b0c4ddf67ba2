"""What a search leaves: repeatable, complete, and without ever having read a label."""

from __future__ import annotations

from dataclasses import replace

import pytest
from searching import CPU
from tiny_search import RUN_FILES, assert_same_search, shown, tiny_settings

from bossnet_zoo.checkpoint import load_json, read_jsonl
from bossnet_zoo.search.run import search, start_run
from bossnet_zoo.search.run_folder import read_config


def test_a_search_leaves_ratings_architectures_weights_and_a_report(search_settings, whole_search):
    assert {file.name for file in whole_search.iterdir()} == RUN_FILES
    space, config = search_settings.make_space(), read_config(whole_search)
    assert config["settings"] == search_settings.to_json()
    assert (config["preset"], config["method"], config["runtime"]) == ("demo", "bossnas", CPU.description)
    ratings = load_json(whole_search / "ratings.json")
    first, second = (block["entries"] for block in ratings["blocks"])
    assert set(first["any"]) == {space.path_text(path) for path in space.paths(0)}
    (entry,) = second
    best = space.parse_path(0, min(first["any"], key=first["any"].get))
    assert entry == space.entry_text(best[-1].scale)  # greedy
    listed = load_json(whole_search / "architectures.json")
    assert listed == sorted(listed, key=lambda row: row["score"])
    assert all(row["madds"] <= 860_000 for row in listed)
    assert all(space.cost(space.parse(row["architecture"])).madds == row["madds"] for row in listed)
    assert "<svg" in (whole_search / "report.html").read_text()


def test_the_log_has_every_step_epoch_and_rating(search_settings, whole_search):
    records = read_jsonl(whole_search / "metrics.jsonl")
    kinds = [(record["block"], record["kind"]) for record in records]
    steps_per_epoch = 15 // search_settings.global_batch  # 19 images, of which 4 are rated on
    for block in (0, 1):
        assert kinds.count((block, "step")) == 2 * steps_per_epoch
        assert kinds.count((block, "epoch")) == 2
        assert kinds.count((block, "rating")) == 2  # after the first epoch, and in the end
    step = next(record for record in records if record["kind"] == "step")
    assert {"epoch", "step", "loss", "lr", "momentum", "paths", "entry"} <= set(step)
    assert len(step["paths"]) == search_settings.num_paths
    final = [record for record in records if record["kind"] == "rating" and record["block"] == 0][-1]
    assert final["ratings"] == load_json(whole_search / "ratings.json")["blocks"][0]["entries"]["any"]


def test_the_log_can_be_watched_in_tensorboard(search_settings, whole_search):
    figures, records = shown(whole_search), read_jsonl(whole_search / "metrics.jsonl")
    assert set(figures) == {file.stem for file in (whole_search / "blocks").iterdir()}
    for name, stage in figures.items():
        own = [record for record in records if name == f"block{record['block'] + 1}-{record['entry']}"]
        steps = [record for record in own if record["kind"] == "step"]
        for figure in ("loss", "lr", "momentum"):
            expected = {record["step"]: pytest.approx(record[figure], rel=1e-6) for record in steps}
            assert stage[figure] == expected
        ratings = [record["ratings"].values() for record in own if record["kind"] == "rating"]
        assert list(stage["best_rating"].values()) == [pytest.approx(min(values), rel=1e-6) for values in ratings]
        assert list(stage["mean_rating"]) == [0, 1]  # after the only step of each epoch


def test_the_same_seed_gives_the_same_search_and_another_seed_another(search_settings, whole_search, tmp_path):
    start_run(tmp_path / "again", search_settings, CPU)
    search(search_settings, tmp_path / "again", CPU)
    assert_same_search(tmp_path / "again", whole_search)
    other = replace(search_settings, seed=1, epochs=1)
    start_run(tmp_path / "other", other, CPU)
    search(other, tmp_path / "other", CPU)
    assert (
        load_json(tmp_path / "other" / "ratings.json")["blocks"] != load_json(whole_search / "ratings.json")["blocks"]
    )
    assert load_json(tmp_path / "other" / "split.json") != load_json(whole_search / "split.json")


def test_full_coverage_rates_the_whole_space(search_images, tmp_path):
    settings = tiny_settings(search_images, coverage="full", rating_images=2)
    start_run(tmp_path / "run", settings, CPU)
    table = search(settings, tmp_path / "run", CPU).table
    assert table.coverage(settings.make_space()) == 1.0
    assert set(table.blocks[1]) == {"4", "8", "16", "32"}
    assert {file.stem for file in (tmp_path / "run" / "blocks").iterdir()} == {
        "block1-any", "block2-4", "block2-8", "block2-16", "block2-32"
    }  # fmt: skip


@pytest.mark.parametrize(("needed", "noted"), [(0.0, 0), (100.0, 2)])
def test_a_supernet_that_tells_no_images_apart_is_named(search_images, tmp_path, monkeypatch, capsys, needed, noted):
    monkeypatch.setattr("bossnet_zoo.search.run.LEARNED", needed)
    settings = tiny_settings(search_images, epochs=1, rating_every=0, rating_images=2)
    start_run(tmp_path / "run", settings, CPU)
    search(settings, tmp_path / "run", CPU)
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("towards other images") == 2
    assert told.count("these ratings say little") == told.count("a lower --target-momentum") == noted


def test_no_label_is_ever_read(search_settings, search_images, whole_search, tmp_path):
    """The same images in one folder for each class: search them, and nothing changes but the name of the source."""
    (tmp_path / "classes").mkdir()
    for number, file in enumerate(sorted(search_images.iterdir())):
        folder = tmp_path / "classes" / f"{number // 12}"
        folder.mkdir(exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    labelled = replace(search_settings, data=str(tmp_path / "classes"), epochs=1, rating_every=0)
    start_run(tmp_path / "run", labelled, CPU)
    assert search(labelled, tmp_path / "run", CPU).best
