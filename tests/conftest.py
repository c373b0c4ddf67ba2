"""What several test modules need, and is worth making once: a tiny search and a tiny training, never interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
from searching import CPU
from tiny_search import tiny_settings, write_images
from tiny_training import fit, write_pictures

from bossnet_zoo.search.run import search, start_run
from bossnet_zoo.search.settings import SearchSettings


@pytest.fixture(scope="session")
def search_images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def search_settings(search_images) -> SearchSettings:
    options = {"block_layers": [1, 1], "base_width": 8, "default_resolution": 32}
    small = {"epochs": 2, "rating_every": 1, "calibration_images": 4, "max_madds": 860_000}
    return tiny_settings(search_images, space_options=options, **small)


@pytest.fixture(scope="session")
def whole_search(search_settings, tmp_path_factory) -> Path:
    """A search that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    start_run(out, search_settings, CPU, "demo")
    search(search_settings, out, CPU)
    return out


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A labelled folder, to be read only."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def whole_run(pictures, tmp_path_factory) -> Path:
    """A training run that nothing interrupted, to be read only."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    fit(pictures, out, save_every=2)
    return out
