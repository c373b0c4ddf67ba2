"""One stage of a search: train a block by ensemble bootstrapping, then rate its paths."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from timm.optim import Lars
from timm.scheduler import CosineLRScheduler
from torch import Tensor

from bossnet_zoo import console
from bossnet_zoo.checkpoint import append_jsonl
from bossnet_zoo.datasets import ImageSet
from bossnet_zoo.determinism import seed_of
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Path, Space

from .bootstrapping import SiameseSupernet, bootstrap, parameter_groups, target_momentum
from .prefix import FrozenPrefix, Stage
from .rating import rate_paths
from .settings import SearchSettings
from .supernets import make_block
from .views import VIEWS, ViewLoader

FIXED_EPOCH = -1  # the views of calibration and rating images: the same in every epoch and for every block


@dataclass(frozen=True)
class Setup:
    """What every stage of a search shares."""

    settings: SearchSettings
    space: Space
    train_images: ImageSet
    rating_images: ImageSet
    runtime: Runtime
    out: FilePath

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train_images) // self.settings.global_batch

    def loader(self, images: ImageSet, pairs: int, purpose: str) -> ViewLoader:
        """Views of `images`; `purpose` keeps the random numbers of training, calibration and rating apart."""
        settings = self.settings
        return ViewLoader(
            images,
            VIEWS[settings.views],
            settings.resolution,
            pairs,
            seed_of(settings.seed, purpose),
            on_device=settings.augment == "device",
            workers=settings.workers,
            device=self.runtime.device,
        )

    def log(self, stage: Stage, **record: Any) -> None:
        """One line of metrics.jsonl, from the main process."""
        if self.runtime.is_main:
            where = {"block": stage.block, "entry": self.space.entry_text(stage.entry)}
            append_jsonl(self.out / "metrics.jsonl", {"kind": record.pop("kind"), **where, **record})


def calibration_views(setup: Setup) -> list[Tensor]:
    """Batches (B, 3, H, W) of training images under both view pipelines, the same for every block and process."""
    settings = setup.settings
    order = random.Random(seed_of(settings.seed, "calibration")).sample(
        range(len(setup.train_images)), min(settings.calibration_images, len(setup.train_images))
    )
    whole = len(order) // settings.micro_batch * settings.micro_batch  # BN would refuse a last batch of one image
    batches = _chunks(order[: whole or len(order)], settings.micro_batch)
    loader = setup.loader(setup.train_images, 1, "calibration")
    return [view for views in loader.epoch(FIXED_EPOCH, batches, range(len(batches))) for view in views]


def rating_views(setup: Setup, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the held-out images, as pairs of batches; fixed for the whole search."""
    settings = setup.settings
    order = random.Random(seed_of(settings.seed, "rating")).sample(
        range(len(setup.rating_images)), min(limit or len(setup.rating_images), len(setup.rating_images))
    )
    batches = _chunks(order, settings.micro_batch)
    mine = list(setup.runtime.shard(len(batches)))
    loader = setup.loader(setup.rating_images, 1, "rating")
    for views in loader.epoch(FIXED_EPOCH, [batches[index] for index in mine], mine):
        yield views[0], views[1]


def sample_paths(space: Space, stage: Stage, settings: SearchSettings, generator: random.Random) -> list[Path]:
    """The P paths of a step (BossNAS, section 3.2): uniform without replacement, or fair.

    Fair: each layer's candidates are dealt out over the paths, so that a group of as many paths as candidates trains
    each candidate exactly once.

    Raises:
        UsageError: more paths than the block has, or fair sampling in a space whose layers do not choose independently
            or in groups that P paths do not fill.
    """
    paths = space.paths(stage.block, stage.entry)
    if settings.num_paths > len(paths):
        raise UsageError(
            f"{stage.name(space)} has {len(paths)} paths, fewer than {settings.num_paths} a step; "
            f"type --num-paths {len(paths)} or less"
        )
    if settings.path_sampling == "uniform":
        return generator.sample(paths, settings.num_paths)
    candidates = [list(dict.fromkeys(choices)) for choices in zip(*paths, strict=True)]
    size = len(candidates[0])
    if math.prod(map(len, candidates)) != len(paths) or {len(choices) for choices in candidates} != {size}:
        raise UsageError(
            f"fair path sampling needs layers that choose independently among equally many candidates; "
            f"those of {space.name!r} do not: type --path-sampling uniform"
        )
    if settings.num_paths % size:
        raise UsageError(
            f"fair path sampling takes {size} paths at a time, as many as a layer has candidates; "
            f"{settings.num_paths} is no multiple: type --num-paths {math.ceil(settings.num_paths / size) * size}"
        )
    dealt: list[Path] = []
    for _ in range(settings.num_paths // size):
        dealt += zip(*(generator.sample(choices, size) for choices in candidates), strict=True)
    return dealt


class BlockTraining:
    """A block in training: its networks, optimiser and schedules. `state_dict` is all that a resumed run needs."""

    def __init__(self, setup: Setup, stage: Stage, prefix: FrozenPrefix):
        settings, runtime = setup.settings, setup.runtime
        self.setup, self.stage, self.prefix = setup, stage, prefix
        torch.manual_seed(seed_of(settings.seed, "init", stage.block, stage.entry))
        block = make_block(setup.space, stage.block, stage.entry)
        self.siamese = SiameseSupernet(block, settings.hidden, settings.projection)
        self.siamese.to(runtime.device).to(memory_format=torch.channels_last).train()
        self.optimizer = Lars(
            parameter_groups(self.siamese, settings.weight_decay),
            lr=settings.learning_rate,
            momentum=settings.momentum,
        )
        self.num_steps = settings.epochs * setup.steps_per_epoch
        warmup = min(settings.warmup_epochs * setup.steps_per_epoch, self.num_steps - 1)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=self.num_steps - warmup,
            warmup_t=warmup,
            warmup_lr_init=0.0,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self.epoch = 0  # finished epochs

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage": self.stage.name(self.setup.space),
            "epoch": self.epoch,
            "siamese": self.siamese.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.siamese.load_state_dict(state["siamese"])
        self.optimizer.load_state_dict(state["optimizer"])

    def train_epoch(self) -> float:
        """One epoch of steps; returns the mean loss."""
        setup, settings, runtime = self.setup, self.setup.settings, self.setup.runtime
        accumulation = settings.accumulation(runtime.world_size)
        views = self._epoch_views(accumulation)
        description = f"{self.stage.name(setup.space)}, epoch {self.epoch + 1}/{settings.epochs}"
        started, losses = time.perf_counter(), []
        steps = range(self.epoch * setup.steps_per_epoch, (self.epoch + 1) * setup.steps_per_epoch)
        for step in console.track(steps, description, len(steps), show=runtime.is_main):
            paths = sample_paths(setup.space, self.stage, settings, self._generator("paths", step))
            loss = self._step(step, paths, itertools.islice(views, accumulation), accumulation)
            losses.append(loss)
            texts = [setup.space.path_text(path) for path in paths]
            rate = self.optimizer.param_groups[0]["lr"]
            momentum = target_momentum(step, self.num_steps, settings.target_momentum)
            setup.log(
                self.stage, kind="step", epoch=self.epoch, step=step, loss=loss, lr=rate, momentum=momentum, paths=texts
            )
        seconds = time.perf_counter() - started
        mean = sum(losses) / len(losses)
        images = len(steps) * settings.global_batch / seconds
        setup.log(self.stage, kind="epoch", epoch=self.epoch, loss=mean, seconds=seconds, images_per_second=images)
        self.epoch += 1
        return mean

    def _step(self, step: int, paths: Sequence[Path], micro_batches: Iterator[Tensor], accumulation: int) -> float:
        """Forward and backward of every micro-batch, one optimiser step, one update of the target."""
        settings, runtime = self.setup.settings, self.setup.runtime
        self.schedule.step_update(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for views in micro_batches:
            features = [self.prefix(view.contiguous(memory_format=torch.channels_last)) for view in views]
            first, second = features[: len(features) // 2], features[len(features) // 2 :]
            if not settings.own_views:
                first, second = first * len(paths), second * len(paths)
            share = 1 / accumulation
            loss += share * bootstrap(
                self.siamese, first, second, paths, runtime, ensemble=settings.ensemble, share=share
            )
        loss = runtime.sum_(torch.tensor(loss, dtype=torch.float64)).item() / runtime.world_size
        if not math.isfinite(loss):
            raise BossNetError(
                f"the loss became {loss} in {self.stage.name(self.setup.space)} at step {step + 1} "
                f"(epoch {self.epoch + 1}); the state after epoch {self.epoch} is kept; try a lower --base-lr"
            )
        runtime.average_(p.grad for _, p in self.siamese.trainable_parameters() if p.grad is not None)
        self.optimizer.step()
        self.siamese.update_target(target_momentum(step, self.num_steps, settings.target_momentum))
        return loss

    def _epoch_views(self, accumulation: int) -> Iterator[Tensor]:
        """This process's micro-batches of views, step by step."""
        setup, settings, runtime = self.setup, self.setup.settings, self.setup.runtime
        order = list(range(len(setup.train_images)))
        self._generator("order", self.epoch).shuffle(order)
        chunks = _chunks(order[: setup.steps_per_epoch * settings.global_batch], settings.micro_batch)
        # In a step, process r of R takes micro-batches r, r + R, ...: one process alone would take the same ones.
        mine = list(runtime.shard(len(chunks)))
        pairs = settings.num_paths if settings.own_views else 1
        loader = setup.loader(setup.train_images, pairs, f"training {self.stage.name(setup.space)}")
        return loader.epoch(self.epoch, [chunks[index] for index in mine], mine)

    def _generator(self, *purpose: object) -> random.Random:
        return random.Random(seed_of(self.setup.settings.seed, self.stage.block, self.stage.entry, *purpose))

    def rate(self, calibration: Sequence[Tensor], limit: int | None = None) -> dict[Path, float]:
        """Ratings of all paths of the block, the same on every process."""
        setup = self.setup
        batches = ((self.prefix(first), self.prefix(second)) for first, second in rating_views(setup, limit))
        return rate_paths(
            self.siamese,
            setup.space.paths(self.stage.block, self.stage.entry),
            [self.prefix(view) for view in calibration],
            batches,
            setup.runtime,
        )


def _chunks(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
