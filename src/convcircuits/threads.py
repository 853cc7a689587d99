"""Work on several threads of a CPU: compiled loops over rows, and parts of a batch side by side."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def on_all_threads(loop: Callable[..., None], arguments: Sequence[Any], *, rows: int) -> None:
    """Run a loop over rows on as many threads as torch uses.

    Args:
        loop: Called with the arguments, the first row and the one after the last. It releases the interpreter's lock.
        arguments: What it is called with.
        rows: Number of rows.
    """
    threads = min(torch.get_num_threads(), rows)
    if threads == 1:
        loop(*arguments, 0, rows)
        return
    bounds = [rows * t // threads for t in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda span: loop(*arguments, *span), itertools.pairwise(bounds)):
            pass  # an error in a thread is raised here


class SideBySide:
    """Threads that run parts of the work side by side, and share those that torch uses among them.

    Torch lets all its threads run one operation after another, each on a part of the values. Where maps are small, the
    threads wait for one another most of the time; two that run half of the images each do not.

    There are threads only inside of ``with``; outside, parts run one after another, and so they do where torch uses one
    thread.

    Args:
        most: Number of parts that may run at once, at most.

    Attributes:
        count: Number of parts that run at once.
    """

    def __init__(self, most: int) -> None:
        self.count, self._most = 1, most
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "SideBySide":
        self._of_torch = torch.get_num_threads()
        count = min(self._most, self._of_torch)
        if count > 1:
            share = self._of_torch // count
            self.count, self._pool = count, ThreadPoolExecutor(count, "part", torch.set_num_threads, (share,))
            torch.set_num_threads(share)  # what runs here between parts wakes no others, which then wait in loops
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._of_torch)  # parts of torch have one number for all threads
        self.count, self._pool = 1, None

    def map(self, function: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
        """Return what a function makes of each part, in order.

        It may run in several threads at once. Gradients are recorded if they are where this is called.
        """
        if self._pool is None:
            return [function(part) for part in parts]
        recorded = torch.is_grad_enabled()  # which each thread has its own setting of

        def run(part: Part) -> Result:
            with torch.set_grad_enabled(recorded):
                return function(part)

        return list(self._pool.map(run, parts))
