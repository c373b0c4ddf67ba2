"""The command line: thin commands that parse, call one function and print. Heavy imports happen inside commands."""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__, console
from .errors import BossNetError, UsageError

EXIT_CODES = (
    "0 done; 1 failed while at work; 2 the request is wrong; 3 an exported file does not compute what PyTorch does; "
    "130 interrupted"
)
INTERRUPTED = 130  # what typer makes of Ctrl-C, as shells do

app = typer.Typer(
    name="bossnet",
    help="Search, train and ship hybrid CNN-transformer image networks.",
    epilog=f"Exit codes: {EXIT_CODES}.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MAX_SEED = 2**63 - 1
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Data = Annotated[str | None, typer.Option(help="digits, cifar10, cifar100, hf:NAME, a folder or shards.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that load images.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Argument of the network: base_width=8.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bossnet-zoo {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notes, no progress bars.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    console.set_quiet(quiet)


def print_json(value: object) -> None:
    """The one document of a command called with `--json`."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def parse_options(pairs: list[str] | None) -> dict[str, Any]:
    """`["base_width=8", "act_layer=relu"]` -> `{"base_width": 8, "act_layer": "relu"}`. Raises `UsageError`."""
    options: dict[str, Any] = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign:
            raise UsageError(f"--option {pair!r} has no value; write NAME=VALUE, for instance base_width=8")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:  # a word, as in act_layer=relu
            options[name] = value
    return options


def parse_amount(text: str | None, option: str) -> int | None:
    """`475M` -> 475,000,000; also k, G, B and plain numbers. Raises `UsageError`."""
    if text is None:
        return None
    units = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
    factor = units.get(text[-1:].lower(), 1)
    try:
        amount = round(float(text[:-1] if factor > 1 else text) * factor)
    except (ValueError, OverflowError):
        raise UsageError(f"{option} {text!r} is no amount; type one such as 475M, 3.5G or 120000000") from None
    if amount <= 0:
        raise UsageError(f"{option} {text!r} is not positive; type an amount such as 475M")
    return amount


@app.command("list")
def list_models(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a shell pattern.")] = "",
    as_json: AsJson = False,
) -> None:
    """The models, with size and arithmetic.

    Example: bossnet list bossnet
    """
    from . import describe

    rows = describe.list_models(pattern)
    if not rows:
        raise UsageError(f"no model's name matches {pattern!r}; see all: bossnet list")
    if as_json:
        print_json(rows)
        return
    print(f"{'model':<18}{'params':>10}{'MAdds':>12}{'pixels':>8}  top-1  weights")
    for row in rows:
        top1 = {entry["resolution"]: entry["top1"] for entry in row["accuracy"]}
        print(
            f"{row['model']:<18}{row['params'] / 1e6:>8.2f} M{row['madds'] / 1e6:>10,.1f} M{row['resolution']:>8}"
            f"{top1.get(row['resolution'], ''):>7}  {'published' if row['weights'] else 'none'}"
        )


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A timm name (bossnet_t0), or an architecture (4c-8c-16ca-32ac).")],
    resolution: Annotated[
        int | None, typer.Option(min=1, max=8192, help="Pixels at which multiply-adds are counted.")
    ] = None,
    option: Options = None,
    as_json: AsJson = False,
) -> None:
    """One model or architecture: size, arithmetic, accuracy, weights, drawing.

    Example: bossnet info bossnet_t0 --resolution 288
    """
    from .describe import describe_model
    from .drawing import architecture_text

    about = describe_model(model, resolution, **parse_options(option))
    if as_json:
        print_json(about)
        return
    print(f"{about['model']}: {about['params']:,} parameters, {about['madds']:,} MAdds at {about['resolution']} px")
    if about["architecture"]:
        print(about["architecture"])
        console.results.print(architecture_text(about["architecture"]))
    for entry in about["accuracy"]:
        print(f"top-1 {entry['top1']} % at {entry['resolution']} px: {entry['source']}")
    print(f"weights: {', '.join(about['weights']) or 'none published'}")


@app.command()
def space(
    name: Annotated[str, typer.Argument(help="hytra, mbconv or nats.")],
    as_json: AsJson = False,
) -> None:
    """A search space: its rule, its size, its blocks, examples.

    Example: bossnet space hytra
    """
    from .describe import describe_space

    about = describe_space(name)
    if as_json:
        print_json(about)
        return
    print(f"{name}: {about['architectures']:,} architectures, {about['resolution']} px\n{about['rule']}")
    for number, entries in enumerate(about["paths_by_block_and_entry"], start=1):
        counts = ", ".join(f"{paths} from {entry}" for entry, paths in entries.items())
        print(f"block {number}: paths {counts}")
    print("for instance: " + "  ".join(about["examples"]))


@app.command()
def train(
    model: Annotated[
        str | None, typer.Argument(help="A timm name, an architecture (4c-8c-16ca-32ac), or a run to begin from.")
    ] = None,
    data: Data = None,
    recipe: Annotated[str | None, typer.Option(help="bossnet-t, bossnet-m or finetune.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the new run.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Begin with the published weights.")] = False,
    init: Annotated[Path | None, typer.Option(help="Begin with the weights in this file.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe in small: digits on a CPU, in a minute.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None,
    global_batch: Annotated[int | None, typer.Option(min=1, help="Images of a step, over all processes.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels of a side.")] = None,
    option: Options = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Decides everything that is random.")] = None,
    device_batch: Annotated[int | None, typer.Option(min=1, help="Most images that a process takes at once.")] = None,
    workers: Workers = None,
    strict_images: Annotated[bool, typer.Option("--strict-images", help="Stop at an unreadable image.")] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints within an epoch.")] = 1000,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder, as it was begun.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that --out holds.")] = False,
    device: Device = "auto",
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a network by a recipe; on several GPUs: torchrun --nproc-per-node N -m bossnet_zoo train ...

    Example: bossnet train bossnet_t0 --pretrained --data FOLDER --recipe finetune --out runs/mine
    """
    from dataclasses import asdict, replace

    from .recipes import get_recipe
    from .runs import load_config
    from .runtime import Runtime
    from .train import arguments_of
    from .train import train as train_network

    given: dict[str, Any] = {"model": model, "data": data, "recipe": recipe and get_recipe(recipe), "seed": seed}
    given |= {"pretrained": pretrained or None, "init": init, "model_options": parse_options(option) or None}
    given |= {"device_batch": device_batch, "strict_images": strict_images or None}
    given = {name: value for name, value in given.items() if value is not None}
    if resume is not None:
        if out is not None or overwrite:
            raise UsageError("--resume goes on with a run as it is; leave out --out and --overwrite")
        config = load_config(resume)
        given, out, precision = arguments_of(config) | given, resume, precision or config["precision"]
    if out is not None:
        given["out"] = out
    if missing := [name for name in ("model", "data", "recipe", "out") if name not in given]:
        names = ", ".join(name.upper() if name == "model" else f"--{name}" for name in missing)
        raise UsageError(
            f"{names} missing; for instance: bossnet train bossnet_t0 --data FOLDER --recipe finetune --out runs/mine"
        )
    chosen = given["recipe"].smoke() if smoke else given["recipe"]
    chosen = chosen.with_epochs(epochs) if epochs else chosen
    sizes = {"global_batch": global_batch, "image_size": image_size}
    given["recipe"] = replace(chosen, **{name: value for name, value in sizes.items() if value is not None})
    more: dict[str, Any] = {"workers": workers, "save_every": save_every, "overwrite": overwrite}
    with Runtime.open(device, precision or "auto") as runtime:
        if not runtime.is_main:
            console.set_quiet(True)
        result = train_network(**given, runtime=runtime, resume=resume is not None, **more)
        if not runtime.is_main:
            return
    if as_json:
        print_json({**asdict(result), "weights": str(result.weights)})
        return
    print(f"top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %")
    print(f"average weights: top-1 {result.ema_top1:.2f} %, top-5 {result.ema_top5:.2f} %")
    console.note(f"{result.seconds:.0f} s; the weights, config and metrics are in {out}")
    run = shlex.quote(str(out))
    console.note(f"next: bossnet eval {run}; bossnet predict {run} IMAGE; bossnet export {run}")


Model = Annotated[str, typer.Argument(help="A run's folder, a timm name, an architecture or an exported file.")]
Weights = Annotated[str | None, typer.Option(help="ema, model or a file; of a run also best, which is the default.")]


@app.command("eval")
def evaluate(
    model: Model,
    data: Data = None,
    weights: Weights = None,
    input_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels of a side; by default the network's own.")
    ] = None,
    part: Annotated[str, typer.Option(help="test; or all, train, search-val, search-train.")] = "test",
    out: Annotated[
        Path | None, typer.Option(help="Folder of eval.json and eval.csv; by default the run's, or .")
    ] = None,
    option: Options = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 128,
    workers: Workers = None,
    strict_images: Annotated[bool, typer.Option("--strict-images", help="Stop at an unreadable image.")] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Accuracy and speed of a network on labelled images.

    Example: bossnet eval bossnet_t0 --data IMAGENET --input-size 288
    """
    from dataclasses import asdict

    from .datasets import open_images
    from .evaluate import measure_accuracy, timm_row, write_evaluation
    from .runs import is_run, load_config
    from .runtime import Runtime

    data = data or (load_config(model)["data"] if is_run(model) else None)
    if data is None:
        raise UsageError("--data is missing; for instance: bossnet eval bossnet_t0 --data IMAGENET")
    with Runtime.open(_torch_device(model, device), precision) as runtime:
        images = open_images(data, part, strict=strict_images)
        trained_on = load_config(model)["class_names"] if is_run(model) else None
        if runtime.is_main and trained_on and images.class_names and tuple(trained_on) != tuple(images.class_names):
            console.note(f"{data} has other classes than the network was trained on; they are compared by their number")
        classifier = _open_classifier(model, weights, parse_options(option), runtime, device, input_size)
        accuracy = measure_accuracy(
            classifier.logits,
            images,
            classifier.preprocessing,
            runtime,
            batch=batch,
            workers=workers,
            description=f"{images.name}, {part}",
        )
        if not runtime.is_main:
            return
    row = timm_row(classifier, accuracy)
    about = {"data": data, "part": part, "weights": weights, "unreadable": images.num_unreadable}
    folder = out or (Path(model) if is_run(model) and Path(model).is_dir() else Path())
    write_evaluation(folder, row, accuracy, about | {"runtime": runtime.description})
    if as_json:
        print_json({**row, **asdict(accuracy), **about})
        return
    print(f"top-1 {accuracy.top1:.2f} %, top-5 {accuracy.top5:.2f} %, {accuracy.images_per_second:.1f} images/s")
    console.note(f"{accuracy.images:,} images of {data}, part {part}; written to {folder / 'eval.json'} and eval.csv")


@app.command()
def predict(
    model: Model,
    images: Annotated[list[str], typer.Argument(help="Image files.")],
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each image.")] = 5,
    option: Options = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """The most probable classes of images.

    Example: bossnet predict bossnet_t0 cat.jpg --top 3
    """
    from .evaluate import classify
    from .runtime import Runtime

    with Runtime.open(_torch_device(model, device), precision) as runtime:
        classifier = _open_classifier(model, weights, parse_options(option), runtime, device)
        answers = classify(classifier, images, runtime, top)
    if as_json:
        print_json(answers)
        return
    for answer in answers:
        print(answer["image"])
        for entry in answer["classes"]:
            print(f"  {100 * entry['probability']:6.2f} %  {entry['name']}")


def _torch_device(model: str, device: str) -> str:
    """Where images are prepared: an exported network gets them from the CPU, and `device` is its own runtime's."""
    from .export.sessions import is_exported

    return "cpu" if is_exported(model) else device


def _open_classifier(
    model: str, weights: str | None, options: dict[str, Any], runtime: Any, device: str, input_size: int | None = None
) -> Any:
    """A network for `eval` and `predict`: exported, or in PyTorch."""
    from .evaluate import Classifier
    from .export.sessions import is_exported, open_session, predictor
    from .runs import open_model

    if not is_exported(model):
        return Classifier.of(open_model(model, weights, **options), runtime, model, input_size)
    if weights or options or input_size:
        raise UsageError(f"{model} is exported as it is; leave out --weights, --option and --input-size")
    session = open_session(model, device)
    return Classifier(model, predictor(session), session.metadata.data_config, session.metadata.class_names)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Versions, devices and runtimes of this machine, each tried on a tiny network; for bug reports.

    Example: bossnet doctor
    """
    from .export.doctor import as_text, examine

    about = examine()
    if as_json:
        print_json(about)
    else:
        print(as_text(about))
    if any(check["ok"] is False for check in about["checks"]):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line. Users' mistakes end in one sentence and exit code 1 or 2, other errors in a traceback."""
    # OpenMP's threads spin while they wait for one another, and starve where other programs want the cores: a small
    # network trained at 0.7 steps a second, and at 4.2 as soon as they slept; undisturbed, sleeping cost 1 to 4 %. The
    # variable is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from .export.cli import app as export_app
    from .search.cli import app as search_app

    app.add_typer(search_app)
    app.add_typer(export_app)
    try:
        app()
    except BossNetError as error:
        if os.environ.get("BOSSNET_TRACEBACK"):
            traceback.print_exc()
        console.notes.quiet = False
        console.notes.print(f"error: {error}", markup=False, style="bold red")
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            console.note("interrupted; no file is half-written, and a search or training goes on with --resume")
        raise
    except BrokenPipeError:  # the reader of a pipe has seen enough, as in `bossnet list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
