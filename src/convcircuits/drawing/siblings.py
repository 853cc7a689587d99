"""Circuits that a diagram lays beside the one that it draws: a random one of its size, and smaller ones found anew."""

import inspect
from collections.abc import Sequence

import torch
from torch import nn

from convcircuits.batches import Batches
from convcircuits.circuit import Circuit
from convcircuits.criteria import CRITERIA
from convcircuits.finding import find, needs_budget

PARTS = (2, 4, 8)
"""The smaller circuits keep a half, a quarter and an eighth of the units."""

_APART = 1_000_003  # from the seed of a circuit that was itself drawn at random


def random_like(model: nn.Module, circuit: Circuit, shape: Sequence[int], seed: int) -> Circuit:
    """Draw as many kernels in each layer at random."""
    parameter = next(model.parameters())
    image = torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype)
    return find(
        model,
        circuit.feature,
        image,
        criterion="layer_random",
        kernels=len(circuit),
        granularity=circuit.granularity,
        seed=seed + _APART,
        like=circuit,
    )


def nested(circuit: Circuit) -> bool:
    """Tell whether the first kernels by saliency are those that would be kept, were fewer asked for."""
    criterion = CRITERIA.get(str(circuit.provenance.get("criterion")))
    return circuit.granularity == "kernel" and (criterion is None or not needs_budget(criterion))


def smaller(model: nn.Module, circuit: Circuit, images: Batches) -> list[Circuit]:
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
            **options,
        )
        for part in PARTS
        if len(circuit) >= part
    ]
