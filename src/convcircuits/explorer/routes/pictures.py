"""Routes of pictures: parts of photographs, and maps."""

import base64
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException, Query, Response

from convcircuits.explorer import schemas
from convcircuits.explorer.routes.fields import PROBLEMS, IdInPath, LayerName, UnitNumber
from convcircuits.explorer.session import Session
from convcircuits.explorer.store import hash_of

_THUMBS = "thumbs/2"  # how pictures are drawn; another number makes them anew
_END_OF_JPEG = b"\xff\xd9"


def add(app: FastAPI, session: Session) -> None:
    """Add the routes."""

    @app.get(
        "/api/v1/thumb/{photo}",
        tags=["photographs"],
        response_class=Response,
        responses={
            **PROBLEMS,
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
        of: Annotated[
            str | None,
            Query(
                pattern="^[0-9a-f]{8,32}$",
                description="How the model card's `images` begins, which says how photographs become images. Only an "
                "address with it may be kept: a box shows another part where they are prepared in another way.",
            ),
        ] = None,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """A photograph, or a part of it as a square. With ``of``, it never changes."""
        session.photo(photo)
        part = None if box is None else tuple(map(int, box.split(",")))
        if part is not None and 0 in part[2:]:
            raise HTTPException(422, "box: its height and width must be at least 1.")
        images = session.about()["images"]
        if of is not None and not images.startswith(of):
            raise HTTPException(404, "of: these photographs are prepared in another way now; get the model card again.")
        key = hash_of([_THUMBS, photo, w, None if part is None else [*part], images])
        kept = "no-cache" if of is None else "max-age=31536000, immutable"
        headers = {"etag": f'"{key}"', "cache-control": f"private, {kept}"}
        if if_none_match is not None and f'"{key}"' in if_none_match:
            return Response(status_code=304, headers=headers)
        content = session.store.thumb(key)
        if content is None or not content.endswith(_END_OF_JPEG):  # a computer that lost power may leave a part of it
            content = session.jobs.ask("thumb", photo, w, part)
            session.store.write_thumb(key, content)
        return Response(content, media_type="image/jpeg", headers=headers)

    @app.get("/api/v1/map/{layer}/{unit}/{photo}", tags=["units"], responses=PROBLEMS)
    def map_(layer: LayerName, unit: UnitNumber, photo: IdInPath) -> schemas.Map:
        """A unit's map on a photograph, computed now."""
        one = session.layer(layer)
        session.unit(one, unit)
        session.photo(photo)
        shape, values = session.jobs.ask("map", one["name"], unit, photo)
        text = base64.b64encode(values).decode()
        return schemas.Map(layer=one["name"], unit=unit, photo=photo, shape=shape, values=text)
