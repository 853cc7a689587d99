"""A trajectory as one self-contained HTML file: maps of images that move from layer to layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from convcircuits.drawing.page import map_page

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
        finding: How to find a circuit for some of the images, of which it holds out 40 %. In a shell: ``command``, to
            which the options ``--boxes`` and ``--out`` are added, with names of their own for each choice. In Python:
            ``program``, in which ``CHOSEN`` becomes a list of names.
    """
    words = f"{len(names)} images, near each other where a layer's kernels compute the feature alike"
    data = {
        **trajectory,
        "points": short_points(trajectory["points"]),
        "names": list(names),
        "pictures": list(pictures),
        "finding": dict(finding),
    }
    return map_page("trajectory", f"{trajectory['feature']} of {model}", words, data)


def short_points(points: Sequence[Sequence[Sequence[float]]]) -> list[list[list[float]]]:
    """Return the points of each layer's map with as many decimals as can be seen."""
    return [[[round(v, _DECIMALS) for v in point] for point in of_layer] for of_layer in points]
