"""``convcircuits controls``."""

from typing import TYPE_CHECKING, Annotated

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.output import print_json, say

if TYPE_CHECKING:
    from convcircuits.recipes import Setup


def controls(
    file: options.CircuitArgument,
    draws: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of draws of each control that is drawn at random. One has no spread, at a third of the cost.",
        ),
    ] = 3,
    descents: options.DescentsOption = 0,
    model: options.ModelAgainOption = None,
    images: options.ImagesAgainOption = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    count: options.CountAgainOption = None,
    size: options.SizeAgainOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn at random.")] = 0,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Compare a circuit with controls that are fitted alike."""
    from convcircuits.cli.preparing import say_photographs, set_up_again

    fields = options.given(model=model, weights=weights, mean=mean, std=std, count=count, size=size)
    circuit, setup = set_up_again(file, device=device, images=images, **fields)
    report = measured(circuit, setup, draws=draws, descents=descents, batch_size=batch_size, seed=seed)
    if as_json:
        print_json({"normalization": setup.loaded.normalization, **report.as_dict()})
    else:
        say_photographs(setup)
        say(report.summary())


def measured(
    circuit: "cc.Circuit", setup: "Setup", *, draws: int, descents: int, batch_size: int, seed: int
) -> "cc.Controls":
    """Measure a circuit beside its controls on the held-out photographs.

    Raises:
        ConvCircuitsError: If the photographs that the circuit was found on are missing.
    """
    if setup.fit is None:
        raise cc.ConvCircuitsError(
            f"{setup.no_baseline} Controls are fitted on them, as the circuit was; put them back, or find the circuit "
            "again."
        )
    with progress("measuring its controls") as told:
        return cc.controls(
            setup.loaded.model,
            circuit,
            setup.held_out.images,
            fit=setup.fit,
            draws=draws,
            descents=descents,
            photographs=setup.held_out.photographs,
            batch_size=batch_size,
            seed=seed,
            progress=told,
        )
