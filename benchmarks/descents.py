"""Measure the cost of refits and descents in forward and backward passes of the same model and images, in one process.

VGG16 (vgg16_hed), features.14, 100 crops of the sample photographs at 112 px. A pass is one forward of all images up to
the feature and one backward to the image. The ratio of a refit is the median of several rounds, each timed beside a
pass; a descent runs once, between two passes. The last lines compare runs with gains with runs without.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import convcircuits as cc
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.zoo.images import crops, sample_photographs, split_photographs
from convcircuits.zoo.models import load_model

FEATURE, SIZE = cc.Feature("features.14", 166), 112


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratios(run: Callable[[], object], beside: Callable[[], object], rounds: int) -> str:
    found = [seconds(run) / seconds(beside) for _ in range(rounds)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--learned", action="store_true", help="also measure criterion learned, which takes long")
    given = parser.parse_args()
    loaded = load_model("vgg16_hed")
    train, _ = split_photographs(sample_photographs(), held_out=0.3, seed=0)
    images = crops(train, loaded.preprocess, count=given.images, seed=0, size=(SIZE, SIZE))
    model = loaded.model
    subject = Subject.open(Network(model), FEATURE, tuple(images.shape[1:]))

    def one_pass() -> None:
        for some in torch.split(images, 16):
            some = some.clone().requires_grad_()
            torch.autograd.grad(subject.maps(some).square().sum(), some)

    five = cc.find(model, FEATURE, images, criterion="snip", density=0.05)  # without gains
    print(f"refit of 5 %: {ratios(lambda: cc.refit(model, five, images), one_pass, given.rounds)} passes")
    for density in (1.0, 0.05, 0.01):
        inside = cc.prune(cc.score(model, FEATURE, images, criterion="snip"), density=density)
        in_circuit = {"circuit": inside, "criterion": "gauss_newton", "centered": True}
        taken = ratios(lambda how=in_circuit: cc.score(model, FEATURE, images, **how), one_pass, given.rounds)
        print(f"Gauss-Newton scores inside {density:.0%} of the kernels: {taken} passes")
    for criterion in ("progressive", *(["learned"] if given.learned else [])):
        before, start = seconds(one_pass), time.perf_counter()
        first, *_, last = cc.find_path(model, FEATURE, images, criterion=criterion, density=0.0025)
        taken, after = time.perf_counter() - start, seconds(one_pass)
        cost = last.provenance["cost"]
        passes = 2 * taken / (before + after)
        print(f"{criterion} from {100 * first.density:.3g} % to .25 %: {passes:.1f} passes; images run: {cost}")
    calibrated = cc.refit(model, five, images)
    for name, run in (
        ("masked", lambda circuit: lambda: cc.activations(model, FEATURE, images, circuit=circuit)),
        ("module", lambda circuit: (lambda small: lambda: small(images))(cc.extract(model, circuit))),
    ):
        with torch.no_grad():
            print(f"{name} run with gains / without: {ratios(run(calibrated), run(five), given.rounds)}")


if __name__ == "__main__":
    main()
