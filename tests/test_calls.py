"""Kernel calls: how what they read is laid out, their gradients and their sketches."""

import pytest
import torch

from convcircuits.network.calls import ConvCall, Lattice, LinearCall

CALLS = {  # images, channels, filters, groups, size of the image, kernel, stride, padding, dilation
    "3x3": (3, 4, 6, 1, (7, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
    "no padding": (2, 4, 6, 1, (7, 9), (3, 2), (1, 1), (0, 0), (1, 1)),
    "1x1": (2, 4, 3, 1, (5, 6), (1, 1), (1, 1), (0, 0), (1, 1)),
    "1x1 with padding": (2, 4, 3, 1, (5, 6), (1, 1), (1, 1), (2, 1), (1, 1)),
    "1x1 with a stride": (2, 4, 3, 1, (5, 6), (1, 1), (2, 3), (0, 0), (1, 1)),
    "stem": (3, 3, 5, 1, (29, 33), (11, 11), (4, 4), (2, 2), (1, 1)),
    "uneven": (3, 4, 6, 2, (12, 7), (3, 5), (2, 3), (1, 4), (3, 1)),
    "dilation": (2, 4, 6, 2, (13, 14), (3, 3), (1, 1), (3, 2), (2, 3)),
    "dilation and stride": (2, 4, 6, 1, (13, 14), (3, 3), (2, 2), (2, 3), (3, 2)),
    "depthwise": (2, 8, 8, 8, (9, 9), (3, 3), (2, 2), (1, 1), (1, 1)),
    "one pixel": (2, 4, 3, 1, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    "many channels": (10, 40, 3, 1, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
}


@pytest.fixture(params=CALLS.values(), ids=CALLS)
def call(request):
    n, channels, filters, groups, size, kernel, *rest = request.param
    torch.manual_seed(0)
    x = torch.randn(n, channels, *size, dtype=torch.float64)
    weight, bias = torch.randn(filters, channels // groups, *kernel).double(), torch.randn(filters).double()
    return ConvCall("layer", x, weight, bias, *rest, groups)


@pytest.fixture(params=[(4,), (4, 3)], ids=["vectors", "tokens"])
def linear(request):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(size, dtype=torch.float64) for size in ((*request.param, 12), (7, 12), (7,)))
    return LinearCall("layer", x, weight, bias, 4)


def read_from(lattice):
    places = torch.tensor(lattice.offsets)[:, None] + torch.arange(lattice.gradient.shape[2])
    return lattice.reads[:, :, places]


@pytest.mark.parametrize("images", [slice(None), slice(1, 2)])
def test_a_lattice_holds_the_columns_and_the_gradient_at_the_positions_of_the_output(call, images):
    marks = 1 + torch.arange(call.compute().numel(), dtype=torch.float64).reshape(call.compute().shape)
    lattice = call.lattice(marks, images)
    count, size = len(marks[images]), lattice.size
    assert lattice.gradient.shape[2] % Lattice.MULTIPLE == 0
    assert max(lattice.offsets) + lattice.gradient.shape[2] <= lattice.reads.shape[2]
    assert not lattice.gradient[..., count * size :].any()
    for image in range(count):
        own = slice(image * size, (image + 1) * size)
        used = lattice.gradient[0, 0, own].nonzero()[:, 0]
        assert torch.equal(lattice.gradient[..., own][..., used], call.by_position(marks[images])[image])
        assert int((lattice.gradient[..., own] != 0).sum()) == marks[0].numel()
        assert torch.equal(read_from(lattice)[..., own][..., used], call.columns(images)[image])


def test_a_lattice_of_whole_filters_reads_all_channels(call):
    lattice = call.lattice(torch.ones_like(call.compute()))
    assert torch.equal(read_from(lattice.joined())[:, 0], read_from(lattice).flatten(1, 2))


def check_weight_gradients(call):
    gradient = torch.randn_like(call.compute())
    weight = call.weight.clone().requires_grad_()
    expected = [
        torch.autograd.grad((output * slope).sum(), weight, retain_graph=True)[0].reshape(call.kernels.shape)
        for output, slope in zip(call.compute(weight, call.bias), gradient, strict=True)
    ]
    for got, wanted in zip(call.weight_gradients(gradient), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    for got, wanted in zip(call.kernel_gradients(gradient), expected, strict=True):
        torch.testing.assert_close(got, (wanted * call.kernels).sum(3))
    torch.testing.assert_close(call.absolute_weight_gradients(gradient), sum(one.abs() for one in expected))
    torch.testing.assert_close(call.weight_gradient(gradient), sum(expected))
    torch.testing.assert_close(call.weight_gradient(gradient, slice(1, 2)), expected[1])


def test_weight_gradients_are_those_of_autograd_image_by_image(call):
    check_weight_gradients(call)


def test_weight_gradients_of_a_linear_layer_are_those_of_autograd(linear):
    check_weight_gradients(linear)


def test_windows_hold_all_positions_with_a_gradient(call):
    shape = call.compute().shape
    for rows, columns in (((0, 1), (0, 1)), ((shape[2] // 2, shape[2]), (shape[3] // 2, shape[3])), ((0, 1), (0, 9))):
        gradient = torch.zeros(shape, dtype=torch.float64)
        gradient[:, :, slice(*rows), slice(*columns)] = 1 + torch.rand(1)
        gradient[1:] = gradient[1:].flip(2)  # images differ
        narrow, slopes = call.narrowed(gradient)
        height, width = (
            min(stop, size) - start for (start, stop), size in zip((rows, columns), shape[2:], strict=True)
        )
        assert tuple(slopes.shape[2:]) == (height, width)
        torch.testing.assert_close(narrow.weight_gradient(slopes), call.weight_gradient(gradient))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_sketch_is_like_the_output(call, layout, autocast):
    call = ConvCall(**{**vars(call), "x": call.x.float().contiguous(memory_format=layout)})
    call = ConvCall(**{**vars(call), "weight": call.weight.float(), "bias": call.bias.float()})
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        sketch, output = call.sketch(), call.compute()
    assert (sketch.shape, sketch.dtype, sketch.stride()) == (output.shape, output.dtype, output.stride())


@pytest.mark.parametrize("autocast", [False, True])
def test_a_sketch_of_a_linear_layer_is_like_the_output(autocast):
    call = LinearCall("layer", torch.randn(2, 5, 12), torch.randn(7, 12), torch.randn(7), 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        sketch, output = call.sketch(), call.compute()
    assert (sketch.shape, sketch.dtype, sketch.stride()) == (output.shape, output.dtype, output.stride())
