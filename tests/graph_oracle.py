"""Reachability by a search in the model's ATen graph: slow, for any architecture, sharing no code with the library.

`Graph(model, layer, input_shape)` records every ATen operation from the image to a layer's output. Each operation gets
one rule, written as a float function of what it reads: the result is > 0 where a value depends on a live value. Run
forwards on zeros and ones it says what is live; its transpose (by autograd) says what the feature needs. What carries
no information of the image (a bias, the sigmoid of a dead filter) is a constant, and not live.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx

# What only moves values: the operation itself runs on the zeros and ones.
MOVES = {"view", "_unsafe_view", "reshape", "permute", "transpose", "t", "slice", "select", "squeeze", "unsqueeze"}
MOVES |= {"expand", "clone", "alias", "detach", "contiguous", "cat", "stack", "split", "split_with_sizes", "chunk"}
MOVES |= {"unbind", "flip", "roll", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "copy"}
MOVES |= {"reflection_pad2d", "replication_pad2d", "slice_scatter", "select_scatter", "lift_fresh_copy", "_to_copy"}
# What computes each value from those at the same place.
ELEMENTWISE = {"add", "sub", "rsub", "neg", "abs", "pow", "sqrt", "rsqrt", "exp", "log", "maximum", "minimum", "clamp"}
ELEMENTWISE |= {"clamp_min", "clamp_max", "addcmul", "relu", "relu6", "hardtanh", "silu", "gelu", "elu", "leaky_relu"}
ELEMENTWISE |= {"hardswish", "mish", "softplus", "tanh", "sigmoid", "hardsigmoid", "_prelu_kernel", "log_sigmoid"}
# What stays within each channel of (1, C, H, W).
CHANNELWISE = {
    "max_pool2d_with_indices",
    "avg_pool2d",
    "_adaptive_avg_pool2d",
    "adaptive_avg_pool2d",
}
BATCH_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training"}  # of today's torch, and of 2.8
CHANNELWISE |= BATCH_NORMS
CHANNELWISE |= {"adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"}
REDUCTIONS = {"mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "var_mean"}
CONSTANTS = {"empty", "zeros_like", "ones_like", "empty_like", "new_zeros", "new_empty", "full_like", "arange", "zeros"}
GATES = {"sigmoid", "hardsigmoid", "_softmax"}
PRODUCTS = {"mul", "div"}


class Undecided(Exception):  # noqa: N818
    """The oracle has no rule."""


class _Reached(Exception):  # noqa: N818
    """Ends a forward at the layer."""


def _name(node):
    return node.target.__name__.split(".")[0] if callable(node.target) else str(node.target)


def _shape(node):
    value = node.meta["val"]
    return tuple((value[0] if isinstance(value, tuple | list) else value).shape)


@dataclass
class Kernels:
    """One convolution or matrix product with a weight: whose it is, and how its kernels connect channels."""

    layer: str
    shape: tuple[int, int]
    groups: int
    linear: bool

    def mask(self, masks):
        """(out, in) of zeros and ones; single weights for a Linear."""
        if masks is None:
            return torch.ones(self.shape)
        mask = masks.get(self.layer)
        if mask is None:
            return torch.zeros(self.shape)
        return mask.float().repeat_interleave(self.shape[1] // mask.shape[1], dim=1)


class Graph:
    """The ATen operations from the image to the layer's output (its `call`-th)."""

    def __init__(self, model, layer, input_shape, *, call=0):
        self.model, self.layer = model, layer
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        image = torch.zeros(1, *input_shape, dtype=next(model.parameters()).dtype)

        def up_to_the_layer(state, image):
            found, seen = [], []

            def hook(module, args, out):
                seen.append(1)
                if len(seen) == call + 1:
                    found.append(out.clone())
                    raise _Reached

            handle = model.get_submodule(layer).register_forward_hook(hook)
            with contextlib.suppress(_Reached):
                functional_call(model, state, (image,))
            handle.remove()
            return found[0]

        with torch.no_grad():
            traced = make_fx(functionalize(up_to_the_layer), tracing_mode="fake", _allow_non_fake_inputs=True)
            graph = traced(state, image).graph
        graph.eliminate_dead_code()
        places = [node for node in graph.nodes if node.op == "placeholder"]
        self.parameter = dict(zip(places, state, strict=False))  # the last placeholder is the image
        self.image = places[-1]
        self.sources = {}  # node -> the nodes that it reads and that depend on the image
        self.data = self._depending_on_the_image(graph)
        (self.output,) = next(node for node in graph.nodes if node.op == "output").all_input_nodes
        self.kernels = {node: k for node in self.data if (k := self._kernels(node)) is not None}
        others = [node for node in self._computed() if node not in self.kernels]
        self.others = {node: None if _name(node) == "getitem" else self._rule(node) for node in others}

    def _depending_on_the_image(self, graph):
        """The nodes computed from the image, in order."""
        data = {self.image: None}
        for node in graph.nodes:
            self.sources[node] = [source for source in node.all_input_nodes if source in data]
            if node.op == "call_function" and _name(node) not in CONSTANTS and self.sources[node]:
                data[node] = None
        return data

    def _computed(self):
        return [node for node in self.data if node is not self.image]

    # ------------------------------------------------------------ kernels

    def _kernels(self, node):
        name = _name(node)
        if name == "convolution":
            _, weight, _, _, _, _, transposed, _, groups = node.args
            if transposed or len(_shape(weight)) != 4:
                raise Undecided(node.format_node())
            return Kernels(self._owner(weight), _shape(weight)[:2], groups, linear=False)
        if name in ("addmm", "mm"):
            weight = node.args[-1]
            return Kernels(self._owner(weight), _shape(weight)[::-1], 1, linear=True)
        if name in ("bmm", "baddbmm", "matmul"):
            raise Undecided(node.format_node())
        return None

    def _owner(self, weight):
        """The layer whose parameter a weight is computed from."""
        if weight in self.data:
            raise Undecided(f"a weight computed from the image: {weight}")
        todo, owners = [weight], []
        while todo:
            node = todo.pop()
            if node in self.parameter:
                owners.append(self.parameter[node])
            todo.extend(node.all_input_nodes)
        owners = [name.removesuffix(".weight").removesuffix("weight") for name in owners if name.endswith("weight")]
        if len(set(owners)) != 1:
            raise Undecided(f"a weight made of {owners}")
        return owners[0]

    def _kernels_rule(self, kernels, node, mask):
        def rule(x):
            if kernels.linear:
                return F.linear(x, mask)
            channels = x.mean((2, 3), keepdim=True)
            return F.conv2d(channels, mask[:, :, None, None], groups=kernels.groups).expand(_shape(node))

        return rule

    def _channels(self, kernels, values):
        """Which channels of a convolution's input or output, or features of a Linear's, hold anything: 1-D bool."""
        return values.flatten(0, -2).any(0) if kernels.linear else values[0].flatten(1).any(1)

    def _reading(self, kernels, mask, live):
        """(out, in): kept kernels that read a live channel."""
        channels = self._channels(kernels, live).reshape(kernels.groups, 1, -1)
        by_group = mask.reshape(kernels.groups, -1, mask.shape[1]) > 0
        return (by_group & channels).reshape(mask.shape)

    # ------------------------------------------------------------ everything else

    def is_gate(self, node):
        """Whether a node is a sigmoid, or made of one alone: a view, a resized version, 1 - it."""
        passing = (MOVES | CHANNELWISE | ELEMENTWISE | PRODUCTS) - GATES
        while _name(node) in passing and len(self.sources[node]) == 1:
            (node,) = self.sources[node]
        return _name(node) in GATES

    def data_and_gate(self, node):
        """What a product scales, and by what: (data, gate), or None where both factors are data alike."""
        a, b = (arg for arg in node.args if arg in self.data)
        if a is b:
            return None
        if _name(node) == "div":
            return a, b
        if self.is_gate(a) != self.is_gate(b):
            return (b, a) if self.is_gate(a) else (a, b)
        sizes = [torch.Size(_shape(x)).numel() for x in (a, b)]
        if sizes[0] == sizes[1]:
            return None
        return (a, b) if sizes[0] > sizes[1] else (b, a)

    def _rule(self, node) -> Callable:
        """A function of the values (floats) of the node's sources, in their order."""
        name, sources, shape = _name(node), self.sources[node], _shape(node)
        if name in MOVES or name == "constant_pad_nd":
            args = node.args[:2] if name == "constant_pad_nd" else node.args

            def moved(*values):
                known = dict(zip(sources, values, strict=True))
                constant = lambda n: known[n] if n in known else torch.zeros(_shape(n))  # noqa: E731
                kwargs = {k: v for k, v in node.kwargs.items() if k not in ("dtype", "device", "memory_format")}
                function = torch.reshape if "view" in name else node.target  # a float's strides may be others
                return function(*fx.node.map_arg(args, constant), **fx.node.map_arg(kwargs, constant))

            return moved
        if name in PRODUCTS and len(sources) == 2:
            if self.data_and_gate(node) is None:
                return lambda a, b: a * b
            data, _ = self.data_and_gate(node)
            return lambda a, b: a * (1 + b) if sources[0] is data else b * (1 + a)
        if name in ELEMENTWISE | PRODUCTS or (name == "as_strided_" and shape == _shape(sources[0])):
            return lambda *values: sum(value.expand(shape) for value in values)
        if name in CHANNELWISE:
            return lambda x: x.mean((2, 3), keepdim=True).expand(shape)
        if name in REDUCTIONS:
            dims = next(
                (arg for arg in node.args[1:] if isinstance(arg, list | tuple)), tuple(range(len(_shape(sources[0]))))
            )
            return lambda x: x.sum(tuple(dims), keepdim=True).reshape(shape)
        if name == "_softmax":
            return lambda x: x + x.sum(node.args[1], keepdim=True)
        if name == "native_layer_norm":
            over = tuple(range(-len(node.args[1]), 0))
            return lambda x: x + x.sum(over, keepdim=True)
        if name == "native_group_norm":
            groups = node.args[6]
            return lambda x: (x.reshape(1, groups, -1) + x.reshape(1, groups, -1).sum(2, keepdim=True)).reshape(shape)
        raise Undecided(node.format_node())

    # ------------------------------------------------------------ the search

    def _rules(self, masks):
        """Every node with its rule, in order; a `getitem` has none."""
        rules = []
        for node in self._computed():
            if node in self.kernels:
                rules.append((node, self._kernels_rule(self.kernels[node], node, self.kernels[node].mask(masks))))
            else:
                rules.append((node, self.others[node]))
        return rules

    def live(self, masks=None):
        """{node: bool tensor of its shape (or a tuple of them)}: what depends on the image, inside the masks."""
        live = {self.image: torch.ones(_shape(self.image), dtype=torch.bool)}
        for node, rule in self._rules(masks):
            if rule is None:
                source, at = node.args
                live[node] = live[source][at] if isinstance(live[source], tuple) else live[source]
                continue
            result = rule(*(live[source].float() for source in self.sources[node]))
            live[node] = tuple(r > 0 for r in result) if isinstance(result, tuple | list) else result > 0
        return live

    def reachable(self, unit, masks=None, blocks=None):
        """{layer: bool (out, in)}: kernels on a path image -> the layer's unit, inside the masks.

        Holds the layers that run up to the feature, in execution order. With masks, a layer left out keeps nothing.
        """
        live = self.live(masks)
        need = {
            node: torch.zeros(_shape(node), dtype=torch.bool) for node in self.data if not isinstance(live[node], tuple)
        }
        need |= {node: tuple(map(torch.zeros_like, live[node])) for node in self.data if isinstance(live[node], tuple)}
        need[self.output][:, unit] = True
        found = {k.layer: torch.zeros(k.shape, dtype=torch.bool) for k in self.kernels.values()}
        for node, rule in reversed(self._rules(masks)):
            if rule is None:
                source, at = node.args
                target = need[source][at] if isinstance(need[source], tuple) else need[source]
                target |= need[node]
                continue
            if node in self.kernels:
                kernels = self.kernels[node]
                reading = self._reading(kernels, kernels.mask(masks), live[self.sources[node][0]])
                found[kernels.layer] |= reading & self._channels(kernels, need[node])[:, None]
            values = [live[source].float().requires_grad_() for source in self.sources[node]]
            with torch.enable_grad():
                results = rule(*values)
            results, wanted = (results, need[node]) if isinstance(need[node], tuple) else ((results,), (need[node],))
            wanted = [w.float() for w in wanted]
            gradients = torch.autograd.grad(list(results), values, wanted, allow_unused=True)
            for source, gradient in zip(self.sources[node], gradients, strict=True):
                if gradient is not None:
                    need[source] |= gradient > 0
        return {layer: _in_blocks(kernels, layer, masks, blocks) for layer, kernels in found.items()}

    def dead_constants(self, masks):
        """{parameter: bool (channels,)}: biases and BatchNorm affines that only dead filters have, gates left out."""
        live, kept = self.live(masks), self._before_gates()
        dead = {}
        for node in self._computed():
            if node in self.kernels and not self.kernels[node].linear:
                constants, channels = node.args[2:3], self._channels(self.kernels[node], live[node])
            elif node in self.kernels:
                constants = node.args[:1] if _name(node) == "addmm" else ()
                channels = self._channels(self.kernels[node], live[node])
            elif _name(node) in BATCH_NORMS:
                constants, channels = node.args[1:3], live[node.args[0]][0].flatten(1).any(1)
            else:
                continue
            for constant in constants:
                if constant in self.parameter:
                    name = self.parameter[constant]
                    dead.setdefault(name, torch.ones_like(channels)).logical_and_(~channels & (node not in kept))
        return {name: mask for name, mask in dead.items() if mask.any()}

    def _before_gates(self):
        """The nodes between a product's gate and the kernel calls that it is made by, those included."""
        products = [n for n in self.data if _name(n) in PRODUCTS and len(self.sources[n]) == 2]
        todo = [pair[1] for pair in map(self.data_and_gate, products) if pair is not None]
        seen = set()
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo.extend([] if node in self.kernels else self.sources[node])
        return seen


def _in_blocks(kernels, layer, masks, blocks):
    """Single weights of a Linear -> its kernels."""
    columns = masks[layer].shape[1] if masks and layer in masks else (blocks or {}).get(layer, kernels.shape[1])
    return kernels.reshape(len(kernels), columns, -1).any(2)
