"""The interior: positions that no padding reaches, found by changing the padding; and features that count there."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
from convcircuits.maps.interior import Interior, Positions, highest_of
from convcircuits.maps.receptive_fields import Field
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from convcircuits.values.feature import at, flattened
from nets import seeded


def positions_of(model, feature, shape):
    network = Network(model)
    return Positions(Subject(network, feature, survey(network, feature, shape)))


def seen_alone(model, feature, images):
    """Where a map is the same whatever the convolutions pad with: (h, w)."""
    maps = [cc.activations(model, feature, images)]
    for mode in ("replicate", "circular"):
        other = copy.deepcopy(model)
        for module in other.modules():
            if isinstance(module, nn.Conv2d) and any(module.padding):
                module.padding_mode = mode
                module._reversed_padding_repeated_twice = [p for p in reversed(module.padding) for _ in range(2)]
        maps.append(cc.activations(other, feature, images))
    return torch.stack([(m - maps[0]).abs().amax(0) <= 1e-12 for m in maps[1:]]).all(0)


class Squeezed(nn.Module):
    """A gate that sees the whole image scales every position alike."""

    def __init__(self):
        super().__init__()
        self.body, self.gate = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x):
        x = self.body(x)
        return self.head(x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1))))


NETS = {
    "3x3 twice": lambda: (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)),
    "stride": lambda: (nn.Conv2d(3, 4, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)),
    "pooled": lambda: (nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3, padding=1)),
    "dilated, not square": lambda: (
        nn.Conv2d(3, 4, (3, 1), padding=(2, 0), dilation=2),
        nn.Tanh(),
        nn.Conv2d(4, 2, (1, 5), padding=(0, 2)),
    ),
    "no padding": lambda: (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)),
    "one-sided": lambda: (nn.ZeroPad2d((2, 0, 0, 1)), nn.Conv2d(3, 2, 3)),
    "deep": lambda: [nn.Conv2d(3, 3, 5, padding=2) for _ in range(4)],
}


def net(name):
    return seeded(lambda: nn.Sequential(*NETS[name]()), 0)()


@pytest.mark.parametrize("name", [name for name in NETS if name not in ("one-sided", "deep")])
@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 13, 18)], ids=str)
def test_the_interior_is_where_padding_changes_nothing(name, shape):
    model = net(name)
    feature = cc.Feature(str(len(model) - 1), 1)
    images = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    interior = positions_of(model, feature, shape).interior(shape)
    expected = seen_alone(model, feature, images)
    assert interior.inside
    assert interior.map == expected.shape
    assert interior.mask.tolist() == expected.flatten().tolist()
    assert interior.positions.tolist() == expected.flatten().nonzero()[:, 0].tolist()


def test_padding_on_one_side_is_outside_on_that_side():
    mask = positions_of(net("one-sided"), cc.Feature("1", 0), (3, 8, 8)).interior((3, 8, 8)).mask.reshape(7, 8)
    assert mask.any(1).tolist() == [True] * 6 + [False]
    assert mask.any(0).tolist() == [False] * 2 + [True] * 6


def test_a_gate_that_scales_all_positions_alike_is_no_part_of_a_field():
    interior = positions_of(seeded(Squeezed, 0)(), cc.Feature("head", 0), (3, 10, 10)).interior((3, 10, 10))
    assert interior.inside
    assert interior.mask.reshape(10, 10)[2:8, 2:8].all()
    assert interior.mask.sum() == 36


@pytest.mark.parametrize(
    ("spans", "length", "expected"),
    [
        ([(-4 + i, 6 + i) for i in range(7)], 8, [2, 3, 4]),  # one is the most central, its two neighbours tie
        ([(-5 + i, 7 + i) for i in range(8)], 9, [3, 4]),
        ([(-9, 9)], 9, [0]),
        ([(-3, 5), (-1, 7)], 6, [1]),
        ([(-3, 5), (-1, 7), (0, 6), (1, 8)], 6, [2]),  # one row is inside, of two columns: too few
        ([(-2, 4), (0, 6), (0, 6), (2, 8)], 6, [1, 2]),  # four positions are enough
        ([(0, 2)], 6, [0]),  # two, but they are all that there are
    ],
)
def test_with_too_few_fields_inside_the_central_ones_stand_for_it(spans, length, expected):
    interior = Interior.of(Field(tuple(spans), ((0, 3), (1, 4)), (length, 4)))
    mask = interior.mask.reshape(len(spans), 2)
    assert mask.any(1).nonzero()[:, 0].tolist() == expected
    assert mask.any(0).tolist() == [True, True]
    assert interior.within == 2 * sum(first >= 0 and end <= length for first, end in spans)
    assert interior.inside == (interior.within >= 4 or interior.within == 2 * len(spans))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (7, 4)])
def test_the_highest_value_of_an_interior_is_the_first_of_equal_ones(shape, gaps):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 3, (20, 3, *shape), generator=generator).double()  # many are equally high
    inside = [(length // 3, length // 3 + (length + 1) // 2) for length in shape]
    spans = [
        tuple((0, 2) if (n % 2 == 0 if gaps else first <= n < end) else (-9, 2) for n in range(length))
        for length, (first, end) in zip(shape, inside, strict=True)
    ]
    interior = Interior.of(Field(*spans, (50, 50)))
    value, place = highest_of(maps, interior.window)
    for image in range(20):
        for unit in range(3):
            best = max(interior.positions.tolist(), key=maps[image, unit].flatten().tolist().__getitem__)
            assert int(place[image, unit]) == best
            assert float(value[image, unit]) == float(maps[image, unit].flatten()[best])


def test_boxes_of_a_field_are_those_of_its_positions():
    rows, columns = ((-2, 3), (0, 5), (4, 9)), ((-1, 8), (2, 11))
    for image in ((9, 20), (5, 20), (9, 9)):  # the whole axis where fields are as long
        field = Field(rows, columns, image)
        assert field.boxes().tolist() == [[list(field.box(r, c)) for c in range(2)] for r in range(3)]


@pytest.mark.parametrize(("side", "within", "kind"), [(8, 0, "central"), (9, 1, "central"), (10, 4, "inside")])
def test_an_interior_of_one_position_is_not_reported_as_such(side, within, kind):
    """Fields of 9 x 9 pixels: all of the figures, the verdict and a note say what they are of."""
    model = seeded(lambda: nn.Sequential(*(nn.Conv2d(3, 3, 5, padding=2) for _ in range(2))), 0)()
    x = torch.randn(12, 3, side, side, generator=torch.Generator().manual_seed(0)).double()
    circuit = cc.find(model, cc.Feature("1", 0), x, criterion="gauss_newton", density=0.5)
    report = cc.evaluate(model, circuit, x + 0.1, fit=x)
    assert report.interior == kind
    interior = positions_of(model, circuit.feature, (3, side, side)).interior((3, side, side))
    assert (interior.within, interior.inside) == (within, kind == "inside")
    assert len(interior.positions) >= 4
    assert report.interior_share == pytest.approx(len(interior.positions) / side**2)
    inner = {"central": "the central positions", "inside": "the interior"}[kind]
    assert f"R2 on {inner}" in report.verdict_sentence or f", on {inner} " in report.verdict_sentence
    assert f"R2, {inner.removeprefix('the ')} " in report.summary()
    notes = [note for note in report.notes if "Receptive fields are" in note and "are used as the interior" in note]
    assert len(notes) == (kind == "central")
    if kind == "central":
        assert f"9 x 9 pixels, and {'only 1 of them' if within else 'none'} lies inside the image" in notes[0]
        assert f"the {len(interior.positions)} central positions of the {side} x {side} map" in notes[0]
    drawn = cc.diagram(model, circuit, images=x, held_out=x + 0.1)
    assert drawn.document.images.target.inside.exact == (kind == "inside")
    assert f"on {inner}" in drawn.caption


def test_deep_nets_have_a_centre():
    model = net("deep")
    interior = positions_of(model, cc.Feature("3", 0), (3, 8, 8)).interior((3, 8, 8))
    assert not interior.inside
    assert interior.field == (17, 17)
    assert interior.mask.reshape(8, 8).nonzero().tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]


# ---------------------------------------- the position "interior"


@pytest.mark.parametrize("unit", [1, [1, 0], torch.tensor([1.0, -2.0])], ids=str)
def test_interior_positions_count(unit):
    model, shape = net("3x3 twice"), (3, 10, 9)
    feature = cc.Feature("2", unit, position="interior")
    images = torch.randn(4, *shape).double()
    maps = cc.activations(model, feature, images)
    counted = positions_of(model, feature, shape).counted(maps, images)
    expected = maps[..., 2:8, 2:7].flatten(-2)
    assert torch.equal(at(maps, counted), expected)
    assert at(maps, None).shape == flattened(maps).shape


@pytest.mark.parametrize("criterion", ["snip", "actgrad", "gauss_newton"])
def test_scores_of_the_interior_are_those_of_the_map_without_its_border(criterion):
    """The same net, with the border cut off by a module of its own."""
    model = net("3x3 twice")
    cropped = nn.Sequential(*model, nn.ZeroPad2d(-2))
    images = torch.randn(5, 3, 9, 9, generator=torch.Generator().manual_seed(1)).double()
    options = {"draws": 64} if criterion == "gauss_newton" else {"normalizer": "sum"}
    inner = cc.score(model, cc.Feature("2", 1, position="interior"), images, criterion=criterion, **options)
    whole = cc.score(model, cc.Feature("2", 1), images, criterion=criterion, **options)
    other = cc.score(cropped, cc.Feature("3", 1), images, criterion=criterion, **options)
    for layer, saliency in other.kernels.items():
        if criterion == "gauss_newton":  # drawn signs: near, and nearer than the whole map is
            gap, apart = ((one.kernels[layer] / saliency - 1).abs().nanmean() for one in (inner, whole))
            assert gap < 0.2 * apart
        else:
            torch.testing.assert_close(inner.elements[layer], saliency, equal_nan=True)


def test_a_circuit_of_the_interior_is_found_saved_and_measured_there(tmp_path):
    model = net("3x3 twice")
    images = torch.randn(12, 3, 9, 9, generator=torch.Generator().manual_seed(1)).double()
    feature = cc.Feature.parse("2:1@interior")
    circuit = cc.find(model, feature, images, criterion="gauss_newton", density=0.6)
    assert circuit.feature == feature
    cc.save(circuit, tmp_path / "c.safetensors")
    report = cc.evaluate(model, cc.load(tmp_path / "c.safetensors"), images[:5] + 0.1)
    whole = cc.evaluate(model, cc.Circuit.from_masks(model, cc.Feature("2", 1), circuit.elements), images[:5] + 0.1)
    assert report.feature == "2:1@interior"
    assert report.r2 == pytest.approx(report.r2_interior)
    assert report.r2 == pytest.approx(whole.r2_interior)
    assert report.interior_share == 1.0
    assert whole.interior_share == pytest.approx(25 / 81)


@pytest.mark.parametrize("error", [cc.ConvCircuitsError, KeyError])
def test_where_receptive_fields_are_refused_interior_features_are_and_others_have_no_figure(monkeypatch, error):
    def refuse(*_, **__):
        raise error("No receptive fields here.")

    monkeypatch.setattr("convcircuits.maps.receptive_fields.receptive_fields", refuse)
    model, images = net("3x3 twice"), torch.randn(12, 3, 9, 9).double()
    with pytest.raises(cc.ConvCircuitsError, match=r"interior of 2:1@interior .*No receptive.*position"):
        cc.find(model, cc.Feature("2", 1, position="interior"), images, density=0.5)
    circuit = cc.find(model, cc.Feature("2", 1), images, density=0.9)
    report = cc.evaluate(model, circuit, images + 0.1, fit=images)
    for name in ("r2_interior", "r2_average_map_interior", "r2_random_interior", "interior_share", "maxima_at_border"):
        assert math.isnan(getattr(report, name)), name
    assert report.interior == "unknown"
    assert any(
        "Receptive fields are not known" in note and "No receptive fields here." in note for note in report.notes
    )
    assert report.verdict in ("not decided", "does not keep")
