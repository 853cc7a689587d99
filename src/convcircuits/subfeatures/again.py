"""Find circuits again, in the way that others were found, on other images."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from convcircuits.circuits.asking import is_descent, needs_budget
from convcircuits.circuits.controls import treated_alike
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.finding import find, find_path, prune, score
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.batches import Batches, Images, Progress, begin
from convcircuits.network.masking import Subject
from convcircuits.values.circuit import Circuit


def found_again(
    model: nn.Module,
    circuits: Sequence[Circuit],
    images: Images,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
    called: str = "circuits",
) -> list[Circuit]:
    """Find circuits of the same sizes by the same criterion, options and refit on other images.

    Args:
        model: The model that the circuits belong to.
        circuits: Circuits of several sizes that were found alike.
        images: The images to find the others on, as for ``score``.
        batch_size: Maximum number of images that run at once.
        progress: Called with the number of images done and their total (or None).
        called: What they are circuits of, in words, for the phases of ``progress``.

    Raises:
        ConvCircuitsError: If it is not known how the circuits were found, or they were found in different ways, inside
            another circuit or with an option that their files do not hold.
    """
    about = _way(circuits)
    begin(progress, f"finding {called}")
    criterion, feature = CRITERIA[about["criterion"]], circuits[0].feature
    chosen: dict[str, Any] = {"criterion": about["criterion"], "seed": about["seed"], **about["options"]}
    chosen |= {"batch_size": batch_size, "granularity": circuits[0].granularity, "progress": progress}
    asked = [one.provenance["asked"] for one in circuits]
    if is_descent(criterion) and "kernels" not in asked[0]:
        if len(circuits) > 1:
            raise ConvCircuitsError("Drawable circuits are found again one by one; give one size for each group.")
        found = [find(model, feature, images, filters=asked[0]["filters"], fan_in=asked[0]["fan_in"], **chosen)]
    elif is_descent(criterion):
        path = find_path(model, feature, images, kernels=[one["kernels"] for one in asked], **chosen)
        by_size = {one.provenance["asked"]["kernels"]: one for one in path}
        found = [by_size[one["kernels"]] for one in asked]
    elif needs_budget(criterion) or any(one.provenance.get("effective") for one in circuits):
        found = [
            find(model, feature, images, kernels=len(one), effective=one.provenance.get("effective"), **chosen)
            for one in circuits
        ]
    else:
        scores = score(model, feature, images, **chosen)
        found = [prune(scores, kernels=len(one)) for one in circuits]
    subject = Subject.open(model, feature, tuple(circuits[0].provenance["input_shape"]))
    network = subject.network
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    made = []
    for n, (one, circuit) in enumerate(zip(found, circuits, strict=True), start=1):
        if _refit(one) == _refit(circuit):
            made.append(one)
            continue
        begin(progress, f"refitting {called}, size {n} of {len(circuits)}")
        made.append(treated_alike(subject, one, circuit, batches, progress=progress))
    return made


def _refit(circuit: Circuit) -> dict[str, Any]:
    """Return how a circuit was refitted, after the descent that found it if there was one."""
    about = circuit.provenance.get("calibration", {}) if circuit.calibrated else {}
    return {key: about.get(key) for key in ("method", "ridge", "toward", "positions")}


def _way(circuits: Sequence[Circuit]) -> dict[str, Any]:
    """Return criterion, options and seed that all circuits were found by."""
    ways = []
    for one in circuits:
        about = one.provenance
        if about.get("criterion") not in CRITERIA or "like" in about.get("options", {}) or "inside" in about:
            raise ConvCircuitsError(
                f"It is not known how to find {one!r} again on shuffled groups: only circuits of a criterion in "
                "CRITERIA, not inside another circuit, can be. Leave out fit for a cross-test without that control."
            )
        ways.append({key: about[key] for key in ("criterion", "options", "seed")})
    if any(way != ways[0] for way in ways):
        raise ConvCircuitsError(
            "The circuits of a group were found in different ways, so they cannot be found again alike on shuffled "
            "groups; give circuits of one criterion and its options."
        )
    return ways[0]
