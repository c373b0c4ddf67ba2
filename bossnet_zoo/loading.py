"""Batches for training and testing: which image stands where, how it is augmented, and the loaders that read them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader

from .datasets import Images, ImageSet
from .errors import BossNetError, DataError, UsageError
from .recipes import Recipe
from .runtime import Runtime, count_cores

DEVICE_BATCH = 128  # images that one process takes at once, unless told otherwise
DATA_CONFIG = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")  # timm's names of preprocessing


def eval_transform(preprocessing: Mapping[str, Any]) -> Any:
    """Resize, centre crop, normalise: PIL image -> (C, H, W)."""
    return create_transform(**{name: preprocessing[name] for name in DATA_CONFIG if name in preprocessing})


@dataclass(frozen=True)
class Plan:
    """Which images each process takes in each step of an epoch.

    A step's `global_batch` images are cut into micro-batches of `device_batch`, dealt to the processes in turn, so that
    any number of processes computes the same step. Each image's augmentation is a pure function of the seed, the epoch
    and its place in the epoch.

    Attributes:
        num_images: in the training set; an epoch has as many samples, less those that fill no step.
        repeats: of each image, for repeated augmentation: an epoch then shows fewer images, each several times.
        seed: of order and augmentation.
        global_batch: images per step.
        device_batch: images that a process takes at once.
        world_size, rank: how many processes there are, and which is this.
    """

    num_images: int
    repeats: int
    seed: int
    global_batch: int
    device_batch: int
    world_size: int = 1
    rank: int = 0

    @classmethod
    def make(cls, num_images: int, recipe: Recipe, seed: int, runtime: Runtime, limit: int | None = None) -> Plan:
        """Derive accumulation from the recipe's global batch: the largest micro-batches of at most `limit` images.

        Raises:
            UsageError: the global batch cannot be divided evenly, or there are too few images for one step.
        """
        batch, processes, limit = recipe.global_batch, runtime.world_size, limit or DEVICE_BATCH
        if batch > num_images:
            raise UsageError(
                f"a global batch of {batch} needs {batch} images, there are {num_images}; --global-batch N"
            )
        if batch < 2 * processes:
            raise UsageError(
                f"a global batch of {batch} leaves a process less than two images, of which BN has no statistics; "
                f"choose --global-batch {2 * processes} or more"
            )
        even = 2 if recipe.mixes else 1  # Mixup pairs the images of a micro-batch
        for accumulation in range(1, batch // processes + 1):
            size, rest = divmod(batch, processes * accumulation)
            if rest == 0 and size <= limit and size % even == 0:
                return cls(num_images, recipe.repeats, seed, batch, size, processes, runtime.rank)
        raise UsageError(
            f"a global batch of {batch} cannot be divided among {processes} process{'es' * (processes > 1)} "
            f"in{' even' * (even - 1)} batches of at most {limit} images; "
            f"choose for instance --global-batch {batch - batch % (processes * even)}"
        )

    @property
    def accumulation(self) -> int:
        """Micro-batches per process and step."""
        return self.global_batch // (self.device_batch * self.world_size)

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch."""
        return self.num_images // self.global_batch

    def micro_batches(self, epoch: int, first_step: int = 0) -> list[list[tuple[int, ...]]]:
        """This process's micro-batches, `accumulation` per step: items (index, key...) for `datasets.Images`."""
        sampler = RepeatAugSampler(
            range(self.num_images), num_replicas=1, rank=0, num_repeats=self.repeats, selected_round=0
        )
        sampler.set_epoch((self.seed << 20) + epoch)
        places = list(enumerate(sampler))
        batches: list[list[tuple[int, ...]]] = []
        for step in range(first_step, self.steps):
            for micro in range(self.rank, self.accumulation * self.world_size, self.world_size):
                start = step * self.global_batch + micro * self.device_batch
                chosen = places[start : start + self.device_batch]
                batches.append([(index, self.seed, epoch, place) for place, index in chosen])
        return batches


def load(dataset: Images, batches: Sequence[Sequence[Any]], runtime: Runtime, workers: int) -> Iterator[Any]:
    """Batches of (images, labels) on the runtime's device, read by `workers` processes (0: by this one)."""
    pinned = runtime.device.type == "cuda"
    loader = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pinned,
        worker_init_fn=end_quietly,
    )
    with plain_errors():
        for images, labels in loader:
            images = images.to(runtime.device, memory_format=torch.channels_last, non_blocking=True)
            yield images, labels.to(runtime.device, non_blocking=True)


def end_quietly(_worker: int) -> None:
    """In a loading process: say nothing, from then on, of a connection that broke since its parent has ended."""
    report = sys.excepthook

    def report_others(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError):
            report(kind, error, trace)

    sys.excepthook = report_others


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turns a `DataError` of a loading process, which arrives with its traceback, into the sentence at its end.

    Raises:
        BossNetError: a loading process was killed.
    """
    try:
        yield
    except DataError as error:
        raise DataError(str(error).rstrip().rpartition("DataError: ")[2]) from None
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # an error in such a process says "in DataLoader worker process"
            raise
        raise BossNetError(
            "a process that loads images was killed, perhaps for want of memory; free some and type the command again, "
            "with --resume where a search or a training was begun"
        ) from error


def count_workers(runtime: Runtime, wanted: int | None) -> int:
    """Data-loading processes: `wanted`, or as many as leave the computation undisturbed."""
    if wanted is not None:
        return wanted
    if runtime.device.type == "cpu":
        return 0
    return min(16, max(1, count_cores() // runtime.world_size - 1))


def eval_batches(images: ImageSet, runtime: Runtime, batch: int) -> list[list[int]]:
    """This process's share of a test set, in batches."""
    share = list(runtime.shard(len(images)))
    return [share[start : start + batch] for start in range(0, len(share), batch)]
