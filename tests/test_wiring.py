"""Who reads whom, against replaying every kernel call but one."""

import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.compiler.layout import layout_of
from convcircuits.drawing.wiring import LinkKind, SiteKind, wire
from convcircuits.network.calls import ConvCall
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from nets import NETS

CASES = [(name, layer, unit) for name, case in NETS.items() for layer, unit in case.features]


def wired(name, layer, unit):
    case = NETS[name]
    network, feature = Network(case.build()), cc.Feature(layer, unit)
    subject = Subject(network, feature, survey(network, feature, case.input_shape))
    layout = layout_of(subject, case.input_shape)
    return subject, layout, wire(layout, subject.survey.kernels, subject.rows, subject.coefficients)


def readers_by_replay(subject, layout, images):
    """Perturb one filter's map, hold those of all other calls, and see which input channels change."""
    calls = {(v.layer, v.call.turn): v.number for v in layout.values.values() if v.call is not None}
    numbers = []
    outputs, inputs = [], []
    count = 0

    def remember(call):
        numbers.append(calls.get((call.layer, call.turn), -1 - len(numbers)))
        inputs.append(call.x.clone())
        outputs.append(call.compute().clone())
        return outputs[-1].clone()

    subject.network.run(subject.feature, images, remember)
    found = {}
    for n, number in enumerate(numbers):
        dim = 1 if outputs[n].dim() != 3 else 2
        for c in range(outputs[n].shape[dim]):
            count, changed = 0, set()

            def replay(call, n=n, c=c, dim=dim, changed=changed):
                nonlocal count
                k, count = count, count + 1
                blocks = call.x.shape[1] if isinstance(call, ConvCall) else call.blocks
                moved = (call.x != inputs[k]).movedim(1 if isinstance(call, ConvCall) else -1, 0).flatten(1).any(1)
                moved = moved.reshape(blocks, -1).any(1)
                changed |= {(numbers[k], j) for j in moved.nonzero()[:, 0].tolist()}
                output = outputs[k].clone()
                if k == n:
                    output.select(dim, c).add_(torch.randn_like(output.select(dim, c)))
                return output

            subject.network.run(subject.feature, images, replay)
            found[number, c] = changed
    return found


def readers_by_wiring(wiring, number, channel):
    site = wiring.site_of_call()[number]
    chain = [*site.inner[site.inner.index(number) + 1 :]] if number in site.inner else site.inner
    return {(chain[0], channel)} if chain else spread(wiring, site.number, channel)


def spread(wiring, site, channel):
    found = {
        (call, j)
        for call, read in wiring.reads.items()
        for j in range(len(read))
        if (int(read.site[j]), int(read.channel[j])) == (site, channel)
    }
    for other in wiring.sites.values():
        for link in other.links:
            here = (link.sources.site == site) & (link.sources.channel == channel)
            for target in link.targets[here].tolist():
                found |= {(other.inner[0], target)} if other.inner else spread(wiring, other.number, target)
    return found


@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
def test_a_kernel_reads_what_changes_its_input(name, layer, unit):
    subject, layout, wiring = wired(name, layer, unit)
    torch.manual_seed(3)
    measured = readers_by_replay(subject, layout, NETS[name].images(4))
    calls = wiring.site_of_call()
    assert calls
    for (number, channel), changed in measured.items():
        if number in calls:
            assert readers_by_wiring(wiring, number, channel) == {c for c in changed if c[0] in calls}


def test_a_residual_block_is_one_node_with_its_sum_and_a_connection_past_it():
    _, layout, wiring = wired("residual", "head", 0)
    block = next(s for s in wiring.sites.values() if s.name == "block1")
    assert block.kind is SiteKind.ADD
    assert [layout.values[c].call.layer for c in block.calls] == ["block1.conv2"]
    assert [link.kind for link in block.links] == [LinkKind.IDENTITY]
    second = next(s for s in wiring.sites.values() if s.name == "block2")
    assert {layout.values[c].call.layer for c in second.calls} == {"block2.conv2", "block2.down.0"}
    assert not second.links


def test_a_depthwise_layer_is_one_with_the_layer_that_it_alone_reads():
    _, layout, wiring = wired("mobile", "head", 1)
    chains = {
        layout.values[s.calls[0]].call.layer: [layout.values[c].call.layer for c in s.inner]
        for s in wiring.sites.values()
        if s.inner
    }
    assert chains == {"expand.0": ["depth.0"]}


def test_a_direction_is_a_target_that_reads_filters():
    case = NETS["plain"]
    network = Network(case.build())
    feature = cc.Feature("features.3", torch.tensor([0.0, 2.0, 0.0, -1.0, 0.0]))
    subject = Subject(network, feature, survey(network, feature, case.input_shape))
    wiring = wire(layout_of(subject, case.input_shape), subject.survey.kernels, subject.rows, subject.coefficients)
    target = wiring.sites[wiring.target[0]]
    assert target.kind is SiteKind.TARGET
    assert [link.sources.channel.tolist() for link in target.links] == [[1], [3]]


class Sums(nn.Module):
    """A layer's output added to something made of itself."""

    def __init__(self, add):
        super().__init__()
        self.stem, self.head, self.add = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), add

    def forward(self, x):
        return self.head(self.add(self.stem(x)))


@pytest.mark.parametrize(
    "add",
    [lambda y: y + y, lambda y: y + y.relu(), lambda y: y + y.flip(-1), lambda y: torch.maximum(y, -y)],
    ids=["twice", "relu", "mirrored", "absolute"],
)
def test_what_is_added_to_itself_is_a_sum_of_its_own(add):
    model = Sums(add).double().eval()
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    circuit = cc.find(model, cc.Feature("head", 1), images, criterion="magnitude", density=1.0)
    variant = cc.diagram(model, circuit, images=images).document.variants[0]
    assert variant.kernels == cc.evaluate(model, circuit, images).effective_kernels == 16
