"""``convcircuits models``."""

import dataclasses
from typing import Annotated

import typer

from convcircuits.cli import options
from convcircuits.cli.layers import AllOption, layers
from convcircuits.cli.output import aligned, cell, print_json, say


def models(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Model to list the layers of, as convcircuits layers does.")
    ] = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    every: AllOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """List the models, or the layers of one."""
    if model is not None:
        layers(model, weights, mean, std, every, as_json)
        return
    from convcircuits.zoo.models import list_models

    found = [dataclasses.asdict(info) for info in list_models()]
    if as_json:
        print_json(found)
        return
    say(aligned([list(found[0]), *([cell(value) for value in row.values()] for row in found)]))
