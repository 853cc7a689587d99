"""The command's terminal: progress reports, and how the command ends on errors, Ctrl-C, a full disk or a closed pipe.

This module imports little, because Ctrl-C must work while the rest of the command is still being imported.
"""

import codecs
import contextlib
import errno
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, TypeVar, cast

from convcircuits.errors import ConvCircuitsError, options_written

_T = TypeVar("_T")
EVERY = 5.0
"""Seconds between progress lines if no terminal shows a bar."""
_INTERRUPTED = "interrupted; nothing was left half written"
_IN_ASCII = {"²": "2", "·": "-", "–": "-", "—": "-", "…": "...", "→": "->", "×": "x", "±": "+-", "≤": "<=", "≥": ">="}


def run(load: Callable[[], Callable[..., object]]) -> NoReturn:
    """Run a typer application and exit.

    The exit code is the application's own; 1 after an error, reported in one line, or if standard output cannot be
    written; 130 after Ctrl-C, reported in one line; 141 if the reader of the output has closed the pipe.

    Args:
        load: Imports the application and returns it.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        _replace_unencodable(getattr(sys, name))
    given, ending = sys.stdout, _Ending()
    output, messages = cast(TextIO, _Output(given)), cast(TextIO, _Output(sys.stderr, needed=False))
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(messages),
        options_written(_as_option),
        _errors_as_lines(ending),
        _TICKER.running(),
    ):
        try:
            application = load()
            with _interruptible():
                application(prog_name="convcircuits")
        except SystemExit as end:
            ending.code = end.code
    with _errors_as_lines(ending):
        output.flush()
    sys.exit(ending.code)


class Report:
    """A ``progress`` callback for the library, called with the steps done and their total (None if unknown)."""

    def phase(self, description: str) -> None:
        """Announce a new phase, whose steps are counted from zero."""
        _TICKER.begin(description)

    def __call__(self, done: int, total: int | None) -> None:
        """Report the number of steps done."""
        _TICKER.update(done, total)


class _Bar(Report):
    """A report that also updates a rich progress bar."""

    def __init__(self, bar: Any, description: str) -> None:
        self._bar, self._task = bar, bar.add_task(description, total=None)

    def phase(self, description: str) -> None:
        super().phase(description)
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(description, total=None)

    def __call__(self, done: int, total: int | None) -> None:
        super().__call__(done, total)
        self._bar.update(self._task, completed=done, total=total)


@contextmanager
def progress(description: str) -> Iterator[Report]:
    """Show the progress of a task: as a bar in a terminal, otherwise as a line every few seconds.

    Yields:
        The callback to pass to the library as ``progress``.
    """
    _TICKER.begin(description)
    try:
        if not _is_terminal():
            yield Report()
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with _TICKER.silent(), Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            yield _Bar(bar, description)
    finally:
        _TICKER.begin("working")


def silence() -> contextlib.AbstractContextManager[None]:
    """Return a context in which no progress is printed, for a command that only waits to be ended."""
    return _TICKER.silent()


class _Ticker:
    """Prints the current task to standard error every few seconds, from a separate thread, while no bar is shown."""

    def __init__(self) -> None:
        self._doing, self._done = "starting", ""
        self._stop, self._silent = threading.Event(), False

    def begin(self, description: str) -> None:
        self._doing, self._done = description, ""

    def update(self, done: int, total: int | None) -> None:
        self._done = f": {done:,}" + ("" if total is None else f" of {total:,}")

    @contextmanager
    def silent(self) -> Iterator[None]:
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    @contextmanager
    def running(self) -> Iterator[None]:
        self.begin("starting")
        self._stop.clear()
        thread = threading.Thread(target=self._tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _tick(self) -> None:
        start = time.monotonic()
        while not self._stop.wait(EVERY):
            if self._silent:
                continue
            try:
                sys.stderr.write(f"{self._doing}{self._done} ({time.monotonic() - start:.0f} s)\n")
                sys.stderr.flush()
            except (OSError, ValueError):  # standard error is closed
                return


_TICKER = _Ticker()


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


# ---------------------------------------- how the command ends


class _Interrupted(BaseException):
    """Raised on Ctrl-C in place of ``KeyboardInterrupt``, which frameworks handle in their own ways."""


class _Unwritable(BaseException):
    """Raised if standard output cannot be written."""


class _Output:
    """A standard stream. A failed write ends the command or, if the stream is not needed, is ignored."""

    def __init__(self, stream: TextIO, *, needed: bool = True) -> None:
        self._stream, self._needed = stream, needed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._attempt(lambda: self._stream.write(text))

    def flush(self) -> None:
        return self._attempt(self._stream.flush)

    def _attempt(self, act: Callable[[], _T]) -> _T:
        try:
            return act()
        except OSError as error:
            # Discard what is left in the buffer, or the interpreter fails on it at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._needed:
                raise _Unwritable from error
            return act()


def _as_option(name: str, value: Any, of_criterion: bool) -> str:
    said = value if isinstance(value, str) else str(value).lower()
    if of_criterion:
        return f"--option {name}={'VALUE' if value is None else shlex.quote(said)}"
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None else f"{flag} {shlex.quote(said)}"


class _Ending:
    code: Any = 0


@contextmanager
def _errors_as_lines(ending: _Ending) -> Iterator[None]:
    """Print whatever ends the command in one line, and record the exit code."""
    try:
        yield
    except ConvCircuitsError as error:
        ending.code = _fail(f"error: {error}", 1)
    except _Interrupted:
        ending.code = _fail(_INTERRUPTED, 130)
    except _Unwritable as error:
        cause = error.__cause__
        assert isinstance(cause, OSError)
        closed = cause.errno == errno.EPIPE
        ending.code = 141 if closed else _fail(f"error: standard output cannot be written: {cause.strerror}.", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        ending.code = _fail(
            "error: out of memory; run fewer images at once (--batch-size) or smaller ones (--size).", 1
        )


def _fail(text: str, code: int) -> int:
    one_line = "".join(c if c.isprintable() else " " if c in "\n\t" else repr(c)[1:-1] for c in text)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(one_line + "\n")
        sys.stderr.flush()
    return code


def end_at_once(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Exit where there is nothing to clean up. An exception during an import may be swallowed or printed."""
    with contextlib.suppress(OSError):
        os.write(2, f"{_INTERRUPTED}\n".encode())
    os._exit(130)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise an exception on Ctrl-C, so that half-written files are removed."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        if _imports(frame):
            end_at_once(number, frame)
        signal.signal(signal.SIGINT, end_at_once)  # a second Ctrl-C does not wait
        raise _Interrupted

    before = signal.getsignal(signal.SIGINT)
    if before not in (signal.default_int_handler, end_at_once):  # the parent process had Ctrl-C ignored
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _imports(frame: FrameType | None) -> bool:
    """Return whether a module is being imported, as commands do when they start."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _replace_unencodable(stream: TextIO) -> None:
    """Write characters that the encoding lacks as ASCII equivalents or escapes, instead of raising an error."""
    codecs.register_error("convcircuits", _in_ascii)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="convcircuits")


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end
