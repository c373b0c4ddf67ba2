"""The whole story once, on real images, in minutes: search, solve, retrain, export, report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bossnet_zoo import console
from bossnet_zoo.checkpoint import save_json
from bossnet_zoo.datasets import open_images
from bossnet_zoo.drawing import architecture_text
from bossnet_zoo.export.extras import need_onnx
from bossnet_zoo.recipes import BOSSNET_T
from bossnet_zoo.runs import load_run
from bossnet_zoo.runtime import Runtime
from bossnet_zoo.spaces import Arch, Space, describe_in_words
from bossnet_zoo.train import train

from .report import write_report
from .run import search, start_run
from .run_folder import check_folder
from .settings import DEMO

REFERENCE = "4ccc-8cccc-16cccccc-32ccc"  # ResNet-50 as a member of the space


def run_demo(out: Path, runtime: Runtime, *, seed: int = 0, overwrite: bool = False) -> Path:
    """Run the demo into `out`; returns the path of its report.

    Raises:
        UsageError: `out` already holds something, or ONNX Runtime is not installed.
        BossNetError: a step failed.
    """
    need_onnx()  # missed before anything is trained

    check_folder(out, overwrite)  # before it announces anything
    space = DEMO.make_space()
    budget = space.cost(space.parse(REFERENCE)).madds
    settings = replace(DEMO, seed=seed, max_madds=budget)
    parts = {part: open_images(settings.data, part, seed=seed) for part in ("search-train", "search-val", "test")}
    console.note(
        f"1. {len(parts['search-train']):,} handwritten digits to search on, {len(parts['search-val'])} to rate on, "
        f"{len(parts['test'])} to test on; {settings.resolution} px ({runtime.description})"
    )

    console.note("2. training a supernet block by block, without labels; rating every path")
    started = time.perf_counter()
    start_run(out, settings, runtime, "demo", overwrite)
    result = search(settings, out, runtime)
    found, search_seconds = result.best[0], time.perf_counter() - started

    rated = round(result.table.coverage(space) * space.count())
    console.note(
        f"3. the best of {rated:,} rated architectures (of {space.count():,}) under {budget / 1e6:.2f} M multiply-adds:"
    )
    console.results.print(architecture_text(found.arch))

    console.note("4. retraining it with labels, and a plain network beside it")
    networks = [("found", found.arch), ("reference", space.parse(REFERENCE))]
    with runtime.threads(settings.threads):
        retrained = [_retrain(name, arch, space, out, runtime, seed) for name, arch in networks]

    console.note("5. exporting to ONNX, and comparing with PyTorch")
    export = _export(out, settings.resolution)

    demo = {
        "data": {
            "name": settings.data,
            "train": len(parts["search-train"]),
            "search_val": len(parts["search-val"]),
            "test": len(parts["test"]),
            "classes": len(parts["test"].class_names or ()),
        },
        "space": describe_in_words(space),
        "budget_madds": budget,
        "architecture": str(found.arch),
        "reference": REFERENCE,
        "retrained": retrained,
        "export": export,
        "commands": _commands(out, found.arch),
        "seconds": {"search": search_seconds, "retrain": sum(row["seconds"] for row in retrained)},
    }
    save_json(out / "demo.json", demo)
    page = write_report(out)
    _print_end(demo, out, page)
    return page


def _retrain(name: str, arch: Arch, space: Space, out: Path, runtime: Runtime, seed: int) -> dict[str, Any]:
    recipe, cost = BOSSNET_T.smoke(), space.cost(arch)
    folder = out / "retrain" / name
    options = space.model_options()
    result = train(
        *(arch, DEMO.data, recipe, folder, runtime),
        model_options=options,
        seed=seed,
        workers=DEMO.workers,
        test_every=2,  # enough points for the report's curve, in half the time
        tensorboard=False,
    )
    console.results.print(f"   {name}: {arch}  test accuracy {result.top1:.2f} %", markup=False)
    return {
        "name": name,
        "architecture": str(arch),
        "top1": result.top1,
        "params": cost.params,
        "madds": cost.madds,
        "seconds": result.seconds,
    }


def _export(out: Path, resolution: int) -> dict[str, Any]:
    from bossnet_zoo.export.onnx import export_onnx

    model, config = load_run(out / "retrain" / "found", "model")
    size = (3, resolution, resolution)
    report = export_onnx(model, out / "export" / "found.onnx", input_size=size, class_names=config["class_names"])
    for parity in report.parity:
        console.results.print(f"   batch {parity.batch}: largest difference {parity.max_abs:.1e}")
    return {
        "file": str(report.file),
        "bytes": report.bytes,
        "parity": [parity._asdict() for parity in report.parity],
    }


def _commands(out: Path, arch: Arch) -> list[tuple[str, str]]:
    found = out / "retrain" / "found"
    same = "--weights model"  # those that the demo measured and exported: the last ones, not the best on test images
    return [
        ("Other architectures that this search rates well", f"bossnet solve --ratings {out}/ratings.json --top 5"),
        ("Every worthwhile trade-off of score and cost", f"bossnet solve --ratings {out}/ratings.json --pareto"),
        ("Measure the network again", f"bossnet eval {found} --data digits {same}"),
        ("Classify an image of your own", f"bossnet predict {found} IMAGE.png {same}"),
        ("Export with TensorRT-RTX too", f"bossnet export {found} --onnx --trt-rtx {same} --out {out}/export"),
        ("Search on your own images", "bossnet search --space hytra --data FOLDER --preset demo --out runs/mine"),
        ("The paper's search on ImageNet, planned", "bossnet search --space hytra --data IMAGENET --dry-run"),
    ]


def _print_end(demo: dict[str, Any], out: Path, page: Path) -> None:
    found, reference = demo["retrained"]
    worst = max(parity["max_abs"] for parity in demo["export"]["parity"])
    console.results.print(
        f"\nsearched   {demo['space']}\n"
        f"found      {found['architecture']}  {found['top1']:.2f} %  {found['madds'] / 1e6:.2f} M MAdds\n"
        f"reference  {reference['architecture']}  {reference['top1']:.2f} %  {reference['madds'] / 1e6:.2f} M MAdds\n"
        f"ONNX       {demo['export']['file']}, at most {worst:.1e} from PyTorch\n"
        f"report     {page}\n"
        f"everything {out}\n\n"
        f"next: bossnet solve --ratings {out}/ratings.json --top 5",
        markup=False,
    )
