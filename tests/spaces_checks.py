"""What holds in every search space, checked by the tests of each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch

from bossnet_zoo import models
from bossnet_zoo.errors import ArchitectureError
from bossnet_zoo.models.table import measure
from bossnet_zoo.spaces import Arch, Cost, Entry, Space, parse_arch


def enumerate_space(space: Space) -> Iterator[Arch]:
    """Every architecture, by walking the chain of blocks as the solver does."""

    def walk(block: int, entry: Entry, paths: tuple) -> Iterator[Arch]:
        if block == space.num_blocks:
            yield space.join(paths)
            return
        assert entry in space.entries(block)
        for path in space.paths(block, entry):
            yield from walk(block + 1, space.exit(block, entry, path), (*paths, path))

    return walk(0, None, ())


def check_count(space: Space) -> list[Arch]:
    """The count is that of the architectures; each is there once, and comes back from its text."""
    everything = list(enumerate_space(space))
    assert len(everything) == len(set(everything)) == len({str(arch) for arch in everything}) == space.count()
    assert all(space.parse(str(arch)) == arch for arch in everything)
    return everything


def check_round_trips(space: Space, arch: Arch) -> None:
    """Between an architecture, its text, its paths and their texts."""
    assert space.parse(str(arch)) == arch == parse_arch(str(arch))
    assert hash(space.parse(str(arch))) == hash(arch)
    paths = space.split(arch)
    assert len(paths) == space.num_blocks
    assert space.join(paths) == arch
    entry: Entry = None
    for block, path in enumerate(paths):
        assert path in space.paths(block, entry)
        assert space.parse_path(block, space.path_text(path)) == path
        entry = space.exit(block, entry, path)


def check_read_back_or_refused(parse: Callable[[str], Arch], text: str) -> None:
    """Whatever is accepted as a written form is the written form."""
    try:
        arch = parse(text)
    except ArchitectureError:
        return
    assert str(arch) == text


def check_cost_is_that_of_the_network(space: Space, arch: Arch, num_classes: int, resolution: int) -> None:
    """By arithmetic and by counting what the built network does; as a whole and summed along the chain of blocks."""
    with torch.device("meta"):
        model = models.build(arch, num_classes=num_classes, **space.model_options())
    cost = space.cost(arch, resolution)
    assert cost == measure(model, resolution)
    total, entry = Cost(), None
    for block, path in enumerate(space.split(arch)):
        total += space.path_cost(block, entry, path, resolution)
        entry = space.exit(block, entry, path)
    assert total + space.fixed_cost(entry, resolution) == cost


def check_sampling_is_uniform(space: Space, samples_each: int = 60) -> None:
    """Every architecture comes about equally often (chi-squared), and the seed decides."""
    generator, draws = random.Random(0), samples_each * space.count()
    counts = dict.fromkeys(enumerate_space(space), 0)
    for _ in range(draws):
        counts[space.sample(generator)] += 1
    statistic = sum((count - samples_each) ** 2 / samples_each for count in counts.values())
    freedom = space.count() - 1
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5
    assert space.sample(random.Random(7)) == space.sample(random.Random(7))


def check_ratings_keys_differ(space: Space) -> None:
    """Texts of entries and paths are keys of ratings files."""
    assert space.entry_text(None) == "any"
    for block in range(space.num_blocks):
        entries = space.entries(block)
        assert len({space.entry_text(entry) for entry in entries}) == len(entries)
        for entry in entries:
            paths = space.paths(block, entry)
            assert len({space.path_text(path) for path in paths}) == len(paths)
