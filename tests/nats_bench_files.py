"""NATS-Bench in small, written by the benchmark's own classes: as a folder, and as the one large file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

SEEDS = (777, 888)
EPOCHS = 90
_TEST_SETS = {"cifar10": "ori-test", "cifar100": "x-test"}


def _results(index: int, arch: str, accuracies: Mapping[str, float]) -> dict:
    """What the benchmark keeps of one architecture: on each data set one training from every seed."""
    from nats_bench.api_utils import ArchResults, ResultsCount

    results = ArchResults(index, arch)
    for dataset, accuracy in accuracies.items():
        for seed in SEEDS:
            trial = ResultsCount(dataset, None, {}, {}, 1.0, 1.0, {"arch_str": arch}, seed, EPOCHS, [0.1])
            curve = dict.fromkeys(range(EPOCHS), 1.0)
            trial.update_train_info(curve, curve, curve, curve)
            keys = [f"{_TEST_SETS[dataset]}@{epoch}" for epoch in range(EPOCHS)]
            accs = dict.fromkeys(keys, 1.0)  # of all epochs but the last
            accs[keys[-1]] = accuracy + (1 if seed == SEEDS[0] else -1)
            trial.update_eval(accs, dict.fromkeys(keys, 1.0), dict.fromkeys(keys, 1.0))
            results.update(dataset, seed, trial)
    return {"90": results.state_dict()}


def write_benchmark(
    root: Path, archs: Sequence[str], accuracies: Mapping[str, Mapping[str, float]]
) -> tuple[Path, Path]:
    """The benchmark's folder and file, with results for some of `archs`.

    Args:
        archs: all architectures of the benchmark, in its order.
        accuracies: by architecture, then by data set: the mean over the seeds after the last epoch.
    """
    from nats_bench.api_utils import pickle_save

    folder = root / "NATS-sss-small"
    folder.mkdir(parents=True)
    pickle_save({"meta_archs": list(archs)}, folder / "meta.pickle")
    infos = {archs.index(arch): _results(archs.index(arch), arch, values) for arch, values in accuracies.items()}
    for index, info in infos.items():
        pickle_save(info, folder / f"{index:06d}.pickle")
    whole = {"meta_archs": list(archs), "arch2infos": infos, "evaluated_indexes": set(infos)}
    pickle_save(whole, root / "NATS-sss-small.pickle")
    return folder, root / "NATS-sss-small.pickle.pbz2"
