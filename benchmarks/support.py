"""Try every architecture of the tests' table and write docs/support.md.

The script tries to score, evaluate, extract, export and draw a circuit of each, and writes down what works.

Weights are random and images small: it only matters whether a step works and its results agree.
"""

import argparse
import copy
import importlib.util
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import convcircuits as cc
from convcircuits.drawing import figure
from convcircuits.drawing.sheet import MOST_KERNELS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from architectures import ARCHITECTURES, Architecture  # noqa: E402

COLUMNS = ("score", "evaluate", "extract", "ONNX", "diagram")
GENERAL = """
## What is not supported

| what | score, evaluate | extract |
| --- | --- | --- |
| attention, and any product of two maps (`matmul`, `einsum`) before the feature | no | no |
| windows or tokens split along the batch | no | no |
| 1-D, 3-D and transposed convolutions before the feature | no | no |
| weights applied by `matmul` instead of `conv2d` or `linear` | no | no |
| code whose path depends on the image's values (`if x.sum() > 0`, `.item()`, `x[x > 0]`) before the feature | no | no |
| scripted and quantized models | no | no |
| computation across images (batch statistics in eval mode, `x.mean(0)`) | no | no |
| writing to some positions of a map (`x[:, :, 1:] = ...`; writing whole channels works) | yes | no |
| joining constants other than zero to a map (`torch.cat`, `F.pad(value=1)` over channels) | yes | no |
| code that depends on the number of images (a loop over the batch) | yes | no |
| autocast inside the model's `forward` | yes | no |
| inference mode (`torch.inference_mode()`) and reentrant `checkpoint` in a `forward` | no | no |
| lazy layers that have not run; the meta device | no | no |
| single weights (`granularity="weight"`) if one weight is used in two shapes | no | - |
| code that depends on the image size | yes | for one size: `input_shape` |

Each case is an error that names the module and says what it does. Circuits that cannot be extracted are measured by
masked runs.

A model may count its calls, store maps, edit its weights while it runs, use `torch.no_grad()` or
`checkpoint(use_reentrant=False)`, call `.forward()` of its modules, or override `train` and `eval`. It runs in eval
mode as a private copy, which starts each time from the state you gave, and your model never changes. `torch.autocast`
around a call changes no result.
"""


def tried(step: Callable[[], object]) -> str:
    """Run a step. Return yes, or no with the reason."""
    try:
        step()
    except cc.ConvCircuitsError as error:
        return "no: " + re.sub(r"\s+", " ", str(error)).split(", so ")[0]
    return "yes"


def agree(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise an error if two runs of the same computation differ."""
    if float((got - expected).abs().max()) > 2e-5 * float(expected.abs().max()):
        raise cc.ConvCircuitsError("differs from the masked run")


def row(architecture: Architecture, layer: str, unit: int) -> list[str]:
    """Try all steps on one feature, with the smallest circuit tried whose map is not zero."""
    model, images = architecture.build(), architecture.images()
    feature, found = cc.Feature(layer, unit), {}

    def score() -> None:
        scores = found["scores"] = cc.score(model, feature, images[:1], normalizer="layer_l2", draws=1)
        for density in (0.1, 0.3, 0.6, 1.0):
            found["circuit"] = cc.prune(scores, density=density)
            found["maps"] = cc.activations(model, feature, images, circuit=found["circuit"])
            if found["maps"].any():
                break

    def extract() -> None:
        found["small"] = cc.extract(model, found["circuit"])
        with torch.no_grad():
            agree(found["small"](images), found["maps"])

    def export() -> None:
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "circuit.onnx"
            small = copy.deepcopy(found["small"]).float()  # onnxruntime has no float64 convolutions on the CPU
            cc.save(small, path)
            session = onnxruntime.InferenceSession(str(path))
            (maps,) = session.run(None, {session.get_inputs()[0].name: images.float().numpy()})
        agree(torch.from_numpy(maps), small(images.float()))

    def draw() -> None:
        few = min(len(found["circuit"]), MOST_KERNELS)
        circuit = cc.prune(found["scores"], kernels=few)
        drawn = cc.diagram(model, circuit, images=images, held_out=images)
        report = cc.evaluate(model, circuit, images)
        counted = drawn.document.variants[0]
        if (counted.effective, counted.filters) != (report.effective_kernels, report.effective_filters):
            raise cc.ConvCircuitsError(
                f"the diagram counts {counted.effective} kernels of {counted.filters} filters, evaluate "
                f"{report.effective_kernels} of {report.effective_filters}"
            )
        figure.svg(drawn.document)

    steps = {"score": score, "evaluate": lambda: cc.evaluate(model, found["circuit"], images), "extract": extract}
    if exporter():
        steps["ONNX"] = export
    steps["diagram"] = draw
    needs = {"diagram": ["score"]}  # earlier steps that a step needs; the others need all of them
    cells: dict[str, str] = {}
    for column, step in steps.items():
        before = [cells[name] for name in needs.get(column, cells)]
        cells[column] = tried(step) if all(cell == "yes" for cell in before) else "-"
    return [cells.get(column, "not tried") for column in COLUMNS]


def exporter() -> bool:
    """Return whether circuits can be exported to ONNX and run on this machine."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def table() -> list[str]:
    """Return the lines of the table, and those of the reasons below it."""
    reasons = []
    lines = ["| architecture | feature | " + " | ".join(COLUMNS) + " |", "| --- " * (2 + len(COLUMNS)) + "|"]
    for architecture in ARCHITECTURES.values():
        for layer, unit in architecture.features:
            cells = row(architecture, layer, unit)
            print(architecture.name, layer, *cells, flush=True)
            name, feature = f"`{architecture.name}`", f"`{layer}:{unit}`"
            said = [cell.split(": ", 1) for cell in cells]
            lines.append(f"| {name} | {feature} | " + " | ".join(word for word, *_ in said) + " |")
            told = zip(COLUMNS, said, strict=True)
            reasons += [f"- {name}, {feature}, {column}: {why[0]}" for column, (_, *why) in told if why]
    return [*lines, "", "The reasons for each *no*:", "", *reasons]


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "support.md")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = table()
    head = (
        "# Supported architectures\n\n`python benchmarks/support.py` writes this page by trying each architecture: it "
        "finds a circuit, evaluates it,\nextracts it and compares it with its masked run, exports it, and draws it. "
        "Weights are random.\n"
    )
    out.write_text("\n".join([head, *lines, GENERAL]))


if __name__ == "__main__":
    main()
