"""Loops that numba compiles: whether there are any."""

import importlib.util

import torch
from torch import Tensor


def has_loops(values: Tensor) -> bool:
    """Return whether loops compute with such values: on a CPU, in single or double precision, with numba installed."""
    fits = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    return fits and importlib.util.find_spec("numba") is not None
