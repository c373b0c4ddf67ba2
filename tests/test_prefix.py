"""The blocks before the one in training: well chosen, frozen, small, and the function of the stand-alone network."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from searching import CPU, SETTINGS, SIDE, SPACE, lively_block, make_setup, pixels, tiny_prefix, trained_parameters
from torch import nn

from bossnet_zoo import models
from bossnet_zoo.checkpoint import save_weights
from bossnet_zoo.errors import CheckpointError
from bossnet_zoo.search.prefix import (
    Stage,
    best_prefixes,
    calibrate_path,
    load_prefix,
    stage_of,
    stages_of_block,
)
from bossnet_zoo.search.rating import PathTree
from bossnet_zoo.search.rating_table import RatingTable
from bossnet_zoo.search.stage import BlockTraining
from bossnet_zoo.search.supernets import make_block
from bossnet_zoo.spaces import HyTraSpace


def num_parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


# --- frozen


def test_frozen_blocks_do_not_change_while_the_next_one_trains(tmp_path):
    prefix = tiny_prefix(tmp_path)
    training = BlockTraining(make_setup(tmp_path), Stage(1, 1), prefix)
    before = {name: tensor.clone() for name, tensor in prefix.state_dict().items()}
    trained = {name: tensor.clone() for name, tensor in training.siamese.online.state_dict().items()}
    training.prefix.train()  # as anyone may call it
    training.train_epoch()
    assert all(torch.equal(before[name], tensor) for name, tensor in prefix.state_dict().items())
    assert any(name.endswith("running_var") for name in before)
    assert any(not torch.equal(trained[name], tensor) for name, tensor in training.siamese.online.state_dict().items())


def test_frozen_blocks_have_no_gradient_and_are_not_in_the_optimiser(tmp_path):
    prefix = tiny_prefix(tmp_path)
    training = BlockTraining(make_setup(tmp_path), Stage(1, 1), prefix)
    training.train_epoch()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in prefix.parameters())
    optimised = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(parameter) for parameter in prefix.parameters()}
    assert optimised == {id(parameter) for parameter in trained_parameters(training.siamese).values()}


def test_a_frozen_prefix_stays_in_evaluation_mode(tmp_path):
    prefix = tiny_prefix(tmp_path).train()
    assert not any(module.training for module in prefix.modules())
    output = prefix(pixels(2))
    assert not output.requires_grad
    torch.testing.assert_close(prefix(pixels(4))[:2], output)  # no batch statistics


def test_weights_and_features_lie_channels_last(tmp_path):
    training = BlockTraining(make_setup(tmp_path), Stage(1, 1), tiny_prefix(tmp_path))
    kernels = [p for p in training.siamese.parameters() if p.ndim == 4]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    features = training.prefix.of_pairs(torch.stack([pixels(4), pixels(4)]))
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in features)


# --- in memory


def test_only_the_chosen_modules_stay_in_memory(tmp_path):
    path = SPACE.parse_path(0, "8c")
    prefix = tiny_prefix(tmp_path, "8c")
    block = lively_block()
    chosen = block.stand_alone_state(SPACE.parse("8c-16ca"), path)
    weights = {name: tensor for name, tensor in chosen.items() if tensor.is_floating_point()}
    kept = {name: tensor for name, tensor in prefix.state_dict().items() if tensor.is_floating_point()}
    assert len(kept) == len(weights)
    assert sum(tensor.numel() for tensor in kept.values()) == sum(tensor.numel() for tensor in weights.values())
    assert num_parameters(prefix) < num_parameters(block) / 4


# --- the same function as the stand-alone network


@pytest.mark.parametrize("text", ["4c-8cc", "8c-16ca", "16a-32ac", "32caa", "16aca"])
def test_the_prefix_is_the_beginning_of_the_stand_alone_network(text, tmp_path):
    arch = SPACE.parse(text)
    chain, entry = [], None
    for number, path in enumerate(SPACE.split(arch)):
        stage = stage_of(SPACE, number, entry)
        save_weights(tmp_path / f"{stage.name(SPACE)}.safetensors", lively_block(number, entry).state_dict())
        chain.append((stage, path))
        entry = SPACE.exit(number, entry, path)
    prefix = load_prefix(SPACE, tuple(chain), tmp_path, [pixels(4, 50), pixels(4, 51)], CPU)
    state = {}
    for block, path in zip(prefix.blocks, prefix.paths, strict=True):
        state |= block.stand_alone_state(arch, path)
    network = models.build(arch, num_classes=4, **SPACE.model_options())
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("fc.") for name in missing)
    images = pixels(3, 60)
    with torch.no_grad():
        expected = network.eval().forward_features(images)
    torch.testing.assert_close(prefix(images), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.1


def test_a_prefix_has_the_statistics_with_which_its_path_was_rated():
    block, path = lively_block(1, 1), SPACE.parse_path(1, "8c-16a")
    batches = [torch.randn(4, 64, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    tree = PathTree(block.eval(), [], SPACE.paths(1, 1), CPU)
    tree.calibrate(batches)
    calibrate_path(block, path, batches, CPU)
    for index in range(len(path)):
        norms = block.norms(path, index)
        for norm, (mean, variance) in zip(norms, tree.statistics[path[: index + 1]], strict=True):
            torch.testing.assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(norm.running_var, variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", ["4cccc", "8cccc", "16acac", "32aaaa", "4c-8c-16c-32a"])
def test_every_scale_at_which_a_best_path_ends_has_candidates(first):
    """In the full-depth space: a block behind any path has modules for each of its own paths."""
    space = HyTraSpace(base_width=8, se=False)
    path = space.parse_path(0, first)
    with torch.device("meta"):
        features = make_block(space, 0, None).eval()(torch.empty(1, 3, SIDE, SIDE), path)
        entry = space.exit(0, None, path)
        block = make_block(space, 1, entry).eval()
        outputs = {block.adapt(block(features, path), path).shape for path in space.paths(1, entry)}
    assert outputs == {(1, block.num_features)}


# --- which prefix


def random_table(space: HyTraSpace, seed: int, *, lower_is_better: bool = True, missing: float = 0.0) -> RatingTable:
    generator = random.Random(seed)
    blocks = tuple(
        {
            space.entry_text(entry): {
                space.path_text(path): generator.random()
                for path in space.paths(block, entry)
                if generator.random() >= missing
            }
            for entry in space.entries(block)
        }
        for block in range(space.num_blocks)
    )
    return RatingTable(space.name, blocks, lower_is_better)


@pytest.mark.parametrize("lower_is_better", [True, False])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_best_prefixes_equal_brute_force(lower_is_better, missing):
    space = HyTraSpace(block_layers=(2, 1, 2, 1), base_width=8)
    for seed in range(5):
        table = random_table(space, seed, lower_is_better=lower_is_better, missing=missing)
        best: dict = {}
        for beginning in _chains(space, table, 3):
            score, chain, end = beginning
            if end not in best or (score < best[end][0] if lower_is_better else score > best[end][0]):
                best[end] = (score, chain)
        found = best_prefixes(space, table, 3)
        assert found == {end: chain for end, (_, chain) in best.items()}
        order = sorted(best, key=lambda end: best[end][0], reverse=not lower_is_better)
        assert list(found) == order


def _chains(space: HyTraSpace, table: RatingTable, depth: int):
    """Every rated chain of paths through the first blocks, with its score and the state in which it ends."""
    partial = [(0.0, (), None)]
    for block in range(depth):
        longer = []
        for (score, chain, entry), path in itertools.chain.from_iterable(
            ((beginning, path) for path in space.paths(block, beginning[2])) for beginning in partial
        ):
            rating = table.rating(block, space.entry_text(entry), space.path_text(path))
            if rating is not None:
                link = (stage_of(space, block, entry), path)
                longer.append((score + rating, (*chain, link), space.exit(block, entry, path)))
        partial = longer
    return partial


def test_greedy_coverage_follows_the_best_chain_and_full_coverage_trains_every_entry():
    table = random_table(SPACE, 0)
    full = stages_of_block(SPACE, table, 1, "full")
    greedy = stages_of_block(SPACE, table, 1, "greedy")
    assert {stage.entry for stage in full} == {0, 1, 2, 3}
    ratings = table.blocks[0]["any"]
    best = SPACE.parse_path(0, min(ratings, key=ratings.__getitem__))
    assert greedy == {Stage(1, best[-1].scale): ((Stage(0, None), best),)}
    assert stages_of_block(SPACE, table, 0, "full") == {Stage(0, None): ()}


def test_a_block_never_stands_in_its_own_prefix(tmp_path):
    """An intermediate rating leaves prefix and training as they would have been without it."""
    settings = replace(SETTINGS, epochs=2)
    finished = []
    for rate_between in (False, True):
        training = BlockTraining(make_setup(tmp_path, settings), Stage(1, 1), tiny_prefix(tmp_path))
        training.train_epoch()
        if rate_between:
            training.rate([pixels(4, 70), pixels(4, 71)])
        assert training.prefix.paths == (SPACE.parse_path(0, "8c"),)
        assert len(training.prefix.blocks) == 1
        training.train_epoch()
        finished.append(dict(training.siamese.named_parameters()))
    assert all(torch.equal(finished[0][name], finished[1][name]) for name in finished[0])


# --- files


def test_damaged_weights_of_a_finished_block_are_named(tmp_path):
    tiny_prefix(tmp_path)
    file = tmp_path / "block1-any.safetensors"
    chain = ((Stage(0, None), SPACE.parse_path(0, "8c")),)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError,
        match=r"finished block.*block1-any.safetensors is damaged.*; bring the file back",
    ):
        load_prefix(SPACE, chain, tmp_path, [pixels(4)], CPU)
    file.unlink()
    with pytest.raises(
        CheckpointError,
        match=r"finished block.*block1-any.safetensors is damaged.*; bring the file back",
    ):
        load_prefix(SPACE, chain, tmp_path, [pixels(4)], CPU)
