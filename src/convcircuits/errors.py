"""The single exception for caller mistakes, and the checks that raise it."""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class ConvCircuitsError(ValueError):
    """A caller's mistake; the message names what was given, what was expected and what to do."""


def _as_argument(name: str, value: Any, _of_criterion: bool) -> str:
    return name if value is None else f"{name}={value!r}"


_WRITTEN: ContextVar[Callable[[str, Any, bool], str]] = ContextVar("written", default=_as_argument)


def option(name: str, value: Any = None, *, of_criterion: bool = False) -> str:
    """Return an option, with its value if given, as the reader of a message would write it.

    That is ``density=0.1`` in Python, and ``--density 0.1`` in the command, which arranges it with ``options_written``.
    """
    return _WRITTEN.get()(name, value, of_criterion)


@contextmanager
def options_written(how: Callable[[str, Any, bool], str]) -> Iterator[None]:
    """Set how ``option`` writes: a function of the name, the value or None, and whether it is a criterion's option."""
    token = _WRITTEN.set(how)
    try:
        yield
    finally:
        _WRITTEN.reset(token)


LARGEST = 2**63 - 1
"""The largest integer of torch."""


def whole_number(name: str, value: Any, low: int, high: int = LARGEST) -> int:
    """Return a whole number of any integer type, including NumPy's, as an int.

    Raises:
        ConvCircuitsError: If the value is not a whole number from ``low`` to ``high``.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        span = f"from {low}" if high == LARGEST and (number is None or number < low) else f"from {low} to {high}"
        raise ConvCircuitsError(f"{name} must be a whole number {span}; got {value!r}.")
    return number
