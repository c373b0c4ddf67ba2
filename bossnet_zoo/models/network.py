"""What timm expects of a network beside its layers: head, classifier, feature maps, gradient checkpointing.

The networks of this package written in full, `hytra.HyTra` and `nats.NatsNet`, have it from here; `mbconv.MBConvNet`
has it from timm's EfficientNet.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, ClassVar

import torch.nn.functional as F
from timm.layers import create_classifier, get_act_layer
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import UsageError, require_at_least
from .weights import LoadsWeightFiles


def check_options(
    num_classes: int,
    in_chans: int,
    global_pool: str,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    act_layer: type[nn.Module] | str = "relu",
    se: bool = True,
) -> None:
    """Raise `UsageError` for an option, of those that networks share, that would fail later or mean something else."""
    require_at_least(num_classes=(num_classes, 0), in_chans=(in_chans, 1))
    for name, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if not 0 <= rate < 1:
            raise UsageError(f"{name} is {rate}; it must be at least 0 and less than 1")
    if num_classes and not global_pool:
        raise UsageError("a classifier needs pooling in front of it; give num_classes=0 beside global_pool=''")
    if not isinstance(se, bool):
        raise UsageError(f"se is {se!r}; allowed: true, false")
    activation(act_layer)


def activation(name: type[nn.Module] | str) -> type[nn.Module]:
    """timm's activation of that name. Raises `UsageError`."""
    try:
        return get_act_layer(name)
    except KeyError:
        raise UsageError(f"unknown activation {name!r}; allowed: timm's, as relu, silu, gelu or mish") from None


class Network(LoadsWeightFiles, nn.Module, abc.ABC):
    """A network that keeps timm's contract.

    A subclass makes its layers, ends them with `make_head`, and writes `forward_features`, `feature_maps`,
    `drop_layers_after` and `group_matcher`.

    Attributes:
        classifier_name: the classifier's name in the state dict.
        arch: written form of the architecture.
        num_classes: outputs of the classifier; 0 for pooled features.
        num_features, head_hidden_size: channels of the last feature map, and so inputs of the classifier.
        feature_info: for each of `feature_maps` its channels, its stride and the module that it comes from.
        grad_checkpointing: whether training recomputes the layers instead of keeping what they gave.
    """

    classifier_name: ClassVar[str]
    num_features: int
    head_hidden_size: int

    def __init__(self, arch: object, num_classes: int, in_chans: int, drop_rate: float):
        super().__init__()
        self.arch = str(arch)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []

    # --- what a subclass writes

    @abc.abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> the last feature map (B, num_features, H / stride, W / stride)."""

    @abc.abstractmethod
    def feature_maps(self, x: Tensor) -> Iterator[Tensor]:
        """Images -> the feature maps that `feature_info` lists, one after the other."""

    def last_norm(self, x: Tensor) -> Tensor:
        """What `forward_features` still does to the last of `feature_maps`; nothing by default."""
        return x

    @abc.abstractmethod
    def drop_layers_after(self, index: int, drop_norm: bool) -> None:
        """Drop what no feature map up to `index` needs; the last norm, if there is one, only with `drop_norm`."""

    @abc.abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters, from the image on, for learning rates that depend on depth."""

    # --- what it has from here

    def make_head(self, num_features: int, global_pool: str) -> None:
        """Pooling and classifier."""
        self.num_features = self.head_hidden_size = num_features
        self.global_pool, classifier = create_classifier(num_features, self.num_classes, pool_type=global_pool)
        setattr(self, self.classifier_name, classifier)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        return self.classifier_name if name_only else getattr(self, self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier where the old one was, and another pooling if given."""
        self.num_classes = num_classes
        self.make_head(self.num_features, self.global_pool.pool_type if global_pool is None else global_pool)
        getattr(self, self.classifier_name).to(next(self.parameters())).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def run(self, layers: nn.Module, x: Tensor) -> Tensor:
        """A layer or a sequence of layers; with gradient checkpointing nothing but the input of each is kept."""
        if not self.grad_checkpointing:
            return layers(x)
        return checkpoint_seq(layers if isinstance(layers, nn.Sequential) else [layers], x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature map -> logits (B, num_classes), or what the classifier sees of it (B, num_features)."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else getattr(self, self.classifier_name)(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last feature map and those of `indices`, in timm's manner; there is no `norm` to apply to them.

        Raises:
            UsageError: another `output_fmt` than NCHW.
        """
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt {output_fmt!r} is not possible for {self.arch}; allowed: NCHW")
        take, last = feature_take_indices(len(self.feature_info), indices)
        intermediates = []
        for index, feature_map in enumerate(self.feature_maps(x)):
            x = feature_map
            if index in take:
                intermediates.append(x)
            if stop_early and index == last:
                break
        return intermediates if intermediates_only else (self.last_norm(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers after the last of `indices`, and with them the classifier, which would no longer fit."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        shortened = last + 1 < len(self.feature_info)
        self.drop_layers_after(last, drop_norm=prune_norm or shortened)
        if prune_head or shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return take
