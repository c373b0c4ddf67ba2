"""How long the exact solver takes, on one core: `python benchmarks/bench_solver.py [--ratings FILE] [--json]`.

Every case searches a whole space; the bar is two seconds under a MAdds bound over all 68,719,476,736 MBConv and
2,818,103 HyTra architectures. The last lines compare with brute force where that is possible, and check that both
find the same. Ratings are drawn from a seeded normal distribution, unless a file of MBConv ratings is given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

from drawn import draw_ratings  # noqa: E402 (threads are set first)

from bossnet_zoo.search.rating_table import RatingTable, read_ratings  # noqa: E402
from bossnet_zoo.search.solver import pareto, solve  # noqa: E402
from bossnet_zoo.spaces import HyTraSpace, MBConvSpace, NatsSpace, Space  # noqa: E402

REPEATS = 5
BAR_SECONDS = 2.0


def seconds(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median processor time of a call."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def lower_quartile(space: Space, cost: str) -> int:
    """A bound that a quarter of the space meets, by 400 samples."""
    generator = random.Random(1)
    costs = sorted(getattr(space.cost(space.sample(generator)), cost) for _ in range(400))
    return costs[100]


def brute_force(space: NatsSpace, table: RatingTable, max_madds: int) -> str:
    """The best architecture of the size space, by scoring all 32,768."""
    archs = (space.parse(":".join(map(str, widths))) for widths in itertools.product(space.widths, repeat=5))
    within = (arch for arch in archs if space.cost(arch).madds <= max_madds)
    return str(min(within, key=lambda arch: table.score(space, arch)))


def run(ratings: Path | None) -> dict[str, Any]:
    """All cases: seconds by name, and the comparison with brute force."""
    cases = {}
    for space in (MBConvSpace(), HyTraSpace()):
        table = read_ratings(ratings) if ratings and space.name == "mbconv" else draw_ratings(space)
        madds, params = lower_quartile(space, "madds"), lower_quartile(space, "params")
        calls = {
            "best": lambda s=space, t=table: solve(s, t),
            "best under a MAdds bound": lambda s=space, t=table, m=madds: solve(s, t, max_madds=m),
            "ten best under bounds of MAdds and parameters": lambda s=space, t=table, m=madds, p=params: solve(
                s, t, max_madds=m, max_params=p, top=10
            ),
            "Pareto front of score and MAdds": lambda s=space, t=table: pareto(s, t),
        }
        for name, call in calls.items():
            cases[f"{space.name} ({space.count():,}): {name}"] = seconds(call)
    space = NatsSpace()
    table, bound = draw_ratings(space), lower_quartile(space, "madds")
    same = str(solve(space, table, max_madds=bound)[0].arch) == brute_force(space, table, bound)
    solver = seconds(lambda: solve(space, table, max_madds=bound))
    naive = seconds(lambda: brute_force(space, table, bound), repeats=1)
    nats = {"solver_seconds": solver, "brute_force_seconds": naive, "ratio": naive / solver, "same": same}
    bounded = [time for name, time in cases.items() if name.endswith("a MAdds bound")]
    return {"seconds": cases, "nats": nats, "bar_seconds": BAR_SECONDS, "passed": same and max(bounded) < BAR_SECONDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratings", type=Path, help="a file of MBConv ratings")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    result = run(arguments.ratings)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    raise SystemExit(0 if result["passed"] else 1)


def show(result: dict[str, Any]) -> None:
    """The result in lines for people."""
    for name, time_taken in result["seconds"].items():
        print(f"{time_taken:7.3f} s  {name}")
    nats = result["nats"]
    print(f"{nats['solver_seconds']:7.3f} s  nats (32,768): best under a MAdds bound")
    print(f"{nats['brute_force_seconds']:7.3f} s  the same by brute force: {nats['ratio']:.0f}x, same: {nats['same']}")
    print(f"{'passed' if result['passed'] else 'FAILED'}: under a MAdds bound in less than {BAR_SECONDS:g} s")


if __name__ == "__main__":
    main()
