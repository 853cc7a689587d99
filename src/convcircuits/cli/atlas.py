"""``convcircuits atlas``."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.output import check_folder, print_json, say, say_written
from convcircuits.files import named_after, safe_name
from convcircuits.values.recipe import Recipe

if TYPE_CHECKING:
    from convcircuits.recipes import Setup


def atlas(
    model: options.ModelArgument,
    layers: Annotated[
        list[str],
        typer.Argument(
            metavar="LAYER...",
            help="Layers, for example features.14 or conv3_3; layer#k is call k of a layer that runs several times, "
            "and layer@interior counts the positions where no padding reaches.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for the circuits, their index and atlas.html; of several layers, for a folder each. If it "
            "holds part of the same atlas, the rest is added.",
            show_default="named after model and layer",
        ),
    ] = None,
    units: Annotated[
        str | None, typer.Option(metavar="UNIT,UNIT,...", help="Only these units.", show_default="all")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N", help="Only the K-th of N parts of the units; parts may run at once.", show_default="all"
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|HOST:PORT",
            help="Run on a Ray cluster: the one that this machine belongs to, or one with this address.",
            show_default="this machine alone",
        ),
    ] = None,
    density: options.DensityOption = None,
    kernels: Annotated[
        int | None, typer.Option(help="Number of kernels to keep, instead of a share.", show_default=False)
    ] = None,
    drawable: Annotated[
        bool, typer.Option("--drawable", help="Keep what a diagram has room for.", show_default=False)
    ] = False,
    criterion: Annotated[
        options.Criterion,
        typer.Option(
            "--criterion",
            "-c",
            help="Criterion that scores the kernels. gauss_newton, snip and actgrad score all units at once; others "
            "run for one unit after another.",
        ),
    ] = "gauss_newton",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Option of the criterion, for example draws=1; repeatable."),
    ] = None,
    images: options.ImagesOption = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    count: options.CountOption = None,
    size: options.SizeOption = None,
    held_out: options.HeldOutOption = None,
    seed: options.SeedOption = None,
    method: Annotated[
        options.Placing,
        typer.Option(
            help="How the map places units: by principal axes, or UMAP (extra umap), which keeps neighbors but not "
            "distances.",
        ),
    ] = "pca",
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Find circuits of all units of layers, and what they share. If it is stopped, run the same again: it goes on."""
    from convcircuits.cli.preparing import say_photographs, set_up
    from convcircuits.placing import check_placing
    from convcircuits.recipes import criterion_options

    check_folder(out)
    check_placing(method)
    for layer in layers:
        if ":" in layer:
            raise cc.ConvCircuitsError(f"{layer!r} names a unit; give a layer alone, or run convcircuits find.")
    folders = _folders(out, model, layers)
    chosen, part = _units(units), _shard(shard)
    shared = {
        "criterion": criterion,
        "options": tuple(option or ()),
        "drawable": drawable,
        **options.given(
            model=model,
            density=density,
            kernels=kernels,
            images=images,
            weights=weights,
            mean=mean,
            std=std,
            count=count,
            size=size,
            held_out=held_out,
            seed=seed,
        ),
    }
    recipes = [Recipe.of({**shared, "feature": _first_unit(layer)}) for layer in layers]
    own = criterion_options(recipes[0].options)
    setup = set_up(recipes[0], device)
    wanted = [setup.loaded.feature(recipe.feature) for recipe in recipes]
    printed: list[dict[str, Any]] = []
    for recipe, feature, folder in zip(recipes, wanted, folders, strict=True):
        given = {"units": chosen, "shard": part, "ray": ray, "batch_size": batch_size, **own}
        found = _found(setup, recipe, feature, folder, given)
        if not printed and not as_json:
            say_photographs(setup)
        printed.append({"folder": str(folder), "layer": found.layer, "circuits": len(found), "units": found.rows()})
        files = _write(found, folder, setup, method, recipe.seed)
        if not as_json:
            say(found.summary())
            say_written(folder, files)
    if as_json:
        about = {
            "unreadable": setup.unreadable,
            "copies": setup.copies,
            "normalization": setup.loaded.normalization,
            "notes": list(setup.notes),
        }
        all_of_them = [{**one, **about} for one in printed]
        print_json(all_of_them[0] if len(layers) == 1 else all_of_them)


def _first_unit(layer: str) -> str:
    """Return a unit of a layer in text form, with the layer's position."""
    name, at, position = layer.partition("@")
    return f"{name}:0{at}{position}"


def _folders(out: Path | None, model: str, layers: Sequence[str]) -> list[Path]:
    """Return the folder of each layer's atlas.

    Raises:
        ConvCircuitsError: If two layers would have the same.
    """
    if len(layers) == 1:
        return [out or Path(named_after(model, safe_name(layers[0])))]
    place = out or Path(named_after(model, "atlas"))
    folders = [place / safe_name(layer) for layer in layers]
    if len(set(folders)) < len(folders):
        raise cc.ConvCircuitsError(f"{', '.join(layers)} would share a folder; give each layer once.")
    return folders


def _found(setup: "Setup", recipe: Recipe, feature: "cc.Feature", folder: Path, given: Mapping[str, Any]) -> "cc.Atlas":
    """Find what is missing of a layer's atlas."""
    from convcircuits.recipes import noted, with_recipe

    def finish(circuit: cc.Circuit) -> cc.Circuit:
        said = dataclasses.replace(recipe, feature=str(circuit.feature))
        return noted(with_recipe(circuit, said, setup), setup.notes)

    sized: dict[str, Any] = {"density": recipe.density, "kernels": recipe.kernels, "drawable": recipe.drawable}
    # Ray prints what happens to its workers where only the results belong.
    quiet = contextlib.nullcontext() if given["ray"] is None else contextlib.redirect_stdout(sys.stderr)
    with progress(f"finding circuits of {feature.layer}") as told, quiet:
        return cc.atlas(
            setup.loaded.model,
            feature.layer,
            setup.train.images,
            setup.held_out.images,
            folder=folder,
            position=feature.position,
            call=feature.call,
            criterion=recipe.criterion,
            seed=recipe.seed,
            progress=told,
            finish=finish,
            **sized,
            **given,
        )


def _write(found: "cc.Atlas", folder: Path, setup: "Setup", method: options.Placing, seed: int) -> dict[str, str]:
    """Write the tables and the page of an atlas. Return the files, with what they hold."""
    from convcircuits.cli.comparing import write_table
    from convcircuits.drawing.atlas_page import atlas_page
    from convcircuits.files import write_whole

    files = {"units.csv": "the figures of all units", "layers.csv": "what circuits keep and share in each layer"}
    write_table(folder / "units.csv", found.rows())
    write_table(folder / "layers.csv", found.profile())
    for name, kernels, what in (
        ("hubs.csv", found.hubs(100), "the kernels that most circuits keep, above chance"),
        ("rare.csv", found.rare(100), "the kernels that fewest circuits keep, below chance, but at least one"),
    ):
        if kernels:
            write_table(folder / name, kernels)
            files[name] = what
        else:
            (folder / name).unlink(missing_ok=True)  # of fewer circuits
    page = atlas_page(found.as_dict(method=method, seed=seed), model=setup.loaded.name)
    write_whole(folder / "atlas.html", page.encode())
    return files | {"atlas.html": "a map of the units, by what their circuits share"}


def _units(text: str | None) -> list[int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise cc.ConvCircuitsError(f"--units takes whole numbers separated by commas; got {text!r}.")
    return [int(unit) for unit in text.split(",")]


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,6}/\d{1,6}", text):
        raise cc.ConvCircuitsError(f"--shard is K/N, such as 3/8, the third of eight parts; got {text!r}.")
    part, of = text.split("/")
    return int(part), int(of)
