"""The figures of the report page: drawn true to scale, legible, each complete in itself."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest
from example_run import make_search
from test_report import SVG, page_of

from bossnet_zoo.search.plots import draw_architecture
from bossnet_zoo.search.report import (
    colored,
    format_count,
    format_duration,
    format_size,
    write_figures,
)
from bossnet_zoo.search.report_figures import number_format
from bossnet_zoo.search.run_record import read_run
from bossnet_zoo.search.svg import spread, standalone, ticks


def centres(figure: str, css_class: str) -> list[tuple[float, float]]:
    circles = ElementTree.fromstring(figure).iter(f"{SVG}circle")
    return [(float(c.get("cx")), float(c.get("cy"))) for c in circles if c.get("class") == css_class]


def test_hytra_is_drawn_blue_and_red_on_four_scales():
    figure = draw_architecture("4c-8c-16cccac-32aaacaaaaa", (4, 4, 4, 4))
    convolutions, attentions = centres(figure, "kind-0"), centres(figure, "kind-1")
    assert (len(convolutions), len(attentions)) == (7, 9)
    layers = sorted(convolutions + attentions)
    heights = [y for _, y in layers]
    assert len({x for x, _ in layers}) == 16
    assert heights == sorted(heights)  # the scale never falls
    assert len(set(heights)) == 4
    assert "block 4" in figure


def test_architecture_below_stride_4_has_its_downsampling_module():
    squares = ElementTree.fromstring(draw_architecture("16aaaaaaaaaaaaaaaa")).findall(f"{SVG}rect")
    assert [square.findtext(f"{SVG}title", "").split(":")[0] for square in squares] == [
        "stem",
        "downsampling module",
        "downsampling module",
    ]
    layers = centres(draw_architecture("16aaaaaaaaaaaaaaaa"), "kind-1")
    assert len(layers) == 16
    assert float(squares[-1].get("y")) + 7 == layers[0][1]


def test_figure_can_stand_alone():
    text = standalone(draw_architecture("16ca"))
    figure = ElementTree.fromstring(text)
    assert "--conv" in figure.findtext(f"{SVG}style", "")
    left, top, width, height = map(float, figure.get("viewBox", "").split())
    background = figure.find(f"{SVG}rect")
    assert (background.get("fill"), background.get("width")) == ("var(--card)", "100%")  # on pages dark and light
    assert (float(background.get("x")), float(background.get("y"))) == (left, top)
    assert all(left < x < left + width and top < y < top + height for x, y in centres(text, "kind-1"))


def test_figures_of_a_run_are_files_that_stand_alone(tmp_path):
    run = make_search(tmp_path / "run")
    files = write_figures(run, tmp_path / "figures")
    assert [file.name for file in files] == ["architecture.svg", *(f"block-{number}.svg" for number in range(1, 5))]
    for file in files:
        assert "--conv" in ElementTree.fromstring(file.read_text()).findtext(f"{SVG}style", "")


def test_written_form_is_coloured_layer_by_layer():
    assert colored("8c-16a", "hytra") == '8<span class="layer-0">c</span>-16<span class="layer-1">a</span>'
    assert colored("64:8", "nats") == "64:8"
    assert colored("<b>", "towers") == "&lt;b&gt;"


def test_ticks_are_round_and_inside():
    assert [text for _, text in ticks(0.71, 1.32, 4)] == ["0.8", "1.0", "1.2"]
    assert [text for _, text in ticks(1, 12, 5, whole=True)] == ["5", "10"]
    assert [text for _, text in ticks(1e-4, 3e-4, 4)] == ["0.00010", "0.00015", "0.00020", "0.00025", "0.00030"]


def test_ratings_have_enough_digits_to_tell_them_apart():
    assert number_format([5.6344123, 5.6346987])(5.6344123) == "5.634412"
    assert number_format([0.8, 1.9])(0.8) == "0.80"
    assert number_format([1.0])(1.0) == "1.0000"


def test_labels_evade_each_other():
    moved = spread([10.0, 10.0, 11.0, 50.0], gap=14)
    assert all(after - before >= 14 - 1e-9 for before, after in itertools.pairwise(moved))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_count(3_440_000_000), "3.44 G"),
        (format_count(403_000_000), "403 M"),
        (format_count(950), "950"),
        (format_duration(7512), "2 h 05 min"),
        (format_duration(59.6), "1 min 00 s"),
        (format_size(1_912_345), "1.9 MB"),
    ],
)
def test_quantities_are_written_with_units(text, expected):
    assert text == expected


def test_the_page_claims_no_more_architectures_than_have_ratings(tmp_path):
    record = read_run(make_search(tmp_path / "run"))
    rated = round(record.finished_table.coverage(record.space) * record.space.count())
    assert 0 < rated < record.space.count()
    assert f"Chosen among the {rated:,} rated architectures (all: 2,818,103)" in page_of(tmp_path / "run").text
