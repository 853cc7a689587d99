"""A circuit with what is known of it, in one ZIP file to share. Whoever opens it checks every hash first. No torch.

::

    bundle.json           what it is of, notes, commands, and the hash of every other file
    circuit.safetensors
    report.json           its figures, if it was measured
    diagram.json          its diagram's document, if it was drawn
    photographs/NAME      those that it was found and measured on, if they were asked for

Without these, the report names no photograph, and the diagram shows none: only parts, which filters respond to. The
circuit's file, whose hash is its id, names those that it was found and measured on in any case.
"""

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from convcircuits.drawing.data import Document
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.store import Store, is_hash, note_key, problem_of_note
from convcircuits.files import safe_name, write_whole

BUNDLE = "convcircuits-bundle/1"
MOST = 512 * 2**20
"""Bytes of a bundle's files."""

_ABOUT, _CIRCUIT, _REPORT, _DIAGRAM, _PHOTOGRAPHS = (
    "bundle.json",
    "circuit.safetensors",
    "report.json",
    "diagram.json",
    "photographs/",
)
_MANY = 20_000  # files


def packed(about: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """Return the content of a bundle.

    Args:
        about: What it is of, as JSON values.
        files: Name in the bundle -> content.

    Raises:
        ConvCircuitsError: If it would be too large.
    """
    if sum(map(len, files.values())) > MOST:
        raise too_large()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    text = json.dumps({"schema": BUNDLE, **about, "files": hashes}, indent=1, allow_nan=False)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in {_ABOUT: text.encode(), **files}.items():
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # the same bytes at any time
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def too_large() -> ConvCircuitsError:
    """Return the error of a bundle with more than ``MOST`` bytes."""
    return ConvCircuitsError(f"A bundle may have {MOST >> 20} MB; leave out the photographs.")


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read, and whose hashes are right.

    Attributes:
        file: Its file.
        about: What it is of.
        files: Name -> content.
    """

    file: Path
    about: Mapping[str, Any]
    files: Mapping[str, bytes]

    @classmethod
    def read(cls, file: Path) -> "Bundle":
        """Read a bundle and check it.

        Raises:
            ConvCircuitsError: If it is no bundle, damaged, or larger than ``MOST``.
        """
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if len(members) > _MANY or sum(one.file_size for one in members) > MOST + 2**24:
                    raise ConvCircuitsError(f"{file} is larger than {MOST >> 20} MB, so it is not opened.")
                contents = {one.filename: _content(archive, one) for one in members}
            about = json.loads(contents.pop(_ABOUT))
            if about["schema"] != BUNDLE:
                raise ConvCircuitsError(f"{file} has the format {about['schema']!r:.80}; expected {BUNDLE}.")
            hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
            if hashes != about["files"]:
                wrong = sorted(dict(hashes.items() ^ about["files"].items()))
                raise ConvCircuitsError(f"{file} is damaged: {wrong[0]:.200} does not have the recorded hash.")
            texts = [about[name] for name in ("model", "images", "file", "circuit")]
            named = all(isinstance(text, str) for text in texts) and isinstance(about["controls"], bool)
            if not named or not is_hash(about["basis"]):
                raise ValueError("it does not say what it is of")
            sent = about.get("unit_note", {}), *about.get("filter_notes", {}).values()  # earlier versions sent none
            for note in (about["note"], *sent):
                if problem := problem_of_note(note):
                    raise ConvCircuitsError(
                        f"{file} has a note that cannot be shown, because {problem}; it is not opened."
                    )
            if hashlib.sha256(contents[_CIRCUIT]).hexdigest()[:16] != about["circuit"]:
                raise ConvCircuitsError(f"{file} is damaged: its circuit is another than it says.")
            _check_options(about["options"])
            for name in (_REPORT, _DIAGRAM):
                if name in contents:  # it can be answered
                    json.dumps(json.loads(contents[name]), allow_nan=False)
            for name in contents:
                if name not in (_CIRCUIT, _REPORT, _DIAGRAM) and not _is_safe(name):
                    raise ConvCircuitsError(f"{file} holds {name!r:.200}, which a bundle may not; it is not opened.")
        except ConvCircuitsError:
            raise
        except OSError as error:
            raise ConvCircuitsError(f"{file} cannot be read: {error.strerror or error}.") from error
        except Exception as error:  # a damaged archive makes zipfile and zlib raise nearly anything
            reason = " ".join(f"{error!r}".split())
            raise ConvCircuitsError(f"{file} is not a bundle of the explorer ({reason:.200}).") from error
        return cls(file, about, contents)

    @property
    def photographs(self) -> dict[str, bytes]:
        """The photographs by name."""
        return {
            name.removeprefix(_PHOTOGRAPHS): content
            for name, content in self.files.items()
            if name.startswith(_PHOTOGRAPHS)
        }

    def unpack_photographs(self, project: Path) -> Path:
        """Write the photographs to a folder of the project, and return it.

        Raises:
            ConvCircuitsError: If they cannot be written.
        """
        folder = project / f"photographs-{self.about['circuit']}"
        for name, content in self.photographs.items():
            place = folder / name
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConvCircuitsError(f"{place} cannot be written: {error.strerror or error}.") from error
            if not place.is_file() or place.read_bytes() != content:
                write_whole(place, content)
        return folder

    def unpack(self, store: Store) -> str:
        """Add the circuit and what is known of it to a project, where it is not there yet. Return the circuit's id.

        A note that is there already stays. Figures are kept apart from those that are measured here.

        Raises:
            ConvCircuitsError: If it cannot be written, or is not a circuit.
        """
        id = str(self.about["circuit"])
        if store.circuit(id) is None:
            stem = safe_name(Path(str(self.about["file"])).stem).strip(".-") or "circuit"
            place = store.place_for(stem[:100])
            write_whole(place, self.files[_CIRCUIT])
            found = store.circuit(id)
            if found is None or found.problem:
                place.unlink(missing_ok=True)
                raise ConvCircuitsError(f"{self.file} holds no circuit: {found.problem if found else 'it is gone'}")
        if _REPORT in self.files:  # apart from what is measured here: nothing shows that it was measured as it says
            write_whole(store.report_file(id, sent=True), self.files[_REPORT])
        place = store.diagram_file(id, self.about["basis"], controls=self.about["controls"])
        if _DIAGRAM in self.files and not place.exists():
            write_whole(place, self.files[_DIAGRAM])
        notes = {f"circuit {id}": self.about["note"]}
        circuit, weights = store.circuit(id), self.about.get("weights")
        if circuit is not None and isinstance(weights, str) and re.fullmatch("[0-9a-f]{8,64}", weights):
            feature = circuit.header["feature"]
            of = note_key("unit", f"{feature['layer']}:{feature['unit']}", weights)
            notes[of] = self.about.get("unit_note", {})
        for name, note in self.about.get("filter_notes", {}).items():
            notes[note_key("filter", f"{name} of circuit {id}", "")] = note
        for of, note in notes.items():
            if note and not store.note(of):
                store.write_note(of, note)
        return id


def circuit_files(circuit: bytes, report: Mapping[str, Any] | None, diagram: Document | None) -> dict[str, bytes]:
    """Return the files of a circuit for a bundle, but for photographs."""
    files = {_CIRCUIT: circuit}
    if report is not None:
        files[_REPORT] = json.dumps(report, indent=1, allow_nan=False).encode()
    if diagram is not None:
        files[_DIAGRAM] = diagram.to_json().encode()
    return files


def unnamed(report: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a report without the names of photographs.

    They are in notes, and in what it repeats of the circuit's file.
    """
    figures = report["report"]
    provenance = {name: value for name, value in figures.get("provenance", {}).items() if name != "circuit"}
    figures = {**figures, "provenance": provenance, "notes": _naming_none(figures.get("notes", []), names)}
    return {**report, "report": figures, "notes": _naming_none(report.get("notes", []), names)}


def unpictured(document: Document, names: Collection[str]) -> Document:
    """Return a diagram without photographs, maps on them and their names: only parts that filters respond to stay."""
    return replace(
        document,
        meta=replace(document.meta, notes=tuple(_naming_none(document.meta.notes, names))),
        tiles=replace(document.tiles, wholes=(), cuts=()),
        images=None,
        view=replace(document.view, image=None),
    )


def _naming_none(notes: Iterable[str], names: Collection[str]) -> list[str]:
    """Return notes with "a photograph" in place of names, of which a shorter one may be part of a longer one."""
    if not names:
        return list(notes)
    pattern = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(names, key=len, reverse=True))
    return [re.sub(pattern, "a photograph", note) for note in notes]


def photograph_name(name: str) -> str:
    """Return the name of a photograph in a bundle.

    Raises:
        ConvCircuitsError: If it is no plain relative path.
    """
    if not _is_safe(_PHOTOGRAPHS + name):
        raise ConvCircuitsError(f"The photograph {name!r:.200} has a name that a bundle cannot have; rename it.")
    return _PHOTOGRAPHS + name


def _check_options(options: Any) -> None:
    """Check the options that a circuit's model and photographs were opened with.

    Raises:
        ValueError: If they are something else.
    """
    numbers = [options[name] or [] for name in ("mean", "std")]
    size = 1 if options["size"] is None else options["size"]
    plain = isinstance(options["weights"], str | None) and type(size) is int and 0 < size < 2**16
    if not plain or not all(isinstance(x, float) and math.isfinite(x) for some in numbers for x in some):
        raise ValueError("its options are not those of a model")


def _is_safe(name: str) -> bool:
    """Return whether a name leads to a place below the folder of photographs, on any system."""
    rest = name.removeprefix(_PHOTOGRAPHS)
    parts = PurePosixPath(rest).parts
    plain = rest.isprintable() and not any(c in rest for c in '\\:*?"<>|') and len(rest) < 400
    return (
        name.startswith(_PHOTOGRAPHS)
        and bool(parts)
        and plain
        and not rest.startswith("/")
        and "/".join(parts) == rest
        and not any(part.startswith(".") for part in parts)
    )


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return a member's content, which must not be longer than the archive says."""
    with archive.open(member) as opened:
        content = opened.read(member.file_size + 1)
    if len(content) != member.file_size:
        raise ValueError(f"{member.filename:.100} has another length than recorded")
    return content
