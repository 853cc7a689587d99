"""Jobs as the server sees them: a queue, the one that runs, and the worker process, which may die. No torch."""

import contextlib
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.store import Store, hash_of

PATIENCE = 10.0
"""Seconds that a cancelled job has to stop, before its process is killed."""

MOST = 200
"""Jobs that may wait."""

_KEPT = 1000  # events that can be asked for again
_ATTEMPTS = 3  # to start a worker that dies before it is ready
_TURNS = {
    **dict.fromkeys(("diagram", "compare"), 1),
    **dict.fromkeys(("find", "visualise"), 2),
    **dict.fromkeys(("sweep", "split", "neighbours", "trajectory"), 3),
    "index": 4,
}
_SLOTS = 1 + max(_TURNS.values())  # jobs that have begun at once: each between two steps of one of a later turn
_log = logging.getLogger(__name__)


class UnavailableError(Exception):
    """The worker cannot answer now. The message says why."""


@dataclass
class Job:
    """A job.

    Attributes:
        id: Hash of what is asked for.
        kind: What to do.
        parameters: With what.
        state: ``queued``, ``running``, ``done``, ``failed`` or ``cancelled``.
        phase: What is being done.
        since: When the phase began, in seconds since 1970, or None if it does not run.
        done: Steps of the phase that are done.
        total: All its steps, or None if that is not known.
        left: Seconds that the phase will still take, or None if that is not known.
        rate: Steps per second, or None.
        error: A sentence, if it failed or was cancelled.
        result: What came of it.
        created: When it was asked for, in seconds since 1970.
        ended: When it ended, or None.
        cancelled: Whether it is to end.
    """

    id: str
    kind: str
    parameters: dict[str, Any]
    state: str = "queued"
    phase: str = ""
    since: float | None = None
    done: int = 0
    total: int | None = None
    left: float | None = None
    rate: float | None = None
    error: str = ""
    result: dict[str, Any] | None = None
    created: float = field(default_factory=time.time)
    ended: float | None = None
    cancelled: bool = False
    _phase_begun: tuple[float, int] = (0.0, 0)
    _slot: int = 0  # in which the worker has it
    _begun: bool = False  # by the worker, which may have been in the middle of a step of another

    @property
    def turn(self) -> int:
        """When it goes: those of 0, which take seconds, are done between two steps of others, and so on."""
        return _TURNS["find"] if self.parameters.get("controls") else _TURNS.get(self.kind, 0)

    def as_dict(self) -> dict[str, Any]:
        """Return the job as JSON values."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "cancelled"}

    def enter(self, phase: str) -> None:
        """Begin a phase, of which neither the rate nor the time left is known yet."""
        self.phase, self.since, self.rate, self.left = phase, time.time() if phase else None, None, None

    def progress(self, phase: str, done: int, total: int | None) -> None:
        """Record progress, and from it the rate and the time left."""
        now = time.monotonic()
        if phase != self.phase or done < self.done:
            self.enter(phase)
            self._phase_begun = now, done
        self.done, self.total = done, total
        seconds, steps = now - self._phase_begun[0], done - self._phase_begun[1]
        self.rate = round(steps / seconds, 3) if steps > 0 and seconds > 0 else None
        self.left = round((total - done) / self.rate, 1) if self.rate and total is not None else None


def _id(kind: str, parameters: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Return the id of a job: a hash of the question, and of what its answer depends on."""
    return hash_of([kind, parameters, about["basis"]])[:16]


class Events:
    """Numbered events, of which the last ones can be asked for again."""

    def __init__(self) -> None:
        self._boot, self._count = f"{time.time_ns():x}", itertools.count(1)
        self._events: deque[tuple[int, str, dict[str, Any]]] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self._last = 0

    def publish(self, kind: str, data: Mapping[str, Any]) -> None:
        """Add an event."""
        with self._lock:
            self._last = next(self._count)
            self._events.append((self._last, kind, dict(data)))

    def last(self) -> str:
        """Return the id of the last event."""
        return f"{self._boot}-{self._last}"

    def since(self, id: str) -> list[tuple[str, str, dict[str, Any]]] | None:
        """Return the events after the one with this id, or None if some are no longer known."""
        boot, _, number = id.partition("-")
        if boot != self._boot or not number.isdecimal() or len(number) > 18:
            return None
        after = int(number)
        with self._lock:
            first = self._events[0][0] if self._events else self._last + 1
            if after < first - 1 or after > self._last:
                return None
            return [(f"{boot}-{n}", kind, data) for n, kind, data in self._events if n > after]


class Jobs:
    """A queue of jobs, and the worker process that does them.

    Args:
        opening: What the worker opens.
        store: The project's folder.
        events: Where what happens is announced.

    Attributes:
        about: What the worker says of the model and the photographs; None until it is ready.
        problem: Why there is no worker, or empty.
    """

    def __init__(self, opening: Opening, store: Store, events: Events) -> None:
        self._opening, self._store, self.events = opening, store, events
        self.about: dict[str, Any] | None = None
        self.problem = ""
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failed: Callable[[], None] = lambda: None
        self.on_done: Callable[[Job], None] = lambda job: None
        self._jobs: dict[str, Job] = {}
        self._running: list[Job] = []  # those after the first wait for a step of the one before to end, or have begun
        self._kill_at: float | None = None
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._asked: dict[int, Future[Any]] = {}
        self._closing, self._loaded, self._attempts = False, False, 0  # whether the worker has been ready
        self._context = multiprocessing.get_context("spawn")
        self._wake, self._woken = self._context.Pipe()
        self._process: Any = None
        self._thread = threading.Thread(target=self._supervise, daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def close(self) -> None:
        """End the worker. A job that runs is lost, except what an index has written."""
        self._closing = True
        self._nudge()
        if self._thread.ident is not None:
            self._thread.join(5)
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join(5)

    # ---------------------------------------- what the page asks for

    def submit(self, kind: str, parameters: dict[str, Any], *, valid: Callable[[dict[str, Any]], bool]) -> Job:
        """Queue a job, or return the one that was asked for before.

        Args:
            kind: What to do.
            parameters: With what.
            valid: Whether an earlier result still holds.

        Raises:
            UnavailableError: If the worker is not ready, or too many jobs wait.
        """
        with self._lock:
            about = self._ready()
            id = _id(kind, parameters, about)
            known = self.get(id)
            if known is not None and known.state in ("queued", "running") and not known.cancelled:
                return known
            if known is not None and known.state == "done" and valid(known.result or {}):
                return known
            if known is not None and known.state in ("queued", "running"):
                raise UnavailableError("This job is being cancelled; ask again in a moment.")
            if sum(job.state == "queued" for job in self._jobs.values()) >= MOST:
                raise UnavailableError(f"{MOST} jobs wait already; cancel some, or ask again later.")
            job = self._jobs[id] = Job(id, kind, parameters)
            self._announce(job)
            for running in self._running:
                if running.kind == "index" and kind != "index":
                    self._stops[running._slot] = 1  # it goes on afterwards
        self._nudge()
        return job

    def answered(self, kind: str, parameters: dict[str, Any], result: dict[str, Any], *, since: float) -> None:
        """Record that a job's result is known, as another came to it, unless it waits or runs.

        Args:
            kind: What it would do.
            parameters: With what.
            result: Its result.
            since: When the other was asked for, in seconds since 1970.
        """
        with self._lock:
            if self.about is None:
                return
            id = _id(kind, parameters, self.about)
            known = self.get(id)
            if known is None or known.state not in ("queued", "running"):
                job = self._jobs[id] = Job(id, kind, parameters, created=since)
                self._end(job, "done", result=result)

    def get(self, id: str) -> Job | None:
        """Return a job, also one of an earlier session that is done."""
        with self._lock:
            if id not in self._jobs:
                record = self._store.job(id)
                if record is None:
                    return None
                names = {"id", "kind", "parameters", "state", "result", "created", "ended"}
                self._jobs[id] = Job(**{name: record[name] for name in names})
            return self._jobs[id]

    def all(self) -> list[Job]:
        """Return all jobs, those of earlier sessions too, the newest first."""
        for record in self._store.jobs():
            self.get(record["id"])
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: -job.created)

    def state(self, job: Job) -> dict[str, Any]:
        """Return a job as JSON values, all of one moment: it has not ended, say, and no result yet."""
        with self._lock:
            return job.as_dict()

    def cancel(self, job: Job) -> None:
        """End a job: at once if it waits, else after the batch that runs, or its process after ``PATIENCE`` seconds."""
        with self._lock:
            if job.state == "queued":
                self._end(job, "cancelled", error="It was cancelled before it began.")
            elif job.state == "running" and not job.cancelled:
                job.cancelled = True
                self._stops[job._slot] = 1
                self._wait_for_the_cancelled()
        self._nudge()

    def ask(self, name: str, *arguments: Any, timeout: float = 30.0) -> Any:
        """Ask the worker a question, which it answers beside the job that runs.

        Raises:
            UnavailableError: If it is not ready, or gives no answer in time.
            ConvCircuitsError: If it answers with an error.
        """
        future: Future[Any] = Future()
        with self._lock:
            self._ready()
            number = next(self._numbers)
            self._asked[number] = future
            try:
                self._questions.send((number, name, arguments))
            except OSError as error:
                del self._asked[number]
                raise UnavailableError("The worker has just ended and starts again; ask again in a moment.") from error
        try:
            return future.result(timeout)
        except TimeoutError as error:
            raise UnavailableError("The worker is busy; ask again in a moment.") from error
        finally:
            self._asked.pop(number, None)

    def tell(self, name: str, *arguments: Any) -> None:
        """Ask the worker a question whose answer nobody waits for; without a worker nothing happens."""
        with self._lock, contextlib.suppress(UnavailableError, OSError):
            self._ready()
            self._questions.send((next(self._numbers), name, arguments))

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return bool(self._running)

    @property
    def _active(self) -> Job | None:
        """The job that is being done: the last one that has begun."""
        return next((job for job in reversed(self._running) if job._begun), self._running[0] if self._running else None)

    def _wait_for_the_cancelled(self) -> None:
        """Set when the worker is killed: some time from now if the job that is being done is to stop, else never."""
        active = self._active
        self._kill_at = time.monotonic() + PATIENCE if active is not None and active.cancelled else None

    def _ready(self) -> dict[str, Any]:
        if self.problem:
            raise UnavailableError(self.problem)
        if self.about is None or self._process is None:
            raise UnavailableError("The model is still being loaded; ask again in a moment.")
        return self.about

    # ---------------------------------------- the worker

    def _supervise(self) -> None:
        try:
            self._attend()
        except Exception as error:  # without this thread nothing is ever answered, so the page must say why
            with self._lock:
                self._fail(f"The worker cannot be attended to any more ({error!r:.200}); start the explorer again.")
            _log.exception("unexpected")

    def _attend(self) -> None:
        while not self._closing and not self.problem:
            self._begin()
            while not self._closing:
                given = [self._channel, self._questions, self._woken, self._process.sentinel]
                ready = multiprocessing.connection.wait(given, timeout=0.5)
                if self._woken in ready:
                    while self._woken.poll():
                        self._woken.recv()
                ended = False
                for channel, take in ((self._channel, self._message), (self._questions, self._answered)):
                    try:
                        while channel.poll():
                            take(*channel.recv())
                    except (EOFError, OSError):
                        ended = True
                if ended or not self._process.is_alive():
                    break
                with self._lock:
                    if self._kill_at is not None and time.monotonic() > self._kill_at:
                        self._process.kill()
                self._next()
            self._died()

    def _begin(self) -> None:
        from convcircuits.explorer import entry

        with self._lock:
            self._loaded = False
            self._stops = self._context.RawArray("b", _SLOTS)  # a semaphore would outlive a process that is killed
            self._channel, theirs = self._context.Pipe()
            self._questions, answers = self._context.Pipe()
            self._process = self._context.Process(
                target=entry.work, args=(self._opening, theirs, answers, self._stops), daemon=True
            )
            self._process.start()
            theirs.close()
            answers.close()

    def _died(self) -> None:
        """Record that the worker has ended; it is started again unless it never gets ready."""
        if self._closing:
            self._process.kill()  # it would wait for questions for ever
        self._process.join(1)
        code = self._process.exitcode
        with self._lock:
            how = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
            for future in [*self._asked.values()]:  # who waits for one takes it out at once
                with contextlib.suppress(Exception):
                    future.set_exception(
                        UnavailableError("The worker has ended and starts again; ask again in a moment.")
                    )
            self._asked.clear()
            job, others, self._running, self._kill_at = self._active, self._running, [], None
            if job is not None and not self._closing:
                for other in others:
                    if other is not job:
                        self._queue_again(other)
                if job.cancelled:
                    text = f"It was cancelled; it did not stop within {PATIENCE:g} s, so its process was ended."
                    self._end(job, "cancelled", error=text)
                else:
                    text = f"The worker process ended {how}, perhaps because memory ran out. Start the job again."
                    self._end(job, "failed", error=text)
            if not self._loaded and not self._closing and not self.problem:
                self._attempts += 1
                if self._attempts >= _ATTEMPTS:
                    self._fail(
                        f"The worker process ended {how} before the model was loaded, {_ATTEMPTS} times; see the "
                        "terminal."
                    )
            for channel in (self._channel, self._questions):
                channel.close()

    def _message(self, what: str, *rest: Any) -> None:
        with self._lock:
            if what == "ready":
                (about,) = rest
                known = self.about
                self.about, self._loaded, self._attempts = about, True, 0
                self.events.publish("model", {"state": "ready"})
                if known is None or known["key"] != about["key"]:  # photographs may have changed before it started anew
                    self.on_ready()
                return
            if what == "failed" and rest[0] is None:
                self._fail(rest[1])
                return
            job = next((job for job in self._running if job.id == rest[0]), None)
            if job is None:
                return
            if what == "begun":
                job.enter("starting")
                job._begun = True
                self._wait_for_the_cancelled()
                for each in self._running:
                    if each is not job and each._begun:
                        each.enter("paused for a shorter job")
                        self._announce(each)
                self._announce(job)
            elif what == "progress":
                job.progress(*rest[1:])
                self._announce(job)
            elif what == "saved":
                self.events.publish("index", {"images": rest[1]})
            elif what == "remark":
                self._store.remark(rest[1])
            else:
                self._running.remove(job)
                self._wait_for_the_cancelled()
                if what == "done":
                    self._end(job, "done", result=rest[1])
                elif what == "failed":
                    self._end(job, "failed", error=rest[1])
                elif job.cancelled:
                    self._end(job, "cancelled", error="It was cancelled.")
                else:  # another goes first
                    self._queue_again(job)

    def _queue_again(self, job: Job) -> None:
        """Queue a job that has not ended, or end it if it was cancelled."""
        if job.cancelled:
            self._end(job, "cancelled", error="It was cancelled.")
            return
        job.enter("")
        job.state, job._begun = "queued", False
        self._announce(job)

    def _fail(self, problem: str) -> None:
        self.problem = problem
        self.events.publish("model", {"state": "failed", "problem": problem})
        if self.about is None:
            self.on_failed()

    def _answered(self, number: int, answered: bool, answer: Any) -> None:
        future = self._asked.get(number)
        if future is not None and not future.done():
            if answered:
                future.set_result(answer)
            else:
                future.set_exception(ConvCircuitsError(answer))

    def _next(self) -> None:
        with self._lock:
            waiting = [job for job in self._jobs.values() if job.state == "queued"]
            if self.about is None or not waiting:
                return
            job = min(waiting, key=lambda job: (job.turn, job.created))
            last = self._running[-1] if self._running else None
            if last is not None and (job.turn >= last.turn or last.kind == "index" or last.cancelled):
                return  # an index stops for it
            job._slot = min({*range(_SLOTS)} - {other._slot for other in self._running})
            self._stops[job._slot] = 0
            job.state = "running"
            job.enter("starting" if last is None else "waiting for the next step of another job")
            self._running.append(job)
            self._announce(job)
            with contextlib.suppress(OSError):  # a worker that has ended is seen in a moment
                self._channel.send((job.id, job.kind, job.parameters, job._slot))

    def _end(self, job: Job, state: str, *, result: dict[str, Any] | None = None, error: str = "") -> None:
        job.state, job.result, job.error, job.ended = state, result, error, time.time()
        job.since = job.left = job.rate = None
        if state == "done" and not self._store.read_only:
            self._store.trim_derived()
            try:
                self._store.write_job(job.as_dict())
            except ConvCircuitsError as problem:
                self._store.remark(str(problem))
            except (ValueError, TypeError) as problem:  # a number that is not finite, say
                job.state = state = "failed"
                job.result, job.error = None, f"What came of it cannot be recorded: {problem}."
        self._announce(job)
        if state == "done":
            self.events.publish("changed", {"kind": job.kind, **(result or {})})
            self.on_done(job)

    def _announce(self, job: Job) -> None:
        self.events.publish("job", job.as_dict())

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(None)
