"""``convcircuits evaluate``."""

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
    JsonOption,
    MeanOption,
    ModelAgainOption,
    RequireOption,
    SizeOption,
    StdOption,
    WeightsOption,
    given,
)
from convcircuits.cli.output import insist, print_json, say


def evaluate(
    file: CircuitArgument,
    model: ModelAgainOption = None,
    images: ImagesAgainOption = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    count: CountAgainOption = None,
    size: SizeOption = None,
    effective: Annotated[
        bool, typer.Option(help="Run the circuit as it is defined, or leave the biases of dead filters, as published.")
    ] = True,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    require: RequireOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a circuit on held-out photographs."""
    from convcircuits.cli.preparing import loaded_circuit, set_up_again

    circuit = loaded_circuit(file)
    with progress(LOADING):
        setup = set_up_again(
            file,
            circuit,
            device=device,
            images=images,
            **given(model=model, weights=weights, mean=mean, std=std, count=count, size=size),
        )
    with progress("measuring") as told:
        report = cc.evaluate(
            setup.loaded.model,
            circuit,
            setup.held_out,
            fit=setup.train if len(setup.train) else None,
            effective=effective,
            batch_size=batch_size,
            progress=told,
        )
    if as_json:
        print_json({"normalization": setup.loaded.normalization, **report.as_dict()})
    else:
        setup.say()
        say(report.summary())
    insist(require, [report])
