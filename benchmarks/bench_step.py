"""One step of a supernet against the naive step: `python benchmarks/bench_step.py [--spaces hytra] [--json]`.

A step is P paths with a pair of views each: prefix, forward and backward of the block, LARS, moving average. The naive
form computes the prefix for every path and for both networks, with gradients flowing through it (see `naive.py`).
Ratios are of the fastest times on one core. `--batch 0`, the default, is each space's own `step_images`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from cases import RUNTIME, Case, Comparison, Forms, compare, draw_batch, make_cases, parse_arguments, report, studies
from naive import naive_bootstrap
from timm.optim import Lars
from torch import Tensor

from bossnet_zoo.search.bootstrapping import bootstrap, parameter_groups


def make_forms(case: Case, batch: int, num_paths: int) -> Forms:
    """The naive step and ours on the same paths and views. Both leave the weights as they are: the rate is 0."""
    generator = torch.Generator().manual_seed(0)
    paths = random.Random(0).sample(case.paths, num_paths)
    first, second = ([draw_batch(batch, case.resolution, generator) for _ in paths] for _ in range(2))
    optimizer = Lars(parameter_groups(case.siamese, 1e-6), lr=0.0, momentum=0.9)

    def finish() -> None:
        optimizer.step()
        case.siamese.update_target(1.0)
        optimizer.zero_grad(set_to_none=True)
        case.prefix.zero_grad(set_to_none=True)

    def naive() -> float:
        loss = naive_bootstrap(case.siamese, case.prefix, first, second, paths)
        finish()
        return loss

    def ours() -> float:
        behind: list[Iterator[Tensor]] = [map(case.prefix, views) for views in (first, second)]
        loss = bootstrap(case.siamese, list(behind[0]), list(behind[1]), paths, RUNTIME)
        finish()
        return loss

    return Forms(naive, ours)


def main() -> None:
    arguments = parse_arguments("one supernet step against the naive step", batch=0, paths=4, repeats=3)
    found: dict[str, list[Comparison]] = {}
    for name in arguments.spaces:
        found[name] = []
        study = studies()[name]
        for case in make_cases(study.space, study.arch, study.resolution):
            forms = make_forms(case, arguments.batch or study.step_images, arguments.paths)
            counted = make_forms(case, 2, arguments.paths)
            found[name].append(compare(case.name, forms, lambda a, b: abs(a - b), arguments.repeats, counted))
    report("supernet step", arguments, found, {name: studies()[name].step_bar for name in found})


if __name__ == "__main__":
    main()
