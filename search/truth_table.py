"""True accuracies of architectures: from a file, or from NATS-Bench.

A truth file is `{"space": NAME, "accuracy": {ARCHITECTURE: VALUE, ...}}`, as `bossnet truth` writes it; higher is
better, in whatever unit. Other keys are kept in `meta`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from bossnet_zoo import console
from bossnet_zoo.checkpoint import load_json
from bossnet_zoo.errors import ArchitectureError, BossNetError, UsageError, unknown
from bossnet_zoo.spaces import Arch, Space, describe_in_words

from .rating_table import LARGEST, is_summable, parse_in

NATS_DATASETS = ("cifar10", "cifar100")


@dataclass(frozen=True)
class TruthTable:
    """How accurate architectures of a space truly are.

    Attributes:
        space: name of their search space.
        accuracy: by written form of the architecture; higher is better.
        meta: everything else that the file says.
    """

    space: str
    accuracy: Mapping[str, float]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def architectures(self, space: Space) -> dict[Arch, float]:
        """Accuracy by architecture.

        Raises:
            UsageError: an architecture that is not one of `space`.
        """
        if self.space != space.name:
            raise UsageError(f"the accuracies are of space {self.space!r}, the ratings of {space.name!r}")
        result: dict[Arch, float] = {}
        for text, accuracy in self.accuracy.items():
            try:
                arch = parse_in(space, text)
            except ArchitectureError as error:
                raise UsageError(f"accuracies: {error}") from None
            result[arch] = accuracy
        return result

    def within(self, space: Space) -> TruthTable:
        """The accuracies of architectures of `space`, for a benchmark of which `space` is a part.

        Raises:
            UsageError: `space` is of another kind, or has none of the architectures.
        """
        if self.space != space.name:
            raise UsageError(f"the accuracies are of space {self.space!r}, the ratings of {space.name!r}")
        inside = {}
        for text, accuracy in self.accuracy.items():
            with contextlib.suppress(ArchitectureError):
                inside[str(space.parse(text))] = accuracy
        if not inside:
            number = len(self.accuracy)
            raise UsageError(
                f"none of the {number:,} architectures with an accuracy is one of {describe_in_words(space)}"
            )
        return replace(self, accuracy=inside)


def read_truth(path: Path) -> TruthTable:
    """The accuracies in a truth file.

    Raises:
        UsageError: the file does not exist, or says something that is no accuracy.
        BossNetError: it is not JSON.
    """
    return truth_from_json(load_json(path, "truth file"), str(path))


def truth_from_json(value: Any, name: str = "truth") -> TruthTable:
    """The table that a decoded JSON value stands for; `name` is named in errors. Raises `UsageError`."""

    def wrong(what: str) -> UsageError:
        form = '{"space": NAME, "accuracy": {ARCHITECTURE: VALUE, ...}}'
        return UsageError(f"{name}: {what}; a truth file is {form}, as bossnet truth writes it")

    if not isinstance(value, dict):
        raise wrong("it is no JSON object")
    space, accuracy = value.get("space"), value.get("accuracy")
    if not isinstance(space, str):
        raise wrong('"space" is no name')
    if not isinstance(accuracy, dict):
        raise wrong('"accuracy" is no JSON object of accuracies')
    if not accuracy:
        raise wrong('"accuracy" is empty')
    for text, number in accuracy.items():
        if not is_summable(number):
            raise wrong(f"{text!r}: {number!r} is no finite number below {LARGEST:g}")
    meta = {key: entry for key, entry in value.items() if key not in ("space", "accuracy")}
    return TruthTable(space, {text: float(number) for text, number in accuracy.items()}, meta)


def read_nats_bench(path: Path, dataset: str) -> TruthTable:
    """Test accuracies (90 epochs, mean over seeds) of NATS-Bench's size space, through the benchmark's own package.

    CIFAR-10 networks were trained on train + validation, CIFAR-100 networks on train, as the benchmark reports them.
    Only architectures that are there count. The package unpickles these files: use the benchmark's own.

    Args:
        path: the folder `NATS-sss-v1_0-50262-simple`, unpacked, or one like it; or the file
            `NATS-sss-v1_0-50262.pickle.pbz2`, which takes much memory.
        dataset: `cifar10` or `cifar100`.

    Raises:
        UsageError: an unknown data set, or no benchmark there.
        BossNetError: the package is not installed, or a file is damaged.
    """
    if dataset not in NATS_DATASETS:
        raise unknown("dataset of NATS-Bench", dataset, NATS_DATASETS)
    in_folder = (path / "meta.pickle.pbz2").exists()
    if not in_folder and not path.is_file():
        raise UsageError(
            f"{path} holds no NATS-Bench: no meta.pickle.pbz2; unpack NATS-sss-v1_0-50262-simple.tar there"
        )
    try:
        from nats_bench import create
    except ImportError:
        raise BossNetError('reading NATS-Bench needs a package; type: pip install "bossnet-zoo[data]"') from None
    accuracy, place = {}, path
    try:
        api = create(str(path), "sss", fast_mode=in_folder, verbose=False)
        files = {int(file.name.partition(".")[0]): file for file in sorted(path.glob("[0-9]*.pickle.pbz2"))}
        for index in console.track(files or sorted(api.evaluated_indexes), "NATS-Bench", len(files) or len(api)):
            place = files.get(index, path)
            info = api.get_more_info(index, dataset, hp="90", is_random=False)
            accuracy[api.arch(index)] = info["test-accuracy"]
            if in_folder:
                api.arch2infos_dict.clear()  # it would keep the training curves of all 32,768
    except (OSError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        raise BossNetError(f"{place} is damaged ({error}); unpack it again") from error
    if not accuracy:
        raise UsageError(f"{path} holds no architectures: no files such as 000000.pickle.pbz2")
    return TruthTable("nats", accuracy, {"source": "NATS-Bench", "dataset": dataset})
