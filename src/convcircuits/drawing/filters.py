"""A circuit as a networkx graph: filters and the kernels between them, on complete paths only."""

from collections.abc import Hashable
from typing import TYPE_CHECKING

from torch import nn

from convcircuits.compiler.layout import layout_of
from convcircuits.drawing.data import EdgeKind
from convcircuits.drawing.graph import graph, kernels_of
from convcircuits.drawing.wiring import Site, SiteKind, wire
from convcircuits.frames import optional
from convcircuits.network.masking import Subject
from convcircuits.values.circuit import Circuit

if TYPE_CHECKING:
    import networkx


def graph_of_filters(
    model: nn.Module, circuit: Circuit, input_shape: tuple[int, int, int] | None
) -> "networkx.MultiDiGraph":
    """Build the graph that ``Circuit.to_networkx`` returns."""
    made = optional("networkx", "to_networkx").MultiDiGraph()
    subject = Subject.open(model, circuit.feature, input_shape or circuit.provenance.get("input_shape"))
    subject.check(circuit)
    found = subject.survey
    effective = subject.masks(circuit, found.input_shape, effective=True).kernels
    layout = layout_of(subject, found.input_shape)
    wiring = wire(layout, found.kernels, subject.rows, subject.coefficients, merged=False)
    laid = graph(layout, wiring, subject.rows, [kernels_of(circuit, effective, found.kernels)])
    nodes = []
    for number, channel in zip(laid.site.tolist(), laid.channel.tolist(), strict=True):
        site = wiring.sites[number]
        nodes.append(_node(site, channel))
        made.add_node(nodes[-1], kind=site.kind.name.lower(), layer=site.name)
    for e, kind in enumerate(laid.kind.tolist()):
        ends = nodes[laid.source[e]], nodes[laid.target[e]]
        if kind == EdgeKind.KERNEL:
            layer = wiring.sites[int(laid.site[laid.target[e]])].name
            kernel = {"layer": layer, "filter": int(laid.out[e]), "channel": int(laid.inp[e])}
            # A layer that runs twice on one map contributes one edge per kernel, not two.
            made.add_edge(
                *ends, (layer, kernel["channel"]), kind="kernel", **kernel, saliency=float(laid.saliency[0][e])
            )
        else:
            made.add_edge(*ends, kind=EdgeKind(kind).name.lower())
    made.graph["target"] = nodes[laid.goal]
    return made


def _node(site: Site, channel: int) -> Hashable:
    if site.kind is SiteKind.FILTER:
        return site.name, channel
    kind = site.kind.name.lower()
    return kind if site.kind in (SiteKind.IMAGE, SiteKind.TARGET) else f"{kind} {site.number}", channel
