"""``convcircuits split``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import Report, progress
from convcircuits.cli.output import CHECKPOINT, check_folder, made_folder, print_json, say, say_written
from convcircuits.files import named_after

if TYPE_CHECKING:
    from convcircuits.cli.looking import View
    from convcircuits.contact_sheets import Section

_SIDE, _COLUMNS = 128, 8


def split(
    model: options.ModelArgument,
    feature: options.FeatureArgument,
    images: options.LookedAtOption = "sample",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for groups.csv, groups.png, cross.png, split.html, report.md and the circuits.",
            show_default=options.NAMED,
        ),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option(help="Divide into this many, whatever the tests say.", show_default="the tests decide"),
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of the photographs to hold out, in (0, 1).")] = 0.4,
    alpha: Annotated[float, typer.Option(help="p-value up to which a group counts as bimodal, in (0, 1).")] = 0.05,
    densities: Annotated[
        str, typer.Option(metavar="SHARE,SHARE,...", help="Sizes of each group's circuits, shares of the kernels.")
    ] = "0.2,0.1,0.05",
    refit: Annotated[
        options.GroupRefit, typer.Option(help="How circuits are refitted on the images of their own group.")
    ] = "filters",
    max_images: Annotated[
        int, typer.Option(help="The most training photographs of a group that circuits are found on, drawn at random.")
    ] = 128,
    shuffles: Annotated[int, typer.Option(help="Number of random deals of the cross-test's control.")] = 3,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also group the photographs by simpler descriptions, and compare the groups."),
    ] = False,
    count: Annotated[int, typer.Option(min=1, help="Number of photographs of each group on the sheet.")] = 16,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    size: options.SideOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Divide a unit's photographs by how it is computed. If it is stopped, run the same again: it goes on."""
    from convcircuits.charts import check_charts_installed, cross_chart
    from convcircuits.circuits.resuming import Kept
    from convcircuits.cli.comparing import write_table
    from convcircuits.cli.looking import described, view
    from convcircuits.contact_sheets import contact_sheet
    from convcircuits.files import write_whole

    check_folder(out)
    check_charts_installed()
    shares = sorted(options.numbers("--densities", densities), reverse=True)
    loading = options.given(model=model, weights=weights, mean=mean, std=std)
    looked = view(images, size=size, batch_size=batch_size, device=device, **loading)
    wanted = looked.loaded.feature(feature)
    given: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    folder = out or Path(named_after(model, f"{wanted.slug}-groups"))
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
        crops_of = [photograph.subject for photograph in looked.images.photographs]
        found = cc.split(
            looked.loaded.model,
            wanted,
            looked.images,
            groups=groups,
            photographs=crops_of,
            subjects=len(set(crops_of)) < len(crops_of),
            held_out=held_out,
            alpha=alpha,
            densities=shares,
            refit=refit,
            max_images=max_images,
            shuffles=shuffles,
            progress=told,
            checkpoint=folder / CHECKPOINT,
            **given,
        )
        compared = None
        if baselines:
            compared = cc.groupings(
                looked.loaded.model,
                wanted,
                looked.images,
                known=None if len(found) == 1 else found.labels.tolist(),
                groups=max(2, len(found)),
                photographs=crops_of,
                held_out=held_out,
                density=shares[-1 if found.cross is None else found.cross.chosen],
                refit=refit,
                progress=told,
                checkpoint=folder / CHECKPOINT,
                **given,
            )
        sections = _sections(found, seen, looked, count, told)
        sheet = contact_sheet(f"{feature} of {model}", described(seen), sections, side=_SIDE, columns=_COLUMNS)
        drawn: cc.Diagram | None = None
        undrawn: list[str] = []
        try:
            drawn = _diagram(found, looked, batch_size, seed, told)
        except cc.ConvCircuitsError as error:  # such as circuits without a complete path: the rest is worth keeping
            undrawn.append(f"There is no split.html. {error}")
    names = looked.images.names
    rows = [{"photograph": names[row["image"]], **row} for row in found.rows()]
    made_folder(folder)
    files = {"groups.csv": "the group of every photograph", "groups.png": "a contact sheet of each group"}
    write_table(folder / "groups.csv", rows)
    write_whole(folder / "groups.png", sheet)
    for name, circuits in found.circuits.items():
        for circuit in circuits:
            file = f"{name}-{circuit.provenance['asked']['density']:g}.safetensors"
            cc.save(circuit, folder / file)
            files[file] = f"the circuit of group {name} with {len(circuit):,} kernels"
    if found.cross is not None:
        cross_chart(found.cross.as_dict(), folder / "cross.png")
        files["cross.png"] = "every circuit on every group"
    if drawn is not None:
        drawn.save(folder / "split.html")
        files["split.html"] = "the diagram of the groups' circuits, each with its own images"
    printed = [found.summary()]
    if compared is not None:
        agreed = "Known groups, with which the others are compared, are those that were found."
        printed.append(compared.summary() if len(found) == 1 else f"{compared.summary()}\nnote: {agreed}")
    notes = [*undrawn, *looked.notes]
    report = "\n\n".join([f"# {feature} of {model}", *(f"```\n{text}\n```" for text in printed), *notes])
    write_whole(folder / "report.md", (report + "\n").encode())
    files["report.md"] = "what is printed here"
    Kept(folder / CHECKPOINT).clear()
    if as_json:
        blind = None if compared is None else [row.as_dict() for row in compared.rows]
        said = {"folder": str(folder), "feature": found.feature, **looked.said(), **_said(found, undrawn)}
        print_json({**said, "groupings": blind, "rows": rows})
        return
    for text in [*printed, *notes]:
        say(text)
    say_written(folder, files)


def _diagram(found: "cc.Split", looked: "View", batch_size: int, seed: int, told: Report) -> "cc.Diagram":
    """Draw the circuits of all groups, each on the images of its group."""
    from convcircuits.cli.looking import short
    from convcircuits.subfeatures.chosen import Chosen

    parts = {f"group {name}": found.labels == n for n, name in enumerate(found.circuits)}
    names = [
        f"{name}, held out" if held else name
        for name, held in zip(short(looked.images.names), found.held_out.tolist(), strict=True)
    ]
    subjects = [photograph.subject for photograph in looked.images.photographs]
    title = f"{looked.loaded.name} {found.feature}"
    notes = [found.verdict_sentence]
    if found.borders is not None and found.borders.separate:
        notes.append(found.borders.sentence)
    if found.cross is not None:
        notes += _errors(found.cross)
        notes.append("R2 of each circuit is over all positions of the held-out images of all groups together.")
    return cc.group_diagram(
        looked.loaded.model,
        dict(zip(parts, found.tested_circuits().values(), strict=True)),
        {name: Chosen(looked.images, part) for name, part in parts.items()},
        fit={name: Chosen(looked.images, part & ~found.held_out) for name, part in parts.items()},
        held_out=Chosen(looked.images, found.held_out),
        cross=found.cross,
        names={name: [names[n] for n in part.nonzero()[:, 0].tolist()] for name, part in parts.items()},
        photographs={name: [subjects[n] for n in part.nonzero()[:, 0].tolist()] for name, part in parts.items()},
        subjects=len(set(subjects)) < len(subjects),
        title=title if len(found) == 1 else f"{title}: the circuits of {len(found)} groups of images",
        notes=notes,
        primaries=looked.loaded.primaries(),
        batch_size=batch_size,
        seed=seed,
        progress=told,
    )


def _errors(crossed: "cc.Cross") -> list[str]:
    """Return a sentence for each circuit of the verdict's size: its error on its own group and on the others."""
    said = []
    for name in crossed.groups:
        own = crossed.row(name, name)
        others = [crossed.row(name, group).error for group in crossed.groups if group != name]
        said.append(
            f"With {own.kernels:,} kernels, the circuit of group {name} errs by {own.error:z.2f} of the response on "
            f"held-out images of its own group and by {sum(others) / len(others):z.2f} on others, at each image's own "
            "maximum."
        )
    return said


def _said(found: "cc.Split", undrawn: Sequence[str]) -> dict[str, Any]:
    """Return what was found as JSON values."""
    return {
        "groups": {name: len(found.images(name)) for name in found.circuits},
        "asked": found.asked,
        "verdict": found.verdict_sentence,
        "borders": None if found.borders is None else found.borders.as_dict(),
        "divisions": [
            {
                "groups": list(one.groups),
                "images": one.images,
                "photographs": one.photographs,
                "p_value": one.p_value,
                "kept": one.kept,
                "supported": one.supported,
            }
            for one in found.divisions
        ],
        "cross": None if found.cross is None else found.cross.as_dict(),
        "notes": [*found.notes, *undrawn],
    }


def _sections(found: "cc.Split", seen: "cc.Top", looked: "View", count: int, told: Report) -> "list[Section]":
    """Cut out what the unit sees on the photographs of each group that drive it most."""
    import torch

    from convcircuits.cli.looking import cut
    from convcircuits.contact_sheets import Section
    from convcircuits.texts import counted

    place = torch.empty_like(seen.highest.image[0])
    place[seen.highest.image[0]] = torch.arange(len(place))  # of each image, where it is in the table
    shown = {
        name: found.images(name)[found.response[found.images(name)].argsort(descending=True, stable=True)][:count]
        for name in found.circuits
    }
    chosen = place[torch.cat(list(shown.values()))][None]
    some = dataclasses.replace(
        seen.highest,
        image=seen.highest.image.gather(1, chosen),
        value=seen.highest.value.gather(1, chosen),
        position=seen.highest.position[:, chosen[0]],
        box=seen.highest.box[:, chosen[0]],
    )
    _, tiles = cut(dataclasses.replace(seen, highest=some), looked.images, _SIDE, told)
    (every,) = (row for (_, which), row in tiles.items() if which == "highest")
    sections, done = [], 0
    for name, part in shown.items():
        held = len(found.images(name, held_out=True))
        subjects = [looked.images.photographs[n].subject for n in found.images(name).tolist()]
        remark = f"{counted(subjects, subjects=True)}, {held} of them held out; the highest first"
        sections.append(Section(f"group {name}", remark, every[done : done + len(part)]))
        done += len(part)
    return sections
