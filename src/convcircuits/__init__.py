"""Find, measure, run and draw the sparse circuit of kernels that computes one feature of a CNN.

A `Feature` names what to preserve. A criterion scores every kernel for it. `prune` keeps the best: a `Circuit`, which
is only data. `evaluate` measures it on held-out images, `extract` makes it a small
runnable module, `diagram` draws it. Nothing ever changes your model.
"""

from convcircuits.circuit import Circuit, iou
from convcircuits.criteria import CRITERIA
from convcircuits.drawing.build import diagram
from convcircuits.drawing.host import Diagram
from convcircuits.errors import ConvCircuitsError
from convcircuits.evaluation import activations, evaluate
from convcircuits.extraction import extract
from convcircuits.feature import Feature
from convcircuits.finding import find, prune, score
from convcircuits.report import Evaluation
from convcircuits.scores import Scores
from convcircuits.storage import load, save
from convcircuits.version import __version__

__all__ = [
    "CRITERIA",
    "Circuit",
    "ConvCircuitsError",
    "Diagram",
    "Evaluation",
    "Feature",
    "Scores",
    "__version__",
    "activations",
    "diagram",
    "evaluate",
    "extract",
    "find",
    "iou",
    "load",
    "prune",
    "save",
    "score",
]
