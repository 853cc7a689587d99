"""List a model's layers, with the names that papers use for them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.copying import private_copy


@dataclass(frozen=True)
class LayerInfo:
    """One module that can carry a feature.

    Attributes:
        name: Its dotted name, as in ``model.named_modules()``.
        kind: The name of its class.
        channels: Number of channels of its (first) output, which is (N, channels, H, W) or (N, channels).
        map: (H, W) of that output, or () if it is 2-D.
        calls: Number of times it runs in one forward pass.
        categories: Whether it has one channel per category of the model, so that class names apply to its channels.
        alias: The name that papers use for it, or an empty string.
        kernels: Number of its own kernels; 0 unless it is a convolution or a Linear layer.
        computes: Whether its output differs from its input; False for an identity, or a dropout in eval mode.
    """

    name: str
    kind: str
    channels: int
    map: tuple[int, ...]
    calls: int
    categories: bool = False
    alias: str = ""
    kernels: int = 0
    computes: bool = True


def list_layers(
    model: nn.Module,
    size: tuple[int, int],
    *,
    channels: int = 3,
    categories: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> list[LayerInfo]:
    """List the modules that can carry a feature, in the order in which they (first) finish.

    These are the submodules that output a 4-D or 2-D tensor, from the first kernel on. A copy of the model runs once,
    in eval mode, on an image of zeros. The model itself is not changed.

    Args:
        model: The model; takes images (N, channels, H, W).
        size: (H, W) of the image.
        channels: Number of channels of the image.
        categories: Names of the model's outputs, if known.
        aliases: A map from the names that papers use for layers to the layers.

    Raises:
        ConvCircuitsError: If the model cannot run on such an image.
    """
    twin = _twin(model)
    names = {module: name for name, module in twin.named_modules()}
    called = {layer: alias for alias, layer in (aliases or {}).items()}
    found: dict[str, LayerInfo] = {}
    running: list[list[tuple[torch.Tensor, int]]] = []  # per running module: its inputs with their versions
    kernels_ran = False

    def begin(_module: nn.Module, inputs: tuple[object, ...]) -> None:
        running.append([(x, x._version) for x in inputs if isinstance(x, torch.Tensor)])

    def end(module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal kernels_ran
        computes = not any(_is_same(x, output) and x._version == version for x, version in running.pop())
        weight = module.weight if isinstance(module, (nn.Conv2d, nn.Linear)) else None
        kernels_ran |= weight is not None
        name = names[module]
        if not name or not isinstance(output, torch.Tensor) or output.ndim not in (2, 4) or not kernels_ran:
            return
        if name in found:
            first = found[name]
            found[name] = replace(first, calls=first.calls + 1, computes=first.computes or computes)
            return
        found[name] = LayerInfo(
            name,
            type(module).__name__,
            output.shape[1],
            tuple(output.shape[2:]),
            calls=1,
            categories=bool(categories) and output.shape[1] == len(categories or ()),
            alias=called.get(name, ""),
            kernels=0 if weight is None else math.prod(weight.shape[:2]),
            computes=computes,
        )

    for module in names:
        module._forward_hooks.clear()  # the user's hooks, which may count or record
        module._forward_pre_hooks.clear()
        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)
    try:
        _run_on_zeros(twin, channels, size)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConvCircuitsError(
            f"The model does not run on an image of shape {(1, channels, *size)}: {error}. "
            "Give the size and the number of channels that it takes."
        ) from error
    return list(found.values())


def takes(model: nn.Module, channels: int, size: tuple[int, int]) -> bool:
    """Return whether a copy of a model runs on an image of zeros."""
    try:
        _run_on_zeros(_twin(model), channels, size)
    except Exception:  # a model may raise anything
        return False
    return True


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy of a model in eval mode. Its weights are copied too, because ``forward`` may write to them."""
    twin = private_copy(model)
    for parameter in twin.parameters():
        parameter.data = parameter.data.clone()
    return twin


def _run_on_zeros(twin: nn.Module, channels: int, size: tuple[int, int]) -> None:
    like = next(iter(twin.parameters()), torch.zeros(()))
    with torch.no_grad():
        twin(torch.zeros(1, channels, *size, dtype=like.dtype, device=like.device))


def _is_same(x: torch.Tensor, output: object) -> bool:
    """Return whether an output is the input itself, or a view of all of it."""
    return isinstance(output, torch.Tensor) and (
        (x.data_ptr(), x.shape, x.stride()) == (output.data_ptr(), output.shape, output.stride())
    )


# ---------------------------------------- names that papers use for layers

_KINDS = {nn.Conv2d: "conv", nn.ReLU: "relu", nn.MaxPool2d: "pool"}
_GOOGLENET = {
    **{f"conv2d{number}": f"conv{number + 1}" for number in range(3)},
    **{f"mixed{block}": f"inception{block}" for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")},
}


def aliases(network: str, model: nn.Module) -> dict[str, str]:
    """Map the names that papers and atlases use for a network's layers to the layers. None is a module's name.

    As in Caffe, VGG's convolutions are numbered within blocks (``conv3_3``) and AlexNet's straight through
    (``conv5``), as are the ReLUs and poolings after them; Linear layers continue as ``fc6``, ``fc7``, ``fc8``.
    GoogLeNet's blocks have their names in lucid and the OpenAI Microscope (``mixed4d``).

    Args:
        network: The network's name in torchvision or timm.
        model: The network.
    """
    if network.startswith("vgg") or network == "alexnet":
        known = _numbered(model, in_blocks=network != "alexnet")
    else:
        known = _GOOGLENET if network == "googlenet" else {}
    modules = dict(model.named_modules())
    return {alias: layer for alias, layer in known.items() if layer in modules and alias not in modules}


def _numbered(model: nn.Module, *, in_blocks: bool) -> dict[str, str]:
    """Number the layers of a plain network, either within blocks that end with a pooling or straight through."""
    numbered: dict[str, str] = {}
    block, index, linear = 1, 0, 6
    for name, module in model.named_modules():
        if not name.startswith("features."):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                numbered[f"fc{linear}"] = name
                linear += 1
            continue
        for kind in (kind for cls, kind in _KINDS.items() if isinstance(module, cls)):
            index += kind == "conv"
            number = f"{block}_{index}" if kind != "pool" else f"{block}"
            numbered[f"{kind}{number if in_blocks else index}"] = name
            if kind == "pool" and in_blocks:
                block, index = block + 1, 0
    return numbered
