"""Smaller circuits that a diagram lays beside the one that it draws, found anew."""

import inspect

import torch
from torch import Tensor, nn

from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.finding import find, needs_budget
from convcircuits.network.batches import Batches, Progress, begin
from convcircuits.values.circuit import Circuit

PARTS = (2, 4, 8)
"""The smaller circuits keep a half, a quarter and an eighth of the units."""


def nested(circuit: Circuit) -> bool:
    """Return whether the first kernels by saliency are those that would be kept, were fewer asked for."""
    criterion = CRITERIA.get(str(circuit.provenance.get("criterion")))
    return circuit.granularity == "kernel" and (criterion is None or not needs_budget(criterion))


def found_on(circuit: Circuit, images: Batches) -> Tensor | None:
    """Return the images that a circuit was found on, if images (in memory) begin with them."""
    said = circuit.provenance.get("images", {})
    first = images.take(range(min(int(said.get("count", 0)), images.total or 0)))
    held = list(first) if first.total else []
    return torch.cat(held) if held and first.describe() == said else None


def smaller(model: nn.Module, circuit: Circuit, images: Batches, progress: Progress | None = None) -> list[Circuit]:
    """Find smaller circuits anew where an iterative criterion found this one: its rankings are not nested.

    On the images that it was found on, if images (in memory) begin with these. None otherwise, where its criterion or
    what that was given is not known by name and number, and none that keep less than one unit.
    """
    said = circuit.provenance
    criterion = CRITERIA.get(str(said.get("criterion")))
    options = said.get("options", {})
    plain = all(isinstance(value, (str, int, float, bool)) for value in options.values())
    if criterion is None or not needs_budget(criterion) or not plain or "inside" in said:
        return []
    if options.keys() & inspect.signature(find).parameters.keys():
        return []  # of a criterion by another maker, or of a file that was changed
    first = found_on(circuit, images)
    if first is None:
        return []
    found = []
    for count in (len(circuit) // part for part in PARTS if len(circuit) >= part):
        begin(progress, f"finding {count:,} {circuit.granularity}s anew")
        found.append(
            find(
                model,
                circuit.feature,
                first,
                criterion=str(said["criterion"]),
                kernels=count,
                granularity=circuit.granularity,
                batch_size=images.batch_size,
                seed=int(said.get("seed", 0)),
                progress=progress,
                **options,
            )
        )
    return found
