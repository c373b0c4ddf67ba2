"""From a name, an architecture, a training run or a file of weights to a network that is ready to use."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm import create_model, list_pretrained
from timm.data import ImageNetInfo
from timm.models import is_model, list_models, model_entrypoint
from timm.models._hub import save_config_for_hf
from torch import nn

from .checkpoint import check_fields, load_json, read_metadata, reading, save_weights, write_atomically
from .errors import BossNetError, CheckpointError, NoWeightsError, UsageError, unknown
from .models.weights import LOCAL_WEIGHTS, load_strictly, read_weights
from .not_a_run import BEST, no_run
from .preprocessing import check_preprocessing
from .recipes import Recipe
from .spaces import Arch, HyTraArch, MBConvArch, NatsArch, parse_arch

WEIGHTS = {"best": BEST, "model": "last.safetensors", "ema": "last_ema.safetensors"}
ROLE = "file"  # metadata of a run's weights: the name of the file they were written as
_GENERIC_NAMES = {HyTraArch: "hytra", MBConvArch: "mbconv", NatsArch: "nats_size"}
CONFIG = "config.json"
LOCAL = "local-dir:"  # timm's prefix of a folder with config.json and model.safetensors
_NAMES = "the bossnet names: bossnet list; an architecture and the folder of a training run work too"
_MAKE_ONE = "make one with: bossnet train MODEL --data DATA --out RUN"
_WEIGHTS_FILES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")
_FORMS: dict[str, Any] = {"hytra": HyTraArch, "mbconv": MBConvArch, "nats": NatsArch}  # by the space in front


def resolve_model(model: str | Arch, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """The timm name and the keyword arguments that stand for `model`.

    >>> resolve_model("hytra:4c-8c", {"base_width": 8})
    ('hytra', {'arch': '4c-8c', 'base_width': 8})

    Args:
        model: a timm name (also `hf-hub:...`, `local-dir:...` and the folder alone, where it holds a network in timm's
            form), or an architecture, perhaps with its space in front.
        options: further arguments of the network.

    Raises:
        UsageError: neither a known name nor an architecture, or one that is not of the space in front.
    """
    options = dict(options or {})
    if not isinstance(model, str):
        return _GENERIC_NAMES[type(model)], {"arch": str(model), **options}
    if is_model(model) or model.startswith(("hf-hub:", LOCAL)):
        return model, options
    if is_local(Path(model)):
        return f"{LOCAL}{model}", options
    space, colon, text = model.partition(":")
    if colon and space in _FORMS:
        return resolve_model(_FORMS[space].parse(text), options)
    _check_path(model)
    if not model[:1].isdigit():
        raise unknown("model", model, list_models(), _NAMES)
    return resolve_model(parse_arch(model), options)


def _check_path(model: str) -> None:
    """Raise `UsageError` for a path that leads to no network: nowhere, or to weights that do not say whose they are."""
    path = Path(model)
    if path.suffix in _WEIGHTS_FILES and not path.exists():
        raise UsageError(f"{model} does not exist; give a run's folder, or a network's name with --weights FILE")
    if path.suffix in _WEIGHTS_FILES:
        raise UsageError(f"{model} does not say which network it is of; type its name, and --weights {model}")
    if not model:
        raise UsageError(f"the name of the model is empty; {_NAMES}")
    if path.exists():
        raise no_run(path, _NAMES)
    if "/" in model:
        raise UsageError(f"{model} does not exist; give a run's folder or a network's name; names: bossnet list")


def build_model(
    model: str | Arch, *, num_classes: int | None = None, pretrained: bool = False, **options: Any
) -> nn.Module:
    """The network that `resolve_model` tells of, made by timm.

    Raises:
        UsageError: an unknown model, or an option that its network does not have.
        CheckpointError: `pretrained` weights that cannot be read.
    """
    given = options
    name, options = resolve_model(model, options)
    if name.startswith(LOCAL):
        _check_local(Path(name.removeprefix(LOCAL)))
    try:
        return create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
    except BossNetError:
        raise
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise BossNetError(
            f"{name} could not be fetched ({str(error).splitlines()[0]}); try again with a connection"
        ) from error
    except FileNotFoundError as error:
        raise CheckpointError(f"the weights of {name} are not there: {error}; bring back a copy") from error
    except (TypeError, ValueError, RuntimeError) as error:
        if "No suitable checkpoints" in str(error):  # timm's, of a folder
            raise CheckpointError(
                f"{name} has no file of weights; {LOCAL_WEIGHTS} belongs beside config.json"
            ) from error
        if "unexpected keyword argument" in str(error):
            raise _unknown_option(name, error) from error
        if "Invalid pretrained tag" in str(error):
            known = list_pretrained(f"{name.partition('.')[0]}.*")
            raise unknown("weights", name, known, f"bossnet info {name.partition('.')[0]} lists them") from error
        if name.startswith(("hf-hub:", LOCAL)):
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{name} cannot be opened, for what it says about itself is wrong: {reason}"
            ) from error
        if pretrained or not given:
            raise
        asked = ", ".join(f"{option}={value!r}" for option, value in given.items())
        reason = str(error).splitlines()[0]
        raise UsageError(f"{name} cannot be built with {asked} ({reason}); type other values of --option") from error


def _unknown_option(name: str, error: Exception) -> UsageError:
    """Python's words on an argument that a network's class does not have, and the arguments that it has."""
    known: list[str] = []
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    module = sys.modules[model_entrypoint(name.partition(".")[0]).__module__]
    if found and (kind := getattr(module, found[1], None)):
        known = [option for option in inspect.signature(kind).parameters if option != "arch"]
    if not (found and known):
        return UsageError(f"{name} has no such option: {error}")
    return unknown(f"option of {name},", found[2], known, "" if len(known) <= 12 else f"known: {', '.join(known)}")


@dataclass(frozen=True)
class RunConfig:
    """What the config.json of a training run says; see `train`."""

    format: int
    kind: str
    version: str
    model: str
    model_options: dict
    num_classes: int
    class_names: tuple[str, ...] | None
    preprocessing: dict
    data: str
    parts: tuple[str, str]
    pretrained: bool
    init: str | None
    seed: int
    strict_images: bool
    architecture: str | None
    recipe: dict
    device_batch: int
    precision: str
    runtime: str


def is_run(path: str | Path) -> bool:
    """Whether `path` is a folder with a `config.json`, or a .safetensors file in one, and no network in timm's form."""
    path = Path(path)
    if not (path.is_dir() or (path.suffix == ".safetensors" and path.exists())):
        return False
    return _config_file(path).is_file() and not is_local(_config_file(path).parent)


def is_local(folder: Path) -> bool:
    """Whether a folder holds a network in timm's form, as `bossnet extract` and `bossnet publish` write it."""
    return (folder / CONFIG).is_file() and (folder / LOCAL_WEIGHTS).is_file()


def _config_file(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / "config.json"


def load_config(path: str | Path) -> dict[str, Any]:
    """The `config.json` of the training run `path`, or of the run that the file `path` lies in.

    Raises:
        UsageError: it is no training run.
    """
    file = _config_file(Path(path))
    if not file.exists():
        raise no_run(Path(path), _MAKE_ONE)
    config = load_json(file, "run's settings")
    if not isinstance(config, dict) or config.get("kind") != "train":
        raise no_run(file.parent, _MAKE_ONE)
    check_fields(RunConfig, config, f"{file}: the run's settings")
    check_preprocessing(config["preprocessing"], f"{file}: preprocessing")
    with reading(file, "run's settings"):
        Recipe.from_json(config["recipe"])
    return config


def find_origin(
    model: str | Arch, options: Mapping[str, Any] | None = None, pretrained: bool = False
) -> tuple[str, dict[str, Any], Path | None]:
    """What `resolve_model` gives, and the file of weights to begin with where `model` is a folder that has one.

    Folders are a training run, whose best weights it is, and a network in timm's form, whose weights it is; with timm's
    `local-dir:` in front only if `pretrained`. The name and arguments are those that the folder tells of, so that what
    is made of them outlives it.

    Raises:
        UsageError: neither a known name, an architecture nor a folder with a network.
    """
    options = dict(options or {})
    if not isinstance(model, str):
        return *resolve_model(model, options), None
    if is_run(model):
        config, path = load_config(model), Path(model)
        weights = path / WEIGHTS["best"] if path.is_dir() else path
        return config["model"], config["model_options"] | options, weights
    if model.startswith(LOCAL) or is_local(Path(model)):
        folder = Path(model.removeprefix(LOCAL))
        pretrained = pretrained or not model.startswith(LOCAL)
        config = _check_local(folder)
        arguments = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
        return *resolve_model(
            config["architecture"], arguments | options
        ), folder / LOCAL_WEIGHTS if pretrained else None
    return *resolve_model(model, options), None


def _check_local(folder: Path) -> dict[str, Any]:
    """The config.json of a network in timm's form. Raises `UsageError`, or `BossNetError` where it is damaged."""
    file = folder / "config.json"
    config = load_json(file, "network's description")
    if isinstance(config, dict) and config.get("kind") == "train":
        raise UsageError(
            f"{folder} is a training run, which is no folder in timm's form; type {folder} alone, or for timm itself: "
            f"bossnet publish {folder} --repo ORG/NAME --dry-run"
        )
    if not (isinstance(config, dict) and isinstance(config.get("architecture"), str)):
        raise UsageError(f"{folder} holds no network in timm's form; bossnet extract and bossnet publish write one")
    if not all(isinstance(config.get(name, {}), dict) for name in ("model_args", "pretrained_cfg")):
        raise CheckpointError(f"network's description {file} is damaged: model_args and pretrained_cfg are objects")
    return config


def load_run(path: str | Path, weights: str = "best") -> tuple[nn.Module, dict[str, Any]]:
    """The network that a training run has trained, in evaluation mode, and the run's `config.json`.

    The network's `pretrained_cfg` holds the run's preprocessing and class names, where timm's functions look for them.

    Args:
        path: a run's folder, or one of its .safetensors files.
        weights: which weights of a folder: `best`, `model` (the last) or `ema` (their moving average).

    Raises:
        UsageError: no training run, or an unknown kind of weights.
        CheckpointError: the weights are missing or damaged.
    """
    path = Path(path)
    config = load_config(path)
    if path.is_dir():
        if weights not in WEIGHTS:
            raise unknown("kind of weights", weights, WEIGHTS)
        path = path / WEIGHTS[weights]
        if not path.exists():
            raise CheckpointError(
                f"{path} does not exist yet: the run has not finished an epoch; bossnet train --resume"
            )
    model = build_trained(path, config)
    load_strictly(model, read_weights(path), path)
    if path.suffix == ".safetensors":
        check_role(path)
    return model.eval(), config


def build_trained(path: Path, config: Mapping[str, Any]) -> nn.Module:
    """The network of a training run, with its preprocessing and class names but without its weights."""
    overlay = config["preprocessing"] | {"num_classes": config["num_classes"], "label_names": config["class_names"]}
    overlay["tag"] = ""  # not that of the name's own weights
    with reading(_config_file(path), "run's settings"):
        return build_model(
            config["model"],
            num_classes=config["num_classes"],
            pretrained_cfg_overlay=overlay,
            **config["model_options"],
        )


def save_local(folder: Path, model: nn.Module, arguments: Mapping[str, Any], label_names: Sequence[str] = ()) -> None:
    """Write a network as timm opens it with `local-dir:FOLDER`: weights with a checksum, and then config.json.

    Args:
        arguments: with which timm makes the network.
        label_names: of its classes, if they have names.

    Raises:
        BossNetError: the disk is full or the folder cannot be written.
    """
    config = {"model_args": dict(arguments), "label_names": list(label_names)}
    save_weights(folder / LOCAL_WEIGHTS, model.state_dict())
    write_atomically(folder / CONFIG, lambda temporary: save_config_for_hf(model, str(temporary), config))


def check_role(file: Path) -> None:
    """Raise `CheckpointError` where a run's weights lie under the name of others, as the last ones under the best's."""
    role = read_metadata(file).get(ROLE, file.name)
    if file.name in WEIGHTS.values() and role != file.name:
        raise CheckpointError(f"{file} holds what the run wrote as {role}; give the files their own names back")


def open_model(model: str | Arch, weights: str | None = None, **options: Any) -> nn.Module:
    """A trained network, in evaluation mode, from whatever names one.

    Args:
        model: a run's folder or one of its .safetensors files; a timm name with published weights; or, together with
            a file of weights, any name or architecture.
        weights: `model` or `ema` for the raw weights or their moving average; or a file. By default the run's best, or
            the name's own.
        options: arguments of the network, for instance `base_width=8`.

    Raises:
        UsageError: nothing to be found under that name, or options for a run, which has its own.
        NoWeightsError: a network without published weights.
        CheckpointError: weights that are missing, damaged or do not fit.
    """
    if weights is not None and weights not in WEIGHTS and not Path(weights).exists():
        raise unknown("weights", weights, WEIGHTS, "or a file of them, which this is not")
    if isinstance(model, str) and is_run(model):
        if options:
            raise UsageError(f"{model} is a run, and its network is as it was trained; leave out --option")
        if weights is None or weights in WEIGHTS:
            return load_run(model, weights or "best")[0]
        network = load_run(model)[0]
        load_strictly(network, read_weights(weights), weights)
        return network
    if weights is None or weights in ("model", "ema"):
        is_published = isinstance(model, str) and list_pretrained(f"{model}.ema*")
        tag = ".ema_in1k" if weights == "ema" and is_published else ""
        try:
            return build_model(f"{model}{tag}" if tag else model, pretrained=True, **options).eval()
        except NoWeightsError as error:
            raise NoWeightsError(
                f"{model} has no published weights; give a file of them with --weights, or train it: "
                f"bossnet train {model} --data DATA --recipe {error.recipe} --out RUN",
                error.recipe,
            ) from error
    return _with_file(model, weights, options)


def _with_file(model: str | Arch, file: str, options: Mapping[str, Any]) -> nn.Module:
    """The network with weights from a file, which also tells how many classes there are."""
    weights = read_weights(file)
    network: Any = build_model(model, **options)
    classifier = weights.get(f"{network.pretrained_cfg['classifier']}.weight")
    if classifier is not None and len(classifier) != network.num_classes:
        network.reset_classifier(len(classifier))
    load_strictly(network, weights, file)
    network.pretrained_cfg.pop("notes", None)  # on the weights that these replace
    return network.eval()


def load_initial(model: nn.Module, file: Path) -> list[str]:
    """Start `model` from a file of weights, of another classifier perhaps.

    Returns:
        The names that keep their fresh values, because the file's classifier has another number of classes.

    Raises:
        CheckpointError: the file is missing or damaged, or does not fit the rest of the network.
    """
    weights, own = read_weights(file), model.state_dict()
    classifier = str(model.pretrained_cfg["classifier"])  # type: ignore[index, union-attr]
    kept = [
        name
        for name in own
        if name.startswith(f"{classifier}.") and (name not in weights or weights[name].shape != own[name].shape)
    ]
    load_strictly(model, weights | {name: own[name] for name in kept}, file)
    return kept


def class_names_of(model: nn.Module) -> tuple[str, ...]:
    """The names of a network's classes: its run's own, ImageNet's for 1,000 classes, or their numbers."""
    cfg: Any = model.pretrained_cfg
    num_classes = int(model.num_classes)  # type: ignore[arg-type]
    if names := cfg.get("label_names"):
        return tuple(names)
    if num_classes == 1000:
        return tuple(ImageNetInfo().label_descriptions())
    return numbered_classes(num_classes)


def numbered_classes(num_classes: int) -> tuple[str, ...]:
    """What classes without names are called."""
    return tuple(f"class {number}" for number in range(num_classes))
