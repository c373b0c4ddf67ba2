"""Compiled candidate operations are trained as others are; ratings, states and resuming stay what they were."""

from __future__ import annotations

import pytest
import torch
from searching import CPU, SPACE, lively_siamese, pixels, trained_parameters
from tiny_search import assert_same_search, run_until_killed, tiny_settings, write_images
from torch import nn

from bossnet_zoo.checkpoint import load_json, read_jsonl
from bossnet_zoo.errors import UsageError
from bossnet_zoo.search.bootstrapping import bootstrap
from bossnet_zoo.search.compiling import check_compiler, compile_candidates, uncompiled
from bossnet_zoo.search.run import resume_settings, search, start_run

# PyTorch looks at the gradient of an intermediate tensor while it compiles, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were compiled, by a backend that only notes them."""
    compiled, original = [], nn.Module.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda self, **given: original(self, backend=backend, **given))
    torch.compiler.reset()
    yield compiled
    torch.compiler.reset()


def test_each_candidate_is_compiled_at_its_first_use_and_never_while_rating(graphs):
    paths, views = SPACE.paths(0), [pixels(2, seed) for seed in range(4)]
    plain, siamese = lively_siamese(), lively_siamese()
    names = list(siamese.state_dict())
    compile_candidates([(siamese.online.block, paths), (siamese.target.block, paths)])
    assert list(siamese.state_dict()) == names
    with uncompiled(True):
        siamese.predict(views[0], paths[0])
    assert not graphs
    losses = [bootstrap(network, views[:2], views[2:], paths[:2], CPU) for network in (plain, siamese)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    number = len(graphs)
    assert number >= len({path[0] for path in paths[:2]})
    bootstrap(siamese, views[:2], views[2:], paths[:2], CPU)
    assert len(graphs) == number
    found = trained_parameters(siamese)
    for name, expected in trained_parameters(plain).items():
        if expected.grad is not None:
            torch.testing.assert_close(found[name].grad / 2, expected.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_without_a_compiler_nothing_is_begun(monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError("no C++ compiler\nat all")

    settings = tiny_settings(write_images(tmp_path / "images"), compile=True)
    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(UsageError, match=r"--compile: PyTorch cannot compile here \(no C\+\+ compiler\); leave it out"):
        start_run(tmp_path / "run", settings, CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_pytorchs_own_compiler_is_found():
    check_compiler(CPU)


@pytest.mark.slow
@pytest.mark.parametrize(("space", "method"), [("hytra", "bossnas"), ("mbconv", "dna"), ("nats", "bossnas")])
def test_a_compiled_search_rates_as_another_and_resumes_to_the_same_bits(space, method, tmp_path, monkeypatch):
    images = write_images(tmp_path / "images")
    runs = {}
    for compiled in (False, True):
        settings, out = tiny_settings(images, space, method, compile=compiled, epochs=2), tmp_path / f"{compiled}"
        start_run(out, settings, CPU)
        search(settings, out, CPU)
        steps = [record for record in read_jsonl(out / "metrics.jsonl") if record["kind"] == "step"]
        runs[compiled] = steps[0]["loss"], load_json(out / "ratings.json")["blocks"][0]["entries"]["any"]
    assert runs[True][0] == pytest.approx(runs[False][0], rel=1e-4)
    assert runs[True][1] == pytest.approx(runs[False][1], rel=0.02)
    out = tmp_path / "killed"
    start_run(out, settings, CPU)
    assert run_until_killed(settings, out, monkeypatch, 6, "after")
    torch.compiler.reset()
    search(resume_settings(out), out, CPU)
    assert_same_search(out, tmp_path / "True")


@pytest.mark.slow
def test_a_compiled_supernet_of_unnas_measures_as_another(tmp_path):
    images, rated = write_images(tmp_path / "images"), []
    for compiled in (False, True):
        settings, out = tiny_settings(images, "hytra", "unnas", compile=compiled), tmp_path / f"{compiled}"
        start_run(out, settings, CPU)
        search(settings, out, CPU)
        rated.append(load_json(out / "ratings.json")["measured"])
    assert rated[0].keys() == rated[1].keys()
    assert sum(abs(rated[0][arch] - rated[1][arch]) for arch in rated[0]) / len(rated[0]) < 0.05
