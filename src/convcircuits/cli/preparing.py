"""Turn a command's options into a model, photographs, and a circuit with its model."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import convcircuits as cc
from convcircuits import recipes
from convcircuits.cli.console import progress
from convcircuits.cli.output import say
from convcircuits.recipes import Cut, Cutter, Setup, loaded_model, named, names_besides, recipe_of
from convcircuits.texts import names
from convcircuits.values.recipe import Recipe
from convcircuits.zoo.images import Photograph, distinct, photographs
from convcircuits.zoo.specs import check_runs_no_code_unasked, is_plain_name

_LOADING = "loading the model and photographs"


def set_up(recipe: Recipe, device: str, *, by_name: Mapping[str, list[str]] | None = None) -> Setup:
    """Load a recipe's model and cut crops of its photographs.

    Args:
        recipe: The recipe.
        device: As for ``--device``.
        by_name: As for ``recipes.set_up``.
    """
    with progress(_LOADING):
        loaded = loaded_model(recipe, device)
        return recipes.set_up(recipe, loaded, *photographs(recipe.images), by_name=by_name)


def say_photographs(setup: Setup) -> None:
    """Print how the photographs were used, and the notes on them."""
    for done, cut, others in (
        ("found on", setup.train, "photographs"),
        ("chosen on", setup.validation, "others"),
        ("measured on", setup.held_out, "others"),
    ):
        if cut.names:
            say(f"{done} {len(cut.images)} crops of {len(cut.names)} {others}: {names(cut.names)}")
    if not is_plain_name(setup.loaded.name) and not setup.loaded.assumed:
        say(setup.loaded.normalization)
    if setup.no_baseline:
        say(f"no baseline: {setup.no_baseline}")
    for note in setup.notes:
        say(note)


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
    if recipe.boxes is not None and (images is not None or given.get("count") or given.get("size")):
        raise cc.ConvCircuitsError(
            f"{file} has a box for each of its photographs and size of image; omit --images, --count and --size."
        )
    if images is None:
        if recipe_of(circuit) is None or by_name is None:
            raise cc.ConvCircuitsError(f"{file} does not say which photographs were held out; give --images.")
        return circuit, set_up(recipe, device, by_name=by_name)
    with progress(_LOADING):
        loaded = loaded_model(recipe, device)
        pictures, unreadable = photographs(images)
        cut, seed, count = Cutter(loaded, recipe.size, unreadable), recipe.seed + 1, recipe.count
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


def _found_on(circuit: cc.Circuit, cut: "Cutter") -> tuple[list[Photograph], Cut, str]:
    """Return the photographs that a circuit was made with, and crops of those it was found on.

    If they are no longer available, both are empty and the last value says why.
    """
    recipe, by_name = recipe_of(circuit), circuit.provenance.get("photographs")
    if recipe is None or by_name is None:
        return [], Cut(), "The file does not say which photographs the circuit was found on."
    try:
        pictures = photographs(recipe.images)[0]
        old = named(pictures, by_name["found_on"], recipe.images)
        # Copies of the photographs that its size was chosen on are not held out either.
        seen = [*old, *(p for p in pictures if p.name in by_name["validated_on"])]
        return seen, cut(old, recipe.seed, recipe.count), ""
    except cc.ConvCircuitsError:
        gone = f"Some photographs of {recipe.images} that the circuit was found on are missing."
        return [], Cut(), gone


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
