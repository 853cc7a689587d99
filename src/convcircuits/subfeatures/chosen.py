"""Some of the images of a data set, read again in each pass rather than held in memory."""

from collections.abc import Container, Iterator, Sequence

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.batches import Images
from convcircuits.values.boxes import image_hash


class Chosen:
    """Some of the images, by their place, as an iterable that can be read again.

    Args:
        images: As for ``score``, in the same order in every pass.
        chosen: Which of them, bool (images,).
    """

    def __init__(self, images: Images, chosen: Tensor) -> None:
        self.images, self.chosen = images, chosen

    @property
    def total_images(self) -> int:
        """Number of images of a pass."""
        return int(self.chosen.sum())

    def __iter__(self) -> Iterator[Tensor]:
        done = 0
        for some in _batches(self.images):
            here = self.chosen[done : done + len(some)]
            done += len(some)
            if bool(here.any()):
                yield some[here]
        if done != len(self.chosen):
            raise ConvCircuitsError(
                f"images yielded {len(self.chosen)} images in one pass and {done} in the next; give the same images "
                "in every pass, in the same order."
            )


class Dealt:
    """The images with certain hashes, in several data sets, as an iterable that can be read again in any order.

    Args:
        groups: The data sets, each as for ``score``.
        hashes: Of the images to yield.
        total_images: Number of images of a pass, for progress, if it is known.
    """

    def __init__(self, groups: Sequence[Images], hashes: Container[int], total_images: int | None = None) -> None:
        whole = [one.images for one in groups if isinstance(one, Chosen)]
        parts = len(whole) == len(groups) and all(one is whole[0] for one in whole)
        self._groups = whole[:1] if parts else groups  # one data set is read once, not once for each of its parts
        self._hashes, self.total_images = hashes, total_images

    def __iter__(self) -> Iterator[Tensor]:
        for images in self._groups:
            for some in _batches(images):
                here = torch.tensor([image_hash(image) in self._hashes for image in some], device=some.device)
                if bool(here.any()):
                    yield some[here]


def some_of(images: Images, chosen: Tensor) -> Images:
    """Return some of the images, given as bool (images,): those of a tensor at once, others read again in each pass."""
    return images[chosen] if isinstance(images, Tensor) else Chosen(images, chosen)


def _batches(images: Images) -> Iterator[Tensor]:
    for batch in [images] if isinstance(images, Tensor) else images:
        yield batch[0] if isinstance(batch, (tuple, list)) else batch
