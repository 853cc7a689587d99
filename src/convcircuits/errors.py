"""The one error that every mistake of a caller ends in."""

import operator
from typing import Any


class ConvCircuitsError(ValueError):
    """Say what was given, what was expected and what to do, in one message."""


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
