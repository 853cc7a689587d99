"""The process that holds the model: it does jobs one at a time, and cuts pictures beside them in a thread.

It talks with the server over two pipes. On the first come jobs, ``(id, kind, parameters)``, and go ``(what, id, ...)``:
``progress``, ``saved``, ``remark``, ``done``, ``failed``, ``stopped``; before all of them ``ready`` or ``failed``. On
the second come questions, ``(number, name, arguments)``, and go ``(number, answered, answer)``.
"""

import logging
import os
import re
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer import tasks
from convcircuits.explorer.index import Stopped
from convcircuits.explorer.materials import Materials
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.project import Project
from convcircuits.explorer.questions import Questions

_OFTEN = 0.2  # seconds between two reports of progress
_log = logging.getLogger(__name__)


def run(opening: Opening, jobs: Connection, questions: Connection, stop: Any) -> None:
    """Open a model and photographs, then do what is asked until the server hangs up.

    Args:
        opening: What to open.
        jobs: Where jobs come from.
        questions: Where questions come from.
        stop: A shared number whose ``value`` the server sets to 1 when the job that runs is to stop.
    """
    try:
        materials = Materials(opening)
        project = Project(materials)
        jobs.send(("ready", materials.about()))
    except Exception as error:
        jobs.send(("failed", None, _sentence(error)))
        return
    threading.Thread(target=_answer, args=(Questions(materials), questions), daemon=True).start()
    try:
        while True:
            id, kind, parameters = jobs.recv()
            jobs.send(_done(project, id, kind, parameters, Reporter(id, jobs, stop)))
    except (EOFError, OSError):  # the server has ended
        os._exit(0)


def _done(project: Project, id: str, kind: str, parameters: dict[str, Any], reporter: "Reporter") -> tuple[Any, ...]:
    """Do a job, and return the message that ends it."""
    try:
        reporter.check()
        return "done", id, tasks.do(project, kind, parameters, reporter)
    except Stopped:
        return "stopped", id
    except BrokenPipeError:  # the server has ended
        raise
    except Exception as error:
        return "failed", id, _sentence(error)


class Reporter:
    """A ``progress`` callback that reports to the server, and stops the job between two batches when it is to stop."""

    def __init__(self, id: str, jobs: Connection, stop: Any) -> None:
        self._id, self._jobs, self._stop = id, jobs, stop
        self._phase, self._last = "starting", 0.0

    def check(self) -> None:
        """Raise ``Stopped`` if the job is to stop."""
        if self._stop.value:
            raise Stopped

    def phase(self, description: str) -> None:
        """Begin a phase, whose steps are counted from zero."""
        self._phase, self._last = description, 0.0
        self(0, None)

    def __call__(self, done: int, total: int | None) -> None:
        """Report the steps done."""
        self.check()
        now = time.monotonic()
        if now - self._last >= _OFTEN or done == total:
            self._jobs.send(("progress", self._id, self._phase, done, total))
            self._last = now

    def remark(self, text: str) -> None:
        """Show a sentence to the user."""
        self._jobs.send(("remark", self._id, text))

    def saved(self, index: Mapping[str, Any]) -> None:
        """Report that layers of the index can be looked at."""
        self._jobs.send(("saved", self._id, index["images"]))


def _answer(answers: Questions, questions: Connection) -> None:
    while True:
        try:
            number, name, arguments = questions.recv()
        except (EOFError, OSError):
            return
        try:
            answered, answer = True, answers.answer(name, *arguments)
        except Exception as error:
            answered, answer = False, _sentence(error)
        questions.send((number, answered, answer))


def _sentence(error: Exception) -> str:
    """Return an error as a sentence for the user."""
    if isinstance(error, ConvCircuitsError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)):
        return "Out of memory. Start the explorer with a smaller --batch-size or --size."
    _log.error("%s", "".join(traceback.format_exception(error)))
    return f"An unexpected {type(error).__name__}: {' '.join(str(error).split()):.500}. The terminal has the details."
