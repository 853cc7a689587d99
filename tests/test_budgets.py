"""Budgets of effective kernels: exact where that can be, no dead kernel, and the limits of what can be drawn."""

import functools

import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.circuits.budgets import drawable_top, effective_top
from convcircuits.circuits.ranking import top
from convcircuits.circuits.sizes import nested
from convcircuits.network.masking import Subject
from nets import NETS, seeded


class Chain(nn.Module):
    """Two filters a layer, with a depthwise layer: every filter that is opened costs three kernels or more."""

    def __init__(self):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, groups=2)
        self.head = nn.Conv2d(2, 1, 1)

    def forward(self, x):
        return self.head(self.depth(self.stem(x).relu()).relu())


class Sum(nn.Module):
    """A residual sum, and a concatenation with the image."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(3, 1, 1)

    def forward(self, x):
        y = self.stem(x).relu()
        return self.head(torch.cat([y + self.inner(y).relu(), x], 1))


class Again(nn.Module):
    """A layer that runs twice: a kernel may be live in one call and dead in the other."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1)

    def forward(self, x):
        return self.head(self.shared(self.shared(self.stem(x).relu()).relu()).relu())


class Deep(nn.Module):
    """Four layers: the numbers between those of whole paths take some search."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)
        self.inner, self.outer = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.head(self.outer(self.inner(self.stem(x).relu()).relu()).relu())


class Groups(nn.Module):
    """Two grouped layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(2, 4, 1, groups=2), nn.Conv2d(4, 2, 1, groups=2)
        self.head = nn.Conv2d(2, 1, 1)

    def forward(self, x):
        return self.head(self.inner(self.stem(x).relu()).relu())


class Lite(nn.Module):
    """Inverted residual blocks, as in EfficientNet-Lite0."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6()),
                *(nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6()),
                *(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8)),
            )
            for _ in range(3)
        )
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        for n, block in enumerate(self.blocks):
            x = block(x) if n == 0 else x + block(x)
        return self.head(x)


CASES = [(name, *feature) for name, case in NETS.items() for feature in case.features[-1:]]
SMALL = {
    "chain": (Chain, 2, 0),
    "sum": (Sum, 1, 0),
    "deep": (Deep, 1, 0),
    "groups": (Groups, 2, 0),
    "again": (Again, 1, 1),  # two calls that share a kernel are not found by adding paths and dropping kernels
}


@functools.cache
def opened(name, layer, unit):
    case = NETS[name]
    return Subject.open(case.build(), cc.Feature(layer, unit), case.input_shape)


def drawn(subject, seed=0, few=None):
    """Random saliencies of the relevant kernels, with ties if they take few values."""
    generator = torch.Generator().manual_seed(seed)
    tables = {}
    for layer, mask in subject.survey.kernels.items():
        values = torch.rand(mask.shape, generator=generator)
        tables[layer] = (values if few is None else (values * few).round()).masked_fill(~mask, torch.nan)
    return tables


def remembered(inside):
    """The same function, which computes each set of kernels once: there are few, and thousands of calls."""
    found = {}

    def ask(kernels):
        key = tuple((layer, tuple(mask.flatten().tolist())) for layer, mask in kernels.items())
        if key not in found:
            found[key] = inside(kernels)
        return {layer: mask.clone() for layer, mask in found[key].items()}

    return ask


def size(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[layer], b[layer]) for layer in a)


# ---------------------------------------- a number of effective kernels


@pytest.mark.parametrize(("net", "channels", "missed"), SMALL.values(), ids=SMALL)
def test_the_number_is_the_largest_of_all_sets_without_a_dead_kernel(net, channels, missed):
    subject = Subject.open(seeded(net, 0)(), cc.Feature("head", 0), (channels, 4, 4))
    relevant, inside = subject.survey.kernels, remembered(subject.survey.inside)
    places = [(name, *place) for name, mask in relevant.items() for place in mask.nonzero().tolist()]
    reachable = set()
    for bits in range(1 << len(places)):
        masks = {name: torch.zeros_like(mask) for name, mask in relevant.items()}
        for n, (name, out, inp) in enumerate(places):
            masks[name][out, inp] = bool(bits >> n & 1)
        if equal(inside(masks), masks):
            reachable.add(size(masks))
    assert len(reachable) > 5
    for seed in range(10):
        for few in (None, 2):
            saliency = drawn(subject, seed, few)
            for count in range(1, len(places) + 1):
                kept = effective_top(saliency, count, inside)
                most = max(n for n in reachable if n <= count)
                assert most - missed <= size(kept) <= most
                assert equal(inside(kept), kept)


@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
def test_no_dead_kernel_is_kept_and_the_number_is_that_asked(name, layer, unit):
    subject = opened(name, layer, unit)
    relevant = size(subject.survey.kernels)
    depth = len(subject.survey.kernels) + 1  # fewer kernels need not make a path
    for count in {relevant, 3 * relevant // 4, relevant // 2, relevant // 3, max(depth, relevant // 4)} - {0}:
        saliency = drawn(subject, seed=count)
        kept = effective_top(saliency, min(count, relevant), subject.survey.inside)
        assert equal(subject.survey.inside(kept), kept)
        assert all(not (kept[a] & values.isnan()).any() for a, values in saliency.items())
        best = top(saliency, count)
        if equal(subject.survey.inside(best), best):
            assert equal(kept, best)
        assert size(kept) == min(count, relevant) or name == "same_pad"  # where each filter has a kernel of its own


def test_what_is_taken_first_is_part_of_every_larger_circuit():
    subject = opened("plain", "features.5", 2)
    saliency, inside = drawn(subject), subject.survey.inside
    first = {}
    for count in range(1, 38):
        taken = max((inside(top(saliency, n)) for n in range(38) if size(inside(top(saliency, n))) <= count), key=size)
        first[count] = taken
        for larger in (effective_top(saliency, n, inside) for n in (count, count + 3) if n < 38):
            assert all((larger[layer] | ~mask).all() for layer, mask in taken.items())
    assert size(first[20]) > 0


def test_of_kernels_that_may_not_be_kept_none_is():
    subject = opened("plain", "features.5", 2)
    saliency = drawn(subject)
    saliency["features.0"][1] = torch.nan  # so that the filter is dead
    kept = effective_top(saliency, 37, subject.survey.inside)
    assert equal(kept, subject.survey.inside({layer: ~values.isnan() for layer, values in saliency.items()}))
    assert size(kept) == 37 - 3 - 5
    assert not kept["features.3"][:, 1].any()


def test_it_asks_seldom_what_is_effective():
    model = seeded(Lite, 0)()
    subject = Subject.open(model, cc.Feature("head", 1), (3, 12, 12))
    calls = []

    def inside(kernels):
        calls.append(kernels)
        return subject.survey.inside(kernels)

    assert size(effective_top(drawn(subject), 200, inside)) == 200
    assert len(calls) < 30


# ---------------------------------------- what can be drawn


@pytest.mark.parametrize(("name", "layer", "unit"), CASES)
@pytest.mark.parametrize(("filters", "fan_in"), [(1, 1), (2, 2), (3, 1), (2, 9), (99, 99)])
def test_no_layer_and_no_filter_has_more_than_asked_and_none_is_dead(name, layer, unit, filters, fan_in):
    subject = opened(name, layer, unit)
    kept = drawable_top(drawn(subject), filters, fan_in, subject.survey.inside, subject.survey.read)
    assert size(kept) > 0
    assert equal(subject.survey.inside(kept), kept)
    assert all(int(mask.any(1).sum()) <= filters and int(mask.sum(1).max()) <= fan_in for mask in kept.values())
    if filters == 99:
        assert equal(kept, subject.survey.kernels)


def test_no_place_stays_free_while_there_is_something_to_read():
    subject = opened("plain", "features.5", 2)
    for seed in range(10):
        kept = drawable_top(drawn(subject, seed), 3, 2, subject.survey.inside, subject.survey.read)
        assert [int(kept[f"features.{n}"].any(1).sum()) for n in (3, 5)] == [2, 1]  # the target reads two
        assert size(kept) == 2 * sum(int(mask.any(1).sum()) for mask in kept.values())


def test_the_filters_kept_are_those_whose_readers_have_the_highest_sums():
    subject = opened("plain", "features.3", 1)  # four filters that one filter reads
    saliency = drawn(subject)
    kept = drawable_top(saliency, 2, 9, subject.survey.inside, subject.survey.read)
    best = saliency["features.3"][1].topk(2).indices
    assert sorted(best.tolist()) == kept["features.0"].any(1).nonzero()[:, 0].tolist()
    assert sorted(best.tolist()) == kept["features.3"][1].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("name", "layer", "unit"),
    [
        ("plain", "features.5", 2),
        ("residual", "head", 0),
        ("inception", "last", 2),
        ("grouped", "conv3", 3),
        ("dense", "head", 1),
        ("flat_head", "classifier.4", 1),
    ],
)
def test_the_sum_over_readers_is_that_of_the_graph_of_filters(name, layer, unit):
    case, subject = NETS[name], opened(name, layer, unit)
    model = case.build()
    images = case.images(2)
    circuit = cc.find(model, cc.Feature(layer, unit), images, criterion="random", density=0.7)
    graph = circuit.to_networkx(model, input_shape=case.input_shape)
    kept = subject.survey.inside(circuit.kernels)
    own = {a: values.masked_fill(~kept[a], torch.nan) for a, values in circuit.saliency.items()}
    sums = subject.survey.read(own)

    def read(node):
        total = 0.0
        for _, reader, edge in graph.out_edges(node, data=True):
            total += edge["saliency"] if edge["kind"] == "kernel" else read(reader)
        return total

    for at, kind in graph.nodes(data="kind"):
        if kind == "filter" and at != graph.graph["target"]:
            assert float(sums[at[0]][at[1]]) == pytest.approx(read(at), rel=1e-5)
    assert sum(int((~values.isnan()).sum()) for values in sums.values()) > 0


# ---------------------------------------- through find


def lite(criterion="snip", **budget):
    model = seeded(Lite, 3)()
    images = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, cc.find(model, cc.Feature("head", 1), images, criterion=criterion, **budget), images


@pytest.mark.parametrize("criterion", ["snip", "gauss_newton", "force", "magnitude"])
def test_a_published_circuit_of_a_mobile_network_is_mostly_dead_and_one_of_effective_kernels_is_not(criterion):
    model, published, images = lite(criterion, density=0.1)
    _, circuit, _ = lite(criterion, density=0.1, effective=True)
    asked = len(published)
    if criterion in ("snip", "magnitude"):
        assert cc.evaluate(model, published, images).effective_kernels < 0.8 * asked
    assert len(circuit) == asked == cc.evaluate(model, circuit, images).effective_kernels
    assert circuit.provenance["effective"] is True
    assert circuit.provenance["asked"] == {"density": 0.1, "kernels": asked}
    assert circuit.provenance["elements"] == asked
    assert "effective" not in published.provenance
    assert not nested(circuit)


def test_a_number_that_cannot_be_reached_is_said():
    model = seeded(Chain, 0)()
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    find = functools.partial(cc.find, model, cc.Feature("head", 0), images, criterion="magnitude", effective=True)
    five = find(kernels=5)
    assert len(five) == five.provenance["elements"] == 4
    assert five.provenance["asked"] == {"kernels": 5}
    assert five.provenance["notes"] == ["Asked for 5 effective kernels; only 4 were found to fit together."]
    assert "notes" not in find(kernels=4).provenance or find(kernels=4).provenance["notes"] == []
    with pytest.raises(cc.ConvCircuitsError, match="No complete path from the image to head:0 was found that has so"):
        find(kernels=2)


def test_a_full_budget_of_effective_kernels_is_the_full_circuit():
    case = NETS["mobile"]
    model, images, feature = case.build(), case.images(2), cc.Feature("head", 1)
    assert cc.find(model, feature, images, density=1.0, effective=True) == cc.find(model, feature, images, density=1.0)


def test_inside_a_circuit_only_its_kernels_are_kept():
    model, outer, images = lite(density=0.6, effective=True)
    inner = cc.find(model, outer.feature, images, circuit=outer, kernels=100, effective=True)
    assert len(inner) == 100 == len(inner & outer)


def test_a_drawable_circuit_fits_the_default_view():
    from convcircuits.drawing.data import View

    model, circuit, images = lite(drawable=True)
    assert circuit == lite(filters=View().nodes_per_column, fan_in=View().kernels_per_node)[1]
    assert circuit.provenance["asked"] == {"filters": 12, "fan_in": 6}
    assert len(circuit) == cc.evaluate(model, circuit, images).effective_kernels
    assert max(int(mask.any(1).sum()) for mask in circuit.kernels.values()) <= 12
    assert max(int(mask.sum(1).max()) for mask in circuit.kernels.values()) == 6


WRONG = {
    "filters alone": ({"filters": 3}, "Give both filters, a number for each layer, and fan_in, one for each filter"),
    "fan-in alone": ({"fan_in": 3}, "Give both filters"),
    "no number": ({"filters": 0, "fan_in": 3}, "filters must be a whole number from 1; got 0"),
    "two sizes": ({"filters": 3, "fan_in": 3, "density": 0.1}, "filters with fan_in sets the size, so it does not go"),
    "drawable and a number": (
        {"drawable": True, "kernels": 9},
        "drawable sets the size, so it does not go",
    ),
    "drawable and filters": ({"drawable": True, "filters": 9}, "does not go with filters"),
    "filters of filters": ({"drawable": True, "granularity": "filter"}, "drawable needs granularity 'kernel'"),
    "effective weights": (
        {"density": 0.1, "effective": True, "granularity": "weight"},
        "A budget of effective kernels needs granularity 'kernel'; got 'weight'",
    ),
    "iterative": ({"drawable": True, "criterion": "force"}, "force must know how many kernels to keep"),
    "no size": ({"effective": True}, "Give either density"),
    "not true": ({"density": 0.1, "effective": "yes"}, "effective is true or false; got 'yes'"),
}


@pytest.mark.parametrize(("budget", "said"), WRONG.values(), ids=WRONG)
def test_a_size_that_says_nothing_is_refused_before_any_image_is_read(budget, said):
    case = NETS["plain"]
    with pytest.raises(cc.ConvCircuitsError, match=said):
        cc.find(case.build(), cc.Feature("features.5", 2), None, **budget)
