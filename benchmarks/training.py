"""Measure training with the parts of a batch side by side, as a ratio to parts one after another, in one process.

The circuit has the 300 best effective kernels of a unit by SNIP, which are few enough to be drawn. Both ways alternate.
Figures are medians of elapsed time, with the lowest and highest in parentheses; below 1, side by side is faster. With
``OMP_WAIT_POLICY=passive``, as the command sets it, torch's threads keep no core busy while they wait.
"""

import argparse
import os
import statistics
import time

import torch

import convcircuits as cc
from convcircuits.circuits import learning
from convcircuits.circuits.learning import Learn, Training
from convcircuits.circuits.refitting import Refit
from convcircuits.circuits.scoring import MEMORY
from convcircuits.circuits.tracing import Trace
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.zoo.images import crops, sample_photographs
from convcircuits.zoo.models import load_model

STEPS, SIDE, KERNELS = 40, 80, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    loaded = load_model("vgg16_hed")
    feature = cc.Feature("features.14", 12)
    images = crops(sample_photographs(), loaded.preprocess, count=48, seed=0, size=(SIDE, SIDE))
    circuit = cc.find(loaded.model, feature, images, criterion="snip", kernels=KERNELS, effective=True)
    subject = Subject.open(Network(loaded.model), feature, tuple(images.shape[1:]))
    batches = Batches(images, device=images.device, dtype=images.dtype, batch_size=16)
    relevant = subject.relevant("kernel", subject.survey.input_shape)
    trace = Trace(subject, batches, relevant=relevant, seed=0, memory=MEMORY)
    masks = subject.masks(circuit, subject.survey.input_shape, effective=True)
    fit = Refit(subject, batches)
    settings = Training(STEPS, STEPS, rate=0.02, batch=8, rectified=0.5, tolerance=0.0, seed=0)
    most, start, took = learning._SIDE_BY_SIDE, fit(masks), dict[int, list[float]]()
    for _ in range(given.rounds + 1):  # the first one compiles loops
        for count in (1, most):
            learning._SIDE_BY_SIDE = count
            learn = Learn(trace, fit, settings)
            run = learn._runner(masks)
            begin = time.perf_counter()
            learn._trained(start, masks, run, STEPS, 0, 1.0)
            took.setdefault(count, []).append((time.perf_counter() - begin) / STEPS)
    alone, beside = took[1][1:], took[most][1:]
    ratios = [b / a for a, b in zip(alone, beside, strict=True)]
    print(f"threads: {torch.get_num_threads()}; OMP_WAIT_POLICY: {os.environ.get('OMP_WAIT_POLICY', 'not set')}")
    print(f"one after another: {1000 * statistics.median(alone):.1f} ms a step")
    print(f"side by side: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) of that")


if __name__ == "__main__":
    main()
