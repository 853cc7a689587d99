"""Small modules that are written by hand, as extraction writes them."""

import torch
from torch import nn

from convcircuits.compiler.instructions import repeat_for
from convcircuits.compiler.interpreter import one_of
from convcircuits.compiler.writing import Writer

aten = torch.ops.aten
CPU = torch.device("cpu")


def batch_norm(channels):
    layer = nn.BatchNorm2d(channels)
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 2)
    return layer.eval()


def residual(w):
    """Convolutions, a BatchNorm, a sum with some channels missing, and an average."""
    x = w.module("stem", nn.Conv2d(3, 5, 3, padding=1), w.image, filters=torch.tensor([0, 2, 3, 4, 7]))
    w.width[x] = 5
    x = w.call(aten.relu.default, x)
    w.width[x] = 5
    y = w.module("block1.conv", nn.Conv2d(3, 4, 3, padding=1, bias=False), w.choose(x, 0, 3, torch.tensor([0, 2, 4])))
    y = w.module("block1.bn", batch_norm(4), y)
    w.width[y] = 4
    y = w.call(aten.add.Tensor, y, w.choose(x, 0, 3, torch.tensor([1, -1, 2, 3])))
    y = w.call(aten.hardtanh.default, y, 0.0, 6.0)
    y = w.call(aten.mul.Tensor, y, w.constant("live_1", torch.rand(1, 4, 1, 1)))
    return w.call(aten.mean.dim, w.module("head.weird name", nn.Conv2d(4, 2, 1), y), [-1], True)


def gated(w):
    """A squeeze and excitation with a constant gate, a grouped convolution, a shuffle and a concatenation."""
    x = w.call(aten.silu.default, w.module("stem", nn.Conv2d(3, 4, 3, stride=2), w.image))
    gate = w.module("fc", nn.Linear(4, 4), w.call(aten.mean.dim, x, [2, 3]))
    gate = w.call(aten.reshape.default, w.call(aten.sigmoid.default, gate), [-1, 4, 1, 1])
    y = w.module("dw", nn.Conv2d(4, 4, 3, padding=1, groups=4), w.call(aten.mul.Tensor, x, gate))
    y = w.call(aten.channel_shuffle.default, y, 2)
    y = w.call(aten.upsample_bilinear2d.vec, y, None, False, [2.0, 1.5])
    parts = w.call(aten.split.Tensor, y, 1, 1)
    fixed = w.call(repeat_for, w.constant("bias", torch.rand(1, 1, 14, 10)), w.image)
    return w.call(aten.cat.default, [w.call(one_of, parts, 3), w.call(one_of, parts, 1), fixed], 1)


def tokens(w):
    """Channels last: a LayerNorm, a Linear, GELU, and a map made of tokens again."""
    x = w.module("patch", nn.Conv2d(3, 6, 4, stride=4), w.image)
    x = w.call(aten.permute.default, x, [0, 2, 3, 1])
    x = w.call(aten.layer_norm.default, x, [6], w.constant("norm", torch.rand(6)), None, 1e-6)
    x = w.call(aten.gelu.default, w.module("fc1", nn.Linear(6, 8), x), approximate="tanh")
    x = w.module("fc2", nn.Linear(8, 3), x)
    return w.call(aten.clone.default, w.call(aten.permute.default, x, [0, 3, 1, 2]))


def flat(w):
    """A Linear on a map laid flat, in doubles in between."""
    x = w.call(aten.relu.default, w.module("features.0", nn.Conv2d(3, 4, 3, padding=1), w.image))
    x = w.call(aten.adaptive_avg_pool2d.default, x, [2, 2])
    x = w.call(aten.to.dtype, x, torch.float64)
    x = w.call(aten.to.dtype, w.call(aten.clamp.default, x, None, float("inf")), torch.float32)
    x = w.call(aten.reshape.default, x, [-1, 16])
    return w.module("classifier", nn.Linear(16, 3), x)


def spectral(w):
    """A filter of frequencies, and operations of several results."""
    x = w.module("stem", nn.Conv2d(3, 2, 1), w.image)
    x = w.call(aten.fft_rfft2.default, x, norm="ortho")
    x = w.call(aten.fft_irfft2.default, w.call(aten.mul.Tensor, x, 0.5), [16, 16], norm="ortho")
    values = w.call(aten.topk.default, w.call(aten.reshape.default, x, [-1, 2, 256]), 9)
    return w.call(aten.unflatten.int, w.call(one_of, values, 0), 2, [3, 3])


HANDMADE = {f.__name__: f for f in (residual, gated, tokens, flat, spectral)}
SHAPE = (3, 16, 16)


def handmade(name, *, fold=False, always_tuple=False):
    """A module by name, in eval mode, of images (3, 16, 16)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        w = Writer(SHAPE, CPU)
        output = HANDMADE[name](w)
    any_size = name in ("residual", "tokens")
    return w.finish([output], fold=fold, any_size=any_size, always_tuple=always_tuple)


def images(count=3, dtype=torch.float32):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
