"""What the worker does about units: index them, visualise them, correlate them, divide their photographs."""

import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

import convcircuits as cc
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.circuit_tasks import kept
from convcircuits.explorer.index import Subjects, build
from convcircuits.explorer.project import Progress, Project
from convcircuits.explorer.store import hash_of
from convcircuits.files import named_after, safe_name, write_whole
from convcircuits.maps.correlations import correlations
from convcircuits.maps.feature_visualization import visualize
from convcircuits.maps.receptive_fields import receptive_fields
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.recipes import side
from convcircuits.values.report import without_nan
from convcircuits.zoo.prepared import Prepared

NEAREST = 12
"""Units with correlated maps that are kept of each unit, and as many with anticorrelated ones."""

_READERS = 4


def index(project: Project, progress: Progress) -> dict[str, Any]:
    """Look at all photographs, from where an earlier job stopped."""
    materials = project.materials
    folder = project.folder.folder / "index" / materials.key
    folder.mkdir(parents=True, exist_ok=True)
    phases: list[str] = []

    def report(phase: str, done: int, total: int | None) -> None:
        if phases[-1:] != [phase]:
            phases.append(phase)
            progress.phase(phase)
        progress(done, total)

    of = Subjects(
        project.loaded.model,
        materials.convolutions,
        [*materials.photographs.values()],
        project.loaded.preprocess,
        side(materials.opening.size),
    )
    found = build(
        folder,
        materials.key,
        of,
        known=project.tallies,
        batch_size=project.batch_size,
        progress=report,
        saved=progress.saved,
        remark=progress.remark,
    )
    return {"images": found["images"], "layers": len(found["layers"])}


def visualise(project: Project, progress: Progress, *, layer: str, unit: int, steps: int) -> dict[str, Any]:
    """Find the picture that drives a unit most."""
    progress.phase("opening the unit")
    shape = (project.loaded.channels, *(side(project.materials.opening.size) or project.loaded.size))
    subject = Subject.open(Network(project.loaded.model), cc.Feature(layer, unit), shape)
    fields = receptive_fields(subject, [None], local=True)
    progress.phase("climbing from noise")
    found = visualize(
        subject,
        fields,
        primaries=project.loaded.primaries(),
        steps=steps,
        batch_size=project.batch_size,
        progress=progress,
    )[None]
    name, basis, folder = f"{layer}:{unit}", project.materials.basis, project.folder
    if found is not None:
        content = io.BytesIO()
        Image.fromarray(found.pixels.numpy()).save(content, "png")
        write_whole(folder.derived("features", name, basis, ".png"), content.getvalue())
    values = {"value": None if found is None else found.value, "start": None if found is None else found.start}
    folder.write_record("features", name, basis, {**values, "steps": steps})
    return {"layer": layer, "unit": unit}


def neighbours(project: Project, progress: Progress, *, layer: str) -> dict[str, Any]:
    """Correlate the maps of all units of a layer."""
    images = _prepared(project)
    progress.phase("correlating maps")
    found = correlations(project.loaded.model, layer, images, batch_size=project.batch_size, progress=progress)
    units = len(found)
    others = found.masked_fill(torch.eye(units, dtype=torch.bool), torch.nan)
    record = {
        "images": len(images.photographs),
        "positions": math.prod(project.materials.known[layer].map),
        "highest": [_ranked(row, 1) for row in others],
        "lowest": [_ranked(row, -1) for row in others],
    }
    project.folder.write_record("neighbours", layer, project.materials.basis, record)
    return {"layer": layer}


def _ranked(row: torch.Tensor, sign: int) -> list[tuple[int, float]]:
    """Return the units with the highest or the lowest correlations; without those of the other sign."""
    known = (sign * row > 0).nonzero()[:, 0]
    order = known[(-sign * row[known]).argsort(stable=True)][:NEAREST]
    return [(int(n), round(float(row[n]), 6)) for n in order]


def _prepared(project: Project) -> Prepared:
    """Return every photograph as one image, as the index sees them."""
    materials = project.materials
    return Prepared(
        [*materials.photographs.values()],
        project.loaded.preprocess,
        size=side(materials.opening.size),
        batch_size=project.batch_size,
        threads=_READERS,
    )


def trajectory(
    project: Project, progress: Progress, *, layer: str, unit: int, method: Any, split: str | None, seed: int
) -> dict[str, Any]:
    """Place photographs layer by layer by how a unit is computed on them, colored by a division of them if given."""
    images, feature = _prepared(project), cc.Feature(layer, unit, position="max")
    common: dict[str, Any] = {"batch_size": project.batch_size, "progress": progress, "seed": seed}
    progress.phase("looking at photographs")
    seen = cc.top(project.loaded.model, feature, images, count=len(project.materials.photographs), sample=0, **common)
    ids = [project.materials.ids[photograph.name] for photograph in images.photographs]
    groups = None if split is None else _groups(project, split, ids)
    progress.phase("following kernels")
    found = cc.trajectory(project.loaded.model, feature, images, method=method, groups=groups, **common)
    boxes = dict(zip(seen.highest.image[0].tolist(), seen.highest.box[0].tolist(), strict=True))
    said = without_nan(found.as_dict())
    placed = said.pop("image")
    record = {
        **said,
        "photos": [ids[n] for n in placed],
        "names": [images.photographs[n].name for n in placed],
        "boxes": [boxes[n] for n in placed],
        "asked": {"method": method, "split": split, "seed": seed},
    }
    project.folder.write_record("trajectories", f"{layer}:{unit}", project.materials.basis, record)
    return {"layer": layer, "unit": unit}


def _groups(project: Project, split: str, ids: Sequence[str]) -> list[str | None]:
    """Return the group of each photograph in a division; None for those that are in none.

    Raises:
        ConvCircuitsError: If there is no such division.
    """
    known = [content for _, content in project.folder.splits() if content.get("id") == split]
    if not known:
        raise ConvCircuitsError(f"There is no division {split} in the project any more.")
    of = {one["photo"]: name for name, some in known[0]["photographs"].items() for one in some}
    return [of.get(id) or None for id in ids]


def split(
    project: Project,
    progress: Progress,
    *,
    feature: str,
    groups: int | None,
    held_out: float,
    alpha: float,
    densities: Sequence[float],
    refit: Any,
    shuffles: int,
    seed: int,
) -> dict[str, Any]:
    """Divide the photographs of a unit by how it is computed on them, and keep the circuits of the groups."""
    begun, loaded, images = time.monotonic(), project.loaded, _prepared(project)
    unit = loaded.feature(feature)
    assert isinstance(unit.unit, int)  # the server has asked
    options: dict[str, Any] = {"groups": groups, "held_out": held_out, "alpha": alpha, "densities": list(densities)}
    options |= {"refit": refit, "shuffles": shuffles, "seed": seed}
    progress.phase("looking at photographs")
    for _ in images:  # which of them can be read
        progress(len(images.numbers), images.total_images)
    subjects = [photograph.subject for photograph in images.photographs]
    found = cc.split(
        loaded.model,
        unit,
        images,
        photographs=subjects,
        subjects=len(set(subjects)) < len(subjects),
        batch_size=project.batch_size,
        progress=progress,
        **options,
    )
    basis = project.materials.basis
    id = hash_of([str(unit), options, basis])[:16]
    ids = [project.materials.ids[photograph.name] for photograph in images.photographs]
    circuits = {name: _kept_circuits(project, found, name, id, images) for name in found.circuits}
    record = {
        "id": id,
        "basis": basis,
        "made": time.time(),
        "feature": found.feature,
        "layer": unit.layer,
        "unit": unit.unit,
        "images": len(ids),
        "groups": [
            {
                "name": name,
                "images": len(found.images(name)),
                "held_out": len(found.images(name, held_out=True)),
                "circuits": some,
            }
            for name, some in circuits.items()
        ],
        "verdict": found.verdict_sentence,
        "asked": groups,
        "photographs": _photographs(project, found, images, ids),
        "cross": [] if found.cross is None else _crossings(found.cross),
        "selectivity": [] if found.cross is None else _selectivity(found.cross),
        "chosen": None if found.cross is None else found.cross.chosen,
        "notes": list(dict.fromkeys([*found.notes, *(found.cross.notes if found.cross is not None else ())])),
        "seconds": round(time.monotonic() - begun, 1),
    }
    project.folder.write_json(project.folder.folder / "splits" / f"{id}.json", record)
    return {"split": id, "circuits": [one for some in circuits.values() for one in some]}


def _kept_circuits(project: Project, found: cc.Split, name: str, id: str, images: Prepared) -> list[str]:
    """Write the circuits of a group, with the photographs that they were found on and those that were held out."""
    roles = {
        "found_on": [n for n in found.images(name).tolist() if found.found_on[n]],
        "validated_on": [],
        "held_out": found.images(name, held_out=True).tolist(),
    }
    by_name = {role: [images.photographs[n].name for n in some] for role, some in roles.items()}
    written = []
    for circuit in found.circuits[name]:
        own = project.recorded_as_whole(circuit, by_name, name)
        own = replace(own, provenance={**own.provenance, "split": id})
        slug = named_after(project.loaded.name, circuit.feature.slug)
        written.append(kept(project, own, f"{slug}-group-{safe_name(name)}-{len(circuit)}"))
    return written


def _photographs(
    project: Project, found: cc.Split, images: Prepared, ids: Sequence[str]
) -> Mapping[str, list[dict[str, Any]]]:
    """Return the photographs of each group, with what the unit sees at its maximum."""
    layer = cc.Feature.parse(found.feature).layer
    width = (project.materials.known[layer].map or (1, 1))[-1]
    box = project.box(layer)
    names = [*found.circuits, ""]
    rest = (found.labels < 0).nonzero()[:, 0]
    order = [*(found.images(name) for name in found.circuits), rest[found.response[rest].argsort(descending=True)]]
    return {
        name: [
            {
                "photo": ids[n],
                "name": images.photographs[n].name,
                "held_out": bool(found.held_out[n]),
                "confidence": float(found.confidence[n]),
                "value": float(found.response[n]),
                "position": list(divmod(int(found.position[n]), width)),
                "box": None if box is None else box(*divmod(int(found.position[n]), width)),
            }
            for n in some.tolist()
        ]
        for name, some in zip(names, order, strict=True)
    }


def _crossings(cross: cc.Cross) -> list[dict[str, Any]]:
    return [
        without_nan(
            {
                **{name: getattr(row, name) for name in ("circuit", "group", "size", "density", "kernels")},
                "images": cross.groups[row.group],
                **{name: getattr(row, name) for name in ("error", "kept", "r2", "r2_max")},
            }
        )
        for row in cross.rows
    ]


def _selectivity(cross: cc.Cross) -> list[dict[str, Any]]:
    fields = ("size", "density", "own", "others", "value", "low", "high")
    return [
        without_nan({name: getattr(one, name) for name in fields})
        | {"shuffled": without_nan(list(one.shuffled)), "verdict": one.verdict}
        for one in cross.selectivity
    ]
