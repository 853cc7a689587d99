"""What the worker answers beside the job that runs: parts of photographs, maps, values at a point, estimates."""

import hashlib
import io
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from convcircuits.atlases.atlas import Atlas
from convcircuits.circuits.asking import check_kernels, check_options, criterion_named, drawable_size, is_descent
from convcircuits.circuits.contrasting import contrasted
from convcircuits.contact_sheets import part_of
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.index import look
from convcircuits.explorer.materials import Materials
from convcircuits.explorer.recent import RecentMaps
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.provenance import architecture_hash, weights_up_to
from convcircuits.recipes import criterion_options, side
from convcircuits.storage import load
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature
from convcircuits.values.recipe import default_criterion
from convcircuits.values.tables import suggest
from convcircuits.zoo.images import resized
from convcircuits.zoo.preprocessing import Region

PASSES = {
    "magnitude": 0.5,
    "random": 0.5,
    "layer_random": 0.5,
    "snip": 1.5,
    "actgrad": 2.0,
    "gauss_newton": 3.0,
    "force": 15.0,
    "progressive": 40.0,
    "learned": 180.0,
}
"""What a criterion costs, about, in forward and backward passes over its crops. Measured on VGG16's conv3_3, but for
``learned``, which is its former figure in proportion to what a descent costs now."""

MEASURING = 4.0
"""What measuring costs in the same passes: the full model and the circuit, on both sets of crops."""

Take = Callable[[np.ndarray], np.ndarray]
"""Takes a part of a layer's maps, (C, h, w)."""

_OPENINGS = 2  # surveys of the feature, to find a circuit and to measure it
_TIMED = 2  # images of the batch that is timed
_TALLEST = 4096  # pixels of a small picture's height: photographs may be 64 times as high as wide


class Questions:
    """Answers questions about single photographs, units and layers.

    Several threads may ask. Those that need the model get their turn one after another.

    Args:
        materials: The model and the photographs.
        recent: Where maps are kept for questions to come.
    """

    def __init__(self, materials: Materials, recent: RecentMaps | None = None) -> None:
        self._materials, self._recent = materials, RecentMaps() if recent is None else recent
        self._model = threading.Lock()  # held by whoever runs the model
        self._atlas_of: dict[Path, tuple[list[Any], Atlas]] = {}  # as last read, with the stamps of its files
        self._timed: dict[str, tuple[float, float]] = {}  # layer -> seconds of a survey, and of a pass of one image

    def answer(self, name: str, *arguments: Any) -> Any:
        """Answer a question that the server asks beside the job that runs."""
        pictures: dict[str, Callable[..., Any]] = {"thumb": self._thumb, "source": self._source}
        kept: dict[str, Callable[..., Any]] = {"map": self._map, "values": self._values, "look": self._look}
        model: dict[str, Callable[..., Any]] = {
            "weights": self._weights_up_to,
            "atlas": self._atlas,
            "atlases": self._atlases,
            "contrast": self._contrast,
            "estimate": self._estimate,
        }
        if name == "possible":
            return self._possible(*arguments)
        if name in model:
            with self._model:
                return model[name](*arguments)
        return (pictures | kept)[name](*arguments)

    def known(self, name: str, *arguments: Any) -> bool:
        """Return whether a question can be answered without the model."""
        if name == "map":
            layer, _, photo = arguments
            return self._recent.of(photo, [layer]) is not None
        if name == "values":
            photo, positions = arguments
            return self._recent.of(photo, positions) is not None
        return name in ("thumb", "source", "possible")

    def _thumb(self, photo: str, width: int, box: tuple[int, int, int, int] | None) -> bytes:
        """Return a photograph, or the part that a box of its input shows, as JPEG; what lies outside is hatched."""
        picture = self._materials.photographs[photo].image
        if box is None:
            scale = min(width / picture.width, _TALLEST / picture.height)
            size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
            small = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2)
        else:
            shown = self._materials.prepared.region(picture.size)
            window = shown.part(box, side(self._materials.opening.size) or self._materials.loaded.size)
            seen = window.within(shown).within(Region(0, 0, picture.height, picture.width))
            small = part_of(picture, window, seen, width)
        content = io.BytesIO()
        small.save(content, "jpeg", quality=88)
        return content.getvalue()

    def _map(self, layer: str, unit: int, photo: str) -> tuple[list[int], bytes]:
        """Return the shape of a unit's map on a photograph, and its values as float32, little-endian."""
        if layer in self._bytes:
            values = self._taken(photo, {layer: lambda maps: maps[unit]})[layer]
        else:
            with self._model, torch.no_grad():
                output = self._looking.run(self._feature(layer, unit), self._input(photo), lambda call: call.compute())
            values = output[0, unit].float().cpu().numpy()
        return list(values.shape), values.astype("<f4").tobytes()

    def _values(self, photo: str, positions: Mapping[str, tuple[int, int]]) -> dict[str, list[float]]:
        """Return the values of all units of some layers on a photograph, each layer at one position (row, column)."""

        def at(row: int, column: int) -> Take:
            return lambda maps: maps[:, row, column]

        found = self._taken(photo, {layer: at(*position) for layer, position in positions.items()})
        return {layer: values.tolist() for layer, values in found.items()}

    def _look(self, photo: str) -> None:
        """Run the model on a photograph, so that questions to come find its maps, if there is room for them."""
        if sum(self._bytes.values()) <= self._recent.room:
            self._taken(photo, {layer: lambda maps: maps for layer in self._bytes})

    def _taken(self, photo: str, takes: Mapping[str, Take]) -> dict[str, np.ndarray]:
        """Return what is taken of the maps of some convolutions on a photograph: of those kept, or of new ones."""
        self._materials.photographs[photo].check()
        maps = self._recent.of(photo, takes)
        if maps is None:
            order = [*self._bytes]
            seen = order[: 1 + max(map(order.index, takes))]  # those before the last one cost nothing
            if sum(self._bytes[layer] for layer in seen) > self._recent.room:
                return self._seen(photo, takes)
            maps = self._seen(photo, dict.fromkeys(seen, lambda maps: maps))
            self._recent.keep(photo, maps)
        return {layer: take(maps[layer]) for layer, take in takes.items()}

    def _seen(self, photo: str, takes: Mapping[str, Take]) -> dict[str, np.ndarray]:
        """Run the model on a photograph and return what is taken of the maps of some convolutions."""
        found: dict[str, np.ndarray] = {}

        def reader(layer: str) -> Callable[[torch.Tensor], None]:
            def read(output: torch.Tensor) -> None:
                found[layer] = takes[layer](output[0].float().cpu().numpy()).copy()  # the model may overwrite it

            return read

        with self._model, torch.no_grad():
            look(self._looking, {layer: reader(layer) for layer in takes}, self._input(photo))
        return found

    def _contrast(self, file: Path, a: str, b: str) -> dict[str, Any]:
        """Return what a circuit does on one photograph and on another, each as the model sees the whole of it."""
        circuit = load(file)
        if not isinstance(circuit, Circuit):
            raise ConvCircuitsError(f"{file.name} holds no circuit any more.")
        found = contrasted(self._looking, circuit, torch.cat([self._input(a), self._input(b)]))
        return {
            **{name: getattr(found, name) for name in ("feature", "position", "full", "notes")},
            "in_circuit": found.circuit,
            "boxes": [[*box] for box in found.box],
            "layers": [
                {
                    "layer": name,
                    "positions": layer.positions,
                    "filters": layer.filters.tolist(),
                    "outputs": _short(layer.outputs),
                    "kernels": layer.kernels.tolist(),
                    "added": _short(layer.added),
                }
                for name, layer in found.layers.items()
            ],
        }

    def _atlases(self, folders: Sequence[Path]) -> list[dict[str, Any]]:
        """Describe atlases. One that cannot be used has a problem."""
        return [self._card(folder) for folder in folders]

    def _card(self, folder: Path) -> dict[str, Any]:
        try:
            atlas = self._read(folder)
        except ConvCircuitsError as error:
            return {"layer": "", "units": 0, "criterion": "", "problem": str(error)}
        said = {"layer": atlas.layer, "units": len(atlas), "criterion": str(atlas.asked["criterion"])}
        return {**said, "problem": self._misfit(atlas)}

    def _atlas(self, folder: Path) -> dict[str, Any]:
        """Return what the page of an atlas shows.

        Raises:
            ConvCircuitsError: If it cannot be read, or is of another model or other weights.
        """
        atlas = self._read(folder)
        problem = self._misfit(atlas)
        if problem:
            raise ConvCircuitsError(problem)
        return atlas.as_dict()

    def _misfit(self, atlas: Atlas) -> str:
        """Return why an atlas is not of this model, or an empty text."""
        materials, asked = self._materials, atlas.asked
        built = atlas.layer in materials.known and asked["architecture"] == architecture_hash(materials.loaded.model)
        if built and asked["weights"] == self._weights_up_to(atlas.layer):
            return ""
        return f"The atlas of {atlas.layer} is of another model, or of other weights, than are open here."

    def _read(self, folder: Path) -> Atlas:
        """Read an atlas, again if its files have changed since."""
        files = sorted(folder.glob("index*.sqlite"))
        stamps = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        if folder not in self._atlas_of or self._atlas_of[folder][0] != stamps:
            self._atlas_of[folder] = stamps, Atlas.read(folder)
        return self._atlas_of[folder][1]

    def _source(self, photo: str) -> bytes:
        """Return the content of a photograph's file."""
        one = self._materials.photographs[photo]
        if not isinstance(one.source, Path):
            raise ConvCircuitsError(
                f"{one.name} is no file of a folder: it comes with --images {self._materials.opening.images}, which "
                "others can give too. Leave the photographs out."
            )
        try:
            content = one.source.read_bytes()
        except OSError as error:
            raise ConvCircuitsError(f"{one.name} cannot be read: {error.strerror or error}.") from error
        if hashlib.sha256(content).hexdigest()[:16] != photo:
            raise ConvCircuitsError(f"{one.name} has changed since the explorer read it. Start the explorer again.")
        return content

    def _weights_up_to(self, layer: str) -> str:
        """Return the hash of the weights up to a layer, as circuits record it."""
        if layer not in self._materials.known:
            raise ConvCircuitsError(f"There is no layer {layer!r:.100}.")
        return weights_up_to(
            self._looking, self._feature(layer, 0), self._input(next(iter(self._materials.photographs)))
        )

    def _possible(self, kind: str, asked: Mapping[str, Any]) -> None:
        """Raise an error if a job ``find`` or ``split`` can be known to fail."""
        feature = self._materials.loaded.feature(asked["feature"])
        known = self._materials.known
        if feature.layer not in known:
            raise ConvCircuitsError(f"There is no layer {feature.layer!r:.100}. {suggest(feature.layer, known)}")
        units = [feature.unit] if isinstance(feature.unit, int) else [int(unit) for unit in feature.unit]
        among = known[feature.layer].channels
        if max(units) >= among:
            raise ConvCircuitsError(f"{feature.layer} has {among} units, 0 to {among - 1}; there is no {max(units)}.")
        if kind == "split":
            if not isinstance(feature.unit, int):
                raise ConvCircuitsError(f"{asked['feature']} is not one unit; give LAYER:UNIT.")
            return
        criterion = asked["criterion"] or default_criterion(asked["granularity"])
        function = criterion_named(criterion)
        check_options(function, criterion, criterion_options(asked["options"], files=False))
        if is_descent(function):
            check_kernels(criterion, asked["granularity"])
        drawable_size(None, None, asked["filters"], asked["fan_in"], asked["drawable"], asked["granularity"])

    def _estimate(self, feature: str, criterion: str, count: int, reach_r2: bool, refit: str) -> dict[str, Any]:
        """Estimate how long a search takes, from the time of one image's forward and backward pass."""
        layer = self._materials.loaded.feature(feature).layer
        if layer not in self._timed:
            image = self._input(next(iter(self._materials.photographs))).repeat(_TIMED, 1, 1, 1).requires_grad_()
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
        several = layer in self._materials.known and self._materials.known[layer].calls > 1
        return Feature(layer, unit, call=0 if several else None)

    def _input(self, photo: str) -> torch.Tensor:
        """Return a photograph as the model's input, (1, C, H, W)."""
        image = resized(
            self._materials.loaded.preprocess(self._materials.photographs[photo].image)[None],
            side(self._materials.opening.size),
        )
        return image.to(self._looking.device, self._looking.dtype)

    @cached_property
    def _bytes(self) -> dict[str, int]:
        """The size of the maps of each convolution that can be indexed on a photograph, in execution order."""
        return {info.name: 4 * info.channels * math.prod(info.map) for info in self._materials.convolutions}

    @cached_property
    def _looking(self) -> Network:
        """A private copy of the model for the thread that answers questions."""
        return Network(self._materials.loaded.model)


def _short(values: torch.Tensor) -> list[list[float]]:
    """Return values with as many digits as float32 has: kernels may be many."""
    return [[float(f"{value:.7g}") for value in row] for row in values.tolist()]


def _about(seconds: float) -> str:
    """Return a duration in words, with the precision that an estimate has."""
    for size, word in ((3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {word}s"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
