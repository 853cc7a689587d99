"""The one error that every mistake of a caller ends in."""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class ConvCircuitsError(ValueError):
    """An error whose message names what was given, what was expected and what to do."""


def _as_argument(name: str, value: Any, _of_criterion: bool) -> str:
    return name if value is None else f"{name}={value!r}"


_WRITTEN: ContextVar[Callable[[str, Any, bool], str]] = ContextVar("written", default=_as_argument)


def option(name: str, value: Any = None, *, of_criterion: bool = False) -> str:
    """Return an option of the library as whoever reads a message gives it, with its value if there is one.

    That is ``density=0.1`` in Python and ``--density 0.1`` to the command, which says so by ``options_written``.
    """
    return _WRITTEN.get()(name, value, of_criterion)


@contextmanager
def options_written(how: Callable[[str, Any, bool], str]) -> Iterator[None]:
    """Have ``option`` write by a function of the name, the value (None for none), and whether it is a criterion's."""
    token = _WRITTEN.set(how)
    try:
        yield
    finally:
        _WRITTEN.reset(token)


LARGEST = 2**63 - 1
"""The largest number that torch counts with."""


def whole_number(name: str, value: Any, low: int, high: int = LARGEST) -> int:
    """Return a whole number of any kind (NumPy's too) as an int.

    Raises:
        ConvCircuitsError: If it is no whole number or outside low to high.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        span = f"from {low}" if high == LARGEST and (number is None or number < low) else f"from {low} to {high}"
        raise ConvCircuitsError(f"{name} is a whole number {span}; got {value!r}.")
    return number
