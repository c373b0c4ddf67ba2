"""Commands on latency tables: build and show. Heavy imports happen inside commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bossnet_zoo import console
from bossnet_zoo.commands import AsJson, check_seed, command, complete_space, help_text, one_of, parse_options
from bossnet_zoo.console import print_json
from bossnet_zoo.errors import UsageError

if TYPE_CHECKING:
    from .latency import LatencyTable

BUILD_EXAMPLE = "bossnet latency build nats --check 5 --out latency.json"
ABOUT = "Latencies of a space on your own device, for bossnet solve."

app = typer.Typer(
    help=help_text(BUILD_EXAMPLE, ABOUT),
    short_help=ABOUT,
    no_args_is_help=True,
)


@command(app, BUILD_EXAMPLE)
def build(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_SPACE", help="Or a ratings file, or a search's folder.", autocompletion=complete_space
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The table's file.")] = Path("latency.json"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    runtime: Annotated[
        str,
        typer.Option(help="torch, onnxruntime or tensorrt.", autocompletion=one_of("torch", "onnxruntime", "tensorrt")),
    ] = "torch",
    resolution: Annotated[int | None, typer.Option(min=1, help="Pixels of a side; by default the space's own.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU; by default as many as PyTorch takes.")] = None,
    check: Annotated[int, typer.Option(min=0, help="Whole networks to compare the table with; 0 for none.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that every network has.")] = 7,
    seed: Annotated[int, typer.Option(callback=check_seed, help="Draws the networks.")] = 0,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Option of the space: se=false.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the table that --out holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a table of latencies on this device.

    Whole networks are measured too, to tell how far off the table's sums are.
    """
    from .latency_build import build_table
    from .latency_parts import find_space
    from .latency_runtimes import make_engine

    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; type another --out, or --overwrite to replace it")
    space = find_space(source, parse_options(option))
    engine = make_engine(runtime, device, threads)
    progress = out.with_name(f"{out.name}.partial")
    table = build_table(
        space,
        engine,
        resolution=resolution,
        batch=batch,
        check=check,
        rounds=rounds,
        seed=seed,
        progress=progress,
    )
    table.write(out)
    progress.unlink(missing_ok=True)
    if as_json:
        print_json(table.to_json())
    else:
        _print_check(table)
    console.note(f"written to {out}; see it: bossnet latency show {out}")
    console.note(f"next: bossnet solve --ratings RATINGS --latency-table {out} --max-latency-ms MS")


@command(app, f"{BUILD_EXAMPLE}\nbossnet latency show latency.json")
def show(
    file: Annotated[Path, typer.Argument(help="A table that bossnet latency build wrote.")],
    as_json: AsJson = False,
) -> None:
    """What a table of latencies says, and how well it holds."""
    from .latency import read_latency, words

    table = read_latency(file)
    if as_json:
        print_json(table.to_json())
        return
    print(f"{table.space.name}, {table.resolution} px, batch {table.batch}, float32; milliseconds")
    print(f"{words(table.runtime, table.versions, table.device, table.threads)}; {table.date}\n")
    rows: list[tuple[str, ...]] = [("operation", "input", "output", "ms", "spread", "timings")]
    for name, operation in table.operations.items():
        what, given, _, answer = name.split()
        figures = (f"{operation.ms:.3f}", f"{100 * operation.spread:.1f} %", f"{operation.timings}")
        rows.append((what, given, answer, *figures))
    console.print_table(rows)
    print(f"\na network takes {table.scale:.3f} x the sum, {_signed(table.offset_ms)}")
    _print_check(table)


def _signed(offset_ms: float) -> str:
    return f"{'less' if offset_ms < 0 else 'and'} {abs(offset_ms):.3f} ms"


def _print_check(table: LatencyTable) -> None:
    if table.check is None:
        print("not checked on whole networks")
        return
    about = table.check
    taus = {"Kendall tau": about["kendall"], "Spearman rho": about["spearman"]}
    order = ", ".join(f"{name} {value:.3f}" for name, value in taus.items() if value is not None)
    fastest, slowest = (pick(net["measured_ms"] for net in about["networks"]) for pick in (min, max))
    print(
        f"{len(about['networks'])} networks of {fastest:.4g} to {slowest:.4g} ms: mean relative error "
        f"{100 * about['mean_relative_error']:.2f} %,\n"
        f"largest {100 * about['largest_relative_error']:.2f} %" + (f"; {order}" if order else "")
    )
