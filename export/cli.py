"""Commands of `bossnet_zoo.export`, mounted by `bossnet_zoo.cli`. Heavy imports happen inside commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bossnet_zoo import console
from bossnet_zoo.checkpoint import check_folder, removing_empty
from bossnet_zoo.commands import TRAIN_EXAMPLE, AsJson, NetworkOptions, Weights, command, complete_model, parse_options
from bossnet_zoo.console import print_json
from bossnet_zoo.errors import BossNetError, DownloadError, NoWeightsError, UsageError

if TYPE_CHECKING:
    from .pipeline import Request
    from .report import ExportReport
    from .tensorrt import EngineReport

app = typer.Typer()

MODEL = "A run's folder, one of its .safetensors, a timm name, or an architecture."
Untrained = Annotated[bool, typer.Option("--untrained", help="Fresh random weights: enough to measure speed.")]
Calib = Annotated[
    str | None, typer.Option(metavar="DATA", help="Images that show INT8 the range of values; others are compared on.")
]


@command(app, "bossnet export bossnet_m1 --untrained --out deploy")
def export(
    model: Annotated[str | None, typer.Argument(help=MODEL, autocompletion=complete_model)] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="An ONNX file; the default where nothing is chosen.")] = False,
    trt: Annotated[bool, typer.Option("--trt", help="A TensorRT engine for this machine's GPU.")] = False,
    trt_rtx: Annotated[bool, typer.Option("--trt-rtx", help="An engine for RTX GPUs; built without one.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit convolutions and linear layers; needs --calib.")] = False,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="Images at once: 8 for always 8; 1:8:64 for 1 to 64, an engine best at 8. By default any, and 1:8:64 "
            "of an engine.",
        ),
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Take images of any size within --sizes.")
    ] = False,
    sizes: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Sides in pixels, 160:224:288; by default half to double.")
    ] = None,
    input_size: Annotated[int | None, typer.Option(help="Pixels of a side; by default the network's own.")] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            help="Version of ONNX's operators, 18 to 25. From 23 on attention is one of them, its softmax included."
        ),
    ] = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Take uint8 (B, H, W, 3); normalise in the graph.")] = False,
    softmax: Annotated[bool, typer.Option("--softmax", help="Put out probabilities.")] = False,
    calib: Calib = None,
    calib_n: Annotated[int, typer.Option(help="How many images of --calib.")] = 512,
    out: Annotated[Path, typer.Option("--out", help="Folder of the files.")] = Path(),
    triton: Annotated[Path | None, typer.Option(help="Also add it to this Triton model repository.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Largest relative difference to PyTorch.")] = None,
    agreement: Annotated[float | None, typer.Option(help="Smallest share of --calib images of the same class.")] = None,
    workspace: Annotated[int | None, typer.Option(metavar="MIB", help="Memory for an engine to compute in.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="File in which --trt keeps its measurements.")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="An engine of --trt for later versions too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="An engine of --trt for all GPUs from Ampere on.")
    ] = False,
    weights: Weights = None,
    option: NetworkOptions = None,
    untrained: Untrained = False,
    formats: Annotated[bool, typer.Option("--formats", help="Print the table of formats, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a network as ONNX, compared with PyTorch, or build TensorRT engines from that.

    An ONNX file is compared on the CPU before it gets its name (in bf16, as a float32 twin rounded to bf16). An engine
    is built from the compared file and its precision is read back; it is not run. Ends with exit code 3 where a file
    does not compute what PyTorch does, or not in the precision asked for. Whatever goes wrong, no half or wrong file is
    left; those that were finished before stay.
    """
    if formats:
        _print_formats(as_json)
        return
    if model is None:
        raise UsageError("the model is missing; for instance: bossnet export bossnet_t0 --onnx --out deploy")
    from bossnet_zoo.fresh import warn_of_fresh

    from .graph import GraphOptions
    from .pipeline import Request, default_opset, export_network, parse_range, tolerance_for
    from .tensorrt import BUILDERS, EngineOptions

    precision = _precision(fp16=fp16, bf16=bf16, int8=int8)
    batches = parse_range("1:8:64" if batch is None else batch, "--batch")
    engine = EngineOptions(batches, None, workspace, version_compatible, hardware_compatible)
    builders = tuple(BUILDERS[name] for name, wanted in (("trt", trt), ("trt-rtx", trt_rtx)) if wanted)
    request = Request(
        onnx=onnx or not builders,
        builders=builders,
        precision=precision,
        graph=GraphOptions(
            batch=batches[0] if batch is not None and ":" not in batch else None,
            batches=(batches[0], batches[2]) if batch is not None and ":" in batch else None,
            opset=opset if opset is not None else default_opset(precision),
            pixels=pixels,
            softmax=softmax,
        ),
        engine=engine,
        input_size=input_size,
        dynamic_size=dynamic_size,
        sizes=parse_range(sizes, "--sizes") if sizes else None,
        calibration=calib,
        calibration_count=calib_n,
        tolerance=tolerance_for(precision, tolerance, agreement),
        timing_cache=timing_cache,
        triton=triton,
    )
    _check_engine_options(request, trt=trt)
    request.check()
    check_folder(out)
    if triton is not None:
        check_folder(triton / _name(model) / "1", "--triton")
    network = _open(model, weights, option, untrained)
    warn_of_fresh(network, model)
    with removing_empty(out):
        reports = export_network(network, _name(model), out, request)
    _print_reports(reports, as_json, triton and triton / _name(model))


@command(app, "bossnet benchmark bossnet_m1 --untrained --batch 1,8 --threads 2")
def benchmark(
    model: Annotated[str, typer.Argument(help=f"{MODEL[:-1]}; or an exported file.")],
    formats: Annotated[
        str | None,
        typer.Option(
            help="torch, torch-cuda, onnx, onnx-cuda, onnx-trt (TensorRT within ONNX Runtime), trt, trt-rtx, with "
            "commas; or all. By default torch,onnx."
        ),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Images at once, with commas; by default 1,8, or a file's own.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Of the CPU; 0 for all cores.")] = 0,
    peers: Annotated[str | None, typer.Option(help="timm models to measure beside it, untrained, with commas.")] = None,
    seconds: Annotated[float, typer.Option(help="Of measuring, for each runtime and batch size.")] = 3.0,
    calib: Calib = None,
    device: Annotated[
        str | None, typer.Option(help="Of an exported file: cpu, cuda or tensorrt; by default a GPU if there is one.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a Markdown table.")] = False,
    weights: Weights = None,
    option: NetworkOptions = None,
    untrained: Untrained = False,
    as_json: AsJson = False,
) -> None:
    """Speed of a network in every runtime and precision.

    Beside it its size, and the difference to PyTorch.
    """
    from .benchmark import benchmark_file
    from .sessions import is_exported

    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other; leave one out")
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"--seconds {seconds} is not possible; type a number, as in 3")
    if is_exported(model):
        given = {"--formats": formats, "--peers": peers, "--calib": calib, "--weights": weights, "--option": option}
        for name, value in (given | {"--untrained": untrained}).items():
            if value:
                raise UsageError(f"{model} is exported as it is; leave out {name}, or give the network it came from")
        batches = None if batch is None else _numbers(batch)
        rows = benchmark_file(Path(model), batches=batches, device=device or "auto", threads=threads, seconds=seconds)
    else:
        if device:
            raise UsageError(
                "--device is for exported files; a network is measured where --formats says, as in onnx-cuda"
            )
        settings: dict[str, Any] = {"batches": _numbers(batch or "1,8"), "threads": threads, "seconds": seconds}
        networks = {_name(model): _open(model, weights, option, untrained)}
        networks |= {peer: _open(peer, None, None, True) for peer in (peers.split(",") if peers else ())}
        rows = _measure(networks, formats or "torch,onnx", {**settings, "calibration": calib})
    _print_rows(rows, as_json, as_csv)
    if all(row.median_ms is None for row in rows):
        reasons = "; ".join(dict.fromkeys(row.note for row in rows))
        raise BossNetError(f"nothing of {model} was measured: {reasons}")


def _print_rows(rows: list[Any], as_json: bool, as_csv: bool) -> None:
    import dataclasses

    from .benchmark_table import comma_separated, markdown

    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        print(comma_separated(rows) if as_csv else markdown(rows), end="" if as_csv else "\n")


def _measure(networks: dict[str, Any], formats: str, settings: dict[str, Any]) -> list[Any]:
    import tempfile

    from .benchmark import RUNTIMES, benchmark_network, check_runtimes

    runtimes = tuple(RUNTIMES) if formats == "all" else tuple(formats.split(","))
    check_runtimes(runtimes)
    rows = []
    for name, network in networks.items():
        console.note(f"measuring {name}")
        with tempfile.TemporaryDirectory() as folder:
            rows += benchmark_network(network, name, Path(folder), runtimes=runtimes, **settings)
    return rows


@command(app, f"{TRAIN_EXAMPLE}\nbossnet publish runs/tiny --repo my-team/digits --onnx --dry-run")
def publish(
    model: Annotated[str, typer.Argument(help="The folder of a training run, or the name of a published model.")],
    repo: Annotated[str, typer.Option("--repo", metavar="ORG/NAME", help="The repository on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Visible to its owner alone.")] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Add the network as ONNX; without it, an earlier one is removed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the files, and send nothing.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the files; by default NAME-hub.")] = None,
    weights: Annotated[str, typer.Option(help="Of a run: best, model or ema.")] = "best",
    license: Annotated[str, typer.Option(help="Of a run's weights, in the Hub's spelling: apache-2.0.")] = "unknown",
    as_json: AsJson = False,
) -> None:
    """Send a network to the Hugging Face Hub.

    Weights, configuration, a card, and ONNX where wanted; never engines.
    """
    from .hub import upload, write_repository
    from .publishable import check_publishable

    check_publishable(model)
    folder = out or Path(f"{repo.rpartition('/')[2]}-hub")
    check_folder(folder)
    try:
        publication = write_repository(model, repo, folder, weights=weights, onnx=onnx, license=license)
    except DownloadError as error:
        remedy = f"try again with a connection, or put a copy of the file into {error.cache}"
        raise BossNetError(f"{error.what}; {remedy}") from error
    if not dry_run:
        publication = upload(publication, repo, private=private)
    if as_json:
        print_json({"folder": str(folder), "files": publication.files, "url": publication.url})
        return
    for file in publication.files:
        print(f"{folder / file}")
    if publication.url is None:
        console.note(f"nothing was sent; the same without --dry-run sends it to {repo}")
    else:
        print(publication.url)
        console.note(f'next: import bossnet_zoo, timm; timm.create_model("hf-hub:{repo}", pretrained=True)')


def _precision(**flags: bool) -> str:
    chosen = [name for name, given in flags.items() if given]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]} exclude each other; export twice")
    return chosen[0] if chosen else "fp32"


def _open(model: str, weights: str | None, option: list[str] | None, untrained: bool) -> Any:
    from bossnet_zoo.runs import build_model, is_run, open_model

    from .metadata import UNTRAINED
    from .sessions import is_exported

    if is_exported(model):
        raise UsageError(
            f"{model} is exported already; give the network it came from: a name, an architecture or a run"
        )
    options = parse_options(option)
    if untrained and is_run(model):
        raise UsageError(f"{model} is a run and has its weights; leave out --untrained")
    if untrained:
        network: Any = build_model(model, **options).eval()
        network.pretrained_cfg["tag"] = UNTRAINED
        return network
    try:
        return open_model(model, weights, **options)
    except NoWeightsError as error:
        raise UsageError(f"{error}; or with fresh random weights, to measure speed: --untrained") from error


def _name(model: str) -> str:
    """What files of a network are called: the end of a path or name, in characters that suit a file.

    >>> _name("hytra:4c-8c"), _name("8:16:24:32:64"), _name("hf-hub:team/flowers")
    ('hytra-4c-8c', '8-16-24-32-64', 'flowers')
    """
    from bossnet_zoo.runs import is_run

    model = model.removeprefix("local-dir:")
    path = Path(model).resolve() if Path(model).exists() else Path(model)
    if path.is_file() and is_run(path):  # the best weights are called after their run, others after both
        return path.parent.name + ("" if path.stem == "best" else f"-{path.stem}")
    return path.name.removesuffix(".safetensors").replace(":", "-")


def _check_engine_options(request: Request, *, trt: bool) -> None:
    """An option that nothing would honour is an error."""
    engine = request.engine
    if engine.workspace_mib is not None and not request.builders:
        raise UsageError("--workspace is for engines; type --trt or --trt-rtx too")
    only_trt = {
        "--timing-cache": request.timing_cache is not None,
        "--version-compatible": engine.version_compatible,
        "--hardware-compatible": engine.hardware_compatible,
    }
    for name, given in only_trt.items():
        if given and not trt:
            raise UsageError(f"{name} is for engines of TensorRT; type --trt too")


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--batch {text!r} is no list of numbers; write 1,8,32")
    return [int(part) for part in parts]


def _print_formats(as_json: bool) -> None:
    import dataclasses
    import textwrap

    from .formats import FORMATS, NOTES

    if as_json:
        print_json([dataclasses.asdict(row) for row in FORMATS])
        return
    shown = [field.name for field in dataclasses.fields(FORMATS[0]) if field.name != "format"]
    head = ["format" if name == "option" else name for name in shown]  # what is typed says both, in 80 columns
    rows = [head, *([_cell(getattr(row, name)) for name in shown] for row in FORMATS)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n{textwrap.fill(NOTES, 80)}")


def _cell(value: str | tuple[str, ...]) -> str:
    if isinstance(value, str):
        return value
    return "all four" if len(value) == 4 else ", ".join(value)


def _print_reports(reports: list[ExportReport | EngineReport], as_json: bool, triton: Path | None) -> None:
    from .report import TWIN_NOTE, ExportReport
    from .sessions import takes_gpu

    if as_json:
        print_json({"files": [report.to_json() for report in reports], "triton": str(triton) if triton else None})
        return
    for report in reports:
        print(f"{report.file}  {report.bytes / 1e6:.1f} MB, {report.precision}")
        if isinstance(report, ExportReport):
            of = "images" if report.precision == "int8" else "noise"
            entries = [(f"batch {entry.batch} of {of}", entry) for entry in report.parity]
            entries += [(f"{report.on_images.batch} images", report.on_images)] if report.on_images else []
            for what, entry in entries:
                print(
                    f"  {what}: largest difference {entry.max_abs:.1e}, of the largest output {entry.max_rel:.1e}; "
                    f"same best class {entry.top1_agreement:.1%}"
                )
            if TWIN_NOTE in report.notes:
                print(f"  {TWIN_NOTE}")
        else:
            shapes = ", ".join(" x ".join(map(str, shape)) for shape in report.profile)
            print(f"  {report.builder}, for {report.gpu or 'RTX GPUs'}; smallest, best, largest input: {shapes}")
            read = "its precision" if report.gpu else "the precision of its network"
            print(f"  built from {report.onnx}, which was compared with PyTorch; not run here, {read} was read back")
            if report.reused:
                console.note(f"{report.file} lay there already, built from the same file with the same options")
    if triton:
        print(f"{triton}  for Triton, with what it serves in 1/")
    last = reports[-1].file
    where = "" if isinstance(reports[-1], ExportReport) else "on a machine with its GPU, "
    if not where and reports[-1].precision == "bf16" and not takes_gpu():
        where = 'on a machine with a GPU and "bossnet-zoo[onnx-gpu]", '
    console.note(f"next: {where}bossnet predict {last} IMAGE; bossnet benchmark {last}")
