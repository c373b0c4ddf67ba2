"""The report page: what it shows, what it leaves out, and that it needs nothing but itself."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from example_run import REFERENCE, add_ranking, make_demo, make_search
from searching import CPU
from tiny_search import tiny_settings, write_images

from bossnet_zoo.checkpoint import load_json, read_jsonl, save_json, sealed
from bossnet_zoo.commands import parse_amount
from bossnet_zoo.errors import BossNetError, UsageError
from bossnet_zoo.search.report import _budget_between, format_count, write_report
from bossnet_zoo.search.report_ranking import draw_points
from bossnet_zoo.search.run import start_run
from bossnet_zoo.search.run_record import read_run
from bossnet_zoo.search.solver import pareto, solve

SVG = "{http://www.w3.org/2000/svg}"
SECTIONS = {"architecture", "headline", "searched", "losses", "ratings", "choice", "commands", "provenance"}
OF_A_DEMO = {"retraining", "export"}


class Page(HTMLParser):
    """Section ids, links, tags and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            if name in ("src", "srcset", "poster", "data", "xlink:href") or (name == "href" and tag != "a"):
                self.loaded.append(value)

    def handle_data(self, data):
        self.text += data


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "run")


@pytest.fixture(scope="module")
def demo_html(demo) -> str:
    return write_report(demo).read_text(encoding="utf-8")


# --- what it shows, and what not


def test_demo_shows_every_section(demo_html):
    assert Page(demo_html).ids >= SECTIONS | OF_A_DEMO | {"convergence"}


def test_plain_search_has_no_sections_of_the_demo(tmp_path):
    ids = page_of(make_search(tmp_path / "run")).ids
    assert ids >= SECTIONS
    assert not ids & OF_A_DEMO


def test_unfinished_search_shows_its_finished_blocks_and_how_to_resume(tmp_path):
    page = page_of(make_search(tmp_path / "run", blocks=2))
    assert page.ids >= {"searched", "losses", "ratings", "commands"}
    assert not page.ids & {"architecture", "choice", "retraining", "export"}
    assert "2 of 4 blocks of HyTra are rated so far" in page.text
    assert f"bossnet search --resume {tmp_path / 'run'}" in page.text
    assert "Block 2" in page.text
    assert "Block 3" not in page.text


def test_search_that_has_just_begun_has_a_page(tmp_path):
    run = make_search(tmp_path / "run", blocks=0)
    (run / "ratings.json").unlink()
    page = page_of(run)
    assert not page.ids & {"losses", "ratings"}
    assert "0 of 4 blocks" in page.text


def test_single_pieces_appear_with_their_data(demo, tmp_path):
    run = make_demo(tmp_path / "run")
    story = load_json(run / "demo.json")
    del story["export"]
    save_json(run / "demo.json", story)
    assert "export" not in page_of(run).ids
    (run / "demo.json").unlink()
    page = page_of(run)
    assert "retraining" in page.ids  # the trainings' own records are still there
    assert "Test accuracy" not in page.text


@pytest.mark.parametrize("space", ["hytra", "nats"])
def test_the_command_with_a_bound_is_one_that_solve_takes(tmp_path, space):
    run = make_search(tmp_path / "run", space)
    (budget,) = re.findall(r"--max-madds (\S+) --top 5", page_of(run).text)
    record = read_run(run)
    found = solve(record.space, record.table, max_madds=parse_amount(budget, "--max-madds"))
    assert found[0].cost.madds < record.architectures[0]["madds"]


def test_no_command_bounds_what_cannot_cost_less(tmp_path):
    run = make_search(tmp_path / "run", "nats")
    record = read_run(run)
    cheapest = pareto(record.space, record.table)[-1]
    save_json(run / "architectures.json", [cheapest.to_json()])
    text = page_of(run).text
    assert "--pareto" in text
    assert "--max-madds" not in text


@pytest.mark.parametrize(
    ("least", "most", "written"),
    [(4_000_000, 6_000_000, "5.00M"), (1_000_001, 1_000_003, "1000002"), (7, 8, "7"), (5, 5, ""), (9, 5, "")],
)
def test_a_bound_lies_between_two_costs(least, most, written):
    assert _budget_between(least, most) == written


def test_figures_of_the_run_are_on_the_page(demo, demo_html):
    text = Page(demo_html).text
    found, best = load_json(demo / "demo.json"), load_json(demo / "architectures.json")[0]
    assert "97.50%" in text
    assert "96.25%" in text
    assert "2.4e-05" in text
    assert format_count(best["madds"]) in text
    assert f"{best['score']:.3f}" in text
    assert "2,818,103" in text
    assert "4 min 00 s" in text
    assert found["commands"][0][1] in text
    assert "0.0.0-example" in text
    assert REFERENCE in text


def test_coverage_is_stated(tmp_path):
    greedy, full = make_search(tmp_path / "greedy"), make_search(tmp_path / "full", full=True)
    assert re.search(r"enough to score 12\.8% of the space", page_of(greedy).text)
    assert "enough to score the whole space" in page_of(full).text


def test_chosen_path_is_marked_in_every_block(demo_html):
    assert demo_html.count('<span class="tag">chosen</span>') == 5  # four blocks, and the list of architectures
    assert demo_html.count('class="ring"') == 4 + 2  # four blocks, and the front for page and phone


def test_the_distance_to_other_images_stands_beside_the_ratings(tmp_path, demo_html):
    assert demo_html.count("towards other images 1.250") == 4
    assert "has not learned to tell images apart" in demo_html
    plain = make_search(tmp_path / "older")
    kept = read_jsonl(plain / "metrics.jsonl")
    for record in kept:
        record.pop("elsewhere", None)
    (plain / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    html = write_report(plain).read_text(encoding="utf-8")
    assert "paths rated" in html
    assert "other images" not in html


def test_ranking_is_shown_with_its_baselines_and_over_epochs(tmp_path):
    run = make_search(tmp_path / "run", full=True)
    assert "ranking" not in page_of(run).ids
    add_ranking(run)
    page, ranking = page_of(run), load_json(run / "ranking.json")
    assert "ranking" in page.ids
    for text in ("40 architectures", "log-width", "multiply-adds", "While the supernet learned"):
        assert text in page.text
    for estimate in (ranking["kendall"], ranking["baselines"]["params"]["spearman"]):
        assert f"{estimate['value']:.2f} {estimate['low']:.2f} to {estimate['high']:.2f}" in page.text


def test_ranking_of_many_architectures_is_a_cloud(tmp_path):
    run = make_search(tmp_path / "run", "nats", full=True)
    add_ranking(run, architectures=300)
    figure = draw_points(load_json(run / "ranking.json"), lower_is_better=True)
    assert figure.count("<circle") == 0
    assert figure.count("h0") == 300


def test_what_the_rating_prefers_is_on_the_right():
    points = [
        {"architecture": name, "score": score, "accuracy": 90 - score} for name, score in (("x", 1.0), ("y", 2.0))
    ]
    for lower_is_better, order in ((True, ["y", "x"]), (False, ["x", "y"])):
        dots = ElementTree.fromstring(draw_points({"points": points}, lower_is_better)).iter(f"{SVG}circle")
        placed = sorted((float(dot.get("cx")), dot.findtext(f"{SVG}title", "")[0]) for dot in dots)
        assert [name for _, name in placed] == order


@pytest.mark.parametrize("space", ["mbconv", "nats"])
def test_other_spaces_have_the_same_page(tmp_path, space):
    assert page_of(make_search(tmp_path / "run", space)).ids >= SECTIONS


def test_the_page_says_with_which_options_the_space_was_searched(tmp_path, demo_html):
    plain, narrow = page_of(make_search(tmp_path / "plain", "nats")), tmp_path / "narrow"
    assert "Options of the space" not in plain.text
    assert "of NATS-Bench S_S by the ratings" in plain.text
    start_run(narrow, tiny_settings(write_images(tmp_path / "images"), "nats"), CPU)
    text = page_of(narrow).text
    assert "blocks of NATS-Bench S_S narrowed by options are rated so far" in text
    assert "widths=[8,16], default_resolution=16 (32,768 architectures without options)" in text
    demo = Page(demo_html).text
    assert "base_width=8, num_classes=10, default_resolution=64" in demo
    assert "narrowed" not in demo  # as many architectures, only of narrower networks


@pytest.mark.parametrize(
    ("method", "training"),
    [
        ("bossnas", ("Blocks are trained one after the other", "epochs a block; 4 paths and")),
        ("dna", ("Each block is trained by itself", "epochs a block; 1 path and")),
        ("unnas", ("All blocks are trained at once", "epochs in all; 1 architecture in 4 rotations and")),
    ],
)
def test_the_page_says_how_each_method_trains(tmp_path, method, training):
    run = make_search(tmp_path / "run")
    config = load_json(run / "config.json")
    config["settings"] |= {"num_paths": 4 if method == "bossnas" else 1, "method": method}
    save_json(run / "config.json", {**config, "method": method})
    save_json(run / "ratings.json", sealed(load_json(run / "ratings.json") | {"method": method}))
    text = page_of(run).text
    assert all(sentence in text for sentence in training)


def test_space_of_the_users_own_is_reported_without_a_drawing(tmp_path):
    run = make_search(tmp_path / "run")
    config = load_json(run / "config.json") | {"space": "towers"}
    save_json(run / "config.json", config)
    save_json(run / "ratings.json", sealed(load_json(run / "ratings.json") | {"space": "towers"}))
    save_json(run / "architectures.json", [{"architecture": "2~3~4", "score": 1.5, "madds": 5e6, "params": 7000}])
    page = page_of(run)
    assert "architecture" not in page.ids
    assert page.ids >= {"searched", "losses", "ratings", "choice"}
    assert "2~3~4" in page.text


# --- one page that needs nothing else


def test_page_loads_nothing_and_runs_nothing(demo_html):
    page = Page(demo_html)
    assert page.loaded == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert "url(" not in demo_html
    assert "@import" not in demo_html
    assert "default-src 'none'" in demo_html  # the browser refuses whatever might slip in


def test_every_figure_is_well_formed_and_says_what_it_is(demo_html):
    figures = re.findall(r"<svg.*?</svg>", demo_html, flags=re.DOTALL)
    assert len(figures) == 2 + 4 + 4 + 3 * 2  # architectures, losses, ratings; three figures in two widths
    for text in figures:
        figure = ElementTree.fromstring(text)
        assert figure.tag == f"{SVG}svg"
        assert figure.get("role") == "img"
        assert figure.get("aria-label")
        assert "nan" not in text


def test_both_colour_schemes_are_served(demo_html):
    assert "prefers-color-scheme: dark" in demo_html
    for figure in re.findall(r"<svg.*?</svg>", demo_html, flags=re.DOTALL):
        assert not re.search(r"#[0-9a-fA-F]{3,6}\b|rgb\(", figure)  # colours come from the page's palette


def test_hostile_names_are_only_text(tmp_path):
    run = make_demo(tmp_path / "run")
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x00\x1b"
    config = load_json(run / "config.json")
    save_json(run / "config.json", config | {"data": attack, "runtime": attack, "method": attack, "version": attack})
    save_json(run / "ratings.json", sealed(load_json(run / "ratings.json") | {"method": attack}))
    story = load_json(run / "demo.json")
    story["retrained"][0]["name"] = attack
    story["commands"] = [[attack, attack]]
    story["export"]["file"] = attack
    story["seconds"] = {attack: 3}
    save_json(run / "demo.json", story)
    (run / "retrain" / "found").rename(run / "retrain" / "a<b>&\"'")
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert not page.tags & {"script", "img", "b"}
    assert "<script>alert(1)</script>" in page.text
    for figure in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(figure)


def test_page_is_small(demo):
    assert write_report(demo).stat().st_size < 200_000


def test_long_search_does_not_swell_the_page(tmp_path):
    short = write_report(make_search(tmp_path / "short", blocks=1)).stat().st_size
    long = write_report(make_search(tmp_path / "long", blocks=1, steps=8000)).stat().st_size
    assert long < short + 10_000


# --- bad input and faults


@pytest.mark.parametrize("content", [None, "{}", "[]", '{"format": 1}', '{"space": ["hytra"]}'])
def test_folder_that_is_no_search_is_refused_in_a_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match="run directory of a search"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere is no folder; give the folder that bossnet search"):
        write_report(tmp_path / "nowhere")


def test_damaged_ratings_are_named_and_leave_the_old_page(tmp_path):
    run = make_search(tmp_path / "run")
    write_report(run).write_text("old")
    (run / "ratings.json").write_text('{"space": "hytra", "blocks": [{"4c')
    with pytest.raises(BossNetError, match=r"ratings\.json"):
        write_report(run)
    assert (run / "report.html").read_text() == "old"


@pytest.mark.parametrize("name", ["architectures.json", "demo.json", "ranking.json", "ratings.json"])
@pytest.mark.parametrize("content", ["[3]", "{}", "", "\0\0", '"text"'])
def test_files_with_foreign_content_are_named(tmp_path, name, content):
    run = make_search(tmp_path / "run", blocks=0)
    (run / name).write_text(content)
    with pytest.raises(BossNetError, match=re.escape(name)):
        write_report(run)


def test_full_disk_leaves_the_old_page(tmp_path, monkeypatch):
    run = make_search(tmp_path / "run", blocks=0)
    write_report(run).write_text("old")

    def write_a_little(self, text, **_):
        self.write_bytes(text[:100].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_a_little)
    with pytest.raises(BossNetError, match="No space left"):
        write_report(run)
    monkeypatch.undo()
    assert (run / "report.html").read_text() == "old"
    assert not list(run.glob(".report.html*"))


def test_line_cut_short_by_a_crash_is_left_out(tmp_path):
    run = make_search(tmp_path / "run", blocks=1)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "block": 1, "ent')
    assert "Block 1" in page_of(run).text


def test_steps_repeated_after_an_interruption_count_once(tmp_path):
    run = make_search(tmp_path / "run", blocks=1)
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(metrics + metrics)
    assert "40 steps" in page_of(run).text
