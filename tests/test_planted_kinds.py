"""Stitched, compiled and polysemantic networks: their truths are the truth, and each is what it is said to be."""

import copy
import functools
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
from cases import planted_circuit, planted_loss, planted_losses, planted_map
from convcircuits.zoo.models import load_model
from convcircuits.zoo.planted import KINDS, compiled, drawn_shapes, plant, planted_images, polysemantic, stitched

DOUBLE = torch.float64
NETS = {
    "stitched": stitched,
    "stitched of three": partial(stitched, blocks=3, depth=3, filters=5, batchnorm=True),
    "compiled": compiled,
    "compiled in groups": partial(compiled, groups=2, batchnorm=True),
    "compiled with bypass": partial(compiled, residual=True, redundant=2),
    "compiled in groups with bypass": partial(compiled, groups=4, residual=True, inhibition=False),
    "polysemantic": polysemantic,
    "polysemantic of three": partial(polysemantic, mechanisms=3, sizes=(2, 3, 6), batchnorm=True),
    "monosemantic": partial(polysemantic, mechanisms=1),
}
FEW = {"stitched", "compiled with bypass", "polysemantic of three"}
EACH = pytest.mark.parametrize("kind", [k if k in FEW else pytest.param(k, marks=pytest.mark.oracle) for k in NETS])
SEEDS = pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.oracle) for n in (1, 2))])
MECHANISMS = pytest.mark.parametrize("mechanisms", [1, 2, 3])
LEAKY = {"plain": plant} | {kind: NETS[kind] for kind in ("stitched", "compiled in groups", "polysemantic of three")}


@functools.cache
def made(kind, seed, **options):
    """A network that no test changes: building one takes up to a second."""
    return NETS[kind](seed, dtype=DOUBLE, **options)


@functools.cache
def labelled(mechanisms, seed):
    """A unit of so many mechanisms, images, which mechanism drives each, and what each adds to its map."""
    net = polysemantic(seed, mechanisms=mechanisms, dtype=DOUBLE)
    images, labels = net.labelled_images(24, seed=1)
    return net, images, labels, net.contributions(images)


def maps(net, images):
    return cc.activations(net.model, net.feature, images)


def random_images(count=2):
    return torch.randn(count, 3, 40, 36, generator=torch.Generator().manual_seed(0)).double() * 5


# ---------------------------------------- the truth


@EACH
@SEEDS
def test_the_truth_computes_the_feature_of_any_images_exactly(kind, seed):
    net = made(kind, seed)
    for images in (net.images(6, seed=1000), random_images()):
        full = maps(net, images)
        torch.testing.assert_close(planted_map(net, net.truth, images), full, rtol=0, atol=1e-10 * float(full.std()))
    circuit = planted_circuit(net, net.truth)
    assert 0 < len(circuit) == sum(int(mask.sum()) for mask in net.truth.values()) < 0.15 * circuit.relevant


@EACH
@pytest.mark.oracle
def test_every_kernel_of_the_smallest_truths_matters(kind):
    net = made(kind, 1)
    images = net.images(12, seed=1000)
    masks = net.truths[-1]

    def without_one():
        for layer, mask in masks.items():
            for kernel in mask.nonzero().tolist():
                fewer = mask.clone()
                fewer[tuple(kernel)] = False
                yield masks | {layer: fewer}

    losses = list(planted_losses(net, without_one(), images))
    assert len(losses) == sum(int(mask.sum()) for mask in masks.values())
    assert min(losses) > 1e-4


@EACH
def test_without_constants_the_truth_needs_no_offset(kind):
    net = NETS[kind](0, constants=0, dtype=DOUBLE)
    assert not any(offset.any() for offset in net.offset.values())
    with_constants = made(kind, 0)
    assert any(offset.any() for offset in with_constants.offset.values())
    for layer, offset in with_constants.offset.items():
        assert not offset[~with_constants.truth[layer].any(1)].any()


@EACH
def test_distractors_are_as_large_and_as_active(kind):
    net = made(kind, 0, decades=0)
    conv, mask = net.model.convs[-1], net.truth[net.feature.layer][net.feature.unit]
    sizes = torch.linalg.vector_norm(conv.weight[net.feature.unit], dim=(1, 2))
    unread = sizes[~mask & (sizes > 0)]
    assert len(unread) >= 8
    assert 0.3 < float(unread.mean() / sizes[mask].mean()) < 3
    spread = net.model.hidden(net.images(12)).std((0, 2, 3))
    assert float(spread[~mask & (sizes > 0)].median()) > 0.3 * float(spread[mask].median())


@EACH
def test_rescaling_channels_changes_neither_function_nor_truth(kind):
    net = copy.deepcopy(made(kind, 0))
    images = net.images(6, seed=1000)
    full, model = maps(net, images), net.model
    dice = torch.Generator().manual_seed(7)
    for n, norm in enumerate(model.norms):
        channels = model.convs[n].out_channels
        factor = 2.0 ** torch.randint(-5, 6, (channels,), generator=dice).double()
        if n in model.residual or n + 1 in model.residual:
            continue  # channels that are added up cannot be rescaled alone
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight *= factor
            norm.bias *= factor
        else:
            model.convs[n].weight *= factor[:, None, None, None]
            model.convs[n].bias *= factor
            net.offset[f"convs.{n}"] *= factor
        after = model.convs[n + 1]
        read = factor.reshape(after.groups, 1, -1).expand(-1, after.out_channels // after.groups, -1).flatten(0, 1)
        after.weight /= read[:, :, None, None]
    assert torch.equal(maps(net, images), full)
    torch.testing.assert_close(planted_map(net, net.truth, images), full, rtol=0, atol=1e-10)
    plain, scaled = (made(kind, 0, decades=decades) for decades in (0, 4))
    torch.testing.assert_close(maps(scaled, images), maps(plain, images), rtol=0, atol=1e-10)
    assert all(torch.equal(scaled.truth[layer], mask) for layer, mask in plain.truth.items())


@pytest.mark.parametrize("kind", LEAKY)
@pytest.mark.parametrize("leak", [0.03, 0.2])
def test_a_leak_is_as_large_as_it_says(kind, leak):
    """On the images that it is measured on: of what a filter varies by, all but the truth's kernels and pairs."""
    net = LEAKY[kind](2, leak=leak, decades=0, pairs=0, dtype=DOUBLE)
    x = net.draw(64 if "poly" in kind else 32, seed=2).double()
    measured = 0
    for n, conv in enumerate(net.model.convs):
        mask = net.truth[f"convs.{n}"]
        true = F.conv2d(x, conv.weight * mask[:, :, None, None], groups=conv.groups)
        rest = F.conv2d(x, conv.weight, groups=conv.groups) - true
        for o in mask.any(1).nonzero()[:, 0] if n else []:
            ratio = float(rest[:, o].std() / true[:, o].std())
            assert ratio == pytest.approx(leak, rel=1e-6) or ratio < 1e-6  # where nothing is left that leaks
            measured += ratio > 1e-6
        if n < len(net.model.norms):
            x = net.model.after(n, x, net.model.norms[n](conv(x)))
    assert measured > 4
    assert leak**2 / 4 < planted_loss(net, net.truth, net.images(8, seed=1000)) < 40 * leak**2


@EACH
def test_a_seed_decides_everything_and_touches_nothing_else(kind):
    state = torch.random.get_rng_state()
    a, b, c = made(kind, 1), NETS[kind](1, dtype=DOUBLE), made(kind, 0)
    weights = b.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in a.model.state_dict().items())
    assert torch.equal(a.images(3, seed=1), b.images(3, seed=1))
    assert not torch.equal(a.images(3, seed=1), a.images(3, seed=2))
    assert not torch.equal(a.model.convs[0].weight, c.model.convs[0].weight)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not a.model.training


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_the_library_measures_the_truth_of_a_benchmark_as_good(kind):
    net = KINDS[kind](0)
    report = cc.evaluate(net.model, planted_circuit(net, net.truth), net.images(12, seed=1000))
    assert report.r2 > (0.8 if kind == "leaky" else 1 - 1e-5)
    assert report.effective_kernels == report.kernels


# ---------------------------------------- stitched


def chain(seed, channels=(4, 5, 3), pool=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        convs = [nn.Conv2d(i, o, 3, padding=1) for i, o in itertools.pairwise((3, *channels))]
    pools = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(convs[0], nn.ReLU(), nn.Sequential(*pools, convs[1], nn.ReLU()), *convs[2:])


def unpadded(net, images):
    net = copy.deepcopy(net).double()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.padding = (0, 0)
    return net(images)


def test_nets_that_are_stitched_compute_what_they_did():
    nets, images = [chain(0), chain(1, (6, 2, 4))], random_images()
    for unit in range(3):
        net = stitched(nets=nets, images=images, unit=unit, dtype=DOUBLE)
        wanted = unpadded(nets[0], images)[:, unit].detach()
        torch.testing.assert_close(maps(net, images), wanted, rtol=0, atol=1e-10)
        torch.testing.assert_close(planted_map(net, net.truth, images), wanted, rtol=0, atol=1e-10)
        assert [int(mask.sum()) for mask in net.truth.values()] == [3 * 4, 4 * 5, 5]
    assert all(not parameter.requires_grad for parameter in net.model.parameters())
    assert all(parameter.requires_grad for net in nets for parameter in net.parameters())


def test_a_net_with_a_block_of_itself_in_a_mirror():
    net = chain(0)
    mirrored = copy.deepcopy(net)
    for parameter in mirrored.parameters():
        parameter.data = parameter.data.flip(-1) if parameter.dim() == 4 else parameter.data
    images = random_images()
    made = stitched(nets=[net, mirrored], images=images, unit=1, leak=0.1, dtype=DOUBLE)
    assert 1e-3 < planted_loss(made, made.truth, images) < 0.2


@pytest.mark.zoo
def test_early_blocks_of_a_trained_network_are_stitched():
    features = load_model("vgg16_hed").model.features[:5]
    mirrored = copy.deepcopy(features)
    for conv in (mirrored[0], mirrored[2]):
        conv.weight.data = conv.weight.data.flip(-1)
    images = 255 * (planted_images(4, size=24).double() - 0.5)
    net = stitched(nets=[features, mirrored], images=images, unit=7, dtype=DOUBLE)
    wanted = unpadded(features[:3], images)[:, 7].detach()
    torch.testing.assert_close(maps(net, images), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(planted_map(net, net.truth, images), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("nets", "said"),
    [
        ([nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 3))], r"Net 0 has Sigmoid\(\) after 1 conv"),
        ([chain(0), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))], r"Net 1 has Conv2d\(4, 2"),
        ([nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 3))], "Net 0 has Conv2d"),
        ([nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(4, 2, 3))], "Net 0 has MaxPool2d"),
        ([nn.Sequential(nn.Conv2d(3, 4, 3))], "Net 0 needs two convolutions"),
        ([nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))], "the first of which reads 3 channels"),
        ([load_model], "Net 0 has <function"),
        ([chain(0), chain(0, pool=False)], "nets must have the same structure"),
        ([chain(0), chain(0, (4, 5))], "nets must have the same structure"),
        ([], "nets must have the same structure"),
    ],
)
def test_nets_that_are_not_plain_or_not_alike_are_refused(nets, said):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        stitched(nets=nets)


# ---------------------------------------- compiled


def shapes_found(red):
    """The unit's map, by looking: 4 in the middle of a square of 5 x 5, -4 in that of a cross of arms 2 x 3."""
    cross = torch.zeros(7, 7, dtype=DOUBLE)
    cross[2:5], cross[:, 2:5] = 1, 1
    square = F.pad(torch.ones(5, 5, dtype=DOUBLE), (1, 1, 1, 1))
    found = torch.zeros(len(red), red.shape[1] - 8, red.shape[2] - 8, dtype=DOUBLE)
    for n, row, column in itertools.product(*map(range, found.shape)):
        window = red[n, row + 1 : row + 8, column + 1 : column + 8]
        found[n, row, column] = 4.0 * torch.equal(window, square) - 4.0 * torch.equal(window, cross)
    return found


@pytest.mark.parametrize("kind", [kind for kind in NETS if "compiled" in kind])
def test_the_compiled_unit_finds_squares_and_crosses_count_against_them(kind):
    net = made(kind, 0)
    images = net.images(8, seed=5)
    map_, wanted = maps(net, images).round(decimals=9), shapes_found(images[:, 0])
    assert torch.equal(map_ == 4, wanted == 4)
    if kind == "compiled in groups with bypass":  # without inhibition
        assert map_.min() == 0
    else:
        assert torch.equal(map_ == -4, wanted == -4)
        assert (wanted == -4).any()
    assert (wanted == 4).any()
    other = torch.cat([images[:, :1], images[:, 1:].flip(0)], 1)  # what is green and blue does not matter
    torch.testing.assert_close(maps(net, other), maps(net, images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("redundant", [0, 1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_each_of_the_redundant_paths_suffices_and_one_is_needed(redundant, residual):
    net = compiled(0, redundant=redundant, residual=residual, channels=28, dtype=DOUBLE)
    images = net.images(8, seed=5)
    assert len(net.alternatives) == (2**redundant if redundant else 0)
    assert len({sum(int(mask.sum()) for mask in masks.values()) for masks in net.alternatives}) <= 1
    for masks in net.alternatives:
        assert all(bool((masks[layer] <= mask).all()) for layer, mask in net.truth.items())
        assert planted_loss(net, masks, images) < 1e-20
        neither = {layer: mask & net.alternatives[0][layer] for layer, mask in masks.items()}
        assert masks is net.alternatives[0] or planted_loss(net, neither, images) > 0.01


def test_what_one_kernel_does_shows_nothing_of_redundant_paths():
    net = compiled(0, dtype=DOUBLE)
    scores = cc.score(net.model, net.feature, net.images(12), criterion="gauss_newton")
    either = {k: mask & ~(net.alternatives[0][k] & net.alternatives[1][k]) for k, mask in net.truth.items()}
    kernels = torch.cat([scores[k][mask] for k, mask in either.items()])
    others = torch.cat([scores[k][mask & ~either[k]] for k, mask in net.truth.items()])
    assert len(kernels) == 6
    assert kernels.max() < 1e-20 < 0.01 < others.min()


@pytest.mark.parametrize("size", [20, 32, 43])
def test_drawn_shapes_are_apart(size):
    images = drawn_shapes(20, size=size, seed=3)
    assert images.shape == (20, 3, size, size)
    assert set(images.unique().tolist()) == {0, 1}
    # Of two pixels that touch at a corner alone, one belongs to a shape that goes on in both directions: none is alone.
    a, b, c, d = images[..., :-1, :-1], images[..., :-1, 1:], images[..., 1:, :-1], images[..., 1:, 1:]
    assert not ((a * d * (1 - b) * (1 - c)) + (b * c * (1 - a) * (1 - d))).any()
    assert not torch.equal(images[:, 0], images[:, 1])


# ---------------------------------------- polysemantic


@MECHANISMS
@SEEDS
def test_each_image_is_driven_by_the_mechanism_that_its_label_names(mechanisms, seed):
    net, images, labels, added = labelled(mechanisms, seed)
    assert torch.equal(images, net.images(24, seed=1))
    assert labels.bincount().tolist() == [24 // mechanisms] * mechanisms
    full = maps(net, images)
    rest = full - added.sum(1)
    assert float(rest.std()) < 1e-10  # what is constant
    highest = added.flatten(2).amax(2)
    others = highest.clone().scatter_(1, labels[:, None], 0)
    assert bool((highest.gather(1, labels[:, None]) >= 1).all())
    assert bool((others.amax(1) <= 0.1 * highest.amax(1)).all())
    assert bool((added >= 0).all())


@MECHANISMS
@SEEDS
def test_a_mechanism_computes_the_feature_of_its_own_images_alone(mechanisms, seed):
    net, images, labels, added = labelled(mechanisms, seed)
    whole = planted_map(net, net.truth, images)
    for m, masks in enumerate(net.mechanisms):
        others = added.sum(1) - added[:, m]
        torch.testing.assert_close(planted_map(net, masks, images), whole - others, rtol=0, atol=1e-10)
        assert planted_loss(net, masks, images[labels == m]) < 0.02
        if mechanisms > 1:
            assert planted_loss(net, masks, images[labels != m]) > 0.5


@MECHANISMS
def test_mechanisms_share_no_kernel_and_are_the_truth_together(mechanisms):
    sizes = (2, 6, 3)[:mechanisms]
    net = polysemantic(4, mechanisms=mechanisms, sizes=sizes, depth=5)
    for layer, mask in net.truth.items():
        assert torch.equal(sum(masks[layer].int() for masks in net.mechanisms), mask.int())
    for masks, size, channel in zip(net.mechanisms, sizes, net.channels, strict=True):
        live = [mask.any(1).nonzero()[:, 0].tolist() for mask in masks.values()]
        assert [len(filters) for filters in live] == [size, size, size, 1, 1]
        assert live[-2:] == [[channel], [net.feature.unit]]


def test_one_mechanism_has_the_same_distractors_as_several():
    one, two = (polysemantic(0, mechanisms=m, sizes=(4,) * m) for m in (1, 2))
    assert [conv.weight.shape for conv in one.model.convs] == [conv.weight.shape for conv in two.model.convs]
    assert one.labelled_images(5)[1].tolist() == [0] * 5


# ---------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(stitched, blocks=0), "blocks must be a whole number from 1"),
        (partial(stitched, depth=2), "depth must be a whole number from 3"),
        (partial(stitched, filters=0), "filters must be"),
        (partial(stitched, unit=4), "unit must be a whole number from 0 to 3"),
        (partial(stitched, pairs=-1), "pairs must be"),
        (partial(compiled, groups=3), "groups must be 1, 2 or 4; got 3"),
        (partial(compiled, redundant=5), "redundant must be a whole number from 0 to 4; got 5"),
        (partial(compiled, channels=16), "16 channels in 1 groups cannot contain 9 live ones, 4 pairs, 4 constants"),
        (partial(compiled, constants=3, groups=2), "Each group needs the same number"),
        (partial(compiled, constants=-1), "constants must be"),
        (partial(polysemantic, mechanisms=0), "mechanisms must be a whole number from 1"),
        (partial(polysemantic, sizes=(4, 4, 4)), "There are 2 mechanisms, but 3 sizes"),
        (partial(polysemantic, sizes=(4, 0)), "Each of sizes must be"),
        (
            partial(polysemantic, channels=20),
            "20 channels in 1 groups cannot contain 8 live ones, 4 pairs, 6 constants",
        ),
        (partial(polysemantic, depth=2), "depth must be"),
        (lambda: polysemantic().labelled_images(0), "count must be"),
        (lambda: polysemantic(mechanisms=3).labelled_images(10**6), "are driven by one of the mechanisms alone"),
    ],
)
def test_what_does_not_fit_is_an_error(make, said, monkeypatch):
    monkeypatch.setattr("convcircuits.zoo.planted.mechanisms._ROUNDS", 1)
    with pytest.raises(cc.ConvCircuitsError, match=said):
        make()
