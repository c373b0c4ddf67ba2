"""What the models cost, measured, beside what is published about them: the table in README.

`python -m bossnet_zoo.models.table README.md` writes it anew.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoint import save_text
from ..spaces import Cost

MARKS = ("<!-- models -->\n", "<!-- /models -->\n")


@dataclass(frozen=True)
class Published:
    """One line of the table: a model at a resolution.

    Attributes:
        model: registered name.
        resolution: pixels of a side.
        top1, top5: per cent on ImageNet's validation images; None where nobody has published it.
        source: whose figure it is.
    """

    model: str
    resolution: int
    top1: float
    top5: float | None
    source: str


PUBLISHED = (
    Published("bossnet_t0_nose", 224, 80.5, 95.0, "release"),
    Published("bossnet_t0", 224, 80.8, 95.2, "release"),
    Published("bossnet_t0", 288, 81.6, 95.6, "release"),
    Published("bossnet_t1", 224, 81.9, 95.6, "release (paper: 82.2)"),
    Published("bossnet_t1", 256, 82.2, 95.7, "release (paper: 82.5)"),
    Published("bossnet_m1", 224, 76.2, None, "paper, for an encoding it does not give"),
    Published("bossnet_m2", 224, 77.4, None, "paper, for an encoding it does not give"),
    Published("hytra_resnet50", 224, 78.2, None, "paper, no weights"),
    Published("hytra_botnet50", 224, 79.5, None, "paper, no weights"),
    Published("hytra_vit16", 224, 76.5, None, "paper, no weights"),
    Published("hytra_dna", 224, 80.3, None, "paper, no weights"),
    Published("hytra_unnas", 224, 79.8, None, "paper, no weights"),
    Published("hytra_random", 224, 76.7, None, "paper, no weights"),
)


def measure(model: nn.Module, resolution: int, in_chans: int = 3) -> Cost:
    """Count a network's parameters and multiply-accumulates by running its shapes, without arithmetic or memory.

    Args:
        model: any network that takes (1, in_chans, resolution, resolution); it is left as it is.
        resolution: pixels of a side.
        in_chans: channels of an image.
    """
    shadow = copy.deepcopy(model).eval().to("meta")
    for norm in shadow.modules():
        if isinstance(norm, _BatchNorm):
            norm.forward = _unchanged  # type: ignore[method-assign, assignment] # counts nothing, takes half of the time
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, in_chans, resolution, resolution, device="meta"))
    return Cost(counter.get_total_flops() // 2, sum(parameter.numel() for parameter in model.parameters()))


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


def quantity(number: int) -> str:
    """`3.44 G`, `479.5 M`."""
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.1f} M"


def markdown_table() -> str:
    """The table between README's marks."""
    lines = ["| model | parameters | MAdds | pixels | top-1 / top-5 | source |", "|---|---|---|---|---|---|"]
    for row in PUBLISHED:
        with torch.device("meta"):
            model = timm.create_model(row.model)
        cost = measure(model, row.resolution)
        accuracy = f"{row.top1} / {row.top5}" if row.top5 else f"{row.top1}"
        cells = (f"`{row.model}`", quantity(cost.params), quantity(cost.madds), row.resolution, accuracy, row.source)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """README's text with the table of today between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    assert after or text.endswith(MARKS[1]), f"README has no {MARKS}"
    return before + MARKS[0] + markdown_table() + MARKS[1] + after


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    save_text(readme, with_table(readme.read_text(encoding="utf-8")))
