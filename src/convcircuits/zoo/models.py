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
from convcircuits.zoo.sources import OWN_CODE, RANDOM, SOURCES, Built, build, parts
from convcircuits.zoo.weights import load_state_dict, read_state_dict


@dataclass(frozen=True)
class LoadedModel:
    """A model and what is needed to show it pictures.

    Attributes:
        name: The spec that it was loaded by.
        model: In eval mode, on the CPU.
        preprocess: A picture -> its float32 (C, H, W) input, normalized as this model wants it.
        size: (H, W) that ``preprocess`` yields.
        categories: The names of the outputs (of its default weights, whichever it has), or None where they are not
            known.
        channels: C that ``preprocess`` yields.
        normalization: What ``preprocess`` does to a picture and who says so, in a sentence.
        assumed: Whether nobody says so, and ImageNet's mean and std are taken.
        aliases: A layer's name in the network's community -> the layer.
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
        """Read the text form of a feature: ``features.14:166``, ``conv3_3:166``, ``fc:golden retriever``.

        A layer may go by one of ``aliases``, and a class name may stand for its unit. Case is ignored, unless the
        spelling as given is a name. Where a category has several names, separated by commas, each of them will do.

        Raises:
            ConvCircuitsError: The text has another form; the name is unknown or that of several units; the layer
                does not have as many channels as there are categories.
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
        return torch.stack([self.preprocess(Image.new("RGB", (64, 64), color)).mean((1, 2)) for color in plain])

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
                f"{self.name} do not name. Layers with class names: {classifiers}."
            )
        if len(units) > 1:
            which = ", ".join(f"{layer}:{unit} ({self.categories[unit]})" for unit in units)
            raise ConvCircuitsError(f"{name!r} names several units; write which is meant: {which}.")
        return units[0]


def _units_named(name: str, categories: Sequence[str]) -> list[int]:
    """List the units of exactly that name; if there are none, those with it in other case or among their names."""
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

    The caller's random state is left as it was; whatever is initialized at random comes out the same each
    time.

    Args:
        spec: One of

            - ``vgg16_hed``: VGG16's convolutions, fine-tuned from ImageNet to find edges (no download);
            - ``efficientnet_lite0``: EfficientNet-Lite0, ImageNet weights (no download);
            - ``torchvision:NAME``: an image classifier with torchvision's default weights;
            - ``timm:NAME``: a timm model with its pretrained weights;
            - ``torchvision:NAME@random``, ``timm:NAME@random``: the same with seeded random weights;
            - ``package.module:factory``: a function without arguments that returns the model, found in the
              working directory too. Its preprocessing is the attribute ``preprocess`` of the function or of
              its module, else what the model's ``pretrained_cfg`` or ``default_cfg`` says (as in timm), else
              that of ImageNet classifiers at 224 x 224. A model of one channel is shown gray pictures by a
              ``Preprocess``; for other numbers of channels (an alpha channel, which photographs lack) write a
              preprocessing of your own. The names of its outputs are the attribute ``categories``, in the same
              two places.
        weights: A state dict to load instead, as .safetensors, .pt or .pth; one under the key ``state_dict``
            or ``model`` and one saved from a data-parallel model are understood. Nothing is downloaded
            then. Preprocessing and categories stay those of the model's default weights.
        mean: By which a factory's images are normalized, where it has no ``preprocess``: three numbers for red, green
            and blue or one for all, of pixels from 0 to 1.
        std: The standard deviation, likewise.

    Raises:
        ConvCircuitsError: An unknown spec, a missing package, a failed download, weights that do not fit, or a mean
            and std that are out of range or given for a model that says itself how its images are prepared.

    Sources: Xie and Tu, Holistically-Nested Edge Detection (2015), whose VGG16 convolutions ``vgg16_hed``
    are; Tan and Le, EfficientNet (2019).
    """
    source, name, is_random = parts(spec)
    if is_random and (source not in SOURCES or not name):
        raise ConvCircuitsError(
            f"{spec!r}: only 'torchvision:NAME' and 'timm:NAME' come with random weights. Leave {RANDOM!r} out."
        )
    if is_random and weights is not None:
        raise ConvCircuitsError(
            f"{spec!r} asks for random weights, but {option('weights', str(weights))} was given too. Drop one."
        )
    state = None if weights is None else read_state_dict(Path(weights))
    built = build(spec, pretrained=not is_random and state is None)
    model = built.model
    if state is not None:
        load_state_dict(model, state, f"the weights in {str(weights)!r}", spec)
    model.eval()  # which a class of one's own may have overridden to return nothing
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
    """Put a mean and std that were given in place of a configuration's, or of those that nobody gave."""
    own = built.authority not in (Authority.CONFIGURATION, Authority.NOBODY)
    if own or not isinstance(built.preprocess, Preprocess):
        raise ConvCircuitsError(
            f"{spec!r} says itself how its images are prepared; leave out {option('mean')} and {option('std')}."
        )
    return built._replace(preprocess=normalized_by(built.preprocess, mean, std), authority=Authority.CALLER)


def _fitting(model: nn.Module, preprocess: Preprocessing, spec: str) -> Preprocessing:
    """Make a ``Preprocess`` of three colors gray where the model takes one channel; refuse where it takes others."""
    if not isinstance(preprocess, Preprocess) or len(preprocess.mean) == 1:
        return preprocess
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    # A model that takes none of these shows what is wrong when it runs on images.
    channels = next((number for number in (3, 1, first) if takes(model, number, preprocess.size)), 3)
    if channels not in (1, 3):
        raise ConvCircuitsError(
            f"{spec!r} takes images of {channels} channels, and a photograph has three, or one in gray. Give the "
            f"factory, or its module, a function `preprocess` that turns a picture into ({channels}, H, W)."
        )
    return preprocess.gray() if channels == 1 else preprocess


@dataclass(frozen=True)
class ModelInfo:
    """One kind of spec that ``load_model`` understands.

    Attributes:
        name: The spec, or its pattern with the free part in capitals.
        source: The packages that it comes from.
        available: Whether they are installed.
        note: What it is, or how to install it.
    """

    name: str
    source: str
    available: bool
    note: str


def list_models() -> list[ModelInfo]:
    """List what ``load_model`` understands, and which of it is installed."""
    infos = []
    for pattern, packages, note, _ in SOURCES.values():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        install = "; ".join(dict.fromkeys(INSTALL[package] for package in missing))
        infos.append(ModelInfo(pattern, " + ".join(packages), not missing, install or note))
    return [*infos, ModelInfo(OWN_CODE, "your own code", True, "a function that returns an nn.Module")]
