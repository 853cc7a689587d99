"""Find photographs, split them, and cut them into a model's inputs."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import math
import os
import random
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile, ImageOps

from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.files import is_folder
from convcircuits.zoo.packages import file_in
from convcircuits.zoo.rcc import entries

_log = logging.getLogger(__name__)

_LONGEST = 64
"""The largest aspect ratio of a picture: a thinner one becomes huge when it is resized to cover a model's input."""
_NO_PICTURES = {"EPS", "MPEG"}  # EPS files are programs, which Ghostscript would run; Pillow never decodes MPEG
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
_GCOMPRIS = "gcompris:"
_BUNDLES = (  # of GCompris's activities that have photographs
    "categorization.rcc",
    "erase.rcc",
    "explore_farm_animals.rcc",
    "explore_monuments.rcc",
    "explore_world_animals.rcc",
    "explore_world_music.rcc",
)
_ALSO_CALLED = {  # subjects of GCompris's photographs that have several names
    "chamaeleon": "chameleon",
    "greatpyramidofgiza": "greatpyramid",
    "greatwallofchina": "greatwall",
    "kutubminar": "qutubminar",
    "numbers": "alphabets",  # on the same toy blocks
}


@dataclass(frozen=True)
class Photograph:
    """A picture with a name.

    Attributes:
        name: Path of the file relative to the folder that was loaded, or the name of a built-in photograph. Unique
            within a set of photographs.
        source: The file, its content, or a picture in memory.
        subject: What it shows. Photographs of one subject are never split. By default the name, so that each
            photograph has its own.
    """

    name: str
    source: Path | bytes | Image.Image = field(repr=False)
    subject: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "subject", self.subject or self.name)

    @property
    def image(self) -> Image.Image:
        """The picture in mode RGB, upright. A file is decoded anew on each access.

        Raises:
            ConvCircuitsError: If the file cannot be read.
        """
        if isinstance(self.source, Image.Image):
            return self.source
        try:
            return _read(self.source)
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            raise ConvCircuitsError(f"{self.name} cannot be read: {error}. Remove or repair it.") from error


def photographs(source: str | Path) -> tuple[list[Photograph], list[str]]:
    """List the built-in photographs, those of a folder, or those of GCompris.

    Args:
        source: ``sample`` for the built-in photographs, a folder (``./sample`` if that is its name), or
            ``gcompris:FOLDER`` for a folder that holds GCompris's files (see ``gcompris_photographs``).

    Returns:
        The photographs, sorted by name, and the names of the files that are left out.

    Raises:
        ConvCircuitsError: As in ``sample_photographs``, ``load_folder`` and ``gcompris_photographs``.
    """
    if source == "sample":
        return sample_photographs(), []
    if str(source).startswith(_GCOMPRIS):
        return gcompris_photographs(str(source).removeprefix(_GCOMPRIS))
    return load_folder(source)


def sample_photographs() -> list[Photograph]:
    """Return twelve photographs, sorted by name: eight in color, four (brick, camera, grass, gravel) gray.

    They are files in the wheels of scikit-image and scikit-learn. Neither package is imported.

    Raises:
        ConvCircuitsError: If one of the two is not installed.
    """
    return [Photograph(name, file_in(package, inside)) for name, (package, inside) in _SAMPLES.items()]


def load_folder(path: str | Path) -> tuple[list[Photograph], list[str]]:
    r"""List the pictures in a folder and its subfolders, in natural order (2 before 10).

    A picture is a file of any format that the installed Pillow decodes (.jpg, .jfif, .png, .webp, .tif, .avif and
    more), except .eps, which is a program. Only its header is read here. It is decoded when its ``image`` is accessed:
    the camera's orientation is applied, transparent pictures are placed on white, 16-bit pictures are scaled to 8 bits,
    and the first frame of an animation is used. Hidden files and folders are ignored. A folder or file that several
    links lead to is listed once: otherwise the same photograph could be both trained on and held out.

    Returns:
        The photographs, named by their files (``cat/1.jpg`` in a folder of classes), and the names of all other files:
        those of other kinds, further links to a listed file, and those whose header shows that they cannot be used.
        The latter are logged with the reason: they are damaged, have floating-point pixels, have more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS``, or have an aspect ratio above 64. Bytes of a name that are not UTF-8 are
        written as ``\xff``.

    Raises:
        ConvCircuitsError: If there is no such folder, or no readable picture in it, or it holds GCompris's files.
    """
    folder = Path(path)
    if not is_folder(folder):
        raise ConvCircuitsError(f"{str(path)!r} is not a folder. Give a folder of pictures, or 'sample'.")
    good: list[Photograph] = []
    bad: list[str] = []
    others: list[str] = []
    seen: set[tuple[int, int]] = set()
    for file in sorted(_files(folder), key=lambda file: [_natural(part) for part in file.relative_to(folder).parts]):
        name = os.fsencode(file.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")
        if file.suffix.lower() not in _suffixes() or not file.is_file():
            others.append(name)
            continue
        found = file.stat()
        if (found.st_dev, found.st_ino) in seen:
            others.append(name)
            continue
        seen.add((found.st_dev, found.st_ino))
        try:
            with _opened(file):
                good.append(Photograph(name, file))
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            left_out(name, error)
            bad.append(name)
    if any(Path(name).name in _BUNDLES for name in others):
        raise ConvCircuitsError(f"The photographs in {str(path)!r} are GCompris's. Give {_GCOMPRIS}{path}.")
    if not good:
        problem = f"none of its pictures can be read ({', '.join(bad[:3])})" if bad else "it contains no pictures"
        raise ConvCircuitsError(
            f"Nothing to load from {str(path)!r}: {problem}. Give a folder with .jpg, .png or other picture files."
        )
    return good, bad + others


def gcompris_photographs(path: str | Path) -> tuple[list[Photograph], list[str]]:
    """List the photographs in the educational game GCompris: 257 of animals, buildings and tools in version 3.1.

    They are read from its Debian package ``gcompris-qt-data``, which need not be installed: ``apt-get download
    gcompris-qt-data`` and ``dpkg-deb -x gcompris-qt-data_*.deb FOLDER`` put its files into a folder. Only the
    activities with photographs are read, and of these only WebP pictures without transparency.

    Photographs of one subject are never split. A name without its folder, case, digits and underscores is the subject.
    So the two photographs of the Taj Mahal stay together, and so do all hammers.

    Args:
        path: A folder with the package's files, in any of its subfolders.

    Returns:
        The photographs, sorted by name, and the names of the bundles and pictures that are left out: missing or
        damaged ones, which are logged.

    Raises:
        ConvCircuitsError: If there is no such folder, or no photograph in it.
    """
    folder = Path(path)
    if not is_folder(folder):
        raise ConvCircuitsError(f"{str(path)!r} is not a folder. Give one with the files of gcompris-qt-data.")
    good: list[Photograph] = []
    bad: list[str] = []
    for bundle in _BUNDLES:
        try:
            found = min(folder.rglob(bundle), default=folder / bundle)
            pictures = [entry for entry in entries(found.read_bytes()) if entry.path.endswith(".webp")]
        except (OSError, ValueError) as error:
            left_out(bundle, error)
            bad.append(bundle)
            continue
        for entry in pictures:
            name = entry.path.rpartition("activities/")[2].replace("/resource/", "/")
            try:
                content = entry.content()
                with _opened(content) as image:
                    drawing = image.mode != "RGB"
            except Exception as error:  # a damaged file makes Pillow raise nearly anything
                left_out(name, error)
                bad.append(name)
                continue
            if not drawing:
                subject = re.sub(r"[\d_]", "", Path(name).stem).lower()
                good.append(Photograph(name, content, _ALSO_CALLED.get(subject, subject)))
    if not good:
        raise ConvCircuitsError(
            f"No photographs of GCompris are in {str(path)!r}. Give a folder that its package is unpacked in: "
            "apt-get download gcompris-qt-data; dpkg-deb -x gcompris-qt-data_*.deb FOLDER."
        )
    return sorted(good, key=lambda photograph: photograph.name), bad


def readable(photographs: Sequence[Photograph], count: int) -> tuple[list[Photograph], list[str]]:
    """Find the photographs to cut ``count`` crops from: the first that can be decoded, in order.

    Returns:
        At most ``count`` photographs, and the names of those that were tried but could not be read, which are logged.

    Raises:
        ConvCircuitsError: If none can be read.
    """
    good: list[Photograph] = []
    bad: list[str] = []
    for photograph in photographs:
        if len(good) == count:
            break
        try:
            _ = photograph.image
        except ConvCircuitsError as error:
            left_out(photograph.name, error.__cause__ or error)
            bad.append(photograph.name)
        else:
            good.append(photograph)
    if bad and not good:
        raise ConvCircuitsError(f"None of these photographs can be read: {', '.join(bad[:3])}. Give others.")
    return good, bad


def distinct(photographs: Sequence[Photograph], *, apart_from: Sequence[Photograph] = ()) -> list[Photograph]:
    """Drop photographs that are byte-for-byte copies of earlier ones, or of those in ``apart_from``.

    Only files of equal size are read. A file that cannot be read is kept.

    Args:
        photographs: The photographs; of several copies, the first is kept.
        apart_from: Photographs of which no copy is kept.
    """
    every = [*apart_from, *photographs]
    first = enumerate(originals(every))
    return [every[n] for n, original in first if n == original >= len(apart_from)]


def originals(photographs: Sequence[Photograph]) -> list[int]:
    """Return, for each photograph, the number of the first one that has the same bytes; its own if it is the first.

    Only files of equal size are read. A file that cannot be read is like no other.
    """
    sizes = [_content(photograph.source, hashed=False) for photograph in photographs]
    often = Counter(sizes)
    first: dict[object, int] = {}
    found = []
    for number, (photograph, size) in enumerate(zip(photographs, sizes, strict=True)):
        content = _content(photograph.source, hashed=True) if often[size] > 1 else size
        found.append(first.setdefault(content, number))
    return found


def split_photographs(
    photographs: Sequence[Photograph], *, held_out: float = 0.4, seed: int = 0
) -> tuple[list[Photograph], list[Photograph]]:
    """Split photographs in two at random, so that those of the same subject, and their crops, are on one side.

    Of several copies (see ``distinct``), the first by name takes part and the others are on neither side. The split
    depends on the names, the subjects and the seed, but not on the order.

    Args:
        photographs: The photographs, with distinct names.
        held_out: Share of subjects to hold out, above 0 and below 1; rounded to whole subjects. Unless said otherwise,
            each photograph is its own subject.
        seed: Seed of the split.

    Returns:
        The photographs to work with and the held-out ones, each sorted by name.

    Raises:
        ConvCircuitsError: If the share is outside (0, 1), a name occurs twice, or a part has no photographs.
    """
    if not 0 < held_out < 1:
        raise ConvCircuitsError(
            f"{option('held_out')} must be a share above 0 and below 1, such as 0.4; got {held_out}."
        )
    names = Counter(photograph.name for photograph in photographs)
    twice = [name for name, times in sorted(names.items()) if times > 1]
    if twice:
        raise ConvCircuitsError(
            f"More than one photograph is named {twice[0]!r}; the split is by name. Give each a name of its own."
        )
    by_name = distinct(sorted(photographs, key=lambda photograph: photograph.name))
    subjects = list(dict.fromkeys(photograph.subject for photograph in by_name))
    count = round(held_out * len(subjects))
    if not 0 < count < len(subjects):
        several = "s" * (len(subjects) != 1)
        what = f"photograph{several}" if len(subjects) == len(by_name) else f"subject{several} of photographs"
        copies = f" ({len(photographs) - len(by_name)} copies left out)" if len(by_name) < len(photographs) else ""
        both = f"{len(subjects)} {what}{copies}"
        if len(subjects) < 2:
            raise ConvCircuitsError(f"{both} cannot be split in two; give at least two.")
        raise ConvCircuitsError(
            f"{option('held_out', held_out)} of {both} leaves {len(subjects) - count} and {count}; both parts need at "
            "least one. Give more photographs, or a share closer to 0.5."
        )
    chosen = set(random.Random(seed).sample(subjects, count))
    kept = [photograph for photograph in by_name if photograph.subject not in chosen]
    return kept, [photograph for photograph in by_name if photograph.subject in chosen]


class Crops:
    """A model's inputs, cut from photographs: first each whole photograph, then random crops of them.

    With P photographs, image i is crop i // P of photograph i % P. So a smaller ``count`` yields the first images of a
    larger one, and a ``count`` below P uses only the first photographs. Crop 0 is the whole picture. Every other crop
    has an aspect ratio from 3/4 to 4/3, covers between 0.2 of the picture's area and the most that fits (in a thin
    strip, the most that fits), and is mirrored with probability 1/2. Crops depend on the name of their photograph and
    on the seed, but not on other photographs or the batch size.

    Iterating yields batches (N, C, H, W) on the CPU, the same in every pass. At any time, memory holds one batch and
    one decoded photograph. ``len()`` is the number of images.

    Args:
        photographs: The photographs, at least one.
        preprocess: A function that turns a picture into a float (C, H, W) tensor.
        count: Number of images, at least 1.
        seed: Seed of the crops.
        size: (H, W) to resize the images to after preprocessing. Default: no resizing.
        batch_size: Largest number of images in a batch.

    Raises:
        ConvCircuitsError: If there are no photographs or a number is below 1; on iteration, if a file cannot be read.

    Source of the crops: Szegedy et al., Going Deeper with Convolutions (2015).
    """

    def __init__(
        self,
        photographs: Sequence[Photograph],
        preprocess: Callable[[Image.Image], torch.Tensor],
        *,
        count: int,
        seed: int,
        size: tuple[int, int] | None = None,
        batch_size: int = 64,
    ) -> None:
        if not photographs:
            raise ConvCircuitsError("There are no photographs to crop. Give at least one.")
        if count < 1:
            raise ConvCircuitsError(f"{option('count', count)} asks for no images. Give 1 or more.")
        self._photographs, self._preprocess = list(photographs[:count]), preprocess
        self._count, self._seed, self._size = count, seed, size
        self._batch_size = whole_number(option("batch_size"), batch_size, 1)

    def __len__(self) -> int:
        return self._count

    @property
    def total_images(self) -> int:
        """Number of images of a pass."""
        return self._count

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images, by photograph and crop: ``"astronaut"``, ``"astronaut, crop 1"``."""
        among = len(self._photographs)
        return tuple(
            self._photographs[n % among].name + (f", crop {n // among}" if n >= among else "")
            for n in range(self._count)
        )

    @property
    def photographs(self) -> tuple[int, ...]:
        """The number of each image's photograph."""
        return tuple(n % len(self._photographs) for n in range(self._count))

    def __iter__(self) -> Iterator[torch.Tensor]:
        generators = [random.Random(f"{self._seed}:{photograph.name}") for photograph in self._photographs]
        for start in range(0, self._count, self._batch_size):
            yield resized(self._batch(range(start, min(start + self._batch_size, self._count)), generators), self._size)

    def _batch(self, numbers: range, generators: Sequence[random.Random]) -> torch.Tensor:
        images: dict[int, torch.Tensor] = {}
        among = len(self._photographs)
        for first in numbers[:among]:  # decode each photograph once for all of its crops in the batch
            which = first % among
            picture = self._photographs[which].image
            for number in range(first, numbers.stop, among):
                crop = _random_crop(picture, generators[which]) if number >= among else picture
                images[number] = self._preprocess(crop)
        return torch.stack([images[number] for number in numbers])


def crops(
    photographs: Sequence[Photograph],
    preprocess: Callable[[Image.Image], torch.Tensor],
    *,
    count: int,
    seed: int,
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Cut photographs into a model's inputs and return them in one tensor (count, C, H, W) on the CPU.

    Images, arguments and errors are the same as for ``Crops``, which yields the images batch by batch.
    """
    (images,) = Crops(photographs, preprocess, count=count, seed=seed, size=size, batch_size=count)
    return images


def resized(images: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Resize inputs (N, C, H, W) to (H, W); None leaves them as they are."""
    if size is None:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def _random_crop(picture: Image.Image, generator: random.Random) -> Image.Image:
    width, height = _crop_size(picture.size, generator)
    left = int(generator.random() * (picture.width - width + 1))
    top = int(generator.random() * (picture.height - height + 1))
    crop = picture.crop((left, top, left + width, top + height))
    return ImageOps.mirror(crop) if generator.random() < 0.5 else crop


def _crop_size(size: tuple[int, int], generator: random.Random) -> tuple[int, int]:
    """Draw the (width, height) of a crop: first an aspect ratio, then an area that fits it."""
    ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
    widest = min(size[0], size[1] * ratio)
    largest = widest**2 / ratio / (size[0] * size[1])
    area = size[0] * size[1] * generator.uniform(min(0.2, largest), largest)
    return max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))


def _read(source: Path | bytes) -> Image.Image:
    with _opened(source) as image:
        return _to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Open a file, or its content, and check its size and mode, without reading its pixels."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with _quiet(), Image.open(file, formats=sorted(set(_suffixes().values()))) as image:
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        if image.mode == "F":
            raise ValueError("floating-point pixels have no fixed range")
        if max(image.size) > _LONGEST * min(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels are too thin")
        yield image


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings about damaged metadata, which no crop depends on.

    Only in the main thread: filters belong to all threads, so that one which restores them undoes what another has set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _suffixes() -> dict[str, str]:
    """Map the suffixes of the files that the installed Pillow decodes to their formats."""
    suffixes = Image.registered_extensions()
    decoded = {
        name
        for name, (reader, _) in Image.OPEN.items()
        if not (isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile))
    }
    return {suffix: name for suffix, name in suffixes.items() if name in decoded - _NO_PICTURES}


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which some readers return as 32
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, without hidden ones, and the subfolders that cannot be read."""
    seen: set[str] = set()
    closed: list[OSError] = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=closed.append):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (Path(place, name) for name in files if not name.startswith("."))
        seen.add(real)
    yield from (Path(error.filename) for error in closed)


def _content(source: Path | bytes | Image.Image, *, hashed: bool) -> object:
    """Return the size or the hash of a file or of a picture in memory; for an unreadable file, the path itself."""
    if isinstance(source, Image.Image):
        return source.mode, source.size, hashlib.sha256(source.tobytes()).hexdigest() if hashed else None
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest() if hashed else len(source)
    try:
        if not hashed:
            return source.stat().st_size
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return source


def left_out(name: str, error: BaseException) -> None:
    """Log that a photograph is left out."""
    _log.warning("%s cannot be read and is left out: %s", name, error)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts the numbers in names by value. Text and numbers alternate, so keys are comparable."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
