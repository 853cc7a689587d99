"""A feature: what a circuit is to preserve."""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError, whole_number

Position = Literal["all", "max", "center"] | tuple[int, int]

_TEXT = re.compile(r"(?P<layer>[^:#@\s]+)(#(?P<call>\d+))?:(?P<unit>\d+)(@(?P<position>max|center|all|\d+,\d+))?")


@dataclass(frozen=True, eq=False)
class Feature:
    """One unit of a layer, or a direction in its channel space, at some positions of its map.

    Args:
        layer: Name of the module whose output carries the feature, as in ``model.named_modules()``.
        unit: The channel's number, or a direction: a 1-D tensor with one coefficient per channel.
        position: Which positions of the map count: ``"all"``; ``"max"``, each image's argmax in the *full*
            model; ``"center"``; or ``(h, w)``, from 0.
        call: Which call of the layer, from 0, where it runs several times in one forward pass.

    Raises:
        ConvCircuitsError: If an argument is of another form. Whether layer, unit and position exist is checked
            when the feature meets a model.
    """

    layer: str
    unit: int | Tensor
    position: Position = "all"
    call: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str) or not self.layer:
            raise ConvCircuitsError(f"A feature's layer is a module's name such as 'features.10'; got {self.layer!r}.")
        object.__setattr__(self, "unit", _checked_unit(self.unit))
        object.__setattr__(self, "position", _checked_position(self.position))
        if self.call is not None:
            object.__setattr__(self, "call", whole_number("call", self.call, 0))

    @classmethod
    def parse(cls, text: str) -> "Feature":
        """Read the text form ``layer:unit``, ``layer:unit@max``, ``@center`` or ``@h,w``.

        ``layer#k:unit`` names call k of a layer that runs several times.

        Raises:
            ConvCircuitsError: If the text has another form.
        """
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ConvCircuitsError(
                f"{text!r} names no feature; write layer:unit, for example features.10:9, "
                "features.10:9@max, features.10:9@center or features.10:9@3,5 (relu#1:9 is call 1 of a layer that runs "
                "several times)."
            )
        where = match["position"] or "all"
        position: Position = where  # type: ignore[assignment]
        if "," in where:
            row, column = where.split(",")
            position = (int(row), int(column))
        call = None if match["call"] is None else int(match["call"])
        return cls(match["layer"], int(match["unit"]), position=position, call=call)

    def __str__(self) -> str:
        call = "" if self.call is None else f"#{self.call}"
        unit = "direction" if isinstance(self.unit, Tensor) else str(self.unit)
        where = self.position if isinstance(self.position, str) else "{},{}".format(*self.position)
        return f"{self.layer}{call}:{unit}" + ("" if where == "all" else f"@{where}")

    def __repr__(self) -> str:
        return f"Feature({self})"

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
        """The text form for file names: ``features.10-9``."""
        return re.sub(r"[^\w.]+", "-", str(self))

    def rows(self, channels: int) -> tuple[Tensor, Tensor]:
        """Give the channels the feature reads and its coefficient on each, for a layer of that many channels.

        Returns:
            Channel numbers (int64) and coefficients (float64), both of shape (r,).

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
        if self.unit >= channels:
            raise ConvCircuitsError(
                f"Unit {self.unit} does not exist: {self.layer} has {channels} channels, "
                f"so units go from 0 to {channels - 1}."
            )
        return torch.tensor([self.unit]), torch.ones(1, dtype=torch.float64)

    def indices(self, maps: Tensor) -> Tensor | None:
        """Give the flat position that counts in each map of the *full* model; None where all count.

        Args:
            maps: The feature's maps, shape (N, H, W) or (N,).

        Returns:
            Shape (N,), int64, or None.

        Raises:
            ConvCircuitsError: If ``(h, w)`` lies outside the map.
        """
        if self.position == "all":
            return None
        if self.position == "max":
            return maps.detach().flatten(1).argmax(1) if maps.dim() == 3 else torch.zeros_like(maps).long()
        height, width = (maps.shape[1], maps.shape[2]) if maps.dim() == 3 else (1, 1)
        row, column = (height // 2, width // 2) if self.position == "center" else self.position
        if row >= height or column >= width:
            raise ConvCircuitsError(
                f"Position {row},{column} lies outside the {height} x {width} map of {self.layer}; "
                f"rows go from 0 to {height - 1}, columns from 0 to {width - 1}."
            )
        return torch.full((len(maps),), int(row) * width + int(column), device=maps.device)


def at(maps: Tensor, indices: Tensor | None) -> Tensor:
    """Take each map's values at its flat position, or all of them: (N, H, W) or (N,) -> (N, P)."""
    flat = maps.reshape(len(maps), -1)
    return flat if indices is None else flat.gather(1, indices[:, None])


def _checked_unit(unit: object) -> int | Tensor:
    if not isinstance(unit, Tensor) or unit.dim() == 0:
        return whole_number("A feature's unit (or give a direction, a 1-D tensor)", unit, 0)
    if unit.dim() > 1 or unit.is_complex():
        raise ConvCircuitsError(
            f"A direction is a 1-D tensor of real numbers; got {unit.dtype} of shape {tuple(unit.shape)}."
        )
    direction = unit.detach().to("cpu", torch.float64).clone()
    if not bool(direction.isfinite().all()) or not bool(direction.any()):
        raise ConvCircuitsError("A direction needs finite coefficients of which at least one is not zero.")
    return direction


def _checked_position(position: object) -> Position:
    if isinstance(position, str) and position in ("all", "max", "center"):
        return position  # type: ignore[return-value]
    if isinstance(position, (tuple, list)) and len(position) == 2:
        return (whole_number("A position's row", position[0], 0), whole_number("Its column", position[1], 0))
    raise ConvCircuitsError(f"position is 'all', 'max', 'center' or (h, w) from 0; got {position!r}.")
