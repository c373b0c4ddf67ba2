"""The states of a stage in training, from which a killed search goes on: `state-STAGE-epochNNNN.pt` in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bossnet_zoo import console
from bossnet_zoo.checkpoint import load_state, save_state
from bossnet_zoo.errors import CheckpointError

KEPT = 2  # the last one, and the one before in case it is damaged


def state_file(out: Path, stage: str, epoch: int) -> Path:
    """The state of a stage after `epoch` epochs."""
    return out / f"state-{stage}-epoch{epoch:04d}.pt"


def save_stage(out: Path, stage: str, epoch: int, state: dict[str, Any]) -> None:
    """Write the state after an epoch, and remove all but the last two of this stage."""
    save_state(state_file(out, stage, epoch), state)
    kept = {file.name for file in _states(out, stage)[:KEPT]}
    for file in out.glob("state-*"):
        if file.name.removesuffix(".sha256") not in kept:
            file.unlink()


def load_stage(out: Path, stage: str, aloud: bool = True) -> dict[str, Any] | None:
    """The newest undamaged state of a stage; None where it has none. Damaged ones are named on stderr, if `aloud`."""
    for file in _states(out, stage):
        try:
            return load_state(file)
        except CheckpointError as error:
            if aloud:
                console.note(f"{error}; going back to the state before it, or to the stage's beginning")
    return None


def remove_states(out: Path) -> None:
    """Remove what a finished search needs no more."""
    for file in out.glob("state-*"):
        file.unlink()


def _states(out: Path, stage: str) -> list[Path]:
    """Saved states of a stage, newest first."""
    return sorted(out.glob(f"state-{stage}-epoch*.pt"), reverse=True)
