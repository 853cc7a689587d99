"""``convcircuits demo``."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.comparing import EXPLAINED, comparison_table, write_comparison
from convcircuits.cli.console import progress
from convcircuits.cli.output import check_folder, made_folder, print_json, say, say_written
from convcircuits.values.recipe import BEST, Recipe

MODEL, LAYER, SIZE = "vgg16_hed", "features.14", 80
CRITERIA = ("gauss_newton", "actgrad", "snip")  # compared with the descent
DENSITIES = (0.1, 0.03, 0.01)  # of the descent's circuits that are compared, about
# A little worse than the defaults, for a demo of a few minutes.
LEARNED = ("start=0.1", "ratio=0.5", "tolerance=0.1", "steps=30", "final=400", "polish=100")


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("demo-output"),
    images: Annotated[str, typer.Option(help=options.IMAGES_HELP)] = "sample",
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help=options.COUNT_HELP)] = 40,
    seed: Annotated[int, typer.Option(min=0, help=options.SEED_HELP)] = 0,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Compare criteria on a real network, and draw a whole circuit."""
    from convcircuits.charts import check_charts_installed
    from convcircuits.circuits.comparison import ComparisonTable, Row, compare
    from convcircuits.circuits.evaluation import evaluate_all
    from convcircuits.cli.preparing import say_photographs, set_up
    from convcircuits.maps.units import RULE, choose_unit, units
    from convcircuits.recipes import criterion_options, with_best_constants, with_recipe

    start = time.monotonic()
    check_folder(out)
    check_charts_installed()
    recipe = Recipe(  # its unit is chosen below
        model=MODEL,
        feature=LAYER,
        criterion="learned",
        options=LEARNED,
        refit=BEST,
        drawable=True,
        images=images,
        count=count,
        size=SIZE,
        seed=seed,
    )
    setup = set_up(recipe, device)
    model, train, held_out = setup.loaded.model, setup.train.images, setup.held_out.images
    made_folder(out)
    pictured = setup.pictured()
    with progress("choosing a unit") as told:
        cycle = len(setup.photographs)
        names = [setup.photographs[i % cycle] for i in range(len(pictured))]
        unit = choose_unit(units(model, LAYER, pictured, photographs=names, progress=told))
    feature = cc.Feature(LAYER, unit.unit)
    if not as_json:
        say(
            f"{feature} of {MODEL}: {RULE}. Chosen on the training photographs, without looking at any circuit.\n"
            f"{unit.summary()}"
        )
        say_photographs(setup)
    recipe = dataclasses.replace(recipe, feature=str(feature))
    with progress("finding circuits, down to one that can be drawn whole") as told:
        path = cc.find_path(
            model,
            feature,
            train,
            criterion=recipe.criterion,
            drawable=True,
            seed=seed,
            progress=told,
            **criterion_options(recipe.options),
        )
    with progress("comparing criteria") as told:
        compared = [min(path, key=lambda one: abs(one.density - density)) for density in DENSITIES]
        densities = [one.density for one in compared]
        # Training the random ones, too, would take minutes. The controls of the last circuit are trained.
        random = []
        for one in compared:
            drawn_like = cc.find(model, feature, train, criterion="layer_random", like=one, kernels=len(one), seed=seed)
            random.append(cc.refit(model, drawn_like, train, seed=seed, progress=told))
        measured = evaluate_all(model, compared, held_out, fit=train, controls=random)
        of_path = map(partial(Row, recipe.criterion), densities, measured, compared)
        others = compare(
            model, feature, train, held_out, criteria=CRITERIA, densities=densities, seed=seed, progress=told
        )
        rows = ComparisonTable([*of_path, *others])
    table = write_comparison(rows, out, feature, setup)
    if not as_json:
        say(comparison_table(rows))
        say(f"{EXPLAINED}Those beside {recipe.criterion} are refitted, not trained.\n")
    with progress("choosing its constants") as told:
        found = with_best_constants(path[-1], setup, batch_size=16, seed=seed, told=told)
    circuit = with_recipe(found, recipe, setup)
    cc.save(circuit, out / "circuit.safetensors")
    with progress("measuring its controls") as told:
        controls = cc.controls(
            model,
            circuit,
            held_out,
            fit=train,
            draws=1,
            photographs=setup.held_out.photographs,
            seed=seed,
            progress=told,
        )
    with progress("drawing") as told:
        drawn = cc.diagram(
            model,
            circuit,
            images=pictured,
            held_out=held_out,
            fit=setup.fit,
            controls=controls,
            path=path[:-1],
            photographs=setup.held_out.photographs,
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
                "rows": table,
                "controls": controls.as_dict(),
                "caption": drawn.caption,
                "notes": list(drawn.document.meta.notes),
            }
        )
        return
    chosen = circuit.provenance["notes"][-1]
    say(f"A circuit by {recipe.criterion} that can be drawn whole. {chosen}")
    say(controls.summary())
    say(drawn.caption)
    for note in drawn.document.meta.notes:
        if note not in (chosen, *controls.notes):  # which are said already
            say(f"note: {note}")
    say_written(
        out,
        {
            "comparison.csv": "every figure",
            "comparison.png": "fidelity against density",
            "circuit.safetensors": f"the circuit; try: convcircuits show {out / 'circuit.safetensors'}, or "
            f"convcircuits controls {out / 'circuit.safetensors'} --descents 1",
            "circuit.html": "its diagram, and larger circuits of the descent; open it in a web browser",
        },
    )
    say(f"done in {time.monotonic() - start:.0f} s")
