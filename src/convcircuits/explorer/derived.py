"""What was made of circuits and units, if it is of the open model and photographs, and whole. No torch.

A file that was damaged or edited is put aside and reported, so that it can be made again.
"""

import contextlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from pydantic import BaseModel, ValidationError

from convcircuits import seals
from convcircuits.drawing.data import Document
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer import schemas
from convcircuits.explorer.circuit_file import CircuitFile
from convcircuits.explorer.jobs import Jobs
from convcircuits.explorer.store import Store, curve_key
from convcircuits.values.verdict import R2, is_of_interior

Answer = TypeVar("Answer", bound=BaseModel)


class Derived:
    """The files that were made of circuits and units: figures, diagrams, modules, pictures, curves and so on.

    Args:
        store: The project's folder.
        jobs: The worker's jobs, which know what is open.
    """

    def __init__(self, store: Store, jobs: Jobs) -> None:
        self.store, self.jobs = store, jobs
        self._whole: dict[Path, tuple[int, int]] = {}  # files that were checked, and their state
        self._controls: dict[Path, tuple[tuple[int, int], Any]] = {}  # diagram -> its state, what its controls say

    def record(self, kind: str, name: str, schema: type[Answer]) -> Answer | None:
        """Return a derived record if it is of this model and these photographs."""
        about = self.jobs.about
        content = None if about is None else self.store.record(kind, name, about["basis"])
        if about is None or content is None:
            return None
        file = self.store.derived(kind, name, about["basis"])
        self.store.used(file)
        return self._valid(schema, content, file)

    def file(self, kind: str, name: str, suffix: str) -> Path | None:
        """Return a derived file if it is of this model and these photographs, and whole."""
        about = self.jobs.about
        file = None if about is None else self.store.derived(kind, name, about["basis"], suffix)
        return file if file is not None and self.whole(file) else None

    def whole(self, file: Path) -> bool:
        """Return whether a picture, a module or a document is there, and what it should be; if so, it counts as used.

        A damaged one is removed and reported, so that it can be made again.
        """
        with contextlib.suppress(OSError):
            if self._whole.get(file) != _state(file):
                content = self.store.content(file)
                if content is None:
                    return False
                try:
                    _check(content, file.suffix)
                except MemoryError:
                    raise
                except Exception as error:  # a damaged file makes its readers raise nearly anything
                    self.store.damaged(file, error)
                    return False
            known = self._controls.get(file)
            before = _state(file)
            self.store.used(file)
            self._whole[file] = now = _state(file)
            if known is not None and known[0] == before:  # it is the same file, with another time
                self._controls[file] = now, known[1]
            return True
        return False

    def picture(self, unit: str) -> schemas.FeaturePicture | None:
        """Return what is known of a unit's feature picture, if it was made and is there."""
        found = self.record("features", unit, schemas.FeaturePicture)
        there = found is not None and (found.value is None or self.file("features", unit, ".png") is not None)
        return found if there else None

    def module(self, one: CircuitFile) -> schemas.Module | None:
        """Return what a circuit's module costs, if it was extracted and is there."""
        there = self.file("modules", one.id, ".safetensors") is not None
        return self.record("modules", one.id, schemas.Module) if there else None

    def diagram(self, one: CircuitFile) -> Path | None:
        """Return the file of a circuit's diagram, if it is of what is open; with controls if any."""
        return next((file for file in self._diagrams(one) if file.is_file()), None)

    def _diagrams(self, one: CircuitFile) -> list[Path]:
        """Return where a circuit's diagrams are or would be, first the one with controls."""
        about = self.jobs.about
        return [self.store.diagram_file(one.id, about["basis"], controls=c) for c in (True, False)] if about else []

    def document(self, one: CircuitFile) -> bytes | None:
        """Return the content of a circuit's diagram, if it was drawn and is there."""
        _, content = self._content(one)
        return content

    def drawn(self, one: CircuitFile) -> tuple[Path, Document] | None:
        """Return the file of a circuit's diagram and its document, if it was drawn and is there."""
        file, content = self._content(one)
        if file is None or content is None:
            return None
        try:
            return file, Document.from_json(content)
        except ConvCircuitsError as error:  # it was replaced just now
            self.store.damaged(file, error)
            return None

    def _content(self, one: CircuitFile) -> tuple[Path | None, bytes | None]:
        file = next((file for file in self._diagrams(one) if self.whole(file)), None)
        return file, None if file is None else self.store.content(file)

    def trajectory(self, layer: str, unit: int) -> schemas.TrajectoryOfUnit | None:
        """Return a unit's photographs, placed layer by layer, if they were."""
        return self.record("trajectories", f"{layer}:{unit}", schemas.TrajectoryOfUnit)

    def curve(self, one: CircuitFile) -> schemas.Curve | None:
        """Return the density curve of a circuit's recipe, if it was measured."""
        key = curve_key(one.header["provenance"])
        return None if key is None else self.record("curves", key, schemas.Curve)

    def controls(self, one: CircuitFile) -> Any:
        """Return what the controls in a circuit's diagram say of it; None if none were fitted."""
        about = self.jobs.about
        if about is None:
            return None
        file = self.store.diagram_file(one.id, about["basis"], controls=True)
        try:
            state = _state(file)
        except OSError:
            return None
        if self._controls.get(file, (None, None))[0] != state:
            said = self.store.read_json(file)
            try:
                verdict = said["variants"][0]["fidelity"]["controls"]["verdict"]
            except (TypeError, KeyError, IndexError):  # none could be fitted, or it is no document
                verdict = None
            self._controls[file] = state, verdict if verdict in ("found", "not found", "not decided") else None
        return self._controls[file][1]

    def report(self, one: CircuitFile) -> schemas.Report | None:
        """Return the report on a circuit, if this version made it with this model and these photographs.

        If there is none, return the one that came with it in a bundle.
        """
        about = self.jobs.about
        if about is None:
            return None
        saved = self.store.report(one.id)
        own = None
        if saved is not None and saved.get("basis") == about["basis"]:
            own = self._report(one, saved, about, sent=False)
        sent = self.store.report(one.id, sent=True) if own is None else None
        return own if sent is None else self._report(one, sent, about, sent=True)

    def is_measured(self, one: CircuitFile) -> bool:
        """Return whether a circuit was measured here."""
        report = self.report(one)
        return report is not None and not report.sent

    def _report(
        self, one: CircuitFile, saved: Mapping[str, Any], about: Mapping[str, Any], *, sent: bool
    ) -> schemas.Report | None:
        """Return a report as it is answered, or None if it was damaged or edited."""
        try:
            figures, photographs = saved["report"], saved["photographs"]
            roles = {role: photographs.get(role, []) for role in ("found_on", "validated_on", "held_out")}
            if sent:
                here = {*about["ids"].values()}
                roles = {role: [id for id in ids if id in here] for role, ids in roles.items()}
            return schemas.Report(
                images=figures["images"],
                whole=_whole(one.header["provenance"]),
                **roles,
                found_on_verified=bool(saved.get("verified")),
                verdict=figures["verdict"],
                verdict_sentence=figures["verdict_sentence"],
                of_interior=is_of_interior(figures["verdict"], *_r2s(figures)),
                figures=figures,
                seconds=saved["seconds"],
                sent=sent,
            )
        except (ValidationError, TypeError, KeyError, AttributeError) as error:
            self.store.damaged(self.store.report_file(one.id, sent=sent), error)
            return None

    def splits(self, basis: str) -> list[schemas.Split]:
        """Return the divisions of the photographs of units, of a basis."""
        some = [
            self._valid(schemas.Split, content, file)
            for file, content in self.store.splits()
            if content.get("basis") == basis
        ]
        return [one for one in some if one is not None]

    def _valid(self, schema: type[Answer], content: Mapping[str, Any], file: Path) -> Answer | None:
        """Return a derived file's content as a value, or None if it was damaged or edited."""
        try:
            return schema(**content)
        except (ValidationError, TypeError) as error:
            self.store.damaged(file, error)
            return None


def _state(file: Path) -> tuple[int, int]:
    """Return when a file was written, in nanoseconds, and its size."""
    status = file.stat()
    return status.st_mtime_ns, status.st_size


def _check(content: bytes, suffix: str) -> None:
    """Raise an error unless a derived file's content is what it should be."""
    if suffix == ".png":
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if picture.width * picture.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError("it is too large")
            picture.verify()  # its checksums; it is not decoded
    elif suffix == ".safetensors":
        if not seals.is_sealed(content, json.loads(seals.metadata(content)[seals.KEY])):
            raise ValueError("its checksum does not match")
    else:
        Document.from_json(content.decode())


def _r2s(figures: Mapping[str, Any]) -> tuple[R2, R2, R2]:
    """Return R2 of a circuit, of the average map and of a random circuit, from a report's JSON values."""
    circuit, average_map, random = (
        R2(*(math.nan if figures[name] is None else float(figures[name]) for name in (name, f"{name}_interior")))
        for name in ("r2", "r2_average_map", "r2_random")
    )
    return circuit, average_map, random


def _whole(provenance: Mapping[str, Any]) -> bool:
    """Return whether a circuit is of whole photographs: chosen by hand, or those with a box."""
    recipe = provenance.get("recipe")
    return "whole_photographs" in provenance or (isinstance(recipe, Mapping) and recipe.get("boxes") is not None)
