"""Made-up architectures, ratings and truths: each is what it says, or a sentence; never another exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bossnet_zoo.errors import BossNetError
from bossnet_zoo.runs import resolve_model
from bossnet_zoo.search.rating_table import read_ratings
from bossnet_zoo.search.solver import solve
from bossnet_zoo.search.truth_table import read_truth
from bossnet_zoo.spaces import get_space, parse_arch, space_names

pytestmark = pytest.mark.stress
EXAMPLES = 1000
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
NATS = get_space("nats", widths=(8, 16))
PATHS = [NATS.path_text(path) for path in NATS.paths(0, None)]

near_arch = (
    st.sampled_from(["4c-8c-16cccac-32aaacaaaaa", "11-0110-0111-1100-0110", "8:16:24:32:64"])
    | st.text("0123456789ca-:xé٣ ", max_size=40)
    | st.builds(
        "{}{}".format, st.sampled_from(["hytra:", "mbconv:", "nats:", "", "4c-8c-16ca-32a"]), st.text(max_size=20)
    )
)
leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
number = st.floats(-9, 9) | leaf
rated = st.dictionaries(st.sampled_from(PATHS) | st.text(max_size=6), number, max_size=4) | anything
ratings_like = st.fixed_dictionaries(
    {"space": st.sampled_from(["nats", "hytra", "x"]) | leaf, "blocks": st.lists(rated, max_size=4) | anything},
    optional={
        "format": st.just(1) | leaf,
        "lower_is_better": leaf,
        "space_options": st.just({"widths": [8, 16]}) | anything,
    },
)
truth_like = st.fixed_dictionaries(
    {
        "space": st.just("nats") | leaf,
        "accuracy": st.dictionaries(st.sampled_from(["8:8:8:8:8", "8:8:8:8:16"]) | near_arch, number) | anything,
    }
)


def sentence_or_value(call: Callable[[], object]) -> None:
    """Errors other than a `BossNetError` of one line go through."""
    try:
        call()
    except BossNetError as error:
        if "\n" in str(error).strip():
            raise


def try_all(strategy: st.SearchStrategy, use: Callable[[Any], None], counts: Any) -> None:
    """`EXAMPLES` values; the first that raises fails, after Hypothesis has made it small."""

    def counted(value: Any) -> None:
        counts.count(True)
        use(value)

    FUZZ(given(strategy)(counted))()


def architectures(text: str) -> None:
    sentence_or_value(lambda: str(parse_arch(text)))
    sentence_or_value(lambda: resolve_model(text))
    for name in space_names():
        space = get_space(name)

        def round_trip(space=space) -> None:
            arch = space.parse(text)
            assert space.parse(str(arch)) == arch

        sentence_or_value(round_trip)


def ratings(path: Path) -> None:
    table = read_ratings(path)
    space = table.make_space()
    table.check(space)
    solve(space, table, top=2)


def truths(path: Path) -> None:
    read_truth(path).architectures(NATS)


def test_architectures(tally):
    with tally("made-up architectures, ratings and truths") as counts:
        try_all(near_arch, architectures, counts)


@pytest.mark.parametrize(("like", "read"), [(ratings_like, ratings), (truth_like, truths)], ids=["ratings", "truths"])
def test_files(like, read, tmp_path, tally):
    file = tmp_path / "file.json"

    def use(value: Any) -> None:
        file.write_text(json.dumps(value))
        sentence_or_value(lambda: read(file))

    with tally("made-up architectures, ratings and truths") as counts:
        try_all(like | anything, use, counts)
