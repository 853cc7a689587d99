"""Write what ``atlas_findings.py`` measured as a page, with a chart and the maps of the units beside it."""

import io
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from convcircuits.files import write_whole

FINDINGS = Path(__file__).with_name("atlas_findings.md")
COLORS = ("#c2570c", "#0072b2", "#009e73", "#5b3a9e", "#56b4e9", "#999999")


@dataclass(frozen=True)
class Case:
    """A layer, the side of the images in pixels, and the density of the circuits."""

    key: str
    net: str
    layer: str
    side: int
    density: float
    title: str

    @property
    def name(self) -> str:
        """What files of this case are called."""
        return f"{self.net}-{self.layer}"


LABELS = {
    "The circuits": {
        "median_r2_interior": "R² inside, median",
        "median_r2": "R² over all positions",
        "median_r2_random_interior": "R² inside of random circuits of equal size",
        "median_r2_average_map": "R² of the average map",
        "mean_overlap": "overlap of two units' circuits, mean",
    },
    "Overlap and maps": {
        "overlap_maps": "overlap of circuits, with the correlation of maps",
        "mixed_maps": "the same with the units in random order",
        "crossed_maps": "the same, circuits of different photographs",
        "weights_maps": "cosine of the units' own weights, with the correlation of maps",
        "read_maps": "likeness of the channels that the units read, with the correlation of maps",
        "overlap_less_weights": "overlap less cosine",
        "overlap_less_read": "overlap less likeness of channels",
        "overlap_maps_given_weights": "overlap, with cosine and channels held fixed",
        "crossed_maps_given_weights": "the same, circuits of different photographs",
        "weights_maps_given_overlap": "cosine, with overlap and channels held fixed",
        "overlap_read": "overlap with likeness of channels",
        "shared_variance": "variance of a map that the map common to all explains, median",
        "overlap_special": "overlap, with the correlation of what is left without it",
        "weights_special": "cosine, with the correlation of what is left",
        "overlap_special_given_weights": "overlap, with cosine and channels held fixed, of what is left",
        "overlap_signed": "overlap with the signed correlation of maps",
        "negative_of_most": "pairs of negative correlation, of the 5 % with the most overlap",
        "negative_of_all": "of all",
    },
    "One unit on other photographs": {
        "same_unit": "overlap of a unit's circuits on two sets of photographs",
        "others_unit": "overlap of two units' circuits on two sets",
        "ratio": "their ratio",
        "named": "units whose circuit on other photographs is closest to their own",
    },
    "Another unit's kernels": {
        "swapped": "units",
        "swap_own": "R² inside with the unit's own circuit",
        "swap_alike": "with the lower layers of the unit most alike",
        "swap_drawn": "of a unit drawn by lot",
        "swap_common": "of the kernels that most others keep, as many in each layer",
        "swap_large": "of the largest kernels (weights times what the channel carries), as many in each layer",
        "swap_random": "of random kernels, as many in each layer",
        "swap_alike_less": "most alike, less own",
        "swap_drawn_less": "drawn, less own",
        "swap_common_less": "most kept, less own",
        "swap_large_less": "largest, less own",
        "swap_own_specific": "R² of what is left without the map common to all: own",
        "swap_alike_specific": "most alike",
        "swap_drawn_specific": "drawn",
        "swap_common_specific": "most kept",
        "swap_common_specific_less": "most kept, less own",
        "swap_large_specific": "largest",
        "swap_random_specific": "random",
        "swap_own_effective": "effective kernels, median: own",
        "swap_common_effective": "most kept",
        "swap_overlap": "overlap with the loss of R², rank correlation",
    },
    "Kernels that serve many units": {
        "of_most_used": "kernels of circuits that are among the 1 % of kernels kept most",
        "of_half": "kernels that at least half of the circuits keep",
        "unused": "kernels that no circuit keeps",
        "hub_norm": "surplus of users with the size of a kernel's weights, median of layers",
        "hub_reach": "with weights times what the channel carries",
        "hub_by_filter": "share of the variance of users that the filter explains",
        "hub_by_channel": "that the channel explains",
    },
    "Families": {
        "families": "families by the highest silhouette",
        "largest_family": "units of the largest",
        "families_maps": "correlation of maps inside families, less that between",
        "families_maps_mixed": "the same with the units in random order",
        "rand_maps_8": "8 families of circuits and 8 of maps, adjusted Rand index",
        "rand_again_8": "8 families of circuits on two sets of photographs",
        "rand_mixed_8": "8 families, units in random order",
        "rand_maps_20": "20 families of circuits and 20 of maps",
        "rand_again_20": "20 families of circuits on two sets",
        "rand_mixed_20": "20 families, units in random order",
    },
    "Another criterion": {
        "criteria_units": "units",
        "same_criteria": "overlap of a unit's circuits by gauss_newton and by snip",
        "same_again": "by gauss_newton on two sets of photographs",
        "criteria_pairs": "overlaps of pairs by the two criteria, rank correlation",
        "again_pairs": "overlaps of pairs on the two sets",
    },
    "Which units are kept": {
        "r2_positive": "R² inside with the share of positions above 0",
        "r2_positive_given": "the other three held fixed",
        "r2_average_map": "with R² of the average map",
        "r2_average_map_given": "the other three held fixed",
        "r2_overlap": "with the mean overlap with the other units",
        "r2_overlap_given": "the other three held fixed",
        "r2_channels": "with the number of channels that the unit reads",
        "r2_channels_given": "the other three held fixed",
    },
}
VERDICTS = ("keeps", "keeps in part", "does not keep")
WHOLE = ("families", "largest_family", "criteria_units", "swapped", "swap_own_effective", "swap_common_effective")


def shown(name: str, value: Sequence[float]) -> str:
    """Return a figure with its interval as text."""
    if name in WHOLE:
        return f"{value[0]:,.0f}"
    first, *ends = (_figure(one) for one in value)
    return f"{first} ({ends[0]} to {ends[1]})" if ends else first


def _figure(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:z.2f}".replace("-", "−")
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def filled(text: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """Replace ``{vgg.overlap_maps}`` by the figure with its interval, ``{vgg.overlap_maps:}`` by the figure alone.

    Raises:
        KeyError: If there is no such figure.
    """

    def figure(match: re.Match[str]) -> str:
        case, name, alone = match.groups()
        value = records[case]["figures"][name]
        return shown(name, value[:1] if alone else value)

    return re.sub(r"\{(\w+)\.(\w+)(:?)\}", figure, text)


def page(cases: Sequence[Case], records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page."""
    first = records[cases[0].key]
    asked, about = first["asked"], first["about"]
    parts = [
        "# What do the circuits of a layer share?",
        "`python benchmarks/atlas_findings.py gcompris:FOLDER` measures this, version "
        f"{asked['version']}. [`atlas`][convcircuits.atlas] finds a\ncircuit for each unit of a layer, by "
        f"`{asked['criterion']}` with {about['draws']} draws, on {asked['images']['count']} photographs of "
        f"[GCompris](../howto/images.md), and\nmeasures it on {asked['held_out']['count']} of other subjects.",
        _table(
            ["layer", "units", "px", "kernels of a circuit", "of", "map of its units"],
            [
                [
                    case.title,
                    f"{records[case.key]['about']['units']} of {records[case.key]['about']['of']}",
                    f"{case.side}",
                    f"{records[case.key]['about']['kernels']:,.0f}",
                    f"{records[case.key]['about']['relevant']:,.0f}",
                    f"[open](atlas-{case.key}.html)",
                ]
                for case in cases
            ],
        ),
        "![What circuits share: overlap and correlation of maps; overlap in each layer; R² with the kernels of\n"
        "others; R² and activity](atlas.webp)",
        filled(FINDINGS.read_text().strip(), records) if FINDINGS.exists() else "",
        "## All figures\n\n"
        "Correlations are rank correlations. Intervals are 95 %, over units drawn again (for pairs, both units are);\n"
        f"those of random orders are where 95 % of {about['shuffles']} orders lie. Overlap is IoU, corrected for\n"
        "chance; the units' own layer takes no part, nor do layers that all circuits keep whole.\n"
        "Correlations of maps, and cosines, are without their sign unless\n"
        "said otherwise; maps are compared on "
        f"{about['photographs']} held-out photographs, where no padding reaches.\n"
        f"Units are computed by others' kernels on {about['beside']} of them.",
    ]
    for title, names in LABELS.items():
        figures = [records[case.key]["figures"] for case in cases]
        rows = [[label, *(shown(name, one[name]) for one in figures)] for name, label in names.items()]
        if title == "The circuits":
            rows += _verdicts([records[case.key]["page"]["units"] for case in cases])
        parts.append(f"### {title}\n\n" + _table(["", *(case.title for case in cases)], rows))
    parts.append(
        "## Layers\n\n*Same*: overlap of a unit's circuits on two sets of photographs. *Others*: of two units'.\n"
        "*Named*: share of units whose circuit is closest to their own on the other set, by this layer alone.\n"
        "*Weights*, *reach*: rank correlation of a kernel's surplus of users with the size of its weights, and with\n"
        "that times the size of what its channel carries; without intervals, since units drawn again are fewer, and\n"
        "their users less correlated with anything. *Filter*, *channel*: share of the variance of users that the\n"
        "kernel's filter and channel explain, and in brackets that of shuffled kernels."
    )
    for case in cases:
        rows = []
        density = {row["layer"]: row["density"] for row in records[case.key]["profile"]}  # also of layers left out
        for row in records[case.key]["layers"]:
            cells = [shown(name, row[name]) for name in ("same", "others", "named")]
            cells += [shown(name, row[name][:1]) for name in ("norm", "reach")]
            by = [[shown("", row[f"by_{one}{end}"]) for end in ("", "_mixed")] for one in ("filter", "channel")]
            pairs = [f"{own} ({mixed})" for own, mixed in by]
            rows.append([f"`{row['layer']}`", f"{100 * density[row['layer']]:.0f} %", *cells, *pairs])
        heads = ["layer", "density", "same", "others", "named", "weights", "reach", "filter", "channel"]
        parts.append(f"### {case.title}\n\n" + _table(heads, rows))
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdicts(units: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Return a row for each verdict: how many of the circuits of each layer it is on."""
    counts = [Counter(one["verdict"] for one in some) for some in units]
    return [[f"circuits of which the verdict is: {word}", *(f"{one[word]}" for one in counts)] for word in VERDICTS]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def chart(cases: Sequence[Case], records: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw four panels for each layer."""
    figure = Figure(figsize=(12.5, 3.3 * len(cases)), layout="constrained")
    panels = figure.subplots(len(cases), 4, squeeze=False)
    for row, case in zip(panels, cases, strict=True):
        _draw(row, case, records[case.key])
    content = io.BytesIO()
    figure.savefig(content, dpi=130)
    Image.open(content).save(path, "webp", quality=90)


def _draw(row: Any, case: Case, found: Mapping[str, Any]) -> None:
    pairs, layers, swaps, units = row
    middle, low, mid, high = zip(*found["bins"], strict=True)
    pairs.fill_between(middle, low, high, color=COLORS[1], alpha=0.2, linewidth=0)
    pairs.plot(middle, mid, "o-", color=COLORS[1], markersize=3.5, linewidth=1.4)
    pairs.set(xlabel="overlap of two circuits", ylabel=f"{case.title}\n\ncorrelation of their maps")
    places = range(len(found["layers"]))
    for name, color, label in (("same", COLORS[0], "one unit, other photographs"), ("others", COLORS[1], "two units")):
        values = [one[name] for one in found["layers"]]
        layers.plot(places, [one[0] for one in values], "o-", color=color, markersize=3.5, linewidth=1.4, label=label)
        layers.fill_between(
            places, *zip(*(one[1:] for one in values), strict=True), color=color, alpha=0.2, linewidth=0
        )
    layers.set_xticks(list(places), [one["layer"] for one in found["layers"]], rotation=90, fontsize=7)
    layers.set(ylabel="overlap", ylim=(0, None))
    layers.legend(frameon=False, fontsize=8)
    names = {
        "own": "own",
        "alike": "most\nalike",
        "drawn": "drawn",
        "common": "most\nkept",
        "large": "largest",
        "random": "random",
    }
    dice = random.Random(0)
    for place, (name, color) in enumerate(zip(names, COLORS, strict=True)):
        values = [max(-1.0, one[name]) for one in found["swaps"]]
        across = [place + dice.uniform(-0.15, 0.15) for _ in values]
        swaps.plot(across, values, "o", color=color, alpha=0.4, markersize=3.5)
        swaps.plot(place, float(np.median(values)), "_", color=color, markersize=18, mew=2)
    swaps.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    swaps.set_xticks(range(len(names)), list(names.values()), fontsize=7)
    swaps.set(ylabel="R² inside (cut off below −1)", xlabel="whose kernels in the lower layers")
    known = [one for one in found["units"] if one["r2_interior"] is not None]
    units.plot(
        [100 * one["positive"] for one in known],
        [max(-1.0, one["r2_interior"]) for one in known],
        "o",
        color=COLORS[3],
        alpha=0.4,
        markersize=3.5,
    )
    units.set(xlabel="positions above 0 (%)", ylabel="R² inside of the unit's circuit")
    for panel in row:
        panel.spines[["top", "right"]].set_visible(False)


def write(every: Sequence[Case], folder: Path, out: Path | None) -> None:
    """Print the page, or write it with its chart beside it. The documentation adds the maps of units."""
    files = {case.key: folder / f"{case.name}.json" for case in every}
    records = {key: json.loads(file.read_text()) for key, file in files.items() if file.exists()}
    cases = [case for case in every if case.key in records]
    text = page(cases, records)
    if out is None:
        print(text)
        return
    chart(cases, records, out.with_suffix(".webp"))
    write_whole(out, text.encode())
