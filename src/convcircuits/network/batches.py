"""Images as callers give them: a tensor, or an iterable that yields the same batches on every pass."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.values.boxes import image_hash

Progress = Callable[[int, int | None], None]
"""Called with the number of images done so far and the total (None if unknown).

If it has a method ``phase``, that is called before each phase of a longer computation, with a description.
"""

Images = Tensor | Iterable[Any]
"""A tensor (N, C, H, W), or a re-iterable of such tensors or of (tensor, label) batches, as a DataLoader is."""


def check_progress(progress: Any) -> None:
    """Check that a progress callback can be called, before any work is done.

    Raises:
        ConvCircuitsError: If it is neither None nor callable.
    """
    if progress is not None and not callable(progress):
        raise ConvCircuitsError(
            f"progress must be a function of the images done and the total, or None; got {progress!r}."
        )


def begin(progress: Progress | None, phase: str) -> None:
    """Announce a phase, whose count starts at 0, to a progress callback with a method ``phase``."""
    announce = getattr(progress, "phase", None)
    if announce is not None:
        announce(phase)


NO_IMAGES = "There are no images; give at least one."


class Batches:
    """Images in batches of at most ``batch_size``, checked, on the model's device and in its dtype.

    Iteration can be repeated. After a complete pass, ``count`` is the number of images and ``describe`` works.

    Args:
        images: The images, as a caller gives them.
        device: Device of the model.
        dtype: Dtype of the model.
        batch_size: Maximum number of images in a batch.
        progress: Called after each batch of every pass, with the images done and the total (or None).

    Raises:
        ConvCircuitsError: If there are no images, or they have the wrong form, are not finite, or can be iterated only
            once.
    """

    def __init__(
        self,
        images: Images,
        *,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        progress: Progress | None = None,
    ) -> None:
        check_progress(progress)
        batch_size = whole_number(option("batch_size"), batch_size, 1)
        if not isinstance(images, Tensor):
            if not isinstance(images, Iterable):
                raise ConvCircuitsError(
                    "images must be a tensor (N, C, H, W), or an iterable of such tensors or (tensor, label) batches; "
                    f"got {type(images).__name__}."
                )
            if _is_one_shot(images):
                raise ConvCircuitsError(
                    f"images is a one-shot iterator ({type(images).__name__}), and several passes may be needed; "
                    "give a tensor, a list of batches or a DataLoader."
                )
        self._images, self.batch_size = images, batch_size
        self._device, self._dtype, self._progress = device, dtype, progress
        self.count = 0
        self._digest = 0

    @property
    def given(self) -> Images:
        """The images as the caller gave them."""
        return self._images

    @property
    def total(self) -> int | None:
        """Number of images; None if it is unknown before a pass."""
        return len(self._images) if isinstance(self._images, Tensor) else None

    @property
    def expected(self) -> int | None:
        """Number of images of a pass, for progress: also that which the caller's object says, as ``total_images``."""
        return getattr(self._images, "total_images", self.total)

    def first_shape(self) -> tuple[int, ...]:
        """Return the shape (C, H, W) of the first image."""
        for part in self._parts():
            return tuple(part.shape[1:])
        raise ConvCircuitsError(NO_IMAGES)

    def first(self, count: int) -> Tensor:
        """Return at most ``count`` images of the first batch, on the device and in the dtype."""
        for part in self._parts():
            return part[:count].to(self._device, self._dtype)
        raise ConvCircuitsError(NO_IMAGES)

    def __iter__(self) -> Iterator[Tensor]:
        return (images for images, _ in self.hashed())

    def hashed(self) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield each batch with a hash of each of its images, by their content as given."""
        count, digest = 0, 0
        for part in self._parts():
            hashes = [image_hash(image) for image in part]
            count += len(part)
            digest += sum(hashes)
            yield part.to(self._device, self._dtype), hashes
            if self._progress is not None:
                self._progress(count, self.expected)
        if count == 0:
            raise ConvCircuitsError(NO_IMAGES)
        if self.count not in (0, count):
            raise ConvCircuitsError(
                f"images yielded {self.count} images in one pass and {count} in the next; give the same images "
                "in every pass: a tensor, a list of batches or a DataLoader of a fixed data set."
            )
        self.count, self._digest = count, digest % 2**64

    def _parts(self) -> Iterator[Tensor]:
        given = [self._images] if isinstance(self._images, Tensor) else self._images
        for batch in given:
            images = _checked(batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch)
            for part in torch.split(images, min(self.batch_size, max(1, len(images)))):
                if len(part):
                    yield part.clone() if part.is_inference() else part.detach()

    def in_batches_of(self, size: int) -> "Batches":
        """Return the same images in batches of at most ``size``."""
        return Batches(self._images, device=self._device, dtype=self._dtype, batch_size=min(size, self.batch_size))

    def take(self, numbers: Sequence[int]) -> "Batches":
        """Return the images with the given indices. The images must be a tensor."""
        assert isinstance(self._images, Tensor)
        some = self._images[list(numbers)]
        return Batches(some, device=self._device, dtype=self._dtype, batch_size=self.batch_size)

    def followed_by(self, others: Sequence["Batches"]) -> "Batches":
        """Return these images followed by others. All must be tensors of one size."""
        tensors = [one._images for one in (self, *others)]
        every = torch.cat([some for some in tensors if isinstance(some, Tensor)])
        return Batches(every, device=self._device, dtype=self._dtype, batch_size=self.batch_size)

    def sample(self, count: int, seed: int) -> "Batches":
        """Return at most ``count`` of the images, drawn by their content, so that their order does not matter."""
        drawn: list[tuple[int, int, Tensor]] = []
        for part in self._parts():
            for image in part:
                drawn.append((lot(image_hash(image), seed), len(drawn), image))
            drawn = sorted(drawn, key=lambda one: one[:2])[:count]
        sizes = dict.fromkeys(image.shape for *_, image in drawn)
        given = [torch.stack([image for *_, image in drawn if image.shape == size]) for size in sizes]
        return Batches(given, device=self._device, dtype=self._dtype, batch_size=self.batch_size)

    def describe(self) -> dict[str, Any]:
        """Return the image count and an order-independent hash, after a complete pass."""
        return {"count": self.count, "hash": f"{self._digest:016x}"}


def lot(hashed: int, seed: int) -> int:
    """Return a random number for an image: the images with the lowest are a random sample, whatever their order."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{hashed}".encode()).digest()[:8], "little")


def _is_one_shot(images: Iterable[Any]) -> bool:
    """Return whether the images can be iterated only once."""
    if isinstance(images, DataLoader):  # may reuse one iterator with its workers, but restarts it
        dataset: Any = images.dataset
        return isinstance(dataset, IterableDataset) and iter(dataset) is iter(dataset)
    return iter(images) is iter(images)


def _checked(images: Any) -> Tensor:
    if not isinstance(images, Tensor) or images.dim() != 4:
        what = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ConvCircuitsError(f"A batch of images must be a tensor (N, C, H, W); got {what}.")
    if not images.is_floating_point():
        raise ConvCircuitsError(
            f"Images of {images.dtype} look unprepared; give floating-point images, normalized as the model expects."
        )
    if not bool(images.sum().isfinite()):  # much quicker than a look at each value; large ones can overflow in the sum
        bad = (~images.isfinite()).flatten(1).any(1).nonzero()
        if len(bad):
            raise ConvCircuitsError(f"Image {int(bad[0])} of a batch contains NaN or Inf; check its preparation.")
    return images
