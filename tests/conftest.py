"""Settings that all tests share."""

import contextlib
import ctypes
import functools
import gc
import logging
import os
import sys
from collections import Counter

import pytest
import torch
from hypothesis import settings

from convcircuits.circuits import evaluation, scoring
from convcircuits.cli import console
from convcircuits.compiler import extraction
from convcircuits.drawing import pictures
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from needs import find_chromium
from nets import NETS

settings.register_profile("untimed", deadline=None)  # no test depends on how busy the machine is
settings.load_profile("untimed")

# The networks are tiny: threads cost more than they gain, and two workers share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# pytest listens to every logger that does not propagate. To this one, torch would describe each tensor that it traces,
# with the whole stack, which takes as long as tracing.
trace = logging.getLogger("torch.__trace")
trace.propagate = True
trace.handlers.clear()

# glibc returns every block of more than 128 KiB to the system at once, and the next costs page faults: in some files
# as much time as the tests. (M_MMAP_THRESHOLD and M_TRIM_THRESHOLD; other C libraries are left alone.)
with contextlib.suppress(OSError, AttributeError):
    glibc = ctypes.CDLL("libc.so.6")
    glibc.mallopt(-3, 2**25)
    glibc.mallopt(-1, 2**30)

# `make check` runs a law of all nets on these alone: residual connections, depthwise kernels, a Linear on a flattened
# map. On the others it has the marker oracle.
FEW = {"residual", "mobile", "flat_head"}

# Workers take whole files. These take long for the few tests that they have: taken last, they would keep one worker
# alone. (make test tells xdist to keep this order.)
FIRST = {"test_shapes", "test_explorer_pages", "test_explorer_server", "test_splitting", "test_trajectory", "test_docs"}
FIRST |= {"test_fidelity", "test_onnx_export", "test_atlas_cluster", "test_crossing", "test_console", "test_devices"}


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their markers
def pytest_collection_modifyitems(items):
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.stem not in FIRST, -tests[item.path]))
    for item in items:
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        if isinstance(name, str) and name in NETS.keys() - FEW:
            item.add_marker("oracle")


@pytest.fixture(autouse=True, scope="module")
def modules_of_the_tests(tmp_path_factory):
    """Forget the modules that a file of tests wrote and imported: another may write modules of the same names."""
    paths, before, written = [*sys.path], {*sys.modules}, str(tmp_path_factory.getbasetemp())
    yield
    sys.path[:] = paths
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(written):
            del sys.modules[name]


@pytest.fixture(autouse=True, scope="session")
def quick_feature_pictures():
    """The feature's picture is a part of every diagram; few tests look at it."""
    steps, pictures.TARGET_STEPS = pictures.TARGET_STEPS, 2
    yield
    pictures.TARGET_STEPS = steps


@pytest.fixture(autouse=True, scope="session")
def commands_say_nothing_of_their_progress():
    """Else what is on standard error depends on how slow the machine is. Tests of progress set this themselves."""
    every, console.EVERY = console.EVERY, 1e6
    yield
    console.EVERY = every


@pytest.fixture
def sizes_are_tried_once(monkeypatch):
    """Whether a model takes images of any size, which is half of an extraction, is found once for all its circuits."""
    ask, answers = extraction.takes_any_size, {}

    def asked(subject, layout):
        key = str(subject.network.module), str(subject.feature), layout.input_shape
        if key not in answers:
            answers[key] = ask(subject, layout)
        return answers[key]

    monkeypatch.setattr(extraction, "takes_any_size", asked)


@pytest.fixture
def opened_once(monkeypatch):
    """A model is opened once for all the scores, figures and maps of a test: each opening would find the same."""
    network, opened = functools.cache(Network), functools.cache(Subject.open)
    for module in (evaluation, scoring):
        monkeypatch.setattr(module, "Network", network)
    monkeypatch.setattr(Subject, "open", lambda model, feature, shape: opened(model, feature, shape and tuple(shape)))


@pytest.fixture(autouse=True)
def one_thread():
    """What a test runs leaves torch its one thread: two workers with two threads each wait for one another."""
    yield
    assert torch.get_num_threads() == 1


@pytest.fixture(scope="module")
def browser():
    """A Chromium. It ends with the module: while it runs, no other test of the process can run an event loop."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    assert path, "These tests need a Chromium: python tools/needs.py chromium (make test does it)."
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


def pytest_collection_finish():
    """Leave what is loaded out of garbage collections: torch, thousands of tests, all of which stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # else collections take a twentieth of the time
