"""A recipe: everything needed to find a circuit again, shared by the command, circuit files and recipe files."""

import dataclasses
import json
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convcircuits.errors import ConvCircuitsError, option

DENSITY = 0.05
"""The share of relevant elements to keep if no size is given."""

BEST = "best"
"""The value of ``refit`` for what does best on validation photographs."""

SIZES = ("density", "kernels", "reach_r2", "filters", "fan_in", "drawable")
"""The fields that set how many elements are kept; a recipe has one of them, or ``filters`` and ``fan_in``."""


def default_criterion(granularity: str) -> str:
    """Return the criterion that ``find`` uses if none is given: the best one measured that such elements can have."""
    return "progressive" if granularity == "kernel" else "gauss_newton"


def check_size(given: Mapping[str, Any]) -> None:
    """Check that the size of a circuit is given in at most one way.

    Args:
        given: Fields of a recipe; those that are missing, None or False are not given.

    Raises:
        ConvCircuitsError: If it is given in several ways, or one of ``filters`` and ``fan_in`` is missing.
    """
    sizes = {name for name in SIZES if given.get(name) is not None and given[name] is not False}
    if len({"filters" if name == "fan_in" else name for name in sizes}) > 1:
        raise ConvCircuitsError(
            f"Give only one of {option('density')} (a share), {option('kernels')} (a number), {option('reach_r2')} (an "
            f"R2), {option('filters')} with {option('fan_in')}, and {option('drawable')}."
        )
    if len(sizes & {"filters", "fan_in"}) == 1:
        raise ConvCircuitsError(
            f"Give both {option('filters')}, a number for each layer, and {option('fan_in')}, one for each filter."
        )


def option_value(text: str) -> Any:
    """Parse the value of a criterion's option: yes or no, JSON, or else the text itself."""
    if text.lower() in ("true", "yes", "false", "no"):
        return text.lower() in ("true", "yes")
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of the command that finds a circuit. Optional fields that were not given are None.

    Attributes:
        model: The model, in the form that ``--model`` takes.
        feature: The feature, in text form.
        criterion: Name of the criterion.
        options: Options of the criterion, each as NAME=VALUE.
        refit: What is fitted after the circuit is found, as for ``refit``, or ``BEST``.
        granularity: Granularity of the elements.
        density: The share of elements to keep.
        kernels: The number of elements to keep.
        reach_r2: The R2 that the smallest circuit must reach on validation photographs.
        filters: The most live filters of a layer, with ``fan_in``.
        fan_in: The most kernels of a filter.
        drawable: Whether to keep what the default view of a diagram has room for.
        effective_kernels: Whether ``density`` or ``kernels`` counts effective kernels, and no other is kept.
        weights: A file of weights.
        mean: Mean of the model's inputs by channel, from 0 to 1.
        std: Standard deviation of the model's inputs by channel, from 0 to 1.
        images: A folder, ``"sample"`` or ``"gcompris:FOLDER"``.
        boxes: A table of boxes: its photographs alone are used, each once and whole, and the feature counts in them.
        count: Number of crops of the training photographs.
        size: Side of the crops in pixels.
        held_out: The share of photographs that is held out.
        seed: The random seed.
    """

    model: str
    feature: str
    criterion: str
    options: tuple[str, ...] = ()
    refit: str = "none"
    granularity: str = "kernel"
    density: float | None = None
    kernels: int | None = None
    reach_r2: float | None = None
    filters: int | None = None
    fan_in: int | None = None
    drawable: bool = False
    effective_kernels: bool = False
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    images: str = "sample"
    boxes: str | None = None
    count: int = 24
    size: int | None = None
    held_out: float = 0.4
    seed: int = 0

    @property
    def validated(self) -> bool:
        """Whether photographs are set aside on which something is chosen."""
        return self.reach_r2 is not None or self.refit == BEST

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, said: Mapping[str, Any], *, where: str = "its recipe") -> "Recipe":
        """Build a recipe from the result of ``to_json``.

        Args:
            said: A value for every field.
            where: The source, named in error messages.

        Raises:
            ConvCircuitsError: If a field is missing, unknown or of the wrong type.
        """
        for name in sorted(said.keys() ^ _KINDS.keys(), key=str):
            raise ConvCircuitsError(f"{where} {'lacks' if name in _KINDS else 'has the unknown field'} {name!r:.80}")
        for name, (kind, allowed) in _KINDS.items():
            if not allowed(said[name]):
                raise ConvCircuitsError(f"{name} in {where} is {said[name]!r:.80}; expected {kind}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
        return cls(**fields)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Recipe":
        """Build a recipe from the given fields and defaults, with density ``DENSITY`` if no size is given.

        Raises:
            ConvCircuitsError: If a number of crops is given with boxes.
        """
        if given.get("boxes") is not None and given.get("count") is not None:
            raise ConvCircuitsError(
                f"{option('boxes')} takes each photograph of its table once, as a whole; omit {option('count')}."
            )
        sized = any(given.get(name) is not None and given[name] is not False for name in SIZES)  # 0 is an error
        size = {} if sized else {"density": DENSITY}
        criterion = default_criterion(str(given.get("granularity", "kernel")))
        return cls(**{"criterion": criterion, **given, **size})

    def command(self, out: Path | str, *, path: Path | str | None = None) -> str | None:
        """Return the shell command that finds the circuit again, or None if a word of it is not printable.

        Args:
            out: The file that the command writes.
            path: The folder that it writes the circuits of the descent to, if any.
        """
        words = ["convcircuits", "find", "--model", self.model, "--feature", self.feature]
        words += ["--criterion", self.criterion]
        words += [word for text in self.options for word in ("--option", text)]
        words += [] if self.refit == "none" else ["--refit", self.refit]
        words += [] if self.granularity == "kernel" else ["--granularity", self.granularity]
        for name in (
            *SIZES,
            "effective_kernels",
            "weights",
            "mean",
            "std",
            "images",
            "boxes",
            *(() if self.boxes is not None else ("count",)),
            "size",
            "held_out",
            "seed",
        ):
            value = getattr(self, name)
            if value is None or value is False:
                continue
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
        words += ["--out", str(out), *([] if path is None else ["--path", str(path)])]
        return shlex.join(words) if all(word.isprintable() for word in words) else None

    def python(self) -> str | None:
        """Return Python that finds the circuit again, or None if it takes validation photographs or boxes.

        Files that are no pictures must not be among the photographs, which ``crops`` refuses.
        """
        if self.validated or self.boxes is not None:
            return None
        model = {name: getattr(self, name) for name in ("weights", "mean", "std")}
        size = {name: getattr(self, name) for name in ("density", "kernels", "filters", "fan_in")}
        size |= {"drawable": self.drawable or None, "effective": self.effective_kernels or None}
        granularity = None if self.granularity == "kernel" else self.granularity
        options = dict(text.partition("=")[::2] for text in self.options)
        found = {"criterion": self.criterion, "granularity": granularity, **size, "seed": self.seed}
        found |= {name: option_value(text) for name, text in options.items()}
        side = None if self.size is None else (self.size, self.size)
        cut = {"count": self.count, "seed": self.seed, "size": side}
        split = {"held_out": self.held_out, "seed": self.seed}
        lines = [
            "import random",
            "",
            "import convcircuits as cc",
            "from convcircuits.zoo.images import crops, photographs, split_photographs",
            "from convcircuits.zoo.models import load_model",
            "",
            f"loaded = load_model({_call(self.model, **model)})",
            f"pictures, _ = photographs({self.images!r})",
            f"train, _ = split_photographs({_call(**split, first='pictures')})",
            f"if len(train) > {self.count}:  # neighbors in a folder are often alike",
            f"    train = random.Random({self.seed}).sample(train, len(train))",
            f"images = crops({_call(**cut, first='train, loaded.preprocess')})",
            f"feature = loaded.feature({self.feature!r})",
            f"circuit = cc.find({_call(**found, first='loaded.model, feature, images')})",
        ]
        if self.refit != "none":
            refitted = _call(method=self.refit, seed=self.seed, first="loaded.model, circuit, images")
            lines.append(f"circuit = cc.refit({refitted})")
        return "\n".join(lines)


def _call(*given: Any, first: str = "", **named: Any) -> str:
    """Return the arguments of a call as Python; those that are None are left out."""
    words = [first] if first else []
    words += [repr(value) for value in given]
    return ", ".join([*words, *(f"{name}={value!r}" for name, value in named.items() if value is not None)])


def read_recipes(path: Path, given: Mapping[str, Any]) -> list[tuple[Recipe, str | None]]:
    """Read a TOML file of recipes: shared fields, then a table ``[[circuit]]`` for each circuit.

    A circuit's own fields override shared ones, and ``given`` overrides both. ``out`` may name a circuit's file.

    Args:
        path: The file.
        given: Fields that take precedence over the file.

    Returns:
        The recipes, each with its ``out`` or None.

    Raises:
        ConvCircuitsError: If the file cannot be read or has no circuits, or if a field is missing, unknown or of the
            wrong type.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConvCircuitsError(f"{path} is not a readable file of recipes: {reason}.") from error
    circuits = said.pop("circuit", None)
    if not isinstance(circuits, list) or not circuits or not all(isinstance(one, dict) for one in circuits):
        raise ConvCircuitsError(
            f"{path} has no circuits; begin each with a line [[circuit]] followed by its feature, for example "
            'feature = "features.14:166".'
        )
    recipes, known = [], [*_KINDS, "out"]
    for number, own in enumerate(circuits, start=1):
        where = f"circuit {number} of {path}"
        fields = _over(_over(said, own), given)
        out = fields.pop("out", None)
        if out is not None and not is_text(out):
            raise ConvCircuitsError(f"out in {where} is {out!r:.80}; expected the name of a .safetensors file.")
        for name in fields:
            if name not in known:
                raise ConvCircuitsError(f"{where} has the unknown field {name!r:.80}; choose from {', '.join(known)}.")
        for name in ("model", "feature"):
            if name not in fields:
                raise ConvCircuitsError(f"{where} has no {name}; add one.")
        recipe = Recipe.of(fields)
        recipes.append((Recipe.from_json(recipe.to_json(), where=where), out))
    return recipes


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Override fields; a size above replaces whatever size is below."""
    sized = any(name in above for name in SIZES)
    return {**{k: v for k, v in below.items() if not (sized and k in SIZES)}, **above}


# ---------------------------------------- types

LONGEST_TEXT = 100_000
"""The maximum number of characters of a text in a file."""

Kind = tuple[str, Callable[[Any], bool]]
"""What a field holds, in words, and a test of whether a value is valid."""


def is_text(value: Any) -> bool:
    """Return whether a value is text of an acceptable length."""
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def is_whole(value: Any, low: int = -(1 << 64), high: int = 1 << 64) -> bool:
    """Return whether a value is a whole number from low to high."""
    return type(value) is int and low <= value <= high


def whole(low: int, high: int) -> Callable[[Any], bool]:
    """Return a test of whether a value is a whole number from low to high."""
    return lambda value: is_whole(value, low, high)


def is_list_of(value: Any, allowed: Callable[[Any], bool]) -> bool:
    """Return whether a value is a list or tuple of allowed values."""
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
    "refit": TEXT,
    "granularity": TEXT,
    "density": ("a share or nothing", _or_none(_is_share)),
    "kernels": ("a whole number or nothing", _or_none(whole(0, 1 << 40))),
    "reach_r2": ("a share or nothing", _or_none(_is_share)),
    "filters": ("a whole number from 1 or nothing", _or_none(whole(1, 1 << 20))),
    "fan_in": ("a whole number from 1 or nothing", _or_none(whole(1, 1 << 20))),
    "drawable": ("true or false", lambda value: type(value) is bool),
    "effective_kernels": ("true or false", lambda value: type(value) is bool),
    "weights": ("text or nothing", _or_none(is_text)),
    "mean": ("one number from 0 to 1 or three, or nothing", _or_none(_are_channels)),
    "std": ("one number from 0 to 1 or three, or nothing", _or_none(_are_channels)),
    "images": TEXT,
    "boxes": ("text or nothing", _or_none(is_text)),
    "count": ("a whole number from 1", whole(1, 1 << 20)),
    "size": ("a number of pixels or nothing", _or_none(whole(1, 1 << 14))),
    "held_out": ("a share", _is_share),
    "seed": ("a whole number from 0", whole(0, (1 << 32) - 1)),
}
