"""For authors of criteria: the trace that a criterion receives, its batches and layers, and the known criteria.

A criterion is a function ``criterion(trace, **options) -> {layer: saliency}``; ``convcircuits.circuits.criteria``
documents the whole contract.
"""

from convcircuits.circuits.criteria import (
    CRITERIA,
    actgrad,
    force,
    gauss_newton,
    layer_random,
    learned,
    magnitude,
    progressive,
    random,
    snip,
)
from convcircuits.circuits.tracing import Batch, Layer, Trace

__all__ = [
    "CRITERIA",
    "Batch",
    "Layer",
    "Trace",
    "actgrad",
    "force",
    "gauss_newton",
    "layer_random",
    "learned",
    "magnitude",
    "progressive",
    "random",
    "snip",
]
