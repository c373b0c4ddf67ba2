"""The folder of a training run, and what is kept in it.

config.json         everything that decides the result, and what is needed to rebuild the network
metrics.jsonl       one record per epoch; the same figures in tensorboard/, where TensorBoard is installed
last.safetensors    the latest weights; last_ema.safetensors their moving average; best.safetensors the best of both
state.pt            what resuming needs, with its checksum beside it
summary.json        the result, once finished
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from . import console
from .checkpoint import (
    is_leftover,
    load_json,
    load_state,
    load_weights,
    make_folder,
    read_jsonl,
    read_metadata,
    remove_leftovers,
    save_json,
    save_state,
    save_text,
    save_weights,
)
from .errors import CheckpointError, UsageError
from .runs import ROLE, WEIGHTS, check_role

STATE = "state.pt"
_FREE = ("version", "runtime")  # a run may be resumed by another version, or on another device
_FILES = ("config.json", "metrics.jsonl", "summary.json", STATE, f"{STATE}.sha256", *WEIGHTS.values())
_PLAIN = ("epoch", "step", "loss_sum", "seconds", "best_top1", "best_epoch", "last")


@dataclass
class State:
    """Everything that changes during training, and so everything that a checkpoint holds.

    Attributes:
        epoch, step: the next epoch, or the one being trained; the steps done in it.
        loss_sum: over those steps.
        seconds: spent so far, over all resumptions.
        best_top1, best_epoch: the highest accuracy so far, of either kind of weights.
        last: the record of the latest finished epoch.
    """

    model: nn.Module
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best_top1: float = -1.0
    best_epoch: int = -1
    last: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        parts = {"model": self.model, "ema": self.ema.module, "optimizer": self.optimizer}
        state = {name: part.state_dict() for name, part in parts.items()}
        save_state(path, state | {name: getattr(self, name) for name in _PLAIN})

    def load(self, path: Path) -> None:
        """Raises `CheckpointError`."""
        try:
            state = load_state(path)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; bring it back from a copy, or remove it, and --resume begins at the first epoch"
            ) from error
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in _PLAIN:
            setattr(self, name, state[name])


def open_folder(out: Path, config: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Make the folder of a new run, or see that the one in it is the one that `config` describes.

    Raises:
        UsageError: it holds a run that is neither to be resumed nor overwritten, or one of other settings, or the
            weights to begin with; or it holds other files, or cannot be made.
    """
    file = out / "config.json"
    config = json.loads(json.dumps(config))  # as it will be read back
    if resume:
        stored = load_json(file, "run's settings")
        check_same_settings(out, stored, config)
        remove_leftovers(out)
        return
    if (init := config.get("init")) and Path(init).resolve().parent == out.resolve():
        raise UsageError(f"{out} would replace {init}, which it begins with; type another --out")
    make_folder(out)
    if file.exists() and not overwrite:
        raise UsageError(f"{out} holds a run; continue it with --resume {out}, or begin anew with --overwrite")
    entries = [entry for entry in out.iterdir() if not is_leftover(entry)]
    if not file.exists() and any(entry.name not in _FILES and entry.name != "tensorboard" for entry in entries):
        raise UsageError(f"{out} holds other files, and no run; type another --out")
    remove_leftovers(out)
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
    for events in (out / "tensorboard").glob("events.*"):
        events.unlink()
    save_json(file, config)


def check_same_settings(out: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise `UsageError` naming the settings in which a run and what is asked for differ."""
    stored, given = _flat(stored), _flat(given)
    names = [name for name in {**stored, **given} if name not in _FREE and stored.get(name) != given.get(name)]
    if names:
        found = "; ".join(f"{name} was {stored.get(name)!r}, now {given.get(name)!r}" for name in names[:4])
        raise UsageError(f"{out} was begun with other settings ({found}); resume it with its own: --resume {out}")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted names, so that a message can name the very one."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": content for inner, content in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def keep_metrics_before(out: Path, epoch: int) -> None:
    """Drop the records of epochs that are about to be trained again: a crash may fall between record and state."""
    file = out / "metrics.jsonl"
    kept = [record for record in read_jsonl(file) if record["epoch"] < epoch]
    save_text(file, "".join(json.dumps(record) + "\n" for record in kept))


def save_epoch_weights(out: Path, state: State, record: Mapping[str, Any]) -> None:
    """The latest weights of both kinds, and the best so far; their safetensors metadata say which and from when."""
    by_kind = {"model": (state.model, record.get("top1")), "ema": (state.ema.module, record.get("ema_top1"))}
    for kind, (network, top1) in by_kind.items():
        about = {"epoch": str(record["epoch"]), "weights": kind}
        about |= {} if top1 is None else {"top1": f"{top1:.4f}"}
        _save_as(out / WEIGHTS[kind], network, about)
        if top1 is not None and top1 > state.best_top1:
            state.best_top1, state.best_epoch = top1, record["epoch"]
            _save_as(out / WEIGHTS["best"], network, about)


def _save_as(file: Path, network: nn.Module, about: Mapping[str, str]) -> None:
    """Weights that know the name of their file: see `check_role`."""
    save_weights(file, network.state_dict(), {**about, ROLE: file.name})


def check_kept_weights(out: Path, state: State, finished: bool) -> None:
    """Make sure that the weights that a resumed run will not write again are those that its state tells of.

    A file may be of the epoch that is about to be repeated: the run may have been killed before its state was saved.

    Raises:
        CheckpointError: one is damaged, or was exchanged for another.
    """
    best = out / WEIGHTS["best"]
    if state.best_epoch >= 0 and not best.exists() and not finished:
        console.note(f"{best} is gone; the best of the epochs to come will take its place")
        state.best_top1, state.best_epoch = -1.0, -1
    expected = {best: state.best_epoch}
    if finished:
        expected |= {out / WEIGHTS[kind]: state.epoch - 1 for kind in ("model", "ema")}
    for file, epoch in expected.items():
        if epoch < 0 or not file.exists():
            continue
        load_weights(file)
        check_role(file)
        found = read_metadata(file).get("epoch")
        if found not in (str(epoch), str(state.epoch)):
            raise CheckpointError(
                f"{file} is of another epoch than {epoch + 1}, which the run's state remembers; "
                "bring back a copy, or remove it"
            )


def open_board(folder: Path, step: int) -> Any:
    """A TensorBoard writer that forgets what it knew of `step` and later, or None where TensorBoard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        console.note_once(
            'no TensorBoard, so metrics go to metrics.jsonl alone; pip install "bossnet-zoo[tensorboard]"'
        )
        return None
    return SummaryWriter(str(folder), purge_step=step)


def write_board(board: Any, record: Mapping[str, Any], step: int) -> None:
    """The figures of a record, each under its name."""
    for name, value in record.items():
        if isinstance(value, float):
            board.add_scalar(name, value, step)
