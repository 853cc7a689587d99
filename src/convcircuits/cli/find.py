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
from convcircuits.cli.output import (
    aligned,
    cell,
    check_writable,
    insist,
    made_folder,
    print_json,
    say,
    say_written,
)
from convcircuits.files import named_after
from convcircuits.values.drawable import FAN_IN, FILTERS
from convcircuits.values.recipe import BEST, Recipe, check_size, read_recipes

if TYPE_CHECKING:
    from convcircuits.recipes import Setup

_SHARED = ("model", "weights", "mean", "std", "images", "boxes", "count", "size", "held_out", "seed")
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
    refit: options.RefitOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Option of the criterion, for example steps=5; repeatable. The options are listed below.",
        ),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(
            help="Folder for all circuits of a descent, from the largest to the one that is asked for, and a table of "
            "their figures, path.csv; with --criterion progressive or learned.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File (.safetensors) to which the circuits of a descent are written after every cut. If the command "
            "is stopped, run it again with the same file: it goes on from the last cut. With --criterion progressive "
            "or learned.",
            show_default=False,
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
    boxes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Table of boxes, such as the top.csv of convcircuits top: only its photographs are used, each once "
            "and whole, and the feature counts where it is highest in its box.",
            show_default=False,
        ),
    ] = None,
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
    check_size(fields)
    if recipe is None:
        for name in ("model", "feature"):
            if name not in fields:
                raise typer.BadParameter("it is required unless --recipe is given.", param_hint=f"--{name}")
        check_writable("--out", out, ".safetensors")
        planned = [(Recipe.of(fields), out)]
    else:
        planned = _planned(recipe, fields, out)
    for name, place in (("--path", path), ("--checkpoint", checkpoint)):
        if place is not None and (recipe is not None or reach_r2 is not None):
            raise cc.ConvCircuitsError(f"{name} goes with neither --recipe nor --reach-r2.")
    check_writable("--checkpoint", checkpoint, ".safetensors")
    for one, _ in planned:
        _check_refitted(one, path, checkpoint)
    reports, printed = [], []
    for task in _prepared(planned, Path() if recipe is None or out is None else out, device):
        report, said = _found(task, path, checkpoint, batch_size, as_json=as_json)
        reports.append(report)
        printed.append(said)
    if as_json:
        print_json(printed[0] if recipe is None else printed)
    insist(require, reports)


def _planned(path: Path, fields: dict[str, Any], folder: Path | None) -> list[tuple[Recipe, Path | None]]:
    """Read a file of recipes. Return each with the file to write, if it names one."""
    from convcircuits.zoo.specs import check_runs_no_code_unasked

    recipes = read_recipes(path, fields)
    for one, _ in recipes:
        if "model" not in fields:
            check_runs_no_code_unasked(path, one.model)
    place = made_folder(folder) if folder is not None else Path()
    planned = [(one, None if out is None else place / out) for one, out in recipes]
    for _, file in planned:
        check_writable("out", file, ".safetensors")
    return planned


def _check_refitted(recipe: Recipe, path: Path | None, checkpoint: Path | None) -> None:
    """Check, before any work is done, that a criterion that refits by itself is one or is not, as other options need.

    Raises:
        ConvCircuitsError: If it is not.
    """
    from convcircuits.circuits.asking import is_descent
    from convcircuits.circuits.refitting import METHODS

    if recipe.refit not in (*METHODS, BEST):
        raise cc.ConvCircuitsError(f"--refit must be one of {', '.join((*METHODS, BEST))}; got {recipe.refit!r:.80}.")
    if recipe.refit == BEST and (recipe.reach_r2 is not None or path is not None):
        other = "--path" if path is not None else "--reach-r2"
        raise cc.ConvCircuitsError(f"--refit best chooses the constants of one circuit; omit it or {other}.")
    descends = recipe.criterion in cc.CRITERIA and is_descent(cc.CRITERIA[recipe.criterion])
    if descends and recipe.refit not in ("none", BEST):
        raise cc.ConvCircuitsError(
            f"{recipe.criterion} refits by itself; omit --refit {recipe.refit}, or choose a criterion that does not, "
            "such as --criterion gauss_newton."
        )
    for lacking, place in (("other circuits for --path", path), ("cuts for --checkpoint", checkpoint)):
        if place is not None and not descends:
            known = [name for name, one in cc.CRITERIA.items() if is_descent(one)]
            raise cc.ConvCircuitsError(
                f"{recipe.criterion} does not descend, so it has no {lacking}; choose "
                f"{' or '.join(f'--criterion {name}' for name in known)}."
            )


def _prepared(planned: Sequence[tuple[Recipe, Path | None]], folder: Path, device: str) -> list[_Task]:
    """Load every model with its photographs once, and parse every feature, before any circuit is found."""
    from convcircuits.cli.preparing import set_up
    from convcircuits.recipes import criterion_options

    chosen = [criterion_options(recipe.options) for recipe, _ in planned]
    setups: dict[tuple[Any, ...], Setup] = {}
    tasks: dict[Path, _Task] = {}
    for (recipe, file), own in zip(planned, chosen, strict=True):
        # Which boxes of a table count depends on the unit.
        key = (*(getattr(recipe, name) for name in _SHARED), recipe.validated, recipe.boxes and recipe.feature)
        if key not in setups:
            setups[key] = set_up(recipe, device)
        feature = setups[key].loaded.feature(recipe.feature)
        path = file or folder / f"{named_after(recipe.model, feature.slug)}.safetensors"
        check_writable("--out", path, ".safetensors")
        if path in tasks:
            raise cc.ConvCircuitsError(f"Two circuits would be written to {path}; set out for one of them.")
        recipe = dataclasses.replace(recipe, feature=str(feature))
        boxes = setups[key].boxes
        if boxes is not None:
            feature = dataclasses.replace(feature, position=boxes)
        tasks[path] = _Task(recipe, feature, own, setups[key], path)
    return list(tasks.values())


def _found(
    task: _Task, folder: Path | None, checkpoint: Path | None, batch_size: int, *, as_json: bool
) -> tuple["cc.Evaluation", dict[str, Any]]:
    """Find, measure and write a circuit. Print the report, and return it with what to print as JSON."""
    from convcircuits.cli.preparing import say_photographs
    from convcircuits.recipes import follow, noted, with_recipe

    recipe, setup = task.recipe, task.setup
    if checkpoint is not None and checkpoint.resolve() == task.file.resolve():
        raise cc.ConvCircuitsError(f"--checkpoint and --out are both {task.file}; give two files.")
    if folder is not None:
        made_folder(folder)
    with progress(f"finding a circuit with {recipe.criterion}") as told:
        circuits, reached = follow(
            recipe,
            task.feature,
            setup,
            task.options,
            whole_path=folder is not None,
            checkpoint=checkpoint,
            batch_size=batch_size,
            progress=told,
        )
    path = [with_recipe(one, recipe, setup) for one in circuits]
    circuit = path[-1]
    with progress("measuring on held-out photographs") as told:
        report = cc.evaluate(
            setup.loaded.model, circuit, setup.held_out.images, fit=setup.fit, batch_size=batch_size, progress=told
        )
    cc.save(noted(circuit, setup.notes), task.file)
    if not as_json:
        say_photographs(setup)
        say(report.summary())
        say(f"wrote {task.file}")
    if folder is not None:
        reached["path"] = _write_path(folder, path, setup, batch_size, as_json=as_json)
    about = {"unreadable": setup.unreadable, "copies": setup.copies, "normalization": setup.loaded.normalization}
    return report, {"file": str(task.file), **about, **reached, **report.as_dict()}


def _write_path(
    folder: Path, circuits: Sequence["cc.Circuit"], setup: "Setup", batch_size: int, *, as_json: bool
) -> list[dict[str, Any]]:
    """Write the circuits of a descent and a table of their figures. Print and return the table."""
    from convcircuits.circuits.evaluation import evaluate_all
    from convcircuits.cli.comparing import write_table
    from convcircuits.recipes import noted

    figures = []
    for what, cut in (("held-out", setup.held_out), ("training", setup.train)):
        with progress(f"measuring the path on {what} photographs") as told:
            figures.append(
                evaluate_all(
                    setup.loaded.model,
                    circuits,
                    cut.images,
                    controls=[None] * len(circuits),
                    batch_size=batch_size,
                    progress=told,
                )
            )
    table = []
    for number, (circuit, held_out, training) in enumerate(zip(circuits, *figures, strict=True), start=1):
        file = f"{number:02}-{len(circuit)}.safetensors"
        cc.save(noted(circuit, setup.notes), folder / file)
        said = held_out.as_dict()
        row = {name: said[name] for name in ("kernels", "density", "constants", "r2", "r2_interior", "r2_rectified")}
        table.append(row | {"r2_training": training.as_dict()["r2"], "file": file})
    write_table(folder / "path.csv", table)
    if not as_json:
        say(aligned([list(table[0]), *([_figure(value) for value in row.values()] for row in table)]))
        say_written(folder, {"path.csv": "this table"})
    return table


def _figure(value: Any) -> str:
    return f"{value:z.3f}" if isinstance(value, float) else cell(value)
