"""Build the diagram of a feature's circuits on groups of images: each circuit with pictures of its own group."""

import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from convcircuits.drawing import data, figure
from convcircuits.drawing.build import checked_names, document_of, first_images, measured, titles
from convcircuits.drawing.host import Diagram
from convcircuits.drawing.pictures import Seen, pictured
from convcircuits.drawing.sheet import lay_out
from convcircuits.errors import ConvCircuitsError
from convcircuits.maps.colors import primaries_of
from convcircuits.network.batches import Batches, Images, Progress, begin, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked, sentence
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.texts import sentences
from convcircuits.values.circuit import Circuit
from convcircuits.values.cross import Cross
from convcircuits.zoo.images import Crops


@outside_autocast
def group_diagram(
    model: nn.Module,
    circuits: Mapping[str, Circuit | Sequence[Circuit]],
    groups: Mapping[str, Images],
    *,
    fit: Mapping[str, Images] | None = None,
    held_out: Images | None = None,
    cross: Cross | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    photographs: Mapping[str, Sequence[Hashable]] | None = None,
    subjects: bool = False,
    title: str | None = None,
    notes: Sequence[str] = (),
    primaries: Tensor | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagram:
    """Draw the circuits of a feature on groups of images as a comparison, such as those that ``split`` found.

    The page opens with the first circuit compared with the second; every circuit can be chosen, and compared with every
    other. Patches of a filter are the best within the images of the circuit's own group, in that circuit, and the list
    of images is that group's, those that drive the feature most. With ``held_out``, R2 of every circuit is measured on
    the same images, whatever their group; ``cross`` measures each circuit on each group.

    Args:
        model: The model that the circuits belong to.
        circuits: Name of each group -> its circuit, or its circuits of several sizes, the largest first and the same
            number for all groups. All are of one feature. The smallest size is drawn at which every group's circuit has
            a complete path.
        groups: Name of each group -> its images, as for ``score``; of each, the first 1,000 are used.
        fit: Name of each group -> the images that its circuit was fitted on. With those of the first, the random
            circuit is refitted as the first circuit was; the average map of ``held_out`` is of all of them.
        held_out: Images of all groups, as for ``score``, to measure every circuit on.
        cross: The cross-test of the groups, whatever their names there. The page opens with its verdict wherever it
            compares two groups.
        names: Name of each group -> display names of its images, in order.
        photographs: Name of each group -> the photograph that each of its images is a crop of, in order. A filter then
            shows at most one part of each photograph. If not given, those of ``Crops`` are known.
        subjects: As for ``split``.
        title: Title of the diagram; names the feature and the model if not given.
        notes: Whole sentences that the page shows under "about".
        primaries: As for ``diagram``.
        batch_size: Maximum number of images that run at once.
        seed: Seed of the random circuit.
        progress: As for ``diagram``.

    Raises:
        ConvCircuitsError: If the groups of circuits and of images are not the same, or as for ``diagram``.

    Examples:
        >>> halves = {"first": images[:6], "second": images[6:]}
        >>> circuits = {name: cc.find(model, feature, some, density=0.3) for name, some in halves.items()}
        >>> cc.group_diagram(model, circuits, halves).view.compare
        1
    """
    check_progress(progress)
    if not circuits or list(circuits) != list(groups):
        raise ConvCircuitsError(
            f"circuits are of the groups {', '.join(map(repr, circuits)) or 'none'} and images of "
            f"{', '.join(map(repr, groups)) or 'none'}; give one circuit and images for each group, in one order."
        )
    for kind, given in (("fit", fit), ("names", names), ("photographs", photographs)):
        if given is not None and set(given) != set(circuits):
            raise ConvCircuitsError(f"{kind} must have an entry for each of {', '.join(map(repr, circuits))}.")
    if cross is not None and len(cross.groups) != len(circuits):
        raise ConvCircuitsError(f"cross is of {len(cross.groups)} groups; there are circuits of {len(circuits)}.")
    network = Network(model)

    def batches(images: Images) -> Batches:
        return Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size, progress=progress)

    begin(progress, "reading images")
    kept = {group: first_images(batches(images)) for group, images in groups.items()}
    named = [None if names is None else checked_names(names[group], len(some)) for group, some in kept.items()]
    cropped = [
        _photographs(groups[group], None if photographs is None else photographs[group], len(some))
        for group, some in kept.items()
    ]
    shape = batches(next(iter(kept.values()))).first_shape()
    first, *others = _smallest(model, circuits, shape)
    fitted = None if fit is None else batches(fit[next(iter(kept))])
    own = [batches(kept[group] if fit is None else fit[group]) for group in kept]
    drawing = lay_out(model, first, others, shape, seed, fit=fitted, effects_on=own)
    laws = checked(drawing.subject, next(iter(kept.values())))["laws"]
    begin(progress, "running the model on images")
    seen = Seen.of(drawing, *map(batches, kept.values()))
    if primaries is None:
        primaries = primaries_of([some for images in kept.values() for some in torch.split(images, 64)])
    begin(progress, "laying out the diagram")
    called = titles(drawing)
    if others:
        called[: len(circuits)] = circuits
    document, turned = document_of(drawing, seen, called, title, sentence(laws))
    if held_out is not None:
        every = None if fit is None else _InTurn(list(fit.values()))
        document = measured(drawing, document, model, held_out, every, False, None, batch_size, seed, progress)
    meta = dataclasses.replace(document.meta, notes=sentences([*notes, *document.meta.notes]))
    view = data.View(compare=1 if others else None)
    document = dataclasses.replace(document, meta=meta, view=view, crossed=None if cross is None else _crossed(cross))
    shown = figure.drawn_by_any(document, len(circuits))
    document = pictured(
        drawing,
        document,
        shown.nodes,
        seen,
        pictures="patches",
        primaries=primaries,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        names=named,
        photographs=cropped,
        subjects=subjects,
    )
    begin(progress, "drawing maps on images")
    document = dataclasses.replace(document, images=seen.document(drawing, shown, primaries, turned, named))
    return Diagram(figure.with_blocks_collapsed(document))


def _crossed(cross: Cross) -> data.Crossed:
    one = cross.selectivity[cross.chosen]
    return data.Crossed(cross.verdict, cross.verdict_sentence, one.own, one.others)


class _InTurn:
    """The images of all groups, as an iterable that can be read again."""

    def __init__(self, groups: Sequence[Images]) -> None:
        self._groups = groups

    def __iter__(self) -> Iterator[Tensor | Sequence[Tensor]]:
        for images in self._groups:
            yield from [images] if isinstance(images, Tensor) else images


def _photographs(images: Images, given: Sequence[Hashable] | None, count: int) -> Sequence[Hashable] | None:
    """Return the photographs of a group's first images; None if they are not known."""
    if given is None:
        return images.photographs[:count] if isinstance(images, Crops) else None
    if len(given) < count:
        raise ConvCircuitsError(f"photographs must hold one for each of {count} images; got {len(given)}.")
    return given[:count]


def _smallest(
    model: nn.Module, circuits: Mapping[str, Circuit | Sequence[Circuit]], shape: Sequence[int]
) -> list[Circuit]:
    """Return the circuits of all groups at the smallest size at which each has a complete path."""
    sizes = [(one,) if isinstance(one, Circuit) else tuple(one) for one in circuits.values()]
    if not all(sizes) or len(set(map(len, sizes))) > 1:
        raise ConvCircuitsError(
            f"All groups must have circuits of the same number of sizes; got {', '.join(str(len(s)) for s in sizes)}."
        )
    subject = Subject.open(model, sizes[0][0].feature, shape)
    for some in reversed(list(zip(*sizes, strict=True))):
        for one in some:
            subject.check(one)
        masks = [subject.masks(one, subject.survey.input_shape, effective=True).kernels for one in some]
        if all(any(bool(mask.any()) for mask in kernels.values()) for kernels in masks):
            return list(some)
    raise ConvCircuitsError(
        f"At no size does the circuit of every group have a kernel on a complete path to {subject.feature}, so there "
        "is nothing to compare; prune to a larger density."
    )
