"""Measure the options of refits and of training: ridge, signs, positions, weights, rectified share and tolerance.

The units are among those on which the methods were developed, and which no benchmark of them uses. Circuits are found
on photographs of some subjects and measured on those of others. Every figure is written to a record when it is there,
so the script can be stopped and goes on where it stood. It takes about a quarter of an hour of one core:

    python benchmarks/refit_options.py --images gcompris:FOLDER
    python benchmarks/refit_options.py --only-write

``docs/images`` says how to get the photographs.
"""

import argparse
import json
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import convcircuits as cc
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.files import write_whole
from convcircuits.zoo.images import Crops, photographs, split_photographs
from convcircuits.zoo.models import LoadedModel, load_model

ROOT = Path(__file__).parents[1]
MODEL, SIDE, TRAIN, TEST = "vgg16_hed", 112, 32, 48
REFITS = {"features.7": 24, "features.14": 12}
"""Layers and units whose 5 % circuit is refitted."""
TRAINED = ("features.7", 24)
"""The unit whose circuits are trained: a descent from 10 % to 2 %."""
DESCENT: dict[str, Any] = {"density": [0.1, 0.05, 0.02], "start": 0.1, "ratio": 0.5, "final": 240}


def refits(maps: Tensor) -> dict[str, dict[str, Any]]:
    """Return the refits to compare, by name: what they change of the defaults."""
    spread, highest = maps.flatten(1).var(1), maps.flatten(1).amax(1).clamp_min(0)
    return {
        "defaults": {},
        "ridge 0": {"ridge": 0.0},
        "ridge .001": {"ridge": 0.001},
        "ridge .1": {"ridge": 0.1},
        "ridge 1": {"ridge": 1.0},
        "toward 0": {"toward": 0.0},
        "no gain below 0": {"positive": True},
        "ridge 0, no gain below 0": {"ridge": 0.0, "positive": True},
        "1,000 positions": {"positions": 1000},
        "3,000 positions": {"positions": 3000},
        "30,000 positions": {"positions": 30_000},
        "weights: variance of the map": {"weights": spread},
        "weights: maximum of the map": {"weights": highest},
    }


TRAININGS: dict[str, dict[str, Any]] = {
    "tolerance .1": {"tolerance": 0.1},
    "tolerance .03": {"tolerance": 0.03},
    "tolerance 0": {"tolerance": 0.0},
    "tolerance 0, rectified 0": {"tolerance": 0.0, "rectified": 0.0},
    "tolerance 0, rectified 1": {"tolerance": 0.0, "rectified": 1.0},
    "tolerance .03, gains of any sign": {"positive": False},
}


def seconds() -> float:
    """Return the seconds of processor time so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def figures(loaded: LoadedModel, circuits: list[cc.Circuit], images: tuple[Tensor, Tensor]) -> list[dict[str, Any]]:
    """Measure circuits on held-out and on training photographs."""
    held_out, training = (
        evaluate_all(loaded.model, circuits, some, controls=[None] * len(circuits)) for some in reversed(images)
    )
    return [
        {
            "kernels": len(circuit),
            "r2": one.r2,
            "rectified": one.r2_rectified,
            "training": other.r2,
            "cost": circuit.provenance["cost"],
        }
        for circuit, one, other in zip(circuits, held_out, training, strict=True)
    ]


def measured(
    loaded: LoadedModel, images: tuple[Tensor, Tensor], done: dict[str, Any]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield what is not done yet: a name and its figures."""
    for name, options in TRAININGS.items():
        key = f"learned|{TRAINED[0]}:{TRAINED[1]}|{name}"
        if key not in done:
            start = seconds()
            feature = cc.Feature(*TRAINED)
            path = cc.find_path(loaded.model, feature, images[0], criterion="learned", **DESCENT | options)
            took = seconds() - start
            yield key, [row | {"seconds": took} for row in figures(loaded, list(path), images)]
    for layer, unit in REFITS.items():
        feature = cc.Feature(layer, unit)
        chosen = refits(cc.activations(loaded.model, feature, images[0]))
        keys = {name: f"refit|{layer}:{unit}|{name}" for name in chosen}
        if all(key in done for key in keys.values()):
            continue
        bare = cc.find(loaded.model, feature, images[0], criterion="gauss_newton", density=0.05, draws=2)
        circuits = [cc.refit(loaded.model, bare, images[0], **options) for options in chosen.values()]
        rows = figures(loaded, [bare, *circuits], images)
        yield f"refit|{layer}:{unit}|not refitted", rows[:1]
        for key, row in zip(keys.values(), rows[1:], strict=True):
            yield key, [row]


def page(record: dict[str, Any]) -> str:
    """Return the page of what is in the record."""
    parts = [
        "# Options of refits and training\n\n"
        f"How much the options of `refit` and of `learned` matter: on {MODEL} at {SIDE} px, found and fitted on\n"
        f"{TRAIN} photographs, R² measured on {TEST} photographs of other subjects. The units are among those\n"
        "on which the methods were developed, and are in no other benchmark. They are few, so differences\n"
        "of a few hundredths say little. Written by `benchmarks/refit_options.py`.\n"
    ]
    for layer, unit in REFITS.items():
        rows = [
            [name, *(f"{row[0][figure]:.3f}" for figure in ("r2", "rectified", "training"))]
            for name, row in _under(record, f"refit|{layer}:{unit}|")
        ]
        if rows:
            parts.append(f"## Refits of {layer}:{unit}\n\nThe 5 % circuit by `gauss_newton`, refitted by `kernels`.\n")
            parts.append(_table(["refit", "R²", "rectified", "training photographs"], rows))
    rows = []
    for name, path in _under(record, f"learned|{TRAINED[0]}:{TRAINED[1]}|"):
        sizes = [f"{row['kernels']}: {row['r2']:.3f} ({row['rectified']:.3f})" for row in path]
        rows.append([name, *sizes, f"{path[-1]['training']:.3f}"])
        cost = path[-1]["cost"]
        rows[-1] += [f"{cost.get('trained', 0) + cost.get('polished', 0):,}", f"{path[-1]['seconds']:.0f}"]
    if rows:
        heads = ["training", *(f"circuit {n}" for n in range(1, len(rows[0]) - 3)), "training photographs"]
        parts.append(
            f"## Training of {TRAINED[0]}:{TRAINED[1]}\n\nA descent by `learned` from 10 % to 2 % of the kernels,\n"
            f"with 60 steps after a cut and {DESCENT['final']} at the end. Each circuit: kernels, R² and, in\n"
            "parentheses, R² of the rectified map; then R² of the last one on the training photographs,\n"
            "images run in training, and seconds of one core for the whole descent.\n"
        )
        parts.append(_table([*heads, "images in training", "seconds"], rows))
    return "\n".join([*parts, (Path(__file__).parent / "refit_options_findings.md").read_text()])


def _under(record: dict[str, Any], beginning: str) -> list[tuple[str, Any]]:
    return [(key.removeprefix(beginning), rows) for key, rows in record.items() if key.startswith(beginning)]


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="sample", help="as in `convcircuits find`")
    parser.add_argument("--record", type=Path, default=ROOT / "benchmarks" / "records" / "refit_options.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "refit_options.md")
    parser.add_argument("--only-write", action="store_true", help="measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(given.record.read_text()) if given.record.exists() else {}
    if not given.only_write:
        loaded = load_model(MODEL)
        train, others = split_photographs(photographs(given.images)[0], held_out=0.45, seed=0)
        for some in (train, others):
            random.Random(0).shuffle(some)
        images = tuple(
            torch.cat(list(Crops(some, loaded.preprocess, count=count, seed=0, size=(SIDE, SIDE))))
            for some, count in ((train, TRAIN), (others, TEST))
        )
        for key, rows in measured(loaded, images, record):
            record[key] = rows
            write_whole(given.record, json.dumps(record, indent=1).encode())
            print(f"{key}: {rows[-1]['r2']:.3f} ({seconds():.0f} s)", flush=True)
    given.out.write_text(page(record))


if __name__ == "__main__":
    main()
