"""What nodes look like and what images do to them, against kernels made by hand and slow loops over the images."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import convcircuits as cc
import oracles
from convcircuits.drawing import figure, pictures
from convcircuits.drawing.data import Document, EdgeKind, NodeKind
from convcircuits.drawing.figure import Shown
from convcircuits.drawing.kernels import NOT_IN_COLOR, first_kernels
from convcircuits.drawing.pictures import PATCHES, TARGET_PATCHES, Seen, _hatched, pictured, readings_of
from convcircuits.drawing.sheet import lay_out
from convcircuits.drawing.tiles import read_data_url
from convcircuits.maps.colors import displayable, primaries_of
from convcircuits.maps.feature_visualization import visualize
from convcircuits.maps.receptive_fields import Box, receptive_fields
from convcircuits.network.batches import Batches
from convcircuits.network.calls import ConvCall
from nets import NETS

# Red, green and blue from 0 to 1 are what the model gets.
PRIMARIES = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


def everything(drawing):
    """What a view without a budget draws."""
    nodes = np.flatnonzero([drawing.wiring.sites[int(s)].kind.name != "IMAGE" for s in drawing.graph.site])
    edges = range(len(drawing.graph.kind))
    return Shown(tuple(nodes.tolist()), tuple(edges), kernels=1, filters=1, path=1.0, lit=None, caption="")


def batches_of(drawing, images, batch_size=3):
    network = drawing.subject.network
    return Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)


# ---------------------------------------------------------------------- kernels of the first filters


def first_layer(channels, feature="2", **options):
    """Two filters that read an image, and one that reads them."""
    model = nn.Sequential(nn.Conv2d(channels, 2, 3, **options), nn.ReLU(), nn.Conv2d(2, 1, 1)).double()
    model[0].weight.data[:] = 0
    return model, cc.Feature(feature, 0 if feature == "2" else 1)


def kernels_of(model, feature, channels, primaries=None, drop=()):
    """Filter -> its picture, in a circuit of all kernels but some."""
    full = cc.find(model, feature, torch.randn(1, channels, 8, 8).double(), criterion="magnitude", density=1.0)
    masks = {layer: kept.clone() for layer, kept in full.kernels.items()}
    for layer, out, in_ in drop:
        masks[layer][out, in_] = False
    circuit = cc.Circuit.from_masks(model, feature, masks, input_shape=(channels, 8, 8))
    drawing = lay_out(model, circuit, (), (channels, 8, 8), 0)
    return {int(drawing.graph.channel[n]): picture.pixels for n, picture in first_kernels(drawing, primaries).items()}


GREY = [128, 128, 128]


def expected(**cells):
    picture = np.tile(np.array(GREY, np.uint8), (3, 3, 1))
    for cell, colour in cells.items():
        picture[int(cell[1]), int(cell[2])] = colour
    return picture


def test_first_kernels_are_shown_the_right_way_up_in_the_images_colours():
    model, feature = first_layer(3)
    weight = model[0].weight.data
    weight[0, 0, 0, 0], weight[0, 2, 2, 1] = 2.0, -2.0  # red at the top left, no blue in the middle of the last row
    weight[1, 1, 0, 2], weight[1, 0, 2, 0] = 0.5, -0.25  # green at the top right, half as much less red below left
    shown = kernels_of(model, feature, 3)
    np.testing.assert_array_equal(shown[0], expected(_00=[255, 128, 128], _21=[128, 128, 0]))
    np.testing.assert_array_equal(shown[1], expected(_02=[128, 255, 128], _20=[64, 128, 128]))


def test_where_the_model_wants_blue_first_its_kernels_show_blue_for_the_first_channel():
    model, feature = first_layer(3)
    model[0].weight.data[0, 0, 1, 0] = 1.0
    model[0].weight.data[1, 2, 1, 2] = -1.0
    bgr = torch.tensor([[-1.0, -2, -3], [-1, -2, 97], [-1, 98, -3], [99, -2, -3]])
    shown = kernels_of(model, feature, 3, bgr)
    np.testing.assert_array_equal(shown[0], expected(_10=[128, 128, 255]))
    np.testing.assert_array_equal(shown[1], expected(_12=[0, 128, 128]))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_kernels_on_images_of_other_channels_are_grey(channels):
    model, feature = first_layer(channels)
    model[0].weight.data[0, -1, 0, 1] = 3.0
    model[0].weight.data[0, 0, 1, 1] -= 1.5
    shown = kernels_of(model, feature, channels)[0]
    np.testing.assert_array_equal(shown, expected(_01=[255, 255, 255], _11=[64, 64, 64]))


def test_kernels_behind_a_preparation_without_colour_are_grey():
    model, feature = first_layer(1)
    model[0].weight.data[0, 0, 0, 1] = 3.0
    luminance = torch.tensor([[-1.0], [-1 + 2 * 0.299], [-1 + 2 * 0.587], [-1 + 2 * 0.114]])
    np.testing.assert_array_equal(kernels_of(model, feature, 1, luminance)[0], expected(_01=[255, 255, 255]))


def test_kernels_that_the_circuit_drops_are_not_in_the_picture():
    model, feature = first_layer(3)
    model[0].weight.data[0, 0, 0, 0], model[0].weight.data[0, 1, 1, 1] = 1.0, 1.0
    shown = kernels_of(model, feature, 3, drop=[("0", 0, 1)])
    np.testing.assert_array_equal(shown[0], expected(_00=[255, 128, 128]))


def test_the_feature_itself_may_be_a_first_kernel_whatever_its_number():
    model, feature = first_layer(3, feature="0")
    model[0].weight.data[1, 1, 2, 2] = -1.0
    assert feature.unit == 1
    shown = kernels_of(model, feature, 3)
    assert list(shown) == [1]
    np.testing.assert_array_equal(shown[1], expected(_22=[128, 0, 128]))


def test_a_kernel_of_zeros_is_grey_and_grouped_ones_have_no_colours():
    model, feature = first_layer(3)
    np.testing.assert_array_equal(kernels_of(model, feature, 3)[0], expected())
    model = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.ReLU(), nn.Conv2d(2, 1, 1)).double()
    assert kernels_of(model, feature, 2) == {}


class Prepared(nn.Module):
    """A model that makes something of the image before its first convolution reads it."""

    def __init__(self, prepare, channels):
        super().__init__()
        self.prepare = prepare
        self.first, self.last = nn.Conv2d(channels, 2, 3), nn.Conv2d(2, 1, 1)

    def forward(self, x):
        return self.last(self.first(self.prepare(x)).relu())


def unshuffled(weight):
    """The kernel on the image that is a kernel on its 2 x 2 blocks."""
    blocks = weight.reshape(-1, 2, 2, *weight.shape[1:])  # c, dy, dx, ky, kx
    return blocks.permute(0, 3, 1, 4, 2).flatten(3, 4).flatten(1, 2)


# What is made of the image: channels of the image, channels that are read, and the image's kernel that a kernel is.
PREPARATIONS = {
    "grey made RGB": (lambda x: x.repeat(1, 3, 1, 1), 1, 3, lambda w: w.sum(0, keepdim=True)),
    "two channels": (lambda x: x[:, :2], 3, 2, lambda w: torch.cat([w, torch.zeros_like(w[:1])])),
    "joined to itself": (lambda x: torch.cat([x, x], 1), 3, 6, lambda w: w[:3] + w[3:]),
    "blocks as channels": (lambda x: F.pixel_unshuffle(x, 2), 3, 12, unshuffled),
    "grey blocks as channels": (lambda x: F.pixel_unshuffle(x, 2), 1, 4, unshuffled),
    "joined to its mean": (
        lambda x: torch.cat([x, x.mean(1, keepdim=True)], 1),
        3,
        4,
        lambda w: w[:3] + w[3:] / 3,
    ),
    "blue first": (lambda x: x[:, [2, 1, 0]], 3, 3, lambda w: w.flip(0)),
    "negative": (lambda x: 1 - x, 3, 3, lambda w: -w),
    "prepared in place": (lambda x: x.sub_(0.4).div_(0.2), 3, 3, lambda w: w * 5),
    "padded": (lambda x: F.pad(x, (1, 1, 1, 1), "reflect"), 3, 3, lambda w: w),
}


def prepared_circuit(prepare, channels, reads, side=18, adjust=lambda weight: weight):
    torch.manual_seed(0)
    model = Prepared(prepare, reads).double()
    model.first.weight.data = adjust(model.first.weight.data)
    images = torch.rand(3, channels, side, side, dtype=torch.float64)
    return model, cc.find(model, cc.Feature("last", 0), images, criterion="magnitude", density=1.0), images


@pytest.mark.parametrize("name", PREPARATIONS)
def test_kernels_behind_what_the_model_makes_of_the_image_are_those_of_the_image(name):
    prepare, channels, reads, of_image = PREPARATIONS[name]
    model, circuit, images = prepared_circuit(prepare, channels, reads)
    drawing = lay_out(model, circuit, (), images.shape[1:], 0)
    shown = {int(drawing.graph.channel[n]): picture for n, picture in first_kernels(drawing, None).items()}
    assert len(shown) == 2
    for row, picture in shown.items():
        kernel = of_image(model.first.weight.detach()[row]).expand(3, -1, -1).movedim(0, -1)
        exact = 127.5 * (1 + kernel / kernel.abs().max())
        assert picture.in_color
        np.testing.assert_allclose(picture.pixels, exact, atol=0.51)
    for given in (None, images):
        document = cc.diagram(model, circuit, images=given).document
        assert NOT_IN_COLOR not in document.meta.notes
        assert (document.pictures[0].tiles[document.nodes.column == 0, 0] >= 0).all()


def one_sign_each(weight):
    """Filter 0 above zero, filter 1 below, both zero in the middle."""
    weight = weight.abs() * torch.tensor([1, -1])[:, None, None, None]
    weight[:, :, 1, 1] = 0
    return weight


@pytest.mark.parametrize(
    "prepare",
    [
        lambda x: x.square(),
        F.instance_norm,
        lambda x: (x * 255).round(),
        lambda x: F.normalize(x),
    ],
    ids=["squared", "of the whole image", "rounded", "normalised"],
)
def test_kernels_that_do_not_read_the_images_colours_are_weights_and_that_is_said(prepare):
    model, circuit, images = prepared_circuit(prepare, 3, 3, adjust=one_sign_each)
    drawing = lay_out(model, circuit, (), images.shape[1:], 0)
    shown = {int(drawing.graph.channel[n]): picture for n, picture in first_kernels(drawing, None).items()}
    for row, (ends, picture) in enumerate(zip(((180, 78, 6), (84, 49, 150)), shown.values(), strict=True)):
        weight = model.first.weight.detach()[row].sum(0)
        share = (weight.abs() / weight.abs().max())[..., None].numpy()
        assert not picture.in_color
        exact = (1 - share) * (247, 246, 244) + share * ends
        np.testing.assert_allclose(picture.pixels, exact, atol=0.51)
        assert picture.pixels[1, 1].tolist() == [247, 246, 244]
    document = cc.diagram(model, circuit, images=images).document
    assert document.meta.notes.count(NOT_IN_COLOR) == 1


# ---------------------------------------------------------------------- maps, patches

SIZE = 20
# Of the plain net: what reads a filter's map, and the map's fields: (size, stride, first pixel) of each position.
SHOWN = {
    "features.0": ("features.3", (4, 2, -1)),
    "features.3": ("features.5", (8, 2, -3)),
    "features.5": (None, (12, 2, -3)),
}


def plain_drawing(images, unit=2, density=0.7):
    model = NETS["plain"].build()
    feature = cc.Feature("features.5", unit)
    circuit = cc.find(model, feature, images, criterion="random", density=density, seed=1)
    drawing = lay_out(model, circuit, (), images.shape[1:], 0)
    return model, circuit, drawing


def photographs(count, seed=0):
    return torch.rand(count, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_reads(model, drawing, images, variant=0):
    """Layer -> what it reads in a circuit (N, C, H, W); None -> the feature's maps."""
    kernels = drawing.masks[variant].kernels
    clone, _ = oracles.slow_copy(model, kernels)
    seen = {}
    for layer in kernels:
        hook = lambda _, args, layer=layer: seen.setdefault(layer, args[0].clone())  # noqa: E731
        clone.get_submodule(layer).register_forward_pre_hook(hook)
    with torch.no_grad():
        clone(images)
    feature = drawing.subject.feature
    return seen | {None: oracles.masked_map(model, kernels, feature.layer, feature.unit, images)[:, None]}


def layer_of(document, node):
    return document.layers[document.nodes.layer[node]].name


def map_of(document, reads, node):
    reader, _ = SHOWN[layer_of(document, node)]
    return reads[reader][:, 0 if reader is None else document.nodes.unit[node]]


def first_with(drawing, node):
    """The first circuit that has a node; what belongs to none belongs to the first."""
    g = drawing.graph
    touching = ((g.source == node) | (g.target == node)) & (g.kind <= EdgeKind.INNER)
    return next((n for n in range(len(drawing.circuits)) if (touching & g.present[n]).any()), 0)


@pytest.mark.parametrize("count", [9, 4])
def test_patches_are_the_parts_of_the_images_where_a_filter_is_highest(count):
    images = photographs(count)
    model, circuit, drawing = plain_drawing(images)
    document = cc.diagram(model, circuit).document
    seen = Seen.of(drawing, batches_of(drawing, images))
    nodes = everything(drawing).nodes
    drawn = nodes[::2]
    options = {"pictures": "patches", "primaries": PRIMARIES, "seed": 0, "batch_size": 4, "progress": None}
    made = pictured(drawing, document, drawn, seen, **options)
    table = made.pictures[0].tiles
    reads = [slow_reads(model, drawing, images, variant) for variant in range(len(drawing.circuits))]
    kernels = {n: picture.pixels for n, picture in first_kernels(drawing, PRIMARIES).items()}
    assert len(nodes) > 6
    for node in nodes:
        size, stride, first = SHOWN[layer_of(document, node)][1]
        maps = map_of(document, reads[first_with(drawing, node)], node)
        places = {
            (y, x): (first + stride * y, first + stride * x)
            for y in range(maps.shape[1])
            for x in range(maps.shape[2])
            if all(first + stride * n >= 0 and first + stride * n + size <= SIZE for n in (y, x))
        }
        best = [max(places, key=lambda place, m=m: float(m[place])) for m in maps]
        ranked = sorted(range(count), key=lambda n: -float(maps[n][best[n]]))
        wanted = TARGET_PATCHES if node == document.target else PATCHES if node in drawn else 1
        ranked = ranked[: min(wanted, count)]
        tiles = [number for number in table[node].tolist() if number >= 0]
        if node in kernels:
            own = cells(made, tiles.pop(0), 3)
            assert np.abs(own - kernels[node]).max() <= 8
        assert len(tiles) == len(ranked)
        for number, image in zip(tiles, ranked, strict=True):
            top, left = places[best[image]]
            crop = images[image, :, top : top + size, left : left + size].movedim(0, -1) * 255
            assert np.abs(cells(made, number, size) - crop.numpy()).max() <= 10
            (cut,) = (each for each in made.tiles.cuts if each.tile == number)
            assert cut.box == (top, left, size, size)
            assert (made.tiles.wholes[cut.whole].name, made.tiles.wholes[cut.whole].size) == (
                f"image {image}",
                (SIZE, SIZE),
            )
            thumbnail = read_data_url(made.tiles.wholes[cut.whole].src)
            whole = np.asarray(Image.fromarray(thumbnail).resize((SIZE, SIZE), Image.Resampling.BOX), dtype=float)
            assert np.corrcoef(whole.ravel(), images[image].movedim(0, -1).numpy().ravel())[0, 1] > 0.9


def test_the_targets_median_and_near_zero_parts_are_where_its_values_are_nearest():
    images = photographs(10)
    crops = [n % 5 for n in range(10)]  # two crops of each photograph
    model, circuit, drawing = plain_drawing(images)
    document = cc.diagram(model, circuit).document
    seen = Seen.of(drawing, batches_of(drawing, images))
    options = {"pictures": "patches", "primaries": PRIMARIES, "seed": 0, "batch_size": 4, "progress": None}
    made = pictured(drawing, document, [], seen, photographs=[crops], **options)
    size, stride, first = SHOWN["features.5"][1]
    maps = map_of(document, slow_reads(model, drawing, images), document.target)
    inside = [n for n in range(maps.shape[1]) if first + stride * n >= 0 and first + stride * n + size <= SIZE]
    values = maps[:, inside][:, :, inside]
    for tiles, level in (
        (made.pictures[0].median, values.flatten().median()),
        (made.pictures[0].near_zero, 0),
    ):
        distance, where = (values - level).abs().flatten(1).min(1)
        ranked = sorted(range(10), key=lambda n: float(distance[n]))
        best = [
            next(n for n in ranked if crops[n] == photograph)
            for photograph in dict.fromkeys(map(crops.__getitem__, ranked))
        ]
        assert len(tiles) == 5
        for number, image in zip(tiles, best, strict=True):
            top, left = (first + stride * inside[n] for n in divmod(int(where[image]), len(inside)))
            crop = images[image, :, top : top + size, left : left + size].movedim(0, -1) * 255
            assert np.abs(cells(made, number, size) - crop.numpy()).max() <= 10
            (cut,) = (each for each in made.tiles.cuts if each.tile == number)
            assert cut.box == (top, left, size, size)
    said = json.loads(made.to_json())
    for lacking in ("median", "nearZero"):
        del said["pictures"][0][lacking]
    assert Document.from_json(json.dumps(said)).pictures[0].median == ()


@pytest.mark.parametrize("side", [8, 40, 64])
@pytest.mark.parametrize("box", [Box(-4, 3, 8, 8), Box(0, 0, 8, 8), Box(5, -2, 8, 12), Box(-8, -8, 32, 32)])
def test_what_lies_beyond_the_image_is_hatched(box, side):
    picture = np.full((side, side, 3), (200, 40, 40), np.uint8)
    made = _hatched(picture, box, (10, 12, 3))
    hatched = (made[..., 0] == made[..., 1]) & (made[..., 1] == made[..., 2])
    for y, x in np.ndindex(side, side):
        at = (box.top + (y + 0.5) / side * box.height, box.left + (x + 0.5) / side * box.width)
        assert hatched[y, x] == (not (0 <= at[0] <= 10 and 0 <= at[1] <= 12))
    assert (made[~hatched] == (200, 40, 40)).all()
    if hatched.sum() > side:
        assert len(np.unique(made[hatched])) == 2


def test_of_crops_a_filter_shows_one_part_of_each_photograph():
    images = photographs(12)
    _, _, drawing = plain_drawing(images)
    document = cc.diagram(drawing.subject.network.module, drawing.circuits[0]).document
    seen, nodes = Seen.of(drawing, batches_of(drawing, images)), everything(drawing).nodes
    options = {"pictures": "patches", "primaries": PRIMARIES, "seed": 0, "batch_size": 4, "progress": None}
    each = pictured(drawing, document, nodes, seen, **options, photographs=[range(12)])
    own = pictured(drawing, document, nodes, seen, **options)
    assert np.array_equal(each.pictures[0].tiles, own.pictures[0].tiles)
    three = pictured(drawing, document, nodes, seen, **options, photographs=[[n % 3 for n in range(12)]])
    kernels = first_kernels(drawing, PRIMARIES)
    for node in nodes:
        tiles = [number for number in three.pictures[0].tiles[node].tolist() if number >= 0]
        assert len(tiles) == 3 + (node in kernels)
        before = [number for number in own.pictures[0].tiles[node].tolist() if number >= 0]
        assert np.array_equal(cells(three, tiles[0], 3), cells(own, before[0], 3))  # the best of all


def test_filters_of_the_second_circuit_alone_show_what_drives_them_there():
    """In the first, nothing reaches them: all positions would be alike."""
    images, model, feature = photographs(9), NETS["plain"].build(), cc.Feature("features.5", 2)
    whole = cc.find(model, feature, images, criterion="magnitude", density=1.0)
    first, second = (
        cc.Circuit.from_masks(
            model,
            feature,
            {
                layer: mask.index_fill(0, torch.tensor(dropped.get(layer, []), dtype=torch.long), False)
                for layer, mask in whole.kernels.items()
            },
        )
        for dropped in ({"features.0": [0, 1], "features.3": [0]}, {"features.0": [3], "features.3": [2, 4]})
    )
    both, alone = (
        cc.diagram(model, one, images=images, primaries=PRIMARIES, **against).document
        for one, against in ((first, {"against": second}), (second, {}))
    )
    of_both, of_alone = parts(both), parts(alone)
    news = {
        (layer, unit): some
        for (layer, unit), some in of_alone.items()
        if second.kernels[layer][unit].any() and not first.kernels[layer][unit].any()
    }
    assert len(news) == 3
    for node, some in news.items():
        assert of_both[node] == some
        assert len({image for image, _ in some}) == min(PATCHES, 9)


def parts(document):
    """Layer and filter of each node that is drawn -> the images and boxes of its parts of images."""
    (table,) = (one.tiles for one in document.pictures)
    cuts = {cut.tile: (document.tiles.wholes[cut.whole].name, cut.box) for cut in document.tiles.cuts}
    return {
        (layer_of(document, node), document.nodes.unit[node]): [cuts[n] for n in table[node].tolist() if n in cuts]
        for node in figure.drawn(document).nodes
        if node != document.target
    }


def cells(document, number, side):
    """A tile, averaged over as many cells a side as its picture had pixels, without their blurred borders."""
    for page in document.tiles.pages:
        if number < page.count:
            row, column = divmod(number, page.columns)
            tile = read_data_url(page.src)[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64].astype(float)
            break
        number -= page.count
    middles = np.round((np.arange(side) + 0.5) * 64 / side - 0.5).astype(int)
    near = [tile[np.ix_(middles + dy, middles + dx)] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return np.mean(near, axis=0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_without_primaries_all_pictures_are_on_one_scale_that_of_all_images(channels, monkeypatch):
    """Each channel from its least to its highest value in all images that were given, shown or not."""
    images = torch.rand(12, channels, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    images = images * torch.tensor([0.5, 3.0, 0.0, 2.0])[:channels, None, None] - 7
    images[6] += 4 * images[6].mean()  # far from the others
    model = nn.Sequential(nn.Conv2d(channels, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3)).double()
    circuit = cc.find(model, cc.Feature("2", 0), images[:2], criterion="magnitude", density=1.0)
    used = []

    def noted(some, primaries):
        used.append(primaries)
        return displayable(some, primaries)

    monkeypatch.setattr(pictures, "displayable", noted)
    cc.diagram(model, circuit, images=images)
    assert len(used) > 1
    for primaries in used:
        assert torch.equal(primaries, primaries_of(images.split(5)))


def test_as_many_nodes_have_patches_as_there_is_room_for_the_drawn_ones_first(monkeypatch):
    images = photographs(3)
    model, circuit, drawing = plain_drawing(images)
    document = cc.diagram(model, circuit).document
    seen = Seen.of(drawing, batches_of(drawing, images))
    nodes = [n for n in everything(drawing).nodes if n not in first_kernels(drawing, None)]
    drawn = nodes[1:3]
    monkeypatch.setattr(pictures, "MOST_PICTURED", 3)
    options = {"pictures": "patches", "primaries": primaries_of([images]), "seed": 0, "batch_size": 4, "progress": None}
    table = pictured(drawing, document, drawn, seen, **options).pictures[0].tiles
    have = {node for node in nodes if table[node, 0] >= 0}
    assert have >= set(drawn)
    assert len(have) <= 3


@pytest.mark.parametrize("name", NETS)
def test_the_map_of_a_node_is_what_the_first_kernel_that_reads_it_reads(name):
    case = NETS[name]
    model, (layer, unit) = case.build(), case.features[-1]
    feature = cc.Feature(layer, unit)
    circuit = cc.find(model, feature, case.images(1), criterion="magnitude", density=1.0)
    drawing = lay_out(model, circuit, (), case.input_shape, 0)
    g, readings = drawing.graph, readings_of(drawing)
    image = [n for n, site in enumerate(g.site) if drawing.wiring.sites[int(site)].kind.name == "IMAGE"]
    assert readings[g.goal] is None
    assert not set(image) & set(readings)
    for node in set(range(len(g.site))) - {*image, g.goal}:
        edges = np.flatnonzero((g.source == node) & (g.kind == EdgeKind.KERNEL))
        assert (node in readings) == (len(edges) > 0)
        if len(edges):
            first = int(g.call[edges].min())
            call = drawing.call(first)
            turn = sum(
                number < first and value.call is not None and value.layer == call.layer
                for number, value in drawing.layout.values.items()
            )
            channels = set()
            for e in edges[g.call[edges] == first]:
                group = int(g.out[e]) // (len(call.weight) // call.groups) if call.groups > 1 else 0
                per_group = call.weight.shape[1] if isinstance(call, ConvCall) else 0
                channels.add(group * per_group + int(g.inp[e]))
            assert readings[node][:2] == (call.layer, turn)
            assert readings[node][2] == min(channels)


# ---------------------------------------------------------------------- what images do


def near(bytes_, scale, exact):
    """Whether a map of bytes is as near to the exact one as a byte can be."""
    exact = exact.numpy()
    assert bytes_.shape == exact.shape
    assert scale == pytest.approx(np.abs(exact).max(), rel=1e-5)
    return np.abs(bytes_ / 127 * scale - exact).max() <= scale / 254 * (1 + 1e-4)


def test_maps_effects_and_responses_are_those_of_slow_runs():
    images = photographs(40, seed=3)
    model, circuit, drawing = plain_drawing(images)
    document = cc.diagram(model, circuit).document
    seen = Seen.of(drawing, batches_of(drawing, images))
    shown = everything(drawing)
    made = seen.document(drawing, shown, PRIMARIES, np.ones(len(drawing.graph.kind)), [None])
    full = cc.activations(model, drawing.subject.feature, images)
    # From the image that drives the feature most to the one that does least, as the full model has it.
    numbers = [int(name.split()[1]) for name in made.names]
    means = full.flatten(1).mean(1)
    assert numbers[0] == means.argmax()
    assert numbers[-1] == means.argmin()
    assert len(numbers) == 6
    assert (means[numbers].diff() < 0).all()
    target = made.target
    np.testing.assert_allclose(target.full_mean, means[numbers], rtol=1e-5)
    np.testing.assert_allclose(target.full_maximum, full.amax((1, 2))[numbers], rtol=1e-5)
    assert target.positions == "all {} \u00d7 {} positions".format(*target.shape)
    for v, circuit_ in enumerate(drawing.circuits):
        maps = cc.activations(model, drawing.subject.feature, images, circuit=circuit_)[numbers]
        np.testing.assert_allclose(target.mean[v], maps.mean((1, 2)), rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(target.maximum[v], maps.amax((1, 2)), rtol=1e-5, atol=1e-9)
        for i, number in enumerate(numbers):
            report = cc.evaluate(model, circuit_, images[number : number + 1])
            assert target.r2[v, i] == pytest.approx(report.r2, rel=1e-5)
            assert target.r2_inside[v, i] == pytest.approx(report.r2_interior, rel=1e-5)
            assert near(target.map[v, i], target.scale[v, i], maps[i])
            assert near(target.full_map[i], target.full_scale[i], full[number])
    reads = slow_reads(model, drawing, images[numbers])
    for node in shown.nodes:
        maps = map_of(document, reads, node)
        start, (height, width) = made.activation_offset[node], made.activation_shape[node]
        stored = made.activation[start : start + len(numbers) * height * width].reshape(-1, height, width)
        for i in range(len(numbers)):
            assert near(stored[i], made.activation_scale[node, i], maps[i])
    weighted = 0
    for e in np.flatnonzero(document.edges.weighted & (document.variants[0].rank >= 0)):
        layer, out, in_ = layer_of(document, document.edges.target[e]), document.edges.out[e], document.edges.in_[e]
        module = model.get_submodule(layer)
        kernel = module.weight.detach()[out : out + 1, in_ : in_ + 1]
        maps = F.conv2d(reads[layer][:, in_ : in_ + 1], kernel, padding=module.padding)[:, 0]
        np.testing.assert_allclose(made.effect[e], maps.mean((1, 2)), rtol=1e-5, atol=1e-9)
        start, (height, width) = made.presum_offset[e], made.presum_shape[e]
        stored = made.presum[start : start + len(numbers) * height * width].reshape(-1, height, width)
        small = F.adaptive_avg_pool2d(maps, (min(14, maps.shape[1]), min(14, maps.shape[2])))
        for i in range(len(numbers)):
            assert near(stored[i], made.presum_scale[e, i], small[i])
        weighted += 1
    assert weighted == document.variants[0].kernels
    out_of_it = document.edges.weighted & (document.variants[0].rank < 0)
    assert np.isnan(made.effect[out_of_it]).all()
    assert (made.presum_offset[out_of_it] == -1).all()
    for i, number in enumerate(numbers):
        thumbnail = read_data_url(made.src[i]).astype(float)
        assert max(thumbnail.shape[:2]) == 112
        coarse = F.adaptive_avg_pool2d(torch.from_numpy(thumbnail).movedim(-1, 0), SIZE // 4)
        expected = F.adaptive_avg_pool2d(images[number] * 255, SIZE // 4)
        assert (coarse - expected).abs().max() < 8


@pytest.mark.parametrize(
    ("position", "words"),
    [
        ("max", "the one where the full model is highest"),
        ("center", "the central one of 2 \u00d7 2 positions"),
        ((1, 0), "row 1, column 0 of 2 \u00d7 2 positions"),
        ("interior", "4 central positions"),
    ],
)
def test_which_positions_of_the_target_count_is_said(position, words):
    case = NETS["plain"]
    model, images = case.build(), case.images(2)
    circuit = cc.find(model, cc.Feature("features.5", [0, 2], position=position), images, density=0.8)
    target = cc.diagram(model, circuit, images=images).document.images.target
    assert target.positions == f"{words} of each of 2 units"
    one = cc.find(model, cc.Feature("features.5", 1, position=position), images, density=0.8)
    assert cc.diagram(model, one, images=images).document.images.target.positions == words


def test_the_targets_map_is_larger_than_others_and_its_inside_is_told():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1)).double()
    images = torch.rand(2, 3, 28, 40, dtype=torch.float64)
    circuit = cc.find(model, cc.Feature("2", 0), images, density=1.0)
    target = cc.diagram(model, circuit, images=images).document.images.target
    assert (target.shape, target.full_map.shape, target.map.shape[1:]) == ((28, 40), (2, 28, 32), (2, 28, 32))
    assert (target.inside.rows, target.inside.columns, target.inside.exact) == ((2, 26), (2, 38), True)
    np.testing.assert_allclose(target.r2[0], 1)


def test_few_images_are_all_shown_once():
    images = photographs(2)
    model, circuit, drawing = plain_drawing(images)
    seen = Seen.of(drawing, batches_of(drawing, images))
    assert sorted(seen.numbers[0]) == [0, 1]
    made = seen.document(drawing, everything(drawing), PRIMARIES, np.ones(len(drawing.graph.kind)), [None])
    assert len(made) == 2
    full = cc.activations(model, circuit.feature, images).flatten(1).mean(1)
    assert list(seen.numbers[0]) == full.argsort(descending=True).tolist()


def test_maps_are_within_their_budget_the_drawn_ones_before_others(monkeypatch):
    images = photographs(5)
    _, _, drawing = plain_drawing(images)
    seen = Seen.of(drawing, batches_of(drawing, images))
    every = everything(drawing)
    area = 14 * 14 * len(seen.numbers[0])
    inside = [e for e in every.edges if drawing.graph.present[0][e]]
    monkeypatch.setattr(pictures, "MAPS", 3 * area)
    monkeypatch.setattr(pictures, "PRESUMS", 4 * area)
    some = Shown(every.nodes[3:5], tuple(inside[-9:]), kernels=1, filters=1, path=1.0, lit=None, caption="")
    made = seen.document(drawing, some, PRIMARIES, np.ones(len(drawing.graph.kind)), [None])
    have = set(np.flatnonzero(made.activation_offset >= 0).tolist())
    assert have >= {*some.nodes, drawing.graph.goal}
    assert len(have) <= 4
    assert made.activation.size <= pictures.MAPS + area
    assert set(np.flatnonzero(made.presum_offset >= 0).tolist()) == set(inside[-9:-5])
    assert made.presum.size <= pictures.PRESUMS
    monkeypatch.setattr(pictures, "MAPS", 0)
    monkeypatch.setattr(pictures, "PRESUMS", 0)
    made = seen.document(drawing, some, PRIMARIES, np.ones(len(drawing.graph.kind)), [None])
    assert np.flatnonzero(made.activation_offset >= 0).tolist() == [drawing.graph.goal]
    assert made.presum.size == 0


# ---------------------------------------------------------------------- feature visualisations


def test_the_target_has_a_picture_of_its_own_unless_it_is_left_out(monkeypatch):
    images = photographs(2)
    model, circuit, drawing = plain_drawing(images)
    fields = receptive_fields(drawing.subject, [None], local=True)
    monkeypatch.setattr(pictures, "TARGET_STEPS", 8)
    made = cc.diagram(model, circuit, images=images, primaries=PRIMARIES, seed=3).document
    full = visualize(drawing.subject, fields, primaries=PRIMARIES, steps=8, seed=3)[None]
    (shown,) = made.pictures[0].target
    assert (made.pictures[0].name, shown.label) == ("patches", "optimized to drive it most in the full model")
    assert np.abs(cells(made, shown.tile, 12) - full.pixels.numpy()).max() <= 12
    assert [
        picture.label for picture in cc.diagram(model, circuit, primaries=PRIMARIES).document.pictures[0].target
    ] == [shown.label]
    for options in ({"images": images, "feature_picture": False}, {}):  # nothing is known of the model's inputs
        assert all(not some.target for some in cc.diagram(model, circuit, **options).document.pictures)

    def refuse(*_, **__):
        raise cc.ConvCircuitsError("The model takes no other images.")

    monkeypatch.setattr(pictures, "visualize", refuse)
    made = cc.diagram(model, circuit, images=images).document
    assert not made.pictures[0].target
    assert "There is no optimized picture of the feature: The model takes no other images." in made.meta.notes


@pytest.mark.slow
def test_feature_visualisations_come_first_and_those_of_the_target_are_in_both_models():
    images = photographs(2)
    model, circuit, drawing = plain_drawing(images)
    document = cc.diagram(model, circuit).document
    nodes = everything(drawing).nodes
    drawn = nodes[::2]
    told = []
    made = pictured(
        drawing,
        document,
        drawn,
        None,
        pictures="features",
        primaries=None,
        seed=4,
        batch_size=8,
        progress=lambda *progress: told.append(progress),
    )
    assert [given.name for given in made.pictures] == ["features", "patches"]
    assert made.view.pictures == "features"
    table = made.pictures[0].tiles[:, 0]
    kernels = {n: picture.pixels for n, picture in first_kernels(drawing, None).items()}
    readings = readings_of(drawing)
    goal = drawing.graph.goal
    wanted = {n for n in (*drawn, goal) if n not in kernels}
    fields = receptive_fields(drawing.subject, [readings[n] for n in wanted], local=True)
    found = visualize(drawing.subject, fields, masks=drawing.masks[0], seed=4)
    assert told[-1] == (len(wanted), len(wanted))
    for node in nodes:
        picture = kernels.get(node)
        if node in wanted and found[readings[node]] is not None:
            picture = found[readings[node]].pixels.numpy()
        assert (table[node] >= 0) == (picture is not None)
        if picture is not None:
            assert np.abs(cells(made, table[node], len(picture)) - picture).max() <= 12
    assert [beside.label for beside in made.pictures[0].target] == [
        "optimized to drive it most in the circuit",
        "optimized to drive it most in the full model",
    ]
    full = visualize(drawing.subject, {None: fields[None]}, seed=4)[None]
    for beside, picture in zip(made.pictures[0].target, (found[None], full), strict=True):
        assert np.abs(cells(made, beside.tile, 12) - picture.pixels.numpy()).max() <= 12
    assert document.nodes.kind[goal] == NodeKind.FILTER
