"""Routes of circuits: their figures, diagrams and files."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Response

from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer import schemas
from convcircuits.explorer.downloads import circuit_bundle, diagram_page
from convcircuits.explorer.routes.fields import PROBLEMS, IdInPath, IdInQuery
from convcircuits.explorer.session import Session
from convcircuits.values.recipe import Recipe


def add(app: FastAPI, session: Session) -> None:
    """Add the routes."""
    get = partial(app.get, tags=["circuits"])

    @get("/api/v1/circuits", responses=PROBLEMS)
    def circuits() -> list[schemas.CircuitCard]:
        """The circuits in the project's folder, those that the command wrote there too."""
        return [schemas.CircuitCard(**session.card(one)) for one in session.store.circuits()]

    @get("/api/v1/atlases", responses=PROBLEMS)
    def atlases() -> list[schemas.AtlasCard]:
        """The atlases in the project's folder and those that the explorer was started with."""
        return session.atlases()

    @get("/api/v1/atlases/{atlas}", responses=PROBLEMS)
    def atlas(atlas: IdInPath) -> schemas.Atlas:
        """An atlas: a map of a layer's units by the kernels that their circuits share."""
        return session.atlas(atlas)

    @get("/api/v1/circuits/{circuit}", responses=PROBLEMS)
    def circuit(circuit: IdInPath) -> schemas.Circuit:
        """A circuit, its figures and how it was found."""
        one = session.circuit(circuit)
        origin = dict(one.header.get("provenance", {}))
        curve, module = (None, None) if one.problem else (session.derived.curve(one), session.derived.module(one))
        return schemas.Circuit(
            **session.card(one),
            provenance=origin,
            curve=curve,
            module=module,
            **_found_again(origin, one.file.name),
        )

    @get(
        "/api/v1/circuits/{circuit}/diagram",
        response_class=Response,
        responses={**PROBLEMS, 200: {"content": {"application/json": {}}, "description": "convcircuits-diagram/2."}},
    )
    def diagram(circuit: IdInPath) -> Response:
        """The document of its diagram, which the job ``diagram`` makes."""
        one = session.circuit(circuit)
        document = session.derived.document(one)
        if document is None:
            raise HTTPException(404, "This circuit has not been drawn yet; the job diagram does that.")
        return Response(document, media_type="application/json")

    @get("/api/v1/circuits/{circuit}/contrast", responses=PROBLEMS)
    def contrast(circuit: IdInPath, a: IdInQuery, b: IdInQuery) -> schemas.Contrast:
        """What its filters and kernels do on photograph ``a`` and on ``b``, measured now, where the feature is highest.

        Each is the whole photograph as the model sees it.
        """
        one = session.circuit(circuit)
        if one.problem:
            raise HTTPException(422, one.problem)
        for photo in (a, b):
            session.photo(photo)
        return schemas.Contrast(circuit=circuit, a=a, b=b, **session.contrast(one, a, b))

    @get(
        "/api/v1/circuits/{circuit}/file",
        response_class=Response,
        responses={**PROBLEMS, 200: {"content": {"application/octet-stream": {}}, "description": "The file."}},
    )
    def file(circuit: IdInPath) -> Response:
        """The circuit's file, as ``convcircuits find`` writes it."""
        one = session.circuit(circuit)
        return _download(session.content(one), one.file.name)

    @get(
        "/api/v1/circuits/{circuit}/module",
        response_class=Response,
        responses={**PROBLEMS, 200: {"content": {"application/octet-stream": {}}, "description": "The file."}},
    )
    def module(circuit: IdInPath) -> Response:
        """The circuit as a module, as ``convcircuits extract`` writes it; the job ``extract`` makes it."""
        one = session.circuit(circuit)
        found = session.derived.file("modules", one.id, ".safetensors")
        content = None if found is None else session.store.content(found)
        if content is None:
            raise HTTPException(404, "This circuit has not been extracted yet; the job extract does that.")
        return _download(content, f"{one.file.stem}-module.safetensors")

    @get(
        "/api/v1/circuits/{circuit}/page",
        response_class=Response,
        responses={**PROBLEMS, 200: {"content": {"text/html": {}}, "description": "The page, to be kept as a file."}},
    )
    def page(
        circuit: IdInPath,
        view: Annotated[
            str | None, Query(max_length=20_000, description="What is shown, as JSON: the field `view` of a document.")
        ] = None,
    ) -> Response:
        """Its diagram as one HTML file that opens offline, with the notes on it and on its unit."""
        one = session.circuit(circuit)
        if one.problem:
            raise HTTPException(422, one.problem)
        text = diagram_page(session, one, view)
        if text is None:
            raise HTTPException(404, "This circuit has not been drawn yet; the job diagram does that.")
        return _download(text.encode(), f"{one.file.stem}.html", "text/html; charset=utf-8")

    @get(
        "/api/v1/circuits/{circuit}/bundle",
        response_class=Response,
        responses={**PROBLEMS, 200: {"content": {"application/zip": {}}, "description": "The ZIP file."}},
    )
    def bundle(circuit: IdInPath, photographs: bool = False) -> Response:
        """The circuit with its report, diagram, note and commands in one file, which ``explore --bundle`` opens.

        ``photographs`` adds those that it was found and measured on, if they are files of a folder. Without it, the
        diagram shows parts of photographs, has no maps on any, and only the circuit's own file has their names.
        """
        one = session.circuit(circuit)
        if one.problem:
            raise HTTPException(422, one.problem)
        origin = dict(one.header["provenance"])
        content = circuit_bundle(session, one, _found_again(origin, one.file.name), photographs=photographs)
        return _download(content, f"{one.file.stem}.zip", "application/zip")

    @get(
        "/api/v1/compare",
        response_class=Response,
        responses={**PROBLEMS, 200: {"content": {"application/json": {}}, "description": "convcircuits-diagram/2."}},
    )
    def compare(a: IdInQuery, b: IdInQuery) -> Response:
        """The diagram of two circuits, which the job ``compare`` draws."""
        first, second = session.circuit(a), session.circuit(b)
        found = session.derived.file("comparisons", f"{first.id}-{second.id}", ".json")
        document = None if found is None else session.store.content(found)
        if document is None:
            raise HTTPException(404, "These circuits have not been compared yet; the job compare does that.")
        return Response(document, media_type="application/json")


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


def _download(content: bytes, name: str, kind: str = "application/octet-stream") -> Response:
    headers = {"content-disposition": f'attachment; filename="{_ascii(name)}"'}
    return Response(content, media_type=kind, headers=headers)


def _ascii(name: str) -> str:
    return "".join(c if (c.isalnum() and c.isascii()) or c in "-_.+" else "-" for c in name)
