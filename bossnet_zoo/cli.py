"""The command line: thin commands that parse, call one function and print. Heavy imports happen inside commands."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import shlex
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__, console
from .cli_evaluate import app as evaluate_app
from .commands import (
    TRAIN_EXAMPLE,
    AsJson,
    Data,
    Device,
    Epochs,
    GlobalBatch,
    ImageSize,
    NetworkOptions,
    Overwrite,
    Quiet,
    RecipeName,
    Seed,
    StrictImages,
    Workers,
    command,
    complete_model,
    complete_precision,
    complete_space,
    help_text,
    parse_options,
    resized,
    resumable,
)
from .console import print_json
from .errors import BossNetError, StoppedError, UsageError

EXIT_CODES = (
    "0 done; 1 failed while at work; 2 the request is wrong; 3 an exported file does not compute what PyTorch does; "
    "130 interrupted"
)
_FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or what one may use of it
INTERRUPTED = 130  # what typer makes of Ctrl-C, as shells do

app = typer.Typer(
    name="bossnet",
    help=help_text("bossnet demo", "Search, train and ship hybrid CNN-transformer image networks."),
    epilog=f"Exit codes: {EXIT_CODES}.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(evaluate_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bossnet-zoo {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    console.set_quiet(quiet)


@command(app, "bossnet list bossnet", name="list")
def list_models(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a shell pattern.")] = "",
    as_json: AsJson = False,
) -> None:
    """The models, with size and arithmetic."""
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
            f"{top1.get(row['resolution'], ''):>7}  {'release' if row['weights'] else 'none'}"
        )


@command(app, "bossnet info bossnet_t0 --resolution 288")
def info(
    model: Annotated[
        str,
        typer.Argument(
            help="A timm name (bossnet_t0), an architecture (4c-8c-16ca-32ac), or a run.", autocompletion=complete_model
        ),
    ],
    resolution: Annotated[
        int | None, typer.Option(min=1, max=8192, help="Pixels at which multiply-adds are counted.")
    ] = None,
    option: NetworkOptions = None,
    as_json: AsJson = False,
) -> None:
    """One model, architecture or run: size, cost, accuracy, drawing."""
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
    print(f"weights: {', '.join(about['weights']) or 'none'}")


@command(app, "bossnet space hytra")
def space(
    name: Annotated[str, typer.Argument(help="hytra, mbconv or nats.", autocompletion=complete_space)],
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Option of the space: widths=[8,16].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A search space: its rule, its size, its blocks, examples."""
    from .describe import describe_space
    from .spaces import get_space, options_in_words

    options = parse_options(option)
    about = describe_space(name, **options)
    if as_json:
        print_json(about)
        return
    print(f"{name}: {about['architectures']:,} architectures, {about['resolution']} px")
    if narrowed := options_in_words(get_space(name, **options)):
        print(f"with {narrowed}")
    print(about["rule"])
    for number, entries in enumerate(about["paths_by_block_and_entry"], start=1):
        counts = ", ".join(f"{paths} from {entry}" for entry, paths in entries.items())
        print(f"block {number}: paths {counts}")
    print("for instance: " + "  ".join(about["examples"]))


@command(app, TRAIN_EXAMPLE)
def train(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="A timm name, an architecture (4c-8c-16ca-32ac), or a folder to begin from.",
            autocompletion=complete_model,
        ),
    ] = None,
    data: Data = None,
    recipe: RecipeName = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the new run.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Begin with the published weights.")] = False,
    init: Annotated[Path | None, typer.Option(help="Begin with the weights in this file.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The recipe in small: digits on a CPU, in a minute.")] = False,
    epochs: Epochs = None,
    global_batch: GlobalBatch = None,
    image_size: ImageSize = None,
    option: NetworkOptions = None,
    seed: Seed = None,
    device_batch: Annotated[int | None, typer.Option(min=1, help="Most images that a process takes at once.")] = None,
    workers: Workers = None,
    strict_images: StrictImages = False,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints within an epoch.")] = 1000,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder, as it was begun.")] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    precision: Annotated[
        str | None, typer.Option(help="auto, float32 or bfloat16.", autocompletion=complete_precision)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a network by a recipe.

    On several GPUs: torchrun --nproc-per-node N -m bossnet_zoo train ...
    """
    given = _asked(ctx.params)
    if resume is not None:
        if out is not None or overwrite:
            raise UsageError("--resume goes on with a run as it is; leave out --out and --overwrite")
        from .runs import load_config
        from .train import arguments_of

        config = load_config(resume)
        given, precision = arguments_of(config) | given | {"out": resume}, precision or config["precision"]
    if missing := [name for name in ("model", "data", "recipe", "out") if name not in given]:
        names = ", ".join(name.upper() if name == "model" else f"--{name}" for name in missing)
        raise UsageError(
            f"{names} missing; for instance: bossnet train bossnet_t0 --data FOLDER --recipe finetune --out runs/mine"
        )
    from dataclasses import asdict

    from .evaluate import accuracy_text
    from .runs import load_config
    from .runtime import Runtime
    from .train import train as train_network  # seconds; what is missing was said before

    given["recipe"] = resized(given["recipe"], smoke, epochs, global_batch, image_size)
    more: dict[str, Any] = {"workers": workers, "save_every": save_every, "overwrite": overwrite}
    out = given["out"]
    with Runtime.open(device, precision or "auto") as runtime, resumable(out, "bossnet train --resume"):
        if not runtime.is_main:
            console.set_quiet(True)
        result = train_network(**given, runtime=runtime, resume=resume is not None, **more)
        if not runtime.is_main:
            return
    if as_json:
        print_json({**asdict(result), "weights": str(result.weights)})
        return
    count = load_config(out)["num_classes"]
    print(accuracy_text(result.top1, result.top5, count))
    print(f"average weights: {accuracy_text(result.ema_top1, result.ema_top5, count)}")
    console.note(f"{result.seconds:.0f} s; the weights, config and metrics are in {out}")
    run = shlex.quote(str(out))
    console.note(f"next: bossnet eval {run}; bossnet predict {run} IMAGE; bossnet export {run}")


def _asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `train.train` that were given as options of the command."""
    from .recipes import get_recipe

    same = ("model", "data", "out", "seed", "pretrained", "init", "device_batch", "strict_images")
    given = {name: options[name] for name in same}
    given |= {"recipe": options["recipe"] and get_recipe(options["recipe"])}
    given |= {"model_options": parse_options(options["option"])}
    return {name: value for name, value in given.items() if value or (name == "seed" and value is not None)}


@command(app, "bossnet doctor")
def doctor(as_json: AsJson = False) -> None:
    """What this machine has, each runtime tried; for bug reports.

    A runtime is tried on a tiny network. Ends with exit code 1 where something that is installed does not work.
    """
    from .export.doctor import as_text, examine

    about = examine()
    if as_json:
        print_json(about)
    else:
        print(as_text(about))
    if any(check["ok"] is False for check in about["checks"]):
        raise typer.Exit(1)


@functools.cache
def whole_app() -> typer.Typer:
    """The program with the commands of all three folders."""
    from .export.cli import app as export_app
    from .search.cli import app as search_app

    app.add_typer(search_app)
    app.add_typer(export_app)
    return app


def _report_in_thread(failed: threading.ExceptHookArgs) -> None:
    """No traceback for a full disk: TensorBoard, whose thread writes, raises it once more in the main thread."""
    if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in _FULL):
        threading.__excepthook__(failed)


def _check_folders(words: Sequence[str]) -> None:
    """Raise `UsageError` for an empty folder, as `--out "$UNSET"` leaves one: Python takes it for the current one."""
    for option in ("--out", "--resume"):
        if f"{option}=" in words or (option, "") in itertools.pairwise(words):
            raise UsageError(f"{option} is empty; type a folder, as in {option} runs/mine, or . for the current one")


def _run_late() -> None:
    """Run in another process of a distributed run than the first: typer's own refusals are not shown once more."""
    try:
        code = whole_app()(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "show"):
            raise
        console.let_first_process_speak()
        error.show()
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code or 0)


def main() -> None:
    """Run the command line. Users' mistakes end in one sentence and exit code 1 or 2, other errors in a traceback."""
    # OpenMP's threads spin while they wait for one another, and starve where other programs want the cores: a small
    # network trained at 0.7 steps a second, and at 4.2 as soon as they slept. Undisturbed, sleeping cost it 1 to 4 %,
    # and a step of the demo's supernet, which takes one thread for that reason, 40 to 50 %. The variable is read when
    # torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    threading.excepthook = _report_in_thread
    try:
        _check_folders(sys.argv[1:])
        if console.is_first_process():
            whole_app()()
        else:
            _run_late()
    except StoppedError as stop:
        if console.is_first_process():
            console.note(str(stop))
        sys.exit(stop.exit_code)
    except BossNetError as error:
        if os.environ.get("BOSSNET_TRACEBACK"):
            traceback.print_exc()
        console.error(str(error))
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            console.note("interrupted; no file is half-written")
        raise
    except BrokenPipeError:  # the reader of a pipe has seen enough, as in `bossnet list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        console.error(f"{error}; free some space or choose another --out")  # other packages write, too: TensorBoard
        sys.exit(BossNetError.exit_code)
