"""Receptive fields, best patches and per-image maps, against slow loops over what the nets' layers really read."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convcircuits as cc
import oracles
from cases import calibration
from convcircuits.maps import patches
from convcircuits.maps import receptive_fields as fields
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from convcircuits.zoo.models import load_model
from nets import NETS, seeded

FIXED = {"flat_head"}  # nets that take images of one size only


def subject_of(model, feature, shape):
    network = Network(model)
    return Subject(network, feature, survey(network, feature, shape))


def batches_of(subject, images, batch_size=2):
    return Batches(images, device=subject.network.device, dtype=subject.network.dtype, batch_size=batch_size)


def reads_of(model, images, layer, blocks=None):
    """What each call of a layer reads, channels first: list of (N, C, H, W), in a run of the module itself."""
    seen = []
    clone = copy.deepcopy(model)
    module = clone.get_submodule(layer)

    def note(_, args):
        x = args[0].clone()
        seen.append(x if x.dim() == 4 else x.reshape(len(x), blocks or x.shape[1], -1)[:, :, None])

    module.register_forward_pre_hook(note)
    with torch.set_grad_enabled(images.requires_grad):
        clone(images)
    return seen


# ---------------------------------------------------------------------- receptive fields


class Window(nn.Module):
    """Average in place of the maximum, so that all of a window counts; padding is left out of it."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        channels, (kh, kw) = x.shape[1], nn.modules.utils._pair(self.pool.kernel_size)
        weight = x.new_ones(channels, 1, kh, kw)
        return F.conv2d(x, weight, None, self.pool.stride, self.pool.padding, self.pool.dilation, channels)


def smooth(model):
    """The same geometry, in which nothing that counts is cut off or chosen by value."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        stand_in = None
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            stand_in = nn.Identity()
        elif isinstance(module, nn.MaxPool2d):
            stand_in = Window(module)
        if stand_in is not None:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, stand_in)
    return model


def touched(x):
    """The bounding box of what is not zero: (first row, row end, first column, column end)."""
    rows, columns = x.any(1).nonzero()[:, 0], x.any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def clipped(box, image):
    (height, width), (top, left, h, w) = image, box
    return max(0, top), min(height, top + h), max(0, left), min(width, left + w)


def inside(box, image):
    return clipped(box, image) == (box.top, box.top + box.height, box.left, box.left + box.width)


LAYERS = {
    "plain": ["features.0", "features.3", "features.5"],
    "residual": ["block1.conv1", "block2.conv1", "block2.down.0", "block2.conv2", "head"],
    "inception": ["stem", "reduce", "three", "project", "last"],
    "grouped": ["conv2", "conv3"],
    "mobile": ["stem.0", "depth.0", "multiply", "head"],
    "dilated": ["conv2", "conv3", "conv4"],
    "pad_zeros": ["conv2"],
    "pad_reflect": ["conv2"],
    "pad_replicate": ["conv2"],
    "pad_circular": ["conv2"],
    "same_zeros": ["conv2", "conv3"],
    "standardised": ["conv2", "conv3"],
    "same_pad": ["conv2", "conv3"],
    "pooled_head": ["conv2", "fc"],
    "se_conv": ["se.fc1", "se.fc2", "conv2", "head"],
    "se_linear": ["se.fc1", "se.fc2", "conv2", "head"],
    "dense": ["layer1.conv", "layer2.conv", "transition", "head"],
    "nested": ["stage.1.body.second", "head"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_field_is_where_the_gradient_of_its_position_is_not_zero(name, monkeypatch):
    for function in ("relu", "relu6"):
        monkeypatch.setattr(F, function, lambda x, inplace=False: x * 1)
    case, size = NETS[name], (22, 19)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images.requires_grad_()
    model, (layer, unit) = case.build(), case.features[-1]
    subject = subject_of(model, cc.Feature(layer, unit), (3, *size))
    gates = ["se.fc1", "se.fc2", "fc"]
    whole = 0
    for read_by in LAYERS[name]:
        (maps,) = reads_of(smooth(model), images, read_by)
        channels = range(maps.shape[1])
        found = fields.receptive_fields(subject, [(read_by, 0, channel) for channel in channels])
        for (_, _, channel), field in found.items():
            assert field.shape == tuple(maps.shape[2:])
            for row in range(field.shape[0]):
                for column in range(field.shape[1]):
                    (gradient,) = torch.autograd.grad(maps[0, channel, row, column], images, retain_graph=True)
                    expected, box = touched((gradient[0] != 0).any(0)), field.box(row, column)
                    if inside(box, size):
                        whole += 1
                        assert clipped(box, size) == expected, (read_by, channel, row, column)
                    elif name not in ("pad_circular", "pad_reflect"):  # what is padded with counts as outside
                        a, b, c, d = clipped(box, size)
                        top, bottom, left, right = expected
                        assert a <= top <= bottom <= b, (read_by, channel, row, column)
                        assert c <= left <= right <= d
                    if name.startswith("se") and read_by in ["conv2", *gates]:
                        assert box == (0, 0, *size)
    assert whole > 10


def test_what_reaches_all_positions_alike_can_be_left_out():
    case = NETS["se_conv"]
    subject = subject_of(case.build(), cc.Feature("head", 2), (3, 20, 20))
    readings = [("conv2", 0, 1), ("head", 0, 1)]
    near = fields.receptive_fields(subject, readings, local=True)
    assert [field.size for field in near.values()] == [(3, 3), (5, 5)]
    assert near["conv2", 0, 1].box(4, 5) == (4, 5, 3, 3)
    far = fields.receptive_fields(subject, readings)
    assert {field.box(4, 5) for field in far.values()} == {(0, 0, 20, 20)}


class Split(nn.Module):
    """Two branches, each scaled by a gate of its own and added: split attention."""

    def __init__(self):
        super().__init__()
        self.branches = nn.Conv2d(3, 8, 3)
        self.gate = nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.branches(x).unflatten(1, (2, 4))
        gate = self.gate(F.adaptive_avg_pool2d(x.sum(1), 1)).unflatten(1, (2, 4)).softmax(1)
        return self.head((x * gate).sum(1))


def test_gates_of_several_branches_can_be_left_out_too():
    subject = subject_of(seeded(Split, 2)(), cc.Feature("head", 0), (3, 12, 12))
    for local, size in ((True, (3, 3)), (False, (12, 12))):
        (field,) = fields.receptive_fields(subject, [("head", 0, 1)], local=local).values()
        assert field.box(3, 4)[2:] == size


def chain(*steps):
    """Size, stride and offset of a chain of (kernel, stride, padding)."""
    size, stride, offset = 1, 1, 0
    for kernel, step, padding in steps:
        size, offset = size + (kernel - 1) * stride, offset - padding * stride
        stride *= step
    return size, stride, offset


def is_affine(field, rule):
    size, stride, offset = rule
    for axis in (field.rows, field.columns):
        assert axis == tuple((offset + stride * p, offset + stride * p + size) for p in range(len(axis)))


def geometry(spec, layer, unit=0, size=224):
    loaded = load_model(spec)
    return subject_of(loaded.model, cc.Feature(layer, unit), (3, size, size))


CONV, POOL = (3, 1, 1), (2, 2, 0)


@pytest.mark.zoo
def test_fields_of_vgg16_follow_the_chain_rule():
    subject = geometry("torchvision:vgg16@random", "features.28", size=160)
    steps = [[CONV] * 2, [CONV] * 2, [CONV] * 3, [CONV] * 3, [CONV] * 3]
    before, index, rules = [], 0, {}
    for block in steps:
        for conv in block:
            rules[f"features.{index}", 0, 0] = chain(*before)
            before.append(conv)
            index += 2
        before.append(POOL)
        index += 1
    *found, own = fields.receptive_fields(subject, [*rules, None]).values()
    for field, rule in zip(found, rules.values(), strict=True):
        is_affine(field, rule)
    assert rules["features.14", 0, 0][0] == 32
    assert rules["features.28", 0, 0][0] == 164
    is_affine(own, chain(*before[:-1]))
    assert own.size == (196, 196)


@pytest.mark.zoo
def test_fields_of_resnet18_are_those_of_its_longest_path():
    subject = geometry("torchvision:resnet18@random", "layer2.1.conv2")
    stem = [(7, 2, 3), (3, 2, 1)]
    found = fields.receptive_fields(subject, [("layer1.0.conv1", 0, 5), ("layer2.0.conv1", 0, 0), None])
    first, second, own = found.values()
    is_affine(first, chain(*stem))
    is_affine(second, chain(*stem, *[CONV] * 4))
    is_affine(own, chain(*stem, *[CONV] * 4, (3, 2, 1), *[CONV] * 3))
    assert [field.size[0] for field in (first, second, own)] == [11, 43, 99]


@pytest.mark.zoo
def test_fields_of_googlenet_differ_between_the_branches_of_one_concatenation():
    subject = geometry("torchvision:googlenet@random", "inception3b.branch1.conv")
    stem = [(7, 2, 3), (3, 2, 0), (1, 1, 0), CONV, (3, 2, 0)]  # its poolings reach one beyond the end instead
    layer = "inception3b.branch1.conv"
    ends = {"1x1": (63, []), "3x3": (64, [CONV]), "5x5": (192, [CONV]), "pool": (224, [CONV])}
    for channel, extra in ends.values():
        (field,) = fields.receptive_fields(subject, [(layer, 0, channel)]).values()
        is_affine(field, chain(*stem, *extra))
    assert (
        len({field.size for field in fields.receptive_fields(subject, [(layer, 0, c) for c in (0, 64)]).values()}) == 2
    )


class Odd(nn.Module):
    """Things that only the function itself can tell: uneven adaptive pooling, resizing, cutting, channels last."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.pooled = nn.Conv2d(4, 4, 1)
        self.resized = nn.Conv2d(4, 4, 1)
        self.cut = nn.Conv2d(4, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.last = nn.Linear(4, 4)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        pooled = self.pooled(F.adaptive_avg_pool2d(x, (5, 4)))
        x = x + self.resized(F.interpolate(pooled, size=x.shape[2:], mode="bilinear"))
        x = self.cut(x[:, :, 1::2, ::3])
        x = self.last(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = F.pixel_shuffle(torch.cat([x, x[:, :2] * x[:, 2:], x[:, 1:3]], 1), 2)
        x = torch.cat([x[:, :1], x, F.avg_pool2d(x, 3, 1, 1), x[:, 1:]], 1)
        return self.head(x)


def test_the_function_itself_is_asked_where_only_it_can_tell():
    model, size = seeded(Odd, 3)(), (22, 19)
    images = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    subject = subject_of(model, cc.Feature("head", 1), (3, *size))
    for layer in ("pooled", "resized", "cut", "last", "head"):
        (maps,) = reads_of(model, images, layer)
        maps = maps.permute(0, 3, 1, 2) if layer == "last" else maps
        found = fields.receptive_fields(subject, [(layer, 0, channel) for channel in (0, 2)])
        for (_, _, channel), field in found.items():
            assert field.shape == tuple(maps.shape[2:])
            for row in range(field.shape[0]):
                for column in range(field.shape[1]):
                    (gradient,) = torch.autograd.grad(maps[0, channel, row, column], images, retain_graph=True)
                    box = (field.rows[row], field.columns[column])
                    top, bottom = max(0, box[0][0]), min(size[0], box[0][1])
                    left, right = max(0, box[1][0]), min(size[1], box[1][1])
                    expected = touched((gradient[0] != 0).any(0))
                    assert expected == (top, bottom, left, right), (layer, channel, row, column)


class WithConstant(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 3)
        self.head = nn.Conv2d(4, 3, 3, padding=1)
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.last(self.head(torch.cat([x, torch.ones_like(x)], 1)))


def test_constants_have_no_field_and_enlarge_none():
    subject = subject_of(seeded(WithConstant, 1)(), cc.Feature("last", 0), (3, 12, 12))
    found = fields.receptive_fields(subject, [("head", 0, 1), ("last", 0, 0)])
    assert [field.size for field in found.values()] == [(3, 3), (5, 5)]
    with pytest.raises(cc.ConvCircuitsError, match="does not depend"):
        fields.receptive_fields(subject, [("head", 0, 2)])


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_padding_of_any_mode_is_outside_of_the_image(mode):
    class Padding(nn.Module):
        def forward(self, x):
            return F.pad(x, (3, 1, 1, 2), mode)

    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 2, 3), Padding(), nn.Conv2d(2, 2, 3, stride=2)), 0)()
    subject = subject_of(model, cc.Feature("2", 1), (3, 13, 12))
    read, own = fields.receptive_fields(subject, [("2", 0, 1), None]).values()
    assert (read.padding, read.shape) == ((1, 2, 3, 1), (11, 10))
    assert read.rows == tuple((row, row + 3) for row in range(11))
    assert own.rows == tuple((2 * row - 1, 2 * row + 4) for row in range(6))
    assert own.columns == tuple((2 * column - 3, 2 * column + 2) for column in range(6))


class Halves(nn.Module):
    """Two halves of the channels that see images differently, then what mixes along some dimensions."""

    def __init__(self, mix):
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 3, padding=1)
        self.mix, self.head = mix, nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.mix(torch.cat([self.near(x), self.far(x)], 1)))


@pytest.mark.parametrize(
    ("mix", "sizes"),
    [
        (lambda x: x.flip(1), [(3, 3), (1, 1)]),
        (lambda x: x.softmax(1), [(3, 3), (3, 3)]),
        (lambda x: x.softmax(2), [(12, 1), (14, 3)]),
        (lambda x: x.cumsum(3), [(1, 12), (3, 14)]),
        (lambda x: F.layer_norm(x, x.shape[3:]), [(1, 12), (3, 14)]),
        (lambda x: F.group_norm(x, 2), [(12, 12), (14, 14)]),
        (lambda x: F.instance_norm(x), [(12, 12), (14, 14)]),
        (lambda x: F.local_response_norm(x, 3), [(1, 1), (3, 3)]),
        (lambda x: x * x.amax((2, 3), keepdim=True), [(12, 12), (14, 14)]),
        (lambda x: x - x.mean(1, keepdim=True), [(3, 3), (3, 3)]),
        (lambda x: torch.fft.ifft2(torch.fft.fft2(x)).real, [(14, 14), (14, 14)]),
    ],
)
def test_a_mixed_dimension_is_seen_whole(mix, sizes):
    subject = subject_of(seeded(lambda: Halves(mix), 0)(), cc.Feature("head", 1), (3, 12, 12))
    found = fields.receptive_fields(subject, [("head", 0, 0), ("head", 0, 3)])
    assert [field.size for field in found.values()] == sizes


def test_fields_as_long_as_the_image_are_the_image():
    field = fields.Field(((-2, 4), (0, 6), (2, 8)), ((-1, 2), (0, 3)), (6, 4))
    assert field.size == (6, 3)
    assert field.box(2, 0) == (0, -1, 6, 3)


def test_maps_that_are_not_there_are_refused():
    case = NETS["plain"]
    subject = subject_of(case.build(), cc.Feature("features.3", 1), case.input_shape)
    for reading in [("features.3", 1, 0), ("features.5", 0, 0), ("features.3", 0, 4), ("nothing", 0, 0), 2]:
        with pytest.raises(cc.ConvCircuitsError, match="no map"):
            fields.receptive_fields(subject, [reading])


# ---------------------------------------------------------------------- circuits of the tiny nets

RUNS = sorted(set(NETS) - {"pad_zeros", "pad_replicate", "no_bias"})


def running(name, *, density=0.6, effective=False):
    """A net, a circuit of it as masks, the same net with dropped kernels set to zero, and its images."""
    case = NETS[name]
    model, (layer, unit) = case.build(), case.features[-1]
    feature = cc.Feature(layer, unit)
    images = case.images(7, seed=3)
    circuit = cc.find(model, feature, images[:2], criterion="random", density=density)
    subject = subject_of(model, feature, case.input_shape)
    masks = subject.masks(circuit, case.input_shape, effective=effective)
    return case, model, subject, masks, images


def pruned(name, model, masks):
    """The module itself with a zero in place of every kernel that is not kept (for layers that use their weight)."""
    clone = copy.deepcopy(model)
    for layer, mask in masks.kernels.items():
        weight = clone.get_submodule(layer).weight
        spread = mask.repeat_interleave(weight.shape[1] // mask.shape[1], 1)
        weight.data *= spread.reshape(*spread.shape, *[1] * (weight.dim() - 2))
    return clone


def all_readings(subject, name):
    blocks = NETS[name].blocks
    readings = [None, *subject.rows.tolist()]
    for layer in subject.survey.kernels:
        module = subject.network.layer(layer)
        count = blocks.get(layer) or getattr(module, "in_channels", 0) or module.in_features
        calls = 2 if (name, layer) == ("twice", "shared") else 1
        readings += [(layer, call, channel) for call in range(calls) for channel in range(count)]
    return readings


def slow_maps(name, model, images, readings, subject):
    """Reading -> (N, H, W), from a run of the module itself."""
    found, layer = {}, subject.feature.layer
    for reading in readings:
        if isinstance(reading, tuple):
            read_by, call, channel = reading
            if (read_by, call) not in found:
                found[read_by, call] = reads_of(model, images, read_by, NETS[name].blocks.get(read_by))[call]
            maps = found[read_by, call][:, channel]
        else:
            maps = oracles.full_map(model, layer, subject.feature.unit, images)
            maps = maps if maps.dim() == 3 else maps[:, None, None]
        found[reading] = maps
    return {reading: found[reading] for reading in readings}


def unfolded(maps, field):
    return maps.reshape(len(maps), *field.shape)


def away_from_the_border(field):
    """The places that a patch may come from: the nearest to seeing no padding, a quarter of each axis or more."""
    axes = []
    for spans, length in zip((field.rows, field.columns), field.image, strict=True):
        whole = max(end - first for first, end in spans) >= length
        beyond = [sum(not 0 <= at < length for at in range(first, end)) for first, end in spans]
        quarter = sorted(beyond)[math.ceil(len(spans) / 4) - 1]
        axes.append([place for place, count in enumerate(beyond) if whole or count <= quarter])
    return [(row, column) for row in axes[0] for column in axes[1]]


@pytest.mark.parametrize("name", [name for name in RUNS if name != "standardised"])
def test_best_patches_are_those_of_a_loop_over_all_images(name):
    _, model, subject, masks, images = running(name)
    before = copy.deepcopy(model.state_dict())
    readings = all_readings(subject, name)
    found = fields.receptive_fields(subject, readings)
    expected = slow_maps(name, pruned(name, model, masks), images, readings, subject)
    runs = [patches.best_patches(subject, masks, batches_of(subject, images, n), found, top=3) for n in (1, 3, 7)]
    for best in runs:
        assert best.image.shape == (len(readings), 3)
        assert best.position.shape == (len(readings), 3, 2)
        for r, (reading, maps) in enumerate(expected.items()):
            maps = unfolded(maps, found[reading])
            highest = torch.stack([maps[:, y, x] for y, x in away_from_the_border(found[reading])]).amax(0)
            torch.testing.assert_close(best.value[r], highest.sort(descending=True).values[:3], rtol=1e-9, atol=1e-9)
            for image, (row, column), value in zip(best.image[r], best.position[r], best.value[r], strict=True):
                torch.testing.assert_close(maps[image, row, column], value, rtol=1e-9, atol=1e-9)
                assert (int(row), int(column)) in away_from_the_border(found[reading])
            assert len(set(best.image[r].tolist())) == 3
    for best in runs[1:]:
        assert torch.equal(best.image, runs[0].image)
        assert torch.equal(best.position, runs[0].position)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_of_equal_images_the_first_ones_are_taken_and_of_equal_places_the_first():
    case = NETS["plain"]
    subject = subject_of(case.build(), cc.Feature("features.3", 1), case.input_shape)
    images = case.images(1).expand(5, -1, -1, -1).clone()
    images[2] = 0
    found = fields.receptive_fields(subject, [("features.0", 0, 1)])
    for batch_size in (1, 2, 5):
        best = patches.best_patches(subject, None, batches_of(subject, images, batch_size), found, top=9)
        assert best.image.tolist() == [[0, 1, 3, 4, 2]]
        assert best.position[0, 4].tolist() == [0, 0]
    flat = patches.best_patches(subject, None, batches_of(subject, -images.abs()), found, top=1)
    assert flat.image.tolist() == [[2]]
    negative = patches.best_patches(subject, None, batches_of(subject, -images[:1].abs()), found, top=1)
    assert negative.value[0, 0] == -images[0, 1].abs().amin()


@pytest.mark.parametrize("unit", [(1, 3), torch.tensor([0.5, -2.0, 0.0, 1.0])], ids=["units", "direction"])
def test_the_channels_that_a_feature_reads_are_maps_too(unit):
    case = NETS["twice"]
    model = case.build()
    subject = subject_of(model, cc.Feature("shared", unit, call=1), case.input_shape)
    rows = subject.rows.tolist()
    batches = batches_of(subject, case.images(3))
    found = fields.receptive_fields(subject, [*rows, None])
    maps = patches.activation_maps(subject, None, batches, found)
    (whole,) = reads_of(model, case.images(3), "head")
    channels = {row: oracles.full_map(model, "shared", row, case.images(3), call=1) for row in rows}
    assert whole.shape[2:] == channels[rows[0]].shape[1:]
    for row in rows:
        torch.testing.assert_close(maps[row], channels[row])
    combined = [channels[row] * float(c) for row, c in zip(rows, subject.coefficients, strict=True)]
    expected = torch.stack(combined).amax(0) if isinstance(unit, tuple) else torch.stack(combined).sum(0)
    torch.testing.assert_close(maps[None], expected)


def test_images_of_another_size_are_refused_where_their_maps_are():
    case = NETS["plain"]
    subject = subject_of(case.build(), cc.Feature("features.3", 1), case.input_shape)
    found = fields.receptive_fields(subject, [("features.3", 0, 1)])
    with pytest.raises(cc.ConvCircuitsError, match="the size that the feature was surveyed on"):
        patches.best_patches(subject, None, batches_of(subject, torch.randn(2, 3, 12, 12)), found)


# ---------------------------------------------------------------------- maps and effects


def slow_presum(module, weight, x, out, channel):
    """The pre-sum map of one kernel, position by position: (N, H, W)."""
    if isinstance(module, nn.Linear):
        size = x[0, 0].numel()
        block = weight[out, channel * size : (channel + 1) * size]
        return (x[:, channel].flatten(1) * block).sum(1)[:, None, None]
    pad = oracles.CLASSES[type(module)][1]
    x = pad(module, x)
    group = out // (len(weight) // module.groups)
    read = x[:, group * weight.shape[1] + channel]
    (sy, sx), (dy, dx), (kh, kw) = module.stride, module.dilation, module.kernel_size
    height, width = (
        (n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(read.shape[1:], (dy, dx), (kh, kw), (sy, sx), strict=True)
    )
    maps = torch.zeros(len(x), height, width, dtype=x.dtype)
    for y in range(height):
        for col in range(width):
            for ky in range(kh):
                for kx in range(kw):
                    maps[:, y, col] += weight[out, channel, ky, kx] * read[:, y * sy + ky * dy, col * sx + kx * dx]
    return maps


@pytest.mark.parametrize("name", RUNS)
def test_presum_maps_and_effects_are_those_of_slow_loops(name):
    _, model, subject, masks, images = running(name)
    images = images[:3]
    batches = batches_of(subject, images)
    twin = model if name == "standardised" else pruned(name, model, masks)
    if name == "standardised":  # its weights are computed: compare the full model
        masks = None
    effect = patches.effects(subject, masks, batches)
    assert list(effect) == list(subject.survey.kernels)
    kernels, expected = [], {}
    for layer, relevant in subject.survey.kernels.items():
        module = twin.get_submodule(layer)
        weight = oracles.CLASSES[type(module)][0](module)
        calls = reads_of(twin, images, layer, NETS[name].blocks.get(layer))
        own = layer == subject.feature.layer
        for out, channel in relevant.nonzero().tolist():
            maps = [slow_presum(module, weight, x, out, channel) for x in calls]
            mean = sum(one.mean((1, 2)) for one in maps)
            torch.testing.assert_close(effect[layer][:, out, channel], mean, rtol=1e-9, atol=1e-10)
            kernels.append((layer, out, channel))
            expected[kernels[-1]] = maps[0]
        if own and subject.survey.direct:
            others = [o for o in range(len(relevant)) if o not in subject.rows]
            assert not effect[layer][:, others].any()
    presums = patches.presum_maps(subject, masks, batches, kernels)
    assert list(presums) == kernels
    for kernel in kernels:
        torch.testing.assert_close(presums[kernel], expected[kernel], rtol=1e-9, atol=1e-10)


def test_effects_of_a_circuit_run_as_defined_add_up_to_its_filters():
    """What the kernels add, and the bias, is the filter's mean; calibrated; a dead channel adds nothing."""
    for name in ("mobile", "dense", "se_conv", "flat_head", "grouped"):
        _, _, subject, masks, images = running(name, density=0.4, effective=True)
        feature = subject.feature
        gain = calibration(masks.kernels)["gain"]
        masks = type(masks)(masks.kernels, gain, {}, effective=True)
        outputs, calls = {}, {}

        def watch(call, output, outputs=outputs, calls=calls):
            outputs[call.layer], calls[call.layer] = output.clone(), call

        with torch.no_grad():
            subject.maps(images, masks, watch)
        effect = patches.effects(subject, masks, batches_of(subject, images))
        assert feature.layer in outputs
        for layer, output in outputs.items():
            call = calls[layer]
            rows = torch.arange(len(call.weight)) if call.rows is None else call.rows
            total = effect[layer][:, rows].sum(2)
            live = masks.running(call).any(1)
            bias = 0 if call.bias is None else call.bias
            mean = output.flatten(2).mean(2) if output.dim() == 4 else output
            torch.testing.assert_close((total + bias)[:, live], mean[:, live], rtol=1e-9, atol=1e-10)
            assert not total[:, ~live].any()


def test_weights_that_are_dropped_add_nothing():
    case = NETS["plain"]
    model, images = case.build(), case.images(3)
    feature = cc.Feature("features.3", 1)
    circuit = cc.find(model, feature, images, criterion="random", density=0.3, granularity="weight")
    subject = subject_of(model, feature, case.input_shape)
    masks = subject.masks(circuit, case.input_shape, effective=False)
    twin = copy.deepcopy(model)
    for layer, kept in circuit.elements.items():
        twin.get_submodule(layer).weight.data *= kept
    effect = patches.effects(subject, masks, batches_of(subject, images))
    (x,) = reads_of(twin, images, "features.3")
    module = twin.get_submodule("features.3")
    for channel in range(4):
        expected = slow_presum(module, module.weight.detach(), x, 1, channel).mean((1, 2))
        torch.testing.assert_close(effect["features.3"][:, 1, channel], expected)


def test_maps_are_averaged_over_areas_down_to_14_by_14():
    subject = subject_of(NETS["plain"].build(), cc.Feature("features.0", 1), (3, 28, 20))
    images = torch.randn(2, 3, 28, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = fields.receptive_fields(subject, [("features.0", 0, 2), None])
    maps = patches.activation_maps(subject, None, batches_of(subject, images), found)
    small = maps["features.0", 0, 2]
    assert small.shape == maps[None].shape == (2, 14, 14)
    for row in range(14):
        for column in range(14):
            rows = slice(row * 28 // 14, -(-(row + 1) * 28 // 14))
            columns = slice(column * 20 // 14, -(-(column + 1) * 20 // 14))
            torch.testing.assert_close(small[:, row, column], images[:, 2, rows, columns].mean((1, 2)))


@pytest.mark.parametrize("name", ["plain", "flat_head", "residual", "twice"])
def test_activation_maps_are_the_maps(name):
    _, model, subject, masks, images = running(name)
    readings = all_readings(subject, name)
    found = fields.receptive_fields(subject, readings)
    maps = patches.activation_maps(subject, masks, batches_of(subject, images), found)
    assert list(maps) == readings
    expected = slow_maps(name, pruned(name, model, masks), images, readings, subject)
    for reading in readings:
        torch.testing.assert_close(maps[reading], unfolded(expected[reading], found[reading]), rtol=1e-9, atol=1e-9)


def test_a_flattened_map_is_folded_back():
    case = NETS["flat_head"]
    subject = subject_of(case.build(), cc.Feature("classifier.4", 1), case.input_shape)
    found = fields.receptive_fields(subject, [("classifier.1", 0, 2), ("classifier.4", 0, 2)])
    is_4_by_2, vector = found.values()
    assert is_4_by_2.rows == tuple((2 * y, 2 * y + 4) for y in range(4))
    assert is_4_by_2.columns == ((0, 6), (4, 10))
    assert vector.shape == (1, 1)
    assert vector.box(0, 0) == (0, 0, 10, 10)


def test_kernels_that_are_not_there_are_refused():
    case = NETS["plain"]
    subject = subject_of(case.build(), cc.Feature("features.3", 1), case.input_shape)
    for kernel in [("features.3", 0, 1), ("features.3", 1, 4), ("features.5", 0, 0), ("features.0", 1, -1)]:
        with pytest.raises(cc.ConvCircuitsError, match="no kernel"):
            patches.presum_maps(subject, None, batches_of(subject, case.images(1)), [kernel])


# ---------------------------------------------------------------------- pictures


def test_a_patch_is_grey_outside_of_its_picture():
    picture = torch.rand(6, 5, 3, generator=torch.Generator().manual_seed(0))
    boxes = [(1, 2, 3, 2), (-2, -1, 4, 4), (4, 3, 5, 5), (-3, -3, 12, 12), (9, 0, 2, 2), (-4, 1, 3, 2), (0, 0, 6, 5)]
    for box in map(fields.Box._make, boxes):
        patch = patches.crop(picture, box)
        assert patch.shape == (box.height, box.width, 3)
        for row in range(box.height):
            for column in range(box.width):
                y, x = box.top + row, box.left + column
                expected = picture[y, x] if 0 <= y < 6 and 0 <= x < 5 else torch.full((3,), 0.5)
                assert torch.equal(patch[row, column], expected)


def test_a_patch_holds_all_that_its_value_depends_on():
    """Cut out the best patch, put it where it was on another image: the value stays."""
    case = NETS["residual"]
    model, size = case.build(), (3, 40, 40)
    subject = subject_of(model, cc.Feature("head", 0), size)
    images = torch.randn(4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    reading = ("block2.conv2", 0, 2)
    (field,) = fields.receptive_fields(subject, [reading]).values()
    best = patches.best_patches(subject, None, batches_of(subject, images), {reading: field}, top=4)
    for image, position, value in zip(best.image[0], best.position[0], best.value[0], strict=True):
        box = field.box(*position.tolist())
        top, bottom, left, right = clipped(box, size[1:])
        other: Tensor = torch.randn(1, *size, dtype=torch.float64)
        other[0, :, top:bottom, left:right] = images[image, :, top:bottom, left:right]
        (maps,) = reads_of(model, other, "block2.conv2")
        torch.testing.assert_close(maps[0, 2][tuple(position)], value)
