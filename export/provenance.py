"""Where a network's images and weights came from, in words for a file that others get: no path of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bossnet_zoo.errors import BossNetError
from bossnet_zoo.runs import LOCAL, WEIGHTS, is_run, load_config


def public_name(data: str) -> str:
    """What images are called, as `open_images` takes them: of a path nothing but its end.

    >>> public_name("hf:team/pets"), public_name("cifar10:/home/me/data"), public_name("/home/me/pets/")
    ('hf:team/pets', 'cifar10', 'pets')
    """
    kind, _, rest = data.partition(":")
    if kind in ("digits", "cifar10", "cifar100"):
        return data if kind == "digits" else kind
    if kind == "hf" and not (rest.startswith(("/", ".", "~")) or Path(rest).exists()):
        return data
    name = Path(rest if kind == "hf" else data).name
    return name if name not in ("", "..") else "a folder of images"


@dataclass(frozen=True)
class Beginning:
    """What the weights of a training run were before it.

    Attributes:
        text: sentences.
        is_release: whether they come from the authors' released weights, as far as is known.
    """

    text: str
    is_release: bool = False


def beginning_of(config: Mapping[str, Any], releases: Mapping[str, Mapping[str, Any]]) -> Beginning:
    """What a run began with; followed to the run before it where that is still there.

    Args:
        config: of the run.
        releases: `cards.published`.
    """
    return _begun("Training", config, releases, ())


def _begun(
    who: str, config: Mapping[str, Any], releases: Mapping[str, Mapping[str, Any]], before: tuple[Path, ...]
) -> Beginning:
    if config["pretrained"]:
        model = str(config["model"])
        name = Path(model).name if model.startswith(LOCAL) else model
        if name.partition(".")[0] in releases:
            return _release(f"{who} began with the published weights of {name}")
        return Beginning(f"{who} began with the published weights of {name}, whose licence is not known to this card.")
    if not config["init"]:
        return Beginning(f"{who} began with random weights.")
    file = Path(config["init"])
    if file.name in {entry["file"].rpartition("/")[2] for entry in releases.values()}:
        return _release(f"{who} began with the weights in {file.name}")
    if file not in before:
        with contextlib.suppress(BossNetError):  # it has changed since, and tells nothing any more
            if is_run(file):
                earlier = load_config(file)
                earliest = _begun("That run", earlier, releases, (*before, file))
                text = f"{who} began with the weights of another run, trained on {public_name(earlier['data'])}."
                return Beginning(f"{text} {earliest.text}", earliest.is_release)
    whose = "another run" if file.name in WEIGHTS.values() else "a file"
    return Beginning(
        f"{who} began with the weights of {whose}, {file.name}; what that began with, and its licence, are not known "
        "to this card."
    )


def _release(sentence: str) -> Beginning:
    return Beginning(f"{sentence}, the authors' release, which carries no licence of its own.", is_release=True)
