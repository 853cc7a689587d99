"""What a person calls filters: read from a file, checked against a model, and written into a document."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from convcircuits.drawing.data import LONGEST_LABEL, Document, Note, filter_names
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.capture import Network
from convcircuits.texts import names, sentences

_HOW = 'filters are named by the layer of their kernels and a number, such as "features.7:24"'


def read_labels(path: Path) -> dict[str, str]:
    """Return the labels in a file, by filter.

    Args:
        path: A JSON object, ``{"features.7:24": "curve"}``, or a CSV table with the columns ``filter`` and ``label``.

    Raises:
        ConvCircuitsError: If the file cannot be read, has another form, or labels a filter twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _of_json(text) if text.lstrip().startswith("{") else _of_table(text)
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConvCircuitsError(f"{path} is not a readable file of labels: {reason}.") from error
    if not pairs or not all(isinstance(label, str) for _, label in pairs):
        raise ConvCircuitsError(
            f'{path} holds no labels; give a JSON object such as {{"features.7:24": "curve"}}, or a CSV table with the '
            "columns filter and label."
        )
    found: dict[str, str] = {}
    for name, label in pairs:
        if found.setdefault(name, label) != label:
            raise ConvCircuitsError(f"{path} has two labels of {name!r:.80}; give each filter one.")
    return found


def _of_json(text: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
    return pairs


def _of_table(text: str) -> list[tuple[str, Any]]:
    table = csv.DictReader(io.StringIO(text, newline=""))
    if not {"filter", "label"} <= {*(table.fieldnames or ())}:
        return []
    return [(row["filter"], row["label"]) for row in table]


def check_labels(network: Network, labels: Mapping[str, str]) -> None:
    """Check that labels are of a model's filters, before anything is drawn.

    Raises:
        ConvCircuitsError: If a name is of no filter of the model, or a label is no text of 1 to 40 characters.
    """
    if not isinstance(labels, Mapping):
        raise ConvCircuitsError(f"labels must map names of filters to labels; got {labels!r:.80}.")
    for name, label in labels.items():
        layer, colon, unit = name.rpartition(":") if isinstance(name, str) else ("", "", "")
        if not colon or not unit.isdecimal() or str(int(unit)) != unit:
            raise ConvCircuitsError(f"{name!r:.80} is not a filter; {_HOW}.")
        module = network.layer(layer)
        count = next((n for n in map(vars(module).get, ("out_channels", "out_features")) if isinstance(n, int)), None)
        if count is None and getattr(module, "weight", None) is None:
            raise ConvCircuitsError(f"Layer {layer!r} has no filters to label; {_HOW}.")
        if count is not None and int(unit) >= count:
            raise ConvCircuitsError(f"Layer {layer!r} has no filter {unit}: there are {count}, from 0 to {count - 1}.")
        if not isinstance(label, str) or not 0 < len(label) <= LONGEST_LABEL:
            raise ConvCircuitsError(
                f"The label of {name} must be a text of 1 to {LONGEST_LABEL} characters; got {label!r:.80}."
            )


def labelled(document: Document, labels: Mapping[str, str]) -> Document:
    """Return a document in which filters have labels, as if they had been typed in the page.

    Those of filters that none of its circuits has are left out, and a note names these.
    """
    filters = filter_names(document)
    notes = tuple(Note(node, labels[name]) for node, name in filters.items() if name in labels)
    missing = [name for name in labels if name not in filters.values()]
    meta = document.meta
    if missing:
        left_out = f"Labels of filters that no circuit here has are left out ({len(missing)}): {names(missing)}"
        meta = replace(meta, notes=sentences([*meta.notes, left_out]))
    return replace(document, meta=meta, view=replace(document.view, notes=notes))
