"""Training a network by a recipe: one loop, on one process or many, that can be killed and resumed at any moment.

What a run leaves in its folder is described in `training_run.py`, which image stands where in an epoch in `loading.py`.
Every random number is a function of the seed and of the place where it is used, never of what happened before, and a
step does the same arithmetic however many processes share it.

Shapes: B images of a micro-batch, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from . import __version__, console, recipe_parts
from .checkpoint import append_jsonl, save_json
from .datasets import ImageSet, count_classes, open_images
from .determinism import seed_everything
from .errors import BossNetError, UsageError
from .evaluate import measure_accuracy
from .loading import Plan, count_workers, load
from .preprocessing import preprocessing_of
from .recipes import Recipe
from .runs import WEIGHTS, build_model, find_origin, load_initial
from .runtime import Runtime
from .spaces import Arch
from .training_run import (
    STATE,
    State,
    check_kept_weights,
    keep_metrics_before,
    open_board,
    open_folder,
    save_epoch_weights,
    write_board,
)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        top1, top5: percent on the test part, of the last epoch's weights: no epoch was picked by its test accuracy.
        ema_top1, ema_top5: of their moving average.
        best_top1, best_epoch: the highest of all epochs and both kinds of weights, and when: picked by test accuracy.
        images_per_second: of training, all processes together, in the last epoch.
        seconds: spent on training and testing, over all resumptions.
        weights: the last weights; `last_ema.safetensors` and `best.safetensors` lie beside them.
    """

    top1: float
    top5: float
    ema_top1: float
    ema_top5: float
    best_top1: float
    best_epoch: int
    images_per_second: float
    seconds: float
    weights: Path


@dataclass(frozen=True)
class Job:
    """What stays the same during training."""

    out: Path
    recipe: Recipe
    runtime: Runtime
    plan: Plan
    images: ImageSet
    test_images: ImageSet
    preprocessing: Mapping[str, Any]
    num_classes: int
    workers: int
    save_every: int
    test_every: int


@dataclass(frozen=True)
class Origin:
    """The network that a run begins with, and where its first weights come from.

    Attributes:
        name, options: timm's name and further arguments.
        pretrained: whether it begins with the published weights.
        init: or with this file of weights.
    """

    name: str
    options: Mapping[str, Any]
    pretrained: bool
    init: Path | None

    @classmethod
    def of(cls, model: str | Arch, options: Mapping[str, Any] | None, pretrained: bool, init: Path | None) -> Origin:
        """What the arguments of `train` stand for. Raises `UsageError`."""
        for option, remedy in (("num_classes", "they are the data's"), ("pretrained", "type --pretrained")):
            if option in (options or ()):
                raise UsageError(f"{option} is no option of a network that is to be trained; {remedy}")
        name, options, own_weights = find_origin(model, options, pretrained)
        if own_weights is not None:
            init, pretrained = init or own_weights, False
        return cls(name, options, pretrained, init)

    def build(self, recipe: Recipe, num_classes: int, begun: bool, runtime: Runtime) -> nn.Module:
        """The network; without first weights if the run has `begun`, for it has its own. Raises `CheckpointError`.

        Dropout is the recipe's unless the options say otherwise.
        """
        dropout = {"drop_rate": recipe.drop_rate, "drop_path_rate": recipe.drop_path}
        options = {key: value for key, value in dropout.items() if value} | dict(self.options)
        network = build_model(self.name, num_classes=num_classes, pretrained=self.pretrained and not begun, **options)
        if self.init is not None and not begun and (fresh := load_initial(network, self.init)):
            console.note(f"{self.init} is for other classes, so these weights begin fresh: {', '.join(fresh)}")
        return network.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def to_json(self) -> dict[str, Any]:
        """The arguments of `train` that stand for it, for config.json."""
        init = None if self.init is None else str(self.init)
        return {"model": self.name, "model_options": self.options, "pretrained": self.pretrained, "init": init}


def train(
    model: str | Arch,
    data: str,
    recipe: Recipe,
    out: Path,
    runtime: Runtime,
    *,
    model_options: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    init: Path | None = None,
    parts: tuple[str, str] = ("train", "test"),
    seed: int = 0,
    device_batch: int | None = None,
    workers: int | None = None,
    strict_images: bool = False,
    save_every: int = 1000,
    test_every: int = 1,
    tensorboard: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainResult:
    """Train a network, and measure it and the moving average of its weights after every epoch, or some of them.

    Args:
        model, model_options: a timm name or an architecture, and further arguments of the network; or another run's
            folder, to begin with its network and best weights.
        data, parts: as for `open_images`; the parts to train on and to measure accuracy on.
        recipe, runtime: how, and where.
        out: the run's folder.
        pretrained: start from the published weights.
        init: start from a file of weights; a classifier of another size is left out.
        seed: of initialisation, order, augmentation and dropout.
        device_batch: most images that one process takes at once, by default 128; accumulation follows from it.
        workers: data-loading processes; by default chosen for the runtime.
        strict_images: an unreadable image is an error.
        save_every: steps after which the state is saved, besides after every epoch.
        test_every: epochs between two tests; the last epoch always has one.
        tensorboard: write the metrics for TensorBoard too, if it is installed.
        resume: continue the run in `out`, to the same weights as if it had never stopped.
        overwrite: begin anew where `out` holds a run.

    Raises:
        UsageError: `out` holds a run, or, with `resume`, one of other settings; or settings that are impossible.
        DataError: images or labels that cannot be used.
        CheckpointError: weights or a state that cannot be used.
        BossNetError: the loss is no longer finite.
    """
    images, test_images = (open_images(data, part, strict=strict_images) for part in parts)
    num_classes = count_classes(images, test_images)
    origin = Origin.of(model, model_options, pretrained, init)
    settings = origin.to_json() | {"data": data, "parts": parts, "seed": seed, "strict_images": strict_images}
    begun = resume and (out / STATE).exists()  # a run killed in its first epoch may have no state yet
    seed_everything(seed)
    network = origin.build(recipe, num_classes, begun, runtime)
    plan, workers = Plan.make(len(images), recipe, seed, runtime, device_batch), count_workers(runtime, workers)
    prepared = _preprocessing(network, recipe)
    job = Job(out, recipe, runtime, plan, images, test_images, prepared, num_classes, workers, save_every, test_every)
    state = _begin(job, network, settings, begun=begun, resume=resume, overwrite=overwrite)
    _run(job, state, tensorboard)
    return _finish(job, state)


def _run(job: Job, state: State, tensorboard: bool) -> None:
    """The loop: every epoch's steps, then its test, its records and its checkpoint."""
    plan, runtime = job.plan, job.runtime
    board = open_board(job.out / "tensorboard", state.epoch) if tensorboard and runtime.is_main else None
    schedule = recipe_parts.schedule(job.recipe, state.optimizer, plan.steps)
    mixup = recipe_parts.mixup(job.recipe, job.num_classes)
    dataset = job.images.with_transform(recipe_parts.train_transform(job.recipe, job.preprocessing))
    while state.epoch < job.recipe.epochs:
        start = time.perf_counter()
        first, steps = state.step, range(state.step, plan.steps)
        batches = load(dataset, plan.micro_batches(state.epoch, first), runtime, job.workers)
        state.model.train()
        for step in console.track(
            steps, f"epoch {state.epoch + 1}/{job.recipe.epochs}", len(steps), show=runtime.is_main
        ):
            number = state.epoch * plan.steps + step
            schedule.step_update(number)
            loss = train_step(job, state, batches, mixup)
            state.ema.update(state.model, number + 1)
            state.step, state.loss_sum = step + 1, state.loss_sum + loss
            if state.step % job.save_every == 0 and state.step < plan.steps and runtime.is_main:
                state.save(job.out / STATE)
        speed = len(steps) * plan.global_batch / (time.perf_counter() - start)
        record = _test(job, state) | {"images_per_second": speed, "seconds": time.perf_counter() - start}
        state.seconds += record["seconds"]
        if runtime.is_main:
            save_epoch_weights(job.out, state, record)
            append_jsonl(job.out / "metrics.jsonl", record)
            if board is not None:
                write_board(board, record, record["epoch"])
                board.flush()
        state.last, state.epoch, state.step, state.loss_sum = record, state.epoch + 1, 0, 0.0
        if runtime.is_main:
            state.save(job.out / STATE)
            _report(job, record)


def train_step(job: Job, state: State, batches: Iterator[tuple[Tensor, Tensor]], mixup: Mixup | None) -> float:
    """Forward and backward through this process's micro-batches (B, C, H, W), one update; the mean loss of all.

    BN statistics are updated once per step, by the mean over the micro-batches of all processes, so that neither
    accumulation nor the number of processes makes a difference.

    Raises:
        BossNetError: loss or gradient is not finite; nothing was updated.
    """
    plan, runtime, model = job.plan, job.runtime, state.model
    statistics = [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    before = [buffer.clone() for buffer in statistics]
    sums = [torch.zeros_like(buffer) for buffer in statistics]
    total = torch.zeros((), device=runtime.device)
    state.optimizer.zero_grad()
    for turn in range(plan.accumulation):
        images, labels = next(batches)
        seed_everything(plan.seed, state.epoch, state.step, turn * plan.world_size + plan.rank)
        for buffer, old in zip(statistics, before, strict=True):
            buffer.copy_(old)
        targets = labels
        if mixup is not None:
            images, targets = mixup(images, labels)
        with runtime.autocast():
            logits = model(images)
        # Mixed targets (B, K) are smoothed already.
        smoothing = job.recipe.label_smoothing if mixup is None else 0.0
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing) / plan.accumulation
        loss.backward()
        total += loss.detach()
        for summed, buffer in zip(sums, statistics, strict=True):
            summed += buffer / plan.accumulation
    for buffer, summed in zip(statistics, sums, strict=True):
        buffer.copy_(summed)
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    runtime.average_([total, *statistics, *(parameter.grad for parameter in parameters)])  # type: ignore[list-item]
    norm = nn.utils.clip_grad_norm_(parameters, job.recipe.clip_grad or math.inf)
    value = float(total)
    if not (math.isfinite(value) and math.isfinite(float(norm))):
        raise _not_finite(job, state, value, float(norm))
    state.optimizer.step()
    return value


def _not_finite(job: Job, state: State, loss: float, norm: float) -> BossNetError:
    step = (
        f"epoch {state.epoch + 1}, step {state.step + 1} of {job.plan.steps}: loss {loss}, norm of the gradient {norm}"
    )
    weights = job.out / WEIGHTS["model"]
    good = f"the last good checkpoint is {weights}, of epoch {state.epoch}" if state.last else "no epoch was finished"
    return BossNetError(f"training stopped, for its arithmetic is no longer finite in {step}; {good}; lower the rate")


# --- before and after the loop


def arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with which `train` was called, from a run's config.json: what to resume it with."""
    same = {name: config[name] for name in ("model", "model_options", "data", "pretrained", "seed", "strict_images")}
    return same | {
        "recipe": Recipe.from_json(config["recipe"]),
        "parts": tuple(config["parts"]),
        "init": config["init"] and Path(config["init"]),
        "device_batch": config["device_batch"],
    }


def _preprocessing(network: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """What `evaluate` does to an image before the network sees it."""
    return preprocessing_of(network, recipe.image_size) | ({"crop_pct": recipe.crop_pct} if recipe.crop_pct else {})


def _description(job: Job, network: nn.Module) -> dict[str, Any]:
    """What config.json says besides the arguments of `train`."""
    return {
        "format": 1,
        "kind": "train",
        "version": __version__,
        "architecture": getattr(network, "arch", None),
        "num_classes": job.num_classes,
        "class_names": job.images.class_names,
        "preprocessing": job.preprocessing,
        "recipe": job.recipe.to_json(),
        "device_batch": job.plan.device_batch,
        "precision": str(job.runtime.amp_dtype).removeprefix("torch."),
        "runtime": job.runtime.description,
    }


def _begin(
    job: Job, network: nn.Module, settings: Mapping[str, Any], *, begun: bool, resume: bool, overwrite: bool
) -> State:
    """Network, moving average and optimiser as they are at the beginning, or where the run in the folder was left."""
    if job.runtime.is_main:
        open_folder(job.out, {**settings, **_description(job, network)}, resume, overwrite)
    job.runtime.barrier()
    ema, optimizer = recipe_parts.moving_average(job.recipe, network), recipe_parts.optimizer(job.recipe, network)
    state = State(network, ema, optimizer)
    if begun:
        state.load(job.out / STATE)
        if job.runtime.is_main:
            check_kept_weights(job.out, state, finished=state.epoch == job.recipe.epochs)
    elif resume and job.runtime.is_main:
        console.note(f"{job.out} has no training state, so it begins at its first epoch")
    if job.runtime.is_main:
        keep_metrics_before(job.out, state.epoch)
        _announce(job, state)
    return state


def _announce(job: Job, state: State) -> None:
    plan, count = job.plan, sum(parameter.numel() for parameter in state.model.parameters())
    console.note(
        f"{count:,} parameters, {job.num_classes} classes; {job.images.name}: {len(job.images):,} images to train on, "
        f"{len(job.test_images):,} to test on; {job.runtime.description}"
    )
    console.note(
        f"a step: {plan.global_batch} images = {plan.world_size} x {plan.accumulation} x {plan.device_batch} "
        f"(processes x accumulation x images at once); {plan.steps} steps an epoch, "
        f"{job.recipe.epochs} epoch{'s' * (job.recipe.epochs > 1)}"
    )
    if state.epoch or state.step:
        console.note(f"resuming in epoch {state.epoch + 1} after {state.step} of {plan.steps} steps")


def _test(job: Job, state: State) -> dict[str, Any]:
    """The epoch's record: accuracy of the weights and of their moving average, if it is tested."""
    rate = max(group["lr"] for group in state.optimizer.param_groups)
    train_loss = state.loss_sum / job.plan.steps
    record = {"kind": "epoch", "epoch": state.epoch, "train_loss": train_loss, "lr": rate}
    if (state.epoch + 1) % job.test_every and state.epoch + 1 < job.recipe.epochs:
        return record
    state.model.eval()
    options: dict[str, Any] = {"batch": job.plan.device_batch, "workers": job.workers}
    raw, ema = (
        measure_accuracy(network, job.test_images, job.preprocessing, job.runtime, **options)
        for network in (state.model, state.ema.module)
    )
    accuracies = {"top1": raw.top1, "top5": raw.top5, "ema_top1": ema.top1, "ema_top5": ema.top5}
    return record | {"test_loss": raw.loss} | accuracies


def _report(job: Job, record: Mapping[str, Any]) -> None:
    parts = [f"loss {record['train_loss']:.4f}"]
    if "top1" in record:
        parts.append(f"top-1 {record['top1']:.2f} (average weights {record['ema_top1']:.2f})")
    parts.append(f"{record['images_per_second']:.0f} images/s")
    console.note(f"epoch {record['epoch'] + 1}/{job.recipe.epochs}: {', '.join(parts)}")


def _finish(job: Job, state: State) -> TrainResult:
    """The result; the main process writes it down."""
    job.runtime.barrier()
    last = state.last
    accuracies = {name: last[name] for name in ("top1", "top5", "ema_top1", "ema_top5", "images_per_second")}
    result = TrainResult(
        **accuracies,
        best_top1=state.best_top1,
        best_epoch=state.best_epoch,
        seconds=state.seconds,
        weights=job.out / WEIGHTS["model"],
    )
    if job.runtime.is_main:
        unreadable = {"unreadable_images": job.images.num_unreadable + job.test_images.num_unreadable}
        save_json(job.out / "summary.json", asdict(result) | {"weights": WEIGHTS["model"]} | unreadable)
        if unreadable["unreadable_images"]:
            console.note(f"{unreadable['unreadable_images']} unreadable images were replaced; their names are above")
    return result
