"""``convcircuits find``."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.output import check_writable, insist, made_folder, print_json, say
from convcircuits.files import named_after
from convcircuits.values.recipe import SIZES, Recipe, read_recipes

if TYPE_CHECKING:
    from convcircuits.cli.preparing import Setup

_SHARED = ("model", "weights", "mean", "std", "images", "count", "size", "held_out", "seed")
"""The fields of a recipe that a model and its images follow from, but for what is split off to validate on."""


@dataclass(frozen=True)
class _Task:
    """A circuit that is to be found.

    Attributes:
        recipe: How, its feature's names resolved.
        feature: Of which feature.
        options: Of the criterion.
        setup: In which model, on which photographs.
        file: Where it is written to.
    """

    recipe: Recipe
    feature: "cc.Feature"
    options: dict[str, Any]
    setup: "Setup"
    file: Path


def find(
    model: options.ModelOfRecipe = None,
    feature: options.FeatureOfRecipe = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The .safetensors file to write, named after model and feature if not given; with --recipe a folder.",
        ),
    ] = None,
    density: options.DensityOption = None,
    kernels: Annotated[int | None, typer.Option(help="How many elements to keep, in place of --density.")] = None,
    reach_r2: Annotated[
        float | None,
        typer.Option(
            help="Keep as few elements as reach this R2, in place of --density. The size is chosen on validation "
            "photographs: a part of those that are not held out, on which the circuit is not found. What is reported "
            "is measured on the held-out ones, and may be a little less."
        ),
    ] = None,
    granularity: options.GranularityOption = None,
    criterion: options.CriterionOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="An option of the criterion, for example steps=5; may be repeated. They are listed below.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="A .toml file of many features: what all share (model, images, density, ...), then for each circuit "
            "a table [[circuit]] with its feature and what is its own. Options given here go before both."
        ),
    ] = None,
    images: options.ImagesOption = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    count: options.CountOption = None,
    size: options.SizeOption = None,
    held_out: options.HeldOutOption = None,
    seed: options.SeedOption = None,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
    require: options.RequireOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Find a circuit on some photographs, measure it on others."""
    fields = options.given(options=tuple(option or ()), **locals())
    if len(fields.keys() & set(SIZES)) > 1:
        raise cc.ConvCircuitsError("Give either --density, a share in (0, 1], or --kernels, a number, or --reach-r2.")
    if recipe is None:
        for name in ("model", "feature"):
            if name not in fields:
                raise typer.BadParameter("it is needed, unless --recipe says it.", param_hint=f"--{name}")
        check_writable("--out", out, ".safetensors")
        planned = [(Recipe.of(fields), out)]
    else:
        planned = _planned(recipe, fields, out)
    reports, printed = [], []
    for task in _prepared(planned, Path() if recipe is None or out is None else out, device):
        report, said = _found(task, batch_size, as_json=as_json)
        reports.append(report)
        printed.append(said)
    if as_json:
        print_json(printed[0] if recipe is None else printed)
    insist(require, reports)


def _planned(path: Path, fields: dict[str, Any], folder: Path | None) -> list[tuple[Recipe, Path | None]]:
    """Read a file of recipes, with the file that each writes, if it says one."""
    from convcircuits.cli.preparing import check_runs_no_code_unasked

    recipes = read_recipes(path, fields)
    for one, _ in recipes:
        if "model" not in fields:
            check_runs_no_code_unasked(path, one.model)
    place = made_folder(folder) if folder is not None else Path()
    planned = [(one, None if out is None else place / out) for one, out in recipes]
    for _, file in planned:
        check_writable("out", file, ".safetensors")
    return planned


def _prepared(planned: Sequence[tuple[Recipe, Path | None]], folder: Path, device: str) -> list[_Task]:
    """Load every model and its photographs once, and read every feature, before any circuit is found."""
    from convcircuits.cli.preparing import set_up

    chosen = [options.criterion_options(recipe.options) for recipe, _ in planned]
    setups: dict[tuple[Any, ...], Setup] = {}
    tasks: dict[Path, _Task] = {}
    for (recipe, file), own in zip(planned, chosen, strict=True):
        key = (*(getattr(recipe, name) for name in _SHARED), recipe.reach_r2 is None)
        if key not in setups:
            setups[key] = set_up(recipe, device)
        feature = setups[key].loaded.feature(recipe.feature)
        path = file or folder / f"{named_after(recipe.model, feature.slug)}.safetensors"
        check_writable("--out", path, ".safetensors")
        if path in tasks:
            raise cc.ConvCircuitsError(f"Two circuits would be written to {path}; give one of them an out.")
        recipe = dataclasses.replace(recipe, feature=str(feature))
        tasks[path] = _Task(recipe, feature, own, setups[key], path)
    return list(tasks.values())


def _found(task: _Task, batch_size: int, *, as_json: bool) -> tuple["cc.Evaluation", dict[str, Any]]:
    """Find a circuit, measure and write it; print that, or return what is to be printed as JSON."""
    from convcircuits.cli.preparing import noted, with_recipe

    recipe, setup = task.recipe, task.setup
    circuit, reached = _circuit(task, batch_size)
    circuit = with_recipe(circuit, recipe, setup)
    with progress("measuring on held-out photographs") as told:
        report = cc.evaluate(
            setup.loaded.model, circuit, setup.held_out.images, fit=setup.fit, batch_size=batch_size, progress=told
        )
    cc.save(noted(circuit, setup.notes), task.file)
    if not as_json:
        setup.say()
        say(report.summary())
        say(f"wrote {task.file}")
    about = {"unreadable": setup.unreadable, "copies": setup.copies, "normalization": setup.loaded.normalization}
    return report, {"file": str(task.file), **about, **reached, **report.as_dict()}


def _circuit(task: _Task, batch_size: int) -> tuple["cc.Circuit", dict[str, Any]]:
    """Find a circuit of the size that its recipe asks for, and say what was reached if that is by an R2."""
    recipe, setup = task.recipe, task.setup
    chosen: dict[str, Any] = {
        "criterion": recipe.criterion,
        "granularity": recipe.granularity,
        "seed": recipe.seed,
        "batch_size": batch_size,
        **task.options,
    }
    with progress(f"scoring with {recipe.criterion}") as told:
        if recipe.reach_r2 is None:
            size: dict[str, Any] = {"density": recipe.density, "kernels": recipe.kernels}
            return cc.find(setup.loaded.model, task.feature, setup.train.images, progress=told, **size, **chosen), {}
        from convcircuits.circuits.sizes import reach
        from convcircuits.cli.preparing import noted

        found = reach(
            setup.loaded.model,
            task.feature,
            setup.train.images,
            setup.validation.images,
            r2=recipe.reach_r2,
            progress=told,
            **chosen,
        )
    note = (
        f"Its size is the smallest tried whose R2 is at least {recipe.reach_r2:g} on {len(setup.validation.names)} "
        f"validation photographs, where it is {found.r2:.3f}; it was not found on these, nor are they held out."
    )
    reached = {"asked": recipe.reach_r2, "r2": found.r2, "photographs": setup.validation.names, "tried": found.tried}
    return noted(found.circuit, [note]), {"reached": reached}
