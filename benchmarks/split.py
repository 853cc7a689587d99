"""Measure the saliencies of single images and ``split`` as ratios to one forward and backward pass of the same images.

VGG16 (vgg16_hed), a unit of conv4_2, crops at 112 px, of which those of one photograph count as one, batches of 16,
one process. Every figure is timed, in CPU time of all threads, right after a plain forward and backward pass of the
truncated model. Memory is the process's peak, with the model and all images.

    python benchmarks/split.py --images gcompris:FOLDER --count 1000
    python benchmarks/split.py --images gcompris:FOLDER --count 1000 --only "split in two"
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import convcircuits as cc
from convcircuits.subfeatures.saliencies import image_saliencies
from convcircuits.zoo.images import crops, photographs
from convcircuits.zoo.models import load_model

LAYER, DEPTH, SIZE, BATCH = "features.19", 20, 112, 16


def seconds(run: Callable[[], object]) -> float:
    """Return the CPU time of a run, which a machine that is shared hardly changes."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="sample")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--unit", type=int, default=198)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", action="append", metavar="FIGURE", help="measure only this; repeatable")
    given = parser.parse_args()
    loaded = load_model("vgg16_hed")
    found, _ = photographs(given.images)
    images = crops(found, loaded.preprocess, count=given.count, seed=0, size=(SIZE, SIZE))
    crops_of = [found[n % len(found)].subject for n in range(given.count)]
    truncated, feature = loaded.model.features[:DEPTH], cc.Feature(LAYER, given.unit, position="max")

    def both() -> None:
        for batch in images.split(BATCH):
            truncated(batch.clone().requires_grad_())[:, given.unit].sum().backward()

    def split(**options: Any) -> cc.Split:
        return cc.split(loaded.model, feature, images, photographs=crops_of, batch_size=BATCH, **options)

    measured: dict[str, Callable[[], object]] = {
        "saliencies of single images": lambda: image_saliencies(loaded.model, feature, images, batch_size=BATCH),
        "split, tests": lambda: print(split().verdict_sentence),
        "split in two": lambda: split(groups=2, shuffles=0),
    }
    if unknown := set(given.only or ()) - measured.keys():
        parser.error(f"--only names {', '.join(sorted(unknown))}; the figures are {', '.join(measured)}")
    measured = {name: run for name, run in measured.items() if not given.only or name in given.only}
    ratios: dict[str, list[float]] = {name: [] for name in measured}
    passes = []
    for _ in range(given.rounds):
        for name, run in measured.items():
            passes.append(seconds(both))
            ratios[name].append(seconds(run) / passes[-1])
    print(f"one forward and backward pass of {given.count} images: {statistics.median(passes):.1f} s of CPU time")
    for name, found in ratios.items():
        print(f"{name}: {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}) passes")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
