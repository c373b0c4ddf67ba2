"""What there is and what it costs, for `bossnet list`, `info` and `space`.

Spaces are arithmetic alone, so what is heavy is imported by the functions on models.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from .errors import UsageError
from .spaces import MBConvSpace, NatsSpace, changed_options, get_space
from .spaces.nats import WIDTHS


def describe_model(model: str, resolution: int | None = None, **options: Any) -> dict[str, Any]:
    """Size, arithmetic, accuracy and weights of a registered name, an architecture or a training run.

    Args:
        model: a timm name, an architecture's written form, or a run's folder.
        resolution: pixels at which multiply-adds are counted; by default the network's own.
        options: arguments of the network, for instance `se=False`.

    Raises:
        UsageError: an unknown name or option, or an illegal architecture.
    """
    import timm
    import torch

    from .models.table import PUBLISHED, measure
    from .runs import build_model, build_trained, is_run, load_config, resolve_model

    weights: list[str] = []
    accuracy: list[dict[str, Any]] = []
    with torch.device("meta"):
        if is_run(model):
            if options:
                raise UsageError(f"{model} is a run, and its network is as it was trained; leave out --option")
            network: Any = build_trained(Path(model), load_config(model))
            weights, accuracy = _trained(Path(model))
        else:
            name, _ = resolve_model(model)
            network = build_model(model, **options)
            if name == model and not options:
                weights = timm.list_pretrained(f"{name}.*")
                accuracy = [
                    {"resolution": row.resolution, "top1": row.top1, "top5": row.top5, "source": row.source}
                    for row in PUBLISHED
                    if row.model == name
                ]
    side = resolution or network.pretrained_cfg["input_size"][-1]
    cost = measure(network, side, network.in_chans)
    return {
        "model": model,
        "architecture": getattr(network, "arch", None),
        "params": cost.params,
        "madds": cost.madds,
        "resolution": side,
        "num_classes": network.num_classes,
        "weights": weights,
        "accuracy": accuracy,
    }


def _trained(run: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The files of weights of a run, and how accurate they are where that was measured."""
    from .checkpoint import read_metadata
    from .runs import WEIGHTS, load_config

    config = load_config(run)
    files = [run] if run.is_file() else [file for name in WEIGHTS.values() if (file := run / name).exists()]
    accuracy = []
    for file in files:
        about = read_metadata(file)
        if top1 := about.get("top1"):
            source = f"{file}, after epoch {int(about['epoch']) + 1}, on {config['data']}, part {config['parts'][1]}"
            size = config["preprocessing"]["input_size"][-1]
            accuracy.append({"resolution": size, "top1": round(float(top1), 2), "top5": None, "source": source})
    return [str(file) for file in files], accuracy


def list_models(pattern: str = "") -> list[dict[str, Any]]:
    """`describe_model` of every registered name that matches a shell pattern."""
    from .models import model_names

    return [describe_model(name) for name in model_names(pattern)]


def describe_space(name: str, **options: Any) -> dict[str, Any]:
    """Rule, size, blocks and examples of a search space.

    Args:
        options: of the space, for instance `widths=[8, 16]`.

    Raises:
        UsageError: the space, an option or its value is unknown.
    """
    space = get_space(name, **options)
    generator = random.Random(0)
    blocks = [
        {space.entry_text(entry): len(space.paths(block, entry)) for entry in space.entries(block)}
        for block in range(space.num_blocks)
    ]
    examples = [str(space.sample(generator)) for _ in range(3)]
    return {
        "space": name,
        "space_options": changed_options(space),
        "rule": f"{_rule(space)}, {examples[0] if changed_options(space) else _WRITTEN[name]}"
        if name in _WRITTEN
        else "a space of your own",
        "architectures": space.count(),
        "resolution": space.default_resolution,
        "paths_by_block_and_entry": blocks,
        "examples": examples,
    }


_WRITTEN = {
    "hytra": "4c-8c-16cccac-32aaacaaaaa",
    "mbconv": "11-1111-1101-1011-1101",
    "nats": "8:16:24:32:64",
}


def _rule(space: Any) -> str:
    """What an architecture of the space may be, and how it is written; its example comes last."""
    if isinstance(space, NatsSpace):
        widths = "8, 16, ..., 64" if space.widths == WIDTHS else " or ".join(map(str, space.widths))
        return f"{space.num_layers} layers, each of width {widths}. Written: the widths"
    if isinstance(space, MBConvSpace):
        return (
            f"{space.num_layers} layers in blocks of {'-'.join(map(str, space.block_layers))}; each chooses "
            "0: expansion 6 kernel 3, 1: expansion 6 kernel 5, 2: expansion 3 kernel 3, 3: expansion 3 kernel 5. "
            "Written: digits per block"
        )
    return (
        f"{space.num_layers} layers at strides 4, 8, 16, 32; c (ResConv) anywhere, a (ResAtt) at 16 and 32; the first "
        "layer at any stride, then the stride stays or doubles. Written: stride and operations"
    )
