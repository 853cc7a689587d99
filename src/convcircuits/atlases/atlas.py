"""What is known of all units of a layer: their circuits, and what these share."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convcircuits.atlases.store import FIGURES, Row, packed, read_index, unpacked
from convcircuits.cards import card, figure
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.frames import frame
from convcircuits.placing import UMAP_FEWEST, UMAP_NOTE, Placing, by_umap, check_placing
from convcircuits.storage import load
from convcircuits.texts import printable
from convcircuits.values.circuit import Circuit
from convcircuits.values.report import without_nan
from convcircuits.values.tables import LayerTable, suggest

if TYPE_CHECKING:
    import pandas

_AT_ONCE = 1 << 22  # values of a table that are unpacked at once
_ROUNDING = 1e-9  # of a number of circuits that is a sum of shares


@dataclass(frozen=True)
class Family:
    """Units whose circuits share kernels.

    Attributes:
        number: From 0, the largest family first.
        units: Its units, ascending.
        overlap: Mean overlap of its pairs, as ``Atlas.overlap``, of those that have one; NaN for a single unit.
    """

    number: int
    units: tuple[int, ...]
    overlap: float


class Atlas:
    """Circuits of units of one layer, and what they share. ``atlas`` makes it; ``Atlas.read`` reads it again.

    Overlaps and counts are over the kernels that several units could use: those on a path to both units of a pair.
    A unit's own filter in the layer is on no path to another unit.

    Attributes:
        layer: Name of the layer.
        asked: What all circuits depend on, as JSON values: model, weights, criterion, size, images.
        units: The units that have a circuit, ascending.
        rows_by_unit: Unit -> what the index says, also of units without a circuit.
        layers: Layer name -> (out, in per group), in execution order: the tables of kernels.
    """

    def __init__(
        self,
        asked: Mapping[str, Any],
        layers: Mapping[str, tuple[int, ...]],
        found: Mapping[int, tuple[Path, Row]],
    ) -> None:
        self.layer, self.asked, self.layers = str(asked["layer"]), dict(asked), dict(layers)
        self._folders = {unit: folder for unit, (folder, _) in found.items()}
        self.rows_by_unit = {unit: row for unit, (_, row) in found.items()}
        self.units = tuple(unit for unit, row in self.rows_by_unit.items() if row.file)
        self._overlaps: dict[str | None, Tensor] = {}
        self._kept, self._relevant = (
            {layer: self._stacked(name, layer) for layer in self.layers} for name in ("kept", "relevant")
        )

    @classmethod
    def read(cls, *folders: str | os.PathLike[str]) -> "Atlas":
        """Read an atlas from the folder, or the folders, of its shards; also while they are written.

        Raises:
            ConvCircuitsError: If there is no atlas, it is damaged, or the folders hold different ones.
        """
        if not folders:
            raise ConvCircuitsError("Give the folder of an atlas.")
        return cls(*read_index([Path(folder) for folder in folders]))

    def __len__(self) -> int:
        return len(self.units)

    def __iter__(self) -> Iterator[int]:
        return iter(self.units)

    def __repr__(self) -> str:
        return printable(f"Atlas({self.layer}, {self.asked['criterion']}, {len(self)} circuits)")

    @property
    def problems(self) -> dict[int, str]:
        """The units that have no circuit, and why."""
        return {unit: row.problem for unit, row in self.rows_by_unit.items() if row.problem}

    def circuit(self, unit: int) -> Circuit:
        """Read the circuit of a unit from its file.

        Raises:
            ConvCircuitsError: If the unit has none, or the file is missing or damaged.
        """
        circuit = load(self.file(unit))
        if not isinstance(circuit, Circuit):
            raise ConvCircuitsError(f"{self.file(unit)} holds no circuit.")
        return circuit

    def file(self, unit: int) -> Path:
        """Return the path of a unit's circuit.

        Raises:
            ConvCircuitsError: If the unit has none.
        """
        unit = self.units[self._place(unit)]
        return self._folders[unit] / self.rows_by_unit[unit].file

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each unit: its figures, its file and, if it has no circuit, why."""
        return [
            {"unit": unit, **{name: row.figures.get(name) for name in FIGURES}}
            | {"seconds": row.seconds, "file": row.file, "problem": row.problem}
            for unit, row in self.rows_by_unit.items()
        ]

    def to_pandas(self) -> "pandas.DataFrame":
        """Return ``rows`` as a table, indexed by unit.

        Raises:
            ConvCircuitsError: If pandas is not installed (extra ``notebook``).
        """
        return frame(self.rows(), index="unit")

    def overlap(self, layer: str | None = None) -> Float[Tensor, "u u"]:
        """Return the overlap of each pair of circuits, corrected for chance, in the order of ``units``.

        It is (IoU - chance) / (1 - chance), with IoU = kernels in both / kernels in either, and chance the IoU of two
        random circuits that have the same number of kernels in every layer, with the expected number of kernels in
        both. So 1 for equal circuits, and about 0 for random ones, however the layers' sizes differ.

        Args:
            layer: Only the kernels of this layer; None for all.

        Returns:
            Float64, symmetric; NaN where two units have no kernels in common that either keeps, or both keep all.
        """
        if layer not in self._overlaps:
            self._overlaps[layer] = self._overlap(layer)
        return self._overlaps[layer].clone()

    def _overlap(self, layer: str | None) -> Tensor:
        count = len(self)
        both, first, chance = (torch.zeros(count, count, dtype=torch.float64) for _ in range(3))
        for name in self.layers if layer is None else [self._known(layer)]:
            shared, own, room = self._counts(name)
            both += shared
            first += own
            chance += torch.where(room > 0, own * own.T / room.clamp_min(1), 0)
        either = first + first.T
        iou, expected = both / (either - both), chance / (either - chance)
        corrected = (iou - expected) / (1 - expected)
        return torch.where(corrected.isfinite(), corrected, math.nan)

    def profile(self) -> list[dict[str, Any]]:
        """Return one row for each layer, in execution order: what the circuits keep there, and share.

        The columns are ``layer``; ``kernels``, those that any unit depends on; ``kept``, the mean number a circuit
        keeps; ``share``, the mean share of a circuit that is in the layer; ``density``, the mean share of a unit's
        relevant kernels there that it keeps; ``used``, the share of kernels that any circuit keeps; and ``overlap``,
        the mean over pairs of units. A mean over no circuits is NaN.
        """
        table, pairs = [], torch.ones(len(self), len(self)).triu(1).bool()
        sizes = torch.tensor([sum(int(row.kept[name].sum()) for name in self.layers) for row in self._found()])
        for name in self.layers:
            kept = torch.tensor([float(row.kept[name].sum()) for row in self._found()], dtype=torch.float64)
            relevant = torch.tensor([float(row.relevant[name].sum()) for row in self._found()], dtype=torch.float64)
            every = self._any(self._relevant[name], name)
            overlap = self.overlap(name)[pairs]
            table.append(
                {
                    "layer": name,
                    "kernels": every,
                    "kept": float(kept.mean()),
                    "share": float((kept / sizes).mean()),
                    "density": float((kept / relevant).nanmean()),
                    "used": self._any(self._kept[name], name) / every if every else math.nan,
                    "overlap": float(overlap.nanmean()),
                }
            )
        return table

    def users(self) -> LayerTable:
        """Return for each kernel the number of circuits that keep it: layer name -> int64 (out, in per group)."""
        return LayerTable({name: self._summed(self._kept[name], name) for name in self.layers})

    def expected_users(self) -> LayerTable:
        """Return what ``users`` would be on average if each circuit drew its kernels of a layer at random, float64."""
        tables = {}
        for name, shape in self.layers.items():
            total = torch.zeros(shape, dtype=torch.float64)
            for row in self._found():
                relevant = row.relevant[name]
                total += relevant.double() * (float(row.kept[name].sum()) / max(1, int(relevant.sum())))
            tables[name] = total
        return LayerTable(tables)

    def hubs(self, count: int = 20) -> list[dict[str, Any]]:
        """Return the kernels that serve many units: those that most circuits keep, above chance.

        The columns are ``layer``, ``filter``, ``channel`` (inside its group), ``units``, ``share`` of the circuits, and
        ``expected``, as ``expected_users``. The order is that of ``units - expected``, the largest first; then that of
        layers, filters and channels. (By ``units`` alone, a layer that circuits keep nearly all of would come first.)

        Args:
            count: The most rows; there are none but of kernels that more circuits keep than would by chance.
        """
        return self._away_from_chance(count, 1)

    def rare(self, count: int = 20) -> list[dict[str, Any]]:
        """Return the kernels that serve few units: those that fewest circuits keep, below chance, but at least one.

        The columns are those of ``hubs``. The order is that of ``expected - units``, the largest first; then that of
        layers, filters and channels. (By ``units`` alone, a layer that circuits keep hardly any of would come first.)

        Args:
            count: The most rows; there are none but of kernels that fewer circuits keep than would by chance.
        """
        return self._away_from_chance(count, -1)

    def _away_from_chance(self, count: int, sign: int) -> list[dict[str, Any]]:
        """Return the kernels whose circuits are most above chance (sign 1), or below it (-1), of those with any."""
        count, users, expected = whole_number("count", count, 1), self.users(), self.expected_users()
        rows = []
        for name in self.layers:
            away = (sign * (users[name] - expected[name])).masked_fill(users[name] == 0, -math.inf)
            for place in away.flatten().sort(descending=True, stable=True).indices[:count].tolist():
                o, i = divmod(place, away.shape[1])
                if float(away[o, i]) > _ROUNDING:
                    units = int(users[name][o, i])
                    row = {"layer": name, "filter": o, "channel": i, "units": units, "share": units / len(self)}
                    rows.append(row | {"expected": float(expected[name][o, i])})
        return sorted(rows, key=lambda row: sign * (row["expected"] - row["units"]))[:count]

    def users_of(self, layer: str, filter: int, channel: int) -> tuple[int, ...]:
        """Return the units whose circuits keep a kernel.

        Raises:
            ConvCircuitsError: If there is no such kernel.
        """
        out, inputs = self.layers[self._known(layer)]
        place = whole_number(f"The filter of {layer}", filter, 0, out - 1) * inputs
        place += whole_number(f"The channel of {layer}", channel, 0, inputs - 1)
        bits = self._kept[layer][:, place // 8] >> (place % 8) & 1
        return tuple(unit for unit, bit in zip(self.units, bits.tolist(), strict=True) if bit)

    def alike(self, unit: int, count: int = 5) -> list[tuple[int, float]]:
        """Return the units whose circuits overlap most with a unit's, the most first, with the overlap."""
        row = self.overlap()[self._place(unit)].nan_to_num(-math.inf)
        row[self._place(unit)] = -math.inf
        best = row.sort(descending=True, stable=True)
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.units[n], value) for n, value in found if value > -math.inf][: whole_number("count", count, 1)]

    def families(self, count: int | None = None) -> tuple[Family, ...]:
        """Group the units by the overlap of their circuits (average linkage of 1 - overlap).

        Args:
            count: The most families; there are fewer where units are equally far apart. By default the number from 2 to
                20, and at most half of the units, whose mean silhouette is highest; one if there are fewer than four
                units.

        Raises:
            ConvCircuitsError: If scipy is not installed (extra ``split``), or there are fewer units.
        """
        overlap = self.overlap()
        labels = _grouped(
            overlap.nan_to_num(0).fill_diagonal_(1),
            None if count is None else whole_number("count", count, 1, max(1, len(self))),
        )
        groups: dict[int, list[int]] = {}
        for place, label in enumerate(labels):
            groups.setdefault(label, []).append(place)
        ordered = sorted(groups.values(), key=lambda places: (-len(places), places))
        return tuple(
            Family(n, tuple(self.units[place] for place in places), _mean_of_pairs(overlap, places))
            for n, places in enumerate(ordered)
        )

    def placed(self, method: Placing = "pca", *, seed: int = 0) -> Float[Tensor, "u 2"]:
        """Return a place in the plane for each unit: alike units are close.

        Distances of units are sqrt(1 - overlap). The center of all places is 0.

        Args:
            method: ``"pca"``: classical scaling, the two principal axes of the distances, with the signs that make
                their largest coordinate positive. ``"umap"``: UMAP of the same distances (extra ``umap``), which keeps
                neighbors but not distances, beginning at the places of ``"pca"``.
            seed: Seed of UMAP.

        Raises:
            ConvCircuitsError: If there is no such method, umap-learn is not installed, or UMAP has fewer than ten
                units to place.
        """
        check_placing(method)
        seed = whole_number(option("seed"), seed, 0, 2**32 - 1)
        squared = 1 - self.overlap().nan_to_num(0).fill_diagonal_(1)
        first = _scaled(squared)
        if method == "pca":
            return first
        if len(self) < UMAP_FEWEST:
            raise ConvCircuitsError(
                f"There are {len(self)} circuits; to place them by umap it takes at least {UMAP_FEWEST}. Find more, or "
                "place them by pca."
            )
        if not first.any():
            return first  # all circuits are the same
        places = torch.from_numpy(by_umap(squared.clamp_min(0).sqrt().numpy(), first.numpy(), seed, distances=True))
        return places - places.mean(0)

    def as_dict(
        self, *, hubs: int = 60, rare: int = 60, alike: int = 8, method: Placing = "pca", seed: int = 0
    ) -> dict[str, Any]:
        """Return what the page of the atlas shows, as JSON values; what is not a number is None.

        Without scipy there are no families, and fewer than ten units are placed by ``"pca"`` whatever the method; a
        note says so.

        Args:
            hubs: The most kernels of ``hubs`` that are listed, with their users.
            rare: The same of ``rare``.
            alike: The most units that are listed as alike for each.
            method: How units are placed, as for ``placed``.
            seed: Seed of UMAP.

        Raises:
            ConvCircuitsError: If there is no such method, or umap-learn is not installed.
        """
        check_placing(method)
        notes: list[str] = []
        if method == "umap" and len(self) < UMAP_FEWEST:
            method = "pca"
            notes.append(f"UMAP places {UMAP_FEWEST} units or more; these are placed by classical scaling.")
        elif method == "umap":
            notes.append(f"{UMAP_NOTE}.")
        try:
            families = self.families()
        except ConvCircuitsError as error:
            families = ()
            notes.append(f"There are no families: {error}")
        label = {unit: family.number for family in families for unit in family.units}
        rows = {row["unit"]: row for row in self.rows()}
        kernels = {"hubs": self.hubs(hubs), "rare": self.rare(rare)}
        return without_nan(  # type: ignore[no-any-return]
            {
                "layer": self.layer,
                "asked": self.asked,
                "method": method,
                "units": [
                    rows[unit] | {"place": place, "family": label.get(unit, -1), "alike": self.alike(unit, alike)}
                    for unit, place in zip(self.units, self.placed(method, seed=seed).tolist(), strict=True)
                ],
                "families": [{"units": family.units, "overlap": family.overlap} for family in families],
                **{
                    name: [row | {"users": self.users_of(row["layer"], row["filter"], row["channel"])} for row in table]
                    for name, table in kernels.items()
                },
                "layers": self.profile() if self.units else [],
                "problems": {str(unit): why for unit, why in self.problems.items()},
                "notes": notes,
            }
        )

    def summary(self) -> str:
        """Return the medians of the figures, the layers and the first of ``hubs`` as text."""
        lines = [repr(self)]
        for name in ("r2", "r2_interior", "r2_average_map", "r2_random"):
            values = [row.figures[name] for row in self._found() if row.figures[name] is not None]
            if values:
                tensor = torch.tensor(values, dtype=torch.float64)
                low, middle, high = (float(q) for q in tensor.quantile(torch.tensor([0.25, 0.5, 0.75]).double()))
                lines.append(f"{name}: median {middle:z.3f}, quartiles {low:z.3f} and {high:z.3f}")
        lines.append(f"{'layer':<24}  {'kept':>9}  {'density':>8}  {'overlap':>8}")
        lines += [
            f"{printable(one['layer']):<24}  {one['kept']:>9,.1f}  {one['density']:>8.2%}  {figure(one['overlap']):>8}"
            for one in (self.profile() if self.units else [])
        ]
        for hub in self.hubs(5):
            lines.append(
                f"{printable(hub['layer'])}[{hub['filter']}, {hub['channel']}] serves {hub['units']} of {len(self)} "
                f"units; {hub['expected']:.1f} by chance"
            )
        lines += [f"{self.layer}:{unit} has no circuit: {printable(why)}" for unit, why in self.problems.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        cells = [
            (one["layer"], f"{one['kept']:,.1f}", f"{one['density']:.2%}", figure(one["overlap"]))
            for one in (self.profile() if self.units else [])
        ]
        return card(repr(self), ("layer", "mean kernels kept", "density", "mean overlap"), cells, [])

    def _stacked(self, name: str, layer: str) -> Tensor:
        """Return a table of all circuits, a row of packed bits for each."""
        tables = [packed(getattr(self.rows_by_unit[unit], name)[layer].flatten()) for unit in self.units]
        width = -(-math.prod(self.layers[layer]) // 8)
        return torch.stack(tables) if tables else torch.zeros(0, width, dtype=torch.uint8)

    def _found(self) -> list[Row]:
        return [self.rows_by_unit[unit] for unit in self.units]

    def _place(self, unit: int) -> int:
        if unit not in self.units:
            why = self.problems.get(unit, "it is not in this atlas (yet)")
            raise ConvCircuitsError(f"{self.layer}:{unit} has no circuit: {why}")
        return self.units.index(unit)

    def _known(self, layer: str) -> str:
        if layer not in self.layers:
            raise ConvCircuitsError(f"There is no layer {layer!r} here. {suggest(layer, self.layers)}")
        return layer

    def _counts(self, layer: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each pair (u, v) in a layer |A_u & A_v|, |A_u & R_v| and |R_u & R_v|, A kept and R relevant."""
        shared, own, room = (torch.zeros(len(self), len(self), dtype=torch.float64) for _ in range(3))
        for kept, relevant in zip(
            self._chunks(self._kept[layer], layer), self._chunks(self._relevant[layer], layer), strict=True
        ):
            a, r = kept.float(), relevant.float()
            for total, (left, right) in zip((shared, own, room), ((a, a), (a, r), (r, r)), strict=True):
                total += left @ right.T
        return shared, own, room

    def _chunks(self, table: Tensor, layer: str) -> Iterator[Tensor]:
        """Yield the tables of all units as bool (U, n), for some kernels at a time."""
        count = math.prod(self.layers[layer])
        step = max(1, _AT_ONCE // (8 * max(1, len(table))))
        for first in range(0, table.shape[1], step):
            some = table[:, first : first + step]
            left = min(8 * some.shape[1], count - 8 * first)
            yield unpacked(some, left)

    def _summed(self, table: Tensor, layer: str) -> Int[Tensor, "out in"]:
        return torch.cat([chunk.sum(0) for chunk in self._chunks(table, layer)]).reshape(self.layers[layer])

    def _any(self, table: Tensor, layer: str) -> int:
        return int((self._summed(table, layer) > 0).sum())


def _scaled(squared: Tensor) -> Tensor:
    """Return the two principal axes of squared distances (n, n), by classical scaling: (n, 2)."""
    center = torch.eye(len(squared), dtype=torch.float64) - 1 / max(1, len(squared))
    values, vectors = torch.linalg.eigh(-center @ squared @ center / 2)
    axes = vectors[:, -2:].flip(1) * values[-2:].flip(0).clamp_min(0).sqrt()
    if axes.shape[1] < 2:
        return torch.zeros(len(squared), 2, dtype=torch.float64)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    places: Tensor = axes * torch.where(largest < 0, -1.0, 1.0)
    return places


def _mean_of_pairs(overlap: Tensor, places: Sequence[int]) -> float:
    if len(places) < 2:
        return math.nan
    own = overlap[places][:, places]
    return float(own[~torch.eye(len(places), dtype=torch.bool)].nanmean())


def _grouped(overlap: Tensor, count: int | None) -> list[int]:
    """Return the family of each unit, any numbers."""
    if len(overlap) < 2 or (count is None and len(overlap) < 4):
        return [0] * len(overlap)
    try:
        from scipy.cluster.hierarchy import fcluster, linkage
        from scipy.spatial.distance import squareform
    except ImportError as error:
        raise ConvCircuitsError("families needs scipy: pip install 'convcircuits[split]'.") from error
    distance = (1 - overlap).clamp_min(0).fill_diagonal_(0)
    tree = linkage(squareform(((distance + distance.T) / 2).numpy(), checks=False), "average")
    counts = [count] if count is not None else range(2, min(20, len(overlap) // 2) + 1)
    found = [fcluster(tree, one, "maxclust").tolist() for one in counts]
    return max(found, key=lambda labels: _silhouette(distance, labels)) if len(found) > 1 else found[0]


def _silhouette(distance: Tensor, labels: Sequence[int]) -> float:
    """Return the mean silhouette of groups (Rousseeuw, 1987); a unit alone has 0."""
    which = torch.tensor(labels)
    numbers = torch.unique(which)
    if len(numbers) < 2:
        return -1.0
    member = (which[:, None] == numbers).double()
    sums, sizes = distance @ member, member.sum(0)
    own = member.bool()
    inside = sums[own] / (sizes[own.double().argmax(1)] - 1).clamp_min(1)
    outside = (sums / sizes).masked_fill(own, math.inf).amin(1)
    values = (outside - inside) / torch.maximum(inside, outside).clamp_min(1e-12)
    return float(values.masked_fill(sizes[own.double().argmax(1)] == 1, 0).mean())
