"""A diagram as one self-contained HTML file that opens offline and fetches nothing."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from convcircuits.drawing.data import Document, NodeKind
from convcircuits.errors import ConvCircuitsError

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_OPENING = '<script type="application/json" id="circuit">'

# Shown before the script runs: the title, and placeholders for the pictures.
_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #222220; --soft: #62625d; --empty: #e9e9e5; }
@media (prefers-color-scheme: dark) { :root { --ground: #15161a; --ink: #ecece8; --soft: #a5a59e; --empty: #2a2c32; } }
html { background: var(--ground); color: var(--ink);
  font: 14px/1.45 Inter, system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
body { margin: 0; }
.skeleton { padding: 18px 28px; }
.skeleton h1 { font-size: 17px; font-weight: 640; line-height: 1.3; margin: 0; overflow-wrap: anywhere; }
.skeleton p { margin: 0; color: var(--soft); }
.skeleton ol { display: flex; justify-content: space-between; gap: 12px; list-style: none; margin: 48px 0 0; padding: 0;
  overflow: hidden; }
.skeleton li { flex: none; width: 44px; }
.notes { padding: 12px 24px 28px; overflow-wrap: anywhere; color: CanvasText; } /* also if the theme is toggled */
.notes h2 { font-size: 14px; font-weight: 640; margin: 12px 0 2px; }
.notes p { margin: 0; max-width: 80ch; }
.skeleton i { display: block; height: 44px; margin-bottom: 14px; border-radius: 2px; background: var(--empty); }
"""


def page(document: Document, notes: Sequence[tuple[str, str]] = ()) -> str:
    """Write a diagram as one HTML file.

    It contains the document as JSON and the renderer as a script. The page's content security policy names that script
    by its hash, and allows no other script and no request. A title and a skeleton are shown before the script runs.

    Args:
        document: The diagram.
        notes: What stands below it: headings and texts of any lines.
    """
    title = html.escape(plain_text(document.meta.title))
    body = f"""<main id="diagram">
<div class="skeleton">
<h1 dir="auto">{title}</h1>
<p dir="auto">{html.escape(plain_text(document.meta.feature))} · {html.escape(plain_text(document.meta.model))}</p>
<noscript><p>A script draws this diagram, but scripts are disabled here. The file contains its data as JSON.</p>
</noscript>
<ol aria-hidden="true">{_skeleton(document)}</ol>
</div>
</main>"""
    if notes:
        body += f'\n<aside class="notes">\n{"".join(_note(heading, text) for heading, text in notes)}</aside>'
    return self_contained(document.meta.title, _STYLE, body, _OPENING, document.to_json(), shipped("diagram.js"))


def self_contained(title: str, style: str, body: str, opening: str, data: str, script: str) -> str:
    """Write an HTML file that fetches nothing and runs one script.

    Args:
        title: Title of the page, any text.
        style: CSS.
        body: HTML, in which all text from outside is escaped.
        opening: The tag that opens the element of the data.
        data: JSON that the script reads, with any text.
        script: A JavaScript module.
    """
    script = _inline(script)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    data = data.replace("<", "\\u003c")  # no text of the data can end the element
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{"; ".join(f"{name} {value}" for name, value in policy.items())}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="convcircuits">
<link rel="icon" href="data:,">
<title>{html.escape(plain_text(title))}</title>
<style>{style}</style>
</head>
<body>
{body}
{opening}{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def plain_text(text: str) -> str:
    """Return text without bidi and control characters, which change how other text reads, as the renderer does."""
    return _UNSEEN.sub("\ufffd", re.sub(r"[\t\n\r]+", " ", text))


def read_page(text: str) -> Document:
    """Read the document back from a page.

    Raises:
        ConvCircuitsError: If the text is not such a page.
    """
    start = text.find(_OPENING)
    end = text.find("</script>", start)
    if start < 0 or end < 0:
        raise ConvCircuitsError("This HTML contains no circuit diagram; give a page that a Diagram saved.")
    return Document.from_json(text[start + len(_OPENING) : end])


def map_page(kind: str, title: str, words: str, data: Mapping[str, Any]) -> str:
    """Write an HTML file with maps of points, such as images or units.

    Args:
        kind: ``"atlas"`` or ``"trajectory"``: what the data is of.
        title: Title of the page, any text.
        words: What the points are, any text.
        data: JSON values that the script reads.
    """
    text = json.dumps({"heading": title, "words": words, **data}, allow_nan=False)
    body = f"""<div id="page">
<main class="skeleton">
<h1 dir="auto">{html.escape(plain_text(title))}</h1>
<p dir="auto">{html.escape(plain_text(words))}</p>
<noscript><p>A script draws this map, but scripts are disabled here. The file contains its data as JSON.</p>
</noscript>
</main>
</div>"""
    opening = f'<script type="application/json" id="{kind}">'
    return self_contained(title, _STYLE, body, opening, text, shipped("map.js"))


def shipped(name: str) -> str:
    """Return a text file that the package carries."""
    return (files("convcircuits.drawing") / "static" / name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    """Escape a script so that it cannot close its own element; JavaScript strings allow an escaped slash."""
    return re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


def _note(heading: str, text: str) -> str:
    lines = "<br>".join(html.escape(plain_text(line)) for line in text.splitlines())
    return f'<h2 dir="auto">{html.escape(plain_text(heading))}</h2>\n<p dir="auto">{lines}</p>\n'


def _skeleton(document: Document) -> str:
    """Return gray squares, in each column at most as many as the first view draws."""
    drawn = document.nodes.kind != NodeKind.IMAGE
    counts = [int((document.nodes.column[drawn] == column).sum()) for column in range(len(document.columns))]
    return "".join(f"<li>{'<i></i>' * min(count, document.view.nodes_per_column)}</li>" for count in counts)
