"""List a model's layers, with the names that its community has for them."""

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
        name: Dotted, as in ``model.named_modules()``.
        kind: The name of its class.
        channels: Of its (first) output, which is (N, channels, H, W) or (N, channels).
        map: (H, W) of that output, or () for a 2-D one.
        calls: How often it runs in one forward pass.
        categories: Whether it has as many channels as the model has categories, so that class names name them.
        alias: What the network's community calls it, or nothing.
        kernels: How many it has itself, 0 unless it is a convolution or a Linear layer.
        computes: Whether its output differs from its input; false for an identity, or a dropout in eval mode.
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

    Those are the modules below the model itself whose output is a 4-D or a 2-D tensor, from the first kernel on. A copy
    of the model runs once, in eval mode, on an image of zeros; the model itself is left alone.

    Args:
        model: Takes images (N, channels, H, W).
        size: (H, W) of the image.
        channels: Of the image.
        categories: The names of the model's outputs, if they are known.
        aliases: A layer's name in the network's community -> the layer.

    Raises:
        ConvCircuitsError: The model cannot run on such an image.
    """
    twin = _twin(model)
    names = {module: name for name, module in twin.named_modules()}
    called = {layer: alias for alias, layer in (aliases or {}).items()}
    found: dict[str, LayerInfo] = {}
    running: list[list[tuple[torch.Tensor, int]]] = []  # of each module its inputs, and how often they had been written
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
        module._forward_hooks.clear()  # the user's own, which may count or record
        module._forward_pre_hooks.clear()
        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)
    try:
        _run_on_zeros(twin, channels, size)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConvCircuitsError(
            f"The model does not run on an image of shape {(1, channels, *size)}: {error}. "
            "Give the size, and the number of channels, that it takes."
        ) from error
    return list(found.values())


def takes(model: nn.Module, channels: int, size: tuple[int, int]) -> bool:
    """Return whether a copy of a model runs on an image of zeros."""
    try:
        _run_on_zeros(_twin(model), channels, size)
    except Exception:  # a model may refuse an image in any way
        return False
    return True


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy of a model in eval mode, with weights of its own, which its forward may write to."""
    twin = private_copy(model)
    for parameter in twin.parameters():
        parameter.data = parameter.data.clone()
    return twin


def _run_on_zeros(twin: nn.Module, channels: int, size: tuple[int, int]) -> None:
    like = next(iter(twin.parameters()), torch.zeros(()))
    with torch.no_grad():
        twin(torch.zeros(1, channels, *size, dtype=like.dtype, device=like.device))


def _is_same(x: torch.Tensor, output: object) -> bool:
    """Return whether an output is an input itself, or a view of all of it."""
    return isinstance(output, torch.Tensor) and (
        (x.data_ptr(), x.shape, x.stride()) == (output.data_ptr(), output.shape, output.stride())
    )


# ---------------------------------------- what the networks' communities call layers

_KINDS = {nn.Conv2d: "conv", nn.ReLU: "relu", nn.MaxPool2d: "pool"}
_GOOGLENET = {
    **{f"conv2d{number}": f"conv{number + 1}" for number in range(3)},
    **{f"mixed{block}": f"inception{block}" for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")},
}


def aliases(network: str, model: nn.Module) -> dict[str, str]:
    """Return the names that papers and atlases have for a network's layers -> the layers; none is a module's name.

    VGG's convolutions count within blocks (``conv3_3``), AlexNet's through (``conv5``), as in Caffe; so do the ReLUs
    and poolings after them, and Linear layers go on as ``fc6``, ``fc7``, ``fc8``. GoogLeNet's blocks are those of lucid
    and the OpenAI Microscope (``mixed4d``).

    Args:
        network: Its name in torchvision or timm.
        model: The network.
    """
    if network.startswith("vgg") or network == "alexnet":
        known = _numbered(model, in_blocks=network != "alexnet")
    else:
        known = _GOOGLENET if network == "googlenet" else {}
    modules = dict(model.named_modules())
    return {alias: layer for alias, layer in known.items() if layer in modules and alias not in modules}


def _numbered(model: nn.Module, *, in_blocks: bool) -> dict[str, str]:
    """Number the layers of a plain network, in blocks that end with a pooling or straight through."""
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
