"""An atlas as one self-contained HTML file: a map of a layer's units, and the kernels that they share."""

import html
import json
from collections.abc import Mapping
from typing import Any

from convcircuits.drawing.page import plain_text, self_contained, shipped

_OPENING = '<script type="application/json" id="atlas">'


def atlas_page(atlas: Mapping[str, Any], *, model: str) -> str:
    """Write an atlas as one HTML file that opens offline and fetches nothing.

    Units near each other on the map have circuits that share kernels. A unit that is pointed at shows its figures, the
    units alike and its circuit's file, which is linked relative to the page; a kernel shows the units that use it.

    Args:
        atlas: What ``Atlas.as_dict`` returns.
        model: Name of the model.
    """
    title = f"{atlas['layer']} of {model}"
    count = len(atlas["units"])
    body = f"""<div class="app">
<header>
<h1 dir="auto">{html.escape(plain_text(title))}</h1>
<p>{count} unit{"s" * (count != 1)}, near each other where their circuits share kernels</p>
</header>
<noscript><p>A script draws this map, but scripts are disabled here. The file contains its data as JSON.</p>
</noscript>
<main id="page"></main>
</div>"""
    data = json.dumps(dict(atlas), allow_nan=False)
    return self_contained(title, shipped("atlas.css"), body, _OPENING, data, shipped("atlas.js"))
