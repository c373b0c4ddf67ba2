"""What the tests of `bossnet_zoo.export` share: small networks whose every part matters, made once."""

from __future__ import annotations

import functools

import numpy as np
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bossnet_zoo.export.graph import GraphOptions, Traced, trace
from bossnet_zoo.export.metadata import Metadata


def lively(name: str, **options) -> nn.Module:
    """A network whose every branch counts: residual branches are initialised to zero, which would hide a fault."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits as (N, 3, 32, 32) normalised images, and their labels, in a fixed random order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    images = torch.from_numpy(data.images[order].astype(np.float32))[:, None].expand(-1, 3, -1, -1)
    images = nn.functional.interpolate(images / 16, size=32, mode="bilinear")
    return (images - 0.5) / 0.25, torch.from_numpy(data.target[order])


@functools.cache
def trained(name: str = "test_bossnet_t", epochs: int = 4) -> nn.Module:
    """A tiny network that knows the digits: trained on the first 1,300, the rest are for testing."""
    images, labels = digits()
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    batch = 64
    optimizer = torch.optim.AdamW(model.parameters())
    steps = epochs * -(-1300 // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(1300).split(batch):
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@functools.cache
def traced(opset: int = 20, name: str = "test_bossnet_t", epochs: int = 4) -> Traced:
    """The trained network as a graph."""
    model = trained(name, epochs)
    metadata = Metadata.of(model, input_size=(3, 32, 32), class_names=tuple("0123456789"))
    return trace(model, metadata, GraphOptions(opset=opset))


def calibration(count: int = 128, batch: int = 32) -> list[np.ndarray]:
    """Images that the network was trained on, in batches."""
    return [part.numpy() for part in digits()[0][:count].split(batch)]


def unseen(batch: int = 71) -> list[np.ndarray]:
    """Images that it was not trained on, in batches."""
    return [part.numpy() for part in digits()[0][1300:].split(batch)]
