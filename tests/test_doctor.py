"""`bossnet doctor` tries things for real, tells what failed in its exit code, and keeps secrets."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from bossnet_zoo import cli
from bossnet_zoo.errors import BossNetError
from bossnet_zoo.export import doctor


@pytest.fixture(scope="module")
def about():
    return doctor.examine()


def outcome(about, name):
    return next(check for check in about["checks"] if check["name"] == name)


def test_what_is_installed_here_runs(about):
    for name in ("PyTorch, CPU", "ONNX export", "ONNX Runtime, CPU"):
        assert outcome(about, name)["ok"], outcome(about, name)
    assert all(about["versions"].values())


def test_every_package_that_this_one_depends_on_is_told():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert [re.split(r"[>\[]", package)[0] for package in project["dependencies"]] == list(doctor.REQUIRED)
    optional = {
        package: extra
        for extra, packages in project["optional-dependencies"].items()
        for text in packages
        if extra != "dev" and (package := re.split(r"[>\[]", text)[0]) != "bossnet-zoo"
    }
    assert set(optional) == set(doctor.OPTIONAL)


def test_what_is_not_here_is_no_fault(about):
    import torch

    if not torch.cuda.is_available():
        assert outcome(about, "ONNX Runtime, CUDA") == {"name": "ONNX Runtime, CUDA", "ok": None, "says": "no GPU"}


def test_the_text_names_every_check_and_fits_a_terminal(about):
    text = doctor.as_text(about)
    assert all(f" {check['name']} " in text for check in about["checks"])
    assert max(map(len, text.splitlines())) <= 80
    for name, number in (about["versions"] | about["optional"]).items():
        assert f"{name}=={number}" in text if number else name in text
    assert not text.count("None")


def test_a_token_is_never_told(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    outcome = doctor._outcome("Hub token", doctor._check_token)
    assert outcome == {"name": "Hub token", "ok": True, "says": "there is one"}


@pytest.mark.parametrize("error", [BossNetError("the disk is full"), RuntimeError("CUDA error\nmore lines")])
def test_a_failed_check_ends_with_exit_code_1(monkeypatch, capfd, error):
    def fail() -> str:
        raise error

    monkeypatch.setattr(doctor, "_checks", lambda: [doctor._outcome("disk", fail)])
    monkeypatch.setattr(sys, "argv", ["bossnet", "doctor", "--json"])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    (check,) = json.loads(capfd.readouterr().out)["checks"]
    assert check["ok"] is False
    assert str(error).splitlines()[0] in check["says"]
    assert "more lines" not in check["says"]
