"""What the explorer hands out of a circuit: its diagram as a page of its own, and a bundle. No torch."""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convcircuits.drawing.data import (
    LONGEST_LABEL,
    LONGEST_NOTE,
    Document,
    Note,
    View,
    check_view,
    filter_names,
    view_from_dict,
    view_to_dict,
)
from convcircuits.drawing.page import page
from convcircuits.drawing.tiles import OPTIMIZED, with_target_picture
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer import bundle
from convcircuits.explorer.circuit_file import CircuitFile
from convcircuits.explorer.session import Session
from convcircuits.explorer.store import filters_noted
from convcircuits.texts import names
from convcircuits.version import __version__


def diagram_page(session: Session, one: CircuitFile, view: str | None) -> str | None:
    """Return a circuit's diagram as one HTML file; None: it is not drawn.

    It has the notes on the circuit, its filters and its unit, and the unit's feature picture, if that was made.

    Args:
        session: What is open.
        one: The circuit.
        view: What is shown of it, as JSON; by default the document's own view.

    Raises:
        ConvCircuitsError: If the view is none of this diagram, or a note cannot be shown.
    """
    drawn = session.derived.drawn(one)
    if drawn is None:
        return None
    _, document = drawn
    if view is not None:
        document = replace(document, view=_view(document, view))
    feature = one.header["feature"]
    name = f"{feature['layer']}:{feature['unit']}"
    with session.notes:
        unit, own = _note_of_unit(session, one), session.store.note(f"circuit {one.id}")
        filters = filters_noted(session.store.notes(), one.id)
    document = _with_picture(session, _with_notes(document, filters), one)
    label = unit.get("label", "")[:LONGEST_LABEL]
    if label and all(note.node != document.target for note in document.view.notes):
        notes = (*document.view.notes, Note(document.target, label))
        document = replace(document, view=replace(document.view, notes=notes))
    texts = [
        (f"{what}: {note['label']}" if note.get("label") else what, note.get("text", ""))
        for what, note in ((f"Unit {name}", unit), ("Circuit", own))
        if note.get("label") or note.get("text")
    ]
    return page(document, texts)


def circuit_bundle(session: Session, one: CircuitFile, commands: Mapping[str, Any], *, photographs: bool) -> bytes:
    """Return the content of a bundle of a circuit.

    Args:
        session: What is open.
        one: The circuit.
        commands: The command and the Python that find it again, as far as they are known.
        photographs: Whether to add the photographs that it was found and measured on. Else its diagram shows only
            parts of them.

    Raises:
        ConvCircuitsError: If the photographs are not recorded, not here any more, no files of a folder, or too
            large.
    """
    about = session.about()
    report = session.store.report(one.id) if session.derived.is_measured(one) else None
    file, document = session.derived.drawn(one) or (None, None)
    if not photographs:
        report = None if report is None else bundle.unnamed(report, about["ids"])
        document = None if document is None else bundle.unpictured(document, about["ids"])
    files = bundle.circuit_files(session.content(one), report, document)
    if photographs:
        files |= _photographs(session, one, bundle.MOST - sum(map(len, files.values())))
    what = {
        "circuit": one.id,
        "file": one.name,
        "model": about["name"],
        "weights": about["weights"],
        "basis": about["basis"],
        "images": session.opening.images,
        "options": {
            "size": session.opening.size,
            "mean": session.opening.mean,
            "std": session.opening.std,
            "weights": session.opening.weights and Path(session.opening.weights).name,
        },
        "controls": file is not None and "-controls-" in file.name,
        "note": session.store.note(f"circuit {one.id}"),
        "unit_note": _note_of_unit(session, one),
        "filter_notes": filters_noted(session.store.notes(), one.id),
        "version": __version__,
        **commands,
    }
    return bundle.packed(what, files)


def _photographs(session: Session, one: CircuitFile, most: int) -> dict[str, bytes]:
    """Return the photographs that a circuit was found and measured on, by their names in a bundle."""
    named = one.header["provenance"].get("photographs") or {}
    wanted = sorted({name for some in named.values() for name in some})
    ids, files = session.about()["ids"], {}  # of copies too, whose names the circuit may have
    missing = [name for name in wanted if name not in ids]
    if missing or not wanted:
        what = f"{names(missing)}, which it names, are not here" if missing else "it does not say which they are"
        raise ConvCircuitsError(f"The photographs of {one.name} cannot be added: {what}. Leave them out.")
    for name in wanted:
        files[bundle.photograph_name(name)] = content = session.jobs.ask("source", ids[name])
        most -= len(content)
        if most < 0:
            raise bundle.too_large()
    return files


def _note_of_unit(session: Session, one: CircuitFile) -> dict[str, Any]:
    """Return the note on a circuit's unit; empty if there is none, or it is of no unit of this model."""
    unit = _unit_of(session, one)
    return {} if unit is None else session.store.note(session.noted("unit", unit))


def _with_picture(session: Session, document: Document, one: CircuitFile) -> Document:
    """Return a circuit's diagram with the feature picture of its unit, if that was made."""
    unit = _unit_of(session, one)
    file = None if unit is None else session.derived.file("features", unit, ".png")
    content = None if file is None else session.store.content(file)
    if content is None:
        return document
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    return with_target_picture(document, OPTIMIZED.format("the full model"), pixels)


def _unit_of(session: Session, one: CircuitFile) -> str | None:
    """Return the unit that a circuit is of, such as ``features.7:24``; None if it is of no unit of this model."""
    feature = one.header["feature"]
    if not isinstance(feature["unit"], int) or session.same_weights(one) is False:
        return None
    return f"{feature['layer']}:{feature['unit']}"


def _with_notes(document: Document, noted: Mapping[str, Mapping[str, Any]]) -> Document:
    """Return a diagram with the notes on its filters, but for those that it has notes on already."""
    there = {note.node for note in document.view.notes}
    more = [
        Note(node, noted[name].get("label", "")[:LONGEST_LABEL], noted[name].get("text", "")[:LONGEST_NOTE])
        for node, name in filter_names(document).items()
        if node not in there and any(noted.get(name, {}).get(what) for what in ("label", "text"))
    ]
    return replace(document, view=replace(document.view, notes=(*document.view.notes, *more)))


def _view(document: Document, said: str) -> View:
    """Return the view of a diagram that a page's address holds.

    Raises:
        ConvCircuitsError: If it is none of this diagram.
    """
    try:
        given = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise ConvCircuitsError("The view is no JSON.") from error
    if not isinstance(given, dict):
        raise ConvCircuitsError("The view is no JSON object.")
    view = view_from_dict({**view_to_dict(document.view), **given})
    check_view(document, view)
    return view
