"""Shared by ``compare`` and ``demo``: what they compare by default, and how they write and print the results."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convcircuits.cli.output import aligned

if TYPE_CHECKING:
    import convcircuits as cc
    from convcircuits.circuits.comparison import Row
    from convcircuits.recipes import Setup

CRITERIA = ("progressive", "gauss_newton", "actgrad", "snip", "force", "magnitude", "random")
DENSITIES = (0.3, 0.1, 0.05, 0.02, 0.01)
EXPLAINED = (
    "R2 is 1 for a perfect copy of the feature's map, and below 0 if the map's mean would do better. The interior "
    "is\nwhere padding plays no part. The average map is that of the training images and needs no network. Random "
    "circuits\nkeep the same number of kernels in each layer; the best one is shown.\n"
)
_SHORT = {"keeps": "yes", "keeps in part": "part", "does not keep": "no", "not decided": "?"}


def write_comparison(
    rows: "Sequence[Row]", folder: Path, feature: "cc.Feature", setup: "Setup"
) -> list[dict[str, Any]]:
    """Write ``comparison.csv`` and the chart ``comparison.png`` to a folder. Return the rows of the table."""
    from convcircuits.charts import fidelity_chart

    table = [row.as_dict() for row in rows]
    write_table(folder / "comparison.csv", table)
    fidelity_chart(
        table,
        folder / "comparison.png",
        title=f"{setup.loaded.name} {feature}: circuits measured on {len(setup.held_out.images)} crops of "
        f"{len(setup.held_out.names)} photographs they were not found on",
    )
    return table


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns as CSV."""
    from convcircuits.files import write_whole

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def comparison_table(rows: "Sequence[Row]") -> str:
    """Tabulate R2, on the interior too, verdict and constants by criterion and density, with both baselines."""
    densities = sorted({row.density for row in rows}, reverse=True)
    found = {(row.criterion, row.density): row.evaluation for row in rows}
    table = [["R2, interior, keeps?", *(f"{100 * density:.3g}% kept".rjust(12) for density in densities)]]
    for criterion in dict.fromkeys(row.criterion for row in rows):
        reports = [found[criterion, density] for density in densities]
        table.append([criterion, *(f"{e.r2:z6.2f} {e.r2_interior:z5.2f} {_SHORT[e.verdict]:<4}" for e in reports)])
        if any(e.constants for e in reports):
            table.append(["  constants fitted", *(f"{e.constants:,}".rjust(12) for e in reports)])
    for name, figure in (("(average map)", "r2_average_map"), ("(random circuit)", "r2_random")):
        cells = [name]
        for density in densities:
            beside = [row.evaluation.as_dict() for row in rows if row.density == density]
            known = [[e[key] for e in beside if e[key] is not None] for key in (figure, f"{figure}_interior")]
            cells.append("{:z6.2f} {:z5.2f}".format(*(max(some, default=math.nan) for some in known)))
        table.append(cells)
    return aligned(table)
