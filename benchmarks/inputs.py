"""Measure how many of its inputs a filter needs: kernels, each with a gain, that together hold .9 of its own variance.

Each filter is taken alone, on the full model's inputs, so nothing before it is cut. Kernels are added one by one by
orthogonal matching pursuit, with gains fitted by least squares on the training photographs of ``fidelity.py``; R2 is
that of the filter's raw output on the test photographs. Filters are drawn by lot in every layer up to the one of that
benchmark. The image's own channels and depthwise layers, whose filters have one kernel each, are left out.

    python benchmarks/inputs.py --images gcompris:FOLDER
"""

import argparse
import random
import statistics
import warnings
from collections.abc import Iterator

import torch
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

import convcircuits as cc
import fidelity
from convcircuits.network.calls import ConvCall, KernelCall
from convcircuits.network.capture import Network
from convcircuits.zoo.images import photographs

FILTERS, POSITIONS, LEVEL = 16, 40, 0.9  # of a layer, of an image, R2


def needed(train: Tensor, test: Tensor) -> int:
    """Return how many of a filter's kernels hold ``LEVEL`` of its variance, all if they are too few.

    Args:
        train: What each kernel adds, (kernels, positions), float64.
        test: The same on the test photographs.
    """
    mean, spread = train.mean(1, keepdim=True), train.std(1, keepdim=True)
    varies = spread[:, 0] > 1e-6 * spread.max()
    fitted, held_out = (((one - mean) / spread)[varies] for one in (train, test))
    size = spread[varies, 0]  # the gains with which these add up to the filter's output
    products = (fitted @ fitted.T).numpy()
    with warnings.catch_warnings():  # once the kernels that are left add nothing
        warnings.filterwarnings("ignore", message="Orthogonal matching pursuit ended prematurely")
        gains = orthogonal_mp_gram(products, products @ size.numpy(), n_nonzero_coefs=len(size), return_path=True)
    output = size @ held_out
    missing = output[:, None] - held_out.T @ torch.from_numpy(gains.reshape(len(size), -1))
    enough = missing.square().sum(0) <= (1 - LEVEL) * (output - output.mean()).square().sum()
    return int(enough.long().argmax()) + 1 if bool(enough.any()) else len(train)


def maps(data: fidelity.Data, images: Tensor) -> dict[str, Tensor]:
    """Return what each kernel of some filters adds at some positions, (filters, kernels, positions), for each layer."""
    found = {}

    def compute(call: KernelCall) -> Tensor:
        if isinstance(call, ConvCall) and call.groups == 1 and call.x.shape[1] > images.shape[1]:
            lot, places = random.Random(0), range(call.positions)
            filters = lot.sample(range(len(call.weight)), min(FILTERS, len(call.weight)))
            positions = torch.tensor(lot.sample(places, min(POSITIONS, len(places))))
            inputs = call.columns(slice(None), positions)[:, 0].double()
            weight = call.weight[filters].flatten(2).double()
            found[call.layer] = torch.einsum("oik,nikp->oinp", weight, inputs).flatten(2)
        return call.compute()

    Network(data.model).run(cc.Feature(data.net.layer, 0), images, compute)
    return found


def measured(data: fidelity.Data) -> Iterator[tuple[str, int, float]]:
    """Yield name, number of kernels of a filter, and median of the number that it needs, of each layer."""
    with torch.no_grad():
        train, test = maps(data, data.train), maps(data, data.test)
    for layer, kernels in train.items():
        counts = [needed(*both) for both in zip(kernels, test[layer], strict=True)]
        yield layer, kernels.shape[1], statistics.median(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="sample", help="as in `convcircuits find`")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures, _ = photographs(given.images)
    print("| network | up to | layers | kernels of a filter | needed | share |\n| --- | --- | --- | --- | --- | --- |")
    for net in fidelity.NETS:
        layers = list(measured(fidelity.Data.of(net, pictures, (64, 56))))
        kernels, counts = (statistics.median(column) for column in list(zip(*layers, strict=True))[1:])
        share = statistics.median(count / all_ for _, all_, count in layers)
        row = f"{net.name} | {net.layer} | {len(layers)} | {kernels:.0f} | {counts:.0f} | {share:.0%}"
        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
