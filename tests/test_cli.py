"""The command line: examples that exist, names that are suggested, errors in one sentence with their exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import threading

import click
import pytest
import typer
from tiny_search import SPACE_OPTIONS, tiny_settings, write_images

from bossnet_zoo import cli, console
from bossnet_zoo.commands import complete_model
from bossnet_zoo.models import model_names
from bossnet_zoo.search.run_folder import read_config, resume_settings


def commands(app: typer.Typer) -> dict[tuple[str, ...], click.Command]:
    """Every command and group by its words, `("latency", "build")` for one in a group, () for the program."""
    found: dict[tuple[str, ...], click.Command] = {}
    pending: list[tuple[tuple[str, ...], click.Command]] = [((), typer.main.get_command(app))]
    while pending:
        words, command = pending.pop()
        found[words] = command
        pending += [((*words, name), child) for name, child in getattr(command, "commands", {}).items()]
    return found


INSIDE_A_FILE = f"{sys.executable}/run"
DIGITS = ("--data", "digits", "--smoke")
LIMITED = (
    *(
        "--resolution",
        "--throughput",
        "--sample",
        "--seeds",
        "--num-classes",
        "--check",
        "--rounds",
        "--epochs",
        "--save-every",
        "--device-batch",
        "--workers",
    ),
    *("--batch", "--input-size", "--top", "--threads"),
)  # options whose range the parser itself checks
EVERYTHING = dict(sorted(commands(cli.whole_app()).items()))  # groups too
COMMANDS = {words: command for words, command in EVERYTHING.items() if not hasattr(command, "commands")}


def run(monkeypatch, capfd, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `bossnet ARGUMENTS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["bossnet", *arguments])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    printed, notes = capfd.readouterr()
    return code, printed, notes


# --- errors


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["search", "--preset", "demo", "--space", "hytar"], 2, "unknown space 'hytar'; did you mean hytra?"),
        (["search", "--preset", "papre"], 2, "unknown preset 'papre'; did you mean paper?"),
        (["search", "--preset", "demo", "--method", "bosnas"], 2, "unknown method 'bosnas'; did you mean bossnas"),
        (["search"], 2, "the paper's search needs images: type --data FOLDER"),
        (["search", "--preset", "demo", "--data", "digts"], 2, "data 'digts' is no folder and no known name"),
        (["search", "--dry-run", "--data", "digit"], 2, "did you mean digits?"),
        (["info", ""], 2, "the name of the model is empty"),
        (["info", "here/net"], 2, "here/net does not exist; give a run's folder or a network's name"),
        (["predict", "net.pth", "a.png"], 2, "net.pth does not exist; give a run's folder, or a network's name with"),
        (["export", "test_bossnet_t", "--out", INSIDE_A_FILE], 2, "is a file; type another --out"),
        (["export", "4c-8c"], 2, "4c-8c has no published weights; give a file of them with --weights, or train it: "),
        (["search", "--preset", "demo", "--epochs", "0"], 2, "epochs is 0; it must be at least 1"),
        (["search", "--preset", "demo", "--space", "nats", "--resolution", "1"], 2, "it must be at least 8"),
        (["search", "--preset", "demo", "--target-momentum", "2"], 2, "target_momentum is 2.0; it must be between"),
        (["search", "--preset", "demo", "--base-lr", "inf"], 2, "base_lr is inf; it must be positive and finite"),
        (["info", "bossnet_t0.nope"], 2, "did you mean bossnet_t0.in1k or bossnet_t0.ema_in1k?"),
        (["train", "--resume", "nope"], 2, "nope is no training run"),
        (["search", "--preset", "demo", "--max-madds", "many"], 2, "--max-madds 'many' is no amount"),
        (["search", "--preset", "demo", "--space-option", "base_widht=8"], 2, "did you mean base_width?"),
        (["search", "--preset", "demo", "--device", "gpu"], 2, "unknown device 'gpu'; allowed: auto, cpu"),
        (["search", "--preset", "demo", "--global-batch", "65"], 2, "type --global-batch 64"),
        (["search", "--resume", "RUN", "--out", "OTHER"], 2, "leave out --out, --overwrite and --dry-run"),
        (["search", "--resume", "nowhere"], 2, "nowhere is no run directory: it has no config.json"),
        (["info", "bossnet_t0", "--option", "base_width=foo"], 2, "bossnet_t0 cannot be built with base_width='foo'"),
        (["info", "bossnet_t0", "--option", "base_width=-8"], 2, "base_width is -8; it must be at least 1"),
        (["info", "bossnet_t0", "--option", "base_width=0"], 2, "base_width is 0; it must be at least 1"),
        (["info", "nats_size", "--option", "num_classes=-1"], 2, "num_classes is -1; it must be at least 0"),
        (["info", "bossnet_t0", "--option", "base_widht=8"], 2, "did you mean base_width? known: act_layer"),
        (["info", "resnet50", "--option", "foo=8"], 2, "unknown option of resnet50, 'foo'; known: block, layers, "),
        (["search", "--preset", "demo", "--out", INSIDE_A_FILE], 2, "is a file; type another --out"),
        (["demo", "--out", INSIDE_A_FILE], 2, "is a file; type another --out"),
        (["truth", "--space", "nats", *DIGITS, "--sample", "2", "--out", INSIDE_A_FILE], 2, "type another --out"),
        (["train", "test_bossnet_t", *DIGITS, "--recipe", "bossnet-t", "--out", INSIDE_A_FILE], 2, "another --out"),
        (["report", "nowhere"], 2, "nowhere is no folder"),
        (["search", "--preset", "demo", "--seed", "-1"], 2, "--seed -1 is not possible; type a whole number from 0"),
        (["search", "--preset", "demo", "--seed", "5000000000"], 2, "from 0 to 2**32 - 1"),
        (["truth", "--seed", "-1"], 2, "--seed -1 is not possible"),
        (["train", "test_bossnet_t", "--seed", "-1"], 2, "--seed -1 is not possible"),
        (["rank", "--ratings", "FILE", "--seed", "-1"], 2, "--seed -1 is not possible"),
        (["extract", "nowhere", "--out", "OUT"], 2, "nowhere is no run directory"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_one_sentence(monkeypatch, capfd, tmp_path, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    ended, printed, notes = run(monkeypatch, capfd, *arguments)
    assert ended == code
    assert printed == ""
    (last,) = notes.strip().splitlines()  # no warning of a library, and no work begun
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in notes
    assert not list(tmp_path.iterdir())  # nothing is left behind


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "bossnet_t0", "--resolution", "-5"],
        ["info", "bossnet_t0", "--resolution", "1000000000"],
        ["search", "--preset", "demo", "--throughput", "0", "--dry-run"],
        ["truth", "--sample", "0"],
        ["truth", "--seeds", "0"],
        ["extract", "RUN", "--out", "OUT", "--num-classes", "-1"],
        ["latency", "build", "nats", "--check", "-1"],
        ["latency", "build", "nats", "--rounds", "0"],
        ["train", "test_bossnet_t", "--epochs", "0"],
        ["train", "test_bossnet_t", "--save-every", "0"],
        ["train", "test_bossnet_t", "--device-batch", "0"],
        ["train", "test_bossnet_t", "--workers", "-1"],
        ["eval", "test_bossnet_t", "--batch", "0"],
        ["eval", "test_bossnet_t", "--input-size", "0"],
        ["predict", "test_bossnet_t", "x.png", "--top", "0"],
        ["benchmark", "test_bossnet_t", "--threads", "-1"],
    ],
    ids=" ".join,
)
def test_a_number_out_of_range_says_what_the_range_is(monkeypatch, capfd, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    code, printed, notes = run(monkeypatch, capfd, *arguments)
    assert code == 2
    assert printed == ""
    assert f"Invalid value for '{next(word for word in arguments if word in LIMITED)}'" in notes
    assert "Input should be" in notes
    assert not list(tmp_path.iterdir())


def test_a_failure_ends_with_exit_code_1(monkeypatch, capfd, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments = ["search", "--preset", "demo", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "run")]
    code, _, notes = run(monkeypatch, capfd, *arguments)
    assert code in (1, 2)
    assert str(tmp_path / "empty") in notes.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()
    (tmp_path / "config.json").write_text('{"kind": "train", "cut sh')
    code, _, notes = run(monkeypatch, capfd, "eval", str(tmp_path))
    assert code == 1
    assert "is not valid JSON" in notes
    assert notes.endswith("; bring it back from a copy, or begin anew\n")


def test_a_full_disk_is_one_sentence_whoever_writes(monkeypatch, capfd):
    def write() -> None:  # as TensorBoard's writer does, which is no code of ours
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "whole_app", lambda: write)
    assert run(monkeypatch, capfd, "list")[::2] == (
        1,
        "error: [Errno 28] No space left on device; free some space or choose another --out\n",
    )


def test_a_full_disk_met_in_a_thread_prints_no_traceback(monkeypatch, capfd):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    run(monkeypatch, capfd, "--version")
    for number, said in ((errno.ENOSPC, False), (errno.EIO, True)):
        error = OSError(number, "in a thread")
        threading.excepthook(threading.ExceptHookArgs((OSError, error, None, None)))
        assert ("in a thread" in capfd.readouterr().err) == said


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise():
    script = (
        "import os, sys, bossnet_zoo.cli as cli; assert 'torch' not in sys.modules\n"
        "try: cli.main()\n"
        "except SystemExit: print(os.environ['OMP_WAIT_POLICY'])"
    )
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        environment |= {"OMP_WAIT_POLICY": given} if given else {}
        command = [sys.executable, "-c", script, "--version"]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert answer.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize(
    "arguments", ["--quiet search --preset papre", "search --preset papre --quiet", "search -q --preset papre"]
)
def test_quiet_leaves_errors(monkeypatch, capfd, arguments):
    code, _, notes = run(monkeypatch, capfd, *arguments.split())
    assert code == 2
    assert "unknown preset 'papre'" in notes


@pytest.mark.parametrize("arguments", ["-q latency show FILE", "latency show FILE -q", "latency show --quiet FILE"])
def test_quiet_stands_before_and_behind_every_command(monkeypatch, capfd, tmp_path, arguments):
    said = []
    monkeypatch.setattr("bossnet_zoo.search.latency.read_latency", lambda _: said.append(console.notes.quiet))
    with contextlib.suppress(AttributeError):  # there is no table to show
        run(monkeypatch, capfd, *arguments.split())
    assert said == [True]
    assert {"--quiet"} <= {option for words in COMMANDS for p in COMMANDS[words].params for option in p.opts}


def test_quiet_behind_an_option_is_its_value(monkeypatch, capfd, tmp_path):
    """As for every program: what follows --space is a space."""
    code, _, notes = run(monkeypatch, capfd, "search", "--preset", "demo", "--space", "-q")
    assert code == 2
    assert "unknown space '-q'" in notes or "requires an argument" in notes


# --- one document


def test_with_json_nothing_else_reaches_stdout(monkeypatch, capfd):
    def describe(name: str) -> dict[str, str]:
        print("a library says something")
        console.results.print("and so do we")
        console.note("and a note")
        return {"space": name}

    monkeypatch.setattr("bossnet_zoo.describe.describe_space", describe)
    code, printed, notes = run(monkeypatch, capfd, "space", "hytra", "--json")
    assert (code, json.loads(printed)) == (0, {"space": "hytra"})
    assert notes.splitlines() == ["a library says something", "and so do we", "and a note"]


def test_every_command_that_prints_a_result_has_json():
    with_json = {words for words, command in COMMANDS.items() if any("--json" in p.opts for p in command.params)}
    assert with_json == set(COMMANDS)


# --- completion and interruption


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("bossnet ex", {"export", "extract"}),
        ("bossnet info bossnet_t", {"bossnet_t0", "bossnet_t0_nose", "bossnet_t1"}),
        ("bossnet space m", {"mbconv"}),
        ("bossnet train bossnet_t0 --recipe f", {"finetune"}),
        ("bossnet search --preset ", {"paper", "demo"}),
        ("bossnet search --space n", {"nats"}),
        ("bossnet latency build --runtime o", {"onnxruntime"}),
        ("bossnet eval runs/no", set()),  # so the shell offers files
    ],
)
def test_the_shell_completes_commands_and_names(words, offered):
    line = words.split(" ")
    environment = os.environ | {
        "_BOSSNET_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(line) - 1),
    }
    script = "import sys; sys.argv = ['bossnet']; from bossnet_zoo.cli import main; main()"
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert set(answer.stdout.split()) == offered


def test_the_names_that_are_completed_are_those_of_the_models():
    assert sorted(complete_model("")) == model_names()


def test_an_interrupted_run_says_where_it_is_and_what_goes_on_with_it(monkeypatch, capfd, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "a run"
    monkeypatch.setattr("bossnet_zoo.search.run.search", interrupted)
    code, printed, notes = run(monkeypatch, capfd, "search", "--preset", "demo", "--out", str(out))
    assert (code, printed) == (130, "")
    assert notes == f"interrupted; what is finished is in {out}; go on with: bossnet search --resume '{out}'\n"
    monkeypatch.setattr("bossnet_zoo.train.train", interrupted)
    arguments = "train test_bossnet_t --data digits --recipe bossnet-t --smoke --out runs/none"
    monkeypatch.chdir(tmp_path)
    code, _, notes = run(monkeypatch, capfd, *arguments.split())
    assert (code, notes) == (130, "interrupted before runs/none was begun; nothing is left behind\n")
    monkeypatch.setattr("bossnet_zoo.search.demo.run_demo", interrupted)
    code, _, notes = run(monkeypatch, capfd, "demo", "--out", str(out))
    assert notes.endswith(f"begin anew with: bossnet demo --overwrite --out '{out}'\n")


# --- search


def test_a_plan_is_printed_and_nothing_written(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, printed, _ = run(monkeypatch, capfd, "search", "--preset", "demo", "--data", "digits", "--dry-run")
    assert code == 0
    assert printed.startswith("hytra: 2,818,103 architectures, 4 blocks, greedy coverage\n")
    assert "1,078 images to train on, 359 to rate on, 64 px" in printed
    assert re.search(r"hours\nat [\d.e-]+ TFLOP/s a process, measured with a convolution on this CPU", printed)
    assert len(re.findall(r"^ *[1-4] +1 of [14] ", printed, re.MULTILINE)) == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [[], ["--data", "IMAGENET"]])
def test_a_plan_without_images_assumes_those_of_imagenet_and_says_so(monkeypatch, capfd, tmp_path, given):
    monkeypatch.chdir(tmp_path)
    code, printed, _ = run(monkeypatch, capfd, "search", "--dry-run", *given)
    assert code == 0
    assert "assumed, as of ImageNet: 1,231,167 images to train on, 50,000 to rate on, 224 px" in printed
    assert "so 1,281,167 images are assumed;\ntype --data FOLDER" in printed
    assert max(map(len, printed.splitlines())) <= 80
    (tmp_path / "file").touch()
    code, _, notes = run(monkeypatch, capfd, "search", "--dry-run", "--data", "file")
    assert (code, "'file' is no folder" in notes) == (2, True)


def test_a_plan_takes_the_speed_that_is_given(monkeypatch, capfd):
    code, printed, _ = run(monkeypatch, capfd, "search", "--preset", "demo", "--dry-run", "--throughput", "2")
    assert (code, "at 2 TFLOP/s a process, as given" in printed) == (0, True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], (True, 1_231_167, 50_000, 4)), (["--data", "cifar100", "--space", "nats"], (False, 50_000, 5_000, 3))],
)
def test_a_plan_as_json_tells_whether_its_images_are_assumed(monkeypatch, capfd, given, expected):
    code, printed, _ = run(monkeypatch, capfd, "search", "--dry-run", "--json", *given)
    about = json.loads(printed)
    assert about["hours"] == pytest.approx(about["madds"] * 2 / about["tflops"] / 1e12 / 3600)
    found = (about["images_assumed"], about["train_images"], about["rated_images"], len(about["blocks"]))
    assert (code, found) == (0, expected)


def test_a_search_from_the_command_line_has_the_settings_asked_for(monkeypatch, capfd, tmp_path):
    expected = tiny_settings(write_images(tmp_path / "images"), seed=3, max_madds=2_000_000)
    options = {"data": str(tmp_path / "images"), "seed": 3, "max-madds": "2M"}
    for name in (
        "resolution",
        "epochs",
        "global_batch",
        "micro_batch",
        "num_paths",
        "calibration_images",
        "workers",
        "rating_images",
        "hidden",
        "projection",
    ):
        options[name.replace("_", "-")] = getattr(expected, name)
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    for name, value in SPACE_OPTIONS["hytra"].items():
        arguments += ["--space-option", f"{name}={json.dumps(value)}"]
    out = tmp_path / "run"
    code, printed, notes = run(monkeypatch, capfd, "search", "--preset", "demo", "--out", str(out), *arguments)
    assert code == 0
    asked = resume_settings(out).to_json()
    assert asked == json.loads(json.dumps(expected.to_json()))
    best = json.loads((out / "architectures.json").read_text())[0]
    assert printed.startswith(f"{best['architecture']}  score {best['score']:.4f}")
    assert "next: bossnet " in notes
    searched = (
        "hytra: 48 architectures, with block_layers=[1,2], base_width=8, se=false, act_layer=relu, num_classes=10, "
    )
    assert notes.count(searched + "default_resolution=32 (2,818,103 architectures without options)") == 2
    again, printed_again, _ = run(monkeypatch, capfd, "search", "--resume", str(out))
    assert (again, printed_again) == (0, printed)
    code, _, notes = run(monkeypatch, capfd, "search", "--resume", str(out), "--epochs", "9")
    assert code == 2
    assert "was started with --epochs 1, not 9" in notes
    assert read_config(out)["preset"] == "demo"


def test_the_module_is_the_same_program(tmp_path):
    """As torchrun needs it: torchrun -m bossnet_zoo search ..."""
    command = [sys.executable, "-m", "bossnet_zoo", "search", "--preset", "papre"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert "unknown preset 'papre'; did you mean paper?" in result.stderr
