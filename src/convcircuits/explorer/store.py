"""A project's folder: circuits, their reports and diagrams, the index, notes. The files are the truth. No torch.

::

    project/
        circuits/NAME.safetensors     a circuit, as convcircuits find writes it; others may be put here
        reports/ID.json               its figures, and which photographs it was found and measured on; ID is its hash
        reports/ID-sent.json          its figures as they came in a bundle
        diagrams/ID-BASIS.json        its diagram, which cc.Diagram.load opens; BASIS is what its figures depend on
        comparisons/ID-ID-BASIS.json  a diagram of two circuits
        curves/RECIPE-BASIS.json      circuits of several densities by one recipe, measured
        modules/ID-BASIS.safetensors  a circuit as a module, which cc.load opens; its costs are in a .json beside it
        splits/ID.json                a unit's photographs in groups, and the cross-test of their circuits
        features/LAYER-UNIT-BASIS.png the picture that drives a unit; its values are in a .json beside it
        neighbours/LAYER-BASIS.json   which units of a layer have correlated maps
        trajectories/LAYER-UNIT-BASIS.json  a unit's photographs, placed layer by layer by how it is computed
        index/KEY/index.json          which photographs were looked at; KEY is a hash of weights, images, size, version
        index/KEY/NNN-LAYER.safetensors
        atlases/NAME/                 an atlas of a layer, as convcircuits atlas --out writes it; put it here yourself
        notes.json                    labels, stars and texts of people, on units, circuits, their filters, photographs
        jobs/ID.json                  what was asked for and what came of it; ID is a hash of the question
        thumbs/                       small pictures, made again when they are missing
        lock

What is damaged is reported once. Reports, curves, divisions and notes get another name then, NAME.damaged-1.json, as
what they hold took long; other derived files are removed. The index is made again, the rest when it is asked for.
Circuits are never removed.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.circuit_file import CircuitFile
from convcircuits.explorer.layer_file import INDEX, LayerFile
from convcircuits.files import fcntl, safe_name, write_whole
from convcircuits.values.recipe import SIZES

NOTES = "convcircuits-notes/1"
THUMBS = 256 * 2**20
"""Bytes of small pictures to keep, those used last."""

LAYERS = 512 * 2**20
"""Bytes of an index's files that stay in memory, those used last: a click on a photograph needs all layers."""

DERIVED = 2 * 2**30
"""Bytes of indexes, diagrams, modules and other derived files to keep, those used last, besides the present index."""

LONGEST_LABEL, LONGEST_TEXT = 200, 20_000
"""Characters of a note's label and text."""

_DAMAGED = ".damaged-"
_EVICTED = ("diagrams", "comparisons", "modules", "features", "neighbours", "trajectories")
_KEPT = ("reports", "curves", "splits")  # also when they are damaged: what they hold took long
_FOLDERS = ("circuits", "reports", "curves", "splits", "index", "jobs", "thumbs", *_EVICTED)


def hash_of(value: Any) -> str:
    """Return a hash of a JSON value, 32 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_hash(text: Any) -> bool:
    """Return whether a value has the form of ``hash_of``'s, so that it may be part of a file's name."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{32}", text) is not None


def curve_key(provenance: Mapping[str, Any]) -> str | None:
    """Return a hash of how a circuit was found, but for its size: circuits on one density curve have the same.

    Whether effective kernels are counted is part of it, as a note on the curve is about that.

    None if that is not recorded.
    """
    recipe, photographs = provenance.get("recipe") or provenance.get("search"), provenance.get("photographs")
    if not isinstance(recipe, Mapping) or not isinstance(photographs, Mapping):
        return None
    how = {name: value for name, value in recipe.items() if name not in SIZES}
    chosen = [provenance.get(name) for name in ("boxes", "whole_photographs")]
    return hash_of([how, dict(photographs), *chosen])[:16]


class Store:
    """A project's folder.

    Args:
        folder: The folder; it is created unless this only reads.
        read_only: Write nothing, and take no lock.
        atlases: Folders of atlases besides those in the folder.

    Raises:
        ConvCircuitsError: If the folder cannot be created or written, another process has it open, or there is no atlas
            in a folder.
    """

    def __init__(self, folder: Path, *, read_only: bool = False, atlases: Sequence[Path] = ()) -> None:
        self.folder, self.read_only, self._atlases = folder, read_only, atlases
        for given in atlases:
            if not _is_atlas(given):
                raise ConvCircuitsError(
                    f"There is no atlas in {given}: it has no index.sqlite; give a folder that convcircuits atlas "
                    "wrote."
                )
        self.remarks: list[str] = []
        self.on_remark: Callable[[str], None] = lambda text: None
        self._circuits: dict[Path, tuple[tuple[int, int], CircuitFile]] = {}
        self._arrays: dict[Path, tuple[tuple[int, int], LayerFile]] = {}
        self._reading = threading.Lock()  # the server's threads share the layers in memory
        self._noting = threading.RLock()  # none of them takes a file that another writes for the damaged one
        self._lock: BinaryIO | None = None
        self._key: str | None = None  # of the index in use
        self._made, self._untrimmed = not folder.exists(), 0  # bytes of pictures since they were last trimmed
        if read_only:
            if not folder.is_dir():
                raise ConvCircuitsError(f"There is no folder {folder} to read; omit --read-only to make it.")
            return
        try:
            for name in _FOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder / "lock", self.remark)
        except OSError as error:
            raise ConvCircuitsError(f"The folder {folder} cannot be used: {error.strerror or error}.") from error

    def close(self) -> None:
        """Release the lock. A folder that this made and in which nothing was written is removed."""
        if self._lock is not None:
            if self._made:
                self._remove_empty()
            self._lock.close()
            self._lock = None

    def _remove_empty(self) -> None:
        for page in self.folder.glob("open-*.html"):  # which opened the browser
            page.unlink(missing_ok=True)
        for name in _FOLDERS:
            with contextlib.suppress(OSError):  # it is not empty
                (self.folder / name).rmdir()
        with contextlib.suppress(OSError):
            if [*self.folder.iterdir()] == [self.folder / "lock"]:
                (self.folder / "lock").unlink()
                self.folder.rmdir()

    def remark(self, text: str) -> None:
        """Add a remark for the user, unless it has been made already."""
        if text not in self.remarks:
            self.remarks.append(text)
            self.on_remark(text)

    # ---------------------------------------- circuits

    def circuits(self) -> list[CircuitFile]:
        """Return the files in the folder of circuits, by name, whoever wrote them, and those of atlases.

        Of equal ones, the first.
        """
        first: dict[str, CircuitFile] = {}
        for one in self._read_circuits():
            first.setdefault(one.id, one)
        return [*first.values()]

    def circuit_ids(self) -> dict[Path, str]:
        """Return the id of each file of a circuit that can be read, equal ones included."""
        return {one.file: one.id for one in self._read_circuits() if not one.problem}

    def _read_circuits(self) -> list[CircuitFile]:
        folders = [self.folder, *self.atlases().values()]
        found = {}
        for file in [file for folder in folders for file in sorted((folder / "circuits").glob("*.safetensors"))]:
            with contextlib.suppress(OSError):
                status = file.stat()
                if not stat.S_ISREG(status.st_mode):  # reading a pipe would never end
                    continue
                key = (status.st_mtime_ns, status.st_size)
                known = self._circuits.get(file)
                found[file] = known if known is not None and known[0] == key else (key, CircuitFile.read(file))
        self._circuits = found
        return [one for _, one in found.values()]

    def atlases(self) -> dict[str, Path]:
        """Return the folders of atlases by id: those that were given, and those in the folder."""
        own = sorted((self.folder / "atlases").glob("*"))
        folders = [folder.absolute() for folder in (*self._atlases, *own) if _is_atlas(folder)]
        return {hash_of(str(folder))[:16]: folder for folder in folders}

    def circuit(self, id: str) -> CircuitFile | None:
        """Return the circuit with an id, or None."""
        return next((one for one in self.circuits() if one.id == id), None)

    def place_for(self, name: str, suffix: str = ".safetensors") -> Path:
        """Return a path in the folder of circuits that no file has."""
        folder, number = self.folder / "circuits", 1
        while (place := folder / f"{name}{'' if number == 1 else f'-{number}'}{suffix}").exists():
            number += 1
        return place

    def report_file(self, id: str, *, sent: bool = False) -> Path:
        """Return the path of the report on a circuit: of the one measured here, or of the one sent in a bundle."""
        return self.folder / "reports" / f"{id}{'-sent' if sent else ''}.json"

    def diagram_file(self, id: str, basis: str, *, controls: bool) -> Path:
        """Return the path of a circuit's diagram, which has another name if its figures depend on something else.

        Args:
            id: The circuit's id.
            basis: Hash of what figures depend on: the model, the photographs, the version.
            controls: Whether it shows controls.
        """
        return self.derived("diagrams", f"{id}-controls" if controls else id, basis)

    def derived(self, kind: str, name: str, basis: str, suffix: str = ".json") -> Path:
        """Return the path of a derived file, which has another name if its figures depend on something else.

        Args:
            kind: Name of its folder.
            name: What it is of.
            basis: Hash of what figures depend on: the model, the photographs, the version.
            suffix: How the name ends.

        Raises:
            ConvCircuitsError: If the basis is not a hash, but perhaps a path.
        """
        if not is_hash(basis):
            raise ConvCircuitsError(f"What figures depend on is a hash of 32 hexadecimal digits; got {basis!r:.80}.")
        return self.folder / kind / f"{safe_name(name)}-{basis[:8]}{suffix}"

    def record(self, kind: str, name: str, basis: str) -> dict[str, Any] | None:
        """Return the content of a derived JSON file that says what it is of, or None if it is missing or damaged."""
        content = self.read_json(self.derived(kind, name, basis))
        return (
            content
            if isinstance(content, dict) and (content.get("of"), content.get("basis")) == (name, basis)
            else None
        )

    def write_record(self, kind: str, name: str, basis: str, content: Mapping[str, Any]) -> None:
        """Write a derived JSON file."""
        self.write_json(self.derived(kind, name, basis), {"of": name, "basis": basis, **content})

    def splits(self) -> list[tuple[Path, dict[str, Any]]]:
        """Return all divisions of units' photographs with their files, the newest first."""
        folder = self.folder / "splits"
        files = [file for file in folder.glob("*.json") if _DAMAGED not in file.name] if folder.is_dir() else []
        found = [(file, content) for file in files if isinstance(content := self.read_json(file), dict)]
        return sorted(found, key=lambda one: -float(one[1].get("made") or 0))

    def report(self, id: str, *, sent: bool = False) -> dict[str, Any] | None:
        """Return the report on a circuit, or None if it is missing or damaged."""
        content = self.read_json(self.report_file(id, sent=sent))
        return content if isinstance(content, dict) and content.get("circuit") == id else None

    # ---------------------------------------- derived files

    def read_json(self, file: Path) -> Any:
        """Return the content of a derived file, or None; for a damaged one see ``damaged``."""
        content = self.content(file)
        try:
            return None if content is None else json.loads(content)
        except (ValueError, RecursionError) as error:
            self.damaged(file, error)
            return None

    def content(self, file: Path) -> bytes | None:
        """Return the bytes of a derived file, or None; a remark says if one that is there cannot be read now."""
        try:
            return file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._unread(file, error)
            return None

    def write_json(self, file: Path, value: Any) -> None:
        """Write a JSON value, completely or not at all."""
        write_whole(file, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def damaged(self, file: Path, error: Exception) -> None:
        """Remove a damaged derived file, or give it another name if what it holds took long, and report it."""
        name = file.relative_to(self.folder)
        again = "it will be made again" if name.parts[0] == "index" else "ask for it again"
        if self.read_only:
            again = "it is left out"
        elif name.parts[0] in _KEPT:
            with contextlib.suppress(OSError):
                again = f"it was kept as {_put_aside(file).name}; {again}"
        else:
            with contextlib.suppress(OSError):
                file.unlink()
        self.remark(f"{name} was damaged ({' '.join(str(error).split()):.200}); {again}.")

    def _unread(self, file: Path, error: OSError) -> None:
        """Report a file that cannot be read now. It may be intact: open files run out, a disk is away for a moment."""
        name = file.relative_to(self.folder) if file.is_relative_to(self.folder) else file  # of an atlas elsewhere
        self.remark(f"{name} cannot be read: {error.strerror or error}.")

    def index(self, key: str) -> dict[str, Any] | None:
        """Return what the index with a key says of itself, or None."""
        content = self.read_json(self.folder / "index" / key / "index.json")
        fits = isinstance(content, dict) and content.get("schema") == INDEX and content.get("key") == key
        return content if fits else None

    def layer(self, key: str, file: str) -> "LayerFile | None":
        """Return a layer of an index, or None if its file is missing or damaged."""
        path = self.folder / "index" / key / file
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            with self._reading:
                known = self._arrays.pop(path, None)
                if known is None or known[0] != stamp:
                    known = (stamp, LayerFile.read(path.read_bytes()))
                self._arrays[path] = known  # the last one used is the last
                while len(self._arrays) > 1 and sum(size for (_, size), _ in self._arrays.values()) > LAYERS:
                    del self._arrays[next(iter(self._arrays))]
            return known[1]
        except FileNotFoundError:
            return None
        except OSError as error:
            self._unread(path, error)
            return None
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes safetensors raise nearly anything
            self.damaged(path, error)
            if not self.read_only:  # without it the index is not complete
                (path.parent / "index.json").unlink(missing_ok=True)
            return None

    # ---------------------------------------- notes

    def notes(self) -> dict[str, Any]:
        """Return all notes that can be shown, by what they are of; a remark names the others.

        A damaged file of notes is never removed: it gets another name, and that is reported.

        Raises:
            ConvCircuitsError: If the file cannot be read now, or is damaged and cannot be renamed. It keeps its name,
                and nothing may be written.
        """
        notes = self._notes()
        for of, note in notes.items():
            if problem := problem_of_note(note):
                self.remark(f"notes.json: the note on {of:.200} is left out, because {problem}.")
        return {of: note for of, note in notes.items() if not problem_of_note(note)}

    def note(self, of: str) -> dict[str, Any]:
        """Return a note, empty if there is none.

        Raises:
            ConvCircuitsError: As for ``notes``, or if it cannot be shown.
        """
        note: dict[str, Any] = self._notes().get(of, {})
        if problem := problem_of_note(note):
            raise ConvCircuitsError(f"The note on {of:.200} cannot be shown, because {problem}; edit notes.json.")
        return note

    def _notes(self) -> dict[str, Any]:
        with self._noting:
            return self._read_notes()

    def _read_notes(self) -> dict[str, Any]:
        file = self.folder / "notes.json"
        try:
            content = json.loads(file.read_bytes())
            if content["schema"] != NOTES or not isinstance(content["notes"], dict):
                raise ValueError("it is of another version")
            notes: dict[str, Any] = content["notes"]
            return notes
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConvCircuitsError(f"{file} cannot be read: {error.strerror or error}.") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if not self.read_only:
                try:
                    kept = _put_aside(file)
                except OSError as problem:  # notes that are written now would replace it
                    raise ConvCircuitsError(
                        f"{file} is damaged ({error}) and cannot be renamed: {problem.strerror or problem}."
                    ) from error
                self.remark(
                    f"notes.json could not be read ({error}); it was kept as {kept.name}, and notes begin anew."
                )
            else:
                self.remark(f"notes.json could not be read ({error}).")
            return {}

    def write_note(self, of: str, note: Mapping[str, Any] | None) -> None:
        """Write a note, or remove it if it is None."""
        with self._noting:
            notes = self._read_notes()
            notes.pop(of, None)
            if note is not None:
                notes[of] = dict(note)
            self.write_json(self.folder / "notes.json", {"schema": NOTES, "notes": dict(sorted(notes.items()))})

    # ---------------------------------------- jobs and pictures

    def job(self, id: str) -> dict[str, Any] | None:
        """Return what came of a job, or None if its file is missing or damaged."""
        file = self.folder / "jobs" / f"{id}.json"
        content = self.read_json(file)
        if content is None or (isinstance(content, dict) and _is_job(content, id)):
            return content
        self.damaged(file, ValueError("it is not what came of a job"))
        return None

    def jobs(self) -> list[dict[str, Any]]:
        """Return what came of all jobs, the earliest first."""
        folder = self.folder / "jobs"
        found = [self.job(file.stem) for file in folder.glob("*.json")] if folder.is_dir() else []
        return sorted((one for one in found if one is not None), key=lambda one: one["ended"])

    def write_job(self, content: Mapping[str, Any]) -> None:
        """Write what came of a job."""
        self.write_json(self.folder / "jobs" / f"{content['id']}.json", dict(content))

    def thumb(self, name: str) -> bytes | None:
        """Return a small picture, or None."""
        file = self._thumb_file(name)
        with contextlib.suppress(OSError):
            content = file.read_bytes()
            if not self.read_only:
                os.utime(file)
            return content
        return None

    def write_thumb(self, name: str, content: bytes) -> None:
        """Keep a small picture."""
        if self.read_only:
            return
        with contextlib.suppress(ConvCircuitsError, OSError):  # a full disk takes no picture away
            file = self._thumb_file(name)
            file.parent.mkdir(exist_ok=True)
            write_whole(file, content)
            self._untrimmed += len(content)
        if self._untrimmed > THUMBS // 8:
            self.trim()

    def _thumb_file(self, name: str) -> Path:
        """Return the path of a small picture, in one of many folders: writing a file lists its folder."""
        return self.folder / "thumbs" / name[:2] / name

    def trim(self, key: str | None = None) -> None:
        """Remove what was derived and used longest ago, down to ``THUMBS`` and ``DERIVED`` bytes.

        Circuits, reports, curves, divisions and notes are not removed.

        Args:
            key: The hash of the index in use, which stays, also when pictures that are written trim the rest. By
                default that of before.
        """
        if self.read_only:
            return
        self._untrimmed = 0
        if key is not None:
            self._key = key
            self.used(self.folder / "index" / key / "index.json")
        _evict([[file] for file in self.folder.glob("thumbs/**/*") if file.is_file()], THUMBS)
        self.trim_derived()

    def trim_derived(self) -> None:
        """Remove what was derived and used longest ago, but for small pictures, down to ``DERIVED`` bytes."""
        if self.read_only:
            return
        groups: dict[Path, list[Path]] = {}
        for folder in _EVICTED:
            for file in self.folder.glob(f"{folder}/*"):
                groups.setdefault(file.with_suffix(""), []).append(file)  # a module and its costs
        for folder_of_index in self.folder.glob("index/*"):
            if folder_of_index.name != self._key:
                groups[folder_of_index] = [*folder_of_index.glob("*")]
        _evict([*groups.values()], DERIVED)

    def used(self, file: Path) -> None:
        """Record that a derived file was used just now, so that others are removed before it."""
        if not self.read_only:
            with contextlib.suppress(OSError):
                os.utime(file)

    def size(self) -> int:
        """Return the bytes of all files."""
        total = 0
        for place, _, files in os.walk(self.folder):
            for name in files:
                with contextlib.suppress(OSError):  # one that was being written has its own name by now
                    total += os.lstat(Path(place, name)).st_size
        return total


def _evict(groups: Sequence[Sequence[Path]], most: int) -> None:
    """Remove groups of files, those used longest ago first, until the rest has at most so many bytes."""
    found = []
    for files in groups:
        with contextlib.suppress(OSError):
            all_of_it = [file.stat() for file in files]
            found.append(
                (max((one.st_mtime for one in all_of_it), default=0.0), sum(s.st_size for s in all_of_it), files)
            )
    total = sum(size for _, size, _ in found)
    for _, size, files in sorted(found, key=lambda one: one[0]):
        if total <= most:
            break
        for file in files:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        for folder in {file.parent for file in files}:
            if folder.parent.name == "index":
                with contextlib.suppress(OSError):
                    folder.rmdir()
        total -= size


def _put_aside(file: Path) -> Path:
    """Rename a damaged file, and return its new path.

    Raises:
        OSError: If that is not possible.
    """
    number = 1
    while (kept := file.with_name(f"{file.stem}{_DAMAGED}{number}{file.suffix}")).exists():
        number += 1
    return file.rename(kept)


def note_key(kind: str, of: str, weights: str) -> str:
    """Return the key of a note: a unit's belongs to the weights of its model, of which this is the hash."""
    return f"{kind} {of}" if kind != "unit" else f"unit {of} of weights {weights[:8]}"


def filters_noted(notes: Mapping[str, Any], circuit: str) -> dict[str, Any]:
    """Return the notes on the filters in a circuit's diagram, by layer and number, such as ``features.10:37``."""
    before, after = note_key("filter", "", ""), f" of circuit {circuit}"
    return {
        of.removeprefix(before).removesuffix(after): note
        for of, note in notes.items()
        if of.startswith(before) and of.endswith(after)
    }


def problem_of_note(note: Any) -> str:
    """Return why a note cannot be shown, or an empty text."""
    kinds = {"label": str, "star": bool, "text": str}
    if not isinstance(note, dict) or not note.keys() <= kinds.keys():
        return "it has other fields than label, star and text"
    for name, value in note.items():
        if not isinstance(value, kinds[name]):
            return f"its {name} is {value!r:.80}"
    for name, most in (("label", LONGEST_LABEL), ("text", LONGEST_TEXT)):
        if len(note.get(name, "")) > most:
            return f"its {name} has more than {most:,} characters"
        if any("\ud800" <= character <= "\udfff" for character in note.get(name, "")):
            return f"its {name} has a half of a character"
    return ""


def _is_atlas(folder: Path) -> bool:
    """Return whether a folder holds the index of an atlas, or of a part of one."""
    return any(folder.glob("index*.sqlite"))


def _is_job(content: Mapping[str, Any], id: str) -> bool:
    """Return whether a JSON object is what came of the job with an id."""
    kinds: dict[str, Any] = {
        "kind": str,
        "parameters": dict,
        "result": dict,
        "created": (int, float),
        "ended": (int, float),
    }
    fits = all(isinstance(content.get(name), kind) and content[name] is not True for name, kind in kinds.items())
    return fits and content.get("id") == id and content.get("state") == "done"


def _locked(file: Path, remark: Callable[[str], None]) -> BinaryIO:
    """Open and lock a file as long as this process lives; a remark says if that is not possible there.

    Raises:
        ConvCircuitsError: If another process has locked it.
    """
    handle = file.open("a+b")
    try:
        if fcntl is None:
            raise OSError("no locks here")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.seek(0)
        owner = handle.read(20).decode("ascii", "replace").strip()
        handle.close()
        raise ConvCircuitsError(
            f"{file.parent} is open in another explorer (process {owner or 'unknown'}); end that one, or give another "
            "--project."
        ) from error
    except OSError as error:
        remark(
            f"{file.parent} is on a file system without locks ({error.strerror or error}), so a second explorer could "
            "open it too; see that only one does."
        )
    handle.truncate(0)
    handle.write(str(os.getpid()).encode())
    handle.flush()
    return handle
