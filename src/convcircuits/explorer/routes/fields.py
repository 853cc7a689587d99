"""Parameters that several routes have, and how all of them fail."""

from typing import Annotated, Any, Literal
from urllib.parse import unquote

from fastapi import Depends, Path, Query

from convcircuits.explorer import schemas

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


def _layer(layer: Annotated[str, Path(max_length=2000, description="A layer's name, percent-encoded.")]) -> str:
    return unquote(layer, errors="replace")


LayerName = Annotated[str, Depends(_layer)]
UnitNumber = Annotated[int, Path(ge=0, le=1 << 30)]
IdInPath = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
IdInQuery = Annotated[str, Query(pattern=r"^[0-9a-f]{16}$")]
Offset = Annotated[int, Query(ge=0, le=1 << 30)]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": schemas.Problem} for code in (400, 401, 403, 404, 413, 415, 421, 422, 503)
}
"""The answers of every route that is not a result."""
