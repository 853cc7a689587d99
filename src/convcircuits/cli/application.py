"""The typer application and its commands, one per file."""

from typing import Annotated

import typer

import convcircuits as cc
from convcircuits.cli import (
    atlas,
    benchmark,
    compare,
    controls,
    cross,
    demo,
    diagram,
    evaluate,
    explore,
    extract,
    find,
    layers,
    models,
    show,
    split,
    top,
    trajectory,
    tune,
    units,
)
from convcircuits.cli.options import CRITERIA_HELP
from convcircuits.cli.output import say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in text are not markup, and help does not need rich
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(cc.__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find, measure, run and draw the sparse circuit of kernels that computes one feature of a CNN."""


app.command(epilog=CRITERIA_HELP)(find.find)
app.command()(evaluate.evaluate)
app.command()(controls.controls)
app.command(epilog=CRITERIA_HELP)(compare.compare)
app.command()(extract.extract)
app.command()(diagram.diagram)
app.command()(show.show)
app.command()(models.models)
app.command()(layers.layers)
app.command()(units.units)
app.command()(top.top)
app.command()(split.split)
app.command()(cross.cross)
app.command()(trajectory.trajectory)
app.command(epilog=CRITERIA_HELP)(atlas.atlas)
app.command()(tune.tune)
app.command()(explore.explore)
app.command()(demo.demo)
app.add_typer(benchmark.app, name="benchmark")
