"""What a caller asks for: a criterion with its options, and a size, checked before any work is done."""

import dataclasses
import inspect
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from convcircuits.circuits.budgets import Drawable, Effective, Size
from convcircuits.circuits.criteria import CRITERIA, DESCENTS, Criterion
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.values.circuit import Circuit
from convcircuits.values.drawable import FAN_IN, FILTERS
from convcircuits.values.tables import suggest

_FORMER = {"positive": False, "polish": 0, "tolerance": 0.1}
"""Defaults of descents when files did not say these options yet."""


def criterion_named(criterion: str | Criterion) -> Criterion:
    """Return a criterion by its name in ``CRITERIA``; a function is one already.

    Raises:
        ConvCircuitsError: If there is none of this name; the message suggests similar names.
    """
    if callable(criterion):
        return criterion
    if not isinstance(criterion, str) or criterion not in CRITERIA:
        raise ConvCircuitsError(f"There is no criterion {criterion!r}. {suggest(str(criterion), CRITERIA)}")
    return CRITERIA[criterion]


def name_of(criterion: str | Criterion) -> str:
    """Return the name of a criterion, for messages and provenance."""
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", repr(criterion))


def is_descent(function: Criterion) -> bool:
    """Return whether a criterion descends through circuits of several sizes, each refitted."""
    return function in DESCENTS


def check_effective(function: Criterion, criterion: str | Criterion, effective: object) -> None:
    """Check that a criterion can keep other kernels than effective ones, if that is asked for.

    Raises:
        ConvCircuitsError: If it cannot, or ``effective`` is not true, false or None.
    """
    if effective not in (None, True, False):
        raise ConvCircuitsError(f"effective is true or false; got {effective!r}.")
    if effective is False and is_descent(function):
        raise ConvCircuitsError(
            f"{name_of(criterion)} keeps only effective kernels; leave out effective=False, or choose a criterion "
            f"that does not descend, such as {option('criterion', 'gauss_newton')}."
        )


def needs_budget(function: Criterion) -> bool:
    """Return whether a criterion must know how many elements to keep, so that only ``find`` can run it."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len([p for p in inspect.signature(function).parameters.values() if p.kind in positional]) > 1


def check_options(function: Criterion, criterion: str | Criterion, options: Mapping[str, Any]) -> None:
    """Check that a criterion has all options that were given, and gets all that it needs.

    Raises:
        ConvCircuitsError: If not.
    """
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    known = {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for name in options:
        if name not in known:
            raise ConvCircuitsError(f"{name_of(criterion)} has no option {name!r}. {suggest(name, known)}")
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise ConvCircuitsError(f"{name_of(criterion)} needs the option {option(name, of_criterion=True)}.")
        if isinstance(parameter.default, bool) and not isinstance(options.get(name, True), bool):
            got = repr(options[name])
            raise ConvCircuitsError(f"The option {name} of {name_of(criterion)} is true or false; got {got}.")


def budget(relevant: int | None, density: object, kernels: int | None, granularity: str) -> int:
    """Return the number of elements that a density or a number asks for, of the relevant ones.

    Raises:
        ConvCircuitsError: If it is out of range; without the number of relevant elements, if it is in any case.
    """
    if (density is None) == (kernels is None):
        raise ConvCircuitsError(
            f"Give either {option('density')}, a share in (0, 1], or {option('kernels')}, a number."
        )
    if density is not None:
        number = density if isinstance(density, numbers.Real) else math.nan
        share = math.nan if number is True else float(number)
        if not 0 < share <= 1:
            raise ConvCircuitsError(f"{option('density')} must be in (0, 1]; got {density!r}.")
        return max(1, round(share * (relevant or 0)))
    count = whole_number(option("kernels"), kernels, 1)
    if relevant is not None and count > relevant:
        raise ConvCircuitsError(f"{count} {granularity}s were requested, but only {relevant} have a score.")
    return count


def several(density: object, kernels: object) -> list[tuple[Any, Any]]:
    """Return each size of a path, as a density or a number of kernels; the other is None."""
    if kernels is None and isinstance(density, Sequence) and density:
        return [(share, None) for share in density]
    if density is None and isinstance(kernels, Sequence) and kernels:
        return [(None, number) for number in kernels]
    return [(density, kernels)]


def drawable_size(
    density: object,
    kernels: object,
    filters: int | None,
    fan_in: int | None,
    drawable: bool,
    granularity: str,
) -> Drawable | None:
    """Return the most filters of a layer and kernels of a filter, if that is the size that was given.

    Raises:
        ConvCircuitsError: If another size was given too, one of the two numbers is missing or invalid, or the elements
            are not kernels.
    """
    if not isinstance(drawable, bool):
        raise ConvCircuitsError(f"drawable is true or false; got {drawable!r}.")
    if not drawable and filters is None and fan_in is None:
        return None
    given = option("drawable") if drawable else f"{option('filters')} with {option('fan_in')}"
    others = {"density": density, "kernels": kernels}
    others |= {"filters": filters, "fan_in": fan_in} if drawable else {}
    if extra := [option(name) for name, value in others.items() if value is not None]:
        raise ConvCircuitsError(f"{given} sets the size, so it does not go with {' and '.join(extra)}.")
    check_kernels(given, granularity)
    if drawable:
        return Drawable(FILTERS, FAN_IN)
    if filters is None or fan_in is None:
        raise ConvCircuitsError(
            f"Give both {option('filters')}, a number for each layer, and {option('fan_in')}, one for each filter."
        )
    return Drawable(whole_number(option("filters"), filters, 1), whole_number(option("fan_in"), fan_in, 1))


def check_kernels(name: str, granularity: str) -> None:
    """Check that the elements are kernels.

    Raises:
        ConvCircuitsError: If they are not; the message says that ``name`` needs it.
    """
    if granularity != "kernel":
        raise ConvCircuitsError(f"{name} needs granularity 'kernel'; got {granularity!r}.")


def as_json(value: Any) -> Any:
    """Return the value of an option as a JSON value: a circuit as its provenance, what is not plain as its ``repr``."""
    if isinstance(value, Circuit):
        return dict(value.provenance)
    if hasattr(value, "item") and not isinstance(value, Tensor):  # a NumPy number
        value = value.item()
    plain = isinstance(value, (str, int, type(None))) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else repr(value)


def schedule_of(function: Criterion, options: Mapping[str, Any], start: float) -> dict[str, Any]:
    """Return all options of a descent, with the defaults that apply, as JSON values.

    Args:
        function: A criterion that descends.
        options: The options that were given.
        start: The default share of its first circuit.
    """
    found = {name: as_json(options.get(name, default)) for name, default in _defaults(function).items()}
    return found | {"start": start if found["start"] is None else found["start"]}


def options_again(function: Criterion, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that find a circuit again: those that were given, and those that had other defaults then.

    Args:
        function: The criterion that found it.
        provenance: How the circuit was found.
    """
    defaults, given = _defaults(function), dict(provenance.get("options", {}))
    if "schedule" not in provenance:
        return given
    trained = provenance.get("calibration", {}).get("trained", {})
    then = {**_FORMER, **trained, **provenance["schedule"]}
    known = {name: value for name, value in then.items() if name in defaults and name != "start"}
    return {name: value for name, value in known.items() if value != as_json(defaults[name])} | given


def _defaults(function: Criterion) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def size_asked(asked: Mapping[str, Any]) -> Size:
    """Return the size that a descent was asked for, from ``asked_for``."""
    return Drawable(asked["filters"], asked["fan_in"]) if "fan_in" in asked else Effective(asked["kernels"])


def asked_for(size: Size, density: float | None) -> dict[str, Any]:
    """Return the size that was asked for, as JSON values."""
    return ({} if density is None else {"density": density}) | dataclasses.asdict(size)
