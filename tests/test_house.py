"""The house is in order: files and functions are short, and imports point one way, never in a circle.

The folders are bossnet_zoo (with its parts spaces and models), search and export; `search/run.py` is the module
bossnet_zoo.search.run.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION = 400, 60
LONG = {  # functions that may be longer, and why
    ("search/cli.py", "search"): "an option for every setting of a search",
    ("bossnet_zoo/cli.py", "train"): "an option for everything that a run may begin with",
    ("export/cli.py", "export"): "an option for every property of a file or engine",
}
FILES = sorted(
    file
    for folder in ("bossnet_zoo", "search", "export", "tests", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
)
MODULES = {
    ".".join((*(() if file.is_relative_to(ROOT / "bossnet_zoo") else ("bossnet_zoo",)), *parts)).removesuffix(
        ".__init__"
    ): file
    for file in FILES
    if (parts := file.relative_to(ROOT).with_suffix("").parts)[0] in ("bossnet_zoo", "search", "export")
}


def imports(module: str, everywhere: bool) -> set[str]:
    """The modules of this package that a module imports: anywhere, or as soon as it is imported itself."""
    tree = ast.parse(MODULES[module].read_text())
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            found |= {name if (name := f"{origin}.{alias.name}") in MODULES else origin for alias in node.names}
    return found & set(MODULES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file):
    text, name = file.read_text(), file.relative_to(ROOT).as_posix()
    assert text.count("\n") <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and (name, node.name) not in LONG:
            assert node.end_lineno - node.lineno < MAX_FUNCTION, node.name


def test_the_exceptions_are_still_needed():
    for name, function in LONG:
        nodes = [node for node in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(node, ast.FunctionDef)]
        (node,) = (node for node in nodes if node.name == function)
        assert node.end_lineno - node.lineno >= MAX_FUNCTION


def test_no_module_imports_itself_in_a_circle():
    order = graphlib.TopologicalSorter({module: imports(module, everywhere=False) - {module} for module in MODULES})
    assert len(list(order.static_order())) == len(MODULES)


def part_of(module: str) -> str:
    """The part of the house that a module belongs to."""
    name = module.removeprefix("bossnet_zoo").removeprefix(".")
    first = name.partition(".")[0]
    if first.startswith(("cli", "__main__")):
        return "cli"
    if first in ("errors", "json_types"):
        return "ground"
    return first if first in ("spaces", "models", "search", "export") else "zoo"


MAY_IMPORT = {
    "ground": set(),
    "spaces": {"ground"},
    "models": {"ground", "spaces", "zoo"},
    "zoo": {"ground", "spaces", "models"},
    "search": {"ground", "spaces", "models", "zoo", "export"},
    "export": {"ground", "spaces", "models", "zoo"},
    "cli": {"ground", "spaces", "models", "zoo", "search", "export"},
}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows_point_one_way(module):
    """cli -> search, export -> the zoo -> models -> spaces, wherever in a file the import stands."""
    part = part_of(module)
    others = {other for other in imports(module, everywhere=True) if part_of(other) not in (part, *MAY_IMPORT[part])}
    if module == "bossnet_zoo.__main__":
        return
    assert not others
