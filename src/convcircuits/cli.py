"""The command ``convcircuits``: reads options, calls the library, prints what it says."""

import csv
import dataclasses
import inspect
import io
import json
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console

import convcircuits as cc
from convcircuits.charts import check_charts_installed, fidelity_chart
from convcircuits.comparison import Row, compare
from convcircuits.console import progress as _progress
from convcircuits.console import run
from convcircuits.costs import Costs, costs
from convcircuits.drawing.figure import Width
from convcircuits.drawing.host import check_file
from convcircuits.drawing.pictures import LABELS
from convcircuits.files import write_whole
from convcircuits.granularity import SHAPES, check_granularity
from convcircuits.interpreter import CircuitModule
from convcircuits.models import list_models
from convcircuits.onnxfile import check_onnx_installed
from convcircuits.origins import Recipe
from convcircuits.preparing import (
    Setup,
    check_writable,
    loaded_circuit,
    loaded_model,
    model_named_in,
    names,
    recipe_of,
    set_up,
    set_up_again,
    side,
)
from convcircuits.texts import printable, printable_lines, sentences
from convcircuits.units import RULE, choose_unit, unit_statistics
from convcircuits.verdict import ENOUGH

app = typer.Typer(
    help="Find, measure, run and draw the sparse circuit of kernels that computes one feature of a CNN.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_LOADING = "loading the model and photographs"


class _Terminal(Console):
    """A console on which text moves nothing, wherever it comes from."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, with what is not to be seen in text as escapes."""
        super().print(*(printable_lines(one) if isinstance(one, str) else one for one in objects), **options)


_out = _Terminal(soft_wrap=True, highlight=False, markup=False, emoji=False)

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
        help="layer:unit, for example features.14:166; layer:3,9,40 is several units, fc:golden retriever a class by "
        "name; @max, @center, @interior (no padding reaches it) or @row,column says which positions count.",
    ),
]
WeightsOption = Annotated[Path | None, typer.Option(help="A state dict (.safetensors, .pt) to load.")]
ImagesOption = Annotated[str, typer.Option(help="A folder of photographs, or 'sample' for built-in ones.")]
CountOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=1_000_000,
        help="How many crops of the training photographs to use, and as many of the held-out ones.",
    ),
]
SizeOption = Annotated[
    int | None, typer.Option(min=1, max=4096, help="Side of the crops in pixels; the model's own if not given.")
]
HeldOutOption = Annotated[float, typer.Option(help="The share of photographs that is held out.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seeds the split, the crops and criteria that draw.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")]
BatchOption = Annotated[int, typer.Option(min=1, help="The most images that run at once.")]
ModelAgainOption = Annotated[
    str | None, typer.Option("--model", "-m", help="The model; the one in the file if not given.")
]
ImagesAgainOption = Annotated[
    str | None,
    typer.Option(
        help="A folder of photographs, all of them held out. If not given: "
        "those that were held out when the circuit was found."
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
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]

DEMO_MODEL, DEMO_LAYER, DEMO_SIZE = "vgg16_hed", "features.14", 112
DEMO_CRITERIA = ["gauss_newton", "actgrad", "snip", "force", "magnitude", "random"]
DEMO_DENSITIES = [0.3, 0.1, 0.05, 0.02, 0.01]
DEMO_BEST_AT = 0.05
_SHORT = {"keeps": "yes", "keeps in part": "part", "does not keep": "no", "not decided": "?"}


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
    """Find, measure, run and draw the sparse circuit of kernels that computes one feature of a CNN."""


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
    require: RequireOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find a circuit on training photographs and measure it on the others."""
    check_granularity(granularity)
    check_writable("--out", out, ".safetensors")
    options = _criterion_options(option or [])
    with _progress(_LOADING):
        setup = set_up(model, weights, images, count, size, held_out, seed, device)
    wanted = setup.loaded.feature(feature)
    with _progress(f"scoring with {criterion}") as progress:
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
    recipe = Recipe(
        model=model,
        weights=None if weights is None else str(weights),
        images=images,
        count=count,
        size=size,
        held_out=held_out,
        seed=seed,
        criterion=criterion,
        granularity=granularity,
        options=tuple(option or ()),
        density=density,
        kernels=kernels,
    )
    circuit = dataclasses.replace(
        circuit,
        provenance={
            **circuit.provenance,
            "recipe": recipe.to_json(),
            "photographs": {"found_on": setup.train_names, "held_out": setup.held_out_names},
        },
    )
    with _progress("measuring on held-out photographs") as progress:
        report = cc.evaluate(
            setup.loaded.model,
            circuit,
            setup.held_out,
            fit=setup.train,
            batch_size=batch_size,
            progress=progress,
        )
    cc.save(_noted(circuit, setup), out)
    if as_json:
        _print_json({"file": str(out), "unreadable": setup.unreadable, "copies": setup.copies, **report.as_dict()})
    else:
        _say_images(setup)
        _out.print(report.summary())
        _out.print(f"wrote {out}")
    _insist(require, report)


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(help="A circuit's .safetensors file.")],
    model: ModelAgainOption = None,
    images: ImagesAgainOption = None,
    weights: WeightsOption = None,
    count: CountAgainOption = None,
    size: SizeOption = None,
    published: Annotated[
        bool, typer.Option("--published", help="Leave the biases of dead filters, as published.")
    ] = False,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    require: RequireOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a circuit on held-out photographs."""
    circuit = loaded_circuit(file)
    with _progress(_LOADING):
        setup = set_up_again(file, circuit, model, weights, images, count, size, device)
    with _progress("measuring") as progress:
        report = cc.evaluate(
            setup.loaded.model,
            circuit,
            setup.held_out,
            fit=setup.train if len(setup.train) else None,
            effective=not published,
            batch_size=batch_size,
            progress=progress,
        )
    if as_json:
        _print_json(report.as_dict())
    else:
        _say_images(setup)
        _out.print(report.summary())
    _insist(require, report)


@app.command()
def extract(
    file: Annotated[Path, typer.Argument(help="A circuit's .safetensors file.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The .safetensors file to write.")] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="The .onnx file to write, compared with torch in onnxruntime.")
    ] = None,
    model: ModelAgainOption = None,
    weights: WeightsOption = None,
    size: SizeOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="How many images run at once when it is timed.")] = 16,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Turn a circuit into a small module of its own, and measure it beside the full model."""
    check_writable("--out", out, ".safetensors")
    check_writable("--onnx", onnx, ".onnx")
    if onnx is not None:
        check_onnx_installed()
    circuit = loaded_circuit(file)
    spec, weights = model_named_in(file, circuit, model, weights)
    with _progress(f"loading {spec}"):
        loaded = loaded_model(spec, weights, device)
    recipe = recipe_of(circuit)
    shape = (loaded.channels, *(side(size or (None if recipe is None else recipe.size)) or loaded.size))
    with _progress("extracting the circuit, in steps") as progress:
        module = cc.extract(loaded.model, circuit, input_shape=shape, progress=progress)
    with _progress("timing it beside the full model") as progress:
        measured = costs(loaded.model, circuit, module, shape, batch_size=batch_size, progress=progress)
    with _progress("writing"):
        written = {str(path): cc.save(module, path).stat().st_size for path in (out, onnx) if path is not None}
    if as_json:
        _print_json({"feature": str(circuit.feature), "files": written, **measured.as_dict()})
        return
    _out.print(_costs_table(circuit, measured))
    for path, size_in_bytes in written.items():
        _out.print(f"wrote {path} ({size_in_bytes:,} bytes)")


@app.command()
def diagram(
    file: Annotated[Path, typer.Argument(help="A circuit's .safetensors file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .html, .svg, .pdf, .png or .json file to write; FILE.html if not given."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in the web browser.")] = False,
    against: Annotated[Path | None, typer.Option(help="Another circuit of the same feature, to compare with.")] = None,
    pictures: Annotated[
        str, typer.Option(help=f"What pictures the filters: {' or '.join(LABELS)} (optimised; takes minutes).")
    ] = "patches",
    title: Annotated[
        str | None, typer.Option(help="Over the picture; the feature's and the model's name if not given.")
    ] = None,
    width: Annotated[Width | None, typer.Option(help="Of a figure; the last two are for papers.")] = None,
    model: ModelAgainOption = None,
    images: ImagesAgainOption = None,
    weights: WeightsOption = None,
    count: CountAgainOption = None,
    size: SizeOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
) -> None:
    """Draw a circuit as an interactive page, or as a figure."""
    path = file.with_suffix(".html") if out is None else out
    check_file(path, width)
    if open_ and path.suffix != ".html":
        raise cc.ConvCircuitsError(f"--open shows a page in the browser, so --out ends in .html; got {path}.")
    circuit = loaded_circuit(file)
    other = None if against is None else loaded_circuit(against)
    with _progress(_LOADING):
        setup = set_up_again(file, circuit, model, weights, images, count, size, device)
    with _progress("drawing") as progress:
        drawn = cc.diagram(
            setup.loaded.model,
            circuit,
            images=setup.pictured(),
            held_out=setup.held_out,
            fit=setup.train if len(setup.train) else None,
            against=other,
            title=title,
            pictures=pictures,
            primaries=setup.loaded.primaries(),
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    with _progress(f"writing {path}"):
        drawn.save(path, width=width)
    _say_images(setup)
    _out.print(drawn.caption)
    for note in drawn.document.meta.notes:
        _out.print(f"note: {note}")
    _out.print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    if open_:
        typer.launch(path.absolute().as_uri())


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A .safetensors file of scores, a circuit or a module.")],
    as_json: JsonOption = False,
) -> None:
    """Describe what a file holds, and the command that makes it again."""
    value = cc.load(file)
    if isinstance(value, torch.nn.Module):
        _show_module(value, as_json=as_json)
        return
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
    versions = ", ".join(f"{k} {v}" for k, v in said.get("versions", {}).items())
    _out.print()
    for line in (
        f"model {said.get('model', 'unknown')}, weights {said.get('weights', 'unknown')}",
        f"images: {images.get('count', 'unknown')}, hash {images.get('hash', 'unknown')}",
        f"made with: {versions or 'unknown'}",
        "",
        "to make it again:",
        f"  {_again(value)}",
    ):
        _out.print(printable(line))


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
        with _progress(f"loading {model}"):
            loaded = loaded_model(model, weights, "cpu")
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
    """Compare criteria on a real network and real photographs; write a table, the best circuit and its diagram."""
    start = time.monotonic()
    if out.exists() and not out.is_dir():
        raise cc.ConvCircuitsError(f"--out {out} is a file; give a folder.")
    check_charts_installed()
    with _progress(_LOADING):
        setup = set_up(DEMO_MODEL, None, "sample", count, DEMO_SIZE, 0.4, seed, device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cc.ConvCircuitsError(f"The folder {out} cannot be made: {error.strerror}.") from error
    pictured = setup.pictured()
    with _progress("choosing a unit") as progress:
        cycle = len(setup.photographs)
        unit = choose_unit(
            unit_statistics(
                setup.loaded.model,
                DEMO_LAYER,
                pictured,
                photographs=[setup.photographs[i % cycle] for i in range(len(pictured))],
                progress=progress,
            )
        )
    feature = cc.Feature(DEMO_LAYER, unit.unit)
    if not as_json:
        _out.print(
            f"{feature} of {DEMO_MODEL}: {RULE}. Chosen on the training photographs, without a look at any circuit.\n"
            f"{unit.summary()}"
        )
        _say_images(setup)
    with _progress("finding and measuring circuits") as progress:
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
    recipe = Recipe(
        model=DEMO_MODEL,
        weights=None,
        images="sample",
        count=count,
        size=DEMO_SIZE,
        held_out=0.4,
        seed=seed,
        criterion=best.criterion,
        granularity="kernel",
        options=(),
        density=best.density,
        kernels=None,
    )
    circuit = dataclasses.replace(
        best.circuit,
        provenance={
            **best.circuit.provenance,
            "recipe": recipe.to_json(),
            "photographs": {"found_on": setup.train_names, "held_out": setup.held_out_names},
        },
    )
    write_whole(out / "comparison.csv", _csv(table).encode())
    fidelity_chart(
        table,
        out / "comparison.png",
        title=f"{DEMO_MODEL} {feature}: circuits measured on {len(setup.held_out)} crops of "
        f"{len(setup.held_out_names)} photographs they were not found on",
    )
    cc.save(circuit, out / "circuit.safetensors")
    with _progress("drawing") as progress:
        drawn = cc.diagram(
            setup.loaded.model,
            circuit,
            images=pictured,
            held_out=setup.held_out,
            fit=setup.train,
            primaries=setup.loaded.primaries(),
            seed=seed,
            progress=progress,
        )
    drawn.save(out / "circuit.html")
    if as_json:
        _print_json(
            {
                "folder": str(out),
                "unit": dataclasses.asdict(unit),
                "best": best.as_dict(),
                "rows": table,
                "caption": drawn.caption,
            }
        )
        return
    _out.print(_comparison_table(rows))
    _out.print(
        "R2 is 1 for a perfect copy of the feature's map and below 0 where its mean alone would do better; the "
        "interior\nis where padding plays no part. The average map is that of the training images, for which no "
        "network is needed;\nrandom circuits keep as many kernels of each layer, and the best is shown.\n"
    )
    _out.print(f"The best at {DEMO_BEST_AT:.0%} (by these same figures), found by {best.criterion}:")
    _out.print(best.evaluation.summary())
    _out.print(drawn.caption)
    for name, what in (
        ("comparison.csv", "every figure"),
        ("comparison.png", "fidelity against density"),
        ("circuit.safetensors", f"that circuit; try: convcircuits show {out / 'circuit.safetensors'}"),
        ("circuit.html", "the circuit as a diagram: open it in a web browser"),
    ):
        _out.print(f"wrote {out / name} ({what})")
    _out.print(f"done in {time.monotonic() - start:.0f} s")


def main() -> None:
    """Run the command, its modules imported already; see `convcircuits.console`."""
    run(lambda: app)


def _criterion_options(given: list[str]) -> dict[str, Any]:
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


def _again(value: cc.Circuit | cc.Scores) -> str:
    said, recipe = value.provenance, recipe_of(value)
    if recipe is not None:
        return recipe.command(value.feature) or "(not shown: it holds characters that cannot be printed)"
    if "criterion" not in said:
        return f"(made by {said.get('made_by', 'hand')}; there is no one command)"
    given = said.get("options", {})
    if "inside" in said or not all(isinstance(v, (str, int, float, bool)) for v in given.values()):
        return "(found with the help of another circuit; there is no one command)"
    options = "".join(f", {k}={v!r}" for k, v in given.items() if k.isidentifier())
    feature = value.feature
    where = "" if feature.position == "all" else f", position={feature.position!r}"
    where += "" if feature.call is None else f", call={feature.call}"
    unit = "cc.load(FILE).feature.unit" if isinstance(feature.unit, torch.Tensor) else feature.unit
    call = f"(model, cc.Feature({feature.layer!r}, {unit}{where}), images, criterion={said['criterion']!r}"
    call += "" if value.granularity == "kernel" else f", granularity={value.granularity!r}"
    call += f", seed={said.get('seed', 0)}{options}"
    return f"cc.find{call}, kernels={len(value)})" if isinstance(value, cc.Circuit) else f"cc.score{call})"


def _insist(require: str | None, report: cc.Evaluation) -> None:
    """Exit with 3 where a circuit's verdict is not what is required."""
    if require is not None and report.verdict not in ENOUGH[require]:
        typer.echo(f"--require {require}: the verdict is {report.verdict!r}", err=True)
        raise typer.Exit(3)


def _say_images(setup: Setup) -> None:
    if setup.train_names:
        _out.print(
            f"found on {len(setup.train)} crops of {len(setup.train_names)} photographs: {names(setup.train_names)}"
        )
    _out.print(
        f"measured on {len(setup.held_out)} crops of {len(setup.held_out_names)} others: {names(setup.held_out_names)}"
    )
    if setup.no_baseline:
        _out.print(f"no baseline: {setup.no_baseline}")
    for note in _left_out(setup):
        _out.print(note)


def _left_out(setup: Setup) -> tuple[str, ...]:
    return sentences(
        f"{what} and left out ({len(some)}): {names(some)}"
        for what, some in (("Not readable", setup.unreadable), ("Copies of other photographs", setup.copies))
        if some
    )


def _noted(circuit: cc.Circuit, setup: Setup) -> cc.Circuit:
    """Note in a circuit what was left out of the photographs that it was found on."""
    notes = [*circuit.provenance.get("notes", ()), *_left_out(setup)]
    if not notes:
        return circuit
    return dataclasses.replace(circuit, provenance={**circuit.provenance, "notes": notes})


def _show_module(module: CircuitModule, *, as_json: bool) -> None:
    layers = {name: list(x.shape) for name, x in module.named_parameters() if name.endswith(".weight")}
    parameters, circuit = sum(p.numel() for p in module.parameters()), module.meta.get("circuit", {})
    if as_json:
        _print_json({"kind": "Module", "parameters": parameters, "layers": layers, "circuit": circuit})
        return
    _out.print(printable(f"a module of {parameters:,} parameters that computes {circuit.get('feature', 'a feature')}"))
    _out.print(_aligned([[name, _cell(tuple(shape))] for name, shape in layers.items()]))
    origin = f"extracted from {circuit.get('model', 'unknown')}, weights {circuit.get('weights', 'unknown')}"
    _out.print(printable(origin))


def _costs_table(circuit: cc.Circuit, measured: Costs) -> str:
    small, full = measured.module, measured.full
    count = f"{measured.batch_size} image{'s' * (measured.batch_size != 1)} {_cell(measured.input_shape)}"
    rows = [
        [str(circuit.feature), "module", "full model", "ratio"],
        ["parameters", f"{small.parameters:,}", f"{full.parameters:,}", f"{small.parameters / full.parameters:.2%}"],
        ["MACs per image", f"{small.macs:,}", f"{full.macs:,}", f"{small.macs / full.macs:.2%}"],
        [
            f"time of {count}",
            f"{1000 * small.seconds:.1f} ms",
            f"{1000 * full.seconds:.1f} ms",
            f"{measured.speedup:.1f} times faster",
        ],
    ]
    end = "the full model runs up to the feature; the module differs from the circuit's masked run by at most "
    return f"{_aligned(rows)}\n{end}{measured.difference:.0e} of the largest value"


def _comparison_table(rows: list[Row]) -> str:
    """Tabulate R2, R2 on the interior and the verdict by criterion and density, with what they stand beside."""
    densities = sorted({row.density for row in rows}, reverse=True)
    found = {(row.criterion, row.density): row.evaluation for row in rows}
    table = [["R2, interior, keeps?", *(f"{density:.0%} kept".rjust(12) for density in densities)]]
    for criterion in dict.fromkeys(row.criterion for row in rows):
        reports = [found[criterion, density] for density in densities]
        table.append([criterion, *(f"{e.r2:z6.2f} {e.r2_interior:z5.2f} {_SHORT[e.verdict]:<4}" for e in reports)])
    for name, figure in (("(average map)", "r2_average_map"), ("(random circuit)", "r2_random")):
        cells = [name]
        for density in densities:
            beside = [row.evaluation.as_dict() for row in rows if row.density == density]
            known = [[e[key] for e in beside if e[key] is not None] for key in (figure, f"{figure}_interior")]
            cells.append("{:z6.2f} {:z5.2f}".format(*(max(some, default=math.nan) for some in known)))
        table.append(cells)
    return _aligned(table)


def _aligned(lines: list[list[str]]) -> str:
    """Set cells in columns, whole at any width of the terminal: names in them are there to be copied."""
    lines = [[printable(cell) for cell in line] for line in lines]
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


if __name__ == "__main__":
    main()
