"""Read photographs of any number, each as one input of a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import TypeVar

import torch

from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.zoo.images import Photograph, left_out, resized
from convcircuits.zoo.preprocessing import Preprocessing, Region, region_shown

_T = TypeVar("_T")
_R = TypeVar("_R")


class Prepared:
    """A model's inputs, one for each photograph, read by threads while the model runs.

    A photograph is prepared as the model's images are: usually resized to cover the input, of which the center is cut
    out, so that the longer side is not seen to its ends. Photographs that cannot be read are skipped, and logged once.

    Iterating yields batches (N, C, H, W) on the CPU in the photographs' order, the same in every pass. At any time,
    memory holds two batches and one decoded photograph for each thread.

    Args:
        photographs: The photographs, at least one.
        preprocess: A function that turns a picture into a float (C, H, W) tensor; threads call it.
        size: (H, W) to resize the images to after preprocessing. Default: no resizing.
        batch_size: Largest number of images in a batch.
        threads: Number of threads.

    Attributes:
        photographs: The photographs that were read in the last complete pass: image i is number i.
        unreadable: Names of the others.
        numbers: Numbers, among all photographs, of those that were read so far in the current or last pass.

    Raises:
        ConvCircuitsError: If there are no photographs or a number is below 1.
    """

    def __init__(
        self,
        photographs: Sequence[Photograph],
        preprocess: Preprocessing,
        *,
        size: tuple[int, int] | None = None,
        batch_size: int = 16,
        threads: int = 4,
    ) -> None:
        if not photographs:
            raise ConvCircuitsError("There are no photographs to read. Give at least one.")
        self._given, self._preprocess, self._size = list(photographs), preprocess, size
        self._batch_size = whole_number(option("batch_size"), batch_size, 1)
        self._threads = whole_number(option("threads"), threads, 1)
        self.photographs: tuple[Photograph, ...] = ()
        self.unreadable: tuple[str, ...] = ()
        self.numbers: list[int] = []
        self._logged: set[str] = set()
        self._regions: dict[tuple[int, int], Region] = {}

    def __len__(self) -> int:
        """Return the number of photographs, readable or not."""
        return len(self._given)

    @property
    def total_images(self) -> int:
        """Number of images of a pass; before the first one, that of all photographs."""
        return len(self.photographs) or len(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images, after a pass."""
        return tuple(photograph.name for photograph in self.photographs)

    def __iter__(self) -> Iterator[torch.Tensor]:
        read: list[Photograph] = []
        unreadable: list[str] = []
        self.numbers = []
        with closing(in_threads(self._input, self._given, self._threads, self._batch_size)) as inputs:
            found = self._readable(inputs, read, unreadable)
            while batch := list(islice(found, self._batch_size)):
                yield resized(torch.stack(batch), self._size)
        if not read:
            raise ConvCircuitsError(f"None of these photographs can be read: {', '.join(unreadable[:3])}. Give others.")
        self.photographs, self.unreadable = tuple(read), tuple(unreadable)

    def _readable(
        self, inputs: Iterable[torch.Tensor | ConvCircuitsError], read: list[Photograph], unreadable: list[str]
    ) -> Iterator[torch.Tensor]:
        """Yield the inputs of the photographs that can be read, and sort the photographs into the two lists."""
        for number, (photograph, found) in enumerate(zip(self._given, inputs, strict=True)):
            if isinstance(found, torch.Tensor):
                read.append(photograph)
                self.numbers.append(number)
                yield found
            else:
                unreadable.append(photograph.name)
                if photograph.name not in self._logged:  # in an earlier pass
                    self._logged.add(photograph.name)
                    left_out(photograph.name, found.__cause__ or found)

    def _input(self, photograph: Photograph) -> torch.Tensor | ConvCircuitsError:
        try:
            picture = photograph.image
        except ConvCircuitsError as error:
            return error
        return self._preprocess(picture)

    def region(self, size: tuple[int, int]) -> Region:
        """Return the part of a photograph of this (width, height) that its input shows.

        Raises:
            ConvCircuitsError: If the preprocessing is not a resize and a crop, so that there is no such part.
        """
        if size not in self._regions:
            self._regions[size] = region_shown(self._preprocess, size)
        return self._regions[size]


def in_threads(work: Callable[[_T], _R], items: Iterable[_T], threads: int, ahead: int) -> Generator[_R]:
    """Yield the results of a function in the order of its items, at most ``ahead`` of which are in work or waiting."""
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[_R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
