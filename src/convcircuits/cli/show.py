"""``convcircuits show``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.output import aligned, cell, print_json, say
from convcircuits.texts import printable
from convcircuits.values.origins import fitted_later

if TYPE_CHECKING:
    from convcircuits.compiler.interpreter import CircuitModule


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of scores, a circuit or a module (.safetensors).")],
    as_json: options.JsonOption = False,
) -> None:
    """Describe a file and print the command that recreates it."""
    value = cc.load(file)
    if isinstance(value, tuple):
        _show_path(value, as_json=as_json)
        return
    if not isinstance(value, (cc.Circuit, cc.Scores)):
        _show_module(value, as_json=as_json)
        return
    again = _again(value, file)
    if as_json:
        print_json(
            {
                "kind": type(value).__name__,
                "feature": str(value.feature),
                "layers": {layer: list(t.shape) for layer, t in value.elements.items()},
                "granularity": value.granularity,
                "elements": len(value) if isinstance(value, cc.Circuit) else value.relevant,
                "again": again,
                "provenance": dict(value.provenance),
            }
        )
        return
    said = value.provenance
    images = said.get("images", {})
    versions = ", ".join(f"{k} {v}" for k, v in said.get("versions", {}).items())
    say(value.summary())
    say()
    for line in (
        f"model {said.get('model', 'unknown')}, weights {said.get('weights', 'unknown')}",
        f"images: {images.get('count', 'unknown')}, hash {images.get('hash', 'unknown')}",
        f"made with: {versions or 'unknown'}",
        "",
        "to recreate it:",
        f"  {again}",
    ):
        say(printable(line))


def _again(value: "cc.Circuit | cc.Scores", file: Path) -> str:
    from convcircuits.circuits.asking import options_again
    from convcircuits.circuits.criteria import CRITERIA
    from convcircuits.recipes import recipe_of

    said, recipe = value.provenance, recipe_of(value)
    if recipe is not None:
        path = said.get("path")
        if path is None or recipe.reach_r2 is not None or path["asked"] == [said.get("asked")]:
            command = recipe.command(file)
        else:  # a larger circuit on the way to the one that the recipe asks for
            command = recipe.command(f"{file.parent.absolute().name}.safetensors", path=file.parent)
        return command or "(not shown: the command contains unprintable characters)"
    if "criterion" not in said:
        return f"(made by {said.get('made_by', 'hand')}; no single command recreates it)"
    given = said.get("options", {})
    if "inside" in said or not all(isinstance(v, (str, int, float, bool)) for v in given.values()):
        return "(found with the help of another circuit; no single command recreates it)"
    if said["criterion"] in CRITERIA:
        given = options_again(CRITERIA[said["criterion"]], said)
    options = f", {_arguments(given)}" if given else ""
    feature = value.feature
    where = "" if feature.position == "all" else f", position={feature.position!r}"
    if isinstance(feature.position, cc.Boxes):
        where = ", position=cc.load(FILE).feature.position"
    where += "" if feature.call is None else f", call={feature.call}"
    unit = feature.unit if isinstance(feature.unit, (int, tuple)) else "cc.load(FILE).feature.unit"
    call = f"(model, cc.Feature({feature.layer!r}, {unit}{where}), images, criterion={said['criterion']!r}"
    call += "" if value.granularity == "kernel" else f", granularity={value.granularity!r}"
    call += f", seed={said.get('seed', 0)}{options}"
    if not isinstance(value, cc.Circuit):
        return f"cc.score{call})"
    path, asked, fitted = said.get("path"), said.get("asked", {}), said.get("calibration")
    if path is not None and path["asked"] != [asked]:
        one, *more = path["asked"]
        size = f"kernels={[one.get('kernels') for one in path['asked']]}" if more else _arguments(one)
        found = f"cc.find_path{call}, {size})[{path['number']}]"
    else:
        size = f"kernels={len(value)}"
        if said.get("effective"):
            size = f"kernels={asked.get('kernels', len(value))}, effective=True"
            if "filters" in asked:
                size = f"filters={asked['filters']}, fan_in={asked['fan_in']}"
        found = f"cc.find{call}, {size})"
    if fitted is None or not fitted_later(said):
        return found
    if fitted.get("images") != said.get("images"):
        return "(refitted on other images than it was found on; no single command recreates it)"
    how = {
        k: fitted[k] for k in ("method", "ridge", "toward", "positive", "positions", "weights", "seed") if k in fitted
    }
    return f"cc.refit(model, {found}, images, {_arguments(how)})"


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items() if name.isidentifier())


def _show_path(path: tuple["cc.Circuit", ...], *, as_json: bool) -> None:
    if as_json:
        print_json({"kind": "path", "circuits": [dict(one.provenance) | {"kernels": len(one)} for one in path]})
        return
    say(f"{len(path):,} circuits of one descent; cc.load(FILE) returns them:")
    for circuit in path:
        say(repr(circuit))


def _show_module(module: "CircuitModule", *, as_json: bool) -> None:
    layers = {name: list(x.shape) for name, x in module.named_parameters() if name.endswith(".weight")}
    parameters, circuit = sum(p.numel() for p in module.parameters()), module.meta.get("circuit", {})
    if as_json:
        print_json({"kind": "Module", "parameters": parameters, "layers": layers, "circuit": circuit})
        return
    say(printable(f"a module of {parameters:,} parameters that computes {circuit.get('feature', 'a feature')}"))
    say(aligned([[name, cell(tuple(shape))] for name, shape in layers.items()]))
    origin = f"extracted from {circuit.get('model', 'unknown')}, weights {circuit.get('weights', 'unknown')}"
    say(printable(origin))
