"""The shortcuts of training and rating change no figure: equal to the naive forms of `benchmarks/`, in every space."""

from __future__ import annotations

import random

import bench_rating
import bench_step
import pytest
import torch
from cases import RUNTIME, Case, draw_batch, make_cases, studies
from naive import naive_bootstrap
from searching import enliven
from tiny_search import SPACE_OPTIONS

from bossnet_zoo.search.bootstrapping import bootstrap
from bossnet_zoo.spaces import get_space


@pytest.fixture(scope="module", params=SPACE_OPTIONS)
def case(request) -> Case:
    """The second block of a small space, with no branch at zero."""
    space = get_space(request.param, **SPACE_OPTIONS[request.param])
    arch = space.sample(random.Random(2))
    made = next(make_cases(space, arch, space.default_resolution))
    for number, module in enumerate((made.prefix, made.siamese.online, made.siamese.target, made.siamese.predictor)):
        enliven(module, seed=number)
    return made


def test_a_step_has_the_loss_and_the_gradients_of_the_naive_step(case):
    generator = torch.Generator().manual_seed(0)
    paths = random.Random(0).sample(case.paths, 3)
    first, second = ([draw_batch(4, case.resolution, generator) for _ in paths] for _ in range(2))

    def gradients() -> dict[str, torch.Tensor]:
        found = {name: p.grad.clone() for name, p in case.siamese.named_parameters() if p.grad is not None}
        case.siamese.zero_grad(set_to_none=True)
        return found

    naive = naive_bootstrap(case.siamese, case.prefix, first, second, paths)
    expected = gradients()
    assert any(parameter.grad is not None for parameter in case.prefix.parameters())  # flowed through the prefix
    case.prefix.zero_grad(set_to_none=True)
    features = [[case.prefix(view) for view in views] for views in (first, second)]
    loss = bootstrap(case.siamese, *features, paths, RUNTIME)
    assert loss == pytest.approx(naive, rel=1e-5)
    found = gradients()
    assert found.keys() == expected.keys()
    noise = 1e-4 * max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=noise)


def test_the_measured_steps_have_equal_losses_and_leave_the_weights_alone(case):
    weights = {name: parameter.clone() for name, parameter in case.siamese.named_parameters()}
    forms = bench_step.make_forms(case, batch=4, num_paths=2)
    assert forms.naive() == pytest.approx(forms.ours(), rel=1e-5)
    assert all(torch.equal(weights[name], parameter) for name, parameter in case.siamese.named_parameters())


def test_the_measured_ratings_are_equal(case):
    forms = bench_rating.make_forms(case, images=4, batches=2)
    expected, found = forms.naive(), forms.ours()
    assert found == pytest.approx(expected, abs=5e-5)
    assert max(expected.values()) - min(expected.values()) > 1e-3


def test_a_sample_of_the_paths_stands_for_all_and_has_equal_ratings(case):
    forms = bench_rating.make_forms(case, images=2, batches=1, naive_paths=2)
    expected, found = forms.naive(), forms.part()
    assert found == pytest.approx(expected, abs=5e-5)
    assert len(found) == 2
    assert set(found) < set(case.paths) == set(forms.ours())
    assert forms.scale == len(case.paths) / 2


def test_a_sample_is_spread_evenly_from_cheap_to_dear(case):
    costs = dict(zip(case.paths, case.madds, strict=True))
    ordered, number = sorted(case.madds), len(case.paths)
    half = number // 2
    assert [costs[path] for path in case.sample(2)] == [ordered[half // 2], ordered[(half + number) // 2]]
    assert ordered[0] < ordered[-1]


def test_every_block_with_a_prefix_is_measured_against_its_bar():
    measured = {name: (s.space.num_blocks - 1, s.step_bar, s.rating_bar) for name, s in studies().items()}
    assert measured == {"hytra": (3, 2.2, 8.0), "mbconv": (4, 2.4, 8.0), "nats": (2, 3.0, 4.5)}
