"""An atlas on a Ray cluster is that of one process, whatever the workers, and whichever of them die."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import convcircuits as cc
from convcircuits.atlases import cluster, store
from convcircuits.atlases.making import Asked, open_layer
from nets import NETS

torch.set_num_threads(1)

CASE, LAYER = NETS["residual"], "block2.conv2"


def made(folder, model=None, **given):
    asked = {"density": 0.2, **given}
    return cc.atlas(model or CASE.build(), LAYER, CASE.images(5), CASE.images(4, seed=5), folder=folder, **asked)


def same(some, expected):
    assert some.units == expected.units
    assert some.problems == expected.problems
    assert all(some.circuit(unit) == expected.circuit(unit) for unit in some)
    for row, other in zip(some.rows(), expected.rows(), strict=True):
        for name in store.FIGURES:
            number = isinstance(other[name], float)
            assert row[name] == (pytest.approx(other[name], rel=1e-9, abs=1e-12) if number else other[name])


# ---------------------------------------- a cluster

# In a process of its own, since Ray's threads and sockets outlive what uses them, and so that it can be killed. What it
# starts ends with it: the kernel sees to that (Linux).
RUN = """
    import os, signal, time
    from pathlib import Path

    import ray
    import torch
    from ray.cluster_utils import Cluster

    import test_atlas_cluster
    from convcircuits.atlases import cluster, store

    torch.set_num_threads(1)
    cluster.IMAGES_A_PART, cluster.ENOUGH = 2, 3  # two parts of the images, and two chunks of the units
    here, driver = Path({folder!r}), os.getpid()
    size = {{"num_cpus": 1, "object_store_memory": 80 * 2**20}}
    nodes = Cluster(initialize_head=True, head_node_args={{**size, "include_dashboard": False}})
    other = nodes.add_node(**size)
    model = test_atlas_cluster.CASE.build()

    class Watched(type(model)):  # it tells who runs it, and takes long enough to be caught in the middle of a task
        def forward(self, images):
            if os.getpid() != driver:
                (here / f"worker-{{os.getpid()}}").touch()
                time.sleep(0.005)
            return super().forward(images)

    model.__class__ = Watched

    def killing(done, total):
        if done == 1:
            end = time.monotonic() + 300
            while len(list(here.glob("worker-*"))) < 2 and time.monotonic() < end:
                time.sleep(0.01)
            nodes.remove_node(other, allow_graceful=False)
            (here / f"killed-{{total}}").touch()

    test_atlas_cluster.made(here / "shared", model, ray=nodes.address, progress=killing)

    save, done = store.save, []

    def saved(circuit, path):
        save(circuit, path)
        done.append(path)
        if len(done) == 3:
            os.kill(driver, signal.SIGKILL)  # the file is there, its row is not

    store.save = saved
    test_atlas_cluster.made(here / "alone", ray=nodes.address, criterion="force", steps=2)
"""


def end_all(mark):
    """End what a run has started, all processes with a mark in their environment; Ray's agents end with their node."""
    for own in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark in (own / "environ").read_bytes():
                os.kill(int(own.name), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what a killed process has started is ended by the kernel")
def test_a_cluster_that_loses_a_node_makes_the_same_atlas_and_its_driver_may_be_killed(tmp_path):
    code = textwrap.dedent(RUN.format(folder=str(tmp_path)))
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))  # workers' too
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path, "THIS_TEST": str(tmp_path)}
    environment.pop("RAY_ADDRESS", None)
    said = tmp_path / "said"  # a file, since the ends of a pipe that Ray's processes hold outlive the driver
    try:
        with said.open("w") as out:
            program = [sys.executable, "-c", code]
            ended = subprocess.run(program, env=environment, stdout=out, stderr=out, check=False, timeout=600)
    finally:
        end_all(f"THIS_TEST={tmp_path}".encode())
    assert ended.returncode == -signal.SIGKILL, said.read_text()[-3000:]
    assert len(list(tmp_path.glob("worker-*"))) >= 2
    assert (tmp_path / "killed-9").exists()  # 2 chunks x 2 parts, and 5 units
    same(cc.Atlas.read(tmp_path / "shared"), made(tmp_path / "one"))
    before = cc.Atlas.read(tmp_path / "alone")
    assert len(before) == 2
    times = {unit: before.file(unit).stat().st_mtime_ns for unit in before}
    after = made(tmp_path / "alone", criterion="force", steps=2)
    same(after, made(tmp_path / "all", criterion="force", steps=2))
    assert {unit: after.file(unit).stat().st_mtime_ns for unit in before} == times


# ---------------------------------------- tasks, in this process


@pytest.fixture
def opened(monkeypatch):
    def of(criterion, model=None, **options):
        size = {"density": 0.2, "drawable": False, **dict.fromkeys(("kernels", "filters", "fan_in", "effective"))}
        asked = Asked(criterion, options, size)
        given = model or CASE.build(), LAYER, CASE.images(5), CASE.images(4, seed=5), asked
        found = open_layer(*given, batch_size=2)
        monkeypatch.setattr(cluster, "_open", lambda job: found)
        return found

    return of


@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        ("gauss_newton", {"draws": 2}),
        ("gauss_newton", {"centered": True}),
        ("snip", {"normalizer": "layer_l2"}),
        ("actgrad", {"signed": True}),
    ],
)
def test_sums_over_parts_of_the_images_are_the_scores(criterion, options, opened):
    opened(criterion, **options)
    parts = [cluster.score(None, [0, 3], part, 2)[1:] for part in ((0, 1), (1, 5))]
    for unit, sums in zip((0, 3), zip(*parts, strict=True), strict=True):
        circuit, report, problem, _ = cluster.found_and_measured(None, unit, *sums)
        expected = cc.find(
            CASE.build(), cc.Feature(LAYER, unit), CASE.images(5), criterion=criterion, density=0.2, **options
        )
        assert circuit == expected
        assert not problem
        for layer, values in circuit.saliency.items():
            assert torch.allclose(values, expected.saliency[layer], rtol=1e-9, atol=0, equal_nan=True)
        told = cc.evaluate(CASE.build(), expected, CASE.images(4, seed=5), fit=CASE.images(5))
        assert report.r2 == pytest.approx(told.r2, rel=1e-9)


def test_a_unit_without_scores_says_why_and_the_others_do_not_suffer(opened):
    model = CASE.build()
    model.block2.conv2.weight.data[1] = 0
    opened("snip", model)
    _, dead, alive = cluster.score(None, [1, 2], (0, 5), 2)
    assert "scored every kernel 0" in cluster.found_and_measured(None, 1, dead)[2]
    assert cluster.found_and_measured(None, 2, alive)[0] is not None
    assert cluster.found_and_measured(None, 2, alive, "a part failed")[::2] == (None, "a part failed")


@pytest.mark.parametrize(("count", "most", "sizes"), [(5, 3, [2, 3]), (40, 32, [20, 20]), (1, 9, [1]), (6, 6, [6])])
def test_units_are_divided_evenly(count, most, sizes):
    parts = cluster.even(range(count), most)
    assert [len(part) for part in parts] == sizes
    assert [unit for part in parts for unit in part] == list(range(count))


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (63, 1), (64, 2), (257, 8), (5000, 8)])
def test_images_are_divided_into_parts_that_are_worth_a_task(count, parts):
    found = cluster.image_parts(count)
    assert len(found) == parts
    assert [n for start, end in found for n in range(start, end)] == list(range(count))


# ---------------------------------------- what is sent


@pytest.fixture
def sent(monkeypatch, opened):
    """What a worker opens of a job, when the object store is left out."""

    def of(given, memory=2**20, **said):
        arguments = {"position": "all", "call": None, "batch_size": 2, "memory": memory}
        opening = cluster.pickled(given.model, LAYER, given.asked, arguments)
        stored = opening, cluster._arrays(given.images), cluster._arrays(given.held_out)
        monkeypatch.setattr(cluster.ray, "get", lambda refs: refs)
        return cluster._opened(cluster._Job("key", *stored, range(5), said=cluster._checkable(given) | said, gpus=0))

    return of


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_worker_opens_what_was_sent(dtype, opened, sent):
    given = opened("snip")
    batches = [(image.to(dtype), 0) for image in CASE.images(5).split(2)]
    given = replace(given, images=replace_images(given.images, batches))
    there = sent(given)
    assert there.said() == given.said()
    assert all(torch.equal(one, other) for one, other in zip(there.images, given.images, strict=True))


@pytest.mark.parametrize(("memory", "chunks"), [(2**20, [range(5)]), (60, None)])
def test_a_worker_holds_maps_of_all_units_or_of_none(memory, chunks, opened, sent):
    there = sent(opened("snip"), memory=memory)
    assert (there.full and there.full.chunks) == chunks


def replace_images(batches, images):
    made = cluster.Batches(images, device=torch.device("cpu"), dtype=torch.float64, batch_size=batches.batch_size)
    list(made)
    return made


def test_a_worker_with_other_code_is_refused(opened, sent):
    with pytest.raises(cc.ConvCircuitsError, match=r"version is .* Install the same code"):
        sent(opened("snip"), version="0.0.0")


def test_a_model_that_cannot_be_sent_is_an_error():
    model = CASE.build()
    model.lock = threading.Lock()
    with pytest.raises(cc.ConvCircuitsError, match=r"cannot be sent to the cluster .*lock.* Remove what belongs"):
        cluster.pickled(model, LAYER, Asked("snip"), {})


def test_a_criterion_that_is_defined_where_the_run_starts_is_sent_with_its_code(opened):
    def own(trace):
        return {layer: torch.ones(shape) for layer, shape in trace.shapes.items()}

    given = opened(own)
    assert given.said().keys() - cluster._checkable(given).keys() == {"criterion_code"}


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("nowhere", "ray is 'auto' or the address of a cluster"),
        ("ray://10.0.0.1:10001", "ray is 'auto' or the address of a cluster"),
        (True, "ray is 'auto' or the address of a cluster"),
        ("127.0.0.1:1", r"No Ray cluster can be reached at '127.0.0.1:1' \(.*refused"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_an_error(address, problem, tmp_path):
    with pytest.raises(cc.ConvCircuitsError, match=problem):
        made(tmp_path / "new", ray=address)
    assert not (tmp_path / "new").exists()


def test_an_address_of_ray_client_in_the_environment_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    with pytest.raises(cc.ConvCircuitsError, match=r"RAY_ADDRESS is .*, an address of Ray Client"):
        made(tmp_path / "new", ray="auto")


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "convcircuits.atlases.cluster")
    with pytest.raises(cc.ConvCircuitsError, match=r"needs Ray: pip install 'convcircuits\[ray\]'"):
        made(tmp_path, ray="auto")
