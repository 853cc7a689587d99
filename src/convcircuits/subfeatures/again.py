"""Find a circuit again, in the way that another was found, on other images."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from convcircuits.circuits.asking import is_descent, options_again, size_asked
from convcircuits.circuits.control_circuits import asked_of, treated_alike
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.finding import find, find_path
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
    called: str = "a circuit",
) -> Circuit:
    """Find the smallest of some circuits again, by the same criterion, options and refit, on other images.

    Args:
        model: The model that the circuits belong to.
        circuits: Circuits of several sizes that were found alike, the largest first.
        images: The images to find the others on, as for ``score``.
        batch_size: Maximum number of images that run at once.
        progress: Called with the number of images done and their total (or None).
        called: The circuit, in words, for the phases of ``progress``.

    Raises:
        ConvCircuitsError: If it is not known how the circuits were found, or they were found in different ways, inside
            another circuit or with an option that their files do not hold.
    """
    about = _way(circuits)
    begin(progress, f"finding {called}")
    criterion, feature = CRITERIA[about["criterion"]], circuits[0].feature
    chosen: dict[str, Any] = {"criterion": about["criterion"], "seed": about["seed"]}
    chosen |= {"batch_size": batch_size, "granularity": circuits[0].granularity, "progress": progress}
    *_, last = circuits
    chosen |= options_again(criterion, last.provenance)
    if is_descent(criterion):
        found = _descended(model, last, images, **chosen)
    else:
        effective = last.provenance.get("effective")
        found = find(model, feature, images, kernels=len(last), effective=effective, **chosen)
    if asked_of(found) == asked_of(last):
        return found
    begin(progress, f"refitting {called}")
    subject = Subject.open(model, feature, tuple(last.provenance["input_shape"]))
    network = subject.network
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    return treated_alike(subject, found, last, batches, progress=progress)


def _descended(model: nn.Module, circuit: Circuit, images: Images, **chosen: Any) -> Circuit:
    """Return the circuit of the same size of a descent that is aimed at the same sizes, and goes no further.

    Raises:
        ConvCircuitsError: If on these images the descent ends before that size.
    """
    said = circuit.provenance
    asked, start = said["path"]["asked"], said["schedule"]["start"]  # whose default depends on the sizes
    size = {"kernels": [one["kernels"] for one in asked]} if "kernels" in asked[0] else asked[0]
    own = size_asked(said["asked"])

    def larger(one: Circuit) -> bool:
        return not size_asked(one.provenance["asked"]).within(own)

    path = find_path(model, circuit.feature, images, enough=larger, **size, **{**chosen, "start": start})
    if not path or larger(path[-1]):
        raise ConvCircuitsError(
            f"{circuit!r} cannot be found again: on these images the descent that it is of ends before its size. Give "
            "other images, or circuits of more kernels."
        )
    return path[-1]


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
