"""Measure the cost of checking the laws relative to a score: in one process, alternating, with medians.

Weights and images are random: 16 images of 224 x 224, scored with the default criterion. The first score of a feature
includes the check, later ones do not.
"""

import argparse
import statistics
import time

import torch
from torchvision import models

import convcircuits as cc
from convcircuits.network import laws

CASES = [("alexnet", "features.10"), ("resnet18", "layer3.1.conv2")]
UNIT = 9


def seconds(model: torch.nn.Module, feature: cc.Feature, images: torch.Tensor) -> float:
    start = time.perf_counter()
    cc.score(model, feature, images)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for name, layer in CASES:
        torch.manual_seed(0)
        model, images = getattr(models, name)(weights=None).eval(), torch.randn(16, 3, 224, 224)
        feature, shares, plain, checks = cc.Feature(layer, UNIT), [], [], []
        real = laws._check

        def timed(*given, real=real, checks=checks):
            start = time.perf_counter()
            result = real(*given)
            checks.append(time.perf_counter() - start)
            return result

        laws._check = timed
        for _ in range(rounds):
            laws._passed.clear()
            seconds(model, feature, images)
            plain.append(seconds(model, feature, images))
            shares.append(checks[-1] / plain[-1])
        laws._check = real
        print(
            f"{name} {layer}: a score {statistics.median(plain):.2f} s, the check {statistics.median(checks):.3f} s, "
            f"{statistics.median(shares):.1%} of it ({min(shares):.1%} to {max(shares):.1%})"
        )


if __name__ == "__main__":
    main()
