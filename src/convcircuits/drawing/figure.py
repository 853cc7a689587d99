"""Static figures of a diagram: SVG by the page's own renderer, run without a browser; PDF and PNG from that SVG."""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from types import ModuleType
from typing import Any, Literal, TypeAlias, get_args

from convcircuits.drawing.data import Document, Span, Tiles, View, check_view, view_to_dict
from convcircuits.drawing.tiles import data_url, read_data_url
from convcircuits.errors import ConvCircuitsError

Width: TypeAlias = Literal["screen", "180mm", "88mm"]  # the last two: both columns and one column of a journal

MOST_COLUMNS = 10
"""Columns that fit a window of 1,280 px beside the panel, with pictures of 48 px (``placeColumns`` of the renderer)."""

_DOTS = {"screen": 192, "180mm": 300, "88mm": 600}  # pixels per inch of a PNG
_POINTS = {"mm": 72 / 25.4, "": 72 / 96}  # points per unit of SVG


def svg(document: Document, *, width: Width = "screen") -> str:
    """Draw a diagram as SVG, in the document's view.

    Args:
        document: What to draw.
        width: For a screen, or for paper: 180 mm or 88 mm wide, in points, with no text under 6 points.

    Returns:
        One SVG document, the same for the same input. Text stays text, pictures are embedded, and nothing is fetched.

    Raises:
        ConvCircuitsError: If the width is unknown.
    """
    if width not in _DOTS:
        raise ConvCircuitsError(f"A figure's width must be one of {', '.join(get_args(Width))}; got {width!r}.")
    figures = _Figures(document)
    shown = json.loads(figures.call("tiles", width))
    return figures.call("svg", width, json.dumps(_cut(document.tiles, shown)))


@dataclass(frozen=True)
class Shown:
    """What a view draws."""

    nodes: tuple[int, ...]  # numbers of nodes
    edges: tuple[int, ...]  # numbers of edges, including inner kernels and those that read the image
    kernels: int  # number of kernels among these edges
    filters: int
    path: float  # share of the target's flow on complete drawn paths
    lit: tuple[tuple[int, ...], tuple[int, ...]] | None  # nodes and edges that are not dimmed; None: all are lit
    caption: str


def drawn(document: Document, view: View | None = None) -> Shown:
    """Return what a view draws, as computed by the renderer.

    Args:
        document: The document.
        view: The view; the document's own by default.

    Raises:
        ConvCircuitsError: If the view names something that is not in the document.
    """
    return drawn_by_each(document, [document.view if view is None else view])[0]


def drawn_by_each(document: Document, views: Sequence[View]) -> list[Shown]:
    """Return what each view draws, as ``drawn`` does, reading the document only once."""
    for view in views:
        check_view(document, view)
    figures = _Figures(document)
    return [_shown(json.loads(figures.call("drawn", json.dumps(view_to_dict(view))))) for view in views]


def drawn_by_any(document: Document, variants: int) -> Shown:
    """Return what the document's own view and the default views of its first variants draw together."""
    views = [document.view, *(View(variant=n) for n in range(variants))]
    first, *others = drawn_by_each(document, views)
    nodes = dict.fromkeys([*first.nodes, *(node for one in others for node in one.nodes)])
    edges = dict.fromkeys([*first.edges, *(edge for one in others for edge in one.edges)])
    return dataclasses.replace(first, nodes=tuple(nodes), edges=tuple(edges))


def with_blocks_collapsed(document: Document) -> Document:
    """Return a document that opens with the blocks of a deep network collapsed if its columns do not fit a window.

    The block of the target stays open. If even the blocks do not fit, those at the left are drawn together, such as
    all of ``layer1``. A reader opens them.
    """
    if len(document.columns) <= MOST_COLUMNS:
        return document
    spans = tuple(Span(**span) for span in json.loads(_Figures(document).call("blocks", str(MOST_COLUMNS))))
    return dataclasses.replace(document, view=dataclasses.replace(document.view, collapsed=spans))


def _shown(values: dict[str, Any]) -> Shown:
    return Shown(
        nodes=tuple(values["nodes"]),
        edges=tuple(values["edges"]),
        kernels=values["kernels"],
        filters=values["filters"],
        path=values["path"],
        lit=values["lit"] and (tuple(values["lit"]["nodes"]), tuple(values["lit"]["edges"])),
        caption=values["caption"]["text"],
    )


def pdf(document: Document, *, width: Width = "screen") -> bytes:
    """Draw a diagram as PDF: text stays text, lines stay lines.

    Raises:
        ConvCircuitsError: If the width is unknown, or the extra ``figure`` is not installed.
    """
    return bytes(converter().svg_to_pdf(_in_points(svg(document, width=width))))


def png(document: Document, *, width: Width = "screen") -> bytes:
    """Draw a diagram as PNG: 2 pixels per screen pixel, 300 per inch at 180 mm, 600 per inch at 88 mm.

    Raises:
        ConvCircuitsError: If the width is unknown, or the extra ``figure`` is not installed.
    """
    return bytes(converter().svg_to_png(_in_points(svg(document, width=width)), ppi=_DOTS[width]))


class _Figures:
    """The functions of ``figure.js`` on one document, in a JavaScript engine without access to anything outside."""

    def __init__(self, document: Document) -> None:
        import quickjs  # imported here, so that only figures load it

        content = document.to_dict() | {"images": None}  # large, and in no figure
        for page in content["tiles"]["pages"]:
            page["src"] = ""
        self._engine = quickjs.Context()
        self._engine.eval((files("convcircuits.drawing") / "static" / "figure.js").read_text(encoding="utf-8"))
        self._engine.eval("function open(text) { globalThis.figures = convcircuits.figures(text); }")
        self._engine.get("open")(json.dumps(content))
        self._engine.eval("function call(name, ...texts) { return figures[name](...texts); }")

    def call(self, function: str, *texts: str) -> str:
        """Call one of the functions."""
        return str(self._engine.get("call")(function, *texts))


def _cut(tiles: Tiles, numbers: list[int]) -> dict[int, str]:
    """Cut tiles out of their pages, so that a figure holds only the pictures that it shows."""
    found = {}
    first = 0
    for page in tiles.pages:
        here = [number for number in numbers if first <= number < first + page.count]
        picture = read_data_url(page.src) if here else None
        for number in here:
            assert picture is not None
            top, left = (tiles.size * at for at in divmod(number - first, page.columns))
            found[number] = data_url(picture[top : top + tiles.size, left : left + tiles.size], lossless=True)
        first += page.count
    return found


def _in_points(text: str) -> str:
    """Convert an SVG's size to points, since the converter takes 72 units per inch."""
    return re.sub(
        r'(width|height)="([\d.]+)(mm|)"',
        lambda found: f'{found[1]}="{float(found[2]) * _POINTS[found[3]]}"',
        text,
        count=2,  # width and height of the outermost element, which comes first
    )


def converter() -> ModuleType:
    """Return the package that converts SVG to PDF and PNG.

    Raises:
        ConvCircuitsError: If the extra ``figure`` is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise ConvCircuitsError("PDF and PNG need vl-convert: pip install 'convcircuits[figure]'.") from error
    return vl_convert
