"""``convcircuits diagram``."""

from pathlib import Path
from typing import Annotated

import typer

import convcircuits as cc
from convcircuits.cli.console import LOADING, progress
from convcircuits.cli.options import (
    BatchOption,
    CircuitArgument,
    CountAgainOption,
    DeviceOption,
    ImagesAgainOption,
    MeanOption,
    ModelAgainOption,
    Pictures,
    SizeOption,
    StdOption,
    WeightsOption,
    Width,
    given,
)
from convcircuits.cli.output import say


def diagram(
    file: CircuitArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .html, .svg, .pdf, .png or .json file to write; FILE.html if not given."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in the web browser.")] = False,
    against: Annotated[Path | None, typer.Option(help="Another circuit of the same feature, to compare with.")] = None,
    pictures: Annotated[
        Pictures, typer.Option(help="What pictures the filters: parts of images, or optimised ones (takes minutes).")
    ] = "patches",
    title: Annotated[
        str | None, typer.Option(help="Over the picture; the feature's and the model's name if not given.")
    ] = None,
    width: Annotated[Width | None, typer.Option(help="Of a figure; the last two are for papers.")] = None,
    model: ModelAgainOption = None,
    images: ImagesAgainOption = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    count: CountAgainOption = None,
    size: SizeOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the random circuit that it is drawn beside.")] = 0,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
) -> None:
    """Draw a circuit as an interactive page, or as a figure."""
    from convcircuits.cli.preparing import loaded_circuit, set_up_again
    from convcircuits.drawing.host import check_file

    path = file.with_suffix(".html") if out is None else out
    check_file(path, width)
    if open_ and path.suffix != ".html":
        raise cc.ConvCircuitsError(f"--open shows a page in the browser, so --out ends in .html; got {path}.")
    circuit = loaded_circuit(file)
    other = None if against is None else loaded_circuit(against)
    with progress(LOADING):
        setup = set_up_again(
            file,
            circuit,
            device=device,
            images=images,
            **given(model=model, weights=weights, mean=mean, std=std, count=count, size=size),
        )
    with progress("drawing") as told:
        drawn = cc.diagram(
            setup.loaded.model,
            circuit,
            images=setup.pictured(),
            held_out=setup.held_out,
            fit=setup.train if len(setup.train) else None,
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
