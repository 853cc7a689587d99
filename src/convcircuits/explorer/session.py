"""What the routes look up: layers, units, photographs, circuits and jobs, by ids and names. No torch.

No text of a request becomes a path. It is looked up in tables that the folder and the worker fill.
"""

import contextlib
import hashlib
import io
import json
import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import HTTPException
from PIL import Image
from pydantic import BaseModel, ValidationError

from convcircuits import seals
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
from convcircuits.explorer import bundle, schemas
from convcircuits.explorer.circuit_file import CircuitFile
from convcircuits.explorer.jobs import Events, Job, Jobs, UnavailableError
from convcircuits.explorer.layer_file import LayerFile
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.store import Store, curve_key, filters_noted, note_key
from convcircuits.texts import names
from convcircuits.values.verdict import R2, is_of_interior
from convcircuits.version import __version__

Answer = TypeVar("Answer", bound=BaseModel)


class Session:
    """What the routes answer from: the folder, the jobs and the worker.

    Args:
        opening: What to open.
        read_only: Change nothing.

    Raises:
        ConvCircuitsError: If the project's folder cannot be used.
    """

    def __init__(self, opening: Opening, *, read_only: bool = False) -> None:
        self.opening, self.read_only, self.events = opening, read_only, Events()
        self.store = Store(opening.project, read_only=read_only, atlases=opening.atlases)
        self.jobs = Jobs(opening, self.store, self.events)
        self.store.on_remark = lambda text: self.events.publish("remark", {"text": text})
        if opening.bundle is not None:
            try:
                bundle.Bundle.read(opening.bundle).unpack(self.store)
            except BaseException:
                self.store.close()
                raise
        self.jobs.on_ready, self.jobs.on_done = self._ready, self._done
        self.streams = 0
        self.closing = False
        self.notes = threading.Lock()
        self._weights: dict[str, str] = {}  # layer -> hash of the weights up to it
        self._whole: dict[Path, tuple[int, int]] = {}  # derived files that were checked, and their state
        self._controls: dict[Path, tuple[tuple[int, int], Any]] = {}  # diagram -> its state, what its controls say

    def _ready(self) -> None:
        """Start the index, or continue it, as soon as the model is loaded, or another one in its place."""
        self._weights.clear()
        if not self.read_only:
            self.store.trim(self.about()["key"])
            index = self.index()
            if index is None or not index["complete"]:
                self.submit({"kind": "index"})

    def _done(self, job: Job) -> None:
        """Record that circuits are found which a curve found: the job ``find`` would find the same."""
        result = job.result or {}
        if job.kind != "sweep" or not result.get("found_alone"):
            return
        for id in result["circuits"]:
            one = self.store.circuit(id)
            provenance = {} if one is None or one.problem else one.header["provenance"]
            recipe = provenance.get("recipe") or provenance.get("search") or {}
            fields = {name: value for name, value in recipe.items() if name in schemas.FindJob.model_fields}
            with contextlib.suppress(ValidationError):  # the file was replaced just now
                asked = schemas.FindJob(kind="find", **fields).model_dump(exclude={"kind"})
                self.jobs.answered("find", asked, {"circuit": id}, since=job.created)

    # ---------------------------------------- lookups

    def about(self) -> dict[str, Any]:
        """Return the worker's description of the model.

        Raises:
            UnavailableError: If it is not ready.
        """
        if self.jobs.about is None:
            raise UnavailableError(self.jobs.problem or "The model is still being loaded; ask again in a moment.")
        return self.jobs.about

    def photo(self, id: str) -> dict[str, Any]:
        """Return a photograph."""
        found = next((one for one in self.about()["photographs"] if one["id"] == id), None)
        if found is None:
            raise HTTPException(404, f"There is no photograph {id}.")
        photo: dict[str, Any] = found
        return photo

    def layer(self, name: str) -> dict[str, Any]:
        """Return a layer by its name or alias."""
        found = next((one for one in self.about()["layers"] if name in (one["name"], one["alias"]) and name), None)
        if found is None:
            raise HTTPException(404, f"There is no layer {name!r:.100}.")
        layer: dict[str, Any] = found
        return layer

    def unit(self, layer: Mapping[str, Any], unit: int) -> None:
        """Check that a layer has a unit."""
        if unit >= layer["units"]:
            raise HTTPException(404, f"{layer['name']} has {layer['units']} units; there is no unit {unit}.")

    def index(self) -> dict[str, Any] | None:
        """Return the index's own file, or None."""
        return self.store.index(self.about()["key"])

    def indexed(self, layer: Mapping[str, Any]) -> tuple[LayerFile, list[int]]:
        """Return the index of a layer, and the number of the photograph of each of its images."""
        return self._layer_of(self.index(), layer)

    def _layer_of(self, index: Mapping[str, Any] | None, layer: Mapping[str, Any]) -> tuple[LayerFile, list[int]]:
        if index is not None:
            file = next((one["file"] for one in index["layers"] if one["layer"] == layer["name"]), None)
            found = None if file is None else self.store.layer(index["key"], file)
            if found is not None and found.header["layer"] == layer["name"] and found.header["key"] == index["key"]:
                return found, found.header["read"]  # its own: the index's file is written after it
            why = index["left_out"].get(layer["name"])
            if why:
                raise HTTPException(404, f"{layer['name']} is not indexed: {why}")
            if file is not None:
                self.index_again()
        if not layer["indexed"]:
            why = self.about()["not_indexed"].get(layer["name"], f"{layer['name']} is no convolution.")
            raise HTTPException(404, f"{layer['name']} is not indexed: {why}")
        raise HTTPException(404, f"{layer['name']} has not been indexed yet; the job index does that.")

    def index_again(self) -> None:
        """Queue the index again, after one of its files was damaged."""
        if not self.read_only:
            self.submit({"kind": "index"})

    def examples(self, found: list[dict[str, Any]], read: list[int]) -> list[schemas.Example]:
        """Name the photographs of examples."""
        every = self.about()["photographs"]
        answers = []
        for one in found:
            photo = every[read[one["image"]]]
            answers.append(
                schemas.Example(
                    photo=photo["id"],
                    name=photo["name"],
                    value=one["value"],
                    position=one["position"],
                    box=one["box"],
                )
            )
        return answers

    def circuit(self, id: str) -> CircuitFile:
        """Return a circuit."""
        found = self.store.circuit(id)
        if found is None:
            raise HTTPException(404, f"There is no circuit {id} in the project.")
        return found

    def content(self, one: CircuitFile) -> bytes:
        """Return the content of a circuit's file, unless it was removed or replaced just now."""
        content = self.store.content(one.file)
        if content is None or hashlib.sha256(content).hexdigest()[:16] != one.id:
            raise HTTPException(404, f"There is no circuit {one.id} in the project.")
        return content

    def card(self, one: CircuitFile) -> dict[str, Any]:
        """Return what is shown of a circuit."""
        card: dict[str, Any] = {"id": one.id, "file": one.name, "problem": one.problem}
        with contextlib.suppress(OSError):  # it was removed meanwhile
            card["written"] = one.file.stat().st_mtime
        if one.problem:
            return card
        header, origin = one.header, one.header["provenance"]
        position = header["feature"]["position"]
        return card | {
            "feature": str(origin.get("feature", "")),
            "layer": header["feature"]["layer"],
            "unit": header["feature"]["unit"],
            "position": position
            if isinstance(position, str)
            else "boxes"
            if isinstance(position, dict)
            else ",".join(map(str, position)),
            "criterion": str(origin.get("criterion") or ""),
            "granularity": header["granularity"],
            "kept": one.kept,
            "relevant": header["relevant"],
            "density": one.kept / max(1, header["relevant"]),
            "report": self.report(one),
            "diagram": self.diagram(one) is not None,
            "controls": self.controls(one),
            "same_weights": self.same_weights(one),
            "group": str(origin.get("group", "")),
        }

    def same_weights(self, one: CircuitFile) -> bool | None:
        """Return whether a circuit is of this model's weights, as far as its layer; None if that is not known yet."""
        about = self.jobs.about
        if about is None:
            return None
        layer = one.header["feature"]["layer"]
        if layer not in self._weights:
            try:
                self._weights[layer] = self.jobs.ask("weights", layer)
            except (UnavailableError, ConvCircuitsError):
                return None
        return bool(self._weights[layer] == one.header["provenance"].get("weights"))

    def atlases(self) -> list[schemas.AtlasCard]:
        """Return the atlases of layers of this model that there are, and others with what is wrong."""
        folders = self.store.atlases()
        said = self.jobs.ask("atlases", [*folders.values()], timeout=60.0) if folders else []
        cards = [
            schemas.AtlasCard(id=id, name=folder.name, **card)
            for (id, folder), card in zip(folders.items(), said, strict=True)
        ]
        return sorted(cards, key=lambda card: (card.layer, card.name))

    def atlas(self, id: str) -> schemas.Atlas:
        """Return an atlas, with the ids of its circuits.

        Raises:
            ConvCircuitsError: If it cannot be read, or is of another model or other weights.
        """
        folder = self.store.atlases().get(id)
        if folder is None:
            raise HTTPException(404, f"There is no atlas {id}.")
        found: dict[str, Any] = self.jobs.ask("atlas", folder, timeout=120.0)
        ids = self.store.circuit_ids()
        for row in found["units"]:
            row["circuit"] = ids.get(folder / row["file"])
        return schemas.Atlas(**found)

    def circuits_of(self, layer: str, unit: int) -> tuple[list[str], list[str]]:
        """Return the ids of a unit's circuits, and of circuits of a unit of this name in a model of other weights."""
        own: list[str] = []
        others: list[str] = []
        for one in self.store.circuits():
            if not one.problem and (one.header["feature"]["layer"], one.header["feature"]["unit"]) == (layer, unit):
                (others if self.same_weights(one) is False else own).append(one.id)
        return own, others

    def splits(self, layer: str, unit: int) -> list[schemas.Split]:
        """Return the divisions of a unit's photographs."""
        return [one for one in self._splits() if (one.layer, one.unit) == (layer, unit)]

    def split(self, id: str) -> schemas.Split:
        """Return a division of a unit's photographs."""
        found = next((one for one in self._splits() if one.id == id), None)
        if found is None:
            raise HTTPException(404, f"There is no division {id} of these photographs in the project.")
        return found

    def _splits(self) -> list[schemas.Split]:
        basis = self.about()["basis"]
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

    def record(self, kind: str, name: str, schema: type[Answer]) -> Answer | None:
        """Return a derived record if it is of this model and these photographs."""
        about = self.jobs.about
        content = None if about is None else self.store.record(kind, name, about["basis"])
        if about is None or content is None:
            return None
        file = self.store.derived(kind, name, about["basis"])
        self.store.used(file)
        return self._valid(schema, content, file)

    def derived(self, kind: str, name: str, suffix: str) -> Path | None:
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
        there = found is not None and (found.value is None or self.derived("features", unit, ".png") is not None)
        return found if there else None

    def module(self, one: CircuitFile) -> schemas.Module | None:
        """Return what a circuit's module costs, if it was extracted and is there."""
        there = self.derived("modules", one.id, ".safetensors") is not None
        return self.record("modules", one.id, schemas.Module) if there else None

    def document(self, one: CircuitFile) -> bytes | None:
        """Return a circuit's diagram, if it was drawn and is there."""
        file = next((file for file in self._diagrams(one) if self.whole(file)), None)
        return None if file is None else self.store.content(file)

    def trajectory(self, layer: str, unit: int) -> schemas.TrajectoryOfUnit | None:
        """Return a unit's photographs, placed layer by layer, if they were."""
        return self.record("trajectories", f"{layer}:{unit}", schemas.TrajectoryOfUnit)

    def curve(self, one: CircuitFile) -> schemas.Curve | None:
        """Return the density curve of a circuit's recipe, if it was measured."""
        key = curve_key(one.header["provenance"])
        return None if key is None else self.record("curves", key, schemas.Curve)

    def labels(self, layer: str) -> dict[int, dict[str, Any]]:
        """Return the notes on a layer's units, by unit."""
        notes, key = self.store.notes(), self.noted("unit", f"{layer}:")
        before, after = key.split(f"{layer}: ")
        found = {}
        for of, note in notes.items():
            if of.startswith(f"{before}{layer}:") and of.endswith(f" {after}"):
                number = of.removeprefix(f"{before}{layer}:").removesuffix(f" {after}")
                if number.isdecimal():
                    found[int(number)] = note
        return found

    def expect(self, photo: str) -> None:
        """Prepare for questions about a photograph: the worker runs the model on it, and the index is read."""
        self.jobs.tell("look", photo)
        with contextlib.suppress(UnavailableError):
            self._indexed()

    def _indexed(self) -> dict[str, LayerFile]:
        """Return the index of each layer that has one, by name."""
        index, found = self.index(), {}
        for layer in self.about()["layers"]:
            if layer["indexed"]:
                with contextlib.suppress(HTTPException):
                    found[layer["name"]] = self._layer_of(index, layer)[0]
        return found

    def point(self, photo: str, x: float, y: float, count: int) -> list[dict[str, Any]]:
        """Return the units that are highest at a point of a photograph, by layer.

        Args:
            photo: The photograph.
            x: Column of the model's image, in pixels.
            y: Row of the model's image, in pixels.
            count: Number of units of each layer, at most.
        """
        places = {name: (file, file.nearest(y, x)) for name, file in self._indexed().items()}
        if not places:
            raise HTTPException(404, "No layer has been indexed yet; the job index does that.")
        values = self.jobs.ask("values", photo, {name: position for name, (_, position) in places.items()})
        layers = []
        for layer in self.about()["layers"]:
            if layer["name"] in places:
                file, position = places[layer["name"]]
                layers.append(
                    {
                        "layer": layer["name"],
                        "alias": layer["alias"],
                        "position": position,
                        "box": file.box(*position),
                        "images": file.header["images"],
                        "complete": file.header["complete"],
                        "total": layer["units"],
                        "units": self._strongest(layer["name"], file, np.asarray(values[layer["name"]]), count),
                    }
                )
        return layers

    def _strongest(self, layer: str, file: LayerFile, values: np.ndarray, count: int) -> list[dict[str, Any]]:
        notes, quantiles = self.labels(layer), file.quantiles(values.astype(np.float64))
        best = [n for n in np.lexsort((-values, -quantiles)).tolist() if values[n] > 0][:count]
        return [
            {
                "unit": n,
                "value": float(values[n]),
                "quantile": float(quantiles[n]),
                "label": notes.get(n, {}).get("label", ""),
                "star": notes.get(n, {}).get("star", False),
            }
            for n in best
        ]

    def contrast(self, one: CircuitFile, a: str, b: str) -> dict[str, Any]:
        """Return what a circuit does on one photograph and on another."""
        found = self.jobs.ask("contrast", one.file, a, b, timeout=120.0)
        known = {layer["name"]: layer for layer in self.about()["layers"]}
        layers = [{**layer, "alias": known.get(layer["layer"], {}).get("alias", "")} for layer in found["layers"]]
        return {**found, "layers": layers}

    def diagram(self, one: CircuitFile) -> Path | None:
        """Return the file of a circuit's diagram, if it is of what is open; with controls if any."""
        return next((file for file in self._diagrams(one) if file.is_file()), None)

    def _diagrams(self, one: CircuitFile) -> list[Path]:
        """Return where a circuit's diagrams are or would be, first the one with controls."""
        about = self.jobs.about
        return [self.store.diagram_file(one.id, about["basis"], controls=c) for c in (True, False)] if about else []

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
            own = self._report(one, saved, sent=False)
        sent = self.store.report(one.id, sent=True) if own is None else None
        return own if sent is None else self._report(one, sent, sent=True)

    def _report(self, one: CircuitFile, saved: Mapping[str, Any], *, sent: bool) -> schemas.Report | None:
        """Return a report as it is answered, or None if it was damaged or edited."""
        try:
            figures, photographs = saved["report"], saved["photographs"]
            roles = {role: photographs.get(role, []) for role in ("found_on", "validated_on", "held_out")}
            if sent:
                here = {*self.about()["ids"].values()}
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

    def bundle(self, one: CircuitFile, commands: Mapping[str, Any], *, photographs: bool) -> bytes:
        """Return the content of a bundle of a circuit.

        Args:
            one: The circuit.
            commands: The command and the Python that find it again, as far as they are known.
            photographs: Whether to add the photographs that it was found and measured on. Else its diagram shows only
                parts of them.

        Raises:
            ConvCircuitsError: If the photographs are not recorded, not here any more, no files of a folder, or too
                large.
        """
        about, diagram = self.about(), self.diagram(one)
        report = self.store.report(one.id) if self._is_measured(one) else None
        document = None if diagram is None else self._document(diagram)
        if not photographs:
            report = None if report is None else bundle.unnamed(report, about["ids"])
            document = None if document is None else bundle.unpictured(document, about["ids"])
        files = bundle.circuit_files(self.content(one), report, document)
        if photographs:
            files |= self._photographs(one, bundle.MOST - sum(map(len, files.values())))
        what = {
            "circuit": one.id,
            "file": one.name,
            "model": about["name"],
            "weights": about["weights"],
            "basis": about["basis"],
            "images": self.opening.images,
            "options": {
                "size": self.opening.size,
                "mean": self.opening.mean,
                "std": self.opening.std,
                "weights": self.opening.weights and Path(self.opening.weights).name,
            },
            "controls": diagram is not None and "-controls-" in diagram.name,
            "note": self.store.note(f"circuit {one.id}"),
            "unit_note": self._note_of_unit(one),
            "filter_notes": filters_noted(self.store.notes(), one.id),
            "version": __version__,
            **commands,
        }
        return bundle.packed(what, files)

    def _photographs(self, one: CircuitFile, most: int) -> dict[str, bytes]:
        """Return the photographs that a circuit was found and measured on, by their names in a bundle."""
        named = one.header["provenance"].get("photographs") or {}
        wanted = sorted({name for some in named.values() for name in some})
        ids, files = self.about()["ids"], {}  # of copies too, whose names the circuit may have
        missing = [name for name in wanted if name not in ids]
        if missing or not wanted:
            what = f"{names(missing)}, which it names, are not here" if missing else "it does not say which they are"
            raise ConvCircuitsError(f"The photographs of {one.name} cannot be added: {what}. Leave them out.")
        for name in wanted:
            files[bundle.photograph_name(name)] = content = self.jobs.ask("source", ids[name])
            most -= len(content)
            if most < 0:
                raise bundle.too_large()
        return files

    def page(self, one: CircuitFile, view: str | None) -> str | None:
        """Return a circuit's diagram as one HTML file; None: it is not drawn.

        It has the notes on the circuit, its filters and its unit, and the unit's feature picture, if that was made.

        Args:
            one: The circuit.
            view: What is shown of it, as JSON; by default the document's own view.

        Raises:
            ConvCircuitsError: If the view is none of this diagram, or a note cannot be shown.
        """
        file = self.diagram(one)
        document = None if file is None else self._document(file)
        if document is None:
            return None
        if view is not None:
            document = replace(document, view=_view(document, view))
        feature = one.header["feature"]
        name = f"{feature['layer']}:{feature['unit']}"
        with self.notes:
            unit, own = self._note_of_unit(one), self.store.note(f"circuit {one.id}")
            filters = filters_noted(self.store.notes(), one.id)
        document = self._with_picture(_with_notes(document, filters), one)
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

    def _document(self, file: Path) -> Document | None:
        """Return the document in a file, or None if it is missing or damaged."""
        content = self.store.content(file)
        try:
            return None if content is None else Document.from_json(content)
        except ConvCircuitsError as error:
            self.store.damaged(file, error)
            return None

    def _note_of_unit(self, one: CircuitFile) -> dict[str, Any]:
        """Return the note on a circuit's unit; empty if there is none, or it is of no unit of this model."""
        unit = self._unit_of(one)
        return {} if unit is None else self.store.note(self.noted("unit", unit))

    def _with_picture(self, document: Document, one: CircuitFile) -> Document:
        """Return a circuit's diagram with the feature picture of its unit, if that was made."""
        unit = self._unit_of(one)
        file = None if unit is None else self.derived("features", unit, ".png")
        content = None if file is None else self.store.content(file)
        if content is None:
            return document
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        return with_target_picture(document, OPTIMIZED.format("the full model"), pixels)

    def _unit_of(self, one: CircuitFile) -> str | None:
        """Return the unit that a circuit is of, such as ``features.7:24``; None if it is of no unit of this model."""
        feature = one.header["feature"]
        if not isinstance(feature["unit"], int) or self.same_weights(one) is False:
            return None
        return f"{feature['layer']}:{feature['unit']}"

    def submit(self, asked: dict[str, Any]) -> Job:
        """Queue a job, or return the one that was asked for before."""
        kind = asked.pop("kind")
        return self.jobs.submit(kind, asked, valid=partial(self._holds, kind, asked))

    def _holds(self, kind: str, asked: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
        """Return whether what a job resulted in is still there."""
        if kind == "index":
            index = self.index()
            return index is not None and index["complete"]
        if kind == "split":
            known = {one.id for one in self.store.circuits()}
            whole = known.issuperset(result.get("circuits", ()))
            return whole and any(one.id == result.get("split") for one in self._splits())
        if kind == "visualise":
            picture = self.picture(f"{asked['layer']}:{asked['unit']}")
            return picture is not None and picture.steps == asked["steps"]
        if kind == "trajectory":
            found = self.trajectory(asked["layer"], asked["unit"])
            return found is not None and found.asked == {key: asked[key] for key in ("method", "split", "seed")}
        if kind == "neighbours":
            return self.record("neighbours", asked["layer"], schemas.NeighboursOfLayer) is not None
        if kind == "compare":
            return self.derived("comparisons", f"{asked['a']}-{asked['b']}", ".json") is not None
        circuit = self.store.circuit(str(result.get("circuit")))
        if circuit is None:
            return False
        if kind == "diagram":
            basis = self.about()["basis"]
            return self.whole(self.store.diagram_file(circuit.id, basis, controls=asked["controls"]))
        if kind == "sweep":
            curve = self.curve(circuit)
            shares = None if curve is None else [point.density for point in curve.points]
            known = {one.id for one in self.store.circuits()}
            there = known.issuperset(result.get("circuits", ()))
            return there and shares == sorted({*asked["densities"]}, reverse=True)
        if kind == "extract":
            return self.module(circuit) is not None
        return kind in ("ablate", "put_back") or self._is_measured(circuit)

    def _is_measured(self, one: CircuitFile) -> bool:
        """Return whether a circuit was measured here."""
        report = self.report(one)
        return report is not None and not report.sent

    def noted(self, kind: str, of: str) -> str:
        """Return the key of a note: a unit's belongs to the weights of its model."""
        return note_key(kind, of, self.about()["weights"] if kind == "unit" else "")

    def close(self) -> None:
        """End the worker, and release the folder."""
        self.closing = True
        self.jobs.close()
        self.store.close()


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
