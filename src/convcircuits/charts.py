"""Charts, drawn from tables."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convcircuits.errors import ConvCircuitsError
from convcircuits.files import write_whole

# Okabe and Ito's colours, which the colour-blind tell apart; baselines are grey.
_COLOURS = ["#c2570c", "#0072b2", "#009e73", "#5b3a9e", "#cc79a7", "#56b4e9", "#e69f00"]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
_FIGURES = {
    "pearson": "Pearson r",
    "r2": "R² (cut off below -0.5)",
    "r2_readout": "R² after a two-number readout",
}
_BASELINES = {"magnitude": ("#555555", "--"), "random": ("#999999", ":"), "layer_random": ("#bbbbbb", "-.")}


def fidelity_chart(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    title: str,
) -> None:
    """Draw fidelity against density, on a log axis, with one line per criterion.

    Args:
        rows: Mappings with ``criterion``, ``density`` and the figures; None where a figure is not defined.
        path: A ``.png``, ``.svg`` or ``.pdf`` file.
        title: Stands above.

    Raises:
        ConvCircuitsError: If matplotlib is not installed, or the file has another ending or cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullLocator
    except ImportError as error:
        raise ConvCircuitsError("Charts need matplotlib: pip install 'convcircuits[charts]'.") from error

    kind = path.suffix.lstrip(".")
    if kind not in ("png", "svg", "pdf"):
        raise ConvCircuitsError(f"A chart is a .png, .svg or .pdf file; got {path}.")
    densities = sorted({row["density"] for row in rows})
    criteria = list(dict.fromkeys(row["criterion"] for row in rows))
    figure = Figure(figsize=(3.9 * len(_FIGURES), 4.2), layout="constrained")
    axes = figure.subplots(1, len(_FIGURES), squeeze=False)[0]
    lines: list[Any] = []
    for axis, (column, label) in zip(axes, _FIGURES.items(), strict=True):
        coloured = iter(zip(_COLOURS * len(criteria), _MARKERS * len(criteria), strict=False))
        lines = []
        for criterion in criteria:
            points = [
                (row["density"], row[column])
                for row in rows
                if row["criterion"] == criterion and row[column] is not None
            ]
            if criterion in _BASELINES:
                colour, style = _BASELINES[criterion]
                marker = "."
            else:
                (colour, marker), style = next(coloured), "-"
            lines += axis.plot(
                *zip(*sorted(points), strict=True) if points else ([], []),
                color=colour,
                linestyle=style,
                marker=marker,
                markersize=5,
                linewidth=1.6,
                label=criterion,
            )
        axis.set_xscale("log")
        axis.set_xticks(densities)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{100 * d:g} %"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(-0.55, 1.04)  # an R2 far below 0 says no more than one a little below
        axis.axhline(0, color="#dddddd", linewidth=0.8, zorder=0)
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("kernels kept / relevant kernels", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=lines, loc="outside lower center", ncols=len(criteria), frameon=False, fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150)
    write_whole(path, content.getvalue())
