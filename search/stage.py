"""One stage of a search: the training loop that all methods share, and BossNAS's: train a block, rate its paths."""

from __future__ import annotations

import itertools
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from timm.optim import Lars
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from bossnet_zoo import console
from bossnet_zoo.checkpoint import append_jsonl
from bossnet_zoo.datasets import ImageSet
from bossnet_zoo.determinism import seed_of
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Path, Space
from bossnet_zoo.training_run import open_board, write_board

from .bootstrapping import SiameseSupernet, bootstrap, parameter_groups, target_momentum
from .compiling import compile_candidates
from .prefix import FrozenPrefix, Stage
from .rating import BlockRatings, rate_paths
from .settings import SearchSettings
from .states import state_file
from .supernets import SupernetBlock, make_block, trained_entries
from .views import VIEWS, ViewLoader, unchanged

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

    def log(self, stage: Stage, kind: str, **record: Any) -> None:
        """One line of metrics.jsonl, from the main process."""
        if self.runtime.is_main:
            where = {"block": stage.block, "entry": self.space.entry_text(stage.entry)}
            append_jsonl(self.out / "metrics.jsonl", {"kind": kind, **where, **record})


def calibration_views(setup: Setup) -> list[Tensor]:
    """Batches (B, 3, H, W) of training images under all view pipelines, the same for every block and process."""
    settings = setup.settings
    order = random.Random(seed_of(settings.seed, "calibration")).sample(
        range(len(setup.train_images)), min(settings.calibration_images, len(setup.train_images))
    )
    whole = len(order) // settings.micro_batch * settings.micro_batch  # BN would refuse a last batch of one image
    batches = _chunks(order[: whole or len(order)], settings.micro_batch)
    loader = setup.loader(setup.train_images, 1, "calibration")
    return [view for views in loader.epoch(FIXED_EPOCH, batches, range(len(batches))) for view in views]


def rating_views(setup: Setup, limit: int | None) -> Iterator[tuple[Tensor, ...]]:
    """This process's share of the held-out images, a batch at a time, in every view; fixed for the whole search."""
    settings = setup.settings
    order = random.Random(seed_of(settings.seed, "rating")).sample(
        range(len(setup.rating_images)), min(limit or len(setup.rating_images), len(setup.rating_images))
    )
    batches = _chunks(order, settings.micro_batch)
    mine = list(setup.runtime.shard(len(batches)))
    loader = setup.loader(setup.rating_images, 1, "rating")
    for views in loader.epoch(FIXED_EPOCH, [batches[index] for index in mine], mine):
        yield tuple(views)


def check_num_paths(space: Space, settings: SearchSettings) -> None:
    """Raise `UsageError` where some block has fewer paths than a step takes, or none that can be drawn fairly."""
    for block in range(space.num_blocks):
        for entry in trained_entries(space, block):
            number = len(space.paths(block, entry))
            if number < settings.num_paths:
                raise UsageError(
                    f"{Stage(block, entry).name(space)} has {number} paths, fewer than {settings.num_paths} a step; "
                    f"type --num-paths {number} or less"
                )
            sample_paths(space, Stage(block, entry), settings, random.Random(0))


def sample_paths(space: Space, stage: Stage, settings: SearchSettings, generator: random.Random) -> list[Path]:
    """The P paths of a step (BossNAS, section 3.2): uniform without replacement, or fair.

    Fair: each layer's candidates are dealt out over the paths, so that a group of as many paths as candidates trains
    each candidate exactly once.

    Raises:
        UsageError: fair sampling in a space whose layers do not choose independently
            or in groups that P paths do not fill.
    """
    paths = space.paths(stage.block, stage.entry)
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


class Training(ABC):
    """A network in training, by whatever method. `state_dict` is all that a resumed run needs.

    A method says what it draws for a step, how a micro-batch is learned from, and what else ends a step.

    Args:
        stage: what is trained; names log records, and decides all random numbers together with the seed.
        network: everything that training changes.
        pairs: independent views of each pipeline that an image is given.
    """

    def __init__(self, setup: Setup, stage: Stage, network: nn.Module, pairs: int = 1):
        self.setup, self.stage, self.network, self.pairs = setup, stage, network, pairs
        self.name = stage.name(setup.space)
        self.network.to(setup.runtime.device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        if setup.settings.compile:
            compile_candidates(self.blocks())
        self.num_steps = setup.settings.epochs * setup.steps_per_epoch
        self.optimizer = self.make_optimizer()
        self.schedule = self.make_schedule()
        self.epoch = 0  # finished epochs
        self.board: Any = None

    # --- what a method defines

    @abstractmethod
    def make_optimizer(self) -> Optimizer:
        """The optimiser of everything that training changes."""

    @abstractmethod
    def draw(self, generator: random.Random) -> Sequence[Any]:
        """The paths, or architectures, of a step."""

    @abstractmethod
    def backward(self, views: Any, drawn: Sequence[Any], share: float) -> float:
        """Add the gradient of a micro-batch, weighted by `share`; returns its loss.

        Args:
            views: (V, B, 3, H, W), or what `prepare` made of them.
        """

    def prepare(self) -> Callable[[Tensor], Any]:
        """What becomes of a micro-batch of views before anything is trained on it; on a CPU, done in its loaders."""
        return unchanged

    def end_step(self, step: int) -> dict[str, float]:
        """What follows the optimiser's step; returns what the log should say of it."""
        return {}

    def blocks(self) -> Iterator[tuple[SupernetBlock, Sequence[Path]]]:
        """The weight-sharing blocks in `network`, each with its legal paths."""
        paths = self.setup.space.paths(self.stage.block, self.stage.entry)
        return ((module, paths) for module in self.network.modules() if isinstance(module, SupernetBlock))

    def text(self, drawn: Any) -> str:
        """The written form of what was drawn."""
        return self.setup.space.path_text(drawn)

    def make_schedule(self) -> Scheduler:
        """Linear warm-up, for half of the steps at most, then cosine to zero."""
        warmup = min(self.setup.settings.warmup_epochs * self.setup.steps_per_epoch, self.num_steps // 2)
        return CosineLRScheduler(
            self.optimizer,
            t_initial=self.num_steps - warmup,
            warmup_t=warmup,
            warmup_lr_init=0.0,
            warmup_prefix=True,
            t_in_epochs=False,
        )

    # --- the loop

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage": self.name,
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    def show_in(self, folder: FilePath) -> None:
        """From now on, show figures in TensorBoard too, from the main process; call it when the state is loaded."""
        if self.setup.runtime.is_main:
            self.board = open_board(folder / self.name, self.epoch * self.setup.steps_per_epoch)

    def show(self, **figures: float) -> None:
        """Figures of the last finished step, in TensorBoard, and everything before them for good."""
        if self.board is not None:
            write_board(self.board, figures, self.epoch * self.setup.steps_per_epoch - 1)
            self.board.flush()

    def close(self) -> None:
        """Nothing more will be shown."""
        if self.board is not None:
            self.board.close()

    def train_epoch(self) -> float:
        """One epoch of steps; returns the mean loss."""
        setup, settings, runtime = self.setup, self.setup.settings, self.setup.runtime
        accumulation = settings.accumulation(runtime.world_size)
        views = self._epoch_views()
        started, losses = time.perf_counter(), []
        steps = range(self.epoch * setup.steps_per_epoch, (self.epoch + 1) * setup.steps_per_epoch)
        description = f"{self.name}, epoch {self.epoch + 1}/{settings.epochs}"
        for step in console.track(steps, description, len(steps), show=runtime.is_main):
            drawn = self.draw(self.generator("paths", step))
            loss = self._step(step, drawn, itertools.islice(views, accumulation), 1 / accumulation)
            losses.append(loss)
            record = {"loss": loss, "lr": self.optimizer.param_groups[0]["lr"], **self.end_step(step)}
            texts = [self.text(path) for path in drawn]
            setup.log(self.stage, kind="step", epoch=self.epoch, step=step, **record, paths=texts)
            if self.board is not None:
                write_board(self.board, record, step)
        seconds = time.perf_counter() - started
        mean = sum(losses) / len(losses)
        images = len(steps) * settings.global_batch / seconds
        setup.log(self.stage, kind="epoch", epoch=self.epoch, loss=mean, seconds=seconds, images_per_second=images)
        self.epoch += 1
        self.show(images_per_second=images)
        return mean

    def _step(self, step: int, drawn: Sequence[Any], micro_batches: Iterator[Tensor], share: float) -> float:
        """Forward and backward of every micro-batch, then one optimiser step; returns the loss of all processes."""
        runtime = self.setup.runtime
        self.schedule.step_update(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = sum(share * self.backward(views, drawn, share) for views in micro_batches)
        loss = runtime.sum_(torch.tensor(loss, dtype=torch.float64)).item() / runtime.world_size
        if not math.isfinite(loss):
            raise BossNetError(
                f"the loss became {loss} in {self.name} at step {step + 1} (epoch {self.epoch + 1}); "
                f"{self._last_good()}; start anew with a lower --base-lr"
            )
        runtime.average_(p.grad for p in self.network.parameters() if p.grad is not None)
        self.optimizer.step()
        return loss

    def _last_good(self) -> str:
        if not self.epoch:
            return "no epoch of it was finished"
        return f"the last good state is {state_file(self.setup.out, self.name, self.epoch)}"

    def _epoch_views(self) -> Iterator[Tensor]:
        """This process's micro-batches of views, step by step."""
        setup, settings, runtime = self.setup, self.setup.settings, self.setup.runtime
        order = list(range(len(setup.train_images)))
        self.generator("order", self.epoch).shuffle(order)
        chunks = _chunks(order[: setup.steps_per_epoch * settings.global_batch], settings.micro_batch)
        # In a step, process r of R takes micro-batches r, r + R, ...: one process alone would take the same ones.
        mine = list(runtime.shard(len(chunks)))
        loader = setup.loader(setup.train_images, self.pairs, f"training {self.name}")
        return loader.epoch(self.epoch, [chunks[index] for index in mine], mine, self.prepare())

    def generator(self, *purpose: object) -> random.Random:
        """Random numbers for one purpose within this stage."""
        return random.Random(seed_of(self.setup.settings.seed, self.stage.block, self.stage.entry, *purpose))


class BlockTraining(Training):
    """BossNAS: a block in training by ensemble bootstrapping, behind the frozen blocks before it."""

    def __init__(self, setup: Setup, stage: Stage, prefix: FrozenPrefix):
        settings = setup.settings
        torch.manual_seed(seed_of(settings.seed, "init", stage.block, stage.entry))
        block = make_block(setup.space, stage.block, stage.entry)
        self.prefix, self.siamese = prefix, SiameseSupernet(block, settings.hidden, settings.projection)
        super().__init__(setup, stage, self.siamese, pairs=settings.num_paths if settings.own_views else 1)

    @property
    def block(self) -> SupernetBlock:
        """The trained block: the online network's."""
        return self.siamese.online.block

    def make_optimizer(self) -> Optimizer:
        settings = self.setup.settings
        groups = parameter_groups(self.siamese, settings.weight_decay)
        return Lars(groups, lr=settings.learning_rate, momentum=settings.momentum)

    def draw(self, generator: random.Random) -> list[Path]:
        return sample_paths(self.setup.space, self.stage, self.setup.settings, generator)

    def prepare(self) -> Callable[[Tensor], Any]:
        return self.prefix.of_pairs

    def backward(self, views: Sequence[Tensor], drawn: Sequence[Path], share: float) -> float:
        settings = self.setup.settings
        first, second = zip(*(pair.chunk(2) for pair in views), strict=True)
        if not settings.own_views:
            first, second = first * len(drawn), second * len(drawn)
        return bootstrap(
            self.siamese, first, second, drawn, self.setup.runtime, ensemble=settings.ensemble, share=share
        )

    def end_step(self, step: int) -> dict[str, float]:
        momentum = self.setup.settings.target_momentum
        if self.setup.settings.momentum_schedule == "cosine":
            momentum = target_momentum(step, self.num_steps, momentum)
        self.siamese.update_target(momentum)
        return {"momentum": momentum}

    def rate(self, calibration: Sequence[Tensor], limit: int | None = None) -> BlockRatings:
        """Ratings of all paths of the block, the same on every process."""
        setup = self.setup
        return rate_paths(
            self.siamese,
            setup.space.paths(self.stage.block, self.stage.entry),
            [self.prefix(view) for view in calibration],
            self._rated_pairs(limit),
            setup.runtime,
        )

    def _rated_pairs(self, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        for views in rating_views(self.setup, limit):
            (pair,) = self.prefix.of_pairs(torch.stack(views))
            first, second = pair.chunk(2)
            yield first, second


def _chunks(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
