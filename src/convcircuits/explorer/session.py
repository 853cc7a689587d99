"""What the routes look up: layers, units, photographs, circuits and jobs, by ids and names. No torch.

No text of a request becomes a path. It is looked up in tables that the folder and the worker fill.
"""

import contextlib
import hashlib
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from fastapi import HTTPException
from pydantic import ValidationError

from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer import bundle, schemas
from convcircuits.explorer.circuit_file import CircuitFile
from convcircuits.explorer.derived import Derived
from convcircuits.explorer.jobs import Events, Job, Jobs, UnavailableError
from convcircuits.explorer.layer_file import LayerFile
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.store import Store, note_key


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
        self.derived = Derived(self.store, self.jobs)
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
            "report": self.derived.report(one),
            "diagram": self.derived.diagram(one) is not None,
            "controls": self.derived.controls(one),
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
        return [one for one in self.derived.splits(self.about()["basis"]) if (one.layer, one.unit) == (layer, unit)]

    def split(self, id: str) -> schemas.Split:
        """Return a division of a unit's photographs."""
        found = next((one for one in self.derived.splits(self.about()["basis"]) if one.id == id), None)
        if found is None:
            raise HTTPException(404, f"There is no division {id} of these photographs in the project.")
        return found

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
            return whole and any(one.id == result.get("split") for one in self.derived.splits(self.about()["basis"]))
        if kind == "visualise":
            picture = self.derived.picture(f"{asked['layer']}:{asked['unit']}")
            return picture is not None and picture.steps == asked["steps"]
        if kind == "trajectory":
            found = self.derived.trajectory(asked["layer"], asked["unit"])
            return found is not None and found.asked == {key: asked[key] for key in ("method", "split", "seed")}
        if kind == "neighbours":
            return self.derived.record("neighbours", asked["layer"], schemas.NeighboursOfLayer) is not None
        if kind == "compare":
            return self.derived.file("comparisons", f"{asked['a']}-{asked['b']}", ".json") is not None
        circuit = self.store.circuit(str(result.get("circuit")))
        if circuit is None:
            return False
        if kind == "diagram":
            basis = self.about()["basis"]
            return self.derived.whole(self.store.diagram_file(circuit.id, basis, controls=asked["controls"]))
        if kind == "sweep":
            curve = self.derived.curve(circuit)
            shares = None if curve is None else [point.density for point in curve.points]
            known = {one.id for one in self.store.circuits()}
            there = known.issuperset(result.get("circuits", ()))
            return there and shares == sorted({*asked["densities"]}, reverse=True)
        if kind == "extract":
            return self.derived.module(circuit) is not None
        return kind in ("ablate", "put_back") or self.derived.is_measured(circuit)

    def noted(self, kind: str, of: str) -> str:
        """Return the key of a note: a unit's belongs to the weights of its model."""
        return note_key(kind, of, self.about()["weights"] if kind == "unit" else "")

    def close(self) -> None:
        """End the worker, and release the folder."""
        self.closing = True
        self.jobs.close()
        self.store.close()
