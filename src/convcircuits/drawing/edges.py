"""The document's edges: the sign and the weights of each kernel."""

import numpy as np
import torch

from convcircuits.drawing import data
from convcircuits.drawing.data import EdgeKind
from convcircuits.drawing.graph import turns
from convcircuits.drawing.sheet import Drawing, gains_of, readout_of


def edges_of(drawing: Drawing, effect: np.ndarray | None) -> tuple[data.Edges, np.ndarray, np.ndarray]:
    """Build the edges and their weights.

    Args:
        drawing: What is drawn.
        effect: (E, I), the mean of what each kernel adds on each image; the sum over images decides the edge's sign.
            Where it is not known, the sum of the kernel's weights does.

    Returns:
        The edges; the weights of all, int8; and a factor for each edge: -1 where what follows inside its node inverts
        what it adds (a BatchNorm with a negative weight, or a depthwise kernel that lowers), otherwise 1.
    """
    g = drawing.graph
    index = {call: n for n, call in enumerate(drawing.calls)}
    weighted = g.kind <= EdgeKind.INNER
    start, scale = np.full(len(g.kind), -1, np.int32), np.zeros(len(g.kind), np.float32)
    added, turned, parts, filled = np.zeros(len(g.kind)), np.ones(len(g.kind)), [], 0
    gain = gains_of(drawing, drawing.circuits[0])
    for number in drawing.calls:
        here = np.flatnonzero(g.call == number)
        values = _weights(drawing, number)[g.out[here], g.inp[here]]
        largest = np.abs(values).max(1)
        scale[here] = largest
        parts.append(np.round(values / np.where(largest > 0, largest, 1)[:, None] * 127).astype(np.int8))
        start[here] = filled + np.arange(len(here)) * values.shape[1]
        filled += values.size
        added[here] = values.sum(1) * gain[here]
        turned[here] = turns(drawing.layout, number).numpy()[g.out[here]]
    if effect is not None:
        known = ~np.isnan(effect).all(1)
        added[known] = np.nansum(effect[known], 1)
    turned = _through_chains(drawing, added, turned)
    sign = np.where(weighted, np.where(added * turned < 0, -1, 1), 0)
    readout, coefficients = readout_of(drawing)
    sign[readout] = np.sign(coefficients)
    edges = data.Edges(
        source=g.source.astype(np.int32),
        target=g.target.astype(np.int32),
        kind=g.kind.astype(np.uint8),
        layer=np.array([index.get(int(c), -1) for c in g.call], dtype=np.int16),
        out=np.where(weighted, g.out, -1).astype(np.int32),
        in_=np.where(weighted, g.inp, -1).astype(np.int32),
        sign=sign.astype(np.int8),
        weights=start,
        scale=scale,
    )
    return edges, np.concatenate([part.reshape(-1) for part in parts]), turned


def _through_chains(drawing: Drawing, added: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """Invert the edges before each inverting depthwise kernel inside a node, one kernel after the other."""
    g, turned = drawing.graph, turned.copy()
    inner = np.flatnonzero((g.kind == EdgeKind.INNER) & np.logical_or.reduce(g.present))
    for e in inner[np.argsort(g.call[inner], kind="stable")]:
        before = (g.target == g.target[e]) & (g.call < g.call[e]) & (g.kind <= EdgeKind.INNER)
        turned[before] *= -1 if added[e] * turned[e] < 0 else 1
    return turned


def _weights(drawing: Drawing, number: int) -> np.ndarray:
    """Return the weights of a call, (out, in, kh * kw); those that no circuit keeps are 0."""
    call = drawing.call(number)
    weight = call.kernels.flatten(0, 1).detach().float().cpu()
    if all(circuit.granularity == "weight" for circuit in drawing.circuits):
        kept = torch.stack([circuit.elements[call.layer] for circuit in drawing.circuits]).any(0)
        weight = weight * kept.reshape(weight.shape)
    return weight.numpy()
