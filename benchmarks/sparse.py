"""Measure convolutions of the kept kernels alone, forward and backward, as ratios to the plain layer in one process.

Kernels are 3 x 3 or 1 x 1, drawn at random; there are 8 images. Both layers take slopes of the images; the plain one
also those of its weights, the sparse one those of its gains, as in training. The two alternate. Figures are medians of
CPU time, with the lowest and highest in parentheses; below 1, the sparse layer is faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from convcircuits.compiler.sparse import SparseConv2d

LAYERS = ((64, 64, 112, 3), (128, 128, 56, 3), (256, 256, 28, 3), (512, 512, 20, 3), (256, 64, 40, 1), (64, 256, 40, 1))
SHARES = (0.3, 0.2, 0.1, 0.06, 0.02, 0.01)


def seconds(run: Callable[[], object]) -> float:
    """Return the CPU time of a run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def ratios(channels: int, filters: int, side: int, kernel: int, share: float, rounds: int) -> list[float]:
    """Return the time of the sparse layer in multiples of that of the plain one, round by round."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(filters, channels, generator=generator) < share
    plain = nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
    with torch.no_grad():
        plain.weight.mul_(kept[:, :, None, None])
    sparse = SparseConv2d(plain, kept)
    images = torch.randn(8, channels, side, side, generator=generator, requires_grad=True)

    def both_ways(layer: nn.Module, values: Tensor) -> None:
        output = layer(images)
        torch.autograd.grad(output, [images, values], torch.ones_like(output))

    both_ways(sparse, sparse.gains)  # compiles the loops
    return [
        seconds(lambda: both_ways(sparse, sparse.gains)) / seconds(lambda: both_ways(plain, plain.weight))
        for _ in range(rounds)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| channels, filters, side, kernel | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
    print("| --- |" + " --- |" * len(SHARES))
    for layer in LAYERS:
        cells = []
        for share in SHARES:
            found = ratios(*layer, share, given.rounds)
            cells.append(f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})")
        print(f"| {', '.join(map(str, layer))} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
