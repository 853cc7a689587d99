"""Group the images of a feature by other descriptions than its circuit, and measure all of them alike."""

import os
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convcircuits.circuits.criteria import Criterion
from convcircuits.circuits.equations import Method
from convcircuits.circuits.scoring import MEMORY
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.maps.top import full_maps
from convcircuits.maps.units import all_units
from convcircuits.network.batches import Batches, Images, Progress, begin, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.subfeatures.borders import counted, seen_places
from convcircuits.subfeatures.chosen import some_of
from convcircuits.subfeatures.crossing import cross
from convcircuits.subfeatures.grouping import Coordinates, Vectors, k_means
from convcircuits.subfeatures.saliencies import ImageSaliencies, image_saliencies
from convcircuits.subfeatures.splitting import (
    check_driven,
    check_refit,
    check_share,
    circuits_of_group,
    drawn_photographs,
    kept_for,
    numbers_of_photographs,
    opened,
)
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature, flattened
from convcircuits.values.groupings import KNOWN, SHUFFLED, Grouping, Groupings

SALIENCIES = "saliencies"
"""The description that ``split`` uses."""

_PIXELS = 16  # side of the pictures that images are compared as
_NAN = float("nan")


@outside_autocast
def groupings(
    model: nn.Module,
    feature: Feature,
    images: Images,
    *,
    known: Sequence[Hashable] | None = None,
    groups: int | None = None,
    photographs: Sequence[Hashable] | None = None,
    embedding: str | None = None,
    held_out: float = 0.4,
    criterion: str | Criterion = "gauss_newton",
    density: float | None = 0.1,
    refit: Method = "filters",
    resamples: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Groupings:
    """Compare grouping a feature's images by how the network computes it with grouping them by simpler descriptions.

    The descriptions are ``"saliencies"``, the signed saliencies of all kernels, by which ``split`` groups;
    ``"last layer"``, those of the feature's own layer alone, that is, the attributions of the channels it reads, by
    which PURE (Dreyer et al., arXiv 2404.06453) divides units; ``"activations"``, all units of the feature's layer at
    the same position; ``"embedding"``, the mean over space of a late layer; and ``"pixels"``, the image at 16 x 16. All
    are brought to the same number of principal components, grouped by k-means on training photographs, and measured on
    the others in the same way. With a cross-test, ``"shuffled"`` is its control: the groups by saliencies, dealt at
    random among training and among held-out images.

    Args:
        model: Any CNN.
        feature: One unit or a direction. It is taken at each image's own maximum, unless it has a single position.
        images: As for ``split``.
        known: The known group of each image, in order: labels of any kind. They do not guide the grouping; figures
            compare with them.
        groups: Number of groups; by default as many as are known, else 2.
        photographs: As for ``split``.
        embedding: Layer whose mean over space describes an image; by default the last convolution, in the order of
            the model's modules, that runs.
        held_out: Share of the photographs to hold out, in (0, 1).
        criterion: As for ``split``.
        density: Size of the circuits that the cross-test uses, in (0, 1]; None for no cross-test, which takes most of
            the time.
        refit: As for ``split``.
        resamples: Number of times that training photographs are divided into halves for the stability; 0 for none.
        batch_size: Maximum number of images that run at once.
        seed: Seed of everything random.
        memory: As for ``score``.
        progress: Called with the number of images done in each phase, and their total (or None).
        checkpoint: As for ``split``, with which saliencies are shared.
        **options: Options of the criterion, as for ``split``.

    Raises:
        ConvCircuitsError: As for ``split``, or if there is not one label for each image, a single label, or no
            convolution among the modules and no ``embedding``.

    Examples:
        >>> by = cc.groupings(model, feature, images, density=0.3, embedding="features.5")
        >>> [row.by for row in by.rows]
        ['saliencies', 'last layer', 'activations', 'embedding', 'pixels', 'shuffled']
    """
    check_progress(progress)
    check_share("held_out", held_out)
    if density is not None and not 0 < density <= 1:
        raise ConvCircuitsError(f"{option('density')} must be in (0, 1]; got {density!r}.")
    seed = whole_number(option("seed"), seed, 0, 2**32 - 1)
    resamples = whole_number("resamples", resamples, 0)
    check_refit(refit)
    feature = feature.at_maximum()
    given: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": progress}
    subject = opened(model, feature, images, batch_size)
    kept = kept_for(checkpoint, subject, images, batch_size, seed)
    begin(progress, "reading how each image is computed")
    names, shapes, notes = numbers_of_photographs(model, images, photographs, batch_size)
    kinds, classes = _known(known, len(names))
    count = whole_number("groups", groups, 2) if groups is not None else max(2, kinds)

    def read() -> dict[str, Tensor]:
        found = image_saliencies(model, feature, images, memory=memory, **given)
        check_driven(feature, found.driven, names, count)  # before anything is kept
        return found.as_tensors()

    saliencies = ImageSaliencies.from_tensors(kept.tensors(read))
    active = saliencies.driven
    check_driven(feature, active, names, count)
    notes += saliencies.notes(feature)
    train = active & ~drawn_photographs(names, active, held_out, seed)
    held = active & ~train
    last = list(saliencies.layers)[-1]
    begin(progress, "describing each image otherwise")
    others, layer = _descriptions(model, feature, images, saliencies.position, embedding, batch_size)
    notes.append(f"The embedding is the mean over space of {layer}.")
    described: dict[str, Vectors] = {
        SALIENCIES: saliencies.layers,
        "last layer": {last: saliencies.layers[last]},
        **{name: {name: one} for name, one in others.items()},
    }

    def find(some: Tensor, density: float) -> list[Circuit]:
        part = some_of(images, some)
        return kept.circuits(
            partial(circuits_of_group, subject, part, criterion, [density], refit, memory, given, options),
            images=some.nonzero()[:, 0].tolist(),
            how=[criterion, [density], refit, options],
        )

    crossed: dict[frozenset[bytes], tuple[float, float, float, float]] = {}  # descriptions may agree

    def selectivity(labels: Tensor) -> tuple[float, float, float, float]:
        """Return the selectivity of the groups' circuits, the ends of its interval, and the error on their own."""
        parts = {str(one): labels == one for one in range(int(labels.max()) + 1)}
        sizes = [int((part & some).sum()) for part in parts.values() for some in (train, held)]
        if density is None or min(sizes) < 2:
            return _NAN, _NAN, _NAN, _NAN
        key = frozenset(part.numpy().tobytes() for part in parts.values())
        if key not in crossed:
            begin(progress, "finding and cross-testing the groups' circuits")
            circuits = {name: find(part & train, density) for name, part in parts.items()}
            tested = {name: some_of(images, part & held) for name, part in parts.items()}
            crops = {name: names[(part & held).numpy()].tolist() for name, part in parts.items()}
            (found,) = cross(model, circuits, tested, photographs=crops, shuffles=0, **given).selectivity
            crossed[key] = found.value, found.low, found.high, found.own
        return crossed[key]

    rows, labels, borders = [], {}, {}
    seen = seen_places(subject, saliencies.position, shapes)

    def add(by: str, size: int, found: Tensor, stable: float) -> None:
        labels[by] = found
        agreement = (_NAN, _NAN) if known is None else _agreement(found, classes, train, active)
        border, separate = _NAN, False
        if not isinstance(seen, str):
            borders[by] = counted(seen, {str(one): found == one for one in range(int(found.max()) + 1)})
            border, separate = borders[by].difference, borders[by].separate
        rows.append(Grouping(by, size, *agreement, stable, *selectivity(found), border, separate))

    if known is not None and density is not None:
        add(KNOWN, 0, _dense(torch.where(active, classes, -1)), _NAN)
    for by, vectors in described.items():
        stable = _stability(vectors, names, train, active, count, resamples, seed)
        size = sum(part.shape[1] for part in vectors.values())
        add(by, size, _assigned(vectors, train, active, count, seed), stable)
    if density is not None:
        add(SHUFFLED, 0, _dealt(labels[SALIENCIES], (train, held), seed), _NAN)
    if density is not None and any(row.selectivity != row.selectivity for row in rows):
        notes.append("Where a group has fewer than two training or held-out images, there is no cross-test.")
    if isinstance(seen, str):
        notes.append(seen)
    notes += [f"* By {by}: {some.sentence}" for by, some in borders.items() if some.separate]
    return Groupings(
        feature=str(feature),
        density=density,
        rows=tuple(rows),
        labels=labels,
        held_out=int(held.sum()),
        borders=borders,
        notes=tuple(notes),
        provenance={
            "images": len(active),
            "groups": count,
            "held_out": held_out,
            "embedding": layer,
            "criterion": criterion if isinstance(criterion, str) else criterion.__name__,
            "refit": refit,
            "resamples": resamples,
            "seed": seed,
        },
    )


def _known(known: Sequence[Hashable] | None, images: int) -> tuple[int, Tensor]:
    """Return the number of known groups, and that of each image."""
    if known is None:
        return 0, torch.zeros(images, dtype=torch.long)
    if len(known) != images:
        raise ConvCircuitsError(f"There are {images} images but {len(known)} labels; give one label for each image.")
    numbers = {label: n for n, label in enumerate(dict.fromkeys(known))}
    if len(numbers) < 2:
        raise ConvCircuitsError(f"All known labels are {next(iter(numbers))!r}; give at least two kinds, or none.")
    return len(numbers), torch.tensor([numbers[label] for label in known])


def _descriptions(
    model: nn.Module, feature: Feature, images: Images, position: Tensor, embedding: str | None, batch_size: int
) -> tuple[dict[str, Tensor], str]:
    """Return the baselines' descriptions of each image, (images, d), and the layer of the embedding."""
    network = Network(model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    shape = batches.first_shape()
    own = all_units(network, feature.layer, shape, call=feature.call)
    layer, late = _late(network, shape) if embedding is None else (embedding, all_units(network, embedding, shape))
    found: dict[str, list[Tensor]] = {"activations": [], "embedding": [], "pixels": []}
    done = 0
    for batch, maps, _ in full_maps(own, batches):
        flat = flattened(maps)
        where = position[done : done + len(batch)].to(flat.device)
        done += len(batch)
        # Where several positions count, their mean: image_saliencies says -1 then.
        single = flat.gather(2, where.clamp_min(0)[:, None, None].expand(-1, flat.shape[1], 1))[:, :, 0]
        found["activations"].append(torch.where((where >= 0)[:, None], single, flat.mean(2)).cpu())
        with torch.no_grad():
            found["embedding"].append(flattened(late.maps(batch)).mean(2).cpu())
        found["pixels"].append(F.adaptive_avg_pool2d(batch, _PIXELS).flatten(1).cpu())
    return {name: torch.cat(parts).float() for name, parts in found.items()}, layer


def _late(network: Network, shape: tuple[int, ...]) -> tuple[str, Subject]:
    """Return the last convolution that runs, of which the later ones may not: auxiliary heads, for instance."""
    for name, module in reversed(network.names.items()):
        if isinstance(module, nn.Conv2d):
            try:
                return name, all_units(network, name, shape)
            except ConvCircuitsError:
                continue
    raise ConvCircuitsError(
        f"No convolution among the modules of {network.name} can describe an image; name a late layer as embedding."
    )


def _assigned(vectors: Vectors, train: Tensor, counted: Tensor, count: int, seed: int) -> Tensor:
    """Group training images by k-means, and assign the others that count to the nearest center."""
    coordinates = Coordinates.learned(_of(vectors, train))
    fitted = k_means(coordinates.of(_of(vectors, train)), count, seed)
    labels = torch.full((len(counted),), -1)
    labels[counted] = torch.from_numpy(fitted.predict(coordinates.of(_of(vectors, counted)))).long()
    return labels


def _agreement(labels: Tensor, classes: Tensor, train: Tensor, counted: Tensor) -> tuple[float, float]:
    """Return the adjusted Rand index with known groups, and the accuracy on held-out images."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score

    table = np.zeros((int(labels.max()) + 1, int(classes.max()) + 1))
    np.add.at(table, (labels[train].numpy(), classes[train].numpy()), 1)
    matched = dict(zip(*linear_sum_assignment(-table), strict=True))
    held = counted & ~train
    right = [
        matched.get(label) == true for label, true in zip(labels[held].tolist(), classes[held].tolist(), strict=True)
    ]
    return float(adjusted_rand_score(classes[counted], labels[counted])), float(np.mean(right))


def _stability(
    vectors: Vectors, names: Any, train: Tensor, counted: Tensor, count: int, times: int, seed: int
) -> float:
    """Return how alike the groups of held-out images are that two halves of the training photographs find."""
    from sklearn.metrics import adjusted_rand_score

    dice, held, agreed = np.random.default_rng(seed), (counted & ~train).numpy(), []
    for _ in range(times):
        some = dice.permutation(np.unique(names[train.numpy()]))
        halves = [train & torch.from_numpy(np.isin(names, half)) for half in np.array_split(some, 2)]
        if min(int(half.sum()) for half in halves) < 2 * count:
            return _NAN
        try:
            found = [_assigned(vectors, half, counted, count, seed).numpy()[held] for half in halves]
        except ConvCircuitsError:  # too few different images in a half
            return _NAN
        agreed += [float(adjusted_rand_score(one, other)) for one, other in pairwise(found)]
    return float(np.mean(agreed)) if agreed else _NAN


def _of(vectors: Vectors, some: Tensor) -> Mapping[str, Tensor]:
    return {name: part[some] for name, part in vectors.items()}


def _dealt(labels: Tensor, parts: Sequence[Tensor], seed: int) -> Tensor:
    """Deal the labels of images at random within each part."""
    dice, dealt = torch.Generator().manual_seed(seed), labels.clone()
    for part in parts:
        some = labels[part]
        dealt[part] = some[torch.randperm(len(some), generator=dice)]
    return dealt


def _dense(labels: Tensor) -> Tensor:
    """Number the groups that occur from 0 on, keeping -1."""
    kinds = torch.tensor(sorted({*labels.tolist()} - {-1}))
    return torch.where(labels >= 0, torch.searchsorted(kinds, labels), -1)
