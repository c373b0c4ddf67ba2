"""Publishing to the Hub, against a small local server that speaks its protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from exporting import lively
from hub_server import Hub, serve
from huggingface_hub import ModelCard

from bossnet_zoo.checkpoint import load_weights, save_json, save_weights
from bossnet_zoo.errors import BossNetError, DamagedFileError, UsageError
from bossnet_zoo.export.hub import Publication, upload, write_repository
from bossnet_zoo.recipes import BOSSNET_T
from bossnet_zoo.runs import build_model

REPO = "team/tiny-digits"
# huggingface_hub 2.4 sends files in a way that its own HTTP library calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished training run of a tiny network, as `bossnet train` leaves it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    model = lively("hytra", arch="4c-8c-16ca-32a", base_width=8, num_classes=10)
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0}
    config = {
        "format": 1,
        "kind": "train",
        "version": "0.1.0",
        "architecture": "4c-8c-16ca-32a",
        "parts": ["train", "test"],
        "pretrained": False,
        "init": None,
        "strict_images": False,
        "device_batch": 64,
        "precision": "float32",
        "runtime": "cpu, float32, 1 process",
        "model": "hytra",
        "model_options": {"arch": "4c-8c-16ca-32a", "base_width": 8},
        "num_classes": 10,
        "class_names": [f"digit {number}" for number in range(10)],
        "preprocessing": {**preprocessing, "interpolation": "bicubic", "crop_mode": "center"},
        "data": "digits",
        "recipe": BOSSNET_T.smoke().to_json(),
        "seed": 0,
    }
    save_json(out / "config.json", config)
    save_weights(out / "best.safetensors", model.state_dict())
    summary = {"top1": 90.0, "top5": 99.0, "ema_top1": 91.0, "ema_top5": 99.5, "best_top1": 92.25, "best_epoch": 3}
    save_json(out / "summary.json", summary)
    return out


@pytest.fixture(scope="module")
def publication(run, tmp_path_factory) -> Publication:
    return write_repository(str(run), REPO, tmp_path_factory.mktemp("hub") / "tiny", onnx=True, license="apache-2.0")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve() as server:
        yield server


@pytest.fixture(autouse=True)
def _without_the_xet_protocol(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)


def test_repository_has_weights_configuration_and_card(publication):
    assert set(publication.files) == {"model.safetensors", "config.json", "README.md", "onnx/tiny-digits.onnx"}
    assert all((publication.folder / file).is_file() for file in publication.files)
    config = json.loads((publication.folder / "config.json").read_text())
    assert config["architecture"] == "hytra"
    assert config["model_args"].items() >= {"arch": "4c-8c-16ca-32a", "base_width": 8}.items()
    assert config["label_names"][3] == "digit 3"
    card = ModelCard.load(publication.folder / "README.md")
    assert (card.data.library_name, card.data.license) == ("timm", "apache-2.0")
    assert card.data.eval_results[0].metric_value == 92.25


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(publication, run, tmp_path):
    again = write_repository(str(run), REPO, tmp_path, onnx=True, license="apache-2.0")
    for file in publication.files:
        assert (publication.folder / file).read_bytes() == (again.folder / file).read_bytes(), file


def test_published_files_are_exactly_the_repository(publication, hub: Hub):
    (publication.folder / "bossnet.engine").write_bytes(b"for one GPU only")
    done = upload(publication, REPO, endpoint=hub.url)
    assert set(hub.files[REPO]) == set(publication.files)
    assert hub.commits[REPO] == 1
    assert done.url.endswith(hub.revision(REPO))


def test_publishing_twice_changes_nothing(publication, hub: Hub):
    upload(publication, REPO, endpoint=hub.url)
    upload(publication, REPO, endpoint=hub.url)
    assert hub.commits[REPO] == 1


def test_onnx_files_of_an_earlier_publication_do_not_stay_beside_other_weights(publication, hub: Hub):
    upload(publication, REPO, endpoint=hub.url)
    hub.files[REPO]["notes.txt"] = b"mine"
    names = tuple(name for name in publication.files if not name.endswith(".onnx"))
    upload(Publication(publication.folder, names), REPO, endpoint=hub.url)
    assert set(hub.files[REPO]) == {*names, "notes.txt"}
    assert hub.commits[REPO] == 2


def test_private_is_passed_on(publication, hub: Hub):
    upload(publication, REPO, private=True, endpoint=hub.url)
    assert hub.private[REPO]


def test_nothing_private_is_sent_to_a_public_repository(publication, hub: Hub):
    hub.files[REPO], hub.commits[REPO] = {}, 0
    with pytest.raises(UsageError, match="tiny-digits is there already, and public; make it private on the Hub"):
        upload(publication, REPO, private=True, endpoint=hub.url)
    assert (hub.files[REPO], hub.commits[REPO], hub.large) == ({}, 0, {})


def test_a_cut_off_upload_leaves_the_repository_as_it_was(publication, hub: Hub):
    hub.files[REPO], hub.commits[REPO] = {"README.md": b"old"}, 7
    hub.fail_lfs = True
    with pytest.raises(BossNetError, match=r"publishing to team/tiny-digits failed: .*the repository is as it was"):
        upload(publication, REPO, endpoint=hub.url)
    assert hub.files[REPO] == {"README.md": b"old"}
    assert hub.commits[REPO] == 7


@pytest.mark.parametrize(("status", "remedy"), [(401, "token; type hf auth login"), (403, "may not")])
def test_a_refused_token_is_told_for_what_it_is(publication, hub: Hub, status, remedy):
    hub.refuse = status
    with pytest.raises(BossNetError, match=rf"publishing to {REPO} failed: .*{remedy}"):
        upload(publication, REPO, endpoint=hub.url)


def test_what_lies_beside_a_publication_is_named(run, tmp_path, capfd):
    write_repository(str(run), REPO, tmp_path / "hub", onnx=True)
    assert "not part of it" not in capfd.readouterr().err
    again = write_repository(str(run), "team/other", tmp_path / "hub")
    assert "tiny-digits.onnx" in capfd.readouterr().err.replace("\n", "")
    assert not [file for file in again.files if file.endswith(".onnx")]


def test_the_card_takes_top5_from_an_evaluation_of_the_same_weights(run, tmp_path):
    about = {"weights": "best", "data": "digits", "part": "test", "top5": 98.76}
    top1 = json.loads((run / "summary.json").read_text())["best_top1"]
    for found, known in ((top1, True), (top1 - 1, False)):
        save_json(run / "eval.json", {**about, "top1": found})
        write_repository(str(run), REPO, tmp_path / "hub")
        assert ("98.76" in (tmp_path / "hub" / "README.md").read_text()) == known
    (run / "eval.json").unlink()


def test_the_token_is_never_printed(publication, hub: Hub, capfd):
    hub.fail_lfs = True
    with pytest.raises(BossNetError) as error:
        upload(publication, REPO, endpoint=hub.url)
    captured = capfd.readouterr()
    assert "hf_secret" not in str(error.value) + captured.out + captured.err


def test_without_a_token_nothing_is_sent(publication, hub: Hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("bossnet_zoo.export.hub.get_token", lambda: None)
    with pytest.raises(UsageError, match="hf auth login"):
        upload(publication, REPO, endpoint=hub.url)
    assert hub.requests == []


LOADING = """
import bossnet_zoo, timm, torch
model = timm.create_model("hf-hub:team/tiny-digits", pretrained=True).eval()
torch.manual_seed(0)
with torch.inference_mode():
    torch.save((model(torch.randn(2, 3, 32, 32)), model.pretrained_cfg["label_names"][3]), {file!r})
"""


def test_timm_loads_what_was_published(publication, run, hub: Hub, tmp_path):
    upload(publication, REPO, endpoint=hub.url)
    file = tmp_path / "logits.pt"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", LOADING.format(file=str(file))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logits, label = torch.load(file)
    model = lively("hytra", arch="4c-8c-16ca-32a", base_width=8, num_classes=10)
    torch.manual_seed(0)
    with torch.inference_mode():
        expected = model(torch.randn(2, 3, 32, 32))
    assert torch.equal(logits, expected)
    assert label == "digit 3"


def test_a_damaged_copy_from_the_hub_is_noticed_and_fetched_again(publication, hub: Hub, tmp_path):
    upload(publication, REPO, endpoint=hub.url)
    file = tmp_path / "logits.pt"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", LOADING.format(file=str(file))]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    (kept,) = (tmp_path / "cache").rglob("model.safetensors")
    whole = kept.read_bytes()
    kept.resolve().write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one weight is another
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert f"the download of hf-hub:{REPO} was cut short or damaged; try again" in done.stderr
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    assert next((tmp_path / "cache").rglob("model.safetensors")).read_bytes() == whole


def test_card_tells_of_the_onnx_file(publication):
    text = (publication.folder / "README.md").read_text()
    assert "`onnx/tiny-digits.onnx` is this network as ONNX: opset 20" in text
    assert "onnx" in ModelCard(text).data.tags


def test_a_full_disk_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    def full(model, file, config):
        Path(file).write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bossnet_zoo.runs.save_config_for_hf", full)
    with pytest.raises(BossNetError, match=r"could not be written: .*No space left on device; free some space"):
        write_repository(str(run), REPO, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]  # whole
    load_weights(tmp_path / "model.safetensors")


def test_a_damaged_file_of_published_weights_is_noticed(run, tmp_path):
    write_repository(str(run), REPO, tmp_path)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 10
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 64
    file.write_bytes(content)
    with pytest.raises(DamagedFileError, match="do not match its checksum"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_the_same_weights_are_the_same_file(run, tmp_path):
    contents = set()
    for name in "abcd":  # the order of several entries of metadata would differ
        write_repository(str(run), REPO, tmp_path / name)
        contents.add((tmp_path / name / "model.safetensors").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("repo", ["tiny", "team/ti ny", "a/b/c", "team/tiny..digits"])
def test_wrong_repository_names_are_refused(run, tmp_path, repo):
    with pytest.raises(UsageError, match="--repo"):
        write_repository(str(run), repo, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_licence_is_a_name(run, tmp_path):
    with pytest.raises(UsageError, match=r"--license 'foo: \[bar' is no name of a licence"):
        write_repository(str(run), REPO, tmp_path / "x", license="foo: [bar")


@pytest.mark.parametrize(("option", "value"), [("weights", "ema"), ("license", "mit")])
def test_the_authors_release_is_published_as_it_is(tmp_path, option, value):
    with pytest.raises(
        UsageError, match=f"--{option} is for the weights of a run; those of bossnet_t0 are the authors'"
    ):
        write_repository("bossnet_t0", REPO, tmp_path / "x", **{option: value})
    assert not (tmp_path / "x").exists()


def test_a_run_is_opened_without_timms_prefix_and_published_for_timm(run, tmp_path):
    with pytest.raises(UsageError, match=r"is a training run, .* type .* alone, or for timm itself: bossnet publish"):
        build_model(f"local-dir:{run}", pretrained=True)
    write_repository(str(run), REPO, tmp_path / "timm")
    assert timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).num_classes == 10


def test_neither_run_nor_published_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"'bossnet_m1' is neither .* nor a published model \(bossnet_t0, "):
        write_repository("bossnet_m1", REPO, tmp_path / "x")
