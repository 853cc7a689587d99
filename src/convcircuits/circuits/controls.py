"""Circuits that tell how much of a figure any circuit of that size would reach."""

from convcircuits.circuits.criteria import drawn_like
from convcircuits.circuits.ranking import in_order, top
from convcircuits.network.masking import Subject
from convcircuits.values.circuit import Circuit
from convcircuits.values.tables import LayerTable

_APART = 1_000_003  # from the seed of a circuit that was itself drawn at random
_OF_THE_MODEL = ("model", "weights", "feature", "input_shape", "versions")


def random_like(subject: Subject, circuit: Circuit, *, seed: int = 0) -> Circuit:
    """Draw a random circuit that keeps as many elements of each layer as another does.

    Args:
        subject: The feature of the model.
        circuit: The circuit whose counts are taken.
        seed: Of the draw.

    Returns:
        A circuit of the same granularity, without a calibration; its saliency is as ``layer_random`` draws it.
    """
    seed += _APART
    relevant = subject.relevant(circuit.granularity, subject.survey.input_shape)
    saliency = in_order(drawn_like(relevant, circuit, seed), relevant)
    return Circuit(
        circuit.feature,
        LayerTable(top(saliency, len(circuit))),
        LayerTable(saliency),
        sum(int(elements.sum()) for elements in relevant.values()),
        provenance={key: circuit.provenance[key] for key in _OF_THE_MODEL if key in circuit.provenance}
        | {"criterion": "layer_random", "seed": seed, "granularity": circuit.granularity},
        granularity=circuit.granularity,
    )
