"""The same graph on other filters."""

from collections import Counter
from functools import cache

import networkx
import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.circuits.relabelling import Relabelling, relabelled
from convcircuits.network.masking import Subject
from nets import NETS, WithConstant, net, seeded

pytestmark = pytest.mark.usefixtures("opened_once")

CASES = [(name, *feature) for name, case in NETS.items() for feature in case.features]


@cache
def opened(name, layer, unit):
    model = NETS[name].build()
    return model, Subject.open(model, cc.Feature(layer, unit), NETS[name].input_shape)


def drawn_masks(relevant, share=0.6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.rand(mask.shape, generator=generator) < share for layer, mask in relevant.items()}


def drawn(model, subject, share=0.6, seed=0, granularity="kernel"):
    """Draw a circuit at random."""
    shape = subject.survey.input_shape
    masks = drawn_masks(subject.relevant(granularity, shape), share, seed)
    return cc.Circuit.from_masks(model, subject.feature, masks, granularity=granularity, input_shape=shape)


def paths(model, circuit, shape):
    """Count the paths image -> feature."""
    graph = circuit.to_networkx(model, input_shape=shape)
    count = Counter({node: 1 for node, kind in graph.nodes(data="kind") if kind == "image"})
    for node in networkx.topological_sort(graph):
        for source, _ in graph.in_edges(node):
            count[node] += count[source]
    return count[graph.graph["target"]]


def degrees(kernels):
    """Return, for each layer, how many kernels each filter has and how many read each channel, in order of size."""
    return {layer: [sorted(mask.sum(dim).tolist()) for dim in (0, 1)] for layer, mask in kernels.items()}


@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
def test_counts_paths_and_effective_kernels_stay_and_the_inverse_gives_the_circuit_back(name, layer, unit):
    model, subject = opened(name, layer, unit)
    for seed in range(4):
        circuit = drawn(model, subject, seed=seed)
        relabelling = Relabelling.draw(subject, seed)
        made = relabelled(subject, circuit, relabelling)
        before, after = subject.survey.inside(circuit.kernels), subject.survey.inside(made.kernels)
        for table, other in ((circuit.kernels, made.kernels), (before, after)):
            assert {a: mask.any(1).sum() for a, mask in table.items()} == {a: m.any(1).sum() for a, m in other.items()}
            if all(len(channels) == other[a].shape[1] for a, channels in relabelling.channels.items()):  # one group
                assert degrees(table) == degrees(other)
        assert made.feature == circuit.feature
        if name != "twice":  # its graph of filters has cycles
            shape = subject.survey.input_shape
            assert paths(model, made, shape) == paths(model, circuit, shape)
        back = relabelled(subject, made, relabelling.inverse())
        assert (back.elements, back.saliency) == (circuit.elements, circuit.saliency)


@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
def test_the_image_and_the_feature_stay_and_others_move(name, layer, unit):
    _, subject = opened(name, layer, unit)
    moves = [Relabelling.draw(subject, seed) for seed in range(12)]
    assert moves[0].filters.keys() == subject.survey.kernels.keys()
    first = next(iter(subject.survey.kernels))
    for one in moves:
        assert one.channels[first].tolist() == [0, 1, 2]
        if layer in one.filters:
            assert one.filters[layer][unit] == unit
        for places in (*one.filters.values(), *one.channels.values()):
            assert places.sort().values.tolist() == list(range(len(places)))
    for a, mask in subject.survey.kernels.items():
        goals = {int(one.filters[a][channel]) for one in moves for channel in mask.any(1).nonzero()[:1, 0]}
        assert len(goals) > 1 or int(mask.any(1).sum()) == 1
    again = Relabelling.draw(subject, 3)
    assert all(torch.equal(again.filters[a], places) for a, places in moves[3].filters.items())


def test_what_is_tied_moves_together():
    _, subject = opened("residual", "head", 0)
    _, mobile = opened("mobile", "head", 1)
    for seed in range(5):
        made = Relabelling.draw(subject, seed)
        assert torch.equal(made.filters["stem"], made.filters["block1.conv2"])
        assert torch.equal(made.filters["block2.down.0"], made.filters["block2.conv2"])
        assert torch.equal(made.filters["block2.conv2"], made.channels["head"])
        made = Relabelling.draw(mobile, seed)
        assert torch.equal(made.filters["expand.0"], made.channels["depth.0"])
        assert torch.equal(made.filters["expand.0"], made.filters["depth.0"])
        assert torch.equal(made.filters["multiply"] // 2, made.channels["multiply"].repeat_interleave(2))


@pytest.mark.parametrize("granularity", ["filter", "weight"])
@pytest.mark.parametrize("name", ["mobile", "flat_head", "residual"])
def test_other_granularities(granularity, name):
    layer, unit = NETS[name].features[-1]
    model, subject = opened(name, layer, unit)
    circuit = drawn(model, subject, granularity=granularity)
    relabelling = Relabelling.draw(subject, 1)
    made = relabelled(subject, circuit, relabelling)
    assert made.elements != circuit.elements
    assert {a: m.sum() for a, m in made.elements.items()} == {a: m.sum() for a, m in circuit.elements.items()}
    assert relabelled(subject, made, relabelling.inverse()).elements == circuit.elements


def test_calibration_is_dropped():
    model, subject = opened("plain", "features.5", 2)
    circuit = cc.refit(model, drawn(model, subject), NETS["plain"].images(4))
    assert circuit.constants
    made = relabelled(subject, circuit, Relabelling.draw(subject, 0))
    assert not made.gain
    assert not made.offset


class Shuffled(nn.Module):
    """A pixel shuffle, which mixes channels with positions."""

    def __init__(self):
        super().__init__()
        self.conv, self.mid, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 3)

    def forward(self, x):
        return self.head(self.mid(nn.functional.pixel_shuffle(self.conv(x), 2)).relu())


def test_channels_that_are_mixed_with_positions_stay():
    model = seeded(Shuffled, 0)()
    subject = Subject.open(model, cc.Feature("head", 1), (3, 8, 8))
    moves = [Relabelling.draw(subject, seed) for seed in range(4)]
    assert all(torch.equal(one.filters["conv"], torch.arange(8)) for one in moves)
    assert any(not torch.equal(one.filters["mid"], torch.arange(4)) for one in moves)
    circuit = drawn(model, subject)
    for one in moves:
        made = relabelled(subject, circuit, one)
        assert {a: m.sum() for a, m in made.kernels.items()} == {a: m.sum() for a, m in circuit.kernels.items()}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_of_a_group_norm_move_as_a_whole(groups):
    model = net(lambda: nn.GroupNorm(groups, 4))
    subject = Subject.open(model, cc.Feature("head", 1), (3, 8, 8))
    moves = [Relabelling.draw(subject, seed) for seed in range(20)]
    goals = {tuple(one.filters["conv"].tolist()) for one in moves}
    assert len(goals) > 4
    for places in goals:
        of_group = [{place // (4 // groups) for place in places[n : n + 4 // groups]} for n in range(0, 4, 4 // groups)]
        assert all(len(one) == 1 for one in of_group)
    for one in moves:
        relabelled(subject, drawn(model, subject, 0.3), one)


def test_a_model_whose_channels_cannot_be_followed_is_refused():
    subject = Subject.open(seeded(WithConstant, 0)(), cc.Feature("head", 1), (3, 8, 8))
    message = "The channels of WithConstant cannot be followed, so no circuit can be relabelled"
    with pytest.raises(cc.ConvCircuitsError, match=message):
        Relabelling.draw(subject)
