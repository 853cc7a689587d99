"""The jobs that the worker does, by kind."""

from collections.abc import Callable, Mapping
from typing import Any

from convcircuits.explorer import circuit_tasks, unit_tasks
from convcircuits.explorer.project import Progress, Project

TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "index": unit_tasks.index,
    "visualise": unit_tasks.visualise,
    "neighbours": unit_tasks.neighbours,
    "split": unit_tasks.split,
    "trajectory": unit_tasks.trajectory,
    "find": circuit_tasks.find,
    "evaluate": circuit_tasks.evaluate,
    "diagram": circuit_tasks.diagram,
    "compare": circuit_tasks.compare,
    "sweep": circuit_tasks.sweep,
    "extract": circuit_tasks.extract,
    "ablate": circuit_tasks.ablate,
    "put_back": circuit_tasks.put_back,
}
"""Kind of a job -> what does it, with its parameters as keywords."""


def do(project: Project, kind: str, parameters: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Do a job.

    Args:
        project: What to do it with.
        kind: One of ``TASKS``.
        parameters: With what.
        progress: Reports, and raises ``Stopped`` where the job is to stop.

    Returns:
        Its result, as JSON values.

    Raises:
        ConvCircuitsError: If that is not possible.
    """
    return TASKS[kind](project, progress, **parameters)
