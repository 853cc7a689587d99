"""A feature: what a circuit preserves."""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from convcircuits.cards import card
from convcircuits.errors import ConvCircuitsError, whole_number
from convcircuits.files import safe_name
from convcircuits.values.boxes import Boxes

Position = Literal["all", "max", "center", "interior"] | tuple[int, int] | Boxes

Unit = int | tuple[int, ...] | Tensor

_TEXT = re.compile(
    r"(?P<layer>[^:#@\s]+)(#(?P<call>\d+))?:(?P<what>[^@]+)(@(?P<position>max|center|interior|all|\d+,\d+|boxes-[0-9a-f]{8}))?"
)
_UNITS = re.compile(r"\d+(,\d+)*,?")
_DIRECTION = re.compile(r"direction(-[0-9a-f]{8})?")
_MOST_IN_FILE_NAME = 6  # units that are spelled out in a file name


@dataclass(frozen=True, eq=False)
class Feature:
    """One unit of a layer, several units, or a direction in its channel space, at some positions of its map.

    Args:
        layer: Name of the module whose output carries the feature, as in ``model.named_modules()``.
        unit: The index of a channel; several indices (a list, tuple, range or integer array), which one circuit
            preserves together; or a direction with one coefficient per channel (a 1-D tensor, array or list of floats).
            Several units keep their order, and their maps have an axis of units, (N, U, H, W), even if there is one.
        position: Which positions of the map count: ``"all"``; ``"max"``, the argmax of each image and unit in the
            *full* model; ``"center"``; ``"interior"``, those whose receptive field lies inside the image (the
            central ones if there are fewer than four, see ``Interior``); ``(h, w)``, counted from 0; or ``Boxes``, the
            argmax within a box of each image.
        call: Index of the layer's call, from 0, if it runs several times in one forward pass.

    Raises:
        ConvCircuitsError: If an argument has the wrong form. Whether the layer, unit and position exist is checked
            when the feature is used with a model.

    Examples:
        >>> cc.Feature("features.5", 1)
        Feature(features.5:1)
        >>> cc.Feature("features.5", [0, 2], position="interior")  # several units, preserved by one circuit
        Feature(features.5:0,2@interior)
        >>> cc.Feature.parse("features.5:1@max").position
        'max'
    """

    layer: str
    unit: Unit
    position: Position = "all"
    call: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str) or not self.layer:
            raise ConvCircuitsError(f"layer must be the name of a module, such as 'features.10'; got {self.layer!r}.")
        object.__setattr__(self, "unit", _checked_unit(self.unit))
        object.__setattr__(self, "position", _checked_position(self.position))
        if self.call is not None:
            object.__setattr__(self, "call", whole_number("call", self.call, 0))

    @classmethod
    def parse(cls, text: str, *, names: Callable[[str, str], int] | None = None) -> "Feature":
        """Parse the text form ``layer:unit`` or ``layer:3,9,40``, with an optional position.

        The position is ``@max``, ``@center``, ``@interior`` or ``@h,w``; without one, all positions count.

        ``layer#k:unit`` names call k of a layer that runs several times; ``layer:3,`` is a set of one unit.

        Args:
            text: The text form. A direction and boxes cannot be parsed: their text forms only identify them.
            names: Maps a layer and a class name to a unit, so that ``fc:golden retriever`` can be parsed, as
                ``LoadedModel.feature`` does.

        Raises:
            ConvCircuitsError: If the text does not have this form.
        """
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        unit = None if match is None else _read_unit(match["layer"], match["what"], names)
        if match is None or unit is None:
            raise ConvCircuitsError(
                f"{text!r} is not a feature; write layer:unit, for example features.10:9, "
                "features.10:9@max, features.10:9@center, features.10:9@interior or features.10:9@3,5 "
                "(features.10:3,9,40 is several units, relu#1:9 call 1 of a layer that runs several times)."
            )
        where = match["position"] or "all"
        if where.startswith("boxes"):
            raise ConvCircuitsError(
                f"{text!r} counts in boxes of images, which text cannot hold; load the feature from the file of its "
                "circuit, or give it Boxes."
            )
        position: Position = where  # type: ignore[assignment]
        if "," in where:
            row, column = where.split(",")
            position = (int(row), int(column))
        call = None if match["call"] is None else int(match["call"])
        return cls(match["layer"], unit, position=position, call=call)

    def __str__(self) -> str:
        return self._text(_unit_text(self.unit))

    def _text(self, unit: str) -> str:
        call = "" if self.call is None else f"#{self.call}"
        where = "{},{}".format(*self.position) if isinstance(self.position, tuple) else str(self.position)
        return f"{self.layer}{call}:{unit}" + ("" if where == "all" else f"@{where}")

    def __repr__(self) -> str:
        return f"Feature({self})"

    def _repr_html_(self) -> str:
        if isinstance(self.unit, Tensor):
            unit = ("direction", f"{len(self.unit)} coefficients, {int(self.unit.count_nonzero())} of them not 0")
        elif isinstance(self.unit, tuple):
            unit = ("units", ", ".join(map(str, self.unit)))
        else:
            unit = ("unit", str(self.unit))
        position = str(self.position)
        if isinstance(self.position, tuple):
            position = "row {}, column {}".format(*self.position)
        elif isinstance(self.position, Boxes):
            position = f"the maximum within a box of each of {len(self.position)} images"
        call = [] if self.call is None else [("call", str(self.call))]
        return card(f"Feature {self}", rows=[("layer", self.layer), *call, unit, ("position", position)])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Feature):
            return NotImplemented
        if str(self) != str(other) or self.call != other.call:
            return False
        if isinstance(self.unit, Tensor) and isinstance(other.unit, Tensor):
            return torch.equal(self.unit, other.unit)
        return True

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def slug(self) -> str:
        """The text form for file names: ``features.10-9``, ``features.10-3+9+40``, and shortened for many units."""
        unit = _unit_text(self.unit)
        if isinstance(self.unit, tuple):
            shown = self.unit[:_MOST_IN_FILE_NAME]
            rest = len(self.unit) - len(shown)
            end = f"+{rest}more-{_digest(unit.encode())}" if rest else "+" * (len(shown) == 1)
            unit = "+".join(map(str, shown)) + end
        return safe_name(self._text(unit))

    @property
    def follows_maximum(self) -> bool:
        """Whether the positions that count depend on the full model's map, and not only on its size."""
        return self.position == "max" or isinstance(self.position, Boxes)

    def at_maximum(self) -> "Feature":
        """Return the feature at each image's own maximum, or unchanged if it has a single position."""
        return replace(self, position="max") if self.position in ("all", "interior") else self

    def rows(self, channels: int) -> tuple[Tensor, Tensor]:
        """Return the channels that the feature reads and its coefficient on each.

        Args:
            channels: Number of channels of the feature's layer.

        Returns:
            Channel indices (int64) and coefficients (float64), both of shape (r,). Several units keep their order and
            have the coefficient 1.

        Raises:
            ConvCircuitsError: If the unit or the direction does not fit the layer.
        """
        if isinstance(self.unit, Tensor):
            if len(self.unit) != channels:
                raise ConvCircuitsError(
                    f"The direction has {len(self.unit)} coefficients, but {self.layer} has "
                    f"{channels} channels; give one coefficient per channel."
                )
            rows = self.unit.nonzero()[:, 0]
            return rows, self.unit[rows]
        units = self.unit if isinstance(self.unit, tuple) else (self.unit,)
        if max(units) >= channels:
            raise ConvCircuitsError(
                f"Unit {max(units)} does not exist: {self.layer} has {channels} channels, "
                f"so units go from 0 to {channels - 1}."
            )
        return torch.tensor(units), torch.ones(len(units), dtype=torch.float64)

    def indices(self, maps: Tensor, *, interior: Tensor | None = None, within: Tensor | None = None) -> Tensor | None:
        """Return the flat positions that count in each map of the *full* model, or None if all count.

        Args:
            maps: The feature's maps, shape (N, H, W) or (N,); for several units (N, U, H, W) or (N, U).
            interior: Flat positions of the interior, shape (K,). They depend on the model, and are needed if the
                position is ``"interior"``.
            within: Which positions of each image lie in its box, bool (N, P). They depend on the model, and are needed
                if the position is ``Boxes``.

        Returns:
            Shape (N, K), or (N, U, K) for several units, int64; or None. K is 1 except for the interior.

        Raises:
            ConvCircuitsError: If ``(h, w)`` lies outside the map.
        """
        if self.position == "all":
            return None
        flat = flattened(maps.detach())
        if self.position == "max":
            return flat.argmax(-1, keepdim=True)
        if isinstance(self.position, Boxes):
            assert within is not None
            outside = ~within.to(maps.device).reshape(len(flat), *[1] * (flat.dim() - 2), -1)
            return flat.masked_fill(outside, -math.inf).argmax(-1, keepdim=True)
        if self.position == "interior":
            assert interior is not None
            return interior.to(maps.device).expand(*flat.shape[:-1], len(interior))
        height, width = maps.shape[-2:] if maps.dim() > 2 else (1, 1)
        row, column = (height // 2, width // 2) if self.position == "center" else self.position
        if row >= height or column >= width:
            raise ConvCircuitsError(
                f"Position {row},{column} lies outside the {height} x {width} map of {self.layer}; "
                f"rows go from 0 to {height - 1}, columns from 0 to {width - 1}."
            )
        return torch.full((*flat.shape[:-1], 1), int(row) * width + int(column), device=maps.device)


def flattened(maps: Tensor) -> Tensor:
    """Flatten the positions of each map.

    Shape: (N, H, W) or (N,) -> (N, P); for several units (N, U, H, W) or (N, U) -> (N, U, P).
    """
    units = maps.dim() % 2 == 0
    return maps.reshape(*maps.shape[: 1 + units], -1)


def at(maps: Tensor, indices: Tensor | None) -> Tensor:
    """Return the flattened maps, or only their values at the given flat positions."""
    flat = flattened(maps)
    return flat if indices is None else flat.gather(-1, indices)


def _read_unit(layer: str, what: str, names: Callable[[str, str], int] | None) -> int | tuple[int, ...] | None:
    if _UNITS.fullmatch(what):
        numbers = [int(number) for number in what.split(",") if number]
        return tuple(numbers) if "," in what else numbers[0]
    if _DIRECTION.fullmatch(what):
        raise ConvCircuitsError(
            f"{layer}:{what} is a direction, which text cannot hold; load it from the file of its circuit, "
            "or write layer:unit."
        )
    return None if names is None else names(layer, what)


def _unit_text(unit: Unit) -> str:
    if isinstance(unit, Tensor):
        return f"direction-{_digest(unit.numpy().astype('<f8').tobytes())}"
    if isinstance(unit, tuple):
        return ",".join(map(str, unit)) + "," * (len(unit) == 1)  # a tuple of one, as Python writes it
    return str(unit)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _checked_unit(unit: object) -> Unit:
    """Return whole numbers as units and floats as the coefficients of a direction."""
    if isinstance(unit, Tensor) and unit.dim() > 0:
        if unit.dim() > 1 or unit.is_complex() or unit.dtype == torch.bool:
            raise ConvCircuitsError(
                f"unit must be a 1-D tensor of real numbers (a direction) or of whole numbers (several units); got "
                f"{unit.dtype} of shape {tuple(unit.shape)}."
            )
        return _direction(unit.detach()) if unit.is_floating_point() else _units(unit.tolist())
    if isinstance(unit, np.ndarray) and unit.ndim == 1:
        unit = unit.tolist()
    if isinstance(unit, (list, tuple, range)):
        floats = all(isinstance(u, (float, np.floating)) for u in unit)
        return _direction(torch.tensor(unit, dtype=torch.float64)) if floats and unit else _units(unit)
    return whole_number("A feature's unit (or give a list of several, or a direction of floats)", unit, 0)


def _units(given: Sequence[object]) -> tuple[int, ...]:
    units = tuple(whole_number("Each of several units (a direction is all floats)", unit, 0) for unit in given)
    if not units:
        raise ConvCircuitsError("A feature needs at least one unit; got none.")
    twice = sorted({unit for unit in units if units.count(unit) > 1}) if len(set(units)) < len(units) else []
    if twice:
        raise ConvCircuitsError(
            f"A feature's units must be distinct; given more than once: {', '.join(map(str, twice))}. "
            "For a direction, give floats."
        )
    return units


def _direction(values: Tensor) -> Tensor:
    direction = values.to("cpu", torch.float64) + 0.0  # a copy without negative zeros
    if not bool(direction.isfinite().all()) or not bool(direction.any()):
        raise ConvCircuitsError("A direction needs finite coefficients, at least one of them nonzero.")
    return direction


def _checked_position(position: object) -> Position:
    if isinstance(position, Boxes) or (isinstance(position, str) and position in ("all", "max", "center", "interior")):
        return position  # type: ignore[return-value]
    if isinstance(position, (tuple, list)) and len(position) == 2:
        return (whole_number("A position's row", position[0], 0), whole_number("Its column", position[1], 0))
    raise ConvCircuitsError(
        f"position must be 'all', 'max', 'center', 'interior', (h, w) from 0 or Boxes; got {position!r}."
    )
