"""``convcircuits units``."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.output import check_folder, made_folder, print_json, say, say_written
from convcircuits.files import named_after, safe_name

if TYPE_CHECKING:
    from convcircuits.contact_sheets import Tile
    from convcircuits.maps.units import UnitStatistics

_SIDE, _COLUMNS, _ACROSS = 64, 6, 3


def units(
    model: options.ModelArgument,
    layer: Annotated[
        str,
        typer.Argument(
            metavar="LAYER",
            help="Layer, for example features.14 or conv3_3; layer#k is call k of a layer that runs several times.",
            show_default=False,
        ),
    ],
    images: options.LookedAtOption = "sample",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for units.csv, units.png and top.csv.",
            show_default="named after model and layer",
        ),
    ] = None,
    sort: Annotated[
        options.Measure, typer.Option(help="What to sort by, the highest first; dead units come last.")
    ] = "rectified_variance",
    lowest_first: Annotated[
        bool, typer.Option("--lowest-first", help="Sort from the lowest.", show_default=False)
    ] = False,
    count: Annotated[int, typer.Option(help="Number of photographs on which each unit is highest.")] = _COLUMNS,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    size: options.SideOption = None,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """List a layer's units, and what drives each."""
    from convcircuits.cli.comparing import write_table
    from convcircuits.cli.looking import cut, described, view
    from convcircuits.contact_sheets import Section, contact_sheet
    from convcircuits.files import write_whole

    check_folder(out)
    if ":" in layer:
        raise cc.ConvCircuitsError(f"{layer!r} names a unit; give a layer alone, or run convcircuits top.")
    loading = options.given(model=model, weights=weights, mean=mean, std=std)
    looked = view(images, size=size, batch_size=batch_size, device=device, **loading)
    wanted = looked.loaded.feature(f"{layer}:0")
    with progress("looking at photographs") as told:
        found = cc.units(
            looked.loaded.model,
            wanted.layer,
            looked.images,
            call=wanted.call,
            count=count,
            batch_size=batch_size,
            progress=looked.told(told),
        )
        ranked = found.ranked(sort, lowest_first=lowest_first)
        rows, tiles = cut(found.top, looked.images, _SIDE, told)
        sheet = contact_sheet(
            f"{layer} of {model}: {len(found)} units",
            [*described(found.top), f"{_sorted(sort, lowest_first=lowest_first)} {' '.join(found.notes)}"],
            [
                Section(str(one.unit), _remark(one), _small(tiles[one.unit, "highest"]))
                for one in ranked
                if not one.dead
            ],
            side=_SIDE,
            columns=_COLUMNS,
            across=_ACROSS,
        )
    folder = made_folder(out or Path(named_after(model, safe_name(layer))))
    table = [one.as_dict() for one in ranked]
    write_table(folder / "units.csv", table)
    write_table(folder / "top.csv", rows)
    write_whole(folder / "units.png", sheet)
    if as_json:
        print_json({"folder": str(folder), "layer": layer, **looked.said(), "notes": found.notes, "units": table})
        return
    say(found.summary(sort, lowest_first=lowest_first))
    say(_sorted(sort, lowest_first=lowest_first))
    for note in looked.notes:
        say(note)
    say_written(
        folder,
        {
            "units.csv": "all units",
            "units.png": "what drives each",
            "top.csv": "the photographs on which each is highest",
        },
    )


def _sorted(by: str, *, lowest_first: bool) -> str:
    return f"Sorted by {by.replace('_', ' ')}, the {'lowest' if lowest_first else 'highest'} first; dead units last."


def _small(tiles: "Sequence[Tile]") -> "list[Tile]":
    """Return tiles with the value alone, in small letters."""
    return [dataclasses.replace(tile, label="", detail=tile.label) for tile in tiles]


def _remark(one: "UnitStatistics") -> str:
    border = "" if math.isnan(one.at_border) else f" · at the border {one.at_border:.0%}"
    return f"active {one.active:.1%} · on {one.active_images:.0%} of images · sparsity {one.sparsity:.2f}{border}"
