"""Options that several commands take, with their types, choices and defaults."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import convcircuits as cc
from convcircuits.values.recipe import DENSITY, Recipe

# What there is to choose from, without importing what chooses: a test holds that it is the library's.
Criterion = Literal["gauss_newton", "actgrad", "snip", "force", "magnitude", "random", "layer_random"]
Granularity = Literal["filter", "kernel", "weight"]
Pictures = Literal["patches", "features"]
Width = Literal["screen", "180mm", "88mm"]
CRITERION_OPTIONS = {
    "gauss_newton": "draws=4, centered=false, normalizer=published|sum|layer_l2",
    "actgrad": "collapse=abs|sum|square, normalizer=published|sum|layer_l2, signed=false",
    "snip": "collapse=abs|sum|square, normalizer=published|sum|layer_l2, signed=false",
    "force": "steps=10, collapse=abs|sum|square, normalizer=published|sum|layer_l2",
    "magnitude": "normalizer=published|sum|layer_l2",
    "random": "",
    "layer_random": "like=CIRCUIT.safetensors, which is needed",
}
"""The options of each criterion with their defaults, the first of those to choose from."""
CRITERIA_HELP = "Options of the criteria, and their defaults (the first, where there is a choice):\n\n\b\n" + "\n".join(
    f"{name:<13} {options or 'none'}" for name, options in CRITERION_OPTIONS.items()
)

MODELS = ("vgg16_hed", "efficientnet_lite0", "torchvision:", "timm:")
_MODEL_HELP = "vgg16_hed, efficientnet_lite0, torchvision:NAME, timm:NAME or package.module:factory."


_FEATURE = typer.Option(
    "--feature",
    "-f",
    metavar="FEATURE",
    help="layer:unit, for example features.14:166 or conv3_3:166; layer:3,9,40 is several units, fc:golden retriever "
    "a class by name; @max, @center, @interior (no padding reaches it) or @row,column says which positions count. "
    "The layers: convcircuits layers -m MODEL.",
)


def _begin_with(beginning: str) -> list[str]:
    return [name for name in MODELS if name.startswith(beginning)]


def _model(help: str) -> Any:
    return typer.Option("--model", "-m", help=help, metavar="MODEL", autocompletion=_begin_with)


def _if_not_given(name: str) -> str:
    return f"; {Recipe.__dataclass_fields__[name].default} if not given."


COUNT_HELP = "Number of crops from each of the two sets of photographs, training and held-out"

ModelOption = Annotated[str, _model(_MODEL_HELP)]
FeatureOption = Annotated[str, _FEATURE]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs; auto is cuda where there is one.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="The most images that run at once.")]
WeightsOption = Annotated[Path | None, typer.Option(help="A state dict (.safetensors, .pt) to load.")]
MeanOption = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Mean that the images of your own factory's model are normalized by, of pixels from 0 to 1, for example "
        "0.485,0.456,0.406; ImageNet's if neither the factory (by an attribute preprocess) nor this says it.",
    ),
]
StdOption = Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation, likewise.")]

# Of a recipe: not given, they are the recipe file's or the default.
ModelOfRecipe = Annotated[str | None, _model(_MODEL_HELP)]
FeatureOfRecipe = Annotated[str | None, _FEATURE]
ImagesOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|sample",
        help="A folder of photographs; 'sample', those that are built in, if not given.",
    ),
]
CountOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1_000_000,
        help=f"{COUNT_HELP}{_if_not_given('count')}",
    ),
]
SizeOption = Annotated[
    int | None, typer.Option(min=1, max=4096, help="Side of the crops in pixels; the model's own if not given.")
]
HeldOutOption = Annotated[
    float | None,
    typer.Option(help=f"The share of photographs that is held out{_if_not_given('held_out')}"),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help=f"Seeds the split, the crops and criteria that draw{_if_not_given('seed')}"),
]
DensityOption = Annotated[
    float | None,
    typer.Option(
        help=f"Share of the relevant elements to keep, in (0, 1]; {DENSITY} if nothing says how many.",
    ),
]
CriterionOption = Annotated[
    Criterion | None,
    typer.Option("--criterion", "-c", help=f"How elements are scored{_if_not_given('criterion')}"),
]
GranularityOption = Annotated[
    Granularity | None,
    typer.Option(help=f"What the circuit keeps or drops{_if_not_given('granularity')}"),
]

# Of a circuit's file: not given, they are what the file says.
CircuitArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A circuit's .safetensors file.")]
ModelAgainOption = Annotated[str | None, _model("The model; the one in the file if not given.")]
ImagesAgainOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|sample",
        help="A folder of photographs, all of them held out. If not given: "
        "those that were held out when the circuit was found.",
    ),
]
CountAgainOption = Annotated[int | None, typer.Option(min=1, max=1_000_000, help="How many crops.")]
RequireOption = Annotated[
    Literal["keeps", "part"] | None,
    typer.Option(
        help="Exit with 3 unless the verdict is 'keeps', or for 'part' at least 'keeps in part'; what was found is "
        "written and printed all the same."
    ),
]


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Read numbers that are separated by commas.

    Raises:
        ConvCircuitsError: If it is anything else.
    """
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise cc.ConvCircuitsError(f"{option} is numbers with commas between them; got {text!r}.") from None


def given(**parameters: Any) -> dict[str, Any]:
    """Return those of a command's parameters that were given and are fields of a recipe, as it holds them.

    A command that begins with ``given(**locals())`` forgets none.

    Raises:
        ConvCircuitsError: If a mean or a standard deviation is no numbers.
    """
    fields = {k: v for k, v in parameters.items() if k in Recipe.__dataclass_fields__ and v not in (None, ())}
    for name in fields.keys() & {"mean", "std"}:
        fields[name] = numbers(f"--{name}", fields[name])
    if "weights" in fields:
        fields["weights"] = str(fields["weights"])
    return fields


def criterion_options(given: Sequence[str]) -> dict[str, Any]:
    """Read options of a criterion, each NAME=VALUE: a JSON value, yes or no, a circuit's file, or else text.

    Raises:
        ConvCircuitsError: If one has no value, or is an option of the command itself.
    """
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if name in inspect.signature(cc.find).parameters:
            raise cc.ConvCircuitsError(f"--option {text}: {name} is not an option of the criterion; see --help.")
        if not equals:
            raise cc.ConvCircuitsError(f"--option {text} has no value; write it as --option {text}=VALUE.")
        if value.lower() in ("true", "yes", "false", "no"):
            options[name] = value.lower() in ("true", "yes")
        elif value.endswith(".safetensors"):
            options[name] = cc.load(value)
        else:
            try:
                options[name] = json.loads(value)
            except ValueError:
                options[name] = value
    return options
