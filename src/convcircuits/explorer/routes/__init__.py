"""The application: the API under ``/api/v1``, a file for each part of it, and the page. No torch."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.jobs import UnavailableError
from convcircuits.explorer.routes import circuits, jobs, model, notes, page, pictures, units
from convcircuits.explorer.session import Session

_log = logging.getLogger(__name__)


def application(session: Session) -> FastAPI:
    """Build the application that answers from a session."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        session.jobs.start()
        yield
        session.closing = True
        await asyncio.to_thread(session.close)

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
    for routes in (model, units, pictures, circuits, notes, jobs):
        routes.add(app, session)
    page.add(app)
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
        if text == HTTPStatus(error.status_code).phrase:  # Starlette's own answer
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


def openapi() -> dict[str, Any]:
    """Return the OpenAPI schema of the application."""
    nothing: Any = None  # which is looked at when a route is asked
    return application(nothing).openapi()
