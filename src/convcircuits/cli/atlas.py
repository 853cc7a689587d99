"""``convcircuits atlas``."""

import contextlib
import dataclasses
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.output import check_folder, print_json, say, say_written
from convcircuits.files import named_after, safe_name
from convcircuits.values.recipe import Recipe


def atlas(
    model: options.ModelArgument,
    layer: Annotated[
        str,
        typer.Argument(
            metavar="LAYER",
            help="Layer, for example features.14 or conv3_3; layer#k is call k of a layer that runs several times, and "
            "layer@interior counts the positions where no padding reaches.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for the circuits, their index and atlas.html. If it holds part of the same atlas, the rest is "
            "added.",
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
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Find circuits of all units of a layer, and what they share. If it is stopped, run the same again: it goes on."""
    from convcircuits.cli.comparing import write_table
    from convcircuits.cli.preparing import say_photographs, set_up
    from convcircuits.drawing.atlas_page import atlas_page
    from convcircuits.files import write_whole
    from convcircuits.recipes import criterion_options, noted, with_recipe

    check_folder(out)
    if ":" in layer:
        raise cc.ConvCircuitsError(f"{layer!r} names a unit; give a layer alone, or run convcircuits find.")
    chosen, part = _units(units), _shard(shard)
    name, at, position = layer.partition("@")
    given = {
        "model": model,
        "feature": f"{name}:0{at}{position}",
        "criterion": criterion,
        "options": tuple(option or ()),
        "drawable": drawable,
        **options.given(
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
    recipe = Recipe.of(given)
    own = criterion_options(recipe.options)
    setup = set_up(recipe, device)
    wanted = setup.loaded.feature(recipe.feature)
    folder = out or Path(named_after(model, safe_name(layer)))

    def finish(circuit: cc.Circuit) -> cc.Circuit:
        said = dataclasses.replace(recipe, feature=str(circuit.feature))
        return noted(with_recipe(circuit, said, setup), setup.notes)

    sized: dict[str, Any] = {"density": recipe.density, "kernels": recipe.kernels, "drawable": recipe.drawable}
    # Ray prints what happens to its workers where only the results belong.
    quiet = contextlib.nullcontext() if ray is None else contextlib.redirect_stdout(sys.stderr)
    with progress("finding circuits") as told, quiet:
        found = cc.atlas(
            setup.loaded.model,
            wanted.layer,
            setup.train.images,
            setup.held_out.images,
            folder=folder,
            units=chosen,
            position=wanted.position,
            call=wanted.call,
            criterion=criterion,
            shard=part,
            ray=ray,
            batch_size=batch_size,
            seed=recipe.seed,
            progress=told,
            finish=finish,
            **sized,
            **own,
        )
    rows = found.rows()
    files = {"units.csv": "the figures of all units", "layers.csv": "what circuits keep and share in each layer"}
    write_table(folder / "units.csv", rows)
    write_table(folder / "layers.csv", found.profile())
    hubs = found.hubs(100)
    if hubs:
        write_table(folder / "hubs.csv", hubs)
        files["hubs.csv"] = "the kernels that most circuits keep"
    write_whole(folder / "atlas.html", atlas_page(found.as_dict(), model=setup.loaded.name).encode())
    files["atlas.html"] = "a map of the units, by what their circuits share"
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "layer": found.layer,
                "circuits": len(found),
                "unreadable": setup.unreadable,
                "copies": setup.copies,
                "normalization": setup.loaded.normalization,
                "notes": list(setup.notes),
                "units": rows,
            }
        )
        return
    say_photographs(setup)
    say(found.summary())
    say_written(folder, files)


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
