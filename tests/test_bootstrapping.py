"""Ensemble bootstrapping: the loss, its gradients, the moving average, LARS and the schedules, against arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from searching import CPU, SETTINGS, SPACE, lively_siamese, make_setup, pixels, tiny_prefix, trained_parameters
from timm.optim import Lars
from torch import nn

from bossnet_zoo.models.hytra_layers import ResAtt
from bossnet_zoo.search.bootstrapping import (
    SiameseSupernet,
    bootstrap,
    distance,
    parameter_groups,
    population_centre,
    target_momentum,
)
from bossnet_zoo.search.prefix import FrozenPrefix, Stage
from bossnet_zoo.search.settings import DEMO, PAPER
from bossnet_zoo.search.stage import BlockTraining
from bossnet_zoo.search.supernets import make_block, norms_of

PATHS = [SPACE.parse_path(0, text) for text in ("4c", "16a", "32c")]


def views(seed: int, batch: int = 6) -> list[torch.Tensor]:
    """One view for each path."""
    return [pixels(batch, seed + number) for number in range(len(PATHS))]


def normalise(projection: torch.Tensor) -> np.ndarray:
    rows = projection.detach().double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def gradients(siamese: SiameseSupernet) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in siamese.named_parameters() if p.grad is not None}


# --- the loss


@pytest.mark.parametrize("ensemble", [True, False], ids=["ensemble", "no ensemble"])
def test_loss_equals_arithmetic(ensemble):
    siamese, first, second = lively_siamese(), views(0), views(10)
    targets = [
        [normalise(siamese.target(x, path)) for x, path in zip(side, PATHS, strict=True)] for side in (first, second)
    ]
    predictions = [
        [normalise(siamese.predict(x, path)) for x, path in zip(side, PATHS, strict=True)] for side in (first, second)
    ]
    expected = []
    for side in (0, 1):
        for index in range(len(PATHS)):
            others = targets[1 - side] if ensemble else [targets[1 - side][index]]
            centre = sum(others) / len(others)
            centre /= np.linalg.norm(centre, axis=1, keepdims=True)
            expected.append(np.mean(2 - 2 * (predictions[side][index] * centre).sum(1)))
    loss = bootstrap(siamese, first, second, PATHS, CPU, ensemble=ensemble)
    assert loss == pytest.approx(2 * np.mean(expected), rel=1e-5)


def test_ensemble_target_is_the_mean_of_normalised_projections():
    projections = [torch.randn(5, 7) * scale for scale in (0.01, 1.0, 100.0)]
    expected = sum(normalise(projection) for projection in projections) / 3
    np.testing.assert_allclose(population_centre(projections).numpy(), expected, rtol=1e-5, atol=1e-7)


def test_distance_is_zero_for_equal_and_four_for_opposite_directions():
    a = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    b = torch.tensor([[6.0, 8.0], [-3.0, -4.0], [4.0, -3.0]])
    assert distance(a, b).tolist() == pytest.approx([0.0, 4.0, 2.0], abs=1e-6)


def test_target_receives_no_gradient():
    siamese = lively_siamese()
    before = {name: tensor.clone() for name, tensor in siamese.target.named_parameters()}
    bootstrap(siamese, views(0), views(10), PATHS, CPU)
    assert all(parameter.grad is None for parameter in siamese.target.parameters())
    assert not any(parameter.requires_grad for parameter in siamese.target.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in siamese.target.named_parameters())


def test_gradients_of_all_paths_add_up():
    """Without the ensemble, a step of P paths is P steps of one path, up to the moment when the optimiser moves."""
    together, apart = lively_siamese(), lively_siamese()
    first, second = views(0), views(10)
    bootstrap(together, first, second, PATHS, CPU, ensemble=False)
    for index in range(len(PATHS)):
        bootstrap(apart, [first[index]], [second[index]], [PATHS[index]], CPU, ensemble=False)
    expected = gradients(apart)
    assert gradients(together).keys() == expected.keys()
    for name, gradient in gradients(together).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_only_the_sampled_paths_receive_gradients():
    siamese = lively_siamese()
    bootstrap(siamese, views(0)[:2], views(10)[:2], PATHS[:2], CPU)
    block = siamese.online.block
    used = {
        id(p)
        for path in PATHS[:2]
        for index in (-1, 0, 1)
        for m in block.step_modules(path, index)
        for p in m.parameters()
    }
    assert used == {id(p) for p in block.parameters() if p.grad is not None and p.grad.any()}


def test_micro_batches_weigh_as_their_share():
    siamese, scaled = lively_siamese(), lively_siamese()
    bootstrap(siamese, views(0), views(10), PATHS, CPU)
    loss = bootstrap(scaled, views(0), views(10), PATHS, CPU, share=0.25)
    assert loss > 0
    for name, gradient in gradients(scaled).items():
        torch.testing.assert_close(4 * gradient, gradients(siamese)[name], rtol=1e-5, atol=1e-7)


# --- the moving average


def test_the_moving_average_covers_all_that_the_target_uses():
    siamese = lively_siamese()
    online = {name: tensor.clone() for name, tensor in siamese.online.named_parameters()}
    before = {name: tensor.clone() for name, tensor in siamese.target.named_parameters()}
    siamese.update_target(0.9)
    used = set()
    for path in SPACE.paths(0):
        for index in (-1, 0, 1):
            for module in siamese.target.block.step_modules(path, index):
                used |= {id(parameter) for parameter in module.parameters()}
    used |= {id(parameter) for parameter in siamese.target.projector.parameters()}
    assert used == {id(parameter) for parameter in siamese.target.parameters()}
    for name, tensor in siamese.target.named_parameters():
        torch.testing.assert_close(tensor.data, 0.9 * before[name] + 0.1 * online[name])
        assert not torch.equal(tensor, before[name])
    assert all(torch.equal(online[name], tensor) for name, tensor in siamese.online.named_parameters())


def test_the_moving_average_touches_only_the_block_in_training(tmp_path):
    prefix = tiny_prefix(tmp_path)
    training = BlockTraining(make_setup(tmp_path), Stage(1, 1), prefix)
    frozen = {id(parameter) for parameter in prefix.parameters()}
    assert not frozen & {id(parameter) for parameter in training.siamese.parameters()}
    assert {name for name, _ in training.siamese.target.named_parameters()} == {
        name for name, _ in training.siamese.online.named_parameters()
    }


def test_target_momentum_goes_from_its_base_to_one_by_cosine():
    assert target_momentum(0, 100, 0.99) == pytest.approx(0.99)
    assert target_momentum(50, 100, 0.99) == pytest.approx(0.995)
    assert target_momentum(25, 100, 0.99) == pytest.approx(1 - 0.01 * (math.cos(math.pi / 4) + 1) / 2)
    assert target_momentum(100, 100, 0.99) == pytest.approx(1.0)


# --- LARS


def test_every_trainable_parameter_is_in_exactly_one_group_by_type_of_its_module():
    siamese = lively_siamese(1, 1)
    adapted, plain = parameter_groups(siamese, 1e-6)
    in_norms = {id(p) for norm in norms_of(siamese.online, siamese.predictor) for p in norm.parameters()}
    biases = {id(p) for name, p in trained_parameters(siamese).items() if name.endswith("bias")}
    everything = [id(p) for p in trained_parameters(siamese).values()]
    assert sorted(map(id, adapted["params"] + plain["params"])) == sorted(everything)
    assert {id(p) for p in plain["params"]} == in_norms | biases
    assert all(p.ndim >= 2 for p in adapted["params"])
    assert (adapted["weight_decay"], adapted["always_adapt"]) == (1e-6, True)
    assert (plain["weight_decay"], plain["always_adapt"]) == (0.0, False)


@pytest.mark.parametrize("weight_decay", [1e-2, 0.0])
def test_lars_equals_arithmetic(weight_decay):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = Lars(parameter_groups(net, weight_decay), lr=0.5, momentum=0.9)
    weights = {name: p.detach().double().numpy().copy() for name, p in net.named_parameters()}
    speed = {name: np.zeros_like(weight) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for name, parameter in net.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            gradient = parameter.grad.double().numpy().copy()
            if name == "0.weight":  # the trust ratio, You et al., arXiv 1708.03888
                norm = np.linalg.norm(weights[name])
                ratio = 0.001 * norm / (np.linalg.norm(gradient) + weight_decay * norm)
                gradient = ratio * (gradient + weight_decay * weights[name])
            speed[name] = 0.9 * speed[name] + gradient
            weights[name] -= 0.5 * speed[name]
        optimizer.step()
        for name, parameter in net.named_parameters():
            np.testing.assert_allclose(parameter.detach().numpy(), weights[name], rtol=1e-5, atol=1e-7)


def test_a_zero_initialised_gamma_moves_so_that_attention_trains():
    torch.manual_seed(0)
    siamese = SiameseSupernet(make_block(SPACE, 0, None), hidden=16, out_features=8).train()
    path = SPACE.parse_path(0, "16a")
    candidate = siamese.online.block.step_modules(path, 0)[-1]
    assert isinstance(candidate, ResAtt)
    assert not candidate.net[5].weight.any()
    optimizer = Lars(parameter_groups(siamese, 1e-6), lr=0.5, momentum=0.9)
    query_key_value = candidate.net[1].to_qkv.weight
    before = query_key_value.clone()
    for _ in range(2):  # the first step moves gamma; only then does a gradient reach what lies before it
        optimizer.zero_grad()
        bootstrap(siamese, [pixels(6, 0)], [pixels(6, 1)], [path], CPU)
        optimizer.step()
    assert candidate.net[5].weight.all()
    assert not torch.equal(before, query_key_value)


# --- the learning rate


def test_the_rate_scales_linearly_with_the_batch():
    assert PAPER.learning_rate == pytest.approx(4.8)
    assert replace(PAPER, global_batch=1024).learning_rate == pytest.approx(1.2)
    assert DEMO.learning_rate == pytest.approx(DEMO.base_lr * DEMO.global_batch / 4096)


def test_the_rate_warms_up_for_one_epoch_and_falls_to_zero_by_cosine(tmp_path):
    settings = replace(SETTINGS, epochs=4, global_batch=4, base_lr=4096.0)  # 6 steps an epoch, peak 4
    training = BlockTraining(make_setup(tmp_path, settings), Stage(0, None), FrozenPrefix([], [], CPU))
    assert training.num_steps == 24
    rates = []
    for step in range(25):
        training.schedule.step_update(step)
        rates += {group["lr"] for group in training.optimizer.param_groups}
    expected = [4 * step / 6 for step in range(6)]
    expected += [2 * (1 + math.cos(math.pi * step / 18)) for step in range(19)]
    assert rates == pytest.approx(expected, abs=1e-9)
