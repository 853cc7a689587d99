"""Circuits that a diagram lays beside the one that it draws: a random one of its size, and smaller ones found anew."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convcircuits.circuit import Circuit
from convcircuits.criteria import CRITERIA
from convcircuits.finding import find, needs_budget

PARTS = (2, 4, 8)
"""The smaller circuits keep a half, a quarter and an eighth of the kernels."""


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
        seed=seed,
        like=circuit,
    )


def nested(circuit: Circuit) -> bool:
    """Tell whether the first kernels by saliency are those that its criterion would keep, were it asked for fewer."""
    criterion = CRITERIA.get(str(circuit.provenance.get("criterion")))
    return criterion is not None and not needs_budget(criterion)


def smaller(model: nn.Module, circuit: Circuit, images: Tensor) -> list[Circuit]:
    """Find smaller circuits anew where an iterative criterion found this one: its rankings are not nested.

    On as many of the images as it was found on. None where its criterion, or what that was given, is not known by name
    and number, and none that keep less than one kernel.
    """
    said = circuit.provenance
    options = said.get("options", {})
    plain = all(isinstance(value, (str, int, float, bool)) for value in options.values())
    if said.get("criterion") not in CRITERIA or nested(circuit) or not plain or "inside" in said:
        return []
    count = int(said.get("images", {}).get("count", len(images)))
    return [
        find(
            model,
            circuit.feature,
            images[:count],
            criterion=str(said["criterion"]),
            kernels=len(circuit) // part,
            granularity=circuit.granularity,
            seed=int(said.get("seed", 0)),
            **options,
        )
        for part in PARTS
        if len(circuit) >= part
    ]
