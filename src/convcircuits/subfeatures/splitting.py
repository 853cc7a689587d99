"""Divide the images of a feature by how the network computes it on them."""

import itertools
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convcircuits.circuits.criteria import Criterion
from convcircuits.circuits.equations import Method
from convcircuits.circuits.finding import prune, score
from convcircuits.circuits.refitting import METHODS, Refit, fitted
from convcircuits.circuits.resuming import Kept
from convcircuits.circuits.scoring import MEMORY
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.network.batches import Batches, Images, Progress, begin, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.subfeatures.borders import Shape, counted, seen_places
from convcircuits.subfeatures.chosen import some_of
from convcircuits.subfeatures.crossing import cross
from convcircuits.subfeatures.grouping import FEWEST, Coordinates, k_means, two_groups_p_value
from convcircuits.subfeatures.saliencies import DRIVEN, ImageSaliencies, image_saliencies
from convcircuits.texts import number as counts
from convcircuits.values.circuit import Circuit
from convcircuits.values.cross import FEWEST_HELD_OUT, Cross, Word
from convcircuits.values.feature import Feature
from convcircuits.values.split import Division, Split

Numbers = NDArray[np.int64]

_SUPPORTED: Mapping[Word, bool | None] = {"selective": True, "not selective": False, "not decided": None}


def split(
    model: nn.Module,
    feature: Feature,
    images: Images,
    *,
    groups: int | None = None,
    photographs: Sequence[Hashable] | None = None,
    subjects: bool = False,
    held_out: float = 0.4,
    alpha: float = 0.05,
    criterion: str | Criterion = "gauss_newton",
    densities: Sequence[float] = (0.2, 0.1, 0.05),
    refit: Method = "filters",
    max_images: int | None = 128,
    shuffles: int = 3,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Split:
    """Find out whether a feature is computed by one mechanism or by several, and on which images by which.

    Images are compared by the signed saliencies of all kernels at each image's own maximum (``image_saliencies``),
    layer by layer, whatever the strength of the response. A group of training images is divided in two if both tests
    say so: (1) it is bimodal, on photographs that did not choose the direction (``two_groups_p_value``); (2) circuits
    found on the parts are selective on held-out images, which are assigned by the same saliencies (``cross``). Each
    part is then tested in the same way. At the end each two groups are compared by (2), and those that are not told
    apart are merged. All comparisons use the same held-out images: these take part in choosing the groups, so a
    selectivity of more than two groups, or of merged ones, is somewhat too good.

    At the border of a map a feature sees padding, and is computed in another way than elsewhere. If groups differ in
    whether their images are highest there (``Split.borders``), the verdict and a note say so.

    Args:
        model: Any CNN.
        feature: One unit or a direction. It is taken at each image's own maximum over the whole map, also with the
            position ``"interior"``, unless it has a single position or ``Boxes``.
        images: As for ``score``, but in the same order in every pass.
        groups: Divide into this many, whatever the tests say: the report's first sentence is then whether they support
            it. By default the tests decide.
        photographs: The photograph that each image is a crop of, in order. Crops of one are held out together and
            count as one in the test. By default each image is its own; copies are recognized.
        subjects: Whether ``photographs`` are subjects instead, of which there may be several photographs: what is said
            then counts subjects.
        held_out: Share of the photographs to hold out, in (0, 1).
        alpha: The p-value up to which a group counts as bimodal, in (0, 1).
        criterion: A one-shot criterion that circuits are found by.
        densities: Sizes of the circuits of each group.
        refit: How circuits are refitted on their own group: a method of ``refit``, or ``"none"``.
        max_images: The most training images of a group that circuits, also the control's, are found on, drawn at
            random; a note says so where there are more. None for all.
        shuffles: Number of random deals of the cross-test's control.
        batch_size: Maximum number of images that run at once.
        seed: Seed of everything random.
        memory: As for ``score``.
        progress: Called with the number of images done in each phase, and their total (or None).
        checkpoint: A folder for saliencies and circuits. A run that was stopped goes on from them: what depends on the
            same weights, images and options is not computed again. Remove the folder at the end.
        **options: Options of the criterion; by default ``centered=True`` for ``"gauss_newton"``.

    Raises:
        ConvCircuitsError: If too few images drive the feature, there are more groups than images can be
            told apart into, scikit-learn is not installed, or as for ``score`` and ``refit``.

    Examples:
        >>> parts = cc.split(model, feature, images, groups=2, densities=[0.3], shuffles=1)
        >>> len(parts), len(parts.labels) == len(images)
        (2, True)
    """
    check_progress(progress)
    check_share("held_out", held_out)
    check_share("alpha", alpha)
    seed = whole_number(option("seed"), seed, 0, 2**32 - 1)
    groups = None if groups is None else whole_number("groups", groups, 1)
    whole_number("shuffles", shuffles, 0)
    max_images = None if max_images is None else whole_number(option("max_images"), max_images, 1)
    densities = sorted(densities, reverse=True)
    if not densities or not all(0 < density <= 1 for density in densities):
        raise ConvCircuitsError(f"densities must be one or more shares in (0, 1]; got {densities}.")
    check_refit(refit)
    feature = feature.at_maximum()
    subject = opened(model, feature, images, batch_size)
    kept = kept_for(checkpoint, subject, images, batch_size, seed)
    noun = "subject" if subjects else "photograph"
    given: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": progress}
    begin(progress, "looking for copies of images")
    names, shapes, notes = numbers_of_photographs(model, images, photographs, batch_size, progress)
    begin(progress, "reading how each image is computed")

    def read() -> dict[str, Tensor]:
        found = image_saliencies(model, feature, images, memory=memory, **given)
        check_driven(feature, found.driven, names, 1 if groups is None else groups, noun)  # before anything is kept
        return found.as_tensors()

    saliencies = ImageSaliencies.from_tensors(kept.tensors(read))
    active = saliencies.driven
    check_driven(feature, active, names, 1 if groups is None else groups, noun)
    notes += saliencies.notes(feature)

    def find_all(some: Tensor, called: str) -> list[Circuit]:
        def find() -> list[Circuit]:
            begin(progress, f"finding circuits of {called}")
            part = some_of(images, some)
            return circuits_of_group(subject, part, criterion, densities, refit, memory, given, options, called)

        return kept.circuits(
            find,
            images=some.nonzero()[:, 0].tolist(),
            how=[criterion, list(densities), refit, options],
        )

    def cross_all(circuits: Mapping[str, Sequence[Circuit]], tested: Parts, trained: Parts) -> Cross:
        groups, fit = ({name: some_of(images, some) for name, some in parts.items()} for parts in (tested, trained))
        crops = {name: names[some.numpy()].tolist() for name, some in tested.items()}
        return cross(
            model,
            circuits,
            groups,
            fit=fit,
            photographs=crops,
            subjects=subjects,
            shuffles=shuffles,
            checkpoint=checkpoint,
            **given,
        )

    train = active & ~drawn_photographs(names, active, held_out, seed)
    tree = _Tree(saliencies, names, train, alpha, held_out, noun, max_images, seed, find_all, cross_all)
    parts = tree.divide(active) if groups is None else tree.into(active, groups)
    circuits, report = tree.circuits(parts), tree.crossed(parts) if len(parts) > 1 else None
    labels = torch.full((len(active),), -1)
    for number, part in enumerate(parts.values()):
        labels[part] = number
    seen = seen_places(subject, saliencies.position, shapes)
    borders = None if isinstance(seen, str) else counted(seen, parts)
    if len(parts) > 1:
        about = seen if isinstance(seen, str) else "" if borders is None else borders.sentence
        notes = [about, *notes] if about else notes
    notes += tree.drawn(parts)
    return Split(
        feature=str(feature),
        labels=labels,
        held_out=active & ~tree.train,
        found_on=tree.found_on(parts),
        confidence=tree.confidence(labels, len(parts)),
        response=saliencies.response,
        position=saliencies.position,
        circuits={name: tuple(some) for name, some in circuits.items()},
        cross=report,
        divisions=tree.divided(parts),
        borders=borders,
        asked=groups is not None,
        notes=tuple(notes),
        provenance={
            **{key: circuits["A"][0].provenance[key] for key in ("model", "weights", "feature", "versions")},
            "images": len(active),
            "alpha": alpha,
            "held_out": held_out,
            "criterion": circuits["A"][0].provenance["criterion"],
            "options": circuits["A"][0].provenance["options"],
            "refit": refit,
            "densities": list(densities),
            "max_images": max_images,
            "shuffles": shuffles,
            "seed": seed,
        },
    )


def opened(model: nn.Module, feature: Feature, images: Images, batch_size: int) -> Subject:
    """Open a model for a feature on images."""
    network = Network(model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    return Subject.open(network, feature, batches.first_shape())


def kept_for(
    folder: str | os.PathLike[str] | None, subject: Subject, images: Images, batch_size: int, seed: int
) -> Kept:
    """Return where results are kept that depend on the weights and the images, in their order; nothing without one."""
    if folder is None:
        return Kept(None)
    network = subject.network
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    hashes = [key for _, some in batches.hashed() for key in some]
    computed = [str(network.device), str(network.dtype), batch_size]
    return Kept(folder, about=subject.about, images=hashes, seed=seed, computed=computed)


@outside_autocast
def circuits_of_group(
    subject: Subject,
    images: Images,
    criterion: str | Criterion,
    densities: Sequence[float],
    refit: Method,
    memory: int,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    called: str = "a group",
) -> list[Circuit]:
    """Find circuits of several sizes on a group of images, and refit them on it.

    ``subject`` is the model, opened for the feature, and keeps what is recorded of it from group to group. ``given``
    has ``batch_size``, ``seed`` and ``progress``, to which the group is ``called`` so; the other arguments are those of
    ``split``.
    """
    if criterion == "gauss_newton":
        options = {"centered": True} | dict(options)
    network, feature = subject.network, subject.feature
    scores = score(network.module, feature, images, criterion=criterion, memory=memory, **given, **options)
    circuits = [prune(scores, density=density) for density in densities]
    if refit == "none":
        return circuits
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=given["batch_size"])
    progress = given["progress"]
    fit = Refit(subject, batches, method=refit, seed=given["seed"], progress=progress)  # the full model runs but once
    made = []
    for n, one in enumerate(circuits, start=1):
        begin(progress, f"refitting circuits of {called}, size {n} of {len(circuits)}")
        made.append(fitted(subject, one, fit))
    return made


def check_share(name: str, value: float) -> None:
    """Check that an option is a number between 0 and 1.

    Raises:
        ConvCircuitsError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ConvCircuitsError(f"{option(name)} must be between 0 and 1; got {value!r}.")


def check_refit(refit: str) -> None:
    """Check that there is such a method of ``refit``.

    Raises:
        ConvCircuitsError: If there is not.
    """
    if refit not in METHODS:
        raise ConvCircuitsError(f"refit must be one of {', '.join(map(repr, METHODS))}; got {refit!r}.")


Parts = Mapping[str, Tensor]
"""Name of a group -> which of the images are in it, bool (images,)."""


@dataclass
class _Tree:
    """Groups of images, from the whole down.

    Attributes:
        saliencies: Of all images.
        names: Number of the photograph that each image is a crop of.
        train: Which images are not held out, of those that count.
        alpha: As for ``split``.
        held_out: As for ``split``.
        noun: What ``names`` are numbers of: "photograph" or "subject".
        max_images: As for ``split``.
        seed: As for ``split``.
        find_all: Finds the circuits of some images, which are called so.
        cross_all: Cross-tests circuits on held-out and training images of groups.
        tried: Which images it was tried to divide, and what came of it, but for the names of their groups.
    """

    saliencies: ImageSaliencies
    names: Numbers
    train: Tensor
    alpha: float
    held_out: float
    noun: str
    max_images: int | None
    seed: int
    find_all: Callable[[Tensor, str], list[Circuit]]
    cross_all: Callable[[Mapping[str, Sequence[Circuit]], Parts, Parts], Cross]
    tried: list[tuple[Tensor, Division]] = field(default_factory=list)
    _found: dict[bytes, list[Circuit]] = field(default_factory=dict)
    _crossed: dict[bytes, Cross] = field(default_factory=dict)

    def divide(self, part: Tensor) -> dict[str, Tensor]:
        """Divide a group, and its parts, as long as both tests say so."""
        p_value, count = self.p_value(part)
        if count < FEWEST:
            self._tried(part, p_value, self._too_few(count), supported=None)
            return {"A": part}
        if p_value > self.alpha:
            said = f"They do not fall into two groups (dip test, p = {p_value:.2g})."
            self._tried(part, p_value, said, supported=False)
            return {"A": part}
        halves = self._halves(part, 2)
        trained = min(int((half & self.train).sum()) for half in halves.values())
        held = min(len(np.unique(self.names[(half & ~self.train).numpy()])) for half in halves.values())
        if trained < 2 or held < FEWEST_HELD_OUT:
            said = (
                f"Two groups (p = {p_value:.2g}) are too small for a cross-test: one has "
                f"{counts(trained, 'training image')} and {counts(held, f'held-out {self.noun}')}, where it takes 2 "
                f"and {FEWEST_HELD_OUT}."
            )
            self._tried(part, p_value, said, supported=None)
            return {"A": part}
        report = self.crossed(halves)
        kept = report.verdict == "selective"
        sentence = f"They fall into two groups (dip test, p = {p_value:.2g}). {report.verdict_sentence}"
        said = sentence if kept else f"{sentence} So they are one group."
        self._tried(part, p_value, said, report, kept, supported=_SUPPORTED[report.verdict])
        if not kept:
            return {"A": part}
        one, other = (list(self.divide(half).values()) for half in halves.values())
        if len(one) == len(other) == 1:
            return halves
        leaves = self._told_apart([*one, *other])
        if len(leaves) > 1:
            return _named(leaves)
        said = f"Merged like that, all would be one group, but two parts are told apart. {report.verdict_sentence}"
        self._tried(part, p_value, f"{said} So these are the groups.", report, True, supported=True)
        return halves

    def _told_apart(self, groups: list[Tensor]) -> list[Tensor]:
        """Merge groups that are not told apart, the two least selective first, until all are.

        The first cut may go through a mechanism and come out selective because of the others. No two groups are
        compared twice.
        """
        alike = []
        for a, b in itertools.combinations(groups, 2):
            report = self.crossed(_named([a, b]))
            if report.verdict != "selective":
                alike.append((report.selectivity[report.chosen].value, a, b, report))
        if not alike:
            return groups
        _, a, b, report = min(alike, key=lambda one: one[0])
        both = a | b
        said = f"Two groups are not told apart. {report.verdict_sentence} So they are one group."
        self._tried(both, self.p_value(both)[0], said, report, supported=_SUPPORTED[report.verdict])
        return self._told_apart([*(one for one in groups if one is not a and one is not b), both])

    def into(self, part: Tensor, count: int) -> dict[str, Tensor]:
        """Divide a group into so many, whatever the tests say."""
        p_value, photographs = self.p_value(part)
        parts = self._halves(part, count)
        for name, one in parts.items():
            trained, held = (int((one & some).sum()) for some in (self.train, ~self.train))
            if min(trained, held) < 1:
                raise ConvCircuitsError(
                    f"Of {count} groups, {name!r} has {trained} training images and {held} held-out ones; ask for "
                    "fewer groups, or give more images."
                )
        if photographs < FEWEST:
            bimodal, dip = None, self._too_few(photographs)
        elif p_value > self.alpha:
            bimodal, dip = False, f"All images together do not fall into two groups (dip test, p = {p_value:.2g})."
        else:
            bimodal, dip = True, f"All images together fall into two groups (dip test, p = {p_value:.2g})."
        if count == 1:
            self._tried(part, p_value, dip, supported=None if bimodal else bimodal)  # no parts were crossed
            return parts
        report = self.crossed(parts)
        both = (bimodal, _SUPPORTED[report.verdict])
        supported = False if False in both else None if None in both else True
        self._tried(part, p_value, f"{dip} {report.verdict_sentence}", report, True, supported=supported)
        return parts

    def divided(self, parts: Parts) -> tuple[Division, ...]:
        """Return what was tried, with the names of the groups that came of it."""
        return tuple(
            replace(one, groups=tuple(name for name, some in parts.items() if bool((some & whole).any())))
            for whole, one in self.tried
        )

    def p_value(self, part: Tensor) -> tuple[float, int]:
        """Return the p-value of the training images of a group, and their number of photographs."""
        some = part & self.train
        names = self.names[some.numpy()]
        return two_groups_p_value(self.saliencies.of(some).layers, names, self.seed), len(np.unique(names))

    def circuits(self, parts: Parts) -> dict[str, list[Circuit]]:
        """Return the circuits of each group."""
        found = {}
        for n, (name, part) in enumerate(parts.items(), start=1):
            key = part.numpy().tobytes()
            if key not in self._found:
                called = f"group {n} of {len(parts)}" if len(parts) > 1 else "all images"
                self._found[key] = self.find_all(self._learned(part), called)
            found[name] = self._found[key]
        return found

    def crossed(self, parts: Parts) -> Cross:
        """Cross-test groups."""
        key = b"".join(part.numpy().tobytes() for part in parts.values())
        if key not in self._crossed:
            tested = {name: part & ~self.train for name, part in parts.items()}
            trained = {name: self._learned(part) for name, part in parts.items()}
            self._crossed[key] = self.cross_all(self.circuits(parts), tested, trained)
        return self._crossed[key]

    def confidence(self, labels: Tensor, count: int) -> Tensor:
        """Return how much nearer each image is to the center of its group than to the next."""
        sure = torch.zeros(len(labels))
        if count < 2:
            return sure
        counted = labels >= 0
        points = torch.from_numpy(Coordinates.learned(self.saliencies.of(self.train).layers).of(self.saliencies.layers))
        centers = torch.stack([points[self.train & (labels == one)].mean(0) for one in range(count)])
        far = torch.cdist(points[counted], centers)
        own = far.gather(1, labels[counted][:, None])[:, 0]
        others = far.scatter(1, labels[counted][:, None], torch.inf).amin(1)
        sure[counted] = (1 - own / others).clamp_min(0).float()
        return sure

    def found_on(self, parts: Parts) -> Tensor:
        """Return which images the circuits of their groups are found on."""
        return torch.stack([self._learned(part) for part in parts.values()]).any(0)

    def drawn(self, parts: Parts) -> list[str]:
        """Return a note if circuits were found on some of the training images of a group."""
        found, said = self.found_on(parts), list[str]()
        for name, part in parts.items():
            some, every = int((part & found).sum()), int((part & self.train).sum())
            if some < every:
                what = "" if said else " training images"
                said.append(f"on {some:,} of the {every:,}{what}" + (f" of group {name}" if len(parts) > 1 else ""))
        return [f"Circuits were found {' and '.join(said)}, drawn at random."] if said else []

    def _learned(self, part: Tensor) -> Tensor:
        """Return which training images of a group its circuits are found on."""
        some = part & self.train
        order = np.random.default_rng([self.seed, 1]).permutation(len(part))
        chosen = torch.zeros_like(some)
        chosen[[n for n in order.tolist() if some[n]][: self.max_images]] = True
        return chosen

    def _halves(self, part: Tensor, count: int) -> dict[str, Tensor]:
        """Divide the training images of a group by k-means, and assign the others to the nearest center."""
        coordinates = Coordinates.learned(self.saliencies.of(part & self.train).layers)
        fitted = k_means(coordinates.of(self.saliencies.of(part & self.train).layers), count, self.seed)
        labels = torch.full((len(part),), -1)
        labels[part] = torch.from_numpy(fitted.predict(coordinates.of(self.saliencies.of(part).layers))).long()
        return _named([labels == one for one in range(count)])

    def _too_few(self, count: int) -> str:
        verb = "is" if count == 1 else "are"
        return (
            f"{counts(count, self.noun)} {verb} too few to tell whether they fall into groups: so many are left to "
            f"learn from when a share of {self.held_out:g} is held out. It takes {FEWEST}, that is {self._needed} with "
            "the held-out ones."
        )

    @property
    def _needed(self) -> int:
        """The fewest photographs of which ``FEWEST`` are left to learn from."""
        least = max(FEWEST, int((FEWEST - 0.5) / (1 - self.held_out)))  # up to rounding
        return next(n for n in itertools.count(least) if n - held_out_of(n, self.held_out) >= FEWEST)

    def _tried(
        self,
        part: Tensor,
        p_value: float,
        sentence: str,
        report: Cross | None = None,
        kept: bool = False,
        *,
        supported: bool | None,
    ) -> None:
        some = part & self.train
        count = len(np.unique(self.names[some.numpy()]))
        self.tried.append((part, Division(int(some.sum()), count, p_value, report, kept, sentence, supported, ())))


def _named(parts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name groups by letters: the largest first, and of equal ones that with the first image, whatever their order."""
    ordered = sorted(parts, key=lambda part: (-int(part.sum()), part.nonzero()[:1].tolist()))
    return {chr(ord("A") + n) if n < 26 else f"group {n + 1}": part for n, part in enumerate(ordered)}


def numbers_of_photographs(
    model: nn.Module,
    images: Images,
    photographs: Sequence[Hashable] | None,
    batch_size: int,
    progress: Progress | None = None,
) -> tuple[Numbers, list[Shape], list[str]]:
    """Return the number of each image's photograph, the same for copies; its shape; and a note if there are copies."""
    network = Network(model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size, progress=progress)
    shaped = [(key, tuple(batch.shape[1:])) for batch, some in batches.hashed() for key in some]
    hashes, again = [key for key, _ in shaped], [key for _, some in batches.hashed() for key in some]
    if hashes != again:
        raise ConvCircuitsError(
            "images are not the same in every pass, or come in another order, so groups of them mean nothing; give a "
            "tensor, or a loader that neither shuffles nor draws at random."
        )
    if photographs is not None and len(photographs) != len(hashes):
        raise ConvCircuitsError(
            f"There are {len(hashes)} images but {len(photographs)} photographs; give one photograph for each image."
        )
    numbers: dict[Hashable, int] = {}
    by_hash: dict[int, int] = {}
    copies, found = 0, []
    for n, key in enumerate(hashes):
        number = numbers.setdefault(n if photographs is None else photographs[n], len(numbers))
        copies += key in by_hash
        found.append(by_hash.setdefault(key, number))
    note = f"{copies} images are copies of others; copies are held out together and count once in the test."
    return np.array(found), [shape for _, shape in shaped], [note] if copies else []


def drawn_photographs(names: Numbers, active: Tensor, share: float, seed: int) -> Tensor:
    """Draw the images to hold out, by photograph, of those that count."""
    counted = np.unique(names[active.numpy()])
    drawn = np.random.default_rng(seed).permutation(counted)
    return torch.from_numpy(np.isin(names, drawn[: held_out_of(len(counted), share)]))


def held_out_of(count: int, share: float) -> int:
    """Return how many photographs of so many are held out: at least one, and not all."""
    return min(max(1, round(share * count)), count - 1)


def check_driven(feature: Feature, driven: Tensor, names: Numbers, groups: int, noun: str = "photograph") -> None:
    """Check that images of enough photographs drive a feature."""
    count, needed = len(np.unique(names[driven.numpy()])), max(2, 2 * groups)
    if count < needed:
        raise ConvCircuitsError(
            f"{feature} is above 0, and at least {DRIVEN:.0%} of its highest response, on {int(driven.sum())} of "
            f"{len(driven)} images, of {counts(count, noun)}; to find and to test {counts(groups, 'group')} it takes "
            f"at least {needed}. Give other images or another unit."
        )
