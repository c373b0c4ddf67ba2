"""Supernet blocks of the three spaces: weights are shared, and each path computes what its stand-alone network does."""

from __future__ import annotations

import random

import pytest
import torch
from searching import CPU, enliven
from torch import Tensor, nn

from bossnet_zoo.errors import UsageError
from bossnet_zoo.models import build
from bossnet_zoo.search.bootstrapping import SiameseSupernet, bootstrap
from bossnet_zoo.search.rating import PathTree
from bossnet_zoo.search.shapes import block_input, trained_entry
from bossnet_zoo.search.supernets import NatsBlock, SupernetBlock, make_block, norms_of, trained_entries
from bossnet_zoo.search.supernets.nats import SlimConv
from bossnet_zoo.spaces import Arch, Space, get_space

SPACES = {
    "hytra": {"base_width": 8, "block_layers": (2, 2)},
    "mbconv": {"width": 0.25, "block_layers": (1, 1, 2, 1, 1)},
    "nats": {},
    "nats-cifar100": {"dataset": "cifar100", "widths": (8, 24, 40)},
}


def make_space(name: str) -> Space:
    return get_space(name.partition("-")[0], **SPACES[name])


def blocks_of(space: Space, arch: Arch) -> list[SupernetBlock]:
    """A lively supernet block for each path of the architecture, in evaluation mode."""
    blocks, entry = [], None
    for index, path in enumerate(space.split(arch)):
        torch.manual_seed(index)
        block = make_block(space, index, trained_entry(space, index, entry))
        blocks.append(enliven(block, seed=index).eval())
        entry = space.exit(index, entry, path)
    return blocks


def layers_of(model: nn.Module, x: Tensor) -> Tensor:
    """The feature map of a stand-alone network behind its last choice layer."""
    features = []
    last = {"HyTra": "layer4", "MBConvNet": "blocks.5", "NatsNet": "cells"}[type(model).__name__]
    handle = model.get_submodule(last).register_forward_hook(lambda *call: features.append(call[2]))
    model(x)
    handle.remove()
    return features[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SPACES)
@torch.no_grad()
def test_the_stand_alone_network_computes_what_the_path_computes(name, seed):
    space = make_space(name)
    arch = space.sample(random.Random(seed))
    model = build(arch, num_classes=3, **space.model_options())
    x = features = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    state: dict[str, Tensor] = {}
    for block, path in zip(blocks_of(space, arch), space.split(arch), strict=True):
        features = block(features, path)
        state |= block.stand_alone_state(arch, path)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert {key.partition(".")[0] for key in missing} <= {"fc", "blocks", "conv_head", "bn2", "classifier", "lastact"}
    assert {key for key in missing if key.startswith("blocks")} == {k for k in missing if k.startswith("blocks.6.")}
    assert torch.equal(layers_of(model.eval(), x), features)


@pytest.mark.parametrize("name", SPACES)
@torch.no_grad()
def test_a_block_restricted_to_a_path_computes_the_same_with_fewer_parameters(name):
    space = make_space(name)
    arch = space.sample(random.Random(4))
    x = torch.randn(2, 3, 32, 32)
    for block, path in zip(blocks_of(space, arch), space.split(arch), strict=True):
        before, number = block(x, path), sum(p.numel() for p in block.parameters())
        state = block.stand_alone_state(arch, path)
        block.restrict_to(path)
        x = block(x, path)
        assert torch.equal(x, before)
        assert block.stand_alone_state(arch, path).keys() == state.keys()
        assert sum(p.numel() for p in block.parameters()) < number


@pytest.mark.parametrize("name", SPACES)
def test_one_siamese_implementation_trains_every_space(name):
    space = make_space(name)
    for index in range(space.num_blocks):
        entry = trained_entries(space, index)[0]
        paths = [space.paths(index, entry)[place] for place in (0, -1)]
        shape = block_input(space, index, entry, 32).shape
        views = [torch.randn(4, *shape[1:]) for _ in paths]
        siamese = SiameseSupernet(make_block(space, index, entry), hidden=8, out_features=4)
        loss = bootstrap(siamese, views, views[::-1], paths, CPU)
        assert 0 < loss < 8
        siamese.update_target(0.5)
        outputs = [siamese.online.block.adapt(siamese.online.block(views[0], path), path) for path in paths]
        assert {output.shape for output in outputs} == {(4, siamese.online.block.num_features)}


@pytest.mark.parametrize("name", SPACES)
def test_the_norms_of_a_path_are_those_that_its_steps_run(name):
    space = make_space(name)
    arch = space.sample(random.Random(1))
    x = torch.randn(2, 3, 32, 32)
    for block, path in zip(blocks_of(space, arch), space.split(arch), strict=True):
        listed = {norm for index in range(-1, len(path) + 1) for norm in block.norms(path, index)}
        for norm in norms_of(block):
            norm.reset_running_stats()
        block.train()
        x = block(x, path)
        block.adapt(x, path)
        ran = {norm for norm in norms_of(block) if norm.num_batches_tracked}
        assert ran <= listed
        # What is listed but idle: a skip's BN where a NATS cell keeps its channels.
        assert {norm.num_features for norm in listed - ran} <= set(path if isinstance(block, NatsBlock) else ())


# --- NATS-Bench: slimmable


def test_every_width_is_a_slice_of_the_widest_kernel_with_a_norm_of_its_own():
    slim = SlimConv((8, 16, 32), 24, 3)
    x = torch.randn(2, 16, 5, 5)
    slim.eval()
    for width in (8, 16, 32):
        expected = torch.conv2d(x, slim.conv.weight[:width, :16], padding=1) / (1 + 1e-5) ** 0.5
        torch.testing.assert_close(slim(x, width), expected)
    assert len({id(norm) for norm in slim.norms.values()}) == 3
    assert slim.weight(16, 8).data_ptr() == slim.conv.weight.data_ptr()


def test_a_nats_path_trains_the_slices_that_it_uses_and_no_others():
    space = get_space("nats", widths=(8, 16))
    block = make_block(space, 1, None)
    block(torch.randn(2, 8, 8, 8), (8, 16)).sum().backward()
    gradient = block.layers[0].edges[0].conv.weight.grad
    assert gradient[:8, :8].any()
    assert not gradient[8:].any()
    assert not gradient[:, 8:].any()


def test_one_nats_block_serves_every_width_it_may_be_entered_at():
    space = get_space("nats")
    assert trained_entries(space, 1) == (None,)
    block = make_block(space, 1, None)
    shapes = {block(torch.randn(2, width, 8, 8), (16, 24)).shape for width in space.widths}
    assert shapes == {(2, 24, 4, 4)}


# --- HyTra


def test_blocks_entered_at_other_scales_can_share_what_they_have_in_common():
    space = get_space("hytra", base_width=8)
    first, second = make_block(space, 1, 1), make_block(space, 1, 2)
    alone = {id(parameter) for parameter in second.parameters()}
    second.share_with(first)
    path = space.parse_path(1, "16ca-32cc")
    shared = [second.step_modules(path, index)[0] is first.step_modules(path, index)[0] for index in range(4)]
    assert shared == [False, True, True, True]  # the first layer comes from another scale
    assert {id(parameter) for parameter in second.parameters()} - alone


@pytest.mark.parametrize("entry", range(4))
def test_every_scale_that_a_path_can_end_at_has_candidates_behind_it(entry):
    space = get_space("hytra", base_width=8)
    block = make_block(space, 1, entry).eval()
    x = torch.zeros(1, 32 * 2**entry, 8 >> entry, 8 >> entry)
    ends = {space.exit(1, entry, path): path for path in space.paths(1, entry)}
    assert set(ends) == set(range(entry, 4))
    for path in ends.values():
        block(x, path)


# --- spaces without a supernet


def test_a_space_without_a_supernet_says_how_to_add_one():
    class Unknown:
        name = "unknown"

    with pytest.raises(UsageError, match=r"make_block\.register"):
        make_block(Unknown(), 0, None)


@torch.no_grad()
def test_a_tree_of_slimmable_paths_computes_what_each_path_computes_alone():
    space = get_space("nats", widths=(8, 16))
    block = enliven(make_block(space, 0, None)).eval()
    calibration = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    tree = PathTree(block, [], space.paths(0), CPU)
    tree.calibrate(calibration)
    x = torch.randn(3, 3, 8, 8)
    for path, output in tree.outputs(x):  # the block has this path's statistics while it is its turn
        torch.testing.assert_close(output, block.adapt(block(x, path), path))
