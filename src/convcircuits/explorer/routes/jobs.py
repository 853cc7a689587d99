"""Routes of jobs."""

from typing import Any

from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel

from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer import schemas
from convcircuits.explorer.jobs import Job
from convcircuits.explorer.routes.fields import PROBLEMS, IdInPath
from convcircuits.explorer.session import Session
from convcircuits.values.recipe import check_size


def add(app: FastAPI, session: Session) -> None:
    """Add the routes."""
    tags: list[Any] = ["jobs"]

    @app.get("/api/v1/jobs", tags=tags, responses=PROBLEMS)
    def jobs() -> list[schemas.JobState]:
        """All jobs, the newest first; those that were done in earlier sessions too."""
        return [schemas.JobState(**job.as_dict()) for job in session.jobs.all()]

    @app.post(
        "/api/v1/jobs",
        tags=tags,
        status_code=202,
        responses={**PROBLEMS, 200: {"model": schemas.JobState, "description": "It is done already."}},
    )
    def submit(asked: schemas.JobRequest, response: Response) -> schemas.JobState:
        """Ask for a job. The same question is the same job: if it is done, its result comes at once."""
        _check_job(session, asked)
        job = session.submit(asked.model_dump())
        if job.state == "done":
            response.status_code = 200
        return schemas.JobState(**job.as_dict())

    @app.get("/api/v1/jobs/{job}", tags=tags, responses=PROBLEMS)
    def job(job: IdInPath) -> schemas.JobState:
        """A job."""
        return schemas.JobState(**_job(session, job).as_dict())

    @app.delete("/api/v1/jobs/{job}", tags=tags, status_code=202, responses=PROBLEMS)
    def cancel(job: IdInPath) -> schemas.JobState:
        """Cancel a job: it stops after the batch that runs, or its process is ended after 10 s."""
        found = _job(session, job)
        session.jobs.cancel(found)
        return schemas.JobState(**found.as_dict())


def _check_job(session: Session, asked: BaseModel) -> None:
    """Refuse what can be known to fail before it waits."""
    if isinstance(asked, (schemas.EvaluateJob, schemas.DiagramJob)):
        found = session.circuit(asked.circuit)
        if found.problem:
            raise HTTPException(422, found.problem)
    if isinstance(asked, schemas.FindJob):
        try:
            check_size(asked.model_dump())
        except ConvCircuitsError as error:
            raise HTTPException(422, str(error)) from error


def _job(session: Session, id: str) -> Job:
    found = session.jobs.get(id)
    if found is None:
        raise HTTPException(404, f"There is no job {id}.")
    return found
