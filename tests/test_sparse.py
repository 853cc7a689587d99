"""Sparse convolutions compute what a plain convolution of the same kernels computes, forward and backward."""

import pytest
import torch
from torch import nn

from convcircuits.compiler import sparse
from convcircuits.compiler.sparse import SparseConv2d, is_worth_it

pytestmark = pytest.mark.slow  # the loops are compiled

LAYERS = {
    "3x3": ({"kernel_size": 3, "padding": 1}, (9, 7)),
    "1x1": ({"kernel_size": 1}, (5, 6)),
    "no padding": ({"kernel_size": 3}, (8, 9)),
    "wide padding": ({"kernel_size": 3, "padding": 4}, (3, 5)),
    "oblong": ({"kernel_size": (1, 5), "padding": (0, 2)}, (6, 11)),
    "other oblong": ({"kernel_size": (4, 2), "padding": (2, 0)}, (7, 5)),
    "dilated": ({"kernel_size": 3, "dilation": 2, "padding": 2}, (11, 10)),
    "dilated unevenly": ({"kernel_size": 3, "dilation": (1, 3), "padding": (1, 3)}, (6, 9)),
    "groups": ({"kernel_size": 3, "padding": 1, "groups": 3}, (6, 6)),
    "depthwise": ({"kernel_size": 3, "padding": 1, "groups": 12}, (6, 6)),
    "no bias": ({"kernel_size": 3, "padding": 1, "bias": False}, (6, 5)),
    "one position": ({"kernel_size": 3}, (3, 3)),
    "1x1 of a multiple of 64 positions": ({"kernel_size": 1}, (8, 16)),
    "many positions": ({"kernel_size": 3, "padding": 1}, (50, 45)),
}


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Let the loops run also where a plain layer is faster."""
    monkeypatch.setattr(sparse, "_DENSE", 1e9)
    monkeypatch.setattr(sparse, "_DENSE_POINTWISE", 1e9)
    monkeypatch.setattr(SparseConv2d, "_plain", lambda layer, images: pytest.fail("the plain layer ran"))


def layer_of(name, dtype, seed=0):
    """Return a convolution of 12 channels, most of whose kernels are 0, which are not, and images."""
    settings, size = LAYERS[name]
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(12, 18 if settings.get("groups") != 12 else 12, **settings, dtype=dtype)
    kept = torch.rand(layer.weight.shape[:2], generator=generator) < 0.2
    kept[3] = False  # a filter without a kernel
    with torch.no_grad():
        for values in layer.parameters():
            values.copy_(torch.randn(values.shape, generator=generator, dtype=dtype))
        layer.weight.mul_(kept[:, :, None, None])
    return layer, kept, torch.randn(3, 12, *size, generator=generator, dtype=dtype)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_maps_and_slopes_are_those_of_the_plain_layer(name, dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layer, kept, images = layer_of(name, dtype)
    given = SparseConv2d(layer, kept)
    images.requires_grad_()
    expected, got = layer(images), given(images)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(got, expected, **close)
    slopes = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    of_images, of_weight, *of_bias = torch.autograd.grad(expected, [images, *layer.parameters()], slopes)
    found = torch.autograd.grad(got, [images, given.gains, given.bias], slopes)
    torch.testing.assert_close(found[0], of_images, **close)
    torch.testing.assert_close(found[1], (of_weight * layer.weight).sum((2, 3))[kept], **close)
    torch.testing.assert_close(found[2], of_bias[0] if of_bias else slopes.sum((0, 2, 3)), **close)


def test_gains_scale_kernels():
    layer, kept, images = layer_of("groups", torch.float64)
    given = SparseConv2d(layer, kept)
    with torch.no_grad():
        given.gains.copy_(torch.arange(1, len(given.gains) + 1))
        given.bias.add_(2)
        table = torch.zeros(kept.shape, dtype=torch.float64)
        table[kept] = given.gains
        layer.weight.mul_(table[:, :, None, None])
        layer.bias.add_(2)
    torch.testing.assert_close(given(images), layer(images))


def test_slopes_are_checked_by_differences():
    layer, kept, images = layer_of("dilated", torch.float64)
    given = SparseConv2d(layer, kept)
    assert torch.autograd.gradcheck(given, [images[:1].requires_grad_()])


@pytest.mark.parametrize("name", LAYERS)
def test_its_output_may_be_changed_in_place(name):
    layer, kept, images = layer_of(name, torch.float64)
    given = SparseConv2d(layer, kept)
    images.requires_grad_()
    expected, got = layer(images).relu(), torch.relu_(given(images))
    torch.testing.assert_close(got, expected)
    found = [torch.autograd.grad(one.sum(), images)[0] for one in (expected, got)]  # of slopes that are expanded
    torch.testing.assert_close(*found)


def test_no_kernel_and_images_without_slopes():
    layer, kept, images = layer_of("3x3", torch.float64)
    none = SparseConv2d(layer, torch.zeros_like(kept))
    assert torch.equal(none(images), none.bias[None, :, None, None].expand_as(layer(images)))
    given = SparseConv2d(layer, kept)
    (of_gains,) = torch.autograd.grad(given(images).sum(), given.gains)
    (of_weight,) = torch.autograd.grad(layer(images).sum(), layer.weight)
    torch.testing.assert_close(of_gains, (of_weight * layer.weight).sum((2, 3))[kept])


def test_memory_formats_and_slices_do_not_matter():
    layer, kept, images = layer_of("3x3", torch.float64)
    given = SparseConv2d(layer, kept)
    for other in (images.contiguous(memory_format=torch.channels_last), images.repeat(1, 2, 1, 1)[:, 12:]):
        assert torch.equal(given(other), given(images))


@pytest.mark.parametrize("name", ["3x3", "groups", "dilated", "oblong", "1x1"])
def test_where_maps_are_small_the_plain_layer_runs(name, monkeypatch):
    monkeypatch.undo()
    layer, kept, images = layer_of(name, torch.float64)
    with torch.no_grad():
        layer.weight[6:] = 0
    kept[6:], images = False, images[..., :2, :2]
    given, ran = SparseConv2d(layer, kept), []
    monkeypatch.setattr(sparse._Convolution, "apply", lambda *_: ran.append("loops"))
    with torch.no_grad():
        given.gains.mul_(2)
    got = given(images)
    bias = layer.bias[None, :, None, None]
    torch.testing.assert_close(got, 2 * (layer(images) - bias) + bias)
    (of_gains,) = torch.autograd.grad(got.sum(), given.gains)
    (of_weight,) = torch.autograd.grad(layer(images).sum(), layer.weight)
    torch.testing.assert_close(of_gains, (of_weight * layer.weight).sum((2, 3))[kept])
    assert not ran
    given(torch.zeros(1, 12, 80, 80, dtype=torch.float64))
    assert ran


def test_images_that_do_not_fit_are_refused_as_by_the_plain_layer(monkeypatch):
    monkeypatch.undo()
    layer, kept, _ = layer_of("no padding", torch.float32)
    given = SparseConv2d(layer, kept)
    for images in (torch.zeros(1, 4, 80, 80), torch.zeros(1, 64, 80, 80), torch.zeros(1, 12, 2, 80)):
        with pytest.raises(RuntimeError):
            layer(images)
        with pytest.raises(RuntimeError):
            given(images)
    with pytest.raises(RuntimeError):
        given(torch.zeros(1, 12, 80, 80, dtype=torch.float64))
    assert given.double()(torch.zeros(1, 12, 80, 80, dtype=torch.float64)).dtype == torch.float64


def test_where_it_is_not_worth_it(monkeypatch):
    monkeypatch.undo()
    few = torch.zeros(8, 8, dtype=torch.bool)
    few[0] = True
    assert is_worth_it(nn.Conv2d(8, 8, 3, padding=1), few)
    for other in (
        nn.Conv2d(8, 8, 3, stride=2),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3).bfloat16(),
        nn.Linear(8, 8),
    ):
        assert not is_worth_it(other, few)
    assert not is_worth_it(nn.Conv2d(8, 8, 3), torch.ones(8, 8, dtype=torch.bool))
    monkeypatch.setattr(sparse, "has_loops", lambda values: False)
    assert not is_worth_it(nn.Conv2d(8, 8, 3), few)
