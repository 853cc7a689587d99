"""Find the mechanisms of planted units: the curve over leak, and how often one mechanism is called several.

Each unit is written to a file when it ends, so the benchmark can be stopped and goes on from there.

    python benchmarks/mechanisms.py                 # measure what is missing, and write the page
    python benchmarks/mechanisms.py --only-write    # the page, from what is there
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

import convcircuits as cc
from convcircuits.subfeatures.grouping import two_groups_p_value
from convcircuits.subfeatures.recovery import recover_groups
from convcircuits.subfeatures.saliencies import image_saliencies
from convcircuits.zoo.planted import planted_images, polysemantic

RECORDS = Path(__file__).parent / "records" / "mechanisms.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "mechanisms.md"
LEAKS = (0.0, 0.1, 0.3, 1.0, 3.0)
SEVERAL, ONE = 8, 200  # planted units at each leak, and with one mechanism
CHOSEN_ON = 120  # units with one mechanism, by seed, on which the share of ``driven`` was chosen
IMAGES, ALPHA, LEVELS = 60, 0.05, (0.01, 0.05, 0.1, 0.2)


def cases() -> Iterator[dict[str, Any]]:
    """Yield every unit: its number of mechanisms, its leak and its seed."""
    for leak in LEAKS:
        yield from ({"mechanisms": 2, "leak": leak, "seed": seed} for seed in range(SEVERAL))
    for random in (False, True):
        yield from ({"mechanisms": 1, "leak": 0.0, "seed": seed, "random": random} for seed in range(ONE))


def measured(case: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one unit as JSON values."""
    planted = polysemantic(case["seed"], mechanisms=case["mechanisms"], leak=case["leak"])
    figures: dict[str, Any] = {}
    try:
        images, labels = planted.labelled_images(IMAGES, seed=1000 + case["seed"])
        if case.get("random"):
            images = planted_images(IMAGES, seed=1000 + case["seed"])
        saliencies = image_saliencies(planted.model, planted.feature.at_maximum(), images)
        driven = saliencies.driven  # the images that split divides
        figures["driven"] = int(driven.sum())
        figures["p_value"] = two_groups_p_value(saliencies.of(driven).layers, np.arange(figures["driven"]), seed=0)
        if case["mechanisms"] > 1:
            figures |= asdict(recover_groups(planted.model, planted.feature, images, labels, planted.mechanisms))
    except cc.ConvCircuitsError as error:
        figures["problem"] = str(error)
    return figures


def share(found: Sequence[dict[str, Any]], level: float = ALPHA) -> str:
    """Return how many units are called several, with the 95 % interval of the share (Wilson)."""
    if not found:
        return "–"
    hits = sum(one["p_value"] <= level for one in found)
    interval = binomtest(hits, len(found)).proportion_ci(method="wilson")
    return f"{hits} of {len(found)} ({interval.low:.1%} to {interval.high:.1%})"


def spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}; {len(values)})"


def page(records: Sequence[dict[str, Any]]) -> str:
    """Return the page as Markdown."""
    lines = [
        "# Are the mechanisms of a unit found?",
        "",
        "`python benchmarks/mechanisms.py` measures this on [planted units](../howto/known-circuits.md), whose",
        f"mechanisms are known, at {IMAGES} images each. *Leak* is the size of what each mechanism's filters read of",
        "the others' channels and of distractors, relative to their own. Groups are those of",
        "[`split`][convcircuits.split] without its tests; a circuit is found on each group's images alone, at the size",
        "of its mechanism's. With leak, kernels outside of the truth matter, too: at 1.0 as much as the truth's, so a",
        "circuit of this size rightly keeps some of them. Figures are medians, ranges and how many were measured.",
        "",
        "## Two mechanisms",
        "",
        f"| leak | adjusted Rand index | held-out accuracy | IoU of circuits | p at most {ALPHA} (95 % interval) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for leak in LEAKS:
        some = [one for one in records if (one["mechanisms"], one["leak"]) == (2, leak)]
        cells = [spread([one[name] for one in some if name in one]) for name in ("ari", "accuracy")]
        ious = spread([value for one in some for value in one.get("iou", [])])
        if some:
            lines.append(
                f"| {leak} | {' | '.join(cells)} | {ious} | {share([one for one in some if 'p_value' in one])} |"
            )
    problems = [f"{one['problem']} (leak {one['leak']}, seed {one['seed']})" for one in records if "problem" in one]
    if problems:
        lines += ["", "Not measured:", "", *(f"- {problem}" for problem in problems)]
    lines += [
        "",
        "## One mechanism",
        "",
        "How often the test for two groups has a p of at most some level, on units with one mechanism. Of the images,",
        "those that drive the unit are tested, as in `split`: at least 5 % of its highest response.",
        "",
        f"| images | {' | '.join(f'at most {level}' for level in LEVELS)} |",
        f"| --- |{' --- |' * len(LEVELS)}",
    ]
    for random, what in ((False, "that the mechanism drives"), (True, "random")):
        single = [one for one in records if one["mechanisms"] == 1 and one["random"] == random and "p_value" in one]
        if single:
            driven = statistics.median(one["driven"] for one in single)
            shares = " | ".join(share(single, level) for level in LEVELS)
            lines.append(f"| {what} ({driven:g} drive the unit, median) | {shares} |")
    others = [one for one in records if one["mechanisms"] == 1 and one["seed"] >= CHOSEN_ON and "p_value" in one]
    apart = ", ".join(
        f"{share([one for one in others if one['random'] == random])} of {what}"
        for random, what in ((False, "the former"), (True, "the latter"))
    )
    lines += [
        "",
        f"The 5 % were chosen on the first {CHOSEN_ON} seeds, from 0, 2, 5, 10 and 20 %. On the others p is at most",
        f"{ALPHA} in {apart}. `split` also asks that circuits of the groups are selective.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RECORDS, help="where figures are kept")
    parser.add_argument("--out", type=Path, default=PAGE, help="Markdown file to write")
    parser.add_argument("--only-write", action="store_true", help="measure nothing")
    given = parser.parse_args()
    records = [json.loads(line) for line in given.records.read_text().splitlines()] if given.records.exists() else []
    for case in () if given.only_write else cases():
        if any(case.items() <= one.items() for one in records):
            continue
        records.append(case | measured(case))
        with given.records.open("a") as file:
            file.write(json.dumps(records[-1]) + "\n")
        print(records[-1], flush=True)
    given.out.write_text(page(records))


if __name__ == "__main__":
    main()
