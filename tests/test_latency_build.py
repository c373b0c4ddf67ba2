"""Measuring latency tables: parts of networks, and the arithmetic with an imaginary engine."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from small_spaces import SMALL_HYTRA, SMALL_NATS, SPACES

from bossnet_zoo import models
from bossnet_zoo.errors import UsageError
from bossnet_zoo.search import latency_build
from bossnet_zoo.search.latency import all_layers, layers_of
from bossnet_zoo.search.latency_build import build_table, compare, draw, fit, form_groups
from bossnet_zoo.search.latency_parts import cover, cut, fill, find_space
from bossnet_zoo.search.solver import path_latency_ms
from bossnet_zoo.spaces import HyTraSpace, MBConvSpace, NatsSpace, get_space


def side(space) -> int:
    return space.default_resolution


# --- parts


@SPACES
def test_the_parts_of_a_network_are_the_network(space):
    for seed in range(6):
        network = cut(space, space.sample(random.Random(seed)), side(space), batch=2)
        x = torch.randn(network.shape)
        fill(network.model)
        with torch.inference_mode():
            expected = network.model(x)
            for part in network.parts:
                assert part.shape == tuple(x.shape)
                x = part.module(x)
        assert expected.isfinite().all()
        assert expected.abs().max() > 1e-5
        torch.testing.assert_close(x, expected, rtol=0, atol=0)


def test_operations_are_named_after_choice_and_shapes():
    network = cut(HyTraSpace(), HyTraSpace().parse("8cc-16cccacaa-32aaaaaaa"), 224, batch=1)
    assert network.operations[:4] == [
        "stem 3x224 > 256x28",  # with the downsampling module that stands for stride 4
        "8c 256x28 > 512x28",
        "8c 512x28 > 512x28",
        "16c 512x28 > 1024x14",
    ]
    assert network.operations[-2:] == ["32a 2048x7 > 2048x7", "head 2048x7 > 1000"]


def number_of_operations(space) -> int:
    layers, _ = cover(space, space.default_resolution, 1, least=1)
    return len(set(layers.values()))


def test_every_distinct_operation_of_a_space_is_found():
    """MBConv: 4 candidates first and behind, in 5 blocks. NATS: 2 stems and first cells, 2 x 2 for each later layer."""
    assert (
        number_of_operations(MBConvSpace(block_layers=(2,) * 5, width=0.25, default_resolution=32))
        == 1 + 5 * (4 + 4) + 1
    )
    assert number_of_operations(SMALL_NATS) == 2 + 2 + 4 * 4 + 2
    # HyTra: 4 stems and heads; first layers; layers that stay (c, c, ca, ca) and that stride (to c, ca, ca).
    assert number_of_operations(SMALL_HYTRA) == 4 + 6 + 6 + 5 + 4


@SPACES
def test_the_chosen_networks_have_every_operation(space):
    layers, networks = cover(space, side(space), 1, least=8)
    assert set(layers) == set(all_layers(space))
    seen = Counter(operation for network in networks.values() for operation in network.operations)
    assert set(seen) == set(layers.values())
    assert len(networks) >= 8
    for arch, network in networks.items():
        assert [layers[key] for key in layers_of(space, arch)] == network.operations
    first, *_, last = layers
    assert first.startswith("stem")
    assert last.startswith("head")


def test_a_model_stands_for_its_space():
    assert find_space("bossnet_t0", {}) == HyTraSpace(se=True, act_layer="silu")
    assert find_space("bossnet_t0_nose", {}) == HyTraSpace(se=False, act_layer="relu")
    assert find_space("bossnet_m1", {"width": 0.5}) == MBConvSpace(se=False, width=0.5)
    assert find_space("nats_size", {}) == NatsSpace()
    assert find_space("hytra", {"base_width": 8}) == HyTraSpace(base_width=8)


def test_ratings_stand_for_their_space(tmp_path):
    ratings = {"space": "hytra", "space_options": {"base_width": 8}, "blocks": [{"4c": 1.0}]}
    (tmp_path / "ratings.json").write_text(json.dumps(ratings))
    assert find_space(str(tmp_path), {}) == find_space(str(tmp_path / "ratings.json"), {}) == HyTraSpace(base_width=8)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("bossnet_t1", "bossnet_t1 is no member of a search space; type hytra, mbconv, nats"),  # its last stride is 1
        ("resnet18", "resnet18 is no member of a search space"),
        ("bosnet_t0", "did you mean bossnet_t0"),
        ("nowhere.json", "nowhere.json does not exist"),
    ],
)
def test_what_is_in_no_space_is_refused(source, message):
    with pytest.raises(UsageError, match=message):
        find_space(source, {})


# --- arithmetic, with an engine whose every operation takes a known time


class Imaginary:
    """Takes 1 to 3 ms for an operation, and 10 times as long at first; whole networks take 1.25 x as long less 2 ms."""

    runtime, versions, device, threads = "abacus", {"abacus": "1.0"}, "imagination", 1

    def __init__(self, stop_after: int | None = None, on_gpu: bool = False):
        self.on_gpu = on_gpu
        self.prepared: list[str] = []
        self.stop_after = stop_after

    def learn(self, parts):
        self.learnt = set(parts)

    @staticmethod
    def seconds(operation: str) -> float:
        return 1e-3 * random.Random(operation).uniform(1, 3)

    def prepare(self, network, in_parts):
        if len(self.prepared) == self.stop_after:
            raise KeyboardInterrupt
        assert set(network.operations) <= self.learnt
        self.prepared.append(str(network.arch))
        return ImaginaryNetwork([self.seconds(operation) for operation in network.operations], in_parts)


class ImaginaryNetwork:
    last: ImaginaryNetwork | None = None

    def __init__(self, seconds, in_parts):
        self.seconds, self.in_parts = seconds, in_parts
        self.rows: list[list[float]] = []

    def factor(self, kind: str) -> float:
        """10 for the first run after that of another network, or of another kind."""
        cold = ImaginaryNetwork.last != (self, kind)
        ImaginaryNetwork.last = (self, kind)
        return 10.0 if cold else 1.0

    def whole(self):
        return self.factor("whole") * (1.25 * sum(self.seconds) - 2e-3)

    def parts(self):
        assert self.in_parts
        self.rows.append([self.factor("parts") * seconds for seconds in self.seconds])

    def close(self):
        return self.rows


@SPACES
def test_a_table_holds_what_operations_take_and_what_whole_networks_add(space):
    table = build_table(space, Imaginary(), check=10, rounds=2)
    assert {name: operation.ms for name, operation in table.operations.items()} == {
        name: pytest.approx(1e3 * Imaginary.seconds(name)) for name in table.layers.values()
    }
    assert table.scale == pytest.approx(1.25, abs=1e-5)
    assert table.offset_ms == pytest.approx(-2, abs=1e-4)
    assert table.check["mean_relative_error"] == pytest.approx(0, abs=1e-5)
    assert table.check["mean_relative_error_of_sums"] > 0.05
    assert table.check["kendall"] == pytest.approx(1)
    assert len(table.check["networks"]) == 10
    assert (table.resolution, table.batch, table.runtime) == (side(space), 1, "abacus")
    assert all(operation.spread == pytest.approx(0) for operation in table.operations.values())


def test_the_check_is_of_networks_that_nothing_was_fitted_to():
    engine = Imaginary()
    table = build_table(SMALL_NATS, engine, check=10, rounds=1)
    checked = [network["architecture"] for network in table.check["networks"]]
    assert len(set(engine.prepared)) == len(engine.prepared)  # each network once
    _, covering = cover(SMALL_NATS, 8, 1, latency_build.COVERING)
    assert not set(checked) & {str(arch) for arch in covering}
    assert set(checked) | {str(arch) for arch in covering} == set(engine.prepared)
    assert build_table(SMALL_NATS, Imaginary(), check=0, rounds=1).check is None


def test_small_spaces_are_checked_on_what_they_have():
    space = replace(SMALL_NATS, widths=(8,))
    assert draw(space, 20, [], random.Random(0)) == [space.parse("8:8:8:8:8")]
    table = build_table(space, Imaginary(), rounds=1)  # one network: there is none left to check
    assert table.check is None
    assert table.scale == pytest.approx(1.25 - 2e-3 / sum(Imaginary.seconds(name) for name in table.operations))
    assert table.offset_ms == 0


def test_an_interrupted_measurement_goes_on_with_the_next_group(tmp_path):
    progress = tmp_path / "latency.json.partial"
    expected = build_table(SMALL_NATS, Imaginary(on_gpu=True), check=9, rounds=1)
    first = Imaginary(stop_after=12, on_gpu=True)  # in the second group of eight
    with pytest.raises(KeyboardInterrupt):
        build_table(SMALL_NATS, first, check=9, rounds=1, progress=progress)
    second = Imaginary(on_gpu=True)
    table = build_table(SMALL_NATS, second, check=9, rounds=1, progress=progress)
    assert not set(first.prepared[:8]) & set(second.prepared)
    assert len(first.prepared[:8]) + len(second.prepared) == 8 + 9
    assert replace(table, date="") == replace(expected, date="")
    third = Imaginary()
    build_table(SMALL_NATS, third, check=9, rounds=1, progress=progress)
    assert not third.prepared  # everything is known


def test_networks_are_timed_in_turns_as_far_as_memory_holds_them():
    networks = [cut(SMALL_NATS, SMALL_NATS.sample(random.Random(seed)), 8, batch=1) for seed in range(20)]
    size = [2 * sum(4 * parameter.numel() for parameter in network.model.parameters()) for network in networks]
    assert form_groups(networks, False, sum(size)) == [networks]
    groups = form_groups(networks, False, 4 * max(size))
    assert [network for group in groups for network in group] == networks
    assert max(map(len, groups)) >= 4
    assert all(sum(size[networks.index(net)] for net in group) <= 4 * max(size) for group in groups)
    assert form_groups(networks, False, 0) == [[network] for network in networks]
    assert list(map(len, form_groups(networks, True, 0))) == [8, 8, 4]


@pytest.mark.parametrize("damage", ["other settings", "cut short", "nonsense"])
def test_timings_of_something_else_are_not_used(tmp_path, damage):
    progress = tmp_path / "latency.json.partial"
    build_table(SMALL_NATS, Imaginary(), check=4, rounds=1, progress=progress)
    if damage == "cut short":
        progress.write_text(progress.read_text()[:100])
    if damage == "nonsense":
        progress.write_text("[1]")
    engine = Imaginary()
    build_table(SMALL_NATS, engine, check=4, rounds=2 if damage == "other settings" else 1, progress=progress)
    assert len(engine.prepared) >= 12


def test_a_busy_device_is_noticed(monkeypatch, capsys):
    build_table(SMALL_NATS, Imaginary(), check=2)
    assert "when nothing else runs" not in capsys.readouterr().err
    monkeypatch.setattr(latency_build, "_BUSY", -1)  # an imaginary device is never busy
    build_table(SMALL_NATS, Imaginary(), check=2)
    assert "timings of one network vary by 0 %" in capsys.readouterr().err


def test_errors_are_relative_to_what_was_measured():
    table = build_table(SMALL_NATS, Imaginary(), check=0, rounds=1)
    archs = [SMALL_NATS.parse(text) for text in ("8:8:8:8:8", "8:16:8:16:8", "16:16:16:16:16")]
    ms = [path_latency_ms(SMALL_NATS, arch, table) for arch in archs]
    measured = {archs[0]: [ms[0] / 1e3], archs[1]: [ms[1] / 1.1e3] * 3, archs[2]: [ms[2] / 0.8e3]}
    about = compare(table, measured)
    assert about["mean_relative_error"] == pytest.approx((0 + 0.1 + 0.2) / 3)
    assert about["largest_relative_error"] == pytest.approx(0.2)
    assert [row["measured_ms"] for row in about["networks"]] == pytest.approx([ms[0], ms[1] / 1.1, ms[2] / 0.8])
    same = compare(table, {archs[0]: [0.01]})
    assert same["kendall"] is None


def test_noise_gives_no_negative_scale():
    table = build_table(SMALL_NATS, Imaginary(), check=0, rounds=1)
    archs = sorted(
        map(SMALL_NATS.sample, map(random.Random, range(9))), key=lambda a: path_latency_ms(SMALL_NATS, a, table)
    )
    absurd = {arch: [1.0 / (1 + index)] for index, arch in enumerate(dict.fromkeys(archs))}  # the larger, the faster
    fitted = fit(replace(table, scale=1.0, offset_ms=0.0), absurd)
    assert fitted.scale > 0
    assert fitted.offset_ms == 0


@pytest.mark.parametrize(
    ("space", "sizes", "message"),
    [
        (SMALL_HYTRA, {"resolution": 16}, "--resolution 16 is not possible; type 32 or more"),
        (SMALL_NATS, {"batch": 0}, "--batch 0 is not possible; type 1 or more"),
        (SMALL_NATS, {"check": -1}, "--check -1 is not possible; type 0 or more"),
        (SMALL_NATS, {"resolution": 0}, "--resolution 0 is not possible; type 8 or more"),
    ],
)
def test_impossible_sizes_are_refused(space, sizes, message):
    with pytest.raises(UsageError, match=message):
        build_table(space, Imaginary(), **sizes)


def test_a_space_of_ones_own_is_refused():
    from own_space import KernelSpace

    with pytest.raises(
        UsageError, match="latency tables do not know space 'kernels'; they know hytra, mbconv and nats"
    ):
        build_table(KernelSpace(), Imaginary())


def test_a_network_of_a_space_is_the_one_that_models_build():
    space = get_space("hytra", base_width=8)
    arch = space.sample(random.Random(1))
    with torch.device("meta"):
        expected = models.build(arch, **space.model_options())
    assert str(cut(space, arch, 64, 1).model.train()) == str(expected)
