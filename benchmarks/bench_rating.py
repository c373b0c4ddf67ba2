"""Rating all paths of a block against the naive loop: `python benchmarks/bench_rating.py [--spaces hytra] [--json]`.

The naive loop computes prefix, path and BN calibration for every path and batch, for both networks (see `naive.py`).
It takes each path on its own, so that its time is proportional to their number: it is measured on 8 paths of a block,
spread evenly from cheap to dear, and scaled. That comes to within 1 % of the whole loop, timed path by path in HyTra's
and NATS-Bench's second blocks; `--naive-paths 0` measures all. Ratings are compared for the paths that both forms
rated, among themselves.

Of more weight is that a shared core has slow seconds, which meet one form and not the other: a ratio from one run of
each lies anywhere within a tenth. Hence both forms run in turns, and a ratio is of their fastest times, on one core.

Two batches of held-out images, as here by default, are few: a real rating has hundreds, and every further one is in
the naive loop's disfavour, as it calibrates anew. NATS-Bench's prefix has layers of 32 channels, which is about the
mean of its widths: behind the widest one, as `bench_step.py` has it, the naive loop would lose more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from cases import RUNTIME, Case, Comparison, Forms, compare, draw_batch, make_cases, parse_arguments, report, studies
from naive import naive_ratings
from torch import Tensor

from bossnet_zoo.search.rating import rate_paths
from bossnet_zoo.spaces import Path

Ratings = dict[Path, float]


def make_forms(case: Case, images: int, batches: int, naive_paths: int = 0) -> Forms:
    """Both forms on the same images: a calibration batch from each pipeline, and pairs of held-out batches.

    Args:
        naive_paths: how many paths the naive form rates; 0 for all.
    """
    generator = torch.Generator().manual_seed(0)

    def batch() -> Tensor:
        return draw_batch(images, case.resolution, generator)

    calibration = [batch(), batch()]
    pairs = [(batch(), batch()) for _ in range(batches)]
    sampled = case.sample(naive_paths or len(case.paths))

    def naive() -> Ratings:
        return naive_ratings(case.siamese, case.prefix, sampled, calibration, pairs)

    def ours(paths: Sequence[Path] = case.paths) -> Ratings:
        behind = [case.prefix(views) for views in calibration]
        rated = ((case.prefix(first), case.prefix(second)) for first, second in pairs)
        return rate_paths(case.siamese, paths, behind, rated, RUNTIME).ratings

    if len(sampled) == len(case.paths):
        return Forms(naive, ours)
    return Forms(naive, ours, part=lambda: ours(sampled), scale=len(case.paths) / len(sampled))


def largest_difference(a: Ratings, b: Ratings) -> float:
    return max(abs(a[path] - b[path]) for path in a)


def main() -> None:
    arguments = parse_arguments(
        "rating all paths against the naive loop", images=4, batches=2, repeats=3, naive_paths=8
    )
    found: dict[str, list[Comparison]] = {}
    for name in arguments.spaces:
        found[name] = []
        study = studies()[name]
        for case in make_cases(study.space, study.rating_arch, study.resolution):
            forms = make_forms(case, arguments.images, arguments.batches, arguments.naive_paths)
            counted = make_forms(case, 2, arguments.batches, arguments.naive_paths)
            whole = forms.part is None
            remark = "" if whole else f"naive: {arguments.naive_paths} of {len(case.paths)} paths, scaled"
            found[name].append(compare(case.name, forms, largest_difference, arguments.repeats, counted, remark))
    report("rating of all paths", arguments, found, {name: studies()[name].rating_bar for name in found})


if __name__ == "__main__":
    main()
