"""Static figures of a diagram: SVG by the browser's own renderer, run without a browser; PDF and PNG from that SVG."""

import json
from importlib.resources import files
from types import ModuleType
from typing import Any, Literal, TypeAlias, get_args

from convcircuits.drawing.data import Document, View, check_view, view_to_dict
from convcircuits.errors import ConvCircuitsError

Width: TypeAlias = Literal["screen", "180mm", "88mm"]  # the last two: both columns and one column of a journal

_DOTS = {
    "screen": 2.0,
    "180mm": 300 / 96,
    "88mm": 600 / 96,
}  # pixels of a PNG for one of CSS; print: 300 and 600 a inch


def svg(document: Document, *, width: Width = "screen") -> str:
    """Draw a diagram at its own view.

    Args:
        document: What to draw.
        width: For a screen, or for paper: 180 mm or 88 mm wide, in points, with no text under 6 points.

    Returns:
        One SVG document, the same for the same input. Text is text, pictures are in it, and nothing is fetched.

    Raises:
        ConvCircuitsError: If the width is another.
    """
    if width not in _DOTS:
        raise ConvCircuitsError(f"A figure's width is one of {', '.join(get_args(Width))}; got {width!r}.")
    return str(_call("svg", document, document.view, width))


def drawn(document: Document, view: View | None = None) -> dict[str, Any]:
    """Say what a view draws, without drawing it.

    Args:
        document: What is drawn.
        view: How; the document's own view by default.

    Returns:
        Numbers of nodes and edges and shares of flow, as ``frontend/src/core/figure.ts`` says.

    Raises:
        ConvCircuitsError: If the view names what is not in the document.
    """
    view = document.view if view is None else view
    check_view(document, view)
    found: dict[str, Any] = json.loads(_call("drawn", document, view))
    return found


def pdf(document: Document, *, width: Width = "screen") -> bytes:
    """Draw a diagram as PDF: text stays text, lines stay lines.

    Raises:
        ConvCircuitsError: If the width is another, or the extra ``figure`` is not installed.
    """
    converter = _converter()
    return bytes(converter.svg_to_pdf(svg(document, width=width)))


def png(document: Document, *, width: Width = "screen") -> bytes:
    """Draw a diagram as pixels: two for each of a screen's, 300 an inch of a page, 600 an inch of one column.

    Raises:
        ConvCircuitsError: If the width is another, or the extra ``figure`` is not installed.
    """
    converter = _converter()
    return bytes(converter.svg_to_png(svg(document, width=width), scale=_DOTS[width]))


def _call(function: str, document: Document, view: View, *more: str) -> Any:
    """Call what `figure.js` exports, in a JavaScript engine of its own that can reach nothing outside."""
    import quickjs  # here, so that a library that draws nothing does not load it

    engine = quickjs.Context()
    engine.eval((files("convcircuits.drawing") / "static" / "figure.js").read_text(encoding="utf-8"))
    engine.eval(f"globalThis.call = convcircuits.{function}")
    return engine.get("call")(document.to_json(), json.dumps(view_to_dict(view)), *more)


def _converter() -> ModuleType:
    try:
        import vl_convert
    except ImportError as error:
        raise ConvCircuitsError("PDF and PNG need vl-convert: pip install 'convcircuits[figure]'.") from error
    return vl_convert
