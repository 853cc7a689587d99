"""Charts, drawn from tables."""

import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convcircuits.errors import ConvCircuitsError
from convcircuits.files import write_whole

# Okabe and Ito's colors, which color-blind readers can distinguish; baselines are gray.
_COLORS = ["#c2570c", "#0072b2", "#009e73", "#5b3a9e", "#cc79a7", "#56b4e9", "#e69f00"]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
_FIGURES = {
    "r2": "R² (cut off below -0.5)",
    "r2_interior": "R² on the interior, away from padding",
    "r2_rectified": "R² of the rectified map",
    "pearson": "Pearson r",
}
_BESIDE = ("r2", "r2_interior")  # the figures that have baselines without a criterion
_BESIDE_STYLE: dict[str, dict[str, Any]] = {
    "average training map": {"color": "#111111", "linestyle": "--", "linewidth": 1.1},
    "best random circuit of equal size": {"color": "#999999", "linestyle": (0, (1, 3)), "linewidth": 1.6},
}
_RESPONSES = ["#d8bfac", "#c2570c", "#4d1f03"]  # from the weakest response to the strongest
_NO_GROUP = "#bbbbbb"
_BASELINES = {"magnitude": ("#555555", "--"), "random": ("#999999", ":"), "layer_random": ("#bbbbbb", "-.")}
_MORE_FONTS = (  # tried in turn for letters that matplotlib's own font does not have
    "Noto Sans CJK JP",
    "Noto Sans",
    "WenQuanYi Micro Hei",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Arial Unicode MS",
)
_PARAMETERS = {
    "size": "size (pixels)",
    "width": "width (pixels)",
    "orientation": "orientation (degrees)",
    "turn": "turn (degrees)",
    "frequency": "cycles per pixel",
    "phase": "phase (degrees)",
    "contrast": "contrast",
}


def check_charts_installed() -> None:
    """Check that charts can be drawn, before any work is done.

    Raises:
        ConvCircuitsError: If matplotlib cannot be imported.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ConvCircuitsError("Charts need matplotlib: pip install 'convcircuits[charts]'.") from error


def fidelity_chart(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    title: str,
) -> None:
    """Draw fidelity against density, on a log axis, with one line per criterion, marked if its circuits have constants.

    R2 and R2 on the interior have two baselines: the average training map and, at each density, the best of the random
    circuits that keep the same number of elements in each layer as one of the circuits.

    Args:
        rows: Mappings as returned by ``Row.as_dict``; None where a figure is not defined.
        path: A ``.png``, ``.svg`` or ``.pdf`` file.
        title: Title above the charts.

    Raises:
        ConvCircuitsError: If matplotlib is not installed, or the file has another suffix or cannot be written.
    """
    check_charts_installed()
    _check_suffix(path)
    from matplotlib.figure import Figure

    densities = sorted({row["density"] for row in rows})
    criteria = list(dict.fromkeys(row["criterion"] for row in rows))
    fitted = {row["criterion"] for row in rows if row.get("constants")}
    figure = Figure(figsize=(3.4 * len(_FIGURES), 4.2), layout="constrained")
    axes = figure.subplots(1, len(_FIGURES), squeeze=False)[0]
    headings = dict(_FIGURES)
    if any(row.get("interior") == "central" for row in rows):
        headings["r2_interior"] = "R² on the central positions"
    lines: list[Any] = []
    for axis, (column, heading) in zip(axes, headings.items(), strict=True):
        styles = iter(zip(_COLORS * len(criteria), _MARKERS * len(criteria), strict=False))
        lines = []
        for criterion in criteria:
            points = [
                (row["density"], row[column])
                for row in rows
                if row["criterion"] == criterion and row[column] is not None
            ]
            if criterion in _BASELINES:
                color, style = _BASELINES[criterion]
                marker = "."
            else:
                (color, marker), style = next(styles), "-"
            lines += axis.plot(
                *zip(*sorted(points), strict=True) if points else ([], []),
                color=color,
                linestyle=style,
                marker=marker,
                markersize=5,
                linewidth=1.6,
                label=f"{criterion} (constants fitted)" if criterion in fitted else criterion,
            )
        for label, points in _beside(rows, column).items():
            axis.plot(*zip(*points, strict=True), label=label, **_BESIDE_STYLE[label])
        _show_densities(axis, densities)
        axis.set_ylim(-0.55, 1.04)  # how far R2 is below 0 does not matter
        axis.axhline(0, color="#dddddd", linewidth=0.8, zorder=0)
        axis.set_title(heading, fontsize=10)
    lines += [line for line in axes[0].get_lines() if line.get_label() in _BESIDE_STYLE]
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=9)
    _write(figure, path)


def tuning_chart(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    title: str,
    pictures: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> None:
    """Draw tuning curves: a row of panels for each kind of stimulus, one for each parameter, a line for each feature.

    All panels have one scale of responses; 0 is the response to the background alone.

    Args:
        rows: Mappings as returned by ``Tuning.curves``, at least one.
        path: A ``.png``, ``.svg`` or ``.pdf`` file.
        title: Title above the charts.
        pictures: Gray levels from 0 to 1, row by row, of a stimulus of each kind, such as the preferred one of the
            first feature; drawn at the beginning of the row.

    Raises:
        ConvCircuitsError: If matplotlib is not installed, or the file has another suffix or cannot be written.
    """
    check_charts_installed()
    _check_suffix(path)
    from matplotlib.figure import Figure

    kinds, features = (list(dict.fromkeys(row[name] for row in rows)) for name in ("kind", "feature"))
    parameters = {k: list(dict.fromkeys(row["parameter"] for row in rows if row["kind"] == k)) for k in kinds}
    columns = 1 + max(map(len, parameters.values()))
    figure = Figure(figsize=(2.3 * columns, 1.75 * len(kinds) + 1.1), layout="constrained")
    axes = figure.subplots(len(kinds), columns, squeeze=False)
    values = [row["relative"] for row in rows]
    room = 0.06 * (max(*values, 0) - min(*values, 0)) or 1
    limits = (min(*values, 0) - room, max(*values, 0) + room)
    for line, kind in zip(axes, kinds, strict=True):
        for axis in line[1 + len(parameters[kind]) :]:
            axis.set_axis_off()
        _show_picture(line[0], kind, (pictures or {}).get(kind))
        for axis, parameter in zip(line[1:], parameters[kind], strict=False):
            own = [row for row in rows if (row["kind"], row["parameter"]) == (kind, parameter)]
            _draw_curves(axis, own, features)
            axis.set_ylim(*limits)
            axis.set_xlabel(_PARAMETERS[parameter], fontsize=8)
        line[1].set_ylabel("relative response", fontsize=8)
    figure.suptitle(title, fontsize=11)
    if len(features) > 1:
        handles = axes[0][1].get_lines()[: len(features)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    _write(figure, path)


def _show_picture(axis: Any, kind: str, picture: Sequence[Sequence[float]] | None) -> None:
    axis.set_title(kind, fontsize=10)
    axis.set_axis_off()
    if picture is not None:
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _draw_curves(axis: Any, rows: Sequence[Mapping[str, Any]], features: Sequence[str]) -> None:
    """Draw the curve of each feature, and the line of no response."""
    for n, feature in enumerate(features):
        points = [(row["value"], row["relative"]) for row in rows if row["feature"] == feature]
        axis.plot(
            *zip(*points, strict=True) if points else ([], []),
            color=_COLORS[n % len(_COLORS)],
            marker=_MARKERS[n % len(_MARKERS)],
            markersize=3.5,
            linewidth=1.4,
            label=feature,
        )
    axis.axhline(0, color="#dddddd", linewidth=0.8, zorder=0)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def cross_chart(cross: Mapping[str, Any], path: Path) -> None:
    """Draw a cross-test: errors on each group against density, and the matrix of errors at one size.

    A circuit's line is solid on its own group and dashed on the others.

    Args:
        cross: What ``Cross.as_dict`` returns.
        path: A ``.png``, ``.svg`` or ``.pdf`` file.

    Raises:
        ConvCircuitsError: If matplotlib is not installed, or the file has another suffix or cannot be written.
    """
    check_charts_installed()
    _check_suffix(path)
    from matplotlib.figure import Figure

    names, chosen = list(cross["groups"]), cross["chosen"]
    figure = Figure(figsize=(3.3 * len(names) + 3.6, 3.9), layout="constrained")
    *axes, last = figure.subplots(1, len(names) + 1)
    densities = [one["density"] for one in cross["selectivity"]]
    for axis, name in zip(axes, names, strict=True):
        for n, other in enumerate(names):
            rows = [row for row in cross["rows"] if (row["circuit"], row["group"]) == (other, name)]
            axis.plot(
                [row["density"] for row in rows],
                [row["error"] for row in rows],
                color=_COLORS[n % len(_COLORS)],
                marker=_MARKERS[n % len(_MARKERS)],
                linestyle="-" if other == name else "--",
                linewidth=2 if other == name else 1.4,
                label=f"circuit of {other}",
            )
        axis.axhline(1, color="#dddddd", linewidth=0.8, zorder=0)
        axis.axvline(densities[chosen], color="#dddddd", linewidth=0.8, zorder=0)
        _show_densities(axis, densities)
        axis.set_ylim(-0.03, max(1.05, *(row["error"] or 0 for row in cross["rows"])) + 0.03)
        axis.set_title(f"on images of {name}", fontsize=10)
    axes[0].set_ylabel("relative error at the image's own position", fontsize=9)
    _show_matrix(last, cross, names, chosen)
    figure.suptitle(f"{cross['feature']}: {cross['verdict']}", fontsize=11)
    handles = [axis.get_lines()[n] for n, axis in enumerate(axes)]  # each on its own group, a solid line
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    _write(figure, path)


def _show_matrix(axis: Any, cross: Mapping[str, Any], names: Sequence[str], chosen: int) -> None:
    """Show the error of every circuit on every group at one size."""
    errors = {(row["circuit"], row["group"]): row["error"] for row in cross["rows"] if row["size"] == chosen}
    matrix = [[errors[circuit, group] for group in names] for circuit in names]
    most = max(1, *(value for row in matrix for value in row))
    axis.imshow(matrix, cmap="Oranges", vmin=0, vmax=most)
    for n, row in enumerate(matrix):
        for m, value in enumerate(row):
            axis.text(
                m,
                n,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=11,
                color="#111111" if value < most / 2 else "white",
            )
    places = range(len(names))
    axis.set_xticks(places, [f"on {name}" for name in names], fontsize=8)
    axis.set_yticks(places, [f"circuit of\n{name}" for name in names], fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(f"at {100 * cross['selectivity'][chosen]['density']:.3g} % of the kernels", fontsize=10)


def trajectory_chart(trajectory: Mapping[str, Any], path: Path, *, title: str) -> None:
    """Draw the maps of a trajectory, one panel for each layer, colored by group, or by response if there are no groups.

    Each panel says what share of the variance its map holds, and its disparity from the map before.

    Args:
        trajectory: What ``Trajectory.as_dict`` returns.
        path: A ``.png``, ``.svg`` or ``.pdf`` file.
        title: Title above the charts.

    Raises:
        ConvCircuitsError: If matplotlib is not installed, or the file has another suffix or cannot be written.
    """
    check_charts_installed()
    _check_suffix(path)
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    layers, groups = trajectory["layers"], trajectory["groups"]
    columns = min(5, len(layers))
    lines = -(-len(layers) // columns)
    figure = Figure(figsize=(max(5.5, 2.3 * columns), 2.75 * lines + 1), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    most = 1.06 * max(abs(value) for points in trajectory["points"] for point in points for value in point) or 1
    looks: dict[str, Any] = {"s": 16, "linewidths": 0.3, "edgecolors": "white"}
    drawn: Any = None
    for axis, layer, points in zip(axes, layers, trajectory["points"], strict=False):
        if groups:
            for label in range(-1, len(groups)):
                own = [point for point, of in zip(points, trajectory["labels"], strict=True) if of == label]
                color = _NO_GROUP if label < 0 else _COLORS[label % len(_COLORS)]
                marker = _MARKERS[max(0, label) % len(_MARKERS)]
                name = "no group" if label < 0 else groups[label]
                if own:
                    axis.scatter(*zip(*own, strict=True), color=color, marker=marker, label=name, **looks)
        else:
            order = sorted(range(len(points)), key=trajectory["response"].__getitem__)  # the strongest on top
            drawn = axis.scatter(
                *zip(*(points[n] for n in order), strict=True),
                c=[trajectory["response"][n] for n in order],
                cmap=LinearSegmentedColormap.from_list("responses", _RESPONSES),
                **looks,
            )
        axis.set(xlim=(-most, most), ylim=(-most, most), xticks=[], yticks=[], aspect="equal")
        axis.spines[:].set_color("#dddddd")
        axis.set_title(layer["layer"], fontsize=9)
        axis.set_xlabel(_said_of(layer), fontsize=7, color="#555555")
    for axis in axes[len(layers) :]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    if groups:
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), frameon=False, fontsize=9)
    else:
        bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.3, aspect=40, pad=0.02)
        bar.set_label("response", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    _write(figure, path)


def _said_of(layer: Mapping[str, Any]) -> str:
    """Return the figures of a layer's map that are defined."""
    figures = {"explained": "{:.0%} of variance", "disparity": "disparity {:.2f}"}
    return ", ".join(form.format(layer[name]) for name, form in figures.items() if layer[name] is not None)


def _show_densities(axis: Any, densities: Sequence[float]) -> None:
    """Set up a horizontal axis of densities."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_xscale("log")
    axis.set_xticks(sorted(densities))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{100 * d:.3g} %"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("kernels kept / relevant kernels", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConvCircuitsError(f"A chart must be a .png, .svg or .pdf file; got {path}.")


def _write(figure: Any, path: Path) -> None:
    _show_names(figure)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lstrip("."), dpi=150)
    write_whole(path, content.getvalue())


def _show_names(figure: Any) -> None:
    r"""Let texts show names as they are: no math between dollars, and in fonts that have their letters.

    A letter that none of the fonts has is written as its escape, such as ``\u732b``, not as an empty box.
    """
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.text import Text

    families = ["DejaVu Sans"]  # matplotlib's own
    known = set(get_font(findfont(families[0])).get_charmap())
    for text in figure.findobj(Text):
        words = text.get_text()
        if "\\mathdefault" in words:  # a tick's label
            continue
        text.set_parse_math(False)
        missing = {ord(letter) for letter in words if letter != "\n"} - known
        for family in _MORE_FONTS if missing else ():
            try:
                others = get_font(findfont(family, fallback_to_default=False)).get_charmap()
            except ValueError:  # not installed
                continue
            if missing & set(others):
                families.append(family)
                known |= set(others)
                missing -= known
        if missing:
            text.set_text("".join(_escaped(letter) if ord(letter) in missing else letter for letter in words))
        text.set_fontfamily(families)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def _beside(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, list[tuple[float, float]]]:
    """Return the measured baselines of a figure, as points of density and the highest value at it."""
    if column not in _BESIDE:
        return {}
    end = column.removeprefix("r2")
    lines = {}
    for label, baseline in zip(_BESIDE_STYLE, (f"r2_average_map{end}", f"r2_random{end}"), strict=True):
        highest: dict[float, float] = {}
        for row in rows:
            if row[baseline] is not None:
                highest[row["density"]] = max(row[baseline], highest.get(row["density"], row[baseline]))
        if highest:
            lines[label] = sorted(highest.items())
    return lines
