"""What a weight-sharing block offers, whatever its search space.

Shapes: B images, C channels, H x W pixels, F features in front of the projector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bossnet_zoo.errors import UsageError
from bossnet_zoo.spaces import Arch, Path


class SupernetBlock(nn.Module, ABC):
    """One block of a supernet: every legal path of the block, on shared weights. The path is an argument of each call.

    A block of a new space defines `step_modules`; the rest follows, except that weights are handed on to stand-alone
    networks only if `stand_alone_state` says how.

    Attributes:
        num_features: F, the common width to which `adapt` brings the output of every path.
    """

    num_features: int

    @abstractmethod
    def step_modules(self, path: Path, index: int) -> tuple[nn.Module, ...]:
        """The modules that `step` applies one after the other; index -1 stands for `root`, len(path) for `adapt`."""

    def stand_alone_state(self, arch: Arch, path: Path) -> dict[str, Tensor]:
        """State of `path`'s modules, and of `root`, under their names in the stand-alone network of `arch`.

        Raises:
            UsageError: not defined for this space.
        """
        raise UsageError(
            f"{type(self).__name__} does not say how its weights are called in a network: define stand_alone_state"
        )

    def root(self, x: Tensor) -> Tensor:
        """What stands in front of every path's first layer: the stem in the first block, nothing in the others."""
        return self.step(x, (), -1)

    def step(self, x: Tensor, path: Path, index: int) -> Tensor:
        """Layer `index` of `path`, applied to the output of the layers before it."""
        for module in self.step_modules(path, index):
            x = module(x)
        return x

    def adapt(self, x: Tensor, path: Path) -> Tensor:
        """(B, C, H, W) -> (B, F): what the projector sees, of one width for all paths."""
        for module in self.step_modules(path, len(path)):
            x = module(x)
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor, path: Path) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'): the feature map at the end of `path`."""
        x = self.root(x)
        for index in range(len(path)):
            x = self.step(x, path, index)
        return x

    def norms(self, path: Path, index: int) -> tuple[_BatchNorm, ...]:
        """The BN layers among `step_modules`, in a fixed order."""
        return norms_of(*self.step_modules(path, index))

    def restrict_to(self, path: Path) -> None:
        """Drop what `path` does not use, adapters included, as a frozen prefix needs no more. Here: nothing."""

    def share_with(self, other: SupernetBlock) -> None:
        """Use the weights of `other`, the same block entered in another state, where both have the same layer."""


def norms_of(*modules: nn.Module) -> tuple[_BatchNorm, ...]:
    """All BN layers inside the modules, in order."""
    return tuple(child for module in modules for child in module.modules() if isinstance(child, _BatchNorm))


def state_under(name: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's state as part of a network that calls it `name`."""
    return put_under(name, module.state_dict())


def put_under(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state as part of a larger one, under `name`."""
    return {f"{name}.{key}": tensor for key, tensor in state.items()}


def keep_only(candidates: nn.Module, key: str) -> None:
    """Drop all of a layer's candidates but one."""
    assert isinstance(candidates, nn.ModuleDict)
    for other in set(candidates) - {key}:
        del candidates[other]
