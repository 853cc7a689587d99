"""The model and the photographs that the worker has opened: what they are, hashes of them, and looks at single ones."""

import hashlib
import inspect
import io
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from convcircuits.contact_sheets import part_of
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.index import COUNT, convolutions, look
from convcircuits.explorer.opening import Opening
from convcircuits.explorer.store import hash_of
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.provenance import tensors_hash, weights_up_to
from convcircuits.recipes import loaded_model, names_besides, side
from convcircuits.values.feature import Feature
from convcircuits.values.recipe import Recipe
from convcircuits.version import __version__
from convcircuits.zoo.images import Photograph, distinct, photographs, resized
from convcircuits.zoo.layers import list_layers
from convcircuits.zoo.models import LoadedModel
from convcircuits.zoo.prepared import Prepared
from convcircuits.zoo.preprocessing import Region, output_shape

PASSES = {
    "magnitude": 0.5,
    "random": 0.5,
    "layer_random": 0.5,
    "snip": 1.5,
    "actgrad": 2.0,
    "gauss_newton": 3.0,
    "force": 15.0,
    "progressive": 70.0,
    "learned": 280.0,
}
"""What a criterion costs, about, in forward and backward passes over its crops. Measured on VGG16's conv3_3."""

MEASURING = 4.0
"""What measuring costs in the same passes: the full model and the circuit, on both sets of crops."""

_OPENINGS = 2  # surveys of the feature, to find a circuit and to measure it
_TIMED = 2  # images of the batch that is timed
_TALLEST = 4096  # pixels of a small picture's height: photographs may be 64 times as high as wide


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
        self.pictures: list[Photograph] = [Unchanged.of(one) for one in found]
        self.ids = {one.name: _photo_id(one) for one in self.pictures}  # of copies too, which have those of others
        kept = distinct(self.pictures)
        self.copies = names_besides(self.pictures, kept)
        self.photographs = {self.ids[one.name]: one for one in kept}
        self._prepared = Prepared(kept, self.loaded.preprocess, size=side(opening.size))
        loaded = self.loaded
        self._infos = list_layers(
            loaded.model,
            side(opening.size) or loaded.size,
            channels=loaded.channels,
            categories=loaded.categories,
            aliases=loaded.aliases,
        )
        self.convolutions, self._calls = convolutions(self.loaded.model, self._infos)
        self._timed: dict[str, tuple[float, float]] = {}  # layer -> seconds of a survey, and of a pass of one image
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
        return hash_of([self.weights, built(self.loaded.model), maps, self.images, __version__])

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
            "size": [self.opening.size] * 2 if self.opening.size else list(loaded.size),
            "normalization": loaded.normalization,
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
        }

    # ---------------------------------------- questions

    def answer(self, name: str, *arguments: Any) -> Any:
        """Answer a question that the server asks beside the job that runs."""
        questions: dict[str, Callable[..., Any]] = {
            "thumb": self._thumb,
            "map": self._map,
            "values": self._values,
            "weights": self._weights_up_to,
            "estimate": self._estimate,
            "source": self._source,
        }
        return questions[name](*arguments)

    def _thumb(self, photo: str, width: int, box: tuple[int, int, int, int] | None) -> bytes:
        """Return a photograph, or the part that a box of its input shows, as JPEG; what lies outside is hatched."""
        picture = self.photographs[photo].image
        if box is None:
            scale = min(width / picture.width, _TALLEST / picture.height)
            size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
            small = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2)
        else:
            shown = self._prepared.region(picture.size)
            window = shown.part(box, side(self.opening.size) or self.loaded.size)
            seen = window.within(shown).within(Region(0, 0, picture.height, picture.width))
            small = part_of(picture, window, seen, width)
        content = io.BytesIO()
        small.save(content, "jpeg", quality=88)
        return content.getvalue()

    def _map(self, layer: str, unit: int, photo: str) -> tuple[list[int], bytes]:
        """Return the shape of a unit's map on a photograph, and its values as float32, little-endian."""
        network = self._looking
        with torch.no_grad():
            output = network.run(self._feature(layer, unit), self._input(photo), lambda call: call.compute())
        values = output[0, unit].float().cpu()
        return list(values.shape), values.numpy().astype("<f4").tobytes()

    def _values(self, photo: str, positions: Mapping[str, tuple[int, int]]) -> dict[str, list[float]]:
        """Return the values of all units of some layers on a photograph, each layer at one position (row, column)."""
        found: dict[str, list[float]] = {}

        def reader(layer: str) -> Callable[[torch.Tensor], None]:
            row, column = positions[layer]

            def read(output: torch.Tensor) -> None:
                found[layer] = output[0, :, row, column].float().cpu().tolist()

            return read

        with torch.no_grad():
            look(self._looking, {layer: reader(layer) for layer in positions}, self._input(photo))
        return found

    def _source(self, photo: str) -> bytes:
        """Return the content of a photograph's file."""
        one = self.photographs[photo]
        if not isinstance(one.source, Path):
            raise ConvCircuitsError(
                f"{one.name} is no file of a folder but comes with --images {self.opening.images}, which others give "
                "too; leave the photographs out."
            )
        content = one.source.read_bytes()
        if hashlib.sha256(content).hexdigest()[:16] != photo:
            raise ConvCircuitsError(f"{one.name} has changed since the explorer read it. Start the explorer again.")
        return content

    def _weights_up_to(self, layer: str) -> str:
        """Return the hash of the weights up to a layer, as circuits record it."""
        if layer not in self.known:
            raise ConvCircuitsError(f"There is no layer {layer!r:.100}.")
        return weights_up_to(self._looking, self._feature(layer, 0), self._input(next(iter(self.photographs))))

    def _estimate(self, feature: str, criterion: str, count: int, reach_r2: bool, refit: str) -> dict[str, Any]:
        """Estimate how long a search takes, from the time of one image's forward and backward pass."""
        layer = self.loaded.feature(feature).layer
        if layer not in self._timed:
            image = self._input(next(iter(self.photographs))).repeat(_TIMED, 1, 1, 1).requires_grad_()
            begun = time.perf_counter()
            Subject.open(self._looking, self._feature(layer, 0), tuple(image.shape[1:]))
            opened = time.perf_counter()
            with torch.enable_grad():
                output = self._looking.run(self._feature(layer, 0), image, lambda call: call.compute())
                torch.autograd.grad(output.sum(), image)
            self._timed[layer] = opened - begun, (time.perf_counter() - opened) / _TIMED
        opening, batch = self._timed[layer]
        answer = {"opening": opening, "batch": batch, "images": _TIMED, "passes": None, "seconds": None}
        passes = PASSES.get(criterion)
        if passes is None:
            return answer | {"sentence": f"How long {criterion} takes is not known."}
        passes = passes * (1 if refit == "none" else 1.5) * (3 if reach_r2 else 1) + MEASURING
        seconds = _OPENINGS * opening + passes * count * batch
        return answer | {
            "passes": passes,
            "seconds": seconds,
            "sentence": f"Perhaps {_about(seconds)}: an estimate from one batch of {_TIMED} images up to {layer}.",
        }

    def _feature(self, layer: str, unit: int) -> Feature:
        several = layer in self.known and self.known[layer].calls > 1
        return Feature(layer, unit, call=0 if several else None)

    def _input(self, photo: str) -> torch.Tensor:
        """Return a photograph as the model's input, (1, C, H, W)."""
        image = resized(self.loaded.preprocess(self.photographs[photo].image)[None], side(self.opening.size))
        return image.to(self._looking.device, self._looking.dtype)

    @cached_property
    def _looking(self) -> Network:
        """A private copy of the model for the thread that answers questions."""
        return Network(self.loaded.model)


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


def _about(seconds: float) -> str:
    """Return a duration in words, with the precision that an estimate has."""
    for size, word in ((3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {word}s"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"


def built(model: nn.Module) -> str:
    """Return a hash of how a model is built: its modules, and the code of their classes, but not its weights.

    Two models may share all weights and compute different maps: one with another stride, or whose code was edited.
    """
    own = {kind.__module__ for kind in map(type, model.modules()) if not kind.__module__.startswith("torch.")}
    content = [repr(model).encode()]
    for name in sorted(own):
        try:
            content.append(Path(str(inspect.getsourcefile(sys.modules[name]))).read_bytes())
        except (OSError, TypeError, KeyError):
            content.append(name.encode())
    return hash_of([hashlib.sha256(one).hexdigest() for one in content])


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
        if _stamp(self) != self.stamp:
            raise ConvCircuitsError(f"{self.name} has changed since the explorer read it. Start the explorer again.")
        return super().image


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
