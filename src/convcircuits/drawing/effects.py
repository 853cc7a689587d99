"""The effect of each kernel of a refitted circuit on the feature, as it is in the circuit that is drawn."""

import dataclasses

import torch

from convcircuits.circuits.criteria import gauss_newton
from convcircuits.circuits.ranking import in_order
from convcircuits.circuits.scoring import MEMORY, in_range
from convcircuits.circuits.tracing import Trace
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.batches import Batches
from convcircuits.network.masking import Masks, Subject
from convcircuits.values.circuit import Circuit
from convcircuits.values.tables import LayerTable

IMAGES = 24
"""The most images on which effects are measured, drawn from those that the circuit was fitted on."""
_DRAWS = 2


def with_effects(subject: Subject, circuit: Circuit, masks: Masks, images: Batches) -> Circuit:
    """Return a circuit whose saliency is measured inside it, with its gains and offsets.

    It is the score by which a descent decides its cuts: centered ``gauss_newton`` in the refitted circuit.

    Args:
        subject: The model that the circuit belongs to.
        circuit: The circuit.
        masks: The masks with which it runs.
        images: The images to measure on, at most ``IMAGES`` of them.

    Raises:
        ConvCircuitsError: If no gradient of the feature reaches a layer, or the scores are not finite.
    """
    trace = Trace(
        subject,
        images.sample(IMAGES, 0),
        relevant=dict(circuit.elements),
        granularity=circuit.granularity,
        masks=masks,
        memory=MEMORY,
    )
    found, _ = in_range(
        in_order(gauss_newton(trace, draws=_DRAWS, centered=True), trace.relevant), subject.network.dtype
    )
    tables = {}
    for layer, kept in circuit.elements.items():
        if not bool(found[layer][kept].isfinite().all()):
            raise ConvCircuitsError(f"The effects of kernels of {layer} are not finite numbers on these images.")
        recorded = circuit.saliency[layer].to(found[layer])
        tables[layer] = torch.where(kept, found[layer], recorded)  # of others, only whether they have one is read
    return dataclasses.replace(circuit, saliency=LayerTable(tables))
