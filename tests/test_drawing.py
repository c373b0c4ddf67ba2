"""Architectures as drawings for the terminal."""

from __future__ import annotations

import random

import pytest

from bossnet_zoo.drawing import architecture_text, diagram
from bossnet_zoo.errors import ArchitectureError
from bossnet_zoo.spaces import get_space, space_names

BOSSNET_T0 = "4c-8c-16cccac-32aaacaaaaa"


def test_hytra_is_drawn_on_its_four_scales():
    assert architecture_text(BOSSNET_T0).plain.splitlines() == [
        " stride 4  ▪─c─╮",
        " stride 8      ╰─c─╮",
        "stride 16          ╰─c───c───c───a───c─╮",
        "stride 32                              ╰─a───a───a───c───a───a───a───a───a",
    ]


def test_lines_go_up_and_down_where_choices_do():
    assert architecture_text("8:64:8").plain.splitlines() == [
        "64 channels      ╭─c─╮",
        *[f"{width} channels      │   │" for width in (56, 48, 40, 32, 24, 16)],
        " 8 channels    c─╯   ╰─c",
    ]


def test_downsampling_module_is_drawn_where_an_architecture_begins_below_stride_4():
    rows = architecture_text("16aaaaaaaaaaaaaaaa").plain.splitlines()
    assert [row[11] for row in rows[:3]] == ["▪", "▪", "▪"]
    assert rows[2].count("a") == 16
    assert rows[3] == "stride 32"


def test_convolutions_are_blue_and_attention_is_red():
    text = architecture_text("16ca")
    colors = {text.plain[span.start]: str(span.style) for span in text.spans if text.plain[span.start] in "ca"}
    assert "blue" in colors["c"]
    assert "red" in colors["a"]


@pytest.mark.parametrize("name", space_names())
def test_every_space_fits_80_columns(name):
    space, generator = get_space(name), random.Random(0)
    for _ in range(20):
        rows = architecture_text(space.sample(generator)).plain.splitlines()
        assert max(map(len, rows)) <= 80


@pytest.mark.parametrize("name", space_names())
def test_every_layer_of_an_architecture_is_drawn(name):
    space = get_space(name)
    arch = space.sample(random.Random(1))
    assert len(diagram(arch).layers) == sum(map(len, space.split(arch)))


def test_a_narrowed_space_has_rows_for_its_own_widths_alone():
    drawing = diagram("8:24:8:24:8", widths=(8, 24))
    assert drawing.rows == ("24 channels", "8 channels")
    assert [node.row for node in drawing.layers] == [1, 0, 1, 0, 1]
    with pytest.raises(ArchitectureError, match="16"):
        diagram("8:16:8:24:8", widths=(8, 24))


def test_share_of_attention():
    assert diagram("16ccca").second_kind_share == 0.25
    assert diagram("0123", "mbconv").second_kind_share == 0.5


def test_short_paths_need_the_name_of_their_space():
    assert diagram("16", "nats").rows[diagram("16", "nats").layers[0].row] == "16 channels"
    assert len(diagram("12", "mbconv").layers) == 2


@pytest.mark.parametrize(("text", "space"), [("4x", None), ("19", None), ("7:8", None), ("1", "elsewhere")])
def test_what_cannot_be_drawn_is_refused(text, space):
    with pytest.raises(ArchitectureError):
        diagram(text, space)
