"""The HyTra space: rule, count, written form, costs."""

from __future__ import annotations

import random

import pytest
import spaces_checks as check
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bossnet_zoo.errors import ArchitectureError
from bossnet_zoo.spaces import HyTraArch, HyTraSpace, get_space
from bossnet_zoo.spaces.hytra import Layer

SPACE = HyTraSpace()
SHORT = HyTraSpace(block_layers=(2, 1, 3))
NAMED = [
    "4c-8c-16cccac-32aaacaaaaa",
    "4ccc-8cccc-16cccccc-32ccc",
    "4ccc-8cccc-16cccccc-32aaa",
    "16aaaaaaaaaaaaaaaa",
    "4c-8ccc-16caccccac-32accc",
    "8c-16cc-32cccaaaacaacca",
    "16acccaacacca-32acacc",
]


def test_there_are_2_818_103_architectures():
    assert SPACE.count() == 2_818_103
    assert get_space("hytra") == SPACE


def test_the_count_follows_from_the_rule_by_hand():
    """n(l, d) = o(d) (n(l-1, d) + n(l-1, d-1)), by scale of the last layer."""
    operations = (1, 1, 2, 2)
    by_scale = list(operations)
    for _ in range(15):
        before = [0, *by_scale]
        by_scale = [operations[d] * (before[d + 1] + before[d]) for d in range(4)]
    assert sum(by_scale) == SPACE.count()


@pytest.mark.parametrize("space", [SHORT, HyTraSpace(block_layers=(1,)), HyTraSpace(block_layers=(3, 3))])
def test_the_count_is_that_of_all_architectures(space):
    check.check_count(space)


def test_a_block_has_as_many_paths_as_the_paper_says():
    """51, 99, 80 and 16 paths of four layers for entry scales 0 to 3."""
    assert [len(SPACE.paths(1, entry)) for entry in SPACE.entries(1)] == [51, 99, 80, 16]
    check.check_ratings_keys_differ(SPACE)


@pytest.mark.parametrize("text", NAMED)
def test_named_architectures_belong_to_the_space(text):
    arch = SPACE.parse(text)
    assert str(arch) == text
    check.check_round_trips(SPACE, arch)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_text_round_trips(seed):
    check.check_round_trips(SPACE, SPACE.sample(random.Random(seed)))


@given(text=st.from_regex(r"[0-9]{1,2}[a-d]{1,3}(-[0-9]{1,2}[a-d]{1,3}){0,3}", fullmatch=True) | st.text(max_size=12))
@settings(max_examples=200, deadline=None)
@example(text="04c")
def test_any_text_is_read_back_or_refused(text):
    check.check_read_back_or_refused(HyTraArch.parse, text)


def test_sampling_is_uniform():
    check.check_sampling_is_uniform(HyTraSpace(block_layers=(2, 2)))


@pytest.mark.parametrize("seed", range(6))
def test_cost_is_that_of_the_network(seed):
    space = HyTraSpace(se=seed % 2 == 0, base_width=16 if seed > 3 else 64)
    check.check_cost_is_that_of_the_network(space, space.sample(random.Random(seed)), 1000, (224, 97, 64)[seed % 3])


@pytest.mark.parametrize("text", NAMED)
def test_cost_of_named_architectures_is_that_of_their_networks(text):
    check.check_cost_is_that_of_the_network(SPACE, SPACE.parse(text), 1000, 224)


@pytest.mark.parametrize(
    ("text", "layer", "why"),
    [
        ("4c-8c-16cccac-32aaacaaaa", "", "has 15 layers; this space has 16"),
        ("4a-8c-16cccac-32aaacaaaaa", "layer 1: ", "operation 'a' is not allowed at stride 4"),
        ("4c-8ca-16ccac-32aaacaaaaa", "layer 3: ", "operation 'a' is not allowed at stride 8"),
        ("4c-8c-32cccacaaacaaaaa", "layer 3: ", "the stride jumps from 8 to 32; it may stay or double, so 8 or 16"),
        ("4c-16ccccccccccccccc", "layer 2: ", "the stride jumps from 4 to 16"),
        ("8cc-4ccccccccccccccc", "layer 3: ", "the stride falls from 8 to 4"),
        ("32c-64aaaaaaaaaaaaaaa", "", "'64aaaaaaaaaaaaaaa' is not a stride"),
        ("4c-8c-16cccad-32aaacaaaaa", "layer 7: ", "operation 'd' is not allowed at stride 16"),
        ("4c-4c-8cccccccccccccc", "", "a stride stands twice"),
        ("", "", "'' is not a stride"),
        ("4c--8c", "", "'' is not a stride"),
    ],
)
def test_an_illegal_architecture_names_the_layer_and_the_rule(text, layer, why):
    with pytest.raises(ArchitectureError) as caught:
        SPACE.parse(text)
    assert repr(text) in str(caught.value)
    assert "bossnet space hytra" in str(caught.value)
    assert f"{layer}{why}" in str(caught.value)


def test_illegal_values_cannot_be_made():
    with pytest.raises(ArchitectureError, match="layer 2: the stride falls"):
        HyTraArch((Layer(1, "c"), Layer(0, "c")))
    with pytest.raises(ArchitectureError, match="at least one layer"):
        HyTraArch(())


def test_a_path_of_another_length_is_refused():
    with pytest.raises(ArchitectureError, match=r"path '4c' has 1 layers; block 2 has 4"):
        SPACE.parse_path(1, "4c")
