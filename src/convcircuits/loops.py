"""Loops that numba compiles: whether there are any, and how they use all threads."""

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def has_loops(values: Tensor) -> bool:
    """Return whether loops compute with such values: on a CPU, in single or double precision, with numba installed."""
    fits = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    return fits and importlib.util.find_spec("numba") is not None


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
