"""Write circuits of a recorded model as one graph of small modules.

Each written tensor may hold fewer channels than the value it stands for, or several variants of one channel; for each
circuit a table says where it finds each of its channels. So circuits share what they have in common: a filter that
reads the same kernels of the same tensor is computed once.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from convcircuits.calls import ConvCall, LinearCall
from convcircuits.cutting import Cut, dim_of_softmax, read_by, reading
from convcircuits.functions import Kind, base_name, with_maps
from convcircuits.instructions import repeat_for
from convcircuits.interpreter import one_of
from convcircuits.layers import conv, norm, part_of, weight_and_bias
from convcircuits.masking import Masks
from convcircuits.recording import SIZED, Move, Recording, Ref, Value
from convcircuits.writing import Writer, functional, identity

_PER_CHANNEL = {F.batch_norm, F.instance_norm, F.prelu, torch.prelu}  # whose 1-D parameters run along the channels
_WORTH_CUTTING = 0.75  # a copy with fewer channels is made where at most this share of them is used


@dataclass(frozen=True)
class _Found:
    """Where a circuit finds a value: the tensor, and the place in it of each channel, -1 for none.

    A value without an axis is found whole, and has no places.
    """

    node: fx.Node
    places: Tensor


class Emitter:
    """Writes the graph that computes a feature in several circuits at once.

    Args:
        recording: What the model does.
        cuts: What each circuit keeps of it.
        masks: The circuits' masks; None is the full model.

    Attributes:
        writer: The graph.
    """

    def __init__(self, recording: Recording, cuts: Sequence[Cut], masks: Sequence[Masks | None]) -> None:
        self._values, self._recording, self._cuts, self._masks = recording.values, recording, cuts, masks
        image, weight = self._values[0], next(v.call.weight for v in self._values if v.call is not None)
        channels, height, width = recording.input_shape
        self._dtype, self.writer = weight.dtype, Writer((channels, height, width), weight.device)
        whole = _Found(self.writer.image, torch.arange(image.channels))
        self._found: list[dict[int, _Found]] = [{0: whole} for _ in cuts]
        for value in self._values[1:]:
            users = [n for n, cut in enumerate(cuts) if bool(cut.need[value.number].any())]
            if users:
                self._emit(value, users)

    def take(self, circuit: int, number: int, channels: Tensor, *, silent: bool) -> fx.Node:
        """Return a tensor with those channels of a value, in that order; dead ones as zeros where ``silent``."""
        value, found = self._values[number], self._found[circuit][number]
        places = found.places[channels]
        if silent:
            places = torch.where(self._cuts[circuit].live[number][channels], places, -1)
        return self.writer.choose(found.node, value.axis or 0, len(value.shape), places)

    def whole(self, circuit: int, number: int, *, silent: bool, along: int | None = None) -> fx.Node:
        """Return a value with all its channels; what dead filters hold as zeros where ``silent``.

        With ``along``, a dimension, that is where they meet live values along it.
        """
        value, live = self._values[number], self._cuts[circuit].live[number]
        if value.axis is not None:
            silent = silent and (along is None or bool(live.any()))
            return self.take(circuit, number, torch.arange(value.channels), silent=silent)
        node = self._found[circuit][number].node
        if along is not None:
            live = live | ~live.any(along - 1 if along > 0 else along, keepdim=True)
        if not silent or bool(live.all()):
            return node
        return self.writer.call(operator.mul, node, self.writer.constant(f"live_{number}", live.to(self._dtype)))

    def _emit(self, value: Value, users: Sequence[int]) -> None:
        if value.call is not None:
            constant = [n for n in users if value.inputs[0] not in self._found[n]]
            for n in constant:
                self._found[n][value.number] = self._constant(value, n)
            for node, circuits in self._by_input(value, [n for n in users if n not in constant]):
                self._kernels(value, node, circuits)
        elif value.move is not None:
            for n in users:
                self._found[n][value.number] = self._moved(value, value.move, n)
        elif len(value.inputs) == 1 and reading(self._recording, value, self._input(value)).aligned:
            for node, circuits in self._by_input(value, users):
                self._within(value, node, circuits)
        else:
            for n in users:
                self._found[n][value.number] = self._joined(value, n)

    def _input(self, value: Value) -> Value:
        return self._values[value.inputs[0]]

    def _by_input(self, value: Value, users: Sequence[int]) -> list[tuple[fx.Node, list[int]]]:
        """Group circuits by the tensor in which they find a value's input."""
        groups: dict[fx.Node, list[int]] = {}
        for n in users:
            groups.setdefault(self._found[n][value.inputs[0]].node, []).append(n)
        return list(groups.items())

    def _origin(self, value: Value, node: fx.Node) -> Tensor:
        """Return which channel of a value each place of a tensor holds; 0 for one that no circuit reads."""
        origin = torch.zeros(self.writer.width[node], dtype=torch.long)
        for found in (f[value.number] for f in self._found if value.number in f):
            if found.node is node:
                present = (found.places >= 0).nonzero()[:, 0]
                origin[found.places[present]] = present
        return origin

    def _holds(self, node: fx.Node, value: Value, channels: Tensor) -> _Found:
        """Say that a tensor holds those channels of a value, in that order."""
        if value.axis is None:
            return _Found(node, channels)
        self.writer.width[node] = len(channels)
        return _Found(node, _places(value.channels, channels))

    # ---------------------------------------- kernel calls

    def _kernels(self, value: Value, node: fx.Node, circuits: Sequence[int]) -> None:
        """Write a kernel call, once for all circuits that read the same tensor where that is less work."""
        if len(circuits) > 1 and all(self._can_share(value, n) for n in circuits):
            rows = {n: self._cuts[n].need[value.number].nonzero()[:, 0] for n in circuits}
            tables = {
                n: torch.cat([rows[n][:, None], self._reads(value, node, n, rows[n]).long()], 1) for n in circuits
            }
            unique, which = torch.unique(torch.cat(list(tables.values())), dim=0, return_inverse=True)
            different = {identity(table): table for table in tables.values()}.values()
            alone = sum(len(table) * int(table[:, 1:].any(0).sum()) for table in different)
            if len(unique) * int(unique[:, 1:].any(0).sum()) < alone:
                made = self._shared(value, node, unique)
                which = torch.split(which, [len(rows[n]) for n in circuits])
                for n, places in zip(circuits, which, strict=True):
                    found = torch.full((value.channels,), -1).index_copy(0, rows[n], places)
                    self._found[n][value.number] = _Found(made, found)
                return
        for n in circuits:
            self._found[n][value.number] = self._own_kernels(value, n)

    def _can_share(self, value: Value, n: int) -> bool:
        """Return whether filters can be told by what they read: no calibration, single weights or groups matter."""
        call = value.call
        plain = isinstance(call, ConvCall) and call.groups == 1 and self._input(value).axis == 0
        return plain and not self._is_special(value, n)

    def _is_special(self, value: Value, n: int) -> bool:
        call, masks = value.call, self._masks[n]
        if call is None or masks is None:
            return False
        return any(call.layer in table for table in (masks.gain, masks.offset, masks.weights))

    def _reads(self, value: Value, node: fx.Node, n: int, rows: Tensor) -> Tensor:
        """Return which places of the input's tensor each filter reads: (rows, places)."""
        places = self._found[n][value.inputs[0]].places
        present = places >= 0
        reads = torch.zeros(len(rows), self.writer.width[node], dtype=torch.bool)
        reads[:, places[present]] = self._cuts[n].conducting[value.number][rows][:, present]
        return reads

    def _shared(self, value: Value, node: fx.Node, table: Tensor) -> fx.Node:
        """Write a convolution of all different filters, given as rows (filter, which places it reads...)."""
        call = value.call
        assert isinstance(call, ConvCall)
        rows, reads = table[:, 0], table[:, 1:].bool()
        columns = reads.any(0).nonzero()[:, 0]
        origin = self._origin(self._input(value), node)[columns]
        kept = reads[:, columns].to(call.weight)[:, :, None, None]
        part = conv(call, call.weight, call.bias, rows, origin)
        part.layer.weight = nn.Parameter(part.layer.get_parameter("weight").detach() * kept)
        x = self.writer.choose(node, 0, 3, columns)
        made = self.writer.module(value.layer, part.layer, x, filters=_numbers(value, rows), channels=origin)
        self.writer.width[made] = len(rows)
        return made

    def _own_kernels(self, value: Value, n: int) -> _Found:
        """Write a kernel call for one circuit."""
        call, source, cut = value.call, self._input(value), self._cuts[n]
        assert call is not None
        need, conducting = cut.need[value.number], cut.conducting[value.number]
        rows = need.nonzero()[:, 0]
        read = read_by(value, need, conducting)
        at_channels = source.axis == (0 if isinstance(call, ConvCall) else len(source.shape) - 1)
        if not at_channels:
            read = torch.ones_like(read)
        part = part_of(call, *weight_and_bias(call, self._masks[n], conducting), rows, read)
        if at_channels:  # a block of a flattened map may be of channels of which some are dead
            x = self.take(n, source.number, part.channels, silent=isinstance(call, LinearCall))
        else:
            x = self.whole(n, source.number, silent=True)
        key = ("kernels", value.number, x, identity(rows), n if self._is_special(value, n) else identity(conducting))
        filters = _numbers(value, part.filters)
        node = self.writer.once(
            key,
            lambda: self.writer.module(value.layer, part.layer, x, filters=filters, channels=part.channels),
        )
        self.writer.width[node] = len(part.filters)
        return _Found(node, _places(value.channels, part.filters))

    def _constant(self, value: Value, n: int) -> _Found:
        """Write what is left of a kernel call that reads nothing live: the biases that a gate needs."""
        call, conducting = value.call, self._cuts[n].conducting[value.number]
        assert call is not None
        rows = self._cuts[n].need[value.number].nonzero()[:, 0]
        bias = weight_and_bias(call, self._masks[n], conducting)[1]
        held = call.weight.new_zeros(len(rows)) if bias is None else bias[rows]
        shape = [len(rows) if d == value.axis else 1 for d in range(len(value.shape))]
        bias_node = self.writer.constant(f"{value.layer.replace('.', '_')}_bias", held.reshape(1, *shape))
        return self._holds(self.writer.call(repeat_for, bias_node, self.writer.image), value, rows)

    # ---------------------------------------- moves

    def _moved(self, value: Value, move: Move, n: int) -> _Found:
        if move.form is None or move.channels is None:
            nodes = {k: self.whole(n, k, silent=False) for k in value.inputs}
            return self._holds(self._replayed(value, nodes), value, torch.arange(value.channels))
        if move.form == "gather":
            return self._gathered(value, move.sources, move.channels, n)
        source = self._values[move.sources[0]]
        found, wanted = self._found[n][source.number], torch.unique(move.channels[self._cuts[n].need[value.number]])
        if len(wanted) <= _WORTH_CUTTING * self.writer.width[found.node]:
            found = self._holds(self.take(n, source.number, wanted, silent=False), source, wanted)
        # Channels of the source are repeated: runs of `inner` of them (a map laid flat) again and again.
        numbers = torch.arange(value.channels).reshape(-1, source.channels, move.inner)
        times, width = len(numbers), self.writer.width[found.node]
        if move.form == "call":
            made = self._replayed(value, {value.inputs[0]: found.node})
        else:
            shape = list(value.shape)
            shape[value.axis or 0] = times * width * move.inner
            made = self.writer.call("reshape", found.node, (-1, *shape))
        self.writer.width[made] = times * width * move.inner
        places, present = torch.full((value.channels,), -1), found.places >= 0
        held = torch.arange(times * width * move.inner).reshape(times, width, move.inner)
        places[numbers[:, present].flatten()] = held[:, found.places[present]].flatten()
        return _Found(made, places)

    def _gathered(self, value: Value, sources: Sequence[int], channels: Tensor, n: int) -> _Found:
        """Write channels of several values along one axis: a concatenation, a cut, a shuffle."""
        need = self._cuts[n].need[value.number].nonzero()[:, 0]
        nodes, places, start, first = [], torch.full((len(need),), -1), 0, 0
        for s in sources:
            inside = (channels[need] >= first) & (channels[need] < first + self._values[s].channels)
            own, which = torch.unique(channels[need][inside] - first, return_inverse=True)
            if len(own):
                nodes.append(self.take(n, s, own, silent=False))
                places[inside] = which + start
                start += len(own)
            first += self._values[s].channels
        axis = value.axis or 0
        node = nodes[0] if len(nodes) == 1 else self.writer.call(torch.cat, tuple(nodes), axis + 1)
        self.writer.width[node] = start
        return self._holds(self.writer.choose(node, axis, len(value.shape), places), value, need)

    def _replayed(self, value: Value, nodes: Mapping[int, fx.Node]) -> fx.Node:
        """Write a moving function as it is, numbers of images and channels left open."""
        node, name = nodes[value.inputs[0]], base_name(value.function)
        if name in SIZED:
            if not name.startswith("expand"):
                return self.writer.call("reshape", node, (-1, *value.shape))
            sizes = (-1 if d == value.axis else size for d, size in enumerate(value.shape))
            return self.writer.call("expand", node, (-1, *sizes))
        return self._called(value, nodes, value.args, value.kwargs)

    # ---------------------------------------- functions that compute

    def _within(self, value: Value, node: fx.Node, circuits: Sequence[int]) -> None:
        """Write a function that stays within channels, once for all circuits that read the same tensor."""
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
        """Write a function of several maps, or one that needs whole maps."""
        how = {k: reading(self._recording, value, self._values[k]) for k in value.inputs}
        aligned = [k for k in value.inputs if how[k].aligned and k in self._found[n]]
        along = dim_of_softmax(value)
        nodes = {k: self.whole(n, k, silent=how[k].silent, along=along) for k in value.inputs if not how[k].aligned}
        if not aligned:
            every = torch.arange(value.channels)
            return self._holds(self._applied(value, nodes, every), value, every)
        wanted = self._cuts[n].need[value.number].nonzero()[:, 0]
        wide = [k for k in nodes if self._has_channels_of(value, k)]
        as_it_is = not wide and self._readable_as_it_is(n, aligned, wanted, how[aligned[0]].silent)
        for k in wide:
            dim = (value.axis or 0) - len(value.shape)
            nodes[k] = self.writer.call(torch.index_select, nodes[k], dim, self.writer.constant("channels", wanted))
        for k in aligned:
            found = self._found[n][k]
            nodes[k] = found.node if as_it_is else self.take(n, k, wanted, silent=how[k].silent)
        for k in value.inputs:
            if k not in nodes:  # all that is wanted of it is dead
                like = next(nodes[other] for other in aligned if self._values[other].shape == value.shape)
                nodes[k] = self.writer.call(torch.zeros_like, like, dtype=self._values[k].dtype)
        if not as_it_is:
            return self._holds(self._applied(value, nodes, wanted), value, wanted)
        first = self._found[n][aligned[0]]
        made = self._applied(value, nodes, self._origin(self._values[aligned[0]], first.node))
        return _Found(made, first.places)

    def _has_channels_of(self, value: Value, number: int) -> bool:
        """Return whether an input without an axis has as many values along the result's axis as that has channels."""
        shape, back = self._values[number].shape, len(value.shape) - (value.axis or 0)
        return value.axis is not None and back <= len(shape) and shape[-back] == value.channels > 1

    def _readable_as_it_is(self, n: int, numbers: Sequence[int], wanted: Tensor, silent: bool) -> bool:
        """Return whether inputs hold the wanted channels at the same places, all live where they have to be."""
        first = self._found[n][numbers[0]]
        if len(wanted) <= _WORTH_CUTTING * self.writer.width[first.node] or bool((first.places[wanted] < 0).any()):
            return False
        return all(
            torch.equal(self._found[n][k].places, first.places)
            and self.writer.width[self._found[n][k].node] == self.writer.width[first.node]
            and (not silent or bool(self._cuts[n].live[k][wanted].all()))
            for k in numbers
        )

    def _applied(self, value: Value, nodes: Mapping[int, fx.Node], origin: Tensor) -> fx.Node:
        """Write a value's function on tensors that hold some of its channels, its constants cut alike."""

        def write() -> fx.Node:
            module = norm(value, origin)
            if module is not None:
                return self.writer.module(value.layer, module, nodes[value.inputs[0]], channels=origin)
            args, kwargs = with_maps((value.args, dict(value.kwargs)), lambda x: self._cut_constant(value, x, origin))
            return self._called(value, nodes, args, kwargs)

        key = ("apply", value.number, tuple(nodes[k] for k in value.inputs), identity(origin))
        made = self.writer.once(key, write)
        if value.axis is not None:
            self.writer.width[made] = len(origin)
        return made

    def _called(self, value: Value, nodes: Mapping[int, fx.Node], args: Any, kwargs: Any) -> fx.Node:
        args, kwargs = with_maps((args, dict(kwargs)), lambda ref: nodes[ref.number], Ref)
        function, args, kwargs = functional(value.function, args, kwargs)
        node = self.writer.call(function, *args, **kwargs)
        return node if value.part is None else self.writer.call(one_of, node, value.part)

    def _cut_constant(self, value: Value, x: Tensor, origin: Tensor) -> fx.Node:
        """Write a constant of a function, of as many channels as the tensors that it meets."""
        if value.axis is not None and value.rule is not None and value.rule.kind is not Kind.MIX:
            per_channel = value.function in _PER_CHANNEL and x.dim() == 1
            dim = 0 if per_channel else x.dim() - (len(value.shape) - value.axis)
            if 0 <= dim < x.dim() and x.shape[dim] == value.channels and value.channels > 1:
                x = x.index_select(dim, origin.to(x.device))
        return self.writer.constant(f"{value.layer.replace('.', '_') or 'model'}_constant", x)


def _places(channels: int, held: Tensor) -> Tensor:
    """Say where each of so many channels is in a tensor that holds some of them (-1: a place that holds none)."""
    real = (held >= 0).nonzero()[:, 0]
    return torch.full((channels,), -1).index_copy(0, held[real], real)


def _numbers(value: Value, rows: Tensor) -> Tensor:
    """Number the layer's filters that rows of a call are, which may compute only some."""
    computed = None if value.call is None else value.call.rows
    return rows if computed is None else torch.where(rows < 0, rows, computed.cpu()[rows.clamp_min(0)])
