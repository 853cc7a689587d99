"""The diagram in a notebook."""

from importlib.resources import files
from typing import Any

import anywidget
import traitlets


class DiagramWidget(anywidget.AnyWidget):
    """The widget that shows a diagram. ``kernels`` and ``image`` repeat fields of ``view``, for Python to set."""

    _esm = (files("convcircuits.drawing") / "static" / "diagram.js").read_text(encoding="utf-8")

    document = traitlets.Unicode().tag(sync=True)  # as JSON
    view: Any = traitlets.Dict().tag(sync=True)  # as plain JSON values
    selection: Any = traitlets.List(traitlets.Int()).tag(sync=True)  # numbers of nodes
    kernels: Any = traitlets.Int(allow_none=True, default_value=None).tag(sync=True)
    image: Any = traitlets.Int(allow_none=True, default_value=None).tag(sync=True)
