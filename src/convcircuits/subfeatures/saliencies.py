"""How the network computes a feature on each image: the signed saliency of every kernel, compressed."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from convcircuits.circuits.scoring import MEMORY, trace_of
from convcircuits.circuits.tracing import Batch, Layer
from convcircuits.errors import ConvCircuitsError, whole_number
from convcircuits.network.batches import Images, Progress
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature, at

SKETCH = 1024
"""Numbers that are kept of each layer and image."""

DRIVEN = 0.05
"""Share of the highest response from which on an image counts as one that drives a feature.

On weaker images a response may be what constants leave of the feature, computed in another way than the feature is. A
third of planted units with one mechanism were called two if all images above 0 counted, and none with this share."""


@dataclass(frozen=True)
class ImageSaliencies:
    """The signed saliencies of a feature's kernels on each image, at the feature's position.

    The saliency of a kernel is dL/dm, with m a factor on its weights: to first order, what the feature loses without
    it. Those of one layer add up to what the feature gains from it, if only ReLUs follow and biases are set aside.

    Attributes:
        layers: Layer name -> (images, d) in execution order, float32. A layer with at most ``SKETCH`` relevant kernels
            has one column for each of them, in the order of its table. Of a larger one, each kernel is added, with a
            random sign, to a random one of ``SKETCH`` columns: scalar products between images keep their value on
            average, with a standard deviation of at most 1 / sqrt(SKETCH) of the product of their norms (Charikar et
            al., 2002: a count sketch).
        response: The feature's value in the full model on each image, float64; at its positions' mean if several count.
        position: Flat index of the position in the map; -1 if several count.
        provenance: How they were obtained, as JSON values.
    """

    layers: Mapping[str, Float[Tensor, "n d"]]
    response: Float[Tensor, " n"]
    position: Int[Tensor, " n"]
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.response)

    @property
    def driven(self) -> Bool[Tensor, " n"]:
        """The images that drive the feature: above 0, and at least ``DRIVEN`` of the highest response."""
        return (self.response > 0) & (self.response >= DRIVEN * self.response.max())

    def notes(self, feature: Feature) -> list[str]:
        """Return a remark on the images that do not drive the feature, if there are some."""
        weak = int((~self.driven).sum())
        if not weak:
            return []
        return [
            f"{feature} stays below {DRIVEN:.0%} of its highest response, or is not above 0, on {weak} of {len(self)} "
            "images; they are left out."
        ]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "ImageSaliencies":
        """Return what ``as_tensors`` was called on."""
        numbered = [name.split("/", 1) for name in tensors if "/" in name]  # the order of layers is that of execution
        layers = {layer: tensors[f"{n}/{layer}"] for n, layer in sorted(numbered, key=lambda name: int(name[0]))}
        return cls(layers, tensors["response"], tensors["position"])

    def as_tensors(self) -> dict[str, Tensor]:
        """Return all tables by name, for a file."""
        layers = {f"{n}/{layer}": table for n, (layer, table) in enumerate(self.layers.items())}
        return layers | {"response": self.response, "position": self.position}

    def of(self, images: Tensor) -> "ImageSaliencies":
        """Return those of some images, given by index or as a mask."""
        return ImageSaliencies(
            {layer: one[images] for layer, one in self.layers.items()},
            self.response[images],
            self.position[images],
            self.provenance,
        )


@outside_autocast
def image_saliencies(
    model: nn.Module,
    feature: Feature,
    images: Images,
    *,
    circuit: Circuit | None = None,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> ImageSaliencies:
    """Return the signed saliency of every kernel for each image, in one pass forward and one backward.

    Args:
        model: Any CNN.
        feature: One unit or a direction. With the position ``"max"``, each image counts where the feature is highest
            in the full model.
        images: As for ``score``.
        circuit: Stay inside this circuit.
        batch_size: Maximum number of images that run at once.
        seed: Seed of the compression.
        memory: Bytes of working memory.
        progress: Called with the number of images done and their total (or None).

    Raises:
        ConvCircuitsError: As for ``score``, or if the feature has several units.
    """
    if isinstance(feature.unit, tuple):
        raise ConvCircuitsError(f"{feature} has several units; choose one, such as {feature.layer}:{feature.unit[0]}.")
    size = whole_number("The sketch", SKETCH, 1)
    trace, batches, about = trace_of(model, feature, images, "kernel", circuit, batch_size, seed, memory, progress)
    sketches = {layer: _Sketch(layer, mask, size, seed) for layer, mask in trace.relevant.items() if bool(mask.any())}
    parts: dict[str, list[Tensor]] = {layer: [] for layer in sketches}
    response: list[Tensor] = []
    position: list[Tensor] = []

    def see(batch: Batch) -> tuple[()]:
        values = at(batch.maps, batch.indices)
        response.append(values.double().mean(1).cpu())
        single = batch.indices is not None and batch.indices.shape[1] == 1
        position.append(batch.indices[:, 0].cpu() if single else torch.full((batch.size,), -1))  # type: ignore[index]
        seen = {}
        for layer in batch.backward(torch.ones_like(batch.maps) / batch.scale):
            if layer.name in sketches:
                sketch = sketches[layer.name]
                seen[layer.name] = torch.cat(
                    [sketch.of(some * batch.scale, layer) for some in layer.mask_gradients()]
                ).cpu()
        for name, part in parts.items():
            part.append(seen[name] if name in seen else torch.zeros(batch.size, sketches[name].size))
        return ()

    trace.mean(see)
    return ImageSaliencies(
        {name: torch.cat(part) for name, part in parts.items()},
        torch.cat(response),
        torch.cat(position),
        {**about, "images": batches.describe(), "seed": seed},
    )


class _Sketch:
    """The compression of one layer's table: see ``ImageSaliencies``."""

    def __init__(self, layer: str, relevant: Tensor, size: int, seed: int) -> None:
        count = int(relevant.sum())
        self.relevant, self.size = relevant, min(count, size)
        dice = torch.Generator().manual_seed(zlib.crc32(f"{seed}|{layer}".encode()))
        self.column = torch.randint(size, (count,), generator=dice)
        self.sign = torch.randint(2, (count,), generator=dice) * 2.0 - 1

    def of(self, values: Float[Tensor, "n g o e"], layer: Layer) -> Float[Tensor, "n d"]:
        """Compress one value per kernel that the layer's calls hold."""
        rows, relevant = layer.calls[0][0].rows, self.relevant
        if layer.channels is not None:
            assert rows is not None
            whole = values.new_zeros(len(values), *relevant.shape)
            whole[:, rows[:, None], layer.channels] = values.flatten(1, 2)
            values = whole
        elif rows is not None:
            relevant = relevant[rows.cpu()]
        flat = values.flatten(1)[:, relevant.flatten().to(values.device)].float()
        if flat.shape[1] == self.size:
            return flat
        sketch = flat.new_zeros(len(flat), self.size)
        return sketch.index_add_(1, self.column.to(flat.device), flat * self.sign.to(flat.device))
