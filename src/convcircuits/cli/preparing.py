"""Turn a command's options into a model, photographs, and a circuit with its model."""

import dataclasses
import random
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

import convcircuits as cc
from convcircuits.circuits.choosing import best_constants
from convcircuits.cli.console import progress
from convcircuits.cli.output import names, say
from convcircuits.network.batches import Progress
from convcircuits.texts import sentences
from convcircuits.values.recipe import Recipe
from convcircuits.zoo.images import Crops, Photograph, distinct, photographs, readable, split_photographs
from convcircuits.zoo.models import LoadedModel, load_model
from convcircuits.zoo.sources import is_plain_name

PICTURED = 120
"""Number of crops to take a diagram's pictures from: more than a circuit needs, because people look at them."""
KEPT = 2**27
"""Bytes of crops to keep in memory at most; larger sets are cut anew, batch by batch, in each pass."""


_LOADING = "loading the model and photographs"


@dataclass(frozen=True)
class Cut:
    """Crops, and the names of the photographs that they are cut from; empty by default."""

    images: torch.Tensor | Crops = field(default_factory=lambda: torch.empty(0))
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Setup:
    """A model and its images.

    Attributes:
        loaded: The model.
        train: Crops that the circuit is found on; empty if all photographs are held out.
        validation: Crops that the circuit's size or constants are chosen on, if they are.
        held_out: Crops that the circuit is measured on.
        unreadable: Files left out because they are not pictures or could not be read.
        copies: Photographs left out because they are copies of others or of those that the circuit was found on.
        photographs: Names of all readable photographs that the circuit was found on, or of the held-out ones if it
            was found on none of this folder.
        pictured: Cuts more crops of these, for pictures; they keep the photographs' names.
        no_baseline: Why there are no crops that the circuit was found on; empty if there are some.
    """

    loaded: LoadedModel
    train: Cut
    validation: Cut
    held_out: Cut
    unreadable: list[str]
    copies: list[str]
    photographs: list[str]
    pictured: Callable[[], Crops]
    no_baseline: str = ""

    @property
    def fit(self) -> torch.Tensor | Crops | None:
        """The images that the circuit is found on, or None."""
        return self.train.images if self.train.names else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures must know about the photographs and their normalization."""
        return notes_on(self.loaded, self.unreadable, self.copies)

    def say(self) -> None:
        """Print how the photographs were used, and the notes on them."""
        for done, cut, others in (
            ("found on", self.train, "photographs"),
            ("chosen on", self.validation, "others"),
            ("measured on", self.held_out, "others"),
        ):
            if cut.names:
                say(f"{done} {len(cut.images)} crops of {len(cut.names)} {others}: {names(cut.names)}")
        if not is_plain_name(self.loaded.name) and not self.loaded.assumed:
            say(self.loaded.normalization)
        if self.no_baseline:
            say(f"no baseline: {self.no_baseline}")
        for note in self.notes:
            say(note)


def notes_on(loaded: LoadedModel, unreadable: Sequence[str], copies: Sequence[str]) -> tuple[str, ...]:
    """Return sentences on the photographs that were left out, and on a normalization that is assumed."""
    left_out = (("Unreadable files", unreadable), ("Copies of other photographs", copies))
    notes = [f"{what}, left out ({len(some)}): {names(some)}" for what, some in left_out if some]
    return sentences([*notes, *([loaded.normalization] if loaded.assumed else [])])


def set_up(recipe: Recipe, device: str, *, by_name: Mapping[str, list[str]] | None = None) -> Setup:
    """Load a recipe's model and cut crops of its photographs.

    Args:
        recipe: The recipe.
        device: As for ``--device``.
        by_name: The names of the photographs by role, to split them as before; by default they are split anew.
    """
    with progress(_LOADING):
        loaded = loaded_model(recipe, device)
        pictures, unreadable = photographs(recipe.images)
        copies: list[str] = []
        validated: list[Photograph] = []
        if by_name is None:
            train, rest = split_photographs(pictures, held_out=recipe.held_out, seed=recipe.seed)
            copies = names_besides(pictures, [*train, *rest])
            if recipe.validated:
                train, validated = _split_again(train, recipe)
        else:  # split as before, ignoring files added to the folder since
            train, rest = (_named(pictures, by_name[role], recipe.images) for role in ("found_on", "held_out"))
        cut, seed, count = _Cutter(loaded, recipe.size, unreadable), recipe.seed, recipe.count
        cuts = (
            cut(train, seed, count),
            cut(validated, seed + 2, count) if validated else Cut(),
            cut(rest, seed + 1, count),
        )
        if by_name is not None and cut.failed:
            raise _gone(recipe.images, cut.failed)
        return Setup(loaded, *cuts, unreadable, copies, *cut.pictured(train, seed, count))


def _split_again(train: list[Photograph], recipe: Recipe) -> tuple[list[Photograph], list[Photograph]]:
    """Split the photographs that are not held out once more, by the same share: one part only chooses."""
    subjects = len({photograph.subject for photograph in train})
    if subjects < 2:
        what = "--refit best" if recipe.reach_r2 is None else "--reach-r2"
        raise cc.ConvCircuitsError(
            f"{what} needs at least three photographs: to find circuits on, to choose on and to measure on. Besides "
            f"those held out, there is only {subjects}; give --images with more photographs."
        )
    share = min(max(recipe.held_out, 0.5 / subjects + 1e-9), 1 - 0.5 / subjects - 1e-9)  # one on each side
    return split_photographs(train, held_out=share, seed=recipe.seed)


def set_up_again(file: Path, *, device: str, images: str | None = None, **given: object) -> tuple[cc.Circuit, Setup]:
    """Load a circuit's file, its model and its photographs.

    Args:
        file: The file of the circuit.
        device: As for ``--device``.
        images: Another folder, whose photographs are all held out. By default, the circuit's photographs are split as
            before.
        **given: Fields of a recipe that replace the file's.
    """
    circuit = loaded_circuit(file)
    recipe = recipe_again(file, circuit, **given)
    by_name = circuit.provenance.get("photographs")
    if images is None:
        if recipe_of(circuit) is None or by_name is None:
            raise cc.ConvCircuitsError(f"{file} does not say which photographs were held out; give --images.")
        return circuit, set_up(recipe, device, by_name=by_name)
    with progress(_LOADING):
        loaded = loaded_model(recipe, device)
        pictures, unreadable = photographs(images)
        cut, seed, count = _Cutter(loaded, recipe.size, unreadable), recipe.seed + 1, recipe.count
        old, train, no_baseline = _found_on(circuit, cut)
        used = {name for role in ("found_on", "validated_on") for name in (by_name or {}).get(role, [])}
        subjects = {p.subject for p in pictures if p.name in used}
        others = [p for p in pictures if p.subject not in subjects]
        fresh = distinct(others, apart_from=old)
        if not fresh:
            raise cc.ConvCircuitsError(
                f"The circuit was found on every photograph of {images}; give --images with others."
            )
        cuts, copies = (train, Cut(), cut(fresh, seed, count)), names_besides(others, fresh)
        return circuit, Setup(loaded, *cuts, unreadable, copies, *cut.pictured(fresh, seed, count), no_baseline)


def _found_on(circuit: cc.Circuit, cut: "_Cutter") -> tuple[list[Photograph], Cut, str]:
    """Return the photographs that a circuit was made with, and crops of those it was found on.

    If they are no longer available, both are empty and the last value says why.
    """
    recipe, by_name = recipe_of(circuit), circuit.provenance.get("photographs")
    if recipe is None or by_name is None:
        return [], Cut(), "The file does not say which photographs the circuit was found on."
    try:
        pictures = photographs(recipe.images)[0]
        old = _named(pictures, by_name["found_on"], recipe.images)
        # Copies of the photographs that its size was chosen on are not held out either.
        seen = [*old, *(p for p in pictures if p.name in by_name["validated_on"])]
        return seen, cut(old, recipe.seed, recipe.count), ""
    except cc.ConvCircuitsError:
        gone = f"Some photographs of {recipe.images} that the circuit was found on are missing."
        return [], Cut(), gone


def names_besides(photographs: list[Photograph], kept: list[Photograph]) -> list[str]:
    """Return the names of the photographs that are not kept."""
    names = {photograph.name for photograph in kept}
    return [photograph.name for photograph in photographs if photograph.name not in names]


class _Cutter:
    """Cuts photographs into crops for a model, and records the files that turn out to be unreadable."""

    def __init__(self, loaded: LoadedModel, size: int | None, unreadable: list[str]) -> None:
        self._loaded, self._size, self._unreadable = loaded, side(size), unreadable
        self.failed: list[str] = []

    def __call__(self, some: list[Photograph], seed: int, count: int) -> Cut:
        """Return crops, in one tensor if they are few."""
        made, those = self._lazily(some, seed, count)
        height, width = self._size or self._loaded.size
        few = 4 * self._loaded.channels * height * width * count <= KEPT
        return Cut(torch.cat(list(made)) if few else made, those)

    def pictured(self, some: list[Photograph], seed: int, count: int) -> tuple[list[str], Callable[[], Crops]]:
        """Return the names of the readable photographs, and a function that cuts enough crops of them for pictures."""
        readable = [photograph.name for photograph in some if photograph.name not in self.failed]
        return readable, lambda: self._lazily(some, seed, max(count, PICTURED))[0]

    def _lazily(self, some: list[Photograph], seed: int, count: int) -> tuple[Crops, list[str]]:
        """Return crops that are cut anew in each pass and have names, and the names of the photographs."""
        if len(some) > count:  # neighbors in a folder are often alike
            some = random.Random(seed).sample(some, len(some))
        good, bad = readable(some, count)
        self._unreadable += [name for name in bad if name not in self._unreadable]
        self.failed += bad
        made = Crops(good, self._loaded.preprocess, count=count, seed=seed, size=self._size)
        return made, [photograph.name for photograph in good]


def loaded_model(recipe: Recipe, device: str) -> LoadedModel:
    """Load a recipe's model and move it to the device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise cc.ConvCircuitsError("--device cuda was given, but torch finds no CUDA device here; use --device cpu.")
    loaded = load_model(recipe.model, weights=recipe.weights, mean=recipe.mean, std=recipe.std)
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        loaded.model.to("cuda")
    return loaded


def loaded_circuit(file: Path) -> cc.Circuit:
    """Load a file that must hold a circuit."""
    value = cc.load(file)
    if isinstance(value, cc.Circuit):
        return value
    if isinstance(value, cc.Scores):
        raise cc.ConvCircuitsError(f"{file} holds scores, not a circuit; give a file that convcircuits find wrote.")
    raise cc.ConvCircuitsError(f"{file} holds a module; give the file of the circuit that it was extracted from.")


def recipe_again(file: Path, circuit: cc.Circuit, **given: object) -> Recipe:
    """Return the recipe of a circuit's file with the given fields replaced, or a recipe of the given fields alone.

    Raises:
        ConvCircuitsError: If no model is named, or only the file names a model that is built by custom code.
    """
    said = recipe_of(circuit)
    fields = {name: value for name, value in given.items() if value is not None}
    if said is None:
        if "model" not in fields:
            raise cc.ConvCircuitsError(f"{file} does not say which model it belongs to; give --model.")
        return Recipe.of({"feature": str(circuit.feature), **fields})
    if "model" not in fields:
        check_runs_no_code_unasked(file, said.model)
    if fields.get("model", said.model) != said.model:  # these belong to the file's model
        said = dataclasses.replace(said, weights=None, mean=None, std=None)
    return dataclasses.replace(said, **fields)  # type: ignore[arg-type]


def check_runs_no_code_unasked(file: Path, model: str) -> None:
    """Reject a model that is named by a file and built by code other than a library's.

    Raises:
        ConvCircuitsError: If the model is built by such code.
    """
    if not is_plain_name(model):
        raise cc.ConvCircuitsError(
            f"{file} names a model that is built by custom code. Code that a file names only runs if you ask for it. "
            f"If it is yours or you trust it, add: --model {shlex.quote(model)}"
        )


def recipe_of(circuit: cc.Circuit | cc.Scores) -> Recipe | None:
    """Return the recipe of a circuit or scores that the command found, or None."""
    said = circuit.provenance.get("recipe")
    if said is None:
        return None
    return dataclasses.replace(Recipe.from_json(said), feature=str(circuit.feature))


def with_best_constants(
    circuit: cc.Circuit, setup: Setup, *, batch_size: int, seed: int, told: Progress | None = None
) -> cc.Circuit:
    """Return a circuit with the constants that do best on validation photographs, and a note that says which."""
    chosen = best_constants(
        setup.loaded.model,
        circuit,
        setup.train.images,
        setup.validation.images,
        batch_size=batch_size,
        seed=seed,
        progress=told,
    )
    figures = ", ".join(f"{method} {r2:z.2f}" for method, r2 in chosen.r2.items())
    where = "R2 on the interior" if chosen.interior else "R2"
    note = (
        f"The constants ({chosen.method}) are those that do best on {len(setup.validation.names)} validation "
        f"photographs; {where} there: {figures}. These are neither the photographs that the circuit was found on nor "
        "the held-out ones."
    )
    return noted(chosen.circuit, [note])


def with_recipe(circuit: cc.Circuit, recipe: Recipe, setup: Setup) -> cc.Circuit:
    """Record in a circuit how it was found, and on which photographs."""
    photographs = {
        "found_on": setup.train.names,
        "validated_on": setup.validation.names,
        "held_out": setup.held_out.names,
    }
    said = {**circuit.provenance, "recipe": recipe.to_json(), "photographs": photographs}
    return dataclasses.replace(circuit, provenance=said)


def noted(circuit: cc.Circuit, notes: Sequence[str]) -> cc.Circuit:
    """Append notes to a circuit's own."""
    if not notes:
        return circuit
    return dataclasses.replace(
        circuit, provenance={**circuit.provenance, "notes": [*circuit.provenance.get("notes", ()), *notes]}
    )


def side(size: int | None) -> tuple[int, int] | None:
    """Return the (H, W) of a square from its side, or None."""
    return None if size is None else (size, size)


def _named(pictures: list[Photograph], wanted: list[str], source: str) -> list[Photograph]:
    found = {picture.name: picture for picture in pictures}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise _gone(source, missing)
    return [found[name] for name in wanted]


def _gone(source: str, missing: list[str]) -> cc.ConvCircuitsError:
    return cc.ConvCircuitsError(
        f"{source} no longer contains {names(missing)}, which the circuit was found or measured on; "
        "give --images with photographs to measure it on."
    )
