"""Measure speed and memory as ratios to one plain forward and backward pass of the same truncated model.

The yardstick is ``loss.backward()`` with weight gradients at batch size 8. It alternates with the measured code,
because machines drift. Figures are medians. Weights and images are random: the figures do not depend on their values,
apart from the sparsity of the gradients.
"""

import argparse
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision import models

import convcircuits as cc


@dataclass(frozen=True)
class Case:
    """A model truncated after the feature's layer, and the number of images to score."""

    name: str
    layer: str
    images: int
    build: Callable[[], tuple[nn.Module, nn.Module]]


def alexnet() -> tuple[nn.Module, nn.Module]:
    model = models.alexnet(weights=None).eval()
    return model, model.features[:11]


def resnet18() -> tuple[nn.Module, nn.Module]:
    m = models.resnet18(weights=None).eval()
    block = m.layer3[0]

    class Truncated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Sequential(m.conv1, m.bn1, m.relu, m.maxpool, m.layer1, m.layer2)
            self.block = nn.Sequential(block.conv1, block.bn1, block.relu, block.conv2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(self.before(x))

    return m, Truncated()


def vgg11() -> tuple[nn.Module, nn.Module]:
    model = models.vgg11(weights=None).eval()
    return model, model.features[:14]


CASES = [
    Case("AlexNet features.10", "features.10", 16, alexnet),
    Case("ResNet18 layer3.0.conv2", "layer3.0.conv2", 8, resnet18),
    Case("VGG11 features.13", "features.13", 2, vgg11),
]
UNIT = 9


def yardstick(truncated: nn.Module, images: torch.Tensor) -> None:
    for batch in images.split(8):
        truncated(batch)[:, UNIT].abs().sum().backward()


def seconds(run: Callable[[], object]) -> float:
    """Return the time of a run, and of all the work that it leaves to a GPU."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def machine(device: str) -> str:
    """Return what runs on a device: the card, or the number of cores."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{os.cpu_count()} cores"


def measure(
    case: Case,
    criteria: dict[str, Callable[[nn.Module, cc.Feature, torch.Tensor], object]],
    rounds: int,
    device: str = "cpu",
):
    torch.manual_seed(0)
    model, truncated = (module.to(device) for module in case.build())
    images = torch.randn(case.images, 3, 224, 224).to(device)
    feature = cc.Feature(case.layer, UNIT)
    ratios: dict[str, list[float]] = {name: [] for name in criteria}
    base = []
    yardstick(truncated, images)
    for run in criteria.values():
        run(model, feature, images[:1])
    for _ in range(rounds):
        for name, run in criteria.items():
            one = seconds(lambda: yardstick(truncated, images))
            base.append(one)
            ratios[name].append(seconds(lambda run=run: run(model, feature, images)) / one)
    return statistics.median(base), ratios


def peak_memory(case_name: str, what: str, images: int) -> float:
    """Return the peak resident memory of a fresh process, in MiB."""
    out = subprocess.run(
        [sys.executable, __file__, "--peak", case_name, what, str(images)], check=True, capture_output=True, text=True
    )
    return float(out.stdout)


def peak(case_name: str, what: str, images: int) -> None:
    import resource

    case = next(c for c in CASES if c.name == case_name)
    torch.manual_seed(0)
    model, truncated = case.build()
    x = torch.randn(images, 3, 224, 224)
    gc.collect()
    if what == "yardstick":
        yardstick(truncated, x)
    else:
        cc.score(model, cc.Feature(case.layer, UNIT), x, criterion=what, batch_size=8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


CRITERIA = {
    "actgrad": lambda m, f, x: cc.score(m, f, x, criterion="actgrad", batch_size=8),
    "snip": lambda m, f, x: cc.score(m, f, x, criterion="snip", batch_size=8),
    "gauss_newton": lambda m, f, x: cc.score(m, f, x, criterion="gauss_newton", batch_size=8),
    "force (T = 10)": lambda m, f, x: cc.find(m, f, x, criterion="force", density=0.1, batch_size=8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=None, help="criteria to measure")
    parser.add_argument("--peak", nargs=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--device", default="cpu", help="such as cuda; memory is measured on the CPU")
    options = parser.parse_args()
    if options.peak:
        peak(options.peak[0], options.peak[1], int(options.peak[2]))
        return
    criteria = {n: c for n, c in CRITERIA.items() if options.only is None or n.split()[0] in options.only}
    lines = [
        "# Speed and memory",
        "",
        "Written by `make bench`. Times are relative to one plain forward pass and `loss.backward()` (with weight",
        "gradients, batch 8) of the same model, truncated after the feature's layer. The two alternate. Cells show the",
        "median, with minimum and maximum in parentheses. All that `cc.score` and `cc.find` do is included: finding",
        "the relevant kernels, hashing, ranking.",
        f"{machine(options.device)}, torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}.",
        "",
        "| model, feature | images | one forward + backward | " + " | ".join(criteria) + " |",
        "| --- | --- | --- | " + " | ".join("---" for _ in criteria) + " |",
    ]
    for case in CASES:
        base, ratios = measure(case, criteria, options.rounds, options.device)
        cells = [f"**{statistics.median(r):.2f}x** ({min(r):.2f}-{max(r):.2f})" for r in ratios.values()]
        lines.append(f"| {case.name} | {case.images} | {base:.2f} s | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if not options.no_memory:
        lines += [
            "",
            "Peak memory of a fresh process, for criteria beyond the forward + backward (VGG11 features.13, batch 8):",
            "",
            "| images | forward + backward | actgrad | snip | gauss_newton |",
            "| --- | --- | --- | --- | --- |",
        ]
        for count in (8, 32):
            base_mib = peak_memory("VGG11 features.13", "yardstick", count)
            cells = [
                f"{peak_memory('VGG11 features.13', what, count) - base_mib:+.0f} MiB"
                for what in ("actgrad", "snip", "gauss_newton")
            ]
            lines.append(f"| {count} | {base_mib:.0f} MiB | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if options.out:
        notes = options.out.with_name("NOTES.md")
        options.out.write_text(text + ("\n" + notes.read_text() if notes.exists() else ""))
    else:
        print(text)


if __name__ == "__main__":
    main()
