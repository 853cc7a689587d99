"""Find photographs, split them, and cut them into a model's inputs."""

from __future__ import annotations

import importlib.util
import logging
import math
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from convcircuits.errors import ConvCircuitsError
from convcircuits.files import is_folder

_log = logging.getLogger(__name__)

_SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
_SAMPLES = {  # name -> (package, path inside it)
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}


@dataclass(frozen=True)
class Photograph:
    """A picture with a name.

    Attributes:
        name: of the file, or of the built-in photograph; unique within a set of photographs.
        image: in mode RGB, upright, in memory.
    """

    name: str
    image: Image.Image


def photographs(source: str | Path) -> tuple[list[Photograph], list[str]]:
    """Load `sample`, the built-in photographs, or a folder of one's own.

    Args:
        source: `sample`, or a folder (`./sample` for one of that name).

    Returns:
        The photographs, sorted by name, and the names of the files that could not be read.

    Raises:
        ConvCircuitsError: as `sample_photographs` and `load_folder`.
    """
    return (sample_photographs(), []) if source == "sample" else load_folder(source)


def sample_photographs() -> list[Photograph]:
    """Return twelve photographs, sorted by name: eight in colour, four (brick, camera, grass, gravel) grey.

    They are files in the wheels of scikit-image and scikit-learn; neither package is imported.

    Raises:
        ConvCircuitsError: one of the two is not installed.
    """
    found = []
    for name, (package, inside) in _SAMPLES.items():
        path = _package_folder(package) / inside
        if not path.is_file():
            raise ConvCircuitsError(
                f"The photograph {name!r} is missing: the installed {package} has no {inside}. "
                "Reinstall it: pip install --force-reinstall scikit-image scikit-learn"
            )
        found.append(Photograph(name, _read(path)))
    return found


def load_folder(path: str | Path) -> tuple[list[Photograph], list[str]]:
    """Read the pictures of a folder: upright, in RGB, sorted as people count (2 before 10).

    The camera's orientation is applied; transparent pictures are laid on white, 16-bit ones scaled to 8 bits,
    of animations the first frame is taken. Sub-folders, hidden files and other kinds of files are ignored.

    Returns:
        The photographs, named by their files, and the names of the files that could not be read, which are
        logged too: damaged or cut off ones, floating-point ones, and those with more pixels than
        `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        ConvCircuitsError: no such folder, or no readable picture in it.
    """
    folder = Path(path)
    if not is_folder(folder):
        raise ConvCircuitsError(f"{str(path)!r} is not a folder. Give a folder of pictures, or 'sample'.")
    files = [file for file in folder.iterdir() if _is_picture(file)]
    good: list[Photograph] = []
    bad: list[str] = []
    for file in sorted(files, key=lambda file: _natural(file.name)):
        try:
            good.append(Photograph(file.name, _read(file)))
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            _log.warning("%s cannot be read and is left out: %s", file.name, error)
            bad.append(file.name)
    if not good:
        problem = f"none of its pictures can be read ({', '.join(bad[:3])})" if bad else "it holds no pictures"
        raise ConvCircuitsError(
            f"Nothing to load from {str(path)!r}: {problem}. Give a folder with {', '.join(sorted(_SUFFIXES))} files."
        )
    return good, bad


def split_photographs(
    photographs: Sequence[Photograph], *, held_out: float = 0.4, seed: int = 0
) -> tuple[list[Photograph], list[Photograph]]:
    """Split photographs in two at random: never two crops of one photograph on both sides.

    The split depends on the names and the seed, not on the order.

    Args:
        photographs: with different names.
        held_out: the share of the second part, between 0 and 1; rounded to whole photographs.
        seed: of the split.

    Returns:
        The photographs to work with and those held out, each sorted by name.

    Raises:
        ConvCircuitsError: a share outside of (0, 1), a name that occurs twice, or a part without photographs.
    """
    if not 0 < held_out < 1:
        raise ConvCircuitsError(f"held_out={held_out} is not a share between 0 and 1. Give, say, 0.4.")
    names = sorted(photograph.name for photograph in photographs)
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ConvCircuitsError(
            f"More than one photograph is called {twice[0]!r}; the split is by name. Give each its own name."
        )
    count = round(held_out * len(names))
    if not 0 < count < len(names):
        raise ConvCircuitsError(
            f"held_out={held_out} of {len(names)} photographs leaves {len(names) - count} and {count}; "
            "both parts need at least one. Give more photographs, or a share nearer to 0.5."
        )
    chosen = set(random.Random(seed).sample(names, count))
    by_name = sorted(photographs, key=lambda photograph: photograph.name)
    kept = [photograph for photograph in by_name if photograph.name not in chosen]
    return kept, [photograph for photograph in by_name if photograph.name in chosen]


def crops(
    photographs: Sequence[Photograph],
    preprocess: Callable[[Image.Image], torch.Tensor],
    *,
    count: int,
    seed: int,
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Cut photographs into a model's inputs: each one whole, then random parts of it.

    Image i is crop i // P of photograph i % P, for P photographs: so a smaller count yields the beginning of
    a larger one, and with a count below P only the first photographs are used. Crop 0 is the whole
    picture. Every other one has proportions of 3/4 to 4/3, covers from 0.2 of the picture's area up to all
    that fits (of a thin strip: what fits), and is mirrored half of the time. Crops depend on the name of
    their photograph and on the seed, on no other photograph.

    Args:
        photographs: at least one.
        preprocess: a picture -> float (C, H, W).
        count: of images, at least 1.
        seed: of the crops.
        size: (H, W) to resize the images to after preprocessing; default: as preprocessing yields them.

    Returns:
        Images (count, C, H, W), on the CPU.

    Raises:
        ConvCircuitsError: no photographs, or a count below 1.

    Source of the crops: Szegedy et al., Going Deeper with Convolutions (2015).
    """
    if not photographs:
        raise ConvCircuitsError("There are no photographs to crop. Give at least one.")
    if count < 1:
        raise ConvCircuitsError(f"count={count} asks for no images. Give 1 or more.")
    generators = [random.Random(f"{seed}:{photograph.name}") for photograph in photographs]
    images = []
    for index in range(count):
        turn, which = divmod(index, len(photographs))
        picture = photographs[which].image
        images.append(preprocess(_random_crop(picture, generators[which]) if turn else picture))
    batch = torch.stack(images)
    if size is None:
        return batch
    return F.interpolate(batch, size=size, mode="bilinear", antialias=True, align_corners=False)


def _random_crop(picture: Image.Image, generator: random.Random) -> Image.Image:
    width, height = _crop_size(picture.size, generator)
    left = int(generator.random() * (picture.width - width + 1))
    top = int(generator.random() * (picture.height - height + 1))
    crop = picture.crop((left, top, left + width, top + height))
    return ImageOps.mirror(crop) if generator.random() < 0.5 else crop


def _crop_size(size: tuple[int, int], generator: random.Random) -> tuple[int, int]:
    """Draw the (width, height) of a crop: its proportions first, then an area that fits with them."""
    ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
    widest = min(size[0], size[1] * ratio)
    largest = widest**2 / ratio / (size[0] * size[1])
    area = size[0] * size[1] * generator.uniform(min(0.2, largest), largest)
    return max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))


def _read(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):  # 16 bits; some readers hand them out as 32
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()


def _natural(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts the numbers in names by value; text and numbers alternate, so they compare."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConvCircuitsError(
            f"The sample photographs need the package {package}, which is not installed. "
            "Install it: pip install scikit-image scikit-learn"
        )
    return Path(found.submodule_search_locations[0])
