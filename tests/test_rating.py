"""Rating by a tree of paths: equal to the plain loop, exact, and without side effects."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch
from naive import calibrate, naive_ratings
from searching import CPU, SETTINGS, SIDE, SPACE, lively_siamese, make_setup, pixels, tiny_prefix

from bossnet_zoo.search.bootstrapping import SiameseSupernet, distance, population_centre
from bossnet_zoo.search.prefix import FrozenPrefix
from bossnet_zoo.search.rating import PathTree, calibrating, rate_paths
from bossnet_zoo.search.stage import calibration_views, rating_views
from bossnet_zoo.search.supernets import norms_of
from bossnet_zoo.search.views import DIGIT_VIEWS, VIEWS

CALIBRATION = [pixels(6, seed) for seed in (100, 101, 102)]
BATCHES = [(pixels(5, seed), pixels(5, seed + 1)) for seed in (200, 210)]
NO_PREFIX = FrozenPrefix([], [], CPU)


def rate_block(siamese: SiameseSupernet, prefix: FrozenPrefix, paths, calibration=CALIBRATION, batches=BATCHES):
    behind = [(prefix(first), prefix(second)) for first, second in batches]
    return rate_paths(siamese, paths, [prefix(images) for images in calibration], behind, CPU)


def rate(*args, **kwargs):
    return rate_block(*args, **kwargs).ratings


@pytest.fixture(scope="module")
def second_block(tmp_path_factory):
    """Block 2 behind a frozen first block, with all its paths."""
    return lively_siamese(1, 1), tiny_prefix(tmp_path_factory.mktemp("first")), SPACE.paths(1, 1)


@pytest.fixture(scope="module")
def ratings(second_block):
    return rate(*second_block)


# --- equal to the plain loop


def test_ratings_of_the_first_block_equal_those_of_the_plain_loop():
    siamese, paths = lively_siamese(), SPACE.paths(0)
    expected = naive_ratings(copy.deepcopy(siamese), NO_PREFIX, paths, CALIBRATION, BATCHES)
    assert rate(siamese, NO_PREFIX, paths) == pytest.approx(expected, abs=2e-5)
    assert max(expected.values()) - min(expected.values()) > 0.01  # there is something to tell apart


def test_ratings_behind_a_prefix_equal_those_of_the_plain_loop(second_block, ratings):
    siamese, prefix, paths = second_block
    expected = naive_ratings(copy.deepcopy(siamese), prefix, paths, CALIBRATION, BATCHES)
    assert ratings == pytest.approx(expected, abs=2e-5)
    assert max(expected.values()) - min(expected.values()) > 0.01


def test_the_centre_is_the_mean_of_the_same_normalised_projections_as_in_training(second_block, ratings):
    """One path alone is its own centre, so its rating is what training without an ensemble would call its loss."""
    siamese, prefix, paths = second_block
    alone = rate(siamese, prefix, paths[:1])[paths[0]]
    centres = []
    for side in (0, 1):
        calibrate(siamese, siamese.target, prefix, paths[0], CALIBRATION)
        centres.append([population_centre([siamese.target(prefix(pair[side]), paths[0])]) for pair in BATCHES])
    calibrate(siamese, siamese.predict, prefix, paths[0], CALIBRATION)
    total = 0.0
    for number, pair in enumerate(BATCHES):
        for side in (0, 1):
            prediction = torch.nn.functional.normalize(siamese.predict(prefix(pair[side]), paths[0]), dim=1)
            total += (2 - 2 * (prediction * centres[1 - side][number]).sum(1)).sum().item()
    assert alone == pytest.approx(total / 10, abs=2e-5)
    assert alone != pytest.approx(ratings[paths[0]], abs=1e-3)


def test_the_distance_elsewhere_is_the_one_to_the_target_of_another_image(second_block):
    siamese, prefix, paths = second_block
    path, (first, second) = paths[0], BATCHES[0]
    rated = rate_block(siamese, prefix, [path], batches=[(first, second)])
    calibrate(siamese, siamese.target, prefix, path, CALIBRATION)
    targets = [siamese.target(prefix(images), path) for images in (second, first)]
    calibrate(siamese, siamese.predict, prefix, path, CALIBRATION)
    predictions = [siamese.predict(prefix(images), path) for images in (first, second)]
    own, others = torch.cat(predictions), torch.cat(targets)
    total = sum(distance(own[[index]], others[[index - 1]]).item() for index in range(len(own)))
    assert rated.elsewhere == pytest.approx(total / len(first), abs=2e-5)
    assert rated.elsewhere != pytest.approx(rated.ratings[path], abs=1e-3)


def test_an_image_alone_in_its_batch_is_never_another_image(second_block):
    """The last batch may be a single image; it has its ratings, and the distance elsewhere is that of the others."""
    siamese, prefix, paths = second_block
    together, alone = (BATCHES[0][0][:4], BATCHES[0][1][:4]), (BATCHES[0][0][4:], BATCHES[0][1][4:])
    expected = rate_block(siamese, prefix, paths, batches=[together]).elsewhere
    rated = rate_block(siamese, prefix, paths, batches=[together, alone])
    assert rated.elsewhere == pytest.approx(expected, rel=1e-6)
    assert rated.ratings == pytest.approx(rate(siamese, prefix, paths, batches=BATCHES[:1]), abs=1e-5)
    with pytest.raises(ValueError, match="alone in its batch"):
        rate(siamese, prefix, paths, batches=[alone])


# --- what ratings do not depend on


def test_ratings_do_not_depend_on_the_order_of_the_batches(second_block, ratings):
    siamese, prefix, paths = second_block
    assert rate(siamese, prefix, paths, batches=BATCHES[::-1]) == pytest.approx(ratings, abs=1e-6)


def test_ratings_do_not_depend_on_how_images_are_batched(second_block, ratings):
    siamese, prefix, paths = second_block
    first, second = (torch.cat([pair[side] for pair in BATCHES]) for side in (0, 1))
    ragged = list(zip(first.split([7, 1, 2]), second.split([7, 1, 2]), strict=True))
    assert rate(siamese, prefix, paths, batches=ragged) == pytest.approx(ratings, abs=1e-5)


def test_ratings_do_not_depend_on_which_paths_are_walked_first(second_block, ratings):
    siamese, prefix, paths = second_block
    shuffled = random.Random(0).sample(paths, len(paths))
    assert shuffled != list(paths)
    assert rate(siamese, prefix, shuffled) == pytest.approx(ratings, abs=1e-6)


def test_ratings_do_not_depend_on_what_was_walked_before(second_block, ratings):
    siamese, prefix, paths = second_block
    siamese.predict(prefix(pixels(6, 300)), paths[-1])
    siamese.target(prefix(pixels(6, 301)), paths[0])
    rate(siamese, prefix, paths[3:], calibration=[pixels(4, 302)])
    assert rate(siamese, prefix, paths) == ratings


# --- BN statistics


def test_every_node_has_the_statistics_of_a_training_pass(second_block):
    """The mean over the calibration batches of what BN layers see in training mode, predictor and adapter included."""
    siamese, prefix, paths = second_block
    batches = [prefix(images) for images in CALIBRATION]
    tree = PathTree(siamese.online.block, [siamese.online.projector, siamese.predictor], paths, CPU)
    tree.calibrate(batches)
    for path in (paths[0], paths[-1]):
        nodes = [(path[: index + 1], siamese.online.block.norms(path, index)) for index in range(len(path))]
        head = (*siamese.online.block.norms(path, len(path)), *norms_of(siamese.online.projector, siamese.predictor))
        calibrate(siamese, siamese.predict, NO_PREFIX, path, batches)
        for node, norms in [*nodes, ((*path, "head"), head)]:
            assert len(norms) == len(tree.statistics[node]) > 0
            for norm, (mean, variance) in zip(norms, tree.statistics[node], strict=True):
                torch.testing.assert_close(mean, norm.running_mean, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(variance, norm.running_var, rtol=1e-4, atol=1e-5)


def test_the_predictor_is_calibrated_for_each_path(second_block):
    siamese, prefix, paths = second_block
    tree = PathTree(siamese.online.block, [siamese.online.projector, siamese.predictor], paths, CPU)
    tree.calibrate([prefix(images) for images in CALIBRATION])
    means = [tree.statistics[(*path, "head")][-1][0] for path in paths]
    assert len(norms_of(siamese.predictor)) == 1
    assert all(mean.shape == siamese.predictor[1].running_mean.shape for mean in means)
    for number, mean in enumerate(means):
        assert mean.abs().max() > 1e-3  # not the zeros it starts with
        assert not any(torch.allclose(mean, other, atol=1e-4) for other in means[:number])


def test_momentum_and_mode_are_restored(second_block):
    siamese, prefix, paths = second_block
    siamese.train()
    for number, norm in enumerate(norms_of(siamese)):
        norm.momentum = 0.1 + 0.001 * number
    before = [(norm.momentum, norm.training) for norm in norms_of(siamese)]
    rate(siamese, prefix, paths)
    assert [(norm.momentum, norm.training) for norm in norms_of(siamese)] == before


def test_momentum_and_mode_are_restored_after_an_error():
    norm = torch.nn.BatchNorm1d(2).eval()

    def stop_while_calibrating():
        with calibrating([norm]):
            assert (norm.momentum, norm.training) == (None, True)
            norm(torch.zeros(1, 2))  # a single value has no variance

    with pytest.raises(ValueError, match="more than 1 value"):
        stop_while_calibrating()
    assert (norm.momentum, norm.training) == (0.1, False)


def test_rating_changes_no_weight(second_block):
    siamese, prefix, paths = second_block
    weights = {name: parameter.clone() for name, parameter in siamese.named_parameters()}
    rate(siamese, prefix, paths)
    assert all(torch.equal(weights[name], parameter) for name, parameter in siamese.named_parameters())
    assert all(parameter.grad is None for parameter in siamese.parameters())


# --- the images


def test_calibration_images_come_from_both_pipelines(tmp_path, monkeypatch):
    first = DIGIT_VIEWS[0]
    monkeypatch.setitem(VIEWS, "digits", (first, replace(first, mean=(10.0, 10.0, 10.0))))
    views = calibration_views(make_setup(tmp_path))
    assert [view.shape for view in views] == [(4, 3, SIDE, SIDE)] * 4  # 8 images, in batches of 4, seen twice
    assert [view.mean() < -10 for view in views] == [False, True, False, True]


def test_a_last_calibration_batch_of_one_image_is_left_out(tmp_path):
    setup = make_setup(tmp_path, replace(SETTINGS, calibration_images=9))
    assert [len(view) for view in calibration_views(setup)] == [4] * 4


def test_rating_views_are_fixed_for_the_whole_search(tmp_path):
    setup = make_setup(tmp_path)
    once, again = list(rating_views(setup, None)), list(rating_views(setup, None))
    assert [len(first) for first, _ in once] == [4, 4, 2]
    for pair, other in zip(once, again, strict=True):
        assert torch.equal(pair[0], other[0])
        assert torch.equal(pair[1], other[1])
        assert not torch.equal(pair[0], pair[1])


def test_no_images_to_rate_on_is_an_error(second_block):
    siamese, prefix, paths = second_block
    with pytest.raises(ValueError, match="no held-out images"):
        rate(siamese, prefix, paths, batches=[])
