"""Carry out a recipe: cut its photographs into crops, and find its circuit on them. Applications share this."""

import dataclasses
import inspect
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from convcircuits.circuits.asking import options_again
from convcircuits.circuits.choosing import best_constants
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.finding import find, find_path
from convcircuits.circuits.refitting import refit
from convcircuits.circuits.sizes import reach
from convcircuits.errors import ConvCircuitsError, option
from convcircuits.network.batches import Progress, begin
from convcircuits.storage import load
from convcircuits.texts import names, sentences
from convcircuits.values.boxes import Boxes
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature
from convcircuits.values.recipe import BEST, SIZES, Recipe, option_value
from convcircuits.values.scores import Scores
from convcircuits.zoo.boxes import having_a_box, placed, read_boxes
from convcircuits.zoo.images import Crops, Photograph, readable, split_photographs
from convcircuits.zoo.models import LoadedModel, load_model
from convcircuits.zoo.preprocessing import Region

PICTURED = 120
"""Number of crops to take a diagram's pictures from: more than a circuit needs, because people look at them."""
KEPT = 2**27
"""Bytes of crops to keep in memory at most; larger sets are cut anew, batch by batch, in each pass."""


@dataclass(frozen=True)
class Cut:
    """Crops, and the names of the photographs that they are cut from; empty by default."""

    images: torch.Tensor | Crops = field(default_factory=lambda: torch.empty(0))
    names: list[str] = field(default_factory=list)

    @property
    def photographs(self) -> list[str]:
        """The name of the photograph that each crop is cut from, in order."""
        return [self.names[n % len(self.names)] for n in range(len(self.images))]


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
        boxes: The boxes that the feature counts in, if the recipe has some and the photographs are split anew.
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
    boxes: Boxes | None = None

    @property
    def by_name(self) -> dict[str, list[str]]:
        """The names of the photographs by role: found_on, validated_on, held_out."""
        cuts = {"found_on": self.train, "validated_on": self.validation, "held_out": self.held_out}
        return {role: cut.names for role, cut in cuts.items()}

    @property
    def fit(self) -> torch.Tensor | Crops | None:
        """The images that the circuit is found on, or None."""
        return self.train.images if self.train.names else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures must know about the photographs and their normalization."""
        return notes_on(self.loaded, self.unreadable, self.copies)


def notes_on(loaded: LoadedModel, unreadable: Sequence[str], copies: Sequence[str]) -> tuple[str, ...]:
    """Return sentences on the photographs that were left out, and on a normalization that is assumed."""
    left_out = (("Unreadable files", unreadable), ("Copies of other photographs", copies))
    notes = [f"{what}, left out ({len(some)}): {names(some)}" for what, some in left_out if some]
    return sentences([*notes, *([loaded.normalization] if loaded.assumed else [])])


def set_up(
    recipe: Recipe,
    loaded: LoadedModel,
    pictures: list[Photograph],
    unreadable: list[str],
    *,
    by_name: Mapping[str, list[str]] | None = None,
    whole: bool = False,
) -> Setup:
    """Split photographs as a recipe says, and cut crops of them, or take each as a whole if the recipe has boxes.

    Args:
        recipe: The recipe.
        loaded: Its model.
        pictures: Its photographs.
        unreadable: Files beside them that are left out; those that turn out to be unreadable are added.
        by_name: The names of the photographs by role, to split them as before; by default they are split anew. Those
            that a size was chosen on are not cut again.
        whole: Take each photograph once, as a whole, however many crops the recipe asks for.

    Raises:
        ConvCircuitsError: If the photographs are too few, or some named ones are missing.
    """
    copies: list[str] = []
    validated: list[Photograph] = []
    regions: dict[str, Region] = {}
    if by_name is None:
        if recipe.boxes is not None:
            regions = _regions(recipe, loaded.feature(recipe.feature))
            pictures = having_a_box(pictures, regions, recipe.images)
        train, rest = split_photographs(pictures, held_out=recipe.held_out, seed=recipe.seed)
        copies = names_besides(pictures, [*train, *rest])
        if recipe.validated:
            train, validated = _split_again(train, recipe)
    else:  # split as before, ignoring files added to the folder since
        train, rest = (named(pictures, by_name[role], recipe.images) for role in ("found_on", "held_out"))
        if recipe.refit == BEST:  # as before, constants are chosen on those
            validated = named(pictures, by_name.get("validated_on", []), recipe.images)
    cut, seed, count = Cutter(loaded, recipe.size, unreadable), recipe.seed, recipe.count
    entire = whole or recipe.boxes is not None

    def cut_all(some: list[Photograph], seed: int) -> Cut:
        return cut(some, seed, len(some) if entire else count)  # the first crop of each is the whole of it

    trained = cut_all(train, seed)
    chosen_on = cut_all(validated, seed + 2) if validated else Cut()
    measured = cut_all(rest, seed + 1)
    if by_name is not None and cut.failed:
        raise _gone(recipe.images, cut.failed)
    boxes = None
    if regions:
        parts = [(one.names, one.images) for one in (trained, chosen_on, measured)]
        boxes = placed(regions, pictures, loaded.preprocess, parts)
    shown = cut.pictured(train, seed, None if recipe.boxes is not None else count)  # other crops have no boxes
    return Setup(loaded, trained, chosen_on, measured, unreadable, copies, *shown, boxes=boxes)


def _regions(recipe: Recipe, feature: Feature) -> dict[str, Region]:
    """Return the boxes of a recipe's table for its feature, by photograph."""
    if feature.position != "all":
        raise ConvCircuitsError(
            f"{option('boxes')} says where {feature} counts; write the feature without a position, "
            f"{feature.layer}:{feature.unit}."
        )
    assert recipe.boxes is not None
    return read_boxes(recipe.boxes, feature)


def _split_again(train: list[Photograph], recipe: Recipe) -> tuple[list[Photograph], list[Photograph]]:
    """Split the photographs that are not held out once more, by the same share: one part only chooses."""
    subjects = len({photograph.subject for photograph in train})
    if subjects < 2:
        what = option("refit", BEST) if recipe.reach_r2 is None else option("reach_r2")
        raise ConvCircuitsError(
            f"{what} needs at least three photographs: to find circuits on, to choose on and to measure on. Besides "
            f"those held out, there is only {subjects}; give {option('images')} with more photographs."
        )
    share = min(max(recipe.held_out, 0.5 / subjects + 1e-9), 1 - 0.5 / subjects - 1e-9)  # one on each side
    return split_photographs(train, held_out=share, seed=recipe.seed)


def names_besides(photographs: list[Photograph], kept: list[Photograph]) -> list[str]:
    """Return the names of the photographs that are not kept."""
    names = {photograph.name for photograph in kept}
    return [photograph.name for photograph in photographs if photograph.name not in names]


class Cutter:
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

    def pictured(self, some: list[Photograph], seed: int, count: int | None) -> tuple[list[str], Callable[[], Crops]]:
        """Return the names of the readable photographs, and a function that cuts enough crops of them for pictures.

        Without a number of crops, each photograph is cut once, as a whole.
        """
        readable = [photograph.name for photograph in some if photograph.name not in self.failed]
        number = len(some) if count is None else max(count, PICTURED)
        return readable, lambda: self._lazily(some, seed, number)[0]

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
        raise ConvCircuitsError(
            f"{option('device', device)} was given, but torch finds no CUDA device here; use {option('device', 'cpu')}."
        )
    loaded = load_model(recipe.model, weights=recipe.weights, mean=recipe.mean, std=recipe.std)
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        loaded.model.to("cuda")
    return loaded


def with_best_constants(
    circuit: Circuit, setup: Setup, *, batch_size: int, seed: int, told: Progress | None = None
) -> Circuit:
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


def recipe_of(circuit: Circuit | Scores) -> Recipe | None:
    """Return the recipe of a circuit or scores that the command found, or None.

    It names options that had other defaults when the circuit was found.
    """
    said = circuit.provenance.get("recipe")
    if said is None:
        return None
    recipe = Recipe.from_json(said)
    if recipe.criterion in CRITERIA:
        given = {text.partition("=")[0] for text in recipe.options}
        again = options_again(CRITERIA[recipe.criterion], circuit.provenance)
        changed = (f"{name}={json.dumps(value)}" for name, value in again.items() if name not in given)
        recipe = dataclasses.replace(recipe, options=(*recipe.options, *changed))
    # Boxes have no text form: the recipe names the feature without them, and the table that they are read from.
    return recipe if recipe.boxes is not None else dataclasses.replace(recipe, feature=str(circuit.feature))


def search_of(circuit: Circuit) -> Recipe | None:
    """Return how a circuit was found, also if no command does so again, or None.

    No command has a model that was given as an object, or photographs that were chosen by hand.
    """
    said = circuit.provenance.get("search")
    return (
        recipe_of(circuit)
        if said is None
        else dataclasses.replace(Recipe.from_json(said), feature=str(circuit.feature))
    )


def with_recipe(circuit: Circuit, recipe: Recipe, setup: Setup) -> Circuit:
    """Record in a circuit how it was found, and on which photographs."""
    said = {**circuit.provenance, "recipe": recipe.to_json(), "photographs": setup.by_name}
    if setup.boxes is not None:  # the table's name does not say what it held
        said["boxes"] = str(setup.boxes)
    return dataclasses.replace(circuit, provenance=said)


def noted(circuit: Circuit, notes: Sequence[str]) -> Circuit:
    """Append notes to a circuit's own."""
    if not notes:
        return circuit
    return dataclasses.replace(
        circuit, provenance={**circuit.provenance, "notes": [*circuit.provenance.get("notes", ()), *notes]}
    )


def side(size: int | None) -> tuple[int, int] | None:
    """Return the (H, W) of a square from its side, or None."""
    return None if size is None else (size, size)


def named(pictures: list[Photograph], wanted: list[str], source: str) -> list[Photograph]:
    """Return the photographs with these names.

    Raises:
        ConvCircuitsError: If some are missing.
    """
    found = {picture.name: picture for picture in pictures}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise _gone(source, missing)
    return [found[name] for name in wanted]


def _gone(source: str, missing: list[str]) -> ConvCircuitsError:
    return ConvCircuitsError(
        f"{source} no longer contains {names(missing)}, which the circuit was found or measured on; "
        f"give {option('images')} with photographs to measure it on."
    )


def criterion_options(given: Sequence[str], *, files: bool = True) -> dict[str, Any]:
    """Parse options of a criterion, each NAME=VALUE. A value is yes or no, a circuit's file, JSON, or else text.

    Args:
        given: The options.
        files: Whether a value may name a circuit's file, which is loaded.

    Raises:
        ConvCircuitsError: If an option has no value, is one of ``find`` itself, such as the seed, which the recipe has
            already, or names a file though none may be named.
    """
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name.isidentifier() or name in inspect.signature(find).parameters:
            raise ConvCircuitsError(f"{name!r:.80} is not an option of a criterion.")
        if not equals:
            raise ConvCircuitsError(f"{name} has no value; write it as {option(name, of_criterion=True)}.")
        is_file = value.endswith(".safetensors")
        if is_file and not files:
            raise ConvCircuitsError(f"{name} is a file, which is not an option of a criterion here.")
        options[name] = load(value) if is_file else option_value(value)
    return options


def refitted(
    circuit: Circuit, recipe: Recipe, setup: Setup, *, batch_size: int = 16, progress: Progress | None = None
) -> Circuit:
    """Fit the constants of a circuit as a recipe says; the circuit itself if it fits none.

    Raises:
        ConvCircuitsError: As for ``refit``.
    """
    method: Any = recipe.refit
    if method == "none":
        return circuit
    if method == BEST:
        return with_best_constants(circuit, setup, batch_size=batch_size, seed=recipe.seed, told=progress)
    begin(progress, f"refitting {len(circuit):,} {circuit.granularity}s")
    common: dict[str, Any] = {"seed": recipe.seed, "batch_size": batch_size, "progress": progress}
    return refit(setup.loaded.model, circuit, setup.train.images, method=method, **common)


def follow(
    recipe: Recipe,
    feature: Feature,
    setup: Setup,
    options: Mapping[str, Any],
    *,
    whole_path: bool = False,
    checkpoint: Path | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> tuple[list[Circuit], dict[str, Any]]:
    """Find the circuit of the size that a recipe asks for.

    Args:
        recipe: The recipe.
        feature: The feature that it names.
        setup: Its model and photographs.
        options: The options of its criterion, with their values.
        whole_path: Also return all larger circuits of its descent, before it.
        checkpoint: As for ``find``; not if its size is an R2.
        batch_size: Maximum number of images that run at once.
        progress: As for ``find``.

    Returns:
        The circuits, the one that is asked for last; and, if its size is an R2, what was reached.

    Raises:
        ConvCircuitsError: As for ``find``, or if the recipe's fields exclude one another.
    """
    model, images = setup.loaded.model, setup.train.images
    common: dict[str, Any] = {"seed": recipe.seed, "batch_size": batch_size, "progress": progress}
    chosen = {"criterion": recipe.criterion, "granularity": recipe.granularity, **common, **options}
    method: Any = recipe.refit
    if recipe.reach_r2 is None:
        size: dict[str, Any] = {k: getattr(recipe, k) for k in SIZES if k != "reach_r2"}
        if whole_path:
            return list(find_path(model, feature, images, checkpoint=checkpoint, **size, **chosen)), {}
        size["effective"] = recipe.effective_kernels or None
        circuit = find(model, feature, images, checkpoint=checkpoint, **size, **chosen)
        return [refitted(circuit, recipe, setup, batch_size=batch_size, progress=progress)], {}
    if recipe.effective_kernels:
        raise ConvCircuitsError(
            f"{option('effective_kernels')} needs {option('density')} or {option('kernels')}; got {option('reach_r2')}."
        )
    found = reach(model, feature, images, setup.validation.images, r2=recipe.reach_r2, method=method, **chosen)
    note = (
        f"The circuit's size is the smallest tried that reaches R2 = {recipe.reach_r2:g} on "
        f"{len(setup.validation.names)} validation photographs (R2 there: {found.r2:.3f}); these are neither the "
        "photographs that it was found on nor the held-out ones."
    )
    reached = {"asked": recipe.reach_r2, "r2": found.r2, "photographs": setup.validation.names, "tried": found.tried}
    return [noted(found.circuit, [note])], {"reached": reached}
