"""A trajectory as one self-contained HTML file: maps of images that move from layer to layer."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from convcircuits.drawing.page import plain_text, self_contained, shipped

_OPENING = '<script type="application/json" id="trajectory">'
_DECIMALS = 4  # of coordinates, whose mean square distance from the center is 1


def trajectory_page(
    trajectory: Mapping[str, Any],
    *,
    model: str,
    names: Sequence[str],
    pictures: Sequence[str],
    finding: Mapping[str, str],
) -> str:
    """Write the maps of a trajectory as one HTML file that opens offline and fetches nothing.

    A slider moves the images from layer to layer. Those that are lassoed are listed, with the lines that find a circuit
    for them.

    Args:
        trajectory: What ``Trajectory.as_dict`` returns.
        model: Name of the model.
        names: Name of each image that is placed.
        pictures: A picture of each, as a data URI.
        finding: How to find a circuit for some of the images. In a shell: ``folder``, which holds their files, and
            ``command``, which reads those in the folder ``chosen``. In Python: ``program``, which reads their names
            from ``chosen``.
    """
    data = {
        **trajectory,
        "points": [[[round(v, _DECIMALS) for v in point] for point in points] for points in trajectory["points"]],
        "names": list(names),
        "pictures": list(pictures),
        "finding": dict(finding),
    }
    title = f"{trajectory['feature']} of {model}"
    body = f"""<div class="app">
<header>
<h1 dir="auto">{html.escape(plain_text(title))}</h1>
<p>{len(names)} images, near each other where a layer's kernels compute the feature alike</p>
</header>
<noscript><p>A script draws these maps, but scripts are disabled here. The file contains its data as JSON.</p>
</noscript>
<main id="page"></main>
</div>"""
    return self_contained(title, shipped("trajectory.css"), body, _OPENING, json.dumps(data), shipped("trajectory.js"))
