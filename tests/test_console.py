"""The terminal: how far work is, and how Ctrl-C, a mistake, a full disk and a closed pipe end."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import convcircuits as cc
from convcircuits.cli import console

pytestmark = pytest.mark.slow

INTERRUPTED = "interrupted; nothing was left half written\n"
START = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background may have had it ignored
wanted = {wanted!r}

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from convcircuits.cli import main
main()
"""
NET = """
import atexit, os, signal
from pathlib import Path
from torch import nn
from convcircuits.zoo.preprocessing import Preprocess

def now(moment):
    if os.environ.get("MOMENT") == moment:
        os.kill(os.getpid(), signal.SIGINT)

plain = Preprocess(size=(20, 20), resize=(22, 22))

def preprocess(image):
    if image.size == (36, 30):
        now("photographs")
    return plain(image)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3))

    def forward(self, x):
        now("forward")
        if len(x) == 3:
            now("batch")
        return self.net(x)

def net():
    now("factory")
    atexit.register(now, "exit")
    return Net()
"""
FIND = "find --model own_net:net --feature net.2:2 --images pictures --count 3 --density 0.5 --out a.safetensors"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    Path("own_net.py").write_text(NET)
    Path("pictures").mkdir()
    for name in "abcdef":
        Image.effect_mandelbrot((36, 30), (-2, -1, 1, 1), ord(name)).convert("RGB").save(f"pictures/{name}.png")
    return tmp_path


def command(line, wanted=None, **options):
    """Run the command in a process of its own; Ctrl-C comes when the wanted module is to be imported."""
    program = [sys.executable, "-c", START.format(wanted=wanted), *shlex.split(line)]
    return subprocess.run(program, timeout=600, **{"capture_output": True, "text": True} | options)


def told(err):
    """Give what stands on standard error, without the lines that say how far the work is."""
    return "".join(line for line in err.splitlines(keepends=True) if not re.search(r"\(\d+ s\)\n$", line))


# --- Ctrl-C


@pytest.mark.parametrize("module", ["convcircuits.cli.application", "torch", "numpy", "typer"])
def test_ctrl_c_during_imports_is_one_line_and_exit_code_130(module):
    ended = command("models", module)
    assert (ended.returncode, ended.stdout, told(ended.stderr)) == (130, "", INTERRUPTED)


@pytest.mark.parametrize("moment", ["factory", "photographs", "forward", "batch"])
def test_ctrl_c_during_work_is_one_line_and_exit_code_130(moment, folder):
    before = sorted(folder.rglob("*"))
    ended = command(FIND, env={**os.environ, "MOMENT": moment})
    assert (ended.returncode, ended.stdout, told(ended.stderr)) == (130, "", INTERRUPTED)
    assert sorted(folder.rglob("*")) == before


def test_ctrl_c_after_the_work_is_one_line_and_exit_code_130_and_the_file_is_whole(folder):
    ended = command(FIND, env={**os.environ, "MOMENT": "exit"})
    assert (ended.returncode, told(ended.stderr)) == (130, INTERRUPTED)
    assert len(cc.load("a.safetensors"))


def test_a_ctrl_c_that_the_parent_has_had_ignored_stays_ignored(folder):
    program = START.replace("default_int_handler", "SIG_IGN").format(wanted="torch")
    line = [sys.executable, "-c", program, *shlex.split(FIND)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=600, env={**os.environ, "MOMENT": "batch"})
    assert (ended.returncode, told(ended.stderr)) == (0, "")


# --- standard output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@pytest.mark.parametrize("line", ["models --json", "--help"])
def test_a_full_standard_output_is_one_sentence(line):
    with Path("/dev/full").open("w") as full:
        ended = command(line, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 1
    assert told(ended.stderr) == "error: standard output cannot be written: No space left on device.\n"


@pytest.mark.parametrize("line", ["models", "models --json"])
def test_a_closed_pipe_ends_the_command_silently(line):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = command(line, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (ended.returncode, told(ended.stderr)) == (141, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_character_is_written_in_any_encoding(encoding):
    said = "R² is .5 · 3 × 3 → ﬁ \udce9"
    program = f"from convcircuits.cli.console import run\nrun(lambda: lambda prog_name: print({said!a}))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    expected = {
        "ascii": "R2 is .5 - 3 x 3 -> \\ufb01 \\udce9",
        "latin-1": "R² is .5 · 3 × 3 -> \\ufb01 \\udce9",
        "utf-8": "R² is .5 · 3 × 3 → ﬁ \\udce9",
    }
    assert ended.stdout.decode(encoding) == expected[encoding] + "\n"


@pytest.mark.parametrize("line", ["find --help", FIND])
def test_the_command_needs_no_more_than_ascii(line, folder):
    ended = command(line, env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"})
    assert (ended.returncode, told(ended.stderr)) == (0, "")
    assert ended.stdout.isascii()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@pytest.mark.parametrize(("line", "code"), [("nonsense", 2), ("show no.safetensors", 1), ("--version", 0)])
def test_a_full_standard_error_changes_no_exit_code(line, code):
    with Path("/dev/full").open("w") as full:
        ended = command(line, capture_output=False, stdout=subprocess.PIPE, stderr=full)
    assert ended.returncode == code


def test_a_closed_standard_output_is_no_error():
    program = shlex.join([sys.executable, "-m", "convcircuits", "models"])
    ended = subprocess.run(["sh", "-c", f"{program} >&-"], capture_output=True, text=True, timeout=600)
    assert (ended.returncode, told(ended.stderr)) == (0, "")


# --- mistakes


def ending(application, capsys):
    with pytest.raises(SystemExit) as end:
        console.run(lambda: application)
    return end.value.code, *capsys.readouterr()


def test_a_mistake_is_one_line_whatever_is_in_it(capsys, monkeypatch):
    def application(prog_name):
        raise cc.ConvCircuitsError("layer 'a\nb\x1b[31m' is unknown\tsay R²")

    assert ending(application, capsys) == (1, "", r"error: layer 'a b\x1b[31m' is unknown say R²" + "\n")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_memory_that_runs_out_is_one_line(error, capsys):
    def application(prog_name):
        raise error

    code, out, err = ending(application, capsys)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: out of memory; run fewer images at once (--batch-size)")


def test_a_fault_of_our_own_is_not_hidden():
    def application(prog_name):
        raise RuntimeError("expected a contiguous memory format")

    with pytest.raises(RuntimeError, match="contiguous"):
        console.run(lambda: application)


def test_signal_and_output_are_as_before(capsys):
    before = signal.getsignal(signal.SIGINT), sys.stdout
    assert ending(lambda prog_name: sys.stdout.write("said\n"), capsys) == (0, "said\n", "")
    assert (signal.getsignal(signal.SIGINT), sys.stdout) == before


# --- how far the work is


def test_long_work_says_every_few_seconds_what_it_does(capsys, monkeypatch):
    monkeypatch.setattr(console, "EVERY", 0.05)

    def application(prog_name):
        time.sleep(0.12)
        with console.progress("loading"):
            time.sleep(0.12)
        with console.progress("scoring with force") as progress:
            time.sleep(0.12)
            progress(1200, 9600)
            time.sleep(0.12)
            progress(1300, None)
            time.sleep(0.12)
            progress.phase("measuring")
            time.sleep(0.12)
            progress(3, 12)
            time.sleep(0.12)
        time.sleep(0.12)

    code, out, err = ending(application, capsys)
    assert (code, out) == (0, "")
    lines = [re.fullmatch(r"(.*) \(\d+ s\)", line)[1] for line in err.splitlines()]
    assert list(dict.fromkeys(lines)) == [
        "starting",
        "loading",
        "scoring with force",
        "scoring with force: 1,200 of 9,600",
        "scoring with force: 1,300",
        "measuring",
        "measuring: 3 of 12",
        "working",
    ]
    assert 8 <= len(lines) <= 28


def test_progress_of_a_command_in_a_pipe(folder):
    """On standard error it is said from the start on how far it is; the result is as ever."""
    program = START.format(wanted=None).replace("main()", "import convcircuits.cli.console as c; c.EVERY = 0.2; main()")
    line = [sys.executable, "-c", program, *shlex.split(f"{FIND} --criterion force --json")]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert (ended.returncode, told(ended.stderr)) == (0, "")
    assert ended.stderr.startswith("starting (0 s)\n")
    assert json.loads(ended.stdout)["file"] == "a.safetensors"


def test_short_work_says_nothing(capsys):
    assert ending(lambda prog_name: None, capsys) == (0, "", "")


def test_a_terminal_shows_a_bar_in_place_of_lines(capsys, monkeypatch):
    importlib.import_module("rich.progress")  # which takes longer than the time between lines
    monkeypatch.setattr(console, "EVERY", 0.1)
    monkeypatch.setattr(console, "_is_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")

    def application(prog_name):
        with console.progress("scoring") as progress:
            progress(3, 12)
            time.sleep(0.5)
            progress.phase("measuring")
            progress(4, 70)
            time.sleep(0.5)
            progress.phase("patches")
            time.sleep(0.5)

    code, _, err = ending(application, capsys)
    assert code == 0
    assert "scoring" in err
    assert "3/12" in err
    assert err.index("3/12") < err.index("measuring") < err.index("4/70") < err.index("patches")
    assert "3/70" not in err
    assert "4/70" not in err[err.index("patches") :]  # what begins is counted from nothing
    assert not re.search(r"\(\d+ s\)\n", err)
