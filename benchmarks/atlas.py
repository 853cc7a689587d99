"""Measure what it costs to score all units of a layer at once, against one forward and backward pass for each.

The yardstick is ``loss.backward()`` of one unit with weight gradients, at batch size 8, on the model cut off after the
layer; it is measured before and after each criterion. Figures are CPU time of one thread, which a busy machine hardly
changes. Weights and images are random: the figures do not depend on their values. With fewer units than a layer has,
more of the shared work falls on each.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn
from torchvision import models

import convcircuits as cc
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.together import fitting, score_together
from convcircuits.network.batches import Batches
from convcircuits.network.masking import Subject

CASES = {
    "vgg16": ("VGG16 conv3_3", "features.14", 112, lambda: models.vgg16(weights=None), 15),
    "alexnet": ("AlexNet features.10", "features.10", 224, lambda: models.alexnet(weights=None), 11),
}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), default="vgg16")
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--criteria", default=",".join(WAYS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, layer, side, build, cut = CASES[given.case]
    model = build().eval()
    truncated, images = model.features[:cut], torch.randn(given.images, 3, side, side)
    yardstick(truncated, images[:8])  # warm
    print(f"{name}, {given.units} units, {given.images} images of {side} px, torch {torch.__version__}, one thread")
    print("criterion      forward + backward   scoring a unit   ratio   units at once")
    for criterion in given.criteria.split(","):
        before = cpu_seconds(lambda: yardstick(truncated, images))
        at_once = 0

        def run(criterion: str = criterion) -> None:
            nonlocal at_once
            at_once = together(model, layer, given.units, images, criterion)

        taken = cpu_seconds(run) / given.units
        once = min(before, cpu_seconds(lambda: yardstick(truncated, images)))
        print(f"{criterion:<14} {once:>16.3f} s {taken:>14.3f} s {taken / once:>7.2f} {at_once:>15}", flush=True)


if __name__ == "__main__":
    main()
