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
from convcircuits.values.drawable import FAN_IN, FILTERS
from convcircuits.values.recipe import SIZES, Recipe, read_recipes

if TYPE_CHECKING:
    from convcircuits.cli.preparing import Setup

_SHARED = ("model", "weights", "mean", "std", "images", "count", "size", "held_out", "seed")
"""The fields of a recipe that determine the model and its images, apart from the validation split."""


@dataclass(frozen=True)
class _Task:
    """A circuit to find.

    Attributes:
        recipe: How to find it, with the names in its feature resolved.
        feature: The feature it computes.
        options: Options of the criterion.
        setup: The model and the photographs.
        file: The file to write it to.
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
            help="File to write (.safetensors); with --recipe, a folder.",
            show_default=options.NAMED,
        ),
    ] = None,
    density: options.DensityOption = None,
    kernels: Annotated[int | None, typer.Option(help="Number of elements to keep, instead of --density.")] = None,
    reach_r2: Annotated[
        float | None,
        typer.Option(
            help="Smallest R2 to reach with as few elements as possible, instead of --density. The size is chosen on "
            "validation photographs, split off from the training photographs. The reported R2 is measured on the "
            "held-out photographs and may be slightly lower."
        ),
    ] = None,
    effective_kernels: Annotated[
        bool | None,
        typer.Option(
            "--effective-kernels",
            help="Let --density or --kernels count effective kernels, those on a complete path inside the circuit, and "
            "keep no others.",
            show_default=False,
        ),
    ] = None,
    filters: Annotated[
        int | None, typer.Option(help="Largest number of live filters in a layer, with --fan-in, instead of --density.")
    ] = None,
    fan_in: Annotated[int | None, typer.Option(help="Largest number of kernels of a filter, with --filters.")] = None,
    drawable: Annotated[
        bool | None,
        typer.Option(
            "--drawable",
            help=f"Keep what a diagram has room for: --filters {FILTERS} --fan-in {FAN_IN}.",
            show_default=False,
        ),
    ] = None,
    granularity: options.GranularityOption = None,
    criterion: options.CriterionOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Option of the criterion, for example steps=5; repeatable. The options are listed below.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of many circuits: the fields that all share (model, images, density, ...), then for each "
            "a table [[circuit]] with its feature and its own fields. Options given here override both."
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
    """Find a circuit on some photographs and measure it on others."""
    fields = options.given(options=tuple(option or ()), **locals())
    if len({"filters" if name == "fan_in" else name for name in fields.keys() & set(SIZES)}) > 1:
        raise cc.ConvCircuitsError(
            "Give only one of --density (a share), --kernels (a number), --reach-r2 (an R2), --filters with --fan-in, "
            "and --drawable."
        )
    if recipe is None:
        for name in ("model", "feature"):
            if name not in fields:
                raise typer.BadParameter("it is required unless --recipe is given.", param_hint=f"--{name}")
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
    """Read a file of recipes. Return each with the file to write, if it names one."""
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
    """Load every model with its photographs once, and parse every feature, before any circuit is found."""
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
            raise cc.ConvCircuitsError(f"Two circuits would be written to {path}; set out for one of them.")
        recipe = dataclasses.replace(recipe, feature=str(feature))
        tasks[path] = _Task(recipe, feature, own, setups[key], path)
    return list(tasks.values())


def _found(task: _Task, batch_size: int, *, as_json: bool) -> tuple["cc.Evaluation", dict[str, Any]]:
    """Find, measure and write a circuit. Print the report, and return it with what to print as JSON."""
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
    """Find a circuit of the size that its recipe asks for. If that is an R2, also return what was reached."""
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
            size: dict[str, Any] = {k: getattr(recipe, k) for k in SIZES if k != "reach_r2"}
            size["effective"] = recipe.effective_kernels
            return cc.find(setup.loaded.model, task.feature, setup.train.images, progress=told, **size, **chosen), {}
        if recipe.effective_kernels:
            raise cc.ConvCircuitsError("--effective-kernels needs --density or --kernels; got --reach-r2.")
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
        f"The circuit's size is the smallest tried that reaches R2 = {recipe.reach_r2:g} on "
        f"{len(setup.validation.names)} validation photographs (R2 there: {found.r2:.3f}); these are neither the "
        "photographs that it was found on nor the held-out ones."
    )
    reached = {"asked": recipe.reach_r2, "r2": found.r2, "photographs": setup.validation.names, "tried": found.tried}
    return noted(found.circuit, [note]), {"reached": reached}
