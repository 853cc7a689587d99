"""The global state around a call: it must not change results, and calls must not change it."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_DEVICES = ("cpu", "cuda", "mps", "xpu")
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def outside_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to run in the model's own precision, even inside ``with torch.autocast(...)``.

    Autocast inside the model's ``forward`` is part of the model and stays on.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            for device in _DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return wrapped


@contextmanager
def environment_kept() -> Iterator[None]:
    """Unset the environment variable that parts of torch set when they are first imported."""
    before = os.environ.get(_CACHE)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_CACHE, None)
