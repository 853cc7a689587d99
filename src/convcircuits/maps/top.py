"""Find the images on which the units of a feature are highest, and a sample over their range, in one pass."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.maps.interior import Positions
from convcircuits.network.batches import Batches, Images, Progress, lot
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.feature import Feature
from convcircuits.values.top import Examples, Top

POOL = 2048
"""Number of images that the sample is drawn from: all of them, or as many drawn at random."""


@outside_autocast
def top(
    model: nn.Module,
    feature: Feature,
    images: Images,
    *,
    count: int = 16,
    sample: int = 16,
    names: Sequence[str] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Top:
    """Find the images on which a feature is highest, and a sample of images over the range of its values.

    An image's value is the highest of the full model's map at the positions that count: of the whole map for ``"all"``
    and ``"max"``, of the interior for ``"interior"``, of the image's box for ``Boxes``, and the value at one position
    for ``"center"`` and ``(h, w)``.
    So, unless the feature is restricted to the interior, padding may have a part in it; a note says on how many images.
    ``Feature(layer, range(C))`` is a whole layer, which takes one pass up to the layer, as a single unit does.

    The sample divides the range of values, from the lowest to the highest, into ``sample`` strata of equal width and
    takes an image from each, then another from each that has more, and so on, from the highest stratum down. It is
    drawn from all images or, of more than 2,048, from as many chosen at random. Which images are drawn depends on
    their content and the seed. So, up to rounding, no result depends on the batch size or, but for ties, on the order
    of images: of equally high ones, the earlier come first.

    Args:
        model: Any CNN; it runs in eval mode.
        feature: One unit, several units or a direction.
        images: As for ``score``, of one size; they may be more than fit into memory.
        count: Number of images on which the feature is highest, or all if there are fewer.
        sample: Number of images in the sample, or all if there are fewer; 0 for none.
        names: Names of the images, in order. If not given, those that images such as ``Crops`` have.
        batch_size: Maximum number of images that run at once.
        seed: Seed of the sample.
        progress: Called with the number of images done and their total (or None).

    Returns:
        Tensors are on the CPU.

    Raises:
        ConvCircuitsError: If the feature or the images do not fit the model, images differ in size, a value is not
            finite, a number is out of range, or there is not one name for each image.

    Examples:
        >>> found = cc.top(model, feature, images, count=3)
        >>> found.highest.image.shape, found.highest.box.shape  # of one unit
        (torch.Size([1, 3]), torch.Size([1, 3, 4]))
        >>> layer = cc.top(model, cc.Feature("features.5", range(6)), images)
        >>> len(layer.units)
        6
    """
    network = Network(model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size, progress=progress)
    subject = Subject.open(network, feature, batches.first_shape())
    ranking = Ranking(Positions(subject), count=count, sample=sample, seed=seed)
    for batch, maps, hashes in full_maps(subject, batches):
        ranking.add(batch, maps, hashes)
    return ranking.top(batches, names_of(images) if names is None else names)


def names_of(images: Images) -> tuple[str, ...]:
    """Return the names of images that have some, as ``Crops`` do, else none."""
    names = getattr(images, "names", ())  # of a tensor, in older versions of torch, the names of its dimensions
    return tuple(names) if isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names) else ()


def full_maps(subject: Subject, batches: Batches) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Run the full model, and yield each batch with the feature's maps on it and a hash of each image.

    Raises:
        ConvCircuitsError: If an image has another size than the feature was surveyed on.
    """
    shape = subject.survey.input_shape
    for images, hashes in batches.hashed():
        if tuple(images.shape[1:]) != shape:
            raise ConvCircuitsError(
                f"Images have shapes {shape} and {tuple(images.shape[1:])}; give images of one size."
            )
        with torch.no_grad():
            maps = subject.maps(images)
        yield images, maps, hashes


class Ranking:
    """The images on which each unit is highest so far, and a random sample of all images with the values on them.

    Args:
        positions: The positions of the feature's map, surveyed on images of the size in question.
        count: Number of images to keep for each unit.
        sample: Number of images to draw for each unit.
        seed: Seed of the sample.

    Attributes:
        positions: The positions of the feature's map.

    Raises:
        ConvCircuitsError: If a number is out of range.
    """

    def __init__(self, positions: Positions, *, count: int, sample: int, seed: int) -> None:
        self._subject, self.positions = positions.subject, positions
        subject = positions.subject
        self._count = whole_number(option("count"), count, 1)
        self._sample = whole_number(option("sample"), sample, 0)
        self._seed = whole_number(option("seed"), seed, 0, 2**32 - 1)
        self._size = (subject.survey.input_shape[1], subject.survey.input_shape[2])
        units = len(subject.rows) if isinstance(subject.feature.unit, tuple) else 1
        self._images, self._width, self._active = 0, 1, torch.zeros(units, dtype=torch.double)
        none = torch.empty(units, 0, dtype=torch.long)
        self._highest = self._pool = _Values(none, none.double(), none)
        self._lots: list[tuple[int, int]] = []  # of the pool, ascending, each with the index of its image
        self._drawn: list[tuple[_Values, Sequence[tuple[int, int]]]] = []  # batches that wait to be put into the pool

    def add(
        self, images: Tensor, maps: Tensor, hashes: Sequence[int], highest: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Add a batch of images, with the feature's maps on them and a hash of each.

        Args:
            images: The images.
            maps: The feature's maps.
            hashes: A hash of each image.
            highest: What ``Positions.highest`` returns of them, if that is known.

        Raises:
            ConvCircuitsError: If a value is not finite.
        """
        value, place = self.positions.highest(maps, images) if highest is None else highest
        value, place = value.cpu().double().reshape(len(maps), -1).T, place.cpu().reshape(len(maps), -1).T
        numbers = torch.arange(self._images, self._images + len(maps))
        finite = value.isfinite().all(0)
        if not bool(finite.all()):
            raise ConvCircuitsError(
                f"The map of {self._subject.feature} contains NaN or Inf on image {int(numbers[~finite][0])}; leave "
                "that image out, or choose an earlier layer."
            )
        self._images, self._width = self._images + len(maps), maps.shape[-1] if maps.dim() > 2 else 1
        self._active += (value > 0).sum(1)
        new = _Values(numbers.expand_as(place), value, place)
        self._highest = self._highest.and_also(new).highest(self._count)
        self._draw(new, [(lot(one, self._seed), n) for one, n in zip(hashes, numbers.tolist(), strict=True)])

    def _draw(self, new: "_Values", lots: Sequence[tuple[int, int]]) -> None:
        """Let images be put into the pool, unless it is full and none of them has a low lot."""
        if not self._sample or (len(self._lots) == POOL and min(lots) > self._lots[-1]):
            return
        self._drawn.append((new, lots))
        if sum(len(some) for _, some in self._drawn) >= POOL:
            self._fill()

    def _fill(self) -> None:
        """Put the images that wait into the pool, and drop those with the highest lots if there are too many.

        That copies the whole pool, so it is not done for each batch.
        """
        if not self._drawn:
            return
        every = [*self._lots, *(one for _, some in self._drawn for one in some)]
        kept = sorted(range(len(every)), key=every.__getitem__)[:POOL]
        self._lots = [every[i] for i in kept]
        together = self._pool.and_also(*(new for new, _ in self._drawn))
        self._pool = together.at(torch.tensor(kept).expand(len(self._active), -1))
        self._drawn = []

    def state(self) -> dict[str, Tensor]:
        """Return what was found so far, to go on from it. Lots, which have 64 bits, are shifted into int64."""
        self._fill()
        lots = torch.tensor([[lot - 2**63, image] for lot, image in self._lots], dtype=torch.long).reshape(-1, 2)
        tables = {"highest": self._highest, "pool": self._pool}
        values = {f"{name}_{part}": x for name, t in tables.items() for part, x in t._asdict().items()}
        return {**values, "lots": lots, "active": self._active, "width": torch.tensor(self._width)}

    def resume(self, state: Mapping[str, Tensor], images: int) -> None:
        """Go on from what was found on some images, with the same feature, count, sample and seed."""
        self._highest, self._pool = (
            _Values(*(state[f"{name}_{part}"] for part in _Values._fields)) for name in ("highest", "pool")
        )
        self._lots, self._drawn = [(lot + 2**63, image) for lot, image in state["lots"].tolist()], []
        self._active, self._width, self._images = state["active"], int(state["width"]), images

    def highest(self) -> Examples:
        """Return the images on which each unit is highest so far, the highest first."""
        return self._examples(self._highest, self._boxes()[0])

    def pool(self) -> Examples:
        """Return the images that the sample is drawn from: all so far or, of more than ``POOL``, as many at random."""
        self._fill()
        return self._examples(self._pool, self._boxes()[0])

    def top(self, batches: Batches, names: Sequence[str]) -> Top:
        """Return what was found, after a complete pass over the images.

        Args:
            batches: The images.
            names: Their names; empty if they have none.

        Raises:
            ConvCircuitsError: If there is not one name for each image.
        """
        subject, images = self._subject, self._images
        if len(names) and (len(names) != images or isinstance(names, str)):
            raise ConvCircuitsError(f"There are {images} images but {len(names)} names; give one name for each image.")
        self._fill()
        boxes, notes = self._boxes()
        highest, sample = (self._examples(some, boxes) for some in (self._highest, self._pool.spread(self._sample)))
        return Top(
            subject.feature,
            highest,
            sample,
            active=self._active / images,
            images=images,
            size=self._size,
            names=tuple(names),
            notes=(*notes, *self._notes(highest)),
            provenance={**subject.about, "images": batches.describe(), "seed": self._seed},
        )

    def _boxes(self) -> tuple[list[Tensor], list[str]]:
        """Return the receptive field of each position of each unit's map, (P, 4), and what to say of them."""
        try:
            fields = self.positions.fields(self._subject.survey.input_shape)
        except ConvCircuitsError as error:
            whole = torch.tensor([[0, 0, *self._size]])
            return [whole] * len(self._active), [f"Boxes are whole images. {error}"]
        boxes = {field: field.boxes().flatten(0, 1) for field in set(fields)}
        return [boxes[field] for field in fields], []

    def _examples(self, values: "_Values", boxes: Sequence[Tensor]) -> Examples:
        position = torch.stack([values.place // self._width, values.place % self._width], 2)
        box = torch.stack([table[place % len(table)] for table, place in zip(boxes, values.place, strict=True)])
        return Examples(values.image, values.value, position, box)

    def _notes(self, highest: Examples) -> Iterator[str]:
        """Yield remarks on what was found."""
        subject, images = self._subject, self._images
        if images < max(self._count, self._sample):
            yield f"There are only {images} images; {max(self._count, self._sample)} were asked for."
        if self._sample and images > POOL:
            yield f"The sample is from {POOL:,} images drawn at random."
        units = subject.feature.unit if isinstance(subject.feature.unit, tuple) else [str(subject.feature)]
        dead = [str(unit) for unit, active in zip(units, self._active.tolist(), strict=True) if not active]
        everywhere = subject.feature.position in ("all", "max")
        if dead:
            yield f"Never above 0 on these images{'' if everywhere else ' at the positions that count'}: {_some(dead)}."
        if not everywhere:
            return
        places = [(unit, n) for unit, n in zip(units, highest.beyond(self._size).sum(1).tolist(), strict=True) if n]
        if places:
            where = f"{_some([f'{unit} on {n}' for unit, n in places])} of these {len(highest)} images"
            yield (
                f"Highest at a place that sees padding: {where}. With the position 'interior' such places do not count."
            )


class _Values(NamedTuple):
    """Images of each unit, with the unit's value on each and the flat position of that; each (U, K)."""

    image: Tensor
    value: Tensor
    place: Tensor

    def and_also(self, *others: "_Values") -> "_Values":
        return _Values(*(torch.cat(tables, 1) for tables in zip(self, *others, strict=True)))

    def at(self, columns: Tensor) -> "_Values":
        return _Values(*(table.gather(1, columns) for table in self))

    def highest(self, count: int) -> "_Values":
        """Return the images with the highest values, the highest first; of equal ones the earlier in the table."""
        return self.at(self.value.argsort(dim=1, descending=True, stable=True)[:, :count])

    def spread(self, count: int) -> "_Values":
        """Return images from strata of equal width of each unit's range, by turns; of a stratum the earlier first."""
        if not count:
            return self
        low, high = self.value.aminmax(dim=1, keepdim=True)
        share = (self.value - low) / torch.where(high > low, high - low, 1)
        stratum = (share * count).long().clamp(max=count - 1)
        order = stratum.argsort(dim=1, stable=True)
        grouped, columns = stratum.gather(1, order), torch.arange(stratum.shape[1]).expand_as(stratum)
        begins = torch.searchsorted(grouped, grouped)
        turn = torch.empty_like(stratum).scatter(1, order, columns - begins)
        chosen = (turn * count - stratum).argsort(dim=1)[:, :count]
        by_image = self.at(chosen)
        return by_image.at(by_image.image.argsort(dim=1)).highest(count)


def _some(texts: Sequence[str]) -> str:
    """Join texts by commas; of more than twelve, the first twelve and the number of the others."""
    return ", ".join(texts[:12]) + (f" and {len(texts) - 12} more" if len(texts) > 12 else "")
