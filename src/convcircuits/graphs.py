"""An extracted module as JSON and tensors, and back, without the code of the model it came from.

A graph is a list of calls on one image batch. Functions and layers go by name, and only names of the lists below are
ever looked up: what they name reads and makes tensors and touches nothing else. `torch.fx` writes Python code of a
graph, so every word of a file that would get into that code is checked first.
"""

import keyword
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from convcircuits.errors import ConvCircuitsError

# Of torch, torch.nn.functional, torch.linalg, operator and of tensors' methods; a name need not be in all of them.
_NAMES = """
abs add addcdiv addcmul atan ceil clamp clamp_max clamp_min clip cos cosh div divide erf exp exp2 expm1 floor frac lerp
log log10 log1p log2 maximum minimum mul multiply nan_to_num neg negative pow reciprocal remainder round rsqrt rsub sign
sin sinh sqrt square sub subtract tan tanh true_divide truediv trunc where

celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid logsigmoid log_softmax mish prelu
relu relu6 rrelu selu sigmoid silu softmax softmin softplus softshrink softsign tanhshrink threshold
dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout

adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d avg_pool1d avg_pool2d lp_pool2d
max_pool1d max_pool2d interpolate upsample fold unfold
batch_norm group_norm instance_norm layer_norm local_response_norm normalize rms_norm

all amax amin any argmax argmin cumsum logsumexp max mean median min norm prod sort std std_mean sum topk var var_mean
vector_norm

bmm cat chunk concat concatenate dstack einsum gather hstack index_select matmul mm narrow select split stack
take_along_dim tensor_split unbind vstack

broadcast_to channel_shuffle clone contiguous detach expand expand_as flatten flip getitem masked_fill moveaxis movedim
pad permute pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape reshape_as roll rot90 squeeze swapaxes
swapdims tile transpose tril triu unflatten unsqueeze view view_as

eq ge gt le logical_and logical_not logical_or lt ne
bfloat16 double float full_like half ones_like size to type_as zeros_like _assert
""".split()  # noqa: SIM905 (a list of 190 strings would be no list to read)
_SPACES = {"torch.nn.functional": F, "torch.linalg": torch.linalg, "operator": operator, "torch": torch}
_FUNCTIONS = {
    f"{space}.{name}": function
    for space, module in _SPACES.items()
    for name in _NAMES
    if callable(function := getattr(module, name, None))
}
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_METHODS = {name for name in _NAMES if hasattr(Tensor, name)}

_CHANNELS = ("in_channels", "out_channels", "groups", "bias")
_WINDOW = ("kernel_size", "stride", "padding", "padding_mode", "dilation")
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_LAYERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Conv2d": (nn.Conv2d, _CHANNELS + _WINDOW),
    "Linear": (nn.Linear, ("in_features", "out_features", "bias")),
    "BatchNorm1d": (nn.BatchNorm1d, _NORM),
    "BatchNorm2d": (nn.BatchNorm2d, _NORM),
}
_CONSTANTS: dict[str, Any] = {
    str(value): value
    for value in (Ellipsis, *vars(torch).values())
    if value is Ellipsis or isinstance(value, (torch.dtype, torch.memory_format))
}
_SAFE_NAME = re.compile(r"[\w -]+(\.[\w -]+)*")


def to_json(module: fx.GraphModule) -> dict[str, Any]:
    """Say in JSON values what a module computes; its state dict is not among them.

    Raises:
        ConvCircuitsError: If it calls a function or holds a layer that is not in the lists.
    """
    numbers: dict[fx.Node, int] = {}
    calls, output = [], None
    for node in module.graph.nodes:
        if node.op == "output":
            output = _encoded(node.args[0], numbers)
            continue
        if (node.op == "placeholder") != (not numbers):
            raise _unsavable("it takes something other than one batch of images")
        if node.op != "placeholder":
            calls.append(
                {
                    "op": node.op,
                    "target": _target_name(node),
                    "args": [_encoded(value, numbers) for value in node.args],
                    "kwargs": {name: _encoded(value, numbers) for name, value in node.kwargs.items()},
                }
            )
        numbers[node] = len(calls)
    layers = {name: _described(name, layer) for name, layer in module.named_modules() if name and _is_layer(layer)}
    # safetensors sorts its keys
    return {"layers": layers, "tensors": list(module.state_dict()), "calls": calls, "output": output}


def from_json(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """Make the module of what ``to_json`` said and of its state dict, in eval mode; nothing of it is run.

    Raises:
        ConvCircuitsError: If a function, a layer or a name is none that a file may hold, or tensors are missing or
            too many. What is wrong in other ways raises an exception of another type.
    """
    root = fx.GraphModule(nn.Module(), fx.Graph())  # whose own attributes no name may take
    for name, layer in said["layers"].items():
        parent, own = _parent(root, name)
        parent.add_module(own, _layer(layer))
    of_layers = root.state_dict()
    for name in said["tensors"]:
        if name not in of_layers:
            parent, own = _parent(root, name)
            parent.register_buffer(own, tensors[name])
    root.load_state_dict(dict(tensors), assign=True)
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    for call in said["calls"]:
        nodes.append(_written(graph, call, nodes, said["layers"].keys(), tensors.keys()))
    graph.output(_decoded(said["output"], nodes))
    module = fx.GraphModule(root, graph, "Circuit")
    graph.lint()
    unused = sorted(tensors.keys() ^ module.state_dict().keys())
    if unused:
        raise ConvCircuitsError(f"no call uses {', '.join(unused[:3])}")
    return module.eval()


# ---------------------------------------- calls


def _target_name(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else _FUNCTION_NAMES.get(node.target)
    if name is None or (node.op == "call_method" and name not in _METHODS):
        called = name or f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', node.target)}"
        raise _unsavable(f"it calls {called}, which is not among the functions that a file may name")
    return name


def _written(graph: fx.Graph, call: Mapping[str, Any], nodes: Sequence[fx.Node], layers: Any, tensors: Any) -> fx.Node:
    """Write one call into a graph, if it is one that a file may hold."""
    op, target = call["op"], call["target"]
    args = tuple(_decoded(value, nodes) for value in call["args"])
    kwargs = {name: _decoded(value, nodes) for name, value in call["kwargs"].items()}
    for name in kwargs:
        if not name.isidentifier() or keyword.iskeyword(name) or name == "out":
            raise ConvCircuitsError(f"{target!r} cannot be called with {name!r}")
    on_node = bool(args) and isinstance(args[0], fx.Node)
    if op == "call_function" and target in _FUNCTIONS:
        return graph.call_function(_FUNCTIONS[target], args, kwargs)
    if op == "call_method" and target in _METHODS and on_node:
        return graph.call_method(target, args, kwargs)
    if op == "call_module" and target in layers and on_node and len(args) == 1 and not kwargs:
        return graph.call_module(target, args)
    if op == "get_attr" and target in tensors and not args and not kwargs:
        return graph.create_node("get_attr", target)
    raise ConvCircuitsError(f"{op!r} of {target!r} is not among the calls that a file may hold")


def _encoded(value: Any, numbers: Mapping[fx.Node, int]) -> Any:
    """Say an argument in JSON; whatever JSON has no word for becomes an object of one key."""
    if isinstance(value, fx.Node):
        return {"node": numbers[value]}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, slice):
        return {"slice": [_encoded(part, numbers) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, (tuple, list)):
        parts = [_encoded(part, numbers) for part in value]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, (torch.dtype, torch.memory_format)) or value is Ellipsis:
        return {"constant": str(value)}
    raise _unsavable(f"an argument in it is {value!r}, of type {type(value).__name__}")


def _decoded(value: Any, nodes: Sequence[fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decoded(part, nodes) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, what),) = value.items()
    if kind == "node":
        return nodes[what]
    if kind == "float":
        return float(what)
    if kind == "constant":
        return _CONSTANTS[what]
    parts = [_decoded(part, nodes) for part in what]
    if kind == "slice":
        return slice(*parts)
    if kind == "tuple":
        return tuple(parts)
    raise ConvCircuitsError(f"an argument is a {kind!r}")


# ---------------------------------------- layers


def _is_layer(module: nn.Module) -> bool:
    return type(module) is not nn.Module  # a bare one only holds others


def _described(name: str, layer: nn.Module) -> dict[str, Any]:
    kind = type(layer).__name__
    if kind not in _LAYERS or _LAYERS[kind][0] is not type(layer):
        known = ", ".join(_LAYERS)
        raise _unsavable(f"its layer {name} is {kind}, and a file may hold {known}")
    options = {option: getattr(layer, option) for option in _LAYERS[kind][1]}
    if "bias" in options:
        options["bias"] = options["bias"] is not None
    return {"kind": kind, "options": {option: _encoded(value, {}) for option, value in options.items()}}


def _layer(said: Mapping[str, Any]) -> nn.Module:
    """Make a layer without memory for its weights, which the file has to bring."""
    kind, names = _LAYERS[said["kind"]]
    options = {name: _decoded(value, ()) for name, value in said["options"].items()}
    if sorted(options) != sorted(names):
        raise ConvCircuitsError(f"a {said['kind']} needs {', '.join(names)}; given were {', '.join(options)}")
    sizes = (value for name, value in options.items() if name.endswith(("_channels", "_features", "_size")))
    if any(size < 1 for value in sizes for size in (value if isinstance(value, tuple) else (value,))):
        raise ConvCircuitsError(f"a {said['kind']} has a size below 1")
    return kind(**options, device="meta")


def _parent(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Find the module that holds what has that name, making those on the way; give it and the last part of the name."""
    if not _SAFE_NAME.fullmatch(name):
        raise ConvCircuitsError(f"{name!r} is no name for a layer or tensor in a file")
    *path, own = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root, own


def _unsavable(why: str) -> ConvCircuitsError:
    return ConvCircuitsError(
        f"This module cannot be saved as .safetensors: {why}. "
        "torch.export.save(torch.export.export(module, (images,)), FILE) can save it."
    )
