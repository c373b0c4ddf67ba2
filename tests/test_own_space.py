"""Spaces of one's own, README's `kernels.py` and one whose blocks depend on earlier ones, are searched like others."""

from __future__ import annotations

import itertools
import random
import re
import shlex
import sys
from collections import Counter

import own_space
import pytest
import torch
from chained_space import ChainedBlock, ChainedSpace
from searching import CPU
from test_cli import run as run_bossnet
from tiny_search import write_images

from bossnet_zoo import cli, spaces
from bossnet_zoo.describe import describe_space
from bossnet_zoo.errors import ArchitectureError, UsageError
from bossnet_zoo.models import build
from bossnet_zoo.recipes import BOSSNET_T
from bossnet_zoo.search.extract import extract, inherit
from bossnet_zoo.search.ranking import rank
from bossnet_zoo.search.rating_table import read_ratings
from bossnet_zoo.search.run import search, start_run
from bossnet_zoo.search.settings import get_preset
from bossnet_zoo.search.supernets import SupernetBlock
from bossnet_zoo.search.truth import Study, start_study
from bossnet_zoo.search.truth_table import TruthTable
from bossnet_zoo.spaces import Space, get_space, program_for, space_names

SPACE = own_space.KernelSpace()
CHAINED = ChainedSpace()
SMALL = {"epochs": 1, "global_batch": 8, "micro_batch": 4, "projection": 8, "resolution": 16, "calibration_images": 8}


def test_the_example_is_short():
    assert 30 < len(own_space.SOURCE.splitlines()) < 60


def test_it_is_known_by_name_and_derives_the_rest():
    assert "kernels" in space_names()
    assert get_space("kernels") == SPACE
    assert SPACE.count() == 81
    halves = ["".join(kernels) for kernels in itertools.product("135", repeat=2)]
    archs = [f"{first}-{second}" for first, second in itertools.product(halves, repeat=2)]
    assert [str(SPACE.parse(text)) for text in archs] == archs
    with pytest.raises(ArchitectureError, match="'17' is not one of the 9 of block 2"):
        SPACE.parse("13-17")
    with pytest.raises(ArchitectureError, match="has 1 paths, not 2"):
        SPACE.parse("13")


def test_sampling_is_uniform():
    generator = random.Random(0)
    counts = Counter(str(SPACE.sample(generator)) for _ in range(8100))
    assert len(counts) == 81
    assert max(abs(count - 100) for count in counts.values()) < 45  # 4.5 standard deviations


def test_its_cost_is_that_of_the_convolutions_it_counts():
    arch = SPACE.parse("13-55")
    convolutions = [m for m in build(arch).modules() if isinstance(m, torch.nn.Conv2d)][1:]
    weights = sum(convolution.weight.numel() for convolution in convolutions)
    assert SPACE.cost(arch, 16).madds == weights * 8 * 8
    assert SPACE.cost(arch).params == weights + 4 * 2 * 16


def test_it_is_searched_solved_ranked_and_reported(tmp_path):
    images = str(write_images(tmp_path / "images"))
    settings = get_preset("demo", "kernels", data=images, hidden=16, rating_images=4, **SMALL)
    start_run(tmp_path / "run", settings, CPU)
    result = search(settings, tmp_path / "run", CPU)
    table = read_ratings(tmp_path / "run" / "ratings.json")
    assert [len(tables["any"]) for tables in table.blocks] == [9, 9]
    assert table.meta["covered"] == 1
    best = result.best[0].arch
    assert best == min(
        (SPACE.join(paths) for paths in itertools.product(SPACE.paths(0), SPACE.paths(1))),
        key=lambda arch: table.score(SPACE, arch),
    )
    truth = TruthTable("kernels", {str(arch): random.Random(arch).random() for arch in ("11-11", "13-55", "55-55")})
    assert len(rank(SPACE, table, truth).points) == 3
    assert str(best) in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(UsageError, match="define stand_alone_state"):
        inherit(tmp_path / "run", None, CPU)
    with pytest.raises(UsageError, match="bossnet extract makes networks by their names in timm"):
        extract(tmp_path / "run", None, tmp_path / "net", CPU)
    study = Study("kernels", "digits", BOSSNET_T.smoke(), 3)
    with pytest.raises(UsageError, match="bossnet truth makes networks by their names in timm"):
        start_study(tmp_path / "truth", study, CPU)
    assert not (tmp_path / "truth").exists()


def test_it_is_described():
    about = describe_space("kernels")
    assert (about["architectures"], about["rule"]) == (81, "a space of your own")


def run_kernels(monkeypatch, capfd, *arguments):
    """Exit code, stdout and stderr of `python kernels.py ARGUMENTS`, as if that file were the program."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/home/me/kernels.py", raising=False)
    monkeypatch.setattr(sys, "argv", ["kernels.py", *arguments])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capfd.readouterr()


def test_what_to_type_next_names_the_file_that_knows_the_space(monkeypatch, capfd, tmp_path):
    images, run = str(write_images(tmp_path / "images")), tmp_path / "run"
    small = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    small += ["--hidden", "16", "--rating-images", "4", "--workers", "0"]
    typed = ["search", "--space", "kernels", "--preset", "demo", "--data", images, "--out", str(run), *small]
    code, _, notes = run_kernels(monkeypatch, capfd, *typed)
    assert code == 0
    program, file, *following = shlex.split(re.search(r"^next: (.*)$", notes, re.MULTILINE)[1])
    assert (program, file) == ("python", "kernels.py")
    code, printed, _ = run_kernels(monkeypatch, capfd, *following)
    assert (code, len(printed.splitlines())) == (0, 6)  # a header and five architectures
    page = re.sub(r"<[^>]+>", "", (run / "report.html").read_text())
    assert "python kernels.py solve" in page
    assert "bossnet solve" not in page
    monkeypatch.delitem(spaces._SPACES, "kernels")
    code, _, notes = run_bossnet(monkeypatch, capfd, *following)
    assert code == 2
    assert "unknown space 'kernels'" in notes
    assert notes.endswith("a space of your own is known to the file that adds it: python YOUR_FILE.py\n")
    code, _, notes = run_bossnet(monkeypatch, capfd, "report", str(run))
    assert code == 2
    assert notes == f"error: space 'kernels' is not known here; type: python YOUR_FILE.py report {run}\n"


def test_the_spaces_of_the_package_are_known_to_bossnet_whatever_program_runs(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/home/me/kernels.py", raising=False)
    monkeypatch.setattr(sys, "argv", ["my kernels.py"])
    assert program_for("nats") == "bossnet"
    assert program_for("kernels") == "python 'my kernels.py'"
    monkeypatch.delattr(sys.modules["__main__"], "__file__")  # a notebook
    assert program_for("kernels") == "python YOUR_FILE.py"


@pytest.mark.parametrize("coverage", ["greedy", "full"])
def test_blocks_that_depend_on_the_one_before_are_trained_for_each_state_they_are_entered_in(tmp_path, coverage):
    images = str(write_images(tmp_path / "images"))
    asked = {"data": images, "hidden": 16, "rating_images": 4, "num_paths": 2, "coverage": coverage, "workers": 0}
    settings = get_preset("demo", "chained", **asked, **SMALL)
    start_run(tmp_path / "run", settings, CPU)
    result = search(settings, tmp_path / "run", CPU)
    table = read_ratings(tmp_path / "run" / "ratings.json")
    if coverage == "full":
        assert [set(entries) for entries in table.blocks] == [{"any"}, {"4", "6", "8"}, {"4", "6", "8"}]
        assert table.meta["covered"] == 1
    else:
        assert [len(entries) for entries in table.blocks] == [1, 1, 1]
        assert 0 < table.meta["covered"] < 1
    assert table.score(CHAINED, result.best[0].arch) == pytest.approx(result.best[0].score)


def test_the_number_of_networks_of_a_long_chain_is_known_at_once():
    """Counted path by path, it would take 3 ** 60 steps."""
    ends = dict.fromkeys((4, 6, 8), 1)
    for _ in range(59):
        ends = {width: sum(ends.values()) - (ends[6] if width == 6 else 0) for width in ends}
    assert ChainedSpace(num_blocks=60).count() == sum(ends.values())


@pytest.mark.parametrize("missing", ["paths", "split", "join", "path_cost"])
def test_a_space_that_lacks_a_part_says_which(missing):
    parts = {name: getattr(ChainedSpace, name) for name in ("paths", "split", "join", "path_cost") if name != missing}
    with pytest.raises(TypeError, match=rf"abstract.*'?{missing}'?"):
        type("Unfinished", (Space,), parts)()


def test_a_supernet_block_without_modules_is_refused():
    with pytest.raises(TypeError, match=r"abstract.*step_modules"):
        type("Unfinished", (SupernetBlock,), {"__init__": ChainedBlock.__init__})(CHAINED, 0, None)


@pytest.mark.parametrize("name", ["hytra", "mbconv", "nats"])
def test_the_spaces_of_the_package_are_spaces(name):
    space = get_space(name)
    assert isinstance(space, Space)
    assert "cost" not in vars(type(space))  # the sum along the chain of blocks is the same in all
