"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import re
import resource
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file

from bossnet_zoo import checkpoint
from bossnet_zoo.checkpoint import (
    append_jsonl,
    check_fields,
    load_json,
    load_state,
    load_weights,
    read_jsonl,
    reading,
    remove_leftovers,
    save_json,
    save_state,
    save_text,
    save_weights,
    write_atomically,
)
from bossnet_zoo.errors import BossNetError, CheckpointError, DamagedFileError, UsageError

STATE = {"epoch": 3, "weights": {"a": torch.arange(6.0).view(2, 3)}, "name": "block1-any"}
BIG = {"weights": torch.zeros(100_000)}


def files(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def full_disk():
    """No file may grow beyond 2,000 bytes: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_json_text_state_and_weights_round_trip(tmp_path):
    save_json(tmp_path / "deep" / "a.json", {"é": [1, 2.5, None]})
    assert load_json(tmp_path / "deep" / "a.json") == {"é": [1, 2.5, None]}
    save_state(tmp_path / "state.pt", STATE)
    loaded = load_state(tmp_path / "state.pt")
    assert torch.equal(loaded.pop("weights")["a"], STATE["weights"]["a"])
    assert loaded == {"epoch": 3, "name": "block1-any"}
    assert files(tmp_path) == {"deep", "state.pt", "state.pt.sha256"}


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    save_text(path, "old")

    def write(temporary):
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        temporary.write_text("new")

    write_atomically(path, write)
    assert path.read_text() == "new"
    assert files(tmp_path) == {"a.txt"}


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    save_text(path, "old")

    def interrupt(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupt)
    assert path.read_text() == "old"
    assert files(tmp_path) == {"a.txt"}


@pytest.mark.parametrize(
    "save",
    [
        lambda path: save_json(path, list(range(5000))),
        lambda path: save_weights(path, BIG),
        lambda path: save_state(path, BIG),
    ],
    ids=["json", "weights", "state"],
)
def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path, full_disk, save):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(BossNetError, match=r"could not be written: .*File too large.*; free some space") as error:
        save(path)
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)
    assert path.read_text() == "old"
    assert files(tmp_path) == {"file"}


def test_a_full_disk_while_logging_is_one_sentence(tmp_path, full_disk):
    path = tmp_path / "metrics.jsonl"
    for number in range(15):
        append_jsonl(path, {"number": number, "text": "x" * 100})
    with pytest.raises(BossNetError, match="could not be written"):
        append_jsonl(path, {"number": 15, "text": "x" * 1000})
    assert [record["number"] for record in read_jsonl(path)] == list(range(15))


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BossNetError, match="could not be written"):
        save_json(tmp_path / "file" / "run" / "config.json", {})


# --- damage


@pytest.mark.parametrize("damage", ["cut", "flip", "no checksum", "other checksum", "missing"])
def test_a_damaged_state_is_detected(tmp_path, damage):
    path, checksum = tmp_path / "state.pt", tmp_path / "state.pt.sha256"
    save_state(path, STATE)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "no checksum":
        checksum.unlink()
    elif damage == "other checksum":
        checksum.write_text("0" * 64)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"state.pt"):
        load_state(path)


def test_a_state_unpickles_nothing_but_plain_values(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "harm"),)

    save_state(tmp_path / "state.pt", {"a": Evil()})
    with pytest.raises(CheckpointError, match="no training state"):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "harm").exists()


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for number in range(3):
        append_jsonl(path, {"number": number})
    path.write_bytes(path.read_bytes()[:-5])
    assert [record["number"] for record in read_jsonl(path)] == [0, 1]
    assert read_jsonl(tmp_path / "missing.jsonl") == []


def test_leftovers_of_a_killed_program_are_removed(tmp_path):
    keep = ["config.json", "blocks/a.safetensors", ".hidden", "notes.tmp", ".my notes.tmp", ".tmpfiles"]
    leftovers = [".state.pt.0a1b2c3d.tmp", "blocks/.a.safetensors.00ff00ff.tmp", ".k3_x9abc.tmp/model.safetensors"]
    leftovers += ["networks/a/.tmpH3fGgT"]  # safetensors has a temporary file of its own
    for name in keep + leftovers:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(keep)


def test_the_name_of_a_temporary_file_is_one_that_remove_leftovers_knows(tmp_path):
    def leave(temporary):
        temporary.write_text("half")
        temporary.with_name(temporary.name.replace("a.txt", "b.txt")).write_text("what kill -9 leaves")
        raise OSError("killed")

    with pytest.raises(BossNetError):
        write_atomically(tmp_path / "a.txt", leave)
    assert len(files(tmp_path)) == 1
    remove_leftovers(tmp_path)
    assert not files(tmp_path)


# --- what is no JSON


def test_files_that_are_missing_or_no_json_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"ratings file .*none.json does not exist"):
        load_json(tmp_path / "none.json", "ratings file")
    (tmp_path / "cut.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(BossNetError, match=r"cut.json is not valid JSON"):
        load_json(tmp_path / "cut.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BossNetError, match=r"binary.json is not valid JSON"):
        load_json(tmp_path / "binary.json")
    with pytest.raises(UsageError, match="cannot be read"):
        load_json(tmp_path)


def test_two_values_by_one_name_are_refused_instead_of_taking_the_last(tmp_path):
    (tmp_path / "twice.json").write_text('{"blocks": [{"8:8": 1.0, "8:16": 2.0, "8:8": 3.0}]}')
    with pytest.raises(BossNetError, match=r"twice.json is not valid JSON \('8:8' stands twice in one object\)"):
        load_json(tmp_path / "twice.json")


def test_sha256_is_that_of_the_file(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert checkpoint.sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# --- files that others have damaged or edited


def test_weights_that_lost_a_bit_are_noticed(tmp_path):
    file = tmp_path / "a.safetensors"
    save_weights(file, {"a": torch.arange(6.0), "b": torch.tensor(2)}, {"epoch": "3"})
    loaded = load_weights(file)
    assert torch.equal(loaded["a"], torch.arange(6.0))
    assert loaded["b"].item() == 2
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"a.safetensors is damaged: its values do not match its checksum"):
        load_weights(file)


def test_weights_of_others_have_no_checksum_and_load(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(load_weights(tmp_path / "a.safetensors")["a"], torch.ones(2))
    with pytest.raises(DamagedFileError, match="no safetensors file"):
        load_weights(tmp_path / "absent.safetensors")


def test_lines_cut_short_are_left_out_and_those_behind_them_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"b":\xff\n3\n{"c": 2}\n')
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}, {"c": 2}]


@dataclass(frozen=True)
class Fields:
    number: int
    share: float = 0.5
    kind: Literal["a", "b"] = "a"
    pair: tuple[str, int] = ("x", 1)
    names: tuple[str, ...] | None = None


@pytest.mark.parametrize(
    "values",
    [
        {"number": 1},
        {"number": 1, "share": 2, "pair": ["y", 2], "names": ["a", "b", "c"]},
        {"number": 0, "names": None},
    ],
)
def test_fields_that_fit_pass(values):
    check_fields(Fields, values, "these")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "these are no JSON object"),
        ({}, "these: number is missing"),
        ({"number": 1, "colour": 2}, "these colour are not known to this version"),
        ({"number": True}, "number is 'True', which it cannot be; it is a int"),
        ({"number": 1.5}, "number is '1.5'"),
        ({"number": 1, "share": 1e999}, "share is 'inf'"),
        ({"number": 1, "kind": "c"}, "kind is 'c'"),
        ({"number": 1, "pair": ["y"]}, "pair is"),
        ({"number": 1, "names": ["a", 2]}, "names is"),
    ],
)
def test_fields_that_do_not_fit_are_named(values, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        check_fields(Fields, values, "these")


def test_content_of_another_form_is_a_sentence(tmp_path):
    damaged = pytest.raises(CheckpointError, match=r"^list .*a.json is damaged.*KeyError: 'name'.*; begin anew$")
    with damaged, reading(tmp_path / "a.json", "list", "begin anew"):
        {}["name"]
    with pytest.raises(UsageError, match=r"^as it is$"), reading(tmp_path, "list"):
        raise UsageError("as it is")


def test_weights_can_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        save_weights(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644
