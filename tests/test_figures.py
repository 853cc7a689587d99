"""The figures beside R2, against one line of numpy each on stored maps; what they say of made-up nets; the notes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convcircuits as cc
from convcircuits.circuits.control_circuits import random_like
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.circuits.notes import FEW_IMAGES
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from convcircuits.texts import sentences
from nets import seeded

SHAPE = (3, 10, 12)
INSIDE = np.zeros((10, 12), bool)
INSIDE[2:8, 2:10] = True  # of two 3x3 convolutions with padding


def small():
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1))


def images(count, seed=0, shape=SHAPE):
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def r2(full, other):
    return 1 - ((full - other) ** 2).sum() / ((full - full.mean()) ** 2).sum()


def stored(model, feature, circuit, x):
    return cc.activations(model, feature, x, circuit=circuit).numpy()


def control_of(model, circuit, seed=0):
    network = Network(model)
    return random_like(Subject(network, circuit.feature, survey(network, circuit.feature, SHAPE)), circuit, seed=seed)


def counted(maps, full, position):
    """The values that count and whether they are inside, (N, ...) each, by hand."""
    inside = np.broadcast_to(INSIDE, maps.shape)
    if position == "all":
        return maps, inside
    if position == "interior":
        return maps[..., 2:8, 2:10], inside[..., 2:8, 2:10]
    flat = full.reshape(*full.shape[:-2], -1)
    place = {"center": np.full(flat.shape[:-1], 5 * 12 + 6), "max": flat.argmax(-1)}
    index = place[position] if isinstance(position, str) else np.full(flat.shape[:-1], position[0] * 12 + position[1])
    return tuple(np.take_along_axis(x.reshape(flat.shape), index[..., None], -1) for x in (maps, inside))


@pytest.mark.parametrize("position", ["all", "max", "center", "interior", (0, 3)], ids=str)
@pytest.mark.parametrize("unit", [1, [2, 0], torch.tensor([1.0, 0.0, -2.0])], ids=["unit", "units", "direction"])
def test_every_figure_is_one_line_of_numpy(unit, position):
    model, feature = seeded(small, 3)(), cc.Feature("2", unit, position=position)
    fit, x = images(9, 1), images(11, 2)
    circuit = cc.find(model, feature, fit, criterion="gauss_newton", density=0.5)
    report = cc.evaluate(model, circuit, x, fit=fit, batch_size=4, seed=5)
    full, trained = stored(model, feature, None, x), stored(model, feature, None, fit)
    f, inside = counted(full, full, position)
    others = {
        "": counted(stored(model, feature, circuit, x), full, position)[0],
        "_average_map": np.broadcast_to(counted(trained, trained, position)[0].mean(0), f.shape),
        "_random": counted(stored(model, feature, control_of(model, circuit, 5), x), full, position)[0],
    }
    units = range(2) if isinstance(unit, list) else [slice(None)]

    def mean(figure, other, where=None):
        pairs = [(f[:, u], other[:, u], inside[:, u]) if isinstance(unit, list) else (f, other, inside) for u in units]
        return np.mean([figure(a[i], b[i]) if where else figure(a, b) for a, b, i in pairs])

    for name, other in others.items():
        assert getattr(report, f"r2{name}") == pytest.approx(mean(r2, other), rel=1e-9), name
        interior = getattr(report, f"r2{name}_interior")
        if inside.any():
            assert interior == pytest.approx(mean(r2, other, where=True), rel=1e-9), name
        else:
            assert math.isnan(interior)
        relu = mean(lambda a, b: r2(np.maximum(a, 0), np.maximum(b, 0)), other)
        assert getattr(report, f"r2{name}_rectified") == pytest.approx(relu, rel=1e-9), name
    assert report.interior == "inside"
    assert report.interior_share == pytest.approx(inside.mean())
    assert report.positive == pytest.approx((f > 0).mean())
    best = full.reshape(*full.shape[:-2], -1).argmax(-1)
    assert report.maxima_at_border == pytest.approx((~INSIDE.flatten()[best]).mean())


def test_figures_do_not_depend_on_batches_order_or_form():
    model, feature = seeded(small, 3)(), cc.Feature("2", 1)
    fit, x = images(9, 1), images(11, 2)
    circuit = cc.find(model, feature, fit, density=0.5)
    expected = cc.evaluate(model, circuit, x, fit=fit)
    for given, trained, size in (
        (x, fit, 1),
        (x.flip(0), [fit[5:], fit[:5]], 4),
        (DataLoader(TensorDataset(x, torch.zeros(11)), batch_size=3, shuffle=True), fit, 2),
    ):
        report = cc.evaluate(model, circuit, given, fit=trained, batch_size=size)
        for name in (n for n in dir(report) if n.startswith("r2")):
            assert getattr(report, name) == pytest.approx(getattr(expected, name), rel=1e-9), name
        assert (report.verdict, report.verdict_sentence) == (expected.verdict, expected.verdict_sentence)


def test_images_of_several_sizes_have_their_own_interior_and_average():
    model, feature = seeded(small, 3)(), cc.Feature("2", 1)
    sizes = [(3, 10, 12), (3, 9, 9)]
    fit, x = ([images(6, seed, shape) for shape in sizes] for seed in (1, 2))
    circuit = cc.find(model, feature, fit[0], density=0.5)
    report = cc.evaluate(model, circuit, x, fit=fit)
    full = [stored(model, feature, None, one) for one in x]
    averages = [
        stored(model, feature, None, one).mean(0, keepdims=True) + 0 * f for one, f in zip(fit, full, strict=True)
    ]
    kept = [stored(model, feature, circuit, one) for one in x]

    def joined(maps, cut):
        return np.concatenate([one[:, cut : one.shape[1] - cut, cut : one.shape[2] - cut].flatten() for one in maps])

    for name, other in (("", kept), ("_average_map", averages)):
        assert getattr(report, f"r2{name}") == pytest.approx(r2(joined(full, 0), joined(other, 0)))
        assert getattr(report, f"r2{name}_interior") == pytest.approx(r2(joined(full, 2), joined(other, 2)))
    assert report.interior_share == pytest.approx((48 + 25) / (120 + 81))
    alone = cc.evaluate(model, circuit, x, fit=fit[0])
    assert math.isnan(alone.r2_average_map)
    assert said(alone, "maps of other sizes")
    assert alone.r2_interior == report.r2_interior


def test_a_circuit_of_all_relevant_kernels_keeps_the_feature_beside_any_baseline():
    """Its random circuit is itself; a margin in R2 would fail it."""
    for seed in range(3):
        model = seeded(small, seed)()
        circuit = cc.find(model, cc.Feature("2", 1), images(4), criterion="magnitude", density=1.0)
        report = cc.evaluate(model, circuit, images(12, 1), fit=images(4))
        assert report.verdict == "keeps"
        assert report.r2_random == pytest.approx(1)


def test_one_seed_draws_one_random_circuit():
    model, feature = seeded(small, 3)(), cc.Feature("2", 1)
    circuit = cc.find(model, feature, images(4), density=0.5)
    found = [cc.evaluate(model, circuit, images(5, 1), seed=seed).r2_random for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    with pytest.raises(cc.ConvCircuitsError, match="seed must be a whole number"):
        cc.evaluate(model, circuit, images(5, 1), seed=-1)


def test_controls_of_ones_own_stand_in_for_random_ones():
    model, feature = seeded(small, 3)(), cc.Feature("2", 1)
    a, b = (cc.find(model, feature, images(4), density=density) for density in (0.5, 0.3))
    first, second = evaluate_all(model, [a, b], images(5, 1), controls=[b, None])
    assert first.r2_random == second.r2
    assert math.isnan(second.r2_random)
    assert first.r2 == cc.evaluate(model, a, images(5, 1)).r2


# ---------------------------------------- made-up nets


class Border(nn.Module):
    """10 times how much of a kernel lies inside the image, and a little of the image itself."""

    def __init__(self):
        super().__init__()
        self.ones, self.part = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1, bias=False)
        self.head = nn.Conv2d(2, 1, 3, padding=1)
        with torch.no_grad():
            self.ones.weight.zero_().add_(1e-3)
            self.ones.bias.fill_(1.0)
            self.part.weight.fill_(1.0)
            self.head.bias.zero_()
            self.head.weight[0, 0] = 10.0
            self.head.weight[0, 1] = 0.0
            self.head.weight[0, 1, 1, 1] = 1.0

    def forward(self, x):
        return self.head(torch.cat([self.ones(x), self.part(x)], 1))


def border_only():
    model = Border().double()
    masks = {"ones": torch.ones(1, 1), "part": torch.ones(1, 1), "head": torch.tensor([[1, 0]])}
    return model, cc.Circuit.from_masks(model, cc.Feature("head", 0), masks, input_shape=(1, 8, 8))


def test_a_circuit_that_computes_the_padding_alone_is_found_out():
    model, circuit = border_only()
    x, fit = images(12, 1, (1, 8, 8)), images(12, 2, (1, 8, 8))
    report = cc.evaluate(model, circuit, x, fit=fit)
    assert report.r2 > 0.98
    assert report.pearson > 0.98
    assert report.r2_interior < 0.05
    assert report.r2_average_map > 0.98
    assert report.verdict == "does not keep"
    assert "on the interior" in report.verdict_sentence
    assert said(report, "more than half of the circuit's")
    assert report.interior_share == pytest.approx(36 / 64)


def test_a_feature_that_is_constant_inside_has_no_figure_there():
    model = nn.Conv2d(1, 1, 3, padding=1).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    model = nn.Sequential(model)
    x = torch.ones(12, 1, 8, 8).double()
    circuit = cc.find(model, cc.Feature("0", 0), x, criterion="magnitude", density=1.0)
    report = cc.evaluate(model, circuit, x, fit=x)
    assert report.r2 == pytest.approx(1)
    assert report.r2_average_map == pytest.approx(1)
    assert math.isnan(report.r2_interior)
    assert report.verdict == "not decided"
    assert said(report, "varies only at the border")


def test_a_feature_that_relu_never_lets_through_is_noticed():
    model, x = seeded(small, 3)(), images(12, 1)
    with torch.no_grad():
        model[2].bias[1] = -100.0
    for unit in (1, [1, 0]):
        circuit = cc.find(model, cc.Feature("2", unit), x, density=0.5)
        report = cc.evaluate(model, circuit, images(12, 2), fit=x)
        assert math.isfinite(report.r2)
        assert math.isnan(report.r2_rectified) == (unit == 1)
        assert report.positive == (0 if unit == 1 else pytest.approx(report.positive))
        assert said(report, "ever above 0 on these images")


def test_a_linear_feature_has_one_position_which_is_its_interior():
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(480, 2)), 0
    )()
    circuit = cc.find(model, cc.Feature("3", 1), images(8), density=0.6)
    report = cc.evaluate(model, circuit, images(12, 1), fit=images(8))
    assert report.r2_interior == report.r2
    assert report.interior_share == 1
    assert math.isnan(report.maxima_at_border)
    assert report.r2_average_map == pytest.approx(
        r2(stored(model, circuit.feature, None, images(12, 1)), stored(model, circuit.feature, None, images(8)).mean())
    )
    assert not said(report, "receptive field")


# ---------------------------------------- notes


def said(report, text):
    return any(text in note for note in report.notes)


@pytest.mark.parametrize("count", [1, FEW_IMAGES - 1, FEW_IMAGES])
def test_few_images_are_said(count):
    model = seeded(small, 3)()
    circuit = cc.find(model, cc.Feature("2", 1), images(4), density=0.5)
    report = cc.evaluate(model, circuit, images(count, 1), fit=images(4))
    assert said(report, "with fewer than 10") == (count < FEW_IMAGES)


def test_without_images_to_fit_there_is_no_average_map_and_the_note_says_why():
    model = seeded(small, 3)()
    circuit = cc.find(model, cc.Feature("2", 1), images(4), density=1.0)
    report = cc.evaluate(model, circuit, images(12, 1))
    assert math.isnan(report.r2_average_map)
    assert math.isnan(report.r2_average_map_interior)
    assert said(report, "There is no average map to compare with: the images")
    assert report.verdict == "not decided"
    assert "the average training map was not measured" in report.verdict_sentence


@pytest.mark.parametrize(("fit", "others"), [(4, False), (5, True), (12, False)])
def test_an_average_map_of_other_images_is_said_to_be_that(fit, others):
    model = seeded(small, 3)()
    circuit = cc.find(model, cc.Feature("2", 1), images(4), density=0.5)
    report = cc.evaluate(model, circuit, images(12, 1), fit=images(12, 1) if fit == 12 else images(fit))
    assert said(report, "average map was computed on other images or crops") == others
    assert said(report, "The readout and the average map come from the same images") == (fit == 12)  # which says more


def test_notes_are_sentences_each_once():
    given = ["left out: a.png", "Left out: a.png.", "conv1 is dead.", "features.3 is dead", "Why? So!", "R2 is 1.5"]
    assert sentences(given) == ("Left out: a.png.", "conv1 is dead.", "features.3 is dead.", "Why? So!", "R2 is 1.5.")
    model = seeded(small, 3)()
    circuit = cc.find(model, cc.Feature("2", 1), images(4), density=0.5)
    circuit = replace(circuit, provenance={**circuit.provenance, "notes": given})
    notes = cc.evaluate(model, circuit, images(3, 1)).notes
    assert notes[:5] == sentences(given)
    assert len(set(notes)) == len(notes)
    drawn = cc.diagram(model, circuit, images=images(4), held_out=images(3, 1)).document.meta.notes
    assert set(sentences(given)) <= set(drawn)
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("scale", "hardly"), [(0.001, True), (1.0, False)])
def test_a_feature_that_hardly_varies_is_said_to(scale, hardly):
    model = seeded(small, 3)()
    with torch.no_grad():
        model[2].weight.mul_(scale)
        model[2].bias.fill_(0.2)
    for unit in (1, [1, 2]):
        circuit = cc.find(model, cc.Feature("2", unit, position="interior"), images(4), density=0.5)
        report = cc.evaluate(model, circuit, images(12, 1), fit=images(4))
        assert said(report, "hardly varies" if unit == 1 else "Hardly varying") == hardly


@pytest.mark.parametrize(("sign", "border"), [(-1.0, True), (1.0, False)])
def test_maxima_at_the_border_are_said(sign, border):
    """With all-positive input, a padded mean is lowest at the border."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)).double()
    with torch.no_grad():
        model[0].weight.fill_(sign)
    x = 1 + 0.01 * images(12, 1, (1, 8, 8))
    circuit = cc.find(model, cc.Feature("0", 0), x, criterion="magnitude", density=1.0)
    report = cc.evaluate(model, circuit, x + 0.1, fit=x)
    assert report.maxima_at_border == float(border)
    assert said(report, "In 100% of the images the feature is highest at the border") == border
    assert said(report, "44% of the positions") == border
