"""Commands of `bossnet_zoo.search`, mounted by `bossnet_zoo.cli`. Heavy imports happen inside commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from bossnet_zoo import console
from bossnet_zoo.checkpoint import load_json
from bossnet_zoo.commands import (
    SEARCH_EXAMPLE,
    AsJson,
    Data,
    Device,
    Epochs,
    GlobalBatch,
    ImageSize,
    Overwrite,
    Precision,
    RecipeName,
    Seed,
    SpaceName,
    SpaceOptions,
    Workers,
    check_seed,
    command,
    one_of,
    parse_amount,
    parse_options,
    resized,
    resumable,
)
from bossnet_zoo.console import print_json
from bossnet_zoo.errors import UsageError

from .cli_solve import app as solve_app
from .settings import CHOICES

app = typer.Typer()
app.add_typer(solve_app)


def _choice(setting: str, says: str) -> Any:
    """The option of a setting that is one of a few names, which the shell completes and `says` explains."""
    return typer.Option(help=says, autocompletion=one_of(*CHOICES[setting]))


Out = Annotated[Path, typer.Option("--out", help="Folder of the run.")]
Preset = Annotated[
    str,
    typer.Option(
        help="paper: the paper's settings; demo: minutes on two CPU cores.", autocompletion=one_of("paper", "demo")
    ),
]
Method = Annotated[str | None, _choice("method", "bossnas, dna or unnas.")]
MaxMAdds = Annotated[
    str | None, typer.Option(metavar="AMOUNT", help="Most multiply-adds of an architecture: 475M, 3.5G or a number.")
]
MaxParams = Annotated[str | None, typer.Option(metavar="AMOUNT", help="Most parameters: 25M or a number.")]


@command(app, "bossnet search --data digits --preset demo --out runs/search")
def search(
    ctx: typer.Context,
    space: SpaceName = None,
    data: Data = None,
    search_val: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Held-out images, one path or position a line; or a search's split.json."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the new run.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.")] = None,
    preset: Preset = "paper",
    method: Method = None,
    space_option: SpaceOptions = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the search would take, and stop.")] = False,
    throughput: Annotated[
        float | None,
        typer.Option(min=0.001, help="For --dry-run: TFLOP/s of one process; by default measured, of a GPU assumed."),
    ] = None,
    overwrite: Overwrite = False,
    max_madds: MaxMAdds = None,
    max_params: MaxParams = None,
    seed: Seed = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each block.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Pixels of a view.")] = None,
    num_paths: Annotated[int | None, typer.Option(help="Paths sampled in a step.")] = None,
    global_batch: GlobalBatch = None,
    micro_batch: Annotated[int | None, typer.Option(help="Images that a process takes at once.")] = None,
    base_lr: Annotated[
        float | None, typer.Option(help="Rate of LARS at 4096 images a step, of SGD (unnas) at 32, or of Adam (dna).")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of the optimiser.")] = None,
    warmup_epochs: Annotated[int | None, typer.Option(help="Epochs in which the rate rises: half at most.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of LARS (bossnas) or SGD (unnas).")] = None,
    target_momentum: Annotated[float | None, typer.Option(help="Momentum of the moving average at the start.")] = None,
    momentum_schedule: Annotated[
        str | None, _choice("momentum_schedule", "cosine: it rises to 1; or constant.")
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Hidden width of projector and predictor.")] = None,
    projection: Annotated[int | None, typer.Option(help="Features that views, or networks, are compared in.")] = None,
    ensemble: Annotated[
        bool | None, typer.Option("--ensemble/--no-ensemble", help="Train towards the mean target of all paths.")
    ] = None,
    path_sampling: Annotated[
        str | None, _choice("path_sampling", "uniform over the paths; or fair: every candidate equally often.")
    ] = None,
    own_views: Annotated[
        bool | None, typer.Option("--own-views/--shared-views", help="Each path sees its own pair of views.")
    ] = None,
    coverage: Annotated[
        str | None, _choice("coverage", "greedy: train a block for the best entry; full: for every entry.")
    ] = None,
    calibration_images: Annotated[int | None, typer.Option(help="Images behind the BN statistics.")] = None,
    rating_images: Annotated[int | None, typer.Option(help="Most held-out images to rate on.")] = None,
    rating_part: Annotated[str | None, _choice("rating_part", "search-val (held out) or search-train.")] = None,
    rating_every: Annotated[int | None, typer.Option(help="Rate every so many epochs too.")] = None,
    teacher: Annotated[str | None, typer.Option(help="dna: a timm name, or the folder of a training run.")] = None,
    teacher_pretrained: Annotated[
        bool | None,
        typer.Option("--teacher-pretrained/--no-teacher-pretrained", help="dna: with published weights, or random."),
    ] = None,
    rated_per_path: Annotated[
        int | None, typer.Option(help="unnas: architectures through each path whose accuracy is measured.")
    ] = None,
    views: Annotated[
        str | None, _choice("views", "byol, digits, cifar or crops; by default as suits preset and data.")
    ] = None,
    augment: Annotated[str | None, _choice("augment", "Where views are made: workers or device.")] = None,
    workers: Workers = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the computation on a CPU.")] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Train compiled: minutes of compiling, then faster.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Find the best architecture of a space, without labels.

    Trains a supernet block by block, rates every path, and solves for the best architecture under the bounds given.

    On several GPUs: torchrun --nproc-per-node N -m bossnet_zoo search ...
    """
    from .settings import check_options, get_preset

    asked = _asked(ctx.params)
    if resume is not None:
        if out is not None or overwrite or dry_run:
            raise UsageError("--resume goes on with a run as it is; leave out --out, --overwrite and --dry-run")
        from .run_folder import resume_settings

        settings, folder = resume_settings(resume, asked), resume
    else:
        settings, folder = get_preset(preset, **asked), out or Path("runs/search")
        if not (settings.data or dry_run):
            raise UsageError("the paper's search needs images: type --data FOLDER (or --data digits --preset demo)")
    check_options(settings.method, asked)
    if dry_run:
        from .plan_text import print_plan

        print_plan(settings, throughput, device, as_json)
        return
    from bossnet_zoo.runtime import Runtime
    from bossnet_zoo.spaces import program_for

    from . import run  # seconds; what was mistyped is refused before

    again = f"{program_for(settings.space)} search --resume"
    with Runtime.open(device, precision) as runtime, resumable(folder, again):
        if resume is None:
            run.start_run(folder, settings, runtime, preset, overwrite)
        result = run.search(settings, folder, runtime)
        if not runtime.is_main:
            return
    if as_json:
        best = [solution.to_json() for solution in result.best]
        about: dict[str, Any] = {"run": str(result.out), "space": settings.space}
        about |= {"space_options": dict(settings.space_options)}
        about |= {"count": settings.make_space().count(), "covered": result.table.meta["covered"]}
        print_json({**about, "architectures": best})
    else:
        _print_result(result)


def _asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a search that were given as options of the command, by their names in `SearchSettings`."""
    from .settings import SearchSettings

    values = {field.name: options.get(field.name) for field in fields(SearchSettings)}
    values["space_options"] = parse_options(options["space_option"]) or None
    for bound in ("max_madds", "max_params"):
        values[bound] = parse_amount(options[bound], "--" + bound.replace("_", "-"))
    return {name: value for name, value in values.items() if value is not None}


def _print_result(result: Any) -> None:
    from bossnet_zoo.spaces import describe_in_words, program_for

    best, space = result.best[0], result.table.make_space()
    madds = f"{best.cost.madds / 1e6:,.1f} M MAdds at {space.default_resolution} px"
    console.results.print(f"{best.arch}  score {best.score:.4f}, {madds}", markup=False)
    console.note(f"searched: {describe_in_words(space)}")
    console.note(f"rated: {100 * result.table.meta['covered']:.3g} % of these; all of it in {result.out}")
    console.note(f"next: {program_for(result.table.space)} solve --ratings {result.out / 'ratings.json'} --top 5")


@command(app, "bossnet demo --out runs/demo")
def demo(
    out: Out = Path("runs/demo"),
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """The whole story on real images, in minutes.

    Searches, solves, retrains what was found and a plain network, exports to ONNX, and writes a report.
    """
    from bossnet_zoo.runtime import Runtime

    from .demo import run_demo

    with Runtime.open(device) as runtime, resumable(out, "bossnet demo --overwrite --out", "begin anew"):
        run_demo(out, runtime, seed=seed or 0, overwrite=overwrite)
    if as_json:
        print_json(load_json(out / "demo.json"))


@command(app, "bossnet truth --space nats --data digits --sample 2 --smoke --epochs 1 \\\n  --out runs/truth")
def truth(
    space: SpaceName = None,
    data: Data = None,
    sample: Annotated[int | None, typer.Option(min=1, help="How many architectures.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the new study.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the study in this folder.")] = None,
    overwrite: Overwrite = False,
    space_option: SpaceOptions = None,
    recipe: RecipeName = "bossnet-t",
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe in small, as for bossnet train.")] = False,
    epochs: Epochs = None,
    global_batch: GlobalBatch = None,
    image_size: ImageSize = None,
    seed: Annotated[
        int, typer.Option(callback=check_seed, help="Decides which architectures, and their training.")
    ] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each architecture, to average.")] = 1,
    weights: Annotated[str, typer.Option(help="Whose accuracy counts: model, or ema for averaged weights.")] = "model",
    train_part: Annotated[str, typer.Option(help="train; or search-val or search-train, which are smaller.")] = "train",
    workers: Workers = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """True accuracies of sampled architectures, for bossnet rank.

    Every one is trained from scratch; OUT/truth.json is written anew after each.
    """
    from bossnet_zoo.recipes import get_recipe
    from bossnet_zoo.runtime import Runtime

    from .truth import Study, measure_truth, resume_study, start_study

    if resume is not None:
        if any((space, data, sample, out, overwrite)):
            raise UsageError("--resume goes on with a study as it is; leave out the other options")
        study, folder = resume_study(resume), resume
    else:
        if not (space and data and sample and out):
            raise UsageError("type --space, --data, --sample and --out, or --resume FOLDER to go on with a study")
        chosen = resized(get_recipe(recipe or "bossnet-t"), smoke, epochs, global_batch, image_size)
        options = parse_options(space_option)
        kind: Any = weights
        study = Study(space, data, chosen, sample, options, seed, seeds, kind, (train_part, "test"))
        folder = out
    with Runtime.open(device, precision) as runtime, resumable(folder, "bossnet truth --resume"):
        if resume is None:
            start_study(folder, study, runtime, overwrite)
        table = measure_truth(study, folder, runtime, workers=workers)
        if not runtime.is_main:
            return
    if as_json:
        print_json({"space": table.space, "accuracy": dict(table.accuracy), **table.meta})
        return
    best = max(table.accuracy, key=lambda arch: table.accuracy[arch])
    print(f"{len(table.accuracy)} architectures, best {best} at {table.accuracy[best]:.2f} %")
    console.note(f"next: bossnet rank --ratings RATINGS --truth {folder / 'truth.json'}")


@command(app, f"{SEARCH_EXAMPLE}\nbossnet report runs/nats --figures figures")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a search, finished or not.")],
    figures: Annotated[Path | None, typer.Option(help="Write the figures to this folder too, as SVG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of a search again."""
    from .report import require_space, write_figures, write_report

    require_space(run)
    page = write_report(run)
    drawn = write_figures(run, figures) if figures is not None else []
    if as_json:
        print_json({"report": str(page), "figures": [*map(str, drawn)]})
        return
    for file in (page, *drawn):
        print(file)


@command(app, f"{SEARCH_EXAMPLE}\nbossnet extract runs/nats --out runs/warm --num-classes 10")
def extract(
    run: Annotated[Path, typer.Argument(help="Folder of a finished search.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for config.json and model.safetensors.")],
    arch: Annotated[str | None, typer.Option(help="Architecture; by default the best one found.")] = None,
    num_classes: Annotated[int, typer.Option(min=0, help="Outputs of the fresh classifier.")] = 1000,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """An architecture with its supernet weights, as a timm model."""
    from bossnet_zoo.runtime import Runtime

    from .extract import extract as extract_model
    from .extract import training_command

    with Runtime.open(device, "float32") as runtime:
        text = extract_model(run, arch, out, runtime, num_classes)
    if as_json:
        print_json({"architecture": text, "folder": str(out)})
    else:
        print(text)
    console.note(f'load it: import bossnet_zoo, timm; timm.create_model("local-dir:{out}", pretrained=True)')
    console.note(f"next: {training_command(run, out)}")
