"""Which kernels reach a feature: on some path image -> feature, in the full model or inside a circuit.

One probe answers: the model runs once on two images, with each kernel call replaced by a link that only asks which
channels are live. A channel is live when it differs between the two images: constants (a bias, the sigmoid of a dead
filter) do not. A filter is live when a kept kernel of it reads a live channel; its map is then made up afresh, so
that nothing underflows however deep the net is, and the second image's is larger than the first's, so that nothing
cancels at an addition. One backward pass from the feature says in the same way which filters lead to it. The weights'
values play no part. Residual additions, concatenations, pooling, gates and flattening run as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convcircuits.calls import ConvCall, KernelCall
from convcircuits.capture import Network, checked_output
from convcircuits.errors import ConvCircuitsError
from convcircuits.feature import Feature
from convcircuits.functions import (
    Kind,
    argument,
    base_name,
    depends_on_image,
    rule_of,
    set_gate,
    tensors_in,
    writes_to_first,
)

# By name, whether function, method or operator, in place or not: element-wise functions that could bring a live value
# to zero or infinity, by a sign, a threshold or a choice; those of several maps among them let each through.
_NEUTRAL = {"add", "sub", "subtract", "rsub", "neg", "negative", "maximum", "minimum", "max", "min", "clamp", "clip"}
_NEUTRAL |= {"clamp_min", "clamp_max", "threshold", "hardshrink", "softshrink", "relu6", "hardtanh", "sign", "sgn"}
_NEUTRAL |= {"round", "floor", "ceil", "trunc", "frac", "fmod", "remainder", "log", "reciprocal", "rsqrt", "pow"}
_NEUTRAL |= {"where", "addcmul", "addcdiv", "lerp", "masked_fill"}
_NORMS = {"batch_norm", "instance_norm", "prelu"}  # within each channel
_SCALES = {"mul", "multiply", "div", "divide", "true_divide", "truediv"}
_CHOICES = {"max_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d"}
# Functions that mix maps by one another, or in an order that their values tell.
_MIXTURES = {"matmul", "mm", "bmm", "mv", "einsum", "tensordot", "baddbmm", "addmm", "cdist", "sort", "topk", "cumsum"}
_MIXTURES |= {"grid_sample", "cumprod", "argsort", "msort"}
# What tells only a tensor's form.
_SHAPES = {"get", "size", "dim", "numel", "stride", "is_floating_point", "is_complex", "len", "is_contiguous"}
# Comparisons have no gradient, but what they choose by is known.
_COMPARES = {"gt", "greater", "lt", "less", "ge", "greater_equal", "le", "less_equal", "eq", "ne", "not_equal"}
# Functions that bring a map's values to Python, where they may decide what runs.
_DECIDES: set[Any] = {Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.item, Tensor.tolist}
_DECIDES |= {Tensor.numpy, Tensor.nonzero, torch.nonzero, Tensor.equal, torch.equal, Tensor.allclose, torch.allclose}


@dataclass(frozen=True)
class Survey:
    """What one probe of a model tells about a feature.

    Attributes:
        kernels: Layer name -> bool (out, in per group), in execution order: kernels on a path image -> feature.
        rows: Channels that the feature reads in its layer.
        coefficients: The feature's coefficient on each of them.
        direct: The layer's output is that of its one kernel call, so that other filters need not be computed.
        copied: Layers whose input is overwritten in place later in the same pass.
        modules: Names of the modules that run, and of the layers whose weights are used, before the feature is reached.
        input_shape: (C, H, W) of the image that was probed.
    """

    kernels: dict[str, Tensor]
    rows: Tensor
    coefficients: Tensor
    direct: bool
    copied: frozenset[str]
    modules: tuple[str, ...]
    input_shape: tuple[int, ...]


def survey(
    network: Network,
    feature: Feature,
    input_shape: tuple[int, ...],
    masks: Mapping[str, Tensor] | None = None,
) -> Survey:
    """Probe which kernels are on a path from the image to the feature, in the full model or inside masks.

    Args:
        network: The model.
        feature: The feature.
        input_shape: (C, H, W) of an image.
        masks: Layer name -> bool (out, in per group); only kept kernels conduct. A layer that is not named conducts
            nothing.

    Raises:
        ConvCircuitsError: If the layer, the call or the unit does not exist, if the layer runs several times and
            the feature does not say which call, or if no kernel lies on a path (in the full model).
    """
    if not isinstance(feature, Feature):
        raise ConvCircuitsError(f"Expected a Feature, got {feature!r}; Feature.parse reads its text form.")
    probe = _Probe(network, feature, masks)
    generator = torch.Generator().manual_seed(0)
    images = (_made_up(generator, input_shape[0]))[:, :, None, None].expand(2, *input_shape)
    images = _precise(images.to(network.device, network.dtype)).contiguous().requires_grad_()
    with torch.enable_grad():
        try:
            network.forward(images, probe.kernel, probe.other, probe.on_exit)
        except ConvCircuitsError:
            if probe.total is None:
                raise
        except Exception as error:
            # What comes after the feature need not run: a head may want another image size.
            if probe.total is None:
                raise ConvCircuitsError(
                    f"{network.name} cannot run on images of shape {tuple(input_shape)}: {error}"
                ) from error
        return probe.finish(images, full=masks is None)


def _made_up(generator: torch.Generator, channels: int) -> Tensor:
    """Make one value per image and channel, small and positive, the second image's the larger: (2, channels)."""
    return 0.1 + 0.04 * torch.rand(2, channels, generator=generator) + torch.tensor([[0.0], [0.05]])


def _precise(x: Tensor) -> Tensor:
    """Bring a map to the model's precision, float32 at least: half of it could make the two images equal."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Probe:
    def __init__(self, network: Network, feature: Feature, masks: Mapping[str, Tensor] | None) -> None:
        self.network, self.feature, self.masks = network, feature, masks
        self.target = network.layer(feature.layer)
        self.generator = torch.Generator().manual_seed(1)
        self.found: dict[str, Tensor] = {}
        self.read: list[tuple[str, Tensor, int]] = []
        self.modules: dict[str, None] = {}
        self.calls = 0
        self.own_calls = 0
        self.total: Tensor | None = None
        self.direct = False
        self.last: tuple[Any, KernelCall | None] = (None, None)

    def kernel(self, call: KernelCall) -> Tensor:
        out, inputs = call.kernels.shape[0] * call.kernels.shape[1], call.kernels.shape[2]
        if self.masks is None:
            mask = torch.ones(out, inputs, dtype=torch.bool, device=call.x.device)
        elif call.layer in self.masks:
            mask = self.masks[call.layer].to(call.x.device)
        else:
            mask = torch.zeros(out, inputs, dtype=torch.bool, device=call.x.device)
        if len(call.x) != 2 and self.total is None:
            raise self.undecided("reads what is no longer one map per image (windows or tokens, cut along the batch)")
        if _is_untold(call.x) and self.total is None:
            raise self.undecided("reads values that were compared, chosen or cut off from a map")
        if self.total is None:
            found = self.found.setdefault(call.layer, torch.zeros_like(mask))
            if found.shape != mask.shape:
                raise ConvCircuitsError(
                    f"Two kernel calls of different shape, {tuple(found.shape)} and {tuple(mask.shape)}, go by the "
                    f"name {call.layer!r}: their weights are computed in one module's forward. Give each its own "
                    "nn.Conv2d or nn.Linear."
                )
            self.read.append((call.layer, call.x, call.x._version))
            self.modules[call.layer] = None  # its weight may be registered with a module that does not run
        else:
            found = torch.zeros_like(mask)  # after the feature: of no interest
        result: Tensor = _Link.apply(call.x, call, mask, found, self.generator)
        self.last = (result, call)
        self.own_calls += self.network.runs_itself(self.target)
        return result

    def other(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a function so that what is live stays live, whatever its constants are.

        Values are positive and small, so most functions run as they are. What could bring them to zero has a stand-in.
        """
        given = tensors_in((args, kwargs))
        if not any(x.requires_grad or _is_untold(x) for x in given):
            return function(*args, **kwargs)
        name = base_name(function)
        if function in _DECIDES:
            raise self.undecided(f"decides by a map's values ({name})")
        if name in ("where", "masked_fill"):
            given = [getattr(x, "_convcircuits_source", x) for x in given]
        elif name in _SHAPES or not depends_on_image(function, args, kwargs):
            return function(*args, **kwargs)
        if any(map(_is_untold, given)) and not any(x.requires_grad for x in given):
            result = function(*args, **kwargs)  # a counter, a range: it matters only where it meets a map again
            for one in tensors_in(result):
                one._convcircuits_untold = True  # type: ignore[attr-defined]
            return result
        if any(map(_is_untold, given)):
            raise self.undecided(f"uses values that were compared, chosen or cut off from a map ({name})")
        result = self.stand_in(function, args, kwargs, given)
        for one in tensors_in(result):
            one._convcircuits_untold = not one.requires_grad  # type: ignore[attr-defined]
            if name in _COMPARES:
                source = sum(x for x in given if x.requires_grad)
                one._convcircuits_source = source  # type: ignore[attr-defined]
        return result

    def undecided(self, what: str) -> ConvCircuitsError:
        where = self.network.running()
        if _is_quantised(self.network.layer(where)):
            what = "is quantised (give the model from before that)"
        return ConvCircuitsError(
            f"{where or self.network.name} {what}, so it cannot be told which kernels reach {self.feature.layer}. "
            "Choose a feature before it."
        )

    def stand_in(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], given: list[Tensor]) -> Any:
        """Compute a function of maps, or what lets the same maps through to the same places."""
        maps = [x for x in given if x.requires_grad]
        name = base_name(function)
        in_place = writes_to_first(function) or kwargs.get("inplace") is True or True in [a is True for a in args[1:]]
        in_place = in_place and maps[0] is args[0]
        rule = rule_of(function, args, kwargs, maps)
        if rule.kind is Kind.OTHER and name in _MIXTURES:
            raise self.undecided(f"mixes maps by {name}")
        if rule.kind is Kind.MIX or name in ("softmax", "log_softmax"):
            result = _mixed(function, args, kwargs, maps[0])
        elif rule.kind is Kind.REDUCE:
            result = _with_values(function(*args, **kwargs), lambda x: maps[0].mean(rule.dims).reshape(x.shape))
        elif rule.kind is Kind.SCALE:
            data, gate = maps[rule.data], maps[1 - rule.data]
            result = data.clone() * (1 + gate)  # autograd keeps the clone: the model may overwrite its map
            result = maps[0].copy_(result) if in_place else result
        elif name in _CHOICES:
            result = _with_values(function(*args, **kwargs), lambda x: x + maps[0].mean((-2, -1), keepdim=True))
        elif name in _NEUTRAL | _NORMS or (name in _SCALES and len(maps) == 1):
            result = _passed(maps, maps[0].shape if name in _NORMS else _together(given), in_place)
        else:
            result = function(*args, **kwargs)
        set_gate(result, rule.gate)
        return result

    def on_exit(self, module: nn.Module, output: Any) -> None:
        if self.total is None:
            self.modules[self.network.running()] = None
            if _is_quantised(module):
                raise self.undecided("")
        if module is not self.target:
            return
        self.calls += 1
        own_calls, self.own_calls = self.own_calls, 0
        if self.calls - 1 != (self.feature.call or 0):
            return
        output = checked_output(self.feature, output, 2)
        if _is_untold(output):
            raise self.undecided("gives values that were compared, chosen or cut off from a map")
        self.rows, self.coefficients = self.feature.rows(output.shape[1])
        result, call = self.last
        untouched = output is result and output._version == 0
        self.direct = untouched and own_calls == 1 and call is not None and call.groups == 1
        self.modules.update(dict.fromkeys(self.network.all_running()))
        self.total = output.index_select(1, self.rows.to(output.device)).sum()

    def finish(self, images: Tensor, *, full: bool) -> Survey:
        name, layer = self.network.name, self.feature.layer
        if self.total is None:
            count = "never runs" if self.calls == 0 else f"runs only {self.calls} times"
            raise ConvCircuitsError(f"{layer} {count} when {name} is called, so it carries no such feature.")
        if self.calls > 1 and self.feature.call is None:
            raise ConvCircuitsError(
                f"{layer} runs {self.calls} times in one forward pass of {name}; say which call is meant: "
                f"Feature({layer!r}, ..., call=k), or {layer}#k:unit as text, with k from 0 to {self.calls - 1}."
            )
        if self.total.requires_grad:
            try:
                torch.autograd.grad(self.total, [images], allow_unused=True)
            except RuntimeError as error:  # as training this model would end
                raise ConvCircuitsError(
                    f"No gradient can be taken from {layer} back to the image: {error} Choose a feature before it."
                ) from error
        direct = self.direct and self.calls == 1  # other calls of the layer need all its filters
        overwritten = frozenset(layer for layer, x, version in self.read if x._version != version)
        kernels = {layer: k.cpu() for layer, k in self.found.items() if not full or bool(k.any())}
        if full and not kernels:
            raise ConvCircuitsError(
                f"No kernel lies between the image and {layer}, so there is no circuit to find; choose a later layer."
            )
        return Survey(
            kernels, self.rows, self.coefficients, direct, overwritten, tuple(self.modules), tuple(images.shape[1:])
        )


def _together(tensors: list[Tensor]) -> torch.Size:
    shape: torch.Size = torch.broadcast_shapes(*(x.shape for x in tensors))  # type: ignore[no-untyped-call]
    return shape


def _passed(maps: list[Tensor], shape: torch.Size, in_place: bool) -> Tensor:
    """Add maps up as they are; the result is no kernel call's output, even where there is one map."""
    result = maps[0].mul_(1) if in_place else maps[0].expand(shape).clone()
    for x in maps[1:]:
        result = result.add_(x) if in_place else result + x
    return result


def _is_quantised(module: nn.Module) -> bool:
    return ".quantized" in type(module).__module__


def _is_untold(x: Tensor) -> bool:
    """Tell whether a tensor was made from live maps by a function without a gradient: a comparison, an argmax."""
    return getattr(x, "_convcircuits_untold", False)


def _with_values(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change a function's values: all of the result, or the first part of (values, indices)."""
    if isinstance(result, Tensor):
        return change(result) if result.is_floating_point() else result
    return type(result)((change(result[0]), *result[1:]))


def _mixed(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor) -> Tensor:
    """Stand in for a normalisation over channels.

    Where a mean is subtracted, or a sum over all made one, all that it is taken over leads to each value. Where only
    a norm divides, to each value that is not zero.
    """
    name = base_name(function)
    if name in ("softmax", "log_softmax"):
        dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
        return x + x.mean(dim, keepdim=True)
    if name == "group_norm":
        grouped = x.reshape(len(x), argument(function, args, kwargs, "num_groups"), -1)
        return x + grouped.mean(2, keepdim=True).expand_as(grouped).reshape(x.shape)
    if name in ("layer_norm", "rms_norm"):
        shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else x.shape[-1:])
        mean = x.mean(tuple(range(-len(shape), 0)), keepdim=True)
        return x + mean if name == "layer_norm" else x * (1 + mean)
    if name == "normalize":
        dim = argument(function, args, kwargs, "dim")
        return x * (1 + x.mean(1 if dim is None else dim, keepdim=True))
    size = argument(function, args, kwargs, "size")
    return F.local_response_norm(x, size, alpha=1.0, beta=-1.0, k=1.0)  # x * (1 + mean of x squared)


class _Link(torch.autograd.Function):
    """Conduct liveness through one kernel call, forward to its filters and back to what it reads."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, call: KernelCall, mask: Tensor, found: Tensor, generator: torch.Generator
    ) -> Tensor:
        groups = call.groups
        conducting = mask.reshape(groups, -1, mask.shape[1]) & call.alive()[:, None]
        live = conducting.any(2).flatten()
        ctx.call, ctx.conducting, ctx.found, ctx.generator = call, conducting, found, generator
        values = _made_up(generator, len(live)).to(_precise(x)) * live
        return _filled_output(call, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        call, conducting = ctx.call, ctx.conducting
        leads = (call.by_position(gradients[0]) != 0).any(3).any(0)
        on_path = conducting & leads[:, :, None]
        ctx.found |= on_path.reshape(ctx.found.shape)
        leads_in = on_path.any(1).flatten()
        values = _made_up(ctx.generator, len(leads_in)).to(call.x) * leads_in
        return call.spread(values), None, None, None, None


def _filled_output(call: KernelCall, values: Tensor) -> Tensor:
    """Make a map of the call's output shape from one value per image and filter."""
    if isinstance(call, ConvCall):
        spans = zip(call.x.shape[2:], call.weight.shape[2:], call.stride, call.padding, call.dilation, strict=True)
        size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in spans]
        if min(size) < 1:
            raise ConvCircuitsError(
                f"A map of {call.x.shape[2]} x {call.x.shape[3]} is too small for {call.layer}; give larger images."
            )
        return values[:, :, None, None].expand(-1, -1, *size).clone(memory_format=torch.contiguous_format)
    between = call.x.dim() - 2
    return (
        values.reshape(2, *[1] * between, -1)
        .expand(*call.x.shape[:-1], -1)
        .clone(memory_format=torch.contiguous_format)
    )


def guessed_input_shapes(model: nn.Module) -> list[tuple[int, int, int]]:
    """List image shapes that a model may want, the likeliest first."""
    for name in ("default_cfg", "pretrained_cfg"):
        config = getattr(model, name, None)
        size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
        if size is not None:
            return [(int(size[0]), int(size[1]), int(size[2]))]
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if conv is None else conv.in_channels
    return [(channels, side, side) for side in (224, 32, 28, 64, 96, 128, 256, 299, 16, 12, 10, 8)]


def survey_of_unknown_size(network: Network, feature: Feature, input_shape: tuple[int, int, int] | None) -> Survey:
    """Survey a model on images of a given shape, or of the first shape that it accepts.

    Raises:
        ConvCircuitsError: If it accepts none.
    """
    if input_shape is not None:
        if len(input_shape) != 3:
            raise ConvCircuitsError(f"input_shape is (C, H, W) of an image; got {input_shape!r}.")
        return survey(network, feature, input_shape)
    network.layer(feature.layer)
    for shape in guessed_input_shapes(network.module):
        try:
            return survey(network, feature, shape)
        except ConvCircuitsError as error:
            problem = error
    raise ConvCircuitsError(f"{problem} Give input_shape=(C, H, W).") from problem
