"""Measure ``top`` and ``units`` of a whole layer as ratios to one forward pass up to that layer, in one process.

VGG16 (vgg16_hed), features.14, crops of the sample photographs at 112 px, batches of 16. Every figure is timed right
after a plain pass of the truncated model. Figures are medians, with the lowest and highest in parentheses.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import convcircuits as cc
from convcircuits.zoo.images import crops, sample_photographs
from convcircuits.zoo.models import load_model

LAYER, UNITS, SIZE, BATCH = "features.14", 256, 112, 16


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=256)
    given = parser.parse_args()
    loaded = load_model("vgg16_hed")
    images = crops(sample_photographs(), loaded.preprocess, count=given.images, seed=0, size=(SIZE, SIZE))
    truncated = loaded.model.features[:15]

    def forward() -> None:
        with torch.no_grad():
            for batch in images.split(BATCH):
                truncated(batch)

    measured = {
        "top, one unit": lambda: cc.top(loaded.model, cc.Feature(LAYER, 166), images, batch_size=BATCH),
        "top, all units": lambda: cc.top(loaded.model, cc.Feature(LAYER, range(UNITS)), images, batch_size=BATCH),
        "units": lambda: cc.units(loaded.model, LAYER, images, batch_size=BATCH),
    }
    forward()
    ratios: dict[str, list[float]] = {name: [] for name in measured}
    passes = []
    for _ in range(given.rounds):
        for name, run in measured.items():
            passes.append(seconds(forward))
            ratios[name].append(seconds(run) / passes[-1])
    print(f"one forward pass of {given.images} images: {statistics.median(passes):.1f} s")
    for name, found in ratios.items():
        print(f"{name}: {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}) passes")


if __name__ == "__main__":
    main()
