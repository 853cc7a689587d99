"""The document's edges: which way each kernel works, and its weights."""

import numpy as np
import torch

from convcircuits.drawing import data
from convcircuits.drawing.data import EdgeKind
from convcircuits.drawing.graph import turns
from convcircuits.drawing.sheet import Drawing, readout_of


def edges_of(drawing: Drawing, effect: np.ndarray | None) -> tuple[data.Edges, np.ndarray, np.ndarray]:
    """Describe the edges, and give all their weights.

    Args:
        drawing: What is drawn.
        effect: (E, I): the mean of what each kernel adds, on some images, whose sum over images gives its sign. Where
            it is not known, the sum of the kernel's weights does.

    Returns:
        The edges; the weights of all, int8; and for each edge 1, or -1 where what follows it inside its node turns
        round what it adds: a BatchNorm with a negative weight, a depthwise kernel that lowers.
    """
    g = drawing.graph
    index = {call: n for n, call in enumerate(drawing.calls)}
    weighted = g.kind <= EdgeKind.INNER
    start, scale = np.full(len(g.kind), -1, np.int32), np.zeros(len(g.kind), np.float32)
    added, turned, parts, filled = np.zeros(len(g.kind)), np.ones(len(g.kind)), [], 0
    for number in drawing.calls:
        here = np.flatnonzero(g.call == number)
        values = _weights(drawing, number)[g.out[here], g.inp[here]]
        largest = np.abs(values).max(1)
        scale[here] = largest
        parts.append(np.round(values / np.where(largest > 0, largest, 1)[:, None] * 127).astype(np.int8))
        start[here] = filled + np.arange(len(here)) * values.shape[1]
        filled += values.size
        added[here] = values.sum(1) * _gain(drawing, number, g.out[here])
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
    """Turn what comes before depthwise kernels inside a node by what those do, one after the other."""
    g, turned = drawing.graph, turned.copy()
    inner = np.flatnonzero((g.kind == EdgeKind.INNER) & np.logical_or.reduce(g.present))
    for e in inner[np.argsort(g.call[inner], kind="stable")]:
        before = (g.target == g.target[e]) & (g.call < g.call[e]) & (g.kind <= EdgeKind.INNER)
        turned[before] *= -1 if added[e] * turned[e] < 0 else 1
    return turned


def _gain(drawing: Drawing, number: int, filters: np.ndarray) -> np.ndarray:
    """Return the sign of the circuit's gain, by which a calibrated filter's output is multiplied."""
    gain = drawing.circuits[0].gain.get(drawing.call(number).layer)
    return np.ones(len(filters)) if gain is None else np.where(gain.cpu().numpy()[filters] < 0, -1.0, 1.0)


def _weights(drawing: Drawing, number: int) -> np.ndarray:
    """Return the weights of a call, (out, in, kh * kw); those that no circuit keeps are 0."""
    call = drawing.call(number)
    weight = call.kernels.flatten(0, 1).detach().float().cpu()
    if all(circuit.granularity == "weight" for circuit in drawing.circuits):
        kept = torch.stack([circuit.elements[call.layer] for circuit in drawing.circuits]).any(0)
        weight = weight * kept.reshape(weight.shape)
    return weight.numpy()
