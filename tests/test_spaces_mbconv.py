"""The MBConv space: count, written form, costs."""

from __future__ import annotations

import random

import pytest
import spaces_checks as check
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bossnet_zoo.errors import ArchitectureError
from bossnet_zoo.spaces import MBConvArch, MBConvSpace, get_space

SPACE = MBConvSpace()
SHORT = MBConvSpace(block_layers=(1, 1, 1, 1, 1))


def test_there_are_4_to_the_18_architectures():
    assert SPACE.count() == 4**18 == 68_719_476_736
    assert get_space("mbconv") == SPACE


def test_the_count_is_that_of_all_architectures():
    assert len(check.check_count(SHORT)) == 4**5


def test_every_path_of_a_block_has_its_own_text():
    assert [len(SPACE.paths(block)) for block in range(5)] == [16, 256, 256, 256, 256]
    check.check_ratings_keys_differ(SPACE)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_text_round_trips(seed):
    check.check_round_trips(SPACE, SPACE.sample(random.Random(seed)))


@given(text=st.from_regex(r"[0-5]{1,2}(-[0-5]{1,4}){3,5}", fullmatch=True) | st.text(max_size=12))
@settings(max_examples=200, deadline=None)
@example(text="0-0-0-0-0")
def test_any_text_is_read_back_or_refused(text):
    check.check_read_back_or_refused(MBConvArch.parse, text)


def test_sampling_is_uniform():
    check.check_sampling_is_uniform(SHORT)


@pytest.mark.parametrize("seed", range(6))
def test_cost_is_that_of_the_network(seed):
    space = MBConvSpace(se=seed % 2 == 0, width=(1.0, 0.25, 1.4)[seed % 3])
    check.check_cost_is_that_of_the_network(space, space.sample(random.Random(seed)), 1000, 224 if seed < 4 else 95)


@pytest.mark.parametrize(
    ("text", "se", "madds"),
    [("11-0110-0111-1100-0110", False, 479.5), ("11-0110-0111-1320-2332", True, 403.4)],
    ids=["M1", "M2"],
)
def test_bossnet_m_costs_what_the_design_says(text, se, madds):
    assert round(MBConvSpace(se=se).cost(MBConvArch.parse(text)).madds / 1e6, 1) == madds


def test_squeeze_excite_is_two_counted_convolutions():
    arch = MBConvArch.parse("0-0-0-0-0")
    with_se, without = (MBConvSpace((1, 1, 1, 1, 1), se=se).cost(arch) for se in (True, False))
    inner = [
        (32, 8),
        (96, 4),
        (144, 6),
        (240, 10),
        (480, 20),
        (672, 28),
        (1152, 48),
    ]  # channels and a quarter of the input's
    assert with_se.madds - without.madds == sum(2 * channels * reduced for channels, reduced in inner)
    assert with_se.params - without.params == sum(2 * c * r + c + r for c, r in inner)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("11-1111-1141-1011-1101", "layer 9: there is no candidate 4; allowed: 0 to 3"),
        ("11-1111-1101-1011", "has 4 blocks with layers; it has 5"),
        ("11-1111--1011-1101", "has 4 blocks with layers; it has 5"),
        ("11-111-1101-1011-1101", "block 2 has 3 layers instead of 4"),
        ("11-1x11-1101-1011-1101", "'1x11' is not made of digits 0 to 3"),
        ("11-1²11-1101-1011-1101", "'1²11' is not made of digits 0 to 3"),
        ("", "has 0 blocks with layers"),
    ],
)
def test_an_illegal_architecture_names_the_place_and_the_rule(text, why):
    with pytest.raises(ArchitectureError) as caught:
        SPACE.parse(text)
    assert repr(text) in str(caught.value)
    assert "bossnet space mbconv" in str(caught.value)
    assert why in str(caught.value)


def test_an_illegal_path_or_space_is_refused():
    with pytest.raises(ArchitectureError, match=r"path .17. of block 2 has 2 layers instead of 4"):
        SPACE.parse_path(1, "17")
    with pytest.raises(ArchitectureError, match="layer 2: there is no candidate 7"):
        SPACE.parse_path(0, "17")
    with pytest.raises(ArchitectureError, match="has 5 blocks of one or more layers"):
        MBConvSpace(block_layers=(2, 4, 4, 4))
