"""Keep what a long run has found in a folder, so that the same run, if it is stopped, goes on from there."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.files import is_file, write_whole
from convcircuits.storage import load, save
from convcircuits.values.circuit import Circuit
from convcircuits.version import __version__


class Kept:
    """Results in a folder, each in a file that is named after all that the result depends on.

    So what was made of other weights, images or options is never read. Files are written completely or not at all.

    Args:
        folder: The folder, created for the first result; None: nothing is kept.
        **asked: What all results depend on, as JSON values.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, **asked: Any) -> None:
        self._folder, self._asked = None if folder is None else Path(folder), asked

    def circuits(self, make: Callable[[], Sequence[Circuit]], **about: Any) -> list[Circuit]:
        """Return circuits that were kept; otherwise make and keep them.

        Args:
            make: Makes them.
            **about: What else they depend on, as JSON values.

        Raises:
            ConvCircuitsError: If a file is damaged or cannot be written.
        """
        path = self._path("circuits", about)
        if path is None:
            return list(make())
        if is_file(path):
            found = load(path)
            assert isinstance(found, tuple)
            return list(found)
        made = tuple(make())
        self._place()
        save(made, path)
        return list(made)

    def tensors(self, make: Callable[[], Mapping[str, Tensor]], **about: Any) -> dict[str, Tensor]:
        """Return tensors that were kept; otherwise make and keep them. The arguments are those of ``circuits``.

        Raises:
            ConvCircuitsError: If a file is damaged or cannot be written.
        """
        path = self._path("tensors", about)
        if path is None:
            return dict(make())
        if is_file(path):
            try:
                return from_bytes(path.read_bytes())
            except Exception as error:  # safetensors' own exception is no subclass of a documented one
                raise ConvCircuitsError(f"{path} is damaged ({error}); remove it.") from error
        made = {name: tensor.contiguous() for name, tensor in make().items()}
        self._place()
        write_whole(path, to_bytes(made))
        return made

    def clear(self) -> None:
        """Remove the folder's results, of all runs, and the folder if nothing else is in it."""
        if self._folder is None or not self._folder.is_dir():
            return
        for path in self._folder.glob("kept-*.safetensors"):
            path.unlink(missing_ok=True)
        if not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _path(self, kind: str, about: Mapping[str, Any]) -> Path | None:
        if self._folder is None:
            return None
        try:
            text = json.dumps([kind, __version__, self._asked, about], sort_keys=True)
        except TypeError as error:
            raise ConvCircuitsError(
                f"A run with a checkpoint depends on what can be written as JSON, such as names and numbers: {error}."
            ) from error
        return self._folder / f"kept-{hashlib.sha256(text.encode()).hexdigest()[:40]}.safetensors"

    def _place(self) -> None:
        assert self._folder is not None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConvCircuitsError(f"The folder {self._folder} cannot be created: {error.strerror}.") from error
