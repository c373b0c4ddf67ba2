"""From a search to a plain timm model: an architecture with the weights that its layers have in the supernet."""

from __future__ import annotations

import shlex
from pathlib import Path as FilePath
from typing import Any

from torch import Tensor, nn

from bossnet_zoo.checkpoint import check_folder, is_leftover, load_json, reading
from bossnet_zoo.datasets import open_images
from bossnet_zoo.errors import CheckpointError, UsageError
from bossnet_zoo.fresh import mark_fresh
from bossnet_zoo.models import build
from bossnet_zoo.models.weights import LOCAL_WEIGHTS
from bossnet_zoo.recipes import BOSSNET_M, BOSSNET_T
from bossnet_zoo.runs import build_model, save_local
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import require_networks

from .prefix import chain_of, load_prefix
from .rating_table import parse_in
from .run import open_setup, search_progress
from .run_folder import read_config, resume_settings
from .stage import calibration_views


def inherit(run: FilePath, architecture: str | None, runtime: Runtime, num_classes: int = 1000) -> nn.Module:
    """The stand-alone network of an architecture, warm-started from the supernet of a finished search.

    Stem and choice layers inherit their weights, with BN statistics of this very path; what no search trains stays as
    initialised: the classifier, MBConv's last layer and head, NATS-Bench's last BN.

    Args:
        run: a search's run directory.
        architecture: its written form; by default the best one found.
        runtime: where the BN statistics are computed.
        num_classes: outputs of the fresh classifier.

    Raises:
        ArchitectureError: an illegal architecture.
        UsageError: one whose blocks the search has not trained, because of greedy coverage; a search by UnNAS.
    """
    if resume_settings(run).method == "unnas":
        raise UsageError(
            f"the supernet of {run} sees images through three extra convolutions, so its weights fit no network "
            "of their own; train the architecture instead: bossnet train"
        )
    space, table = search_progress(run)
    text = architecture or best_architecture(run)
    arch = parse_in(space, text)
    chain = chain_of(space, arch)
    for stage, _ in chain:
        if space.entry_text(stage.entry) not in table.blocks[stage.block]:
            raise UsageError(
                f"the search in {run} did not train {stage.name(space)}, which {text} needs; "
                "search with --coverage full, or choose an architecture of its architectures.json"
            )
    setup = open_setup(run, runtime)
    prefix = load_prefix(space, chain, run / "blocks", calibration_views(setup), runtime)
    state: dict[str, Tensor] = {}
    for block, path in zip(prefix.blocks, prefix.paths, strict=True):
        state |= block.stand_alone_state(arch, path)  # type: ignore[operator]
    model = build(arch, num_classes=num_classes, **space.model_options())
    _, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    return model


def extract(run: FilePath, architecture: str | None, out: FilePath, runtime: Runtime, num_classes: int = 1000) -> str:
    """Write what `inherit` gives to a folder that timm loads without this search.

    It is opened with `timm.create_model("local-dir:OUT", pretrained=True)`.

    Returns:
        The written form of the architecture.

    Raises:
        UsageError: `out` already holds something, and what `inherit` raises.
    """
    # Weights without a config.json are what an extraction that was cut off left.
    kept = (
        [file for file in out.iterdir() if not is_leftover(file) and file.name != LOCAL_WEIGHTS] if out.is_dir() else []
    )
    if kept or out.is_file():
        raise UsageError(f"{out} already holds files; choose another --out")
    check_folder(out)
    require_networks(resume_settings(run).space, "bossnet extract")
    space, _ = search_progress(run)
    text = architecture or best_architecture(run)
    arguments = {"arch": text, **space.model_options()}
    model = build_model(text, num_classes=num_classes, **space.model_options())  # as timm knows it
    model.load_state_dict(inherit(run, text, runtime, num_classes).state_dict())
    cfg: Any = model.pretrained_cfg
    cfg["input_size"] = (cfg["input_size"][0], *[resume_settings(run).resolution] * 2)  # that of its weights
    mark_fresh(model)
    save_local(out, model, arguments)
    return text


def best_architecture(run: FilePath) -> str:
    """The best architecture of a finished search. Raises `CheckpointError` if it is not finished."""
    file = run / "architectures.json"
    if not file.exists():
        raise CheckpointError(f"{run} is not finished; go on with: bossnet search --resume {run}")
    with reading(file, "list of architectures", f"write it anew: bossnet search --resume {run}"):
        return str(load_json(file, "list of architectures")[0]["architecture"])


def training_command(run: FilePath, out: FilePath) -> str:
    """What to type to train the network extracted to `out`: on the images of its search, if these have labels."""
    settings = resume_settings(run)
    recipe = BOSSNET_T if settings.space == "hytra" else BOSSNET_M
    data = settings.data if open_images(settings.data, "train").labels is not None else "LABELLED_IMAGES"
    words = ["bossnet", "train", str(out), "--data", data, "--recipe", recipe.name]
    if read_config(run).get("preset") == "demo":
        recipe = recipe.smoke()
        words.append("--smoke")
    if settings.resolution != recipe.image_size:
        words += ["--image-size", str(settings.resolution)]
    return shlex.join([*words, "--out", f"{out}-trained"])
