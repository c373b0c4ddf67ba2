"""What a failed export or publication leaves behind, and the places that are refused before any work."""

from __future__ import annotations

import shutil
import urllib.error

import pytest
from exporting import trained
from test_export_cli import TINY, Mean, call
from timm.models import _hub

from bossnet_zoo.checkpoint import removing_empty
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.export import pipeline, triton
from bossnet_zoo.export.onnx import export_onnx
from bossnet_zoo.export.triton import write_triton


def full(*_):
    raise OSError(28, "No space left on device", ".net.onnx.1234abcd.tmp")


def test_a_failed_export_removes_the_folder_that_it_made(tmp_path, monkeypatch):
    def fail(_model, _name, out, _request):
        out.mkdir(parents=True)
        raise BossNetError("failed")

    monkeypatch.setattr(pipeline, "export_network", fail)
    monkeypatch.setattr("bossnet_zoo.runs.build_model", lambda *_, **__: trained())
    with pytest.raises(BossNetError, match="failed"):
        call("export", *TINY, "--out", str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_or_holds_something_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyError), removing_empty(tmp_path / "mine"):
        raise KeyError

    def fail():
        (tmp_path / "new" / "deeper").mkdir(parents=True)
        (tmp_path / "new" / "file").touch()
        raise KeyError

    with pytest.raises(KeyError), removing_empty(tmp_path / "new" / "deeper"):
        fail()
    assert {file.name for file in tmp_path.rglob("*")} == {"mine", "new", "file"}


@pytest.mark.parametrize("step", ["_copy", "save_text"])
def test_a_full_disk_leaves_nothing_in_the_triton_repository(tmp_path, monkeypatch, step):
    source = export_onnx(Mean(), tmp_path / "net.onnx", input_size=(3, 8, 8)).file
    copy, save = triton._copy, triton.save_text
    if step == "_copy":
        monkeypatch.setattr(triton, "_copy", full)
    else:
        monkeypatch.setattr(triton, "save_text", lambda path, _: triton.write_atomically(path, full))
    with pytest.raises(BossNetError) as error:
        write_triton(tmp_path / "served", "net", source)
    sentence = str(error.value)
    assert sentence.endswith(
        "could not be written: No space left on device; free some space or choose another --triton"
    )
    assert ".tmp" not in sentence
    assert not (tmp_path / "served").exists()
    monkeypatch.setattr(triton, "_copy", copy)
    monkeypatch.setattr(triton, "save_text", save)
    write_triton(tmp_path / "served", "net", source)
    before = {file: file.read_bytes() for file in (tmp_path / "served").rglob("*") if file.is_file()}
    monkeypatch.setattr(triton, "_copy", full)
    with pytest.raises(BossNetError):
        write_triton(tmp_path / "served", "net", source)
    assert {file: file.read_bytes() for file in (tmp_path / "served").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("place", ["file", "file/served"])
def test_a_triton_repository_that_cannot_be_is_refused_before_any_work(tmp_path, monkeypatch, place):
    (tmp_path / "file").touch()
    monkeypatch.setattr("bossnet_zoo.runs.build_model", None)
    with pytest.raises(UsageError, match=rf"{tmp_path / 'file'} is a file; type another --triton"):
        call("export", *TINY, "--out", str(tmp_path / "out"), "--triton", str(tmp_path / place))
    assert not (tmp_path / "out").exists()


def test_publish_without_a_connection_advises_what_publish_takes(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no connection")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_hub, "download_url_to_file", offline)
    with pytest.raises(BossNetError, match=r"no connection>; try again with .* copy of the file into (.*)$") as error:
        call("publish", "bossnet_t0", "--repo", "team/net", "--dry-run", "--out", str(tmp_path / "hub"))
    assert str(error.value).endswith(str(tmp_path / "cache" / "hub" / "checkpoints"))
    assert "--weights" not in str(error.value)
    shutil.copyfile(__file__, tmp_path / "cache" / "hub" / "checkpoints" / "BossNet-T0-80_8.pth")
    with pytest.raises(BossNetError, match=r"the download of .* was cut short or damaged"):  # it was found, and read
        call("publish", "bossnet_t0", "--repo", "team/net", "--dry-run", "--out", str(tmp_path / "hub"))
