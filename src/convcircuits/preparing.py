"""What the commands' options come to: a model, photographs, a circuit with the model it belongs to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import convcircuits as cc
from convcircuits.images import Photograph, crops, photographs, split_photographs
from convcircuits.models import LoadedModel, load_model

PICTURED = 120
"""Crops that a diagram's pictures are taken from: more than a circuit needs, for they are looked at."""


@dataclass(frozen=True)
class Setup:
    """A model and the two sets of images.

    Attributes:
        loaded: The model.
        train: Crops that the circuit is found on; none where all photographs are held out.
        held_out: Crops that it is measured on.
        train_names: Photographs of the first.
        held_out_names: Photographs of the second.
        unreadable: Files that could not be read.
        photographs: Those that the circuit was found on (where there are none, those that are held out), all of them.
        pictured: Makes more crops of these, for pictures: number i of photograph i modulo their count.
    """

    loaded: LoadedModel
    train: torch.Tensor
    held_out: torch.Tensor
    train_names: list[str]
    held_out_names: list[str]
    unreadable: list[str]
    photographs: list[str]
    pictured: Callable[[], torch.Tensor]


def set_up(
    spec: str,
    weights: Path | None,
    source: str,
    count: int,
    size: int | None,
    held_out: float,
    seed: int,
    device: str,
    by_name: Mapping[str, list[str]] | None = None,
) -> Setup:
    """Load a model, and crops of training and of held-out photographs; split anew, or by name as they were before."""
    loaded = loaded_model(spec, weights, device)
    pictures, unreadable = photographs(source)
    if by_name is None:
        train, rest = split_photographs(pictures, held_out=held_out, seed=seed)
    else:  # as they were split before, whatever has come to the folder since
        train, rest = (_named(pictures, by_name[role], source) for role in ("found_on", "held_out"))

    def prepared(some: list[Photograph], seed: int, count: int = count) -> torch.Tensor:
        return crops(some, loaded.preprocess, count=count, seed=seed, size=side(size))

    return Setup(
        loaded,
        prepared(train, seed),
        prepared(rest, seed + 1),
        [p.name for p in train][:count],
        [p.name for p in rest][:count],
        unreadable,
        [p.name for p in train],
        lambda: prepared(train, seed, max(count, PICTURED)),
    )


def set_up_again(
    file: Path,
    circuit: cc.Circuit,
    model: str | None,
    weights: Path | None,
    source: str | None,
    count: int | None,
    size: int | None,
    device: str,
) -> Setup:
    """Load the model of a circuit's file, and its photographs, split as before; of another folder all are held out."""
    spec, weights = model_named_in(file, circuit, model, weights)
    recipe = circuit.provenance.get("recipe") or {}
    size, count, seed = size or recipe.get("size"), count or recipe.get("count", 24), int(recipe.get("seed", 0))
    by_name = circuit.provenance.get("photographs", {})
    if source is None:
        if "images" not in recipe:
            raise cc.ConvCircuitsError(f"{file} does not say which photographs were held out; give --images.")
        return set_up(spec, weights, recipe["images"], count, size, recipe["held_out"], seed, device, by_name=by_name)
    loaded = loaded_model(spec, weights, device)
    pictures, unreadable = photographs(source)
    fresh = [p for p in pictures if p.name not in by_name.get("found_on", [])]
    if not fresh:
        raise cc.ConvCircuitsError(f"The circuit was found on every photograph of {source}; give others.")

    def prepared(count: int) -> torch.Tensor:
        return crops(fresh, loaded.preprocess, count=count, seed=seed + 1, size=side(size))

    return Setup(
        loaded,
        torch.empty(0),
        prepared(count),
        [],
        [p.name for p in fresh][:count],
        unreadable,
        [p.name for p in fresh],
        lambda: prepared(max(count, PICTURED)),
    )


def loaded_model(spec: str, weights: Path | None, device: str) -> LoadedModel:
    """Load a model and move it to the device."""
    if device not in ("auto", "cpu", "cuda"):
        raise cc.ConvCircuitsError(f"--device is auto, cpu or cuda; got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise cc.ConvCircuitsError("--device cuda was given, but torch finds no CUDA device here; use --device cpu.")
    loaded = load_model(spec, weights=weights)
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        loaded.model.to("cuda")
    return loaded


def loaded_circuit(file: Path) -> cc.Circuit:
    """Load a file that has to hold a circuit."""
    value = cc.load(file)
    if isinstance(value, cc.Circuit):
        return value
    if isinstance(value, cc.Scores):
        raise cc.ConvCircuitsError(f"{file} holds scores, not a circuit; prune them first.")
    raise cc.ConvCircuitsError(f"{file} holds a module; give the file of the circuit that it was extracted from.")


def model_named_in(file: Path, circuit: cc.Circuit, model: str | None, weights: Path | None) -> tuple[str, Path | None]:
    """Tell the model and weights that a circuit belongs to: those given, or else those that its file names."""
    recipe = circuit.provenance.get("recipe") or {}
    spec = model or recipe.get("model")
    if spec is None:
        raise cc.ConvCircuitsError(f"{file} does not say which model it belongs to; give --model.")
    if weights is None and recipe.get("weights") and model is None:
        weights = Path(recipe["weights"])
    return spec, weights


def side(size: int | None) -> tuple[int, int] | None:
    """Make (H, W) of the side of a square, if there is one."""
    return None if size is None else (size, size)


def check_writable(option: str, path: Path | None, suffix: str) -> None:
    """Refuse a path of another suffix or without a folder before work is done."""
    if path is None:
        return
    if path.suffix != suffix:
        raise cc.ConvCircuitsError(f"{option} {path} should end in {suffix}.")
    if not path.parent.is_dir():
        raise cc.ConvCircuitsError(f"There is no folder {path.parent} to write {path.name} to.")


def names(of: list[str]) -> str:
    """List names, the first twelve of many."""
    return ", ".join(of[:12]) + (f" and {len(of) - 12} more" if len(of) > 12 else "")


def _named(pictures: list[Photograph], wanted: list[str], source: str) -> list[Photograph]:
    found = {picture.name: picture for picture in pictures}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise cc.ConvCircuitsError(
            f"{source} no longer holds {names(missing)}, which the circuit was found or measured on; "
            "give --images with photographs to measure it on."
        )
    return [found[name] for name in wanted]
