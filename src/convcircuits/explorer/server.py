"""The explorer's server: the API under ``/api/v1``, and the page. It never imports torch; the worker does.

No text of a request becomes a path. Layers, photographs, circuits and jobs are looked up in tables by their ids, and
files of the page by their names.
"""

import asyncio
import base64
import errno
import hashlib
import json
import logging
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer import schemas
from convcircuits.explorer.jobs import Events, Job, Jobs, UnavailableError
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.security import Guard
from convcircuits.explorer.store import CircuitFile, LayerFile, Store, hash_of
from convcircuits.values.recipe import Recipe
from convcircuits.version import __version__

PORT = 8642
"""The first port that is tried."""

_PORTS = 20
_TAKEN = (errno.EADDRINUSE, errno.EACCES)
_STREAMS = 16  # event streams at once
_THUMBS = "thumbs/2"  # how pictures are drawn; another number makes them anew
_END_OF_JPEG = b"\xff\xd9"
_log = logging.getLogger(__name__)

Measure = Literal[
    "unit",
    "rectified_variance",
    "active",
    "active_images",
    "sparsity",
    "at_border",
    "inside",
    "average_map_r2",
    "highest",
]


def _decoded(text: str) -> str:
    return unquote(text, errors="replace")


def _layer(layer: Annotated[str, Path(max_length=2000, description="A layer's name, percent-encoded.")]) -> str:
    return _decoded(layer)


LayerName = Annotated[str, Depends(_layer)]
UnitNumber = Annotated[int, Path(ge=0, le=1 << 30)]
IdInPath = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
Offset = Annotated[int, Query(ge=0, le=1 << 30)]
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": schemas.Problem} for code in (400, 401, 403, 404, 413, 415, 421, 422, 503)
}


class Explorer:
    """What the routes answer from: the folder, the jobs and the worker.

    Args:
        opening: What to open.
        read_only: Change nothing.

    Raises:
        ConvCircuitsError: If the project's folder cannot be used.
    """

    def __init__(self, opening: Opening, *, read_only: bool = False) -> None:
        self.opening, self.read_only, self.events = opening, read_only, Events()
        self.store = Store(opening.project, read_only=read_only)
        self.jobs = Jobs(opening, self.store, self.events)
        self.store.on_remark = lambda text: self.events.publish("remark", {"text": text})
        self.jobs.on_ready = self._ready
        self.streams = 0
        self.closing = False
        self.notes = threading.Lock()

    def _ready(self) -> None:
        """Begin or go on with the index as soon as the model is there."""
        if not self.read_only:
            self.store.trim()
            index = self.index()
            if index is None or not index["complete"]:
                self.submit({"kind": "index"})

    # ---------------------------------------- lookups

    def about(self) -> dict[str, Any]:
        """Return what the worker says of the model.

        Raises:
            UnavailableError: If it is not ready.
        """
        if self.jobs.about is None:
            raise UnavailableError(self.jobs.problem or "The model is still being loaded; ask again in a moment.")
        return self.jobs.about

    def photo(self, id: str) -> dict[str, Any]:
        """Return a photograph."""
        found = next((one for one in self.about()["photographs"] if one["id"] == id), None)
        if found is None:
            raise HTTPException(404, f"There is no photograph {id}.")
        photo: dict[str, Any] = found
        return photo

    def layer(self, name: str) -> dict[str, Any]:
        """Return a layer by its name or alias."""
        found = next((one for one in self.about()["layers"] if name in (one["name"], one["alias"]) and name), None)
        if found is None:
            raise HTTPException(404, f"There is no layer {name!r:.100}.")
        layer: dict[str, Any] = found
        return layer

    def unit(self, layer: Mapping[str, Any], unit: int) -> None:
        """Check that a layer has a unit."""
        if unit >= layer["units"]:
            raise HTTPException(404, f"{layer['name']} has {layer['units']} units; there is no unit {unit}.")

    def index(self) -> dict[str, Any] | None:
        """Return what the index says of itself, or None."""
        return self.store.index(self.about()["key"])

    def indexed(self, layer: Mapping[str, Any]) -> tuple[LayerFile, list[int]]:
        """Return the index of a layer, and the number of the photograph of each of its images."""
        index = self.index()
        if index is not None:
            file = next((one["file"] for one in index["layers"] if one["layer"] == layer["name"]), None)
            found = None if file is None else self.store.layer(index["key"], file)
            if found is not None and found.said["layer"] == layer["name"] and found.said["key"] == index["key"]:
                return found, found.said["read"]  # its own: the index's file is written after it
            why = index["left_out"].get(layer["name"])
            if why:
                raise HTTPException(404, f"{layer['name']} is not indexed: {why}")
            if file is not None:
                self.index_again()
        if not layer["indexed"]:
            why = self.about()["not_indexed"].get(layer["name"], f"{layer['name']} is no convolution.")
            raise HTTPException(404, f"{layer['name']} is not indexed: {why}")
        raise HTTPException(404, f"{layer['name']} has not been indexed yet; the job index does that.")

    def index_again(self) -> None:
        """Make the index again, of which a file was damaged."""
        if not self.read_only:
            self.submit({"kind": "index"})

    def examples(self, found: list[dict[str, Any]], read: list[int]) -> list[schemas.Example]:
        """Name the photographs of examples."""
        every = self.about()["photographs"]
        answers = []
        for one in found:
            photo = every[read[one["image"]]]
            answers.append(
                schemas.Example(
                    photo=photo["id"],
                    name=photo["name"],
                    value=one["value"],
                    position=one["position"],
                    box=one["box"],
                )
            )
        return answers

    def circuit(self, id: str) -> CircuitFile:
        """Return a circuit."""
        found = self.store.circuit(id)
        if found is None:
            raise HTTPException(404, f"There is no circuit {id} in the project.")
        return found

    def card(self, one: CircuitFile) -> dict[str, Any]:
        """Return what is shown of a circuit."""
        card: dict[str, Any] = {"id": one.id, "file": one.name, "problem": one.problem}
        if one.problem:
            return card
        said, origin = one.said, one.said["provenance"]
        position = said["feature"]["position"]
        return card | {
            "feature": str(origin.get("feature", "")),
            "layer": said["feature"]["layer"],
            "unit": said["feature"]["unit"],
            "position": position
            if isinstance(position, str)
            else "boxes"
            if isinstance(position, dict)
            else ",".join(map(str, position)),
            "criterion": str(origin.get("criterion") or ""),
            "granularity": said["granularity"],
            "kept": one.kept,
            "relevant": said["relevant"],
            "density": one.kept / max(1, said["relevant"]),
            "report": self.report(one),
            "diagram": self.diagram(one) is not None,
        }

    def diagram(self, one: CircuitFile) -> FilePath | None:
        """Return the file of a circuit's diagram, if it is of what is open; with controls if any."""
        about = self.jobs.about
        both = [self.store.diagram_file(one.id, about["basis"], controls=c) for c in (True, False)] if about else []
        return next((file for file in both if file.is_file()), None)

    def report(self, one: CircuitFile) -> dict[str, Any] | None:
        """Return the report on a circuit, if this version made it with this model and these photographs."""
        said, about = self.store.report(one.id), self.jobs.about
        if said is None or about is None or said.get("basis") != about["basis"]:
            return None
        figures, photographs = said["report"], said["photographs"]
        return {
            "images": figures["images"],
            **{role: photographs.get(role, []) for role in ("found_on", "validated_on", "held_out")},
            "verdict": figures["verdict"],
            "verdict_sentence": figures["verdict_sentence"],
            "figures": figures,
            "seconds": said["seconds"],
        }

    def submit(self, asked: dict[str, Any]) -> Job:
        """Queue a job, or return the one that was asked for before."""
        kind = asked.pop("kind")
        return self.jobs.submit(kind, asked, valid=partial(self._holds, kind, asked))

    def _holds(self, kind: str, asked: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
        """Return whether what a job resulted in is still there."""
        if kind == "index":
            index = self.index()
            return index is not None and index["complete"]
        circuit = self.store.circuit(str(result.get("circuit")))
        if circuit is None:
            return False
        if kind == "diagram":
            basis = self.about()["basis"]
            return self.store.diagram_file(circuit.id, basis, controls=asked["controls"]).is_file()
        return self.report(circuit) is not None

    def noted(self, kind: str, of: str) -> str:
        """Return the key of a note: a unit's belongs to the weights of its model."""
        return f"{kind} {of}" if kind != "unit" else f"unit {of} of weights {self.about()['weights'][:8]}"

    def close(self) -> None:
        """End the worker, and release the folder."""
        self.closing = True
        self.jobs.close()
        self.store.close()


# ---------------------------------------- the application


def application(explorer: Explorer) -> FastAPI:
    """Build the application that answers from an explorer."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        explorer.jobs.start()
        yield
        explorer.closing = True
        await asyncio.to_thread(explorer.close)

    app = FastAPI(
        title="convcircuits explorer",
        version="1",
        description=_ABOUT,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    _problems(app)
    _model_routes(app, explorer)
    _unit_routes(app, explorer)
    _picture_routes(app, explorer)
    _circuit_routes(app, explorer)
    _note_routes(app, explorer)
    _job_routes(app, explorer)
    _page_routes(app)
    return app


_ABOUT = """\
Look at the units of a model, find their circuits and keep notes. Only the explorer's own page may ask. Every error is
`{"error": "a sentence"}`. Ids are hashes of content: of a photograph's file, of a circuit's file, of what a job was
asked for. 503 means: ask again in a moment. A figure is never stale: what was not measured with this model and these
photographs is null.

Sequence: `GET model` until its state is `ready`; `GET layers`; listen to `events` and fetch again what they name. `POST
jobs` answers 202 with a job that waits or runs, or 200 with one that is done: the same question has the same id, and
its result is kept. The reference page "The explorer's API" has the rules.
"""


def _problems(app: FastAPI) -> None:
    @app.exception_handler(StarletteHTTPException)
    async def refused(_request: Request, error: StarletteHTTPException) -> Response:
        text = str(error.detail)
        if text == HTTPStatus(error.status_code).phrase:  # what no route of ours has said
            text = "There is nothing at this address." if error.status_code == 404 else f"{text}."
        return JSONResponse({"error": text}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        parts = [f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in error.errors()[:3]]
        text = "; ".join(parts).encode("utf-8", "replace").decode()
        return JSONResponse({"error": f"The request is not valid: {text:.500}."}, 422)

    @app.exception_handler(ConvCircuitsError)
    async def mistaken(_request: Request, error: ConvCircuitsError) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(UnavailableError)
    async def unavailable(_request: Request, error: UnavailableError) -> Response:
        return JSONResponse({"error": str(error)}, 503, {"retry-after": "1"})

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, error: Exception) -> Response:
        _log.error("unexpected", exc_info=error)
        return JSONResponse({"error": f"An unexpected {type(error).__name__}; the terminal has the details."}, 500)


def _model_routes(app: FastAPI, explorer: Explorer) -> None:
    get = partial(app.get, responses=_PROBLEMS)

    @get("/api/v1/model", tags=["model"])
    def model() -> schemas.ModelCard:
        """The model, the photographs, how far the index is. Answers at once, also while the model is loaded."""
        about, problem = explorer.jobs.about, explorer.jobs.problem
        common: dict[str, Any] = {
            "problem": problem,
            "read_only": explorer.read_only,
            "remarks": explorer.store.remarks,
            "version": __version__,
        }
        if about is None:
            return schemas.ModelCard(state="failed" if problem else "starting", **common)
        index = explorer.index()
        state: Any = (
            "missing" if index is None or not index["layers"] else "complete" if index["complete"] else "partial"
        )
        return schemas.ModelCard(
            state="failed" if problem else "ready",
            **common,
            **{
                name: about[name]
                for name in ("name", "weights", "images", "size", "normalization", "copies", "left_out")
            },
            photographs=len(about["photographs"]),
            bytes=explorer.store.size(),
            index=schemas.IndexState(
                state=state,
                images=0 if index is None else index["images"],
                photographs=len(about["photographs"]),
                left_out={**about["not_indexed"], **({} if index is None else index["left_out"])},
            ),
        )

    @get("/api/v1/layers", tags=["model"])
    def layers() -> list[schemas.Layer]:
        """The layers in execution order; those that are indexed are the ones to browse."""
        index = explorer.index()
        fields = {one["layer"]: one["field"] for one in index["layers"]} if index else {}
        images = 0 if index is None else index["images"]
        return [
            schemas.Layer(**one, images=images if one["name"] in fields else 0, field=fields.get(one["name"]))
            for one in explorer.about()["layers"]
        ]

    @get("/api/v1/photos", tags=["photographs"])
    def photos(offset: Offset = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 200) -> schemas.PhotoPage:
        """The photographs, without copies of others."""
        every = explorer.about()["photographs"]
        return schemas.PhotoPage(total=len(every), offset=offset, photographs=every[offset : offset + limit])

    @get("/api/v1/photos/{photo}", tags=["photographs"])
    def photo(photo: IdInPath) -> schemas.Photo:
        """A photograph."""
        return schemas.Photo(**explorer.photo(photo))

    @app.get(
        "/api/v1/events",
        tags=["model"],
        response_class=StreamingResponse,
        responses={**_PROBLEMS, 200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
    )
    async def events(last_event_id: Annotated[str | None, Header(max_length=100)] = None) -> Response:
        """Server-sent events. With ``Last-Event-ID``, those after it; ``reset`` says that some are no longer known."""
        if explorer.streams >= _STREAMS:
            raise HTTPException(503, f"{_STREAMS} pages listen already; close some.")
        return StreamingResponse(_streamed(explorer, last_event_id), media_type="text/event-stream")


async def _streamed(explorer: Explorer, last: str | None) -> AsyncIterator[str]:
    explorer.streams += 1
    try:
        if last is None or explorer.events.since(last) is None:
            known, last = last, explorer.events.last()
            yield f"id: {last}\nevent: {'hello' if known is None else 'reset'}\ndata: {{}}\nretry: 1000\n\n"
        quiet = 0
        while not explorer.closing:
            found = explorer.events.since(last)
            if found is None:
                last = explorer.events.last()
                yield f"id: {last}\nevent: reset\ndata: {{}}\n\n"
                continue
            for last, kind, said in found:
                yield f"id: {last}\nevent: {kind}\ndata: {json.dumps(said)}\n\n"
            quiet = 0 if found else quiet + 1
            if quiet == 100:
                quiet = 0
                yield ": still here\n\n"
            await asyncio.sleep(0.1)
    finally:
        explorer.streams -= 1


def _unit_routes(app: FastAPI, explorer: Explorer) -> None:
    get = partial(app.get, responses=_PROBLEMS, tags=["units"])

    @get("/api/v1/layers/{layer}/units")
    def units(
        layer: LayerName,
        sort: Measure = "unit",
        lowest_first: bool = False,
        offset: Offset = 0,
        limit: Annotated[int, Query(ge=1, le=1024)] = 100,
    ) -> schemas.UnitPage:
        """The units of a layer, sorted; dead ones, and those for which the measure is not defined, come last."""
        one = explorer.layer(layer)
        found, read = explorer.indexed(one)
        figures = found.said["statistics"]
        sign = 1 if lowest_first else -1

        def key(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
            value = row[sort]
            return row["dead"], value is None, 0.0 if value is None else sign * value

        rows = figures if sort == "unit" else sorted(figures, key=key)
        notes = explorer.store.notes()
        answers = []
        for row in rows[offset : offset + limit]:
            note = notes.get(explorer.noted("unit", f"{one['name']}:{row['unit']}"), {})
            histogram = found.histogram(row["unit"])
            answers.append(
                schemas.UnitRow(
                    figures=row,
                    top=explorer.examples(found.highest(row["unit"], padding=False)[:4], read),
                    histogram=histogram["counts"],
                    zero=sum(edge < 0 for edge in histogram["edges"][:-1]),
                    label=note.get("label", ""),
                    star=note.get("star", False),
                )
            )
        return schemas.UnitPage(
            layer=one["name"],
            images=found.said["images"],
            complete=found.said["complete"],
            total=len(figures),
            offset=offset,
            units=answers,
        )

    @get("/api/v1/layers/{layer}/units/{unit}")
    def unit(layer: LayerName, unit: UnitNumber) -> schemas.Unit:
        """A unit: its figures, its histogram, its circuits."""
        one = explorer.layer(layer)
        explorer.unit(one, unit)
        found, _ = explorer.indexed(one)
        circuits = [
            circuit.id
            for circuit in explorer.store.circuits()
            if not circuit.problem
            and (circuit.said["feature"]["layer"], circuit.said["feature"]["unit"]) == (one["name"], unit)
        ]
        return schemas.Unit(
            layer=one["name"],
            alias=one["alias"],
            unit=unit,
            feature=f"{one['name']}:{unit}",
            **{name: found.said[name] for name in ("images", "complete", "map", "field", "interior")},
            figures=found.said["statistics"][unit],
            histogram=schemas.Histogram(**found.histogram(unit)),
            circuits=circuits,
        )

    @get("/api/v1/layers/{layer}/units/{unit}/examples")
    def examples(
        layer: LayerName,
        unit: UnitNumber,
        section: Literal["top", "median", "bottom", "near_zero", "range"] = "top",
        padding: bool = False,
        low: float | None = None,
        high: float | None = None,
        count: Annotated[int, Query(ge=1, le=200)] = 25,
    ) -> schemas.Examples:
        """One position of each of some photographs.

        A photograph's value is the unit's highest one on the interior, or anywhere with ``padding``, which only ``top``
        has. ``range`` has those with a value from ``low`` to ``high``, the highest first. All but ``top`` are chosen
        from a pool: all photographs or, of more than 2,048, as many drawn at random (``sampled``).
        """
        one = explorer.layer(layer)
        explorer.unit(one, unit)
        found, read = explorer.indexed(one)
        if padding and section != "top":
            raise HTTPException(422, "padding: only the section top includes positions that see padding.")
        if section == "top":
            rows = found.highest(unit, padding=padding)[:count]
        else:
            rows = found.among(unit, _order(section, low, high), count)
        pool = len(found.arrays["pool/image"])
        return schemas.Examples(
            section=section,
            padding=padding,
            sampled=section != "top" and pool < found.said["images"],
            pool=found.said["images"] if section == "top" else pool,
            images=found.said["images"],
            examples=explorer.examples(rows, read),
        )


def _order(section: str, low: float | None, high: float | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that chooses and orders photographs by a unit's highest values on them."""

    def order(values: np.ndarray) -> np.ndarray:
        if section == "bottom":
            return values.argsort(kind="stable")
        if section == "median":
            return np.argsort(np.abs(values - np.median(values)), kind="stable")
        if section == "near_zero":
            return np.argsort(np.abs(values), kind="stable")
        inside = (values >= (-np.inf if low is None else low)) & (values <= (np.inf if high is None else high))
        (places,) = inside.nonzero()
        return places[(-values[places]).argsort(kind="stable")]

    return order


def _picture_routes(app: FastAPI, explorer: Explorer) -> None:
    @app.get(
        "/api/v1/thumb/{photo}",
        tags=["photographs"],
        response_class=Response,
        responses={
            **_PROBLEMS,
            200: {"content": {"image/jpeg": {}}, "description": "JPEG."},
            304: {"description": "It has not changed; it never does."},
        },
    )
    def thumb(
        photo: IdInPath,
        w: Annotated[int, Query(ge=16, le=1024, description="Width in pixels; of a box, the side.")] = 160,
        box: Annotated[
            str | None,
            Query(
                pattern=r"^-?\d{1,5},-?\d{1,5},\d{1,5},\d{1,5}$",
                description="Top, left, height and width in pixels of the model's image, as in examples. It may extend "
                "beyond the image; what lies outside of the image is hatched. `0,0,H,W` is what the model sees.",
            ),
        ] = None,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """A photograph, or a part of it as a square. It never changes: ids are hashes of content."""
        explorer.photo(photo)
        part = None if box is None else tuple(map(int, box.split(",")))
        if part is not None and 0 in part[2:]:
            raise HTTPException(422, "box: its height and width must be at least 1.")
        key = hash_of([_THUMBS, photo, w, None if part is None else [*part], explorer.about()["images"]])
        headers = {"etag": f'"{key}"', "cache-control": "private, max-age=31536000, immutable"}
        if if_none_match is not None and f'"{key}"' in if_none_match:
            return Response(status_code=304, headers=headers)
        content = explorer.store.thumb(key)
        if content is None or not content.endswith(_END_OF_JPEG):  # a computer that lost power may leave a part of it
            content = explorer.jobs.ask("thumb", photo, w, part)
            explorer.store.write_thumb(key, content)
        return Response(content, media_type="image/jpeg", headers=headers)

    @app.get("/api/v1/map/{layer}/{unit}/{photo}", tags=["units"], responses=_PROBLEMS)
    def map_(layer: LayerName, unit: UnitNumber, photo: IdInPath) -> schemas.Map:
        """A unit's map on a photograph, computed now."""
        one = explorer.layer(layer)
        explorer.unit(one, unit)
        explorer.photo(photo)
        shape, values = explorer.jobs.ask("map", one["name"], unit, photo)
        text = base64.b64encode(values).decode()
        return schemas.Map(layer=one["name"], unit=unit, photo=photo, shape=shape, values=text)


def _circuit_routes(app: FastAPI, explorer: Explorer) -> None:
    get = partial(app.get, tags=["circuits"])

    @get("/api/v1/circuits", responses=_PROBLEMS)
    def circuits() -> list[schemas.CircuitCard]:
        """The circuits in the project's folder, those that the command wrote there too."""
        return [schemas.CircuitCard(**explorer.card(one)) for one in explorer.store.circuits()]

    @get("/api/v1/circuits/{circuit}", responses=_PROBLEMS)
    def circuit(circuit: IdInPath) -> schemas.Circuit:
        """A circuit, its figures and how it was found."""
        one = explorer.circuit(circuit)
        origin = dict(one.said.get("provenance", {}))
        return schemas.Circuit(**explorer.card(one), provenance=origin, **_found_again(origin, one.file.name))

    @get(
        "/api/v1/circuits/{circuit}/diagram",
        response_class=Response,
        responses={**_PROBLEMS, 200: {"content": {"application/json": {}}, "description": "convcircuits-diagram/2."}},
    )
    def diagram(circuit: IdInPath) -> Response:
        """The document of its diagram, which the job ``diagram`` makes."""
        one = explorer.circuit(circuit)
        file = explorer.diagram(one)
        said = None if file is None else explorer.store.read_json(file)
        if said is None:
            raise HTTPException(404, "This circuit has not been drawn yet; the job diagram does that.")
        return Response(json.dumps(said, allow_nan=False), media_type="application/json")

    @get(
        "/api/v1/circuits/{circuit}/file",
        response_class=Response,
        responses={**_PROBLEMS, 200: {"content": {"application/octet-stream": {}}, "description": "The file."}},
    )
    def file(circuit: IdInPath) -> Response:
        """The circuit's file, as ``convcircuits find`` writes it."""
        one = explorer.circuit(circuit)
        content = one.file.read_bytes()
        if hashlib.sha256(content).hexdigest()[:16] != circuit:
            raise HTTPException(404, f"There is no circuit {circuit} in the project.")
        disposition = f'attachment; filename="{_ascii(one.file.name)}"'
        headers = {"content-disposition": disposition}
        return Response(content, media_type="application/octet-stream", headers=headers)


def _found_again(origin: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return the command and the Python that find a circuit again, as far as it says how it was found."""
    try:
        recipe = Recipe.from_json(origin["recipe"])
        path = origin.get("path")
        if path is not None and recipe.reach_r2 is None and path["asked"] != [origin.get("asked")]:
            return {}  # a larger circuit on the way to the one that the recipe asks for
    except (KeyError, TypeError, AttributeError, ConvCircuitsError):
        return {}
    return {"command": recipe.command(file), "python": recipe.python()}


def _ascii(name: str) -> str:
    return "".join(c if (c.isalnum() and c.isascii()) or c in "-_.+" else "-" for c in name)


def _note_routes(app: FastAPI, explorer: Explorer) -> None:
    responses = {
        **_PROBLEMS,
        412: {"model": schemas.Problem, "description": "It has changed since; get it again."},
        428: {"model": schemas.Problem, "description": "If-Match is missing."},
    }

    def tag(note: schemas.Note) -> str:
        return f'"{hash_of(note.model_dump())[:16]}"'

    def read(key: str, response: Response) -> schemas.Note:
        with explorer.notes:
            note = schemas.Note(**explorer.store.notes().get(key, {}))
        response.headers["etag"] = tag(note)
        return note

    def write(key: str, note: schemas.Note, if_match: str | None, response: Response) -> schemas.Note:
        if if_match is None:
            raise HTTPException(428, "Give the ETag of the note that this replaces as If-Match.")
        with explorer.notes:
            before = schemas.Note(**explorer.store.notes().get(key, {}))
            if if_match != tag(before):
                raise HTTPException(
                    412, "This note was changed in another tab; look at it first.", {"etag": tag(before)}
                )
            explorer.store.write_note(key, None if note == schemas.Note() else note.model_dump())
        explorer.events.publish("note", {"of": key})
        response.headers["etag"] = tag(note)
        return note

    def routes(kind: str, path: str, of: Callable[..., str]) -> None:
        key = Annotated[str, Depends(of)]

        def get(key: Any, response: Response) -> schemas.Note:
            """A note, empty if there is none. ``ETag`` names its state."""
            return read(key, response)

        def put(
            key: Any,
            note: schemas.NewNote,
            response: Response,
            if_match: Annotated[str | None, Header(max_length=100)] = None,
        ) -> schemas.Note:
            """Replace a note. ``If-Match`` must be the ETag of the state that it replaces; an empty note is removed."""
            return write(key, schemas.Note(**note.model_dump()), if_match, response)

        for method, function in (("GET", get), ("PUT", put)):
            function.__annotations__["key"] = key
            app.add_api_route(
                f"/api/v1/notes/{path}",
                function,
                methods=[method],
                tags=["notes"],
                responses=responses,
                operation_id=f"{method.lower()}_{kind}_note",
            )

    def unit(layer: LayerName, unit: UnitNumber) -> str:
        one = explorer.layer(layer)
        explorer.unit(one, unit)
        return explorer.noted("unit", f"{one['name']}:{unit}")

    def circuit(circuit: IdInPath) -> str:
        return explorer.noted("circuit", explorer.circuit(circuit).id)

    def photo(photo: IdInPath) -> str:
        return explorer.noted("photo", explorer.photo(photo)["id"])

    @app.get("/api/v1/notes", tags=["notes"], responses=_PROBLEMS)
    def notes() -> dict[str, schemas.Note]:
        """All notes, by what they are of, in words."""
        with explorer.notes:
            return {of: schemas.Note(**note) for of, note in explorer.store.notes().items()}

    routes("unit", "units/{layer}/{unit}", unit)
    routes("circuit", "circuits/{circuit}", circuit)
    routes("photo", "photos/{photo}", photo)


def _job_routes(app: FastAPI, explorer: Explorer) -> None:
    tags: list[Any] = ["jobs"]

    @app.get("/api/v1/jobs", tags=tags, responses=_PROBLEMS)
    def jobs() -> list[schemas.JobState]:
        """All jobs, the newest first; those that were done in earlier sessions too."""
        return [schemas.JobState(**job.as_dict()) for job in explorer.jobs.all()]

    @app.post(
        "/api/v1/jobs",
        tags=tags,
        status_code=202,
        responses={**_PROBLEMS, 200: {"model": schemas.JobState, "description": "It is done already."}},
    )
    def submit(asked: schemas.JobRequest, response: Response) -> schemas.JobState:
        """Ask for a job. The same question is the same job: if it is done, its result comes at once."""
        _check_job(explorer, asked)
        job = explorer.submit(asked.model_dump())
        if job.state == "done":
            response.status_code = 200
        return schemas.JobState(**job.as_dict())

    @app.get("/api/v1/jobs/{job}", tags=tags, responses=_PROBLEMS)
    def job(job: IdInPath) -> schemas.JobState:
        """A job."""
        return schemas.JobState(**_job(explorer, job).as_dict())

    @app.delete("/api/v1/jobs/{job}", tags=tags, status_code=202, responses=_PROBLEMS)
    def cancel(job: IdInPath) -> schemas.JobState:
        """Cancel a job: it stops after the batch that runs, or its process is ended after 10 s."""
        found = _job(explorer, job)
        explorer.jobs.cancel(found)
        return schemas.JobState(**found.as_dict())


def _check_job(explorer: Explorer, asked: BaseModel) -> None:
    """Refuse what can be known to fail before it waits."""
    if isinstance(asked, (schemas.EvaluateJob, schemas.DiagramJob)):
        found = explorer.circuit(asked.circuit)
        if found.problem:
            raise HTTPException(422, found.problem)
    if isinstance(asked, schemas.FindJob):
        sizes = [asked.density, asked.kernels, asked.reach_r2, asked.drawable or None, asked.filters or asked.fan_in]
        if sum(size is not None for size in sizes) > 1 or (asked.filters is None) != (asked.fan_in is None):
            raise HTTPException(422, "Give one of density, kernels, reach_r2, drawable, and filters with fan_in.")


def _job(explorer: Explorer, id: str) -> Job:
    found = explorer.jobs.get(id)
    if found is None:
        raise HTTPException(404, f"There is no job {id}.")
    return found


_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json"}


def _page_routes(app: FastAPI) -> None:
    shipped = {
        file.name: file.read_bytes()
        for package in ("convcircuits.drawing", "convcircuits.explorer")
        for file in (files(package) / "static").iterdir()
        if any(file.name.endswith(suffix) for suffix in _TYPES)
    }

    def answer(name: str) -> Response:
        kind = next(kind for suffix, kind in _TYPES.items() if name.endswith(suffix))
        return Response(shipped[name], media_type=f"{kind}; charset=utf-8", headers={"cache-control": "no-cache"})

    def page() -> Response:
        return answer("index.html")

    for path in ("/", "/l/{a}", "/u/{a}/{b}", "/i/{a}", "/c/{a}", "/compare", "/jobs"):
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        if name not in shipped:
            raise HTTPException(404, "There is no such file.")
        return answer(name)


def openapi() -> dict[str, Any]:
    """Return the OpenAPI schema of the application."""
    nothing: Any = None  # which is looked at when a route is asked
    return application(nothing).openapi()


# ---------------------------------------- serving


def listening(host: str, port: int | None) -> socket.socket:
    """Open a socket at a port or, if none is given, at the first of some that is free.

    Raises:
        ConvCircuitsError: If that is not possible.
    """
    for number in range(PORT, PORT + _PORTS) if port is None else [port]:
        try:
            family = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0][0]
            found = socket.socket(family, socket.SOCK_STREAM)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind((host, number))
                found.listen(128)
            except BaseException:
                found.close()
                raise
            return found
        except OSError as error:
            problem = error
            if error.errno not in _TAKEN:
                break  # another port is no better
    raise ConvCircuitsError(
        f"--host {host} --port {number} cannot be listened at: {problem.strerror or problem}. Give another "
        f"{'--port' if problem.errno in _TAKEN else '--host'}."
    )


def serve(
    opening: Opening,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    read_only: bool = False,
    opened: bool = True,
    said: Callable[[str], None] = print,
    until: threading.Event | None = None,
) -> None:
    """Serve the explorer until Ctrl-C.

    Args:
        opening: What to open.
        host: The address to listen at.
        port: The port; if None, the first that is free from ``PORT`` on, and any if 0.
        read_only: Change nothing.
        opened: Open the page in the web browser.
        said: Called with what a person is to read; first the address.
        until: End when this is set; else also if the model cannot be loaded, with that error.

    Raises:
        ConvCircuitsError: If the port is taken, the project's folder is in use, or the model cannot be loaded.
    """
    found = listening(host, port)
    try:
        explorer = Explorer(opening, read_only=read_only)
    except BaseException:
        found.close()
        raise
    guard = Guard(application(explorer), port=found.getsockname()[1], host=host, read_only=read_only)
    config = uvicorn.Config(
        guard,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=2,
        limit_concurrency=256,
    )
    server = uvicorn.Server(config)

    def end() -> None:
        explorer.closing = server.should_exit = True

    def wait(event: threading.Event) -> None:
        event.wait()
        end()

    if until is None:
        explorer.jobs.on_failed = end  # a mistake in the command is said where it was given
    else:
        threading.Thread(target=wait, args=[until], daemon=True).start()
    said(guard.address)
    if opened:
        threading.Timer(0.3, webbrowser.open, [guard.address]).start()
    try:
        server.run(sockets=[found])
    finally:
        explorer.close()
        found.close()
    if until is None and explorer.jobs.problem:
        raise ConvCircuitsError(explorer.jobs.problem)
