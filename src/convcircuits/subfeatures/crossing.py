"""Measure circuits that were found on groups of images, each on every group."""

import itertools
import math
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convcircuits.circuits.resuming import Kept
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches, Images, Progress, begin, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.subfeatures.borders import counted, seen_places
from convcircuits.subfeatures.responses import Responses, responses_of, selective
from convcircuits.subfeatures.shuffling import Shuffle
from convcircuits.texts import number
from convcircuits.values.circuit import Circuit
from convcircuits.values.cross import (
    FEW_HELD_OUT,
    FEW_TRAINED,
    FEWEST_HELD_OUT,
    KEPT,
    OVERFIT,
    Cross,
    Crossing,
    Overlap,
    Selectivity,
)
from convcircuits.values.feature import Feature

_RESAMPLES = 2000
_CONSTANT = 1e-6  # range of values, relative to the largest, up to which they are the same to rounding

Sizes = Circuit | Sequence[Circuit]
T = TypeVar("T")


@outside_autocast
def cross(
    model: nn.Module,
    circuits: Mapping[str, Sizes],
    groups: Mapping[str, Images],
    *,
    fit: Mapping[str, Images] | None = None,
    photographs: Mapping[str, Sequence[Hashable]] | None = None,
    subjects: bool = False,
    shuffles: int = 3,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Cross:
    """Measure circuits that were found on groups of images, each on held-out images of every group.

    Are they circuits of their groups, or of the feature as a whole? Each circuit should keep the feature's responses to
    its own group longer than to the others as circuits get smaller. The control deals the same images into groups at
    random, finds circuits of the size that the verdict is about on them in the same way, and measures these alike.

    Args:
        model: The model that the circuits belong to.
        circuits: Name of a group -> its circuit, or its circuits of several sizes, the same number for all groups. All
            preserve one unit or direction; their positions may be any.
        groups: Name of the same group -> held-out images of it, as for ``score``. No image may be in two groups.
        fit: Name of the group -> the images that its circuits were found on. Without them there is no control and no
            verdict, errors in training are not known, and held-out images count as seen only if they are exactly those
            of a circuit's provenance.
        photographs: Name of the group -> the photograph that each of its held-out images is a crop of, in order. Crops
            of one are resampled together and count as one. By default each image is its own.
        subjects: As for ``split``.
        shuffles: Number of random deals of the control. Each costs as much as finding the circuits of that size did.
        batch_size: Maximum number of images that run at once.
        seed: Seed of the deals and of resampling.
        progress: Called with the number of images done in each phase, and their total (or None).
        checkpoint: As for ``split``, for the circuits of the control.

    Raises:
        ConvCircuitsError: If there are fewer than two groups, names or sizes differ, an image is in two groups or was
            used to find a circuit, the feature is above 0 on no image of a group or the same on all images, or as for
            ``evaluate``.

    Examples:
        >>> trained = {"a": images[:6], "b": images[6:]}
        >>> maximum = cc.Feature(feature.layer, feature.unit, position="max")
        >>> found = {name: cc.find(model, maximum, some, density=0.3) for name, some in trained.items()}
        >>> report = cc.cross(model, found, {"a": held_out[:4], "b": held_out[4:]}, fit=trained, shuffles=1)
        >>> [(row.circuit, row.group) for row in report.rows]
        [('a', 'a'), ('a', 'b'), ('b', 'a'), ('b', 'b')]

    Source: Hamblin et al., arXiv 2206.01627, for the error at each image's own maximum.
    """
    check_progress(progress)
    seed, shuffles = whole_number(option("seed"), seed, 0, 2**32 - 1), whole_number("shuffles", shuffles, 0)
    sizes = _by_size(circuits, groups)
    network = Network(model)

    def pooled(given: Mapping[str, Images]) -> dict[str, Batches]:
        return {
            name: Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
            for name, images in given.items()
        }

    learned_on = {} if fit is None else _in_groups(fit, groups)
    held_out, found_on = pooled(groups), pooled(learned_on)
    (hashes, seen), shapes = _check_apart(held_out, found_on)
    _check_unseen(sizes, held_out)
    crops = _crops(photographs, groups, hashes)
    if learned_on and shuffles:
        _check_one_shape(shapes)
    first = held_out[next(iter(held_out))].first(IMAGES)
    feature = measured_at(next(iter(sizes.values()))[0].feature)
    subject = Subject.open(network, feature, tuple(first.shape[1:]))
    for circuit in itertools.chain(*sizes.values()):
        subject.check(circuit)
    described = checked(subject, first)
    begin(progress, "measuring every circuit on every group")
    measured = responses_of(subject, sizes, held_out, progress)
    _check_active(feature, measured)
    begin(progress, "measuring every circuit on the images that it was found on")
    training = responses_of(subject, sizes, found_on, progress, each_alone=True)
    rows = tuple(_rows(sizes, measured, training))
    table = _table(sizes, list(measured.values()), list(crops.values()), rows, seed)
    chosen = _chosen(table)
    if learned_on and shuffles:
        kept = Kept(checkpoint, batch_size=batch_size, network=[str(network.device), str(network.dtype)])
        like = {name: some[: chosen + 1] for name, some in sizes.items()}
        shuffle = Shuffle(model, like, learned_on, seen, hashes, batch_size, progress, kept)
        table[chosen] = replace(table[chosen], shuffled=shuffle.selectivity(subject, held_out, shuffles, seed))
    at_chosen = [some[chosen] for some in sizes.values()]
    notes = [
        *_at_border(subject, measured),
        *_notes(measured, training, table[chosen], at_chosen, "subject" if subjects else "photograph"),
        *_not_apart(measured, crops, table[chosen], seed),
    ]
    return Cross(
        feature=str(feature),
        groups={name: len(one.full) for name, one in measured.items()},
        rows=rows,
        overlaps=tuple(_overlaps(sizes)),
        selectivity=tuple(table),
        chosen=chosen,
        notes=tuple(notes),
        provenance=described
        | {
            "images": {name: one.describe() for name, one in held_out.items()},
            "fitted_on": {name: one.describe() for name, one in found_on.items()},
            "shuffles": len(table[chosen].shuffled),
            "seed": seed,
            "circuits": {name: [dict(one.provenance) for one in some] for name, some in sizes.items()},
        },
    )


def _table(
    sizes: Mapping[str, Sequence[Circuit]],
    groups: Sequence[Responses],
    crops: Sequence[Tensor],
    rows: Sequence[Crossing],
    seed: int,
) -> list[Selectivity]:
    """Return the selectivity at each size, with its interval over resampled photographs of each group."""
    own, others, value = (one[0].tolist() for one in selective(groups))
    low = high = torch.full((len(own),), math.nan)
    photographs = min(int(some.max()) + 1 for some in crops)
    if photographs > 1:
        dice = torch.Generator().manual_seed(seed)
        weights = [_resampled(some, dice) for some in crops]
        low, high = selective(groups, weights).value.nanquantile(torch.tensor([0.025, 0.975]).double(), 0)
    table = []
    for size, circuits in enumerate(zip(*sizes.values(), strict=True)):
        train = [row.train_error for row in rows if row.size == size and row.circuit == row.group]
        table.append(
            Selectivity(
                size=size,
                kernels=sum(len(one) for one in circuits) / len(circuits),
                density=sum(one.density for one in circuits) / len(circuits),
                own=own[size],
                others=others[size],
                value=value[size],
                low=float(low[size]),
                high=float(high[size]),
                shuffled=(),
                photographs=photographs,
                train=sum(train) / len(train),
            )
        )
    return table


def _resampled(crops: Tensor, dice: torch.Generator) -> Float[Tensor, "times n"]:
    """Draw photographs with replacement, and return how often each of their crops, given by number, was drawn."""
    count = int(crops.max()) + 1
    drawn = torch.randint(count, (_RESAMPLES, count), generator=dice)
    weights = torch.zeros(drawn.shape, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones_like(weights))[:, crops]


def _chosen(table: Sequence[Selectivity]) -> int:
    kept = [one for one in table if one.own <= KEPT]
    best = min(kept, key=lambda one: one.density) if kept else min(table, key=lambda one: one.own)
    return best.size


def _rows(
    sizes: Mapping[str, Sequence[Circuit]], measured: Mapping[str, Responses], training: Mapping[str, Responses]
) -> Iterator[Crossing]:
    for n, (name, circuits) in enumerate(sizes.items()):
        learned = torch.full((len(circuits),), math.nan)
        if training:
            own = training[name]
            learned = own.errors(torch.ones(1, len(own.full), dtype=torch.float64))[0, 0]
        for group, one in measured.items():
            errors = one.errors(torch.ones(1, len(one.full), dtype=torch.float64))[0, n]
            apart = (one.full - one.full.mean()).square().sum()
            for size, circuit in enumerate(circuits):
                values = one.values[:, n, size]
                missed = (values - one.full).square().sum()
                yield Crossing(
                    circuit=name,
                    group=group,
                    size=size,
                    kernels=len(circuit),
                    density=circuit.density,
                    error=float(errors[size]),
                    kept=float(values.mean() / one.full.mean()),
                    r2=1 - float(one.missed[n, size]) / one.spread if one.spread > 0 else math.nan,
                    r2_max=1 - float(missed / apart) if len(values) > 2 and apart > 0 else math.nan,
                    train_error=float(learned[size]) if group == name else math.nan,
                )


def _overlaps(sizes: Mapping[str, Sequence[Circuit]]) -> Iterator[Overlap]:
    for (first, some), (second, others) in itertools.combinations(sizes.items(), 2):
        for size, (a, b) in enumerate(zip(some, others, strict=True)):
            layers = {layer: _Shared.of(a, b, layer) for layer in a.iou_by_layer(b)}
            for layer, one in {"all": _Shared.total(layers.values()), **layers}.items():
                yield Overlap(
                    first=first,
                    second=second,
                    size=size,
                    layer=layer,
                    iou=one.iou,
                    above_chance=one.above_chance,
                    shared=one.elements[0],
                    alone=one.elements[1:],
                    filters=one.filters,
                )


class _Shared(NamedTuple):
    """Numbers of elements of two circuits, in both, in the first and in the second alone, and the same for filters."""

    elements: tuple[int, int, int]
    filters: tuple[int, int, int]
    expected: float  # number of elements in both by chance

    @classmethod
    def of(cls, a: Circuit, b: Circuit, layer: str) -> "_Shared":
        one, other = a[layer], b[layer]
        relevant = int((~a.saliency[layer].isnan()).sum())
        expected = int(one.sum()) * int(other.sum()) / relevant if relevant else 0.0
        live, living = (mask.reshape(len(mask), -1).any(1) for mask in (one, other))
        return cls(_counts(one, other), _counts(live, living), expected)

    @classmethod
    def total(cls, layers: Iterable["_Shared"]) -> "_Shared":
        elements, filters, expected = zip(*layers, strict=True)
        return cls(_added(elements), _added(filters), sum(expected))

    @property
    def iou(self) -> float:
        return self.elements[0] / sum(self.elements) if any(self.elements) else math.nan

    @property
    def above_chance(self) -> float:
        either = sum(self.elements) + self.elements[0] - self.expected
        chance = self.expected / either if either else math.nan
        return (self.iou - chance) / (1 - chance) if chance < 1 else math.nan


def _counts(a: Tensor, b: Tensor) -> tuple[int, int, int]:
    return int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum())


def _added(counts: Iterable[tuple[int, int, int]]) -> tuple[int, int, int]:
    both, first, second = map(sum, zip(*counts, strict=True))
    return both, first, second


def _by_size(circuits: Mapping[str, Sizes], groups: Mapping[str, Images]) -> dict[str, list[Circuit]]:
    """Return the circuits of each group as lists, in the order of the groups, the largest first.

    Raises:
        ConvCircuitsError: If there are fewer than two groups, their names differ, or the circuits do not fit together.
    """
    for what, named in (("circuits", circuits), ("groups", groups)):
        if not isinstance(named, Mapping):
            raise ConvCircuitsError(f"{what} must be a mapping from the names of groups; got {type(named).__name__}.")
    if len(groups) < 2:
        raise ConvCircuitsError(f"A cross-test needs at least two groups; got {len(groups)}.")
    sizes = {}
    for name, given in _in_groups(circuits, groups).items():
        some = [given] if isinstance(given, Circuit) else list(given)
        if not some or not all(isinstance(one, Circuit) for one in some):
            raise ConvCircuitsError(f"The circuits of group {name!r} must be a Circuit or several; got {given!r}.")
        sizes[name] = sorted(some, key=len, reverse=True)
    counts = {name: len(some) for name, some in sizes.items()}
    if len(set(counts.values())) > 1:
        raise ConvCircuitsError(f"Each group needs circuits of the same number of sizes; got {counts}.")
    return sizes


def _in_groups(given: Mapping[str, T], groups: Mapping[str, Images]) -> dict[str, T]:
    """Return what is given for each group, in their order.

    Raises:
        ConvCircuitsError: If the names are not those of the groups.
    """
    if set(given) != set(groups):
        raise ConvCircuitsError(
            f"Names must be those of the groups, {', '.join(map(repr, groups))}; got {', '.join(map(repr, given))}."
        )
    return {name: given[name] for name in groups}


def measured_at(feature: Feature) -> Feature:
    """Return the feature at the position that is measured: its own if it has a single one, else its maximum."""
    if isinstance(feature.unit, tuple):
        raise ConvCircuitsError(f"{feature} has several units; a cross-test is of one unit or direction.")
    return feature.at_maximum()


def _check_apart(
    held_out: Mapping[str, Batches], found_on: Mapping[str, Batches]
) -> tuple[tuple[dict[str, list[int]], dict[str, list[int]]], set[tuple[int, ...]]]:
    """Check that no image is in two groups, or both held out and used to find a circuit.

    Returns:
        The hashes of the held-out images of each group and of those that circuits were found on; and their shapes.

    Raises:
        ConvCircuitsError: If one is.
    """
    places: dict[int, str] = {}
    found: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
    shapes = set[tuple[int, ...]]()
    said = ("the held-out images", "the images that circuits were found on")
    for what, groups, hashes in zip(said, (held_out, found_on), found, strict=True):
        for name, batches in groups.items():
            place = f"{what} of group {name!r}"
            hashes[name] = []
            for part, keys in batches.hashed():
                shapes.add(tuple(part.shape[1:]))
                hashes[name] += keys
            for key in hashes[name]:
                if places.setdefault(key, place) != place:
                    raise ConvCircuitsError(f"An image is in {places[key]} and again in {place}; give each image once.")
    return found, shapes


def _check_unseen(sizes: Mapping[str, Sequence[Circuit]], held_out: Mapping[str, Batches]) -> None:
    """Check that no circuit was found or fitted on a group's held-out images, or on those of all groups.

    Raises:
        ConvCircuitsError: If one was. A part of them is not recognized: circuits hold one hash of all their images.
    """
    known = {name: one.describe() for name, one in held_out.items()}
    whole = sum(int(one["hash"], 16) for one in known.values()) % 2**64
    every = {"count": sum(one["count"] for one in known.values()), "hash": f"{whole:016x}"}
    for name, circuits in sizes.items():
        for about in (circuit.provenance for circuit in circuits):
            for seen in (about.get("images"), about.get("calibration", {}).get("images")):
                where = [f"of group {group!r}" for group, one in known.items() if one == seen]
                if where or seen == every:
                    which = where[0] if where else "of all groups"
                    raise ConvCircuitsError(
                        f"The circuits of group {name!r} were found on the very images {which} that are given as held "
                        "out; measure on others."
                    )


def _crops(
    given: Mapping[str, Sequence[Hashable]] | None, groups: Mapping[str, Images], hashes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return the number of each held-out image's photograph, from 0 on, in each group.

    Raises:
        ConvCircuitsError: If there is not one for each image.
    """
    named: Mapping[str, Sequence[Hashable]] = hashes if given is None else _in_groups(given, groups)
    found = {}
    for name, some in named.items():
        if len(some) != len(hashes[name]):
            raise ConvCircuitsError(
                f"Group {name!r} has {len(hashes[name])} held-out images but {len(some)} photographs; give one "
                "photograph for each image."
            )
        numbers = {one: n for n, one in enumerate(dict.fromkeys(some))}
        found[name] = torch.tensor([numbers[one] for one in some])
    return found


def _check_one_shape(shapes: set[tuple[int, ...]]) -> None:
    """Check that images may be dealt into any group.

    Raises:
        ConvCircuitsError: If they differ in size.
    """
    if len(shapes) > 1:
        raise ConvCircuitsError(
            f"Images have shapes {', '.join(map(str, sorted(shapes)))}, so groups cannot be shuffled; give images of "
            "one size, or no images to fit."
        )


def _check_active(feature: Feature, measured: Mapping[str, Responses]) -> None:
    """Check that the feature is above 0 somewhere in each group, and not the same everywhere.

    Raises:
        ConvCircuitsError: If it is not.
    """
    for name, one in measured.items():
        if not bool((one.full > 0).any()):
            raise ConvCircuitsError(
                f"{feature} is not above 0 on any of the {len(one.full)} held-out images of group {name!r}, so no "
                "circuit of it can be tested there; give images it answers to, or another unit."
            )
    every = torch.cat([one.full for one in measured.values()])
    if float(every.max() - every.min()) <= _CONSTANT * float(every.abs().max()):
        raise ConvCircuitsError(
            f"{feature} is {float(every[0]):.3g} on all held-out images, whatever they show, so its circuits cannot be "
            "told apart; give images it answers to, or another unit."
        )


def _notes(
    measured: Mapping[str, Responses],
    training: Mapping[str, Responses],
    chosen: Selectivity,
    circuits: Sequence[Circuit],
    noun: str,
) -> Iterator[str]:
    if not training:
        yield (
            "Without the images that the circuits were found on, there is no control with shuffled groups, and images "
            "that were used to find a circuit are recognized only if they are all the images of a group, or of all."
        )
    for name, one in measured.items():
        silent = int((one.full <= 0).sum())
        if silent:
            yield f"On {silent} of the {len(one.full)} held-out images of group {name!r} the feature is not above 0."
    few = {name: len(one.full) for name, one in training.items() if len(one.full) < FEW_TRAINED}
    if few:
        said = ", ".join(f"{count} of group {name!r}" for name, count in few.items())
        yield (
            f"Circuits were found on few images: {said}; with fewer than {FEW_TRAINED}, those of other images of the "
            "same group can differ much. Give more before you claim anything about the group."
        )
    fewest = chosen.photographs
    count = number(fewest, f"held-out {noun}")
    if fewest < FEWEST_HELD_OUT:
        interval = "no interval" if fewest == 1 else "the interval is too narrow"
        yield f"A group has only {count}, so {interval}; a verdict takes at least {FEWEST_HELD_OUT} in each."
    elif fewest < FEW_HELD_OUT:
        yield (
            f"A group has only {count}; with fewer than {FEW_HELD_OUT} the 95 % interval is somewhat too narrow, and "
            "figures can differ much on other images."
        )
    if any(one.constants for one in circuits):
        fitted = " and ".join(f"{one.constants:,}" for one in circuits)
        yield f"At {chosen.density:.2%} of the kernels the circuits have {fitted} constants that were fitted."
    if chosen.own - chosen.train > OVERFIT:
        yield (
            f"At {chosen.density:.2%} of the kernels the circuits' error on their own groups is {chosen.train:z.2f} in "
            f"training and {chosen.own:z.2f} on held-out images: they overfit. Give more images, or do not refit."
        )


def _at_border(subject: Subject, measured: Mapping[str, Responses]) -> Iterator[str]:
    """Yield a remark if the border of the map tells the groups apart, or if that is not known."""
    seen = seen_places(
        subject,
        torch.cat([one.position for one in measured.values()]),
        list(itertools.chain(*(one.shapes for one in measured.values()))),
    )
    if isinstance(seen, str):
        yield seen
        return
    of = torch.repeat_interleave(torch.tensor([len(one.full) for one in measured.values()]))
    borders = counted(seen, {name: of == n for n, name in enumerate(measured)}, "held-out images")
    if borders.separate:
        yield borders.sentence


def _not_apart(
    measured: Mapping[str, Responses], crops: Mapping[str, Tensor], chosen: Selectivity, seed: int
) -> Iterator[str]:
    """Yield a remark on each two of more groups whose circuits do no better on their own of the two.

    The selectivity of all groups may be high while two of them are the same: the others make up for it.
    """
    if len(measured) < 3:
        return
    for pair in itertools.combinations(range(len(measured)), 2):
        names = [list(measured)[n] for n in pair]
        two = [
            replace(one, values=one.values[:, list(pair)], missed=one.missed[list(pair)])
            for one in (measured[name] for name in names)
        ]
        dice = torch.Generator().manual_seed(seed)
        values = selective(two, [_resampled(crops[name], dice) for name in names]).value[:, chosen.size]
        low, high = values.nanquantile(torch.tensor([0.025, 0.975]).double()).tolist()
        if not low > 0:
            value = float(selective(two).value[0, chosen.size])
            yield (
                f"Groups {names[0]!r} and {names[1]!r} are not told apart: at {chosen.density:.2%} of the kernels "
                f"their circuits err on each other's images by {value:z.2f} more than on their own (95 % interval "
                f"{low:z.2f} to {high:z.2f})."
            )
