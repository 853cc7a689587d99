"""``convcircuits diagram``."""

from pathlib import Path
from typing import Annotated

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.controls import measured
from convcircuits.cli.output import say


def diagram(
    file: options.CircuitArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File to write (.html, .svg, .pdf, .png or .json).",
            show_default="FILE with the suffix .html",
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the web browser.")] = False,
    against: Annotated[Path | None, typer.Option(help="Circuit of the same feature to compare with.")] = None,
    path: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|FILE",
            help="Other circuits of its descent, for the slider: the folder of find --path, or the file of find "
            "--checkpoint.",
            show_default=False,
        ),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            help="Fit controls beside a circuit that has gains or offsets, and say whether it was found or made by "
            "these constants."
        ),
    ] = True,
    descents: options.DescentsOption = 0,
    pictures: Annotated[
        options.Pictures,
        typer.Option(help="Pictures of the filters: patches of images, or optimized images (features; takes minutes)."),
    ] = "patches",
    feature_picture: Annotated[
        bool,
        typer.Option(help="Show a picture that is optimized to drive the feature most in the full model; seconds."),
    ] = True,
    title: Annotated[
        str | None, typer.Option(help="Title of the diagram.", show_default="the feature and the model")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='What filters are called: JSON such as {"conv3_1:24": "curve"}, or CSV with the columns filter and '
            "label.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        options.Width | None, typer.Option(help="Width of a figure; 180mm and 88mm are for papers.")
    ] = None,
    model: options.ModelAgainOption = None,
    images: options.ImagesAgainOption = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    count: options.CountAgainOption = None,
    size: options.SizeAgainOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random circuit that serves as a baseline.")] = 0,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
) -> None:
    """Draw a circuit as an interactive page or as a figure."""
    from convcircuits.cli.preparing import loaded_circuit, say_photographs, set_up_again
    from convcircuits.drawing.host import check_file
    from convcircuits.drawing.labelling import read_labels

    page = file.with_suffix(".html") if out is None else out
    check_file(page, width)
    if open_ and page.suffix != ".html":
        raise cc.ConvCircuitsError(f"--open shows a page in the browser, so --out must end in .html; got {page}.")
    said = {} if labels is None else read_labels(labels)
    steps = () if path is None else _path(path)
    other = None if against is None else loaded_circuit(against)
    if descents and not controls:
        raise cc.ConvCircuitsError("--descents adds a control; omit --no-controls.")
    fields = options.given(model=model, weights=weights, mean=mean, std=std, count=count, size=size)
    circuit, setup = set_up_again(file, device=device, images=images, **fields)
    called = {str(setup.loaded.feature(name)): label for name, label in said.items()}
    beside: cc.Controls | bool = controls
    if descents:
        beside = measured(circuit, setup, draws=1, descents=descents, batch_size=batch_size, seed=seed)
    with progress("drawing") as told:
        drawn = cc.diagram(
            setup.loaded.model,
            circuit,
            images=setup.pictured(),
            held_out=setup.held_out.images,
            photographs=setup.held_out.photographs,
            fit=setup.fit,
            against=other,
            path=steps,
            controls=beside,
            title=title,
            pictures=pictures,
            feature_picture=feature_picture,
            primaries=setup.loaded.primaries(),
            labels=called,
            batch_size=batch_size,
            seed=seed,
            progress=told,
        )
    with progress(f"writing {page}"):
        drawn.save(page, width=width)
    say_photographs(setup)
    say(drawn.caption)
    for note in drawn.document.meta.notes:
        say(f"note: {note}")
    say(f"wrote {page} ({page.stat().st_size:,} bytes)")
    if open_:
        typer.launch(page.absolute().as_uri())


def _path(place: Path) -> tuple["cc.Circuit", ...]:
    """Load the circuits of a descent from the folder or the file that they were written to."""
    from convcircuits.cli.preparing import loaded_circuit

    if place.is_dir():
        found = tuple(loaded_circuit(file) for file in sorted(place.glob("*.safetensors")))
    else:
        loaded = cc.load(place)
        found = loaded if isinstance(loaded, tuple) else ()
    if not found:
        raise cc.ConvCircuitsError(
            f"--path {place} holds no circuits of a descent; give the folder of find --path, or the file of find "
            "--checkpoint."
        )
    return found
