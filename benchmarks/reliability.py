"""README's reliability table, from what `make stress` counted: `python benchmarks/reliability.py runs/stress.json`.

Keeps the counts as `benchmarks/stress.json` and writes the table between README's marks. Whatever was lost is in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bossnet_zoo.checkpoint import load_json, save_json, save_text

HERE = Path(__file__).parent
README, COUNTS = HERE.parent / "README.md", HERE / "stress.json"
MARKS = ("<!-- stress -->\n", "<!-- /stress -->")


def markdown(counts: dict[str, Any]) -> str:
    """One line for each kind of fault, and below them where and how long it was tried."""
    lines = ["| fault | tried | survived | lost |", "|---|---:|---:|---:|"]
    for row in counts["faults"]:
        lost = f"**{row['lost']}**" if row["lost"] else "0"
        lines.append(f"| {row['fault']} | {row['tried']:,} | {row['survived']:,} | {lost} |")
    failed = f"; {counts['failed_tests']} of its tests failed" if counts["failed_tests"] else ""
    return "\n".join(
        [*lines, "", f"Counted by `make stress` in {counts['minutes']:.0f} minutes on {counts['machine']}{failed}.", ""]
    )


def with_table(text: str, counts: dict[str, Any]) -> str:
    """README's text with this table between its marks. Raises `ValueError` where it has none."""
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise ValueError(f"the text has no {MARKS[0].strip()} ... {MARKS[1]}")
    return before + begin + markdown(counts) + end + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", type=Path, help="the file that make stress wrote: runs/stress.json")
    counts = load_json(parser.parse_args().counts, "counts of make stress")
    text = with_table(README.read_text(encoding="utf-8"), counts)
    save_json(COUNTS, counts)
    save_text(README, text)
    print(markdown(counts))


if __name__ == "__main__":
    main()
