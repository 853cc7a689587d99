"""What the routes look up: layers, units, photographs, circuits and jobs, by ids and names. No torch.

No text of a request becomes a path. It is looked up in tables that the folder and the worker fill.
"""

import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from convcircuits.explorer import schemas
from convcircuits.explorer.jobs import Events, Job, Jobs, UnavailableError
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.store import CircuitFile, LayerFile, Store


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
        self.store = Store(opening.project, read_only=read_only)
        self.jobs = Jobs(opening, self.store, self.events)
        self.store.on_remark = lambda text: self.events.publish("remark", {"text": text})
        self.jobs.on_ready = self._ready
        self.streams = 0
        self.closing = False
        self.notes = threading.Lock()

    def _ready(self) -> None:
        """Start the index, or continue it, as soon as the model is loaded."""
        if not self.read_only:
            self.store.trim()
            index = self.index()
            if index is None or not index["complete"]:
                self.submit({"kind": "index"})

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
        index = self.index()
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

    def card(self, one: CircuitFile) -> dict[str, Any]:
        """Return what is shown of a circuit."""
        card: dict[str, Any] = {"id": one.id, "file": one.name, "problem": one.problem}
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
        }

    def diagram(self, one: CircuitFile) -> Path | None:
        """Return the file of a circuit's diagram, if it is of what is open; with controls if any."""
        about = self.jobs.about
        both = [self.store.diagram_file(one.id, about["basis"], controls=c) for c in (True, False)] if about else []
        return next((file for file in both if file.is_file()), None)

    def report(self, one: CircuitFile) -> dict[str, Any] | None:
        """Return the report on a circuit, if this version made it with this model and these photographs."""
        saved, about = self.store.report(one.id), self.jobs.about
        if saved is None or about is None or saved.get("basis") != about["basis"]:
            return None
        figures, photographs = saved["report"], saved["photographs"]
        return {
            "images": figures["images"],
            **{role: photographs.get(role, []) for role in ("found_on", "validated_on", "held_out")},
            "verdict": figures["verdict"],
            "verdict_sentence": figures["verdict_sentence"],
            "figures": figures,
            "seconds": saved["seconds"],
        }

    def submit(self, asked: dict[str, Any]) -> Job:
        """Queue a job, or return the one that was asked for before."""
        kind = asked.pop("kind")
        return self.jobs.submit(kind, asked, valid=partial(self._holds, kind, asked))

    def _holds(self, kind: str, asked: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
        """Return whether what a job resulted in is still there."""
        if kind == "index":
            index = self.index()
            return index is not None and index["complete"]
        circuit = self.store.circuit(str(result.get("circuit")))
        if circuit is None:
            return False
        if kind == "diagram":
            basis = self.about()["basis"]
            return self.store.diagram_file(circuit.id, basis, controls=asked["controls"]).is_file()
        return self.report(circuit) is not None

    def noted(self, kind: str, of: str) -> str:
        """Return the key of a note: a unit's belongs to the weights of its model."""
        return f"{kind} {of}" if kind != "unit" else f"unit {of} of weights {self.about()['weights'][:8]}"

    def close(self) -> None:
        """End the worker, and release the folder."""
        self.closing = True
        self.jobs.close()
        self.store.close()
