"""Read weights from files without running any code in them, and load them into a model."""

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from convcircuits.errors import ConvCircuitsError
from convcircuits.files import is_file


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a .safetensors, .pt or .pth file to the CPU, and remove wrappers around it."""
    if not is_file(path):
        raise ConvCircuitsError(f"There is no file {str(path)!r}. Give the path of a state dict.")
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", ".pt", ".pth"):
        raise ConvCircuitsError(
            f"{path.name!r} ends in {path.suffix!r}; weights are read from .safetensors, .pt or .pth files."
        )
    try:
        content: Any = (
            load_file(path) if suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        reason = str(error).partition("\n")[0] or repr(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's own message advises to run the code in it
            reason = "it is damaged or contains objects other than tensors, which could run code"
        raise ConvCircuitsError(
            f"{path.name!r} cannot be read as weights: {reason}. "
            "Save the state dict: torch.save(model.state_dict(), FILE)."
        ) from error
    for key in ("state_dict", "model"):  # where checkpoints keep it
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ConvCircuitsError(
            f"{path.name!r} holds a {type(content).__name__}, not a state dict (a map from names to tensors). "
            "Save one: torch.save(model.state_dict(), FILE)."
        )
    if all(key.startswith("module.") for key in content):  # saved from a data-parallel model
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def read_storages(path: Path, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read the first tensors of a file of ``torch.save`` without the pickle in it, which tells their names.

    The file is a zip archive. Its entry ``ROOT/data/K`` holds the values of the K-th tensor.

    Args:
        path: The file, of little-endian values.
        like: Tensors of the same names, shapes and dtypes, float32 or int64, in the file's order.

    Raises:
        ValueError, KeyError, zipfile.BadZipFile, OSError: If the file is damaged or has other tensors.
    """
    state = {}
    with zipfile.ZipFile(path) as file:
        root = file.namelist()[0].partition("/")[0]
        for number, (name, tensor) in enumerate(like.items()):
            content = file.read(f"{root}/data/{number}")
            if len(content) != tensor.nbytes:
                raise ValueError(f"{name} takes {tensor.nbytes} bytes, but entry {number} has {len(content)}")
            stored, native = ("<f4", np.float32) if tensor.dtype == torch.float32 else ("<i8", np.int64)
            state[name] = torch.from_numpy(np.frombuffer(content, stored).astype(native)).reshape(tensor.shape)
    return state


def load_state_dict(model: nn.Module, state: Mapping[str, torch.Tensor], origin: str, spec: str) -> None:
    """Load weights into a model, which they must fit exactly. ``origin`` and ``spec`` name both in error messages."""
    # torchvision's own DenseNet files keep names from before PyTorch 0.4
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): state[key] for key in state}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ConvCircuitsError(f"{origin} do not fit {spec!r}: {_few(str(error).splitlines()[1:])}.") from error
    if missing or unexpected:
        parts = [f"{label} {_few(keys)}" for label, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise ConvCircuitsError(
            f"{origin} do not fit {spec!r}: {'; '.join(parts)}. Give a state dict of exactly this model."
        )


def _few(items: Sequence[str]) -> str:
    shown = ", ".join(item.strip() for item in items[:3])
    return shown if len(items) <= 3 else f"{shown} and {len(items) - 3} more"
