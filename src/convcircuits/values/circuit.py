"""A circuit: the kernels, filters or weights that are kept. It is only data; other modules run, measure and draw it."""

import dataclasses
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
from convcircuits.values.origins import how_found
from convcircuits.values.scores import SCORE_DTYPES
from convcircuits.values.tables import LayerTable, count_kept

if TYPE_CHECKING:
    import networkx
    import pandas

_SHARED = ("model", "weights", "feature", "granularity", "versions")
_ON_IMAGES = ("input_shape", "images")


@dataclass(frozen=True, eq=False)
class Circuit:
    """The kernels, filters or weights of a model that are kept for one feature.

    Two circuits are equal if they have the same feature, weights, elements and calibration.

    Attributes:
        feature: The feature that is preserved.
        elements: Layer name -> whether each element is kept, bool, in execution order. The shape is (out, in per group)
            for kernels, (out,) for filters and the weight's own for weights.
        saliency: Layer name -> the saliency by which the elements were pruned, in the same shapes; NaN for elements
            without a score.
        relevant: Number of elements on a path from the image to the feature in the full model.
        gain: Layer name -> shape (out, in per group), for circuits of any granularity. Together with ``offset`` a
            calibration: y_o = sum_i gain_oi z_oi + b_o + offset_o on the raw output of the layer, before any BatchNorm,
            with z_oi the pre-sum map of a kernel and b_o the bias. A dead filter stays 0. Layers that are missing have
            gain 1 and offset 0; both tables are empty without a calibration.
        offset: Layer name -> shape (out,).
        provenance: How the circuit was made, as JSON values.
        granularity: What an element is: ``"filter"``, ``"kernel"`` or ``"weight"``. A kept filter keeps all
            its relevant kernels; a circuit of weights may drop single weights of a kernel.
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
                    raise ConvCircuitsError(f"A table of {layer} has dtype {values.dtype}; expected floating point.")
        for layer, mask in self.elements.items():
            if mask.dtype != torch.bool or not fits(mask, self.granularity):
                raise ConvCircuitsError(
                    f"The mask of {layer} has dtype {mask.dtype} and shape {tuple(mask.shape)}; "
                    f"expected bool of shape {SHAPES[self.granularity]}."
                )
        shapes = {layer: mask.shape for layer, mask in self.elements.items()}
        if {layer: s.shape for layer, s in self.saliency.items()} != shapes:
            raise ConvCircuitsError("saliency and elements must have the same layers and shapes.")
        for name, table in (("gain", self.gain), ("offset", self.offset)):
            for layer, values in table.items():
                if not bool(values.isfinite().all()):
                    raise ConvCircuitsError(f"The {name} of {layer} contains NaN or Inf.")
                if layer not in shapes:
                    raise ConvCircuitsError(f"The {name} of {layer} belongs to no layer of the circuit.")
                if not self._fits(name, values, shapes[layer]):
                    per = "kernel, (out, in per group)" if name == "gain" else "filter, (out,)"
                    raise ConvCircuitsError(
                        f"The {name} of {layer} has shape {tuple(values.shape)}; expected one value per {per}, for "
                        f"{shapes[layer][0]} filters."
                    )
        if len(self) > self.relevant:
            raise ConvCircuitsError(
                f"The circuit keeps {len(self)} {self.granularity}s, but only {self.relevant} are relevant."
            )

    def _fits(self, name: str, values: Tensor, elements: torch.Size) -> bool:
        """Return whether a gain or offset has the right shape, as far as the shape of the elements tells."""
        if name == "offset" or self.granularity == "filter":
            return values.dim() == (1 if name == "offset" else 2) and len(values) == elements[0]
        if self.granularity == "kernel":
            return values.shape == elements
        return values.dim() == 2 and len(values) == elements[0] and elements[1:].numel() % max(1, values.shape[1]) == 0

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
        """Build a circuit from custom masks.

        Args:
            model: The model that the masks belong to.
            feature: The feature.
            masks: Layer name -> mask of shape (out, in per group) for kernels, (out,) for filters and the weight's own
                for weights. Masks are bool or numeric; nonzero means kept. A layer that is missing keeps nothing.
                Elements on no path to the feature are dropped.
            granularity: What one value of a mask stands for: a ``"filter"``, a ``"kernel"`` or a ``"weight"``.
            input_shape: (C, H, W) of an image; guessed if None.

        Returns:
            A circuit whose saliency is 1 for kept elements and 0 for the other relevant ones, as nothing was scored.

        Raises:
            ConvCircuitsError: If a layer or the granularity is unknown, a mask has the wrong shape, or no input shape
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
            raise ConvCircuitsError(f"masks must map layer names to tensors of shape {SHAPES[granularity]}.")
        for layer, mask in masks.items():
            if mask.shape != table[layer].shape:
                raise ConvCircuitsError(
                    f"The mask of {layer} has shape {tuple(mask.shape)}; expected {tuple(table[layer].shape)}, "
                    f"which is {SHAPES[granularity]} (granularity={granularity!r})."
                )
        elements = {
            layer: masks[layer].detach().cpu().bool() & r if layer in masks else torch.zeros_like(r)
            for layer, r in table.items()
        }
        saliency = {layer: elements[layer].float().masked_fill(~r, torch.nan) for layer, r in table.items()}
        return cls(
            feature,
            LayerTable(elements),
            LayerTable(saliency),
            relevant=count_kept(table),
            provenance=provenance | {"granularity": granularity, "made_by": "from_masks"},
            granularity=granularity,
        )

    def __len__(self) -> int:
        return count_kept(self.elements)

    def __bool__(self) -> bool:
        return True  # an empty circuit is still a circuit; its size is len()

    @property
    def kernels(self) -> LayerTable:
        """The kernel masks of a circuit of kernels: layer name -> bool (out, in per group).

        Raises:
            ConvCircuitsError: If the elements are filters or weights.
        """
        return of_kernels(self.elements, self.granularity)

    @property
    def density(self) -> float:
        """Kept elements / relevant elements of the full model, from 0 to 1."""
        return len(self) / self.relevant if self.relevant else 0.0

    @property
    def calibrated(self) -> bool:
        """Whether the circuit has gains or offsets of its own."""
        return bool(self.gain or self.offset)

    @property
    def constants(self) -> int:
        """Number of constants that the calibration has, which were fitted; 0 without a calibration.

        A filter whose kept kernels share a gain has one constant for it, or none if it is 1; otherwise each kept kernel
        has one. An offset other than 0 is one more.
        """
        count = 0
        for layer, gain in self.gain.items():
            mask = self.elements[layer]
            kept = mask[:, None].expand_as(gain) if mask.dim() == 1 else mask.reshape(*gain.shape, -1).any(2)
            lowest = gain.masked_fill(~kept, torch.inf).amin(1)
            highest = gain.masked_fill(~kept, -torch.inf).amax(1)
            shared = (lowest == highest) & (highest != 1)
            count += int(shared.sum()) + int(kept[lowest < highest].sum())
        for layer, offset in self.offset.items():
            live = self.elements[layer].reshape(len(offset), -1).any(1)
            count += int((live & (offset != 0)).sum())
        return count

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

    def without(self, layer: str, filter: int, input: int | None = None) -> "Circuit":
        """Return the circuit without one filter, or without one kernel. Its calibration stays.

        Kernels that read the filter stay too, but are no longer effective.

        Args:
            layer: Name of the layer.
            filter: Index of the filter.
            input: Index of the channel, within its group, that the kernel reads; None for all kernels of the filter.
                For a Linear layer in a circuit of weights only None.

        Raises:
            ConvCircuitsError: If there is no such filter or kernel in the circuit.

        Examples:
            >>> smaller = circuit.without("features.0", 2)
            >>> bool(smaller["features.0"][2].any())
            False
        """
        mask = self.elements[layer]
        if input is not None and self.granularity == "filter":
            raise ConvCircuitsError("A circuit of filters keeps or drops all kernels of a filter; give no input.")
        if input is not None and self.granularity == "weight" and mask.dim() == 2:
            raise ConvCircuitsError(
                f"{layer} is a Linear layer, and a circuit of weights does not say which weights read a channel; give "
                "no input, or a circuit of kernels."
            )
        if self.granularity == "weight" and mask.dim() == 4:
            mask = mask.flatten(2).any(2)
        sizes = {"filter": (filter, len(mask)), **({} if input is None else {"input": (input, mask.shape[1])})}
        for name, (number, size) in sizes.items():
            if not 0 <= number < size:
                raise ConvCircuitsError(f"{layer} has {size} {name}s, numbered from 0; got {number}.")
        place: Any = filter if input is None else (filter, input)
        if not bool(mask[place].any()):
            what = f"filter {filter}" if input is None else f"the kernel of filter {filter} that reads channel {input}"
            raise ConvCircuitsError(f"The circuit does not keep {what} of {layer}; choose one that it keeps.")
        elements = self.elements[layer].clone()
        elements[place] = False
        provenance = {k: v for k, v in self.provenance.items() if k in _SHARED + _ON_IMAGES}
        return dataclasses.replace(
            self,
            elements=LayerTable({**self.elements, layer: elements}),
            provenance=provenance | {"made_by": "without", "from": [dict(self.provenance)]},
        )

    def _combined(self, other: "Circuit", rule: Callable[[Tensor, Tensor], Tensor], sign: str) -> "Circuit":
        self._check_comparable(other)
        # Only what the two have in common; how each was found is kept under "from".
        shared = {k: v for k, v in self.provenance.items() if k in _SHARED}
        for name in _ON_IMAGES:
            if self.provenance.get(name) == other.provenance.get(name) is not None:
                shared[name] = self.provenance[name]
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
            raise ConvCircuitsError(f"A circuit combines or compares only with a Circuit; got {type(other).__name__}.")
        for what, mine, theirs in (
            ("features", self.feature, other.feature),
            ("weights", self.provenance.get("weights"), other.provenance.get("weights")),
            ("granularities", self.granularity, other.granularity),
            ("layers", list(self.elements), list(other.elements)),
        ):
            if mine != theirs:
                raise ConvCircuitsError(
                    f"The two circuits have different {what} ({mine} and {theirs}); "
                    "only circuits of the same feature, model and granularity can be combined or compared."
                )

    def iou_by_layer(self, other: "Circuit") -> dict[str, float]:
        """Return, for each layer, elements in both / elements in either, from 0 to 1; 1 if neither keeps any."""
        self._check_comparable(other)
        return {
            layer: _iou(int((mask & other[layer]).sum()), int((mask | other[layer]).sum()))
            for layer, mask in self.elements.items()
        }

    def __repr__(self) -> str:
        criterion = self.provenance.get("criterion")
        how = f", {criterion}" if criterion else ""
        if self.calibrated:
            how += f", {self.constants:,} constants fitted"
        counted = f"{len(self):,} of {self.relevant:,} {self.granularity}s = {self.density:.3%}"
        return printable(f"Circuit({self.feature}{how}, {counted})")

    def summary(self) -> str:
        """Tabulate, for each layer, the elements kept and the filters with any kept element."""
        width = max([len(printable(layer)) for layer in self.elements] + [5])
        lines = [repr(self), f"{'layer':<{width}}  {self.granularity + 's kept':>21}  {'filters kept':>13}"]
        lines += [
            f"{printable(layer):<{width}}  {kept:>9,} / {counted:>9,}  {filters:>5,} / {of:>5,}"
            for layer, kept, counted, filters, of in self._layers()
        ]
        lines += [printable(how)] if (how := how_found(self.provenance)) else []
        lines += [f"note: {printable(note)}" for note in self.provenance.get("notes", ())]
        return "\n".join(lines)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the layers as a table, in execution order.

        The columns are ``layer``, the elements kept and relevant (``kernels_kept`` and ``kernels``, or the same for
        weights or relevant filters), ``filters_kept`` (filters with any kept element) and ``filters``.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        elements = f"{self.granularity}s" if self.granularity != "filter" else "relevant_filters"
        names = ("layer", f"{elements}_kept", elements, "filters_kept", "filters")
        return frame([dict(zip(names, row, strict=True)) for row in self._layers()])

    def to_networkx(
        self, model: nn.Module, *, input_shape: tuple[int, int, int] | None = None
    ) -> "networkx.MultiDiGraph":
        """Return the circuit as a graph with filters as nodes and effective kernels as edges.

        The model is needed because a circuit does not store which filter an input channel comes from. Every node and
        edge lies on a path from the image to the feature inside the circuit.

        Nodes are ``(layer, filter)`` and ``("image", channel)``; results of additions, gates and mixtures are
        ``("add 12", channel)`` and the like. Each node has a ``kind`` (``"filter"``, ``"image"``, ``"add"``,
        ``"gate"``, ``"mix"`` or ``"target"``) and the ``layer`` that computes it. An edge of ``kind`` ``"kernel"`` has
        the ``layer``, ``filter`` and ``channel`` (counted inside the group) of the kernel and its ``saliency``; edges
        of the kinds ``"identity"``, ``"gate"``, ``"mix"`` and ``"readout"`` have no weights. ``graph["target"]`` is the
        feature's node.

        Args:
            model: The model that the circuit belongs to.
            input_shape: (C, H, W) of an image; that of the images on which the circuit was found if None.

        Raises:
            ConvCircuitsError: If networkx is not installed (extra ``notebook``), the circuit belongs to other weights,
                or the model's channels cannot be followed.

        Examples:
            >>> graph = circuit.to_networkx(model)
            >>> graph.graph["target"]
            ('features.5', 1)
        """
        from convcircuits.drawing.filters import graph_of_filters  # like from_masks, a step from values to the model

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
        """List each layer with its elements kept and relevant, its filters with a kept element and all its filters."""
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
        ConvCircuitsError: If the circuits differ in feature, model or granularity.

    Examples:
        >>> a, b = cc.prune(scores, kernels=30), cc.prune(scores, kernels=20)
        >>> cc.iou(a, b) == len(a & b) / len(a | b) == 2 / 3
        True
    """
    if not isinstance(a, Circuit):
        raise ConvCircuitsError(f"iou compares two circuits; got {type(a).__name__}, expected Circuit.")
    return _iou(len(a & b), len(a | b))


def _iou(both: int, either: int) -> float:
    return both / either if either else 1.0
