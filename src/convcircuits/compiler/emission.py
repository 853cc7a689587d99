"""Write circuits of a model as one graph of small modules.

A written tensor may hold fewer channels than the value it represents, or several variants of one channel; a table maps
the channels of each circuit to positions in it. So circuits share what they have in common: a filter that applies the
same kernels to the same tensor is computed once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from convcircuits.compiler.cutting import Cut, of_one_image, read_by
from convcircuits.compiler.instructions import repeat_for
from convcircuits.compiler.interpreter import one_of
from convcircuits.compiler.layers import conv, norm, part_of
from convcircuits.compiler.layout import Layout, Move, Value, Written
from convcircuits.compiler.writing import Writer, identity
from convcircuits.network.calls import ConvCall
from convcircuits.network.graph import Ref
from convcircuits.network.masking import Masks
from convcircuits.network.operations import is_batch_norm

_COPY = 200  # multiplications that take as long as copying one value of a map, measured on AlexNet and VGG16
_WORTH_CUTTING = 0.75  # a copy with fewer channels is written if at most this share of them is used


@dataclass(frozen=True)
class _Found:
    """Where a circuit finds a value: the tensor, and the position in it of each channel, -1 for none.

    A value without an axis is found whole, and has no positions.
    """

    node: fx.Node
    places: Tensor


class Emitter:
    """Writes the graph that computes a feature in several circuits at once.

    Args:
        layout: The layout of the model.
        cuts: What each circuit keeps of the model.
        masks: The masks of each circuit; None for the full model.

    Attributes:
        writer: The writer of the graph.
        any_size: Whether the written graph fixes no image size beyond what the model itself fixes.
    """

    def __init__(self, layout: Layout, cuts: Sequence[Cut], masks: Sequence[Masks | None]) -> None:
        self._values, self._layout, self._cuts, self._masks = layout.values, layout, cuts, masks
        weight = next(value.call.weight for value in self._values.values() if value.call is not None)
        channels, height, width = layout.input_shape
        self.writer, self.any_size = Writer((channels, height, width), weight.device), True
        whole = _Found(self.writer.image, torch.arange(channels))
        self._found: list[dict[int, _Found]] = [{0: whole} for _ in cuts]
        read = _read(layout)
        for number, value in list(self._values.items())[1:]:
            users = [n for n, cut in enumerate(cuts) if number in cut.need]
            if users and number in read:
                self._emit(value, users)

    def output(self, circuit: int, channels: Tensor) -> fx.Node:
        """Return a tensor with these channels of the output of the feature's layer, dead ones as zeros."""
        value, dead = self._layout.output, self._cuts[circuit].output
        if value.axis == 0:
            return self._take(circuit, value, channels, _dead_channels(value, dead))
        whole = self._whole(circuit, value, dead)
        return self._selected(whole, 1, channels)

    def _take(self, circuit: int, value: Value, channels: Tensor, dead: Tensor | None) -> fx.Node:
        """Return a tensor with these channels of a value, in this order, with zeros for dead ones."""
        found = self._found[circuit][value.number]
        places = found.places[channels]
        if dead is not None:
            places = torch.where(dead[channels], -1, places)
        return self.writer.choose(found.node, value.axis or 0, len(value.shape), places)

    def _whole(self, circuit: int, value: Value, dead: Tensor | None) -> fx.Node:
        """Return a value with all its channels, with zeros where it is dead."""
        if value.number not in self._found[circuit]:
            return self._zeros(value)
        channels = _dead_channels(value, dead)
        if value.axis is not None and (dead is None or channels is not None):
            return self._take(circuit, value, torch.arange(value.channels), channels)
        node = self._found[circuit][value.number].node
        if value.axis is not None:
            node = self._take(circuit, value, torch.arange(value.channels), None)
        return node if dead is None else self._silenced(node, value, dead)

    def _silenced(self, node: fx.Node, value: Value, dead: Tensor) -> fx.Node:
        constant = self.writer.constant(f"silent_{value.number}", of_one_image(dead, value))
        self.any_size &= all(size == 1 for d, size in enumerate(dead.shape[1:]) if d != value.axis)
        return self.writer.call(torch.ops.aten.masked_fill.Scalar, node, constant, 0)

    def _selected(self, node: fx.Node, dim: int, channels: Tensor) -> fx.Node:
        constant = self.writer.constant("channels", channels)
        return self.writer.call(torch.ops.aten.index_select.default, node, dim, constant)

    def _zeros(self, value: Value) -> fx.Node:
        """Write zeros for a value whose content is not needed."""
        self.any_size &= _is_point(value)
        return self._constant(value, torch.zeros(1, *value.shape, dtype=value.dtype), "zeros")

    def _constant(self, value: Value, held: Tensor, name: str) -> fx.Node:
        """Write a constant (1, ...) for every image of the batch."""
        return self.writer.call(repeat_for, self._named(value, held, name), self.writer.image)

    def _silent(self, n: int, value: Value, source: Value) -> Tensor | None:
        """Return where an input is zeroed in a circuit, or None if nowhere."""
        return self._cuts[n].silent.get((value.place or 0, source.number))

    def _emit(self, value: Value, users: Sequence[int]) -> None:
        if value.call is not None:
            for node, circuits in self._by_input(value, users):
                self._kernels(value, node, circuits)
        elif value.move is not None:
            for n in users:
                self._found[n][value.number] = self._moved(value, value.move, n)
        elif self._is_within(value, users):
            for node, circuits in self._by_input(value, users):
                assert node is not None
                self._within(value, node, circuits)
        else:
            for n in users:
                self._found[n][value.number] = self._joined(value, n)

    def _is_within(self, value: Value, users: Sequence[int]) -> bool:
        source = self._input(value)
        alone = len(value.inputs) == 1 and value.reads_aligned(source)
        return alone and not any((value.place, source.number) in self._cuts[n].silent for n in users)

    def _input(self, value: Value) -> Value:
        return self._values[value.inputs[0]]

    def _by_input(self, value: Value, users: Sequence[int]) -> list[tuple[fx.Node | None, list[int]]]:
        """Group circuits by the tensor in which they find a value's input, None for those that do not find it."""
        groups: dict[fx.Node | None, list[int]] = {}
        for n in users:
            found = self._found[n].get(value.inputs[0])
            groups.setdefault(None if found is None else found.node, []).append(n)
        return list(groups.items())

    def _origin(self, value: Value, node: fx.Node) -> Tensor:
        """Return the channel of a value at each position of a tensor; 0 for positions that no circuit reads."""
        origin = torch.zeros(self.writer.width[node], dtype=torch.long)
        for found in (f[value.number] for f in self._found if value.number in f):
            if found.node is node:
                present = (found.places >= 0).nonzero()[:, 0]
                origin[found.places[present]] = present
        return origin

    def _holds(self, node: fx.Node, value: Value, channels: Tensor) -> _Found:
        """Record that a tensor holds these channels of a value, in this order."""
        if value.axis is None:
            return _Found(node, channels)
        self.writer.width[node] = len(channels)
        return _Found(node, _places(value.channels, channels))

    # ---------------------------------------- kernel calls

    def _kernels(self, value: Value, node: fx.Node | None, circuits: Sequence[int]) -> None:
        """Write a kernel call, once for all circuits that read the same tensor if that is less work."""
        if node is not None and len(circuits) > 1 and all(self._can_share(value, n) for n in circuits):
            rows = {n: self._cuts[n].need[value.number].nonzero()[:, 0] for n in circuits}
            tables = {
                n: torch.cat([rows[n][:, None].int(), self._reads(value, node, n, rows[n]).int()], 1) for n in circuits
            }
            unique, which = torch.unique(torch.cat(list(tables.values())), dim=0, return_inverse=True)
            different = {identity(table): table for table in tables.values()}.values()
            copied = sum(map(len, different))  # each circuit then reads its channels out of a tensor of many
            if _cost(value, [unique]) + _COPY * copied < _cost(value, different):
                made = self._shared(value, node, unique)
                which = torch.split(which, [len(rows[n]) for n in circuits])
                for n, places in zip(circuits, which, strict=True):
                    found = torch.full((value.channels,), -1).index_copy(0, rows[n], places)
                    self._found[n][value.number] = _Found(made, found)
                return
        for n in circuits:
            self._found[n][value.number] = self._own_kernels(value, n)

    def _can_share(self, value: Value, n: int) -> bool:
        """Return whether the kernels of a filter identify it: there are no calibration, weight masks or groups."""
        call = value.call
        source = self._input(value)
        plain = isinstance(call, ConvCall) and call.groups == 1 and source.axis == 0
        return plain and self._silent(n, value, source) is None and not self._is_special(value, n)

    def _is_special(self, value: Value, n: int) -> bool:
        call, masks = value.call, self._masks[n]
        if call is None or masks is None:
            return False
        return any(call.layer in table for table in (masks.gain, masks.offset, masks.weights))

    def _reads(self, value: Value, node: fx.Node, n: int, rows: Tensor) -> Tensor:
        """Return which positions of the input's tensor each filter reads, (rows, positions)."""
        places = self._found[n][value.inputs[0]].places
        present = places >= 0
        reads = torch.zeros(len(rows), self.writer.width[node], dtype=torch.bool)
        reads[:, places[present]] = self._cuts[n].conducting[value.number][rows][:, present]
        return reads

    def _shared(self, value: Value, node: fx.Node, table: Tensor) -> fx.Node:
        """Write a convolution of all distinct filters, given as rows (filter, which positions it reads...)."""
        call = value.call
        assert isinstance(call, ConvCall)
        rows, reads = table[:, 0].long(), table[:, 1:].bool()
        columns = reads.any(0).nonzero()[:, 0]
        origin = self._origin(self._input(value), node)[columns]
        kept = reads[:, columns].to(call.weight)[:, :, None, None]
        part = conv(call, call.weight, call.bias, rows, origin)
        with torch.no_grad():
            part.layer.get_parameter("weight").mul_(kept)
        x = self.writer.choose(node, 0, 3, columns)
        made = self.writer.module(value.layer, part.layer, x, filters=rows, channels=origin)
        self.writer.width[made] = len(rows)
        return made

    def _own_kernels(self, value: Value, n: int) -> _Found:
        """Write a kernel call for one circuit."""
        call, source, cut = value.call, self._input(value), self._cuts[n]
        assert call is not None
        need, conducting = cut.need[value.number], cut.conducting[value.number]
        rows = need.nonzero()[:, 0]
        read, at_channels = read_by(value, source, need, conducting)
        weight, bias = (self._masks[n] or Masks({})).weight_and_bias(call, conducting)
        if not bool((conducting & need[:, None]).any()):
            return self._bias(value, rows, weight.new_zeros(len(rows)) if bias is None else bias[rows])
        part = part_of(call, weight, bias, rows, read)
        dead = self._silent(n, value, source)
        by_channel = _dead_channels(source, dead)
        if at_channels and (dead is None or by_channel is not None):
            x = self._take(n, source, part.channels, by_channel)
        else:
            x = self._whole(n, source, dead)
            if at_channels or len(part.channels) < read.numel():  # else only some groups are read
                x = self._selected(x, 1 if isinstance(call, ConvCall) else -1, part.channels)
        own = n if self._is_special(value, n) else identity(conducting[rows])
        key = ("kernels", value.number, x, identity(rows), own)
        node = self.writer.once(
            key,
            lambda: self.writer.module(value.layer, part.layer, x, filters=part.filters, channels=part.channels),
        )
        self.writer.width[node] = len(part.filters)
        return _Found(node, _places(value.channels, part.filters))

    def _bias(self, value: Value, rows: Tensor, bias: Tensor) -> _Found:
        """Write a kernel call that reads nothing live as its biases, which a gate needs."""
        self.any_size &= _is_point(value)
        shape = [len(rows) if d == value.axis else size for d, size in enumerate(value.shape)]
        held = bias.reshape(1, *(-1 if d == value.axis else 1 for d in range(len(shape)))).expand(1, *shape)
        return self._holds(self._constant(value, held, "bias"), value, rows)

    # ---------------------------------------- moves

    def _moved(self, value: Value, move: Move, n: int) -> _Found:
        if move.form is None or move.channels is None:
            nodes = {k: self._whole(n, self._values[k], None) for k in value.inputs}
            return self._holds(self._replayed(value, nodes), value, torch.arange(value.channels))
        if move.form == "gather":
            return self._gathered(value, move.sources, move.channels, n)
        source = self._values[move.sources[0]]
        if source.number not in self._found[n]:  # only zeros are wanted
            return self._holds(self._zeros(value), value, torch.arange(value.channels))
        found, wanted = self._found[n][source.number], torch.unique(move.channels[self._cuts[n].need[value.number]])
        if len(wanted) <= _WORTH_CUTTING * self.writer.width[found.node]:
            found = self._holds(self._take(n, source, wanted, None), source, wanted)
        # Each channel of the source repeats ``inner`` times (a flattened map), and then all of them ``times`` times.
        numbers = torch.arange(value.channels).reshape(-1, source.channels, move.inner)
        times, width = len(numbers), self.writer.width[found.node]
        if move.form == "call":
            made = self._replayed(value, {value.inputs[0]: found.node})
        else:
            shape = list(value.shape)
            shape[value.axis or 0] = times * width * move.inner
            made = self.writer.call(torch.ops.aten.reshape.default, found.node, [-1, *shape])
        self.writer.width[made] = times * width * move.inner
        places, present = torch.full((value.channels,), -1), found.places >= 0
        held = torch.arange(times * width * move.inner).reshape(times, width, move.inner)
        places[numbers[:, present].flatten()] = held[:, found.places[present]].flatten()
        return _Found(made, places)

    def _gathered(self, value: Value, sources: Sequence[int], channels: Tensor, n: int) -> _Found:
        """Write channels of several values along one axis: a concatenation, a slice, a shuffle."""
        need = self._cuts[n].need[value.number].nonzero()[:, 0]
        nodes, places, start, first = [], torch.full((len(need),), -1), 0, 0
        for s in sources:
            inside = (channels[need] >= first) & (channels[need] < first + self._values[s].channels)
            own, which = torch.unique(channels[need][inside] - first, return_inverse=True)
            if len(own) and s in self._found[n]:
                nodes.append(self._take(n, self._values[s], own, None))
                places[inside] = which + start
                start += len(own)
            first += self._values[s].channels
        if not nodes:
            return self._holds(self._zeros(value), value, torch.arange(value.channels))
        axis = value.axis or 0
        node = nodes[0] if len(nodes) == 1 else self.writer.call(torch.ops.aten.cat.default, nodes, axis + 1)
        self.writer.width[node] = start
        return self._holds(self.writer.choose(node, axis, len(value.shape), places), value, need)

    def _replayed(self, value: Value, nodes: Mapping[int, fx.Node]) -> fx.Node:
        """Write a moving operation unchanged."""
        written = self._layout.written(value)
        return self._called(written, nodes, lambda x: self._named(value, x))

    # ---------------------------------------- operations that compute

    def _within(self, value: Value, node: fx.Node, circuits: Sequence[int]) -> None:
        """Write an operation within channels, once for all circuits that read the same tensor."""
        source = self._input(value)
        places = {n: self._found[n][source.number].places for n in circuits}
        origin, used = self._origin(source, node), torch.zeros(self.writer.width[node], dtype=torch.bool)
        for n in circuits:
            used[places[n][self._cuts[n].need[value.number]]] = True
        if int(used.sum()) <= _WORTH_CUTTING * len(used):
            kept = used.nonzero()[:, 0]
            moved = torch.full((len(used) + 1,), -1).index_copy(0, kept, torch.arange(len(kept)))
            node, origin = self.writer.choose(node, source.axis or 0, len(source.shape), kept), origin[kept]
            places = {n: moved[place] for n, place in places.items()}
        made = self._applied(value, {source.number: node}, origin)
        for n in circuits:
            self._found[n][value.number] = _Found(made, places[n])

    def _joined(self, value: Value, n: int) -> _Found:
        """Write an operation on several values, or one that needs whole values."""
        sources = {k: self._values[k] for k in value.inputs}
        dead = {k: self._silent(n, value, source) for k, source in sources.items()}
        by_channel = {k: _dead_channels(source, dead[k]) for k, source in sources.items()}
        aligned = [
            k
            for k, source in sources.items()
            if value.reads_aligned(source) and (dead[k] is None or by_channel[k] is not None)
        ]
        here = [k for k in aligned if k in self._found[n]]
        nodes = {k: self._whole(n, source, dead[k]) for k, source in sources.items() if k not in aligned}
        if not here:
            nodes |= {k: self._zeros(sources[k]) for k in aligned}
            every = torch.arange(value.channels)
            return self._holds(self._applied(value, nodes, every), value, every)
        wanted = self._cuts[n].need[value.number].nonzero()[:, 0]
        wide = [k for k in nodes if self._has_channels_of(value, k)]
        as_it_is = not wide and len(here) == len(aligned) and self._readable_as_it_is(n, here, wanted, by_channel)
        for k in wide:
            nodes[k] = self._selected(nodes[k], (value.axis or 0) - len(value.shape), wanted)
        for k in here:
            found = self._found[n][k]
            nodes[k] = found.node if as_it_is else self._take(n, sources[k], wanted, by_channel[k])
        for k in set(aligned) - set(here):  # all wanted channels of it are dead
            like = next((nodes[other] for other in here if sources[other].shape == sources[k].shape), None)
            if like is None:
                nodes[k] = self._selected(self._zeros(sources[k]), (value.axis or 0) - len(value.shape), wanted)
            else:
                nodes[k] = self.writer.call(torch.ops.aten.zeros_like.default, like, dtype=sources[k].dtype)
        if not as_it_is:
            return self._holds(self._applied(value, nodes, wanted), value, wanted)
        first = self._found[n][here[0]]
        made = self._applied(value, nodes, self._origin(sources[here[0]], first.node))
        return _Found(made, first.places)

    def _has_channels_of(self, value: Value, number: int) -> bool:
        """Return whether an input has the size of the result along the result's axis."""
        shape, back = self._values[number].shape, len(value.shape) - (value.axis or 0)
        return value.axis is not None and back <= len(shape) and shape[-back] == value.channels > 1

    def _readable_as_it_is(
        self, n: int, numbers: Sequence[int], wanted: Tensor, dead: Mapping[int, Tensor | None]
    ) -> bool:
        """Return whether inputs hold the wanted channels at the same positions, none of them zeroed."""
        first = self._found[n][numbers[0]]
        if len(wanted) <= _WORTH_CUTTING * self.writer.width[first.node] or bool((first.places[wanted] < 0).any()):
            return False
        if any(bool(gone[wanted].any()) for k in numbers if (gone := dead[k]) is not None):
            return False
        return all(
            torch.equal(found.places, first.places) and self.writer.width[found.node] == self.writer.width[first.node]
            for found in (self._found[n][k] for k in numbers)
        )

    def _applied(self, value: Value, nodes: Mapping[int, fx.Node], origin: Tensor) -> fx.Node:
        """Write a value's operation on tensors with some of its channels, selecting the same from its constants."""

        def write() -> fx.Node:
            module = norm(value, origin) if value.axis == 0 else None
            if module is not None:
                return self.writer.module(value.layer, module, nodes[value.inputs[0]], channels=origin)
            written = self._layout.written(value)
            return self._called(written, nodes, lambda x: self._named(value, _cut(value, written, x, origin)))

        key = ("apply", value.number, tuple(nodes[k] for k in value.inputs), identity(origin))
        made = self.writer.once(key, write)
        if value.axis is not None:
            self.writer.width[made] = len(origin)
        return made

    def _called(self, written: Written, nodes: Mapping[int, fx.Node], constant: Callable[[Tensor], fx.Node]) -> fx.Node:
        """Write a call, with nodes for its values and its constant tensors."""

        def placed(x: Any) -> Any:
            if isinstance(x, Ref):
                return nodes[x.number]
            if isinstance(x, Tensor):
                return constant(x)
            return type(x)(map(placed, x)) if type(x) in (tuple, list) else x

        args, aten = [*map(placed, written.args)], torch.ops.aten
        if written.op is aten.group_norm.default:  # far less exact with channels last in memory
            args[0] = self.writer.call(aten.contiguous.default, args[0])
        node = self.writer.call(written.op, *args, **{k: placed(x) for k, x in written.kwargs.items()})
        return node if written.part is None else self.writer.call(one_of, node, written.part)

    def _named(self, value: Value, x: Tensor, name: str = "constant") -> fx.Node:
        return self.writer.constant(f"{value.layer.replace('.', '_') or 'model'}_{name}", x)


def _cost(value: Value, tables: Iterable[Tensor]) -> int:
    """Return the multiplications at each position of convolutions of distinct filters, given as for ``_shared``."""
    assert value.call is not None
    size = value.call.weight[0, 0].numel()
    return sum(len(table) * int(table[:, 1:].any(0).sum()) * size for table in tables)


def _read(layout: Layout) -> set[int]:
    """Return the values that are read if moves read their sources instead of the values in between."""
    read = {layout.output.number}
    for number, value in reversed(list(layout.values.items())):
        if number in read:
            through = value.move is not None and value.move.form is not None
            read |= {*(value.move.sources if value.move is not None and through else value.inputs)}
    return read


def _dead_channels(value: Value, dead: Tensor | None) -> Tensor | None:
    """Return which channels are dead if each is dead or live as a whole, else None."""
    if dead is None or value.axis is None:
        return None
    by_channel = of_one_image(dead, value)[0].movedim(value.axis, 0)
    by_channel = by_channel.reshape(len(by_channel), -1)
    if bool((by_channel != by_channel[:, :1]).any()):
        return None
    return by_channel[:, 0].expand(value.channels)


def _cut(value: Value, written: Written, x: Tensor, origin: Tensor) -> Tensor:
    """Return a constant of an operation for some channels, if it varies along channels, else unchanged."""
    if value.axis is None or (len(origin) == value.channels and torch.equal(origin, torch.arange(value.channels))):
        return x
    per_channel = value.node is not None and is_batch_norm(value.node)
    per_channel |= written.op is torch.ops.aten.instance_norm.default
    if per_channel and value.axis:
        return x
    dim = 0 if per_channel else x.dim() - (len(value.shape) - value.axis)
    if 0 <= dim < x.dim() and x.shape[dim] == value.channels > 1:
        return x.index_select(dim, origin.to(x.device))
    return x


def _is_point(value: Value) -> bool:
    """Return whether a value has one position, so that a constant for it does not depend on the map's size."""
    return value.channels == torch.Size(value.shape).numel()


def _places(channels: int, held: Tensor) -> Tensor:
    """Return the position of each channel in a tensor that holds some of them; -1 means none, in both."""
    real = (held >= 0).nonzero()[:, 0]
    return torch.full((channels,), -1).index_copy(0, held[real], real)
