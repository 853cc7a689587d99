"""What the worker does as jobs: index, find, measure, draw. Each writes files to the project's folder."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import convcircuits as cc
from convcircuits import texts
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.index import LayerTally, Subjects, build
from convcircuits.explorer.materials import Materials
from convcircuits.explorer.store import CircuitFile, Store
from convcircuits.files import named_after, write_whole
from convcircuits.recipes import Setup, criterion_options, follow, noted, recipe_of, set_up, side, with_recipe
from convcircuits.values.recipe import Recipe


class Progress(Protocol):
    """How a job reports. Called with the steps done of a phase, and their total or None."""

    def phase(self, description: str) -> None:
        """Begin a phase, whose steps are counted from zero."""

    def __call__(self, done: int, total: int | None) -> None:
        """Report the steps done."""

    def remark(self, text: str) -> None:
        """Show a sentence to the user."""

    def saved(self, index: Mapping[str, Any]) -> None:
        """Report that layers of the index can be looked at."""


class Tasks:
    """The jobs of a project.

    Args:
        materials: The model and the photographs.
    """

    def __init__(self, materials: Materials) -> None:
        opening = materials.opening
        self.materials, self._loaded, self._opening = materials, materials.loaded, opening
        self.store = Store(opening.project, read_only=True) if opening.project.is_dir() else None
        self._tallies: dict[str, LayerTally | ConvCircuitsError] = {}

    def do(self, kind: str, parameters: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Do a job and return its result as JSON values."""
        work: dict[str, Callable[..., dict[str, Any]]] = {
            "index": self._index,
            "find": self._find,
            "evaluate": self._evaluate,
            "diagram": self._diagram,
        }
        return work[kind](progress=progress, **parameters)

    def _index(self, *, progress: Progress) -> dict[str, Any]:
        folder = self._folder.folder / "index" / self.materials.key
        folder.mkdir(parents=True, exist_ok=True)
        phases: list[str] = []

        def report(phase: str, done: int, total: int | None) -> None:
            if phases[-1:] != [phase]:
                phases.append(phase)
                progress.phase(phase)
            progress(done, total)

        of = Subjects(
            self._loaded.model,
            self.materials.convolutions,
            [*self.materials.photographs.values()],
            self._loaded.preprocess,
            side(self._opening.size),
        )
        index = build(
            folder,
            self.materials.key,
            of,
            known=self._tallies,
            batch_size=self._opening.batch_size,
            progress=report,
            saved=progress.saved,
            remark=progress.remark,
        )
        return {"images": index["images"], "layers": len(index["layers"])}

    def _find(self, *, progress: Progress, feature: str, options: list[str], **fields: Any) -> dict[str, Any]:
        begun = time.monotonic()
        recipe = self._recipe(feature=feature, options=tuple(options), **fields)
        parsed = self._loaded.feature(recipe.feature)
        recipe = replace(recipe, feature=str(parsed))
        progress.phase("cutting photographs")
        setup = set_up(recipe, self._loaded, list(self.materials.pictures), list(self.materials.left_out))
        progress.phase(f"finding a circuit with {recipe.criterion}")
        batch_size = self._opening.batch_size
        circuits, reached = follow(
            recipe, parsed, setup, criterion_options(options, files=False), batch_size=batch_size, progress=progress
        )
        circuit = self._recorded(circuits[-1], recipe, setup)
        progress.phase("measuring on held-out photographs")
        report = cc.evaluate(
            self._loaded.model,
            circuit,
            setup.held_out.images,
            fit=setup.fit,
            batch_size=batch_size,
            progress=progress,
        )
        name = f"{named_after(self._loaded.name, parsed.slug)}-{recipe.criterion}-{len(circuit)}"
        file = cc.save(noted(circuit, setup.notes), self._folder.place_for(name))
        id = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        if any(one.id == id and one.file != file for one in self._folder.circuits()):
            file.unlink()  # it is there already, found by the command or in another way
        self._write_report(id, report, setup.by_name, setup, reached, time.monotonic() - begun)
        return {"circuit": id}

    def _evaluate(self, *, progress: Progress, circuit: str) -> dict[str, Any]:
        begun = time.monotonic()
        file, value, setup = self._again(circuit, progress)
        progress.phase("measuring on held-out photographs")
        report = cc.evaluate(
            self._loaded.model,
            value,
            setup.held_out.images,
            fit=setup.fit,
            batch_size=self._opening.batch_size,
            progress=progress,
        )
        # As the circuit says: the set-up does not cut again those that its size or constants were chosen on.
        by_name = {**value.provenance["photographs"], "held_out": setup.held_out.names}
        self._write_report(file.id, report, by_name, setup, {}, time.monotonic() - begun)
        return {"circuit": circuit}

    def _diagram(self, *, progress: Progress, circuit: str, controls: bool) -> dict[str, Any]:
        file, value, setup = self._again(circuit, progress)
        progress.phase("drawing")
        drawn = cc.diagram(
            self._loaded.model,
            value,
            images=setup.pictured(),
            held_out=setup.held_out.images,
            fit=setup.fit,
            controls=controls,
            primaries=self._loaded.primaries(),
            batch_size=self._opening.batch_size,
            progress=progress,
        )
        write_whole(
            self._folder.diagram_file(file.id, self.materials.basis, controls=controls),
            drawn.document.to_json().encode(),
        )
        return {"circuit": circuit}

    @property
    def _folder(self) -> Store:
        if self.store is None:
            raise ConvCircuitsError(f"There is no project folder {self._opening.project}.")
        return self.store

    def _recipe(self, **fields: Any) -> Recipe:
        opening = self._opening
        about = {"weights": opening.weights, "mean": opening.mean, "std": opening.std, "size": opening.size}
        given = {name: value for name, value in {**about, **fields}.items() if value is not None}
        recipe = Recipe.of({"model": self._loaded.name, "images": opening.images, **given})
        return Recipe.from_json(recipe.to_json(), where="what was asked for")

    def _recorded(self, circuit: cc.Circuit, recipe: Recipe, setup: Setup) -> cc.Circuit:
        """Record how a circuit was found. No command finds one again of a model that was given as an object."""
        if self._opening.given is None:
            return with_recipe(circuit, recipe, setup)
        return replace(circuit, provenance={**circuit.provenance, "photographs": setup.by_name})

    def _again(self, id: str, progress: Progress) -> tuple[CircuitFile, cc.Circuit, Setup]:
        """Load a circuit, and cut the photographs that it was found on and those that were held out."""
        file = self._folder.circuit(id)
        if file is None or file.problem:
            raise ConvCircuitsError(file.problem if file else f"There is no circuit {id} in the project any more.")
        progress.phase("cutting photographs")
        value = cc.load(file.file)
        assert isinstance(value, cc.Circuit)
        by_name, recorded = value.provenance.get("photographs"), recipe_of(value)
        if by_name is None:
            raise ConvCircuitsError(
                f"{file.file.name} does not say on which photographs it was found, so none are known to be held out; "
                "measure it with convcircuits evaluate and --images."
            )
        used = {self.materials.ids.get(name) for role, names in by_name.items() if role != "held_out" for name in names}
        seen = [name for name in by_name["held_out"] if name in self.materials.ids and self.materials.ids[name] in used]
        if seen:  # files may have been replaced since
            raise ConvCircuitsError(
                f"{texts.names(seen)} were held out from {file.name}, but are now copies of photographs that it was "
                "found on; measure it with convcircuits evaluate and other --images."
            )
        recipe = recorded if recorded is not None else self._recipe(feature=str(value.feature))
        return (
            file,
            value,
            set_up(
                recipe,
                self._loaded,
                list(self.materials.pictures),
                list(self.materials.left_out),
                by_name=by_name,
            ),
        )

    def _write_report(
        self,
        id: str,
        report: cc.Evaluation,
        by_name: Mapping[str, list[str]],
        setup: Setup,
        reached: Mapping[str, Any],
        seconds: float,
    ) -> None:
        photographs = {
            role: [self.materials.ids[name] for name in names if name in self.materials.ids]
            for role, names in by_name.items()
        }
        record = {
            "circuit": id,
            "weights": self.materials.weights,
            "images": self.materials.images,
            "basis": self.materials.basis,
            "report": report.as_dict(),
            "photographs": photographs,
            "notes": list(setup.notes),
            "seconds": round(seconds, 1),
            **reached,
        }
        self._folder.write_json(self._folder.report_file(id), record)
