"""Without the optional packages of export, everything else works, and export says what to install."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bossnet_zoo.runs import build_model, save_local

MISSING = ("onnx", "onnxruntime", "onnxscript", "ml_dtypes")
PROGRAM = """
import contextlib, importlib.metadata, io, json, sys
missing = {missing!r}
sys.modules.update(dict.fromkeys(missing))  # as if they were not installed
installed = importlib.metadata.version
def version(name):
    if name in missing:
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)
importlib.metadata.version = version
from bossnet_zoo.cli import main
told = []
for arguments in {commands!r}:
    sys.argv = ["bossnet", *arguments]
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    told.append([code, out.getvalue(), err.getvalue()])
print("TOLD", json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, list]:
    """Exit code, stdout and stderr of each command, by its name."""
    folder = tmp_path_factory.mktemp("base")
    network, image = folder / "network", folder / "digit.png"
    options = {"arch": "4c-8c-16ca-32a", "base_width": 8}
    model = build_model("hytra", num_classes=10, **options)
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    save_local(network, model, options)
    from bossnet_zoo.datasets import open_images

    open_images("digits", "test").image(0).save(image)
    commands = [
        ["list"],
        ["eval", str(network), "--data", "digits", "--out", str(folder), "--device", "cpu"],
        ["predict", str(network), str(image), "--device", "cpu"],
        ["doctor", "--json"],
        ["export", "bossnet_m1", "--untrained", "--out", str(folder / "deploy")],
        ["demo", "--out", str(folder / "demo")],
    ]
    program = PROGRAM.format(missing=MISSING, commands=commands)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.rpartition("TOLD ")[2])
    assert not (folder / "deploy").exists()
    assert not (folder / "demo").exists()
    return {arguments[0]: answer for arguments, answer in zip(commands, answers, strict=True)}


@pytest.mark.parametrize(("name", "said"), [("list", "bossnet_t0"), ("eval", "top-1 "), ("predict", " %  ")])
def test_networks_run_without_the_packages_of_export(told, name, said):
    code, out, err = told[name]
    assert code == 0, err
    assert said in out


def test_doctor_calls_what_is_not_installed_no_fault(told):
    code, out, err = told["doctor"]
    assert code == 0, out + err
    check = next(check for check in json.loads(out)["checks"] if check["name"] == "ONNX export")
    assert check == {"name": "ONNX export", "ok": None, "says": 'not installed: pip install "bossnet-zoo[onnx]"'}


@pytest.mark.parametrize("name", ["export", "demo"])
def test_what_needs_them_names_what_to_install_before_any_work(told, name):
    code, _, err = told[name]
    assert code == 2, err
    said = " ".join(err.split())
    assert "this needs the package 'onnx', which cannot be imported" in said
    assert 'pip install "bossnet-zoo[onnx]"' in said
