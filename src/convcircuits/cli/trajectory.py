"""``convcircuits trajectory``."""

import csv
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import Report, progress
from convcircuits.cli.output import check_folder, made_folder, print_json, say, say_written
from convcircuits.files import named_after
from convcircuits.values.recipe import DENSITY

if TYPE_CHECKING:
    from convcircuits.cli.looking import View

_SIDE = 96  # of the pictures on the page, in pixels
_HELD_OUT = 0.4  # share of the photographs that are chosen on the page, which says so


def trajectory(
    model: options.ModelArgument,
    feature: options.FeatureArgument,
    images: options.LookedAtOption = "sample",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for trajectory.html, trajectory.png and trajectory.csv.",
            show_default=options.NAMED,
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Table of groups to color by, with the columns photograph and group, such as groups.csv of "
            "convcircuits split.",
        ),
    ] = None,
    method: Annotated[
        options.Placing,
        typer.Option(help="Principal components, or UMAP (extra umap), which keeps neighbors but not distances."),
    ] = "pca",
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    size: options.SideOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Map photographs by how each layer computes a unit."""
    from convcircuits.charts import check_charts_installed, trajectory_chart
    from convcircuits.cli.comparing import write_table
    from convcircuits.cli.looking import view
    from convcircuits.drawing.trajectory_page import trajectory_page
    from convcircuits.files import write_whole
    from convcircuits.placing import check_placing

    check_folder(out)
    check_charts_installed()
    check_placing(method)
    by_name = {} if groups is None else _groups(groups)
    loading = options.given(model=model, weights=weights, mean=mean, std=std)
    looked = view(images, size=size, batch_size=batch_size, device=device, **loading)
    wanted = looked.loaded.feature(feature)
    given: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    with progress("looking at photographs") as told:
        seen = cc.top(
            looked.loaded.model,
            wanted,
            looked.images,
            count=len(looked.images),
            sample=0,
            progress=looked.told(told),
            **given,
        )
        names = looked.images.names
        found = cc.trajectory(
            looked.loaded.model,
            wanted,
            looked.images,
            method=method,
            groups=None if groups is None else _grouped(by_name, names, groups),
            progress=told,
            **given,
        )
        pictures = _pictures(found, seen, looked, told)
    placed = [names[image] for image in found.image.tolist()]
    page = trajectory_page(
        found.as_dict(),
        model=model,
        names=placed,
        pictures=pictures,
        finding=_finding(found, images, size, loading),
    )
    rows = [{"photograph": names[row["image"]], **row} for row in found.rows()]
    folder = made_folder(out or Path(named_after(model, f"{wanted.slug}-trajectory")))
    write_table(folder / "trajectory.csv", rows)
    trajectory_chart(found.as_dict(), folder / "trajectory.png", title=f"{found.feature} of {model}")
    write_whole(folder / "trajectory.html", page.encode())
    if as_json:
        said = {"folder": str(folder), "feature": found.feature, **looked.said(), "method": method}
        print_json({**said, "layers": found.by_layer(), "notes": list(found.notes), "rows": rows})
        return
    say(found.summary())
    for note in looked.notes:
        say(note)
    say_written(
        folder,
        {
            "trajectory.html": "a page on which photographs move from layer to layer",
            "trajectory.png": "the map of each layer",
            "trajectory.csv": "where every photograph is in every layer",
        },
    )


def _groups(file: Path) -> dict[str, str]:
    """Read the group of each photograph from a table.

    Raises:
        ConvCircuitsError: If the file cannot be read, is no such table, or puts one photograph in two groups.
    """
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no CSV file"
        raise cc.ConvCircuitsError(f"--groups {file} cannot be read: {reason}.") from error
    if not rows or any(row.get(name) is None for row in rows for name in ("photograph", "group")):
        raise cc.ConvCircuitsError(
            f"--groups {file} must be a table with the columns photograph and group, as convcircuits split writes it."
        )
    found: dict[str, str] = {}
    for row in rows:
        if found.setdefault(row["photograph"], row["group"]) != row["group"]:
            raise cc.ConvCircuitsError(f"--groups {file} puts {row['photograph']} in two groups; keep one.")
    return found


def _grouped(by_name: Mapping[str, str], names: Sequence[str], file: Path) -> list[str]:
    """Return the group of each photograph.

    Raises:
        ConvCircuitsError: If a photograph is not in the table.
    """
    missing = [name for name in names if name not in by_name]
    if missing:
        raise cc.ConvCircuitsError(
            f"--groups {file} has no row for {len(missing)} of {len(names)} photographs, such as {missing[0]}; give "
            "the table of these photographs, with an empty group for those that are in none."
        )
    return [by_name[name] for name in names]


def _pictures(found: "cc.Trajectory", seen: "cc.Top", looked: "View", told: Report) -> list[str]:
    """Cut out what the unit sees on each photograph that is placed, as data URLs."""
    import numpy as np
    import torch

    from convcircuits.cli.looking import cut
    from convcircuits.drawing.tiles import data_url

    place = torch.empty_like(seen.highest.image[0])
    place[seen.highest.image[0]] = torch.arange(len(place))  # of each image, where it is in the table
    tables = {field.name: getattr(seen.highest, field.name) for field in dataclasses.fields(seen.highest)}
    chosen = dataclasses.replace(seen.highest, **{k: table[:, place[found.image]] for k, table in tables.items()})
    _, tiles = cut(dataclasses.replace(seen, highest=chosen), looked.images, _SIDE, told)
    (every,) = (row for (_, which), row in tiles.items() if which == "highest")
    return [data_url(np.asarray(tile.picture)) for tile in every]


def _finding(found: "cc.Trajectory", images: str, size: int | None, loading: Mapping[str, Any]) -> dict[str, str]:
    """Return how to find a circuit for some photographs at the positions that placed them.

    It is a command if the photographs are a folder's and their maxima count, which boxes around them say; else Python.
    """
    feature = found.feature.removesuffix("@max")
    if images != "sample" and Path(images).is_dir() and feature != found.feature:
        words = ["convcircuits", "find"]
        fields = {**loading, "feature": feature, "images": images, "size": size, "held-out": _HELD_OUT}
        for name, value in fields.items():
            if value is not None:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words += [f"--{name}", text]
        return {"command": shlex.join(words)}
    model, *others = loading.items()
    given = "".join(f", {name}={value!r}" for name, value in others)
    resized = "" if size is None else f", size=({size}, {size})"
    return {
        "program": f"""import convcircuits as cc
from convcircuits.zoo.images import photographs, split_photographs
from convcircuits.zoo.models import load_model
from convcircuits.zoo.prepared import Prepared

chosen = CHOSEN
loaded = load_model({model[1]!r}{given})
pictures = [one for one in photographs({images!r})[0] if one.name in chosen]
parts = split_photographs(pictures, held_out={_HELD_OUT})
images, held_out = (Prepared(some, loaded.preprocess{resized}) for some in parts)
circuit = cc.find(loaded.model, loaded.feature({found.feature!r}), images, density={DENSITY})
print(cc.evaluate(loaded.model, circuit, held_out, fit=images).summary())
"""
    }
