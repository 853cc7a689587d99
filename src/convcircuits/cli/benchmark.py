"""``convcircuits benchmark``: how well the library does where the answer is known."""

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.comparing import write_table
from convcircuits.cli.console import progress
from convcircuits.cli.output import check_writable, print_json, say

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

# The choices are written out because importing the library is slow. A test compares them with the library's.
NETS = ("plain", "leaky", "stitched", "compiled", "polysemantic")
_IMAGES = 1000  # seeds of images are others than those of networks
_SEVERAL = "The median over the networks of a kind, and the range."
_EXPLAINED = (
    "Each figure is 1 if all kernels of the truth rank above all others. If a ranking says nothing, AUROC is 0.5, and\n"
    "the others are about the truth's share of the kernels."
)


@app.callback()
def benchmark() -> None:
    """Measure how well circuits are found where they are known."""


@app.command(epilog=options.CRITERIA_HELP)
def truth(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="CSV file for the figures of every network; those of groups are in NAME-groups.csv beside it.",
            show_default="none is written",
        ),
    ] = None,
    nets: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="Kinds of networks with a planted circuit.")
    ] = ",".join(NETS),
    criteria: options.CriteriaOption = ",".join(options.CRITERION_OPTIONS),
    option: options.OptionByCriterion = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of networks of each kind.")] = 5,
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Number of images that circuits are found on.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Seed of criteria that draw random numbers.")] = 0,
    batch_size: options.BatchOption = 16,
    as_json: options.JsonOption = False,
) -> None:
    """Compare criteria on small networks whose circuits are known."""
    from convcircuits.circuits.truth import Case, Recoveries, recover
    from convcircuits.subfeatures.grouping import FEWEST
    from convcircuits.subfeatures.recovery import recover_groups
    from convcircuits.texts import number
    from convcircuits.values.tables import suggest
    from convcircuits.zoo.planted import KINDS
    from convcircuits.zoo.planted.mechanisms import Polysemantic

    check_writable("--out", out, ".csv")
    kinds, names = ([name.strip() for name in text.split(",")] for text in (nets, criteria))
    for kind in kinds:
        if kind not in KINDS:
            raise cc.ConvCircuitsError(f"There is no kind of network {kind!r}. {suggest(kind, KINDS)}")
    chosen, rows = options.by_criterion(option or [], names), Recoveries()
    divided: list[dict[str, Any]] = []
    with progress("finding planted circuits") as told:
        for kind in kinds:
            for n in range(seeds):
                planted = KINDS[kind](n)
                images = planted.images(count, seed=_IMAGES + n)
                case = Case(kind, n, planted.model, planted.feature, images, planted.truths)
                rows += recover(case, criteria=names, options=chosen, seed=seed, batch_size=batch_size)
                if isinstance(planted, Polysemantic) and count >= FEWEST:
                    labelled = planted.labelled_images(count, seed=_IMAGES + n)
                    found = recover_groups(
                        planted.model, planted.feature, *labelled, planted.mechanisms, batch_size=batch_size, seed=seed
                    )
                    divided.append({"seed": n, "mechanisms": len(planted.mechanisms), **asdict(found)})
                told(len(rows), len(kinds) * seeds * len(names))
    table = [row.as_dict() for row in rows]
    written = [] if out is None else [out]
    if out is not None:
        write_table(out, table)
        if divided:
            write_table(groups := out.with_stem(f"{out.stem}-groups"), [_flat(row) for row in divided])
            written.append(groups)
    if as_json:
        print_json({"count": count, "seed": seed, "options": option or [], "rows": table, "divided": divided})
        return
    say(rows.summary())
    say(_EXPLAINED if seeds == 1 else f"{_SEVERAL}\n{_EXPLAINED}")
    if divided:
        aris, ious = [row["ari"] for row in divided], [iou for row in divided for iou in row["iou"]]
        say(
            f"The images of {number(len(aris), 'unit')} of several mechanisms, grouped by how they are computed. "
            f"Adjusted Rand index with the mechanisms {_spread(aris)}; IoU of each group's own circuit, found by "
            f"progressive, with its mechanism's: {_spread(ious)}."
        )
    for path in written:
        say(f"wrote {path}")


def _flat(divided: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table of groups, with one number in a cell."""
    ious = divided["iou"]
    return divided | {"iou": statistics.mean(ious), "least_iou": min(ious)}


def _spread(values: list[float]) -> str:
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"
