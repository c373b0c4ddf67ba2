"""What a search will cost: equal to plain counting where that is possible, and in proportion everywhere."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from searching import CPU, SETTINGS, lively_siamese, pixels, trained_parameters
from tiny_search import run_search, tiny_settings
from torch.utils.flop_counter import FlopCounterMode

from bossnet_zoo.determinism import seed_of
from bossnet_zoo.errors import UsageError
from bossnet_zoo.search import plan as plan_module
from bossnet_zoo.search.bootstrapping import SiameseSupernet
from bossnet_zoo.search.counting import count_parameters
from bossnet_zoo.search.distillation import Student, Teacher, make_entry_adapter, open_teacher
from bossnet_zoo.search.plan import plan_search, total_madds
from bossnet_zoo.search.prefix import Stage, chain_of
from bossnet_zoo.search.rating import PathTree
from bossnet_zoo.search.rotation import RotationNetwork
from bossnet_zoo.search.settings import DEMO, PAPER
from bossnet_zoo.search.supernets import make_block
from bossnet_zoo.search.views import VIEWS

FULL = replace(SETTINGS, coverage="full")


def test_blocks_stages_paths_and_steps():
    first, second = plan_search(FULL, num_train=100, num_rated=10)
    assert (first.block, first.stages, first.paths) == (0, 1, (6, 6))
    assert (second.block, second.stages, second.paths) == (1, 4, (4, 12))
    assert first.steps == second.steps == FULL.epochs * (100 // FULL.global_batch)
    assert [plan.stages for plan in plan_search(SETTINGS, 100, 10)] == [1, 1]


def test_a_step_costs_what_its_forward_passes_are_counted_at():
    """Four forward passes' worth for each path and view of the first block: one target, one online, two backward."""
    plan = plan_search(SETTINGS, 100, 10)[0]
    siamese, space = lively_siamese(), SETTINGS.make_space()
    counted = []
    for path in space.paths(0):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            siamese.online.block.eval()(pixels(1), path)
        counted.append(counter.get_total_flops() / 2)
    mean = sum(counted) / len(counted)
    expected = SETTINGS.global_batch * SETTINGS.num_paths * 2 * 4 * mean
    assert plan.step_madds == pytest.approx(expected, rel=1e-3)


def test_the_frozen_prefix_is_counted_once_for_each_view():
    own = plan_search(SETTINGS, 100, 10)[1].step_madds
    shared = plan_search(replace(SETTINGS, own_views=False), 100, 10)[1].step_madds
    first = plan_search(SETTINGS, 100, 10)[0].step_madds
    prefix = first / (SETTINGS.global_batch * SETTINGS.num_paths * 2 * 4)  # mean of the first block, for one image
    views_saved = 2 * (SETTINGS.num_paths - 1)
    assert own - shared == pytest.approx(SETTINGS.global_batch * views_saved * prefix, rel=1e-3)


def test_rating_costs_what_the_tree_of_paths_is_counted_at(monkeypatch):
    """For both networks, every calibration and held-out image twice; adapters and heads are left out."""
    plan = plan_search(replace(SETTINGS, rating_images=6, calibration_images=2), 100, 10)[0]
    block = lively_siamese().online.block.eval()
    monkeypatch.setattr(block, "adapt", lambda x, path: x)
    tree = PathTree(block, [], SETTINGS.make_space().paths(0), CPU)
    tree.calibrate([pixels(2)])
    with FlopCounterMode(display=False) as counter:
        list(tree.outputs(pixels(1)))
    assert plan.rating_madds == pytest.approx(2 * (6 + 2) * 2 * counter.get_total_flops() / 2, rel=1e-3)


def test_parameters_are_those_of_the_largest_stage():
    plans = plan_search(FULL, 100, 10)
    space = FULL.make_space()
    for plan in plans:
        sizes = []
        for entry in space.entries(plan.block):
            siamese = SiameseSupernet(make_block(space, plan.block, entry), FULL.hidden, FULL.projection)
            sizes.append(sum(parameter.numel() for parameter in trained_parameters(siamese).values()))
        assert plan.params in sizes
        assert plan.params >= sorted(sizes)[len(sizes) // 2]
        assert plan.memory_bytes > 16 * plan.params  # online, target, gradient, momentum


def test_the_total_is_that_of_all_stages():
    plans = plan_search(FULL, 100, 10)
    expected = sum(plan.stages * (plan.steps * plan.step_madds + plan.rating_madds) for plan in plans)
    assert total_madds(plans) == expected
    assert total_madds(plan_search(SETTINGS, 100, 10)) < expected


def test_the_demo_fits_a_small_machine():
    plans = plan_search(DEMO, 1078, 359)
    assert [plan.steps for plan in plans] == [DEMO.epochs * (1078 // DEMO.global_batch)] * 4
    assert [plan.paths for plan in plans] == [(131, 131), (16, 99), (16, 99), (16, 99)]
    assert all(plan.memory_bytes < 2**30 for plan in plans)


# --- the other methods

DNA = tiny_settings(Path("images"), method="dna", num_paths=2, views="digits")  # of two pipelines
UNNAS = tiny_settings(Path("images"), "nats", "unnas")


def counted(network, *inputs) -> float:
    """Multiply-adds of a forward pass of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops() / 2


def test_a_step_of_dna_costs_what_teacher_and_student_are_counted_at():
    plans, space = plan_search(DNA, 100, 10), DNA.make_space()
    image = pixels(1, side=DNA.resolution)
    for block, plan in enumerate(plans):
        teacher = Teacher(open_teacher(DNA), block, space.num_blocks, DNA).eval()
        asked = counted(teacher, image)
        students = []
        for entry in space.entries(block):
            adapter = make_entry_adapter(DNA, space, block, entry, teacher)
            network = Student(make_block(space, block, entry), adapter, teacher.out_channels, 8).eval()
            network.block.adapt = lambda x, path: x.mean(dim=(2, 3))[:, :8]  # adapters are left out
            network.projection = torch.nn.Identity()
            features = teacher(image)[0]
            students += [counted(network, features, path) for path in space.paths(block, entry)]
        per_view = asked + DNA.num_paths * 3 * sum(students) / len(students)
        expected = DNA.global_batch * len(VIEWS[DNA.views]) * per_view
        assert plan.step_madds == pytest.approx(expected, rel=1e-3)
        assert plan.memory_bytes > 16 * plan.params
    assert [(plan.block, plan.stages) for plan in plans] == [(0, 1), (1, 1)]
    assert [plan.stages for plan in plan_search(replace(DNA, coverage="full"), 100, 10)] == [1, 4]


def test_the_plan_of_dna_needs_no_weights_of_its_teacher(monkeypatch):
    monkeypatch.setattr("bossnet_zoo.search.distillation.open_model", None)
    assert plan_search(replace(DNA, teacher_pretrained=True), 100, 10) == plan_search(DNA, 100, 10)
    with pytest.raises(UsageError, match="has 5 levels of features, and the space has 8"):
        plan_search(replace(DNA, space_options={"block_layers": [1] * 8, "base_width": 8}), 100, 10)


@pytest.mark.parametrize("space_name", ["hytra", "mbconv", "nats"])
def test_a_step_of_unnas_costs_what_whole_networks_are_counted_at(space_name, monkeypatch):
    monkeypatch.setattr(plan_module, "_SAMPLED", 12)
    settings = tiny_settings(Path("images"), space_name, "unnas", resolution=64)
    (plan,) = plan_search(settings, 100, 10)
    space, generator = settings.make_space(), random.Random(seed_of(settings.seed, "planned architectures"))
    network = RotationNetwork(space).eval()
    network.classifiers = torch.nn.ModuleDict({exit: torch.nn.Identity() for exit in network.classifiers})
    costs = [counted(network, pixels(1, side=64), chain_of(space, space.sample(generator))) for _ in range(12)]
    step = settings.global_batch * len(VIEWS[settings.views]) * 4 * 3
    assert plan.step_madds == pytest.approx(step * sum(costs) / len(costs), rel=1e-3)
    assert (plan.block, plan.stages, plan.params) == (None, 1, count_parameters(RotationNetwork(space)))
    images = settings.rating_images + settings.calibration_images
    rated = plan.paths[0] * images / settings.global_batch
    assert plan.rating_madds == pytest.approx(plan.step_madds / 3 * rated, rel=1e-3)
    assert plan.memory_bytes > 12 * plan.params


def test_unnas_measures_as_many_architectures_as_planned(tmp_path):
    (plan,) = plan_search(UNNAS, 24, 6)
    measured = run_search(tmp_path, space="nats", method="unnas").table.meta["measured"]
    assert plan.paths == (len(measured), len(measured))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 128}, "has 100 images to search on, less than one global batch of 128"),
        ({"num_paths": 9}, "block1-any has 6 paths, fewer than 9 a step"),
        ({"path_sampling": "fair"}, "type --num-paths 6"),
    ],
)
def test_what_a_search_would_refuse_is_not_planned(changes, message):
    with pytest.raises(UsageError, match=message):
        plan_search(replace(SETTINGS, **changes), 100, 10)


@pytest.mark.slow
def test_the_papers_step_fits_the_authors_24_gib():
    plans = plan_search(PAPER, 1_231_167, 50_000, world_size=8)
    assert [plan.steps for plan in plans] == [20 * 300] * 4
    assert all(plan.memory_bytes < 24 * 2**30 for plan in plans)


def test_a_batch_that_does_not_fit_is_an_error():
    with pytest.raises(UsageError, match="no multiple of 3 processes"):
        plan_search(SETTINGS, 100, 10, world_size=3)


def test_stages_are_named_by_block_and_entry():
    space = SETTINGS.make_space()
    assert Stage(0, None).name(space) == "block1-any"
    assert Stage(1, 3).name(space) == "block2-32"
