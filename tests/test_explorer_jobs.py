"""What jobs of the explorer find out, against the library. The worker is in this process: a project and a session."""

import asyncio
import dataclasses
import hashlib
import io
import json
import re
import zipfile
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

import convcircuits as cc
from convcircuits.circuits.replacing import Change, Replaced
from convcircuits.drawing.data import Document
from convcircuits.drawing.tiles import read_data_url
from convcircuits.explorer import bundle, circuit_tasks, schemas
from convcircuits.explorer.bundle import Bundle
from convcircuits.explorer.downloads import circuit_bundle
from convcircuits.explorer.jobs import Job
from convcircuits.explorer.launch import of_bundle
from convcircuits.explorer.materials import Materials
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.project import Project
from convcircuits.explorer.questions import Questions
from convcircuits.explorer.routes import application
from convcircuits.explorer.session import Session
from convcircuits.explorer.tasks import TASKS, do
from convcircuits.zoo.prepared import Prepared
from texts import LONG, TEXTS

SOURCE = """
import torch
from torch import nn

from convcircuits.zoo.preprocessing import Preprocess

preprocess = Preprocess(size=(20, 20), resize=(22, 22))


def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval()
"""
FIND = {"kind": "find", "feature": "4:2", "density": 0.3, "criterion": "gauss_newton", "count": 6}


class Quiet:
    def phase(self, description):
        pass

    def __call__(self, done, total):
        pass

    def saved(self, index):
        pass

    def remark(self, text):
        raise AssertionError(text)


class Explored:
    """A session and a project of one folder: jobs are done at once, and questions are answered here."""

    def __init__(self, opening):
        self.session, self.materials = Session(opening), Materials(opening)
        self.project = Project(self.materials)
        self.session.jobs.about = self.materials.about()
        questions = Questions(self.materials)
        self.session.jobs.ask = lambda name, *arguments, timeout=0: questions.answer(name, *arguments)
        self.session.jobs.submit = self._submit
        self.app = application(self.session)

    def _submit(self, kind, parameters, *, valid):
        result = json.loads(json.dumps(do(self.project, kind, parameters, Quiet())))
        assert valid(result)
        job = Job("0" * 16, kind, parameters, "done", result=result)
        self.session.jobs.on_done(job)
        return job

    def request(self, method, path, **sent):
        async def asked():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.request(method, path if path.startswith("/") else f"/api/v1/{path}", **sent)

        return asyncio.run(asked())

    def get(self, path):
        answer = self.request("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def job(self, kind, **parameters):
        answer = self.request("POST", "jobs", json={"kind": kind, **parameters})
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]

    def fails(self, kind, **parameters):
        answer = self.request("POST", "jobs", json={"kind": kind, **parameters})
        assert answer.status_code == 400
        return answer.json()["error"]

    def refused(self, path):
        answer = self.request("GET", path)
        assert answer.status_code == 404
        return answer.json()["error"]

    def images(self):
        """All photographs as inputs, by id."""
        pictures = Prepared([*self.materials.photographs.values()], self.materials.loaded.preprocess)
        return dict(zip(self.materials.photographs, torch.cat([*pictures]), strict=True))

    def load(self, id):
        return cc.load(next(one.file for one in self.session.store.circuits() if one.id == id))


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """An explorer of 24 photographs that has an index and a circuit; and the circuit's id."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "classed_net.py").write_text(SOURCE)
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for n in range(24):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((36, 30)).save(folder / f"pictures/{n:02}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        opening = Opening(model="classed_net:net", images=str(folder / "pictures"), project=folder / "project")
        found = Explored(opening)
        found.job("index")
        found.circuit = found.job(**FIND)["circuit"]
        yield found
        found.session.close()


def test_every_kind_of_job_has_a_task_and_takes_what_is_asked_for():
    kinds = TypeAdapter(schemas.JobRequest).json_schema()["discriminator"]["mapping"]
    assert {*kinds} == {*TASKS}


def test_a_point_has_the_units_of_the_position_that_looks_there(explored):
    photo, image = list(explored.images().items())[3]
    found = explored.get(f"photos/{photo}/point?x=14.5&y=4&count=3")
    assert [layer["layer"] for layer in found["layers"]] == ["0", "2", "4"]
    for layer in found["layers"]:
        row, column = layer["position"]
        top, left, height, width = layer["box"]
        assert abs(top + height / 2 - 4) <= max(0.5, height / 2 - 4)  # or the field would begin above the image
        assert abs(left + width / 2 - 14.5) <= 0.5
        of_all = cc.Feature(layer["layer"], range(layer["total"]))
        maps = cc.activations(explored.materials.loaded.model, of_all, torch.stack([*explored.images().values()]))
        values = cc.activations(explored.materials.loaded.model, of_all, image[None])[0, :, row, column]
        shares = [float((maps[:, n] <= value).double().mean()) for n, value in enumerate(values)]
        expected = sorted((n for n in range(len(values)) if values[n] > 0), key=lambda n: -shares[n])[:3]
        assert {one["unit"] for one in layer["units"]} <= {n for n in range(len(values)) if values[n] > 0}
        assert len(layer["units"]) == len(expected)
        for one in layer["units"]:
            assert one["value"] == pytest.approx(float(values[one["unit"]]), abs=1e-5)
            assert one["quantile"] == pytest.approx(shares[one["unit"]], abs=0.03)  # a bin is not resolved
        quantiles = [one["quantile"] for one in layer["units"]]
        assert quantiles == sorted(quantiles, reverse=True)
        assert (layer["images"], layer["complete"]) == (24, True)
    assert explored.request("GET", f"photos/{photo}/point?x=21&y=4").status_code == 422


def test_a_curve_is_that_of_the_recipe_on_the_photographs_of_the_circuit(explored, monkeypatch):
    assert explored.get(f"circuits/{explored.circuit}")["curve"] is None
    answered = []
    monkeypatch.setattr(explored.session.jobs, "answered", lambda *said, since: answered.append(said))
    kept = explored.job("sweep", circuit=explored.circuit, densities=[0.1, 0.3, 0.5])["circuits"]
    card = explored.get(f"circuits/{explored.circuit}")
    curve, report = card["curve"], card["report"]
    assert [point["density"] for point in curve["points"]] == [0.5, 0.3, 0.1]
    assert curve["points"][1]["r2"] == pytest.approx(report["figures"]["r2"])
    assert curve["points"][1]["r2_random"] == pytest.approx(report["figures"]["r2_random"])
    assert (curve["images"], curve["photographs"]) == (report["images"], len(report["held_out"]))
    assert curve["r2_average_map"] == pytest.approx(report["figures"]["r2_average_map"])
    assert [point["circuit"] for point in curve["points"]] == kept
    asked = schemas.FindJob(**FIND | {"density": 0.5}).model_dump(exclude={"kind"})
    assert answered[0] == ("find", asked, {"circuit": kept[0]})  # so that it is not found again
    other = explored.job(**FIND | {"density": 0.5})["circuit"]  # another density of the same recipe
    assert (kept[0], kept[1]) == (other, explored.circuit)  # byte for byte
    assert explored.get(f"circuits/{other}")["curve"] == curve
    another = explored.job(**FIND | {"seed": 1})["circuit"]
    assert explored.get(f"circuits/{another}")["curve"] is None


def test_circuits_of_one_descent_are_kept_but_are_not_those_that_are_found_alone(explored, monkeypatch):
    monkeypatch.setattr(explored.session.jobs, "answered", lambda *_, **__: pytest.fail("it may find others"))
    circuit = explored.job(**FIND | {"criterion": "progressive"})["circuit"]
    large, small = explored.job("sweep", circuit=circuit, densities=[0.3, 0.6])["circuits"]
    for id, point in zip((large, small), explored.get(f"circuits/{circuit}")["curve"]["points"], strict=True):
        card = explored.get(f"circuits/{id}")
        assert card["kept"] == point["kernels"] == len(explored.load(id))
        assert card["report"]["figures"]["r2"] == point["r2"]
        assert card["report"]["found_on_verified"]
    assert explored.get(f"circuits/{large}")["command"] is None  # it was on the way to the other
    explored.job("evaluate", circuit=large)
    assert explored.get(f"circuits/{large}")["report"]["figures"]["r2"] == pytest.approx(
        explored.get(f"circuits/{circuit}")["curve"]["points"][0]["r2"]
    )


def test_a_curve_of_a_recipe_that_counts_effective_kernels_says_that_it_does_not(explored):
    circuit = explored.load(explored.circuit)
    recipe = circuit.provenance["recipe"] | {"effective_kernels": True}
    other = dataclasses.replace(circuit, provenance={**circuit.provenance, "recipe": recipe})
    file = cc.save(other, explored.session.store.place_for("effective"))
    (one,) = [one for one in explored.session.store.circuits() if one.file == file]
    explored.job("sweep", circuit=explored.circuit, densities=[0.3, 0.5])
    assert explored.get(f"circuits/{one.id}")["curve"] is None  # that of all kernels is not its own
    explored.job("sweep", circuit=one.id, densities=[0.3, 0.5])
    assert "counts effective kernels alone" in explored.get(f"circuits/{one.id}")["curve"]["note"]
    assert explored.get(f"circuits/{explored.circuit}")["curve"]["note"] == ""
    file.unlink()


@pytest.mark.parametrize("refit", ["filters", "best"])
def test_each_size_of_a_curve_has_constants_of_its_own_as_the_recipe_says(explored, refit):
    one = explored.job(**FIND | {"refit": refit})["circuit"]
    explored.job("sweep", circuit=one, densities=[0.3, 0.5])
    card = explored.get(f"circuits/{one}")
    assert f"fitted on its own ({refit})" in card["curve"]["note"]
    large, own = card["curve"]["points"]
    for name in ("r2", "r2_random", "constants"):
        assert own[name] == pytest.approx(card["report"]["figures"][name])
    assert own["constants"] > 0
    assert large["constants"] > own["constants"]


def test_a_curve_is_of_kernels_alone(explored):
    filters = explored.job(**FIND | {"granularity": "filter"})["circuit"]
    assert "this recipe finds filters" in explored.fails("sweep", circuit=filters, densities=[0.3, 0.5])


@pytest.mark.slow
def test_phases_on_all_photographs_say_how_many_there_are(explored):
    class Told(Quiet):
        def __init__(self):
            self.phases = {}

        def phase(self, description):
            self.steps = self.phases.setdefault(description, [])

        def __call__(self, done, total):
            self.steps.append((done, total))

    options = {"groups": 2, "held_out": 0.4, "alpha": 0.05, "densities": [0.3], "refit": "none"}
    told, store = Told(), explored.session.store
    known = {one.file for one in store.circuits()}
    said = do(explored.project, "split", {"feature": "4:2", "shuffles": 0, "seed": 0, **options}, told)
    (store.folder / "splits" / f"{said['split']}.json").unlink()
    for one in store.circuits():
        if one.file not in known:
            one.file.unlink()
    for phase in ("looking at photographs", "reading how each image is computed"):
        assert told.phases[phase] == [(16, 24), (24, 24)], phase


def test_a_split_is_that_of_the_library_and_its_circuits_are_kept(explored):
    said = explored.job("split", feature="4:2", groups=2, densities=[0.3], shuffles=1)
    found = explored.get(f"splits/{said['split']}")
    images = explored.images()
    expected = cc.split(
        explored.materials.loaded.model,
        cc.Feature("4", 2),
        torch.stack([*images.values()]),
        groups=2,
        densities=[0.3],
        shuffles=1,
    )
    assert found["verdict"] == expected.verdict_sentence
    for name, group in zip(expected.circuits, found["groups"], strict=True):
        shown = [one["photo"] for one in found["photographs"][name]]
        assert shown == [[*images][n] for n in expected.images(name).tolist()]
        (id,) = group["circuits"]
        assert cc.iou(explored.load(id), expected.circuits[name][0]) == 1.0
        card = explored.get(f"circuits/{id}")
        assert card["group"] == name
        explored.job("evaluate", circuit=id)
        report = explored.get(f"circuits/{id}")["report"]
        assert report["found_on_verified"]
        whole = torch.stack([images[one] for one in report["held_out"]])
        measured = cc.evaluate(explored.materials.loaded.model, explored.load(id), whole)
        assert (report["images"], report["figures"]["r2"]) == (len(whole), pytest.approx(measured.r2))
        assert {*report["found_on"]} == {one["photo"] for one in found["photographs"][name] if not one["held_out"]}
    rows = {(row["circuit"], row["group"]): row["error"] for row in found["cross"]}
    assert rows == {(row.circuit, row.group): pytest.approx(row.error) for row in expected.cross.rows}
    assert found["selectivity"][0]["value"] == pytest.approx(expected.cross.selectivity[0].value)
    everyone = [one for some in found["photographs"].values() for one in some]
    assert len({one["photo"] for one in everyone}) == len(everyone) == 24
    (card,) = explored.get("layers/4/units/2")["splits"]
    assert card == {name: found[name] for name in card}
    for one in everyone[:3]:
        row, column = one["position"]
        assert one["box"] == [row, column, 7, 7]
    assert explored.get("layers/4/units/1")["splits"] == []


def test_a_circuit_of_a_group_names_the_photographs_that_were_drawn_to_find_it_on(explored, monkeypatch):
    monkeypatch.setattr(cc, "split", partial(cc.split, max_images=4))
    said = explored.job("split", feature="4:2", groups=2, densities=[0.3], shuffles=1, seed=1)
    found = explored.get(f"splits/{said['split']}")
    assert any("Circuits were found on 4 of the" in note for note in found["notes"])
    for group in found["groups"]:
        assert group["images"] - group["held_out"] > 4
        (id,) = group["circuits"]
        explored.job("evaluate", circuit=id)
        report = explored.get(f"circuits/{id}")["report"]
        assert report["found_on_verified"]
        assert len(report["found_on"]) == 4
        assert len(report["held_out"]) == group["held_out"]


def test_a_feature_picture_is_kept_with_its_values(explored):
    assert "the job visualise" in explored.refused("layers/2/units/1/picture")
    explored.job("visualise", layer="2", unit=1, steps=8)
    found = explored.get("layers/2/units/1")["picture"]
    assert found["value"] > found["start"]
    with Image.open(explored.session.derived.file("features", "2:1", ".png")) as picture:
        assert picture.size == (5, 5)
    answer = explored.request("GET", "layers/2/units/1/picture")
    assert (answer.headers["content-type"], answer.content[:4]) == ("image/png", b"\x89PNG")
    assert explored.get("layers/2/units/2")["picture"] is None


def test_the_maps_of_a_unit_name_layers_as_papers_do_and_by_their_own_names(explored, monkeypatch):
    explored.job("trajectory", layer="2", unit=1)
    about = explored.session.jobs.about
    layers = [{**layer, "alias": {"2": "conv2"}.get(layer["name"], "")} for layer in about["layers"]]
    monkeypatch.setattr(explored.session.jobs, "about", {**about, "layers": layers})
    said = explored.request("GET", "/api/v1/layers/2/units/1/trajectory").json()
    assert [(row["layer"], row["alias"]) for row in said["layers"]] == [("0", ""), ("2", "conv2")]


def test_the_page_that_is_shared_has_the_feature_picture_of_the_unit_once_it_is_made(explored, tmp_path):
    circuit = explored.job(**FIND | {"feature": "2:4"})["circuit"]
    explored.job("diagram", circuit=circuit)

    def shown():
        (tmp_path / "page.html").write_text(explored.request("GET", f"circuits/{circuit}/page").text, encoding="utf-8")
        document = cc.Diagram.load(tmp_path / "page.html").document
        return document, [one for pictures in document.pictures for one in pictures.target]

    assert shown()[1] == []
    explored.job("visualise", layer="2", unit=4, steps=8)
    document, (picture,) = shown()
    assert picture.label == "optimized to drive it most in the full model"
    last = read_data_url(document.tiles.pages[-1].src)
    assert picture.tile == len(document.tiles) - 1
    made = Image.open(io.BytesIO(explored.request("GET", "layers/2/units/4/picture").content))
    assert np.array_equal(last, np.asarray(made.resize(last.shape[:2], Image.Resampling.NEAREST)))


def test_a_damaged_picture_module_or_diagram_is_never_served_and_said_once(explored):
    """One of which a byte was lost, or which was replaced by something that is none."""
    store, circuit = explored.session.store, explored.circuit
    asked = {
        "picture": {"kind": "visualise", "layer": "0", "unit": 3, "steps": 4},
        "module": {"kind": "extract", "circuit": circuit},
        "diagram": {"kind": "diagram", "circuit": circuit},
    }
    for job in asked.values():
        explored.job(**job)
    files = {
        "picture": (explored.session.derived.file("features", "0:3", ".png"), "layers/0/units/3/picture"),
        "module": (explored.session.derived.file("modules", circuit, ".safetensors"), f"circuits/{circuit}/module"),
        "diagram": (explored.session.derived.diagram(store.circuit(circuit)), f"circuits/{circuit}/diagram"),
    }
    for what, (file, path) in files.items():
        content = file.read_bytes()
        middle = len(content) // 2
        other = b"{}" if what == "diagram" else content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes(other)
        before = len(store.remarks)
        assert f"the job {asked[what]['kind']}" in explored.refused(path)
        explored.refused(path)
        assert not file.exists()
        assert len(store.remarks) == before + 1
        assert f"{file.name} was damaged" in store.remarks[-1]
        explored.job(**asked[what])
        assert explored.request("GET", path).status_code == 200
    assert explored.get("layers/0/units/3")["picture"] is not None
    files["picture"][0].unlink()
    files["module"][0].write_bytes(b"")
    assert explored.get("layers/0/units/3")["picture"] is None  # a page offers to make them
    assert explored.get(f"circuits/{circuit}")["module"] is None


def test_a_card_has_the_verdict_of_the_controls_that_its_diagram_shows(explored):
    assert explored.get(f"circuits/{explored.circuit}")["controls"] is None
    circuit = explored.job(**FIND | {"refit": "filters"})["circuit"]
    explored.job("diagram", circuit=circuit)
    assert explored.get(f"circuits/{circuit}")["controls"] is None
    explored.job("diagram", circuit=circuit, controls=True)
    shown = explored.get(f"circuits/{circuit}/diagram")["variants"][0]["fidelity"]["controls"]["verdict"]
    assert explored.get(f"circuits/{circuit}")["controls"] == shown


def test_lists_of_circuits_read_the_controls_of_a_diagram_once_whoever_looks_at_it(explored, monkeypatch):
    circuit = explored.job(**FIND | {"refit": "filters"})["circuit"]
    explored.job("diagram", circuit=circuit, controls=True)
    read, read_json = [], explored.session.store.read_json

    def counted(file):
        read.append(file.parent.name)
        return read_json(file)

    monkeypatch.setattr(explored.session.store, "read_json", counted)
    for _ in range(3):
        explored.get(f"circuits/{circuit}/diagram")  # which counts as use: the file has another time
        explored.get("circuits")
    assert read.count("diagrams") <= 1


def test_notes_on_the_filters_of_a_circuit_stay_with_it_and_are_on_its_page(explored):
    circuit = explored.job(**FIND | {"density": 0.6})["circuit"]
    explored.job("diagram", circuit=circuit)
    path = f"notes/circuits/{circuit}/filters/2/3"
    before = explored.request("GET", path)
    assert before.json() == {"label": "", "star": False, "text": ""}
    mine, tag = {"label": "wheel", "star": False, "text": "round"}, {"if-match": before.headers["etag"]}
    assert explored.request("PUT", path, json=mine).status_code == 428
    assert explored.request("PUT", path, json=mine, headers=tag).json() == mine
    assert explored.request("PUT", path, json={"label": "other"}, headers=tag).status_code == 412
    assert explored.get("notes")[f"filter 2:3 of circuit {circuit}"] == mine
    page = explored.request("GET", f"circuits/{circuit}/page").text
    assert '"label":"wheel","note":"round"' in page
    (node,) = (int(n) for n in re.findall(r'"node":(\d+),"label":"wheel"', page))
    view = json.dumps({"notes": [{"node": node, "label": "tyre", "note": ""}]})  # not saved, so it goes first
    page = explored.request("GET", f"circuits/{circuit}/page", params={"view": view}).text
    assert ('"label":"tyre"' in page, '"label":"wheel"' in page) == (True, False)
    for wrong in ("2/99", "nonsense/0"):
        assert explored.request("GET", f"notes/circuits/{circuit}/filters/{wrong}").status_code == 404
    tag = {"if-match": explored.request("GET", path).headers["etag"]}
    assert explored.request("PUT", path, json={"label": "x" * 41}, headers=tag).status_code == 422
    assert explored.request("PUT", path, json={}, headers=tag).status_code == 200
    assert f"filter 2:3 of circuit {circuit}" not in explored.get("notes")


def test_neighbours_are_the_units_with_correlated_maps(explored):
    assert "the job neighbours" in explored.refused("layers/2/units/1/neighbours")
    explored.job("neighbours", layer="2")
    found = explored.get("layers/2/units/1/neighbours")
    images = torch.stack([*explored.images().values()])
    maps = cc.activations(explored.materials.loaded.model, cc.Feature("2", range(8)), images)
    expected = np.corrcoef(maps.transpose(0, 1).flatten(1).numpy())[1]
    shown = {one["unit"]: one["correlation"] for one in (*found["highest"], *found["lowest"])}
    assert shown == {n: pytest.approx(expected[n], abs=1e-5) for n in range(8) if n != 1}
    assert (found["images"], found["positions"]) == (24, 256)
    assert found["highest"] == sorted(found["highest"], key=lambda one: -one["correlation"])


@pytest.mark.slow
def test_two_circuits_are_compared_on_photographs_that_neither_was_found_on(explored):
    other = explored.job(**FIND | {"criterion": "snip"})["circuit"]
    assert "the job compare" in explored.refused(f"compare?a={explored.circuit}&b={other}")
    explored.job("compare", a=explored.circuit, b=other)
    document = explored.get(f"compare?a={explored.circuit}&b={other}")
    assert [one["name"] for one in document["variants"]][:2] == ["gauss newton 29.7 %", "snip 29.7 %"]
    reports = [explored.get(f"circuits/{id}")["report"]["figures"] for id in (explored.circuit, other)]
    for variant, figures in zip(document["variants"], reports, strict=False):
        assert variant["fidelity"]["r2"] == pytest.approx(figures["r2"])
    mixed = explored.job(**FIND | {"seed": 3})["circuit"]  # another division of the photographs
    assert "was found on them" in explored.fails("compare", a=explored.circuit, b=mixed)
    again = explored.request("POST", "jobs", json={"kind": "compare", "a": other, "b": other})
    assert again.status_code == 422


def test_a_module_is_what_the_command_extracts(explored, tmp_path):
    assert "the job extract" in explored.refused(f"circuits/{explored.circuit}/module")
    explored.job("extract", circuit=explored.circuit)
    content = explored.request("GET", f"circuits/{explored.circuit}/module").content
    circuit, model = explored.load(explored.circuit), explored.materials.loaded.model
    expected = cc.save(cc.extract(model, circuit, input_shape=(3, 20, 20)), tmp_path / "module.safetensors")
    assert content == expected.read_bytes()
    card = explored.get(f"circuits/{explored.circuit}")["module"]
    assert card["bytes"] == len(content)
    assert card["macs"] < card["full_macs"]


@pytest.mark.parametrize("kernel", [False, True])
def test_an_ablation_measures_the_circuit_without_that_part(explored, kernel):
    circuit, model = explored.load(explored.circuit), explored.materials.loaded.model
    unit, channel = circuit["4"].nonzero()[0].tolist()
    part = {"layer": "4", "filter": unit, **({"input": channel} if kernel else {})}
    found = explored.job("ablate", circuit=explored.circuit, **part)
    held_out = explored.project.again(explored.circuit, Quiet()).setup.held_out.images
    for side, one in (("before", circuit), ("after", circuit.without(*part.values()))):
        expected = cc.evaluate(model, one, held_out).as_dict()
        for name in ("r2", "r2_interior", "kernels", "effective_kernels"):
            assert found[side][name] == pytest.approx(expected[name])
        maps, full = (cc.activations(model, circuit.feature, held_out, circuit=some) for some in (one, None))
        shares = [x.flatten(1).amax(1).sum() for x in (maps, full)]
        assert found[side]["kept"] == pytest.approx(float(shares[0] / shares[1]), rel=1e-4)
    assert found["before"]["r2"] != found["after"]["r2"]
    assert found["images"] == 6
    assert "does not keep" in explored.fails("ablate", circuit=explored.circuit, layer="4", filter=(unit + 1) % 5)


def test_what_the_model_does_with_the_circuit_s_map(explored):
    whole = explored.job(**FIND | {"density": 1.0})["circuit"]
    assert explored.job("put_back", circuit=whole)["by_circuit"]["kl"] == pytest.approx(0, abs=1e-9)
    found = explored.job("put_back", circuit=explored.circuit)
    assert (found["images"], found["classes"]) == (6, 3)
    assert found["by_zero"]["kl"] > 0


def test_an_infinite_change_of_the_answers_is_answered_as_none(explored, monkeypatch):
    infinite = Replaced(6, 3, Change(float("inf"), 0.5), Change(1.0, 1.0), Change(2.0, 1.0))
    monkeypatch.setattr(circuit_tasks, "replaced", lambda *_, **__: infinite)
    assert explored.job("put_back", circuit=explored.circuit)["by_circuit"] == {"kl": None, "top1": 0.5}


def test_an_estimate_says_what_it_is_of(explored):
    found = explored.get("estimate?feature=4:2&criterion=gauss_newton&count=10")
    assert found["seconds"] == pytest.approx(2 * found["opening"] + found["batch"] * found["passes"] * 10)
    assert "an estimate" in found["sentence"]
    assert explored.get("estimate?feature=4:2&criterion=own")["seconds"] is None
    assert explored.request("GET", "estimate?feature=nonsense:2").status_code == 400


def test_a_circuit_that_is_there_already_is_not_written_again_whatever_the_names(explored):
    circuit, store = explored.load(explored.circuit), explored.session.store
    before = sorted(store.folder.glob("circuits/*"))
    for name in ("0", "zebra"):
        assert circuit_tasks.kept(explored.project, circuit, name) == explored.circuit
        assert sorted(store.folder.glob("circuits/*")) == before


def test_circuits_of_other_weights_are_listed_apart(explored):
    stranger = dataclasses.replace(explored.load(explored.circuit))
    stranger = dataclasses.replace(stranger, provenance={**stranger.provenance, "weights": "0" * 32})
    file = cc.save(stranger, explored.session.store.place_for("stranger"))
    (one,) = [one for one in explored.session.store.circuits() if one.file == file]
    found = explored.get("layers/4/units/2")
    assert found["other_circuits"] == [one.id]
    assert explored.circuit in found["circuits"]
    assert one.id not in found["circuits"]
    cards = {card["id"]: card["same_weights"] for card in explored.get("circuits")}
    assert (cards[one.id], cards[explored.circuit]) == (False, True)
    file.unlink()


# ---------------------------------------- bundles


def noted(explored):
    """Where notes are that go with a circuit."""
    return (f"notes/circuits/{explored.circuit}", f"notes/circuits/{explored.circuit}/filters/2/3", "notes/units/4/2")


@pytest.fixture(scope="module")
def shared(explored, tmp_path_factory):
    """A bundle of a circuit that was measured and has a note, with its photographs."""
    for path in noted(explored):
        tag = explored.request("GET", path).headers["etag"]
        explored.request("PUT", path, json={"label": "wheels", "text": "a\nb"}, headers={"if-match": tag})
    answer = explored.request("GET", f"circuits/{explored.circuit}/bundle?photographs=true")
    assert answer.headers["content-type"] == "application/zip"
    assert explored.request("GET", f"circuits/{explored.circuit}/bundle?photographs=true").content == answer.content
    file = tmp_path_factory.mktemp("shared") / "circuit.zip"
    file.write_bytes(answer.content)
    return file


def test_a_bundle_brings_a_circuit_its_figures_and_its_note(explored, shared, tmp_path):
    with pytest.raises(cc.ConvCircuitsError, match="built by custom code"):
        of_bundle(shared, None, None, tmp_path / "p", weights=None, read_only=False)
    model, images, project, options = of_bundle(
        shared, "classed_net:net", None, tmp_path / "p", weights=None, read_only=False
    )
    assert options == {}
    given = Path(explored.session.opening.images)
    for name in sorted(file.name for file in given.iterdir()):
        content = (Path(images) / name).read_bytes() if (Path(images) / name).exists() else None
        assert content in (None, (given / name).read_bytes())
    found = Explored(Opening(model=model, images=images, project=project, bundle=shared))
    (card,) = found.get("circuits")
    own = explored.get(f"circuits/{explored.circuit}")
    assert (card["id"], card["same_weights"]) == (explored.circuit, True)
    content = found.request("GET", f"circuits/{explored.circuit}/file").content
    assert content == explored.request("GET", f"circuits/{explored.circuit}/file").content
    for path in noted(explored):
        assert found.get(path) == explored.get(path)
        assert found.get(path)["label"] == "wheels"
    assert card["report"]["sent"]
    assert not own["report"]["sent"]
    assert card["report"]["figures"]["r2"] == own["report"]["figures"]["r2"]
    assert {*card["report"]["held_out"]} <= {*found.materials.photographs}
    found.job("evaluate", circuit=explored.circuit)
    report = found.get(f"circuits/{explored.circuit}")["report"]
    assert report["figures"]["r2"] == pytest.approx(own["report"]["figures"]["r2"])
    assert report["found_on_verified"]
    assert not report["sent"]
    found.session.close()
    again = Session(Opening(model=model, images=images, project=project, bundle=shared))
    assert len(again.store.circuits()) == 1
    again.close()


def test_a_circuit_that_cannot_be_measured_is_not_lost(explored, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("CUDA out of memory")

    asked = {**FIND, "density": 0.45}
    known = {one.id for one in explored.session.store.circuits()}
    with monkeypatch.context() as patched:
        patched.setattr(circuit_tasks, "_measured", fails)
        with pytest.raises(RuntimeError):
            explored.job(**asked)
    (found,) = {one.id for one in explored.session.store.circuits()} - known
    assert explored.get(f"circuits/{found}")["report"] is None
    assert explored.job("evaluate", circuit=found) == {"circuit": found}
    first = explored.get(f"circuits/{found}")["report"]
    assert explored.job(**asked)["circuit"] == found
    assert explored.get(f"circuits/{found}")["report"]["figures"] == first["figures"]


def test_a_file_that_is_removed_just_now_is_not_found(explored, monkeypatch):
    """And one that is replaced is not taken for the one before, in a bundle either."""
    explored.job("extract", circuit=explored.circuit)
    explored.job("visualise", layer="2", unit=3, steps=2)
    paths = [f"circuits/{explored.circuit}/{what}" for what in ("file", "bundle", "module")]
    paths.append("layers/2/units/3/picture")
    for path in paths:
        assert explored.request("GET", path).status_code == 200
    store = explored.session.store
    content = store.content

    def answering(other):
        return lambda file: content(file) if file.suffix == ".json" else other

    monkeypatch.setattr(store, "content", answering(b"another"))
    for path in paths[:2]:
        assert explored.request("GET", path).status_code == 404
    monkeypatch.setattr(store, "content", answering(None))
    for path in paths:
        assert explored.request("GET", path).status_code == 404
    assert store.report(explored.circuit) is not None


def test_a_model_in_place_of_another_has_other_weights(explored, monkeypatch):
    """As when the worker starts again, and the file of weights has changed."""
    one = explored.session.store.circuit(explored.circuit)
    assert explored.session.same_weights(one)
    monkeypatch.setattr(explored.session.jobs, "ask", lambda name, layer: "other")
    assert explored.session.same_weights(one)  # known from before
    explored.session._ready()
    assert explored.session.same_weights(one) is False
    explored.session._weights.clear()


class Elements(HTMLParser):
    """What a page has: its elements, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.handlers = Counter(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.handlers += [name for name, _ in attributes if name.startswith("on")]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_of_notes_come_back_as_they_were_written(explored, tmp_path, text):
    """In answers, the project's file, the page that is shared, and the bundle."""
    explored.job("diagram", circuit=explored.circuit)
    before = {path: explored.get(path) for path in noted(explored)}

    def write(path, note):
        tag = explored.request("GET", path).headers["etag"]
        return explored.request("PUT", path, json=note, headers={"if-match": tag})

    def page():
        answer = explored.request("GET", f"circuits/{explored.circuit}/page")
        assert answer.status_code == 200, answer.text
        return answer.text

    bare = Elements(page())
    notes = {
        path: {"label": text, "star": False, "text": LONG[:1000] if "filters" in path else LONG} for path in before
    }
    for path, note in notes.items():
        assert write(path, note).json() == note
        assert explored.get(path) == note
    assert [*explored.get("notes").values()] == [*notes.values()]
    assert write(noted(explored)[0], {"label": 40 * text}).status_code == 422  # it is too long

    (tmp_path / "page.html").write_text(page(), encoding="utf-8")
    shown = cc.Diagram.load(tmp_path / "page.html")
    assert (shown.labels["2:3"], shown.notes["2:3"]) == (text, LONG[:1000])
    elements = Elements(page())
    assert {tag for tag in elements.tags if elements.tags[tag] > bare.tags[tag]} <= {"aside", "h2", "p", "br"}
    assert elements.handlers == bare.handlers == []

    content = explored.request("GET", f"circuits/{explored.circuit}/bundle").content
    (tmp_path / "b.zip").write_bytes(content)
    found = Explored(dataclasses.replace(explored.session.opening, project=tmp_path / "p", bundle=tmp_path / "b.zip"))
    for path, note in notes.items():
        assert found.get(path) == note
    found.session.close()
    for path, note in before.items():
        assert write(path, note).status_code == 200


def test_figures_of_another_basis_do_not_hide_those_that_were_sent(explored, shared, tmp_path):
    """An older version left a report of the same circuit, and photographs differ from those of who sent it."""
    opening = dataclasses.replace(explored.session.opening, project=tmp_path / "p", size=16, bundle=shared)
    found = Session(opening)
    found.jobs.about = {**explored.session.jobs.about, "basis": "0" * 32}
    (one,) = found.store.circuits()
    stale = explored.session.store.report(explored.circuit) | {"basis": "1" * 32, "seconds": 99.0}
    found.store.write_json(found.store.report_file(one.id), stale)
    report = found.derived.report(one)
    assert (report.sent, report.seconds) == (True, explored.session.store.report(one.id)["seconds"])
    assert not found._holds("evaluate", {}, {"circuit": one.id})  # so that it can be measured here
    found.store.write_json(found.store.report_file(one.id), stale | {"basis": "0" * 32})
    assert (found.derived.report(one).sent, found.derived.report(one).seconds) == (False, 99.0)
    content = circuit_bundle(found, one, {}, photographs=False)
    (tmp_path / "b.zip").write_bytes(content)
    assert Bundle.read(tmp_path / "b.zip").about["options"]["size"] == 16
    found.close()


def test_a_model_is_opened_with_the_options_that_a_bundle_says(shared, tmp_path):
    def edited(**options):
        return changed(shared, tmp_path / "b.zip", lambda c: told(c, options=options))

    size = {"size": 16, "mean": [0.5], "std": [0.25], "weights": None}
    common = {"weights": None, "read_only": False}
    found = of_bundle(edited(**size), "classed_net:net", "sample", tmp_path, **common)
    assert found[3] == {"size": 16, "mean": (0.5,), "std": (0.25,)}
    assert of_bundle(edited(**size), "alexnet", "sample", tmp_path, **common)[3] == {}
    with pytest.raises(cc.ConvCircuitsError, match=r"weights in a file 'w\.pth', .* give --weights"):
        of_bundle(edited(**size | {"weights": "w.pth"}), "classed_net:net", "sample", tmp_path, **common)
    for wrong in ({"size": 0}, {"size": "16"}, {"size": True}, {"mean": ["x"]}, {"std": 3}, {"weights": 3}):
        with pytest.raises(cc.ConvCircuitsError, match="is not a bundle"):
            Bundle.read(edited(**size | wrong))


def test_no_photographs_are_in_a_bundle_unless_they_are_asked_for(explored, tmp_path):
    answer = explored.request("GET", f"circuits/{explored.circuit}/bundle")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {*archive.namelist()} <= {"bundle.json", "circuit.safetensors", "report.json", "diagram.json"}
        about = json.loads(archive.read("bundle.json"))
    assert about["command"].startswith("convcircuits find --model classed_net:net")
    (tmp_path / "b.zip").write_bytes(answer.content)
    with pytest.raises(cc.ConvCircuitsError, match="holds no photographs; give --images"):
        of_bundle(tmp_path / "b.zip", "classed_net:net", None, tmp_path, weights=None, read_only=False)
    with pytest.raises(cc.ConvCircuitsError, match="does not go with --read-only"):
        of_bundle(tmp_path / "b.zip", "classed_net:net", "sample", tmp_path, weights=None, read_only=True)


def test_a_bundle_without_photographs_shows_parts_of_them_alone(explored, monkeypatch, tmp_path):
    """And only the circuit's file, whose hash is its id, names any."""
    circuit = explored.load(explored.circuit)
    told = ["Copies of other photographs, left out (1): 23.png"]
    other = dataclasses.replace(circuit, provenance={**circuit.provenance, "notes": told})
    file = cc.save(other, explored.session.store.place_for("told"))
    (id,) = [one.id for one in explored.session.store.circuits() if one.file == file]
    explored.job("evaluate", circuit=id)
    explored.job("diagram", circuit=id)
    drawn = Document.from_json(explored.session.derived.document(explored.session.circuit(id)))
    assert drawn.images is not None
    assert drawn.tiles.wholes
    assert told[0] + "." in drawn.meta.notes
    names = [photograph.name for photograph in explored.materials.photographs.values()]
    place = tmp_path / "b.zip"
    for photographs in (True, False):
        content = explored.request("GET", f"circuits/{id}/bundle?photographs={photographs}").content
        place.write_bytes(content)
        contents = Bundle.read(place).files
        sent = Document.from_json(contents["diagram.json"])
        texts = {name: contents[name].decode() for name in ("report.json", "diagram.json")}
        if photographs:
            assert sent.to_json() == drawn.to_json()
            assert all(any(name in text for name in names) for text in texts.values())
        else:
            assert not any(name in text for name in names for text in texts.values())
    assert (sent.images, sent.tiles.wholes) == (None, ())
    assert sent.tiles.pages[0].src == drawn.tiles.pages[0].src
    assert set(drawn.meta.notes) - set(sent.meta.notes) == {told[0] + "."}
    file.unlink()
    found = Explored(dataclasses.replace(explored.session.opening, project=tmp_path / "p", bundle=place))
    assert found.get(f"circuits/{id}")["report"]["sent"]
    assert Document.from_json(found.request("GET", f"circuits/{id}/diagram").content).images is None
    found.session.close()


def test_a_bundle_is_compressed():
    assert len(bundle.packed({}, {"report.json": bytes(100_000)})) < 2000


def test_photographs_that_a_circuit_names_are_all_in_its_bundle_or_none_is_written(explored, monkeypatch, tmp_path):
    """Also a copy, which the explorer shows under another name."""
    circuit = explored.load(explored.circuit)
    by_name = circuit.provenance["photographs"]
    first, *rest = by_name["found_on"]
    about = explored.session.jobs.about
    ids = {**about["ids"], "copy.png": about["ids"][first]}
    monkeypatch.setitem(about, "ids", ids)
    for name, fails in (("copy.png", False), ("gone.png", True)):
        named = {**by_name, "found_on": [name, *rest]}
        other = dataclasses.replace(circuit, provenance={**circuit.provenance, "photographs": named})
        file = cc.save(other, explored.session.store.place_for("named"))
        (one,) = [one for one in explored.session.store.circuits() if one.file == file]
        answer = explored.request("GET", f"circuits/{one.id}/bundle?photographs=true")
        file.unlink()
        if fails:
            assert answer.status_code == 400
            assert "gone.png, which it names, are not here" in answer.json()["error"]
            continue
        (tmp_path / "b.zip").write_bytes(answer.content)
        assert {*Bundle.read(tmp_path / "b.zip").photographs} == {name for some in named.values() for name in some}
    monkeypatch.setattr(bundle, "MOST", 5000)
    answer = explored.request("GET", f"circuits/{explored.circuit}/bundle?photographs=true")
    assert "leave out the photographs" in answer.json()["error"]


def changed(file, place, edit):
    """A copy of a bundle in which some files are others."""
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    edit(contents)
    with zipfile.ZipFile(place, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return place


def recorded(contents):
    about = json.loads(contents["bundle.json"])
    about["files"] = {n: hashlib.sha256(c).hexdigest() for n, c in contents.items() if n != "bundle.json"}
    contents["bundle.json"] = json.dumps(about).encode()


@pytest.mark.parametrize(
    "name", ["../x.png", "/x.png", "photographs/../../x.png", "photographs//x", "photographs/.x", "x"]
)
def test_a_bundle_writes_nowhere_else(name, shared, tmp_path):
    def add(contents):
        contents[name] = b"x"
        recorded(contents)

    with pytest.raises(cc.ConvCircuitsError, match="which a bundle may not"):
        Bundle.read(changed(shared, tmp_path / "b.zip", add))


def told(contents, **fields):
    contents["bundle.json"] = json.dumps(json.loads(contents["bundle.json"]) | fields).encode()


EDITS = {
    "another circuit": (lambda c: c.update({"circuit.safetensors": b"x"}), "does not have the recorded hash"),
    "one more file": (lambda c: c.update({"photographs/z.png": b"x"}), "does not have the recorded hash"),
    "one less file": (lambda c: c.pop("report.json"), "does not have the recorded hash"),
    "nothing said": (lambda c: c.pop("bundle.json"), "is not a bundle"),
    "another format": (lambda c: c.update({"bundle.json": b'{"schema": "x"}'}), "has the format 'x'"),
    "no JSON": (lambda c: c.update({"bundle.json": b"{"}), "is not a bundle"),
    "a circuit of another id": (lambda c: (c.update({"circuit.safetensors": b"x"}), recorded(c)), "is another than"),
    "a path as its basis": (lambda c: told(c, basis="/../../a"), "does not say what it is of"),
    "a long label": (lambda c: told(c, note={"label": "x" * 500}), "its label has more than 200 characters"),
    "figures that are no numbers": (
        lambda c: (c.update({"report.json": b'{"seconds": 1e999}'}), recorded(c)),
        "is not a bundle",
    ),
    "notes on filters that are none": (lambda c: told(c, filter_notes={"2:3": {"text": 3}}), "its text is 3"),
    "a note on the unit that is no note": (lambda c: told(c, unit_note={"label": 3}), "its label is 3"),
    "a note that is no note": (lambda c: told(c, note=["x"]), "other fields than label"),
}


@pytest.mark.parametrize(("edit", "said"), EDITS.values(), ids=EDITS)
def test_a_bundle_that_is_not_what_it_says_is_refused(edit, said, shared, tmp_path):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        Bundle.read(changed(shared, tmp_path / "b.zip", edit))


def test_a_bundle_that_is_no_archive_or_cut_off_is_refused(shared, tmp_path):
    for content in (b"x", shared.read_bytes()[:-40]):
        (tmp_path / "b.zip").write_bytes(content)
        with pytest.raises(cc.ConvCircuitsError, match="is not a bundle"):
            Bundle.read(tmp_path / "b.zip")
    with pytest.raises(cc.ConvCircuitsError, match="cannot be read"):
        Bundle.read(tmp_path / "none.zip")


def test_a_bundle_that_is_too_large_is_not_opened(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "MOST", 0)
    with pytest.raises(cc.ConvCircuitsError, match="leave out the photographs"):
        bundle.packed({}, {"circuit.safetensors": b"x"})

    def fill(contents):
        contents["photographs/zeros"] = bytes(2**24 + 1)
        recorded(contents)

    with pytest.raises(cc.ConvCircuitsError, match="so it is not opened"):
        Bundle.read(changed(shared, tmp_path / "b.zip", fill))
