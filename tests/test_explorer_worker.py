"""What the explorer's worker says that its figures depend on, and what it refuses. No process is started."""

import asyncio
import dataclasses
import importlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import socket
import stat
import sys
import threading
import types
import webbrowser
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convcircuits as cc
from convcircuits.circuits.contrasting import contrasted
from convcircuits.explorer import launch, worker
from convcircuits.explorer.browser import open_address
from convcircuits.explorer.jobs import Job
from convcircuits.explorer.materials import Materials
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.project import Project
from convcircuits.explorer.questions import Questions
from convcircuits.explorer.routes import application
from convcircuits.explorer.security import Guard
from convcircuits.explorer.server import listening
from convcircuits.explorer.session import Session
from convcircuits.explorer.store import Store, curve_key
from convcircuits.explorer.tasks import TASKS, do
from convcircuits.network.provenance import architecture_hash
from convcircuits.recipes import criterion_options
from convcircuits.zoo.prepared import Prepared
from convcircuits.zoo.preprocessing import Preprocess
from diagrams import plain


@pytest.fixture
def materials(tmp_path):
    """Pictures a to d, of which d is a copy of b, and a model that is given as an object."""
    (tmp_path / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for name in "abcd":
        picture = Image.fromarray(generator.integers(0, 256, (30, 36, 3), dtype=np.uint8))
        picture.save(tmp_path / f"pictures/{name}.png")
    (tmp_path / "pictures/d.png").write_bytes((tmp_path / "pictures/b.png").read_bytes())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    given = tmp_path / "given"
    given.write_bytes(pickle.dumps((model, Preprocess(size=(20, 20), resize=(22, 22)))))
    return Materials(Opening(given=given, images=str(tmp_path / "pictures"), project=tmp_path / "project"))


def test_a_given_model_can_be_opened_again_by_a_worker_that_is_started_anew(materials):
    assert Materials(materials.opening).basis == materials.basis


def test_the_page_says_that_images_have_another_size_than_the_model_s_own(materials):
    for size, said in ((None, ""), (20, ""), (12, " Then they are resized to 12 x 12.")):
        about = Materials(dataclasses.replace(materials.opening, size=size)).about()
        assert about["normalization"] == f"Images are prepared by the function preprocess that was given.{said}"
        assert about["size"] == [size or 20] * 2


def test_figures_depend_on_how_a_model_is_built_not_on_its_weights_alone(tmp_path, monkeypatch):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    strided = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())
    assert len({architecture_hash(one) for one in (plain, strided, nn.Sequential(plain[0], nn.ELU()))}) == 3
    assert architecture_hash(plain) == architecture_hash(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    monkeypatch.syspath_prepend(str(tmp_path))
    source = (
        "from torch import nn\nclass Net(nn.Conv2d):\n    def forward(self, x):\n        return super().forward(x)\n"
    )
    file = tmp_path / "built_net.py"
    file.write_text(source)
    model = importlib.import_module("built_net").Net(3, 4, 3)
    before = architecture_hash(model)
    file.write_text(source.replace("(x)\n", "(x).abs()\n"))
    assert architecture_hash(model) != before


def test_a_photograph_that_has_changed_since_is_not_shown_under_its_old_id(materials, tmp_path):
    """Small pictures never change, and an index is of the pictures that its key names."""
    id, photograph = next(iter(materials.photographs.items()))
    assert Questions(materials).answer("thumb", id, 32, None)
    Image.new("RGB", (36, 30)).save(tmp_path / "pictures/a.png")
    for ask in (
        lambda: Questions(materials).answer("thumb", id, 32, None),
        lambda: Questions(materials).answer("map", "2", 0, id),
    ):
        with pytest.raises(cc.ConvCircuitsError, match=r"a\.png has changed since"):
            ask()
    (tmp_path / "pictures/a.png").unlink()
    with pytest.raises(cc.ConvCircuitsError, match="has changed"):
        photograph.image  # noqa: B018


@pytest.mark.parametrize(
    ("head", "classes"),
    [
        ([nn.Flatten(), nn.Linear(2 * 16 * 16, 7)], 7),
        ([], None),
        ([nn.Flatten(), nn.Linear(2 * 16 * 16, 1)], None),
    ],
)
def test_the_page_knows_whether_the_model_answers_with_classes(head, classes, materials, tmp_path):
    model, preprocess = pickle.loads(materials.opening.given.read_bytes())
    materials.opening.given.write_bytes(pickle.dumps((nn.Sequential(*model, *head), preprocess)))
    assert Materials(materials.opening)._classes() == classes


def test_a_copy_has_the_id_of_what_it_is_a_copy_of(materials):
    assert materials.copies == ["d.png"]
    assert materials.ids["d.png"] == materials.ids["b.png"]
    assert len(materials.photographs) == 3


def test_a_thin_picture_stays_small(materials, tmp_path):
    id, photograph = next(iter(materials.photographs.items()))
    materials.photographs[id] = type(photograph)("thin", Image.new("RGB", (4, 256)))
    with Image.open(io.BytesIO(Questions(materials).answer("thumb", id, 1024, None))) as shown:
        assert shown.size == (64, 4096)


@pytest.mark.parametrize("text", ["seed=5", "batch_size=9", "progress=1", "criterion=force", "model=x", "x", "a b=1"])
def test_no_option_of_a_criterion_is_one_of_the_search_itself(text):
    """The recipe would name another seed than the one that was used."""
    with pytest.raises(cc.ConvCircuitsError, match=r"not an option of a criterion|has no value"):
        criterion_options([text])
    assert criterion_options(["steps=3"]) == {"steps": 3}


@pytest.mark.parametrize("raised", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")])
def test_a_job_for_which_memory_runs_out_fails_with_what_to_do(raised, monkeypatch):
    def fails(*_):
        raise raised

    def more_than_there_is(*_):
        torch.empty(10**15)

    for does in (fails, more_than_there_is):
        monkeypatch.setattr(worker.tasks, "do", does)
        here, _there = multiprocessing.Pipe()
        what, id, said = worker._done(None, "7", "index", {}, worker.Reporter("7", worker.Desk(None, here, [0]), 0))
        assert (what, id) == ("failed", "7")
        assert said == "Out of memory. Start the explorer with a smaller --batch-size or --size."


def test_a_job_that_comes_while_another_runs_is_done_between_two_of_its_steps(monkeypatch):
    here, there = multiprocessing.Pipe()
    stops, order = [0, 0, 0], []

    def do(_project, kind, _parameters, progress):
        assert torch.is_grad_enabled()
        for step in range(3):
            order.append(f"{kind} {step}")
            if order[-1] == "sweep 0":
                here.send(("b", "find", {}, 1))
            if order[-1] == "find 0":
                here.send(("c", "ablate", {}, 2))
            if order[-1] == "find 2":
                stops[0] = 1
            with torch.no_grad():
                progress(step + 1, 3)
        return {}

    monkeypatch.setattr(worker.tasks, "do", do)
    here.send(("a", "sweep", {}, 0))
    worker.Desk(None, there, stops).take()
    assert order == ["sweep 0", "find 0", "ablate 0", "ablate 1", "ablate 2", "find 1", "find 2"]
    said = []
    while here.poll():
        said.append(here.recv()[:2])
    assert [one for one in said if one[0] != "progress"] == [
        *(("begun", id) for id in "abc"),
        *(("done", id) for id in "cb"),
        ("stopped", "a"),
    ]


class Quiet:
    def phase(self, description):
        pass

    def __call__(self, done, total):
        pass


def with_circuit(materials, tmp_path, by_name, **about):
    """The project of the same materials with a circuit in its folder, and the circuit's id."""
    opening = materials.opening
    (tmp_path / "project" / "reports").mkdir(parents=True)
    (tmp_path / "project" / "circuits").mkdir()
    materials = Materials(opening)
    project = Project(materials)
    model, prepare = materials.loaded.model, materials.loaded.preprocess
    images = torch.stack([prepare(one.image) for one in materials.photographs.values()])
    circuit = cc.find(model, cc.Feature("2", 1), images, criterion="magnitude", kernels=6)
    circuit = dataclasses.replace(circuit, provenance={**circuit.provenance, "photographs": by_name, **about})
    cc.save(circuit, tmp_path / "project/circuits/a.safetensors")
    (file,) = project.store.circuits()
    return project, file.id


def test_a_report_names_the_photographs_that_a_size_was_chosen_on_when_it_is_measured_again(materials, tmp_path):
    by_name = {"found_on": ["a.png"], "validated_on": ["d.png"], "held_out": ["c.png"]}
    project, id = with_circuit(materials, tmp_path, by_name)
    do(project, "evaluate", {"circuit": id}, Quiet())
    said = project.store.report(id)
    assert said["photographs"] == {role: [materials.ids[n] for n in names] for role, names in by_name.items()}
    assert said["basis"] == materials.basis


def test_a_report_says_whether_photographs_are_known_by_content_or_by_name_alone(materials, tmp_path):
    """A file of another content may have the name by now."""
    by_name = {"found_on": ["a.png"], "validated_on": [], "held_out": ["c.png"]}
    project, id = with_circuit(materials, tmp_path, by_name)
    do(project, "evaluate", {"circuit": id}, Quiet())
    assert not project.store.report(id)["verified"]  # it was found on whole photographs, not on these crops
    circuit = project.again(id, Quiet()).circuit
    for ids, known in ((materials.ids, True), ({**materials.ids, "a.png": materials.ids["b.png"]}, False)):
        hashes = {role: [ids[name] for name in names] for role, names in by_name.items()}
        about = {**circuit.provenance, "photograph_hashes": hashes}
        assert project.verified(dataclasses.replace(circuit, provenance=about), None) == known


def test_a_circuit_of_whole_photographs_is_measured_on_whole_photographs_of_the_same_size(materials, tmp_path):
    by_name = {"found_on": ["a.png", "b.png"], "validated_on": [], "held_out": ["c.png"]}
    project, id = with_circuit(materials, tmp_path, by_name, whole_photographs={"size": 16})
    setup = project.again(id, Quiet()).setup
    for cut, some in ((setup.train, by_name["found_on"]), (setup.held_out, by_name["held_out"])):
        pictures = [one for one in materials.photographs.values() if one.name in some]
        expected = torch.cat([*Prepared(pictures, materials.loaded.preprocess, size=(16, 16))])
        assert cut.names == some
        assert torch.equal(cut.images, expected)
    do(project, "evaluate", {"circuit": id}, Quiet())
    assert project.store.report(id)["report"]["images"] == 1


def test_a_circuit_is_not_measured_on_copies_of_what_it_was_found_on(materials, tmp_path):
    """As when a file was replaced after the circuit was found."""
    by_name = {"found_on": ["b.png"], "validated_on": [], "held_out": ["d.png", "c.png"]}
    project, id = with_circuit(materials, tmp_path, by_name)
    with pytest.raises(cc.ConvCircuitsError, match=r"d\.png were held out .* now copies"):
        do(project, "evaluate", {"circuit": id}, Quiet())


def test_a_circuit_for_chosen_photographs_is_found_and_measured_on_them_alone(materials, tmp_path):
    project, _ = with_circuit(materials, tmp_path, {"found_on": ["a.png"], "validated_on": [], "held_out": []})
    materials = project.materials
    asked = {"feature": "2:1@max", "criterion": "gauss_newton", "kernels": 5, "options": [], "seed": 1}
    chosen = sorted(materials.ids[name] for name in ("a.png", "c.png"))
    id = do(project, "find", {**asked, "photographs": chosen, "held_out": 0.5}, Quiet())["circuit"]
    circuit = cc.load(project.store.circuit(id).file)
    roles = circuit.provenance["photographs"]
    assert sorted(roles["found_on"] + roles["held_out"]) == ["a.png", "c.png"]
    assert len(roles["found_on"]) == 1
    pictures = [one for one in materials.photographs.values() if one.name in roles["found_on"]]
    images = torch.cat([*Prepared(pictures, materials.loaded.preprocess)])
    feature = cc.Feature("2", 1, position="max")
    expected = cc.find(materials.loaded.model, feature, images, criterion="gauss_newton", kernels=5, seed=1)
    assert circuit == dataclasses.replace(expected, provenance=circuit.provenance)
    assert "recipe" not in circuit.provenance
    assert circuit.provenance["search"]["kernels"] == 5
    assert torch.equal(project.again(id, Quiet()).setup.train.images, images)
    assert project.store.report(id)["report"]["images"] == 1


def test_the_circuit_of_a_model_object_has_a_curve_on_the_crops_that_it_was_found_on(materials, tmp_path):
    project, _ = with_circuit(materials, tmp_path, {"found_on": ["a.png"], "validated_on": [], "held_out": []})
    (tmp_path / "project/curves").mkdir()
    asked = {"feature": "2:1", "criterion": "gauss_newton", "density": 0.5, "count": 7, "options": [], "seed": 3}
    id = do(project, "find", asked, Quiet())["circuit"]
    again = project.again(id, Quiet())
    assert "recipe" not in again.circuit.provenance  # no command finds it again
    assert len(again.setup.train.images) == 7
    expected = cc.find(
        project.loaded.model,
        cc.Feature("2", 1),
        again.setup.train.images,
        criterion="gauss_newton",
        density=0.5,
        seed=3,
    )
    assert again.circuit == dataclasses.replace(expected, provenance=again.circuit.provenance)
    do(project, "sweep", {"circuit": id, "densities": [0.5, 0.25]}, Quiet())
    curve = project.store.record("curves", curve_key(again.circuit.provenance), project.materials.basis)
    assert curve["points"][0]["r2"] == pytest.approx(project.store.report(id)["report"]["r2"])


def test_photographs_are_placed_as_the_library_does(materials, tmp_path):
    project, _ = with_circuit(materials, tmp_path, {"found_on": ["a.png"], "validated_on": [], "held_out": []})
    materials = project.materials
    layer = materials.loaded.model[2]
    layer.bias.data[1] += 10  # so that all photographs drive it
    groups = {"red": [{"photo": materials.ids["a.png"]}], "": [{"photo": materials.ids["b.png"]}]}
    (tmp_path / "project/splits").mkdir()
    split = {"id": "0" * 16, "photographs": groups}
    (tmp_path / f"project/splits/{split['id']}.json").write_text(json.dumps(split))
    (tmp_path / "project/trajectories").mkdir()
    asked = {"layer": "2", "unit": 1, "method": "pca", "split": split["id"], "seed": 0}
    do(project, "trajectory", asked, Quiet())
    said = project.store.record("trajectories", "2:1", materials.basis)
    prepare = materials.loaded.preprocess
    images = torch.stack([prepare(one.image) for one in materials.photographs.values()])
    found = cc.trajectory(materials.loaded.model, cc.Feature("2", 1), images)
    assert said["points"] == [[pytest.approx(one, abs=1e-9) for one in points] for points in found.points.tolist()]
    assert said["photos"] == [*materials.photographs]
    assert (said["groups"], said["labels"]) == (["red"], [0, -1, -1])
    maps = cc.activations(materials.loaded.model, cc.Feature("2", 1), images).flatten(1)
    row, column = divmod(int(maps[0].argmax()), 16)
    assert said["boxes"][0] == [row, column, 5, 5]
    with pytest.raises(cc.ConvCircuitsError, match="no division"):
        do(project, "trajectory", {**asked, "split": "1" * 16}, Quiet())


def test_an_atlas_is_shown_if_it_is_of_this_model_and_its_circuits_are_found_by_id(materials, tmp_path):
    model = materials.loaded.model
    images = torch.rand(6, 3, 20, 20)
    folders = [tmp_path / name for name in ("own", "other", "damaged")]
    found = cc.atlas(model, "2", images[:4], images[4:], folder=folders[0], density=0.5)
    weights = model[2].weight.data.clone()
    model[2].weight.data += 1
    cc.atlas(model, "2", images[:4], images[4:], folder=folders[1], density=0.5)
    model[2].weight.data.copy_(weights)
    folders[2].mkdir()
    (folders[2] / "index.sqlite").write_bytes(b"SQLite format 3 no more")
    own, other, damaged = Questions(materials).answer("atlases", folders)
    assert own == {"layer": "2", "units": 2, "criterion": "gauss_newton", "problem": ""}
    assert "of other weights" in other["problem"]
    assert "damaged" in damaged["problem"]
    assert Questions(materials).answer("atlas", folders[0]) == found.as_dict()
    with pytest.raises(cc.ConvCircuitsError, match="of other weights"):
        Questions(materials).answer("atlas", folders[1])
    store = Store(tmp_path / "project", atlases=folders[:1])
    assert [one.file for one in store.circuits()] == [found.file(unit) for unit in found.units]
    copy = tmp_path / "project/circuits/copy.safetensors"
    shutil.copy(found.file(found.units[1]), copy)  # of equal ones, one is listed, but each file leads to it
    ids = store.circuit_ids()
    assert ids[copy] == ids[found.file(found.units[1])]
    assert store.circuits()[0].file == copy
    assert len(store.circuits()) == len(found)
    store.close()
    with pytest.raises(cc.ConvCircuitsError, match="There is no atlas in"):
        Store(tmp_path / "project", atlases=[tmp_path / "pictures"])


def test_two_photographs_are_contrasted_as_the_library_does(materials, tmp_path):
    project, id = with_circuit(materials, tmp_path, {"found_on": ["a.png"], "validated_on": [], "held_out": []})
    a, b = [*materials.photographs][:2]
    file = project.store.circuit(id).file
    said = json.loads(json.dumps(Questions(materials).answer("contrast", file, a, b)))
    prepare = materials.loaded.preprocess
    images = torch.stack([prepare(materials.photographs[one].image) for one in (a, b)])
    found = contrasted(materials.loaded.model, cc.load(file), images)
    assert said["full"] == list(found.full)
    assert [layer["layer"] for layer in said["layers"]] == list(found.layers)
    for layer, own in zip(said["layers"], found.layers.values(), strict=True):
        assert layer["kernels"] == own.kernels.tolist()
        assert layer["added"] == [pytest.approx(row) for row in own.added.tolist()]
        assert layer["outputs"] == [pytest.approx(row) for row in own.outputs.tolist()]


# ---------------------------------------- what the server makes of it


@pytest.fixture
def explorer(tmp_path):
    """An explorer whose worker is not started, and the id of a circuit in its folder."""
    found = Session(Opening(project=tmp_path / "project"))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))
    scores = cc.score(model, cc.Feature("2", 1), torch.rand(2, 3, 9, 9), criterion="magnitude")
    cc.save(cc.prune(scores, kernels=5), found.store.folder / "circuits" / "a.safetensors")
    yield found
    found.close()


DRAWN = json.loads(plain().to_json())  # a document, whatever it is of


def test_figures_of_another_model_version_or_photographs_are_not_shown(explorer):
    (one,) = explorer.store.circuits()
    r2s = dict.fromkeys([f"r2{of}{at}" for of in ("", "_average_map", "_random") for at in ("", "_interior")])
    figures = {"images": 3, "verdict": "not decided", "verdict_sentence": "Not measured.", **r2s}
    said = {"circuit": one.id, "basis": "a" * 32, "report": figures, "photographs": {}, "seconds": 1.0}
    explorer.store.write_json(explorer.store.report_file(one.id), said)
    explorer.store.write_json(explorer.store.diagram_file(one.id, "a" * 32, controls=False), DRAWN)
    assert (explorer.card(one)["report"], explorer.card(one)["diagram"]) == (None, False)  # no model yet
    for basis, shown in (("a" * 32, True), ("b" * 32, False)):
        explorer.jobs.about = {"basis": basis}
        card = explorer.card(one)
        assert (card["report"] is not None, card["diagram"]) == (shown, shown)
        result = {"circuit": one.id}
        assert explorer._holds("evaluate", {}, result) == shown
        assert explorer._holds("diagram", {"controls": False}, result) == shown
        assert not explorer._holds("diagram", {"controls": True}, result)  # it has been drawn without them only


def test_a_diagram_that_is_looked_at_was_used_just_now(explorer):
    (one,) = explorer.store.circuits()
    explorer.jobs.about = {"basis": "a" * 32}
    file = explorer.store.diagram_file(one.id, "a" * 32, controls=False)
    explorer.store.write_json(file, DRAWN)
    os.utime(file, (1, 1))
    assert explorer.derived.diagram(one) == file  # as lists of circuits ask, which look at none
    assert file.stat().st_mtime == 1

    async def shown():
        transport = httpx.ASGITransport(app=application(explorer))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.get(f"/api/v1/circuits/{one.id}/diagram")).json()

    assert asyncio.run(shown()) == DRAWN
    assert file.stat().st_mtime > 1


class Ended:
    """A worker process that ended at once."""

    exitcode = 1

    def join(self, seconds=None):
        pass

    def is_alive(self):
        return False


@pytest.fixture
def jobs(explorer, monkeypatch):
    """Jobs whose worker processes end at once; and how many were begun."""
    found, begun = explorer.jobs, []

    def begin():
        begun.append(1)
        found._loaded = False
        found._channel, there = found._context.Pipe()
        found._questions, there_too = found._context.Pipe()
        there.close()
        there_too.close()
        found._process = Ended()
        found._process.sentinel, _ = found._context.Pipe()

    monkeypatch.setattr(found, "_begin", begin)
    return found, begun


def test_a_worker_that_never_gets_ready_again_is_given_up_and_the_page_stays(jobs):
    jobs, begun = jobs
    jobs.about = {"key": "k", "basis": "b"}  # it has been ready before
    ended = []
    jobs.on_failed = lambda: ended.append(1)
    jobs._supervise()
    assert len(begun) == 3
    assert "3 times" in jobs.problem
    assert ended == []


def test_a_mistake_of_the_supervisor_is_said_on_the_page(jobs, monkeypatch):
    jobs, _ = jobs

    def begin():
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(jobs, "_begin", begin)
    jobs._supervise()
    assert "Resource temporarily unavailable" in jobs.problem


def test_a_result_that_cannot_be_recorded_fails_its_job_and_ends_nothing_else(explorer):
    jobs = explorer.jobs
    for number, result in ((1, {"kl": float("inf")}), (2, {"kl": 1.0})):
        job = jobs._jobs[str(number)] = Job(str(number), "put_back", {})
        jobs._running = [job]
        jobs._message("done", job.id, result)
    first, second = jobs._jobs["1"], jobs._jobs["2"]
    assert (first.state, first.result, second.state) == ("failed", None, "done")
    assert "cannot be recorded" in first.error
    json.dumps([job.as_dict() for job in jobs.all()], allow_nan=False)


def test_a_job_is_never_seen_while_it_ends(explorer, monkeypatch):
    """Its result is recorded when its state is set already, and then it may turn out that it failed."""
    jobs, seen = explorer.jobs, []
    look = threading.Thread(target=lambda: seen.append(jobs.state(job)))

    def record(self, state):
        look.start()
        look.join(0.1)  # in which it would see the job
        raise ValueError("not finite")

    monkeypatch.setattr(Store, "write_job", record)
    job = jobs._jobs["1"] = Job("1", "put_back", {})
    jobs._running = [job]
    jobs._message("done", "1", {"kl": 1.0})
    look.join()
    assert [(state["state"], state["result"]) for state in seen] == [("failed", None)]


def test_jobs_go_by_turns_and_only_what_is_done_now_is_ended_for_its_sake(explorer, monkeypatch):
    jobs, sent = explorer.jobs, []
    jobs.about = {"key": "k", "basis": "b"}
    jobs._channel, jobs._stops = types.SimpleNamespace(send=sent.append, close=lambda: None), [0] * 5
    jobs._questions, jobs._process = types.SimpleNamespace(close=lambda: None), Ended()
    kinds = {"a": "sweep", "b": "find", "c": "ablate", "d": "split", "e": "evaluate"}

    def ask(*ids):
        for id in ids:
            jobs._jobs[id] = Job(id, kinds[id], {}, created=float(ord(id)))
        jobs._next()

    def states():
        return {id: job.state for id, job in jobs._jobs.items()}

    ask("a")
    jobs._message("begun", "a")
    ask("b", "c", "d")
    assert [id for id, *_ in sent] == ["a", "c"]
    assert jobs._jobs["c"].phase == "waiting for the next step of another job"
    jobs._message("begun", "c")
    assert jobs._jobs["a"].phase == "paused for a shorter job"
    ask()
    jobs._message("done", "c", {})
    ask()
    assert [id for id, *_ in sent] == ["a", "c", "b"]
    jobs._message("begun", "b")
    jobs.cancel(jobs._jobs["a"])
    slots = {id: slot for id, _, _, slot in sent}
    assert (jobs._stops[slots["a"]], jobs._stops[slots["b"]], jobs._kill_at) == (1, 0, None)  # it is not its step
    jobs._message("done", "b", {})
    assert jobs._kill_at is not None
    jobs._message("stopped", "a")
    assert states() == {"a": "cancelled", "b": "done", "c": "done", "d": "queued"}
    assert jobs._kill_at is None
    ask()
    jobs._message("begun", "d")
    ask("e")
    jobs._message("begun", "e")
    jobs._loaded = True
    jobs._died()
    assert (states()["d"], states()["e"]) == ("queued", "failed")  # it goes on, from its beginning
    assert jobs._running == []


def test_what_takes_seconds_goes_first_and_what_a_page_begins_by_itself_before_what_takes_long():
    turns = [
        {"evaluate", "extract", "ablate", "put_back"},
        {"diagram", "compare"},
        {"find", "visualise"},
        {"sweep", "split", "neighbours", "trajectory"},
        {"index"},
    ]
    assert {kind: Job("0", kind, {}).turn for kind in TASKS} == {
        kind: turn for turn, kinds in enumerate(turns) for kind in kinds
    }
    assert Job("0", "diagram", {"controls": True}).turn == Job("0", "find", {}).turn  # it fits constants


def test_a_job_says_since_when_its_phase_runs(monkeypatch):
    now = 1000.0
    clock = types.SimpleNamespace(time=lambda: now, monotonic=lambda: now)
    monkeypatch.setattr("convcircuits.explorer.jobs.time", clock)
    job = Job("0", "find", {}, created=now)
    assert job.since is None
    job.enter("starting")
    now = 1010.0
    job.progress("scoring", 0, 24)
    assert (job.since, job.rate, job.left) == (1010.0, None, None)
    now = 1018.0
    job.progress("scoring", 16, 24)
    assert (job.since, job.rate, job.left) == (1010.0, 2.0, 4.0)
    now = 1020.0
    job.enter("paused for a shorter job")
    assert (job.since, job.rate, job.left) == (1020.0, None, None)
    job.enter("")
    assert job.since is None


def test_the_index_begins_again_if_photographs_changed_before_a_worker_started_anew(explorer):
    ready = []
    explorer.jobs.on_ready = lambda: ready.append(explorer.jobs.about["key"])
    for key in ("a", "a", "b"):
        explorer.jobs._message("ready", {"key": key})
    assert ready == ["a", "b"]


def test_a_report_that_was_edited_by_hand_is_no_report(explorer):
    (one,) = explorer.store.circuits()
    explorer.jobs.about = {"basis": "a" * 32}
    for edited in ({}, {"report": {"images": "many"}, "photographs": {}, "seconds": 1}):
        explorer.store.write_json(explorer.store.report_file(one.id), {"circuit": one.id, "basis": "a" * 32} | edited)
        assert explorer.derived.report(one) is None
        assert not explorer.store.report_file(one.id).exists()


def test_no_process_list_shows_the_token(tmp_path, monkeypatch):
    """The browser is started with the address of a file, which leads on."""
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    open_address("http://127.0.0.1:1/?token=secret", tmp_path)
    assert "secret" not in opened[0]
    (file,) = tmp_path.iterdir()
    assert opened == [file.as_uri()]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "url=http://127.0.0.1:1/?token=secret" in file.read_text()
    file.unlink()


def test_the_worker_is_not_asked_about_atlases_where_there_are_none(explorer):
    assert explorer.atlases() == []  # it has not been started


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all threads of a process have one priority")
def test_jobs_give_way_on_a_busy_computer_and_answers_do_not(monkeypatch):
    def niceness(*_):
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def begun(*_):  # as torch starts its threads
        found = []
        thread = threading.Thread(target=lambda: found.append(niceness()))
        thread.start()
        thread.join(600)
        return [niceness(), *found]

    monkeypatch.setattr(worker, "Materials", lambda _: types.SimpleNamespace(about=dict))
    monkeypatch.setattr(worker, "Project", lambda _: None)
    monkeypatch.setattr(worker, "Questions", lambda _: types.SimpleNamespace(answer=niceness, known=lambda name: name))
    monkeypatch.setattr(worker.tasks, "do", begun)
    ended = []
    monkeypatch.setattr(worker.os, "_exit", ended.append)
    (jobs, taken), (questions, asked) = multiprocessing.Pipe(), multiprocessing.Pipe()
    thread = threading.Thread(target=worker.run, args=(None, taken, asked, [0]))
    thread.start()
    for known in (True, False):
        questions.send((1, known, ()))
        assert questions.poll(600)
        assert questions.recv() == (1, True, niceness())
    jobs.send(("id", "kind", {}, 0))
    *_, done = (jobs.poll(600) and jobs.recv() for _ in range(3))  # ready, begun, done
    jobs.close()
    questions.close()
    thread.join(600)
    assert ended == [0]
    assert done[:2] == ("done", "id")
    assert min(done[2]) > niceness()


@pytest.mark.skipif(sys.platform == "win32", reason="nothing gives way there")
def test_a_computer_that_lets_no_process_give_way_finds_circuits_all_the_same(monkeypatch):
    def refused(_):
        raise PermissionError

    monkeypatch.setattr(worker.os, "nice", refused)
    worker._give_way()


def test_a_host_that_is_none_is_said_at_once():
    with pytest.raises(cc.ConvCircuitsError, match=r"--host nowhere.invalid .* Give another --host\."):
        listening("nowhere.invalid", None)


@pytest.mark.parametrize(
    ("host", "number", "elsewhere"),
    [
        ("127.0.0.1", "192.168.0.7", []),
        ("192.168.0.7", "192.168.0.7", []),
        ("0.0.0.0", "192.168.0.7", ["from other machines: http://192.168.0.7:8642/?token=t"]),
        ("::", None, ["from other machines: the same, with a number of this machine for 127.0.0.1"]),
    ],
)
def test_who_listens_at_all_addresses_is_told_the_one_for_other_machines(monkeypatch, host, number, elsewhere):
    def serve(opening, *, host, port, notify):
        notify(Guard(None, port=8642, host=host).address.partition("=")[0] + "=t")

    said = []
    monkeypatch.setattr("convcircuits.explorer.server.serve", serve)
    monkeypatch.setattr(launch, "number_in_network", lambda: number)
    launch.start(Opening(images="sample", project=Path()), host=host, port=None, notify=said.append)
    own = host if host == "192.168.0.7" else "127.0.0.1"
    address, *others = said
    assert address == f"http://{own}:8642/?token=t"
    assert others[: len(elsewhere)] == elsewhere
    assert [text.partition(" ")[0] for text in others[len(elsewhere) :]] == ["warning:"] * (host != "127.0.0.1")


def test_the_number_of_this_machine_in_the_network_leads_to_it():
    number = launch.number_in_network()
    if number is None:
        pytest.skip("this machine is in no network")
    assert not number.startswith("127.")
    with listening("0.0.0.0", 0) as here, socket.create_connection((number, here.getsockname()[1]), 10) as one:
        assert one.getpeername() == (number, here.getsockname()[1])


def test_a_small_picture_that_was_cut_off_is_made_again(explorer, monkeypatch):
    """Browsers keep it for a year."""
    explorer.jobs.about = {"photographs": [{"id": "0" * 16, "name": "a", "subject": "a"}], "images": "i"}
    made = []

    def ask(*question):
        made.append(question)
        return b"\xff\xd8picture\xff\xd9"

    monkeypatch.setattr(explorer.jobs, "ask", ask)

    async def shown():
        transport = httpx.ASGITransport(app=application(explorer))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.get(f"/api/v1/thumb/{'0' * 16}")).content

    first = asyncio.run(shown())
    (file,) = (explorer.store.folder / "thumbs").glob("*/*")
    file.write_bytes(first[:5])
    assert [asyncio.run(shown()) for _ in range(2)] == [first, first]
    assert len(made) == 2
