"""What provenance may hold: JSON values of known types and bounded size, which readers of a file can rely on."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from convcircuits.errors import ConvCircuitsError
from convcircuits.values.recipe import TEXT, TEXTS, Kind, Recipe, is_list_of, is_text, is_whole, whole

_DEEPEST, _MOST = 200, 1_000_000


def check_provenance(said: Any) -> None:
    """Check that provenance holds only JSON values, and known keys only values of their type.

    Unknown keys may hold any JSON value. The provenance of source circuits, under ``"inside"`` and ``"from"``, is
    checked in the same way.

    Raises:
        ConvCircuitsError: If it is nested too deep, too large or has a value of the wrong type.
    """
    _check_plain(said)
    waiting = [said]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict):
            raise ConvCircuitsError(f"its provenance is {one!r:.80}; expected an object")
        for key, (kind, allowed) in _KNOWN.items():
            if key in one and not allowed(one[key]):
                raise ConvCircuitsError(f"{key} in its provenance is {one[key]!r:.80}; expected {kind}")
        if "recipe" in one:
            Recipe.from_json(one["recipe"])
        waiting += [one[key] for key in ("inside",) if key in one] + one.get("from", [])


def _check_plain(said: Any) -> None:
    count, level = 0, [said]
    for _ in range(_DEEPEST):
        count += len(level)
        if count > _MOST:
            raise ConvCircuitsError(f"its provenance has more than {_MOST:,} values")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.keys()
                inner += value.values()
                if not all(isinstance(key, str) for key in value):
                    raise ConvCircuitsError("a key in its provenance is not text")
            elif isinstance(value, (list, tuple)):
                inner += value
            elif not (value is None or type(value) is bool or _is_finite(value) or is_text(value) or is_whole(value)):
                raise ConvCircuitsError(f"its provenance holds {value!r:.80}, a {type(value).__name__}; expected JSON")
        if not inner:
            return
        level = inner
    raise ConvCircuitsError(f"its provenance is nested more than {_DEEPEST} levels deep")


_OF_REFITS = ("ridge", "toward", "positive", "positions")
"""Options that a descent has in common with the refits after its cuts."""


def how_found(said: Mapping[str, Any]) -> str:
    """Return how a circuit was found and what that cost, as a line, from its provenance; empty if that is not known."""
    cost, images = said.get("cost", {}), said.get("images", {}).get("count")
    if "criterion" not in said or not cost or not images:
        return ""
    text, schedule = f"found by {said['criterion']}, seed {said.get('seed', 0)}", said.get("schedule")
    if schedule is not None:
        sizes = schedule["sizes"]
        text += f", in {len(sizes)} cut{'s' * (len(sizes) != 1)}, the first to {sizes[0]:,} kernels"
        how = [f"{name} {schedule[name]:.3g}" for name in ("start", "ratio") if name in schedule]
        text += f" ({', '.join(how)})" if how else ""
    text += fitted_later(said)
    ways = {
        "forward": "forward",
        "backward": "backward",
        "trained": "both ways in training",
        "polished": "both ways in L-BFGS",
    }
    ran = [f"{cost[key]:,} {way}" for key, way in ways.items() if cost.get(key)]
    text += f"; images run: {_listed(ran)}"
    if said.get("calibration", {}).get("images", said["images"]) != said["images"]:
        return text  # it was fitted on other images, and what ran on which is not known
    passes = [f"{cost[key] / images:.4g}" for key in ways if cost.get(key)]
    return f"{text}, that is {_listed(passes)} pass{'es' * (passes != ['1'])} over its {images:,} images"


def fitted_later(said: Mapping[str, Any]) -> str:
    """Return, in words, how the constants of a circuit were changed after it was found; empty if they were not."""
    fit, schedule = said.get("calibration", {}), said.get("schedule")
    method = fit.get("method", "none")
    if schedule is None:
        return "" if method == "none" else f", then refitted (method {method})"
    if method == "none":
        return ", then its constants removed"
    changed = any(fit[key] != schedule[key] for key in _OF_REFITS if key in fit and key in schedule)
    changed |= method != "kernels" or ("steps" in schedule and "trained" not in fit) or "weights" in fit
    changed |= any(key in fit and key in said and fit[key] != said[key] for key in ("images", "seed"))
    return f", then refitted (method {method})" if changed else ""


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# ---------------------------------------- types


def _is_finite(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _is_record(value: Any, kinds: Mapping[str, Callable[[Any], bool]]) -> bool:
    return isinstance(value, dict) and value.keys() == kinds.keys() and all(kinds[key](value[key]) for key in kinds)


def _is_shape(value: Any) -> bool:
    return is_list_of(value, whole(1, 1 << 16)) and len(value) == 3 and value[0] * value[1] * value[2] <= 1 << 27


def _are_sizes(value: Any) -> bool:
    return is_list_of(value, lambda one: isinstance(one, dict) and all(map(is_whole, one.values()))) and len(value) > 0


def _is_number(value: Any, low: float = 0.0, high: float = math.inf) -> bool:
    return type(value) in (int, float) and low <= value <= high and math.isfinite(value)


def _is_option(value: Any) -> bool:
    return value is None or type(value) is bool or _is_number(value)


def _plain(schedule: Mapping[str, Any]) -> list[Any]:
    return [value for key, value in schedule.items() if key != "sizes"]


def _is_calibration(value: Any) -> bool:
    return isinstance(value, dict) and all(_FITTED[key](value[key]) for key in value.keys() & _FITTED.keys())


_IMAGES: Mapping[str, Callable[[Any], bool]] = {"count": whole(0, 1 << 50), "hash": is_text}
_TRAINED: Mapping[str, Callable[[Any], bool]] = {
    "steps": whole(0, 1 << 40),
    "final": whole(0, 1 << 40),
    "rate": lambda value: _is_number(value, 1e-30, 1),
    "batch": whole(1, 1 << 40),
    "rectified": lambda value: _is_number(value, 0, 1),
    "tolerance": lambda value: _is_number(value, 0, 1),
    "polish": whole(0, 1 << 40),
    "images": whole(1, 1 << 50),
}
_FITTED: Mapping[str, Callable[[Any], bool]] = {
    "method": lambda value: value in ("kernels", "filters", "mean", "none"),
    "ridge": _is_number,
    "toward": lambda value: type(value) in (int, float) and value in (0, 1),
    "positive": lambda value: type(value) is bool,
    "positions": lambda value: value is None or is_whole(value, 1, 1 << 50),
    "seed": whole(0, (1 << 32) - 1),
    "images": lambda value: _is_record(value, _IMAGES),
    "weights": lambda value: is_list_of(value, _is_number),
    "trained": lambda value: isinstance(value, dict) and _is_record({"polish": 0} | value, _TRAINED),
}

_KNOWN: dict[str, Kind] = {
    "model": TEXT,
    "weights": TEXT,
    "architecture": TEXT,
    "feature": TEXT,
    "criterion": TEXT,
    "granularity": TEXT,
    "made_by": TEXT,
    "notes": TEXTS,
    "seed": ("a whole number", is_whole),
    "elements": ("a whole number", whole(0, 1 << 40)),
    "input_shape": ("the shape (C, H, W) of an image", _is_shape),
    "versions": ("texts by name", lambda value: isinstance(value, dict) and all(map(is_text, value.values()))),
    "options": ("values by name", lambda value: isinstance(value, dict)),
    "laws": ("figures by law", lambda value: isinstance(value, dict)),
    "effective": ("true or false", lambda value: type(value) is bool),
    "asked": ("a size by name", lambda value: isinstance(value, dict)),
    "calibration": (
        "how constants were fitted: method, ridge, images, ... as refit and find write them",
        _is_calibration,
    ),
    "path": (
        "the sizes of a path and a number",
        lambda v: _is_record(v, {"asked": _are_sizes, "number": whole(0, 1000)}),
    ),
    "schedule": (
        "the sizes of a descent and its options",
        lambda v: isinstance(v, dict) and is_list_of(v.get("sizes"), is_whole) and all(map(_is_option, _plain(v))),
    ),
    "cost": ("numbers of images", lambda v: isinstance(v, dict) and all(is_whole(one, 0) for one in v.values())),
    "images": ("a count and a hash", lambda v: _is_record(v, _IMAGES)),
    "photographs": (
        "the names of the photographs for finding it, for choosing its size and held out",
        lambda v: _is_record(v, dict.fromkeys(("found_on", "validated_on", "held_out"), TEXTS[1])),
    ),
    "recipe": ("an object", lambda value: isinstance(value, dict)),
    "inside": ("provenance", lambda value: isinstance(value, dict)),
    "from": ("a list of provenance", lambda value: isinstance(value, list)),
}
