"""What the worker does about circuits: find, measure, draw, compare, extract, take apart. Figures are the library's."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import convcircuits as cc
from convcircuits.circuits.asking import is_descent
from convcircuits.circuits.comparison import circuits_at
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.circuits.replacing import replaced
from convcircuits.circuits.responses import responses
from convcircuits.compiler.costs import costs
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.project import Again, Progress, Project
from convcircuits.explorer.store import curve_key
from convcircuits.files import named_after, write_whole
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.recipes import Setup, criterion_options, follow, noted, refitted, search_of, set_up, side
from convcircuits.texts import names
from convcircuits.values.recipe import SIZES, Recipe
from convcircuits.values.report import Evaluation, without_nan


def find(
    project: Project,
    progress: Progress,
    *,
    feature: str,
    options: list[str],
    photographs: list[str] | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Find a circuit as the command does, and measure it on held-out photographs.

    With ``photographs``, ids, it is found on some of these and measured on the others of them, each as a whole.
    """
    begun, loaded = time.monotonic(), project.loaded
    recipe = project.recipe(feature=feature, options=tuple(options), **given)
    parsed = loaded.feature(recipe.feature)
    recipe = replace(recipe, feature=str(parsed))
    progress.phase("cutting photographs")
    pictures = list(project.materials.pictures)
    if photographs is not None:
        pictures = [project.materials.photographs[id] for id in photographs]
    setup = set_up(recipe, loaded, pictures, list(project.materials.left_out), whole=photographs is not None)
    progress.phase(f"finding a circuit with {recipe.criterion}")
    chosen = criterion_options(options, files=False)
    circuits, reached = follow(recipe, parsed, setup, chosen, batch_size=project.batch_size, progress=progress)
    if photographs is None:
        circuit = project.recorded(circuits[-1], recipe, setup)
    else:
        circuit = project.recorded_as_whole(circuits[-1], setup.by_name, f"of {len(photographs)} photographs")
        circuit = replace(circuit, provenance={**circuit.provenance, "search": recipe.to_json()})
    name = f"{named_after(loaded.name, parsed.slug)}-{recipe.criterion}-{len(circuit)}"
    circuit = noted(circuit, setup.notes)
    id = kept(project, circuit, name)  # now, so that it is not lost if it cannot be measured
    report = _measured(project, progress, circuit, setup)
    project.write_report(id, report, circuit, setup.by_name, setup, time.monotonic() - begun, **reached)
    return {"circuit": id}


def kept(project: Project, circuit: cc.Circuit, name: str) -> str:
    """Write a circuit to the folder, unless it is there already, found by the command or otherwise. Return its id."""
    known = {one.id for one in project.folder.circuits()}
    file = cc.save(circuit, project.folder.place_for(name))
    id = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    if id in known:
        file.unlink()
    return id


def evaluate(project: Project, progress: Progress, *, circuit: str) -> dict[str, Any]:
    """Measure a circuit on its held-out photographs."""
    begun = time.monotonic()
    again = project.again(circuit, progress)
    report = _measured(project, progress, again.circuit, again.setup)
    # As the circuit says: the set-up does not cut again those that its size or constants were chosen on.
    by_name = {**again.circuit.provenance["photographs"], "held_out": again.setup.held_out.names}
    project.write_report(again.file.id, report, again.circuit, by_name, again.setup, time.monotonic() - begun)
    return {"circuit": circuit}


def _measured(project: Project, progress: Progress, circuit: cc.Circuit, setup: Setup) -> Evaluation:
    progress.phase("measuring on held-out photographs")
    return cc.evaluate(
        project.loaded.model,
        circuit,
        setup.held_out.images,
        fit=setup.fit,
        batch_size=project.batch_size,
        progress=progress,
    )


def diagram(project: Project, progress: Progress, *, circuit: str, controls: bool) -> dict[str, Any]:
    """Draw a circuit."""
    again = project.again(circuit, progress)
    file = project.folder.diagram_file(again.file.id, project.materials.basis, controls=controls)
    write_whole(file, _drawn(project, progress, again, controls=controls))
    return {"circuit": circuit}


def compare(project: Project, progress: Progress, *, a: str, b: str) -> dict[str, Any]:
    """Draw two circuits of one feature beside each other, measured on photographs that neither was found on."""
    again, other = project.again(a, progress), project.again(b, progress)
    ids, by_name = project.materials.ids, other.circuit.provenance["photographs"]
    used = {ids.get(name) for role, some in by_name.items() if role != "held_out" for name in some}
    seen = [name for name in again.setup.held_out.names if ids.get(name) in used]
    if seen:
        raise ConvCircuitsError(
            f"{names(seen)} were held out from {again.file.name}, but {other.file.name} was found on them; compare "
            "circuits that were found with the same seed and held-out share."
        )
    file = project.folder.derived("comparisons", f"{a}-{b}", project.materials.basis)
    write_whole(file, _drawn(project, progress, again, against=other.circuit, controls=False))
    return {"a": a, "b": b}


def _drawn(project: Project, progress: Progress, again: Again, **how: Any) -> bytes:
    progress.phase("drawing")
    drawn = cc.diagram(
        project.loaded.model,
        again.circuit,
        images=again.setup.pictured(),
        held_out=again.setup.held_out.images,
        photographs=again.setup.held_out.photographs,
        fit=again.setup.fit,
        feature_picture=False,  # the page shows the unit's own
        primaries=project.loaded.primaries(),
        batch_size=project.batch_size,
        progress=progress,
        **how,
    )
    return drawn.document.to_json().encode()


def sweep(project: Project, progress: Progress, *, circuit: str, densities: Sequence[float]) -> dict[str, Any]:
    """Measure the density curve of a circuit's recipe, and keep its circuits.

    Its result names those that the job ``find`` would find, too: so nobody need wait for them again.
    """
    begun, again = time.monotonic(), project.again(circuit, progress)
    recipe, key = search_of(again.circuit), curve_key(again.circuit.provenance)
    if recipe is None or key is None:
        raise ConvCircuitsError(f"{again.file.name} does not say how it was found, so it has no density curve.")
    if recipe.granularity != "kernel":
        raise ConvCircuitsError(
            f"A density curve is of circuits of kernels; this recipe finds {recipe.granularity}s. Find a circuit of "
            "kernels of this unit, and measure its curve."
        )
    shares = sorted({*densities}, reverse=True)
    progress.phase(f"finding {len(shares)} circuits with {recipe.criterion}")
    found = circuits_at(
        project.loaded.model,
        again.circuit.feature,
        again.setup.train.images,
        shares,
        criterion=recipe.criterion,
        batch_size=project.batch_size,
        seed=recipe.seed,
        progress=progress,
        **criterion_options(recipe.options, files=False),
    )
    found = [refitted(one, recipe, again.setup, batch_size=project.batch_size, progress=progress) for one in found]
    progress.phase("measuring on held-out photographs")
    reports = evaluate_all(
        project.loaded.model,
        found,
        again.setup.held_out.images,
        fit=again.setup.fit,
        batch_size=project.batch_size,
        progress=progress,
    )
    kept_as, alone = [], _as_found(project, recipe, again)
    for share, one, report in zip(shares, found, reports, strict=True):
        own = _of_curve(again, one, replace(_unsized(recipe), density=share), alone or again.setup)
        id = kept(project, own, f"{named_after(project.loaded.name, own.feature.slug)}-{recipe.criterion}-{len(own)}")
        by_name = own.provenance["photographs"]
        project.write_report(id, report, own, by_name, again.setup, time.monotonic() - begun)
        kept_as.append(id)
    first = reports[0].as_dict()
    record = {
        "criterion": recipe.criterion,
        "images": first["images"],
        "photographs": len(again.setup.held_out.names),
        **{name: first[name] for name in ("r2_average_map", "r2_average_map_interior")},
        "points": [_point(*point) for point in zip(shares, kept_as, reports, strict=True)],
        "note": _differs(recipe),
        "seconds": round(time.monotonic() - begun, 1),
    }
    project.folder.write_record("curves", key, project.materials.basis, record)
    found_alone = alone is not None and not is_descent(CRITERIA[recipe.criterion])
    return {"circuit": circuit, "circuits": kept_as, "found_alone": found_alone}


def _unsized(recipe: Recipe) -> Recipe:
    """Return a recipe without a size. A curve's circuits count all kernels."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(Recipe) if field.name in SIZES}
    return replace(recipe, **defaults, effective_kernels=False)


def _as_found(project: Project, recipe: Recipe, again: Again) -> Setup | None:
    """Return the photographs that the job ``find`` cuts for a recipe of any density, if they are those of a circuit.

    None: it would find other circuits, as the recipe's photographs or options are not those that are open.
    """
    given = ("feature", "criterion", "options", "refit", "granularity", "count", "held_out", "seed")
    asked = replace(_unsized(recipe), density=1.0)
    by_hand = "whole_photographs" in again.circuit.provenance
    if by_hand or project.recipe(density=1.0, **{name: getattr(asked, name) for name in given}) != asked:
        return None
    setup = set_up(asked, project.loaded, list(project.materials.pictures), list(project.materials.left_out))
    return setup if setup.by_name == again.circuit.provenance["photographs"] else None


def _of_curve(again: Again, circuit: cc.Circuit, recipe: Recipe, setup: Setup) -> cc.Circuit:
    """Record how a circuit of a curve was found: as the curve's own circuit, but for the size."""
    origin = again.circuit.provenance
    about = ("photographs", "photograph_hashes", "whole_photographs", "group", "boxes")
    how = "recipe" if "recipe" in origin else "search"
    said = {**circuit.provenance, how: recipe.to_json(), **{name: origin[name] for name in about if name in origin}}
    return noted(replace(circuit, provenance=said), setup.notes)


def _differs(recipe: Recipe) -> str:
    """Return what differs between the circuits of a curve and one that is found at one density, or an empty text."""
    notes = []
    if recipe.refit != "none":
        notes.append(f"The constants of each size are fitted on its own ({recipe.refit}), as the recipe says.")
    if is_descent(CRITERIA[recipe.criterion]):
        notes.append("One descent passes through all densities, so a circuit may differ from one that is found alone.")
    if recipe.effective_kernels:
        notes.append(
            "The recipe counts effective kernels alone; the curve's densities are of all kernels, of which some may be "
            "on no complete path."
        )
    return " ".join(notes)


def _point(density: float, circuit: str, report: Evaluation) -> dict[str, Any]:
    figures = report.as_dict()
    shown = ("kernels", "effective_kernels", "constants", "r2", "r2_interior", "r2_rectified", "r2_random")
    return {
        "density": density,
        "circuit": circuit,
        **{name: figures[name] for name in (*shown, "r2_random_interior", "verdict")},
    }


def extract(project: Project, progress: Progress, *, circuit: str) -> dict[str, Any]:
    """Turn a circuit into a module of its own, and record what it costs."""
    again, loaded = project.again(circuit, progress), project.loaded
    recipe = search_of(again.circuit)
    size = project.materials.opening.size if recipe is None else recipe.size
    shape = (loaded.channels, *(side(size) or loaded.size))
    progress.phase("extracting")
    module = cc.extract(loaded.model, again.circuit, input_shape=shape, progress=progress)
    progress.phase("timing")
    found = costs(loaded.model, again.circuit, module, shape, batch_size=1, repeats=1, progress=progress)
    basis = project.materials.basis
    file = cc.save(module, project.folder.derived("modules", circuit, basis, ".safetensors"))
    record = {
        "bytes": file.stat().st_size,
        "difference": found.difference,
        "parameters": found.module.parameters,
        "macs": found.module.macs,
        "full_parameters": found.full.parameters,
        "full_macs": found.full.macs,
    }
    project.folder.write_record("modules", circuit, basis, without_nan(record))
    return {"circuit": circuit}


def ablate(
    project: Project, progress: Progress, *, circuit: str, layer: str, filter: int, input: int | None
) -> dict[str, Any]:
    """Measure a circuit without one filter or one kernel, beside the whole of it."""
    again = project.again(circuit, progress)
    without = again.circuit.without(layer, filter, input)
    progress.phase("measuring on held-out photographs")
    both = [again.circuit, without]
    images = again.setup.held_out.images
    common: dict[str, Any] = {"batch_size": project.batch_size, "progress": progress}
    reports = evaluate_all(project.loaded.model, both, images, controls=[None, None], readout=False, **common)
    progress.phase("measuring how much of the response is left")
    network = Network(project.loaded.model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=project.batch_size)
    shape = batches.first_shape()
    subject = Subject.open(network, again.circuit.feature, shape)
    full, *shares = responses(subject, [subject.masks(one, shape, effective=True) for one in both], batches).maximum
    before, after = (
        {name: figures[name] for name in ("kernels", "effective_kernels", "r2", "r2_interior", "r2_rectified")}
        | {"kept": float(share.sum() / full.sum()) if float(full.sum()) > 0 else None}
        for figures, share in zip((one.as_dict() for one in reports), shares, strict=True)
    )
    about = {"circuit": circuit, "layer": layer, "filter": filter, "input": input}
    return {**about, "images": reports[0].images, "before": before, "after": after}


def put_back(project: Project, progress: Progress, *, circuit: str) -> dict[str, Any]:
    """Run the whole model with the circuit's map in place of the unit's."""
    again = project.again(circuit, progress)
    progress.phase("running the model with the circuit's map")
    if again.setup.fit is None:
        raise ConvCircuitsError(
            f"{again.file.name} was found on none of these photographs, so there is no average map."
        )
    found = replaced(
        project.loaded.model,
        again.circuit,
        again.setup.held_out.images,
        fit=again.setup.fit,
        batch_size=project.batch_size,
        progress=progress,
    )
    return {"circuit": circuit, **without_nan(asdict(found))}
