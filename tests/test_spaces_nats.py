"""The size space of NATS-Bench: count, written form, blocks, costs."""

from __future__ import annotations

import random

import pytest
import spaces_checks as check
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bossnet_zoo.errors import ArchitectureError, UsageError
from bossnet_zoo.spaces import MBConvArch, NatsArch, NatsSpace, get_space, parse_arch, space_names

SPACE = NatsSpace()
SHORT = NatsSpace(widths=(8, 24, 64))


def test_there_are_8_to_the_5_architectures():
    assert SPACE.count() == 8**5 == 32_768
    assert get_space("nats") == SPACE


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_count_is_that_of_all_architectures(dataset):
    assert len(check.check_count(NatsSpace(dataset, widths=(8, 24, 64)))) == 3**5
    check.check_ratings_keys_differ(NatsSpace(dataset, widths=(8, 24, 64)))


def test_the_data_set_decides_blocks_and_classes():
    assert (SPACE.block_layers, SPACE.num_classes) == ((2, 2, 1), 10)
    other = get_space("nats", dataset="cifar100")
    assert (other.block_layers, other.num_classes) == ((2, 1, 2), 100)
    arch = NatsArch.parse("8:16:24:32:64")
    assert SPACE.split(arch) == ((8, 16), (24, 32), (64,))
    assert other.split(arch) == ((8, 16), (24,), (32, 64))


def test_paths_do_not_depend_on_the_entry_but_costs_do():
    assert SPACE.entries(0) == (None,)
    assert SPACE.entries(1) == SPACE.widths
    assert SPACE.paths(1, 8) == SPACE.paths(1, 64)
    assert SPACE.exit(0, None, (8, 16)) == 16
    assert SPACE.path_cost(1, 8, (8, 8), 32).params < SPACE.path_cost(1, 64, (8, 8), 32).params


@given(seed=st.integers(0, 2**32), dataset=st.sampled_from(["cifar10", "cifar100"]))
@settings(max_examples=50, deadline=None)
def test_text_round_trips(seed, dataset):
    space = NatsSpace(dataset)
    check.check_round_trips(space, space.sample(random.Random(seed)))


@given(text=st.from_regex(r"[0-9]{1,2}(:[0-9]{1,2}){3,5}", fullmatch=True) | st.text(max_size=12))
@settings(max_examples=200, deadline=None)
@example(text="08:8:8:8:8")
def test_any_text_is_read_back_or_refused(text):
    check.check_read_back_or_refused(NatsArch.parse, text)


def test_sampling_is_uniform():
    check.check_sampling_is_uniform(SHORT)


@pytest.mark.parametrize("seed", range(6))
def test_cost_is_that_of_the_network(seed):
    space = NatsSpace(("cifar10", "cifar100")[seed % 2])
    arch = space.sample(random.Random(seed))
    check.check_cost_is_that_of_the_network(space, arch, space.num_classes, (32, 33, 62)[seed % 3])


@pytest.mark.parametrize(
    ("text", "params", "operations"),
    [("8:8:8:8:8", 11_714, 4_481_114), ("8:8:8:16:32", 49_202, 6_840_650), ("8:8:40:32:40", 144_834, 21_827_994)],
)
def test_costs_agree_with_the_benchmark(text, params, operations):
    cost = SPACE.cost(NatsArch.parse(text))
    assert cost.params == params
    assert cost.madds + SPACE.num_classes == operations  # it counts the classifier's biases too


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("8:8:9:8:8", "layer 3: width 9 is not allowed; allowed: 8, 16, 24, 32, 40, 48, 56, 64"),
        ("8:8:8:8:72", "layer 5: width 72 is not allowed"),
        ("8:8:8:8", "has 4 layers; it has 5"),
        ("8:8:8:8:8:8", "has 6 layers; it has 5"),
        ("8:8::8:8", "is not made of numbers joined by ':'"),
        ("8:8:x:8:8", "is not made of numbers joined by ':'"),
        ("", "is not made of numbers"),
    ],
)
def test_an_illegal_architecture_names_the_layer_and_the_rule(text, why):
    with pytest.raises(ArchitectureError) as caught:
        SPACE.parse(text)
    assert repr(text) in str(caught.value)
    assert "bossnet space nats" in str(caught.value)
    assert why in str(caught.value)


def test_a_narrower_space_refuses_widths_that_it_does_not_have():
    with pytest.raises(ArchitectureError, match="layer 2: width 16 is not allowed; allowed: 8, 24, 64"):
        SHORT.parse("8:16:8:8:8")
    with pytest.raises(ArchitectureError, match="layer 1: width 16 is not allowed; allowed: 8, 24, 64"):
        SHORT.parse_path(2, "16")
    with pytest.raises(ArchitectureError, match="path '8' has 1 layers; block 1 has 2"):
        SHORT.parse_path(0, "8")
    with pytest.raises(UsageError, match=r"widths .* are not possible"):
        NatsSpace(widths=(8, 12))


# --- the spaces together


def test_a_written_form_tells_its_space():
    assert isinstance(parse_arch("8:16:24:32:64"), NatsArch)
    assert isinstance(parse_arch("11-0110-0111-1100-0110"), MBConvArch)
    assert str(parse_arch("4c-8c")) == "4c-8c"
    for text in ("resnet50", "", "4", "4c 8c", "4C"):
        with pytest.raises(ArchitectureError):
            parse_arch(text)
    with pytest.raises(ArchitectureError, match=r"4c-8c-16cccac-32aaacaaaaa \(hytra\)"):
        parse_arch("resnet50")


def test_a_misspelt_space_or_option_gets_a_suggestion():
    assert space_names()[:3] == ("hytra", "mbconv", "nats")  # a space of one's own, added elsewhere, comes after
    with pytest.raises(UsageError, match="did you mean hytra"):
        get_space("hytar")
    with pytest.raises(UsageError, match="unknown option of the mbconv space 'widht'; did you mean width"):
        get_space("mbconv", widht=2)
    with pytest.raises(UsageError, match="did you mean cifar10"):
        get_space("nats", dataset="cifar-10")


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ("hytra", {"base_width": "abc"}, "option base_width of the hytra space is 'abc', .* it is a int, such as 64"),
        ("hytra", {"se": "maybe"}, "option se of the hytra space is 'maybe'"),
        ("hytra", {"base_width": -8}, "base_width is -8; it must be at least 1"),
        ("hytra", {"block_layers": [0]}, r"block_layers \(0,\) is not possible"),
        ("mbconv", {"width": -1}, "width is -1; it must be positive"),
        ("mbconv", {"in_chans": 0}, "in_chans is 0"),
        ("nats", {"widths": "abc"}, "option widths of the nats space is 'abc'"),
        ("nats", {"widths": [8, 8]}, r"widths \(8, 8\) are not possible"),
        ("nats", {"default_resolution": 0}, "default_resolution is 0"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused(space, options, message):
    with pytest.raises(UsageError, match=message):
        get_space(space, **options)


def test_options_may_come_from_a_json_file():
    assert get_space("nats", widths=[8, 16]) == NatsSpace(widths=(8, 16))
    assert hash(get_space("hytra", block_layers=[2, 2]))
