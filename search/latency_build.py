"""Measuring a latency table, and how far the sums of its figures are from whole networks.

1. A few networks are chosen that have every operation of the space between them. They are timed part by part in one
   run, and as a whole (`latency_runtimes`, `latency_onnx`). An operation's figure is the median over all its timings.
2. What a sum of parts misses or counts twice is the same in every network of a space, since all have equally many
   layers, or grows with the sum: a call, an event, a conversion of layout per layer; a clock that rounds. One scale
   and one offset, fitted to the whole times of those same networks, allow for it.
3. Other networks, drawn uniformly from the space and never used in the fit, tell how far scale times sum plus offset
   is from what they take as a whole: the mean relative error, and whether the order is right.

Every timing comes after a run that is not counted, so that memory is allocated and caches hold what they hold in
steady use. Networks are timed in turns, in a new order each round, so that a moment in which the machine is busy or hot
meets all of them: a shared CPU may lose a third of its speed for ten seconds. Where memory does not hold all networks,
this happens in groups, drawn at random from both kinds of networks. A group that is done is kept in a file until the
table is written, and an interrupted measurement goes on with the next one.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from bossnet_zoo import console
from bossnet_zoo.checkpoint import load_json, save_json
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.spaces import Arch, Space
from bossnet_zoo.spaces.hytra import STRIDES

from .latency import LatencyTable, Operation, words
from .latency_parts import Network, cover, cut
from .latency_runtimes import Engine, Prepared, memory_bytes
from .solver import path_latency_ms

CHECKED = 20  # networks
COVERING = 8  # at least, where the space is large enough: scale and offset are fitted to them
ROUNDS = 7
_MEMORY_SHARE = 0.25  # of the machine's memory for networks that are timed in turns
_COPIES = 2  # of the weights of such a network, about
_ON_GPU = 8  # such networks: engines take long to build, and a GPU's speed is steady
_BUSY = 0.15  # spread of timings above which something else is going on here
_VISIT = 0.1  # seconds of a small network in one turn
_MOST = 10  # runs of it


@dataclass(frozen=True)
class Timings:
    """Seconds of one network.

    Attributes:
        whole: of each run as a whole.
        parts: (runs, parts) of each run part by part; empty for networks of the check.
    """

    whole: list[float]
    parts: list[list[float]]


def build_table(
    space: Space,
    engine: Engine,
    *,
    resolution: int | None = None,
    batch: int = 1,
    check: int = CHECKED,
    rounds: int = ROUNDS,
    seed: int = 0,
    progress: Path | None = None,
) -> LatencyTable:
    """Measure every operation of `space`, and check the table on whole networks.

    Args:
        engine: what to measure with, on which device.
        resolution: pixels; by default the space's own.
        batch: images at once.
        check: networks drawn for the check; 0 for none.
        rounds: turns that every network has.
        seed: draws the networks and their order.
        progress: file that keeps finished groups; once the table is written it has done its work.

    Raises:
        UsageError: sizes that are not possible, or a space that latency tables do not know.
        BossNetError: the engine cannot run an operation.
    """
    resolution = space.default_resolution if resolution is None else resolution
    smallest = STRIDES[-1] if space.name == "hytra" else 8
    for name, value, least in (
        ("resolution", resolution, smallest),
        ("batch", batch, 1),
        ("rounds", rounds, 1),
        ("check", check, 0),
    ):
        if value < least:
            raise UsageError(f"--{name} {value} is not possible; type {least} or more")
    generator = random.Random(seed)
    layers, covering = cover(space, resolution, batch, COVERING, seed)
    checked = [cut(space, arch, resolution, batch) for arch in draw(space, check, covering, generator)]
    operations = len(set(layers.values()))
    console.note(f"{space.name}, {resolution} px, batch {batch}: {operations} operations in {len(covering)} networks")
    where: dict[str, Any] = {"runtime": engine.runtime, "versions": engine.versions}
    where |= {"device": engine.device, "threads": engine.threads}
    console.note(f"{words(**where)}; {len(checked)} networks for the check")
    sizes: dict[str, Any] = {"resolution": resolution, "batch": batch}
    kept = Kept(progress, {"space": repr(space), **where, **sizes, "check": check, "rounds": rounds, "seed": seed})
    times = measure([*covering.values(), *checked], covering, engine, rounds, generator, kept)
    table = LatencyTable(
        space=space,
        **sizes,
        **where,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        operations=summarise(layers, covering.values(), times),
        layers=layers,
    )
    _say_if_busy(times.values())
    table = fit(table, {arch: times[str(arch)].whole for arch in covering})
    if checked:
        table = replace(table, check=compare(table, {net.arch: times[str(net.arch)].whole for net in checked}))
    return table


def _say_if_busy(times: Iterable[Timings]) -> None:
    spread = statistics.median(median_and_spread(timings.whole)[1] for timings in times)
    if spread > _BUSY:
        console.note(
            f"timings of one network vary by {100 * spread:.0f} % (middle half), and so does what the table is "
            "compared with; measure anew when nothing else runs here"
        )


def draw(space: Space, number: int, others: Iterable[Arch], generator: random.Random) -> list[Arch]:
    """So many different architectures that are none of `others`, or as many as there are."""
    taken = set(others)
    number = min(number, space.count() - len(taken))
    archs: dict[Arch, None] = {}
    while len(archs) < number:
        arch = space.sample(generator)
        if arch not in taken:
            archs[arch] = None
    return list(archs)


# --- time


class Kept:
    """Timings of finished groups, in a file that outlives an interruption.

    Args:
        path: the file; None keeps nothing.
        settings: what the timings depend on; a file with other settings is set aside.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self._path, self._settings = path, settings
        self.times: dict[str, Timings] = {}
        if path is not None and path.exists():
            with suppress(BossNetError, KeyError, TypeError, AttributeError):  # damaged: it is written anew
                found = load_json(path)
                if found["settings"] == settings:
                    self.times = {name: Timings(**times) for name, times in found["times"].items()}
            console.note(f"{len(self.times)} networks were measured before the interruption, says {path}")

    def add(self, times: Mapping[str, Timings]) -> None:
        self.times |= times
        if self._path is not None:
            timings = {name: asdict(timing) for name, timing in self.times.items()}
            save_json(self._path, {"settings": self._settings, "times": timings})


def measure(
    networks: Sequence[Network],
    in_parts: Iterable[Arch],
    engine: Engine,
    rounds: int,
    generator: random.Random,
    kept: Kept,
) -> Mapping[str, Timings]:
    """The timings of every network, by its written form, group after group."""
    groups = form_groups(generator.sample(networks, len(networks)), engine.on_gpu, _MEMORY_SHARE * memory_bytes())
    ahead = [group for group in groups if not all(str(network.arch) in kept.times for network in group)]
    if ahead:
        parts = {part.operation: part for group in ahead for network in group for part in network.parts}
        engine.learn(parts)
    for group in console.track(ahead, "measuring", len(ahead)):
        prepared = {str(network.arch): engine.prepare(network, network.arch in in_parts) for network in group}
        kept.add(time_in_rounds(prepared, {str(arch) for arch in in_parts}, rounds, generator))
    return kept.times


def form_groups(networks: Sequence[Network], on_gpu: bool, memory: float) -> list[list[Network]]:
    """Networks that are timed in turns, in their order: as many as `memory` in bytes holds, or a GPU's share."""
    groups: list[list[Network]] = [[]]
    used = 0
    for network in networks:
        size = _COPIES * sum(parameter.nbytes for parameter in network.model.parameters())
        if groups[-1] and (len(groups[-1]) == _ON_GPU if on_gpu else used + size > memory):
            groups.append([])
            used = 0
        groups[-1].append(network)
        used += size
    return groups


def time_in_rounds(
    networks: Mapping[str, Prepared], in_parts: Iterable[str], rounds: int, generator: random.Random
) -> dict[str, Timings]:
    """Time some networks in turns, each as a whole, and those `in_parts` also part by part; then close them."""
    whole: dict[str, list[float]] = {name: [] for name in networks}
    counted: dict[str, list[bool]] = {name: [] for name in networks}  # for each run in parts
    both = networks.keys() & set(in_parts)
    for _ in range(rounds):
        for name in generator.sample(list(networks), len(networks)):
            network = networks[name]
            seconds = network.whole()  # which is not counted
            runs = min(_MOST, max(1, int(_VISIT / seconds))) if seconds else 1
            whole[name] += [network.whole() for _ in range(runs)]
            if name in both:
                for run in range(runs + 1):
                    network.parts()
                    counted[name].append(run > 0)
    taken = {name: network.close() for name, network in networks.items()}
    return {
        name: Timings(whole[name], [row for row, counts in zip(taken[name], counted[name], strict=True) if counts])
        for name in networks
    }


# --- figures


def summarise(
    layers: Mapping[str, str], networks: Iterable[Network], times: Mapping[str, Timings]
) -> dict[str, Operation]:
    """Median and spread of every operation, over all networks, places and runs, in the order of `layers`."""
    taken: dict[str, list[float]] = {operation: [] for operation in layers.values()}
    for network in networks:
        for row in times[str(network.arch)].parts:
            for operation, part in zip(network.operations, row, strict=True):
                taken[operation].append(part)
    operations: dict[str, Operation] = {}
    for name, seconds in taken.items():
        median, spread = median_and_spread(seconds)
        operations[name] = Operation(1e3 * median, spread, len(seconds))
    return operations


def median_and_spread(seconds: Sequence[float]) -> tuple[float, float]:
    """The median, and the distance between the quartiles divided by it."""
    lower, median, upper = map(float, np.percentile(seconds, (25, 50, 75)))
    return median, (upper - lower) / median if median else 0.0


def fit(table: LatencyTable, seconds: Mapping[Arch, Sequence[float]]) -> LatencyTable:
    """The table with scale and offset of least squares of relative errors.

    Args:
        seconds: of networks as a whole.
    """
    measured = {arch: 1e3 * statistics.median(runs) for arch, runs in seconds.items()}
    rows = np.array([(path_latency_ms(table.space, arch, table) / ms, 1 / ms) for arch, ms in measured.items()])
    (scale, offset_ms), _, rank, _ = np.linalg.lstsq(rows, np.ones(len(rows)))
    if rank < 2 or len(rows) < 3 or scale <= 0:  # too few networks, or nothing but noise between them
        scale, offset_ms = 1 / rows[:, 0].mean(), 0.0
    return replace(table, scale=float(scale), offset_ms=float(offset_ms))


def compare(table: LatencyTable, seconds: Mapping[Arch, Sequence[float]]) -> dict[str, Any]:
    """How far the table is from networks that were measured as a whole.

    Returns:
        `mean_relative_error` and `largest_relative_error`; `mean_relative_error_of_sums` without scale and offset;
        `kendall` and `spearman`, None where they are undefined; `networks`, each with both latencies.
    """
    plain = replace(table, scale=1.0, offset_ms=0.0)
    rows = []
    for arch, runs in seconds.items():
        median, spread = median_and_spread(runs)
        rows.append(
            {
                "architecture": str(arch),
                "measured_ms": 1e3 * median,
                "spread": spread,
                "table_ms": path_latency_ms(table.space, arch, table),
                "sum_ms": path_latency_ms(table.space, arch, plain),
            }
        )
    measured, tabled, sums = (np.array([row[key] for row in rows]) for key in ("measured_ms", "table_ms", "sum_ms"))
    errors = np.abs(tabled / measured - 1)
    return {
        "mean_relative_error": float(errors.mean()),
        "largest_relative_error": float(errors.max()),
        "mean_relative_error_of_sums": float(np.abs(sums / measured - 1).mean()),
        "kendall": _agreement(kendalltau, tabled, measured),
        "spearman": _agreement(spearmanr, tabled, measured),
        "networks": rows,
    }


def _agreement(correlation: Any, tabled: np.ndarray, measured: np.ndarray) -> float | None:
    if len(set(tabled)) < 2 or len(set(measured)) < 2:
        return None
    return float(correlation(tabled, measured).statistic)
