"""From a search to a plain timm model: an architecture with the weights that its layers have in the supernet."""

from __future__ import annotations

from pathlib import Path as FilePath

from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from bossnet_zoo.checkpoint import load_json, save_weights
from bossnet_zoo.errors import CheckpointError, UsageError
from bossnet_zoo.runs import build_model
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Arch, Entry, Path, Space

from .prefix import Chain, Stage, load_prefix, stage_of
from .run import open_setup, search_progress
from .stage import calibration_views


def inherit(run: FilePath, architecture: str | None, runtime: Runtime, num_classes: int = 1000) -> nn.Module:
    """The stand-alone network of an architecture, warm-started from the supernet of a finished search.

    Stem and choice layers inherit their weights, with BN statistics of this very path; the classifier (and MBConv's
    last stage and head, which no search trains) stay as initialised.

    Args:
        run: a search's run directory.
        architecture: its written form; by default the best one found.
        runtime: where the BN statistics are computed.
        num_classes: outputs of the fresh classifier.

    Raises:
        ArchitectureError: an illegal architecture.
        UsageError: one whose blocks the search has not trained, because of greedy coverage.
    """
    space, table = search_progress(run)
    text = architecture or best_architecture(run)
    arch = space.parse(text)
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
    model = build_model(text, num_classes=num_classes, **space.model_options())
    _, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    return model


def extract(run: FilePath, architecture: str | None, out: FilePath, runtime: Runtime, num_classes: int = 1000) -> str:
    """Write what `inherit` gives to a folder that timm loads without this search: `create_model("local-dir:OUT")`.

    Returns:
        The written form of the architecture.

    Raises:
        UsageError: `out` already holds something, and what `inherit` raises.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} already holds files; choose another --out")
    model = inherit(run, architecture, runtime, num_classes)
    text = str(model.arch)
    arguments = {"arch": text, **search_progress(run)[0].model_options()}
    save_weights(out / "model.safetensors", model.state_dict())
    save_config_for_hf(model, str(out / "config.json"), model_args=arguments)
    return text


def best_architecture(run: FilePath) -> str:
    """The best architecture of a finished search. Raises `CheckpointError` if it is not finished."""
    file = run / "architectures.json"
    if not file.exists():
        raise CheckpointError(f"{run} is not finished; go on with: bossnet search --resume {run}")
    return load_json(file, "list of architectures")[0]["architecture"]


def chain_of(space: Space, arch: Arch) -> Chain:
    """The stages and paths that an architecture goes through."""
    chain: list[tuple[Stage, Path]] = []
    entry: Entry = None
    for block, path in enumerate(space.split(arch)):
        chain.append((stage_of(space, block, entry), path))
        entry = space.exit(block, entry, path)
    return tuple(chain)
