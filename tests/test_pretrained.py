"""Published weights: found, fetched, read without running anything, and loaded strictly."""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_data_config

from bossnet_zoo import models
from bossnet_zoo.errors import BossNetError, CheckpointError, UsageError
from bossnet_zoo.models.weights import read_weights

NARROW = {"base_width": 8, "head_dim": 8}
RELEASED = {
    "bossnet_t0": "BossNet-T0-80_8.pth",
    "bossnet_t0_nose": "BossNet-T0-nose-80_5.pth",
    "bossnet_t1": "BossNet-T1-81_9.pth",
}


@functools.cache
def trained(seed: int, **options) -> dict[str, torch.Tensor]:
    """Weights of a narrow BossNet-T0 that no initialisation gives."""
    model = timm.create_model("bossnet_t0", **NARROW, **options)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator) + 0.5 if value.is_floating_point() else value + seed
        for name, value in model.state_dict().items()
    }


def prefixed(weights: dict[str, torch.Tensor], prefix: str = "module.") -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((prefix + name, value) for name, value in weights.items())


def arguments() -> argparse.Namespace:
    """As DeiT's training script leaves them in a checkpoint."""
    return argparse.Namespace(lr=5e-4, model="bossnet_T0", data_path="data", aa="rand-m9-mstd0.5-inc1", opt_betas=None)


def layouts() -> dict[str, object]:
    plain, average = trained(1), trained(2)
    rest = {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 299, "args": arguments()}
    return {
        "release": {"model": plain, "model_ema": average, **rest},
        "release, distributed": {"model": prefixed(plain), "model_ema": prefixed(average), **rest},
        "release, one set": {"model": plain, "args": arguments()},
        "release, no average": {"model": plain, "model_ema": None},
        "only the average": {"model_ema": plain},
        "timm's trainer": {"state_dict": plain, "state_dict_ema": average, "arch": "bossnet_t0", "args": arguments()},
        "plain": plain,
        "plain, distributed": prefixed(plain),
        "plain, compiled": prefixed(plain, "_orig_mod."),
        "plain, both": prefixed(plain, "module._orig_mod."),
    }


def save(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def load(path: Path, tag: str = "in1k", **options) -> torch.nn.Module:
    overlay = {"file": str(path)}
    return timm.create_model(f"bossnet_t0.{tag}", True, pretrained_cfg_overlay=overlay, **NARROW, **options)


def assert_same(model: torch.nn.Module, weights: dict[str, torch.Tensor], but: tuple[str, ...] = ()) -> None:
    own = model.state_dict()
    assert own.keys() - set(but) == weights.keys() - set(but)
    for name in own.keys() - set(but):
        assert torch.equal(own[name], weights[name]), name


class Handler(http.server.SimpleHTTPRequestHandler):
    requests: list[str]
    break_off: list[bool]  # for the next requests: whether the connection breaks in the middle of the file

    def log_message(self, *_) -> None:
        self.requests.append(self.path)

    def copyfile(self, source, outputfile) -> None:
        content = source.read()
        outputfile.write(content[: len(content) // 2] if self.break_off and self.break_off.pop(0) else content)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder served on this machine, and an empty cache for what is downloaded."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    handler = type("Recording", (Handler,), {"requests": [], "break_off": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        httpd.folder, httpd.url = folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.requests, httpd.break_off = handler.requests, handler.break_off
        yield httpd
        httpd.shutdown()
        thread.join()


# --- layouts


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", layouts())
def test_every_layout_gives_the_plain_weights(tmp_path, layout, legacy):
    path = save(tmp_path / "release.pth", layouts()[layout], legacy)
    assert_same(load(path), trained(1))


def test_safetensors_give_the_plain_weights(tmp_path):
    save_file(trained(1), tmp_path / "weights.safetensors")
    assert_same(load(tmp_path / "weights.safetensors"), trained(1))


@pytest.mark.parametrize("layout", ["release", "release, distributed", "timm's trainer"])
def test_the_ema_tag_takes_the_average(tmp_path, layout):
    path = save(tmp_path / "release.pth", layouts()[layout])
    assert_same(load(path, tag="ema_in1k"), trained(2))


@pytest.mark.parametrize("layout", ["plain", "release, one set", "release, no average"])
def test_the_ema_tag_is_refused_where_there_is_no_average(tmp_path, layout):
    path = save(tmp_path / "release.pth", layouts()[layout])
    with pytest.raises(CheckpointError, match=r"no averaged weights.*tag \.in1k"):
        load(path, tag="ema_in1k")


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": "resnet"}, {"lr": 0.1, "epoch": 3}, None])
def test_a_file_without_weights_says_so(tmp_path, content):
    with pytest.raises(CheckpointError, match="holds no weights"):
        load(save(tmp_path / "settings.pth", content))


# --- download


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_are_known_by_address(name):
    base = "https://github.com/changlin31/BossNAS/releases/download/v0.1/"
    for tag in ("in1k", "ema_in1k"):
        assert timm.get_pretrained_cfg(f"{name}.{tag}").url == base + RELEASED[name]
    assert timm.get_pretrained_cfg(name).tag == "in1k"
    assert timm.is_model_pretrained(name)


def test_weights_are_downloaded_once_and_serve_both_tags(server):
    save(server.folder / "BossNet-T0-80_8.pth", layouts()["release"])
    overlay = {"url": server.url + "BossNet-T0-80_8.pth"}
    plain = timm.create_model("bossnet_t0", pretrained=True, pretrained_cfg_overlay=overlay, **NARROW)
    average = timm.create_model("bossnet_t0.ema_in1k", pretrained=True, pretrained_cfg_overlay=overlay, **NARROW)
    assert_same(plain, trained(1))
    assert_same(average, trained(2))
    assert server.requests == ["/BossNet-T0-80_8.pth"]


def test_a_failed_download_says_how_to_go_on(server):
    overlay = {"url": server.url + "absent.pth"}
    with pytest.raises(BossNetError, match=r"bossnet_t0 could not be downloaded.*404.*pretrained_cfg_overlay"):
        timm.create_model("bossnet_t0", pretrained=True, pretrained_cfg_overlay=overlay, **NARROW)
    overlay = {"url": "http://127.0.0.1:1/absent.pth"}  # nobody listens
    with pytest.raises(BossNetError, match=r"could not be downloaded from http://127.0.0.1:1.*refused"):
        timm.create_model("bossnet_t0", pretrained=True, pretrained_cfg_overlay=overlay, **NARROW)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_download_cut_short_is_not_kept(server, legacy):
    save(server.folder / "BossNet-T0-80_8.pth", layouts()["release"], legacy)
    overlay = {"url": server.url + "BossNet-T0-80_8.pth"}
    server.break_off.append(True)
    with pytest.raises(CheckpointError, match=r"download of http://.*BossNet-T0-80_8.pth was cut short.*; try again"):
        timm.create_model("bossnet_t0", pretrained=True, pretrained_cfg_overlay=overlay, **NARROW)
    model = timm.create_model("bossnet_t0", pretrained=True, pretrained_cfg_overlay=overlay, **NARROW)
    assert_same(model, trained(1))
    assert len(server.requests) == 2


def test_a_damaged_file_of_ones_own_is_kept(tmp_path):
    path = tmp_path / "release.pth"
    path.write_text("no weights")
    with pytest.raises(CheckpointError, match="is damaged"):
        load(path)
    model = timm.create_model("bossnet_t0", **NARROW)  # its weights have an address, which this file is not from
    with pytest.raises(CheckpointError, match="is damaged"):
        model.load_pretrained(path)
    assert path.read_text() == "no weights"


# --- what is adapted, and what is not


def test_the_classifier_is_replaced_where_the_classes_differ(tmp_path):
    path = save(tmp_path / "release.pth", layouts()["release"])
    model = load(path, num_classes=7)
    assert_same(model, trained(1), but=("fc.weight", "fc.bias"))
    assert model.fc.weight.shape == (7, 256)
    assert model.fc.weight.std() < 0.1  # freshly initialised
    assert_same(load(path, num_classes=0), {k: v for k, v in trained(1).items() if not k.startswith("fc.")})


def test_a_fine_tuned_classifier_is_kept(tmp_path):
    path = save(tmp_path / "fine-tuned.pth", trained(3, num_classes=7))
    assert_same(load(path, num_classes=7), trained(3, num_classes=7))
    with pytest.raises(CheckpointError, match=r"2 of another shape: fc.bias, fc.weight"):
        load(path)


def test_a_grey_image_sees_the_weights_as_three_equal_channels_would(tmp_path):
    path = save(tmp_path / "release.pth", layouts()["release"])
    grey, colour = load(path, in_chans=1).conv1, load(path).conv1
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)))


def test_features_only_loads_the_weights(tmp_path):
    path = save(tmp_path / "release.pth", layouts()["release"])
    features = load(path, features_only=True)
    assert torch.equal(features.layer4[0].proj[0].weight, trained(1)["layer4.0.proj.0.weight"])


def test_names_that_do_not_fit_are_listed(tmp_path):
    weights = {**trained(1), "layer5.0.weight": torch.zeros(1), "conv1.weight": torch.zeros(8, 3, 5, 5)}
    del weights["layer1.0.bn1.weight"], weights["layer1.0.bn1.bias"]
    path = save(tmp_path / "other.pth", weights)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert "2 missing: layer1.0.bn1.bias, layer1.0.bn1.weight" in message
    assert "1 unexpected: layer5.0.weight" in message
    assert "1 of another shape: conv1.weight" in message


@pytest.mark.parametrize("layout", ["release", "plain", "plain, distributed", "timm's trainer"])
def test_checkpoint_path_takes_what_timm_prefers(tmp_path, layout):
    """timm itself reads `checkpoint_path`: the average where there is one."""
    path = save(tmp_path / "release.pth", layouts()[layout])
    model = timm.create_model("bossnet_t0", checkpoint_path=str(path), **NARROW)
    assert_same(model, trained(2) if layout in ("release", "timm's trainer") else trained(1))


# --- files that mean harm, and broken ones


class Hostile:
    """Unpickled, it creates a file."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["model", "args", "inside args"])
def test_a_hostile_pickle_is_refused_unexecuted(tmp_path, place, legacy):
    hostile = Hostile(tmp_path / "witness")
    content = {
        "model": hostile,
        "args": {"model": trained(1), "args": hostile},
        "inside args": {"model": trained(1), "args": argparse.Namespace(path=hostile)},
    }[place]
    path = save(tmp_path / "hostile.pth", content, legacy)
    with pytest.raises(CheckpointError, match=r"hostile.pth was not loaded.*would run posix.system"):
        load(path)
    with pytest.raises(RuntimeError, match="weights_only=True blocked loading"):  # timm's own reader
        timm.create_model("bossnet_t0", checkpoint_path=str(path), **NARROW)
    assert not (tmp_path / "witness").exists()


def test_a_hostile_download_is_refused_unexecuted(server, tmp_path):
    save(server.folder / "BossNet-T0-80_8.pth", Hostile(tmp_path / "witness"))
    overlay = {"url": server.url + "BossNet-T0-80_8.pth"}
    with pytest.raises(CheckpointError, match="was not loaded"):
        timm.create_model("bossnet_t0", pretrained=True, pretrained_cfg_overlay=overlay, **NARROW)
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
@pytest.mark.parametrize("damage", ["cut short", "empty", "web page", "flipped"])
def test_a_damaged_file_says_so(tmp_path, name, damage):
    path = tmp_path / name
    save_file(trained(1), path) if name.endswith("safetensors") else save(path, trained(1))
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut short": whole[: len(whole) // 2],
            "empty": b"",
            "web page": b"<!DOCTYPE html><html>Not found</html>",
            "flipped": bytes(255 - byte for byte in whole[:200]) + whole[200:],
        }[damage]
    )
    with pytest.raises(CheckpointError, match=r"is damaged.*fetch it again"):
        read_weights(path)


def test_without_a_tag_the_average_is_taken_as_in_timms_checkpoint_path(tmp_path, capfd):
    file = save(tmp_path / "both.pth", layouts()["release"])
    assert read_weights(file)["fc.bias"].equal(trained(2)["fc.bias"])
    assert "the average is taken" in " ".join(capfd.readouterr().err.split())
    by_timm = timm.create_model("bossnet_t0", checkpoint_path=str(file), **NARROW)
    assert by_timm.fc.bias.equal(trained(2)["fc.bias"])


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(UsageError, match=r"absent.pth does not exist"):
        load(tmp_path / "absent.pth")


# --- names without weights


@pytest.mark.parametrize("name", sorted(set(models.model_names()) - set(RELEASED)))
def test_a_name_without_weights_says_how_to_train_it(name):
    with pytest.raises(UsageError, match=rf"{name} has no published weights.*bossnet train {name} --data .* --recipe "):
        timm.create_model(name, pretrained=True)


# --- metadata


@pytest.mark.parametrize(("name", "test_size"), [("bossnet_t0", 288), ("bossnet_t0_nose", 224), ("bossnet_t1", 256)])
def test_preprocessing_is_that_of_the_authors(name, test_size):
    model = timm.create_model(name, **NARROW)
    config = resolve_data_config(model=model)
    assert config["input_size"] == (3, 224, 224)
    assert resolve_data_config(model=model, use_test_size=True)["input_size"] == (3, test_size, test_size)
    assert config["interpolation"] == "bicubic"
    assert config["crop_pct"] == 0.875
    assert config["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    assert config["std"] == timm.data.IMAGENET_DEFAULT_STD
    assert model.pretrained_cfg["first_conv"] == "conv1"
    assert model.pretrained_cfg["classifier"] == "fc"


def test_importing_the_package_before_timm_registers_its_models_too():
    program = "import bossnet_zoo, timm; print(timm.is_model('bossnet_t0'), timm.is_model('nats_size'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_whoever_only_asks_whether_timm_is_there_does_not_use_up_the_registration():
    program = """
import importlib.util, sys
import bossnet_zoo
assert importlib.util.find_spec("timm") is not None and "timm" not in sys.modules
import timm
print(timm.is_model("bossnet_t0"), any(type(finder).__module__ == "bossnet_zoo" for finder in sys.meta_path))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
