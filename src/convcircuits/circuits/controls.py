"""Random circuits that show how well any circuit of the same size would do."""

from dataclasses import replace

from convcircuits.circuits.criteria import drawn_like
from convcircuits.circuits.ranking import in_order, top
from convcircuits.circuits.refitting import POSITIONS, RIDGE, Refit
from convcircuits.network.batches import Batches
from convcircuits.network.masking import Subject
from convcircuits.values.circuit import Circuit
from convcircuits.values.tables import LayerTable

_APART = 1_000_003  # keeps the draw apart from that of a circuit which was itself drawn at random
_OF_THE_MODEL = ("model", "weights", "feature", "input_shape", "versions")


def random_like(subject: Subject, circuit: Circuit, *, seed: int = 0) -> Circuit:
    """Draw a random circuit with the same number of elements in each layer as another circuit.

    Args:
        subject: The feature of the model.
        circuit: The circuit that sets the number of elements per layer.
        seed: Seed of the draw.

    Returns:
        A circuit of the same granularity, without calibration; its saliency is drawn as by ``layer_random``.
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


def treated_alike(subject: Subject, control: Circuit, circuit: Circuit, batches: Batches) -> Circuit:
    """Return a control refitted as a circuit was, on some images, if that circuit has a calibration.

    A control that has a calibration of its own keeps it. A calibration of a circuit whose origin is not known is taken
    for one of ``refit`` with its defaults.
    """
    if not circuit.calibrated or control.calibrated:
        return control
    known = circuit.provenance.get("calibration", {})
    fit = Refit(
        subject,
        batches,
        method=known.get("method", "kernels"),
        ridge=known.get("ridge", RIDGE),
        toward=known.get("toward", 1.0),
        positions=known.get("positions", POSITIONS),
        seed=known.get("seed", 0),
    )
    gain, offset = fit(subject.masks(control, subject.survey.input_shape, effective=True))
    provenance = dict(control.provenance) | {"calibration": fit.about()}
    return replace(control, gain=LayerTable(gain), offset=LayerTable(offset), provenance=provenance)
