"""A circuit: which kernels, filters or weights are kept. Only data; other modules run, measure and draw it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convcircuits.cards import card
from convcircuits.errors import ConvCircuitsError
from convcircuits.frames import frame
from convcircuits.texts import printable
from convcircuits.values.feature import Feature
from convcircuits.values.granularity import SHAPES, check_granularity, fits, of_kernels
from convcircuits.values.scores import SCORE_DTYPES
from convcircuits.values.tables import LayerTable

if TYPE_CHECKING:
    import networkx
    import pandas

_SHARED = ("model", "weights", "feature", "granularity", "versions")


@dataclass(frozen=True, eq=False)
class Circuit:
    """The kernels, filters or weights of a model that are kept for one feature.

    Equality means: the same feature of the same weights, the same elements, the same calibration.

    Attributes:
        feature: The feature that is preserved.
        elements: Layer name -> kept or not, bool, in execution order; shape (out, in per group), for filters (out,),
            for weights the weight's own.
        saliency: Layer name -> the saliency the elements were pruned by, same shapes; NaN where none was given.
        relevant: How many elements lie on a path from the image to the feature in the full model.
        gain: Layer name -> shape (out,): a calibration, y' = gain * y + offset on the raw output of the layer,
            before any BatchNorm. Empty where there is none.
        offset: Layer name -> shape (out,), as ``gain``.
        provenance: How the circuit came about, as JSON values.
        granularity: What an element is: ``"filter"``, ``"kernel"`` or ``"weight"``. A kept filter
            keeps all its relevant kernels; of a kernel that is kept, single weights may be dropped.
    """

    feature: Feature
    elements: LayerTable
    saliency: LayerTable
    relevant: int
    gain: LayerTable = field(default_factory=LayerTable)
    offset: LayerTable = field(default_factory=LayerTable)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    granularity: str = "kernel"

    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_granularity(self.granularity)
        for name in ("elements", "saliency", "gain", "offset"):
            object.__setattr__(self, name, LayerTable(getattr(self, name)))
        for table in (self.saliency, self.gain, self.offset):
            for layer, values in table.items():
                if values.dtype not in SCORE_DTYPES:
                    raise ConvCircuitsError(f"A table of {layer} holds {values.dtype}; expected floating point.")
        for layer, mask in self.elements.items():
            if mask.dtype != torch.bool or not fits(mask, self.granularity):
                raise ConvCircuitsError(
                    f"The mask of {layer} is {mask.dtype} of shape {tuple(mask.shape)}; "
                    f"expected bool of shape {SHAPES[self.granularity]}."
                )
        shapes = {layer: mask.shape for layer, mask in self.elements.items()}
        if {layer: s.shape for layer, s in self.saliency.items()} != shapes:
            raise ConvCircuitsError("saliency and elements must have the same layers and shapes.")
        for name, table in (("gain", self.gain), ("offset", self.offset)):
            for layer, values in table.items():
                if not bool(values.isfinite().all()):
                    raise ConvCircuitsError(f"The {name} of {layer} holds NaN or Inf.")
                if layer not in shapes or values.shape != shapes[layer][:1]:
                    raise ConvCircuitsError(
                        f"The {name} of {layer} has shape {tuple(values.shape)}; expected one value per filter of "
                        "a layer of the circuit."
                    )
        if len(self) > self.relevant:
            raise ConvCircuitsError(
                f"The circuit keeps {len(self)} {self.granularity}s, more than the {self.relevant} that are relevant."
            )

    @classmethod
    def from_masks(
        cls,
        model: nn.Module,
        feature: Feature,
        masks: Mapping[str, Tensor],
        *,
        granularity: str = "kernel",
        input_shape: tuple[int, int, int] | None = None,
    ) -> "Circuit":
        """Make a circuit from masks of your own.

        Args:
            model: The model that the masks belong to.
            feature: The feature.
            masks: Layer name -> shape (out, in per group), for filters (out,), for weights the weight's own; bool,
                or numbers of which those not zero are kept. A layer that is left out keeps nothing. Elements on no path
                to the feature are not counted as kept.
            granularity: What one value of a mask stands for: a ``"filter"``, a ``"kernel"`` or a ``"weight"``.
            input_shape: (C, H, W) of an image; guessed where not given.

        Returns:
            A circuit whose saliency is 1 for kept elements and 0 for the others: nothing was scored.

        Raises:
            ConvCircuitsError: If a layer or the granularity is unknown, a mask has another shape, or no input shape
                fits.

        Examples:
            >>> masks = {"features.0": torch.ones(8, 3), "features.3": torch.eye(8), "features.5": torch.ones(6, 8)}
            >>> cc.Circuit.from_masks(model, feature, masks, input_shape=(3, 32, 32))
            Circuit(features.5:1, 40 of 96 kernels = 41.667%)
        """
        from convcircuits.network.laws import relevant_elements  # the one step from values to the model

        check_granularity(granularity)
        relevant, provenance = relevant_elements(model, feature, granularity, input_shape)
        table = LayerTable(relevant)
        if not isinstance(masks, Mapping) or not all(isinstance(mask, Tensor) for mask in masks.values()):
            raise ConvCircuitsError(f"masks maps layer names to tensors of shape {SHAPES[granularity]}.")
        for layer, mask in masks.items():
            if mask.shape != table[layer].shape:
                raise ConvCircuitsError(
                    f"The mask of {layer} has shape {tuple(mask.shape)}; expected {tuple(table[layer].shape)}, "
                    f"that is {SHAPES[granularity]} (granularity={granularity!r})."
                )
        kernels = {
            layer: masks[layer].detach().cpu().bool() & r if layer in masks else torch.zeros_like(r)
            for layer, r in table.items()
        }
        saliency = {layer: kernels[layer].float().masked_fill(~r, torch.nan) for layer, r in table.items()}
        return cls(
            feature,
            LayerTable(kernels),
            LayerTable(saliency),
            relevant=sum(int(r.sum()) for r in table.values()),
            provenance=provenance | {"granularity": granularity, "made_by": "from_masks"},
            granularity=granularity,
        )

    def __len__(self) -> int:
        return sum(int(mask.sum()) for mask in self.elements.values())

    def __bool__(self) -> bool:
        return True  # an empty circuit is still a circuit; ask len()

    @property
    def kernels(self) -> LayerTable:
        """The elements, where these are kernels: layer name -> kept or not, bool (out, in per group).

        Raises:
            ConvCircuitsError: If they are filters or weights.
        """
        return of_kernels(self.elements, self.granularity)

    @property
    def density(self) -> float:
        """Kept elements / relevant elements of the full model, from 0 to 1."""
        return len(self) / self.relevant if self.relevant else 0.0

    def __getitem__(self, layer: str) -> Tensor:
        return self.elements[layer]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return (
            self.feature == other.feature
            and self.granularity == other.granularity
            and self.provenance.get("weights") == other.provenance.get("weights")
            and self.elements == other.elements
            and self.gain == other.gain
            and self.offset == other.offset
        )

    def __and__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, torch.logical_and, "&")

    def __or__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, torch.logical_or, "|")

    def __sub__(self, other: "Circuit") -> "Circuit":
        return self._combined(other, lambda a, b: a & ~b, "-")

    def _combined(self, other: "Circuit", rule: Callable[[Tensor, Tensor], Tensor], sign: str) -> "Circuit":
        self._check_comparable(other)
        # What the two share of their model; how each was found stands under "from".
        shared = {k: v for k, v in self.provenance.items() if k in _SHARED}
        if self.provenance.get("images") == other.provenance.get("images") is not None:
            shared["images"] = self.provenance["images"]
        return Circuit(
            self.feature,
            LayerTable({layer: rule(mask, other[layer]) for layer, mask in self.elements.items()}),
            LayerTable({a: torch.where(s.isnan(), other.saliency[a].to(s), s) for a, s in self.saliency.items()}),
            self.relevant,
            provenance=shared | {"made_by": sign, "from": [dict(self.provenance), dict(other.provenance)]},
            granularity=self.granularity,
        )

    def _check_comparable(self, other: "Circuit") -> None:
        if not isinstance(other, Circuit):
            raise ConvCircuitsError(f"A circuit combines and compares with a Circuit; got {type(other).__name__}.")
        for what, mine, theirs in (
            ("features", self.feature, other.feature),
            ("weights", self.provenance.get("weights"), other.provenance.get("weights")),
            ("granularities", self.granularity, other.granularity),
            ("layers", list(self.elements), list(other.elements)),
        ):
            if mine != theirs:
                raise ConvCircuitsError(
                    f"The two circuits have different {what} ({mine} and {theirs}); "
                    "only circuits of one feature of one model, of one granularity, combine and compare."
                )

    def iou_by_layer(self, other: "Circuit") -> dict[str, float]:
        """Return elements in both / elements in either, from 0 to 1, per layer; 1 where neither keeps any."""
        self._check_comparable(other)
        return {
            layer: _iou(int((mask & other[layer]).sum()), int((mask | other[layer]).sum()))
            for layer, mask in self.elements.items()
        }

    def __repr__(self) -> str:
        criterion = self.provenance.get("criterion")
        how = (f", {criterion}" if criterion else "") + (", calibrated" if self.gain or self.offset else "")
        counted = f"{len(self):,} of {self.relevant:,} {self.granularity}s = {self.density:.3%}"
        return printable(f"Circuit({self.feature}{how}, {counted})")

    def summary(self) -> str:
        """Tabulate the layers: elements kept, and filters of which any are."""
        width = max([len(printable(layer)) for layer in self.elements] + [5])
        lines = [repr(self), f"{'layer':<{width}}  {self.granularity + 's kept':>21}  {'filters kept':>13}"]
        lines += [
            f"{printable(layer):<{width}}  {kept:>9,} / {counted:>9,}  {filters:>5,} / {of:>5,}"
            for layer, kept, counted, filters, of in self._layers()
        ]
        lines += [f"note: {printable(note)}" for note in self.provenance.get("notes", ())]
        return "\n".join(lines)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the layers as a table, in execution order.

        Its columns are the layer, the elements kept and relevant (``kernels_kept`` and ``kernels``, or as the
        granularity says), and the filters of which any element is kept, and all filters.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        elements = f"{self.granularity}s" if self.granularity != "filter" else "relevant_filters"
        names = ("layer", f"{elements}_kept", elements, "filters_kept", "filters")
        return frame([dict(zip(names, row, strict=True)) for row in self._layers()])

    def to_networkx(
        self, model: nn.Module, *, input_shape: tuple[int, int, int] | None = None
    ) -> "networkx.MultiDiGraph":
        """Return the circuit as a graph: filters are its nodes, effective kernels its edges.

        A circuit alone does not know which filter an input channel comes from, so the model is asked. Every node and
        every edge lies on a path from the image to the feature inside the circuit.

        Nodes are ``(layer, filter)`` and ``("image", channel)``; what is added, scaled or mixed by no filter is
        ``("add 12", channel)`` and the like. Each has a ``kind`` (``"filter"``, ``"image"``, ``"add"``, ``"gate"``,
        ``"mix"`` or ``"target"``) and the ``layer`` that computes it. An edge of ``kind`` ``"kernel"`` has the
        ``layer``, ``filter`` and ``channel`` (counted inside the group) of the kernel and its ``saliency``; edges of
        the kinds ``"identity"``, ``"gate"``, ``"mix"`` and ``"readout"`` have no weights. ``graph["target"]`` is the
        feature's node.

        Args:
            model: The model that the circuit belongs to.
            input_shape: (C, H, W) of an image; that of the images the circuit was found on if not given.

        Raises:
            ConvCircuitsError: If networkx is not installed (extra ``notebook``), the circuit belongs to other weights,
                or the model's channels cannot be followed.

        Examples:
            >>> graph = circuit.to_networkx(model)
            >>> graph.graph["target"]
            ('features.5', 1)
        """
        from convcircuits.drawing.filters import graph_of_filters  # a step from values to the model, as from_masks is

        return graph_of_filters(model, self, input_shape)

    def _repr_html_(self) -> str:
        rows = [
            (layer, f"{kept:,} of {counted:,}", f"{filters:,} of {of:,}")
            for layer, kept, counted, filters, of in self._layers()
        ]
        notes = [*map(str, self.provenance.get("notes", ())), "cc.evaluate measures how well it keeps the feature."]
        elements = "relevant filters" if self.granularity == "filter" else f"{self.granularity}s"
        return card(repr(self), ("layer", f"{elements} kept", "filters kept"), rows, notes)

    def _layers(self) -> list[tuple[str, int, int, int, int]]:
        """List by layer the elements kept and relevant, the filters of which any are kept, and all filters."""
        return [
            (
                layer,
                int(mask.sum()),
                int((~self.saliency[layer].isnan()).sum()),
                int(mask.reshape(len(mask), -1).any(1).sum()),
                len(mask),
            )
            for layer, mask in self.elements.items()
        ]


def iou(a: Circuit, b: Circuit) -> float:
    """Return the overlap of two circuits: elements in both / elements in either, from 0 to 1.

    Raises:
        ConvCircuitsError: If they are circuits of different features, models or granularities.

    Examples:
        >>> a, b = cc.prune(scores, kernels=30), cc.prune(scores, kernels=20)
        >>> cc.iou(a, b) == len(a & b) / len(a | b) == 2 / 3
        True
    """
    if not isinstance(a, Circuit):
        raise ConvCircuitsError(f"iou compares two Circuits; got {type(a).__name__}.")
    return _iou(len(a & b), len(a | b))


def _iou(both: int, either: int) -> float:
    return both / either if either else 1.0
