"""What provenance may hold: JSON values of known types and sizes, so that whoever reads a file can rely on them."""

import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from convcircuits.errors import ConvCircuitsError
from convcircuits.feature import Feature

_DEEPEST, _LONGEST_TEXT, _MOST = 200, 100_000, 1_000_000


@dataclass(frozen=True)
class Recipe:
    """What the command was told when it found a circuit: with the feature, all that makes it again.

    Attributes:
        model: As ``--model`` takes it.
        weights: A file of weights, if one was given.
        images: A folder, or ``"sample"``.
        count: Crops of the training photographs.
        size: Side of the crops in pixels, if it was given.
        held_out: The share of photographs that is held out.
        seed: Of all that is drawn.
        criterion: By name.
        granularity: Of the units.
        options: Of the criterion, each as NAME=VALUE.
        density: The share of units that was asked for, if one was.
        kernels: How many units were asked for, if it was a number.
    """

    model: str
    weights: str | None
    images: str
    count: int
    size: int | None
    held_out: float
    seed: int
    criterion: str
    granularity: str
    options: tuple[str, ...]
    density: float | None
    kernels: int | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dataclasses.asdict(self) | {"options": list(self.options)}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Recipe":
        """Read what ``to_json`` gave.

        Raises:
            ConvCircuitsError: If a field is missing, unknown or of another type.
        """
        if said.keys() != _RECIPE.keys():
            differing = sorted(said.keys() ^ _RECIPE.keys(), key=str)
            raise ConvCircuitsError(f"its recipe has {differing[0]!r:.80} too much or too little")
        for name, (kind, allowed) in _RECIPE.items():
            if not allowed(said[name]):
                raise ConvCircuitsError(f"{name} in its recipe is {said[name]!r:.80}; expected {kind}")
        return cls(**{**said, "options": tuple(said["options"])})

    def command(self, feature: Feature) -> str | None:
        """Return the command that finds a circuit again, every word quoted; None where a word cannot be shown."""
        words = ["convcircuits", "find", "--model", self.model, "--feature", str(feature)]
        words += ["--criterion", self.criterion]
        words += [word for text in self.options for word in ("--option", text)]
        words += [] if self.granularity == "kernel" else ["--granularity", self.granularity]
        words += ["--density", str(self.density)] if self.kernels is None else ["--kernels", str(self.kernels)]
        for name in ("weights", "images", "count", "size", "held_out", "seed"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        words += ["--out", f"{feature.slug}.safetensors"]
        return shlex.join(words) if all(word.isprintable() for word in words) else None


def check_provenance(said: Any) -> None:
    """Refuse provenance that holds other than JSON values, or values of other types than its keys say.

    Keys that are not known hold any JSON values. Those of a circuit that another was made of, ``"inside"`` and
    ``"from"``, are checked alike.

    Raises:
        ConvCircuitsError: If it is too deep, too large or of other types.
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
                    raise ConvCircuitsError("a key in its provenance is no text")
            elif isinstance(value, (list, tuple)):
                inner += value
            elif not (value is None or type(value) is bool or _is_finite(value) or _is_text(value) or _is_whole(value)):
                raise ConvCircuitsError(f"its provenance holds {value!r:.80}, of type {type(value).__name__}")
        if not inner:
            return
        level = inner
    raise ConvCircuitsError(f"its provenance is nested more than {_DEEPEST} deep")


# ---------------------------------------- types


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _is_finite(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _is_whole(value: Any, low: int = -(1 << 64), high: int = 1 << 64) -> bool:
    return type(value) is int and low <= value <= high


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: _is_whole(value, low, high)


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1


def _is_list_of(value: Any, allowed: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(allowed, value))


def _is_record(value: Any, kinds: Mapping[str, Callable[[Any], bool]]) -> bool:
    return isinstance(value, dict) and value.keys() == kinds.keys() and all(kinds[key](value[key]) for key in kinds)


def _or_none(allowed: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or allowed(value)


def _is_shape(value: Any) -> bool:
    return _is_list_of(value, _whole(1, 1 << 16)) and len(value) == 3 and value[0] * value[1] * value[2] <= 1 << 27


_TEXT = ("text", _is_text)
_TEXTS = ("a list of texts", lambda value: _is_list_of(value, _is_text))
_Kind = tuple[str, Callable[[Any], bool]]
_RECIPE: dict[str, _Kind] = {
    "model": _TEXT,
    "weights": ("text or nothing", _or_none(_is_text)),
    "images": _TEXT,
    "count": ("a whole number from 1", _whole(1, 1 << 20)),
    "size": ("a number of pixels or nothing", _or_none(_whole(1, 1 << 14))),
    "held_out": ("a share", _is_share),
    "seed": ("a whole number from 0", _whole(0, (1 << 32) - 1)),
    "criterion": _TEXT,
    "granularity": _TEXT,
    "options": _TEXTS,
    "density": ("a share or nothing", _or_none(_is_share)),
    "kernels": ("a whole number or nothing", _or_none(_whole(1, 1 << 40))),
}
_KNOWN: dict[str, _Kind] = {
    "model": _TEXT,
    "weights": _TEXT,
    "feature": _TEXT,
    "criterion": _TEXT,
    "granularity": _TEXT,
    "made_by": _TEXT,
    "notes": _TEXTS,
    "seed": ("a whole number", _is_whole),
    "kernels": ("a whole number", _whole(0, 1 << 40)),
    "input_shape": ("the shape (C, H, W) of an image", _is_shape),
    "versions": ("texts by name", lambda value: isinstance(value, dict) and all(map(_is_text, value.values()))),
    "options": ("values by name", lambda value: isinstance(value, dict)),
    "laws": ("figures by law", lambda value: isinstance(value, dict)),
    "asked": ("a density or a number of kernels", lambda value: isinstance(value, dict)),
    "images": ("a count and a hash", lambda v: _is_record(v, {"count": _whole(0, 1 << 50), "hash": _is_text})),
    "photographs": (
        "the names of those it was found on and of those held out",
        lambda v: _is_record(v, {key: lambda names: _is_list_of(names, _is_text) for key in ("found_on", "held_out")}),
    ),
    "recipe": ("an object", lambda value: isinstance(value, dict)),
    "inside": ("provenance", lambda value: isinstance(value, dict)),
    "from": ("a list of provenance", lambda value: isinstance(value, list)),
}
