"""``convcircuits extract``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import convcircuits as cc
from convcircuits.cli import options
from convcircuits.cli.console import progress
from convcircuits.cli.output import aligned, cell, check_writable, print_json, say

if TYPE_CHECKING:
    from convcircuits.compiler.costs import Costs


def extract(
    file: options.CircuitArgument,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write the module to (.safetensors).")] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="File to export to (.onnx); it is run in onnxruntime and compared with torch.")
    ] = None,
    model: options.ModelAgainOption = None,
    weights: options.WeightsOption = None,
    size: options.SizeAgainOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images that run at once for the timing.")] = 16,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Turn a circuit into a small module and measure its cost."""
    from convcircuits.cli.preparing import loaded_circuit, recipe_again
    from convcircuits.compiler.costs import costs
    from convcircuits.compiler.onnx_export import check_onnx_installed
    from convcircuits.recipes import loaded_model, side

    check_writable("--out", out, ".safetensors")
    check_writable("--onnx", onnx, ".onnx")
    if onnx is not None:
        check_onnx_installed()
    circuit = loaded_circuit(file)
    recipe = recipe_again(file, circuit, **options.given(model=model, weights=weights, size=size))
    with progress(f"loading {recipe.model}"):
        loaded = loaded_model(recipe, device)
    shape = (loaded.channels, *(side(recipe.size) or loaded.size))
    with progress("extracting the circuit, in steps") as told:
        module = cc.extract(loaded.model, circuit, input_shape=shape, progress=told)
    with progress("timing the module and the full model") as told:
        measured = costs(loaded.model, circuit, module, shape, batch_size=batch_size, progress=told)
    with progress("writing"):
        written = {str(path): cc.save(module, path).stat().st_size for path in (out, onnx) if path is not None}
    if as_json:
        about = {"feature": str(circuit.feature), "constants": circuit.constants}
        print_json({**about, "files": written, **measured.as_dict()})
        return
    say(_costs_table(circuit, measured))
    for path, size_in_bytes in written.items():
        say(f"wrote {path} ({size_in_bytes:,} bytes)")


def _costs_table(circuit: "cc.Circuit", measured: "Costs") -> str:
    small, full = measured.module, measured.full
    count = f"{measured.batch_size} image{'s' * (measured.batch_size != 1)} {cell(measured.input_shape)}"
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
    fitted = f"The module's weights hold {circuit.constants:,} fitted constants. " if circuit.constants else ""
    end = f"{fitted}The full model runs up to the feature. The module differs from the circuit's masked run by at most "
    return f"{aligned(rows)}\n{end}{measured.difference:.0e} of the largest value."
