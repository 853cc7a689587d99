"""What the commands' options come to: a model, photographs, a circuit with the model it belongs to."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import convcircuits as cc
from convcircuits.files import check_place, is_folder
from convcircuits.images import Crops, Photograph, crops, distinct, photographs, readable, split_photographs
from convcircuits.models import LoadedModel, is_plain_name, load_model
from convcircuits.origins import Recipe
from convcircuits.texts import printable

PICTURED = 120
"""Crops that a diagram's pictures are taken from: more than a circuit needs, for they are looked at."""
KEPT = 2**27
"""Bytes of crops that are kept in memory; more are cut anew, batch by batch, in each pass."""


@dataclass(frozen=True)
class Setup:
    """A model and the two sets of images.

    Attributes:
        loaded: The model.
        train: Crops that the circuit is found on; none where all photographs are held out.
        held_out: Crops that it is measured on.
        train_names: Photographs of the first.
        held_out_names: Photographs of the second.
        unreadable: Files that were left out, as they are no pictures or could not be read.
        copies: Photographs that were left out, as they are copies of others or of those that the circuit was found on.
        photographs: Those that the circuit was found on (where there are none, those that are held out), all of them.
        pictured: Makes more crops of these, for pictures: number i of photograph i modulo their count.
        no_baseline: Why there are no crops that the circuit was found on; empty where there are some.
    """

    loaded: LoadedModel
    train: torch.Tensor | Crops
    held_out: torch.Tensor | Crops
    train_names: list[str]
    held_out_names: list[str]
    unreadable: list[str]
    copies: list[str]
    photographs: list[str]
    pictured: Callable[[], torch.Tensor | Crops]
    no_baseline: str = ""


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
    copies: list[str] = []
    if by_name is None:
        train, rest = split_photographs(pictures, held_out=held_out, seed=seed)
        copies = _others(pictures, [*train, *rest])
    else:  # as they were split before, whatever has come to the folder since
        train, rest = (_named(pictures, by_name[role], source) for role in ("found_on", "held_out"))
    cut = _Cutter(loaded, size, unreadable)
    train_crops, train_names = cut(train, seed, count)
    held_out_crops, held_out_names = cut(rest, seed + 1, count)
    if by_name is not None and cut.failed:
        raise _gone(source, cut.failed)
    return Setup(
        loaded,
        train_crops,
        held_out_crops,
        train_names,
        held_out_names,
        unreadable,
        copies,
        [p.name for p in train if p.name not in cut.failed],
        lambda: cut(train, seed, max(count, PICTURED))[0],
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
    recipe, by_name = recipe_of(circuit), circuit.provenance.get("photographs")
    seed = 0 if recipe is None else recipe.seed
    count = count or (24 if recipe is None else recipe.count)
    size = size or (None if recipe is None else recipe.size)
    if source is None:
        if recipe is None or by_name is None:
            raise cc.ConvCircuitsError(f"{file} does not say which photographs were held out; give --images.")
        return set_up(spec, weights, recipe.images, count, size, recipe.held_out, seed, device, by_name=by_name)
    loaded = loaded_model(spec, weights, device)
    pictures, unreadable = photographs(source)
    cut = _Cutter(loaded, size, unreadable)
    old, train, train_names, no_baseline = _found_on(circuit, cut)
    others = [p for p in pictures if p.name not in (by_name or {}).get("found_on", [])]
    fresh = distinct(others, apart_from=old)
    if not fresh:
        raise cc.ConvCircuitsError(f"The circuit was found on every photograph of {source}; give others.")
    held_out, held_out_names = cut(fresh, seed + 1, count)
    return Setup(
        loaded,
        train,
        held_out,
        train_names,
        held_out_names,
        unreadable,
        _others(others, fresh),
        [p.name for p in fresh if p.name not in cut.failed],
        lambda: cut(fresh, seed + 1, max(count, PICTURED))[0],
        no_baseline,
    )


def _found_on(circuit: cc.Circuit, cut: "_Cutter") -> tuple[list[Photograph], torch.Tensor | Crops, list[str], str]:
    """Return the photographs that a circuit was found on, crops of them, and the names of those that are cut.

    Where they are not to be had any more, there are none, and the last value says why.
    """
    recipe, by_name = recipe_of(circuit), circuit.provenance.get("photographs")
    if recipe is None or by_name is None:
        return [], torch.empty(0), [], "The file does not say which photographs the circuit was found on."
    try:
        old = _named(photographs(recipe.images)[0], by_name["found_on"], recipe.images)
        return old, *cut(old, recipe.seed, recipe.count), ""
    except cc.ConvCircuitsError:
        gone = f"The photographs of {recipe.images} that the circuit was found on are not all there any more."
        return [], torch.empty(0), [], gone


def _others(photographs: list[Photograph], kept: list[Photograph]) -> list[str]:
    names = {photograph.name for photograph in kept}
    return [photograph.name for photograph in photographs if photograph.name not in names]


class _Cutter:
    """Cuts photographs into crops for a model, and notes the files that turn out not to be readable."""

    def __init__(self, loaded: LoadedModel, size: int | None, unreadable: list[str]) -> None:
        self._loaded, self._size, self._unreadable = loaded, side(size), unreadable
        self.failed: list[str] = []

    def __call__(self, some: list[Photograph], seed: int, count: int) -> tuple[torch.Tensor | Crops, list[str]]:
        """Return crops, in one tensor where they are few, and the names of the photographs that they are cut from."""
        good, bad = readable(some, count)
        for name in bad:
            if name not in self._unreadable:
                self._unreadable.append(name)
        self.failed += bad
        height, width = self._size or self._loaded.size
        few = 4 * self._loaded.channels * height * width * count <= KEPT
        images = (crops if few else Crops)(good, self._loaded.preprocess, count=count, seed=seed, size=self._size)
        return images, [photograph.name for photograph in good]


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
    """Tell the model and weights that a circuit belongs to: those given, or else those that its file names.

    Raises:
        ConvCircuitsError: If there is none, or the file names code: that only runs where it is asked for.
    """
    recipe = recipe_of(circuit)
    if model is None and recipe is None:
        raise cc.ConvCircuitsError(f"{file} does not say which model it belongs to; give --model.")
    if model is None and recipe is not None and not is_plain_name(recipe.model):
        raise cc.ConvCircuitsError(
            f"{file} belongs to a model that code of its own makes, and code that a file names is not run unasked. "
            f"If it is yours or you trust it, add: --model {shlex.quote(recipe.model)}"
        )
    if weights is None and recipe is not None and recipe.weights is not None and model in (None, recipe.model):
        weights = Path(recipe.weights)
    return model or recipe.model, weights  # type: ignore[union-attr]


def recipe_of(circuit: cc.Circuit | cc.Scores) -> Recipe | None:
    """Return what the command was told when it made a circuit, if it did."""
    said = circuit.provenance.get("recipe")
    return None if said is None else Recipe.from_json(said)


def side(size: int | None) -> tuple[int, int] | None:
    """Make (H, W) of the side of a square, if there is one."""
    return None if size is None else (size, size)


def check_writable(option: str, path: Path | None, suffix: str) -> None:
    """Refuse a path of another suffix, or that cannot be written, before work is done."""
    if path is None:
        return
    if path.suffix != suffix:
        raise cc.ConvCircuitsError(f"{option} {path} should end in {suffix}.")
    if not is_folder(path.parent):
        raise cc.ConvCircuitsError(f"There is no folder {path.parent} to write {path.name} to.")
    check_place(path)


def names(of: list[str]) -> str:
    """List names, the first twelve of many."""
    return ", ".join(map(printable, of[:12])) + (f" and {len(of) - 12} more" if len(of) > 12 else "")


def _named(pictures: list[Photograph], wanted: list[str], source: str) -> list[Photograph]:
    found = {picture.name: picture for picture in pictures}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise _gone(source, missing)
    return [found[name] for name in wanted]


def _gone(source: str, missing: list[str]) -> cc.ConvCircuitsError:
    return cc.ConvCircuitsError(
        f"{source} no longer holds {names(missing)}, which the circuit was found or measured on; "
        "give --images with photographs to measure it on."
    )
