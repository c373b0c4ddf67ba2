"""Every registered name keeps timm's contract for models.

A `network` is narrow: the same layers with fewer channels, which differ in nothing that the contract speaks of. With
`-m slow` the same tests run at full width too.
"""

from __future__ import annotations

import json
import math

import huggingface_hub.constants
import pytest
import timm
import torch
from timm.models import group_parameters, save_for_hf
from timm.optim import param_groups_layer_decay

from bossnet_zoo import models
from bossnet_zoo.errors import UsageError

NAMES = models.model_names()
NATS = models.model_names("nats")
OPTIONS = {"hytra": {"base_width": 8}, "mbconv": {"width": 0.25}, "nats": {"arch": "8:16:8:24:16"}}
NARROW = {name: options for module, options in OPTIONS.items() for name in timm.list_models(module=module)}
each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(params=["narrow", pytest.param("full", marks=pytest.mark.slow)])
def network(request):
    """Makes networks of their own; no weights are zero, as those of the last BN of a block are at first."""

    def make(name: str, **options) -> torch.nn.Module:
        width = NARROW[name] if request.param == "narrow" else {}
        torch.manual_seed(0)
        model = timm.create_model(name, **{**width, **options})
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.uniform_(0.5, 1)
        return model.eval()

    return make


def images(name: str, batch: int = 2, in_chans: int = 3, side: int | None = None) -> torch.Tensor:
    side = side or (32 if name in NATS else 64)
    return torch.rand(batch, in_chans, side, side, generator=torch.Generator().manual_seed(1))


def test_all_names_of_the_design_are_registered():
    released = ["bossnet_t0", "bossnet_t0_nose", "bossnet_t1", "bossnet_m1", "bossnet_m2"]
    compared = ["hytra_resnet50", "hytra_botnet50", "hytra_vit16", "hytra_dna", "hytra_unnas", "hytra_random"]
    generic = ["hytra", "mbconv", "nats_size", "test_bossnet_t", "test_bossnet_m"]
    assert sorted(released + compared + generic) == NAMES


@each_name
@torch.inference_mode()
def test_forward_is_features_then_head(name):
    model, x = timm.create_model(name).eval(), images(name, 1)  # at full width
    logits, features = model(x), model.forward_features(x)
    assert logits.shape == (1, model.num_classes)
    assert logits.isfinite().all()
    assert features.shape[1] == model.num_features
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (1, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(hidden), logits)
    assert model.get_classifier() is model.get_submodule(model.pretrained_cfg["classifier"])
    assert isinstance(model.get_submodule(model.pretrained_cfg["first_conv"]), torch.nn.Conv2d)


# --- gradients


@each_name
def test_backward_reaches_every_parameter(network, name):
    model = network(name, num_classes=7).train()
    model(images(name)).mean().backward()
    without = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert not without


@each_name
def test_grad_checkpointing_gives_the_same_gradients(network, name):
    gradients = []
    for checkpointing in (False, True):
        model = network(name)
        model.set_grad_checkpointing(checkpointing)
        model(images(name)).square().mean().backward()
        gradients.append({key: value.grad for key, value in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-6, msg=key)


@each_name
def test_grad_checkpointing_recomputes_instead_of_keeping(network, name):
    kept = []
    for checkpointing in (False, True):
        model, sizes = network(name), []
        model.set_grad_checkpointing(checkpointing)

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(images(name))
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


@each_name
def test_layer_groups_cover_all_parameters_in_order(network, name):
    model = network(name)
    names = [key for key, _ in model.named_parameters()]
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse))
        assert sorted(key for keys in groups.values() for key in keys) == sorted(names)
        assert groups[0][0] == names[0]  # the stem learns slowest
        assert names[-1] in groups[max(groups)]
    scales = [group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.5)]
    assert max(scales) == 1
    assert len(set(scales)) > 5


# --- features


@each_name
@torch.inference_mode()
def test_features_only_gives_what_feature_info_says(network, name):
    x = images(name)
    choices = ({"out_indices": (0, 2)}, {"out_indices": (-1,)}, {"feature_cls": "getter"}, {"feature_cls": "hook"})
    for options in ({}, *choices):
        model = network(name, features_only=True, **options)
        outputs = model(x)
        assert len(outputs) == len(model.feature_info.out_indices)
        for output, channels, reduction in zip(
            outputs, model.feature_info.channels(), model.feature_info.reduction(), strict=True
        ):
            assert output.shape == (2, channels, *[math.ceil(x.shape[-1] / reduction)] * 2)
    assert len(network(name, features_only=True)(x)) >= 3


@each_name
@torch.inference_mode()
def test_intermediates_are_the_features(network, name):
    model, x = network(name), images(name)
    last, intermediates = model.forward_intermediates(x)
    torch.testing.assert_close(last, model.forward_features(x))
    assert [tensor.shape[1] for tensor in intermediates] == [info["num_chs"] for info in model.feature_info]
    (alone,) = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(alone, intermediates[1])
    listed = network(name, features_only=True, out_indices=tuple(range(len(model.feature_info))))(x)
    for one, other in zip(listed, intermediates, strict=True):
        torch.testing.assert_close(one, other)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(x)[1], intermediates)


@each_name
@torch.inference_mode()
def test_pruning_keeps_the_intermediates_asked_for(network, name):
    model, x = network(name), images(name)
    whole = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.7 * size
    kept = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    for one, other in zip(kept, whole, strict=True):
        assert torch.equal(one, other)
    assert model.forward_features(x).shape[1] == model.num_features == model.feature_info[1]["num_chs"]
    assert model.num_classes == 0


# --- variations


@each_name
@torch.inference_mode()
def test_classifier_resets(network, name):
    model, x = network(name), images(name)
    model.reset_classifier(5)
    assert model.num_classes == 5
    assert model(x).shape == (2, 5)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(x).ndim == 4
    assert network(name, num_classes=0, global_pool="")(x).ndim == 4
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)


@each_name
@torch.inference_mode()
def test_output_at_the_declared_size_is_as_declared(network, name):
    model = network(name)
    side = model.pretrained_cfg["input_size"][-1]
    assert model.forward_features(images(name, 1, side=side)).shape[-2:] == model.pretrained_cfg["pool_size"]


@each_name
@torch.inference_mode()
@pytest.mark.parametrize("in_chans", [1, 4])
def test_in_chans(network, name, in_chans):
    model = network(name, in_chans=in_chans)
    assert model(images(name, in_chans=in_chans)).isfinite().all()
    with pytest.raises(RuntimeError):
        model(images(name))


@each_name
@torch.inference_mode()
def test_odd_sides_are_accepted(network, name):
    x = torch.rand(2, 3, 65, 47)
    assert network(name)(x).isfinite().all()


@each_name
@torch.inference_mode()
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_is_kept_or_refused(network, name, output_stride):
    plain = network(name)
    starts_late = plain.arch.startswith("16") and output_stride == 8
    if name in NATS or starts_late:
        with pytest.raises(UsageError, match=f"output_stride {output_stride} is not possible for .*; allowed: "):
            network(name, output_stride=output_stride)
        return
    model = network(name, output_stride=output_stride)
    reduction = min(output_stride, plain.feature_info[-1]["reduction"])
    assert model.forward_features(images(name)).shape[-1] == 64 // reduction
    assert max(info["reduction"] for info in model.feature_info) == reduction
    assert model.state_dict().keys() == plain.state_dict().keys()


@each_name
def test_an_unheard_of_output_stride_is_refused(network, name):
    with pytest.raises(UsageError, match="output_stride 5 is not possible"):
        network(name, output_stride=5)


# --- formats


@each_name
@torch.inference_mode()
def test_channels_last_changes_nothing(network, name):
    model, x = network(name), images(name)
    expected = model(x)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    assert model.forward_features(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@each_name
@torch.inference_mode()
def test_bf16_is_close(network, name):
    model, x = network(name), images(name)
    expected = model.forward_features(x).flatten()
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model.forward_features(x).flatten().float()
    cast = model.bfloat16().forward_features(x.bfloat16()).flatten().float()
    for output in (autocast, cast):
        assert torch.nn.functional.cosine_similarity(output, expected, dim=0) > 0.99


@each_name
def test_torch_export_keeps_the_batch_free(network, name):
    model = network(name)
    batch = torch.export.Dim("batch", min=1, max=8)
    with torch.no_grad():
        program = torch.export.export(model, (images(name),), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(images(name, 3)), model(images(name, 3)))


@pytest.mark.parametrize("network", ["narrow"], indirect=True)
@each_name
@torch.inference_mode()
def test_torch_compile_sees_one_graph(network, name):
    model, x = network(name), images(name)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["narrow"], indirect=True)
@each_name
@torch.inference_mode()
def test_torch_compile_gives_the_same_logits(network, name):
    model, x = network(name), images(name)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-4)


# --- files


@pytest.fixture
def saved(tmp_path):
    """Saves a model as on the Hub, in a local folder that is also the Hub's cache; gives both names and the cache."""

    def save(model: torch.nn.Module) -> tuple[str, str, str]:
        repository = tmp_path / "models--someone--net"
        snapshot = repository / "snapshots" / ("0" * 40)
        save_for_hf(model, snapshot, safe_serialization=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        return f"local-dir:{snapshot}", "hf-hub:someone/net", str(tmp_path)

    return save


@each_name
@torch.inference_mode()
def test_saved_models_come_back(network, name, saved, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model, x = network(name, num_classes=6), images(name)
    local, hub, cache = saved(model)
    for source in (local, hub):
        loaded = timm.create_model(source, pretrained=True, cache_dir=cache).eval()
        assert type(loaded) is type(model)
        assert torch.equal(loaded(x), model(x))
        assert loaded.pretrained_cfg["architecture"] == name
    other = timm.create_model(local, pretrained=True, num_classes=3, in_chans=1).eval()
    assert other(images(name, in_chans=1)).shape == (2, 3)
    features = timm.create_model(local, pretrained=True, features_only=True).eval()
    torch.testing.assert_close(features(x)[-1], model.forward_intermediates(x)[1][-1])


def test_saved_config_can_be_read_by_others(network, saved):
    local, *_ = saved(network("bossnet_t0", num_classes=6))
    with open(local.removeprefix("local-dir:") + "/config.json", encoding="utf-8") as file:
        config = json.load(file)
    assert config["architecture"] == "bossnet_t0"
    assert config["num_classes"] == 6
    assert config["pretrained_cfg"]["custom_load"] is False
    assert config["pretrained_cfg"]["interpolation"] == "bicubic"
