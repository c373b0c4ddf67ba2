"""Every published model has a card; it is valid for the Hub, and says what the registry says."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import ModelCardData
from timm.models import get_pretrained_cfg

from bossnet_zoo.export.cards import published, published_card, render
from bossnet_zoo.spaces import HyTraArch, HyTraSpace

FOLDER = Path(__file__).parents[1] / "model_cards"


def released() -> list[str]:
    """The names with weights to download."""
    names = timm.list_models(module=["hytra", "mbconv", "nats"])
    return [name for name in names if get_pretrained_cfg(name).has_weights]


def test_there_is_a_card_for_every_published_model_and_no_other():
    assert sorted(published()) == released()
    assert sorted(file.stem for file in FOLDER.glob("*.md")) == released()


@pytest.mark.parametrize("name", released())
def test_card_is_what_template_and_data_give(name):
    text = (FOLDER / f"{name}.md").read_text()
    assert text == render(published_card(name)), "type: python -m bossnet_zoo.export.cards model_cards"


@pytest.mark.parametrize("name", released())
def test_front_matter_is_valid(name):
    card = ModelCard.load(FOLDER / f"{name}.md")
    assert isinstance(card.data, ModelCardData)
    assert (card.data.license, card.data.license_name) == ("other", "none-stated")
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert {"timm", "image-classification"} <= set(card.data.tags)
    assert card.data.datasets == ["imagenet-1k"]
    assert all(result.source_url == "https://github.com/changlin31/BossNAS" for result in card.data.eval_results)
    assert all(50 < result.metric_value < 100 for result in card.data.eval_results)
    by_metric = {(result.dataset_config, result.metric_name) for result in card.data.eval_results}
    assert len(by_metric) == len(card.data.eval_results) == 2 * len(published()[name]["evaluations"])


@pytest.mark.parametrize("name", released())
def test_data_agree_with_the_registry(name):
    entry, cfg = published()[name], get_pretrained_cfg(name)
    assert entry["file"] == cfg.url
    sizes = [evaluation["size"] for evaluation in entry["evaluations"]]
    assert sizes == [size[-1] for size in (cfg.input_size, cfg.test_input_size) if size is not None]
    # The authors put the accuracy at training size into the file's name: BossNet-T0-80_8.pth.
    digits = cfg.url.rpartition("-")[2].removesuffix(".pth").replace("_", ".")
    assert entry["evaluations"][0]["top1"] == float(digits)


@pytest.mark.parametrize("name", released())
def test_costs_agree_with_the_network_and_the_search_space(name):
    card = published_card(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    assert card.params == sum(parameter.numel() for parameter in model.parameters())
    space, arch = HyTraSpace(se=name != "bossnet_t0_nose"), HyTraArch.parse(card.architecture)
    if name != "bossnet_t1":  # its last stage has stride 1, which the space does not know
        assert card.madds == {size: space.cost(arch, size).madds for size in card.madds}
    paper = {"bossnet_t0": (3.44, 5.73), "bossnet_t0_nose": (3.44,), "bossnet_t1": (7.94, 10.51)}
    assert tuple(round(madds / 1e9, 2) for madds in card.madds.values()) == paper[name]


@pytest.mark.parametrize("name", released())
def test_card_shows_the_import_and_the_missing_licence(name):
    text = (FOLDER / f"{name}.md").read_text()
    assert "import bossnet_zoo" in text
    assert f'timm.create_model("{name}", pretrained=True)' in text
    assert "without a licence file" in text
    headings = ("Intended use", "Training", "Evaluation", "How to load", "Fine-tune", "Export", "Limits", "Citation")
    assert all(f"\n## {heading}\n" in text for heading in headings)
