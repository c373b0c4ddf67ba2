"""README's table of measurements: the rows that each script's JSON gives, as Markdown.

A bar that is missed, and a script that failed, are rows like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MARKS = ("<!-- benchmarks -->\n", "<!-- /benchmarks -->")
HEAD = "| what | measured | baseline | bar | on |\n|---|---|---|---|---|"
SPACES = {"hytra": "HyTra blocks 2-4", "mbconv": "MBConv blocks 2-5", "nats": "NATS-Bench blocks 2-3"}


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        what: was measured.
        measured: a ratio, or an absolute figure where there is nothing to compare with.
        baseline: what the ratio is to.
        bar: what it has to be; empty if nothing.
        met: whether it is.
        on: cores or device of the measurement.
    """

    what: str
    measured: str
    baseline: str = ""
    bar: str = ""
    met: bool = True
    on: str = ""

    def __str__(self) -> str:
        bar = self.bar and f"{self.bar}: {'met' if self.met else '**missed**'}"
        return f"| {self.what} | {self.measured} | {self.baseline} | {bar} | {self.on} |"


def rows_of(results: dict[str, Any]) -> list[Row]:
    """All lines of the table."""
    rows: list[Row] = []
    for script, outcome in results["scripts"].items():
        if "result" in outcome:
            rows += ROWS[script](outcome["result"])
        else:
            rows.append(Row(f"`{script}.py`", f"**failed**: {outcome['error']}", met=False))
    return rows


def markdown(results: dict[str, Any]) -> str:
    """The table, and below it what it was measured on."""
    machine, versions = results["machine"], results["versions"]
    where = machine["gpu"] or f"{machine['cores']} cores of {machine['processor']}"
    software = ", ".join(f"{name} {versions[name]}" for name in ("torch", "timm", "onnxruntime") if name in versions)
    measured = f"Measured {results['date']} on {where} ({machine['system']}), {software}"
    duration = f"`make bench` took {results['seconds'] / 60:.0f} minutes."
    return "\n".join([HEAD, *map(str, rows_of(results)), "", f"{measured}; {duration}", ""])


def require_marks(text: str) -> None:
    """Raise `ValueError` unless README's text has the marks that the table stands between."""
    if not 0 <= text.find(MARKS[0]) < text.find(MARKS[1]):
        raise ValueError(f"the text has no {MARKS[0].strip()} ... {MARKS[1]}")


def with_table(text: str, results: dict[str, Any]) -> str:
    """README's text with this table between its marks."""
    require_marks(text)
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    return before + begin + markdown(results) + end + after


# --- one function for each script


def _compared(what: str, baseline: str) -> Callable[[dict[str, Any]], Iterator[Row]]:
    def rows(result: dict[str, Any]) -> Iterator[Row]:
        for space, found in result["spaces"].items():
            ratio, bar = found["geometric_mean"], found["bar"]
            remarks = {case["remark"] for case in found["cases"]}
            scaled = " over some of the paths, scaled" if remarks - {""} else ""
            cores = f"{result['machine']['threads']} core"
            yield Row(f"{what}, {SPACES[space]}", f"{ratio:.2f}x", baseline + scaled, f"≥ {bar}x", ratio >= bar, cores)

    return rows


def _solver(result: dict[str, Any]) -> Iterator[Row]:
    bar = result["bar_seconds"]
    for name, seconds in result["seconds"].items():
        if name.endswith("best under a MAdds bound"):
            what = f"exact optimum under a MAdds bound, {name.partition(':')[0]}"
            yield Row(what, f"{seconds:.2f} s", "", f"< {bar:g} s", seconds < bar, "1 core")
    nats = result["nats"]
    same = "brute force, same optimum" if nats["same"] else "brute force, **another optimum**"
    yield Row("the same, nats (32,768)", f"{nats['ratio']:.0f}x", same, "", nats["same"], "1 core")


def _forward(result: dict[str, Any]) -> Iterator[Row]:
    cores, naive, resnet = _cores(result["threads"]), result["time_to_written_out"], result["time_per_madd_to_resnet50"]
    bars = result["bars"]
    what = "`bossnet_t0` in eager PyTorch, time"
    yield Row(
        what, f"{naive:.2f}x", "attention written out", f"≤ {bars['written out']}x", naive <= bars["written out"], cores
    )
    yield Row(
        f"{what} per MAdd",
        f"{resnet:.2f}x",
        "timm's resnet50",
        f"≤ {bars['resnet50']}x",
        resnet <= bars["resnet50"],
        cores,
    )


def _inference(result: dict[str, Any]) -> Iterator[Row]:
    for what, ratio in result["ratios"].items():
        fast, _, slow = what.partition(" / ")
        mean, bar = ratio["geometric_mean"], ratio["bar"]
        name = f"`{result['model']}` in {fast}"
        yield Row(name, f"{mean:.2f}x", slow, f"≥ {bar}x", ratio["met"], _cores(result["machine"]["threads"]))


def _data(result: dict[str, Any]) -> Iterator[Row]:
    settings = result["settings"]
    for name, rates in result["images_per_second"].items():
        figures = f"{result['device_to_workers'][name]:.2f}x: {rates['device']:.0f} images/s"
        baseline = f"--augment workers, {settings['workers']} of them: {rates['workers']:.0f} images/s"
        what = f"eight views of an image with --augment device, {name}"
        yield Row(what, figures, baseline, on=settings["device"].partition(",")[0])


def _memory(result: dict[str, Any]) -> Iterator[Row]:
    share, bar, measured = result["share"], result["share_bar"], result["measured"]
    whole = f"{result['parameters_all_blocks'] / 1e6:,.0f} M with all blocks"
    what = "parameters in memory in a HyTra search at full width"
    yield Row(what, f"{100 * share:.0f} %", whole, f"≤ {100 * bar:.0f} %", share <= bar)
    what = f"peak memory of training its last block at width {measured['base_width']}"
    baseline = f"{measured['all_blocks_mib']:,.0f} MiB with all blocks"
    yield Row(what, f"{measured['stage_mib']:,.0f} MiB", baseline, on="1 core")
    grown, allowed = measured["grown_mib"], measured["growth_bar_mib"]
    what = f"growth of that peak from step {measured['steps'] // 2} to {measured['steps']}"
    yield Row(what, f"{grown:.1f} MiB", "", f"≤ {allowed:.0f} MiB", grown <= allowed, "1 core")


def _scaling(result: dict[str, Any]) -> Iterator[Row]:
    curves = {(curve["task"], curve["space"], curve["form"]): curve for curve in result["curves"]}
    for (task, space, form), curve in curves.items():
        if form == "ours":
            others = [c for c in curves.values() if (c["task"], c["space"]) == (task, space) and c["form"] != "ours"]
            baseline = ", ".join(f"{other['form']}: n^{other['exponent']:.2f}" for other in others)
            what = f"growth of {task}, {space}, {curve['sizes'][0]:,} to {curve['sizes'][-1]:,}"
            yield Row(what, f"n^{curve['exponent']:.2f}", baseline, on="1 core")


def _cores(threads: int) -> str:
    return "1 core" if threads == 1 else f"{threads} cores"


ROWS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "bench_step": _compared("supernet step", "naive step"),
    "bench_rating": _compared("rating of all paths", "naive loop"),
    "bench_memory": _memory,
    "bench_solver": _solver,
    "bench_forward": _forward,
    "bench_inference": _inference,
    "bench_data": _data,
    "bench_scaling": _scaling,
}
