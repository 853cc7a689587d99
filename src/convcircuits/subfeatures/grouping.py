"""Group images by vectors: coordinates, two-means, and a test of whether there are two groups at all."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.subfeatures.unimodality import dip_p_value, median_p_value

Points = NDArray[np.float64]
Vectors = Mapping[str, Float[Tensor, "n _"]]
"""Parts of what describes each image, such as the saliencies of each layer: name -> (images, d)."""

COMPONENTS = 10
"""Number of principal components that images are grouped by."""

FEWEST = 20
"""The fewest photographs for which ``two_groups_p_value`` can be asked."""

_STARTS = 10  # of k-means
_TIMES = 5  # that photographs are divided into halves


@dataclass(frozen=True)
class Coordinates:
    """Principal components of vectors, learned on some images.

    Each part is brought to unit length, so that the strength of a response does not matter; centered on the mean of the
    images that were learned on; and again brought to unit length, so that each part and each image counts alike.

    Attributes:
        means: The mean of each part, at unit length.
        mean: The mean of all parts together, after that.
        basis: The principal components, (d, k).
    """

    means: Mapping[str, Points]
    mean: Points
    basis: Points

    @classmethod
    def learned(cls, vectors: Vectors, components: int = COMPONENTS) -> "Coordinates":
        """Learn the components of some images.

        Raises:
            ConvCircuitsError: If fewer components are wanted than there may be and scipy is not installed.
        """
        means = {name: _unit(part).mean(0) for name, part in vectors.items()}
        joined = _joined(vectors, means)
        mean = joined.mean(0)
        joined -= mean
        sizes, basis = _components(joined, components)
        kept = min(components, int((sizes > 1e-9 * max(sizes[0], 1e-300)).sum()))
        basis = basis[:, :kept]
        largest = np.take_along_axis(basis, np.abs(basis).argmax(0)[None], 0)
        return cls(means, mean, basis * np.sign(largest))  # whose signs do not depend on rounding

    def of(self, vectors: Vectors) -> Points:
        """Return the coordinates of images, (n, k)."""
        ends = np.cumsum([part.shape[1] for part in vectors.values()])
        parts = zip(_blocks(vectors, self.means), np.split(self.basis, ends[:-1]), strict=True)
        found: Points = sum(block @ basis for block, basis in parts) - self.mean @ self.basis
        return found


def k_means(points: Points, count: int, seed: int) -> Any:
    """Return scikit-learn's fitted ``KMeans``.

    Raises:
        ConvCircuitsError: If scikit-learn is not installed, or there are fewer different images than groups.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ConvCircuitsError("Grouping images needs scikit-learn: pip install 'convcircuits[split]'.") from error
    different = len(np.unique(points, axis=0)) if points.size else min(1, len(points))
    if different < count:
        raise ConvCircuitsError(
            f"On {len(points)} images the feature is computed in {different} different ways, fewer than {count} "
            "groups; give more images, or ask for fewer groups."
        )
    return KMeans(count, n_init=_STARTS, random_state=seed).fit(points)


def two_groups_p_value(vectors: Vectors, photographs: NDArray[np.int64], seed: int) -> float:
    """Return a p-value of the hypothesis that images form one group, though perhaps a wide or skewed one.

    Half of the photographs decide, by two-means, along which direction there might be two groups. Along it, the others
    must be bimodal by Hartigan's dip test. Since they did not choose the direction, the p-value holds whatever the
    distribution is, as long as it is unimodal along every direction; it need not be a Gaussian.
    (SigClust, which compares with a Gaussian of equal covariance, called 30 % of planted units with one mechanism
    several.) Of the p-values of ten halves the median counts, compared with that of halves of uniform samples.

    Of each photograph one crop is tested, drawn at random: several are no independent evidence.

    Args:
        vectors: What describes the images.
        photographs: Number of the photograph that each image is a crop of.
        seed: Seed of the halves.

    Returns:
        The p-value; 1 if there are fewer than ``FEWEST`` photographs.
    """
    names, places = np.unique(photographs, return_inverse=True)
    if len(names) < FEWEST:
        return 1.0
    dice, crops = np.random.default_rng(seed), np.random.default_rng([seed, 1])  # the halves do not depend on crops
    values = []
    for _ in range(_TIMES):
        halves = np.array_split(dice.permutation(len(names)), 2)
        for chosen, rest in (halves, halves[::-1]):
            learning = np.isin(places, chosen)
            coordinates = Coordinates.learned(
                {name: part[torch.from_numpy(learning)] for name, part in vectors.items()}
            )
            points = coordinates.of(vectors)
            if len(np.unique(points[learning], axis=0)) < 2:
                values.append(1.0)
                continue
            first, second = k_means(points[learning], 2, seed).cluster_centers_
            tested = [crops.choice(np.flatnonzero(places == photograph)) for photograph in rest]
            values.append(dip_p_value(points[tested] @ (second - first)))
    return median_p_value(float(np.median(values)), _TIMES)


def _components(points: Points, count: int) -> tuple[Points, Points]:
    """Return the largest singular values of a matrix (n, d), and the right singular vectors, (d, k).

    If few are wanted, eigenvectors of the smaller Gram matrix lead to the space of these vectors. There a small
    decomposition finds them as exactly as one of the whole matrix does, which takes many times as long.
    """
    images, numbers = points.shape
    if count >= min(images, numbers):
        _, sizes, basis = np.linalg.svd(points, full_matrices=False)
        return sizes, basis.T
    try:
        from scipy.linalg import eigh
    except ImportError as error:
        raise ConvCircuitsError("Grouping images needs scipy: pip install 'convcircuits[split]'.") from error
    gram = points @ points.T if images <= numbers else points.T @ points
    _, leading = eigh(gram, subset_by_index=(len(gram) - count, len(gram) - 1), overwrite_a=True)
    space, _ = np.linalg.qr(points.T @ leading if images <= numbers else leading)
    _, sizes, basis = np.linalg.svd(points @ space, full_matrices=False)
    return sizes, space @ basis.T


def _joined(vectors: Vectors, means: Mapping[str, Points]) -> Points:
    joined = np.empty((len(next(iter(vectors.values()))), sum(part.shape[1] for part in vectors.values())))
    begin = 0
    for block in _blocks(vectors, means):
        joined[:, begin : begin + block.shape[1]] = block
        begin += block.shape[1]
    return joined


def _blocks(vectors: Vectors, means: Mapping[str, Points]) -> Iterator[Points]:
    """Yield each part at unit length, centered, and again at unit length."""
    for name, part in vectors.items():
        yield _unit(_unit(part) - means[name])


def _unit(part: Tensor | Points) -> Points:
    values: Points = part.double().numpy() if isinstance(part, Tensor) else part
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    divided: Points = np.divide(
        values, lengths, out=np.zeros_like(values), where=lengths > 1e-12 * lengths.max(initial=0)
    )
    return divided
