"""A recipe: all that makes a circuit again, as the command, a circuit's file and a file of recipes say it."""

import dataclasses
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convcircuits.errors import ConvCircuitsError

DENSITY = 0.05
"""The share of the relevant elements that is kept where nothing says how many."""

SIZES = ("density", "kernels", "reach_r2")
"""The fields that say how many elements are kept: one of them at a time."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the command is told when it finds a circuit.

    Attributes:
        model: As ``--model`` takes it.
        feature: In its text form.
        criterion: By name.
        options: Of the criterion, each as NAME=VALUE.
        granularity: Of the elements.
        density: The share of elements to keep, if one was asked for.
        kernels: How many elements to keep, if it was a number.
        reach_r2: The R2 that the smallest circuit has to reach on validation photographs, if one was asked for.
        weights: A file of weights, if one was given.
        mean: Of the model's inputs by channel, from 0 to 1, if it was given.
        std: Their standard deviation, if it was given.
        images: A folder, or ``"sample"``.
        count: Crops of the training photographs.
        size: Side of the crops in pixels, if it was given.
        held_out: The share of photographs that is held out.
        seed: Of all that is drawn.
    """

    model: str
    feature: str
    criterion: str = "gauss_newton"
    options: tuple[str, ...] = ()
    granularity: str = "kernel"
    density: float | None = None
    kernels: int | None = None
    reach_r2: float | None = None
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    images: str = "sample"
    count: int = 24
    size: int | None = None
    held_out: float = 0.4
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, every field."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, said: Mapping[str, Any], *, where: str = "its recipe") -> "Recipe":
        """Read what ``to_json`` gave.

        Args:
            said: A value for every field.
            where: What it is read from, for messages.

        Raises:
            ConvCircuitsError: If a field is missing, unknown or of another type.
        """
        for name in sorted(said.keys() ^ _KINDS.keys(), key=str):
            raise ConvCircuitsError(f"{where} has {name!r:.80} too much or too little")
        for name, (kind, allowed) in _KINDS.items():
            if not allowed(said[name]):
                raise ConvCircuitsError(f"{name} in {where} is {said[name]!r:.80}; expected {kind}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
        return cls(**fields)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Recipe":
        """Fill up what is given by defaults, ``DENSITY`` where nothing says how many elements are kept."""
        size = {} if any(given.get(name) is not None for name in SIZES) else {"density": DENSITY}
        return cls(**{**given, **size})

    def command(self, out: Path | str) -> str | None:
        """Return the command that finds the circuit again, every word quoted; None where a word cannot be shown.

        Args:
            out: The file that it writes.
        """
        words = ["convcircuits", "find", "--model", self.model, "--feature", self.feature]
        words += ["--criterion", self.criterion]
        words += [word for text in self.options for word in ("--option", text)]
        words += [] if self.granularity == "kernel" else ["--granularity", self.granularity]
        for name in (*SIZES, "weights", "mean", "std", "images", "count", "size", "held_out", "seed"):
            value = getattr(self, name)
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [] if value is None else [f"--{name.replace('_', '-')}", text]
        words += ["--out", str(out)]
        return shlex.join(words) if all(word.isprintable() for word in words) else None


def read_recipes(path: Path, given: Mapping[str, Any]) -> list[tuple[Recipe, str | None]]:
    """Read a TOML file of recipes: fields that all share, then a table ``[[circuit]]`` with those of each.

    A circuit's own fields come before shared ones, and what is given before both. ``out`` may name a circuit's file.

    Args:
        path: The file.
        given: Fields that were given elsewhere.

    Returns:
        Each recipe, and its ``out`` if it has one.

    Raises:
        ConvCircuitsError: If the file cannot be read, says nothing of circuits, or has a field that is missing, unknown
            or of another type.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConvCircuitsError(f"{path} cannot be read as a file of recipes: {reason}.") from error
    circuits = said.pop("circuit", None)
    if not isinstance(circuits, list) or not circuits or not all(isinstance(one, dict) for one in circuits):
        raise ConvCircuitsError(
            f"{path} names no circuit; begin each with a line [[circuit]], then say its feature, for example "
            'feature = "features.14:166".'
        )
    recipes = []
    for number, own in enumerate(circuits, start=1):
        where = f"circuit {number} of {path}"
        fields = _over(_over(said, own), given)
        out = fields.pop("out", None)
        if out is not None and not is_text(out):
            raise ConvCircuitsError(f"out in {where} is {out!r:.80}; expected the name of a .safetensors file.")
        for name in fields:
            if name not in _KINDS:
                raise ConvCircuitsError(f"{where} says {name!r:.80}, which no recipe has; it may say {_listed()}.")
        for name in ("model", "feature"):
            if name not in fields:
                raise ConvCircuitsError(f"{where} says no {name}.")
        recipe = Recipe.of(fields)
        recipes.append((Recipe.from_json(recipe.to_json(), where=where), out))
    return recipes


def _listed() -> str:
    return ", ".join([*_KINDS, "out"])


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Put fields over others; any that says how many elements are kept takes the place of all that do."""
    sized = any(name in above for name in SIZES)
    return {**{k: v for k, v in below.items() if not (sized and k in SIZES)}, **above}


# ---------------------------------------- types

LONGEST_TEXT = 100_000
"""Characters of a text in a file, at most."""

Kind = tuple[str, Callable[[Any], bool]]
"""What a field holds, in words, and whether a value is that."""


def is_text(value: Any) -> bool:
    """Return whether a value is text of a length that there may be."""
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def is_whole(value: Any, low: int = -(1 << 64), high: int = 1 << 64) -> bool:
    """Return whether a value is a whole number from low to high."""
    return type(value) is int and low <= value <= high


def whole(low: int, high: int) -> Callable[[Any], bool]:
    """Return the same as a function of the value."""
    return lambda value: is_whole(value, low, high)


def is_list_of(value: Any, allowed: Callable[[Any], bool]) -> bool:
    """Return whether a value is a list of what is allowed."""
    return isinstance(value, (list, tuple)) and all(map(allowed, value))


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1


def _are_channels(value: Any) -> bool:
    return is_list_of(value, lambda one: type(one) in (int, float) and 0 <= one <= 1) and len(value) in (1, 3)


def _or_none(allowed: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or allowed(value)


TEXT: Kind = ("text", is_text)
TEXTS: Kind = ("a list of texts", lambda value: is_list_of(value, is_text))
_KINDS: dict[str, Kind] = {
    "model": TEXT,
    "feature": TEXT,
    "criterion": TEXT,
    "options": TEXTS,
    "granularity": TEXT,
    "density": ("a share or nothing", _or_none(_is_share)),
    "kernels": ("a whole number or nothing", _or_none(whole(0, 1 << 40))),
    "reach_r2": ("a share or nothing", _or_none(_is_share)),
    "weights": ("text or nothing", _or_none(is_text)),
    "mean": ("one number from 0 to 1 or three, or nothing", _or_none(_are_channels)),
    "std": ("one number from 0 to 1 or three, or nothing", _or_none(_are_channels)),
    "images": TEXT,
    "count": ("a whole number from 1", whole(1, 1 << 20)),
    "size": ("a number of pixels or nothing", _or_none(whole(1, 1 << 14))),
    "held_out": ("a share", _is_share),
    "seed": ("a whole number from 0", whole(0, (1 << 32) - 1)),
}
