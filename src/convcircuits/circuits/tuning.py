"""Measure how units are tuned: show them stimuli, placed in their receptive field."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.maps.receptive_fields import local_fields
from convcircuits.maps.units import all_units
from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches, Progress, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked
from convcircuits.network.masking import Masks, Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature, at
from convcircuits.values.stimulus import Stimulus
from convcircuits.values.tuning import Tuning

_SIDES = range(32, 225, 16)  # of images to try, in pixels


class Draw(Protocol):
    """A function that draws stimuli as inputs of a model, as ``LoadedModel.draw`` does."""

    def __call__(self, stimuli: Sequence[Stimulus], *, size: tuple[int, int], center: tuple[float, float]) -> Tensor:
        """Return one image for each stimulus, (N, C, H, W), with the stimuli placed at ``center``."""


@outside_autocast
def tune(
    model: nn.Module,
    feature: Feature | str,
    stimuli: Sequence[Stimulus] | Callable[[float], Sequence[Stimulus]],
    *,
    draw: Draw,
    size: tuple[int, int] | None = None,
    circuit: Circuit | None = None,
    effective: bool = True,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Tuning:
    """Measure the responses of units to stimuli, placed in the receptive field of one position of their maps.

    All units of a feature, or of a layer, are measured in one pass.

    Args:
        model: Any CNN; it runs in eval mode.
        feature: What is measured, at the position (h, w) that it names, or else at the central one; or the name of a
            layer, for all of its units. The map of a Linear layer is a single position, whose field is the whole image.
        stimuli: The stimuli, none of which may extend beyond the receptive field or the image; or a function of the
            side in pixels of the largest square that does not, around the center of the field, such as
            ``convcircuits.zoo.stimuli.battery``.
        draw: Draws stimuli as inputs of the model: ``loaded.draw``, or a function of stimuli, ``size`` and ``center``
            that returns (N, C, H, W).
        size: (H, W) of the images. By default the smallest square in steps of 16 pixels, from 32 to 224, in which the
            receptive field lies; if it lies in none, the largest that the model accepts.
        circuit: Run this circuit instead of the full model.
        effective: As for ``evaluate``.
        batch_size: Maximum number of images that run at once.
        progress: Called with the number of images done and their total.

    Raises:
        ConvCircuitsError: If the feature names several positions, the circuit belongs to other weights or another
            feature, a stimulus does not fit into the receptive field, or what is drawn does not fit the model.

    Examples:
        >>> from convcircuits.zoo.stimuli import battery
        >>> tuning = cc.tune(model, feature, battery, draw=loaded.draw)
        >>> tuning.field, tuple(tuning.responses.shape)
        ((12, 12), (1, 1776))
        >>> tuple(cc.tune(model, "features.5", tuning.stimuli[:10], draw=loaded.draw).responses.shape)
        (6, 10)
    """
    check_progress(progress)
    network = Network(model)
    place = _placed(network, feature, draw, size)
    shown = place.checked(stimuli(place.side) if callable(stimuli) else stimuli)
    blanks = {stimulus.background: replace(stimulus, contrast=0.0) for stimulus in shown}
    every = [*blanks.values(), *shown]
    batches = Batches(
        _Drawn(every, draw, place, batch_size), device=network.device, dtype=network.dtype, batch_size=batch_size
    )
    subject, masks, about = place.subject, None, dict(place.subject.about)
    if circuit is not None:
        subject.check(circuit)
        about |= checked(subject, batches.first(IMAGES)) | {"circuit": dict(circuit.provenance), "effective": effective}
        masks = subject.masks(circuit, subject.survey.input_shape, effective=effective)
    values = _responses(subject, masks, batches, len(every), progress)
    number = {background: n for n, background in enumerate(blanks)}
    found = Tuning(
        _single(subject.feature),
        tuple(shown),
        values[:, len(blanks) :].contiguous(),
        values[:, [number[stimulus.background] for stimulus in shown]],
        place.center,
        place.field,
        place.image,
        place.notes,
        {**about, "images": batches.describe()},
    )
    return replace(found, notes=(*_unexcited(found), *found.notes))


def _unexcited(tuning: Tuning) -> Iterator[str]:
    count, every = int((~tuning.excited).sum()), len(tuning.features)
    if not count:
        return
    if every > 1:
        yield f"No stimulus excites {count} of the {every} units: what they respond is never above 0, or never changes."
        return
    lowest, highest = (float(end) for end in tuning.responses.aminmax())
    why = (
        f"its responses are from {lowest:.4g} to {highest:.4g}, never above 0"
        if highest <= 0
        else "none evokes more than its background alone"
    )
    yield f"No stimulus excites {tuning.features[0]}: {why}."


def _responses(
    subject: Subject, masks: Masks | None, batches: Batches, total: int, progress: Progress | None
) -> Tensor:
    """Return the feature's values at its position, float64 (U, N)."""
    parts: list[Tensor] = []
    with torch.no_grad():
        for images in batches:
            maps = subject.maps(images, masks)
            parts.append(at(maps, subject.feature.indices(maps)).flatten(1).double().cpu())
            if progress is not None:
                progress(sum(map(len, parts)), total)
    values = torch.cat(parts).T
    if not bool(values.isfinite().all()):
        raise ConvCircuitsError(f"Responses of {subject.feature} are NaN or Inf; check the weights and the drawing.")
    return values


def _single(feature: Feature) -> tuple[Feature, ...]:
    """Return a feature for each unit."""
    if isinstance(feature.unit, tuple):
        return tuple(replace(feature, unit=unit) for unit in feature.unit)
    return (feature,)


class _Drawn:
    """Stimuli as images, drawn batch by batch in each pass."""

    def __init__(self, stimuli: Sequence[Stimulus], draw: Draw, place: "_Place", batch_size: int) -> None:
        self._stimuli, self._draw, self._place, self._batch_size = stimuli, draw, place, batch_size

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self._stimuli), self._batch_size):
            some = self._stimuli[start : start + self._batch_size]
            images = self._draw(some, size=self._place.image, center=self._place.center)
            if len(images) != len(some):
                raise ConvCircuitsError(
                    f"draw returned {len(images)} images of {len(some)} stimuli; return one of each."
                )
            yield images


@dataclass(frozen=True)
class _Place:
    """Where stimuli are placed: in the receptive field of one position.

    Attributes:
        subject: The feature at that position.
        rows: The first row of the image in the field, and the one after the last; they may lie beyond the image.
        columns: The same for columns.
        image: (H, W) of the image.
    """

    subject: Subject
    rows: tuple[int, int]
    columns: tuple[int, int]
    image: tuple[int, int]

    @property
    def axes(self) -> list[tuple[int, int, int]]:
        """For rows and columns: where the field begins and ends, and the length of the image."""
        return [(*span, length) for span, length in zip((self.rows, self.columns), self.image, strict=True)]

    @property
    def center(self) -> tuple[float, float]:
        """The center of the field; along an axis where it covers the image, that of the image."""
        row, column = (n / 2 if first <= 0 and end >= n else (first + end) / 2 for first, end, n in self.axes)
        return row, column

    @property
    def field(self) -> tuple[int, int]:
        """(height, width) of the field, in pixels."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def inside(self) -> bool:
        """Whether the field lies in the image."""
        return all(first >= 0 and end <= n for first, end, n in self.axes)

    @property
    def whole(self) -> bool:
        """Whether the field covers the image, as that of a Linear layer does."""
        return all(first <= 0 and end >= n for first, end, n in self.axes)

    @property
    def side(self) -> float:
        """The side of the largest square around the center that extends neither beyond the field nor the image."""
        room = (
            min(center - max(first, 0), min(end, n) - center)
            for center, (first, end, n) in zip(self.center, self.axes, strict=True)
        )
        return 2 * min(room)

    @property
    def notes(self) -> tuple[str, ...]:
        if self.inside:
            return ()
        field, image = (f"{height} x {width}" for height, width in (self.field, self.image))
        return (f"The receptive field, {field}, extends beyond the images, {image}: padding has a part in responses.",)

    def checked(self, stimuli: Sequence[Stimulus]) -> list[Stimulus]:
        """Return the stimuli; raise an error if there are none, or one does not fit into the field."""
        shown = list(stimuli)
        if not shown:
            raise ConvCircuitsError("There are no stimuli; give at least one.")
        for stimulus in shown:
            if not isinstance(stimulus, Stimulus):
                raise ConvCircuitsError(f"Expected a Stimulus, got {type(stimulus).__name__}.")
            if max(map(abs, stimulus.offset)) + stimulus.reach > self.side / 2 + 1e-6:
                raise ConvCircuitsError(
                    f"{stimulus!r} extends beyond what a position of {self.subject.feature.layer} sees, a square of "
                    f"{self.side:g} pixels around the center of its receptive field in images of "
                    f"{self.image[0]} x {self.image[1]}; give a smaller size, width or offset."
                )
        return shown


def _placed(network: Network, feature: Feature | str, draw: Draw, size: tuple[int, int] | None) -> _Place:
    """Return the place of a feature in images of a size, or of the smallest that hold its receptive field."""
    if not isinstance(feature, (Feature, str)):
        raise ConvCircuitsError(f"feature must be a Feature or the name of a layer; got {feature!r}.")
    network.layer(feature if isinstance(feature, str) else _at_one_position(feature).layer)
    if size is not None:
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            raise ConvCircuitsError(f"size must be the (H, W) of images; got {size!r}.")
        return _place(network, feature, draw, size)
    found, problem = None, None
    for side in _SIDES:
        if found is not None and side != _SIDES[-1] and side <= max(found.field):
            continue
        try:
            found = _place(network, feature, draw, (side, side))
        except ConvCircuitsError as error:  # too small for the model, or not the one size that it accepts
            problem = error
        if found is not None and found.inside and not found.whole:
            break
    if found is None:
        assert problem is not None
        raise problem
    return found


def _place(network: Network, feature: Feature | str, draw: Draw, size: tuple[int, int]) -> _Place:
    height, width = (whole_number(option("size"), side, 1) for side in size)
    blank = Stimulus("circle", 1, width=1, contrast=0)
    image = draw([blank], size=(height, width), center=(height / 2, width / 2))
    if image.dim() != 4 or image.shape[2:] != (height, width):
        raise ConvCircuitsError(
            f"draw must return images (N, C, {height}, {width}) when that is the size; got {tuple(image.shape)}."
        )
    shape = tuple(image.shape[1:])
    subject = all_units(network, feature, shape) if isinstance(feature, str) else Subject.open(network, feature, shape)
    one = _at_one_position(subject.feature)
    field = local_fields(subject, [None])[None]
    index = one.indices(torch.zeros(1, *field.shape))
    assert index is not None
    row, column = divmod(int(index), field.shape[1])
    return _Place(Subject(network, one, subject.survey), field.rows[row], field.columns[column], (height, width))


def _at_one_position(feature: Feature) -> Feature:
    """Return a feature at the position that it names, or at the central one."""
    if feature.position in ("max", "interior"):
        raise ConvCircuitsError(
            f"{feature} does not name one position to place stimuli at; give it the position 'center' or (h, w)."
        )
    return replace(feature, position="center") if feature.position == "all" else feature
