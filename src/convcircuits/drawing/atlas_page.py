"""An atlas as one self-contained HTML file: a map of a layer's units, and the kernels that they share."""

from collections.abc import Mapping
from typing import Any

from convcircuits.drawing.page import map_page


def atlas_page(atlas: Mapping[str, Any], *, model: str) -> str:
    """Write an atlas as one HTML file that opens offline and fetches nothing.

    Units near each other on the map have circuits that share kernels. A unit that is pointed at shows its figures, the
    units alike and its circuit's file, which is linked relative to the page; a kernel shows the units that use it.

    Args:
        atlas: What ``Atlas.as_dict`` returns.
        model: Name of the model.
    """
    count = len(atlas["units"])
    words = f"{count} unit{'s' * (count != 1)}, near each other where their circuits share kernels"
    return map_page("atlas", f"{atlas['layer']} of {model}", words, atlas)
