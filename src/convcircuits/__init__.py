"""Find, measure, run and draw the sparse circuit of kernels that computes one feature of a CNN.

A ``Feature`` names what to preserve. A criterion scores every kernel for it. ``prune`` keeps the best: a ``Circuit``,
which is only data. ``evaluate`` measures it on held-out images, ``extract`` turns it into a small module that runs,
``diagram`` draws it. Nothing ever changes your model.

Each part imports only parts listed before it: ``values`` holds data; ``network`` runs, records and masks a user's
model, and nothing else touches it; ``compiler`` turns a circuit into a module; ``maps`` shows what filters respond to;
``storage`` writes results to files; ``circuits`` finds, measures and compares; ``subfeatures`` tells by which circuit a
feature answers to which images; ``atlases`` finds circuits of all units of a layer; ``charts`` draws charts and
``contact_sheets`` parts of photographs; ``drawing`` makes the diagram; ``zoo`` has models and photographs; ``recipes``
finds the circuit that a recipe asks for; ``explorer`` is the page in a browser, and ``cli`` the command. ``criteria``
collects what authors of criteria need.
"""

import importlib
from typing import TYPE_CHECKING, Any

from convcircuits.errors import ConvCircuitsError
from convcircuits.version import __version__

if TYPE_CHECKING:
    from convcircuits.atlases.atlas import Atlas
    from convcircuits.atlases.making import atlas
    from convcircuits.circuits.comparison import ComparisonTable, compare
    from convcircuits.circuits.controls import controls
    from convcircuits.circuits.criteria import CRITERIA
    from convcircuits.circuits.evaluation import activations, evaluate
    from convcircuits.circuits.finding import find, find_path, prune, score
    from convcircuits.circuits.learning_curve import LearningCurve, learning_curve
    from convcircuits.circuits.refitting import refit
    from convcircuits.circuits.tuning import tune
    from convcircuits.compiler.extraction import extract
    from convcircuits.drawing.build import diagram
    from convcircuits.drawing.groups import group_diagram
    from convcircuits.drawing.host import Diagram
    from convcircuits.explorer.launch import explore
    from convcircuits.maps.top import top
    from convcircuits.maps.units import Units, units
    from convcircuits.storage import load, save
    from convcircuits.subfeatures.baselines import groupings
    from convcircuits.subfeatures.crossing import cross
    from convcircuits.subfeatures.splitting import split
    from convcircuits.subfeatures.trajectories import trajectory
    from convcircuits.values.boxes import Boxes
    from convcircuits.values.circuit import Circuit, iou
    from convcircuits.values.controls import Controls
    from convcircuits.values.cross import Cross
    from convcircuits.values.feature import Feature
    from convcircuits.values.groupings import Groupings
    from convcircuits.values.report import Evaluation
    from convcircuits.values.scores import Scores
    from convcircuits.values.split import Split
    from convcircuits.values.stimulus import Stimulus
    from convcircuits.values.top import Top
    from convcircuits.values.trajectory import Trajectory
    from convcircuits.values.tuning import Tuning

__all__ = [
    "CRITERIA",
    "Atlas",
    "Boxes",
    "Circuit",
    "ComparisonTable",
    "Controls",
    "ConvCircuitsError",
    "Cross",
    "Diagram",
    "Evaluation",
    "Feature",
    "Groupings",
    "LearningCurve",
    "Scores",
    "Split",
    "Stimulus",
    "Top",
    "Trajectory",
    "Tuning",
    "Units",
    "__version__",
    "activations",
    "atlas",
    "compare",
    "controls",
    "cross",
    "diagram",
    "evaluate",
    "explore",
    "extract",
    "find",
    "find_path",
    "group_diagram",
    "groupings",
    "iou",
    "learning_curve",
    "load",
    "prune",
    "refit",
    "save",
    "score",
    "split",
    "top",
    "trajectory",
    "tune",
    "units",
]

# Imported on first use, so that the command responds to Ctrl-C before torch is loaded.
_MODULES = {
    "Atlas": "atlases.atlas",
    "Boxes": "values.boxes",
    "CRITERIA": "circuits.criteria",
    "Circuit": "values.circuit",
    "ComparisonTable": "circuits.comparison",
    "Controls": "values.controls",
    "Cross": "values.cross",
    "Diagram": "drawing.host",
    "Evaluation": "values.report",
    "Feature": "values.feature",
    "Groupings": "values.groupings",
    "LearningCurve": "circuits.learning_curve",
    "Scores": "values.scores",
    "Split": "values.split",
    "Stimulus": "values.stimulus",
    "Top": "values.top",
    "Trajectory": "values.trajectory",
    "Tuning": "values.tuning",
    "Units": "maps.units",
    "activations": "circuits.evaluation",
    "atlas": "atlases.making",
    "compare": "circuits.comparison",
    "controls": "circuits.controls",
    "cross": "subfeatures.crossing",
    "diagram": "drawing.build",
    "evaluate": "circuits.evaluation",
    "explore": "explorer.launch",
    "extract": "compiler.extraction",
    "find": "circuits.finding",
    "find_path": "circuits.finding",
    "group_diagram": "drawing.groups",
    "groupings": "subfeatures.baselines",
    "iou": "values.circuit",
    "learning_curve": "circuits.learning_curve",
    "load": "storage",
    "prune": "circuits.finding",
    "refit": "circuits.refitting",
    "save": "storage",
    "score": "circuits.finding",
    "split": "subfeatures.splitting",
    "top": "maps.top",
    "trajectory": "subfeatures.trajectories",
    "tune": "circuits.tuning",
    "units": "maps.units",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
