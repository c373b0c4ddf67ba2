"""The report page in headless Chromium: no console errors, no overflow, both colour schemes. Run with -m slow."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from example_run import add_ranking, make_demo, make_search
from PIL import Image

from bossnet_zoo.search.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
]
LIGHT, DARK = (0xFA, 0xF9, 0xF5), (0x13, 0x15, 0x18)  # --paper

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium"),
]


def browse(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page; fail on whatever the browser's console has to say."""
    command = [BROWSER, *OPTIONS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    complaints = [line for line in finished.stderr.splitlines() if ":CONSOLE" in line]
    assert complaints == []
    return finished


@pytest.fixture(scope="module", params=["demo", "hytra", "mbconv", "nats", "unfinished"])
def report(request, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("browser") / "run"
    if request.param == "demo":
        make_demo(run)
    elif request.param == "unfinished":
        make_search(run, blocks=2)
    else:
        make_search(run, request.param, full=request.param == "hytra")
        add_ranking(run)
    return write_report(run)


@pytest.mark.parametrize(("scheme", "paper"), [("1", LIGHT), ("0", DARK)], ids=["light", "dark"])
def test_page_follows_the_colour_scheme_without_console_errors(report, tmp_path, scheme, paper):
    picture = tmp_path / "page.png"
    browse(
        report,
        tmp_path,
        f"--blink-settings=preferredColorScheme={scheme}",
        "--window-size=1200,2400",
        f"--screenshot={picture}",
    )
    image = Image.open(picture).convert("RGB")
    assert image.getpixel((2, 2)) == paper
    assert len(image.getcolors(maxcolors=1 << 24)) > 500  # there is something on it


@pytest.mark.parametrize("width", [360, 390, 768, 1200])
def test_nothing_overflows_the_screen(report, tmp_path, width):
    """Chromium's window cannot be as narrow as a phone, a frame can."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="frame" src="{report.as_uri()}" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>onload = () => { document.title = "
        "document.getElementById('frame').contentDocument.documentElement.scrollWidth }</script>"
    )
    document = browse(frame, tmp_path, "--window-size=1400,1000", "--dump-dom").stdout
    found = re.search(r"<title>(\d+)</title>", document)
    assert found is not None
    assert int(found[1]) <= width


def test_console_errors_would_be_seen(report, tmp_path):
    """The page's own policy forbids scripts; one that slipped in is refused, and the refusal is noticed."""
    page = tmp_path / "page.html"
    page.write_text(report.read_text(encoding="utf-8").replace("</main>", "<script>1</script></main>"))
    with pytest.raises(AssertionError, match="Executing inline script"):
        browse(page, tmp_path, "--dump-dom")
