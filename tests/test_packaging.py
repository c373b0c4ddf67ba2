"""The wheel and the sdist hold everything and work outside the repository."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def test_wheel_maps_the_folders_and_carries_its_data(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
    for needed in (
        "bossnet_zoo/py.typed",
        "bossnet_zoo/spaces/hytra.py",
        "bossnet_zoo/search/report.html",
        "bossnet_zoo/search/supernets/hytra.py",
        "bossnet_zoo/export/onnx.py",
        "bossnet_zoo/model_cards/card.md.jinja",
        "bossnet_zoo/model_cards/published.json",
    ):
        assert needed in names
    assert not [name for name in names if name.startswith(("search/", "export/", "tests/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_has_every_module_of_the_repository(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        in_wheel = {name for name in archive.namelist() if name.endswith(".py")}
    folders = {"bossnet_zoo": "bossnet_zoo"}
    folders |= {folder: f"bossnet_zoo/{folder}" for folder in ("search", "export", "model_cards")}
    in_tree = {
        f"{target}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, target in folders.items()
        for file in (ROOT / folder).rglob("*.py")
    }
    assert in_wheel == in_tree


def test_sdist_can_build_the_wheel_and_has_the_licence(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"LICENSE", "README.md", "pyproject.toml", "search/report.html", "export/onnx.py"} <= set(names)


def test_installed_wheel_works_outside_the_repository(built: tuple[Path, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(site)]
    subprocess.run([*install, str(built[1])], check=True, capture_output=True)
    program = """
import sys, bossnet_zoo, timm, torch
assert bossnet_zoo.__file__.startswith(sys.argv[1]), bossnet_zoo.__file__
from bossnet_zoo.search.solver import solve
from bossnet_zoo.export.onnx import export_onnx
print(tuple(timm.create_model("test_bossnet_t", num_classes=3)(torch.zeros(2, 3, 64, 64)).shape))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(site)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "(2, 3)", done.stderr
