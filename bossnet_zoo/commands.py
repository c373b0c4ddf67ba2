"""What the commands of all folders share: how one is declared, the options they have in common, what Ctrl-C says."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import re
import shlex
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .errors import StoppedError, UsageError

if TYPE_CHECKING:
    from .recipes import Recipe

# --- how a command is declared

TRAIN_EXAMPLE = r"""
bossnet train test_bossnet_t --data digits --recipe bossnet-t --smoke \
  --out runs/tiny
""".strip()  # it and the next are what many other examples need first
SEARCH_EXAMPLE = r"""
bossnet search --space nats --data digits --preset demo --epochs 1 \
  --out runs/nats
""".strip()
_METAVARS = {int: "N", float: "X", Path: "PATH", str: "NAME"}  # in place of typer's <int range> and the like
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes, no progress bars.")]


def command(app: typer.Typer, example: str, name: str | None = None) -> Callable[[Callable], Callable]:
    """Declare a command; `example`, which can be typed as it stands, is the first thing that its --help shows.

    Every command has --quiet, as the program has, so that it may stand in front of the command or behind it. Where a
    command is called with --json, nothing but `console.print_json` reaches stdout.
    """

    def declare(function: Callable) -> Callable:
        signature = inspect.signature(function, eval_str=True)
        parameters = [*map(_with_metavar, signature.parameters.values())]
        parameters.append(inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet))

        @functools.wraps(function)
        def run(*, quiet: bool, **given: Any) -> None:
            if quiet:
                console.set_quiet(True)
            with console.only_json() if given.get("as_json") else contextlib.nullcontext():
                function(**given)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        says = inspect.cleandoc(function.__doc__ or "")
        app.command(name, help=help_text(example, says), short_help=says.partition("\n")[0])(run)
        return function

    return declare


def help_text(example: str, says: str) -> str:
    """The text of a --help: the example, whose lines stay as they are, then what the command does."""
    lines = textwrap.indent(textwrap.dedent(example).strip(), "  ")
    return f"\b\nExample:\n{lines}\n\n{says}"


def _with_metavar(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter with a word for its value, if it is an option that takes one and has none."""
    kind, *about = typing.get_args(parameter.annotation) or (parameter.annotation,)
    kinds = {kind, *typing.get_args(kind)}
    for option in about:
        if isinstance(option, typer.models.OptionInfo) and option.metavar is None:
            option.metavar = next((word for kind, word in _METAVARS.items() if kind in kinds), None)
    return parameter


# --- completion: what the shell offers, without an import of torch


def one_of(*names: str) -> Callable[[str], list[str]]:
    """Complete to one of these names."""
    return lambda incomplete: _beginning_with(incomplete, names)


def complete_model(incomplete: str) -> list[str]:
    """Names of models. They are read in the source, for importing timm takes seconds; folders the shell adds itself."""
    source = "".join(file.read_text("utf-8") for file in sorted(Path(__file__).with_name("models").glob("*.py")))
    return _beginning_with(incomplete, re.findall(r"^@register_model\ndef (\w+)", source, re.MULTILINE))


def complete_space(incomplete: str) -> list[str]:
    """Names of search spaces."""
    from .spaces import space_names

    return _beginning_with(incomplete, space_names())


def complete_recipe(incomplete: str) -> list[str]:
    """Names of recipes."""
    from .recipes import RECIPES

    return _beginning_with(incomplete, RECIPES)


def _beginning_with(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


# --- options of several commands


def check_seed(seed: int | None) -> int | None:
    """A seed that torch, NumPy and scikit-learn can take. Raises `UsageError`."""
    if seed is not None and not 0 <= seed < 2**32:
        raise UsageError(f"--seed {seed} is not possible; type a whole number from 0 to 2**32 - 1")
    return seed


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="digits, cifar10, cifar100, hf:NAME, a folder or shards.",
        autocompletion=one_of("digits", "digits:hard", "cifar10", "cifar100", "hf:"),
    ),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", autocompletion=one_of("auto", "cpu", "cuda", "mps"))
]
complete_precision = one_of("auto", "float32", "bfloat16")
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.", autocompletion=complete_precision)]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that load images.")]
NetworkOptions = Annotated[
    list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Argument of the network: base_width=8.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="ema, model or a file; of a run also best, which is the default.",
        autocompletion=one_of("best", "ema", "model"),
    ),
]
Seed = Annotated[int | None, typer.Option(callback=check_seed, help="Decides everything that is random.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that --out holds.")]
StrictImages = Annotated[bool, typer.Option("--strict-images", help="Stop at an unreadable image.")]
RecipeName = Annotated[
    str | None, typer.Option(help="bossnet-t, bossnet-m or finetune.", autocompletion=complete_recipe)
]
SpaceName = Annotated[
    str | None, typer.Option("--space", help="Search space: hytra, mbconv or nats.", autocompletion=complete_space)
]
SpaceOptions = Annotated[
    list[str] | None,
    typer.Option("--space-option", metavar="NAME=VALUE", help="Option of the space: base_width=8, se=true."),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the images.")]
GlobalBatch = Annotated[int | None, typer.Option(min=1, help="Images of a step, over all processes.")]
ImageSize = Annotated[int | None, typer.Option(min=1, help="Pixels of a side.")]


def resized(
    recipe: Recipe, smoke: bool, epochs: int | None, global_batch: int | None, image_size: int | None
) -> Recipe:
    """A recipe in small, if `smoke`, and with the sizes that were given."""
    recipe = recipe.smoke() if smoke else recipe
    recipe = recipe.with_epochs(epochs) if epochs else recipe
    sizes = {"global_batch": global_batch, "image_size": image_size}
    return replace(recipe, **{name: value for name, value in sizes.items() if value is not None})  # type: ignore[arg-type]


_PYTHON = {"True": "true", "False": "false", "None": "null"}  # how they are written there, and in JSON


def parse_options(pairs: list[str] | None) -> dict[str, Any]:
    """`["base_width=8", "act_layer=relu"]` -> `{"base_width": 8, "act_layer": "relu"}`. Raises `UsageError`."""
    options: dict[str, Any] = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign:
            raise UsageError(f"--option {pair!r} has no value; write NAME=VALUE, for instance base_width=8")
        try:
            options[name] = json.loads(_PYTHON.get(value, value))
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
        raise UsageError(f"{option} {text!r} is less than 1; type an amount such as 475M")
    return amount


# --- Ctrl-C


@contextlib.contextmanager
def resumable(run: Path, command: str, then: str = "go on") -> Iterator[None]:
    """Within it, Ctrl-C names the folder `run`, if one was begun, and the `command` to go on with.

    Args:
        then: what the command does, `begin anew` where nothing is taken over.

    Raises:
        StoppedError: in place of `KeyboardInterrupt`.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not (run / "config.json").exists():
            raise StoppedError(f"interrupted before {run} was begun; nothing is left behind") from None
        raise StoppedError(
            f"interrupted; what is finished is in {run}; {then} with: {command} {shlex.quote(str(run))}"
        ) from None
