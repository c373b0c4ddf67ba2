"""Measuring accuracy, naming classes, and the commands train, eval and predict from end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_training import write_pictures
from typer.testing import CliRunner

from bossnet_zoo import cli
from bossnet_zoo.checkpoint import load_json
from bossnet_zoo.datasets import open_images
from bossnet_zoo.errors import CheckpointError, DataError, UsageError
from bossnet_zoo.evaluate import Accuracy, Classifier, classify, measure_accuracy, timm_row
from bossnet_zoo.runs import build_model, class_names_of, open_model, resolve_model
from bossnet_zoo.runtime import Runtime

CPU = Runtime(torch.device("cpu"))
PREPROCESSING = {
    "input_size": (3, 16, 16),
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}


@pytest.fixture
def shades(tmp_path) -> Path:
    """Eight classes of one grey picture each: class k has brightness 30 k."""
    for number in range(8):
        (tmp_path / "shades" / f"{number}").mkdir(parents=True)
        grey = (30 * number,) * 3
        Image.new("RGB", (16, 16), grey).save(tmp_path / "shades" / f"{number}" / "a.png")
    return tmp_path / "shades"


def by_brightness(offset: int):
    """A network that knows the shades, but answers `offset` classes too high, where there is such a class."""

    def predict(x: torch.Tensor) -> torch.Tensor:
        found = (x.mean(dim=(1, 2, 3)) * 255 / 30).round() + offset
        return -(torch.arange(8)[None] - found[:, None]).abs()

    return predict


@pytest.mark.parametrize(("offset", "top1"), [(0, 100.0), (1, 12.5)])
def test_accuracy_is_counted_as_by_hand(shades, offset, top1):
    images = open_images(str(shades), "all")
    accuracy = measure_accuracy(by_brightness(offset), images, PREPROCESSING, CPU, batch=3)
    assert (accuracy.top1, accuracy.top5, accuracy.images) == (top1, 100.0, 8)
    assert accuracy.images_per_second > 0


def test_the_loss_is_the_mean_over_images_whatever_the_batch(shades):
    images = open_images(str(shades), "all")
    losses = [measure_accuracy(by_brightness(1), images, PREPROCESSING, CPU, batch=b).loss for b in (1, 3, 8)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_fewer_than_five_classes_have_a_top5_too(shades):
    for extra in ("3", "4", "5", "6", "7"):
        (shades / extra / "a.png").unlink()
        (shades / extra).rmdir()
    images = open_images(str(shades), "all")
    accuracy = measure_accuracy(lambda x: by_brightness(1)(x)[:, :3], images, PREPROCESSING, CPU)
    assert accuracy.top5 == 100.0


def test_an_unreadable_image_is_left_out_of_the_accuracy(shades):
    (shades / "2" / "a.png").write_text("no image")
    images = open_images(str(shades), "all")
    seen = []

    def one_class_too_high_above_3(x):
        seen.append(len(x))
        found = (x.mean(dim=(1, 2, 3)) * 255 / 30).round()
        return -(torch.arange(8)[None] - (found + (found == 3))[:, None]).abs()  # the one that would stand in for it

    accuracy = measure_accuracy(one_class_too_high_above_3, images, PREPROCESSING, CPU, batch=3)
    assert (accuracy.images, accuracy.top1) == (7, pytest.approx(100 * 6 / 7))
    assert images.num_unreadable == 1


def test_labels_that_the_network_does_not_know_are_an_error(shades):
    images = open_images(str(shades), "all")
    with pytest.raises(UsageError, match="labels up to 7, and the network tells 4 classes apart"):
        measure_accuracy(lambda x: by_brightness(0)(x)[:, :4], images, PREPROCESSING, CPU)


def test_unlabelled_images_cannot_measure_accuracy(shades):
    images = open_images(str(shades / "3"), "all")
    with pytest.raises(DataError, match="has no labels, and measuring accuracy needs them"):
        measure_accuracy(by_brightness(0), images, PREPROCESSING, CPU)


def test_a_row_has_the_columns_of_timm():
    accuracy = Accuracy(top1=80.80004, top5=95.2, loss=1.0, images=10, images_per_second=5.0)
    row = timm_row(Classifier("net", by_brightness(0), PREPROCESSING, (), 38_012_345), accuracy)
    assert row == {
        "model": "net",
        "top1": 80.8,
        "top1_err": 19.2,
        "top5": 95.2,
        "top5_err": 4.8,
        "param_count": 38.01,
        "img_size": 16,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    }


def test_images_are_classified_by_name(shades):
    classifier = Classifier("net", by_brightness(0), PREPROCESSING, tuple("abcdefgh"))
    answers = classify(classifier, [str(shades / "2" / "a.png"), str(shades / "5" / "a.png")], CPU, top=3)
    assert [answer["classes"][0]["name"] for answer in answers] == ["c", "f"]
    assert answers[0]["classes"][0]["index"] == 2
    assert len(answers[0]["classes"]) == 3
    assert sum(entry["probability"] for entry in answers[0]["classes"]) < 1


def test_all_images_of_a_folder_are_classified(shades):
    classifier = Classifier("net", by_brightness(0), PREPROCESSING, tuple("abcdefgh"))
    answers = classify(classifier, [str(shades / "2"), str(shades / "5" / "a.png")], CPU)
    assert answers == classify(classifier, [*sorted(map(str, (shades / "2").iterdir())), str(shades / "5/a.png")], CPU)
    assert len(answers) == 2


def test_an_unreadable_image_is_named_counted_and_has_no_classes(shades, tmp_path, capfd):
    (tmp_path / "a.png").write_text("no image")
    broken, good = str(tmp_path / "a.png"), str(shades / "2" / "a.png")
    classifier = Classifier("net", by_brightness(0), PREPROCESSING, tuple("abcdefgh"))
    left, right = classify(classifier, [broken, good], CPU)
    assert left == {"image": broken, "error": "cannot be read as an image (it is of no known kind, or damaged)"}
    assert (right["image"], right["classes"][0]["name"]) == (good, "c")
    notes = "".join(capfd.readouterr().err.split())
    assert "".join(f"{broken} cannot be read as an image".split()) in notes
    assert "1of2imagescouldnotberead" in notes
    for files, strict in (([broken], False), ([broken, good], True)):
        with pytest.raises(DataError, match=r"a.png cannot be read as an image .*; give another file"):
            classify(classifier, files, CPU, strict=strict)
    with pytest.raises(DataError, match="none of 2 images can be read"):
        classify(classifier, [broken, broken], CPU)


def test_a_missing_image_and_an_empty_folder_are_mistakes(shades, tmp_path):
    classifier = Classifier("net", by_brightness(0), PREPROCESSING, tuple("abcdefgh"))
    (tmp_path / "empty").mkdir()
    missing, empty = tmp_path / "missing.png", tmp_path / "empty"
    for file, message in ((missing, "missing.png does not exist"), (empty, "empty has no images")):
        with pytest.raises(UsageError, match=message):
            classify(classifier, [str(shades / "2" / "a.png"), str(file)], CPU)


def test_imagenet_names_come_from_timm():
    names = class_names_of(build_model("test_bossnet_t"))
    assert len(names) == 1000
    assert names[0].startswith("tench")
    assert class_names_of(build_model("test_bossnet_t", num_classes=2)) == ("class 0", "class 1")


# --- what stands for a network


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("bossnet_t0", ("bossnet_t0", {})),
        ("hytra:4c-8c", ("hytra", {"arch": "4c-8c"})),
        ("16aa", ("hytra", {"arch": "16aa"})),
        ("mbconv:11-1111-1101-1011-1101", ("mbconv", {"arch": "11-1111-1101-1011-1101"})),
        ("8:16:24:32:64", ("nats_size", {"arch": "8:16:24:32:64"})),
        ("nats:8:16:24:32:64", ("nats_size", {"arch": "8:16:24:32:64"})),
    ],
)
def test_names_and_architectures_stand_for_networks(given, meant):
    assert resolve_model(given) == meant


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hytra:11-1111-1101-1011-1101", "hytra architecture .*'11' is not a stride .*: bossnet space hytra"),
        ("mbconv:4c-8c", "mbconv architecture '4c-8c': '4c' is not made of digits 0 to 3; .*: bossnet space mbconv"),
        ("nats:16aa", "nats architecture '16aa' is not made of numbers joined by ':'.*: bossnet space nats"),
        ("hytra:bossnet_t0", "hytra architecture 'bossnet_t0'.* is not a stride"),
        ("nats:", "nats architecture '' is not made of numbers"),
    ],
)
def test_an_architecture_is_not_of_another_space_than_the_one_in_front(given, said):
    with pytest.raises(UsageError, match=said):
        resolve_model(given)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown model 'bosnet_t0'; did you mean bossnet_t0"):
        resolve_model("bosnet_t0")


def test_a_file_of_weights_tells_the_number_of_classes(tmp_path):
    from bossnet_zoo.checkpoint import save_weights

    network = build_model("4c-8c", num_classes=7, base_width=4)
    save_weights(tmp_path / "a.safetensors", network.state_dict())
    opened = open_model("4c-8c", str(tmp_path / "a.safetensors"), base_width=4)
    assert opened.num_classes == 7
    assert torch.equal(opened.fc.weight, network.fc.weight)
    with pytest.raises(CheckpointError, match="does not fit"):
        open_model("4c-8c", str(tmp_path / "a.safetensors"), base_width=8)


def test_a_name_without_weights_says_how_to_train_it():
    with pytest.raises(UsageError, match=r"no published weights.*bossnet train"):
        open_model("4c-8c")


def test_a_folder_that_is_no_run_says_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="is no training run; make one with: bossnet train"):
        open_model(str(tmp_path))


# --- the commands


def run(*arguments: str) -> str:
    """What a command prints on stdout; its error is raised."""
    result = CliRunner().invoke(cli.app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    text = run(
        *("train", "4c-8c", "--option", "base_width=4", "--data", "digits", "--recipe", "bossnet-t", "--smoke"),
        *("--epochs", "1", "--image-size", "16", "--global-batch", "128", "--out", str(out), "--json"),
    )
    assert json.loads(text)["weights"] == str(out / "last.safetensors")
    return out


def test_a_trained_run_is_evaluated_by_its_folder_alone(trained, tmp_path):
    text = run("eval", str(trained), "--out", str(tmp_path))
    assert text.startswith("top-1 ")
    assert text.rstrip().endswith("images/s")
    again = json.loads(run("eval", str(trained), "--weights", "ema", "--out", str(tmp_path), "--json"))
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert again["top1"] == pytest.approx(last["ema_top1"])
    assert json.loads((tmp_path / "eval.json").read_text())["weights"] == "ema"
    with open(tmp_path / "eval.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert float(rows[1]["top1"]) == pytest.approx(last["ema_top1"], abs=1e-3)
    assert rows[0]["img_size"] == "16"
    assert [(row["weights"], row["data"], row["part"]) for row in rows] == [
        ("best", "digits", "test"),
        ("ema", "digits", "test"),
    ]


def test_top5_is_printed_of_more_than_five_classes_alone(trained, tmp_path):
    assert ", top-5 " in run("eval", str(trained), "--out", str(tmp_path))
    small = ("--recipe", "bossnet-t", "--smoke", "--epochs", "1", "--image-size", "16", "--global-batch", "8")
    arguments = ("4c-8c", "--option", "base_width=4", "--data", str(write_pictures(tmp_path / "two")), *small)
    text = run("train", *arguments, "--out", str(tmp_path / "run"))
    assert "top-5" not in text
    assert [line.split("top-1")[0] for line in text.splitlines()] == ["", "average weights: "]
    assert "top-5" not in run("eval", str(tmp_path / "run"))
    assert load_json(tmp_path / "run" / "eval.json")["top5"] == 100  # programs find it as ever


def test_an_older_table_of_evaluations_gains_columns(trained, tmp_path):
    (tmp_path / "eval.csv").write_text("model,top1\nnet,50.0\n")
    run("eval", str(trained), "--out", str(tmp_path))
    with open(tmp_path / "eval.csv", newline="") as file:
        old, new = csv.DictReader(file)
    assert (old["model"], old["top1"], old["weights"], new["weights"]) == ("net", "50.0", "", "best")


def test_another_input_size_is_honoured(trained, tmp_path):
    found = json.loads(run("eval", str(trained), "--input-size", "24", "--out", str(tmp_path), "--json"))
    assert found["img_size"] == 24


def test_a_file_of_the_run_can_be_evaluated(trained, tmp_path):
    file = str(trained / "last.safetensors")
    assert json.loads(run("eval", file, "--out", str(tmp_path), "--json"))["images"] == 360


def test_an_exported_network_measures_as_the_one_it_came_from(trained, tmp_path):
    from bossnet_zoo.export.onnx import export_onnx
    from bossnet_zoo.runs import load_run

    file = tmp_path / "a.onnx"
    export_onnx(load_run(trained)[0], file)
    own, exported = (
        json.loads(run("eval", model, "--data", "digits", "--device", "cpu", "--out", str(tmp_path), "--json"))
        for model in (str(trained), str(file))
    )
    assert exported["top1"] == pytest.approx(own["top1"], abs=0.3)
    assert exported["loss"] == pytest.approx(own["loss"], rel=1e-4)


def test_an_exported_network_of_any_size_is_measured_at_others(trained, tmp_path):
    from bossnet_zoo.export.pipeline import Request, export_network
    from bossnet_zoo.runs import load_run

    model = load_run(trained)[0]
    for name, dynamic in (("fixed", False), ("open", True)):
        export_network(model, name, tmp_path, Request(dynamic_size=dynamic))
    measured = ("--data", "digits", "--input-size", "24", "--out", str(tmp_path), "--json")
    own = json.loads(run("eval", str(trained), *measured))
    exported = json.loads(run("eval", str(tmp_path / "open.onnx"), *measured))
    assert (exported["img_size"], exported["param_count"]) == (24, None)
    assert exported["loss"] == pytest.approx(own["loss"], rel=1e-4)
    with pytest.raises(UsageError, match=r"a batch of shape .*24, 24\) was given; the file takes"):
        run("eval", str(tmp_path / "fixed.onnx"), *measured)


def test_predict_prints_classes_with_names(trained, tmp_path):
    open_images("digits", "test").image(0).save(tmp_path / "digit.png")
    answer = json.loads(run("predict", str(trained), str(tmp_path / "digit.png"), "--top", "2", "--json"))
    assert [len(entry["classes"]) for entry in answer] == [2]
    assert answer[0]["classes"][0]["name"] in "0123456789"
    lines = run("predict", str(trained), str(tmp_path / "digit.png"), "--top", "2").splitlines()
    assert lines[0] == str(tmp_path / "digit.png")
    assert lines[1].split()[-1] == answer[0]["classes"][0]["name"]


def test_a_run_is_resumed_by_its_folder_alone(trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert json.loads(run("train", "--resume", str(trained), "--json"))["top1"] == summary["top1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train",), r"MODEL, --data, --recipe, --out missing; for instance: bossnet train"),
        (("train", "4c", "--data", "digits", "--recipe", "bossnet-x", "--out", "x"), "unknown recipe 'bossnet-x'"),
        (("train", "4c", "--option", "base_width", "--data", "digits"), "--option 'base_width' has no value"),
        (("train", "--resume", "nowhere"), "nowhere is no training run"),
        (("train", "--resume", "a", "--out", "b"), "leave out --out"),
        (("eval", "bossnet_t0"), "--data is missing"),
        (("eval", "bosnet_t0", "--data", "digits"), "did you mean bossnet_t0"),
        (("eval", "a.onnx", "--data", "digits", "--weights", "ema"), "is exported as it is"),
        (("predict", "a.onnx", "a.png", "--precision", "bfloat16"), "has its precision in its graph"),
        (("eval", "test_bossnet_t", "--data", "digits", "--weights", "bset"), "weights 'bset'; did you mean best"),
        (("eval", "test_bossnet_t", "--data", "digits", "--weights", "ema"), "test_bossnet_t has no published weights"),
        (("eval", "4c", "--data", "nowhere"), "no folder and no known name"),
    ],
)
def test_wrong_requests_say_what_to_type(arguments, message):
    with pytest.raises(UsageError, match=message):
        run(*arguments)


def test_a_run_takes_no_options_of_a_network(trained):
    with pytest.raises(UsageError, match="is a run, and its network is as it was trained; leave out --option"):
        open_model(str(trained), base_width=8)


def test_a_network_of_another_number_of_colours_is_refused(tmp_path):
    grey = ("train", "4c-8c", "--option", "base_width=4", "--option", "in_chans=1")
    with pytest.raises(UsageError, match=r"takes images of 1 channel, and images are read in colour; .*in_chans=3"):
        run(*grey, "--data", "digits", "--recipe", "bossnet-t", "--smoke", "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_replaced_by_what_begins_from_it(trained):
    same = ("--data", "digits", "--recipe", "finetune", "--smoke", "--overwrite", "--out", str(trained))
    for origin in ((str(trained),), ("4c-8c", "--option", "base_width=4", "--init", str(trained / "best.safetensors"))):
        with pytest.raises(UsageError, match="would replace"):
            run("train", *origin, *same)
    assert (trained / "best.safetensors").exists()


def test_resuming_with_another_setting_is_an_error(trained):
    with pytest.raises(UsageError, match=r"recipe\.epochs was 1, now 2"):
        run("train", "--resume", str(trained), "--epochs", "2")
