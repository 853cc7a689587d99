"""The command ``convcircuits``: reads options, calls the library, prints what it says."""

import csv
import dataclasses
import inspect
import io
import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import convcircuits as cc
from convcircuits.batches import Progress as Callback
from convcircuits.comparison import Row, compare
from convcircuits.granularity import SHAPES, check_granularity
from convcircuits.images import Photograph, crops, photographs, split_photographs
from convcircuits.models import LoadedModel, list_models, load_model
from convcircuits.storage import write_whole

app = typer.Typer(
    help="Find, measure and run the sparse circuit of kernels that computes one feature of a CNN.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out = Console(soft_wrap=True, highlight=False, markup=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="vgg16_hed, efficientnet_lite0, torchvision:NAME, timm:NAME or package.module:factory.",
    ),
]
FeatureOption = Annotated[
    str,
    typer.Option(
        "--feature",
        "-f",
        help="layer:unit, for example features.14:54; layer:3,9,40 is several units, fc:golden retriever a class by "
        "name; @max, @center or @row,column says which positions count.",
    ),
]
WeightsOption = Annotated[Path | None, typer.Option(help="A state dict (.safetensors, .pt) to load.")]
ImagesOption = Annotated[str, typer.Option(help="A folder of photographs, or 'sample' for built-in ones.")]
CountOption = Annotated[
    int,
    typer.Option(min=1, help="How many crops of the training photographs to use, and as many of the held-out ones."),
]
SizeOption = Annotated[
    int | None, typer.Option(min=1, help="Side of the crops in pixels; the model's own if not given.")
]
HeldOutOption = Annotated[float, typer.Option(help="The share of photographs that is held out.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seeds the split, the crops and criteria that draw.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")]
BatchOption = Annotated[int, typer.Option(min=1, help="The most images that run at once.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]

DEMO_MODEL, DEMO_FEATURE, DEMO_SIZE = "vgg16_hed", "features.14:54", 112
DEMO_CRITERIA = ["gauss_newton", "actgrad", "snip", "force", "magnitude", "random"]
DEMO_DENSITIES = [0.3, 0.1, 0.05, 0.02, 0.01]
DEMO_BEST_AT = 0.05


@dataclass(frozen=True)
class Setup:
    """What the commands' options come to: a model and the two sets of images."""

    loaded: LoadedModel
    train: torch.Tensor
    held_out: torch.Tensor
    train_names: list[str]
    held_out_names: list[str]
    unreadable: list[str]


def _print_version(wanted: bool) -> None:
    if wanted:
        _out.print(cc.__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find, measure and run the sparse circuit of kernels that computes one feature of a CNN."""


@app.command()
def find(
    model: ModelOption,
    feature: FeatureOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")],
    density: Annotated[float | None, typer.Option(help="Share of the relevant units to keep, in (0, 1].")] = None,
    kernels: Annotated[int | None, typer.Option(help="How many units to keep, in place of --density.")] = None,
    granularity: Annotated[
        str, typer.Option(help=f"What is kept or dropped as one unit: {', '.join(SHAPES)}.")
    ] = "kernel",
    criterion: Annotated[str, typer.Option("--criterion", "-c", help=f"One of {', '.join(cc.CRITERIA)}.")] = (
        "gauss_newton"
    ),
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the criterion, NAME=VALUE, for example steps=5; may be repeated."),
    ] = None,
    images: ImagesOption = "sample",
    weights: WeightsOption = None,
    count: CountOption = 24,
    size: SizeOption = None,
    held_out: HeldOutOption = 0.4,
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Find a circuit on training photographs and measure it on the others."""
    check_granularity(granularity)
    if out.suffix != ".safetensors":
        raise cc.ConvCircuitsError(f"--out {out} should end in .safetensors.")
    if not out.parent.is_dir():
        raise cc.ConvCircuitsError(f"There is no folder {out.parent} to write {out.name} to.")
    options = _criterion_options(option or [])
    setup = _set_up(model, weights, images, count, size, held_out, seed, device)
    wanted = setup.loaded.feature(feature)
    with _progress(f"scoring with {criterion}", quiet=as_json) as progress:
        circuit = cc.find(
            setup.loaded.model,
            wanted,
            setup.train,
            criterion=criterion,
            density=density,
            kernels=kernels,
            granularity=granularity,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
            **options,
        )
    recipe = {
        "model": model,
        "weights": None if weights is None else str(weights),
        "images": images,
        "count": count,
        "size": size,
        "held_out": held_out,
        "seed": seed,
    }
    circuit = dataclasses.replace(
        circuit,
        provenance={
            **circuit.provenance,
            "recipe": recipe,
            "photographs": {"found_on": setup.train_names, "held_out": setup.held_out_names},
            "command": _find_command(recipe, wanted, criterion, granularity, option or [], density, kernels),
        },
    )
    with _progress("measuring on held-out photographs", quiet=as_json) as progress:
        report = cc.evaluate(
            setup.loaded.model,
            circuit,
            setup.held_out,
            fit=setup.train,
            batch_size=batch_size,
            progress=progress,
        )
    cc.save(circuit, out)
    if as_json:
        _print_json({"file": str(out), "unreadable": setup.unreadable, **report.as_dict()})
        return
    _say_images(setup)
    _out.print(report.summary())
    _out.print(f"wrote {out}")


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(help="A circuit's .safetensors file.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model; the one in the file if not given.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="A folder of photographs, all of them held out. If not given: "
            "those that were held out when the circuit was found."
        ),
    ] = None,
    weights: WeightsOption = None,
    count: Annotated[int | None, typer.Option(min=1, help="How many crops.")] = None,
    size: SizeOption = None,
    published: Annotated[
        bool, typer.Option("--published", help="Leave the biases of dead filters, as published.")
    ] = False,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a circuit on held-out photographs."""
    circuit = cc.load(file)
    if not isinstance(circuit, cc.Circuit):
        raise cc.ConvCircuitsError(f"{file} holds scores, not a circuit; prune them first.")
    recipe = circuit.provenance.get("recipe") or {}
    spec = model or recipe.get("model")
    if spec is None:
        raise cc.ConvCircuitsError(f"{file} does not say which model it belongs to; give --model.")
    if weights is None and recipe.get("weights") and model is None:
        weights = Path(recipe["weights"])
    side = size or recipe.get("size")
    crop_count = count or recipe.get("count", 24)
    seed = int(recipe.get("seed", 0))
    if images is not None:
        recipe = {**recipe, "images": images}
        loaded = _loaded(spec, weights, device)
        pictures, unreadable = photographs(images)
        trained_on = set(circuit.provenance.get("photographs", {}).get("found_on", []))
        fresh = [p for p in pictures if p.name not in trained_on]
        if not fresh:
            raise cc.ConvCircuitsError(f"The circuit was found on every photograph of {images}; give others.")
        setup = Setup(
            loaded,
            torch.empty(0),
            crops(fresh, loaded.preprocess, count=crop_count, seed=seed + 1, size=_side(side)),
            [],
            [p.name for p in fresh][:crop_count],
            unreadable,
        )
        fit = None
    else:
        if "images" not in recipe:
            raise cc.ConvCircuitsError(f"{file} does not say which photographs were held out; give --images.")
        names = circuit.provenance["photographs"]
        setup = _set_up(
            spec, weights, recipe["images"], crop_count, side, recipe["held_out"], seed, device, by_name=names
        )
        fit = setup.train
    with _progress("measuring", quiet=as_json) as progress:
        report = cc.evaluate(
            setup.loaded.model,
            circuit,
            setup.held_out,
            fit=fit,
            effective=not published,
            batch_size=batch_size,
            progress=progress,
        )
    if as_json:
        _print_json(report.as_dict())
    else:
        _say_images(setup)
        _out.print(report.summary())


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A .safetensors file of scores or a circuit.")],
    as_json: JsonOption = False,
) -> None:
    """Say what a file holds, and the command that makes it again."""
    value = cc.load(file)
    if as_json:
        _print_json(
            {
                "kind": type(value).__name__,
                "feature": str(value.feature),
                "layers": {layer: list(t.shape) for layer, t in value.kernels.items()},
                "granularity": value.granularity,
                "units": len(value) if isinstance(value, cc.Circuit) else value.relevant,
                "again": _again(value),
                "provenance": dict(value.provenance),
            }
        )
        return
    said = value.provenance
    _out.print(value.summary())
    images = said.get("images", {})
    _out.print(
        f"\nmodel {said.get('model', 'unknown')}, weights {said.get('weights', 'unknown')}"
        f"\nimages: {images.get('count', 'unknown')}, hash {images.get('hash', 'unknown')}"
        f"\nmade with: {', '.join(f'{k} {v}' for k, v in said.get('versions', {}).items()) or 'unknown'}"
        f"\n\nto make it again:\n  {_again(value)}"
    )


@app.command()
def models(
    model: Annotated[str | None, typer.Argument(help="A model, to list the layers that can carry a feature.")] = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """List models; with a model, list its layers that can carry a feature."""
    if model is None:
        found = [dataclasses.asdict(info) for info in list_models()]
    else:
        loaded = _loaded(model, weights, "cpu")
        found = [dataclasses.asdict(info) for info in loaded.layers()]
    if as_json:
        _print_json(found)
        return
    if not found:
        raise cc.ConvCircuitsError(f"{model} has no layer inside it that can carry a feature.")
    _out.print(_aligned([list(found[0]), *([_cell(value) for value in row.values()] for row in found)]))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("demo-output"),
    count: CountOption = 14,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare criteria on a real network and real photographs; write a table, a chart and the best circuit."""
    start = time.monotonic()
    feature = cc.Feature.parse(DEMO_FEATURE)
    if out.exists() and not out.is_dir():
        raise cc.ConvCircuitsError(f"--out {out} is a file; give a folder.")
    setup = _set_up(DEMO_MODEL, None, "sample", count, DEMO_SIZE, 0.4, seed, device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cc.ConvCircuitsError(f"The folder {out} cannot be made: {error.strerror}.") from error
    if not as_json:
        _out.print(
            f"{DEMO_FEATURE} of {DEMO_MODEL}: unit {feature.unit} of conv3_3, whose response varies most over the "
            "sample photographs."
        )
        _say_images(setup)
    with _progress("finding and measuring circuits", quiet=as_json) as progress:
        rows = compare(
            setup.loaded.model,
            feature,
            setup.train,
            setup.held_out,
            criteria=DEMO_CRITERIA,
            densities=DEMO_DENSITIES,
            seed=seed,
            progress=progress,
        )
    table = [row.as_dict() for row in rows]
    best = max((row for row in rows if row.density == DEMO_BEST_AT), key=lambda row: row.evaluation.r2)
    recipe = {
        "model": DEMO_MODEL,
        "weights": None,
        "images": "sample",
        "count": count,
        "size": DEMO_SIZE,
        "held_out": 0.4,
        "seed": seed,
    }
    circuit = dataclasses.replace(
        best.circuit,
        provenance={
            **best.circuit.provenance,
            "recipe": recipe,
            "photographs": {"found_on": setup.train_names, "held_out": setup.held_out_names},
            "command": _find_command(recipe, feature, best.criterion, "kernel", [], best.density, None),
        },
    )
    from convcircuits.charts import fidelity_chart

    write_whole(out / "comparison.csv", _csv(table).encode())
    fidelity_chart(
        table,
        out / "comparison.png",
        title=f"{DEMO_MODEL} {DEMO_FEATURE}: circuits measured on {len(setup.held_out)} crops of "
        f"{len(setup.held_out_names)} photographs they were not found on",
    )
    cc.save(circuit, out / "circuit.safetensors")
    if as_json:
        _print_json({"folder": str(out), "best": best.as_dict(), "rows": table})
        return
    _out.print(_comparison_table(rows))
    _out.print(
        "R2 is 1 for a perfect copy of the feature's map and below 0 where its mean alone would do better; r ignores "
        "scale and shift.\n"
    )
    _out.print(f"The best at {DEMO_BEST_AT:.0%} (by these same figures), found by {best.criterion}:")
    _out.print(best.evaluation.summary())
    for name, what in (
        ("comparison.csv", "every figure"),
        ("comparison.png", "fidelity against density"),
        ("circuit.safetensors", f"that circuit; try: convcircuits show {out / 'circuit.safetensors'}"),
    ):
        _out.print(f"wrote {out / name} ({what})")
    _out.print(f"done in {time.monotonic() - start:.0f} s")


def main() -> None:
    """Run the command; mistakes end in one sentence and exit code 1, Ctrl-C in 130."""
    try:
        app(prog_name="convcircuits")
    except cc.ConvCircuitsError as error:
        _err.print(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _err.print("interrupted; nothing was left half written")
        sys.exit(130)


def _set_up(
    spec: str,
    weights: Path | None,
    source: str,
    count: int,
    size: int | None,
    held_out: float,
    seed: int,
    device: str,
    by_name: dict[str, list[str]] | None = None,
) -> Setup:
    loaded = _loaded(spec, weights, device)
    pictures, unreadable = photographs(source)
    if by_name is None:
        train, rest = split_photographs(pictures, held_out=held_out, seed=seed)
    else:  # as they were split before, whatever has come to the folder since
        train, rest = (_named(pictures, by_name[role], source) for role in ("found_on", "held_out"))

    def prepared(some: list[Photograph], seed: int) -> torch.Tensor:
        return crops(some, loaded.preprocess, count=count, seed=seed, size=_side(size))

    return Setup(
        loaded,
        prepared(train, seed),
        prepared(rest, seed + 1),
        [p.name for p in train][:count],
        [p.name for p in rest][:count],
        unreadable,
    )


def _named(pictures: list[Photograph], names: list[str], source: str) -> list[Photograph]:
    found = {picture.name: picture for picture in pictures}
    missing = [name for name in names if name not in found]
    if missing:
        raise cc.ConvCircuitsError(
            f"{source} no longer holds {_names(missing)}, which the circuit was found or measured on; "
            "give --images with photographs to measure it on."
        )
    return [found[name] for name in names]


def _loaded(spec: str, weights: Path | None, device: str) -> LoadedModel:
    if device not in ("auto", "cpu", "cuda"):
        raise cc.ConvCircuitsError(f"--device is auto, cpu or cuda; got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise cc.ConvCircuitsError("--device cuda was given, but torch finds no CUDA device here; use --device cpu.")
    loaded = load_model(spec, weights=weights)
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        loaded.model.to("cuda")
    return loaded


def _side(size: int | None) -> tuple[int, int] | None:
    return None if size is None else (size, size)


def _criterion_options(given: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if name in inspect.signature(cc.find).parameters:
            raise cc.ConvCircuitsError(f"--option {text}: {name} is not an option of the criterion; see --help.")
        if not equals:
            raise cc.ConvCircuitsError(f"--option {text} has no value; write NAME=VALUE, for example steps=5.")
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


def _find_command(
    recipe: dict[str, Any],
    feature: cc.Feature,
    criterion: str,
    granularity: str,
    options: list[str],
    density: float | None,
    kernels: int | None,
) -> str:
    words = ["convcircuits", "find", "--model", recipe["model"], "--feature", str(feature)]
    words += ["--criterion", criterion, *(word for text in options for word in ("--option", text))]
    words += [] if granularity == "kernel" else ["--granularity", granularity]
    words += ["--density", str(density)] if kernels is None else ["--kernels", str(kernels)]
    for name in ("weights", "images", "count", "size", "held_out", "seed"):
        if recipe[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(recipe[name])]
    return shlex.join([*words, "--out", f"{feature.slug}.safetensors"])


def _again(value: cc.Circuit | cc.Scores) -> str:
    said = value.provenance
    if "command" in said:
        return str(said["command"])
    if "criterion" not in said:
        return f"(made by {said.get('made_by', 'hand')}; there is no one command)"
    if "inside" in said or not all(isinstance(v, (str, int, float, bool)) for v in said["options"].values()):
        return "(found with the help of another circuit; there is no one command)"
    options = "".join(f", {k}={v!r}" for k, v in said["options"].items())
    feature = value.feature
    where = "" if feature.position == "all" else f", position={feature.position!r}"
    where += "" if feature.call is None else f", call={feature.call}"
    unit = "cc.load(FILE).feature.unit" if isinstance(feature.unit, torch.Tensor) else feature.unit
    call = f"(model, cc.Feature({feature.layer!r}, {unit}{where}), images, criterion={said['criterion']!r}"
    call += "" if value.granularity == "kernel" else f", granularity={value.granularity!r}"
    call += f", seed={said['seed']}{options}"
    return f"cc.find{call}, kernels={len(value)})" if isinstance(value, cc.Circuit) else f"cc.score{call})"


def _say_images(setup: Setup) -> None:
    if setup.train_names:
        _out.print(
            f"found on {len(setup.train)} crops of {len(setup.train_names)} photographs: {_names(setup.train_names)}"
        )
    _out.print(
        f"measured on {len(setup.held_out)} crops of {len(setup.held_out_names)} others: {_names(setup.held_out_names)}"
    )
    if setup.unreadable:
        _out.print(f"not readable and left out ({len(setup.unreadable)}): {_names(setup.unreadable)}")


def _names(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _comparison_table(rows: list[Row]) -> str:
    densities = sorted({row.density for row in rows}, reverse=True)
    cells = {(r.criterion, r.density): f"{r.evaluation.pearson:.2f} {r.evaluation.r2:6.2f}" for r in rows}
    head = ["(r, R2)", *(f"{density:.0%} kept".rjust(11) for density in densities)]
    criteria = dict.fromkeys(row.criterion for row in rows)
    return _aligned([head, *([c, *(cells[c, density] for density in densities)] for c in criteria)])


def _aligned(lines: list[list[str]]) -> str:
    """Set cells in columns, whole at any width of the terminal: names in them are there to be copied."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _csv(table: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return " x ".join(map(str, value)) or "-"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def _progress(description: str, *, quiet: bool) -> Iterator[Callback | None]:
    if quiet or not _err.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_err, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    main()
