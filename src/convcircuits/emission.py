"""Write circuits of a recorded model as one graph of small modules.

Each emitted tensor may hold fewer channels than the value it stands for, or several variants of one channel; a table
says where each circuit finds each of its channels. So circuits share what they have in common: a filter that reads the
same kernels of the same tensor is computed once.
"""

import hashlib
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from convcircuits.calls import ConvCall, KernelCall
from convcircuits.cutting import Cut, read_by, reading
from convcircuits.functions import Kind, argument, base_name, with_maps
from convcircuits.masking import Masks
from convcircuits.recording import Recording, Ref, Value

_PER_CHANNEL = {F.batch_norm, F.instance_norm, F.prelu, torch.prelu}  # whose 1-D parameters run along the channels
_WORTH_CUTTING = 0.75  # a copy with fewer channels is made where at most this share of them is used


@dataclass(frozen=True)
class _Found:
    """Where a circuit finds a value: the tensor, and the place in it of each channel (-1: none; None: no axis)."""

    node: fx.Node
    place: Tensor | None


class Emitter:
    """Writes the graph that computes a feature in several circuits at once.

    Args:
        recording: What the model does.
        cuts: What each circuit keeps of it.
        masks: The circuits' masks; None is the full model.
    """

    def __init__(self, recording: Recording, cuts: Sequence[Cut], masks: Sequence[Masks | None]) -> None:
        self._recording, self._cuts, self._masks = recording, cuts, masks
        self._graph, self._root = fx.Graph(), fx.GraphModule(nn.Module(), fx.Graph())
        self._found: list[dict[int, _Found]] = [{} for _ in cuts]
        self._origin: dict[fx.Node, Tensor] = {}  # the channel of the value that each place holds
        self._made: dict[Any, fx.Node] = {}
        image = self._graph.placeholder("x")
        self._origin[image] = torch.arange(recording.values[0].channels)
        for found in self._found:
            found[0] = _Found(image, self._origin[image])
        self._image = image

    def emit(self, finish: Callable[["Emitter", int], fx.Node], *, always_tuple: bool) -> fx.GraphModule:
        """Write all values that are needed, then what ``finish`` makes of each circuit's last one; in eval mode."""
        for value in self._recording.values[1:]:
            users = [n for n, cut in enumerate(self._cuts) if bool(cut.need[value.number].any())]
            if users:
                self._emit(value, users)
        outputs = [finish(self, n) for n in range(len(self._cuts))]
        self._graph.output(tuple(outputs) if always_tuple else outputs[0])
        self._overwrite()
        module = fx.GraphModule(self._root, _by_output(self._graph, outputs), "Circuit")
        module.graph.lint()
        return module.eval()

    def take(self, circuit: int, number: int, channels: Tensor, *, silent: bool) -> fx.Node:
        """Give a tensor with those channels of a value, in that order; dead ones as zeros where ``silent``."""
        value, found = self._recording.values[number], self._found[circuit][number]
        assert value.axis is not None and found.place is not None
        index = found.place[channels]
        if silent:
            index = torch.where(self._cuts[circuit].live[number][channels], index, -1)
        return self._gather(found.node, value.axis, len(value.shape), index)

    def whole(self, circuit: int, number: int, *, silent: bool) -> fx.Node:
        """Give a value with all its channels; what dead filters hold as zeros where ``silent``."""
        value = self._recording.values[number]
        if value.axis is not None:
            return self.take(circuit, number, torch.arange(value.channels), silent=silent)
        node, live = self._found[circuit][number].node, self._cuts[circuit].live[number]
        if not silent or bool(live.all()):
            return node
        return self.call(operator.mul, node, self._constant(f"live_{number}", live.to(self._dtype)))

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Write a call of a function; the same call is written once."""
        key = (function, _key(args), _key(kwargs))
        if key not in self._made:
            self._made[key] = self._write(function, args, kwargs)
        return self._made[key]

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """Write a constant, kept as a buffer."""
        return self._constant(name, value)

    def _overwrite(self) -> None:
        """Let functions that wrote into their map in the model do so where nobody else reads it."""
        for node in self._graph.nodes:
            source = node.args[0] if node.args else None
            if node.kwargs.get("inplace") is False and isinstance(source, fx.Node):
                fresh = source.op == "call_module" or source.target is F.pad
                node.update_kwarg("inplace", fresh and len(source.users) == 1)

    # ------------------------------------------------------------ values

    def _emit(self, value: Value, users: Sequence[int]) -> None:
        if value.call is not None:
            self._kernels(value, users)
        elif value.move is not None:
            for n in users:
                self._found[n][value.number] = self._moved(value, n)
        elif len(value.inputs) == 1 and reading(self._recording, value, self._input(value)).aligned:
            self._within(value, users)
        else:
            for n in users:
                self._found[n][value.number] = self._joined(value, n)

    def _input(self, value: Value, slot: int = 0) -> Value:
        return self._recording.values[value.inputs[slot]]

    def _kernels(self, value: Value, users: Sequence[int]) -> None:
        """Write a kernel call, once for all circuits that read the same tensor, where that is less work."""
        by_input: dict[fx.Node, list[int]] = {}
        for n in users:
            by_input.setdefault(self._found[n][value.inputs[0]].node, []).append(n)
        for node, circuits in by_input.items():
            rows = {n: self._rows(value, n, node) for n in circuits}
            if len(circuits) > 1 and all(r is not None for r in rows.values()):
                self._shared_kernels(value, node, {n: r for n, r in rows.items() if r is not None})
            else:
                for n in circuits:
                    self._found[n][value.number] = self._own_kernels(value, n)

    def _rows(self, value: Value, n: int, node: fx.Node) -> tuple[Tensor, Tensor] | None:
        """Give a circuit's filters and, for each, which places of the tensor it reads; None where rows are not shared.

        A calibration or single weights change what a filter computes, and groups tie filters together.
        """
        call, masks, source = value.call, self._masks[n], self._input(value)
        assert call is not None
        if not isinstance(call, ConvCall) or call.groups > 1 or source.axis != 0:
            return None
        if masks is not None and any(call.layer in table for table in (masks.gain, masks.offset, masks.weights)):
            return None
        place = self._found[n][source.number].place
        assert place is not None
        rows = self._cuts[n].need[value.number].nonzero()[:, 0]
        kept = self._cuts[n].conducting[value.number][rows]
        reads = torch.zeros(len(rows), len(self._origin[node]), dtype=torch.bool)
        present = place >= 0
        reads[:, place[present]] = kept[:, present]
        return rows, reads

    def _shared_kernels(self, value: Value, node: fx.Node, rows: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        call = value.call
        assert isinstance(call, ConvCall)
        table = torch.cat([torch.cat([o[:, None], reads.long()], 1) for o, reads in rows.values()])
        unique, inverse = table.unique(dim=0, return_inverse=True)
        reads = unique[:, 1:].bool()
        alone = sum(len(o) * int(r.any(0).sum()) for o, r in rows.values())
        if len(unique) * int(reads.any(0).sum()) >= alone:
            for n in rows:
                self._found[n][value.number] = self._own_kernels(value, n)
            return
        columns = reads.any(0).nonzero()[:, 0]
        origin = self._origin[node]
        weight = call.weight[unique[:, 0]][:, origin[columns]] * reads[:, columns].to(call.weight)[:, :, None, None]
        made = self._conv(
            value,
            self._gather(node, 0, 3, columns),
            weight,
            unique[:, 0],
            origin[columns],
            groups=1,
            bias=call.bias,
            identity=_key(reads),
        )
        self._origin[made] = unique[:, 0]
        for n, part in zip(rows, inverse.split([len(o) for o, _ in rows.values()]), strict=True):
            place = torch.full((value.channels,), -1)
            place[rows[n][0]] = part
            self._found[n][value.number] = _Found(made, place)

    def _own_kernels(self, value: Value, n: int) -> _Found:
        """Write a kernel call for one circuit."""
        call, source, cut = value.call, self._input(value), self._cuts[n]
        assert call is not None
        need, conducting = cut.need[value.number], cut.conducting[value.number]
        rows = need.nonzero()[:, 0]
        weight, bias = self._masked(call, n, conducting)
        read = read_by(value, need, conducting)
        if isinstance(call, ConvCall):
            node = self._own_conv(value, n, source, weight, bias, rows, read)
        else:
            node = self._own_linear(value, n, source, weight, bias, rows, read)
        place = torch.full((value.channels,), -1)
        place[rows] = torch.arange(len(rows))
        self._origin[node] = rows
        return _Found(node, place)

    def _masked(self, call: KernelCall, n: int, conducting: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the weight and bias that a circuit's run uses, calibrated."""
        masks, weight, bias = self._masks[n], call.weight, call.bias
        weight = weight * call.per_kernel(conducting.to(weight.device))
        if masks is None:
            return weight, bias
        if call.layer in masks.weights:
            kept = masks.weights[call.layer]
            weight = weight * (kept if call.rows is None else kept[call.rows])
        live = conducting.any(1).to(weight.device)
        for table, rule in ((masks.gain, torch.mul), (masks.offset, torch.add)):
            if call.layer not in table:
                continue
            values = table[call.layer].to(weight)
            values = values if call.rows is None else values[call.rows]
            if rule is torch.mul:
                gain = torch.where(live, values, 1)
                weight = weight * gain.reshape(-1, *[1] * (weight.dim() - 1))
                bias = None if bias is None else bias * gain
            else:
                bias = torch.where(live, values, 0) + (0 if bias is None else bias)
        return weight, bias

    def _identity(self, value: Value, n: int) -> Any:
        """Give what tells a circuit's kernels of a call from another circuit's."""
        call, masks = value.call, self._masks[n]
        assert call is not None
        if masks is not None and any(call.layer in table for table in (masks.gain, masks.offset, masks.weights)):
            return n
        return _key(self._cuts[n].conducting[value.number])

    def _own_conv(
        self,
        value: Value,
        n: int,
        source: Value,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        read: Tensor,
    ) -> fx.Node:
        call = value.call
        assert isinstance(call, ConvCall)
        identity = self._identity(value, n)
        if source.axis != 0:
            x = self.whole(n, source.number, silent=False)
            return self._conv(value, x, weight[rows], rows, None, groups=call.groups, bias=bias, identity=identity)
        groups, per_group = read.shape
        filters = len(weight) // groups
        if groups == 1:
            columns = read[0].nonzero()[:, 0] if bool(read.any()) else torch.tensor([0])
            x = self.take(n, source.number, columns, silent=False)
            weight = weight[rows][:, columns]
            return self._conv(value, x, weight, rows, columns, groups=1, bias=bias, identity=identity)
        # Groups that nobody needs go; the others are brought to one size, with empty kernels where one has fewer.
        kept = [(g, rows[rows // filters == g], read[g].nonzero()[:, 0]) for g in (rows // filters).unique().tolist()]
        height, width = max(len(o) for _, o, _ in kept), max(1, *(len(i) for _, _, i in kept))
        small = weight.new_zeros(len(kept) * height, width, *weight.shape[2:])
        biases = None if bias is None else bias.new_zeros(len(small))
        columns, places = torch.zeros(len(kept), width, dtype=torch.long), torch.zeros(len(rows), dtype=torch.long)
        origin, done = torch.full((len(small),), -1), 0
        for k, (g, o, i) in enumerate(kept):
            columns[k] = g * per_group + (int(i[0]) if len(i) else self._any_channel(n, source, g, per_group))
            columns[k, : len(i)] = g * per_group + i
            at = slice(k * height, k * height + len(o))
            small[at, : len(i)] = weight[o][:, i]
            origin[at] = o
            if biases is not None and bias is not None:
                biases[at] = bias[o]
            places[done : done + len(o)] = torch.arange(at.start, at.stop)
            done += len(o)
        x = self.take(n, source.number, columns.flatten(), silent=False)
        node = self._conv(
            value,
            x,
            small,
            origin,
            columns.flatten(),
            groups=len(kept),
            bias=biases,
            identity=identity,
            cut_bias=False,
        )
        self._origin[node] = origin
        return self._gather(node, 0, 3, places)

    def _any_channel(self, n: int, source: Value, group: int, per_group: int) -> int:
        """Number a channel in the group for kernels that read nothing; one of another group where it holds none."""
        place = self._found[n][source.number].place
        assert place is not None
        present = (place >= 0).nonzero()[:, 0]
        return int(present[0]) - group * per_group

    def _own_linear(
        self,
        value: Value,
        n: int,
        source: Value,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        read: Tensor,
    ) -> fx.Node:
        last = len(source.shape) - 1
        if source.axis != last:
            x, columns = self.whole(n, source.number, silent=False), torch.arange(weight.shape[1])
        else:
            size = weight.shape[1] // read.shape[1]
            columns = read.repeat_interleave(size, 1)[0].nonzero()[:, 0] if bool(read.any()) else torch.tensor([0])
            x = self.take(n, source.number, columns, silent=False)
        weight = weight[rows][:, columns]
        key = ("kernels", value.number, x, _key(rows), _key(columns), self._identity(value, n))
        if key not in self._made:
            module = nn.utils.skip_init(nn.Linear, len(columns), len(rows), bias=bias is not None)
            _fill(module, weight, None if bias is None else bias[rows])
            self._made[key] = self._module(value.layer, module, x, filters=self._rows_of(value, rows), channels=columns)
        return self._made[key]

    def _conv(
        self,
        value: Value,
        x: fx.Node,
        weight: Tensor,
        rows: Tensor,
        columns: Tensor | None,
        *,
        groups: int,
        bias: Tensor | None,
        identity: Any,
        cut_bias: bool = True,
    ) -> fx.Node:
        call = value.call
        assert isinstance(call, ConvCall)
        small = None if bias is None else bias[rows] if cut_bias else bias
        key = ("kernels", value.number, x, _key(rows), _key(columns), identity)
        if key not in self._made:
            module = nn.utils.skip_init(
                nn.Conv2d,
                weight.shape[1] * groups,
                len(weight),
                tuple(weight.shape[2:]),
                stride=call.stride,
                padding=call.padding,
                dilation=call.dilation,
                groups=groups,
                bias=small is not None,
            )
            _fill(module, weight, small)
            channels = torch.arange(weight.shape[1] * groups) if columns is None else columns
            self._made[key] = self._module(
                value.layer, module, x, filters=self._rows_of(value, rows), channels=channels
            )
        return self._made[key]

    def _rows_of(self, value: Value, rows: Tensor) -> Tensor:
        call = value.call
        assert call is not None
        return rows if call.rows is None else torch.where(rows < 0, rows, call.rows.cpu()[rows.clamp_min(0)])

    def _moved(self, value: Value, n: int) -> _Found:
        move = value.move
        assert move is not None
        if move.form is None:
            nodes = {k: self.whole(n, k, silent=False) for k in value.inputs}
            place = None if value.axis is None else torch.arange(value.channels)
            return self._holding(self._replayed(value, nodes), place)
        assert move.channels is not None and value.axis is not None
        if move.form == "gather":
            return self._gathered(value, n)
        source = self._recording.values[move.sources[0]]
        found = self._found[n][source.number]
        assert found.place is not None
        wanted = move.channels[self._cuts[n].need[value.number]].unique()
        if len(wanted) <= _WORTH_CUTTING * len(self._origin[found.node]):
            node, at = self.take(n, source.number, wanted, silent=False), wanted
            place = torch.full_like(found.place, -1)
            place[wanted] = torch.arange(len(wanted))
        else:
            node, at, place = found.node, self._origin[found.node], found.place
        # Each channel of the source has become one or, where a map was laid flat, as many as it has positions.
        per_channel = (move.channels[None] == torch.arange(source.channels)[:, None]).sum(1)
        size = int(per_channel[0])
        if move.form == "call":
            made = self._replayed(value, {value.inputs[0]: node})
        else:
            sizes = list(value.shape)
            sizes[value.axis] = len(at) * size
            made = self.call("reshape", node, (-1, *sizes))
        order = torch.argsort(move.channels, stable=True).reshape(source.channels, size)
        self._origin[made] = order[at].flatten()
        places = torch.full((value.channels,), -1)
        present = place >= 0
        places[order[present].flatten()] = (place[present][:, None] * size + torch.arange(size)).flatten()
        return _Found(made, places)

    def _gathered(self, value: Value, n: int) -> _Found:
        """Write channels of several values along one axis: a concatenation, a cut, a shuffle."""
        move, need = value.move, self._cuts[n].need[value.number]
        assert move is not None and move.channels is not None and value.axis is not None
        wanted = need.nonzero()[:, 0]
        first, nodes, laid, start = 0, [], {}, 0
        for s in move.sources:
            count = self._recording.values[s].channels
            own = move.channels[wanted]
            own = own[(own >= first) & (own < first + count)] - first
            own = own.unique()
            if len(own):
                nodes.append(self.take(n, s, own, silent=False))
                laid.update({int(c) + first: start + k for k, c in enumerate(own.tolist())})
                start += len(own)
            first += count
        node = nodes[0] if len(nodes) == 1 else self.call(torch.cat, tuple(nodes), value.axis + 1)
        index = torch.tensor([laid.get(int(c), -1) for c in move.channels[wanted].tolist()])
        if node not in self._origin:
            self._origin[node] = torch.arange(start)
        node = self._gather(node, value.axis, len(value.shape), index)
        place = torch.full((value.channels,), -1)
        place[wanted] = torch.arange(len(wanted))
        self._origin[node] = wanted
        return _Found(node, place)

    def _within(self, value: Value, users: Sequence[int]) -> None:
        """Write a function that stays within channels, once for all circuits that read the same tensor."""
        source = self._input(value)
        assert source.axis is not None
        by_input: dict[fx.Node, list[int]] = {}
        for n in users:
            by_input.setdefault(self._found[n][source.number].node, []).append(n)
        for node, circuits in by_input.items():
            places = {n: self._found[n][source.number].place for n in circuits}
            used = torch.zeros(len(self._origin[node]), dtype=torch.bool)
            for n, place in places.items():
                assert place is not None
                used[place[self._cuts[n].need[value.number]]] = True
            if int(used.sum()) <= _WORTH_CUTTING * len(used):
                kept = used.nonzero()[:, 0]
                moved = torch.full((len(used) + 1,), -1)
                moved[kept] = torch.arange(len(kept))
                node = self._gather(node, source.axis, len(source.shape), kept)
                places = {n: moved[place] for n, place in places.items() if place is not None}
            made = self._applied(value, {source.number: node}, self._origin[node])
            for n, place in places.items():
                self._found[n][value.number] = _Found(made, place)

    def _joined(self, value: Value, n: int) -> _Found:
        """Write a function of several maps, or one that needs whole maps."""
        need = self._cuts[n].need[value.number]
        sources = [self._recording.values[k] for k in value.inputs]
        how = {s.number: reading(self._recording, value, s) for s in sources}
        aligned = [s.number for s in sources if how[s.number].aligned and s.number in self._found[n]]
        if not aligned:
            nodes = {s.number: self.whole(n, s.number, silent=how[s.number].silent) for s in sources}
            place = None if value.axis is None else torch.arange(value.channels)
            origin = torch.arange(value.channels)
            return self._holding(self._applied(value, nodes, origin), place)
        wanted, place = self._common_place(n, aligned, need, how[aligned[0]].silent)
        nodes = {}
        for s in sources:
            if s.number not in self._found[n]:
                continue  # all that is wanted of it is dead
            if not how[s.number].aligned:
                nodes[s.number] = self.whole(n, s.number, silent=how[s.number].silent)
            elif place is not None:
                nodes[s.number] = self._found[n][s.number].node
            else:
                nodes[s.number] = self.take(n, s.number, wanted, silent=how[s.number].silent)
        for s in sources:
            if s.number not in nodes:
                like = next(nodes[k] for k in aligned if self._recording.values[k].shape == value.shape)
                nodes[s.number] = self.call(torch.zeros_like, like)
        if place is None:
            place = torch.full((value.channels,), -1)
            place[wanted] = torch.arange(len(wanted))
        return _Found(self._applied(value, nodes, wanted), place)

    def _common_place(self, n: int, numbers: Sequence[int], need: Tensor, silent: bool) -> tuple[Tensor, Tensor | None]:
        """Give the channels to compute, and their common place in all inputs if these can be read as they are."""
        wanted = need.nonzero()[:, 0]
        first = self._found[n][numbers[0]]
        assert first.place is not None
        for k in numbers:
            found, live = self._found[n][k], self._cuts[n].live[k]
            assert found.place is not None
            same = torch.equal(found.place, first.place) and torch.equal(
                self._origin[found.node], self._origin[first.node]
            )
            if not same or bool((found.place[wanted] < 0).any()) or (silent and not bool(live[wanted].all())):
                return wanted, None
        if len(wanted) <= _WORTH_CUTTING * len(self._origin[first.node]):
            return wanted, None
        return self._origin[first.node], first.place

    def _holding(self, node: fx.Node, place: Tensor | None) -> _Found:
        if place is not None:
            self._origin[node] = torch.arange(len(place))
        return _Found(node, place)

    # ------------------------------------------------------------ calls

    def _gather(self, node: fx.Node, axis: int, rank: int, index: Tensor) -> fx.Node:
        """Write the choice of some places of a tensor along its axis; -1 is a zero."""
        width = len(self._origin[node])
        if torch.equal(index, torch.arange(width)):
            return node
        origin = torch.where(index < 0, -1, self._origin[node][index.clamp_min(0)])
        dim = axis + 1
        if bool((index < 0).any()):
            node = self.call(F.pad, node, (*[0, 0] * (rank - dim), 0, 1))
            index = torch.where(index < 0, width, index)
        start = int(index[0])
        if torch.equal(index, torch.arange(start, start + len(index))):
            taken = self.call(torch.narrow, node, dim, start, len(index))
        else:
            taken = self.call(torch.index_select, node, dim, self._constant("channels", index))
        self._origin[taken] = origin
        return taken

    def _applied(self, value: Value, nodes: Mapping[int, fx.Node], origin: Tensor) -> fx.Node:
        """Write a value's function on tensors that hold some of its channels, its constants cut alike."""
        key = ("apply", value.number, tuple(nodes[k] for k in value.inputs), _key(origin))
        if key not in self._made:
            module = self._norm(value, origin)
            if module is not None:
                made = self._module(value.layer, module, nodes[value.inputs[0]], channels=origin)
            else:

                def constant(x: Any) -> Any:
                    return self._cut_constant(value, x, origin)

                args, kwargs = with_maps((value.args, dict(value.kwargs)), constant)
                made = self._called(value, nodes, args, kwargs)
            self._made[key] = made
            if value.axis is not None:
                self._origin[made] = origin
        return self._made[key]

    def _replayed(self, value: Value, nodes: Mapping[int, fx.Node]) -> fx.Node:
        """Write a moving function as it is, numbers of images and channels left open."""
        node = nodes[value.inputs[0]]
        name = base_name(value.function)
        sizes = tuple(-1 if d == value.axis else size for d, size in enumerate(value.shape))
        if name in ("view", "reshape", "view_as", "reshape_as", "unflatten"):
            return self.call("reshape", node, (-1, *value.shape))
        if name in ("expand", "expand_as"):
            return self.call("expand", node, (-1, *sizes))
        return self._called(value, nodes, value.args, value.kwargs)

    def _called(self, value: Value, nodes: Mapping[int, fx.Node], args: Any, kwargs: Any) -> fx.Node:
        args, kwargs = with_maps((args, dict(kwargs)), lambda ref: nodes[ref.number], Ref)
        function, args, kwargs = _functional(value.function, args, kwargs)
        node = self.call(function, *args, **kwargs)
        return node if value.part is None else self.call(operator.getitem, node, value.part)

    def _norm(self, value: Value, origin: Tensor) -> nn.Module | None:
        """Make the BatchNorm of some channels, if the function is one that uses running statistics."""
        if value.function is not F.batch_norm:
            return None
        given = {
            name: argument(F.batch_norm, value.args, value.kwargs, name)
            for name in ("running_mean", "running_var", "weight", "bias", "training", "eps")
        }
        if given["training"] or given["running_mean"] is None or (given["weight"] is None) != (given["bias"] is None):
            return None
        kind = nn.BatchNorm2d if len(value.shape) == 3 else nn.BatchNorm1d
        eps = 1e-5 if given["eps"] is None else given["eps"]
        like = given["running_mean"]
        module = kind(len(origin), eps=eps, affine=given["weight"] is not None, device=like.device, dtype=like.dtype)
        with torch.no_grad():
            for name in ("running_mean", "running_var", "weight", "bias"):
                if given[name] is not None:
                    getattr(module, name).copy_(given[name][origin])
        return module

    def _cut_constant(self, value: Value, x: Tensor, origin: Tensor) -> Any:
        if value.axis is not None and value.rule is not None and value.rule.kind is not Kind.MIX:
            from_right = len(value.shape) - value.axis
            dim = 0 if value.function in _PER_CHANNEL and x.dim() == 1 else x.dim() - from_right
            if 0 <= dim < x.dim() and x.shape[dim] == value.channels and value.channels > 1:
                x = x.index_select(dim, origin.to(x.device))
        return self._constant(f"{value.layer.replace('.', '_') or 'model'}_constant", x.detach())

    def _constant(self, name: str, value: Tensor) -> fx.Node:
        key = ("constant", _key(value))
        if key not in self._made:
            name = _free_name(name, lambda n: hasattr(self._root, n))
            self._root.register_buffer(name, value.clone().to(self._device))
            self._made[key] = self._graph.get_attr(name)
        return self._made[key]

    def _module(self, layer: str, module: nn.Module, x: fx.Node, **numbers: Tensor) -> fx.Node:
        """Write a call of a module, under the name of the layer that it is part of; keep its channels' numbers."""
        taken = {name for name, _ in self._root.named_modules()}
        name = _free_name(layer or "model", lambda n: n in taken)
        for key, value in numbers.items():
            module.register_buffer(key, value.clone().to(self._device))
        self._root.add_submodule(name, module)
        return self._graph.call_module(name, (x,))

    def _write(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.Node:
        if isinstance(function, str):
            return self._graph.call_method(function, args, dict(kwargs))
        return self._graph.call_function(function, args, dict(kwargs))

    @property
    def _device(self) -> torch.device:
        return next(v.call.weight.device for v in self._recording.values if v.call is not None)

    @property
    def _dtype(self) -> torch.dtype:
        return next(v.call.weight.dtype for v in self._recording.values if v.call is not None)


def _functional(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Give a call that computes the same and writes into nothing: a function, or a method's name."""
    name: str = function.__name__
    if getattr(torch.Tensor, name, None) is function:
        if name in ("__getitem__", "__add__", "__sub__", "__mul__", "__truediv__", "__pow__", "__neg__"):
            return getattr(operator, name.strip("_")), args, kwargs
        if name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"):
            return getattr(operator, name[3:-2]), args, kwargs
        return name[:-1] if name.endswith("_") and not name.endswith("__") else name, args, kwargs
    if name.endswith("_"):
        plain = getattr(F, name[:-1], None) or getattr(torch, name[:-1])
        return plain, args, kwargs
    if kwargs.get("inplace"):
        return function, args, {**kwargs, "inplace": False}
    if any(a is True for a in args):
        try:
            names = list(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            return function, args, kwargs
        if "inplace" in names and len(args) > names.index("inplace"):
            at = names.index("inplace")
            return function, (*args[:at], False, *args[at + 1 :]), kwargs
    return function, args, kwargs


def _fill(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    module.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone())


def _free_name(name: str, taken: Callable[[str], bool]) -> str:
    free, k = name, 1
    while taken(free):
        free, k = f"{name}_{k}", k + 1
    return free


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        raw = value.detach().cpu().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy()
        return (tuple(value.shape), value.dtype, hashlib.blake2b(raw.data, digest_size=16).digest())
    if isinstance(value, Mapping):
        return tuple((k, _key(v)) for k, v in sorted(value.items()))
    if isinstance(value, (tuple, list)):
        return tuple(_key(v) for v in value)
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    return (type(value), value) if isinstance(value, (bool, int, float)) else value


def _by_output(graph: fx.Graph, outputs: Iterable[fx.Node]) -> fx.Graph:
    """Order a graph so that each output is finished before the next is begun: fewer tensors live at once."""
    ordered, copies = fx.Graph(), {}
    for node in graph.nodes:
        if node.op == "placeholder":
            copies[node] = ordered.node_copy(node)
    for output in outputs:
        stack = [output]
        while stack:
            node = stack[-1]
            waiting = [a for a in node.all_input_nodes if a not in copies]
            if node in copies:
                stack.pop()
            elif waiting:
                stack.extend(reversed(waiting))
            else:
                copies[stack.pop()] = ordered.node_copy(node, lambda a: copies[a])
    (final,) = (node for node in graph.nodes if node.op == "output")
    ordered.node_copy(final, lambda a: copies[a])
    return ordered
