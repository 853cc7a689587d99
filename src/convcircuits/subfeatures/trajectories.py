"""Place the images of a feature, layer by layer, by how the network computes it on them."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convcircuits.circuits.scoring import MEMORY
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.network.batches import Images, Progress, begin, check_progress
from convcircuits.placing import UMAP_FEWEST, UMAP_NOTE, Placing, by_umap, check_placing
from convcircuits.subfeatures.grouping import Coordinates, Points
from convcircuits.subfeatures.saliencies import DRIVEN, image_saliencies
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature
from convcircuits.values.split import Split
from convcircuits.values.trajectory import Trajectory

FEWEST = 3
"""The fewest images that can be placed: two always lie on a line, at the same distance."""

NEIGHBORS = 10
"""Number of nearest neighbors that are compared, if there are more than twice as many images."""

_ROWS = 512  # images whose distances to all others are in memory at a time
_TIE = 1e-9  # difference of squared distances that count as equal, relative to the mean from the center
_FLAT = 1e-9  # variance, of at most 1, up to which all images are at the same place
_LITTLE = 0.5  # share of the variance below which a map is said to hold little


def trajectory(
    model: nn.Module,
    feature: Feature,
    images: Images,
    *,
    method: Placing = "pca",
    groups: Split | Sequence[Hashable] | None = None,
    circuit: Circuit | None = None,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Trajectory:
    """Place images by how each layer computes a feature on them.

    What describes an image in a layer are the signed saliencies of the layer's kernels at the image's own maximum
    (``image_saliencies``), at unit length, so that the strength of the response does not matter, as ``split`` compares
    images too. Two dimensions are left of them for each layer. The layers' maps are turned and mirrored onto each other
    (orthogonal Procrustes), each onto the one before, so that images can be followed from layer to layer.

    Args:
        model: Any CNN.
        feature: One unit or a direction. It is taken at each image's own maximum, unless it has a single position.
        images: As for ``score``. Those that do not drive the feature are left out: on which it is not above 0, or below
            5 % of its highest response.
        method: ``"pca"``: the two principal components. ``"umap"``: UMAP (extra ``umap``), which keeps neighbors but
            not distances, beginning at the principal components.
        groups: The group of each image: what ``split`` returned for these images, or a name for each of them, with None
            or ``""`` for no group. They change no point.
        circuit: Stay inside this circuit.
        batch_size: Maximum number of images that run at once.
        seed: Seed of the compression and of UMAP.
        memory: As for ``score``.
        progress: Called with the number of images done and their total (or None).

    Raises:
        ConvCircuitsError: If fewer than three images (UMAP: ten) drive the feature, there is no such method,
            umap-learn is not installed, there is not one group for each image, or as for ``score``.

    Examples:
        >>> way = cc.trajectory(model, feature, images)
        >>> way.points.shape == (len(way.layers), len(way), 2)
        True
    """
    check_progress(progress)
    check_placing(method)
    seed = whole_number(option("seed"), seed, 0, 2**32 - 1)
    feature = feature.at_maximum()
    begin(progress, "reading how each image is computed")
    saliencies = image_saliencies(
        model,
        feature,
        images,
        circuit=circuit,
        batch_size=batch_size,
        seed=seed,
        memory=memory,
        progress=progress,
    )
    names, labels = _labels(groups, len(saliencies))
    active = saliencies.driven
    count, fewest = int(active.sum()), UMAP_FEWEST if method == "umap" else FEWEST
    if count < fewest:
        raise ConvCircuitsError(
            f"{feature} is above 0, and at least {DRIVEN:.0%} of its highest response, on {count} of {len(active)} "
            f"images; to place them by {method} it takes at least {fewest}. Give other images or another unit."
        )
    placed = saliencies.of(active)
    near = min(NEIGHBORS, (count - 1) // 2)
    begin(progress, "placing images")
    raw, explained, kept, notes = [], [], [], []
    for done, (layer, part) in enumerate(placed.layers.items(), start=1):
        every = Coordinates.learned({layer: part}, count).of({layer: part})
        variance = float((every**2).sum()) / count
        if variance <= _FLAT:
            notes.append(f"{layer} computes the feature alike on all images; its map is one point.")
            raw.append(np.zeros((count, 2)))
            explained.append(math.nan)
            kept.append(math.nan)
        else:
            first = np.pad(every[:, :2], ((0, 0), (0, max(0, 2 - every.shape[1]))))
            raw.append(first if method == "pca" else by_umap(every, first, seed))
            explained.append(float((first**2).sum()) / count / variance if method == "pca" else math.nan)
            kept.append(common_neighbors(raw[-1], every, near))
        silent = int((part == 0).all(1).sum())
        if silent:
            notes.append(f"No kernel of {layer} matters on {silent} of {count} images; they are at one place there.")
        if progress is not None:
            progress(done, len(placed.layers))
    points = in_line(raw, placed.response.numpy())
    return Trajectory(
        feature=str(feature),
        method=method,
        layers=tuple(placed.layers),
        image=active.nonzero()[:, 0],
        points=torch.from_numpy(np.stack(points)),
        explained=torch.tensor(explained, dtype=torch.float64),
        kept=torch.tensor(kept, dtype=torch.float64),
        disparity=_from_layer_to_layer(points, disparity),
        shared=_from_layer_to_layer(points, lambda a, b: common_neighbors(a, b, near)),
        neighbors=near,
        response=placed.response,
        groups=names,
        labels=labels[active],
        notes=(*saliencies.notes(feature), *_notes(method, explained, count), *notes),
        provenance={**saliencies.provenance, "method": method, "neighbors": near},
    )


def in_line(maps: Sequence[Points], response: Points) -> list[Points]:
    """Return maps of the same images, each turned and mirrored onto the one before.

    All are centered and scaled to a mean square distance of 1 from the center. The first is mirrored such that the
    response grows to the right and upward; one without any spread is passed over.

    Args:
        maps: The maps, each (n, 2).
        response: What grows along both axes of the first map, (n,).
    """
    found: list[Points] = []
    onto: Points | None = None
    for points in map(_scaled, maps):
        if points.any():
            if onto is None:
                turned = np.where((response - response.mean()) @ points < 0, -points, points)
            else:
                left, _, right = np.linalg.svd(points.T @ onto)
                turned = points @ (left @ right)
            onto = turned
            found.append(turned)
        else:
            found.append(points)
    return found


def disparity(points: Points, onto: Points) -> float:
    """Return the Procrustes disparity of two maps of the same images; NaN if one has no spread.

    It is what ``scipy.spatial.procrustes`` returns: after both are brought to equal size, the sum of squared distances
    that is left when one is turned, mirrored and scaled onto the other, from 0 to 1.
    """
    one, other = _scaled(points), _scaled(onto)
    if not one.any() or not other.any():
        return math.nan
    return float(max(0.0, 1 - (np.linalg.svd(one.T @ other / len(one), compute_uv=False).sum()) ** 2))


def common_neighbors(one: Points, other: Points, count: int) -> float:
    """Return the share of nearest neighbors that images have in common in two spaces, above chance.

    Images at equal distances are neighbors in equal parts, so that the order of images does not matter.

    Args:
        one: Points of the images, (n, d).
        other: Points of the same images, (n, e).
        count: Number of neighbors, below n - 1.

    Returns:
        1 if all are in common, 0 for as many as expected by chance; NaN if a space has no spread.
    """
    if not np.ptp(one, 0).any() or not np.ptp(other, 0).any():
        return math.nan
    chance = count / (len(one) - 1)
    total = 0.0
    for begins in range(0, len(one), _ROWS):
        rows = np.arange(begins, min(begins + _ROWS, len(one)))
        total += float(np.minimum(_neighbors(one, rows, count), _neighbors(other, rows, count)).sum())
    return (total / (len(one) * count) - chance) / (1 - chance)


def _neighbors(points: Points, rows: Any, count: int) -> Points:
    """Return how far each image is one of the nearest neighbors of some, from 0 to 1: (rows, n)."""
    points = points - points.mean(0)
    sizes = (points**2).sum(1)
    far = sizes[rows, None] + sizes - 2 * points[rows] @ points.T  # squared
    far[np.arange(len(rows)), rows] = np.inf
    limit, tie = np.partition(far, count - 1, 1)[:, [count - 1]], _TIE * sizes.mean()
    nearer = far < limit - tie
    tied = (far <= limit + tie) & ~nearer
    found: Points = nearer + tied * ((count - nearer.sum(1, keepdims=True)) / tied.sum(1, keepdims=True))
    return found


def _scaled(points: Points) -> Points:
    """Return a map around 0 with a mean square distance of 1 from it; zeros if it has no spread."""
    centered = points - points.mean(0)
    size = math.sqrt(float((centered**2).sum()) / len(centered))
    if size <= _FLAT * max(1.0, float(np.abs(points).max())):
        return np.zeros_like(centered)
    scaled: Points = centered / size
    return scaled


def _from_layer_to_layer(maps: Sequence[Points], measure: Any) -> Tensor:
    """Measure each map against the one before."""
    pairs = zip(maps[1:], maps, strict=False)
    return torch.tensor([math.nan, *(measure(one, before) for one, before in pairs)], dtype=torch.float64)


def _labels(groups: Split | Sequence[Hashable] | None, count: int) -> tuple[tuple[str, ...], Tensor]:
    """Return the names of the groups, in the order of a split or else sorted, and the label of each image."""
    if groups is None:
        return (), torch.full((count,), -1)
    given = [row["group"] for row in groups.rows()] if isinstance(groups, Split) else groups
    if isinstance(given, str) or len(given) != count:
        raise ConvCircuitsError(
            f"There are {count} images but {len(given)} groups; give the name of a group, or None, for each image."
        )
    texts = ["" if one is None else str(one) for one in given]
    names = list(groups.circuits) if isinstance(groups, Split) else sorted({*texts} - {""})
    numbers = {name: n for n, name in enumerate(names)} | {"": -1}
    return tuple(names), torch.tensor([numbers[text] for text in texts])


def _notes(method: str, explained: Sequence[float], count: int) -> list[str]:
    """Return what there is to say of all layers together."""
    notes = []
    if count <= 2 * NEIGHBORS:
        notes.append(f"With {count} images the figures vary much from one choice of images to another.")
    little = sum(share < _LITTLE for share in explained)
    if little:
        notes.append(
            f"In {little} of {len(explained)} layers the map holds less than {_LITTLE:.0%} of the variance: images "
            "that lie together there may be computed differently."
        )
    if method == "umap":
        notes.append(f"{UMAP_NOTE}, and there is no share of variance.")
    return notes
