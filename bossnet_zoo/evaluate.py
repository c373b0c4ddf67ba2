"""How accurate a network is, and what it sees in an image."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import console
from .checkpoint import save_json, save_text
from .datasets import UNLABELLED, ImageSet
from .errors import DataError, UsageError
from .image_files import UNREADABLE, FileSource, expand_folders, to_rgb, why_unreadable
from .loading import DEVICE_BATCH, count_workers, eval_batches, eval_transform, load
from .preprocessing import preprocessing_of
from .runs import class_names_of
from .runtime import Runtime

Predictor = Callable[[Tensor], Tensor]  # (B, C, H, W) -> (B, num_classes) logits


@dataclass(frozen=True)
class Accuracy:
    """What `measure_accuracy` found.

    Attributes:
        top1, top5: percent of images whose class is the most probable one, or among the five most probable.
        loss: mean cross-entropy, in nats.
        images: how many.
        images_per_second: of all processes together, reading included.
    """

    top1: float
    top5: float
    loss: float
    images: int
    images_per_second: float


@torch.inference_mode()
def measure_accuracy(
    predict: Predictor,
    images: ImageSet,
    preprocessing: Mapping[str, Any],
    runtime: Runtime,
    *,
    batch: int = DEVICE_BATCH,
    workers: int | None = None,
    description: str = "",
) -> Accuracy:
    """Accuracy on labelled images; processes share the work. Images that cannot be read are left out.

    Args:
        predict: from prepared images (B, C, H, W) to logits: a network in evaluation mode, or an exported one.
        images: with labels.
        preprocessing: timm's data configuration.
        runtime: where `predict` runs.
        batch: images at once.
        workers: data-loading processes; by default chosen for the runtime.
        description: shows a progress bar of this name.

    Raises:
        DataError: no labels.
        UsageError: labels that the network does not know.
    """
    largest = max(images.require_labels("measuring accuracy"))
    dataset = images.with_transform(eval_transform(preprocessing), replace=False)
    batches = eval_batches(images, runtime, batch)
    loaded = load(dataset, batches, runtime, count_workers(runtime, workers))
    start = time.perf_counter()
    totals = torch.zeros(4, device=runtime.device)  # top-1, top-5, loss, images
    for x, labels in console.track(loaded, description, len(batches), show=bool(description) and runtime.is_main):
        with runtime.autocast():
            logits = predict(x).float()
        check_labels(images.name, largest, logits.shape[1])
        ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        totals[0] += ranked[:, 0].sum()
        totals[1] += ranked.sum()
        totals[2] += F.cross_entropy(logits, labels, reduction="sum", ignore_index=UNLABELLED)
        totals[3] += (labels != UNLABELLED).sum()
    top1, top5, loss_sum, count = runtime.sum_(totals).tolist()
    seconds = time.perf_counter() - start
    return Accuracy(100 * top1 / count, 100 * top5 / count, loss_sum / count, int(count), count / seconds)


def has_top5(num_classes: int) -> bool:
    """Whether top-5 accuracy says anything: of five classes or fewer it is 100 %. 0 stands for an unknown number."""
    return not 0 < num_classes <= 5


def accuracy_text(top1: float, top5: float, num_classes: int) -> str:
    """Accuracies in one line; without top-5 where it says nothing."""
    return f"top-1 {top1:.2f} %" + (f", top-5 {top5:.2f} %" if has_top5(num_classes) else "")


def check_labels(name: str, largest: int, num_classes: int) -> None:
    """Raise `UsageError` where the `largest` label of images called `name` is none of a network's classes."""
    if largest >= num_classes:
        raise UsageError(
            f"{name} has labels up to {largest}, and the network tells {num_classes} classes apart; "
            "measure it on images of the classes that it was trained on"
        )


@dataclass(frozen=True)
class Classifier:
    """A network ready for images, whatever runs it.

    Attributes:
        name: for tables.
        logits: from prepared images to logits.
        preprocessing: timm's data configuration.
        class_names: one per output.
        num_params: of the network, 0 where unknown.
    """

    name: str
    logits: Predictor
    preprocessing: Mapping[str, Any]
    class_names: tuple[str, ...]
    num_params: int = 0

    @classmethod
    def of(cls, model: nn.Module, runtime: Runtime, name: str = "", input_size: int | None = None) -> Classifier:
        """A timm model with its own preprocessing, or with images of `input_size` pixels instead."""
        model = model.eval().to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        num_params = sum(parameter.numel() for parameter in model.parameters())
        return cls(name, model, preprocessing_of(model, input_size), class_names_of(model), num_params)


def timm_row(classifier: Classifier, accuracy: Accuracy) -> dict[str, Any]:
    """One row of a results table, with the columns of timm's `validate.py`."""
    return {
        "model": classifier.name,
        "top1": round(accuracy.top1, 4),
        "top1_err": round(100 - accuracy.top1, 4),
        "top5": round(accuracy.top5, 4),
        "top5_err": round(100 - accuracy.top5, 4),
        "param_count": round(classifier.num_params / 1e6, 2) if classifier.num_params else None,
        "img_size": classifier.preprocessing["input_size"][-1],
        "crop_pct": classifier.preprocessing["crop_pct"],
        "interpolation": classifier.preprocessing["interpolation"],
    }


def write_evaluation(folder: Path, row: Mapping[str, Any], accuracy: Accuracy, about: Mapping[str, Any]) -> None:
    """`eval.json` (the last evaluation in full) and a row more in `eval.csv`, which says what was measured on what."""
    save_json(folder / "eval.json", {**row, **asdict(accuracy), **about})
    table = folder / "eval.csv"
    row = {**row, **{name: about[name] for name in ("data", "part", "weights")}}
    before = table.read_text(encoding="utf-8", errors="replace") if table.exists() else ""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(row), restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*csv.DictReader(io.StringIO(before, newline="")), row])
    save_text(table, text.getvalue())


@torch.inference_mode()
def classify(
    classifier: Classifier, files: Sequence[str], runtime: Runtime, top: int = 5, strict: bool = False
) -> list[dict[str, Any]]:
    """The most probable classes of each image file: `{"image", "classes": [{"name", "index", "probability"}]}`.

    An image that cannot be read is named on stderr, and `{"image", "error"}` stands for it, unless it is the only one.

    Args:
        files: image files, and folders, of which all images are taken.
        strict: whether an unreadable image is an error.

    Raises:
        UsageError: a file does not exist, or a folder has no images.
        DataError: no image can be read, or, if `strict`, one cannot.
    """
    names = classifier.class_names
    transform = eval_transform(classifier.preprocessing)
    files = expand_folders(files)
    source = FileSource(files, None, None)
    answers: list[dict[str, Any]] = []
    unreadable = 0
    for index, file in enumerate(files):
        try:
            image = to_rgb(source.read(index))
        except UNREADABLE as error:
            reason = f"cannot be read as an image ({why_unreadable(error)})"
            if strict or len(files) == 1:
                raise DataError(f"{file} {reason}; give another file") from error
            console.note(f"{file} {reason}")
            answers.append({"image": str(file), "error": reason})
            unreadable += 1
            continue
        with runtime.autocast():
            probabilities = classifier.logits(transform(image)[None].to(runtime.device)).float().softmax(-1)[0]
        best = probabilities.topk(min(top, len(names)))
        classes = [
            {"name": names[number], "index": number, "probability": probability}
            for probability, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        answers.append({"image": str(file), "classes": classes})
    if unreadable == len(files):
        raise DataError(f"none of {len(files)} images can be read; give others")
    if unreadable:
        console.note(f"{unreadable} of {len(files)} images could not be read")
    return answers
