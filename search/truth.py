"""True accuracies of sampled architectures, each trained from scratch: what `bossnet rank` compares ratings with.

config.json          what was asked for; a resumed study goes on with it
truth.json           {"space", "accuracy": {architecture: percent}, ...}, written again after every architecture
networks/NAME        a training run each, as `bossnet train` leaves it, but without weights once it is finished

An accuracy is the top-1 on the test part of the last epoch's weights, or of their moving average, which is less noisy
after a short training: no epoch is picked by it. With several seeds it is their mean, and `runs` in the truth file has
each.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bossnet_zoo import __version__, console
from bossnet_zoo.checkpoint import (
    check_fields,
    is_leftover,
    load_json,
    make_folder,
    reading,
    remove_leftovers,
    save_json,
)
from bossnet_zoo.datasets import count_classes, open_images
from bossnet_zoo.determinism import seed_of
from bossnet_zoo.errors import UsageError, unknown
from bossnet_zoo.recipes import Recipe
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Arch, Space, get_space, require_networks
from bossnet_zoo.train import train

from .truth_table import TruthTable, truth_from_json

FORMAT = 1
KIND = "truth"
_ACCURACIES = {"model": "top1", "ema": "ema_top1"}  # key of a training's summary, by whose accuracy it is


@dataclass(frozen=True)
class Study:
    """What to measure, and how.

    Attributes:
        space, space_options: where architectures are sampled, uniformly and none twice.
        data: as for `open_images`.
        recipe: with which every architecture is trained.
        sample: how many architectures.
        seed: decides which, and everything random in their training.
        seeds: trainings of each architecture, with seeds of their own.
        weights: whose accuracy counts: `model` for the last ones, `ema` for their moving average.
        parts: of the data, to train on and to measure accuracy on.
    """

    space: str
    data: str
    recipe: Recipe
    sample: int
    space_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    seeds: int = 1
    weights: Literal["model", "ema"] = "model"
    parts: tuple[str, str] = ("train", "test")

    def __post_init__(self) -> None:
        count = self.make_space().count()
        if not 1 <= self.sample <= count:
            raise UsageError(f"{self.sample} architectures cannot be sampled; space {self.space!r} has {count:,}")
        if self.seeds < 1:
            raise UsageError(f"{self.seeds} trainings of each architecture are not possible; type --seeds 1 or more")
        if self.weights not in _ACCURACIES:
            raise unknown("kind of weights", self.weights, _ACCURACIES)

    def make_space(self) -> Space:
        return get_space(self.space, **self.space_options)

    def architectures(self) -> list[Arch]:
        """The sampled architectures. A larger sample with the same seed begins with the same ones."""
        space, generator = self.make_space(), random.Random(seed_of(self.seed, "truth"))
        archs: dict[Arch, None] = {}
        while len(archs) < self.sample:
            archs[space.sample(generator)] = None
        return list(archs)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for config.json."""
        names = ("space", "space_options", "data", "sample", "seed", "seeds", "weights", "parts")
        return {name: getattr(self, name) for name in names} | {"recipe": self.recipe.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Study:
        """The inverse of `to_json`. Raises `UsageError` where a value is missing, or is none that it can be."""
        values = {**values, "recipe": Recipe.from_json(values["recipe"]), "parts": tuple(values["parts"])}
        check_fields(cls, values, "a study")
        return cls(**values)


def start_study(out: Path, study: Study, runtime: Runtime, overwrite: bool = False) -> None:
    """Make the folder of a new study.

    Raises:
        UsageError: `out` already holds something, and `overwrite` is not set or it is no study; or a space whose
            networks have no names.
        DataError: images without labels, or of one class.
    """
    require_networks(study.space, "bossnet truth")
    count_classes(*(open_images(study.data, part) for part in study.parts))
    if runtime.is_main:
        if out.exists() and (not out.is_dir() or not all(map(is_leftover, out.iterdir()))):
            if not (overwrite and _is_study(out)):
                hint = f"--resume {out} to go on with it, --overwrite to replace it, or " if _is_study(out) else ""
                raise UsageError(f"{out} already holds files; type {hint}another --out")
            _empty(out)
        make_folder(out)
        head = {"format": FORMAT, "kind": KIND, "version": __version__}
        save_json(out / "config.json", {**head, "study": study.to_json()})
    runtime.barrier()


def resume_study(out: Path) -> Study:
    """The study that `out` holds. Raises `UsageError` if it holds none."""
    if not _is_study(out):
        raise UsageError(
            f"{out} holds no study of true accuracies; start one with: bossnet truth --space nats --data digits "
            f"--sample 50 --out {out}"
        )
    with reading(out / "config.json", "study's settings"):
        return Study.from_json(load_json(out / "config.json")["study"])


def _is_study(out: Path) -> bool:
    file = out / "config.json"
    config = load_json(file, "study's settings") if file.is_file() else None
    return isinstance(config, dict) and config.get("kind") == KIND


def _empty(out: Path) -> None:
    import shutil

    shutil.rmtree(out / "networks", ignore_errors=True)
    for name in ("truth.json", "config.json"):
        (out / name).unlink(missing_ok=True)


def measure_truth(study: Study, out: Path, runtime: Runtime, *, workers: int | None = None) -> TruthTable:
    """Train every architecture of the study that `out` does not have yet; a training cut short goes on where it was.

    Args:
        out: the study's folder, see `start_study`.
        workers: data-loading processes.

    Returns:
        What truth.json says.

    Raises:
        UsageError, DataError, BossNetError: as `train` does.
    """
    if runtime.is_main:
        remove_leftovers(out)
    archs = study.architectures()
    runs: dict[str, list[float]] = {}
    for number, arch in enumerate(archs, start=1):
        accuracies = [_train(study, arch, seed, out, runtime, workers) for seed in range(study.seeds)]
        runs[str(arch)] = accuracies
        if runtime.is_main:
            save_json(out / "truth.json", _truth(study, runs))
            console.note(f"{number}/{len(archs)}  {arch}  {_mean(accuracies):.2f} %")
    return truth_from_json(_truth(study, runs))


def _train(study: Study, arch: Arch, seed: int, out: Path, runtime: Runtime, workers: int | None) -> float:
    """Top-1 of one training, in percent; one that is finished already is not repeated."""
    folder = out / "networks" / (str(arch).replace(":", "_") + (f"-seed{seed}" if seed else ""))
    summary = folder / "summary.json"
    if not runtime.broadcast(summary.exists()):
        train(
            arch,
            study.data,
            study.recipe,
            folder,
            runtime,
            model_options=study.make_space().model_options(),
            parts=study.parts,
            seed=study.seed + seed,
            workers=workers,
            test_every=study.recipe.epochs,  # no accuracy but the last epoch's counts
            tensorboard=False,
            resume=runtime.broadcast((folder / "config.json").exists()),
        )
    runtime.barrier()
    with reading(summary, "training's result", f"remove {folder}, and its network is trained again"):
        accuracy = float(load_json(summary, "training's result")[_ACCURACIES[study.weights]])
    if runtime.is_main:
        for file in (*folder.glob("*.safetensors"), *folder.glob("state.pt*")):
            file.unlink()
    return accuracy


def _truth(study: Study, runs: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    accuracy = {arch: _mean(accuracies) for arch, accuracies in runs.items()}
    about = {"unit": "top-1 %", "version": __version__, "study": study.to_json()}
    truth = {"space": study.space, "space_options": dict(study.space_options), "accuracy": accuracy}
    return {**truth, **({"runs": runs} if study.seeds > 1 else {}), **about}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
