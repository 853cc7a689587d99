"""``convcircuits demo``."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.comparing import CRITERIA, DENSITIES, EXPLAINED, comparison_table, write_comparison
from convcircuits.cli.console import progress
from convcircuits.cli.output import check_folder, made_folder, print_json, say, say_written
from convcircuits.values.recipe import Recipe

MODEL, LAYER, SIZE = "vgg16_hed", "features.14", 112
BEST_AT = 0.05


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("demo-output"),
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help=options.COUNT_HELP)] = 14,
    seed: Annotated[int, typer.Option(min=0, help=options.SEED_HELP)] = 0,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Compare criteria on a real network and draw the best circuit."""
    from convcircuits.charts import check_charts_installed
    from convcircuits.circuits.comparison import compare
    from convcircuits.circuits.units import RULE, choose_unit, unit_statistics
    from convcircuits.cli.preparing import set_up, with_recipe

    start = time.monotonic()
    check_folder(out)
    check_charts_installed()
    recipe = Recipe(model=MODEL, feature=LAYER, count=count, size=SIZE, seed=seed)  # its unit is chosen below
    setup = set_up(recipe, device)
    made_folder(out)
    pictured = setup.pictured()
    with progress("choosing a unit") as told:
        cycle = len(setup.photographs)
        unit = choose_unit(
            unit_statistics(
                setup.loaded.model,
                LAYER,
                pictured,
                photographs=[setup.photographs[i % cycle] for i in range(len(pictured))],
                progress=told,
            )
        )
    feature = cc.Feature(LAYER, unit.unit)
    if not as_json:
        say(
            f"{feature} of {MODEL}: {RULE}. Chosen on the training photographs, without looking at any circuit.\n"
            f"{unit.summary()}"
        )
        setup.say()
    with progress("finding and measuring circuits") as told:
        rows = compare(
            setup.loaded.model,
            feature,
            setup.train.images,
            setup.held_out.images,
            criteria=CRITERIA,
            densities=DENSITIES,
            seed=seed,
            progress=told,
        )
    best = max((row for row in rows if row.density == BEST_AT), key=lambda row: row.evaluation.r2)
    recipe = dataclasses.replace(recipe, feature=str(feature), criterion=best.criterion, density=best.density)
    circuit = with_recipe(best.circuit, recipe, setup)
    table = write_comparison(rows, out, feature, setup)
    cc.save(circuit, out / "circuit.safetensors")
    with progress("drawing") as told:
        drawn = cc.diagram(
            setup.loaded.model,
            circuit,
            images=pictured,
            held_out=setup.held_out.images,
            fit=setup.fit,
            primaries=setup.loaded.primaries(),
            seed=seed,
            progress=told,
        )
    drawn.save(out / "circuit.html")
    if as_json:
        print_json(
            {
                "folder": str(out),
                "unit": dataclasses.asdict(unit),
                "best": best.as_dict(),
                "rows": table,
                "caption": drawn.caption,
            }
        )
        return
    say(comparison_table(rows))
    say(EXPLAINED)
    say(f"Best circuit at {BEST_AT:.0%}, chosen by these figures, found by {best.criterion}:")
    say(best.evaluation.summary())
    say(drawn.caption)
    say_written(
        out,
        {
            "comparison.csv": "every figure",
            "comparison.png": "fidelity against density",
            "circuit.safetensors": f"the best circuit; try: convcircuits show {out / 'circuit.safetensors'}",
            "circuit.html": "its diagram; open it in a web browser",
        },
    )
    say(f"done in {time.monotonic() - start:.0f} s")
