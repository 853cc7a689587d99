"""Measure the cost of refits and descents in forward and backward passes of the same model and images, in one process.

VGG16 (vgg16_hed), features.14, 100 crops of the sample photographs at 112 px. A pass is one forward of all images up to
the feature and one backward to the image. Times are CPU times, which other programs disturb little. A ratio is the
median of several rounds, each timed beside a pass; a descent runs once, between two passes. The last rows compare runs
with gains with runs without.

    OMP_NUM_THREADS=1 python benchmarks/descents.py --learned --out benchmarks/DESCENTS.md    # about an hour
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import convcircuits as cc
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.zoo.images import crops, sample_photographs, split_photographs
from convcircuits.zoo.models import load_model

FEATURE, SIZE = cc.Feature("features.14", 166), 112


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def ratios(run: Callable[[], object], beside: Callable[[], object], rounds: int) -> str:
    found = [seconds(run) / seconds(beside) for _ in range(rounds)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--learned", action="store_true", help="also measure criterion learned, which takes long")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    loaded = load_model("vgg16_hed")
    train, _ = split_photographs(sample_photographs(), held_out=0.3, seed=0)
    images = crops(train, loaded.preprocess, count=given.images, seed=0, size=(SIZE, SIZE))
    model = loaded.model
    subject = Subject.open(Network(model), FEATURE, tuple(images.shape[1:]))
    lines = [
        "# What refits and descents cost",
        "",
        f"Written by `python benchmarks/descents.py`. {torch.get_num_threads()} thread(s), torch "
        f"{torch.__version__.split('+')[0]}, Python {platform.python_version()}. VGG16",
        f"(vgg16_hed), {FEATURE.layer}:{FEATURE.unit}, {given.images} crops at {SIZE} px. CPU time, in passes: one",
        "forward of all images up to the feature and one backward to the image. Medians of "
        f"{given.rounds} rounds, with minimum and maximum.",
        "",
        "| what | passes |",
        "| --- | --- |",
    ]
    print("\n".join(lines), flush=True)

    def row(what: str, figure: str) -> None:
        lines.append(f"| {what} | {figure} |")
        print(lines[-1], flush=True)

    def one_pass() -> None:
        for some in torch.split(images, 16):
            some = some.clone().requires_grad_()
            torch.autograd.grad(subject.maps(some).square().sum(), some)

    one_pass()  # the first is slower
    five = cc.find(model, FEATURE, images, criterion="snip", density=0.05)  # without gains
    row("`refit` of a circuit of 5 %", ratios(lambda: cc.refit(model, five, images), one_pass, given.rounds))
    for density in (1.0, 0.05, 0.01):
        inside = cc.prune(cc.score(model, FEATURE, images, criterion="snip"), density=density)
        in_circuit = {"circuit": inside, "criterion": "gauss_newton", "centered": True}
        taken = ratios(lambda how=in_circuit: cc.score(model, FEATURE, images, **how), one_pass, given.rounds)
        row(f"Gauss-Newton scores inside {density:.0%} of the kernels", taken)
    for criterion in ("progressive", *(["learned"] if given.learned else [])):
        before, start = seconds(one_pass), time.process_time()
        first, *_, last = cc.find_path(model, FEATURE, images, criterion=criterion, density=0.0025)
        taken, after = time.process_time() - start, seconds(one_pass)
        path = f"`{criterion}` from {100 * first.density:.3g} % to .25 %"
        row(path, f"{2 * taken / (before + after):.0f}; images run: {last.provenance['cost']}")
    lines += ["", "| run | with gains, in runs without |", "| --- | --- |"]
    print("\n".join(lines[-3:]), flush=True)
    calibrated = cc.refit(model, five, images)
    for name, run in (
        ("masked", lambda circuit: lambda: cc.activations(model, FEATURE, images, circuit=circuit)),
        ("module", lambda circuit: (lambda small: lambda: small(images))(cc.extract(model, circuit))),
    ):
        with torch.no_grad():
            row(name, ratios(run(calibrated), run(five), given.rounds))
    if given.out:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
