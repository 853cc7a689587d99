"""``convcircuits cross``."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.output import CHECKPOINT, check_folder, made_folder, print_json, say, say_written
from convcircuits.files import named_after, safe_name

if TYPE_CHECKING:
    from convcircuits.subfeatures.chosen import Chosen
    from convcircuits.zoo.images import Photograph
    from convcircuits.zoo.prepared import Prepared


def cross(
    model: options.ModelArgument,
    feature: options.FeatureArgument,
    images: Annotated[
        str, typer.Option("--images", "-i", metavar="FOLDER", help="Folder with a subfolder of photographs per group.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for cross.csv, cross.png, overlaps.csv, report.md and the circuits.",
            show_default=options.NAMED,
        ),
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of each group's photographs to hold out, in (0, 1).")] = 0.4,
    criterion: Annotated[
        options.GroupCriterion, typer.Option("--criterion", "-c", help="One-shot criterion that circuits are found by.")
    ] = "gauss_newton",
    densities: Annotated[
        str, typer.Option(metavar="SHARE,SHARE,...", help="Sizes of each group's circuits, shares of the kernels.")
    ] = "0.2,0.1,0.05",
    refit: Annotated[
        options.GroupRefit, typer.Option(help="How circuits are refitted on the images of their own group.")
    ] = "filters",
    shuffles: Annotated[int, typer.Option(help="Number of random deals of the control.")] = 3,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also group the photographs blind, by circuits and by simpler descriptions."),
    ] = False,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    size: options.SideOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Test circuits of known groups on each other's photographs. If it is stopped, run the same again: it goes on."""
    from convcircuits.charts import check_charts_installed, cross_chart
    from convcircuits.circuits.resuming import Kept
    from convcircuits.circuits.scoring import MEMORY
    from convcircuits.cli.comparing import write_table
    from convcircuits.cli.looking import view
    from convcircuits.errors import whole_number
    from convcircuits.files import write_whole
    from convcircuits.network.batches import begin
    from convcircuits.subfeatures.crossing import measured_at
    from convcircuits.subfeatures.splitting import check_share, circuits_of_group, kept_for, opened

    check_folder(out)
    check_charts_installed()
    whole_number("shuffles", shuffles, 0)
    check_share("held_out", held_out)
    shares = sorted(options.numbers("--densities", densities), reverse=True)
    loading = options.given(model=model, weights=weights, mean=mean, std=std)
    looked = view(images, size=size, batch_size=batch_size, device=device, **loading)
    _check_apart(looked.copies, images)
    net, wanted = looked.loaded.model, looked.loaded.feature(feature)
    with progress("reading photographs") as told:
        done = 0
        for batch in looked.images:  # which of them can be read is known after a pass
            done += len(batch)
            told(done, len(looked.images))
    pictures = looked.images.photographs
    trained, tested = _held_out(_by_folder(pictures, images), looked.images, held_out, seed)
    given: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    subject = opened(net, measured_at(wanted), looked.images, batch_size)
    folder = out or Path(named_after(model, f"{wanted.slug}-cross"))
    kept = kept_for(folder / CHECKPOINT, subject, looked.images, batch_size, seed)
    with progress("finding circuits of each group") as told:
        given["progress"] = told
        circuits = {}
        for name, chosen in trained.items():
            begin(told, f"finding circuits of {name}")
            find = partial(circuits_of_group, subject, chosen, criterion, shares, refit, MEMORY, given, {}, name)
            circuits[name] = kept.circuits(
                find, images=chosen.chosen.nonzero()[:, 0].tolist(), how=[criterion, shares, refit]
            )
        crops_of = {
            name: [pictures[n].subject for n in chosen.chosen.nonzero()[:, 0].tolist()]
            for name, chosen in tested.items()
        }
        found = cc.cross(
            net,
            circuits,
            tested,
            fit=trained,
            photographs=crops_of,
            subjects=len({picture.subject for picture in pictures}) < len(pictures),
            shuffles=shuffles,
            checkpoint=folder / CHECKPOINT,
            **given,
        )
        compared = None
        if baselines:
            compared = cc.groupings(
                net,
                subject.feature,
                looked.images,
                known=[_group(picture.name) for picture in pictures],
                photographs=[picture.subject for picture in pictures],
                held_out=held_out,
                criterion=criterion,
                density=shares[found.chosen],
                refit=refit,
                checkpoint=folder / CHECKPOINT,
                **given,
            )
    made_folder(folder)
    said = found.as_dict()
    write_table(folder / "cross.csv", said["rows"])
    write_table(folder / "overlaps.csv", [_flat(row) for row in said["overlaps"]])
    cross_chart(said, folder / "cross.png")
    files = {
        "cross.csv": "every circuit on every group",
        "overlaps.csv": "what circuits share, layer by layer",
        "cross.png": "both, drawn",
    }
    for (name, some), stem in zip(circuits.items(), _stems(list(circuits)), strict=True):
        for circuit, share in zip(some, shares, strict=True):
            file = f"{stem}-{share:g}.safetensors"
            cc.save(circuit, folder / file)
            files[file] = f"the circuit of {name} with {len(circuit):,} kernels"
    printed = [found.summary(), *([] if compared is None else [compared.summary()])]
    report = [f"# {feature} of {model}", *(f"```\n{text}\n```" for text in printed), *looked.notes]
    write_whole(folder / "report.md", ("\n\n".join(report) + "\n").encode())
    files["report.md"] = "what is printed here"
    Kept(folder / CHECKPOINT).clear()
    if as_json:
        blind = None if compared is None else [row.as_dict() for row in compared.rows]
        print_json({"folder": str(folder), **looked.said(), "cross": said, "groupings": blind})
        return
    for text in [*printed, *looked.notes]:
        say(text)
    say_written(folder, files)


def _flat(overlap: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table of overlaps, with one number in a cell."""
    first, second = overlap["alone"]
    shared, alone, others = overlap["filters"]
    return {key: value for key, value in overlap.items() if key not in ("alone", "filters")} | {
        "first_alone": first,
        "second_alone": second,
        "filters_shared": shared,
        "filters_first_alone": alone,
        "filters_second_alone": others,
    }


def _stems(names: list[str]) -> list[str]:
    """Return what files of groups are named after: their folders, or numbers if these would not differ as names."""
    stems = [safe_name(name).strip("-.") for name in names]
    distinct = all(stems) and len({stem.lower() for stem in stems}) == len(stems)
    return stems if distinct else [f"group-{n}" for n in range(1, len(names) + 1)]


def _by_folder(photographs: "Sequence[Photograph]", source: str) -> "dict[str, list[Photograph]]":
    """Return the photographs of each subfolder."""
    groups: dict[str, list[Photograph]] = {}
    for photograph in photographs:
        groups.setdefault(_group(photograph.name), []).append(photograph)
    loose = groups.pop("", [])
    if loose or len(groups) < 2:
        what = f"{len(loose)} photographs outside of subfolders" if loose else "a single subfolder"
        raise cc.ConvCircuitsError(
            f"--images {source} has {what}; give a folder with at least two subfolders, one for each group of "
            "photographs."
        )
    return groups


def _check_apart(copies: Mapping[str, str], source: str) -> None:
    """Check that no photograph is in two subfolders.

    Raises:
        ConvCircuitsError: If one is.
    """
    shared = [(copy, name) for copy, name in copies.items() if _group(copy) != _group(name)]
    if shared:
        (copy, name), count = shared[0], len(shared)
        raise cc.ConvCircuitsError(
            f"Groups overlap: in --images {source}, {copy} is a copy of {name}, which is in another subfolder"
            f"{f'; {count} photographs are such copies' if count > 1 else ''}. Keep each photograph in one group."
        )


def _group(name: str) -> str:
    """Return the subfolder of a photograph; empty if it is in none."""
    folder, _, rest = name.partition("/")
    return folder if rest else ""


def _held_out(
    groups: "dict[str, list[Photograph]]", images: "Prepared", share: float, seed: int
) -> "tuple[dict[str, Chosen], dict[str, Chosen]]":
    """Return the training and the held-out images of each group.

    Raises:
        ConvCircuitsError: If a group has too few photographs for both.
    """
    import torch

    from convcircuits.subfeatures.chosen import Chosen
    from convcircuits.zoo.images import split_photographs

    parts: tuple[dict[str, Chosen], dict[str, Chosen]] = ({}, {})
    for name, group in groups.items():
        try:
            split = split_photographs(group, held_out=share, seed=seed)
        except cc.ConvCircuitsError as error:
            raise cc.ConvCircuitsError(f"In the subfolder {name!r}, {error}") from error
        for chosen, some in zip(parts, split, strict=True):
            names = {photograph.name for photograph in some}
            chosen[name] = Chosen(images, torch.tensor([one in names for one in images.names]))
    return parts
