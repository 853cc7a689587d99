"""The model and the photographs that the worker has opened: what they are, and hashes of what figures depend on."""

import hashlib
import pickle
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from convcircuits.circuits.replacing import classes_of
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.index import COUNT, convolutions
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.store import hash_of
from convcircuits.network.capture import Network
from convcircuits.network.provenance import architecture_hash, tensors_hash
from convcircuits.recipes import loaded_model, names_besides, side
from convcircuits.values.recipe import Recipe
from convcircuits.version import __version__
from convcircuits.zoo.images import Photograph, distinct, photographs
from convcircuits.zoo.layers import list_layers
from convcircuits.zoo.models import LoadedModel
from convcircuits.zoo.prepared import Prepared
from convcircuits.zoo.preprocessing import output_shape


class Materials:
    """A model and photographs, opened, with hashes of what figures depend on.

    Args:
        opening: What to open.

    Raises:
        ConvCircuitsError: If that is not possible.
    """

    def __init__(self, opening: Opening) -> None:
        self.opening, self.loaded = opening, _loaded(opening)
        found, self.left_out = photographs(opening.images)
        unchanged = [Unchanged.of(one) for one in found]
        self.pictures: list[Photograph] = [*unchanged]
        self.ids = {one.name: _photo_id(one) for one in self.pictures}  # of copies too, which have those of others
        self.copies = names_besides(self.pictures, distinct(self.pictures))
        self.photographs = {self.ids[one.name]: one for one in unchanged if one.name not in self.copies}
        pictures = [*self.photographs.values()]
        self.prepared = Prepared(pictures, self.loaded.preprocess, size=side(opening.size))
        loaded = self.loaded
        self._infos = list_layers(
            loaded.model,
            side(opening.size) or loaded.size,
            channels=loaded.channels,
            categories=loaded.categories,
            aliases=loaded.aliases,
        )
        self.convolutions, self._calls = convolutions(self.loaded.model, self._infos)
        self.known = {info.name: info for info in self._infos}

    @cached_property
    def weights(self) -> str:
        """Hash of all weights."""
        network = Network(self.loaded.model)
        return tensors_hash(network.state([*network.names, *dict(network.module.named_parameters())]))

    @cached_property
    def images(self) -> str:
        """Hash of the photographs, of how they are prepared and to which size."""
        height, width = 97, 131  # what a test picture becomes says how pictures are prepared
        rows, columns = np.mgrid[:height, :width]
        picture = Image.fromarray(np.stack([rows * 2, columns, rows + columns], 2).astype(np.uint8))
        prepared = self.loaded.preprocess(picture).float().contiguous()
        how = hashlib.sha256(prepared.numpy().tobytes()).hexdigest()
        return hash_of([[*self.photographs], how, self.opening.size])

    @cached_property
    def basis(self) -> str:
        """Hash of everything that figures depend on: the model, not its weights alone, photographs, the version."""
        maps = [[info.name, info.kind, list(info.map), info.calls] for info in self._infos]
        return hash_of([self.weights, architecture_hash(self.loaded.model), maps, self.images, __version__])

    @cached_property
    def key(self) -> str:
        """Hash of what an index is of."""
        return hash_of([self.basis, COUNT])

    def about(self) -> dict[str, Any]:
        """Describe the model and the photographs, as JSON values."""
        loaded = self.loaded
        indexed = {info.name for info in self.convolutions}
        return {
            "name": loaded.name,
            "weights": self.weights,
            "images": self.images,
            "basis": self.basis,
            "key": self.key,
            "size": list(side(self.opening.size) or loaded.size),
            "normalization": " ".join([loaded.normalization, *self._resized()]),
            "assumed": loaded.assumed,
            "layers": [
                {
                    "name": info.name,
                    "alias": info.alias,
                    "kind": info.kind,
                    "units": info.channels,
                    "map": list(info.map),
                    "calls": info.calls,
                    "indexed": info.name in indexed,
                }
                for info in self._infos
                if info.computes
            ],
            "not_indexed": self._calls,
            "photographs": [
                {"id": id, "name": one.name, "subject": one.subject} for id, one in self.photographs.items()
            ],
            "left_out": self.left_out,
            "copies": self.copies,
            "ids": self.ids,
            "classes": self._classes(),
        }

    def _resized(self) -> list[str]:
        """Return in a sentence what becomes of images that the model's own preparation gives another size."""
        size = side(self.opening.size)
        if size is None or size == tuple(self.loaded.size):
            return []
        return [f"Then they are resized to {size[0]} x {size[1]}."]

    def _classes(self) -> int | None:
        """Return the number of classes that the model answers with, None if it answers otherwise."""
        loaded, network = self.loaded, Network(self.loaded.model)
        shape = (1, loaded.channels, *(side(self.opening.size) or loaded.size))
        return classes_of(loaded.model, torch.zeros(shape, device=network.device, dtype=network.dtype))


def _loaded(opening: Opening) -> LoadedModel:
    if opening.given is None:
        assert opening.model is not None
        recipe = Recipe.of(
            {
                "model": opening.model,
                "feature": "",
                "weights": opening.weights,
                "mean": opening.mean,
                "std": opening.std,
            }
        )
        return loaded_model(recipe, opening.device)
    sys.path[:0] = [path for path in opening.path if path not in sys.path]
    try:
        model, preprocess = pickle.loads(opening.given.read_bytes())
    except Exception as error:
        raise ConvCircuitsError(
            f"The model cannot be sent to the explorer's own process: {error}. Define its class and preprocess in a "
            "module that can be imported, not in a notebook's cell."
        ) from error
    name = type(model).__name__
    channels, height, width = output_shape(preprocess, name)
    return LoadedModel(
        name,
        model.eval(),
        preprocess,
        (height, width),
        None,
        channels,
        normalization="Images are prepared by the function preprocess that was given.",
    )


@dataclass(frozen=True)
class Unchanged(Photograph):
    """A photograph whose file must not change while the explorer runs: ids and keys are hashes of its content.

    Attributes:
        stamp: When its file was last written, and its size; None if it is no file or not there.
    """

    stamp: tuple[int, int] | None = None

    @classmethod
    def of(cls, photograph: Photograph) -> "Unchanged":
        """Return a photograph as it is now."""
        return cls(photograph.name, photograph.source, photograph.subject, _stamp(photograph))

    @property
    def image(self) -> Image.Image:
        """The picture.

        Raises:
            ConvCircuitsError: If the file cannot be read or has changed.
        """
        self.check()
        return super().image

    def check(self) -> None:
        """Raise an error if the file has changed."""
        if _stamp(self) != self.stamp:
            raise ConvCircuitsError(f"{self.name} has changed since the explorer read it. Start the explorer again.")


def _stamp(photograph: Photograph) -> tuple[int, int] | None:
    if not isinstance(photograph.source, Path):
        return None
    try:
        status = photograph.source.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _photo_id(photograph: Photograph) -> str:
    source = photograph.source
    try:
        content = (
            source
            if isinstance(source, bytes)
            else source.read_bytes()
            if isinstance(source, Path)
            else source.tobytes() + repr((source.mode, source.size)).encode()
        )
    except OSError:
        content = str(source).encode(errors="replace")
    return hashlib.sha256(content).hexdigest()[:16]
