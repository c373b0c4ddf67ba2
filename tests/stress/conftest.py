"""What the stress tests share: commands that start fast, a local Hub, and a tally that ends in README's table.

Run them with `make stress`; `--counts FILE` writes what was tried, survived and lost.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import warm
from hub_server import Hub, serve
from tiny_search import write_images
from warm import SEARCH

from bossnet_zoo.checkpoint import save_json

TALLY = "tally"  # name of the property in which a test's report carries its counts


class Tally:
    """Counts of one kind of fault within one test; leaving it as a context fails if anything was lost."""

    def __init__(self, fault: str, report: Callable[[str, object], None]):
        self.fault, self._report = fault, report
        self.tried, self.lost = 0, list[str]()

    def count(self, survived: bool, what: object = "") -> None:
        self.tried += 1
        if not survived:
            self.lost.append(str(what))

    def __enter__(self) -> Tally:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None:
            self.count(False, repr(error))
        self._report(TALLY, (self.fault, self.tried, len(self.lost)))
        if error is None and self.lost:
            pytest.fail(f"{self.fault}: lost {len(self.lost)} of {self.tried}:\n" + "\n".join(self.lost[:25]))


@pytest.fixture
def tally(record_property) -> Callable[[str], Tally]:
    return lambda fault: Tally(fault, record_property)


@pytest.fixture(scope="session", autouse=True)
def hub() -> Iterator[Hub]:
    """A local Hub, at which every command's HF_ENDPOINT points; nothing reaches another one."""
    with serve() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_TOKEN", "hf_secret")
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        warm.preload()
        yield server


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A folder of images without labels."""
    return write_images(tmp_path_factory.mktemp("images") / "images")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    """A folder of 64 + 16 images in two classes: `train/CLASS/*.png` and `val/CLASS/*.png`."""
    root = tmp_path_factory.mktemp("labelled") / "images"
    for part, count in (("train", 32), ("val", 8)):
        for name in ("cats", "dogs"):
            write_images(root / part / name, count)
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory, labelled) -> Path:
    """The folder of a finished training of a tiny network."""
    folder = tmp_path_factory.mktemp("trained")
    line = f"train test_bossnet_t --data {labelled} --recipe bossnet-t --smoke --epochs 1 --global-batch 16"
    done = warm.run([*line.split(), "--image-size", 32, "--out", folder / "run"], folder)
    assert done.code == 0, done
    return folder / "run"


@pytest.fixture(scope="session")
def searched(tmp_path_factory, images) -> Path:
    """The folder of a finished search in a tiny space, with a truth file and its ranking."""
    root = tmp_path_factory.mktemp("searched")
    run = root / "run"
    done = warm.run([*SEARCH.split(), "--data", images, "--out", run], root)
    assert done.code == 0, done
    accuracy = {f"{width}:8:16:8:{other}": width + other / 3 for width in (8, 16) for other in (8, 16)}
    save_json(run / "truth.json", {"space": "nats", "accuracy": accuracy})
    ranked = warm.run(["rank", "--ratings", run / "ratings.json", "--truth", run / "truth.json"], root)
    assert ranked.code == 0, ranked
    return run


# --- counts


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--counts", metavar="FILE", help="write what the stress tests tried and lost to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--counts") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Counts(Path(config.getoption("--counts"))))


class _Counts:
    """Adds up the tallies of all tests, on whatever worker they ran."""

    def __init__(self, file: Path):
        self.file, self.start = file, time.monotonic()
        self.rows: dict[str, list[int]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == TALLY:
                fault, tried, lost = value  # type: ignore[misc]
                row = self.rows.setdefault(fault, [0, 0])
                row[0] += tried
                row[1] += lost

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        faults = [
            {"fault": fault, "tried": tried, "survived": tried - lost, "lost": lost}
            for fault, (tried, lost) in sorted(self.rows.items())
        ]
        about = {"machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"}
        about |= {"minutes": round((time.monotonic() - self.start) / 60, 1), "failed_tests": session.testsfailed}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps({**about, "faults": faults}, indent=2) + "\n")
