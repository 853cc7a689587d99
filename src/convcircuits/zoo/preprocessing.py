"""Turn a picture into a model's input, and describe how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from convcircuits.errors import ConvCircuitsError, option

Preprocessing = Callable[[Image.Image], torch.Tensor]
"""A function that turns a picture into a float32 (C, H, W) input."""


_UNEVEN = 0.02
"""Largest distance, as a share of a picture's side, of a pixel from where an even resize puts it."""


class Region(NamedTuple):
    """A part of a picture, in its pixels, fractions included; it may extend beyond the picture."""

    top: float
    left: float
    height: float
    width: float

    def part(self, box: Sequence[float], shape: tuple[int, int]) -> Region:
        """Return the part of the picture that a box of an image shows, if the region is the whole image.

        Args:
            box: Top, left, height and width, in pixels of the image.
            shape: (H, W) of the image.
        """
        rows, columns = self.height / shape[0], self.width / shape[1]
        top, left, height, width = box
        return Region(self.top + top * rows, self.left + left * columns, height * rows, width * columns)

    def within(self, other: Region) -> Region:
        """Return the part that lies within another region; its sides are 0 if there is none."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.height, other.top + other.height)
        right = min(self.left + self.width, other.left + other.width)
        return Region(top, left, max(0.0, bottom - top), max(0.0, right - left))


@dataclass(frozen=True)
class Preprocess:
    """Turn a picture into a model's input: resize to cover, crop the center, normalize.

    The picture is resized, keeping its aspect ratio, to the smallest size that covers ``resize``; a square ``resize``
    sets the shorter side. Then the center of size ``size`` is cropped, and every channel becomes
    (pixel - mean) / std.

    Attributes:
        mean: Mean of each channel, in pixel units (0 to 255), in the order of the model's channels. A single value
            converts the picture to gray.
        std: Standard deviation of each channel, in pixel units (0 to 255).
        size: (H, W) of the result.
        resize: (H, W) to cover before the crop, at least ``size``.
        bgr: Whether the model's channels are blue, green, red.
        resample: Pillow's resampling filter for the resize.
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
                f"The mean {self.mean} and std {self.std} must have three values, one per color, or one for gray. For "
                "other numbers of channels write a function that turns a picture into (C, H, W)."
            )

    def gray(self) -> Preprocess:
        """Return the same preprocessing for gray pictures, normalized by the averages of mean and std."""
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,), std=(std,))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the float32 (3, H, W) or, in gray, (1, H, W) input for one picture, on the CPU."""
        resized, (left, top) = self._placed(image.size)
        picture = image.convert("L" if len(self.mean) == 1 else "RGB").resize(resized, self.resample)
        picture = picture.crop((left, top, left + self.size[1], top + self.size[0]))
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32)).reshape(*self.size, -1).permute(2, 0, 1)
        if self.bgr:
            pixels = pixels.flip(0)
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        return ((pixels - mean) / std).contiguous()

    def region(self, size: tuple[int, int]) -> Region:
        """Return the part of a picture of this (width, height) that the result shows."""
        (width, height), (left, top) = self._placed(size)
        across, down = size[0] / width, size[1] / height
        return Region(top * down, left * across, self.size[0] * down, self.size[1] * across)

    def _placed(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the (width, height) that a picture is resized to, and (left, top) of what is cut out of that."""
        width, height = size
        rows, columns = self.resize
        if rows * width >= columns * height:
            resized = (rows * width // height, rows)
        else:
            resized = (columns, columns * height // width)
        return resized, (round((resized[0] - self.size[1]) / 2), round((resized[1] - self.size[0]) / 2))


def region_shown(preprocess: Preprocessing, size: tuple[int, int]) -> Region:
    """Return the part of a picture that its input shows.

    A function of another origin is measured on ramps from black to white, to a fraction of the input's pixel.

    Args:
        preprocess: What turns the picture into an input.
        size: (width, height) of the picture.

    Raises:
        ConvCircuitsError: If the function is not a resize and a crop, so that there is no such part.
    """
    if isinstance(preprocess, Preprocess):
        return preprocess.region(size)
    black, white = (preprocess(Image.new("RGB", size, color)).double() for color in ("black", "white"))
    width, height = size
    spans = []
    for axis, length in enumerate((height, width)):
        levels = (np.arange(length) + 0.5) * (255 / length)
        across = np.linspace(0, 16, size[axis], endpoint=False) % 1 - 0.5  # so that rounding errors average out
        ramp = np.add.outer(levels, across).round().clip(0, 255).astype(np.uint8)
        seen = preprocess(Image.fromarray(ramp.T if axis else ramp).convert("RGB")).double()
        spans.append([length * end for end in _ends(seen - black, white - black, axis)])
    (top, bottom), (left, right) = spans
    return Region(top, left, bottom - top, right - left)


def _ends(ramp: torch.Tensor, whole: torch.Tensor, axis: int) -> tuple[float, float]:
    """Return where an input (C, H, W) begins and ends on a ramp, as shares of its length.

    Args:
        ramp: The input of the ramp, minus that of a black picture.
        whole: The same for a white picture. Both are 0 where the preprocessing pads.
        axis: The ramp ascends along the input's rows (0) or columns (1).

    Raises:
        ConvCircuitsError: If the input does not ascend evenly.
    """
    summed = (0, 2 - axis)
    weight = whole.square().sum(summed)
    shown = weight > 0.9 * weight.max()
    share = (ramp * whole).sum(summed)[shown] / weight[shown]
    place = (torch.arange(len(weight)) + 0.5)[shown]
    slope, start = 0.0, 0.0
    if len(place) > 1:
        slope = float(torch.cov(torch.stack([place, share]))[0, 1] / place.var())
        start = float(share.mean() - slope * place.mean())
    if slope <= 0 or float((share - start - slope * place).abs().max()) > _UNEVEN:
        raise ConvCircuitsError(
            "Where an input lies on its photograph cannot be measured, because the preprocessing of the model's images "
            "does more than resize and crop."
        )
    return start, start + slope * len(weight)


def on_rgb(transform: Preprocessing) -> Preprocessing:
    """Wrap a transform of another library so that it only gets RGB pictures."""
    return lambda image: transform(image.convert("RGB"))


class Authority(Enum):
    """Where a model's normalization comes from. The values end a sentence that describes it."""

    WEIGHTS = "as its weights require"
    FACTORY = "as the factory's preprocess specifies"
    CONFIGURATION = "as the model's own configuration specifies"
    CALLER = "as requested"
    NOBODY = "ImageNet's, because nothing says what the model was trained with"


def configured(config: Mapping[str, Any]) -> Preprocess:
    """Read a model's data configuration, a mapping with timm's keys. Missing keys default to ImageNet's values."""
    plain = Preprocess()
    _, height, width = config.get("input_size", (3, *plain.size))
    share = config.get("crop_pct", 0.875)
    return Preprocess(
        mean=tuple(255 * value for value in config["mean"]) if "mean" in config else plain.mean,
        std=tuple(255 * value for value in config["std"]) if "std" in config else plain.std,
        size=(height, width),
        resize=(int(height / share), int(width / share)),
        resample=Image.Resampling.__members__.get(config.get("interpolation", "bilinear").upper(), plain.resample),
    )


def normalized_by(preprocess: Preprocess, mean: Sequence[float] | None, std: Sequence[float] | None) -> Preprocess:
    """Replace the mean and standard deviation, for pixels from 0 to 1: one value per color, or one for all."""
    if mean is None or std is None:
        raise ConvCircuitsError(f"Give {option('mean')} and {option('std')} together.")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, 3) or not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
            raise ConvCircuitsError(
                f"{option(name)} takes three numbers for red, green and blue, or one for all, for pixels from 0 to 1; "
                f"got {', '.join(map(str, values))}. (If they are for pixels from 0 to 255, divide them by 255.)"
            )
    means, stds = (tuple(255 * value for value in values) * (3 // len(values)) for values in (mean, std))
    return replace(preprocess, mean=means, std=stds)


def described(preprocess: Preprocessing, authority: Authority, spec: str) -> str:
    """Describe in a sentence how a model's images are prepared and where that comes from."""
    if not isinstance(preprocess, Preprocess):
        own = authority is Authority.FACTORY
        whose = "the factory's own preprocess" if own else "the transforms that belong to its weights"
        return f"Images for {spec} are prepared by {whose}."
    resize, size = (f"{rows} x {columns}" for rows, columns in (preprocess.resize, preprocess.size))
    mean, std = (", ".join(f"{value / 255:.3g}" for value in values) for values in (preprocess.mean, preprocess.std))
    sentence = (
        f"Images for {spec} are resized to cover {resize}, cropped to {size} and normalized by mean {mean} and std "
        f"{std} of {'blue, green, red' if preprocess.bgr else 'pixels'} from 0 to 1, {authority.value}."
    )
    if authority is not Authority.NOBODY:
        return sentence
    return (
        f"{sentence} If that is wrong, so is every figure: give {option('mean')} and {option('std')}, or the factory "
        "or its module an attribute preprocess."
    )


def output_shape(preprocess: Preprocessing, spec: str) -> tuple[int, int, int]:
    """Return the (C, H, W) that the preprocessing yields, after checking a wide and a tall picture."""
    wide, tall = (tuple(preprocess(Image.new("RGB", size)).shape) for size in ((640, 480), (480, 640)))
    if wide != tall or len(wide) != 3:
        raise ConvCircuitsError(
            f"The preprocessing of {spec!r} yields shapes {wide} and {tall} for a wide and a tall "
            "picture; it must yield the same shape (C, H, W) for every picture. Let it crop the center."
        )
    return wide
