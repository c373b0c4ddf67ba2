"""DNA (Li et al., arXiv 1911.13053): each block imitates a teacher's features; as BossNAS compares itself with it.

Student block k reads the teacher's features of stage k - 1, through an entry adapter that gives them the channels and
the size of its own input, and regresses the teacher's features of stage k. As candidates of HyTra end at different
scales, both features are globally pooled and projected by one linear layer first (BossNAS, appendix A.2). The
teacher's projection is fixed: a random rotation, then the shift and the scale that give its features mean 0 and
variance 1 on calibration images. A trained one could shrink both sides to nothing.

A path's rating is its mean absolute error on held-out images, which the scale makes comparable between blocks; lower
is better.

Shapes: B images, V views, C channels, H x W pixels, D projected features.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.scheduler import StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from bossnet_zoo.determinism import seed_of
from bossnet_zoo.errors import BossNetError, NoWeightsError, UsageError
from bossnet_zoo.runs import build_model, find_origin, open_model
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Entry, Path, Space

from .prefix import Stage
from .rating import BlockRatings, PathTree, RatingSums, calibrating, targets_of_others
from .settings import SearchSettings
from .shapes import block_input
from .stage import Setup, Training, rating_views, sample_paths
from .supernets import SupernetBlock, make_block, norms_of
from .views import VIEWS

FIRST_BLOCK_RATE = 0.4  # of the other blocks' learning rate: 0.002 and 0.005 in DNA, section 4.1
DECAY = 0.9  # of the learning rate after every epoch


# --- the teacher


def open_teacher(settings: SearchSettings) -> nn.Module:
    """The network that `settings.teacher` names, in evaluation mode, without gradients.

    Raises:
        UsageError: an unknown name, or a network that does not give intermediate features.
        BossNetError: its weights cannot be downloaded, or there are none.
    """
    name = settings.teacher
    torch.manual_seed(seed_of(settings.seed, "teacher"))
    try:
        network = open_model(name) if settings.teacher_pretrained else build_model(name)
    except (OSError, BossNetError) as error:
        unpublished = isinstance(error, NoWeightsError)
        if not settings.teacher_pretrained or FilePath(name).exists():  # nothing was to be fetched
            raise
        if isinstance(error, UsageError) and not unpublished:
            raise
        fault = f"could not be downloaded ({_cause(error)}); go online once, or"
        if unpublished:
            fault = "are not published;"
        raise BossNetError(
            f"the weights of teacher {name} {fault} type --teacher RUN with the folder of a training run, or "
            "--no-teacher-pretrained for a random teacher"
        ) from error
    return _can_teach(network, name)


def _cause(error: BaseException) -> str:
    """The name of what went wrong at first: libraries wrap what the network said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__


def teacher_without_data(settings: SearchSettings) -> nn.Module:
    """The same network without weights, on the meta device: nothing is downloaded. Raises `UsageError` as above."""
    name, options, _ = find_origin(settings.teacher)
    return _can_teach(build_model(name, **options).to("meta"), settings.teacher)


def check_teacher(settings: SearchSettings, num_blocks: int) -> None:
    """Raise `UsageError` where the teacher cannot teach a space of so many blocks; nothing is downloaded."""
    network = teacher_without_data(settings)
    with torch.device("meta"):
        Teacher(network, 0, num_blocks, settings)


def _can_teach(network: nn.Module, name: str) -> nn.Module:
    if not hasattr(network, "forward_intermediates"):
        raise UsageError(
            f"teacher {name} does not give intermediate features; type another, such as --teacher resnet50"
        )
    return network.eval().requires_grad_(False)


class Teacher(nn.Module):
    """The two feature maps of a teacher that concern one student block.

    A teacher has features at several levels (a ResNet: after the stem and after each of four stages). They are dealt
    out evenly over the K blocks of the space, the last level to the last block: of L levels, block k regresses level
    ceil((k + 1) L / K).

    Args:
        network: as `open_teacher` gives it.
        block, num_blocks: k, from 0, and K.
        settings: resolution, and the views' normalisation, in place of which the teacher gets its own.

    Raises:
        UsageError: fewer levels than blocks, or a resolution that the network does not take.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, block: int, num_blocks: int, settings: SearchSettings):
        super().__init__()
        self.network = network
        image = torch.zeros(1, 3, settings.resolution, settings.resolution)
        try:
            with torch.no_grad():
                levels = network.forward_intermediates(image, intermediates_only=True)  # type: ignore[operator]
        except (AssertionError, RuntimeError) as error:
            raise UsageError(
                f"teacher {settings.teacher} does not take images of {settings.resolution} px: {_plain(error)}; "
                "type another --resolution or --teacher"
            ) from error
        if len(levels) < num_blocks:
            raise UsageError(
                f"teacher {settings.teacher} has {len(levels)} levels of features, and the space has {num_blocks} "
                "blocks; type another --teacher, such as resnet50, which has 5"
            )
        last = [-(-(index + 1) * len(levels) // num_blocks) - 1 for index in range(num_blocks)]
        self.indices = last[max(block - 1, 0) : block + 1]
        self.in_channels = levels[self.indices[0]].shape[1] if block else 3
        self.out_channels = levels[self.indices[-1]].shape[1]
        own: Mapping[str, Any] = resolve_model_data_config(network)
        views = VIEWS[settings.views][0]
        mean, std = (torch.tensor(getattr(views, name)).view(3, 1, 1) for name in ("mean", "std"))
        own_mean, own_std = (torch.tensor(own[name]).view(-1, 1, 1) for name in ("mean", "std"))
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> what the student block reads, (B, C, H', W'), and the pooled target, (B, C')."""
        maps = self.network.forward_intermediates(  # type: ignore[operator]
            x * self.scale + self.shift, indices=self.indices, intermediates_only=True, stop_early=True
        )
        return (maps[0] if len(maps) > 1 else x), maps[-1].mean(dim=(2, 3))


def _plain(error: Exception) -> str:
    """What the network says of it, as the middle of a sentence."""
    return " ".join(str(error).split()).rstrip(".;")


# --- the student


class EntryAdapter(nn.Module):
    """Teacher features to a block's input: average pooling to its size, 1x1 convolution to its channels, BN."""

    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int]):
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(F.adaptive_avg_pool2d(x, self.size)))


def make_entry_adapter(settings: SearchSettings, space: Space, block: int, entry: Entry, teacher: Teacher) -> nn.Module:
    """What brings the teacher's features to the block's input; nothing in the first block, which sees the images."""
    if not block:
        return nn.Identity()
    _, channels, *size = block_input(space, block, entry, settings.resolution).shape
    return EntryAdapter(teacher.in_channels, channels, (size[0], size[1]))


class TeacherProjection(nn.Module):
    """(B, C) -> (B, D): a fixed random rotation, standardised by `fit`; saved with the student, never trained."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False).requires_grad_(False)
        nn.init.orthogonal_(self.linear.weight)
        self.register_buffer("mean", torch.zeros(out_features))
        self.register_buffer("deviation", torch.ones(()))

    def fit(self, pooled: Tensor) -> None:
        """Give the projections of `pooled` (B, C) mean 0, each of them, and variance 1, all together."""
        projected = self.linear(pooled)
        self.mean.copy_(projected.mean(dim=0))
        self.deviation.copy_((projected - self.mean).square().mean().sqrt().clamp_min(1e-12))

    def forward(self, pooled: Tensor) -> Tensor:
        return (self.linear(pooled) - self.mean) / self.deviation


class Student(nn.Module):
    """Entry adapter, block and projection of the student, and the fixed projection of the teacher's features."""

    def __init__(self, block: SupernetBlock, entry: nn.Module, teacher_channels: int, features: int):
        super().__init__()
        self.entry, self.block = entry, block
        self.projection = nn.Linear(block.num_features, features)
        self.teacher_projection = TeacherProjection(teacher_channels, features)

    def forward(self, x: Tensor, path: Path) -> Tensor:
        """(B, C, H, W) -> (B, D): the regression of the teacher's projected features."""
        return self.projection(self.block.adapt(self.block(self.entry(x), path), path))


def distill(
    student: Student, x: Tensor, target: Tensor, paths: Sequence[Path], runtime: Runtime, share: float = 1.0
) -> float:
    """Forward and backward of one micro-batch; gradients add up in the student.

    Args:
        x: (B, C, H, W) what the block reads: teacher features, or images in the first block.
        target: (B, D) the teacher's projected features.
        paths: the paths of the step.
        share: weight of this micro-batch in the step's gradient.

    Returns:
        The loss, mean over paths: squared error, about 1 for a student that answers 0 to every image.
    """
    losses: list[Tensor] = []
    for path in paths:
        with runtime.autocast():
            prediction = student(x, path)
        loss = F.mse_loss(prediction.float(), target)
        (loss * share).backward()
        losses.append(loss.detach())
    return sum(torch.stack(losses).tolist()) / len(paths)  # read once, as reading waits for the GPU


class DistillationTraining(Training):
    """DNA: a block in training by distillation. Unlike BossNAS's it needs no block before it, but the teacher."""

    def __init__(self, setup: Setup, stage: Stage, calibration: Sequence[Tensor]):
        settings = setup.settings
        network = open_teacher(settings)
        self.teacher = Teacher(network, stage.block, setup.space.num_blocks, settings).eval()
        self.teacher.to(setup.runtime.device)
        torch.manual_seed(seed_of(settings.seed, "init", stage.block, stage.entry))
        block = make_block(setup.space, stage.block, stage.entry)
        entry = make_entry_adapter(settings, setup.space, stage.block, stage.entry, self.teacher)
        self.student = Student(block, entry, self.teacher.out_channels, settings.projection)
        super().__init__(setup, stage, self.student)
        self.student.teacher_projection.fit(torch.cat([self._ask(images)[1] for images in calibration]))

    @property
    def block(self) -> SupernetBlock:
        """The trained block."""
        return self.student.block

    def make_optimizer(self) -> Optimizer:
        settings = self.setup.settings
        rate = settings.learning_rate * (1.0 if self.stage.block else FIRST_BLOCK_RATE)
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        return Adam(trained, lr=rate, weight_decay=settings.weight_decay)

    def make_schedule(self) -> Scheduler:
        return StepLRScheduler(self.optimizer, decay_t=self.setup.steps_per_epoch, decay_rate=DECAY, t_in_epochs=False)

    def draw(self, generator: random.Random) -> list[Path]:
        return sample_paths(self.setup.space, self.stage, self.setup.settings, generator)

    def backward(self, views: Tensor, drawn: Sequence[Path], share: float) -> float:
        x, pooled = self._ask(views.flatten(0, 1))
        target = self.student.teacher_projection(pooled)
        return distill(self.student, x, target, drawn, self.setup.runtime, share)

    @torch.no_grad()
    def _ask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> what `Teacher` makes of it, the pooled features in float32."""
        with self.setup.runtime.autocast():
            x, pooled = self.teacher(images.contiguous(memory_format=torch.channels_last))
        return x, pooled.float()

    @torch.no_grad()
    def rate(self, calibration: Sequence[Tensor], limit: int | None = None) -> BlockRatings:
        """Each path's mean absolute error, the same on every process."""
        setup, student, runtime = self.setup, self.student.eval(), self.setup.runtime
        paths = setup.space.paths(self.stage.block, self.stage.entry)
        tree = PathTree(student.block, [student.projection], paths, runtime)
        with calibrating(norms_of(student.entry)), runtime.autocast():
            entered = [student.entry(self._ask(images)[0]) for images in calibration]
        tree.calibrate(entered)
        sums = RatingSums(paths)
        for images in (view for views in rating_views(setup, limit) for view in views):
            x, pooled = self._ask(images)
            target = student.teacher_projection(pooled)
            with runtime.autocast():
                x = student.entry(x)
            others = targets_of_others(target, len(images))
            errors, elsewhere = {}, {}
            for path, output in tree.outputs(x):
                errors[path] = (output - target).abs().mean(dim=1)
                if others is not None:
                    elsewhere[path] = (output - others).abs().mean(dim=1)
            sums.add(errors, elsewhere or None)
        student.train()
        return sums.finish(runtime)
