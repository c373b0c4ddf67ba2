"""Ratings files: both forms, lookups, coverage, and whatever else a file may hold."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.search.rating_table import RatingTable, ratings_from_json, read_ratings
from bossnet_zoo.spaces import HyTraSpace, MBConvSpace, NatsSpace

HYTRA = HyTraSpace(block_layers=(1, 1), base_width=8)
BY_ENTRY = RatingTable(
    "hytra",
    ({"any": {"4c": 1.0, "8c": 2.0}}, {"4": {"4c": 3.0}, "8": {"8c": 4.0, "16a": 5.0}, "any": {"8c": 6.0}}),
    meta={"method": "bossnas", "space_options": {"block_layers": [1, 1], "base_width": 8}, "seed": 7},
)


def test_ratings_of_the_entry_come_before_those_of_any():
    assert BY_ENTRY.rating(1, "8", "8c") == 4.0
    assert BY_ENTRY.rating(1, "4", "8c") == 6.0
    assert BY_ENTRY.rating(1, "4", "4c") == 3.0
    assert BY_ENTRY.rating(1, "4", "16a") is None
    assert BY_ENTRY.rating(1, "32", "32a") is None


def test_score_is_the_weighted_sum_in_block_order():
    arch = HYTRA.parse("4c-8c")
    assert BY_ENTRY.score(HYTRA, arch) == 1.0 + 6.0
    assert BY_ENTRY.score(HYTRA, arch, (0.5, 2.0)) == 12.5
    assert BY_ENTRY.score(HYTRA, HYTRA.parse("16cc")) is None


def test_coverage_is_the_fraction_of_architectures_with_a_score():
    scored = ["4cc", "4c-8c", "8cc", "8c-16a"]
    assert all(BY_ENTRY.score(HYTRA, HYTRA.parse(text)) is not None for text in scored)
    assert BY_ENTRY.coverage(HYTRA) == len(scored) / HYTRA.count()


def test_a_written_table_reads_back(tmp_path):
    BY_ENTRY.write(tmp_path / "ratings.json")
    assert read_ratings(tmp_path / "ratings.json") == BY_ENTRY
    content = json.loads((tmp_path / "ratings.json").read_text())
    assert content["format"] == 1
    assert content["method"] == "bossnas"
    assert content["blocks"][1]["entries"]["8"] == {"8c": 4.0, "16a": 5.0}


def test_the_table_makes_the_space_that_was_searched():
    assert BY_ENTRY.make_space() == HYTRA
    assert BY_ENTRY.make_space(base_width=16) == HyTraSpace(block_layers=(1, 1), base_width=16)


def test_plain_form_holds_from_every_entry():
    table = ratings_from_json({"space": "nats", "lower_is_better": False, "blocks": [{"8:8": 1}, {"8:8": 2}, {"8": 3}]})
    assert not table.lower_is_better
    assert table.rating(2, "64", "8") == 3.0
    assert table.score(NatsSpace(), NatsSpace().parse("8:8:8:8:8")) == 6.0
    assert table.coverage(NatsSpace()) == 1 / 32_768


@pytest.mark.parametrize(
    ("table", "space", "message"),
    [
        (RatingTable("nats", ({},)), HYTRA, "of space 'nats', not of 'hytra'"),
        (RatingTable("hytra", ({},)), HYTRA, "1 blocks where space 'hytra' has 2"),
        (RatingTable("hytra", ({}, {"5": {"4c": 1.0}})), HYTRA, "no entry '5'; allowed: 16, 32, 4, 8, any"),
        (RatingTable("hytra", ({}, {"8": {"4c": 1.0}})), HYTRA, "block 2, entry '8': '4c' is no path"),
        (
            RatingTable("mbconv", ({"any": {"14": 1.0}}, {}, {}, {}, {})),
            MBConvSpace(),
            "'14' is no path.*has 16.*bossnet",
        ),
    ],
)
def test_ratings_of_something_else_are_refused(table, space, message):
    with pytest.raises(UsageError, match=message):
        table.check(space)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2 is not known to this version"),
        ({"space": 3}, '"space" is no name'),
        ({"lower_is_better": "yes"}, '"lower_is_better"'),
        ({"space_options": []}, '"space_options"'),
        ({"blocks": []}, '"blocks"'),
        ({"blocks": [{}, 3]}, '"blocks"'),
        ({"blocks": [{"entries": {"any": 3}}]}, "block 1: an entry"),
        ({"blocks": [{}, {"4c": "low"}]}, "block 2, path '4c': 'low' is no finite number"),
        ({"blocks": [{"4c": math.nan}]}, "nan is no finite number"),
        ({"blocks": [{"4c": True}]}, "True is no finite number"),
        ({"blocks": [{"4c": 10**400}]}, "no finite number"),
    ],
)
def test_a_malformed_file_is_one_sentence_that_shows_the_form(changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        ratings_from_json({"space": "hytra", "blocks": [{"4c": 1.0}], **changes}, "mine.json")
    assert str(caught.value).startswith("mine.json: ")


def test_unknown_space_or_option_is_refused():
    with pytest.raises(UsageError, match="did you mean hytra"):
        RatingTable("hytar", ({},)).make_space()
    with pytest.raises(UsageError, match="depth"):
        RatingTable("hytra", ({},)).make_space(depth=3)


def test_ratings_too_large_to_be_added_up_are_refused():
    value = {"space": "nats", "blocks": [{"8:8": -1.7e308}, {"8:8": 1}, {"8": 1}]}
    with pytest.raises(UsageError, match=r"-1.7e\+308 is no finite number below 1e\+100"):
        ratings_from_json(value)


def test_missing_and_damaged_files_are_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=f"the search has not ended; bossnet search --resume {tmp_path}"):
        read_ratings(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read_ratings(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"space": "hy')
    with pytest.raises(BossNetError, match="not valid JSON"):
        read_ratings(tmp_path / "cut.json")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("format", "space", "space_options", "lower_is_better", "blocks", "method")
ALMOST = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(KEYS, ANY_JSON) | {"space": st.just("hytra"), "blocks": st.lists(ANY_JSON, max_size=3)},
)


@given(ANY_JSON | ALMOST)
def test_whatever_the_file_holds_it_is_ratings_or_one_sentence(value):
    message = ""
    try:
        table = ratings_from_json(value)
    except UsageError as error:
        table, message = RatingTable("none", ()), str(error)
    assert "\n" not in message
    assert all(math.isfinite(r) for block in table.blocks for ratings in block.values() for r in ratings.values())
    assert message or ratings_from_json(table.to_json()) == table
