"""The graph that is drawn: circuits laid over a model's wiring, as tables of nodes and edges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convcircuits.compiler.layout import Layout
from convcircuits.drawing.data import EdgeKind
from convcircuits.drawing.wiring import Site, Sources, Wiring, call_of
from convcircuits.network.calls import ConvCall, KernelCall
from convcircuits.network.operations import argument, is_batch_norm
from convcircuits.values.circuit import Circuit


@dataclass(frozen=True)
class Kernels:
    """The kernels of one variant: which are effective, and their saliency.

    Attributes:
        effective: Layer name -> bool (out, in per group).
        saliency: Layer name -> float (out, in per group); divided or summed if elements are filters or weights.
    """

    effective: Mapping[str, Tensor]
    saliency: Mapping[str, Tensor]


@dataclass(frozen=True)
class DrawnGraph:
    """Nodes and edges of all variants, both ordered by column.

    Attributes:
        site: (N,) number of each node's site.
        channel: (N,) channel of each node.
        source: (E,) node that an edge comes from.
        target: (E,) node that it goes to.
        kind: (E,) an ``EdgeKind``.
        call: (E,) value number of the kernel call; -1 for connections.
        out: (E,) filter; -1 for connections.
        inp: (E,) input channel within its group; -1 for connections.
        present: For each variant (E,) bool, the kernels that it has; connections are in all variants.
        saliency: For each variant (E,) float32; NaN where there is none.
        goal: The target's node.
    """

    site: np.ndarray
    channel: np.ndarray
    source: np.ndarray
    target: np.ndarray
    kind: np.ndarray
    call: np.ndarray
    out: np.ndarray
    inp: np.ndarray
    present: list[np.ndarray]
    saliency: list[np.ndarray]
    goal: int


def kernels_of(circuit: Circuit, effective: Mapping[str, Tensor], relevant: Mapping[str, Tensor]) -> Kernels:
    """Return a circuit's effective kernels with a saliency for each.

    Args:
        circuit: A circuit of any granularity. A filter's saliency is divided equally among its relevant kernels;
            weights' are summed over the kept weights of a kernel.
        effective: Layer name -> bool (out, in per group).
        relevant: Layer name -> bool (out, in per group).
    """
    saliency = {}
    for layer, mask in effective.items():
        given = circuit.saliency[layer].float().nan_to_num(0.0).abs()
        if circuit.granularity == "filter":
            given = (given / relevant[layer].sum(1).clamp_min(1))[:, None].expand(mask.shape)
        elif circuit.granularity == "weight":
            given = (given * circuit.elements[layer]).reshape(*mask.shape, -1).sum(2)
        saliency[layer] = given
    return Kernels({layer: mask.cpu() for layer, mask in effective.items()}, saliency)


def graph(layout: Layout, wiring: Wiring, feature_rows: Tensor, variants: Sequence[Kernels]) -> DrawnGraph:
    """Lay circuits over a model's wiring: a node for each filter that any of them uses, and an edge for each kernel."""
    rows: list[np.ndarray] = []  # (source site, channel, target site, channel, kind, call, out, in)
    present: list[list[np.ndarray]] = [[] for _ in variants]
    saliency: list[list[np.ndarray]] = [[] for _ in variants]
    used = [_used(layout, wiring, feature_rows, variant) for variant in variants]
    for number in sorted(wiring.sites, key=lambda n: (wiring.columns[n], n)):
        site = wiring.sites[number]
        for call_number, kind in [(c, EdgeKind.KERNEL) for c in site.calls] + [(c, EdgeKind.INNER) for c in site.inner]:
            call = call_of(layout, call_number)
            masks = [one.kernels[call_number] for one in used]
            out, inp = torch.stack(masks).any(0).nonzero(as_tuple=True)
            if kind is EdgeKind.INNER:
                source = Sources(torch.full_like(out, number), out)
            else:
                source = _read_by(wiring.reads[call_number], call, out, inp)
            rows.append(_rows(source.site, source.channel, number, out, kind, call_number, out, inp))
            for v, mask in enumerate(masks):
                inside, given = mask[out, inp].numpy(), variants[v].saliency[call.layer][out, inp].numpy()
                present[v].append(inside)
                saliency[v].append(np.where(inside, given, np.nan))
        for n, link in enumerate(site.links):
            some = torch.stack([one.links[number][n] for one in used]).any(0)
            sources, targets = link.sources[some], link.targets[some]
            rows.append(_rows(sources.site, sources.channel, number, targets, EdgeKind[link.kind.name], -1, -1, -1))
            for v in range(len(variants)):
                present[v].append(np.ones(len(targets), dtype=bool))
                saliency[v].append(np.full(len(targets), np.nan))
    return _numbered(
        np.concatenate(rows),
        wiring,
        [np.concatenate(p) for p in present],
        [np.concatenate(s).astype(np.float32) for s in saliency],
    )


def turns(layout: Layout, call: int) -> Tensor:
    """Return the sign with which a filter's raw output counts, (out,): -1 if a BatchNorm right after it inverts it."""
    filters = layout.values[call].channels
    for value in layout.values.values():
        if value.inputs == (call,) and value.node is not None and is_batch_norm(value.node):
            weight = argument(value.node, "weight")
            if isinstance(weight, Tensor):
                return weight.detach().sign().cpu()
    return torch.ones(filters)


def _read_by(reads: Sources, call: KernelCall, out: Tensor, inp: Tensor) -> Sources:
    """Return the sources of kernels, given their filters and input channels within the group."""
    if not isinstance(call, ConvCall):
        return reads[inp]
    group = 0 if call.groups == 1 else out // (len(call.weight) // call.groups)
    return reads[group * call.weight.shape[1] + inp]


def _rows(*columns: int | Tensor) -> np.ndarray:
    return np.stack(np.broadcast_arrays(*(np.asarray(column) for column in columns)), 1).astype(np.int64)


@dataclass(frozen=True)
class _Used:
    """What one variant uses, as bool: kernels (filters, in) of each call, and channels of each site's links."""

    kernels: dict[int, Tensor]
    links: dict[int, list[Tensor]]


def _used(layout: Layout, wiring: Wiring, rows: Tensor, variant: Kernels) -> _Used:
    """Return what lies on complete paths, call by call: a layer may run twice, with kernels that are dead in one call.

    What acts on the target only through a normalization is left out, since nothing that is drawn reads it.
    """
    paths = layout.paths
    live = paths.live(variant.effective)
    found, marks = paths.found_by_call(live, rows), paths.needed(live, rows)
    kernels = {n: found[place] for n in wiring.site_of_call() if (place := layout.values[n].place) is not None}
    alive = {number: _marked(layout, site, live.marks) for number, site in wiring.sites.items()}
    wanted = {number: _marked(layout, site, marks) for number, site in wiring.sites.items()}
    read = {n: torch.zeros(site.channels, dtype=torch.bool) for n, site in wiring.sites.items()}
    read[wiring.target[0]][wiring.target[1]] = True
    links: dict[int, list[Tensor]] = {}
    for number in sorted(wiring.sites, key=lambda n: -wiring.columns[n]):
        site, here = wiring.sites[number], wanted[number] & read[number]
        for call_number in (*site.calls, *site.inner):
            kernels[call_number] = kernels[call_number] & here[:, None]
        for call_number in site.calls:
            out, inp = kernels[call_number].nonzero(as_tuple=True)
            _mark(read, _read_by(wiring.reads[call_number], call_of(layout, call_number), out, inp))
        links[number] = [here[link.targets] & _at(alive, link.sources) for link in site.links]
        for link, some in zip(site.links, links[number], strict=True):
            _mark(read, link.sources[some])
    return _Used(kernels, links)


def _marked(layout: Layout, site: Site, marks: Mapping[int, Tensor]) -> Tensor:
    """Return which channels of a site are marked; all if the site is not a value of the model, as for a target."""
    if site.value is None:
        return torch.ones(site.channels, dtype=torch.bool)
    if site.value not in marks:
        return torch.zeros(site.channels, dtype=torch.bool)
    value = layout.values[site.value]
    return value.by_channel(marks[site.value]).expand(site.channels)


def _at(tables: Mapping[int, Tensor], sources: Sources) -> Tensor:
    """Look up a bool for each channel; False for zeros."""
    found = torch.zeros(len(sources), dtype=torch.bool)
    for site in sources.sites():
        if site in tables:
            here = sources.site == site
            found[here] = tables[site][sources.channel[here]]
    return found


def _mark(tables: Mapping[int, Tensor], sources: Sources) -> None:
    for site in sources.sites():
        if site in tables:
            tables[site][sources.channel[sources.site == site]] = True


def _numbered(table: np.ndarray, wiring: Wiring, present: list[np.ndarray], saliency: list[np.ndarray]) -> DrawnGraph:
    """Number the nodes by column, then site, then channel."""
    ends = np.concatenate([table[:, 0:2], table[:, 2:4], np.array([wiring.target])])
    columns = np.array([wiring.columns[int(site)] for site in ends[:, 0]])
    nodes, inverse = np.unique(np.column_stack([columns, ends]), axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    count = len(table)
    return DrawnGraph(
        site=nodes[:, 1],
        channel=nodes[:, 2],
        source=inverse[:count],
        target=inverse[count : 2 * count],
        kind=table[:, 4],
        call=table[:, 5],
        out=table[:, 6],
        inp=table[:, 7],
        present=present,
        saliency=saliency,
        goal=int(inverse[-1]),
    )
