"""The settings of a search: the paper's values, and nothing impossible."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace

import click
import pytest
from test_cli import COMMANDS

from bossnet_zoo.errors import UsageError
from bossnet_zoo.search.settings import CHOICES, DEMO, METHODS, PAPER, SearchSettings, check_options, get_preset
from bossnet_zoo.search.views import VIEWS
from bossnet_zoo.spaces import space_names

SEARCH = COMMANDS["search",]


def test_the_paper_preset_is_the_papers_setting():
    """BossNAS, section 4 and appendix A.2; BYOL for the widths of projector and predictor."""
    expected = {
        "method": "bossnas",
        "space": "hytra",
        "views": "byol",
        "resolution": 224,
        "epochs": 20,
        "warmup_epochs": 1,
        "num_paths": 4,
        "global_batch": 4096,
        "micro_batch": 64,
        "base_lr": 4.8,
        "learning_rate": 4.8,
        "weight_decay": 1e-6,
        "momentum": 0.9,
        "target_momentum": 0.99,
        "hidden": 4096,
        "projection": 256,
        "ensemble": True,
        "path_sampling": "uniform",
        "own_views": True,
        "rating_part": "search-val",
        "rating_images": None,
    }
    assert {name: getattr(PAPER, name) for name in expected} == expected
    space = PAPER.make_space()
    assert (space.count(), space.base_width, space.se) == (2_818_103, 64, False)


def test_nats_is_searched_on_cifar_for_30_epochs():
    for data in ("cifar10", "cifar100"):
        settings = get_preset("paper", "nats", data=data)
        assert (settings.epochs, settings.views, settings.resolution) == (30, "cifar", 32)
        assert settings.make_space().dataset == data


def test_the_demo_is_the_same_search_in_miniature():
    differing = {
        field.name
        for field in dataclasses.fields(SearchSettings)
        if getattr(DEMO, field.name) != getattr(PAPER, field.name)
    }
    sizes = {"space_options", "resolution", "epochs", "global_batch", "micro_batch", "hidden", "projection"}
    pace = {"base_lr", "target_momentum"}  # for a hundredth of the steps
    assert differing <= sizes | pace | {"data", "views", "calibration_images", "augment", "workers", "threads"}
    assert DEMO.learning_rate == PAPER.learning_rate == 4.8
    assert DEMO.make_space().count() == PAPER.make_space().count()


def test_the_demo_sees_photographs_as_the_paper_does():
    assert get_preset("demo").views == get_preset("demo", data="digits").views == "digits"
    assert get_preset("demo", data="photos").views == "byol"
    assert get_preset("demo", "nats", data="cifar10").views == "cifar"
    assert get_preset("demo", method="dna", teacher="resnet18", data="photos").views == "crops"
    assert get_preset("demo", data="photos", views="digits").views == "digits"


@pytest.mark.parametrize("name", ["paper", "demo"])
@pytest.mark.parametrize("space", space_names())
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_is_frozen_and_round_trips_through_json(name, space, method):
    asked = {"teacher": "test_resnet"} if method == "dna" else {}
    settings = get_preset(name, space, method, **asked)
    again = SearchSettings.from_json(json.loads(json.dumps(settings.to_json())))
    assert again == settings
    assert again.make_space() == settings.make_space()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.epochs = 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"micro_batch": 1}, "micro_batch is 1; it must be at least 2"),
        ({"calibration_images": 1}, "calibration_images is 1; it must be at least 2"),
        ({"rating_images": 1}, "rating_images is 1; it must be at least 2"),
        ({"rating_every": -1}, "rating_every is -1; it must be at least 0"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        ({"max_madds": 0}, "max_madds is 0; it must be at least 1"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; it must be at least 0"),
        ({"base_lr": 0.0}, "it must be positive"),
        ({"target_momentum": 1.5}, "target_momentum is 1.5; it must be between 0 and 1"),
        ({"views": "imagenet"}, "views is 'imagenet'; allowed: byol, digits, cifar, crops"),
        ({"path_sampling": "fairly"}, "path_sampling is 'fairly'; allowed: uniform, fair"),
        ({"coverage": "some"}, "coverage is 'some'; allowed: greedy, full"),
        ({"augment": "gpu"}, "augment is 'gpu'; allowed: workers, device"),
        ({"resolution": 16}, "resolution is 16; hytra's last stride is 32, so it must be at least that"),
        ({"views": "crops"}, "views 'crops' give one view of an image, and bossnas needs two"),
        ({"method": "dna"}, "dna needs a teacher: type --teacher resnet50"),
    ],
)
def test_impossible_values_cannot_be_made(change, said):
    with pytest.raises(UsageError) as error:
        replace(PAPER, **change)
    assert said in str(error.value)


def test_every_pipeline_of_views_may_be_chosen():
    assert set(CHOICES["views"]) == set(VIEWS)


@pytest.mark.parametrize("setting", CHOICES)
def test_the_help_of_a_choice_names_all_it_can_be_and_the_shell_completes_to_them(setting):
    (option,) = (parameter for parameter in SEARCH.params if parameter.name == setting)
    assert set(CHOICES[setting]) <= set(re.findall(r"[\w-]+", option.help))
    offered = option.shell_complete(click.Context(SEARCH), "")
    assert [item.value for item in offered] == list(CHOICES[setting])


def test_every_setting_is_an_option_of_the_search():
    options = {parameter.name for parameter in SEARCH.params}
    assert {field.name for field in dataclasses.fields(SearchSettings)} - {"space_options"} <= options


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UsageError, match="unknown preset 'papre'; did you mean paper"):
        get_preset("papre")
    with pytest.raises(UsageError, match="unknown space 'hytar'; did you mean hytra"):
        get_preset("demo", "hytar")
    with pytest.raises(UsageError, match="unknown method 'bosnas'; did you mean bossnas"):
        get_preset("demo", method="bosnas")
    with pytest.raises(UsageError, match="unknown option of the hytra space 'base_widht'; did you mean base_width"):
        get_preset("demo", space_options={"base_widht": 8})


def test_space_options_are_added_to_those_of_the_preset():
    options = get_preset("demo", space_options={"base_width": 16}).space_options
    assert options == {**DEMO.space_options, "base_width": 16}


def test_a_setting_of_another_method_is_refused():
    check_options("bossnas", ["epochs", "ensemble"])
    with pytest.raises(UsageError, match="--ensemble is an option of bossnas, not of dna; leave it out"):
        check_options("dna", ["epochs", "ensemble"])
    with pytest.raises(UsageError, match="--momentum is an option of bossnas and unnas, not of dna; leave it out"):
        check_options("dna", ["momentum"])


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 64), (8, 8), (64, 1)])
def test_accumulation_is_derived_from_the_global_batch(world_size, accumulation):
    assert PAPER.accumulation(world_size) == accumulation


def test_a_batch_that_does_not_fit_the_processes_says_which_does():
    with pytest.raises(UsageError, match=r"no multiple of 3 processes x 64 images; type --global-batch 4032$"):
        PAPER.accumulation(3)
    with pytest.raises(UsageError, match="no multiple of 2 processes x 64 images; type --micro-batch 16 too"):
        replace(PAPER, global_batch=32).accumulation(2)
