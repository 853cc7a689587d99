"""``convcircuits explore``."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from convcircuits.cli import options
from convcircuits.cli.console import silence
from convcircuits.cli.output import say


def explore(
    model: options.ModelInBundleOption = None,
    images: options.LookedAtInBundleOption = None,
    project: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the index, the circuits and the notes; it is made if it is not there.",
            show_default="named after the model",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port.", show_default="the first free one from 8642 on")
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen at. At any but the default, others in the network may look in if they have the "
            "token."
        ),
    ] = "127.0.0.1",
    read_only: Annotated[bool, typer.Option("--read-only", help="Only look: start no work and write nothing.")] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the page in the web browser.")] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="A bundle that somebody shared, to check and add to the project: a circuit with its figures."
        ),
    ] = None,
    atlas: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that convcircuits atlas wrote for a layer of the model, besides those in the project's folder "
            "atlases; repeatable.",
        ),
    ] = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    size: options.SideOption = None,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
) -> None:
    """Look at a model's units and their circuits in the web browser."""
    from convcircuits.explorer.launch import of_bundle, start
    from convcircuits.explorer.opening import Opening
    from convcircuits.files import named_after

    own: dict[str, Any] = {
        "size": size,
        "mean": None if mean is None else options.numbers("--mean", mean),
        "std": None if std is None else options.numbers("--std", std),
    }
    if bundle is not None:
        model, images, project, theirs = of_bundle(bundle, model, images, project, weights=weights, read_only=read_only)
        own = {name: theirs.get(name) if value is None else value for name, value in own.items()}
    if model is None:
        raise typer.BadParameter("it is required unless --bundle is given.", param_hint="--model")
    opening = Opening(
        model=model,
        images=images or "sample",
        project=project or Path(named_after(model, "explorer")),
        bundle=bundle,
        atlases=tuple(atlas or ()),
        weights=None if weights is None else str(weights),
        **own,
        batch_size=batch_size,
        device=device,
    )
    with silence():
        start(opening, host=host, port=port, read_only=read_only, open_page=not no_open, notify=_notify)


def _notify(text: str) -> None:
    say(text)
    sys.stdout.flush()  # the address, which a pipe's reader waits for
