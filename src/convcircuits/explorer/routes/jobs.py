"""Routes of jobs."""

from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Response
from pydantic import BaseModel

from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer import schemas
from convcircuits.explorer.jobs import Job
from convcircuits.explorer.routes.fields import PROBLEMS, IdInPath
from convcircuits.explorer.session import Session
from convcircuits.values.recipe import check_size, default_criterion

CROPS = 100
"""Crops of a photograph, on the average, to find a circuit on: more are nearly the same again."""


def add(app: FastAPI, session: Session) -> None:
    """Add the routes."""
    tags: list[Any] = ["jobs"]

    @app.get("/api/v1/jobs", tags=tags, responses=PROBLEMS)
    def jobs() -> list[schemas.JobState]:
        """All jobs, the newest first; those that were done in earlier sessions too."""
        return [schemas.JobState(**session.jobs.state(job)) for job in session.jobs.all()]

    @app.post(
        "/api/v1/jobs",
        tags=tags,
        status_code=202,
        responses={**PROBLEMS, 200: {"model": schemas.JobState, "description": "It is done already."}},
    )
    def submit(asked: schemas.JobRequest, response: Response) -> schemas.JobState:
        """Ask for a job. The same question is the same job: if it is done, its result comes at once."""
        state = session.jobs.state(session.submit(_checked(session, asked)))
        if state["state"] == "done":
            response.status_code = 200
        return schemas.JobState(**state)

    @app.get("/api/v1/estimate", tags=tags, responses=PROBLEMS)
    def estimate(
        feature: Annotated[str, Query(max_length=500)],
        criterion: Annotated[str | None, Query(max_length=50)] = None,
        granularity: Literal["kernel", "filter", "weight"] = "kernel",
        reach_r2: bool = False,
        refit: Literal["none", "kernels", "filters", "mean", "best"] = "none",
        count: Annotated[int, Query(ge=1, le=100_000)] = 24,
    ) -> schemas.Estimate:
        """About how long the job ``find`` will take: one batch is timed, and multiplied by what a criterion runs."""
        busy = session.jobs.busy
        answer = session.jobs.ask(
            "estimate", feature, criterion or default_criterion(granularity), count, reach_r2, refit, timeout=60.0
        )
        return schemas.Estimate(**answer, busy=busy or session.jobs.busy)

    @app.get("/api/v1/jobs/{job}", tags=tags, responses=PROBLEMS)
    def job(job: IdInPath) -> schemas.JobState:
        """A job."""
        return schemas.JobState(**session.jobs.state(_job(session, job)))

    @app.delete("/api/v1/jobs/{job}", tags=tags, status_code=202, responses=PROBLEMS)
    def cancel(job: IdInPath) -> schemas.JobState:
        """Cancel a job: it stops after the batch that runs, or its process is ended after 10 s."""
        found = _job(session, job)
        session.jobs.cancel(found)
        return schemas.JobState(**session.jobs.state(found))


def _checked(session: Session, asked: BaseModel) -> dict[str, Any]:
    """Refuse what can be known to fail before it waits, and name layers by their own names."""
    fields = asked.model_dump()
    for name in ("circuit", "a", "b"):
        if name in fields and session.circuit(fields[name]).problem:
            raise HTTPException(422, session.circuit(fields[name]).problem)
    if "layer" in fields:
        layer = session.layer(fields["layer"])
        fields["layer"] = layer["name"]
        unit = fields.get("unit", fields.get("filter"))
        if unit is not None:
            session.unit(layer, unit)
    if isinstance(asked, schemas.CompareJob) and asked.a == asked.b:
        raise HTTPException(422, "a and b are the same circuit; give two.")
    if isinstance(asked, schemas.FindJob):
        if asked.photographs is not None:
            for photo in asked.photographs:
                session.photo(photo)
            fields["photographs"] = sorted({*asked.photographs})
            if len(fields["photographs"]) < 2:
                raise HTTPException(422, "photographs: a circuit takes at least two, one of which is held out.")
        most = CROPS * len(session.about()["photographs"])
        if asked.count > most:
            raise HTTPException(
                422,
                f"count is {asked.count:,}; at most {CROPS} crops are cut of a photograph, so it may be {most:,} here.",
            )
    try:
        if isinstance(asked, schemas.FindJob):
            check_size(fields)
        if isinstance(asked, schemas.FindJob | schemas.SplitJob):
            session.jobs.ask("possible", asked.kind, fields)
    except ConvCircuitsError as error:
        raise HTTPException(422, str(error)) from error
    return fields


def _job(session: Session, id: str) -> Job:
    found = session.jobs.get(id)
    if found is None:
        raise HTTPException(404, f"There is no job {id}.")
    return found
