"""Routes of the model, its layers and photographs, and the stream of events."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import BackgroundTasks, FastAPI, Header, HTTPException, Query, Response
from fastapi.responses import StreamingResponse

from convcircuits.explorer import schemas
from convcircuits.explorer.routes.fields import PROBLEMS, IdInPath, Offset
from convcircuits.explorer.session import Session
from convcircuits.version import __version__

_STREAMS = 16  # event streams at once


def add(app: FastAPI, session: Session) -> None:
    """Add the routes."""
    get = partial(app.get, responses=PROBLEMS)

    @get("/api/v1/model", tags=["model"])
    def model() -> schemas.ModelCard:
        """The model, the photographs, how far the index is. Answers at once, also while the model is loaded."""
        about, problem = session.jobs.about, session.jobs.problem
        common: dict[str, Any] = {
            "problem": problem,
            "read_only": session.read_only,
            "remarks": session.store.remarks,
            "version": __version__,
        }
        if about is None:
            return schemas.ModelCard(state="failed" if problem else "starting", **common)
        index = session.index()
        state: Any = (
            "missing" if index is None or not index["layers"] else "complete" if index["complete"] else "partial"
        )
        return schemas.ModelCard(
            state="failed" if problem else "ready",
            **common,
            **{
                name: about[name]
                for name in ("name", "weights", "images", "size", "normalization", "copies", "left_out", "classes")
            },
            photographs=len(about["photographs"]),
            bytes=session.store.size(),
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
        index = session.index()
        fields = {one["layer"]: one["field"] for one in index["layers"]} if index else {}
        images = 0 if index is None else index["images"]
        return [
            schemas.Layer(**one, images=images if one["name"] in fields else 0, field=fields.get(one["name"]))
            for one in session.about()["layers"]
        ]

    @get("/api/v1/photos", tags=["photographs"])
    def photos(offset: Offset = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 200) -> schemas.PhotoPage:
        """The photographs, without copies of others."""
        every = session.about()["photographs"]
        return schemas.PhotoPage(total=len(every), offset=offset, photographs=every[offset : offset + limit])

    @get("/api/v1/photos/{photo}", tags=["photographs"])
    def photo(
        photo: IdInPath,
        afterwards: BackgroundTasks,
        ahead: Annotated[bool, Query(description="Prepare for questions about its points and maps.")] = False,
    ) -> schemas.Photo:
        """A photograph."""
        one = schemas.Photo(**session.photo(photo))
        if ahead:
            afterwards.add_task(session.expect, photo)
        return one

    @get("/api/v1/photos/{photo}/point", tags=["photographs"])
    def point(
        photo: IdInPath,
        x: Annotated[float, Query(ge=0, le=1 << 14, description="From the left, in pixels of the model's image.")],
        y: Annotated[float, Query(ge=0, le=1 << 14, description="From the top.")],
        count: Annotated[int, Query(ge=1, le=100, description="Units of each layer, at most.")] = 8,
    ) -> schemas.Point:
        """The units that are highest at a point of a photograph, layer by layer, in the full model."""
        one = session.photo(photo)
        height, width = session.about()["size"]
        if x > width or y > height:
            raise HTTPException(422, f"x, y: the model's image has {width} columns and {height} rows.")
        return schemas.Point(
            photo=one["id"],
            name=one["name"],
            x=x,
            y=y,
            layers=[schemas.PointLayer(**each) for each in session.point(photo, x, y, count)],
        )

    @app.get(
        "/api/v1/events",
        tags=["model"],
        response_class=StreamingResponse,
        responses={**PROBLEMS, 200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
    )
    async def events(last_event_id: Annotated[str | None, Header(max_length=100)] = None) -> Response:
        """Server-sent events. With ``Last-Event-ID``, those after it; ``reset`` says that some are no longer known."""
        if session.streams >= _STREAMS:
            raise HTTPException(503, f"{_STREAMS} pages listen already; close some.")
        return StreamingResponse(_streamed(session, last_event_id), media_type="text/event-stream")


async def _streamed(session: Session, last: str | None) -> AsyncIterator[str]:
    session.streams += 1
    try:
        if last is None or session.events.since(last) is None:
            known, last = last, session.events.last()
            yield f"id: {last}\nevent: {'hello' if known is None else 'reset'}\ndata: {{}}\nretry: 1000\n\n"
        quiet = 0
        while not session.closing:
            found = session.events.since(last)
            if found is None:
                last = session.events.last()
                yield f"id: {last}\nevent: reset\ndata: {{}}\n\n"
                continue
            for last, kind, data in found:
                yield f"id: {last}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
            quiet = 0 if found else quiet + 1
            if quiet == 100:
                quiet = 0
                yield ": still here\n\n"
            await asyncio.sleep(0.1)
    finally:
        session.streams -= 1
