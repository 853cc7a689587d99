"""Layout: every value's shape, axis and the origin of its channels, against what runs and what is moved by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
import oracles
from convcircuits.compiler.layout import UnextractableError, layout_of, takes_any_size
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from nets import NETS

torch.set_num_threads(1)


def recorded(model, feature, shape, at=None):
    network = Network(model)
    return layout_of(Subject(network, feature, survey(network, feature, shape)), at or shape)


@pytest.mark.parametrize("name", NETS)
def test_kernel_calls_are_those_that_run_with_their_shapes(name):
    case = NETS[name]
    model, (layer, unit) = case.build(), case.features[-1]
    layout = recorded(model, cc.Feature(layer, unit), case.input_shape)
    graph_module = oracles.trace(model, case.input_shape)
    seen = [
        (node.target, tuple(node.meta["tensor_meta"].shape[1:]), 0)
        for node in graph_module.graph.nodes
        if node.op == "call_module" and oracles.is_kernel_layer(graph_module.get_submodule(node.target))
    ]
    calls = [(v.call.layer, v.shape, v.axis) for v in layout.values.values() if v.call is not None]
    assert calls == [one for one in seen if one[0] in {call[0] for call in calls}][: len(calls)]
    assert calls[-1][0] == layer
    assert all(value.inputs == () or max(value.inputs) < value.number for value in layout.values.values())


class Moving(nn.Module):
    """Moves a map's channels, and names the moved map."""

    def __init__(self, move):
        super().__init__()
        self.conv, self.move, self.out = nn.Conv2d(3, 6, 3), move, nn.Identity()

    def forward(self, x):
        return self.out(self.move(self.conv(x)).clone())


MOVES = {
    "concatenation": lambda x: torch.cat([x[:, 4:], x, x[:, :1]], 1),
    "chunk": lambda x: x.chunk(3, 1)[1],
    "split": lambda x: torch.split(x, [1, 3, 2], dim=1)[1],
    "every other": lambda x: x[:, ::2],
    "a list": lambda x: x[:, [4, 4, 1]],
    "index_select": lambda x: torch.index_select(x, 1, torch.tensor([5, 2])),
    "shuffle": lambda x: x.view(len(x), 2, 3, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 3),
    "roll": lambda x: x.roll(2, 1),
    "flip": lambda x: x.flip(1),
    "padding": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "a crop of the map": lambda x: x[:, 1:4, 1:, :-1],
    "channels last": lambda x: x.permute(0, 2, 3, 1)[..., 2:].permute(0, 3, 1, 2),
    "flatten": lambda x: torch.flatten(x[:, 3:], 1),
    "flattened positions": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, x.shape[2:]),
    "expand": lambda x: x[:, :, :1, :1].expand(-1, -1, 2, 2),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_the_origin_of_every_moved_channel_is_known(move):
    """A map whose channel c holds c + 1 everywhere says after the move where each channel came from."""
    model = Moving(move).double().eval()
    layout = recorded(model, cc.Feature("out", 1), (3, 6, 5))
    start = next(v.number for v in layout.values.values() if v.call is not None)
    origin = {start: torch.arange(6)}
    for value in layout.values.values():
        if value.number <= start:
            continue
        if value.move is None:
            origin[value.number] = origin[value.inputs[0]]
        elif value.move.channels is not None:  # else channels lie along two dimensions, on the way of a shuffle
            laid = torch.cat([*(origin[s] for s in value.move.sources), torch.tensor([-1])])
            origin[value.number] = laid[value.move.channels]
    assert value.axis is not None
    labels = torch.arange(1.0, 7.0).reshape(1, 6, 1, 1).expand(1, 6, 4, 3)
    moved = move(labels)[0].movedim(value.axis, 0).reshape(value.channels, -1)
    inner = moved.amax(1)  # padding of positions is no channel
    assert torch.equal(origin[value.number] + 1, inner.long())


@pytest.mark.parametrize("name", NETS)
def test_what_is_fixed_in_a_layout_depends_on_the_size_only_where_the_code_does(name):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(*case.features[-1])
    c, h, w = case.input_shape
    fixed = recorded(model, feature, case.input_shape).fixed()
    assert fixed == recorded(model, feature, case.input_shape).fixed()
    if name == "flat_head":
        with pytest.raises(cc.ConvCircuitsError, match="expects 32 values"):
            recorded(model, feature, case.input_shape, (c, h + 8, w + 8))
    else:
        other = recorded(model, feature, case.input_shape, (c, h + 1, w + 1)).fixed()
        assert (fixed == other) == (name != "same_pad")


def test_constants_are_those_of_the_call_and_not_of_later():
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Identity()

        def forward(self, x):
            factor = torch.ones(4, 1, 1, dtype=x.dtype)
            x = self.conv(x) * factor
            factor += 1
            return self.out(x * factor)

    model = Changing().double().eval()
    layout = recorded(model, cc.Feature("out", 0), (3, 6, 6))
    written = [layout.written(v) for v in layout.values.values() if v.operation is not None and v.move is None]
    factors = [float(one.args[1].flatten()[0]) for one in written]
    assert factors == [1.0, 2.0]


def test_a_problem_names_the_module_where_it_is():
    class Doubling(nn.Module):
        def forward(self, x):
            return torch.cat([x, x])[: len(x)]

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Doubling(), nn.Conv2d(4, 2, 1)).double().eval()
    with pytest.raises(UnextractableError, match=r"^1 .*not one row per image.*masked runs .* still work"):
        recorded(model, cc.Feature("2", 0), (3, 6, 6))


@pytest.mark.parametrize("name", NETS)
def test_a_model_takes_any_size_if_its_layout_is_the_same_at_every_size(name):
    case = NETS[name]
    network, feature = Network(case.build()), cc.Feature(*case.features[0])
    channels, height, width = case.input_shape
    subject = Subject(network, feature, survey(network, feature, case.input_shape))
    try:
        layout = layout_of(subject, case.input_shape)
    except UnextractableError:
        return
    same, unknown = True, False
    for step in (1, 2, 4, 8, 16, 64):
        try:
            other = layout_of(subject, (channels, height + step, width + step)).fixed()
        except cc.ConvCircuitsError:
            unknown = step == 64
        else:
            same &= other == layout.fixed()
    assert takes_any_size(subject, layout) == (same and not unknown)
