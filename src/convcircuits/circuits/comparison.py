"""Compare criteria: circuits of several sizes by each criterion, all measured on the same held-out images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from convcircuits.cards import card, figure
from convcircuits.circuits.asking import budget, is_descent, needs_budget
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.circuits.finding import find, find_path, prune, score
from convcircuits.circuits.scoring import MEMORY
from convcircuits.errors import ConvCircuitsError
from convcircuits.frames import frame
from convcircuits.network.batches import Images, Progress, check_progress
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature
from convcircuits.values.report import Evaluation
from convcircuits.values.tables import suggest

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Row:
    """One circuit of a comparison.

    Attributes:
        criterion: Name of the criterion.
        density: The density that was asked for.
        evaluation: The circuit's figures on the held-out images.
        circuit: The circuit.
    """

    criterion: str
    density: float
    evaluation: Evaluation
    circuit: Circuit

    def as_dict(self) -> dict[str, Any]:
        """Return the row as flat JSON values."""
        figures = self.evaluation.as_dict()
        for key in (
            "feature",
            "density",
            "verdict_sentence",
            "readout",
            "elements",
            "granularity",
            "notes",
            "provenance",
        ):
            del figures[key]
        return {"criterion": self.criterion, "density": self.density, **figures}


class ComparisonTable(list[Row]):
    """The rows of a comparison, in the order requested: a list that displays as a table."""

    def __repr__(self) -> str:
        criteria = ", ".join(dict.fromkeys(row.criterion for row in self))
        return f"ComparisonTable({len(self)} circuits by {criteria})"

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the table with one row per circuit and the columns of ``Row.as_dict``; NaN where not defined.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame([row.as_dict() for row in self])

    def summary(self) -> str:
        """Tabulate the constants fitted and R2 of each circuit, beside that of baselines without a criterion."""
        head, *rows = self._cells()
        wide = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in (head, *rows)
        )

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        feature = f" of {self[0].evaluation.feature}" if len(self) else ""
        return card(f"{len(self)} circuits{feature}", head, rows)

    def _cells(self) -> list[tuple[str, ...]]:
        head = ("R2", "average map", "random circuit")
        within = (f"{name}, interior" for name in head)
        cells = [("criterion", "density", "constants fitted", *head, *within, "verdict")]
        for row in self:
            e = row.evaluation
            figures = (e.r2, e.r2_average_map, e.r2_random)
            inside = (e.r2_interior, e.r2_average_map_interior, e.r2_random_interior)
            r2 = map(figure, (*figures, *inside))
            cells.append((row.criterion, f"{row.density:g}", f"{e.constants:,}", *r2, e.verdict))
        return cells


def compare(
    model: nn.Module,
    feature: Feature,
    images: Images,
    held_out: Images,
    *,
    criteria: Sequence[str],
    densities: Sequence[float],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> ComparisonTable:
    """Find circuits by every criterion at every density, and measure them on held-out images.

    A criterion that descends does so once, through all densities. So its circuits may differ from those that ``find``
    returns for a single density.

    Args:
        model: Any CNN.
        feature: What is to be preserved.
        images: The images that circuits are found on; the readout is fitted on them too.
        held_out: The images that circuits are measured on.
        criteria: Names in ``CRITERIA``.
        densities: Shares of the relevant kernels, in (0, 1].
        options: Options of single criteria: name -> its options.
        batch_size: Maximum number of images that run at once.
        seed: Seed for criteria that draw random numbers.
        memory: As for ``score``.
        progress: Called with the steps done and their total. For each criterion, scoring or descending is one step
            (finding is one per density for another iterative one) and measuring is one.

    Returns:
        One row per criterion and density, in the order given; displays as a table, and ``to_pandas`` converts it.

    Raises:
        ConvCircuitsError: As for ``find`` and ``evaluate``.

    Examples:
        >>> table = cc.compare(model, feature, images, held_out, criteria=["snip", "random"], densities=[0.5, 0.1])
        >>> [(row.criterion, row.density) for row in table]
        [('snip', 0.5), ('snip', 0.1), ('random', 0.5), ('random', 0.1)]
    """
    check_compared(criteria, densities)
    work = _Work(sum(len(densities) if _anew(c) else 1 for c in criteria) + len(criteria), progress)
    rows = []
    for criterion in criteria:
        chosen = {
            "criterion": criterion,
            "batch_size": batch_size,
            "seed": seed,
            "memory": memory,
            **(options or {}).get(criterion, {}),
        }
        circuits = circuits_at(model, feature, images, densities, done=work.done_one, **chosen)
        measured = evaluate_all(model, circuits, held_out, fit=images, batch_size=batch_size)
        work.done_one()
        rows += [
            Row(criterion, density, evaluation, circuit)
            for density, evaluation, circuit in zip(densities, measured, circuits, strict=True)
        ]
    return ComparisonTable(rows)


def circuits_at(
    model: nn.Module,
    feature: Feature,
    images: Images,
    densities: Sequence[float],
    *,
    criterion: str,
    memory: int = MEMORY,
    done: Callable[[], None] = lambda: None,
    **chosen: Any,
) -> list[Circuit]:
    """Find circuits of several densities by one criterion: of one scoring, one descent, or each anew.

    Args:
        model: Any CNN.
        feature: What is to be preserved.
        images: The images that circuits are found on.
        densities: Shares of the relevant kernels.
        criterion: Name in ``CRITERIA``.
        memory: As for ``find``.
        done: Called after scoring, after a descent, or after each circuit that is found anew.
        **chosen: As for ``find``, options of the criterion too.

    Returns:
        A circuit for each density, in order.

    Raises:
        ConvCircuitsError: As for ``find``.
    """
    chosen["criterion"] = criterion
    if is_descent(CRITERIA[criterion]):
        path = find_path(model, feature, images, density=densities, **chosen)
        done()
        by_size = {circuit.provenance["asked"]["kernels"]: circuit for circuit in path}
        return [by_size[budget(path[0].relevant, density, None, "kernel")] for density in densities]
    chosen["memory"] = memory  # which a descent does without
    if _anew(criterion):
        circuits = []
        for density in densities:
            circuits.append(find(model, feature, images, density=density, **chosen))
            done()
        return circuits
    scores = score(model, feature, images, **chosen)
    done()
    return [prune(scores, density=density) for density in densities]


def check_compared(criteria: Sequence[str], densities: Sequence[float]) -> None:
    """Check criteria and densities before any work is done.

    Raises:
        ConvCircuitsError: If a criterion is unknown, a density is not in (0, 1], or either list is empty.
    """
    for criterion in criteria:
        if criterion not in CRITERIA:
            raise ConvCircuitsError(f"There is no criterion {criterion!r}. {suggest(str(criterion), CRITERIA)}")
    for density in densities:
        if not 0 < density <= 1:
            raise ConvCircuitsError(f"A density must be in (0, 1]; got {density!r}.")
    if not criteria or not densities:
        raise ConvCircuitsError("There is nothing to compare; give at least one criterion and one density.")


class _Work:
    def __init__(self, total: int, progress: Progress | None) -> None:
        check_progress(progress)
        self._done, self._total, self._progress = 0, total, progress
        if progress is not None:
            progress(0, total)

    def done_one(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _anew(criterion: str) -> bool:
    """Return whether a criterion must find a circuit of every size anew."""
    return needs_budget(CRITERIA[criterion]) and not is_descent(CRITERIA[criterion])
