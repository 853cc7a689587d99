"""A project as its worker sees it: the model, the photographs, the folder, and what several jobs need of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import convcircuits as cc
from convcircuits import texts
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.circuit_file import CircuitFile
from convcircuits.explorer.index import LayerTally
from convcircuits.explorer.materials import Materials
from convcircuits.explorer.store import Store
from convcircuits.maps.receptive_fields import receptive_fields
from convcircuits.maps.units import all_units
from convcircuits.network.batches import Batches, Images
from convcircuits.network.capture import Network
from convcircuits.recipes import Setup, search_of, set_up, side, with_recipe
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


@dataclass(frozen=True)
class Again:
    """A circuit of the folder, with its photographs cut as before.

    Attributes:
        file: Its file.
        circuit: The circuit.
        setup: The crops that it was found on, and those that were held out.
    """

    file: CircuitFile
    circuit: cc.Circuit
    setup: Setup


class Project:
    """The model and the photographs, and the folder.

    Args:
        materials: The model and the photographs.

    Attributes:
        tallies: What the index knows of layers, so that it need not prepare them again.
    """

    def __init__(self, materials: Materials) -> None:
        opening = materials.opening
        self.materials, self.loaded, self.batch_size = materials, materials.loaded, opening.batch_size
        self.store = (
            Store(opening.project, read_only=True, atlases=opening.atlases) if opening.project.is_dir() else None
        )
        self.tallies: dict[str, LayerTally | ConvCircuitsError] = {}

    @property
    def folder(self) -> Store:
        """The folder.

        Raises:
            ConvCircuitsError: If there is none.
        """
        if self.store is None:
            raise ConvCircuitsError(f"There is no project folder {self.materials.opening.project}.")
        return self.store

    def recipe(self, **fields: Any) -> Recipe:
        """Return a recipe for this model and these photographs."""
        opening = self.materials.opening
        about = {"weights": opening.weights, "mean": opening.mean, "std": opening.std, "size": opening.size}
        given = {name: value for name, value in {**about, **fields}.items() if value is not None}
        recipe = Recipe.of({"model": self.loaded.name, "images": opening.images, **given})
        return Recipe.from_json(recipe.to_json(), where="what was asked for")

    def recorded(self, circuit: cc.Circuit, recipe: Recipe, setup: Setup) -> cc.Circuit:
        """Record how a circuit was found. No command finds one again of a model that was given as an object."""
        if self.materials.opening.given is None:
            return with_recipe(circuit, recipe, setup)
        about = {"photographs": setup.by_name, "search": recipe.to_json()}
        return replace(circuit, provenance={**circuit.provenance, **about})

    def recorded_as_whole(self, circuit: cc.Circuit, by_name: Mapping[str, list[str]], group: str) -> cc.Circuit:
        """Record on which whole photographs a circuit was found, by name and by content.

        No command finds such a circuit again: it cuts crops of all photographs of a folder.
        """
        hashes = {role: [self.materials.ids[name] for name in some] for role, some in by_name.items()}
        about: dict[str, Any] = {"photographs": dict(by_name), "photograph_hashes": hashes, "group": group}
        about["whole_photographs"] = {"size": self.materials.opening.size}
        return replace(circuit, provenance={**circuit.provenance, **about})

    def again(self, id: str, progress: Progress) -> Again:
        """Load a circuit, and cut the photographs that it was found on and those that were held out.

        Raises:
            ConvCircuitsError: If that is not possible, or some held-out photographs are copies of the others.
        """
        progress.phase("cutting photographs")
        ids = self.materials.ids
        file = self.folder.circuit(id)
        if file is None or file.problem:
            raise ConvCircuitsError(file.problem if file else f"There is no circuit {id} in the project any more.")
        value = cc.load(file.file)
        assert isinstance(value, cc.Circuit)
        by_name, recorded = value.provenance.get("photographs"), search_of(value)
        if by_name is None:
            raise ConvCircuitsError(
                f"{file.file.name} does not say on which photographs it was found, so none are known to be held out; "
                "measure it with convcircuits evaluate and --images."
            )
        used = {ids.get(name) for role, names in by_name.items() if role != "held_out" for name in names}
        seen = [name for name in by_name["held_out"] if name in ids and ids[name] in used]
        if seen:  # files may have been replaced since
            raise ConvCircuitsError(
                f"{texts.names(seen)} were held out from {file.name}, but are now copies of photographs that it was "
                "found on; measure it with convcircuits evaluate and other --images."
            )
        whole = value.provenance.get("whole_photographs")  # a division takes no crops
        sized = {"size": whole.get("size")} if isinstance(whole, Mapping) else {}
        recipe = recorded if recorded is not None else self.recipe(feature=str(value.feature), **sized)
        pictures, left_out = list(self.materials.pictures), list(self.materials.left_out)
        setup = set_up(recipe, self.loaded, pictures, left_out, by_name=by_name, whole=bool(sized))
        return Again(file, value, setup)

    def box(self, layer: str) -> Callable[[int, int], list[int]] | None:
        """Return a function from a position of a layer's maps to its receptive field, if that is known."""
        info, loaded = self.materials.known[layer], self.loaded
        shape = (loaded.channels, *(side(self.materials.opening.size) or loaded.size))
        try:
            subject = all_units(Network(loaded.model), info.name, shape, position="all")
            (field,) = receptive_fields(subject, [None]).values()
        except ConvCircuitsError:
            return None
        return lambda row, column: list(field.box(row, column))

    def verified(self, circuit: cc.Circuit, fit: Images | None) -> bool:
        """Return whether images have the content of those that a circuit was found on, whatever they are called."""
        hashes = circuit.provenance.get("photograph_hashes")
        if hashes is not None:
            ids, by_name = self.materials.ids, circuit.provenance.get("photographs", {})
            return bool({role: [ids.get(name) for name in some] for role, some in by_name.items()} == hashes)
        if fit is None:
            return False
        network = Network(self.loaded.model)
        found = Batches(fit, device=network.device, dtype=network.dtype, batch_size=self.batch_size)
        for _ in found:  # they are hashed on the way
            pass
        return found.describe() == circuit.provenance.get("images")

    def write_report(
        self,
        id: str,
        report: cc.Evaluation,
        circuit: cc.Circuit,
        by_name: Mapping[str, list[str]],
        setup: Setup,
        seconds: float,
        **reached: Any,
    ) -> None:
        """Write the figures of a circuit.

        Args:
            id: The circuit's id.
            report: Its figures.
            circuit: The circuit.
            by_name: The names of the photographs by role.
            setup: Its crops.
            seconds: How long that took.
            **reached: What else to record.
        """
        ids = self.materials.ids
        record = {
            "circuit": id,
            "weights": self.materials.weights,
            "images": self.materials.images,
            "basis": self.materials.basis,
            "report": report.as_dict(),
            "photographs": {role: [ids[name] for name in names if name in ids] for role, names in by_name.items()},
            "verified": self.verified(circuit, setup.fit),
            "notes": list(setup.notes),
            "seconds": round(seconds, 1),
            **reached,
        }
        self.folder.write_json(self.folder.report_file(id), record)
