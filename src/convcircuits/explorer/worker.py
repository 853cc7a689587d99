"""The process that holds the model: it does jobs one at a time, and cuts pictures beside them in a thread.

It talks with the server over two pipes. On the first come jobs, ``(id, kind, parameters, slot)``, and go ``(what, id,
...)``: ``begun``, ``progress``, ``saved``, ``remark``, ``done``, ``failed``, ``stopped``; before all of them ``ready``
or ``failed``. A job that comes while another runs is done between two steps of that one. On the second come questions,
``(number, name, arguments)``, and go ``(number, answered, answer)``.
"""

import contextlib
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
_NICENESS = 5  # where a processor is short, about a third of the time that others get
_log = logging.getLogger(__name__)


def run(opening: Opening, jobs: Connection, questions: Connection, stops: Any) -> None:
    """Open a model and photographs, then do what is asked until the server hangs up.

    Args:
        opening: What to open.
        jobs: Where jobs come from.
        questions: Where questions come from.
        stops: Shared numbers, of which the server sets that in a job's slot to 1 when the job is to stop.
    """
    answers: Future[Questions] = Future()
    threading.Thread(target=lambda: _answer(answers.result(), questions), daemon=True).start()
    _give_way()
    try:
        materials = Materials(opening)
        project = Project(materials)
        jobs.send(("ready", materials.about()))
    except Exception as error:
        jobs.send(("failed", None, _sentence(error)))
        return
    answers.set_result(Questions(materials))
    desk = Desk(project, jobs, stops)
    try:
        while True:
            desk.take()
    except (EOFError, OSError):  # the server has ended
        os._exit(0)


def _give_way() -> None:
    """Let others go first on a busy computer: the browser, the server and answers to questions.

    On Linux this concerns the calling thread and those that it starts from now on, such as torch's; on other systems it
    concerns all of the process.
    """
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # a sandbox may refuse it
            os.nice(_NICENESS)


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


class Desk:
    """Takes jobs from the server, also while one is done: between two of its steps.

    Args:
        project: What to do them with.
        jobs: Where they come from.
        stops: As for ``run``.
    """

    def __init__(self, project: Project, jobs: Connection, stops: Any) -> None:
        self._project, self.jobs, self._stops = project, jobs, stops

    def take(self) -> None:
        """Wait for a job, do it, and report what came of it."""
        id, kind, parameters, slot = self.jobs.recv()
        self.jobs.send(("begun", id))
        self.jobs.send(_done(self._project, id, kind, parameters, Reporter(id, self, slot)))

    def take_between(self) -> bool:
        """Do the jobs that have come meanwhile, and return whether there were any.

        Each is done in a thread of its own, whose settings of torch are not those inside of the job that waits for it.
        """
        gone: list[Exception] = []

        def take() -> None:
            try:
                self.take()
            except (EOFError, OSError) as error:
                gone.append(error)

        taken = False
        while self.jobs.poll():
            thread = threading.Thread(target=take, daemon=True)
            thread.start()
            thread.join()
            if gone:
                raise BrokenPipeError from gone[0]
            taken = True
        return taken

    def is_to_stop(self, slot: int) -> bool:
        """Return whether the job in a slot is to stop."""
        return bool(self._stops[slot])


class Reporter:
    """A ``progress`` callback that reports to the server, and stops the job between two batches when it is to stop.

    Jobs that come meanwhile are done between two batches, too.
    """

    def __init__(self, id: str, desk: Desk, slot: int) -> None:
        self._id, self._desk, self._slot, self._jobs = id, desk, slot, desk.jobs
        self._phase, self._last = "starting", 0.0

    def check(self) -> None:
        """Let other jobs go first. Raise ``Stopped`` if this one is to stop."""
        if self._desk.is_to_stop(self._slot):
            raise Stopped
        if self._desk.take_between():
            self._last = 0.0  # that it goes on is told at once
            if self._desk.is_to_stop(self._slot):
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
    """Answer questions: at once if that needs no model, so that none of these waits for one that does."""
    sending = threading.Lock()
    looking: Future[None] | None = None

    def reply(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            answered, answer = True, answers.answer(name, *arguments)
        except Exception as error:
            answered, answer = False, _sentence(error)
        with sending, contextlib.suppress(OSError):  # the server has ended
            questions.send((number, answered, answer))

    with ThreadPoolExecutor(1) as others:
        while True:
            try:
                number, name, arguments = questions.recv()
            except (EOFError, OSError):
                return
            try:
                at_once = answers.known(name, *arguments)
            except Exception:  # answering fails as well, and says why
                at_once = True
            if at_once:
                reply(number, name, arguments)
                continue
            waiting = others.submit(reply, number, name, arguments)
            if name == "look":
                if looking is not None:
                    looking.cancel()  # another page has opened meanwhile
                looking = waiting


def _sentence(error: Exception) -> str:
    """Return an error as a sentence for the user."""
    if isinstance(error, ConvCircuitsError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)):
        return "Out of memory. Start the explorer with a smaller --batch-size or --size."
    _log.error("%s", "".join(traceback.format_exception(error)))
    return f"An unexpected {type(error).__name__}: {' '.join(str(error).split()):.500}. The terminal has the details."
