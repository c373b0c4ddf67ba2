"""An empty folder, as a shell variable that is not set leaves one, is refused before anything is written."""

from __future__ import annotations

import pytest
from test_cli import run


@pytest.mark.parametrize(
    "words",
    [
        ("search", "--preset", "demo", "--out", ""),
        ("search", "--resume", ""),
        ("truth", "--space", "nats", "--data", "digits", "--sample", "2", "--out="),
        ("train", "bossnet_t0", "--data", "digits", "--out", ""),
        ("export", "bossnet_m1", "--untrained", "--out", ""),
    ],
    ids=lambda words: words[0],
)
def test_an_empty_folder_is_refused_in_one_sentence(monkeypatch, capfd, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    code, printed, notes = run(monkeypatch, capfd, *words)
    assert (code, printed) == (2, "")
    assert " ".join(notes.split()) in (
        "error: --out is empty; type a folder, as in --out runs/mine, or . for the current one",
        "error: --resume is empty; type a folder, as in --resume runs/mine, or . for the current one",
    )
    assert not list(tmp_path.iterdir())
