"""Where things lie on a map of two dimensions: what the ways to place them have in common, and UMAP."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from convcircuits.errors import ConvCircuitsError, option

Placing = Literal["pca", "umap"]

UMAP_FEWEST = 10
"""The fewest things that UMAP places: of fewer, it has no neighborhoods to keep."""

UMAP_NOTE = "UMAP keeps neighbors, not distances: how wide a group or a gap is means nothing"

_NEIGHBORS = 15  # as umap-learn has by default
_FLAT = 1e-6  # spread of an axis of a map, of which the other goes up to 10, that is rounding

Points = npt.NDArray[np.float64]


def check_placing(method: str) -> None:
    """Check that there is a method, before any work is done.

    Raises:
        ConvCircuitsError: If there is not, or what it needs is not installed.
    """
    if method not in get_args(Placing):
        raise ConvCircuitsError(
            f"{option('method')} must be one of {', '.join(map(repr, get_args(Placing)))}; got {method!r}."
        )
    if method == "umap":
        _umap()


def by_umap(given: Points, first: Points, seed: int, *, distances: bool = False) -> Points:
    """Return UMAP's map, (n, 2), which begins at another one.

    With the same seed, on the same machine, it is the same.

    Args:
        given: A point for each thing, (n, d), n at least ``UMAP_FEWEST``.
        first: The map to begin at, (n, 2), with some spread. An axis without any begins at random.
        seed: Seed of UMAP.
        distances: Whether ``given`` has the distances between all things, (n, n), in place of points.

    Raises:
        ConvCircuitsError: If umap-learn is not installed.
    """
    begin = 10 * first / np.abs(first).max()  # as large as UMAP's own beginnings
    flat = np.ptp(begin, 0) <= _FLAT  # UMAP would divide by its spread
    begin[:, flat] = np.random.default_rng(seed).uniform(-10, 10, (len(begin), int(flat.sum())))
    placing = _umap().UMAP(
        n_neighbors=min(_NEIGHBORS, len(given) - 1),
        metric="precomputed" if distances else "euclidean",
        init=begin,
        random_state=seed,
        n_jobs=1,  # as a seed requires
    )
    with warnings.catch_warnings(), _threads_kept():
        warnings.filterwarnings("ignore", "using precomputed metric")  # which cannot place things added later
        found: Points = np.asarray(placing.fit_transform(given), dtype=np.float64)
    return found


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """Keep how many threads torch uses: numba, which UMAP runs on, sets that of OpenMP, which is torch's."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _umap() -> Any:
    """Import umap-learn.

    Raises:
        ConvCircuitsError: If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a part of it needs TensorFlow
            import umap
    except ImportError as error:
        raise ConvCircuitsError("UMAP needs umap-learn: pip install 'convcircuits[umap]'.") from error
    return umap
