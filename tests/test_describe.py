"""`bossnet list`, `info` and `space` tell what is there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import ARCH, TINY, fit, write_pictures

from bossnet_zoo.cli import list_models as show_list
from bossnet_zoo.describe import describe_model, describe_space, list_models
from bossnet_zoo.errors import ArchitectureError, UsageError
from bossnet_zoo.runs import WEIGHTS, load_run
from bossnet_zoo.spaces import changed_options, describe_in_words, get_space, space_command


def test_a_released_model_tells_its_size_accuracy_and_weights() -> None:
    about = describe_model("bossnet_t1", 256)
    assert about["params"] == 38_415_960
    assert about["madds"] == pytest.approx(10.51e9, rel=0.003)
    assert about["weights"] == ["bossnet_t1.ema_in1k", "bossnet_t1.in1k"]
    assert {entry["resolution"] for entry in about["accuracy"]} == {224, 256}


def test_an_architecture_has_neither_weights_nor_accuracy() -> None:
    about = describe_model("4c-8c-16ca-32ac")
    assert (about["weights"], about["accuracy"]) == ([], [])
    assert about["architecture"] == "4c-8c-16ca-32ac"


def test_options_of_the_network_count() -> None:
    text = "11-0110-0111-1100-0110"
    assert round(describe_model(text, se=False)["madds"] / 1e6, 1) == 479.5
    assert describe_model("bossnet_t0", in_chans=1)["madds"] < describe_model("bossnet_t0")["madds"]
    with pytest.raises(UsageError, match=r"unknown option of .*known: "):
        describe_model(text, squeeze=False)


def test_the_list_shows_accuracy_at_the_pixels_that_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    show_list("bossnet_t0")
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[-3:] == ["224", "80.8", "release"]


def test_list_takes_part_of_a_name() -> None:
    assert [row["model"] for row in list_models("bossnet_m")] == ["bossnet_m1", "bossnet_m2", "test_bossnet_m"]


def test_a_space_tells_its_size_and_legal_examples() -> None:
    about = describe_space("hytra")
    assert about["architectures"] == 2_818_103
    assert about["paths_by_block_and_entry"][1] == {"4": 51, "8": 99, "16": 80, "32": 16}
    assert all(describe_model(example)["params"] for example in about["examples"][:1])


def test_a_space_with_options_tells_its_own_rule_and_examples() -> None:
    about = describe_space("mbconv", block_layers=[1, 1, 1, 1, 2], se=False)
    assert about["architectures"] == 4**6
    assert about["rule"].startswith("6 layers in blocks of 1-1-1-1-2; ")
    assert about["rule"].endswith(f"Written: digits per block, {about['examples'][0]}")
    assert about["space_options"] == {"block_layers": (1, 1, 1, 1, 2), "se": False}
    assert describe_space("hytra", block_layers=[1, 2])["rule"].startswith("3 layers at strides")
    for name in ("hytra", "mbconv", "nats"):
        space = get_space(name)
        assert (changed_options(space), space_command(space)) == ({}, f"bossnet space {name}")
        assert describe_in_words(space) == f"{name}: {space.count():,} architectures"
    assert describe_in_words(get_space("hytra", base_width=8)) == "hytra: 2,818,103 architectures, with base_width=8"
    with pytest.raises(UsageError, match="did you mean widths"):
        describe_space("nats", width=[8])


def test_a_run_tells_of_its_network_and_its_weights(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    fit(write_pictures(tmp_path / "pictures"), run, recipe=replace(TINY, epochs=1))
    about = describe_model(str(run))
    network, _ = load_run(run)
    assert (about["architecture"], about["num_classes"]) == (ARCH, 2)
    assert about["params"] == sum(parameter.numel() for parameter in network.parameters())
    assert about["weights"] == [str(run / name) for name in WEIGHTS.values()]
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert about["accuracy"][1]["top1"] == round(record["top1"], 2)
    assert (
        about["accuracy"][1]["source"]
        == f"{run / 'last.safetensors'}, after epoch 1, on {tmp_path / 'pictures'}, part test"
    )
    assert about["resolution"] == about["accuracy"][1]["resolution"] == 32
    with pytest.raises(UsageError, match="leave out --option"):
        describe_model(str(run), base_width=8)
    with pytest.raises(UsageError, match=f"{tmp_path} is no training run, but holds {run}; "):
        describe_model(str(tmp_path))


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean bossnet_t"):
        describe_model("bossnet_t9")
    with pytest.raises(UsageError, match="did you mean hytra"):
        describe_space("hytar")
    with pytest.raises(ArchitectureError, match="layer 2: the stride jumps from 4 to 32"):
        describe_model("4c-32c")
