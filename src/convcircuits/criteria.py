"""What the author of a criterion needs: the trace that a criterion is given, what it hands out, and the known criteria.

A criterion is a function ``criterion(trace, **options) -> {layer: saliency}``; ``convcircuits.circuits.criteria`` has
the whole contract.
"""

from convcircuits.circuits.criteria import (
    CRITERIA,
    actgrad,
    force,
    gauss_newton,
    layer_random,
    magnitude,
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
    "magnitude",
    "random",
    "snip",
]
