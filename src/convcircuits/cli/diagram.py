"""``convcircuits diagram``."""

from pathlib import Path
from typing import Annotated

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.output import say


def diagram(
    file: options.CircuitArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .html, .svg, .pdf, .png or .json file to write; FILE.html if not given."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in the web browser.")] = False,
    against: Annotated[Path | None, typer.Option(help="Another circuit of the same feature, to compare with.")] = None,
    pictures: Annotated[
        options.Pictures,
        typer.Option(help="What pictures the filters: parts of images, or optimised ones (takes minutes)."),
    ] = "patches",
    title: Annotated[
        str | None, typer.Option(help="Over the picture; the feature's and the model's name if not given.")
    ] = None,
    width: Annotated[options.Width | None, typer.Option(help="Of a figure; the last two are for papers.")] = None,
    model: options.ModelAgainOption = None,
    images: options.ImagesAgainOption = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    count: options.CountAgainOption = None,
    size: options.SizeOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the random circuit that it is drawn beside.")] = 0,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
) -> None:
    """Draw a circuit as an interactive page, or as a figure."""
    from convcircuits.cli.preparing import loaded_circuit, set_up_again
    from convcircuits.drawing.host import check_file

    path = file.with_suffix(".html") if out is None else out
    check_file(path, width)
    if open_ and path.suffix != ".html":
        raise cc.ConvCircuitsError(f"--open shows a page in the browser, so --out ends in .html; got {path}.")
    other = None if against is None else loaded_circuit(against)
    fields = options.given(model=model, weights=weights, mean=mean, std=std, count=count, size=size)
    circuit, setup = set_up_again(file, device=device, images=images, **fields)
    with progress("drawing") as told:
        drawn = cc.diagram(
            setup.loaded.model,
            circuit,
            images=setup.pictured(),
            held_out=setup.held_out.images,
            fit=setup.fit,
            against=other,
            title=title,
            pictures=pictures,
            primaries=setup.loaded.primaries(),
            batch_size=batch_size,
            seed=seed,
            progress=told,
        )
    with progress(f"writing {path}"):
        drawn.save(path, width=width)
    setup.say()
    say(drawn.caption)
    for note in drawn.document.meta.notes:
        say(f"note: {note}")
    say(f"wrote {path} ({path.stat().st_size:,} bytes)")
    if open_:
        typer.launch(path.absolute().as_uri())
