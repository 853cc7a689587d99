"""Pictures that drive maps most: what they claim, against plain runs on them and against optima found by formula."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import convcircuits as cc
import oracles
from convcircuits.maps.feature_visualization import visualize
from convcircuits.maps.receptive_fields import receptive_fields
from convcircuits.network.capture import Network
from convcircuits.network.masking import Masks, Subject
from convcircuits.network.reach import survey
from nets import NETS, seeded

pytestmark = pytest.mark.slow

SIZES = {"flat_head": (3, 10, 10)}  # it takes no other
# What black, red, green and blue become: a preparation that mixes colours.
PRIMARIES = torch.tensor([[-0.4, 0.1, 0.3], [2.0, -0.2, 0.0], [0.3, 1.5, 0.4], [-0.6, 0.2, 1.9]], dtype=torch.float64)


def subject_of(model, feature, shape):
    network = Network(model)
    return Subject(network, feature, survey(network, feature, shape))


def case_of(name):
    """A net on images that are larger than most of its fields, and a random circuit of it as masks."""
    case = NETS[name]
    model, (layer, unit), shape = case.build(), case.features[-1], SIZES.get(name, (3, 26, 23))
    subject = subject_of(model, cc.Feature(layer, unit), shape)
    generator = torch.Generator().manual_seed(4)
    kept = {
        layer: mask & (torch.rand(mask.shape, generator=generator) < 0.8)
        for layer, mask in subject.survey.kernels.items()
    }
    return model, subject, Masks(kept, effective=False)


def all_readings(subject, name):
    readings = [None, *subject.rows.tolist()]
    for layer in subject.survey.kernels:
        module = subject.network.layer(layer)
        count = NETS[name].blocks.get(layer) or getattr(module, "in_channels", 0) or module.in_features
        calls = 2 if (name, layer) == ("twice", "shared") else 1
        readings += [(layer, call, channel) for call in range(calls) for channel in (0, count - 1)]
    return list(dict.fromkeys(readings))


def map_on(name, model, masks, subject, reading, image):
    """The map (h, w) on one image, in a slow copy that holds the circuit's kernels alone."""
    layer, unit = subject.feature.layer, subject.feature.unit
    blocks = NETS[name].blocks
    if not isinstance(reading, tuple):
        found = oracles.masked_map(model, masks.kernels, layer, unit, image[None], blocks=blocks)[0]
        return found if found.dim() == 2 else found[None, None]
    clone, _ = oracles.slow_copy(model, masks.kernels, blocks)
    seen = []
    clone.get_submodule(reading[0]).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        clone(image[None])
    x = seen[reading[1]][0]
    return x[reading[2]] if x.dim() == 3 else x.reshape(blocks.get(reading[0], len(x)), -1)[reading[2]][None]


def places(field):
    """Along each axis: a position (the last that sees neither padding nor the whole image), and where it begins."""
    for spans, length in zip((field.rows, field.columns), field.image, strict=True):
        inside = [n for n, (a, b) in enumerate(spans) if a >= 0 and b <= length and b - a < length]
        position = inside[-1] if inside else len(spans) // 2
        yield position, max(0, spans[position][0]), min(length, spans[position][1])


@pytest.mark.parametrize("whole", [False, True], ids=["circuit", "full"])
@pytest.mark.parametrize("name", NETS)
def test_a_value_is_what_the_map_is_on_the_picture(name, whole):
    """Put the picture where a position of the map looks, whatever is around: the map is there what it says."""
    model, subject, masks = case_of(name)
    masks = None if whole else masks
    readings = all_readings(subject, name)
    fields = receptive_fields(subject, readings)
    found = visualize(subject, fields, masks=masks, primaries=PRIMARIES, steps=6, seed=3)
    assert list(found) == readings
    shown = {reading: picture for reading, picture in found.items() if picture is not None}
    assert len(shown) > len(readings) / 3
    for reading, picture in shown.items():
        assert picture.value > picture.start
        field = fields[reading]
        (row, top, bottom), (column, left, right) = places(field)
        assert picture.pixels.dtype == torch.uint8
        assert picture.pixels.shape == (bottom - top, right - left, 3)
        image = torch.randn(subject.survey.input_shape, dtype=torch.float64)
        colours = PRIMARIES[0] + picture.pixels.double() / 255 @ (PRIMARIES[1:] - PRIMARIES[0])
        image[:, top:bottom, left:right] = colours.movedim(-1, 0)
        maps = map_on(name, model, masks or Masks({}), subject, reading, image).reshape(field.shape)
        torch.testing.assert_close(maps[row, column].item(), picture.value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("unit", [(1, 3), torch.tensor([0.5, -2.0, 0.0, 1.0])], ids=["units", "direction"])
def test_of_several_units_the_largest_counts_and_of_a_direction_the_sum(unit):
    model = NETS["nested"].build()
    feature = cc.Feature("stage.1.body.second", unit)
    subject = subject_of(model, feature, (3, 8, 8))
    fields = receptive_fields(subject, [None, *subject.rows.tolist()])
    found = visualize(subject, fields, steps=6)
    for reading, picture in found.items():
        image = picture.pixels.movedim(-1, 0).double()[None] / 255
        own = feature if reading is None else dataclasses.replace(feature, unit=reading)
        maps = cc.activations(model, own, image)[0]
        maps = maps.amax(0) if maps.dim() == 3 else maps
        assert maps[4, 4].item() == pytest.approx(picture.value, rel=1e-9)


def pixels(found):
    return {reading: None if picture is None else picture.pixels.int() for reading, picture in found.items()}


def same(some, others):
    """Alike, to one step of rounding a colour."""
    assert some.keys() == others.keys()
    for reading, picture in some.items():
        assert (picture is None) == (others[reading] is None)
        assert picture is None or (picture - others[reading]).abs().max() <= 1


@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "flat_head", "dense"])
def test_pictures_depend_neither_on_the_batch_nor_on_each_other(name):
    _, subject, masks = case_of(name)
    readings = all_readings(subject, name)
    fields = receptive_fields(subject, readings, local=True)
    options = {"masks": masks, "steps": 5, "seed": 1}
    together = visualize(subject, fields, **options)
    same(pixels(visualize(subject, fields, batch_size=1, **options)), pixels(together))
    for some in (readings[::2], readings[::-1]):
        part = visualize(subject, {reading: fields[reading] for reading in some}, batch_size=3, **options)
        assert list(part) == list(some)
        same(pixels(part), {reading: pixels(together)[reading] for reading in some})


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others():
    _, subject, masks = case_of("plain")
    fields = receptive_fields(subject, [None])
    first, second, other = (visualize(subject, fields, masks=masks, steps=5, seed=n)[None] for n in (1, 1, 2))
    assert torch.equal(first.pixels, second.pixels)
    assert (first.value, first.start) == (second.value, second.start)
    assert not torch.equal(first.pixels, other.pixels)
    state = torch.random.get_rng_state()
    visualize(subject, fields, steps=1)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["plain", "residual", "inception", "grouped", "mobile", "flat_head", "twice"])
def test_inside_a_circuit_its_own_kernels_matter_alone(name):
    """Whatever the dropped kernels and the biases of dead filters are: the pictures stay."""
    model, subject, masks = case_of(name)
    shape = subject.survey.input_shape
    inside = Masks(subject.effective(masks.kernels, shape))
    readings = [None, *[r for r in all_readings(subject, name) if isinstance(r, tuple) and not touches_dead(r, inside)]]
    fields = receptive_fields(subject, readings)
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for layer, kept in inside.kernels.items():
        module = twin.get_submodule(layer)
        weight = module.weight.data.reshape(*kept.shape, -1)
        weight[~kept] = torch.randn(weight[~kept].shape, dtype=torch.float64, generator=generator)
        if module.bias is not None and layer != subject.feature.layer:
            module.bias.data[~kept.any(1)] = 7.0
    other = subject_of(twin, subject.feature, shape)
    assert any(not kept.all() for kept in inside.kernels.values())
    found = visualize(subject, fields, masks=inside, steps=6)
    same(pixels(found), pixels(visualize(other, fields, masks=inside, steps=6)))
    assert found[None] is not None
    full = visualize(subject, {None: fields[None]}, steps=6)[None]
    assert full is None or not torch.equal(full.pixels, found[None].pixels)


def touches_dead(reading, masks):
    """Whether no kept kernel reads a channel: what a dead filter gives out by itself is then seen by nobody."""
    layer, _, channel = reading
    kept = masks.kernels[layer]
    return not (channel < kept.shape[1] and kept[:, channel].any())


# ---------------------------------------------------------------------- optima that are known


def linear(weight):
    """A model whose only feature is one kernel on images of one channel."""
    model = nn.Sequential(nn.Conv2d(1, 1, tuple(weight.shape), bias=False)).double()
    model[0].weight.data[:] = weight
    return subject_of(model, cc.Feature("0", 0), (1, 24, 24))


def optimum(weight, contrast=2.0):
    """The waves x of the highest w . sigmoid(x) among those of one root mean square.

    At the optimum w sigmoid'(x) is in proportion to x: where the weight is larger, so is x, with its sign. Both the
    factor and each x are found by bisection.
    """

    def waves(factor):
        low, high = np.zeros(weight.shape), np.full(weight.shape, 60.0)
        for _ in range(80):
            x = (low + high) / 2
            slope = np.exp(-x) / (1 + np.exp(-x)) ** 2
            more = np.abs(weight) * slope > factor * x
            low, high = np.where(more, x, low), np.where(more, high, x)
        return low * np.sign(weight)

    low, high = 1e-12, np.abs(weight).max()
    for _ in range(200):
        factor = np.sqrt(low * high)
        low, high = (factor, high) if np.sqrt((waves(factor) ** 2).mean()) > contrast else (low, factor)
    return waves(factor)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_picture_of_one_kernel_is_the_best_of_its_contrast(seed):
    weight = torch.randn(7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    subject = linear(weight)
    fields = receptive_fields(subject, [None])
    found = visualize(subject, fields, steps=400)[None]
    best = 1 / (1 + np.exp(-optimum(weight.numpy())))
    most, grey = float((weight.numpy() * best).sum()), float(weight.sum()) / 2
    assert grey < most
    assert (found.value - grey) / (most - grey) == pytest.approx(1, abs=0.03)
    assert found.value < most + 0.5 / 255 * weight.abs().sum()
    shown = found.pixels[..., 0].double().numpy()
    assert np.corrcoef(shown.ravel(), weight.numpy().ravel())[0, 1] > 0.75
    assert np.corrcoef(shown.ravel(), best.ravel())[0, 1] > 0.95
    assert (found.pixels == found.pixels[..., :1]).all()


def test_more_steps_find_higher_values():
    subject = linear(torch.randn(6, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64))
    fields = receptive_fields(subject, [None])
    values = [visualize(subject, fields, steps=steps)[None].value for steps in (4, 16, 64, 256)]
    assert values == sorted(set(values))


def test_where_nothing_matters_the_picture_is_grey():
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weight[:, 6:] = 0
    subject = linear(weight)
    found = visualize(subject, receptive_fields(subject, [None]), steps=300)[None]
    shown = found.pixels[..., 0].double() / 255 - 0.5
    nowhere = shown[:, 8:]  # the picture jitters by two pixels
    assert nowhere.abs().mean() < 0.15 * shown[:, :6].abs().mean()
    assert nowhere.abs().mean() < 0.06


def test_colours_follow_the_weights():
    """A kernel that adds red and takes away blue: its picture is red where it adds, blue where it takes away."""
    model = nn.Sequential(nn.Conv2d(3, 1, 6, bias=False)).double()
    sign = torch.ones(6, 6, dtype=torch.float64)
    sign[:, 3:] = -1
    model[0].weight.data[:] = torch.stack([sign, torch.zeros(6, 6, dtype=torch.float64), -sign])
    subject = subject_of(model, cc.Feature("0", 0), (3, 20, 20))
    found = visualize(subject, receptive_fields(subject, [None]), steps=200)[None]
    red_over_blue = found.pixels[..., 0].int() - found.pixels[..., 2].int()
    assert red_over_blue[:, :3].double().mean() > 30
    assert red_over_blue[:, 3:].double().mean() < -30


@pytest.mark.parametrize("effective", [None, False, True], ids=["full", "every bias", "effective"])
@pytest.mark.parametrize("relu", [nn.ReLU(inplace=True), nn.ReLU(), nn.ReLU6()], ids=str)
def test_a_map_that_noise_leaves_silent_is_woken(relu, effective):
    """No value, no gradient: a ReLU that is shut on noise must be opened."""
    model = nn.Sequential(nn.Conv2d(1, 1, 5), relu, nn.Conv2d(1, 1, 1)).double()
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    waves = optimum(weight.numpy())
    most = float((weight.numpy() / (1 + np.exp(-waves))).sum())
    model[0].weight.data[:] = weight
    model[0].bias.data[:] = -0.8 * most - 0.2 * float(weight.sum()) / 2  # only near the best picture is there any
    subject = subject_of(model, cc.Feature("2", 0), (1, 20, 20))
    reading = ("2", 0, 0)
    masks = None if effective is None else Masks({"0": torch.ones(1, 1, dtype=torch.bool)}, effective=effective)
    found = visualize(subject, receptive_fields(subject, [reading]), masks=masks, steps=200)[reading]
    assert found.start == 0
    assert found.value > 0


class Still(nn.Module):
    """A filter of zeros, one that no image wakes, and one that works."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3)
        self.head = nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return self.head(self.stem(x).relu())


def test_where_nothing_is_higher_than_on_noise_there_is_no_picture():
    model = seeded(Still, 0)()
    model.stem.weight.data[0] = 0
    model.stem.bias.data[1] = -1e3
    subject = subject_of(model, cc.Feature("head", 0), (3, 12, 12))
    readings = [("head", 0, channel) for channel in range(3)]
    found = visualize(subject, receptive_fields(subject, readings), steps=20)
    assert [picture is None for picture in found.values()] == [True, True, False]
    none = Masks({layer: torch.zeros_like(mask) for layer, mask in subject.survey.kernels.items()})
    fields = receptive_fields(subject, [None, *readings])
    assert set(visualize(subject, fields, masks=none, steps=5).values()) == {None}


# ---------------------------------------------------------------------- colours


def test_a_preparation_without_colour_gives_grey_pictures_and_keeps_the_value():
    model = nn.Sequential(nn.Conv2d(3, 2, 4)).double()
    subject = subject_of(model, cc.Feature("0", 1), (3, 20, 20))
    grey = torch.tensor([[-1.0, -1, -1], [0.2, 0.2, 0.2], [-0.1, -0.1, -0.1], [-0.8, -0.8, -0.8]], dtype=torch.float64)
    found = visualize(subject, receptive_fields(subject, [None]), primaries=grey, steps=10)[None]
    assert (found.pixels == found.pixels[..., :1]).all()
    image = grey[0] + found.pixels[..., 0].double()[..., None] / 255 * (grey[1:] - grey[0]).sum(0)
    with torch.no_grad():
        value = model(image.movedim(-1, 0)[None])[0, 1, 0, 0].item()
    assert value == pytest.approx(found.value, rel=1e-9)


def test_without_primaries_images_of_any_other_number_of_channels_are_grey():
    model = nn.Sequential(nn.Conv2d(5, 2, 4)).double()
    subject = subject_of(model, cc.Feature("0", 1), (5, 20, 20))
    found = visualize(subject, receptive_fields(subject, [None]), steps=10)[None]
    assert (found.pixels == found.pixels[..., :1]).all()
    image = (found.pixels[..., 0].double() / 255).expand(1, 5, -1, -1)
    with torch.no_grad():
        assert model(image)[0, 1, 0, 0].item() == pytest.approx(found.value, rel=1e-9)


# ---------------------------------------------------------------------- what is left behind, and errors


def state(model):
    return {
        **{name: (tensor.clone(), tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()},
        "flags": [(p.requires_grad, p.grad) for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "own": [sorted(vars(module)) for module in model.modules()],
    }


@pytest.mark.parametrize("name", ["plain", "residual", "se_linear"])
def test_the_users_model_is_left_as_it_was(name):
    model, subject, masks = case_of(name)
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = state(model)
    fields = receptive_fields(subject, all_readings(subject, name))
    with torch.no_grad():  # gradients are taken all the same
        found = visualize(subject, fields, masks=masks, steps=3)
    assert any(picture is not None for picture in found.values())

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        visualize(subject, fields, steps=2, progress=fail)
    for key, value in state(model).items():
        if isinstance(value, tuple):
            assert torch.equal(value[0], before[key][0]), key
            assert value[1] == before[key][1], key
        else:
            assert value == before[key], key


def test_progress_goes_up_to_the_number_of_maps():
    _, subject, _ = case_of("plain")
    fields = receptive_fields(subject, [None, *[("features.3", 0, channel) for channel in range(4)]])
    told = []
    visualize(subject, fields, steps=1, batch_size=3, progress=lambda done, total: told.append((done, total)))
    assert [total for _, total in told] == [5] * len(told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (5, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"steps": 1.5}, "steps"),
        ({"primaries": torch.zeros(4, 1)}, r"\(4, 1\); images with 3 channels need \(4, 3\)"),
        ({"primaries": torch.zeros(3, 3)}, r"\(3, 3\); images with 3 channels need \(4, 3\)"),
    ],
)
def test_what_is_out_of_range_is_refused_by_its_name(options, words):
    _, subject, _ = case_of("plain")
    with pytest.raises(cc.ConvCircuitsError, match=words):
        visualize(subject, receptive_fields(subject, [None]), **options)


@pytest.mark.parametrize("reading", [("features.3", 0, 4), ("features.3", 1, 0), ("nothing", 0, 0), 3])
def test_a_map_that_is_not_there_is_refused(reading):
    model = NETS["plain"].build()
    subject = subject_of(model, cc.Feature("features.3", 1), (3, 8, 8))
    (field,) = receptive_fields(subject, [("features.3", 0, 0)]).values()
    with pytest.raises(cc.ConvCircuitsError, match="no map"):
        visualize(subject, {reading: field}, steps=1)
