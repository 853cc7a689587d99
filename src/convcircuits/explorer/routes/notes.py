"""Routes of notes. Whoever writes one names the state that it replaces."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Response

from convcircuits.explorer import schemas
from convcircuits.explorer.routes.fields import PROBLEMS, IdInPath, LayerName, UnitNumber
from convcircuits.explorer.session import Session
from convcircuits.explorer.store import hash_of


def add(app: FastAPI, session: Session) -> None:
    """Add the routes."""
    responses = {
        **PROBLEMS,
        412: {"model": schemas.Problem, "description": "It has changed since; get it again."},
        428: {"model": schemas.Problem, "description": "If-Match is missing."},
    }

    def tag(note: schemas.Note) -> str:
        return f'"{hash_of(note.model_dump())[:16]}"'

    def read(key: str, response: Response) -> schemas.Note:
        with session.notes:
            note = schemas.Note(**session.store.note(key))
        response.headers["etag"] = tag(note)
        return note

    def write(key: str, note: schemas.Note, if_match: str | None, response: Response) -> schemas.Note:
        if if_match is None:
            raise HTTPException(428, "Give the ETag of the note that this replaces as If-Match.")
        with session.notes:
            before = schemas.Note(**session.store.note(key))
            if if_match != tag(before):
                raise HTTPException(
                    412, "This note was changed in another tab; look at it first.", {"etag": tag(before)}
                )
            session.store.write_note(key, None if note == schemas.Note() else note.model_dump())
        session.events.publish("note", {"of": key})
        response.headers["etag"] = tag(note)
        return note

    def routes(kind: str, path: str, of: Callable[..., str], accepted: type[schemas.NewNote] = schemas.NewNote) -> None:
        key = Annotated[str, Depends(of)]

        def get(key: Any, response: Response) -> schemas.Note:
            """A note, empty if there is none. ``ETag`` names its state."""
            return read(key, response)

        def put(
            key: Any,
            note: Any,
            response: Response,
            if_match: Annotated[str | None, Header(max_length=100)] = None,
        ) -> schemas.Note:
            """Replace a note. ``If-Match`` must be the ETag of the state that it replaces; an empty note is removed."""
            return write(key, schemas.Note(**note.model_dump()), if_match, response)

        put.__annotations__["note"] = accepted
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
        one = session.layer(layer)
        session.unit(one, unit)
        return session.noted("unit", f"{one['name']}:{unit}")

    def circuit(circuit: IdInPath) -> str:
        return session.noted("circuit", session.circuit(circuit).id)

    def filter_of(circuit: IdInPath, layer: LayerName, filter: UnitNumber) -> str:
        one = session.layer(layer)
        session.unit(one, filter)
        return session.noted("filter", f"{one['name']}:{filter} of circuit {session.circuit(circuit).id}")

    def photo(photo: IdInPath) -> str:
        return session.noted("photo", session.photo(photo)["id"])

    @app.get("/api/v1/notes", tags=["notes"], responses=PROBLEMS)
    def notes() -> dict[str, schemas.Note]:
        """All notes, by what they are of, in words."""
        with session.notes:
            return {of: schemas.Note(**note) for of, note in session.store.notes().items()}

    routes("unit", "units/{layer}/{unit}", unit)
    routes("circuit", "circuits/{circuit}", circuit)
    routes("filter", "circuits/{circuit}/filters/{layer}/{filter}", filter_of, schemas.NewFilterNote)
    routes("photo", "photos/{photo}", photo)
