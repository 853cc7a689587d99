"""Oracles: the method's formulas, slow and obviously right, sharing no code with the library.

Everything is computed in the model's own dtype (the nets of `nets.py` are float64), one image at a time, on
deep copies. Two independent machines are used:

* `slow_copy`: a copy in which every Conv2d and Linear is a `Slow` module that spells out its padding, its
  true weight and its mask, and adds a dummy zero (`eps`) to its output: gradients need no edge tricks.
* `trace`: a `torch.fx` graph with a set of channels at every node: reachability, the circuit's function.

Common arguments: `blocks` {Linear layer: C} for a Linear that reads a flattened (C, H, W) map; `masks`
{layer: (out, in)}, or of the weight's own shape, where a layer left out is kept whole; `granularity` what one
unit is, "filter", "kernel" or "weight" (tables of (out,), (out, in) or the weight's shape); `call` (from 0) if the
feature's layer runs several times; `unit` an int, a direction (a 1-D tensor over the layer's channels), or several
units (a tuple of ints), whose maps get an axis of units after that of images.
"""

import contextlib
import copy
import itertools
import math
import operator
import warnings
import weakref
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from nets import SamePadConv2d, StandardisedConv2d

# ---------------------------------------------------------------------- the weighted layers


def plain_weight(module):
    return module.weight.detach().clone()


def standardised_weight(module):
    weight = module.weight.detach().clone()
    for o in range(weight.shape[0]):
        weight[o] = (weight[o] - weight[o].mean()) / (weight[o].var(correction=0) + 1e-5).sqrt()
    return weight


def torch_padding(module, x):
    if module.padding == "valid":
        return x
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        (top, bottom), (left, right) = [(t // 2, t - t // 2) for t in totals]
    else:
        top = bottom = module.padding[0]
        left = right = module.padding[1]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, (left, right, top, bottom), mode=mode)


def tensorflow_same_padding(module, x):
    pads = []
    for axis in (0, 1):
        size, k = x.shape[2 + axis], module.kernel_size[axis]
        s, d = module.stride[axis], module.dilation[axis]
        total = max((math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size, 0)
        pads.append((total // 2, total - total // 2))
    return F.pad(x, (*pads[1], *pads[0]))


# The exact classes that the oracles understand: class -> (the weight truly used, how the input is padded).
CLASSES = {
    nn.Linear: (plain_weight, None),
    nn.Conv2d: (plain_weight, torch_padding),
    StandardisedConv2d: (standardised_weight, torch_padding),
    SamePadConv2d: (plain_weight, tensorflow_same_padding),
}


def is_kernel_layer(module):
    return isinstance(module, nn.Conv2d | nn.Linear)


class Slow(nn.Module):
    """A Conv2d or Linear spelled out; remembers what every call read (padded) and its zero `eps`."""

    def __init__(self, module, name, mask, channels, order):
        super().__init__()
        weight, self.pad = CLASSES[type(module)]
        self.module, self.name, self.order = [module], name, order
        self.conv = isinstance(module, nn.Conv2d)
        self.weight = weight(module)
        self.bias = None if module.bias is None else module.bias.detach().clone()
        self.channels = channels or self.weight.shape[1]  # input channels of a kernel's row
        if self.weight.shape[1] % self.channels:
            raise ValueError(f"{name}: {self.weight.shape[1]} inputs are no {self.channels} blocks")
        mask = torch.ones(self.weight.shape[0], self.channels) if mask is None else mask
        self.keep = torch.ones_like(self.weight)  # of the kept kernels, the kept weights
        if mask.shape == self.weight.shape != (self.weight.shape[0], self.channels):
            self.keep = mask.to(self.weight).clone()
            mask = self.elements(mask.bool()).any(-1)
        if mask.shape != (self.weight.shape[0], self.channels):
            raise ValueError(f"{name}: mask {tuple(mask.shape)}")
        self.mask = mask.detach().to(self.weight).clone().requires_grad_()
        self.unit_masks = {
            "filter": torch.ones_like(self.weight[:, 0].reshape(len(self.weight), -1)[:, 0]).requires_grad_(),
            "kernel": self.mask,
            "weight": torch.ones_like(self.weight).requires_grad_(),
        }
        self.delta = torch.zeros_like(self.weight).requires_grad_()  # its gradient is that of w * m
        self.inputs, self.eps = [], []

    def spread(self, kernels):
        """(out, in) -> the weight's shape."""
        if self.conv:
            return kernels[:, :, None, None].expand_as(self.weight)
        return kernels.repeat_interleave(self.weight.shape[1] // self.channels, dim=1)

    def elements(self, weight_like, granularity="kernel"):
        """The weight's shape -> (*shape of the units, elements of one)."""
        if granularity == "filter":
            return weight_like.reshape(weight_like.shape[0], -1)
        if granularity == "weight":
            return weight_like[..., None]
        return weight_like.reshape(weight_like.shape[0], self.channels, -1)

    def apply_weight(self, x, weight, bias, groups):
        if not self.conv:
            return F.linear(x, weight, bias)
        module = self.module[0]
        return F.conv2d(x, weight, bias, module.stride, 0, module.dilation, groups)

    def forward(self, x):
        x = x.clone()
        if self.conv:
            x = self.pad(self.module[0], x)
        elif x.ndim != 2:
            raise ValueError(f"{self.name}: the oracles know Linear on (N, features) only")
        used = self.weight * self.keep * self.spread(self.mask) * self.unit_masks["weight"]
        used = used * self.unit_masks["filter"].reshape(-1, *[1] * (self.weight.ndim - 1)) + self.delta
        out = self.apply_weight(x, used, self.bias, self.module[0].groups if self.conv else 1)
        eps = torch.zeros_like(out).requires_grad_()
        if not self.inputs:
            self.order.append(self)
        self.inputs.append(x.detach())
        self.eps.append(eps)
        return out + eps


def slow_copy(model, masks=None, blocks=None):
    """A deep copy with `Slow` layers -> (copy, list that fills with the layers in execution order)."""
    clone = copy.deepcopy(model).requires_grad_(False)
    order = []
    slow = {
        module: Slow(module, name, (masks or {}).get(name), (blocks or {}).get(name), order)
        for name, module in clone.named_modules()
        if is_kernel_layer(module)
    }
    unknown = (set(masks or {}) | set(blocks or {})) - {module.name for module in slow.values()}
    if unknown:
        raise ValueError(f"no Conv2d or Linear named {sorted(unknown)}")
    for parent in list(clone.modules()):
        for key, child in list(parent._modules.items()):
            if child in slow:
                parent._modules[key] = slow[child]
    return clone, order


# ---------------------------------------------------------------------- maps of a feature


class _Reached(Exception):  # noqa: N818
    """Ends a forward at the feature."""


def _number_of_calls(model, layer, image):
    seen = []
    clone = copy.deepcopy(model)
    clone.get_submodule(layer).register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        clone(image)
    return len(seen)


def _layer_output(clone, layer, image, call):
    """The layer's output (its `call`-th), as it was before anything in-place happened to it."""
    found, seen = [], []

    def hook(module, args, out):
        seen.append(1)
        if len(seen) == (call or 0) + 1:
            found.append(out.clone())
            raise _Reached

    handle = clone.get_submodule(layer).register_forward_hook(hook)
    with contextlib.suppress(_Reached):
        clone(image)
    handle.remove()
    if not found:
        raise ValueError(f"{layer} does not run (call {call})")
    return found[0]


def _unit_map(out, unit):
    """(1, C, ...) -> the feature's map (H, W) or (); (U, H, W) or (U,) of several units."""
    if isinstance(unit, int):
        return out[0, unit]
    if isinstance(unit, tuple):
        return torch.stack([out[0, one] for one in unit])
    return sum(float(unit[c]) * out[0, c] for c in range(out.shape[1]))


def _check_calls(model, layer, image, call):
    if call is None and _number_of_calls(model, layer, image) > 1:
        raise ValueError(f"{layer} runs several times: give call=")


def full_map(model, layer, unit, images, *, call=None):
    """The feature's maps in the untouched network: (N, H, W), or (N,) for a Linear."""
    _check_calls(model, layer, images[:1], call)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        return torch.stack([_unit_map(_layer_output(clone, layer, image[None], call), unit) for image in images])


def masked_map(model, masks, layer, unit, images, *, blocks=None, call=None):
    """The same in the masked network, published semantics: every bias stays."""
    _check_calls(model, layer, images[:1], call)
    maps = []
    for image in images:
        clone, _ = slow_copy(model, masks, blocks)
        maps.append(_unit_map(_layer_output(clone, layer, image[None], call), unit).detach())
    return torch.stack(maps)


def _place(full, position):
    """Where the collapse looks: None (everywhere) or an index; "max" is the full network's argmax.

    Several units have a list of places.
    """
    if position == "all" or full.ndim < 2:
        return None
    if full.ndim == 3:
        return [_place(one, position) for one in full]
    if position == "max":
        best = max((float(full[h, w]), -h, -w) for h in range(full.shape[0]) for w in range(full.shape[1]))
        return -best[1], -best[2]
    if position == "center":
        return full.shape[0] // 2, full.shape[1] // 2
    return position


def _counted(feature_map, place):
    if isinstance(place, list):
        return torch.stack([one[where] for one, where in zip(feature_map, place, strict=True)])
    return feature_map if place is None else feature_map[place]


def _collapse(feature_map, place, collapse):
    values = _counted(feature_map, place)
    if collapse == "abs":
        return values.abs().sum()
    if collapse == "square":
        return (values * values).sum()
    if collapse == "sum":
        return values.sum()
    raise ValueError(collapse)


@dataclass
class _Run:
    """One image's forward: the Slow layers in execution order, and the feature's map with its graph."""

    layers: list
    map: Tensor
    place: tuple | list | None

    def gradients(self, scalar, tensors):
        if not scalar.requires_grad:
            return [torch.zeros_like(t) for t in tensors]
        grads = torch.autograd.grad(scalar, tensors, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for g, t in zip(grads, tensors, strict=True)]


def _runs(model, layer, unit, images, masks, blocks, position, call):
    _check_calls(model, layer, images[:1], call)
    for image in images:
        place = None
        if position == "max":
            place = _place(full_map(model, layer, unit, image[None], call=call)[0], position)
        clone, order = slow_copy(model, masks, blocks)
        feature_map = _unit_map(_layer_output(clone, layer, image[None], call), unit)
        if position != "max":
            place = _place(feature_map, position)
        yield _Run(order, feature_map, place)


def _mean_over_images(per_image):
    return {name: torch.stack([one[name] for one in per_image]).mean(0) for name in per_image[0]}


# ---------------------------------------------------------------------- saliencies


def _pre_sum_maps(slow, padded, granularity="kernel"):
    """z (*units, h, w), or (*units) for a Linear: what each unit alone adds to its filter's output, unmasked."""
    if granularity == "filter":
        return _pre_sum_maps(slow, padded).sum(1)
    if granularity == "weight":
        return _weight_maps(slow, padded)
    per_out = slow.weight.shape[0] // (slow.module[0].groups if slow.conv else 1)
    rows = []
    for o in range(slow.weight.shape[0]):
        row = []
        for i in range(slow.channels):
            if slow.conv:
                channel = (o // per_out) * slow.channels + i
                x, w = padded[:, channel : channel + 1], slow.weight[o : o + 1, i : i + 1]
                row.append(slow.apply_weight(x, w, None, 1)[0, 0])
            else:
                size = slow.weight.shape[1] // slow.channels
                block = slice(i * size, (i + 1) * size)
                row.append((slow.weight[o, block] * padded[0, block]).sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def _weight_maps(slow, padded):
    """z of every single weight: all others of its filter are zero, and no bias."""
    if not slow.conv:
        return slow.weight * padded[0]
    flat = slow.weight.reshape(len(slow.weight), -1)
    maps = []
    for e in range(flat.shape[1]):
        alone = torch.zeros_like(flat)
        alone[:, e] = flat[:, e]
        maps.append(slow.apply_weight(padded, alone.reshape(slow.weight.shape), None, slow.module[0].groups)[0])
    z = torch.stack(maps, 1)
    return z.reshape(*slow.weight.shape, *z.shape[2:])


def _beside(values, units):
    """A filter's (out, h, w) so that it multiplies (*units, h, w)."""
    return values.reshape(len(values), *[1] * (units.ndim - values.ndim), *values.shape[1:])


def _products_of_run(run, scalar, granularity="kernel"):
    """{layer: [(z, g) of each call]}."""
    eps = [e for slow in run.layers for e in slow.eps]
    grads = iter(run.gradients(scalar, eps))
    return {
        slow.name: [(_pre_sum_maps(slow, x, granularity), next(grads)[0]) for x in slow.inputs] for slow in run.layers
    }


def kernel_products(model, layer, unit, image, *, collapse="abs", position="all", masks=None, blocks=None, call=None):
    """One image (C, H, W) -> {layer: [(z (out, in, h, w), g (out, h, w)) per call]}; Linear without h, w."""
    (run,) = _runs(model, layer, unit, image[None], masks, blocks, position, call)
    return _products_of_run(run, _collapse(run.map, run.place, collapse))


def _sum_of_calls(calls):
    """z.g summed over the calls position by position -> (*units, positions)."""
    products = [z * _beside(g, z) for z, g in calls]
    if len({p.shape for p in products}) > 1:
        raise ValueError("calls on maps of different sizes: not defined")
    total = sum(products)
    spatial = calls[0][1].ndim - 1
    return total.reshape(*total.shape[: total.ndim - spatial], -1)


def _normalise(values, normalizer):
    if normalizer == "published":
        return values.mean(-1)
    if normalizer == "sum":
        return values.sum(-1)
    raise ValueError(normalizer)


def actgrad(
    model,
    layer,
    unit,
    images,
    *,
    granularity="kernel",
    collapse="abs",
    position="all",
    normalizer="published",
    signed=False,
    masks=None,
    blocks=None,
    call=None,
):
    """mean_n mean_hw | z g |; a kernel outside `masks` keeps its weight in z."""
    scores = []
    for run in _runs(model, layer, unit, images, masks, blocks, position, call):
        products = _products_of_run(run, _collapse(run.map, run.place, collapse), granularity)
        one = {}
        for name, calls in products.items():
            values = _sum_of_calls(calls)
            one[name] = _normalise(values if signed else values.abs(), normalizer)
        scores.append(one)
    return _mean_over_images(scores)


def snip(
    model,
    layer,
    unit,
    images,
    *,
    granularity="kernel",
    collapse="abs",
    position="all",
    normalizer="published",
    signed=False,
    masks=None,
    blocks=None,
    call=None,
):
    """mean_n mean_khkw | w dL_n/d(w m) |, w the weight that the convolution truly uses."""
    scores = []
    for run in _runs(model, layer, unit, images, masks, blocks, position, call):
        scalar = _collapse(run.map, run.place, collapse)
        grads = run.gradients(scalar, [slow.delta for slow in run.layers])
        one = {}
        for slow, grad in zip(run.layers, grads, strict=True):
            values = slow.elements(slow.weight * grad, granularity)
            one[slow.name] = _normalise(values if signed else values.abs(), normalizer)
        scores.append(one)
    return _mean_over_images(scores)


def mask_gradient(
    model,
    layer,
    unit,
    images,
    *,
    granularity="kernel",
    collapse="abs",
    position="all",
    masks=None,
    blocks=None,
    call=None,
):
    """mean_n dL_n/dm at m = masks (all ones): what signed SNIP and signed ActGrad must equal."""
    scores = []
    for run in _runs(model, layer, unit, images, masks, blocks, position, call):
        scalar = _collapse(run.map, run.place, collapse)
        grads = run.gradients(scalar, [slow.unit_masks[granularity] for slow in run.layers])
        scores.append({slow.name: grad for slow, grad in zip(run.layers, grads, strict=True)})
    return _mean_over_images(scores)


def mean_products(model, layer, unit, images, *, granularity="kernel", masks=None, blocks=None, call=None):
    """zbar {layer: (*units)}: the mean of z over images, output positions and calls up to the feature."""
    values = {}
    for run in _runs(model, layer, unit, images, masks, blocks, "all", call):
        for slow in run.layers:
            for x in slow.inputs:
                z = _pre_sum_maps(slow, x, granularity)
                values.setdefault(slow.name, []).append(z.reshape(*slow.unit_masks[granularity].shape, -1))
    return {name: torch.cat(z, dim=-1).mean(-1) for name, z in values.items()}


def gauss_newton(
    model,
    layer,
    unit,
    images,
    *,
    signs,
    granularity="kernel",
    centered=False,
    position="all",
    masks=None,
    blocks=None,
    call=None,
):
    """mean over draws and images of ( sum_p e_p df_p/dm )^2; centered: with z - zbar in place of z.

    `signs` holds one (H, W) tensor per draw, () for a Linear, the same for all images; with an axis of several units.
    """
    options = {"masks": masks, "blocks": blocks, "call": call}
    zbar = mean_products(model, layer, unit, images, granularity=granularity, **options) if centered else {}
    scores = []
    for sign in signs:
        for run in _runs(model, layer, unit, images, masks, blocks, position, call):
            projected = sign.to(run.map) * run.map
            scalar = _counted(projected, run.place).sum()
            one = {}
            if centered:
                for name, calls in _products_of_run(run, scalar, granularity).items():
                    flat = [(z.reshape(*zbar[name].shape, -1), g.reshape(g.shape[0], -1)) for z, g in calls]
                    varied = [(z - zbar[name][..., None], g) for z, g in flat]
                    change = sum((z * _beside(g, z)).sum(-1) for z, g in varied)
                    one[name] = change**2
            else:
                grads = run.gradients(scalar, [slow.unit_masks[granularity] for slow in run.layers])
                one = {slow.name: grad**2 for slow, grad in zip(run.layers, grads, strict=True)}
            scores.append(one)
    return _mean_over_images(scores)


def map_change(model, layer, unit, images, *, masks=None, blocks=None, call=None):
    """mean_n sum_p (df_p/dm)^2, one backward per position: what Gauss-Newton estimates."""
    height_width = full_map(model, layer, unit, images[:1], call=call).shape[1:]
    total = None
    for p in range(math.prod(height_width)):
        sign = torch.zeros(math.prod(height_width), dtype=images.dtype)
        sign[p] = 1.0
        one = gauss_newton(
            model,
            layer,
            unit,
            images,
            signs=[sign.reshape(height_width)],
            masks=masks,
            blocks=blocks,
            call=call,
        )
        total = one if total is None else {name: total[name] + one[name] for name in one}
    return total


# ---------------------------------------------------------------------- selection


def topk(scores, k):
    """The k best: by score, ties by layer (in the order of `scores`), then out, in, row and column; NaN never."""
    entries = []
    for position, (name, values) in enumerate(scores.items()):
        for place in itertools.product(*map(range, values.shape)):
            value = float(values[place])
            if not math.isnan(value):
                entries.append((-value, position, place, name))
    entries.sort()
    masks = {name: torch.zeros(values.shape, dtype=torch.bool) for name, values in scores.items()}
    for _, _, place, name in entries[:k]:
        masks[name][place] = True
    return masks


def relevant_elements(model, relevant, granularity, blocks=None):
    """Relevant kernels -> relevant units: a filter if any of its kernels is, a weight if its kernel is."""
    if granularity == "kernel":
        return relevant
    if granularity == "filter":
        return {name: kept.any(1) for name, kept in relevant.items()}
    clone, _ = slow_copy(model, blocks=blocks)
    spread = {m.name: m.spread for m in clone.modules() if isinstance(m, Slow)}
    return {name: spread[name](kept).clone() for name, kept in relevant.items()}


def unit_masks(units, relevant, granularity):
    """Kept units -> `masks`: a filter keeps all its relevant kernels."""
    if granularity == "filter":
        return {name: kept[:, None] & relevant[name] for name, kept in units.items()}
    return units


def nan_outside(scores, relevant):
    """The scores with NaN where a kernel is not relevant; layers without relevant kernels are left out."""
    return {name: torch.where(kept, scores[name], torch.nan) for name, kept in relevant.items() if kept.any()}


def count(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def force_schedule(n, k, steps):
    """k_t for t = 1 .. steps; the last is k itself."""
    inner = [math.ceil(math.exp((t / steps) * math.log(k) + (1 - t / steps) * math.log(n))) for t in range(1, steps)]
    return [*inner, k]


@dataclass
class Force:
    """What FORCE went through: masks[t] was chosen from scores[t], of the network masked by masks[t-1]."""

    masks: list
    scores: list
    counts: list
    final_scores: dict  # SNIP of the network masked by the final mask
    collapsed: list  # layers whose relevant kernels all score zero in `final_scores`

    @property
    def circuit(self):
        return self.masks[-1]


def force(
    model,
    layer,
    unit,
    images,
    k,
    steps=10,
    *,
    granularity="kernel",
    collapse="abs",
    position="all",
    normalizer="published",
    blocks=None,
    call=None,
):
    """FORCE: from the full set, each step keeps the top k_t by SNIP of the network masked so far."""
    relevant = reachable(model, layer, unit, images.shape[1:], blocks=blocks, call=call)
    relevant = {name: kept for name, kept in relevant.items() if kept.any()}
    units = relevant_elements(model, relevant, granularity, blocks)
    options = {
        "granularity": granularity,
        "collapse": collapse,
        "position": position,
        "normalizer": normalizer,
        "blocks": blocks,
        "call": call,
    }

    def score(kept):
        masks = unit_masks(kept, relevant, granularity)
        return nan_outside(snip(model, layer, unit, images, masks=masks, **options), units)

    counts = force_schedule(count(units), k, steps)
    masks, scores, current = [], [], units
    for kernels in counts:
        scores.append(score(current))
        current = topk(scores[-1], kernels)
        masks.append(current)
    final = score(current)
    collapsed = [name for name, values in final.items() if not torch.nan_to_num(values).any()]
    return Force(masks, scores, counts, final, collapsed)


# ---------------------------------------------------------------------- graphs of channels


class _Tracer(fx.Tracer):
    """Remembers which node every module, a leaf or a block of others, gave out, call by call."""

    def __init__(self):
        super().__init__()
        self.outputs = {}

    def call_module(self, module, forward, args, kwargs):
        out = super().call_module(module, forward, args, kwargs)
        self.outputs.setdefault(self.path_of_module(module), []).append(out.node)
        return out

    def is_leaf_module(self, module, qualified_name):
        return is_kernel_layer(module) or super().is_leaf_module(module, qualified_name)


SAME_MODULES = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.LeakyReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.Dropout,
    nn.Dropout2d,
    nn.BatchNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
SAME_FUNCTIONS = (
    F.relu,
    F.relu_,
    torch.relu,
    F.relu6,
    F.silu,
    F.gelu,
    F.hardswish,
    F.leaky_relu,
    torch.tanh,
    F.sigmoid,
    torch.sigmoid,
    F.hardsigmoid,
    F.dropout,
    F.batch_norm,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
)
SAME_METHODS = ("relu", "relu_", "sigmoid", "tanh", "mean", "contiguous", "clone")
SHAPE_METHODS = ("flatten", "view", "reshape")
GATES = (nn.Sigmoid, nn.Hardsigmoid, F.sigmoid, torch.sigmoid, F.hardsigmoid, "sigmoid")
ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
MULS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
IN_PLACE = (operator.iadd, operator.imul, "add_", "mul_")


def _what(node, graph_module):
    """What is called: a module's class, a function, or a method's name."""
    return type(graph_module.get_submodule(node.target)) if node.op == "call_module" else node.target


def _kind(node, graph_module):
    """image, kernel, same, flat, add, mul, cat or other (no tensor); raises on what it does not know."""
    if node.op == "placeholder":
        return "image"
    if "tensor_meta" not in node.meta or node.op == "output":
        return "other"
    what = _what(node, graph_module)
    if node.op == "call_module":
        if is_kernel_layer(graph_module.get_submodule(node.target)):
            return "kernel"
        if issubclass(what, SAME_MODULES):
            return "same"
        if issubclass(what, nn.Flatten):
            return "flat"
    elif what in ADDS or what in MULS:
        kind = "add" if what in ADDS else "mul"
        return kind if len(_tensors(node)) == 2 else "same"
    elif what is torch.cat:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if dim == 1:
            return "cat"
    elif what is torch.flatten or what in SHAPE_METHODS:
        return "flat"
    elif what in SAME_FUNCTIONS or what in SAME_METHODS:
        return "same"
    raise NotImplementedError(f"the oracles do not know {node.format_node()}")


def _shape(node):
    return node.meta["tensor_meta"].shape


def _tensors(node):
    """The tensor operands of a node."""
    args = node.args[0] if node.target is torch.cat else node.args
    return [a for a in args if isinstance(a, fx.Node) and "tensor_meta" in a.meta]


def _data_and_gate(node, graph_module):
    """A product's operands: the gate is a sigmoid's output, or a 1x1 map that multiplies a larger one."""
    a, b = _tensors(node)
    gates = [n for n in (a, b) if n.op != "placeholder" and _what(_through_views(n), graph_module) in GATES]
    if len(gates) != 1:
        gates = [n for n, other in ((a, b), (b, a)) if _shape(n)[2:].numel() < _shape(other)[2:].numel()]
    if len(gates) != 1 or a is b:
        raise NotImplementedError(f"which operand is the gate? {node.format_node()}")
    return (b, a) if gates[0] is a else (a, b)


def _through_views(node):
    while node.op == "call_method" and node.target in SHAPE_METHODS:
        node = node.args[0]
    return node


def trace(model, input_shape):
    """A deep copy as an fx GraphModule, every node with its shape."""
    clone = copy.deepcopy(model).requires_grad_(False)
    tracer = _Tracer()
    graph_module = fx.GraphModule(clone, tracer.trace(clone))
    graph_module.outputs = tracer.outputs
    dtype = next(model.parameters()).dtype
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel")
        ShapeProp(graph_module).propagate(torch.zeros(1, *input_shape, dtype=dtype))
    nodes = list(graph_module.graph.nodes)
    for at, node in enumerate(nodes):
        if node.op in ("call_function", "call_method") and node.target in IN_PLACE:
            later = [user for user in node.args[0].users if nodes.index(user) > at]
            if later:
                raise NotImplementedError(f"{node} changes a tensor that {later} still read")
    return graph_module


def _feature_node(graph_module, layer, call):
    nodes = graph_module.outputs.get(layer)
    if not nodes:
        raise ValueError(f"no call of {layer} in the graph")
    if len(nodes) > 1 and call is None:
        raise ValueError(f"{layer} runs several times: give call=")
    return nodes[call or 0]


def _input_channel(slow):
    """(out, in) -> the input channel that a kernel reads."""
    outs, ins = slow.weight.shape[0], slow.channels
    groups = slow.module[0].groups if slow.conv else 1
    return torch.tensor([[(o // (outs // groups)) * ins + i for i in range(ins)] for o in range(outs)])


def _reads_live(slow, channel, live):
    """(out, in): the kernel is kept and the channel it reads is live."""
    if not slow.conv:
        live = live.reshape(slow.channels, -1).any(1)
    return (slow.mask != 0) & live[channel]


def _live_forward(node, kind, live, graph_module):
    """The live channels of a node that is no kernel layer."""
    if kind == "image":
        return torch.ones(_shape(node)[1], dtype=torch.bool)
    if kind == "cat":
        return torch.cat([live[n] for n in _tensors(node)])
    if kind == "add":
        a, b = _tensors(node)
        return live[a] | live[b]
    if kind == "mul":
        data, _ = _data_and_gate(node, graph_module)
        return live[data].clone()
    source = node.args[0]
    if kind == "same":
        source = _tensors(node)[0]
    before, after = _shape(source)[1], _shape(node)[1]
    if after != before and (kind == "same" or after != _shape(source)[1:].numel()):
        raise NotImplementedError(f"neither channel by channel nor a flatten: {node.format_node()}")
    return live[source].repeat_interleave(after // before)


def _slow_layers(graph_module, feature, masks, blocks):
    """The weighted layers that run up to the feature, in execution order."""
    slow = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and node.target not in slow:
            name, module = node.target, graph_module.get_submodule(node.target)
            if is_kernel_layer(module):
                slow[name] = Slow(module, name, (masks or {}).get(name), (blocks or {}).get(name), [])
        if node is feature:
            break
    return slow


_searched = weakref.WeakKeyDictionary()  # model -> its graphs, in which a search looks at no weight


def reachable(model, layer, unit, input_shape, masks=None, *, blocks=None, call=None):
    """{layer: bool (out, in)}: kernels on a path image -> feature inside the masks, by graph search.

    Holds the layers that run up to the feature, in execution order. Without masks: the relevant kernels; with
    masks: the effective ones.
    """
    graphs = _searched.setdefault(model, {})
    if tuple(input_shape) not in graphs:
        graphs[tuple(input_shape)] = trace(model, input_shape)
    graph_module = graphs[tuple(input_shape)]
    feature = _feature_node(graph_module, layer, call)
    slow = _slow_layers(graph_module, feature, masks, blocks)
    nodes = list(graph_module.graph.nodes)
    nodes = nodes[: nodes.index(feature) + 1]
    kinds = {node: _kind(node, graph_module) for node in nodes}
    nodes = [node for node in nodes if kinds[node] != "other"]
    channel = {name: _input_channel(slow[name]) for name in slow}
    found = {name: torch.zeros(slow[name].mask.shape, dtype=torch.bool) for name in slow}

    live, reads = {}, {}
    for node in nodes:
        if kinds[node] == "kernel":
            reads[node] = _reads_live(slow[node.target], channel[node.target], live[node.args[0]])
            live[node] = reads[node].any(1)
        else:
            live[node] = _live_forward(node, kinds[node], live, graph_module)

    need = {node: torch.zeros(len(live[node]), dtype=torch.bool) for node in nodes}
    if isinstance(unit, Tensor):
        need[feature] = unit != 0
    else:
        need[feature][list(unit) if isinstance(unit, tuple) else unit] = True
    for node in reversed(nodes):
        wanted, kind = need[node], kinds[node]
        if kind == "image" or not wanted.any():
            continue
        if kind == "kernel":
            kernels = reads[node] & wanted[:, None]
            found[node.target] |= kernels
            sources = torch.zeros(int(channel[node.target].max()) + 1, dtype=torch.bool)
            sources[channel[node.target][kernels]] = True
            need[node.args[0]] |= sources.repeat_interleave(len(need[node.args[0]]) // len(sources))
        elif kind == "add":
            for source in _tensors(node):
                need[source] |= wanted
        elif kind == "cat":
            parts = wanted.split([len(live[source]) for source in _tensors(node)])
            for source, part in zip(_tensors(node), parts, strict=True):
                need[source] |= part
        elif kind == "mul":
            data, gate = _data_and_gate(node, graph_module)
            need[data] |= wanted
            need[gate] |= wanted & live[data]  # the gate of a dead channel multiplies zero
        else:
            (source,) = _tensors(node)[:1]
            need[source] |= wanted.reshape(len(need[source]), -1).any(1)
    return found


class _Circuit(fx.Interpreter):
    """Runs the circuit: every tensor carries the set of its live channels."""

    def __init__(self, graph_module, slow, feature, gain, offset, watch=None):
        super().__init__(graph_module, garbage_collect_values=False)
        self.slow, self.feature, self.gain, self.offset, self.watch = slow, feature, gain, offset, watch
        self.live, self.found = {}, None

    def run_node(self, node):
        kind = _kind(node, self.module)
        if kind == "other":
            return super().run_node(node)
        if kind == "kernel":
            value = self.run_kernels(node)
        elif kind == "add":
            value = self.run_add(node)
        elif kind == "mul":
            value = self.run_mul(node)
        else:
            value = super().run_node(node)
            self.live[node] = _live_forward(node, kind, self.live, self.module)
        if node is self.feature:
            self.found = _silence(value, self.live[node])
            raise _Reached
        return value

    def run_kernels(self, node):
        """No kernel reads a dead channel; a filter that reads nothing is dead (its value is its bias)."""
        slow, x = self.slow[node.target], self.env[node.args[0]]
        reads = _reads_live(slow, _input_channel(slow), self.live[node.args[0]])
        if slow.conv:
            x = slow.pad(slow.module[0], x)
        weight = slow.weight * slow.keep * slow.spread(reads.to(slow.weight))
        if node.target in self.gain:
            weight = weight * slow.spread(self.gain[node.target].to(weight))
        out = slow.apply_weight(x, weight, slow.bias, slow.module[0].groups if slow.conv else 1)
        alive = self.live[node] = reads.any(1)
        for o in range(out.shape[1]):
            if alive[o] and node.target in self.offset:
                out[:, o] += self.offset[node.target][o]
        if self.watch is not None:
            self.watch(slow, x, reads, out.clone())
        return out

    def run_add(self, node):
        """A dead channel adds nothing."""
        a, b = _tensors(node)
        total = _silence(self.env[a], self.live[a]) + _silence(self.env[b], self.live[b])
        self.live[node] = self.live[a] | self.live[b]
        return self.stored(node, total)

    def run_mul(self, node):
        """A dead channel stays nothing; a dead gate is the constant it is."""
        data, gate = _data_and_gate(node, self.module)
        self.live[node] = self.live[data].clone()
        return self.stored(node, _silence(self.env[data], self.live[data]) * self.env[gate])

    def stored(self, node, result):
        """In-place operators write into their first operand, which views may share."""
        if node.target in IN_PLACE:
            return self.env[node.args[0]].copy_(result)
        return result


def _silence(value, live):
    """The value with exact zeros in its dead channels."""
    out = value.clone()
    out[:, ~live] = 0.0
    return out


def circuit_map(model, masks, layer, unit, images, *, blocks=None, call=None, gain=None, offset=None):
    """The feature's maps by the circuit's own (effective) function; a dead feature is zero.

    `gain` {layer: (out, in)} multiplies kernels; `offset` {layer: (out,)} is added to live filters' raw outputs.
    """
    graph_module = trace(model, images.shape[1:])
    feature = _feature_node(graph_module, layer, call)
    slow = _slow_layers(graph_module, feature, masks, blocks)
    maps = []
    for image in images:
        run = _Circuit(graph_module, slow, feature, gain or {}, offset or {})
        with torch.no_grad(), contextlib.suppress(_Reached):
            run.run(image[None].clone())
        maps.append(_unit_map(run.found, unit))
    return torch.stack(maps).detach()


# ---------------------------------------------------------------------- refitting


def kernel_calls(
    model, masks, layer, unit, images, *, blocks=None, call=None, gain=None, offset=None, of=None, graph_module=None
):
    """{layer: its calls, image by image: (reads (out, in), z (out, in, P), output (out, P))} in the circuit.

    z is what each kernel adds at each position, without gain; 0 for a kernel that does not read a live channel, and
    outside the layers `of`, where those are named. The output is the raw one, with gain and offset. `graph_module` is
    the model's, where it is traced already.
    """
    graph_module = graph_module or trace(model, images.shape[1:])
    feature = _feature_node(graph_module, layer, call)
    slow = _slow_layers(graph_module, feature, masks, blocks)
    calls = {}

    def watch(slow, x, reads, out):
        z = torch.zeros(len(x), *reads.shape, out[0, 0].numel(), dtype=out.dtype)
        for o, i in reads.nonzero().tolist() if of is None or slow.name in of else ():
            one = torch.zeros_like(slow.mask.detach())
            one[o, i] = 1
            weight = slow.weight * slow.keep * slow.spread(one)
            alone = slow.apply_weight(x, weight, None, slow.module[0].groups if slow.conv else 1)
            z[:, o, i] = alone[:, o].reshape(len(x), -1)
        outputs = out.reshape(*out.shape[:2], -1)
        calls.setdefault(slow.name, []).append([(reads, *one) for one in zip(z, outputs, strict=True)])

    run = _Circuit(graph_module, slow, feature, gain or {}, offset or {}, watch)
    with torch.no_grad(), contextlib.suppress(_Reached):
        run.run(images.clone())
    return {name: [one for of_image in zip(*found, strict=True) for one in of_image] for name, found in calls.items()}


def design(full, circuit, o, at=slice(None)):
    """What filter o computes in the full model (N,), and what its kernels add in the circuit (N, in) and its rest (N,).

    Over positions of all calls, image by image, in which the filter is live.
    """
    targets, maps, rests = [], [], []
    for (_, _, target), (reads, z, output) in zip(full, circuit, strict=True):
        if reads[o].any():
            targets.append(target[o, at])
            maps.append(z[o].T[at])
            rests.append((output[o] - z[o].sum(0))[at])
    return torch.cat(targets).numpy(), torch.cat(maps).numpy(), torch.cat(rests).numpy()


def least_squares(y, z, ridge, spread, weights=None, positive=False):
    """(a, b) that minimise sum_p w_p (y - z a - b)_p^2 + ridge sum_i (G_ii + spread / 100) (a_i - 1)^2.

    a_i = 1 where z_i does not vary, and all are 0 or more if `positive`.
    """
    w = np.ones(len(y)) if weights is None else weights
    a = np.ones(z.shape[1])
    varies = np.ptp(z, axis=0) > 1e-12 * np.abs(z).max(axis=0, initial=0)
    y = y - z[:, ~varies].sum(1)
    z = z[:, varies]
    gram = (w[:, None] * (z - np.average(z, axis=0, weights=w)) ** 2).sum(0)
    pull, root = np.diag(np.sqrt(ridge * (gram + spread / 100))), np.sqrt(w)
    system = np.block([[root[:, None] * z, root[:, None]], [pull, np.zeros((len(pull), 1))]])
    wanted = np.concatenate([root * y, pull.sum(1)])
    found = np.linalg.lstsq(system, wanted, rcond=None)[0]
    if positive and (found[:-1] < 0).any():
        means, mean = np.average(z, axis=0, weights=w), np.average(y, weights=w)
        centered = np.concatenate([root[:, None] * (z - means), pull])
        gains, _ = nnls(centered, np.concatenate([root * (y - mean), pull.sum(1)]))
        found = np.append(gains, mean - means @ gains)
    a[varies] = found[:-1]
    return a, found[-1]


def refit(
    model,
    masks,
    layer,
    unit,
    images,
    *,
    method,
    ridge,
    positive=False,
    blocks=None,
    call=None,
    positions=None,
    weights=None,
):
    """(gain, offset) of the effective kernels: layer after layer, filter after filter, on explicit design matrices.

    Masks of weights must be those of convolutions. `positions` {layer: indices}: all where a layer is left out.
    `weights` are the images', 1 if None.
    """
    about = {"blocks": blocks, "call": call}
    effective = reachable(model, layer, unit, images.shape[1:], masks, **about)
    about["graph_module"] = trace(model, images.shape[1:])
    full = kernel_calls(model, None, layer, unit, images, of=(), **about)
    fine = {key: mask & effective[key][..., None, None] for key, mask in masks.items() if mask.ndim > 2}
    of_image = [1.0] * len(images) if weights is None else list(weights)
    gain, offset = {}, {}
    for name, kernels in effective.items():
        if not kernels.any():
            continue
        found = {"gain": gain, "offset": offset}
        circuit = kernel_calls(model, effective | fine, layer, unit, images, of=(name,), **found, **about)
        gain[name] = torch.ones(kernels.shape, dtype=torch.float64)
        offset[name] = torch.zeros(len(kernels), dtype=torch.float64)
        for o in kernels.any(1).nonzero()[:, 0].tolist():
            y, z, rest = design(full[name], circuit[name], o, (positions or {}).get(name, slice(None)))
            each, calls = len(circuit[name]) // len(images), circuit[name]
            live = [of_image[k // each] for k, (reads, *_) in enumerate(calls) if reads[o].any()]
            w = np.repeat(live, len(y) // len(live))
            spread = (w * (y - np.average(y, weights=w)) ** 2).sum()
            about_fit = (ridge, spread, w, positive)
            if method == "mean":
                offset[name][o] = np.average(y - rest - z.sum(1), weights=w)
            elif method == "filters":
                a, offset[name][o] = least_squares(y - rest, z.sum(1, keepdims=True), *about_fit)
                gain[name][o] = float(a[0])
            else:
                a, offset[name][o] = least_squares(y - rest, z[:, kernels[o].numpy()], *about_fit)
                gain[name][o, kernels[o]] = torch.from_numpy(a)
    return gain, offset


# ---------------------------------------------------------------------- fidelity


def _flat(values):
    return np.asarray(values, dtype=np.float64).ravel()


def pearson(full, circuit):
    """Correlation over all images x positions; NaN if either is constant."""
    x, y = _flat(full), _flat(circuit)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / scale if scale > 0 else math.nan


def r2(full, circuit):
    """1 - sum (f - f_c)^2 / sum (f - mean f)^2."""
    x, y = _flat(full), _flat(circuit)
    total = float(((x - x.mean()) ** 2).sum())
    return 1.0 - float(((x - y) ** 2).sum()) / total if total > 0 else math.nan


def readout(full, circuit):
    """(a, d) of the least squares f = a f_c + d; a constant circuit gets a = 0."""
    x, y = _flat(full), _flat(circuit)
    spread = float(((y - y.mean()) ** 2).sum())
    a = float(((y - y.mean()) * (x - x.mean())).sum()) / spread if spread > 0 else 0.0
    return a, float(x.mean() - a * y.mean())


def readout_r2(train_full, train_circuit, full, circuit):
    """R2 on (full, circuit) after the readout fitted on the training maps."""
    a, d = readout(train_full, train_circuit)
    return r2(full, a * _flat(circuit) + d)
