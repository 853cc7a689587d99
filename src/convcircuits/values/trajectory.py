"""The images of a feature, placed layer by layer by how the network computes the feature on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from convcircuits.cards import card, figure
from convcircuits.frames import frame
from convcircuits.texts import printable

if TYPE_CHECKING:
    import pandas

_HEAD = ("layer", "variance explained", "neighbors kept", "disparity", "neighbors shared")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A map of images for each layer: near each other are those on which its kernels compute the feature alike.

    Each map is centered and scaled to a mean square distance of 1 from the center, and turned or mirrored onto the map
    of the layer before, so that images can be followed. What that costs is in the figures: no map of two dimensions is
    the whole.

    An overlap of neighbors is above chance: 1 if each image has the same nearest neighbors in both, 0 as expected of
    neighbors drawn at random.

    Attributes:
        feature: Text form of the feature.
        method: How images are placed: ``"pca"`` or ``"umap"``.
        layers: Names of the layers, in execution order.
        image: Index of each image that is placed, (n,), int64: those that drive the feature, on which it is
            above 0 and at least 5 % of its highest response.
        points: The maps, (layers, n, 2), float64.
        explained: Share of the variance that each map holds, (layers,); NaN for UMAP, and where all images are computed
            alike.
        kept: Overlap of neighbors in each map with those by all saliencies of the layer, (layers,).
        disparity: Procrustes disparity between the map of each layer and that of the layer before, (layers,): the share
            of a map that is left after it was turned, mirrored and scaled onto the other. 0 for equal shapes; at least
            1 - 2 / (n - 1) is expected if the images have nothing in common. NaN for the first.
        shared: Overlap of neighbors in the map of each layer with those in the map before, (layers,); NaN for the
            first.
        neighbors: Number of nearest neighbors that are compared.
        response: The feature's value on each image, (n,).
        groups: Names of groups.
        labels: Index of the group of each image, (n,), int64; -1 for none.
        notes: Remarks needed to read the maps correctly.
        provenance: How they were obtained, as JSON values.
    """

    feature: str
    method: str
    layers: tuple[str, ...]
    image: Int[Tensor, " n"]
    points: Float[Tensor, "layers n two"]
    explained: Float[Tensor, " layers"]
    kept: Float[Tensor, " layers"]
    disparity: Float[Tensor, " layers"]
    shared: Float[Tensor, " layers"]
    neighbors: int
    response: Float[Tensor, " n"]
    groups: tuple[str, ...]
    labels: Int[Tensor, " n"]
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of images that are placed."""
        return len(self.image)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each image and layer: ``image``, ``layer``, ``x``, ``y``, ``response`` and ``group``."""
        names = [*self.groups, ""]  # the last for the label -1
        about = [
            (image, response, names[label])
            for image, response, label in zip(
                self.image.tolist(), self.response.tolist(), self.labels.tolist(), strict=True
            )
        ]
        return [
            {"image": image, "layer": layer, "x": x, "y": y, "response": response, "group": group}
            for layer, points in zip(self.layers, self.points.tolist(), strict=True)
            for (image, response, group), (x, y) in zip(about, points, strict=True)
        ]

    def by_layer(self) -> list[dict[str, Any]]:
        """Return one row for each layer with the figures of its map: ``layer``, ``explained``, ``kept``, ...

        The others are ``disparity`` and ``shared``. None where a figure is not defined.
        """
        figures = {name: getattr(self, name).tolist() for name in ("explained", "kept", "disparity", "shared")}
        return [
            {"layer": layer} | {name: None if values[n] != values[n] else values[n] for name, values in figures.items()}
            for n, layer in enumerate(self.layers)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the provenance as JSON values; ``by_layer`` is in ``layers``."""
        return {
            "feature": self.feature,
            "title": self.title,
            "method": self.method,
            "layers": self.by_layer(),
            "image": self.image.tolist(),
            "points": self.points.tolist(),
            "neighbors": self.neighbors,
            "response": self.response.tolist(),
            "groups": list(self.groups),
            "labels": self.labels.tolist(),
            "notes": list(self.notes),
        }

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the table of ``rows``.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame(self.rows())

    def summary(self) -> str:
        """Return the figures of each layer's map, and the notes."""
        lines = [_HEAD, *self._cells()]
        wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, wide)).rstrip() for line in lines]
        return "\n".join([self.title, *table, *(f"note: {printable(note)}" for note in self.notes)])

    @property
    def title(self) -> str:
        """What is placed, and how."""
        how = {"pca": "PCA", "umap": "UMAP"}[self.method]
        return f"{self.feature}: {len(self)} images by how each layer computes it on them ({how})"

    def __repr__(self) -> str:
        return printable(f"Trajectory({self.feature}, {len(self)} images, {len(self.layers)} layers, {self.method})")

    def _repr_html_(self) -> str:
        return card(self.title, _HEAD, self._cells(), self.notes)

    def _cells(self) -> list[tuple[str, ...]]:
        names = ("explained", "kept", "disparity", "shared")
        return [(printable(row["layer"]), *(figure(row[name]) for name in names)) for row in self.by_layer()]
