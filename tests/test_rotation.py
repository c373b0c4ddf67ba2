"""UnNAS: a whole supernet that tells rotations apart, and additive ratings made of measured architectures."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from searching import CPU, SETTINGS, enliven, make_setup, pixels
from tiny_search import run_search

from bossnet_zoo.checkpoint import load_json, read_jsonl
from bossnet_zoo.errors import UsageError
from bossnet_zoo.search.extract import inherit
from bossnet_zoo.search.prefix import chain_of
from bossnet_zoo.search.ranking import rank
from bossnet_zoo.search.rating import calibrating
from bossnet_zoo.search.rating_table import RatingTable, read_ratings
from bossnet_zoo.search.rotation import (
    RotationNetwork,
    RotationTraining,
    architectures_to_measure,
    measure_accuracies,
    rate_by_marginals,
    rotate,
)
from bossnet_zoo.search.solver import solve
from bossnet_zoo.search.truth_table import TruthTable
from bossnet_zoo.spaces import Cost, get_space

UNNAS = replace(SETTINGS, method="unnas", base_lr=0.05, weight_decay=3e-5, warmup_epochs=0, rated_per_path=1)
SPACES = {
    "hytra": get_space("hytra", block_layers=(1, 2), base_width=8, default_resolution=32),
    "mbconv": get_space("mbconv", block_layers=(1, 1, 1, 1, 1), width=0.25, default_resolution=32),
    "nats": get_space("nats", widths=(8, 16)),
}


def test_every_image_is_seen_in_all_four_rotations():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 3, 2, 2)
    images, turns = rotate(torch.cat([image, image + 10]))
    assert turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert images[0, 0].tolist() == [[1, 2], [3, 4]]
    assert images[3, 0].tolist() == [[12, 14], [11, 13]]  # the second image, a quarter turn to the left
    assert images[6, 0].tolist() == [[3, 1], [4, 2]]


@pytest.mark.parametrize("name", SPACES)
def test_three_strided_convolutions_stand_in_front_of_any_architecture(name):
    space = SPACES[name]
    network = RotationNetwork(space).eval()
    assert network.reducing(pixels(2)).shape == (2, 64, 4, 4)
    arch = space.sample(random.Random(0))
    logits = network(pixels(2), chain_of(space, arch))
    assert logits.shape == (2, 4)


def test_networks_share_every_layer_that_they_have_in_common():
    space = get_space("hytra", block_layers=(1, 3), base_width=8)
    network = RotationNetwork(space)
    for index in range(1, 3):
        candidates: dict[str, set[int]] = {}
        for entry in range(4):
            for key, module in network.blocks[f"block2-{4 << entry}"].layers[index].items():
                candidates.setdefault(key, set()).add(id(module))
        assert all(len(modules) == 1 for modules in candidates.values())


def test_one_step_trains_one_architecture_and_no_other(tmp_path):
    training = RotationTraining(make_setup(tmp_path, UNNAS))
    (arch,) = training.draw(random.Random(3))
    loss = training.backward(pixels(8).view(2, 4, 3, 32, 32), [arch], 1.0)
    assert 0.5 < loss < 4
    norms = set(training.supernet.norms(chain_of(training.setup.space, arch)))
    moved = {
        module
        for module in training.supernet.modules()
        if isinstance(module, torch.nn.BatchNorm2d) and module.weight.grad is not None
    }
    assert moved == norms


def test_the_loss_is_cross_entropy_of_the_rotation(tmp_path):
    training = RotationTraining(make_setup(tmp_path, UNNAS))
    arch = training.setup.space.parse("4c-8cc")
    images, turns = rotate(pixels(3))
    expected = F.cross_entropy(training.supernet(images, chain_of(training.setup.space, arch)), turns)
    assert training.backward(pixels(3)[None], [arch], 1.0) == pytest.approx(expected.item(), rel=1e-5)


def test_training_uses_sgd_at_a_rate_that_scales_with_the_batch(tmp_path):
    training = RotationTraining(make_setup(tmp_path, UNNAS))
    group = training.optimizer.param_groups[0]
    assert isinstance(training.optimizer, torch.optim.SGD)
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (0.05 * 8 / 32, 0.9, 3e-5)
    assert training.train_epoch() > 0


# --- measuring


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("per_path", [1, 3])
def test_an_architecture_through_every_path_is_measured(name, per_path):
    space = SPACES[name]
    archs = architectures_to_measure(space, per_path, random.Random(0))
    assert len(set(archs)) == len(archs)
    taken = {(stage.block, stage.entry, path) for arch in archs for stage, path in chain_of(space, arch)}
    paths = {
        (stage.block, stage.entry, path)
        for arch in itertools.islice(iter(lambda: space.sample(random), None), 3000)
        for stage, path in chain_of(space, arch)
    }
    assert taken >= paths
    assert archs == architectures_to_measure(space, per_path, random.Random(0))


@torch.no_grad()
def test_accuracies_are_those_of_each_architecture_on_its_own(tmp_path):
    space = SPACES["hytra"]
    network = enliven(RotationNetwork(space))
    archs = [space.sample(random.Random(seed)) for seed in range(4)]
    calibration, batches = [pixels(4, 1), pixels(4, 2)], [pixels(5, 3), pixels(3, 4)]
    measured = measure_accuracies(network, archs, calibration, batches, CPU)
    for arch in archs:
        alone = enliven(RotationNetwork(space)).eval()
        alone.load_state_dict(network.state_dict())
        chain = chain_of(space, arch)
        with calibrating(alone.norms(chain)):
            for images in calibration:
                alone(rotate(images)[0], chain)
        right = 0
        for batch in batches:
            images, turns = rotate(batch)
            right += int((alone(images, chain).argmax(1) == turns).sum())
        assert measured[arch] == pytest.approx(right / 32)


def test_a_supernet_learns_to_tell_rotations_apart(tmp_path):
    bright_above = torch.linspace(-2, 2, 32).view(1, 1, 32, 1).expand(8, 3, 32, 32) + 0.1 * pixels(8)
    training = RotationTraining(make_setup(tmp_path, replace(UNNAS, base_lr=0.4)))
    arch = training.setup.space.parse("8c-16cc")
    for _ in range(12):
        training.optimizer.zero_grad()
        training.backward(bright_above[None], [arch], 1.0)
        training.optimizer.step()
    assert measure_accuracies(training.supernet, [arch], [bright_above], [bright_above], CPU)[arch] > 0.9


# --- ratings


def test_the_ratings_of_additive_accuracies_are_exact():
    space = SPACES["nats"]
    effect = {(layer, width): random.Random(f"{layer} {width}").random() for layer in range(5) for width in (8, 16)}
    archs = [space.parse(":".join(map(str, widths))) for widths in itertools.product((8, 16), repeat=5)]
    accuracies = {arch: sum(effect[pair] for pair in enumerate(arch.widths)) / 5 for arch in archs}
    table = rate_by_marginals(space, RatingTable("nats", ({}, {}, {})), accuracies)
    assert not table.lower_is_better
    for arch, accuracy in accuracies.items():
        assert table.score(space, arch) == pytest.approx(accuracy)
    assert solve(space, table)[0].arch == max(archs, key=lambda arch: accuracies[arch])
    assert table.meta["measured"] == {str(arch): accuracy for arch, accuracy in accuracies.items()}


@pytest.mark.parametrize("name", ["hytra", "mbconv"])
def test_a_search_by_unnas_ends_in_ratings_that_solver_and_ranking_accept(tmp_path, name):
    result = run_search(tmp_path, space=name, method="unnas")
    run = tmp_path / "run"
    table = read_ratings(run / "ratings.json")
    space = table.make_space()
    assert load_json(run / "ratings.json")["lower_is_better"] is False
    assert table.coverage(space) == table.meta["covered"] == 1
    best = result.best[0]
    assert all(best.score >= table.score(space, space.parse(text)) for text in table.meta["measured"])
    assert best.cost == space.cost(best.arch) != Cost()
    truth = TruthTable(name, table.meta["measured"])
    assert rank(space, table, truth).agreement.pearson.value > 0  # main effects explain what they were made from
    records = read_jsonl(run / "metrics.jsonl")
    assert {record["kind"] for record in records} == {"step", "epoch", "rating"}
    assert all(len(record["paths"]) == 1 for record in records if record["kind"] == "step")
    page = (run / "report.html").read_text()
    assert "Whole supernet" in page
    assert "how images were rotated" in page
    with pytest.raises(UsageError, match="three extra convolutions"):
        inherit(run, None, CPU)


def test_a_space_without_a_choice_of_input_channels_is_refused():
    class Closed:
        name = "closed"

    with pytest.raises(UsageError, match="in_chans"):
        RotationNetwork(Closed())
