"""``convcircuits layers``."""

import dataclasses
from typing import Annotated

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.output import aligned, cell, print_json, say

AllOption = Annotated[
    bool,
    typer.Option("--all", help="Include modules that compute nothing: identities, and dropouts outside training."),
]
_COLUMNS = {
    "layer": "name",
    "also called": "alias",
    "kind": "kind",
    "units": "channels",
    "map": "map",
    "kernels": "kernels",
    "calls": "calls",
    "class names": "categories",
}


def layers(
    model: options.ModelOption,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    every: AllOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """List a model's layers with their names, units and kernels."""
    from convcircuits.zoo.models import load_model

    loading = options.given(weights=weights, mean=mean, std=std)
    with progress(f"loading {model}"):
        loaded = load_model(model, **loading)
        infos = loaded.layers()
    if not infos:
        raise cc.ConvCircuitsError(
            f"{model} has no layer that can carry a feature: no submodule, from the first kernel on, outputs a tensor "
            "(N, C, H, W) or (N, C). Give another model."
        )
    shown = [dataclasses.asdict(info) for info in infos if every or info.computes]
    if as_json:
        print_json(shown)
        return
    shown = [{**row, "kernels": f"{row['kernels']:,}" if row["kernels"] else ""} for row in shown]
    say(aligned([list(_COLUMNS), *([cell(row[key]) for key in _COLUMNS.values()] for row in shown)]))
    if len(shown) < len(infos):
        say(
            f"{len(infos) - len(shown)} more compute nothing (identities, dropouts outside training); "
            "list them with --all"
        )
    say(loaded.normalization)
