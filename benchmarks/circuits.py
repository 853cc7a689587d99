"""Measure how fast circuits run: extracted modules, and the evaluation of a sweep, against one plain forward pass.

The yardstick is a forward pass of the same model, truncated after the feature's layer, with all of its filters. It runs
in the same process and alternates with the measured code, because machines drift. That of a sweep runs with 16 images
at once and with two, and the quicker counts: allocating large maps anew took a quarter of the time. Figures are
medians. VGG16 has real weights and photographs; AlexNet and ResNet18 have random ones, so that nothing is downloaded.
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

import convcircuits as cc
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.zoo.images import crops, sample_photographs, split_photographs
from convcircuits.zoo.models import load_model
from speed import machine, seconds

DENSITIES = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01, 0.005, 0.001]
BATCH = 16
MANY = 128  # images for which what a sweep costs once, whatever it measures, hardly counts


class ResNet18ToLayer3(nn.Module):
    """ResNet18 up to layer3.1.conv2."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        m, block = model, model.layer3[1]
        self.before = nn.Sequential(m.conv1, m.bn1, m.relu, m.maxpool, m.layer1, m.layer2, m.layer3[0])
        self.block = nn.Sequential(block.conv1, block.bn1, block.relu, block.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's maps."""
        return self.block(self.before(x))


def in_turn(runs: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Time several functions, alternating between them."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(rounds):
        for run, taken in zip(runs, times, strict=True):
            taken.append(seconds(run))
    return times


def ratios(numerator: list[float], denominator: list[float]) -> str:
    each = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return f"**{statistics.median(each):.2f}x** ({min(each):.2f}-{max(each):.2f})"


def macs(run: Callable[[Tensor], object], image: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(image)
    return counter.get_total_flops() / 2


def extracted(
    name: str, model: nn.Module, truncated: nn.Module, feature: cc.Feature, images: Tensor, criterion: str, rounds: int
) -> str:
    """Time the module of a 5 % circuit and the full model. Return a row of the table."""
    circuit = cc.find(model, feature, images, criterion=criterion, density=0.05)
    small = cc.extract(model, circuit)
    last = truncated.eval()
    with torch.no_grad():
        full, fast = in_turn([lambda: last(images), lambda: small(images)], rounds)
        in_last = images.contiguous(memory_format=torch.channels_last)
        (full_last,) = in_turn([lambda: last(in_last)], rounds)
    less = macs(last, images[:1]) / macs(small, images[:1])
    also = statistics.median(full_last) / statistics.median(fast)
    cells = [name, criterion, f"{statistics.median(full):.2f} s", ratios(full, fast), f"{less:.2f}x", f"{also:.2f}x"]
    return f"| {' | '.join(cells)} |"


def sweep(
    name: str,
    model: nn.Module,
    truncated: nn.Module,
    feature: cc.Feature,
    images: Tensor,
    criterion: str,
    rounds: int,
    *,
    refitted: bool,
) -> str:
    """Time the evaluation of 13 circuits and the quicker forward pass. Return a row of the table."""
    scores = cc.score(model, feature, images, criterion=criterion)
    circuits = [cc.prune(scores, density=density) for density in DENSITIES]
    if refitted:
        circuits = [cc.refit(model, circuit, images) for circuit in circuits]

    def masked() -> None:
        for circuit in circuits:
            cc.activations(model, feature, images, circuit=circuit)

    def plain(together: int) -> None:
        for some in images.split(together):
            truncated(some)

    with torch.no_grad():
        *ones, whole, by_masks = in_turn(
            [
                lambda: plain(BATCH),
                lambda: plain(2),
                lambda: evaluate_all(model, circuits, images, controls=[None] * len(circuits)),
                masked,
            ],
            rounds,
        )
    one = min(ones, key=statistics.median)
    alive = sum(bool(r.effective_kernels) for r in evaluate_all(model, circuits, images[:2]))
    how = f"{criterion}, refitted" if refitted else criterion
    cells = [name, how, f"{statistics.median(one):.2f} s", f"{alive}", ratios(whole, one), ratios(by_masks, one)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="such as cuda")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = options.device
    noise = torch.randn(BATCH, 3, 224, 224).to(device)
    alexnet, resnet18 = (build(weights=None).eval().to(device) for build in (models.alexnet, models.resnet18))
    loaded = load_model("vgg16_hed")
    train, _ = split_photographs(sample_photographs())
    photographs = crops(train, loaded.preprocess, count=BATCH, seed=0, size=(224, 224)).to(device)
    layer3 = ("ResNet18 layer3.1.conv2", resnet18, ResNet18ToLayer3(resnet18), cc.Feature("layer3.1.conv2", 9), noise)
    conv5 = ("AlexNet features.10", alexnet, alexnet.features[:11], cc.Feature("features.10", 9), noise)
    vgg16 = loaded.model.to(device)
    conv3 = ("VGG16 conv3_3 (real)", vgg16, vgg16.features[:15], cc.Feature("features.14", 166), photographs)
    lines = [
        "# How fast circuits run",
        "",
        f"Written by `make bench`. Batch {BATCH}, {torch.get_num_threads()} threads, {machine(device)}, torch "
        f"{torch.__version__.split('+')[0]}, Python {platform.python_version()};",
        "medians, with minimum and maximum in parentheses.",
        "",
        "The extracted module of a 5 % circuit, compared with the full model truncated after the feature's layer:",
        "",
        "| model, feature | criterion | full model | module faster by | fewer multiplications by | "
        "faster than the full model in channels-last by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case, criterion in ((layer3, "gauss_newton"), (conv3, "gauss_newton"), (conv3, "snip"), (conv3, "force")):
        lines.append(extracted(*case, criterion, options.rounds))
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Evaluation at {len(DENSITIES)} densities (the full model, all circuits and all figures, but no random",
        "circuits), in forward passes of the full model, 16 images at once or two, whichever is quicker:",
        "",
        "| model, feature | criterion | one forward | circuits alive | evaluate_all | as masked runs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    many = (f"AlexNet features.10, {MANY} images", *conv5[1:4], torch.randn(MANY, 3, 224, 224).to(device))
    sweeps = (
        (conv5, "gauss_newton", False),
        (conv5, "snip", False),
        (many, "gauss_newton", False),
        (many, "snip", False),
        (conv3, "gauss_newton", False),
        (conv3, "gauss_newton", True),
    )
    for case, criterion, refitted in sweeps:
        lines.append(sweep(*case, criterion, options.rounds, refitted=refitted))
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if options.out:
        notes = options.out.with_name("CIRCUITS_NOTES.md")
        options.out.write_text(text + ("\n" + notes.read_text() if notes.exists() else ""))


if __name__ == "__main__":
    main()
