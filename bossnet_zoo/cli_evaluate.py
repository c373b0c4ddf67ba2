"""The commands that use a network: eval and predict. Heavy imports happen inside commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .checkpoint import check_folder
from .commands import (
    TRAIN_EXAMPLE,
    AsJson,
    Data,
    NetworkOptions,
    Precision,
    StrictImages,
    Weights,
    Workers,
    command,
    complete_model,
    one_of,
    parse_options,
)
from .console import print_json
from .errors import UsageError

if TYPE_CHECKING:
    from .datasets import ImageSet

app = typer.Typer()

Model = Annotated[
    str,
    typer.Argument(
        help="A run's folder, a timm name, an architecture or an exported file.", autocompletion=complete_model
    ),
]

AnyDevice = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, cuda:N or mps; of an .onnx also tensorrt.",
        autocompletion=one_of("auto", "cpu", "cuda", "mps", "tensorrt"),
    ),
]


@command(app, f"{TRAIN_EXAMPLE}\nbossnet eval runs/tiny", name="eval")
def evaluate(
    model: Model,
    data: Data = None,
    weights: Weights = None,
    input_size: Annotated[
        int | None, typer.Option(min=1, max=8192, help="Pixels of a side; by default the network's own.")
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            help="test; or all, train, search-val, search-train.",
            autocompletion=one_of("test", "all", "train", "search-val", "search-train"),
        ),
    ] = "test",
    out: Annotated[
        Path | None, typer.Option(help="Folder of eval.json and eval.csv; by default the run's, or .")
    ] = None,
    option: NetworkOptions = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 128,
    workers: Workers = None,
    strict_images: StrictImages = False,
    device: AnyDevice = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Accuracy and speed of a network on labelled images."""
    from dataclasses import asdict

    from .datasets import open_images
    from .evaluate import accuracy_text, measure_accuracy, timm_row, write_evaluation
    from .runs import is_run, load_config
    from .runtime import Runtime

    data = data or (load_config(model)["data"] if is_run(model) else None)
    if data is None:
        raise UsageError("--data is missing; for instance: bossnet eval bossnet_t0 --data IMAGENET")
    is_folder = is_run(model) and Path(model).is_dir()
    folder = out or (Path(model) if is_folder else Path())
    check_folder(folder)
    with Runtime.open(_torch_device(model, device), precision) as runtime:
        images = open_images(data, part, strict=strict_images)
        classifier = _open_classifier(model, weights, parse_options(option), runtime, device, input_size)
        _compare_classes(classifier.class_names, images, runtime.is_main)
        how: Any = {"batch": batch, "workers": workers, "description": f"{images.name}, {part}"}
        accuracy = measure_accuracy(classifier.logits, images, classifier.preprocessing, runtime, **how)
        if not runtime.is_main:
            return
    row = timm_row(classifier, accuracy)
    weights = weights or ("best" if is_folder else None)
    about = {"data": data, "part": part, "weights": weights, "unreadable": images.num_unreadable}
    write_evaluation(folder, row, accuracy, about | {"runtime": runtime.description})
    if as_json:
        print_json({**row, **asdict(accuracy), **about})
        return
    figures = accuracy_text(accuracy.top1, accuracy.top5, len(classifier.class_names))
    print(f"{figures}, {accuracy.images_per_second:.1f} images/s")
    whose = f", weights: {weights}" if weights else ""
    console.note(f"{accuracy.images:,} images of {data}, part {part}{whose}")
    console.note(f"written to {folder / 'eval.json'} and eval.csv")


@command(
    app,
    rf"""
{TRAIN_EXAMPLE}
python -c "from bossnet_zoo.datasets import open_images; \
  open_images('digits', 'test').image(0).save('digit.png')"
bossnet predict runs/tiny digit.png --top 3
""",
)
def predict(
    model: Model,
    images: Annotated[list[str], typer.Argument(help="Image files, or folders of them.")],
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each image.")] = 5,
    option: NetworkOptions = None,
    strict_images: StrictImages = False,
    device: AnyDevice = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """The most probable classes of images."""
    from .evaluate import classify
    from .runtime import Runtime

    with Runtime.open(_torch_device(model, device), precision) as runtime:
        classifier = _open_classifier(model, weights, parse_options(option), runtime, device)
        answers = classify(classifier, images, runtime, top, strict_images)
    if as_json:
        print_json(answers)
        return
    for answer in answers:
        if "error" in answer:  # a note has said so
            continue
        print(answer["image"])
        for entry in answer["classes"]:
            print(f"  {100 * entry['probability']:6.2f} %  {entry['name']}")


def _compare_classes(known: Sequence[str], images: ImageSet, speak: bool) -> None:
    """Say so, if `speak`, where images are of other classes than the network's; ImageNet's have names of two kinds.

    Raises:
        DataError: no labels.
        UsageError: labels that the network does not know.
    """
    from .evaluate import check_labels
    from .runs import numbered_classes

    if known:
        check_labels(images.name, max(images.require_labels("measuring accuracy")), len(known))
    if not speak:
        return
    named = images.class_names or ()
    count = len(named)
    if named and tuple(known) not in (tuple(named), numbered_classes(count)) and not len(known) == count == 1000:
        console.note(
            f"{images.name} has {count} classes and other names than the network's {len(known)}; "
            "they are compared by their number"
        )


def _torch_device(model: str, device: str) -> str:
    """Where images are prepared: an exported network gets them from the CPU, and `device` is its own runtime's."""
    from .export.sessions import is_exported

    return "cpu" if is_exported(model) else device


def _open_classifier(
    model: str, weights: str | None, options: dict[str, Any], runtime: Any, device: str, input_size: int | None = None
) -> Any:
    """A network for `eval` and `predict`: exported, or in PyTorch."""
    import torch

    from .evaluate import Classifier
    from .export.metadata import UNTRAINED_NOTE
    from .export.sessions import is_exported, open_session, predictor
    from .fresh import FRESH_NOTE, warn_of_fresh
    from .runs import open_model

    if not is_exported(model):
        network = open_model(model, weights, **options)
        if runtime.is_main:
            warn_of_fresh(network, model)
        return Classifier.of(network, runtime, model, input_size)
    if weights or options:
        raise UsageError(f"{model} is exported as it is; leave out --weights and --option")
    if runtime.amp_dtype != torch.float32:
        raise UsageError(f"{model} has its precision in its graph; leave out --precision")
    session = open_session(model, device)
    for note in {UNTRAINED_NOTE, FRESH_NOTE}.intersection(session.metadata.notes):
        console.note(f"{model}: {note}")
    preprocessing = session.metadata.data_config
    if input_size:  # for files of --dynamic-size; the others refuse it
        preprocessing["input_size"] = (preprocessing["input_size"][0], input_size, input_size)
    return Classifier(model, predictor(session), preprocessing, session.metadata.class_names)
