"""Model cards: from checked data and a network to the README of a Hub repository.

`python -m bossnet_zoo.export.cards FOLDER` writes the card of every published model; `model_cards/` holds its result.
"""

from __future__ import annotations

import copy
import importlib.resources
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import timm
import torch
from huggingface_hub import EvalResult, ModelCardData
from timm.data import resolve_data_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bossnet_zoo.checkpoint import load_json, reading, save_text
from bossnet_zoo.errors import unknown
from bossnet_zoo.evaluate import has_top5
from bossnet_zoo.runs import load_config

from .provenance import beginning_of, public_name
from .report import ExportReport

PROJECT = "https://github.com/changlin31/BossNAS"
NO_LICENCE = (
    "none stated: the authors published these weights without a licence file; ask them before any use that needs one"
)


@dataclass(frozen=True)
class Evaluation:
    """Accuracy in percent at one image size; `top5` may be unknown."""

    size: int
    top1: float
    top5: float | None = None


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file of the repository."""

    path: str
    opset: int
    max_rel: float

    @classmethod
    def of(cls, path: str, report: ExportReport) -> OnnxFile:
        return cls(path, report.opset, max(entry.max_rel for entry in report.parity))


@dataclass(frozen=True)
class Card:
    """Everything a card says that differs from one network to the next.

    Attributes:
        title, summary: its first lines.
        architecture: its written form.
        load_name: what `timm.create_model` takes.
        license, license_name, license_link: as the Hub spells them; `license_text` in words.
        datasets: Hub names of the training data; empty where it has none.
        use, training, evaluation_source, limits: sentences.
        evaluated_on: the test images, in words; `dataset` their Hub name or another short one.
        evaluations: one per image size.
        source_url: where the evaluation is published; None where it was measured here.
        params, madds: parameters; multiply-adds by image size.
    """

    title: str
    summary: str
    architecture: str
    load_name: str
    num_classes: int
    license: str
    license_text: str
    use: str
    training: str
    evaluated_on: str
    dataset: str
    evaluation_source: str
    evaluations: tuple[Evaluation, ...]
    limits: tuple[str, ...]
    params: int
    madds: Mapping[int, int]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str
    datasets: tuple[str, ...] = ()
    license_name: str | None = None
    license_link: str | None = None
    source_url: str | None = None
    onnx_files: tuple[OnnxFile, ...] = ()


def count_cost(model: nn.Module, input_size: Sequence[int]) -> tuple[int, int]:
    """Parameters, and multiply-adds of one image: of convolutions, linear layers and attention's matrix products."""
    shadow = copy.deepcopy(model).eval().to("meta")  # shapes alone, no arithmetic
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, *input_size, device="meta"))
    return sum(parameter.numel() for parameter in shadow.parameters()), counter.get_total_flops() // 2


def _about_network(model: nn.Module, sizes: Sequence[int] = ()) -> dict[str, Any]:
    """What a card says about the network itself; its cost at `sizes`, by default at its own size."""
    config = resolve_data_config(model=model)
    channels, size = config["input_size"][0], config["input_size"][-1]
    costs = {size: count_cost(model, (channels, size, size)) for size in sizes or (size,)}
    names = ("input_size", "mean", "std", "crop_pct", "interpolation")
    return {name: config[name] for name in names} | {
        "architecture": str(getattr(model, "arch", type(model).__name__)),
        "num_classes": int(model.num_classes),  # type: ignore[arg-type]
        "params": next(iter(costs.values()))[0],
        "madds": {size: madds for size, (_, madds) in costs.items()},
    }


def published() -> dict[str, dict[str, Any]]:
    """The checked data of every published model, by name."""
    text = (importlib.resources.files("bossnet_zoo.model_cards") / "published.json").read_text(encoding="utf-8")
    return {entry["model"]: entry for entry in json.loads(text)}


def published_card(name: str, repo: str | None = None, onnx_files: tuple[OnnxFile, ...] = ()) -> Card:
    """The card of a published model.

    Args:
        name: such as `bossnet_t0`.
        repo: the Hub repository it will stand in; None for the card that stands in this project.
        onnx_files: beside the weights.

    Raises:
        UsageError: no weights of that name are published.
    """
    entries = published()
    if name not in entries:
        raise unknown("published model", name, entries)
    entry = entries[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    evaluations = tuple(Evaluation(**values) for values in entry["evaluations"])
    training = (
        f"By the authors, on ImageNet-1k at 224 pixels, from scratch, after the recipe of DeiT; `bossnet train {name} "
        f"--data IMAGENET --recipe {entry['recipe']}` is that recipe. The architecture was found on the same images "
        f"without their labels. The weights are the authors' release, unchanged: {entry['file']}"
    )
    return Card(
        title=name,
        summary=entry["summary"],
        load_name=f"hf-hub:{repo}" if repo else name,
        license="other",
        license_name="none-stated",
        license_link=PROJECT,
        license_text=NO_LICENCE,
        use=(
            "Classifying photographs into the classes of ImageNet-1k, as a backbone for other tasks on images, and as "
            "a reference for research on architecture search."
        ),
        datasets=("imagenet-1k",),
        training=training,
        evaluated_on="the 50,000 validation images of ImageNet-1k",
        dataset="imagenet-1k",
        evaluation_source=f"Published by the authors ({PROJECT}), not rerun for this card. {entry['remark']}".strip(),
        source_url=PROJECT,
        evaluations=evaluations,
        limits=(
            "It knows the 1,000 classes of ImageNet-1k, and shares that data set's bias in subject, place and time.",
            "It was never tested on medical, aerial or otherwise foreign images, nor against adversarial ones.",
            "Attention costs grow with the fourth power of an image's side in the last stages; sizes far from "
            "those above were not evaluated.",
        ),
        onnx_files=onnx_files,
        **_about_network(model, [evaluation.size for evaluation in evaluations]),
    )


def run_card(
    run: Path,
    model: nn.Module,
    config: Mapping[str, Any],
    weights: str,
    *,
    repo: str,
    license: str = "unknown",
    onnx_files: tuple[OnnxFile, ...] = (),
) -> Card:
    """The card of a network trained by `bossnet train`.

    Args:
        run: the run's folder.
        model, config: as `load_run` gives them.
        weights: which of the run's: `best`, `model` or `ema`.
        repo: the Hub repository it will stand in.
        license: the Hub's name of the licence that the owner of the weights gives.
    """
    about = _about_network(model)
    recipe, data = config["recipe"], public_name(config["data"])
    evaluations, source = _run_evaluation(run, weights, about["input_size"][-1])
    if not has_top5(about["num_classes"]):
        evaluations = tuple(replace(evaluation, top5=None) for evaluation in evaluations)
    beginning = beginning_of(config, published())
    hub_name = data.removeprefix("hf:").partition(":")[0] if data.startswith("hf:") else None
    return Card(
        title=repo.partition("/")[2],
        summary=f"{about['architecture']}, trained on {data} with bossnet-zoo.",
        load_name=f"hf-hub:{repo}",
        license=license,
        license_text=(
            f"{license}, as whoever trained it says; the authors' weights that it began with carry none of their own"
            if beginning.is_release
            else license
        ),
        use=f"Classifying images like those of {data}, and as a beginning for fine-tuning on others.",
        datasets=(hub_name,) if hub_name else (),
        training=(
            f"`bossnet train` on {data}, recipe {recipe['name']}: epochs {recipe['epochs']}, {recipe['global_batch']} "
            f"images a step, {recipe['image_size']} pixels, seed {config['seed']}. {beginning.text} All settings are "
            "in the run's own config.json, which stays with the run; the config.json of this repository is timm's "
            "description of the network."
        ),
        evaluated_on=f"the test part of {data}",
        dataset=hub_name or data,
        evaluation_source=source,
        evaluations=evaluations,
        limits=(f"It knows the {about['num_classes']} classes of {data}, and nothing else.",),
        onnx_files=onnx_files,
        **about,
    )


_TOP1 = {"model": "top1", "ema": "ema_top1", "best": "best_top1"}  # in summary.json, by the kind of weights


def _run_evaluation(run: Path, weights: str, size: int) -> tuple[tuple[Evaluation, ...], str]:
    """What a finished run says about the accuracy of some of its weights, and how it was measured."""
    file = run / "summary.json"
    if not file.exists():
        return (), "the run has not finished."
    summary = load_json(file, "run's result")
    with reading(file, "run's result", f"write it anew: bossnet train --resume {run}"):
        top1 = {kind: float(summary[name]) for kind, name in _TOP1.items()}
        top5 = {"model": float(summary["top5"]), "ema": float(summary["ema_top5"])}
    measured = "Measured by `bossnet train` at the end of the run."
    if weights in top5:
        averaged = " Averaged weights." if weights == "ema" else ""
        return (Evaluation(size, top1[weights], top5[weights]),), f"{measured}{averaged}"
    return (Evaluation(size, top1["best"], _evaluated_top5(run, top1["best"])),), (
        "Measured by `bossnet train`. Of all epochs this one was best on these very images, which makes the figure "
        "somewhat optimistic."
    )


def _evaluated_top5(run: Path, top1: float) -> float | None:
    """What `bossnet eval` last found of the best weights, on the run's own images, if it did."""
    config, file = load_config(run), run / "eval.json"
    if not file.exists():
        return None
    found = load_json(file, "evaluation")
    expected = {"weights": "best", "data": config["data"], "part": config["parts"][1]}
    with reading(file, "evaluation", f"write it anew: bossnet eval {run}"):
        same = all(found[name] == value for name, value in expected.items()) and abs(found["top1"] - top1) < 0.01
        return float(found["top5"]) if same else None


def render(card: Card) -> str:
    """The card's Markdown, front matter included."""
    text = (importlib.resources.files("bossnet_zoo.model_cards") / "card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    costs = ", ".join(f"{_quantity(madds)} at {size} pixels" for size, madds in card.madds.items())
    values = {"costs": costs, "has_top5": has_top5(card.num_classes), "front_matter": front_matter(card).to_yaml()}
    return environment.from_string(text).render(card=card, **values)


def _quantity(number: int) -> str:
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.2f} M"


def front_matter(card: Card) -> ModelCardData:
    """What the Hub reads: licence, tags, and the evaluation as a `model-index`."""
    results = []
    for evaluation in card.evaluations:
        for metric, value in (("top1", evaluation.top1), ("top5", evaluation.top5)):
            if value is not None:
                results.append(_result(card, evaluation.size, metric, value))
    tags = ["image-classification", "timm", "bossnet-zoo", *(["onnx"] if card.onnx_files else [])]
    return ModelCardData(
        license=card.license,
        license_name=card.license_name,
        license_link=card.license_link,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=tags,
        datasets=list(card.datasets) or None,
        metrics=["accuracy"],
        model_name=card.title,
        eval_results=results or None,
    )


def _result(card: Card, size: int, metric: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="image-classification",
        dataset_type=card.dataset,
        dataset_name=card.evaluated_on,
        dataset_config=f"{size} pixels",  # keeps the results of two sizes apart
        dataset_split="validation" if card.source_url else "test",
        metric_type="accuracy",
        metric_name=f"{'Top-1' if metric == 'top1' else 'Top-5'} accuracy (%)",
        metric_value=round(value, 2),
        source_name="the authors' repository" if card.source_url else None,
        source_url=card.source_url,
    )


def write_cards(folder: Path) -> list[Path]:
    """Write the card of every published model."""
    files = []
    for name in published():
        files.append(folder / f"{name}.md")
        save_text(files[-1], render(published_card(name)))
    return files


if __name__ == "__main__":
    for written in write_cards(Path(sys.argv[1])):
        print(written)
