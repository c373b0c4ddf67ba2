"""Side-cars: what is known of an exported file, in JSON beside it, with a checksum; checked before the file runs.

FILE.onnx.json is the record of the comparison with PyTorch (`report.ExportReport`). An ONNX file describes itself and
runs without one; where there is one, it must be that file's. FILE.engine.json says what an engine was built from and
for, and no engine runs without it:

builder, version   the package that built it: `tensorrt` or `tensorrt_rtx`
gpu                name and compute capability of the GPU it is for; null for every RTX GPU
onnx, onnx_sha256  the file it was built from
options            of the build: `EngineOptions`
key                hash of all above: what has the same key need not be built again
profile            smallest, usual and largest shape of the input
classes            number of outputs
metadata           of the ONNX file: preprocessing, class names, precision
engine_sha256      hash of the engine
sha256             hash of all above, as `checkpoint.sealed` makes it; the record of an ONNX file ends with one too
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bossnet_zoo.checkpoint import SEAL, check_seal, load_json, save_json, sealed, sha256
from bossnet_zoo.errors import BossNetError

FORMAT = 1


def side_car(file: Path) -> Path:
    """The file that describes an exported one."""
    return file.with_name(file.name + ".json")


def describe_build(package: str, version: str, gpu: str | None, onnx_file: Path, options: Any) -> dict[str, Any]:
    """Everything that decides what an engine is, and the hash of it as its key; `options` in plain values."""
    about = {
        "format": FORMAT,
        "builder": package,
        "version": version,
        "gpu": gpu,
        "onnx": onnx_file.name,
        "onnx_sha256": sha256(onnx_file),
        "options": options,
    }
    return about | {"key": sealed(about)[SEAL]}


def write_side_car(exported: Path, about: Mapping[str, Any]) -> None:
    """Save what is known of an exported file, with a checksum of that."""
    save_json(side_car(exported), sealed(about))


def read_side_car(engine_file: Path) -> dict[str, Any]:
    """What an engine's side-car says.

    Raises:
        BossNetError: it is missing, damaged or edited, or belongs to another engine.
    """
    file = side_car(engine_file)
    if not file.exists():
        raise BossNetError(f"{file} is missing, which describes the engine; keep the two together, or export it again")
    about = _read_unchanged(file, "description of the engine", "export the engine again")
    if about["format"] != FORMAT:
        raise BossNetError(f"{file} was written by another version of bossnet-zoo; export the engine again")
    if about["engine_sha256"] != sha256(engine_file):
        raise BossNetError(f"{engine_file} is damaged, or not the engine that {file.name} describes; export it again")
    return about


def read_record(onnx_file: Path) -> dict[str, Any] | None:
    """What the record beside an ONNX file tells of its comparison with PyTorch; None where there is none.

    Raises:
        BossNetError: it was changed, or is that of another file.
    """
    file = side_car(onnx_file)
    if not file.exists():
        return None
    remedy = f"export {onnx_file.name} again, or remove {file.name}: the network runs without it"
    about = _read_unchanged(file, "record of the comparison", remedy)
    if about.get("onnx_sha256") != sha256(onnx_file):
        raise BossNetError(f"{file} tells of another file than {onnx_file}; {remedy}")
    return about


def _read_unchanged(file: Path, what: str, remedy: str) -> dict[str, Any]:
    """The values of a side-car. Raises `BossNetError` where its checksum does not fit them."""
    about = load_json(file, what)
    about = about if isinstance(about, dict) else {}
    check_seal(about, file, remedy)
    return about


def find_built(engine_file: Path, key: str) -> dict[str, Any] | None:
    """The side-car of an undamaged engine with this key; None where there is none, and the engine is to be built."""
    try:
        about = read_side_car(engine_file) if engine_file.exists() else {}
    except BossNetError:
        return None
    return about if about.get("key") == key else None


def check_side_car(about: Mapping[str, Any], path: Path, version: str, gpu: str) -> None:
    """Raise `BossNetError` where an engine cannot run here: it is for another version of TensorRT, or another GPU."""
    package = about["builder"]
    if about["version"] != version and not about["options"]["version_compatible"]:
        raise BossNetError(
            f"{path} was built by {package} {about['version']}, and {package} {version} is installed here; "
            "export it again, or build it with --version-compatible"
        )
    if about["gpu"] not in (None, gpu) and not about["options"]["hardware_compatible"]:
        raise BossNetError(
            f"{path} was built for {about['gpu']}, and this machine has {gpu}; export it again here, "
            "or build it with --hardware-compatible"
        )
