"""Smaller circuits that a diagram lays beside the one that it draws, found anew."""

import inspect

import torch
from torch import nn

from convcircuits.batches import Batches, Progress
from convcircuits.circuit import Circuit
from convcircuits.criteria import CRITERIA
from convcircuits.finding import find, needs_budget

PARTS = (2, 4, 8)
"""The smaller circuits keep a half, a quarter and an eighth of the units."""


def nested(circuit: Circuit) -> bool:
    """Return whether the first kernels by saliency are those that would be kept, were fewer asked for."""
    criterion = CRITERIA.get(str(circuit.provenance.get("criterion")))
    return circuit.granularity == "kernel" and (criterion is None or not needs_budget(criterion))


def smaller(model: nn.Module, circuit: Circuit, images: Batches, progress: Progress | None = None) -> list[Circuit]:
    """Find smaller circuits anew where an iterative criterion found this one: its rankings are not nested.

    On the images that it was found on, if images (in memory) begin with these. None otherwise, where its criterion or
    what that was given is not known by name and number, and none that keep less than one unit.
    """
    said = circuit.provenance
    criterion = CRITERIA.get(str(said.get("criterion")))
    options, found_on = said.get("options", {}), said.get("images", {})
    plain = all(isinstance(value, (str, int, float, bool)) for value in options.values())
    if criterion is None or not needs_budget(criterion) or not plain or "inside" in said:
        return []
    if options.keys() & inspect.signature(find).parameters.keys():
        return []  # of a criterion by another maker, or of a file that was changed
    first = images.take(range(min(int(found_on.get("count", 0)), images.total or 0)))
    held = list(first) if first.total else []
    if first.describe() != found_on:
        return []
    return [
        find(
            model,
            circuit.feature,
            torch.cat(held),
            criterion=str(said["criterion"]),
            kernels=len(circuit) // part,
            granularity=circuit.granularity,
            batch_size=images.batch_size,
            seed=int(said.get("seed", 0)),
            progress=progress,
            **options,
        )
        for part in PARTS
        if len(circuit) >= part
    ]
