"""``convcircuits tune``."""

from pathlib import Path
from typing import Annotated, Any

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.comparing import write_table
from convcircuits.cli.console import progress
from convcircuits.cli.output import check_folder, made_folder, print_json, say, say_written
from convcircuits.files import named_after, safe_name
from convcircuits.values.recipe import Recipe

DRAWN = 5
"""Number of units of a layer whose curves are drawn."""


def tune(
    model: options.ModelArgument,
    feature: Annotated[
        str,
        typer.Argument(
            metavar="FEATURE",
            help="Feature as layer:unit, at the center of its map, or as layer:unit@row,column; or a layer, for all of "
            "its units.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for tuning.csv (of a layer: units.csv) and tuning.png.",
            show_default=options.NAMED,
        ),
    ] = None,
    circuit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of a circuit (.safetensors) to run instead of the model.")
    ] = None,
    by: Annotated[
        options.TuningMeasure,
        typer.Option(
            metavar="MEASURE",
            help="Measure to rank units by: curve_preference, polarity_invariance, the response to any stimulus "
            "(relative) or to a kind (circle), or the selectivity for its orientation (grating_selectivity).",
        ),
    ] = "curve_preference",
    contrast: Annotated[
        float, typer.Option(help="Contrast of the stimuli: their gray level, from 0 to 1, minus the background's.")
    ] = 0.5,
    background: Annotated[float, typer.Option(help="Gray level of the background, from 0 to 1.")] = 0.5,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="Side length of the images in pixels.",
            show_default="the least that holds the receptive field, at most 224",
        ),
    ] = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    batch_size: options.BatchOption = 32,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Measure what a unit, or each unit of a layer, is tuned to."""
    from convcircuits.charts import check_charts_installed
    from convcircuits.cli.preparing import loaded_circuit
    from convcircuits.recipes import loaded_model, side
    from convcircuits.zoo.stimuli import battery

    check_folder(out)
    check_charts_installed()
    masked = None if circuit is None else loaded_circuit(circuit)
    fields = options.given(model=model, feature=feature, weights=weights, mean=mean, std=std)
    with progress(f"loading {model}"):
        loaded = loaded_model(Recipe.of(fields), device)
    wanted = loaded.feature(feature) if ":" in feature else loaded.aliases.get(feature, feature)
    with progress("showing stimuli") as told:
        tuning = cc.tune(
            loaded.model,
            wanted,
            lambda room: battery(room, contrast=contrast, background=background),
            draw=loaded.draw,
            size=side(size),
            circuit=masked,
            batch_size=batch_size,
            progress=told,
        )
    folder = made_folder(
        out or Path(named_after(model, wanted.slug if isinstance(wanted, cc.Feature) else safe_name(wanted)))
    )
    files = _write(tuning, by, folder, model if masked is None else f"{model}, {circuit}")
    if as_json:
        said = {"folder": str(folder), "model": model, "normalization": loaded.normalization}
        print_json(said | _as_json(tuning, by))
        return
    say(tuning.summary(by))
    rows, columns = tuning.image
    say(
        f"Stimuli are images of {rows} x {columns} pixels, normalized as the model's pictures are, but neither "
        "resized nor cropped."
    )
    if loaded.assumed:
        say(loaded.normalization)
    say_written(folder, files)


def _write(tuning: "cc.Tuning", by: str, folder: Path, whose: str) -> dict[str, str]:
    """Write the table and the chart. Return the names of the files, and what each one holds."""
    from convcircuits.charts import tuning_chart
    from convcircuits.zoo.stimuli import draw

    order = tuning.ranked(by)
    best = tuning.take(order[:DRAWN])
    if len(order) == 1:
        name, table, what = "tuning.csv", tuning.rows(), "every response"
    else:
        units = tuning.units()
        name, table, what = "units.csv", [units[u] for u in order], f"the measures of every unit, by {by}"
    write_table(folder / name, table)
    room = min(*tuning.field, *tuning.image)
    shown = [best.preferred(kind)[0] for kind in best.kinds]
    pictures = draw(shown, size=(room, room))[:, 0].tolist()
    first, one = best.features[0], len(order) == 1
    if bool(best.excited[0]):
        and_ = f"and the stimuli that {'it' if one else first} prefers"
    else:
        and_ = f"and stimuli, none of which excites {'it' if one else first}"
    tuning_chart(
        best.curves(),
        folder / "tuning.png",
        title=f"Tuning of {first if one else 'units'} of {whose}, {and_}",
        pictures=dict(zip(best.kinds, pictures, strict=True)),
    )
    count = "" if len(order) == 1 else f" of the first {len(best.features)}"
    return {name: what, "tuning.png": f"tuning curves{count}"}


def _as_json(tuning: "cc.Tuning", by: str) -> dict[str, Any]:
    units = tuning.units()
    preferred = {kind: tuning.preferred(kind) for kind in tuning.kinds}
    return {
        "stimuli": len(tuning.stimuli),
        "field": tuning.field,
        "center": tuning.center,
        "image": tuning.image,
        "units": [
            units[u] | {"preferred": {kind: some[u].as_dict() for kind, some in preferred.items()}}
            for u in tuning.ranked(by)
        ],
        "notes": tuning.notes,
    }
