"""Spaces whose networks are built and timed in no time."""

import pytest

from bossnet_zoo.spaces import HyTraSpace, MBConvSpace, NatsSpace

SMALL_HYTRA = HyTraSpace(block_layers=(2, 2), base_width=8, num_classes=4, default_resolution=32)
SMALL_MBCONV = MBConvSpace(block_layers=(1, 1, 1, 2, 1), width=0.25, num_classes=4, default_resolution=32)
SMALL_NATS = NatsSpace(widths=(8, 16), default_resolution=8)
SPACES = pytest.mark.parametrize("space", [SMALL_HYTRA, SMALL_MBCONV, SMALL_NATS], ids=lambda space: space.name)
