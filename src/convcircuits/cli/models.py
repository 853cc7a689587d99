"""``convcircuits models``."""

import dataclasses
from typing import Annotated

import typer

from convcircuits.cli.layers import AllOption, list_layers_of
from convcircuits.cli.options import JsonOption, MeanOption, StdOption, WeightsOption
from convcircuits.cli.output import aligned, cell, print_json, say


def models(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model whose layers are listed, as by convcircuits layers.")
    ] = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    every: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """List models, or the layers of one."""
    if model is not None:
        list_layers_of(model, weights, mean, std, every=every, as_json=as_json)
        return
    from convcircuits.zoo.models import list_models

    found = [dataclasses.asdict(info) for info in list_models()]
    if as_json:
        print_json(found)
        return
    say(aligned([list(found[0]), *([cell(value) for value in row.values()] for row in found)]))
