"""``convcircuits compare``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from convcircuits.cli import options
from convcircuits.cli.comparing import CRITERIA, DENSITIES, EXPLAINED, comparison_table, write_comparison
from convcircuits.cli.console import progress
from convcircuits.cli.output import check_folder, made_folder, print_json, say, say_written
from convcircuits.files import named_after
from convcircuits.values.recipe import Recipe


def compare(
    model: options.ModelOption,
    feature: options.FeatureOption,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for comparison.csv, .json and .png.",
            show_default=options.NAMED,
        ),
    ] = None,
    criteria: options.CriteriaOption = ",".join(CRITERIA),
    densities: Annotated[
        str, typer.Option(metavar="SHARE,SHARE,...", help="Shares of the relevant kernels to keep, each in (0, 1].")
    ] = ",".join(map(str, DENSITIES)),
    option: options.OptionByCriterion = None,
    images: options.ImagesOption = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    count: options.CountOption = None,
    size: options.SizeOption = None,
    held_out: options.HeldOutOption = None,
    seed: options.SeedOption = None,
    batch_size: options.BatchOption = 16,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Compare criteria at several circuit sizes."""
    from convcircuits.charts import check_charts_installed
    from convcircuits.circuits.comparison import check_compared
    from convcircuits.circuits.comparison import compare as compared
    from convcircuits.cli.preparing import say_photographs, set_up
    from convcircuits.files import write_whole

    fields = options.given(**locals())
    names, shares = [name.strip() for name in criteria.split(",")], options.numbers("--densities", densities)
    check_compared(names, shares)
    chosen = options.by_criterion(option or [], names)
    check_charts_installed()
    check_folder(out)
    recipe = Recipe.of(fields)
    setup = set_up(recipe, device)
    wanted = setup.loaded.feature(feature)
    with progress("finding and measuring circuits") as told:
        rows = compared(
            setup.loaded.model,
            wanted,
            setup.train.images,
            setup.held_out.images,
            criteria=names,
            densities=shares,
            options=chosen,
            batch_size=batch_size,
            seed=recipe.seed,
            progress=told,
        )
    folder = made_folder(out or Path(named_after(model, wanted.slug)))
    table = write_comparison(rows, folder, wanted, setup)
    result = {
        "model": model,
        "feature": str(wanted),
        "options": option or [],
        "normalization": setup.loaded.normalization,
        "photographs": {"found_on": setup.train.names, "held_out": setup.held_out.names},
        "unreadable": setup.unreadable,
        "copies": setup.copies,
        "rows": table,
    }
    write_whole(folder / "comparison.json", (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    if as_json:
        print_json({"folder": str(folder), **result})
        return
    say_photographs(setup)
    say(comparison_table(rows))
    say(EXPLAINED)
    say_written(
        folder,
        {
            "comparison.csv": "every figure",
            "comparison.json": "every figure, and the photographs",
            "comparison.png": "fidelity against density",
        },
    )
