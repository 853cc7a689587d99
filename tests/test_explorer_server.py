"""The explorer as its page sees it: a server, a worker that may die, and a folder that outlives both."""

import base64
import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from PIL import Image

import convcircuits as cc
from convcircuits.explorer import jobs, schemas
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.routes import application, openapi
from convcircuits.explorer.routes.fields import Measure
from convcircuits.explorer.session import Session
from convcircuits.values.measures import MEASURES
from convcircuits.zoo.models import load_model
from convcircuits.zoo.preprocessing import Preprocess

SOURCE = """
import time
from pathlib import Path

import torch
from torch import nn

from convcircuits.zoo.preprocessing import Preprocess

preprocess = Preprocess(size=(20, 20), resize=(22, 22))


class Net(nn.Sequential):
    def forward(self, x):
        while Path("hangs").exists():
            time.sleep(0.05)
        return super().forward(x)


def net():
    torch.manual_seed(0)
    return Net(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)).eval()
"""
FIND = {"kind": "find", "feature": "4:2", "density": 0.3, "criterion": "gauss_newton", "count": 6}
COMMAND = (("mine", 0.3), ("other", 0.5))  # circuits that the command finds, and their densities
SLOW = {"kind": "find", "feature": "4:1", "density": 0.01, "criterion": "force", "options": ["steps=3000"], "count": 6}


def workplace(folder):
    """A working directory with a model of the user's and ten pictures, one of them twice."""
    (folder / "tiny_net.py").write_text(SOURCE)
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for name in "abcdefghij":
        coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((36, 30)).save(folder / f"pictures/{name}.png")
    (folder / "pictures/z.png").write_bytes((folder / "pictures/a.png").read_bytes())
    return folder


@contextlib.contextmanager
def started(folder, *options):
    """Run the command. Yields its process and a client that has opened the page."""
    line = ["explore", "-m", "tiny_net:net", "--images", "pictures", "--project", "project", "--no-open", "--port", "0"]
    command = [sys.executable, "-m", "convcircuits", *line, *options]
    with (folder / "errors").open("a") as errors:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        address = process.stdout.readline().strip()
        with httpx.Client(base_url=address.partition("/?")[0], timeout=600) as client:
            opened = client.get(address, follow_redirects=True)
            assert opened.status_code == 200
            assert "token" not in str(opened.url)
            yield process, client
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def until(met):
    """Wait for what a function returns to be true, and return it."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        found = met()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it took too long")


def ready(client):
    return until(lambda: (m := client.get("/api/v1/model").json())["state"] != "starting" and m)


def ended(client, id):
    def state():
        job = client.get(f"/api/v1/jobs/{id}").json()
        return job["state"] not in ("queued", "running") and job

    return until(state)


def done(client, asked):
    answer = client.post("/api/v1/jobs", json=asked)
    assert answer.status_code in (200, 202), answer.text
    job = ended(client, answer.json()["id"])
    assert job["state"] == "done", job["error"]
    return job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return workplace(tmp_path_factory.mktemp("explorer"))


@pytest.fixture(scope="module")
def served(folder):
    """The process of an explorer that has indexed its photographs, and a client."""
    with started(folder) as (process, client):
        assert ready(client)["state"] == "ready"
        until(lambda: client.get("/api/v1/model").json()["index"]["state"] == "complete")
        yield process, client


@pytest.fixture
def client(served):
    return served[1]


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """An explorer in this process, with a client that no guard stops."""
    from fastapi.testclient import TestClient

    monkeypatch.chdir(workplace(tmp_path))
    explorer = Session(Opening(model="tiny_net:net", images="pictures", project=tmp_path / "project"))
    with TestClient(application(explorer)) as client:
        assert ready(client)["state"] == "ready"
        yield explorer, client


# ---------------------------------------- what is served


def test_the_schema_in_the_package_is_what_the_application_says():
    """Made by ``python tools/explorer_schema.py``."""
    file = Path(schemas.__file__).parent / "static" / "openapi.json"
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(openapi()))


def test_units_are_sorted_by_the_measures_of_the_library():
    assert set(Measure.__args__) == {"unit", *MEASURES}


def test_the_server_loads_no_torch(tmp_path):
    program = (
        "import sys, convcircuits.cli.explore, convcircuits.cli.application, convcircuits.explorer.server\n"
        "from convcircuits.explorer import routes, session\n"
        "import convcircuits.explorer.launch, convcircuits.explorer.entry\n"
        "from pathlib import Path; from convcircuits.explorer.opening import Opening\n"
        "routes.application(session.Session(Opening(model='x', project=Path(sys.argv[1])))).openapi()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], timeout=600).returncode == 0


@pytest.mark.slow
def test_model_and_layers_say_what_there_is(client):
    model = client.get("/api/v1/model").json()
    assert (model["name"], model["photographs"], model["copies"], model["size"]) == (
        "tiny_net:net",
        10,
        ["z.png"],
        [20, 20],
    )
    assert model["index"] == {"state": "complete", "images": 10, "photographs": 10, "left_out": {}}
    layers = client.get("/api/v1/layers").json()
    assert [(one["name"], one["units"], one["map"], one["images"]) for one in layers if one["indexed"]] == [
        ("0", 6, [18, 18], 10),
        ("2", 8, [16, 16], 10),
        ("4", 5, [14, 14], 10),
    ]
    assert [one["name"] for one in layers if not one["indexed"]] == ["1", "3"]
    page = client.get("/api/v1/photos?offset=8&limit=5").json()
    assert (page["total"], [one["name"] for one in page["photographs"]]) == (10, ["i.png", "j.png"])
    assert client.get(f"/api/v1/photos/{page['photographs'][0]['id']}").json() == page["photographs"][0]


@pytest.mark.slow
def test_units_are_those_of_the_library(client, folder, monkeypatch):
    monkeypatch.chdir(folder)
    loaded = load_model("tiny_net:net")
    pictures = [Image.open(folder / f"pictures/{name}.png") for name in "abcdefghij"]
    images = torch.stack([loaded.preprocess(picture) for picture in pictures])
    found = cc.units(loaded.model, "2", images, count=4, names=[f"{name}.png" for name in "abcdefghij"])
    page = client.get("/api/v1/layers/2/units?sort=sparsity&limit=3").json()
    assert page["total"] == 8
    assert [row["figures"]["unit"] for row in page["units"]] == [one.unit for one in found.ranked("sparsity")[:3]]
    rest = client.get("/api/v1/layers/2/units?sort=sparsity&offset=3&limit=100").json()["units"]
    lowest = client.get("/api/v1/layers/2/units?sort=sparsity&lowest_first=true").json()["units"]
    assert [row["figures"]["unit"] for row in lowest] == [
        one.unit for one in found.ranked("sparsity", lowest_first=True)
    ]
    for row in [*page["units"], *rest]:
        unit = row["figures"]["unit"]
        assert row["figures"] == pytest.approx(found[unit].as_dict(), rel=1e-4, abs=1e-6)
        assert [one["name"] for one in row["top"]] == [f"{'abcdefghij'[n]}.png" for n in found.top.highest.image[unit]]
        detail = client.get(f"/api/v1/layers/2/units/{unit}").json()
        assert detail["figures"] == row["figures"]
        assert detail["histogram"]["counts"] == row["histogram"]
        assert sum(edge < 0 for edge in detail["histogram"]["edges"][:-1]) == row["zero"]
    top = client.get("/api/v1/layers/2/units/3/examples").json()
    assert (top["pool"], top["sampled"], len(top["examples"])) == (10, False, 10)
    bottom = client.get("/api/v1/layers/2/units/3/examples?section=bottom&count=2").json()["examples"]
    assert [one["photo"] for one in bottom] == [one["photo"] for one in top["examples"][:-3:-1]]
    ends = f"low={top['examples'][2]['value'] - 1e-3}&high={top['examples'][1]['value'] + 1e-3}"
    middle = client.get(f"/api/v1/layers/2/units/3/examples?section=range&{ends}").json()["examples"]
    assert [one["photo"] for one in middle] == [one["photo"] for one in top["examples"][1:3]]


@pytest.mark.slow
def test_a_thumb_has_the_pixels_of_its_box_and_never_changes(client, folder):
    example = client.get("/api/v1/layers/4/units/1/examples").json()["examples"][0]
    top, left, height, width = example["box"]
    assert (height, width) == (7, 7)
    path = f"/api/v1/thumb/{example['photo']}?w=70&box={top},{left},{height},{width}"
    of = client.get("/api/v1/model").json()["images"][:8]
    answer = client.get(f"{path}&of={of}")
    assert answer.headers["content-type"] == "image/jpeg"
    assert "immutable" in answer.headers["cache-control"]
    unnamed = client.get(path)  # which another explorer at this port may answer otherwise
    assert (unnamed.content, unnamed.headers["cache-control"]) == (answer.content, "private, no-cache")
    other = client.get(f"{path}&of={'0' if of[0] != '0' else '1'}{of[1:]}")
    assert (other.status_code, other.headers["cache-control"]) == (404, "no-store")
    shown = Image.open(io.BytesIO(answer.content))
    picture = Image.open(folder / "pictures" / example["name"])
    region = Preprocess(size=(20, 20), resize=(22, 22)).region(picture.size).part(example["box"], (20, 20))
    edges = (region.left, region.top, region.left + region.width, region.top + region.height)
    expected = picture.resize((70, 70), Image.Resampling.LANCZOS, box=edges)
    difference = np.abs(np.asarray(shown, dtype=float) - np.asarray(expected, dtype=float))
    assert difference.mean() < 6  # JPEG
    again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(path).content == answer.content
    whole = Image.open(io.BytesIO(client.get(f"/api/v1/thumb/{example['photo']}?w=90").content))
    assert whole.size == (90, 75)
    beyond = Image.open(io.BytesIO(client.get(f"/api/v1/thumb/{example['photo']}?w=32&box=-40,-40,30,30").content))
    assert beyond.size == (32, 32)


@pytest.mark.slow
def test_a_map_is_that_of_the_model(client, folder, monkeypatch):
    monkeypatch.chdir(folder)
    loaded = load_model("tiny_net:net")
    photo = client.get("/api/v1/photos").json()["photographs"][3]
    image = loaded.preprocess(Image.open(folder / "pictures" / photo["name"]))[None]
    expected = cc.activations(loaded.model, cc.Feature("2", 5), image)[0].numpy()
    said = client.get(f"/api/v1/map/2/5/{photo['id']}").json()
    values = np.frombuffer(base64.b64decode(said["values"]), "<f4").reshape(said["shape"])
    assert np.allclose(values, expected, atol=1e-5)


# ---------------------------------------- what is refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/layers/nonsense/units", 404),
        ("/api/v1/layers/1/units", 404),
        ("/api/v1/layers/..%2f..%2fetc%2fpasswd/units", 404),
        ("/api/v1/layers/2/units/8", 404),
        ("/api/v1/layers/2/units/-1", 422),
        ("/api/v1/layers/2/units?sort=nonsense", 422),
        ("/api/v1/layers/2/units/0/examples?section=median&padding=true", 422),
        ("/api/v1/photos/..%2f..%2fpictures%2fa.png", 422),
        ("/api/v1/thumb/..%2fa.png", 422),
        ("/api/v1/thumb/0000000000000000", 404),
        ("/api/v1/thumb/0000000000000000?box=1,2", 422),
        ("/api/v1/layers/2/units/0/trajectory", 404),
        ("/api/v1/layers/..%2f..%2fetc/units/0/trajectory", 404),
        ("/api/v1/atlases/0123456789abcdef", 404),
        ("/api/v1/atlases/..%2f..%2fpictures", 422),
        ("/api/v1/circuits/..%2f..%2ftiny_net.py", 422),
        ("/api/v1/circuits/%2e%2e/diagram", 422),
        ("/api/v1/circuits/0123456789abcdef/diagram", 404),
        ("/api/v1/jobs/..%2flock", 422),
        ("/static/..%2fstore.py", 404),
        ("/static/../__init__.py", 404),
        ("/..%2f..%2fetc/passwd", 404),
        ("/api/v1/nonsense", 404),
    ],
)
def test_what_is_not_there_is_a_sentence(path, status, client):
    request = client.build_request("GET", "/")
    request.url = request.url.copy_with(raw_path=path.encode())  # as it is, dots and all
    answer = client.send(request)
    assert answer.status_code == status
    assert answer.json()["error"].endswith(".")
    assert "Traceback" not in answer.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"kind": "nonsense"}, "valid"),
        ({"kind": "find"}, "feature"),
        (FIND | {"feature": "4:2", "density": 2}, "density"),
        (FIND | {"kernels": 3}, "Give only one of"),
        ({"kind": "find", "feature": "4:2", "filters": 3}, "Give both"),
        (FIND | {"images": "/etc"}, "images"),
        (FIND | {"photographs": ["0" * 16, "1" * 16], "count": 24}, "no photograph"),
        (FIND | {"photographs": ["0" * 16, "1" * 16], "count": 5}, "taken once each, without crops; omit count"),
        (FIND | {"photographs": ["../../etc/passwd"] * 2}, "photographs"),
        (FIND | {"feature": "4:99"}, "4 has 5 units, 0 to 4; there is no 99."),
        (FIND | {"feature": "4:1,7"}, "there is no 7."),
        (FIND | {"feature": "five:1"}, "There is no layer 'five'."),
        (FIND | {"feature": "4"}, "'4' is not a feature; write layer:unit"),
        (FIND | {"criterion": "snap"}, "There is no criterion 'snap'."),
        (FIND | {"options": ["like=/etc/passwd.safetensors"]}, "is not an option of a criterion"),
        (FIND | {"options": ["drews=3"]}, "gauss_newton has no option 'drews'."),
        (FIND | {"options": ["draws"]}, "draws has no value"),
        (FIND | {"criterion": "progressive", "granularity": "filter"}, "progressive needs granularity 'kernel'"),
        (
            {"kind": "find", "feature": "4:2", "drawable": True, "granularity": "filter"},
            "drawable needs granularity 'kernel'",
        ),
        (FIND | {"count": 99_999}, "count is 99,999; at most 100 crops are cut of a photograph, so it may be"),
        ({"kind": "split", "feature": "4:99"}, "there is no 99."),
        ({"kind": "split", "feature": "4:1,2"}, "is not one unit; give LAYER:UNIT."),
        ({"kind": "trajectory", "layer": "4", "unit": 99}, "no unit 99"),
        ({"kind": "diagram", "circuit": "0123456789abcdef"}, "no circuit"),
        ({"kind": "evaluate", "circuit": "../lock"}, "circuit"),
    ],
)
def test_a_job_that_cannot_be_is_refused_before_it_waits(asked, said, client):
    answer = client.post("/api/v1/jobs", json=asked)
    assert answer.status_code in (404, 422)
    assert said in answer.json()["error"]


@pytest.mark.slow
def test_a_job_that_fails_says_why(client):
    wrong, said = {"density": None, "kernels": 10**6}, "1000000 kernels were requested"
    answer = client.post("/api/v1/jobs", json=FIND | wrong)
    assert answer.status_code == 202
    job = ended(client, answer.json()["id"])
    assert job["state"] == "failed"
    assert said in job["error"]
    assert client.post("/api/v1/jobs", json=FIND | wrong).status_code == 202  # it is tried again


@pytest.mark.slow
def test_the_real_server_refuses_strangers(client):
    port = client.base_url.port
    assert httpx.get(f"http://127.0.0.1:{port}/api/v1/model").status_code == 401
    for path in ("/api/v1/model", "/api/v1/events"):
        for headers, status in (
            ({"host": f"evil.example:{port}"}, 421),
            ({"origin": "http://evil.example"}, 403),
            ({"sec-fetch-site": "cross-site"}, 403),
        ):
            assert client.get(path, headers=headers).status_code == status
    assert client.post("/api/v1/jobs", content="{}", headers={"content-type": "text/plain"}).status_code == 415
    assert client.options("/api/v1/jobs", headers={"access-control-request-method": "POST"}).status_code == 405


@pytest.mark.slow
def test_whatever_is_asked_is_answered_as_the_schema_says(client):
    """Requests that are made up from the schema: no answer is one that it does not name, and none is a failure."""
    schema = schemathesis.openapi.from_dict(openapi())

    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/events"):  # a stream does not end
            continue

        @given(case=operation.as_strategy())
        @settings(
            max_examples=4, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        def ask(case):
            sent = case.as_transport_kwargs(base_url=str(client.base_url))
            cookies = {**(sent.pop("cookies", None) or {}), **dict(client.cookies)}
            answer = httpx.request(**sent, cookies=cookies, timeout=600)
            said = [str(status) for status in case.operation.definition.raw["responses"]]
            assert str(answer.status_code) in said, (answer.status_code, sent)
            assert answer.status_code < 500
            if answer.is_error:
                assert set(answer.json()) == {"error"}

        ask()
    for job in client.get("/api/v1/jobs").json():  # of what was asked for, some may have been queued
        if job["state"] in ("queued", "running"):
            client.delete(f"/api/v1/jobs/{job['id']}")
            ended(client, job["id"])


# ---------------------------------------- circuits


@pytest.mark.slow
def test_a_circuit_is_the_one_that_the_command_finds_and_each_sees_the_other_s(client, folder):
    job = done(client, FIND)
    id = job["result"]["circuit"]
    again = client.post("/api/v1/jobs", json=FIND)
    assert (again.status_code, again.json()["result"]) == (200, {"circuit": id})
    assert id in client.get("/api/v1/layers/4/units/2").json()["circuits"]

    common = "images = 'pictures'\ncount = 6\nfeature = '4:2'\ncriterion = 'gauss_newton'\n"
    circuits = "".join(f"[[circuit]]\ndensity = {size}\nout = '{name}.safetensors'\n" for name, size in COMMAND)
    (folder / "circuits.toml").write_text(common + circuits)
    line = "find --recipe circuits.toml -m tiny_net:net --out project/circuits --json"
    command = [sys.executable, "-m", "convcircuits", *line.split()]
    said = json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=600).stdout)
    mine = (folder / "project/circuits/mine.safetensors").read_bytes()
    assert client.get(f"/api/v1/circuits/{id}/file").content == mine
    card = client.get(f"/api/v1/circuits/{id}").json()
    report = card["report"]
    for name in ("r2", "r2_random", "r2_average_map", "images", "verdict", "kernels"):
        assert report["figures"][name] == said[0][name]
    names = {one["id"]: one["name"] for one in client.get("/api/v1/photos").json()["photographs"]}
    for role, those in card["provenance"]["photographs"].items():
        assert [names[id] for id in report[role]] == those
    assert not set(report["found_on"]) & set(report["held_out"])
    assert report["images"] == 6

    photos = client.get("/api/v1/photos").json()["photographs"]
    a, b = photos[0]["id"], photos[1]["id"]
    contrast = client.get(f"/api/v1/circuits/{id}/contrast?a={a}&b={b}").json()
    assert (contrast["feature"], contrast["a"], contrast["b"]) == ("4:2", a, b)
    assert sum(len(layer["kernels"]) for layer in contrast["layers"]) == report["figures"]["effective_kernels"]
    assert client.get(f"/api/v1/circuits/{id}/contrast?a={a}&b={'0' * 16}").status_code == 404

    # Another circuit of the command's, in the folder, is listed, and measured when that is asked for.
    (other,) = [one for one in client.get("/api/v1/circuits").json() if one["file"] == "other.safetensors"]
    assert other["report"] is None
    done(client, {"kind": "evaluate", "circuit": other["id"]})
    report = client.get(f"/api/v1/circuits/{other['id']}").json()["report"]
    assert report["figures"]["r2"] == pytest.approx(said[1]["r2"])

    # A damaged one is listed with what is wrong.
    (folder / "project/circuits/broken.safetensors").write_bytes(mine[:-3])
    (broken,) = [one for one in client.get("/api/v1/circuits").json() if one["file"] == "broken.safetensors"]
    assert "broken.safetensors" in broken["problem"]
    assert client.post("/api/v1/jobs", json={"kind": "diagram", "circuit": broken["id"]}).status_code == 422


@pytest.mark.slow
def test_a_diagram_is_the_document_that_diagrams_load(client, folder, tmp_path):
    id = done(client, FIND)["result"]["circuit"]
    assert client.get(f"/api/v1/circuits/{id}/diagram").status_code in (200, 404)
    done(client, {"kind": "diagram", "circuit": id})
    (tmp_path / "d.json").write_bytes(client.get(f"/api/v1/circuits/{id}/diagram").content)
    document = cc.Diagram.load(tmp_path / "d.json").document
    assert document.meta.feature == "4:2"
    report = client.get(f"/api/v1/circuits/{id}").json()["report"]
    assert document.variants[0].fidelity.r2 == pytest.approx(report["figures"]["r2"])
    assert document.held_out.count == report["images"]

    notes = ((f"circuits/{id}", {"label": "<b>mine", "text": "one\ntwo"}), ("units/4/2", {"label": "edge", "text": ""}))
    for of, note in notes:
        tag = client.get(f"/api/v1/notes/{of}").headers["etag"]
        assert client.put(f"/api/v1/notes/{of}", json=note, headers={"if-match": tag}).status_code == 200
    view = json.dumps({"kernels": 3, "notes": []})
    answer = client.get(f"/api/v1/circuits/{id}/page", params={"view": view})
    assert answer.headers["content-disposition"].endswith('.html"')
    assert '<h2 dir="auto">Circuit: &lt;b&gt;mine</h2>\n<p dir="auto">one<br>two</p>' in answer.text
    (tmp_path / "d.html").write_text(answer.text)
    shown = cc.Diagram.load(tmp_path / "d.html")
    assert shown.kernels == 3
    assert [(note.node, note.label) for note in shown.view.notes] == [(document.target, "edge")]
    for secret in (str(folder), *client.cookies.values(), *client.cookies):
        assert secret not in answer.text
    for wrong, said in (
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ('{"variant": 99}', "variant 99"),
        ('{"x": 1}', "x"),
    ):
        answer = client.get(f"/api/v1/circuits/{id}/page", params={"view": wrong})
        assert (answer.status_code, said in answer.json()["error"]) == (400, True)
    for of, _ in notes:
        tag = client.get(f"/api/v1/notes/{of}").headers["etag"]
        client.put(f"/api/v1/notes/{of}", json={}, headers={"if-match": tag})


# ---------------------------------------- notes and events


@pytest.mark.slow
def test_a_note_that_another_tab_has_changed_is_not_overwritten(client):
    path = "/api/v1/notes/units/2/3"
    empty = client.get(path)
    assert empty.json() == {"label": "", "star": False, "text": ""}
    mine = {"label": "<b>wheels</b>", "star": True, "text": "a\nb"}
    assert client.put(path, json=mine).status_code == 428
    first = client.put(path, json=mine, headers={"if-match": empty.headers["etag"]})
    assert first.json() == mine
    other = client.put(path, json={"label": "other"}, headers={"if-match": empty.headers["etag"]})
    assert other.status_code == 412
    assert other.headers["etag"] == first.headers["etag"] == client.get(path).headers["etag"]
    mistyped = client.put(path, json={"lable": "other"}, headers={"if-match": first.headers["etag"]})
    assert mistyped.status_code == 422
    assert client.get(path).json() == mine
    (row,) = [row for row in client.get("/api/v1/layers/2/units").json()["units"] if row["figures"]["unit"] == 3]
    assert (row["label"], row["star"]) == ("<b>wheels</b>", True)
    assert [*client.get("/api/v1/notes").json().values()] == [mine]
    client.put(path, json={}, headers={"if-match": first.headers["etag"]})
    assert client.get("/api/v1/notes").json() == {}
    for where in ("units/2/99", "units/nonsense/0", "photos/0000000000000000", "circuits/0000000000000000"):
        assert client.get(f"/api/v1/notes/{where}").status_code == 404
    photo = client.get("/api/v1/photos").json()["photographs"][0]["id"]
    assert (
        client.put(f"/api/v1/notes/photos/{photo}", json={"text": "x" * 20_001}, headers={"if-match": "x"}).status_code
        == 422
    )


def heard(client, count, last=None):
    """The first events of a stream, as (id, kind, data)."""
    headers = {} if last is None else {"last-event-id": last}
    found = []
    with client.stream("GET", "/api/v1/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        event = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if not line and event:
                found.append((event["id"], event["event"], json.loads(event["data"])))
                event = {}
            elif name in ("id", "event", "data"):
                event[name] = value
            if len(found) == count:
                return found
    return found


@pytest.mark.slow
def test_events_go_on_after_the_last_that_was_heard(client):
    ((start, kind, _),) = heard(client, 1)
    assert kind == "hello"
    job = done(client, FIND | {"kernels": 7, "density": None})
    events = heard(client, 4, start)
    assert [kind for _, kind, _ in events[:2]] == ["job", "job"]
    assert [said["state"] for _, _, said in events[:2]] == ["queued", "running"]
    assert heard(client, 2, events[1][0]) == events[2:]
    assert job["id"] == events[0][2]["id"]
    for unknown in ("nonsense", "0-5", start.partition("-")[0] + "-999999", start.partition("-")[0] + "-x"):
        assert heard(client, 1, unknown)[0][1] == "reset"


# ---------------------------------------- jobs that end otherwise


@pytest.mark.slow
def test_a_job_is_cancelled_between_two_batches_and_others_go_first(client):
    circuit = done(client, FIND)["result"]["circuit"]
    slow = client.post("/api/v1/jobs", json=SLOW).json()
    until(lambda: (job := client.get(f"/api/v1/jobs/{slow['id']}").json())["done"] >= 30 or job["state"] == "failed")
    waiting = client.post("/api/v1/jobs", json=FIND | {"seed": 5}).json()
    assert waiting["state"] == "queued"
    assert client.delete(f"/api/v1/jobs/{waiting['id']}").json()["state"] == "cancelled"
    photo = client.get("/api/v1/photos").json()["photographs"][0]["id"]
    assert client.get(f"/api/v1/map/2/5/{photo}").status_code == 200  # while the job runs
    done(client, {"kind": "diagram", "circuit": circuit})  # between two of its batches
    assert client.get(f"/api/v1/jobs/{slow['id']}").json()["state"] == "running"
    begun = time.monotonic()
    assert client.delete(f"/api/v1/jobs/{slow['id']}").status_code == 202
    job = ended(client, slow["id"])
    assert (job["state"], job["error"]) == ("cancelled", "It was cancelled.")
    assert time.monotonic() - begun < 5


@pytest.mark.slow
def test_a_worker_that_dies_or_hangs_fails_its_job_and_is_started_again(inside, monkeypatch):
    explorer, client = inside
    until(lambda: client.get("/api/v1/model").json()["index"]["state"] == "complete")
    slow = client.post("/api/v1/jobs", json=SLOW).json()["id"]
    until(lambda: client.get(f"/api/v1/jobs/{slow}").json()["done"] >= 3)
    os.kill(explorer.jobs._process.pid, signal.SIGKILL)
    job = ended(client, slow)
    assert job["state"] == "failed"
    assert job["error"].startswith("The worker process ended by signal 9")
    assert client.get("/api/v1/layers/2/units").status_code == 200
    done(client, FIND)

    # One that hangs is killed.
    monkeypatch.setattr(jobs, "PATIENCE", 0.3)
    Path("hangs").touch()
    slow = client.post("/api/v1/jobs", json=SLOW).json()["id"]
    until(lambda: client.get(f"/api/v1/jobs/{slow}").json()["phase"].startswith("finding"))
    client.delete(f"/api/v1/jobs/{slow}")
    job = ended(client, slow)
    assert job["state"] == "cancelled"
    assert "its process was ended" in job["error"]
    Path("hangs").unlink()
    assert client.post("/api/v1/jobs", json=FIND).status_code == 200


@pytest.mark.slow
def test_the_maps_of_a_photograph_whose_page_has_opened_are_there_before_it_is_clicked(inside):
    explorer, client = inside
    until(lambda: client.get("/api/v1/model").json()["index"]["state"] == "complete")
    opened, other, before = (one["id"] for one in client.get("/api/v1/photos").json()["photographs"][:3])
    paths = [f"/api/v1/photos/{opened}/point?x=9&y=7&count=3", f"/api/v1/map/4/1/{opened}", f"/api/v1/map/0/3/{opened}"]
    expected = [client.get(path).json() for path in paths]
    assert client.get(f"/api/v1/map/4/1/{before}").status_code == 200

    def waits(photo):
        """Whether a map of a photograph is not answered while the model hangs."""
        Path("hangs").touch()
        with pytest.raises(jobs.UnavailableError, match="The worker is busy"):
            explorer.jobs.ask("map", "4", 1, photo, timeout=0.5)
        return True

    os.kill(explorer.jobs._process.pid, signal.SIGKILL)
    until(lambda: client.get(paths[2]).status_code == 200)  # by the next worker, which keeps its first layer alone now
    assert waits(before)
    Path("hangs").unlink()
    assert client.get(f"/api/v1/photos/{opened}").json() == client.get(f"/api/v1/photos/{opened}?ahead=true").json()
    explorer.jobs.ask("weights", "4")  # comes after the look
    assert waits(other)
    assert [client.get(path).json() for path in paths] == expected
    assert client.get(f"/api/v1/thumb/{other}?w=77").status_code == 200
    Path("hangs").unlink()
    assert client.get(f"/api/v1/map/4/1/{other}").status_code == 200


def test_nothing_is_told_to_a_worker_that_is_not_there(tmp_path):
    explorer = Session(Opening(model="tiny_net:net", images="pictures", project=tmp_path / "project"))
    explorer.jobs.tell("look", "0" * 16)
    with pytest.raises(jobs.UnavailableError):
        explorer.jobs.ask("look", "0" * 16)
    explorer.close()


@pytest.mark.slow
def test_python_opens_a_model_of_its_own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(workplace(tmp_path)))
    source = SOURCE.replace("class Net", "def prepared(picture):\n    return preprocess(picture)\n\n\nclass Net")
    (tmp_path / "own_net.py").write_text(source)
    own = importlib.import_module("own_net")
    project = tmp_path / "project"
    (tmp_path / "sent").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "sent"))
    with cc.explore(
        own.net(), tmp_path / "pictures", preprocess=own.prepared, project=project, port=0, open=False
    ) as explorer:
        with httpx.Client(base_url=explorer.address.partition("/?")[0], timeout=600) as client:
            client.get(explorer.address)
            assert ready(client)["name"] == "Net"
            id = done(client, FIND)["result"]["circuit"]
            card = client.get(f"/api/v1/circuits/{id}").json()
            assert "recipe" not in card["provenance"]
            assert set(card["provenance"]["photographs"]) == {"found_on", "validated_on", "held_out"}
            done(client, {"kind": "evaluate", "circuit": id})
        process = explorer._process
    assert process.returncode == 0
    assert [*(tmp_path / "sent").iterdir()] == []
    (file,) = (project / "circuits").glob("*.safetensors")
    assert cc.load(file).feature == cc.Feature("4", 2)


@pytest.mark.parametrize(
    ("model", "preprocess", "said"),
    [
        (torch.nn.Conv2d(3, 2, 3), None, "A model of your own needs preprocess"),
        ("vgg16_hed", Preprocess(), "'vgg16_hed' specifies its own preprocessing"),
        (torch.nn.Conv2d(3, 2, 3), lambda picture: picture, "cannot be sent to the explorer's own process"),
    ],
)
def test_python_is_told_what_cannot_be_opened(model, preprocess, said, tmp_path):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        cc.explore(model, "sample", preprocess=preprocess, project=tmp_path / "project", open=False)
    assert not (tmp_path / "project").exists()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_command_with_a_sentence(tmp_path):
    line = "explore -m vgg16_head --project project --no-open --port 0"
    command = [sys.executable, "-m", "convcircuits", *line.split()]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 1
    assert "vgg16_hed" in ended.stderr
    assert not (tmp_path / "project").exists()
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_circuits_and_notes(served, folder):
    """The last test: it kills the server of the others."""
    process, client = served
    first = done(client, FIND)
    cards = client.get("/api/v1/circuits").json()
    path = "/api/v1/notes/units/2/3"
    client.put(path, json={"label": "wheels"}, headers={"if-match": client.get(path).headers["etag"]})
    line = "explore -m tiny_net:net --project project --no-open"
    command = [sys.executable, "-m", "convcircuits", *line.split()]
    locked = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert locked.returncode == 1
    assert f"is open in another explorer (process {process.pid})" in locked.stderr
    process.kill()
    process.wait()
    with started(folder, "--read-only") as (_, client):
        ready(client)
        assert client.get(path).json()["label"] == "wheels"
        assert client.get("/api/v1/circuits").json() == cards
        assert (
            client.get(f"/api/v1/circuits/{first['result']['circuit']}").json()["report"]["figures"]["r2"] is not None
        )
        assert client.get("/api/v1/model").json()["index"]["state"] == "complete"
        assert client.get(f"/api/v1/jobs/{first['id']}").json()["result"] == first["result"]
        assert client.post("/api/v1/jobs", json=FIND).status_code == 403
        assert client.put(path, json={}, headers={"if-match": "x"}).status_code == 403
