"""DNA: blocks that imitate a teacher, and ratings that solver and ranking accept."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from searching import CPU, SETTINGS, make_setup, pixels
from timm.data import resolve_model_data_config
from timm.scheduler import StepLRScheduler
from tiny_search import run_search
from torch import nn

from bossnet_zoo.checkpoint import load_json
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.search import distillation
from bossnet_zoo.search.distillation import DistillationTraining, Teacher, distill, open_teacher
from bossnet_zoo.search.extract import inherit
from bossnet_zoo.search.prefix import Stage
from bossnet_zoo.search.ranking import rank
from bossnet_zoo.search.rating import calibrating
from bossnet_zoo.search.rating_table import read_ratings
from bossnet_zoo.search.settings import check_options, get_preset
from bossnet_zoo.search.stage import calibration_views, rating_views
from bossnet_zoo.search.supernets import norms_of
from bossnet_zoo.search.truth_table import TruthTable

DNA = replace(
    SETTINGS,
    method="dna",
    teacher="test_resnet",
    teacher_pretrained=False,
    num_paths=2,
    base_lr=0.005,
    warmup_epochs=0,
    weight_decay=1e-4,
)


def make_training(tmp_path: Path, block: int = 1, entry: int | None = 1, **changes) -> DistillationTraining:
    setup = make_setup(tmp_path, replace(DNA, **changes))
    return DistillationTraining(setup, Stage(block, entry), calibration_views(setup))


# --- the teacher


@pytest.mark.parametrize(
    ("name", "num_blocks", "expected"),
    [
        ("test_resnet", 4, [[1], [1, 2], [2, 3], [3, 4]]),  # a ResNet's four stages, without the stem
        ("test_resnet", 5, [[0], [0, 1], [1, 2], [2, 3], [3, 4]]),
        ("test_convnext", 4, [[0], [0, 1], [1, 2], [2, 3]]),
    ],
)
def test_the_levels_of_a_teacher_are_dealt_out_over_the_blocks(name, num_blocks, expected):
    settings = replace(DNA, teacher=name)
    network = open_teacher(settings)
    assert [Teacher(network, block, num_blocks, settings).indices for block in range(num_blocks)] == expected


@torch.no_grad()
def test_a_block_reads_the_level_before_and_regresses_its_own():
    network = open_teacher(DNA)
    images = pixels(2)
    levels = network.forward_intermediates(images, intermediates_only=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    own = resolve_model_data_config(network)
    own_mean, own_std = (torch.tensor(own[name]).view(3, 1, 1) for name in ("mean", "std"))
    seen = (images * own_std + own_mean - mean) / std  # the same images, as the views normalise them
    x, pooled = Teacher(network, 2, 4, DNA)(seen)
    torch.testing.assert_close(x, levels[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, levels[3].mean((2, 3)), rtol=1e-4, atol=1e-5)
    first_x, first_pooled = Teacher(network, 0, 4, DNA)(seen)
    assert first_x is seen
    torch.testing.assert_close(first_pooled, levels[1].mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_a_random_teacher_is_the_same_for_every_block_and_after_every_interruption():
    first, second = open_teacher(DNA).state_dict(), open_teacher(DNA).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = open_teacher(replace(DNA, seed=1)).state_dict()
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_a_trained_network_of_ones_own_can_teach(tmp_path, monkeypatch):
    network = timm.create_model("test_resnet")
    monkeypatch.setattr(distillation, "open_model", lambda name: {"runs/mine": network}[name])
    teacher = open_teacher(replace(DNA, teacher="runs/mine", teacher_pretrained=True))
    assert teacher is network
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


class OfFixedSize(nn.Module):
    def forward_intermediates(self, *_, **__):
        raise AssertionError("224 only")


def test_faults_of_a_teacher_are_said_in_a_sentence(monkeypatch):
    with pytest.raises(UsageError, match="needs a teacher: type --teacher"):
        get_preset("demo", "hytra", "dna")
    with pytest.raises(UsageError, match="unknown model 'resnet5'"):
        open_teacher(replace(DNA, teacher="resnet5"))
    with pytest.raises(UsageError, match="has 4 levels of features, and the space has 5 blocks"):
        Teacher(open_teacher(replace(DNA, teacher="test_convnext")), 0, 5, DNA)
    with pytest.raises(UsageError, match="does not take images of 32 px: 224 only"):
        Teacher(OfFixedSize(), 0, 2, DNA)

    def offline(name: str) -> nn.Module:
        raise OSError("no route")

    monkeypatch.setattr(distillation, "open_model", offline)
    said = r"could not be downloaded \(OSError\); .* --teacher RUN with the folder .* or --no-teacher-pretrained for"
    with pytest.raises(BossNetError, match=said):
        open_teacher(replace(DNA, teacher_pretrained=True))


# --- the student


def test_the_student_reads_the_teacher_at_its_own_size_and_channels(tmp_path):
    training = make_training(tmp_path, 1, 3)  # entered at stride 32: 256 channels of 1 x 1 pixels
    x, pooled = training._ask(pixels(3))
    assert (x.shape, pooled.shape) == ((3, 48, 4, 4), (3, 96))
    assert training.student.entry(x).shape == (3, 256, 1, 1)
    path = training.setup.space.paths(1, 3)[0]
    assert training.student(x, path).shape == (3, DNA.projection)
    first = make_training(tmp_path, 0, None)
    assert isinstance(first.student.entry, nn.Identity)


def test_the_target_is_standardised_on_calibration_images_and_never_trained(tmp_path):
    training = make_training(tmp_path)
    pooled = torch.cat([training._ask(images)[1] for images in calibration_views(training.setup)])
    target = training.student.teacher_projection(pooled)
    torch.testing.assert_close(target.mean(0), torch.zeros(DNA.projection), atol=1e-5, rtol=0)
    assert target.square().mean().item() == pytest.approx(1)
    before = {name: value.clone() for name, value in training.student.teacher_projection.state_dict().items()}
    frozen = {name: value.clone() for name, value in training.teacher.state_dict().items()}
    training.train_epoch()
    assert all(
        torch.equal(value, before[name]) for name, value in training.student.teacher_projection.state_dict().items()
    )
    assert all(torch.equal(value, frozen[name]) for name, value in training.teacher.state_dict().items())


def test_the_loss_is_the_mean_squared_error_over_paths(tmp_path):
    student = make_training(tmp_path).student
    x, target = torch.randn(4, 48, 4, 4), torch.randn(4, DNA.projection)
    paths = make_setup(tmp_path).space.paths(1, 1)[:2]
    expected = sum((student(x, path) - target).square().mean().item() for path in paths) / 2
    assert distill(student, x, target, paths, CPU) == pytest.approx(expected, rel=1e-5)
    gradient = student.projection.weight.grad.clone()
    student.zero_grad()
    distill(student, x, target, paths, CPU, share=0.5)
    torch.testing.assert_close(student.projection.weight.grad, gradient / 2)


def test_the_losses_of_a_step_are_read_once(tmp_path, monkeypatch):
    """Each reading would wait for the GPU."""
    reads = []
    for name in ("item", "tolist", "__float__"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, read=read: reads.append(tensor) or read(tensor))
    student = make_training(tmp_path).student
    paths = make_setup(tmp_path).space.paths(1, 1)[:3]
    reads.clear()
    distill(student, torch.randn(4, 48, 4, 4), torch.randn(4, DNA.projection), paths, CPU)
    assert [len(tensor) for tensor in reads] == [3]


def test_every_part_of_the_student_but_the_target_learns(tmp_path):
    training = make_training(tmp_path)
    before = {name: value.clone() for name, value in training.student.named_parameters()}
    for _ in range(2):
        training.train_epoch()
    moved = {n.partition(".")[0] for n, p in training.student.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"entry", "block", "projection"}


def test_a_student_learns_what_the_teacher_sees(tmp_path):
    training = make_training(tmp_path, epochs=6)
    losses = [training.train_epoch() for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]


def test_adam_takes_smaller_steps_in_the_first_block_and_a_tenth_less_every_epoch(tmp_path):
    first, second = make_training(tmp_path, 0, None), make_training(tmp_path)
    rates = [training.optimizer.param_groups[0]["lr"] for training in (first, second)]
    assert rates == pytest.approx([0.002, 0.005])
    assert isinstance(second.schedule, StepLRScheduler)
    steps = second.setup.steps_per_epoch
    seen = []
    for step in (0, steps - 1, steps, 2 * steps):
        second.schedule.step_update(step)
        seen.append(second.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.005, 0.005, 0.0045, 0.00405])


# --- ratings


@torch.no_grad()
def naive_rating(training: DistillationTraining, path) -> float:
    """The path alone: entry adapter, block and projection recalibrated for it."""
    student, setup = training.student.eval(), training.setup
    with calibrating(norms_of(student.entry)):
        batches = [student.entry(training._ask(images)[0]) for images in calibration_views(setup)]
    with calibrating([norm for index in range(-1, len(path) + 1) for norm in student.block.norms(path, index)]):
        for batch in batches:
            student.block.adapt(student.block(batch, path), path)
    errors = []
    for images in (view for views in rating_views(setup, None) for view in views):
        x, pooled = training._ask(images)
        errors += (student(x, path) - student.teacher_projection(pooled)).abs().mean(1).tolist()
    return sum(errors) / len(errors)


def test_ratings_equal_those_of_each_path_on_its_own(tmp_path):
    training = make_training(tmp_path)
    training.train_epoch()
    ratings = training.rate(calibration_views(training.setup)).ratings
    assert len(ratings) == len(training.setup.space.paths(1, 1))
    for path, rating in ratings.items():
        assert rating == pytest.approx(naive_rating(training, path), rel=1e-4)


def test_an_image_alone_in_its_batch_is_never_another_image(tmp_path):
    training = make_training(tmp_path)
    batches = calibration_views(training.setup)
    four, five = (training.rate(batches, limit).elsewhere for limit in (4, 5))  # batches of 4, and of 4 and 1
    assert five == pytest.approx(four, rel=1e-6)


def test_rating_leaves_the_training_as_it_was(tmp_path):
    rated, plain = make_training(tmp_path), make_training(tmp_path)
    rated.train_epoch()
    plain.train_epoch()
    rated.rate(calibration_views(rated.setup))
    assert rated.train_epoch() == plain.train_epoch()


# --- whole searches


@pytest.mark.parametrize("space_name", ["hytra", "mbconv"])
def test_a_search_by_dna_ends_in_ratings_that_solver_and_ranking_accept(tmp_path, space_name):
    result = run_search(tmp_path, space=space_name, method="dna")
    table = read_ratings(tmp_path / "run" / "ratings.json")
    assert table.lower_is_better
    assert table.meta["method"] == load_json(tmp_path / "run" / "config.json")["method"] == "dna"
    space = table.make_space()
    assert table.score(space, result.best[0].arch) == result.best[0].score
    rated = {}
    generator = random.Random(0)
    while len(rated) < 4:
        arch = space.sample(generator)
        score = table.score(space, arch)
        if score is not None:
            rated[str(arch)] = -score
    assert rank(space, table, TruthTable(space_name, rated)).agreement.kendall.value == pytest.approx(1)
    assert "imitates a supervised teacher" in (tmp_path / "run" / "report.html").read_text()
    network = inherit(tmp_path / "run", None, CPU, num_classes=3).eval()
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_methods_refuse_options_that_are_not_theirs():
    with pytest.raises(UsageError, match="--ensemble is an option of bossnas, not of dna"):
        check_options("dna", ["ensemble"])
    check_options("dna", ["num_paths", "teacher", "seed"])
    with pytest.raises(UsageError, match="--teacher is an option of dna, not of unnas"):
        check_options("unnas", ["teacher"])
