"""Routes of units: tables, figures, and the photographs that drive them."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Response

from convcircuits.drawing.trajectory_page import short_points
from convcircuits.explorer import schemas
from convcircuits.explorer.routes.fields import PROBLEMS, IdInPath, LayerName, Measure, Offset, UnitNumber
from convcircuits.explorer.session import Session
from convcircuits.values.measures import ranked


def add(app: FastAPI, session: Session) -> None:
    """Add the routes."""
    _add_derived(app, session)
    get = partial(app.get, responses=PROBLEMS, tags=["units"])

    @get("/api/v1/layers/{layer}/units")
    def units(
        layer: LayerName,
        sort: Measure = "unit",
        lowest_first: bool = False,
        offset: Offset = 0,
        limit: Annotated[int, Query(ge=1, le=1024)] = 100,
    ) -> schemas.UnitPage:
        """The units of a layer, sorted; dead ones, and those for which the measure is not defined, come last."""
        one = session.layer(layer)
        found, read = session.indexed(one)
        figures = found.header["statistics"]
        rows = figures if sort == "unit" else ranked(figures, sort, lowest_first=lowest_first)
        notes = session.store.notes()
        answers = []
        for row in rows[offset : offset + limit]:
            note = notes.get(session.noted("unit", f"{one['name']}:{row['unit']}"), {})
            histogram = found.histogram(row["unit"])
            answers.append(
                schemas.UnitRow(
                    figures=schemas.Figures(**row),
                    top=session.examples(found.highest(row["unit"], padding=False)[:4], read),
                    histogram=histogram["counts"],
                    zero=sum(edge < 0 for edge in histogram["edges"][:-1]),
                    label=note.get("label", ""),
                    star=note.get("star", False),
                )
            )
        return schemas.UnitPage(
            layer=one["name"],
            images=found.header["images"],
            complete=found.header["complete"],
            total=len(figures),
            offset=offset,
            units=answers,
        )

    @get("/api/v1/layers/{layer}/units/{unit}")
    def unit(layer: LayerName, unit: UnitNumber) -> schemas.Unit:
        """A unit: its figures, its histogram, its circuits."""
        one = session.layer(layer)
        session.unit(one, unit)
        found, _ = session.indexed(one)
        circuits, others = session.circuits_of(one["name"], unit)
        name = f"{one['name']}:{unit}"
        picture = session.derived.picture(name)
        return schemas.Unit(
            layer=one["name"],
            alias=one["alias"],
            unit=unit,
            feature=name,
            **{name: found.header[name] for name in ("images", "complete", "map", "field", "interior")},
            figures=found.header["statistics"][unit],
            histogram=schemas.Histogram(**found.histogram(unit)),
            circuits=circuits,
            other_circuits=others,
            splits=[schemas.SplitCard(**each.model_dump()) for each in session.splits(one["name"], unit)],
            picture=picture,
            trajectory=session.derived.trajectory(one["name"], unit) is not None,
            neighbours=session.derived.record("neighbours", one["name"], schemas.NeighboursOfLayer) is not None,
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
        one = session.layer(layer)
        session.unit(one, unit)
        found, read = session.indexed(one)
        if padding and section != "top":
            raise HTTPException(422, "padding: only the section top includes positions that see padding.")
        if section == "top":
            rows = found.highest(unit, padding=padding)[:count]
        else:
            rows = found.among(unit, choice(section, low, high), count)
        pool = len(found.arrays["pool/image"])
        return schemas.Examples(
            section=section,
            padding=padding,
            sampled=section != "top" and pool < found.header["images"],
            pool=found.header["images"] if section == "top" else pool,
            images=found.header["images"],
            examples=session.examples(rows, read),
        )


def _add_derived(app: FastAPI, session: Session) -> None:
    """Add the routes of what jobs find out about units."""

    @app.get(
        "/api/v1/layers/{layer}/units/{unit}/picture",
        tags=["units"],
        response_class=Response,
        responses={**PROBLEMS, 200: {"content": {"image/png": {}}, "description": "PNG."}},
    )
    def picture(layer: LayerName, unit: UnitNumber) -> Response:
        """The picture that drives a unit most, which the job ``visualise`` makes."""
        one = session.layer(layer)
        session.unit(one, unit)
        file = session.derived.file("features", f"{one['name']}:{unit}", ".png")
        content = None if file is None else session.store.content(file)
        if content is None:
            raise HTTPException(404, f"There is no picture of unit {unit} yet; the job visualise makes it.")
        return Response(content, media_type="image/png")

    @app.get("/api/v1/layers/{layer}/units/{unit}/neighbours", tags=["units"], responses=PROBLEMS)
    def neighbours(layer: LayerName, unit: UnitNumber) -> schemas.Neighbours:
        """The units of the same layer with correlated maps, which the job ``neighbours`` finds."""
        one = session.layer(layer)
        session.unit(one, unit)
        found = session.derived.record("neighbours", one["name"], schemas.NeighboursOfLayer)
        if found is None:
            raise HTTPException(
                404, f"The maps of {one['name']} have not been correlated yet; the job neighbours does."
            )
        notes = session.labels(one["name"])

        def named(of_units: list[list[tuple[int, float]]]) -> list[schemas.Neighbour]:
            return [
                schemas.Neighbour(unit=other, correlation=r, label=notes.get(other, {}).get("label", ""))
                for other, r in of_units[unit]
            ]

        return schemas.Neighbours(
            layer=one["name"],
            unit=unit,
            images=found.images,
            positions=found.positions,
            highest=named(found.highest),
            lowest=named(found.lowest),
        )

    @app.get("/api/v1/layers/{layer}/units/{unit}/trajectory", tags=["units"], responses=PROBLEMS)
    def trajectory(layer: LayerName, unit: UnitNumber) -> schemas.Trajectory:
        """A unit's photographs placed layer by layer, which the job ``trajectory`` does."""
        one = session.layer(layer)
        session.unit(one, unit)
        found = session.derived.trajectory(one["name"], unit)
        if found is None:
            raise HTTPException(404, "The photographs of this unit have not been placed yet; the job trajectory does.")
        called = {layer["name"]: layer["alias"] for layer in session.about()["layers"]}
        said = {
            "layer": one["name"],
            "unit": unit,
            "layers": [row | {"alias": called.get(row["layer"], "")} for row in found.layers],
            "points": short_points(found.points),
        }
        return schemas.Trajectory(**(found.model_dump() | said))

    @app.get("/api/v1/splits/{split}", tags=["units"], responses=PROBLEMS)
    def split(split: IdInPath) -> schemas.Split:
        """A division of a unit's photographs, which the job ``split`` makes."""
        return session.split(split)


def choice(section: str, low: float | None, high: float | None) -> Callable[[np.ndarray], np.ndarray]:
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
