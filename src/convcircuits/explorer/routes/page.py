"""Routes of the page: its one document, its scripts, which the package carries, and the pages of maps."""

import html
import json
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Response

from convcircuits.drawing.page import map_body, plain_text
from convcircuits.drawing.trajectory_page import trajectory_data
from convcircuits.explorer.routes.fields import IdInPath, LayerName, UnitNumber
from convcircuits.explorer.session import Session

_MAPS = ("atlas", "trajectory")
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json"}


def add(app: FastAPI, session: Session) -> None:
    """Add the routes."""
    shipped = {
        file.name: file.read_bytes()
        for package in ("convcircuits.drawing", "convcircuits.explorer")
        for file in (files(package) / "static").iterdir()
        if any(file.name.endswith(suffix) for suffix in _TYPES)
    }

    for kind in _MAPS:  # one module each, as in a page that is a file
        for suffix in (".js", ".css"):
            shipped[f"{kind}-page{suffix}"] = shipped[f"map{suffix}"] + shipped[f"{kind}{suffix}"]

    def answer(name: str) -> Response:
        kind = next(kind for suffix, kind in _TYPES.items() if name.endswith(suffix))
        return Response(shipped[name], media_type=f"{kind}; charset=utf-8", headers={"cache-control": "no-cache"})

    def page() -> Response:
        return answer("index.html")

    for path in ("/", "/l/{a}", "/u/{a}/{b}", "/i/{a}", "/c/{a}", "/compare", "/jobs"):
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)

    @app.get("/t/{layer}/{unit}", include_in_schema=False)
    def trajectory(layer: LayerName, unit: UnitNumber) -> Response:
        one = session.layer(layer)
        session.unit(one, unit)
        found = session.trajectory(one["name"], unit)
        if found is None:
            raise HTTPException(404, "The photographs of this unit have not been placed yet; its page does that.")
        of = session.about()["images"][:8]
        pictures = [
            f"/api/v1/thumb/{photo}?w=96&of={of}&box={','.join(map(str, box))}"
            for photo, box in zip(found.photos, found.boxes, strict=True)
        ]
        job = {"kind": "find", "feature": f"{one['name']}:{unit}@max"}
        called = {layer["name"]: layer["alias"] for layer in session.about()["layers"]}
        for row in found.layers:
            row["alias"] = called.get(row["layer"], "")
        if one["alias"]:
            found.title = f"{one['alias']}:{unit} ({found.feature}){found.title.removeprefix(found.feature)}"
        finding: dict[str, Any] = {"job": None if session.read_only else job, "photos": found.photos}
        data = trajectory_data(found.model_dump(), names=found.names, pictures=pictures, finding=finding)
        return _map("trajectory", found.title, f"/u/{quote(one['name'], safe='')}/{unit}", "the unit", data)

    @app.get("/a/{atlas}", include_in_schema=False)
    def atlas(atlas: IdInPath) -> Response:
        found = session.atlas(atlas)
        layer = found["layer"]
        title = f"Atlas of {layer}: {len(found['units'])} units"
        data = json.dumps(found, allow_nan=False)
        return _map("atlas", title, f"/l/{quote(layer, safe='')}", "the layer", data)

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        if name not in shipped:
            raise HTTPException(404, "There is no such file.")
        return answer(name)


def _map(kind: str, title: str, back: str, what: str, data: str) -> Response:
    """Return the page of a map, whose script and style are files, as the content security policy wants it."""
    words = f'<a href="{html.escape(back)}">{html.escape(what)}</a>'
    data = data.replace("<", "\\u003c")  # no text of the data can end the element
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{html.escape(plain_text(title))}</title>
<link rel="stylesheet" href="/static/{kind}-page.css">
</head>
<body>
{map_body(title, words)}
<script type="application/json" id="{kind}">{data}</script>
<script type="module" src="/static/{kind}-page.js"></script>
</body>
</html>
"""
    return Response(text, media_type="text/html; charset=utf-8")
