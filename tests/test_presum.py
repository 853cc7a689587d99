"""The sums of |z g|: the compiled loop, the matrix products and a slow explicit loop agree."""

import importlib.util
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from convcircuits import loops
from convcircuits.circuits import presum
from convcircuits.network.calls import Lattice

pytestmark = pytest.mark.slow

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
SHAPES = {  # groups, filters, channels, kernel elements, positions
    "1x1": (1, 5, 7, 1, 12),
    "3x3": (1, 6, 4, 9, 20),
    "5x5": (2, 3, 2, 25, 6),
    "many positions": (1, 9, 2, 4, 200),
    "7x7": (1, 4, 3, 49, 8),
    "groups": (3, 4, 2, 9, 10),
    "depthwise": (8, 1, 1, 9, 16),
    "one position": (1, 4, 6, 1, 1),
    "one kernel": (1, 1, 1, 9, 5),
}


def laid_out(columns, gradient):
    """A lattice in which nothing is shared, with zeros up to a multiple of positions."""
    room = -gradient.shape[2] % Lattice.MULTIPLE
    columns, gradient = F.pad(columns, (0, room)), F.pad(gradient, (0, room))
    positions = gradient.shape[2]
    offsets = [k * positions for k in range(columns.shape[2])]
    return Lattice(columns.flatten(2), offsets, gradient, positions)


def by_products(images, kernels, memory=2**20):
    return presum.absolute_sums(iter(images), [kernels] * max(1, *map(len, images), 1), memory)


def by_loop(images, kernels, memory=2**20):
    sums = kernels.new_zeros(kernels.shape[:3])
    for ((columns, gradient),) in images:
        sums += presum.absolute_sums_of_lattice(laid_out(columns, gradient), kernels, memory)
    return sums


@pytest.fixture(params=[by_loop, by_products])
def path(request):
    return request.param


def drawn(shape, *, dtype=torch.float64, images=3, calls=1, gradient=1.0, seed=0):
    """Kernels, and for every image its calls; `gradient` is the share of filters and positions with one."""
    g, o, i, k, p = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=dtype)

    def slopes():
        kept = torch.rand(g, o, p, generator=generator) < gradient
        return normal(g, o, p) * kept

    return normal(g, o, i, k), [[(normal(g, i, k, p), slopes()) for _ in range(calls)] for _ in range(images)]


def slow(images, kernels):
    """Five loops, in float64."""
    g, o, i, k = kernels.shape
    total = torch.zeros(g, o, i, dtype=torch.float64)
    for calls in images:
        for group in range(g):
            for out in range(o):
                for channel in range(i):
                    for p in range(calls[0][1].shape[2]):
                        whole = 0.0
                        for columns, gradient in calls:
                            z = sum(
                                float(kernels[group, out, channel, e]) * float(columns[group, channel, e, p])
                                for e in range(k)
                            )
                            whole += z * float(gradient[group, out, p])
                        total[group, out, channel] += abs(whole)
    return total


def check(path, images, kernels, memory=2**20):
    before = [kernels.clone(), *(t.clone() for calls in images for pair in calls for t in pair)]
    sums = path(images, kernels, memory)
    after = [kernels, *(t for calls in images for pair in calls for t in pair)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "the arguments were written to"
    assert sums.dtype == kernels.dtype
    assert sums.shape == kernels.shape[:3]
    expected, tolerance = slow(images, kernels), TOLERANCE[kernels.dtype]
    torch.testing.assert_close(sums.double(), expected, rtol=tolerance, atol=tolerance * (1 + float(expected.max())))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_both_paths_are_the_slow_loop(shape, dtype, path):
    kernels, images = drawn(shape, dtype=dtype)
    check(path, images, kernels)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("shape", ["1x1", "groups", "7x7"])
def test_zero_gradients_add_nothing_and_hide_nothing(shape, share, path):
    kernels, images = drawn(SHAPES[shape], gradient=share, images=4)
    check(path, images, kernels)


def test_filters_without_a_gradient_sum_to_exactly_zero(path):
    kernels, images = drawn(SHAPES["3x3"])
    for ((_, gradient),) in images:
        gradient[:, 2] = 0
        gradient[:, :, 3:] = 0  # and most positions too, so that they are left out
    check(path, images, kernels)
    assert (path(images, kernels)[:, 2] == 0).all()


@pytest.mark.parametrize("memory", [1, 2**20])
def test_calls_of_kernels_of_different_size_are_added_too(memory):
    """A kernel of fewer elements is one of more, of which the rest is zero."""
    small, large = drawn((2, 3, 4, 1, 6), seed=1), drawn((2, 3, 4, 9, 6), seed=2)
    calls = [[*a, *b] for a, b in zip(small[1], large[1], strict=True)]
    sums = presum.absolute_sums(calls, [small[0], large[0]], memory)
    padded = torch.cat([small[0], torch.zeros(2, 3, 4, 8, dtype=torch.float64)], 3)
    wide = [[(columns.expand(-1, -1, 9, -1), gradient) for columns, gradient in a] for a in small[1]]
    pairs = [[*a, *b] for a, b in zip(wide, large[1], strict=True)]
    expected = torch.zeros(2, 3, 4, dtype=torch.float64)
    for (x1, g1), (x2, g2) in pairs:
        z1, z2 = torch.einsum("goik,gikp->goip", padded, x1), torch.einsum("goik,gikp->goip", large[0], x2)
        expected += (z1 * g1[:, :, None] + z2 * g2[:, :, None]).abs().sum(3)
    torch.testing.assert_close(sums, expected)


@pytest.mark.parametrize("share", [0.05, 1.0])
@pytest.mark.parametrize("shape", ["1x1", "groups", "7x7"])
def test_calls_are_added_before_the_absolute_value(shape, share):
    kernels, images = drawn(SHAPES[shape], calls=3, gradient=share)
    check(by_products, images, kernels)
    opposite = [[(columns, gradient), (columns, -gradient)] for ((columns, gradient), *_) in images]
    assert presum.absolute_sums(opposite, [kernels] * 2, 2**20).abs().max() < 1e-12


@pytest.mark.parametrize(("calls", "path"), [(1, by_loop), (1, by_products), (2, by_products)])
@pytest.mark.parametrize("shape", ["3x3", "groups", "7x7", "many positions"])
def test_memory_changes_only_the_chunks(shape, calls, path):
    kernels, images = drawn(SHAPES[shape], calls=calls)
    for memory in (1, 1000, 2**40):
        check(path, images, kernels, memory)


def test_no_images_sum_to_zero(path):
    kernels, _ = drawn(SHAPES["3x3"])
    check(path, [], kernels)


def test_more_threads_than_rows_change_nothing(path):
    threads = torch.get_num_threads()
    try:
        for some in (1, 2, 5):
            torch.set_num_threads(some)
            for shape in ("one kernel", "groups"):
                kernels, images = drawn(SHAPES[shape])
                check(path, images, kernels)
    finally:
        torch.set_num_threads(threads)


def test_tensors_need_not_be_contiguous(path):
    kernels, images = drawn(SHAPES["groups"])
    images = [
        [(c.transpose(2, 3).contiguous().transpose(2, 3), g.transpose(0, 2).contiguous().transpose(0, 2))]
        for ((c, g),) in images
    ]
    check(path, images, kernels.transpose(0, 3).contiguous().transpose(0, 3))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(bad, path):
    kernels, images = drawn(SHAPES["3x3"], images=1)
    images[0][0][0][0, 1, 4, 7] = bad
    finite = path(images, kernels).isfinite()
    assert not finite[:, :, 1].any()
    assert finite[:, :, [0, 2, 3]].all()


def test_the_loop_is_for_float_and_double_where_numba_is_installed(monkeypatch):
    assert [loops.has_loops(torch.zeros(1, dtype=dtype)) for dtype in (torch.float32, torch.float64)] == [True, True]
    assert not loops.has_loops(torch.zeros(1, dtype=torch.bfloat16))
    assert not loops.has_loops(torch.zeros(1, device="meta"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not loops.has_loops(torch.zeros(1))


@pytest.mark.parametrize("wrong", ["positions", "offset", "size", "filters"])
def test_the_loop_never_reads_beyond_a_lattice(wrong):
    kernels, images = drawn(SHAPES["3x3"], images=1)
    lattice = laid_out(*images[0][0])
    changes = {
        "positions": {"gradient": lattice.gradient[..., 1:]},
        "offset": {"offsets": [*lattice.offsets[:-1], lattice.offsets[-1] + 1]},
        "size": {"offsets": lattice.offsets[:-1]},
        "filters": {"gradient": lattice.gradient[:, 1:]},
    }
    with pytest.raises(AssertionError):
        presum.absolute_sums_of_lattice(replace(lattice, **changes[wrong]), kernels, 2**20)
