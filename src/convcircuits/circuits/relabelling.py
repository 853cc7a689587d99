"""Relabel a circuit: the same graph on other filters.

A relabelling is a random symmetry of a network's wiring: it permutes channels such that every kernel becomes a kernel,
and every path from the image to the feature such a path. So the relabelled circuit has as many kernels and filters in
each layer, the same numbers of kernels per filter and the same paths, but other weights.

Channels move together if they are tied: the filters that an addition or a gate joins, a depthwise filter and the
channel that it reads, the channels of a layer that runs several times. Tied channels form an *atom*; atoms that are
read and written in the same places are exchanged at random. Groups of a grouped layer, or of a GroupNorm, move as a
whole first, and then channels inside them. The image's channels and those that the feature reads stay, and so do
channels that are mixed with positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convcircuits.compiler.layout import Layout, UnextractableError, Value, layout_of
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import ConvCall, KernelCall
from convcircuits.network.masking import Subject
from convcircuits.network.operations import argument
from convcircuits.values.circuit import Circuit
from convcircuits.values.granularity import masks_of
from convcircuits.values.tables import LayerTable


@dataclass(frozen=True)
class Relabelling:
    """A permutation of the channels that each layer writes and reads.

    Attributes:
        filters: Layer name -> (out,) int64: the new number of each filter.
        channels: Layer name -> (groups * in per group,) int64: the new number of each channel, or block of a flattened
            map, that the layer reads.
    """

    filters: Mapping[str, Tensor]
    channels: Mapping[str, Tensor]

    @classmethod
    def draw(cls, subject: Subject, seed: int = 0) -> "Relabelling":
        """Draw a relabelling at random.

        Raises:
            ConvCircuitsError: If the model's channels cannot be followed.
        """
        try:
            ties = _Ties(subject, layout_of(subject, subject.survey.input_shape))
        except UnextractableError as problem:
            raise ConvCircuitsError(
                f"The channels of {subject.network.name} cannot be followed, so no circuit can be relabelled: {problem}"
            ) from problem
        generator = torch.Generator().manual_seed(seed)
        drawn = ties.draw(generator, whole_groups=False)
        if ties.grouped:
            drawn = ties.draw(generator, whole_groups=True).then(drawn)
        relevant = subject.survey.kernels
        for layer, mask in relevant.items():
            if not torch.equal(drawn.moved(layer, mask), mask):
                raise ConvCircuitsError(
                    f"The relevant kernels of {layer} have no symmetry that could be found, so no circuit can be "
                    "relabelled."
                )
        return drawn

    def then(self, other: "Relabelling") -> "Relabelling":
        """Return this relabelling followed by another."""
        return Relabelling(
            {layer: other.filters[layer][places] for layer, places in self.filters.items()},
            {layer: other.channels[layer][places] for layer, places in self.channels.items()},
        )

    def inverse(self) -> "Relabelling":
        """Return the relabelling that undoes this one."""
        return Relabelling(
            {layer: places.argsort() for layer, places in self.filters.items()},
            {layer: places.argsort() for layer, places in self.channels.items()},
        )

    def moved(self, layer: str, table: Tensor) -> Tensor:
        """Return a table of a layer's filters, kernels or weights with each element in its new place."""
        filters, channels = self.filters[layer], self.channels[layer]
        moved = torch.empty_like(table)
        if table.dim() == 1:
            moved[filters] = table
            return moved
        # The second dimension counts channels inside a group, or the elements of blocks.
        width = min(table.shape[1], len(channels))
        groups = len(channels) // width
        read = torch.arange(len(table))[:, None] // (len(table) // groups) * width + torch.arange(width)
        moved = moved.reshape(len(table), width, -1)
        moved[filters[:, None], channels[read] % width] = table.reshape(len(table), width, -1)
        return moved.reshape(table.shape)


def relabelled(subject: Subject, circuit: Circuit, relabelling: Relabelling) -> Circuit:
    """Return a circuit on other filters, without calibration, with each element's saliency in its new place.

    Raises:
        ConvCircuitsError: If other kernels are effective in it than those of the circuit in their new places.
    """
    elements, saliency = (
        {layer: relabelling.moved(layer, values) for layer, values in table.items()}
        for table in (circuit.elements, circuit.saliency)
    )
    before, after = (
        subject.survey.inside(masks_of(LayerTable(table), circuit.granularity, subject.survey.kernels)[0])
        for table in (circuit.elements, elements)
    )
    if any(not torch.equal(relabelling.moved(layer, mask), after[layer]) for layer, mask in before.items()):
        raise ConvCircuitsError(
            f"The paths of {subject.network.name} could not be followed well enough to relabel this circuit."
        )
    return replace(
        circuit,
        elements=LayerTable(elements),
        saliency=LayerTable(saliency),
        gain=LayerTable(),
        offset=LayerTable(),
    )


class _Ties:
    """The channels that the layers on a path to the feature write and read, and which of them must move together.

    A *slot* is a channel of the image or a filter of a kernel call. What lies between calls passes slots on.

    Args:
        subject: The feature of the model.
        layout: The channels of the model's values.
    """

    def __init__(self, subject: Subject, layout: Layout) -> None:
        self._relevant = subject.survey.kernels
        self._count = 0
        self._ties: list[tuple[Tensor, Tensor]] = []  # slots that move together
        self._fixed: list[Tensor] = []  # slots that stay
        self._calls: list[tuple[KernelCall, Tensor, Tensor]] = []  # with the slots that it writes and reads; -1: none
        self._normed: list[tuple[Tensor, int]] = []  # slots that are normalized in groups, and the number of groups
        slots: dict[int, Tensor] = {}
        for number, value in layout.values.items():
            slots[number] = self._slots(value, layout, slots)
        self._fix(slots[layout.output.number][subject.survey.rows.cpu()])
        firsts: dict[str, tuple[Tensor, Tensor]] = {}
        for call, written, read in self._calls:
            for mine, first in zip((written, read), firsts.setdefault(call.layer, (written, read)), strict=True):
                self._tie(mine, first)
        self.grouped = bool(self._normed) or any(call.groups > 1 for call, _, _ in self._calls)

    def _new(self, count: int) -> Tensor:
        self._count += count
        return torch.arange(self._count - count, self._count)

    def _fix(self, slots: Tensor) -> None:
        self._fixed.append(slots[slots >= 0])

    def _tie(self, some: Tensor, others: Tensor) -> None:
        """Tie slots pair by pair; one whose partner is none stays."""
        both = (some >= 0) & (others >= 0)
        self._ties.append(_pairs(some, others))
        self._fix(some[~both])
        self._fix(others[~both])

    def _slots(self, value: Value, layout: Layout, slots: Mapping[int, Tensor]) -> Tensor:
        """Return the slot of each channel of a value; -1 for none. A value without a channel axis has one channel."""
        if value.number == 0:
            image = self._new(value.channels)
            self._fix(image)
            return image
        if value.call is not None:
            written = self._new(value.channels)
            if value.call.layer in self._relevant:
                read = _read(value.call, layout.values[value.inputs[0]], slots[value.inputs[0]])
                if read is None:
                    self._fix(slots[value.inputs[0]])
                    read = torch.full((_width(value.call),), -1)
                self._calls.append((value.call, written, read))
            return written
        if value.move is not None:
            laid = [slots[n] for n in value.move.sources]
            if value.move.channels is not None and value.axis is not None:
                taken = torch.cat(laid)[value.move.channels.clamp_min(0)]
                return taken.masked_fill(value.move.channels < 0, -1)
        else:
            laid = [slots[n] for n in value.inputs]
            if value.axis is not None and all(len(one) in (1, value.channels) for one in laid):
                wide = [one for one in laid if len(one) == value.channels]
                for one in wide[1:]:
                    self._tie(one, wide[0])
                groups = argument(value.node, "group") if value.node and value.node.name == "native_group_norm" else 1
                if wide and 1 < groups < value.channels:
                    self._normed.append((wide[0], groups))
                return wide[0] if wide else torch.full((value.channels,), -1)
            source = layout.values[value.inputs[0]]
            over = None if value.operation is None else value.operation.over
            if len(laid) == 1 and over is not None and source.axis is not None and source.axis + 1 in over:
                return torch.full((value.channels,), -1)  # all channels alike
        for one in laid:  # channels that are mixed with positions stay
            self._fix(one)
        return torch.full((value.channels,), -1)

    def draw(self, generator: torch.Generator, *, whole_groups: bool) -> Relabelling:
        """Draw a relabelling that moves groups as a whole, or one that leaves each channel in its group."""
        ties = list(self._ties)
        sides: list[tuple[int, int, Tensor, Tensor, int]] = []  # call, side, slots, whether they are needed, groups
        for number, (call, written, read) in enumerate(self._calls):
            relevant = self._relevant[call.layer].reshape(call.groups, -1, _width(call) // call.groups)
            sides.append((number, 0, written, relevant.any(2).flatten(), call.groups))
            sides.append((number, 1, read, relevant.any(1).flatten(), call.groups))
            if whole_groups and call.groups > 1:
                ties.append(_pairs(read, written[:: len(written) // call.groups].repeat_interleave(relevant.shape[2])))
        for number, (normed, groups) in enumerate(self._normed):
            sides.append((number, 2, normed, torch.ones_like(normed), groups))
        keys, slots, places = [], [], []
        for number, side, some, needed, groups in sides:
            there = (some >= 0).nonzero()[:, 0]
            size = len(some) // groups
            group = torch.arange(len(some)) // size
            if whole_groups and groups > 1:
                ties.append(_pairs(some, some[::size].repeat_interleave(size)))
            label = torch.zeros_like(group) if whole_groups else group
            rows = (torch.full_like(some, number), torch.full_like(some, side), needed.long(), label)
            keys.append(torch.stack(rows)[:, there])
            slots.append(some[there])
            places.append(there)
        atoms = _joined(self._count, ties)
        fixed = set(atoms[torch.cat(self._fixed)].tolist())
        members: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for atom, key, place in zip(
            atoms[torch.cat(slots)].tolist(),
            map(tuple, torch.cat(keys, 1).t().tolist()),
            torch.cat(places).tolist(),
            strict=True,
        ):
            members.setdefault(atom, []).append((key, place))
        alike: dict[tuple[tuple[int, ...], ...], list[list[tuple[tuple[int, ...], int]]]] = {}
        for atom, found in members.items():
            found.sort()
            if atom not in fixed:
                alike.setdefault(tuple(key for key, _ in found), []).append(found)
        tables = [(torch.arange(len(written)), torch.arange(len(read))) for _, written, read in self._calls]
        for exchanged in alike.values():
            order = torch.randperm(len(exchanged), generator=generator).tolist()
            for old, new in zip(exchanged, order, strict=True):
                for ((number, side, *_), place), (_, target) in zip(old, exchanged[new], strict=True):
                    if side < 2:
                        tables[number][side][place] = target
        by_layer = {call.layer: table for (call, _, _), table in zip(self._calls, tables, strict=True)}
        return Relabelling(
            {layer: written for layer, (written, _) in by_layer.items()},
            {layer: read for layer, (_, read) in by_layer.items()},
        )


def _pairs(some: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs without those in which one is none."""
    both = (some >= 0) & (others >= 0)
    return some[both], others[both]


def _width(call: KernelCall) -> int:
    """Return how many channels or blocks a call reads, over all groups."""
    return call.groups * call.weight.shape[1] if isinstance(call, ConvCall) else call.blocks


def _read(call: KernelCall, source: Value, slots: Tensor) -> Tensor | None:
    """Return the slots of the channels or blocks that a call reads; None if these are not channels of its input."""
    count = _width(call)
    axis = 0 if isinstance(call, ConvCall) else len(source.shape) - 1
    if source.axis != axis or len(slots) % count:
        return None
    return slots.reshape(count, -1)[:, 0]  # all positions of a flattened map's block belong to one channel


def _joined(count: int, ties: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the smallest of the slots that each slot is tied to, directly or not, itself included."""
    some, others = (torch.cat(side) for side in zip(*ties, strict=True)) if ties else torch.zeros(2, 0).long()
    label = torch.arange(count)
    while True:
        least = torch.minimum(label[some], label[others])
        joined = label.scatter_reduce(0, some, least, "amin").scatter_reduce(0, others, least, "amin")
        joined = joined[joined]
        if torch.equal(joined, label):
            return label
        label = joined
