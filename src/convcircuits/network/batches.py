"""What callers give as images: a tensor, or anything that yields batches again and again."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from convcircuits.errors import ConvCircuitsError, option, whole_number

Progress = Callable[[int, int | None], None]
"""Called with the images done so far and the images there are (None where nobody knows).

Where it has a method ``phase``, that is called before each pass of a longer work, with what the pass is for.
"""

Images = Tensor | Iterable[Any]
"""A tensor (N, C, H, W), or a re-iterable of such tensors or of (tensor, label) batches, as a DataLoader is."""


def check_progress(progress: Any) -> None:
    """Refuse what cannot be called, before any work is done.

    Raises:
        ConvCircuitsError: If it is neither None nor a function.
    """
    if progress is not None and not callable(progress):
        raise ConvCircuitsError(
            f"progress is a function that is called with what is done and what there is, or None; got {progress!r}."
        )


def begin(progress: Progress | None, phase: str) -> None:
    """Announce what begins, and is counted from nothing, to a progress that has a ``phase``."""
    tell = getattr(progress, "phase", None)
    if tell is not None:
        tell(phase)


NO_IMAGES = "There are no images; give at least one."


class Batches:
    """Images in batches of at most ``batch_size``, checked, on the model's device and in its dtype.

    Iterating may be repeated. After a whole pass ``count`` and ``digest`` describe the images, whatever their order.

    Args:
        images: What a caller gave.
        device: The model's.
        dtype: The model's.
        batch_size: The most images in a batch.
        progress: Called in every pass, after each batch, with images done and images in all (or None).

    Raises:
        ConvCircuitsError: If there are no images, or they are of another form, not finite, or yielded only once.
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
                    "images are a tensor (N, C, H, W), or an iterable of such tensors or (tensor, label) batches; "
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
    def total(self) -> int | None:
        """How many images there are; None where only a pass can tell."""
        return len(self._images) if isinstance(self._images, Tensor) else None

    def first_shape(self) -> tuple[int, ...]:
        """Return (C, H, W) of the first image."""
        for part in self._parts():
            return tuple(part.shape[1:])
        raise ConvCircuitsError(NO_IMAGES)

    def first(self, count: int) -> Tensor:
        """Return the first images, at most so many and of one batch, on the device and in the dtype."""
        for part in self._parts():
            return part[:count].to(self._device, self._dtype)
        raise ConvCircuitsError(NO_IMAGES)

    def __iter__(self) -> Iterator[Tensor]:
        count, digest = 0, 0
        for part in self._parts():
            count += len(part)
            digest += sum(_image_hash(image) for image in part)
            yield part.to(self._device, self._dtype)
            if self._progress is not None:
                self._progress(count, self.total)
        if count == 0:
            raise ConvCircuitsError(NO_IMAGES)
        if self.count not in (0, count):
            raise ConvCircuitsError(
                f"images gave {self.count} images in one pass and {count} in the next; give what yields the same ones "
                "again and again: a tensor, a list of batches or a DataLoader of a fixed data set."
            )
        self.count, self._digest = count, digest % 2**64

    def _parts(self) -> Iterator[Tensor]:
        given = [self._images] if isinstance(self._images, Tensor) else self._images
        for batch in given:
            images = _checked(batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch)
            for part in torch.split(images, min(self.batch_size, max(1, len(images)))):
                if len(part):
                    yield part.clone() if part.is_inference() else part.detach()

    def take(self, numbers: Sequence[int]) -> "Batches":
        """Return some of the images of a tensor, by number."""
        assert isinstance(self._images, Tensor)
        some = self._images[list(numbers)]
        return Batches(some, device=self._device, dtype=self._dtype, batch_size=self.batch_size)

    def describe(self) -> dict[str, Any]:
        """Return the number of images and their order-free hash, after a whole pass."""
        return {"count": self.count, "hash": f"{self._digest:016x}"}


def _is_one_shot(images: Iterable[Any]) -> bool:
    """Return whether a second pass would find nothing left."""
    if isinstance(images, DataLoader):  # which may keep one iterator with its workers, and starts it again
        dataset: Any = images.dataset
        return isinstance(dataset, IterableDataset) and iter(dataset) is iter(dataset)
    return iter(images) is iter(images)


def _checked(images: Any) -> Tensor:
    if not isinstance(images, Tensor) or images.dim() != 4:
        what = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ConvCircuitsError(f"A batch of images is a tensor (N, C, H, W); got {what}.")
    if not images.is_floating_point():
        raise ConvCircuitsError(
            f"Images of {images.dtype} look unprepared; give floating-point images, normalised as the model wants."
        )
    if len(images) and not bool(images.isfinite().all()):
        bad = int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ConvCircuitsError(f"Image {bad} of a batch holds NaN or Inf; check its preparation.")
    return images


def _image_hash(image: Tensor) -> int:
    raw = image.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "little")
