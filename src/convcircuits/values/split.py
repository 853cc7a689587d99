"""The images of a feature in groups, by how the network computes the feature on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from convcircuits.cards import card, figure
from convcircuits.errors import ConvCircuitsError
from convcircuits.frames import frame
from convcircuits.texts import printable
from convcircuits.values.borders import Borders
from convcircuits.values.circuit import Circuit
from convcircuits.values.cross import Cross

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Division:
    """One attempt to divide a group of images.

    Attributes:
        images: Number of training images of the group.
        photographs: Number of photographs that they are crops of, or of their subjects.
        p_value: Of the hypothesis that they form one group, by Hartigan's dip on photographs that did not choose the
            direction.
        cross: The cross-test of the parts, if it was made.
        kept: Whether the parts stay apart.
        sentence: Why.
        supported: Whether the tests say that the group is several: bimodal, and its parts selective. None if they do
            not decide.
        groups: Names of the groups of the result that its images are in.
    """

    images: int
    photographs: int
    p_value: float
    cross: Cross | None
    kept: bool
    sentence: str
    supported: bool | None
    groups: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Split:
    """The images of a feature in groups, by how the network computes the feature on them: its mechanisms.

    Whether the groups also differ in meaning is for whoever looks at the images, or has labels, to say.

    Attributes:
        feature: Text form of the feature, at each image's own maximum.
        labels: Index of the group that each image is in, (images,), int64; -1 of those that do not
            drive the feature: not above 0, or below 5 % of the highest response.
        held_out: Whether an image was held out: it was assigned to a group, but took no part in finding the groups and
            their circuits. (images,), bool.
        found_on: Whether the circuits of its group were found on an image: not if it was held out, nor if others of
            the group were drawn for that. (images,), bool.
        confidence: From 0, between two groups, to 1: 1 - (distance to the own center / to the next one). 0 if there is
            one group.
        response: The feature's value at the position, (images,).
        position: Flat index of the position in the map, (images,).
        circuits: Name of each group -> its circuits, the largest first.
        cross: The circuits of all groups on the held-out images of each; None if there is one group.
        divisions: What was tried, the whole first.
        borders: On how many images of each group the feature is highest at the border, where it sees padding; None if
            that is not known.
        asked: Whether the number of groups was asked for, so that the tests did not decide on it.
        notes: Remarks needed to read the figures correctly.
        provenance: How the groups were found, as JSON values.
    """

    feature: str
    labels: Int[Tensor, " n"]
    held_out: Bool[Tensor, " n"]
    found_on: Bool[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    response: Float[Tensor, " n"]
    position: Int[Tensor, " n"]
    circuits: Mapping[str, tuple[Circuit, ...]]
    cross: Cross | None
    divisions: tuple[Division, ...]
    borders: Borders | None = None
    asked: bool = False
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.circuits)

    def images(self, group: str, *, held_out: bool | None = None) -> Int[Tensor, " m"]:
        """Return the indices of the images of a group, those it is surest of first.

        Args:
            group: Name of the group.
            held_out: Only those that were held out, or only those that were not.

        Raises:
            ConvCircuitsError: If there is no such group.
        """
        names = list(self.circuits)
        if group not in names:
            raise ConvCircuitsError(f"There is no group {group!r}; the groups are {', '.join(map(repr, names))}.")
        chosen = self.labels == names.index(group)
        if held_out is not None:
            chosen &= self.held_out == held_out
        numbers = chosen.nonzero()[:, 0]
        return numbers[self.confidence[numbers].argsort(descending=True, stable=True)]

    def tested_circuits(self) -> dict[str, tuple[Circuit, ...]]:
        """Return each group's circuits from the largest to the size that the verdict is about, which is the last."""
        last = None if self.cross is None else self.cross.chosen + 1
        return {name: some[:last] for name, some in self.circuits.items()}

    @property
    def verdict_sentence(self) -> str:
        """How many mechanisms were found, or what the tests say of the groups that were asked for; and why.

        If the border of the map tells groups apart, it says so, too.
        """
        if self.borders is not None and self.borders.separate:
            return f"{self._decided} But these groups may be the border of the images: see the notes."
        return self._decided

    @property
    def _decided(self) -> str:
        first = self.divisions[0]
        if len(self) == 1 and self.asked:
            found = f"One group was asked for, so more than one mechanism of {self.feature} was not looked for."
        elif self.asked:
            said = {True: "The tests support", False: "The tests do not support", None: "The tests do not decide on"}
            found = (
                f"{len(self)} groups were asked for. {said[first.supported]} several mechanisms of {self.feature} on "
                "these images."
            )
        elif len(self) == 1 and first.supported is None:
            found = f"It cannot be told whether {self.feature} has several mechanisms on these images."
        elif len(self) == 1:  # which is not to say that there is no other
            found = f"No more than one mechanism of {self.feature} was found on these images."
        else:
            found = f"On these images the network computes {self.feature} by {len(self)} mechanisms."
        if not self.asked and self.cross is not None and (len(self) > 2 or self.cross is not first.cross):
            together = "These two groups" if len(self) == 2 else f"All {len(self)} groups together"
            return f"{found} {first.sentence} {together}: {self.cross.verdict_sentence}"  # not those of the first cut
        return f"{found} {first.sentence}"

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each image: its number, group, whether it was held out, confidence and response."""
        names = [*self.circuits, ""]  # the last for the label -1
        return [
            {"image": n, "group": names[label], "held_out": held, "confidence": sure, "response": value}
            for n, (label, held, sure, value) in enumerate(
                zip(
                    self.labels.tolist(),
                    self.held_out.tolist(),
                    self.confidence.tolist(),
                    self.response.tolist(),
                    strict=True,
                )
            )
        ]

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the table of ``rows``.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame(self.rows(), index="image")

    def summary(self) -> str:
        """Return the groups with their numbers of images, the verdict, what was tried and the notes."""
        lines = [self.verdict_sentence]
        lines += [
            f"{name}: {count} images, {held} of them held out{self._at_border(name)}"
            for name, count, held in self._counts()
        ]
        lines += [f"{' and '.join(one.groups)}: {one.sentence}" for one in self.divisions[1:]]
        if self.cross is not None:
            lines.append(self.cross.summary(verdict=self.cross.verdict_sentence not in self.verdict_sentence))
        said = () if self.cross is None else self.cross.notes
        return "\n".join([*lines, *(f"note: {printable(note)}" for note in self.notes if note not in said)])

    def __repr__(self) -> str:
        return printable(f"Split({self.feature}, {len(self.labels)} images, {len(self)} groups)")

    def _repr_html_(self) -> str:
        rows = [
            (name, str(count), str(held), *(figure(share) for share in self._border_shares(name)))
            for name, count, held in self._counts()
        ]
        head = ("group", "images", "held out", "sees padding", "at the edge")
        return card(self.verdict_sentence, head, rows, self.notes)

    def _border_shares(self, group: str) -> tuple[float | None, float | None]:
        """Return the shares of a group's images on which padding is seen, and that are at the edge of the map."""
        return (None, None) if self.borders is None else (self.borders.share(group), self.borders.share(group, "edge"))

    def _at_border(self, group: str) -> str:
        padding, edge = self._border_shares(group)
        if padding is None or edge is None:
            return ""
        return f"; highest where padding is seen on {padding:.0%}, at the edge of the map on {edge:.0%}"

    def _counts(self) -> list[tuple[str, int, int]]:
        return [(name, len(self.images(name)), len(self.images(name, held_out=True))) for name in self.circuits]
