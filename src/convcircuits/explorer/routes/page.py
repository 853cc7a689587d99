"""Routes of the page: its one document, and its scripts, which the package carries."""

from importlib.resources import files

from fastapi import FastAPI, HTTPException, Response

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json"}


def add(app: FastAPI) -> None:
    """Add the routes."""
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

    for path in ("/", "/l/{a}", "/u/{a}/{b}", "/t/{a}/{b}", "/a/{a}", "/i/{a}", "/c/{a}", "/compare", "/jobs"):
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        if name not in shipped:
            raise HTTPException(404, "There is no such file.")
        return answer(name)
