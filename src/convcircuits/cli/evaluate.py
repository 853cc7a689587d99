"""``convcircuits evaluate``."""

from typing import Annotated

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.output import insist, print_json, say


def evaluate(
    file: options.CircuitArgument,
    model: options.ModelAgainOption = None,
    images: options.ImagesAgainOption = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    count: options.CountAgainOption = None,
    size: options.SizeAgainOption = None,
    effective: Annotated[
        bool, typer.Option(help="Silence dead filters, as circuits are defined, or keep their biases, as published.")
    ] = True,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
    require: options.RequireOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Measure a circuit on held-out photographs."""
    from convcircuits.cli.preparing import say_photographs, set_up_again

    fields = options.given(model=model, weights=weights, mean=mean, std=std, count=count, size=size)
    circuit, setup = set_up_again(file, device=device, images=images, **fields)
    with progress("measuring") as told:
        report = cc.evaluate(
            setup.loaded.model,
            circuit,
            setup.held_out.images,
            fit=setup.fit,
            effective=effective,
            batch_size=batch_size,
            progress=told,
        )
    if as_json:
        print_json({"normalization": setup.loaded.normalization, **report.as_dict()})
    else:
        say_photographs(setup)
        say(report.summary())
    insist(require, [report])
