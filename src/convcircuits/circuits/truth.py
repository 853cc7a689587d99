"""Measure how well criteria find circuits that are known: a kernel of the truth should rank above any other."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convcircuits.cards import card
from convcircuits.circuits.asking import criterion_named, is_descent, needs_budget
from convcircuits.circuits.criteria import layer_random
from convcircuits.circuits.finding import find, find_path, score
from convcircuits.circuits.ranking import top
from convcircuits.circuits.scoring import MEMORY
from convcircuits.errors import ConvCircuitsError
from convcircuits.frames import frame
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature
from convcircuits.values.tables import count_kept

if TYPE_CHECKING:
    import pandas

_FIGURES = {"auroc": "AUROC", "average_precision": "average precision", "precision": "precision at its size"}


@dataclass(frozen=True)
class Agreement:
    """How well a ranking of kernels agrees with a true circuit; each figure is 1 if all of its kernels come first.

    Attributes:
        auroc: The probability that a kernel of the truth ranks above one that is not in it; a tie counts half. 0.5 if
            the ranking says nothing.
        average_precision: Mean over the truth's kernels of the share of the truth among those that rank as high. About
            the truth's share of all kernels if the ranking says nothing.
        precision: Share of the truth among as many kernels as it has, those that rank highest.
    """

    auroc: float
    average_precision: float
    precision: float


def agreement(ranking: Mapping[str, Tensor], truths: Sequence[Mapping[str, Tensor]]) -> Agreement:
    """Compare a ranking of kernels with a known circuit.

    Args:
        ranking: Layer name -> values of the kernels, higher for those that matter more; NaN for those not ranked.
        truths: Circuits, each of which is right: layer name -> bool, same shapes. The best of each figure counts.

    Raises:
        ConvCircuitsError: If a truth has none of the kernels that are ranked, all of them, or others.

    Source: The definitions of scikit-learn's ``roc_auc_score`` and ``average_precision_score``.
    """
    counted = {layer: ~values.isnan() for layer, values in ranking.items()}
    values = torch.cat([ranking[layer][mask].double() for layer, mask in counted.items()])
    agreements = []
    for truth in truths:
        true = torch.cat([truth[layer][mask] for layer, mask in counted.items()])
        size = count_kept(truth)
        if int(true.sum()) != size or not 0 < size < len(true):
            raise ConvCircuitsError(
                f"A true circuit must have some of the {len(true):,} kernels that are ranked, but not all, and no "
                f"others; got one of {size:,}, {int(true.sum()):,} of them ranked."
            )
        first = top(ranking, size)
        right = sum(int((kept & truth[layer]).sum()) for layer, kept in first.items())
        agreements.append(Agreement(*_areas(values, true), right / size))
    return Agreement(*(max(getattr(one, name) for one in agreements) for name in _FIGURES))


def _areas(values: Tensor, true: Tensor) -> tuple[float, float]:
    """Return the areas below the ROC curve and, as steps, below the curve of precision over recall."""
    _, place, sizes = torch.unique(values, return_inverse=True, return_counts=True)
    hits = (
        torch.zeros(len(sizes)).double().index_add_(0, place, true.double()).flip(0)
    )  # of each value, from the highest
    misses = sizes.flip(0) - hits
    hit, missed = hits.cumsum(0), misses.cumsum(0)
    auroc = (misses * (hit - hits / 2)).sum() / (hit[-1] * missed[-1])
    average_precision = (hits * hit / (hit + missed)).sum() / hit[-1]
    return float(auroc), float(average_precision)


def removal_order(path: Sequence[Circuit]) -> dict[str, Tensor]:
    """Rank kernels by how long they stay in a descent, and those that leave together by their scores at that cut.

    Returns:
        Layer name -> float64 of the shape of the kernels; NaN for those that are not relevant.
    """
    left = {layer: ~values.isnan() for layer, values in path[0].saliency.items()}
    order = {layer: torch.full(mask.shape, torch.nan, dtype=torch.float64) for layer, mask in left.items()}
    for cut, circuit in enumerate(path):
        known = torch.unique(torch.cat([circuit.saliency[layer][mask] for layer, mask in left.items()]))
        for layer, mask in left.items():
            place = torch.searchsorted(known, circuit.saliency[layer][mask]).double() / len(known)
            order[layer][mask] = cut + circuit[layer][mask].double() + place
        left = {layer: circuit[layer] for layer in left}
    return order


@dataclass(frozen=True)
class Case:
    """A network whose circuit is known.

    Attributes:
        net: What kind of network it is.
        seed: The seed that it was made from.
        model: The network.
        feature: The feature.
        images: Images for criteria, (n, c, h, w).
        truths: Circuits, each of which is right, the one with all redundant kernels first: layer name -> bool.
    """

    net: str
    seed: int
    model: nn.Module
    feature: Feature
    images: Tensor
    truths: Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Recovery(Agreement):
    """How well one criterion found one known circuit.

    Attributes:
        net: The kind of network.
        seed: The network's seed.
        criterion: Name of the criterion.
        kernels: Number of kernels of the truth.
        relevant: Number of kernels that are ranked.
    """

    net: str
    seed: int
    criterion: str
    kernels: int
    relevant: int

    def as_dict(self) -> dict[str, Any]:
        """Return the row as flat JSON values."""
        about = ("net", "seed", "criterion", "kernels", "relevant")
        return {name: getattr(self, name) for name in (*about, *_FIGURES)}


class Recoveries(list[Recovery]):
    """How well criteria found known circuits: a list that displays as a table."""

    def __repr__(self) -> str:
        return f"Recoveries({len(self)} rankings by {', '.join(dict.fromkeys(row.criterion for row in self))})"

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the table with one row per network and criterion, and the columns of ``Recovery.as_dict``.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame([row.as_dict() for row in self])

    def summary(self) -> str:
        """Tabulate each figure by kind of network and criterion: the median over seeds, and the range."""
        lines = self._cells()
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip() for line in lines
        )

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        return card(repr(self), head, rows)

    def _cells(self) -> list[tuple[str, ...]]:
        groups: dict[tuple[str, str], list[Recovery]] = {}
        for row in self:
            groups.setdefault((row.net, row.criterion), []).append(row)
        lines = [("net", "criterion", "truth's share", *_FIGURES.values())]
        for key, rows in groups.items():
            share = statistics.median(row.kernels / row.relevant for row in rows)
            figures = ([getattr(row, name) for row in rows] for name in _FIGURES)
            lines.append((*key, f"{share:.1%}", *map(_spread, figures)))
        return lines


def recover(
    case: Case,
    *,
    criteria: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = MEMORY,
) -> Recoveries:
    """Measure how well criteria find a known circuit.

    Kernels are ranked by their scores. A criterion that descends ranks them by when it removes them, on its way to the
    size of the smallest truth; one that needs a budget gets that size. ``layer_random`` is given the truth's number of
    kernels in each layer.

    Args:
        case: A network whose circuit is known.
        criteria: Names in ``CRITERIA``.
        options: Options of single criteria: name -> its options.
        batch_size: Maximum number of images that run at once.
        seed: Seed for criteria that draw random numbers.
        memory: As for ``score``.

    Returns:
        One row per criterion, in the order given.

    Raises:
        ConvCircuitsError: As for ``find`` and ``agreement``.
    """
    for name in criteria:
        criterion_named(name)  # before any work is done
    sizes = [count_kept(truth) for truth in case.truths]
    shared = {"batch_size": batch_size, "seed": seed}
    rows = Recoveries()
    for name in criteria:
        ranking = _ranking(case, name, min(sizes), memory, **shared, **(options or {}).get(name, {}))
        relevant = sum(int((~values.isnan()).sum()) for values in ranking.values())
        figures = asdict(agreement(ranking, case.truths))
        about = {"net": case.net, "seed": case.seed, "criterion": name, "kernels": sizes[0], "relevant": relevant}
        rows.append(Recovery(**figures, **about))  # type: ignore[arg-type]
    return rows


def _ranking(case: Case, criterion: str, kernels: int, memory: int, **options: Any) -> Mapping[str, Tensor]:
    """Rank kernels by a criterion, which is told a number of kernels if it needs one."""
    function, given = criterion_named(criterion), (case.model, case.feature, case.images)
    if function is layer_random and "like" not in options:
        channels, height, width = case.images.shape[1:]
        true = Circuit.from_masks(case.model, case.feature, case.truths[0], input_shape=(channels, height, width))
        options["like"] = true
    if is_descent(function):
        return removal_order(find_path(*given, criterion=criterion, kernels=kernels, **options))
    if needs_budget(function):
        return find(*given, criterion=criterion, kernels=kernels, memory=memory, **options).saliency
    return score(*given, criterion=criterion, memory=memory, **options).elements


def _spread(values: Sequence[float]) -> str:
    middle = f"{statistics.median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"
