"""What is drawn, and the document's tables of it: columns, layers, nodes, variants."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from convcircuits.circuits.control_circuits import random_like, treated_alike
from convcircuits.circuits.sizes import nested, smaller
from convcircuits.compiler.layout import Layout, layout_of
from convcircuits.drawing import data
from convcircuits.drawing.data import EdgeKind, NodeKind
from convcircuits.drawing.effects import with_effects
from convcircuits.drawing.graph import DrawnGraph, graph, kernels_of
from convcircuits.drawing.wiring import Site, SiteKind, Wiring, call_of, wire
from convcircuits.errors import ConvCircuitsError, option
from convcircuits.maps.receptive_fields import Reading, local_fields
from convcircuits.network.batches import Batches, Progress, begin
from convcircuits.network.calls import ConvCall, KernelCall
from convcircuits.network.masking import Masks, Subject
from convcircuits.values.circuit import Circuit
from convcircuits.values.granularity import masks_of
from convcircuits.values.tables import count_kept
from convcircuits.zoo.layers import aliases

MOST_KERNELS = 250_000
"""Maximum number of kernels on complete paths that can be drawn; larger pages do not open."""


EFFECT = "larger effect in the refitted circuit (estimate)"
BEFORE = "mattered more before the constants were fitted"
"""What a thicker edge says of its kernel in a circuit with gains or offsets."""


@dataclass(frozen=True)
class Drawing:
    """Everything from which the parts of the document are built.

    Attributes:
        subject: The feature of the model.
        layout: The model's operations, and where its channels lie.
        wiring: The model as a graph of sites.
        graph: The circuits as nodes and edges.
        circuits: The circuit itself, then those it is compared with.
        roles: The role of each circuit.
        masks: The masks with which each circuit runs.
        measured: Whether the saliency of each circuit was measured in it as it is fitted, with its gains and offsets.
        unmeasured: Why that of fitted circuits could not be, a sentence each.
        given: Whether the levels are circuits of a descent that were given, not found anew.
    """

    subject: Subject
    layout: Layout
    wiring: Wiring
    graph: DrawnGraph
    circuits: tuple[Circuit, ...]
    roles: tuple[str, ...]
    masks: tuple[Masks, ...]
    measured: tuple[bool, ...]
    unmeasured: tuple[str, ...]
    given: bool

    @property
    def calls(self) -> list[int]:
        """Value numbers of the kernel calls that are drawn, in execution order."""
        return sorted(self.wiring.site_of_call())

    def call(self, number: int) -> KernelCall:
        """Return the kernel call with a value number."""
        return call_of(self.layout, number)


def lay_out(
    model: nn.Module,
    circuit: Circuit,
    against: Sequence[Circuit],
    shape: Sequence[int] | None,
    seed: int,
    images: Batches | None = None,
    progress: Progress | None = None,
    fit: Batches | None = None,
    path: Sequence[Circuit] = (),
    effects_on: Sequence[Batches] = (),
) -> Drawing:
    """Lay a circuit, those it is compared with and a random one of equal size over the model's wiring.

    The circuits of a path are included or, without one and with images, in memory, the smaller circuits that an
    iterative criterion finds again; except those without a complete path. The random circuit is refitted on the images
    ``fit`` if the circuit has a calibration. The saliency of fitted circuits becomes what their kernels do in them, on
    ``fit`` or else on the images; or on ``effects_on``, which has images for the circuit and each that it is compared
    with, and the first of which are for all others.

    Raises:
        ConvCircuitsError: If a circuit belongs to other weights or another feature, or has no complete path or too many
            kernels.
    """
    subject = Subject.open(model, circuit.feature, shape or circuit.provenance.get("input_shape"))
    found = subject.survey
    laid = [("circuit", circuit), *(("against", one) for one in against)]
    for _, one in laid:
        subject.check(one)
    masks = [subject.masks(one, found.input_shape, effective=True) for _, one in laid]
    for (_, one), its in zip(laid, masks, strict=True):
        effective = count_kept(its.kernels)
        if effective > MOST_KERNELS:
            raise ConvCircuitsError(
                f"{effective:,} kernels of the circuit lie on complete paths; at most {MOST_KERNELS:,} can be drawn. "
                f"Prune it further, for example with {option('kernels', MOST_KERNELS * len(one) // effective)}."
            )
    if not count_kept(masks[0].kernels):
        raise ConvCircuitsError(
            f"No kernel of the circuit lies on a complete path to {circuit.feature}, so there is nothing to draw; "
            "prune to a larger density."
        )
    control = random_like(subject, circuit, seed=seed)
    beside = [("control", control if fit is None else treated_alike(subject, control, circuit, fit))]
    levels = list(path) or ([] if images is None else smaller(model, circuit, images, progress))
    for one in path:
        subject.check(one)
    beside += [("level", one) for one in levels]
    for role, one in beside:
        its = subject.masks(one, found.input_shape, effective=True)
        if count_kept(its.kernels) or role == "control":
            laid.append((role, one))
            masks.append(its)
    unmeasured = []
    default = fit or images
    fitted = [one for _, one in laid]
    own = list(effects_on) or ([] if default is None else [default])
    for n, (role, one) in enumerate(laid if own else []):
        if one.calibrated:
            begin(progress, f"measuring the effects of {len(one):,} {one.granularity}s")
            try:
                some = own[n] if role in ("circuit", "against") and n < len(own) else own[0]
                laid[n] = role, with_effects(subject, one, masks[n], some)
            except ConvCircuitsError as error:
                unmeasured.append(f"The effects of kernels in {one!r} could not be measured: {error}")
    layout = layout_of(subject, found.input_shape)
    wiring = wire(layout, found.kernels, subject.rows, subject.coefficients)
    return Drawing(
        subject,
        layout,
        wiring,
        graph(
            layout,
            wiring,
            subject.rows,
            [kernels_of(one, its.kernels, found.kernels) for (_, one), its in zip(laid, masks, strict=True)],
        ),
        circuits=tuple(one for _, one in laid),
        roles=tuple(role for role, _ in laid),
        masks=tuple(masks),
        measured=tuple(one is not before for (_, one), before in zip(laid, fitted, strict=True)),
        unmeasured=tuple(unmeasured),
        given=bool(path),
    )


# ---------------------------------------- the document's tables


def columns_of(drawing: Drawing) -> tuple[data.Column, ...]:
    """Label each column with what its sites have in common."""
    columns = []
    called, sees = aliases_of(drawing), _sees(drawing)
    for column in range(drawing.wiring.columns[drawing.wiring.target[0]] + 1):
        sites = [s for n, s in drawing.wiring.sites.items() if drawing.wiring.columns[n] == column]
        names = [_name_of(site, drawing) for site in sites]
        layers = [drawing.call(number).layer for site in sites for number in (*site.calls, *site.inner)]
        columns.append(
            data.Column(
                label=_common(names),
                detail="; ".join(_about(site, drawing) for site in sites),
                alias=called.get(layers[0], "") if len(layers) == 1 else "",
                sees=max((sees[site.number] for site in sites if site.number in sees), default=None),
            )
        )
    return tuple(columns)


def aliases_of(drawing: Drawing) -> dict[str, str]:
    """Return the names that papers use for layers of the model, by layer."""
    known = aliases(model_of(drawing).split(":")[-1].lower(), drawing.subject.network.module)
    return {layer: alias for alias, layer in known.items()}


def model_of(drawing: Drawing) -> str:
    """Return the name of the model: the one that it was loaded by, if that is known."""
    origin = drawing.circuits[0].provenance
    return str((origin.get("recipe") or {}).get("model") or origin.get("model") or drawing.subject.network.name)


def _sees(drawing: Drawing) -> dict[int, int]:
    """Return how many pixels one position of a site's channels depends on, for the sites of convolutions.

    It is the longer side of the largest receptive field, computed from that of what each convolution reads.
    """
    ends: dict[int, list[tuple[Reading, ConvCall]]] = {}
    for site in drawing.wiring.sites.values():
        for number in site.inner[-1:] or site.calls:
            call = drawing.call(number)
            if isinstance(call, ConvCall):
                ends.setdefault(site.number, []).append(((call.layer, call.turn, 0), call))
    try:
        fields = local_fields(drawing.subject, [reading for some in ends.values() for reading, _ in some])
    except ConvCircuitsError:  # of a model whose fields cannot be followed; nothing is said of them then
        return {}
    sees = {}
    for number, some in ends.items():
        sides = []
        for reading, call in some:
            field = fields[reading]
            for axis, spans in enumerate((field.rows, field.columns)):
                step = (spans[-1][0] - spans[0][0]) / max(1, len(spans) - 1)
                sides.append(field.size[axis] + step * call.dilation[axis] * (call.weight.shape[2 + axis] - 1))
        sees[number] = round(max(sides))
    return sees


def _name_of(site: Site, drawing: Drawing) -> str:
    return site.name or (drawing.call(site.calls[0]).layer if site.calls else str(site.kind.name).lower())


def _common(names: Sequence[str]) -> str:
    """Return the common prefix of dotted names; if there is none, all names."""
    if len(names) == 1:
        return names[0]
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return ".".join(parts[0][:shared]) or " + ".join(names)


def _about(site: Site, drawing: Drawing) -> str:
    """Describe a site in words."""
    layers = [drawing.call(c).layer for c in site.calls]
    text = " + ".join(layers) or _name_of(site, drawing)
    if site.inner:
        text += " → " + " → ".join(drawing.call(c).layer for c in site.inner) + " (each filter on its own)"
    kinds = {"ADD": "added to what passes by" if site.links else "added up", "GATE": "scaled by a gate"}
    extra = kinds.get(site.kind.name)
    return f"{text}, {extra}" if extra and (site.links or len(site.calls) > 1) else text


def layers_of(drawing: Drawing) -> tuple[data.DrawnLayer, ...]:
    """Describe the layers that have kernels, in the order of ``Drawing.calls``."""
    sites = drawing.wiring.site_of_call()
    layers = []
    for number in drawing.calls:
        call, column = drawing.call(number), drawing.wiring.columns[sites[number].number]
        beside = [s for n, s in drawing.wiring.sites.items() if drawing.wiring.columns[n] == column]
        head = _common([_name_of(s, drawing) for s in beside]) + "."
        label = call.layer.removeprefix(head) if len(beside) > 1 else call.layer
        relevant = drawing.subject.survey.kernels[call.layer]
        layers.append(
            data.DrawnLayer(call.layer, label, column, kernel_shape(drawing, number), int(relevant.any(1).sum()))
        )
    return tuple(layers)


def kernel_shape(drawing: Drawing, number: int) -> tuple[int, int]:
    """Return (kh, kw) of a call; for a linear layer on a flattened map, the map's shape if known, else one row."""
    call = drawing.call(number)
    if isinstance(call, ConvCall):
        return int(call.weight.shape[2]), int(call.weight.shape[3])
    positions = call.weight.shape[1] // call.blocks
    value = drawing.layout.values[drawing.layout.values[number].inputs[0]]
    while value.call is None and value.inputs:  # back to the map that was flattened
        sides = [size for dim, size in enumerate(value.shape) if dim != value.axis]
        if len(sides) == 2 and value.axis is not None and math.prod(sides) == positions:
            return sides[0], sides[1]
        value = drawing.layout.values[value.inputs[0]]
    return 1, positions


def nodes_of(drawing: Drawing) -> data.Nodes:
    """Describe the nodes."""
    index = {call: n for n, call in enumerate(drawing.calls)}
    sites = [drawing.wiring.sites[int(s)] for s in drawing.graph.site]
    # A sum is named after its first layer, a chain after its last.
    last = [index[(s.inner or s.calls[:1])[-1]] if s.calls else -1 for s in sites]
    return data.Nodes(
        kind=np.array([NodeKind[s.kind.name] for s in sites], dtype=np.uint8),
        column=np.array([drawing.wiring.columns[s.number] for s in sites], dtype=np.int16),
        layer=np.array(last, dtype=np.int16),
        unit=np.where([s.kind is SiteKind.TARGET for s in sites], -1, drawing.graph.channel).astype(np.int32),
    )


def variants_of(drawing: Drawing, called: Sequence[str]) -> tuple[data.Variant, ...]:
    """Describe the circuits, with the saliency and rank of each edge."""
    g, variants = drawing.graph, []
    weighted = g.kind <= EdgeKind.INNER
    relevant = drawing.subject.survey.kernels
    for n, (circuit, role) in enumerate(zip(drawing.circuits, drawing.roles, strict=True)):
        kept, _ = masks_of(circuit.elements, circuit.granularity, relevant)
        places = _places(circuit, kept, relevant)
        rank = np.where(weighted, -1, 0).astype(np.int32)
        for number in drawing.calls:
            here = np.flatnonzero(g.present[n] & (g.call == number))
            rank[here] = places[drawing.call(number).layer][g.out[here], g.inp[here]]
        variants.append(
            data.Variant(
                name=called[n],
                role=role,  # type: ignore[arg-type]
                saliency=_with_readout(drawing, g.saliency[n]),
                rank=rank,
                kernels=len(np.unique(rank[g.present[n] & weighted])),
                effective=count_kept(drawing.masks[n].kernels),
                filters=sum(int(mask.any(1).sum()) for mask in drawing.masks[n].kernels.values()),
                kept=count_kept(kept),
                relevant=count_kept(relevant),
                calibration=_calibration(drawing, circuit, measured=drawing.measured[n]),
                nested=nested(circuit),
            )
        )
    return tuple(variants)


def gains_of(drawing: Drawing, circuit: Circuit) -> np.ndarray:
    """Return what a circuit multiplies each edge's kernel by, (E,): its gain, or 1."""
    g, gains = drawing.graph, np.ones(len(drawing.graph.kind))
    for number in drawing.calls:
        table = circuit.gain.get(drawing.call(number).layer)
        if table is not None:
            here = np.flatnonzero(g.call == number)
            gains[here] = table.cpu().numpy()[g.out[here], g.inp[here]]
    return gains


def _calibration(drawing: Drawing, circuit: Circuit, *, measured: bool) -> data.Calibration | None:
    if not circuit.calibrated:
        return None
    origin = circuit.provenance.get("calibration", {}).get("images", {})
    thicker = EFFECT if measured else BEFORE
    return data.Calibration(circuit.constants, origin.get("count"), gains_of(drawing, circuit), thicker)


def _places(circuit: Circuit, kept: Mapping[str, Tensor], relevant: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Rank the kept kernels by saliency in ``prune``'s order, from 0 for the highest; -1 for other kernels."""
    if circuit.granularity == "kernel":
        saliency: Mapping[str, Tensor] = circuit.saliency
    else:
        saliency = kernels_of(circuit, kept, relevant).saliency
    masks = [kept[layer].cpu() for layer in circuit.elements]
    values = torch.cat([saliency[layer][mask] for layer, mask in zip(circuit.elements, masks, strict=True)])
    places = values.nan_to_num(-torch.inf).argsort(descending=True, stable=True).argsort()
    tables = {}
    for layer, mask in zip(circuit.elements, masks, strict=True):
        table = torch.full(mask.shape, -1)
        table[mask], places = places[: int(mask.sum())], places[int(mask.sum()) :]
        tables[layer] = table.numpy()
    return tables


def readout_of(drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
    """Return the connections that read a direction or several units, and the coefficient of each."""
    g = drawing.graph
    readout = np.flatnonzero(g.kind == EdgeKind.READOUT)
    links = drawing.wiring.sites[drawing.wiring.target[0]].links if len(readout) else []
    coefficients = {
        (int(link.sources.site[0]), int(link.sources.channel[0])): float(drawing.subject.coefficients[n])
        for n, link in enumerate(links)
    }
    ends = zip(g.site[g.source[readout]], g.channel[g.source[readout]], strict=True)
    return readout, np.array([coefficients[int(site), int(channel)] for site, channel in ends])


def _with_readout(drawing: Drawing, saliency: np.ndarray) -> np.ndarray:
    """Set the saliency of readout connections to the absolute value of their coefficients."""
    readout, coefficients = readout_of(drawing)
    saliency = saliency.copy()
    saliency[readout] = np.abs(coefficients)
    return saliency
