"""Boxes: the part of each image in which a feature counts."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from convcircuits.errors import ConvCircuitsError, whole_number

_SIDES = ("top", "left", "height", "width")
_HASH = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Boxes:
    """The part of each image in which a feature counts: it counts where it is highest within the image's box.

    A position of the feature's map lies within a box if the center of its receptive field does; if none does, the
    nearest one counts. So a box around the whole image is the position ``"max"``, and so are the boxes that ``top``
    returns for a feature with all positions.

    Images are recognized by their content. So their order, batches and what is drawn from them do not matter, but an
    image without a box is an error.

    Attributes:
        by_image: Hash of each image, as ``image_hash`` returns it, to its box: top, left, height and width in pixels of
            the image as the model gets it. A box may extend beyond the image.
    """

    by_image: Mapping[int, tuple[int, int, int, int]]

    @classmethod
    def of(cls, images: Tensor | Iterable[Any], boxes: Int[Tensor, "n four"] | Sequence[Sequence[int]]) -> "Boxes":
        """Return the boxes of some images.

        Args:
            images: As for ``score``: (N, C, H, W), or an iterable of such tensors or (tensor, label) batches.
            boxes: Top, left, height and width of the box of each image in pixels, (N, 4), such as
                ``top(...).highest.box[0]``.

        Raises:
            ConvCircuitsError: If there is not one box for each image, a box is not four whole numbers or has no area,
                or the same image is given with two different boxes.

        Examples:
            >>> found = cc.top(model, feature, images, count=4)
            >>> those = images[found.highest.image[0]]
            >>> boxes = cc.Boxes.of(those, found.highest.box[0])
            >>> cc.find(model, cc.Feature("features.5", 1, position=boxes), those, density=0.2)  # doctest: +ELLIPSIS
            Circuit(features.5:1@boxes-..., progressive, ... of 96 kernels = ...%)
        """
        hashes = [image_hash(image) for image in _each(images)]
        rows = boxes.tolist() if hasattr(boxes, "tolist") else boxes
        if not isinstance(rows, Sequence) or len(rows) != len(hashes):
            count = len(rows) if isinstance(rows, Sequence) else type(boxes).__name__
            raise ConvCircuitsError(f"There are {len(hashes)} images but {count} boxes; give one box for each image.")
        found: dict[int, tuple[int, int, int, int]] = {}
        for number, (one, row) in enumerate(zip(hashes, rows, strict=True)):
            box = _checked(number, row)
            if found.setdefault(one, box) != box:
                raise ConvCircuitsError(
                    f"Image {number} is given twice, with the boxes {found[one]} and {box}; give each image one box."
                )
        return cls(found)

    def __post_init__(self) -> None:
        if not self.by_image:
            raise ConvCircuitsError("There are no images to give boxes; give at least one.")
        object.__setattr__(self, "by_image", dict(self.by_image))

    @classmethod
    def from_json(cls, value: Any) -> "Boxes":
        """Return what ``to_json`` returned.

        Raises:
            ConvCircuitsError: If it is anything else.
        """
        if not isinstance(value, Mapping) or not all(_HASH.fullmatch(one) for one in value):
            raise ConvCircuitsError(f"{value!r} is not a mapping of hashes of images to boxes.")
        return cls({int(one, 16): _checked(one, box) for one, box in value.items()})

    def to_json(self) -> dict[str, list[int]]:
        """Return the boxes as JSON values, in an order that does not depend on that of the images."""
        return {f"{one:016x}": list(self.by_image[one]) for one in sorted(self.by_image)}

    def __len__(self) -> int:
        return len(self.by_image)

    def __str__(self) -> str:
        return f"boxes-{hashlib.sha256(str(self.to_json()).encode()).hexdigest()[:8]}"

    def __repr__(self) -> str:
        return f"Boxes(of {len(self)} images)"

    def __hash__(self) -> int:
        return hash(str(self))

    def box(self, image: Tensor) -> tuple[int, int, int, int]:
        """Return the box of an image (C, H, W).

        Raises:
            ConvCircuitsError: If it has none, or its box lies outside it.
        """
        found = self.by_image.get(image_hash(image))
        if found is None:
            raise ConvCircuitsError(
                f"An image has no box: the feature counts in the boxes of {len(self)} other images. Images are "
                "recognized by their content, so give them as they were given to Boxes.of, in the model's dtype or in "
                "one that it can hold."
            )
        ends = [begin + length for begin, length in zip(found[:2], found[2:], strict=True)]
        if min(ends) <= 0 or found[0] >= image.shape[1] or found[1] >= image.shape[2]:
            size = "{} x {}".format(*image.shape[1:])
            raise ConvCircuitsError(
                f"The box with {', '.join(map('{} {}'.format, _SIDES, found))} lies outside its image of {size} pixels."
            )
        return found


def image_hash(image: Tensor) -> int:
    """Return a hash of an image's content, 64 bits."""
    raw = image.detach().to("cpu").float().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "little")


def _each(images: Tensor | Iterable[Any]) -> Iterator[Tensor]:
    for batch in [images] if isinstance(images, Tensor) else images:
        some = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
        if not isinstance(some, Tensor) or some.dim() != 4:
            what = f"shape {tuple(some.shape)}" if isinstance(some, Tensor) else type(some).__name__
            raise ConvCircuitsError(f"A batch of images must be a tensor (N, C, H, W); got {what}.")
        yield from some


def _checked(image: object, box: Any) -> tuple[int, int, int, int]:
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        raise ConvCircuitsError(f"The box of image {image} must be top, left, height and width; got {box!r}.")
    least = (-(2**31), -(2**31), 1, 1)
    top, left, height, width = (
        whole_number(f"The {side} of the box of image {image}", value, low)
        for side, value, low in zip(_SIDES, box, least, strict=True)
    )
    return top, left, height, width
