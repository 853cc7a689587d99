"""``convcircuits top``."""

from pathlib import Path
from typing import Annotated

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.output import check_folder, made_folder, print_json, say, say_written
from convcircuits.files import named_after

_SIDE, _COLUMNS = 128, 8


def top(
    model: options.ModelArgument,
    feature: options.FeatureArgument,
    images: options.LookedAtOption = "sample",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for top.csv and top.png.", show_default=options.NAMED),
    ] = None,
    count: Annotated[int, typer.Option(help="Number of photographs on which each unit is highest.")] = 16,
    sample: Annotated[
        int, typer.Option(help="Number of photographs spread over the range of each unit's values; 0 for none.")
    ] = 16,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    size: options.SideOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample.")] = 0,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Show the photographs on which a feature is highest."""
    from convcircuits.cli.comparing import write_table
    from convcircuits.cli.looking import cut, described, view
    from convcircuits.contact_sheets import Section, contact_sheet
    from convcircuits.files import write_whole

    check_folder(out)
    if ":" not in feature:
        raise cc.ConvCircuitsError(
            f"{feature!r} names no unit; write layer:unit, for example {feature}:0, or run convcircuits units for the "
            "photographs on which each unit of a layer is highest."
        )
    loading = options.given(model=model, weights=weights, mean=mean, std=std)
    looked = view(images, size=size, batch_size=batch_size, device=device, **loading)
    wanted = looked.loaded.feature(feature)
    with progress("looking at photographs") as told:
        found = cc.top(
            looked.loaded.model,
            wanted,
            looked.images,
            count=count,
            sample=sample,
            batch_size=batch_size,
            seed=seed,
            progress=looked.told(told),
        )
        rows, tiles = cut(found, looked.images, _SIDE, told)
        rows = [{"layer": wanted.layer, **row} for row in rows]
    shares = dict(zip(found.units, found.active.tolist(), strict=True))
    images_of: dict[tuple[int | str, str], list[int]] = {}
    for row in rows:
        images_of.setdefault((row["unit"], row["which"]), []).append(row["image"])
    sections = []
    for (unit, which), some in tiles.items():
        heading, remark = "over its range", "drawn from strata of equal width"
        if which == "highest":
            heading, remark = "highest", f"above 0 on {shares[unit]:.0%} of the photographs"
        else:
            above = set(images_of.get((unit, "highest"), ()))
            numbers = images_of[unit, which]
            some = [tile for tile, image in zip(some, numbers, strict=True) if image not in above]
            if len(some) < len(numbers):
                remark += f"; {len(numbers) - len(some)} of {len(numbers)} are above already"
        sections.append(Section(heading if len(shares) == 1 else f"{unit}, {heading}", remark, some))
    sheet = contact_sheet(f"{feature} of {model}", described(found), sections, side=_SIDE, columns=_COLUMNS)
    folder = made_folder(out or Path(named_after(model, wanted.slug)))
    write_table(folder / "top.csv", rows)
    write_whole(folder / "top.png", sheet)
    if as_json:
        print_json({"folder": str(folder), "feature": str(wanted), **looked.said(), "notes": found.notes, "rows": rows})
        return
    say(found.summary())
    for note in looked.notes:
        say(note)
    say_written(folder, {"top.csv": "every photograph in the table, with boxes", "top.png": "a contact sheet"})
