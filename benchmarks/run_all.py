"""Every benchmark, one after the other: `python benchmarks/run_all.py`, or `make bench`; in less than 15 minutes.

Writes `benchmarks/results.json`, `benchmarks/scaling.png`, and the table between README's marks. A script that fails,
or takes longer than it may, is in the table as such. Exit code 1 if a script failed or a bar was missed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine
import table

from bossnet_zoo.checkpoint import save_json, save_text

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results.json"

# What is given to each script besides --json, so that all of them take less than 15 minutes on two cores.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "bench_step": ("--repeats", "2"),
    "bench_rating": ("--repeats", "2"),
    "bench_memory": ("--base-width", "16"),
    "bench_solver": (),
    "bench_forward": (),
    "bench_inference": ("--seconds", "10"),
    "bench_data": (),
    "bench_scaling": ("--plot", str(HERE / "scaling.png")),
}
LIMIT = 600  # seconds for one script


def run_script(name: str, arguments: tuple[str, ...], limit: float = LIMIT) -> dict[str, Any]:
    """What a script printed as JSON, under `result`, or the last line of its complaint, under `error`."""
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments, "--json"]
    started = time.perf_counter()
    outcome: dict[str, Any] = {"arguments": [*map(_relative, arguments), "--json"]}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        outcome["result"] = json.loads(done.stdout)  # printed whether or not the bars are met
    except subprocess.TimeoutExpired:
        outcome["error"] = f"took longer than {limit:g} s"
    except json.JSONDecodeError:
        complaint = done.stderr.strip().splitlines() or ["no output"]
        outcome["error"] = f"exit code {done.returncode}, {complaint[-1]}".replace("|", "/")
    return {**outcome, "seconds": round(time.perf_counter() - started, 1)}


def _relative(argument: str) -> str:
    path = Path(argument)
    return str(path.relative_to(HERE.parent)) if path.is_relative_to(HERE.parent) else argument


def run_all(names: list[str]) -> dict[str, Any]:
    """The results of all scripts, and what they were measured on."""
    started = time.perf_counter()
    scripts = {}
    for name in names:
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        scripts[name] = run_script(name, SCRIPTS[name])
        print(
            f"{scripts[name]['seconds']:.0f} s{', ' * ('error' in scripts[name])}{scripts[name].get('error', '')}",
            file=sys.stderr,
        )
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "seconds": round(time.perf_counter() - started, 1),
        "scripts": scripts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), help="print these, and write nothing")
    arguments = parser.parse_args()
    table.require_marks(README.read_text(encoding="utf-8"))  # before minutes are spent
    results = run_all(arguments.only or list(SCRIPTS))
    if not arguments.only:
        save_json(RESULTS, results)
        save_text(README, table.with_table(README.read_text(encoding="utf-8"), results))
    print(table.markdown(results))
    raise SystemExit(0 if all(row.met for row in table.rows_of(results)) else 1)


if __name__ == "__main__":
    main()
