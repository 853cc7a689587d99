"""A diagram in Python: shown in a notebook, opened in a browser, saved to files."""

import dataclasses
import os
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from convcircuits.drawing import figure
from convcircuits.drawing.data import Document, Note, View, check_view, filter_names, view_from_dict, view_to_dict
from convcircuits.drawing.page import page, read_page
from convcircuits.errors import ConvCircuitsError
from convcircuits.files import check_place, is_file, is_folder, write_whole

if TYPE_CHECKING:
    from convcircuits.drawing.widget import DiagramWidget


_PAGES: dict[str, Callable[[Document], str]] = {".html": page, ".json": Document.to_json}
_FIGURES: dict[str, Callable[..., str | bytes]] = {".svg": figure.svg, ".pdf": figure.pdf, ".png": figure.png}


def check_file(path: Path, width: str | None = None) -> None:
    """Check that a diagram can be written to a file, before one is made.

    Raises:
        ConvCircuitsError: If the suffix or the width is unknown, a page or document is given a width, the folder does
            not exist, the path cannot be written, or the extra ``figure``, needed for PDF and PNG, is not installed.
    """
    if path.suffix not in {**_PAGES, **_FIGURES}:
        raise ConvCircuitsError(f"{path}: a diagram can be saved as .html, .svg, .pdf, .png or .json.")
    if width is not None and (path.suffix in _PAGES or width not in get_args(figure.Width)):
        raise ConvCircuitsError(
            f"Only .svg, .pdf and .png have a width, one of {', '.join(get_args(figure.Width))}; got {width!r} for "
            f"{path.name}."
        )
    if not is_folder(path.parent):
        raise ConvCircuitsError(f"There is no folder {path.parent} to write {path.name} to; create it first.")
    check_place(path)
    if path.suffix in (".pdf", ".png"):
        figure.converter()


class Diagram:
    """A circuit diagram with its view and selection; in a notebook, these follow the widget.

    Attributes:
        document: What is drawn; it never changes.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self._view = document.view
        self._selection: tuple[int, ...] = ()
        self._widget: DiagramWidget | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a diagram that was saved as ``.json`` or ``.html``, with its view.

        Raises:
            ConvCircuitsError: If there is no such file, its suffix is another, or it holds no diagram.
        """
        path = Path(path)
        readers: dict[str, Callable[[str], Document]] = {".json": Document.from_json, ".html": read_page}
        if path.suffix not in readers:
            raise ConvCircuitsError(f"{path}: diagrams can be read from .json and .html, not from figures.")
        if not is_file(path) and os.path.lexists(path):
            raise ConvCircuitsError(f"{path} cannot be read: it is not an ordinary file.")
        try:
            return cls(readers[path.suffix](path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConvCircuitsError(f"{path} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise ConvCircuitsError(f"{path}: {error}") from error

    @property
    def view(self) -> View:
        """Which part of the document is shown, and how."""
        if self._widget is None:
            return self._view
        return view_from_dict({**self._widget.view, "kernels": self._widget.kernels, "image": self._widget.image})

    @view.setter
    def view(self, view: View) -> None:
        check_view(self.document, view)
        self._view = view
        if self._widget is not None:
            with self._widget.hold_sync():
                self._widget.view = view_to_dict(view)
                self._widget.kernels, self._widget.image = view.kernels, view.image

    @property
    def caption(self) -> str:
        """The figure's caption: how much of the circuit is drawn, and how well that preserves the feature."""
        return figure.drawn(self.document, self.view).caption

    @property
    def selection(self) -> tuple[int, ...]:
        """Numbers of the selected nodes."""
        return self._selection if self._widget is None else tuple(self._widget.selection)

    @selection.setter
    def selection(self, nodes: Sequence[int]) -> None:
        check_view(self.document, View(pins=tuple(nodes)))
        self._selection = tuple(int(node) for node in nodes)
        if self._widget is not None:
            self._widget.selection = list(self._selection)

    @property
    def kernels(self) -> int | None:
        """Number of kernels of the circuit that the density slider keeps, the first by rank; None for all."""
        return self.view.kernels

    @kernels.setter
    def kernels(self, kernels: int | None) -> None:
        self.view = dataclasses.replace(self.view, kernels=kernels)

    @property
    def image(self) -> int | None:
        """Number of the image whose maps are shown, or None."""
        return self.view.image

    @image.setter
    def image(self, image: int | None) -> None:
        self.view = dataclasses.replace(self.view, image=image)

    @property
    def labels(self) -> dict[str, str]:
        """What filters are called, by layer and number: ``{"features.10:37": "wheel"}``; up to 40 characters each."""
        return self._noted("label")

    @labels.setter
    def labels(self, labels: Mapping[str, str]) -> None:
        self._note("label", labels)

    @property
    def notes(self) -> dict[str, str]:
        """What is noted of filters, by layer and number, as ``labels``; texts of up to 1,000 characters."""
        return self._noted("note")

    @notes.setter
    def notes(self, notes: Mapping[str, str]) -> None:
        self._note("note", notes)

    def save(self, path: str | os.PathLike[str], *, width: figure.Width | None = None) -> Path:
        """Write the diagram in its current view to one file, completely or not at all.

        Args:
            path: The file. Its suffix decides the format: ``.html`` for a page that opens offline, ``.svg``, ``.pdf``
                or ``.png`` for a figure, ``.json`` for the document.
            width: Width of a figure: "screen" (the default), "180mm" or "88mm".

        Returns:
            The path.

        Raises:
            ConvCircuitsError: If the suffix or the width is unknown, a page or document is given a width, the folder
                does not exist, or the extra ``figure``, needed for PDF and PNG, is not installed.
        """
        path = Path(path)
        check_file(path, width)
        seen = self._seen()
        if path.suffix in _PAGES:
            content: str | bytes = _PAGES[path.suffix](seen)
        else:
            content = _FIGURES[path.suffix](seen, width=width or "screen")
        write_whole(path, content.encode() if isinstance(content, str) else content)
        return path

    def open(self) -> Path:
        """Open the diagram in the web browser, from a temporary folder, and return the path of the page."""
        path = self.save(Path(tempfile.mkdtemp(prefix="convcircuits-")) / f"{self.document.meta.file}.html")
        webbrowser.open(path.as_uri())
        return path

    def widget(self) -> "DiagramWidget":
        """Return the notebook widget of this diagram; every place that shows it shares one widget.

        Raises:
            ConvCircuitsError: If the extra ``notebook`` is not installed.
        """
        if self._widget is None:
            try:
                from convcircuits.drawing.widget import DiagramWidget
            except ImportError as error:
                raise ConvCircuitsError(
                    "Showing the diagram in a notebook needs anywidget: pip install 'convcircuits[notebook]'."
                ) from error
            self._widget = DiagramWidget(
                document=self.document.to_json(),
                view=view_to_dict(self._view),
                selection=list(self._selection),
                kernels=self._view.kernels,
                image=self._view.image,
            )
        return self._widget

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        """Return the widget for a notebook that can run it, and a figure for one that is only read."""
        bundle = {"text/plain": repr(self), "image/svg+xml": figure.svg(self._seen())}
        if not _in_kernel():
            return bundle
        try:
            widget = self.widget()
        except ConvCircuitsError:
            return bundle
        shown = widget._repr_mimebundle_(include=include, exclude=exclude)
        data, metadata = shown if isinstance(shown, tuple) else (shown, {})
        return {**(data or {}), **bundle}, metadata

    def __repr__(self) -> str:
        meta, drawn = self.document.meta, self.document.variants[0]
        return (
            f"Diagram({meta.feature} of {meta.model}: {drawn.kernels:,} kernels of {drawn.filters:,} filters in "
            f"{len(self.document.columns)} columns)"
        )

    def _noted(self, what: str) -> dict[str, str]:
        names = filter_names(self.document)
        said = [(note.node, getattr(note, what)) for note in self.view.notes]
        return {names[node]: text for node, text in said if text and node in names}

    def _note(self, what: str, texts: Mapping[str, str]) -> None:
        names = filter_names(self.document)
        if unknown := sorted(set(map(str, texts)) - set(names.values())):
            raise ConvCircuitsError(
                f"The diagram has no filter {unknown[0]!r}; filters are named by layer and number, such as "
                f"{names[self.document.target] if self.document.target in names else next(iter(names.values()))!r}."
            )
        kept = {note.node: _noting(note, what, "") for note in self.view.notes if note.node in names}
        for node, name in names.items():
            if name in texts:
                kept[node] = _noting(kept.get(node, Note(node)), what, texts[name])
        others = [note for note in self.view.notes if note.node not in names]
        notes = [note for note in kept.values() if note.label or note.note]
        self.view = dataclasses.replace(self.view, notes=(*others, *notes))

    def _seen(self) -> Document:
        """Return the document with the view that is shown now."""
        view = self.view
        return self.document if view == self.document.view else dataclasses.replace(self.document, view=view)


def _noting(note: Note, what: str, text: str) -> Note:
    """Return a note with another label or another text."""
    return dataclasses.replace(note, label=text) if what == "label" else dataclasses.replace(note, note=text)


def _in_kernel() -> bool:
    """Return whether this runs in a notebook kernel, which a widget needs."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")
