"""Files that are never half-written, and never half-read: JSON, weights (safetensors) and training state.

Everything is written to a temporary name in the same folder, flushed to the disk and renamed, so that a reader sees
either the old file or the new one, whatever moment the power fails. Weights and states carry a checksum, and so does
JSON that a program goes on from; other JSON, which people edit, is checked for what it must say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BossNetError, CheckpointError, DamagedFileError, RemediableError, UsageError
from .json_types import fits_type

if TYPE_CHECKING:
    from torch import Tensor

_BACK = "bring it back from a copy, or begin anew"
CHECKSUM = "tensors_sha256"  # metadata of our safetensors files: see `hash_tensors`
SEAL = "sha256"  # name of the checksum within a JSON file: see `sealed`


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


def _not_written(path: Path, error: OSError) -> BossNetError:
    wrong_place = isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError | PermissionError)
    remedy = "type another --out" if wrong_place else "free some space or choose another --out"
    reason = error.strerror or error  # without the name of the temporary file
    return RemediableError(f"{path} could not be written: {reason}", remedy)


@contextlib.contextmanager
def removing_empty(folder: Path) -> Iterator[None]:
    """Where what runs within it fails, remove `folder` and those above it that it made, if nothing lies in them."""
    made = [one for one in (folder.absolute(), *folder.absolute().parents) if not one.exists()]
    try:
        yield
    except BaseException:
        for one in made:
            with contextlib.suppress(OSError):
                one.rmdir()
        raise


def make_folder(out: Path) -> None:
    """Make the folder of a new run. Raises `UsageError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be made a folder ({error.strerror}); type another --out") from None


def check_folder(out: Path, option: str = "--out") -> None:
    """Raise `UsageError` where no files can be written into `out`, before time is spent on them; makes nothing.

    Args:
        option: what `out` was given as.
    """
    there = out.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise UsageError(f"{out} cannot be made a folder, for {there} is a file; type another {option}")
    if not os.access(there, os.W_OK):
        raise UsageError(f"nothing can be written into {there}; type another {option}")


def is_leftover(file: Path) -> bool:
    """Whether a name is one that `write_atomically`, `tempfile` or safetensors gives to what is unfinished."""
    return re.fullmatch(r"\.(.+\.)?[0-9a-z_]{8,}\.tmp|\.tmp[0-9A-Za-z]{6}", file.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files, and folders of such, that a killed program left in or below `folder`."""
    for left in list(folder.rglob(".*tmp*")):
        if not is_leftover(left):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def save_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))  # type: ignore[arg-type,func-returns-value]


def save_json(path: Path, value: Any) -> None:
    save_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def load_json(path: Path, what: str = "JSON file", remedy: str = _BACK) -> Any:
    """The value in a JSON file.

    Args:
        what, remedy: what kind of file it is, and what to do if it is damaged.

    Raises:
        UsageError: the file does not exist.
        BossNetError: it is not JSON, or an object in it has two values by one name.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repetition)
    except FileNotFoundError:
        raise UsageError(f"{what} {path} does not exist") from None
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BossNetError(
            f"{what} {path} is not valid JSON ({error}); it may be damaged or cut short; {remedy}"
        ) from None


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of all else that it says, for files that a program must find as it left them."""
    plain = {name: entry for name, entry in value.items() if name != SEAL}
    return {**plain, SEAL: hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def check_seal(value: Mapping[str, Any], path: Path, remedy: str) -> None:
    """Raise `CheckpointError` where the JSON object read from `path` is not as `sealed` made it."""
    if value.get(SEAL) != sealed(value)[SEAL]:
        raise CheckpointError(
            f"{path} is not as it was written: its checksum does not fit, so it was edited or damaged; {remedy}"
        )


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python's own reading would keep the last of two values by one name, without a word."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name!r} stands twice in one object")
        values[name] = value
    return values


@contextlib.contextmanager
def reading(path: Path, what: str, remedy: str = _BACK) -> Iterator[None]:
    """Within it, content that is not what the code expects of `path` is a sentence that names the file.

    For content that other hands may have changed, and for nothing but taking it apart: an error in arithmetic would be
    blamed on the file.

    Raises:
        CheckpointError: instead of what Python raises for a missing name or a value of another type.
    """
    try:
        yield
    except BossNetError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{what} {path} is damaged, or was edited to what it cannot be ({_in_one_line(error)}); {remedy}"
        ) from error


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def check_fields(cls: type, values: Any, what: str) -> None:
    """Make sure that decoded JSON has a value for every field that `cls`, a dataclass, needs, and of the right type.

    Raises:
        UsageError: naming the field.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{what} are no JSON object; {_BACK}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if foreign := sorted(set(values) - set(fields)):
        raise UsageError(f"{what} {', '.join(foreign)} are not known to this version of bossnet-zoo; {_BACK}")
    for name, field in fields.items():
        if name in values and not fits_type(values[name], hints[name]):
            raise UsageError(
                f"{what}: {name} is {str(values[name])[:80]!r}, which it cannot be; it is a {field.type}; {_BACK}"
            )
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{what}: {name} is missing; {_BACK}")


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record to a JSON-lines file, such as `metrics.jsonl`. Raises `BossNetError` if the disk is full."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise _not_written(path, error) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; lines that a crash cut short, or that hold no record, are left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Weights as safetensors, with text metadata, to which a checksum is added: `CHECKSUM`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    about = {**(metadata or {}), CHECKSUM: hash_tensors(tensors)}

    def write(temporary: Path) -> None:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it: safetensors makes files that no one else can read
        try:
            save_file(tensors, temporary, about)
            temporary.chmod(mode)
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error

    write_atomically(path, write)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; compared with the checksum, where the file has one.

    Raises:
        DamagedFileError: the file is missing or damaged.
    """
    with _open_weights(path) as file:
        expected = (file.metadata() or {}).get(CHECKSUM)
        weights = {name: file.get_tensor(name) for name in list(file.keys())}
    if expected not in (None, hash_tensors(weights)):
        raise DamagedFileError(f"{path} is damaged: its values do not match its checksum; fetch it again")
    return weights


def read_metadata(path: Path) -> dict[str, str]:
    """The text metadata of a safetensors file. Raises `DamagedFileError`."""
    with _open_weights(path) as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _open_weights(path: Path) -> Iterator[Any]:
    """A safetensors file, open; what goes wrong while it is read is a `DamagedFileError`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged or no safetensors file ({error}); fetch it again") from None


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, the same whatever file they came from."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
        before = checksum.read_text(encoding="ascii", errors="replace").split()[:3] if checksum.exists() else []
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
    if sha256(path) not in checksum.read_text(encoding="ascii", errors="replace").split():
        raise CheckpointError(f"{path} is damaged: its checksum is not the one in {checksum.name}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is no training state of this program: {_in_one_line(error)}") from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
