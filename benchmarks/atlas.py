"""Measure what it costs to score all units of a layer at once, against one forward and backward pass for each.

The yardstick is ``loss.backward()`` of one unit with weight gradients, at batch size 8, on the model cut off after the
layer; it is measured before and after each criterion, and criteria take turns. Figures are CPU time of one thread,
which other work on the machine changes less than elapsed time. Weights and images are random: the figures do not
depend on their values. With fewer units than a layer has, more of the shared work falls on each.

With ``--sizing`` it says what atlases cost in hours of one core: it scores units of VGG16 conv3_3 and measures some of
their circuits, and converts both, as multiples of forward and backward, to all convolutions of ResNet-50 at 224 px.
"""

import argparse
import contextlib
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision import models

import convcircuits as cc
from convcircuits.atlases.making import FIT, Asked, measure, open_layer
from convcircuits.atlases.unit_maps import held_at_once
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.together import fitting, score_together
from convcircuits.network.batches import Batches
from convcircuits.network.masking import Subject

CASES = {  # what it is called, the layer, pixels, the model, where it is cut off, units
    "alexnet": ("AlexNet features.10", "features.10", 224, lambda: models.alexnet(weights=None), 11, 256),
    "vgg16": ("VGG16 conv3_3", "features.14", 112, lambda: models.vgg16(weights=None), 15, 64),
}
AUTHORS = 1.76  # seconds that the code of the paper's authors takes for a unit and an image of AlexNet features.10
WAYS = {"actgrad": {}, "snip": {}, "gauss_newton": {"draws": 1}}
MEMORY = 4 * 2**20


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def yardstick(truncated: nn.Module, images: torch.Tensor) -> None:
    for batch in images.split(8):
        truncated(batch)[:, 9].abs().sum().backward()


def together(model: nn.Module, layer: str, units: int, images: torch.Tensor, criterion: str) -> int:
    """Score units as ``atlas`` does; return how many at once."""
    first = Subject.open(model, cc.Feature(layer, 0), images.shape[1:])
    subjects = [first.of(cc.Feature(layer, unit)) for unit in range(units)]
    batches = Batches(images, device=images.device, dtype=images.dtype, batch_size=16)
    at_once, count = fitting(first.of(cc.Feature(layer, range(units))), batches, MEMORY)
    for start in range(0, units, at_once):
        score_together(
            subjects[start : start + at_once],
            batches.in_batches_of(count),
            CRITERIA[criterion],
            granularity="kernel",
            seed=0,
            memory=MEMORY,
            **WAYS[criterion],
        )
    return at_once


def measuring(
    model: nn.Module, layer: str, units: int, images: torch.Tensor, held_out: torch.Tensor
) -> tuple[float, float]:
    """Return the seconds that a unit takes beside scoring, and those of the full model, which runs for many at once.

    Their circuits of 5 % are measured as ``atlas`` does it.
    """
    circuits = [cc.find(model, cc.Feature(layer, n), images[:2], criterion="snip", density=0.05) for n in range(units)]
    size = {"density": 0.05, "kernels": None}
    opened = open_layer(model, layer, images, held_out, Asked("snip", size=size))
    measure(opened, (circuits[0], "", 0.0))  # warm
    again = opened.holding(range(256))
    full = cpu_seconds(lambda: again.full.of(circuits[0].feature))
    return cpu_seconds(lambda: [measure(again, (circuit, "", 0.0)) for circuit in circuits]) / units, full


class Reached(BaseException):
    """Stop a forward pass."""


def once_at(model: nn.Module, layers: dict[str, int], image: torch.Tensor) -> dict[str, float]:
    """Return the seconds of one forward and backward pass of an image up to each of some layers."""
    seconds = {}
    for name in layers:

        def stop(module: nn.Module, given: object, output: torch.Tensor) -> None:
            output[:, 0].abs().sum().backward()
            raise Reached

        def run() -> None:
            with contextlib.suppress(Reached):
                model(image)

        handle = model.get_submodule(name).register_forward_hook(stop)
        seconds[name] = cpu_seconds(run)
        handle.remove()
    return seconds


@dataclass(frozen=True)
class Costs:
    """What a unit costs for each image, in forward and backward passes up to its layer.

    Attributes:
        scoring: To score it.
        measuring: To measure its circuit and the random one, on images and held-out images.
        full: To run the full model on them.
    """

    scoring: float
    measuring: float
    full: float


def core_hours(
    units: dict[str, int],
    once: dict[str, float],
    images: int,
    held_out: int,
    costs: Costs,
    *,
    map_bytes: int | None = None,
) -> float:
    """Return the hours of one core that circuits of all units of some layers take.

    Args:
        units: Layer -> number of its units.
        once: Layer -> seconds of a forward and a backward pass of one image up to it.
        images: Number of images that circuits are found on.
        held_out: Number of images that they are measured on.
        costs: What a unit costs, in such passes.
        map_bytes: Bytes of a unit's map, if one process measures all units and so runs the full model once for many.
            None: it runs for each, as on a large cluster.
    """
    measured_on = min(images, FIT) + held_out
    together = 1 if map_bytes is None else held_at_once(map_bytes, measured_on, MEMORY)
    runs = {layer: math.ceil(count / together) for layer, count in units.items()}
    passes = {
        layer: count * (costs.scoring * images + costs.measuring * measured_on) + runs[layer] * costs.full * measured_on
        for layer, count in units.items()
    }
    return sum(once[layer] * passes[layer] for layer in units) / 3600


def sizing(units: int, count: int) -> None:
    """Print the tables of the guide to clusters."""
    name, layer, side, build, cut, _ = CASES["vgg16"]
    model = build().eval()
    truncated, images = model.features[:cut], torch.randn(count, 3, side, side)
    held_out = torch.randn(count, 3, side, side)
    yardstick(truncated, images[:8])  # warm
    once = min(cpu_seconds(lambda: yardstick(truncated, images)) for _ in range(2)) / count
    scoring = cpu_seconds(lambda: together(model, layer, units, images, "gauss_newton")) / units / count
    seconds, full = measuring(model, layer, 3, images, held_out)
    once = min(once, cpu_seconds(lambda: yardstick(truncated, images)) / count)
    costs = Costs(scoring / once, *(one / (2 * count) / once for one in (seconds, full)))
    print(f"{name} at {side} px, {units} units, {count} and {count} images, torch {torch.__version__}, one thread")
    print(f"an image takes {once:.3f} s forward and backward; a unit takes {costs.scoring:.2f} of that to score")
    print(f"(gauss_newton, one draw) and {costs.measuring:.2f} to measure its circuit and the random one;")
    print(f"the full model, which runs for many units at once, takes {costs.full:.2f}")
    print("images + held-out   units per core-hour   all 256 units, core-hours")
    for some, others in ((100, 100), (1000, 200), (5000, 500)):
        hours = core_hours({layer: 256}, {layer: once}, some, others, costs, map_bytes=side**2 // 4)
        print(f"{f'{some} + {others}':>17} {256 / hours:>21.0f} {hours:>27.1f}")
    resnet = models.resnet50(weights=None).eval()
    layers = {name: module.out_channels for name, module in resnet.named_modules() if isinstance(module, nn.Conv2d)}
    image = torch.randn(1, 3, 224, 224)
    resnet(image)  # warm
    hours = core_hours(layers, once_at(resnet, layers, image), 5000, 500, costs)
    print(f"ResNet-50 at 224 px: {len(layers)} convolutions, {sum(layers.values())} units, 5000 + 500 images:")
    print(f"{hours:.0f} core-hours, that is {hours / 24 / 1000:.1f} days on 1000 cores")


def rows(case: str, units: int | None, count: int, rounds: int) -> list[str]:
    """Return the rows of the table for one layer."""
    name, layer, side, build, cut, most = CASES[case]
    units = units or most
    model = build().eval()
    truncated, images = model.features[:cut], torch.randn(count, 3, side, side)
    yardstick(truncated, images[:8])  # warm
    together(model, layer, 2, images[:1], "actgrad")
    ratios: dict[str, list[float]] = {criterion: [] for criterion in WAYS}
    seconds: dict[str, list[float]] = {criterion: [] for criterion in WAYS}
    at_once = dict.fromkeys(WAYS, 0)
    for _ in range(rounds):
        for criterion in WAYS:
            before = cpu_seconds(lambda: yardstick(truncated, images))

            def run(criterion: str = criterion) -> None:
                at_once[criterion] = together(model, layer, units, images, criterion)

            taken = cpu_seconds(run) / units
            ratios[criterion].append(taken / min(before, cpu_seconds(lambda: yardstick(truncated, images))))
            seconds[criterion].append(taken / count)
    lines = []
    for criterion, found in ratios.items():
        spread = f"**{statistics.median(found):.2f}x** ({min(found):.2f}-{max(found):.2f})"
        each = statistics.median(seconds[criterion])
        faster = f"{AUTHORS / each:.0f}x" if case == "alexnet" else "–"
        about = f"| {name} | {units} | {count} | {criterion} | {spread} | {1000 * each:.0f} ms | {faster} |"
        lines.append(f"{about} {at_once[criterion]} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this layer")
    parser.add_argument("--units", type=int, help="number of units")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--sizing", action="store_true", help="what atlases cost in core-hours")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if given.sizing:
        sizing(given.units or 24, given.images)
        return
    lines = [
        "# All units of a layer at once",
        "",
        "Written by `make bench`: what scoring a unit costs if all units of a layer are scored together, as `cc.atlas`",
        "does it. Ratios are to one forward pass and `loss.backward()` of the same images for one unit (with weight",
        "gradients, batch 8), in CPU time of one thread; medians, with minimum and maximum in parentheses. *Faster* is",
        f"the {AUTHORS} s in which the code of the paper's authors scored a unit on an image, divided by this time.",
        f"Rounds: {given.rounds}. torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}.",
        "",
        "| model, layer | units | images | criterion | one unit, in such passes | unit and image | faster | at once |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in given.case or CASES:
        lines += rows(case, given.units, given.images, given.rounds)
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
