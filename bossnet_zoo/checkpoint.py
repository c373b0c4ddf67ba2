"""Files that are never half-written: JSON, weights (safetensors) and training state.

Everything is written to a temporary name in the same folder, flushed to the disk and renamed, so that a reader sees
either the old file or the new one, whatever moment the power fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BossNetError, CheckpointError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then give it the name `path`.

    Raises:
        BossNetError: the disk is full or the folder cannot be written; `path` is as it was before.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # no folder, no temporary file
            temporary.unlink()


def _not_written(path: Path, error: Exception) -> BossNetError:
    return BossNetError(f"{path} could not be written: {error}; free some space or choose another --out")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed program left in or below `folder`."""
    for file in folder.rglob(".*.tmp"):
        file.unlink(missing_ok=True)


def save_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))  # type: ignore[arg-type,func-returns-value]


def save_json(path: Path, value: Any) -> None:
    save_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def load_json(path: Path, what: str = "JSON file") -> Any:
    """The value in a JSON file.

    Raises:
        UsageError: the file does not exist.
        BossNetError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{what} {path} does not exist") from None
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BossNetError(f"{what} {path} is not valid JSON ({error}); it may be damaged or cut short") from None


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record to a JSON-lines file, such as `metrics.jsonl`. Raises `BossNetError` if the disk is full."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise _not_written(path, error) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line that was cut short by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Weights as safetensors, with text metadata."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, dict(metadata or {}))
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error

    write_atomically(path, write)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Training state (tensors and plain Python values), with a checksum beside it: `NAME.sha256`.

    The checksum is written first, above those of the files before: a program killed between the two leaves a state
    whose checksum is still there.
    """
    import torch

    checksum = path.with_name(path.name + ".sha256")

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            try:
                torch.save(dict(state), file)
            except RuntimeError as error:  # the reason, a full disk, stands behind it
                raise OSError(str(error.__context__ or error)) from error
        before = checksum.read_text(encoding="utf-8").split()[:3] if checksum.exists() else []
        save_text(checksum, "\n".join([sha256(temporary), *before]) + "\n")

    write_atomically(path, write)


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Nothing but tensors and plain values is unpickled.

    Raises:
        CheckpointError: the file is missing, damaged or no training state.
    """
    import torch

    checksum = path.with_name(path.name + ".sha256")
    if not path.exists() or not checksum.exists():
        raise CheckpointError(f"{path} does not exist, or its checksum {checksum.name} does not")
    if sha256(path) not in checksum.read_text(encoding="utf-8").split():
        raise CheckpointError(f"{path} is damaged: its checksum is not the one in {checksum.name}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is no training state of this program: {error}") from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
