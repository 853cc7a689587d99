"""Controls: circuits that show how well others of the same size, treated alike, do."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from convcircuits.circuits.asking import is_descent, options_again, size_asked
from convcircuits.circuits.criteria import CRITERIA, Criterion, drawn_like
from convcircuits.circuits.learning import Learn, Training
from convcircuits.circuits.ranking import in_order, top
from convcircuits.circuits.refitting import POSITIONS, RIDGE, Refit, fitted, order_of
from convcircuits.circuits.relabelling import Relabelling, relabelled
from convcircuits.circuits.scoring import MEMORY
from convcircuits.circuits.tracing import Trace
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.batches import Batches, Progress
from convcircuits.network.copying import private_copy
from convcircuits.network.masking import Subject
from convcircuits.values.circuit import Circuit
from convcircuits.values.tables import LayerTable, count_kept

Fit = Refit | Learn
"""From the masks of a circuit without calibration to its gains and offsets."""

MOST_STEPS = 500
"""The most steps for which a control is trained."""

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
        count_kept(relevant),
        provenance=_of_the_model(circuit)
        | {"criterion": "layer_random", "seed": seed, "granularity": circuit.granularity},
        granularity=circuit.granularity,
    )


def relabelled_like(subject: Subject, circuit: Circuit, *, seed: int = 0) -> Circuit:
    """Return a circuit's graph on other filters, drawn at random; without calibration.

    Raises:
        ConvCircuitsError: If the model's channels cannot be followed.
    """
    made = relabelled(subject, circuit, Relabelling.draw(subject, seed + _APART))
    about = {"made_by": "relabelled", "seed": seed + _APART, "granularity": circuit.granularity}
    return replace(made, provenance=_of_the_model(circuit) | about)


def without(subject: Subject, circuit: Circuit) -> Circuit:
    """Return what is left of the full model without a circuit's elements."""
    relevant = subject.relevant(circuit.granularity, subject.survey.input_shape)
    left = {layer: elements & ~circuit.elements[layer] for layer, elements in relevant.items()}
    return replace(circuit, elements=LayerTable(left), gain=LayerTable(), offset=LayerTable())


def redrawn(subject: Subject, *, whole: bool = False, seed: int = 0) -> Subject:
    """Return a copy of the model in which the weights of each layer on a path to the feature are shuffled.

    A layer keeps the values of its weights, and so their mean and spread, but not their places. Biases and all other
    layers stay.

    Args:
        subject: The feature of the model.
        whole: Whether kernels are shuffled as wholes: then each keeps its pattern, and only the wiring is lost.
        seed: Seed of the draw.

    Raises:
        ConvCircuitsError: If the weights of a layer are no parameter of it.
    """
    copied = private_copy(subject.network.module)
    parameters = dict(copied.named_parameters())
    generator = torch.Generator().manual_seed(seed + _APART)
    for layer in subject.survey.kernels:
        weight = parameters.get(f"{layer}.weight" if layer else "weight", parameters.get(layer))
        if weight is None:
            raise ConvCircuitsError(
                f"The weights of {layer} are computed while the model runs, so they cannot be drawn again."
            )
        # A kernel of a linear layer that reads flattened maps is a weight for each position.
        parts = weight.data.reshape(subject.survey.kernels[layer].numel() if whole else weight.numel(), -1)
        order = torch.randperm(len(parts), generator=generator).to(weight.device)
        weight.data = parts[order].reshape(weight.shape)
    return Subject.open(copied, subject.feature, subject.survey.input_shape)


def descent_of(circuit: Circuit) -> Criterion | None:
    """Return the criterion by whose descent from the full model a circuit was found; None if it was not."""
    said = circuit.provenance
    criterion = CRITERIA.get(str(said.get("criterion")))
    if criterion is None or not is_descent(criterion) or "inside" in said or not {"schedule", "path"} <= said.keys():
        return None
    return criterion if said["elements"] == len(circuit) else None  # elements may have been changed by hand


def refound(
    subject: Subject, circuit: Circuit, batches: Batches, model: Subject, *, progress: Progress | None = None
) -> Circuit:
    """Find a circuit in another model as one was found in its own: by the whole descent, aimed at the same map.

    Kernels are scored and cut in the other model, and fitted and trained to the layers and the map of the circuit's.
    The descent is aimed at the same sizes and ends at the circuit's own, also if the circuit is an earlier one.

    Args:
        subject: The model that the circuit belongs to.
        circuit: The circuit, found by a descent, whose size, criterion and options are repeated.
        batches: The images to find on.
        model: The other model, of the same architecture.
        progress: Called with the number of images or steps done in each phase, and their total (or None).

    Raises:
        ConvCircuitsError: If the descent does not pass through the circuit's size, as in a file that was edited.
    """
    said, descent = circuit.provenance, descent_of(circuit)
    assert descent is not None
    options = options_again(descent, said) | {"start": said["schedule"]["start"]}
    trace = Trace(
        model,
        batches,
        relevant=model.relevant("kernel", model.survey.input_shape),
        seed=said["seed"],
        memory=MEMORY,
        progress=progress,
        target=subject,
    )
    size, sizes = size_asked(said["asked"]), [size_asked(one) for one in said["path"]["asked"]]
    level = next((level for level in descent(trace, sizes, **options) if level.size.within(size)), None)
    if level is None:
        raise ConvCircuitsError(
            f"The descent of {circuit!r} cannot be repeated: it does not pass through the size that its file says was "
            "asked for."
        )
    found = replace(
        circuit,
        elements=LayerTable(level.kernels),
        gain=LayerTable(level.gain),
        offset=LayerTable(level.offset),
    )
    if asked_of(circuit) == _asked(level.calibration):
        return found
    # The circuit was fitted anew after its descent, and so is this one.
    return fitted(model, found, fit_of(model, circuit, batches, target=subject, progress=progress))


def asked_of(circuit: Circuit) -> dict[str, Any]:
    """Return how a circuit's constants were asked to be fitted, on whatever images; nothing without a calibration."""
    return _asked(circuit.provenance.get("calibration", {})) if circuit.calibrated else {}


def _asked(calibration: Mapping[str, Any]) -> dict[str, Any]:
    trained = {key: value for key, value in calibration.get("trained", {}).items() if key not in ("images", "starts")}
    trained = {"polish": 0} | trained if trained else {}
    asked = {key: value for key, value in calibration.items() if key != "images"}
    return {"positive": False} | asked | {"trained": trained}


def fit_of(
    subject: Subject,
    circuit: Circuit,
    batches: Batches,
    *,
    target: Subject | None = None,
    progress: Progress | None = None,
) -> Fit | None:
    """Return how a circuit was fitted, as a function that fits others on some images; None without a calibration.

    A calibration whose origin is not known is taken for one of ``refit`` with its defaults. A trained circuit took its
    steps on the whole descent; others are trained for as many, at most ``MOST_STEPS``, and not polished, which would
    take several times as long.

    Args:
        subject: The model that the others belong to.
        circuit: The circuit.
        batches: The images to fit on.
        target: The model to which they are fitted, if it is another one of the same architecture.
        progress: Called with the number of images or steps done and their total.
    """
    if not circuit.calibrated:
        return None
    known = circuit.provenance.get("calibration", {})
    if "weights" in known and order_of(batches) != known["order"]:
        raise ConvCircuitsError(
            f"The circuit of {circuit.feature} was fitted with weights of images, so others are fitted alike only on "
            "the same images in the same order; give these as fit."
        )
    fit = Refit(
        subject,
        batches,
        target=target,
        method=known.get("method", "kernels"),
        ridge=known.get("ridge", RIDGE),
        toward=known.get("toward", 1.0),
        positive=known.get("positive", False),
        positions=known.get("positions", POSITIONS),
        weights=known.get("weights"),
        seed=known.get("seed", 0),
        progress=progress,
    )
    if "trained" not in known:
        return fit
    relevant, seed = subject.relevant("kernel", subject.survey.input_shape), known.get("seed", 0)
    trace = Trace(subject, batches, relevant=relevant, seed=seed, memory=MEMORY, progress=progress)
    about = {key: value for key, value in known["trained"].items() if key not in ("images", "starts")}
    trained = circuit.provenance.get("cost", {}).get("trained", 0)
    taken = math.ceil(trained / min(about["batch"], known["trained"]["images"]))
    steps = min(MOST_STEPS, max(about["steps"], taken))
    training = Training(**about | {"steps": steps, "final": steps, "tolerance": 0.0, "polish": 0}, seed=seed)
    return Learn(trace, fit, training, control=True)


def treated_alike(
    subject: Subject, control: Circuit, circuit: Circuit, batches: Batches, *, progress: Progress | None = None
) -> Circuit:
    """Return a control refitted, and trained, on some images as a circuit was, if that has a calibration."""
    return fitted(subject, control, fit_of(subject, circuit, batches, progress=progress))


def _of_the_model(circuit: Circuit) -> dict[str, object]:
    return {key: circuit.provenance[key] for key in _OF_THE_MODEL if key in circuit.provenance}
