"""Files of weights: read safely in every layout that they have in the wild, and loaded strictly.

A file may hold `{"model", "model_ema", "args": argparse.Namespace, ...}` (the authors' release), `{"state_dict",
"state_dict_ema", ...}` (timm's trainer), plain weights, or safetensors; names may be prefixed with `module.` or
`_orig_mod.`. Nothing is ever unpickled but tensors, plain values and `argparse.Namespace`.
"""

from __future__ import annotations

import argparse
import http.client
import pickle
import re
import urllib.error
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import adapt_input_conv, build_model_with_cfg
from timm.models._builder import resolve_pretrained_cfg
from timm.models._hub import get_cache_dir
from torch import Tensor, nn

from .. import console
from ..checkpoint import load_weights
from ..errors import CheckpointError, DamagedFileError, DownloadError, NoWeightsError, UsageError

LOCAL_WEIGHTS = "model.safetensors"  # in a folder that timm's `local-dir:` opens
_KEYS = {"model": ("model", "state_dict"), "model_ema": ("model_ema", "state_dict_ema")}
_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put in front of names


def read_weights(path: str | Path, which: str | None = None) -> dict[str, Tensor]:
    """The weights in a file, under the network's own names, on the CPU.

    Args:
        path: a safetensors file, or one that `torch.save` wrote.
        which: `model`, or `model_ema` for their moving average. A file with one set of weights serves as `model`. By
            default the average of a file that has both, as in timm's `checkpoint_path`, and a note says so.

    Raises:
        UsageError: there is no such file.
        DamagedFileError: the file is damaged.
        CheckpointError: it wants to unpickle more than is safe, or holds no such weights.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the file of weights in it, as in {path / 'best.safetensors'}")
    if not path.is_file():
        raise UsageError(f"weights file {path} does not exist")
    content = load_weights(path) if path.suffix == ".safetensors" else _read_pickle(path)
    weights = _select(content, which, path)
    if not (isinstance(weights, Mapping) and weights and all(isinstance(value, Tensor) for value in weights.values())):
        raise CheckpointError(f"{path} holds no weights: they are tensors by name, alone or under {_known_keys()}")
    return {_strip(name): value for name, value in weights.items()}


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is not None:
            raise CheckpointError(
                f"{path} was not loaded: to unpickle it would run {wanted[1]}, and a file of weights needs nothing but "
                "tensors, plain values and argparse.Namespace; use a file from a source you trust"
            ) from None
        raise DamagedFileError(f"{path} is damaged or no file of weights; fetch it again") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:  # how torch reports a damaged archive
        raise DamagedFileError(
            f"{path} is damaged or no file of weights ({_first_line(error)}); fetch it again"
        ) from None


def _select(content: Any, which: str | None, path: Path) -> Any:
    if not isinstance(content, Mapping):
        return content
    by_kind = {kind: content[key] for kind, keys in _KEYS.items() for key in keys if content.get(key) is not None}
    if which is None and len(by_kind) == 2:
        console.note(f"{path} holds weights and their moving average; the average is taken")
    which = which or ("model_ema" if "model_ema" in by_kind else "model")
    if which in by_kind:
        return by_kind[which]
    if which == "model_ema":
        raise CheckpointError(f"{path} holds no averaged weights (model_ema); load its plain weights: tag .in1k")
    return by_kind.get("model_ema", content)


def _strip(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _known_keys() -> str:
    return ", ".join(key for keys in _KEYS.values() for key in keys)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: object = "these weights") -> None:
    """Load weights whose names and shapes must be exactly the model's.

    Raises:
        CheckpointError: names what is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    faults = {
        "missing": own.keys() - weights.keys(),
        "unexpected": weights.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape},
    }
    found = "; ".join(f"{len(names)} {fault}: {_few(names)}" for fault, names in faults.items() if names)
    if found:
        raise CheckpointError(
            f"{source} does not fit {type(model).__name__} {getattr(model, 'arch', '')} ({found}); "
            "load it into the model it was saved from"
        )
    model.load_state_dict(weights)


def _few(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


class LoadsWeightFiles:
    """For networks: timm hands a downloaded or local file of weights to `load_pretrained` (its `custom_load`)."""

    def load_pretrained(self: Any, path: str | Path, prefix: str = "") -> None:
        """Load a file of weights: of a published name those of its tag (`ema_...` for the moving average).

        The classifier is kept where its classes agree with the network's, and stays freshly initialised where the
        network was asked for another number than the weights' own. The stem is adapted to `in_chans`.

        Raises:
            DamagedFileError: the file is damaged; if it was a download, it is gone, so that the next try downloads it.
            CheckpointError: it is unusable otherwise, or does not fit.
        """
        cfg = self.pretrained_cfg
        tag = cfg.get("tag") or ""
        try:
            which = ("model_ema" if tag.startswith("ema_") else "model") if cfg.get("url") else None
            weights = read_weights(path, which)
        except DamagedFileError as error:
            origin = self._downloaded_from(Path(path))
            if origin is None:
                raise  # a file of the user's own
            for kept in (Path(path).resolve(), Path(path)):  # what the Hub's cache keeps is a link to a file
                kept.unlink(missing_ok=True)  # a download that broke off is kept as if it were whole
            raise DamagedFileError(f"the download of {origin} was cut short or damaged; try again") from error
        stem = f"{cfg['first_conv']}.weight"
        if stem in weights and weights[stem].shape[1] == cfg["input_size"][0]:
            weights[stem] = adapt_input_conv(self.in_chans, weights[stem])
        if self.num_classes != cfg["num_classes"]:
            own = self.state_dict()
            for name in (f"{cfg['classifier']}.weight", f"{cfg['classifier']}.bias"):
                if name in own and name in weights and own[name].shape == weights[name].shape:
                    continue  # a fine-tuned file, opened with its own number of classes
                weights.pop(name, None)
                if name in own:
                    weights[name] = own[name]
        load_strictly(self, weights, path)

    def _downloaded_from(self: Any, path: Path) -> str | None:
        """Where a file in a cache of downloads came from; None for another file."""
        cfg = self.pretrained_cfg
        if cfg.get("source") == "hf-hub":
            return f"hf-hub:{cfg['hf_hub_id']}"
        return cfg["url"] if cfg.get("url") and path.parent == Path(get_cache_dir()) else None


def imagenet_cfg(**values: Any) -> dict[str, Any]:
    """What timm has to know of a network for ImageNet: preprocessing as the authors', and `values`."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "paper_name": "BossNAS",
        "paper_ids": "arXiv:2103.12424",
        "origin_url": "https://github.com/changlin31/BossNAS",
        **values,
    }


def build_variant(
    model_cls: type[nn.Module], variant: str, pretrained: bool, arch: str, /, recipe: str, **kwargs: Any
) -> Any:
    """What every entry point calls: timm's `build_model_with_cfg`, with files of weights read by `read_weights`.

    Args:
        model_cls: the network's class, which `LoadsWeightFiles`.
        variant: registered name.
        pretrained: load the weights that `pretrained_cfg` tells of.
        arch: the variant's architecture.
        recipe: with which `bossnet train` trains such a network; named where there are no weights.
        kwargs: as for `build_model_with_cfg`.

    Raises:
        UsageError: another `arch` among `kwargs`.
        NoWeightsError: `pretrained` of a name that has no published weights.
        CheckpointError: weights that cannot be read or do not fit.
        DownloadError: weights that cannot be downloaded.
    """
    if "arch" in kwargs:
        generic = {"HyTra": "hytra", "MBConvNet": "mbconv"}[model_cls.__name__]
        raise UsageError(f"{variant} is {arch}; another architecture is: create_model({generic!r}, arch=...)")
    kwargs["arch"] = arch
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        raise NoWeightsError(
            f"{variant} has no published weights; create it with pretrained=False and train it: "
            f"bossnet train {variant} --data IMAGENET --recipe {recipe}",
            recipe,
        )
    overlay.setdefault("custom_load", True)
    file = Path(cfg.file or "", LOCAL_WEIGHTS)
    if cfg.source == "local-dir" and file.is_file():
        overlay |= {"source": "", "file": str(file)}  # so that `load_pretrained` reads it, and its checksum
    if cfg.source == "hf-hub":
        overlay |= {"hf_hub_filename": LOCAL_WEIGHTS, "custom_load": "hf"}  # for the same reason
    try:
        return build_model_with_cfg(model_cls, variant, pretrained, pretrained_cfg_overlay=overlay, **kwargs)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        raise DownloadError(
            f"the weights of {variant} could not be downloaded from {cfg.url}: {error}",
            "with a copy of the file, type --weights PATH (train: --init PATH), or in Python pass "
            "pretrained_cfg_overlay=dict(file=PATH)",
            get_cache_dir(),
        ) from error
