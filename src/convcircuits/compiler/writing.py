"""A writer of graphs of small modules, with shared calls, constants and selected channels."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convcircuits.compiler.interpreter import CircuitModule, from_graph, submodule

_aten = torch.ops.aten


class Writer:
    """Writes a graph, with the modules and constants that it calls.

    Args:
        shape: (C, H, W) of an image.
        device: Device of the tensors.

    Attributes:
        image: The batch of images.
        width: Number of channels of each tensor whose channels lie along an axis.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        self._graph, self._root, self._shape, self._device = fx.Graph(), nn.Module(), shape, device
        self._made: dict[Any, fx.Node] = {}
        self.image = self._graph.placeholder("x")
        if device.type == "cpu":
            # On a CPU, convolutions of few channels are much faster with channels last in memory.
            self.image = self.call(_aten.contiguous.default, self.image, memory_format=torch.channels_last)
        self.width = {self.image: shape[0]}

    def call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Write a call of an ATen operation or of a function of ours. Equal calls are written once."""
        key = (function, identity(args), identity(kwargs))
        return self.once(key, lambda: self._graph.call_function(function, args, kwargs))

    def once(self, key: Any, write: Callable[[], fx.Node]) -> fx.Node:
        """Return the node written under a key, writing it on first use."""
        if key not in self._made:
            self._made[key] = write()
        return self._made[key]

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """Write a constant, stored as a buffer with this name or, if it is taken, a numbered one."""

        def write() -> fx.Node:
            taken = {*self._root._modules, *self._root._buffers}
            free = _free_name(name, lambda n: n in taken or hasattr(CircuitModule, n))
            self._root._buffers[free] = value.detach().clone().to(self._device)
            return self._graph.get_attr(free)

        return self.once(("constant", identity(value)), write)

    def module(self, layer: str, module: nn.Module, x: fx.Node, **numbers: Tensor) -> fx.Node:
        """Write a call of a module, under the name of its layer, with tensors of channel indices as its buffers."""
        *path, own = (layer or "model").split(".")
        parent = self._root
        for part in path:
            found = parent._modules.setdefault(part, nn.Module())
            assert found is not None
            parent = found
        own = _free_name(own, lambda n: n in parent._modules or n in parent._buffers)
        parent._modules[own] = module
        for key, value in numbers.items():
            module.register_buffer(key, value.clone().to(self._device))
        return self._graph.call_module(".".join([*path, own]), (x,))

    def choose(self, node: fx.Node, axis: int, rank: int, places: Tensor) -> fx.Node:
        """Select positions of a tensor along its axis; -1 stands for a zero.

        Args:
            node: The tensor.
            axis: The dimension of one image's value along which channels lie.
            rank: Number of dimensions of one image's value.
            places: The positions, in order.
        """
        width = self.width[node]
        if torch.equal(places, torch.arange(width)):
            return node
        if bool((places < 0).any()):
            node = self.call(_aten.constant_pad_nd.default, node, [*[0, 0] * (rank - axis - 1), 0, 1])
            places = torch.where(places < 0, width, places)
        start = int(places[0])
        if torch.equal(places, torch.arange(start, start + len(places))):
            node = self.call(_aten.slice.Tensor, node, axis + 1, start, start + len(places))
        else:
            node = self.call(_aten.index_select.default, node, axis + 1, self.constant("channels", places))
        self.width[node] = len(places)
        return node

    def finish(self, outputs: list[fx.Node], *, fold: bool, any_size: bool, always_tuple: bool) -> CircuitModule:
        """Build the module, in eval mode. If ``fold``, BatchNorms are folded into the convolution before them."""
        self._graph.output(tuple(outputs) if always_tuple else outputs[0])
        if fold:
            self._fold()
        graph = _by_output(self._graph, outputs)
        read = {node.target for node in graph.nodes if node.op == "get_attr"}
        for name in [*self._root._buffers]:
            if name not in read:  # written for a call that was not used
                del self._root._buffers[name]
        return from_graph(self._root, graph, self._shape, any_size=any_size)

    def _fold(self) -> None:
        """Fold each BatchNorm into the convolution before it, unless that has other readers."""
        for node in list(self._graph.nodes):
            norm, source = self._module_of(node), node.args[0] if node.args else None
            if not isinstance(norm, _BatchNorm) or not isinstance(source, fx.Node) or len(source.users) > 1:
                continue
            conv, mean = self._module_of(source), norm.running_mean
            if not isinstance(conv, nn.Conv2d) or mean is None or mean.dtype not in (torch.float32, torch.float64):
                continue
            self._replace(str(source.target), fuse_conv_bn_eval(conv.eval(), norm.eval()).requires_grad_())
            self._replace(str(node.target), None)
            node.replace_all_uses_with(source)
            self._graph.erase_node(node)

    def _module_of(self, node: fx.Node) -> nn.Module | None:
        return submodule(self._root, str(node.target)) if node.op == "call_module" else None

    def _replace(self, name: str, module: nn.Module | None) -> None:
        path, _, own = name.rpartition(".")
        parent = submodule(self._root, path)
        if module is None:
            del parent._modules[own]
        else:
            parent._modules[own] = module


def identity(value: Any) -> Any:
    """Return a hashable key that is equal for equal arguments; tensors are compared by their bytes."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        raw = plain.flatten().view(torch.uint8).numpy()
        return (tuple(value.shape), value.dtype, hashlib.blake2b(raw.data, digest_size=16).digest())
    if isinstance(value, Mapping):
        return tuple((k, identity(v)) for k, v in sorted(value.items()))
    if isinstance(value, (tuple, list)):
        return tuple(identity(v) for v in value)
    return (type(value), value) if isinstance(value, (bool, int, float)) else value


def _free_name(name: str, taken: Callable[[str], bool]) -> str:
    free, k = name, 1
    while taken(free):
        free, k = f"{name}_{k}", k + 1
    return free


def _by_output(graph: fx.Graph, outputs: Iterable[fx.Node]) -> fx.Graph:
    """Reorder a graph to compute its outputs one after the other, so that fewer tensors are in memory at once."""
    ordered, copies = fx.Graph(), dict[fx.Node, fx.Node]()

    def copy(node: fx.Node) -> None:
        copies[node] = ordered.node_copy(node, lambda a: copies[a])

    for node in graph.nodes:
        if node.op == "placeholder":
            copy(node)
    for output in outputs:
        stack = [output]
        while stack:
            node = stack[-1]
            waiting = [a for a in node.all_input_nodes if a not in copies]
            stack.extend(reversed(waiting))
            if not waiting:
                stack.pop()
                if node not in copies:
                    copy(node)
    copy(next(node for node in graph.nodes if node.op == "output"))
    return ordered
