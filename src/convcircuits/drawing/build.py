"""Build a circuit's diagram: everything drawn, pictured and measured, as one document."""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convcircuits.circuits.control_circuits import descent_of, random_like
from convcircuits.circuits.controls import controls as measure_controls
from convcircuits.circuits.criteria import CRITERIA, DESCENTS
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.circuits.sizes import found_on
from convcircuits.drawing import data, figure
from convcircuits.drawing.edges import edges_of
from convcircuits.drawing.graph import kernels_of
from convcircuits.drawing.host import Diagram
from convcircuits.drawing.labelling import check_labels, labelled
from convcircuits.drawing.pictures import LABELS, TILE, Seen, pictured
from convcircuits.drawing.selectable import Listed, selectable
from convcircuits.drawing.sheet import (
    Drawing,
    aliases_of,
    columns_of,
    lay_out,
    layers_of,
    model_of,
    nodes_of,
    variants_of,
)
from convcircuits.errors import ConvCircuitsError
from convcircuits.files import named_after
from convcircuits.maps.colors import primaries_of
from convcircuits.network.batches import Batches, Images, Progress, begin, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked, sentence
from convcircuits.network.surroundings import outside_autocast
from convcircuits.texts import sentences
from convcircuits.values.circuit import Circuit
from convcircuits.values.controls import RIVALS, STRICTEST, Controls
from convcircuits.values.feature import Feature
from convcircuits.values.granularity import elements_with
from convcircuits.values.report import Evaluation
from convcircuits.values.tables import LayerTable, count_kept
from convcircuits.version import __version__
from convcircuits.zoo.images import Crops

MOST_IMAGES = 1000
"""Maximum number of images that patches are taken from."""

WIDEST = 8
"""Circuits of a path are offered if they keep at most this many times as many kernels as the one that is drawn."""

ROLES = {
    "circuit": "the circuit",
    "against": "the other circuit",
    "control": "a random circuit of equal size",
    "level": "the circuit found anew with {:,} {}s",
    "step": "the circuit of the same descent with {:,} {}s",
}
"""Names of a diagram's circuits, to be formatted with the number and kind of elements that they keep."""


@outside_autocast
def diagram(
    model: nn.Module,
    circuit: Circuit,
    *,
    images: Images | None = None,
    held_out: Images | None = None,
    fit: Images | None = None,
    against: Circuit | None = None,
    path: Sequence[Circuit] = (),
    controls: Controls | bool = True,
    title: str | None = None,
    pictures: str = "patches",
    feature_picture: bool = True,
    primaries: Tensor | None = None,
    names: Sequence[str] | None = None,
    photographs: Sequence[Hashable] | None = None,
    labels: Mapping[str, str] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagram:
    """Draw a circuit: filters as pictures in columns, kernels as edges between them.

    Images are optional: without them there are no pictures or measurements, and the caption says what was not measured.
    Edge widths and the density slider follow the circuit's saliency, which is measured anew inside a circuit with gains
    or offsets if ``images`` or ``fit`` are there; flow, by which the budget selects, is a display heuristic computed
    from it. A circuit that fits the budget in every layer is drawn whole. A random circuit with the same number of
    elements in each layer is included for comparison, refitted if the circuit was and the images are
    there. If an iterative criterion found the circuit and ``images`` begin with those it was found on, the slider
    instead offers circuits that the criterion finds again at a half, a quarter and an eighth of the size.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit, of any granularity; its kernels on complete paths are drawn.
        images: As for ``score``. The parts of them (of the first 1,000) that drive a filter most are its pictures; of
            ``Crops``, one of each photograph. Six images, from the one that drives the feature most to the one that
            drives it least, can be selected to show every map; with ``held_out``, three of them and three held-out
            ones. Their names say which were held out, and which are known to be used to find the circuit.
        held_out: Images to measure the whole circuit, its drawn part and the random circuit on; the average map of
            ``fit`` is measured on them too. The first 1,000 that are as large as ``images`` can be selected.
        fit: The images that the circuit was found on, as for ``evaluate``; a fitted circuit's random one is refitted on
            them. If not given, the first of ``images`` if these begin with them. Without them no average map is
            measured, and the caption says so.
        against: A second circuit of the same feature to compare with.
        path: Other circuits of the descent that found it, as ``find_path`` returns them. The slider offers those of at
            most eight times as many kernels, and each is measured; beside those of a descent that trains there is no
            random circuit, as each would be trained for minutes, too.
        controls: What ``cc.controls`` says of the circuit on ``held_out``. If True, it is asked when the circuit has
            gains or offsets and both ``held_out`` and the images that it was found on are there, with one draw of each
            control; that takes about as long as fitting the circuit four times. If False, the caption says that no
            controls were fitted.
        title: Title of the diagram; names the feature and the model if not given.
        pictures: ``"patches"``, or ``"features"`` to add feature visualizations of the drawn filters inside the
            circuit, which takes minutes.
        feature_picture: Whether to show a picture that is optimized to drive the feature most in the full model. It
            takes seconds, and is made if there are ``images`` or ``primaries``.
        primaries: The inputs that the model's preparation makes of black, red, green and blue, (4, C), as in
            ``LoadedModel.primaries``. Without it, pictures range from the images' lowest to their highest values.
        names: Display names of the ``images``, in order. If not given, ``Crops`` have the names of their photographs
            and other images are numbered.
        photographs: The photograph that each of ``held_out`` is a crop of, as for ``controls``; texts are their names.
            If not given, that of ``Crops`` is known.
        labels: What filters are called, by the layer of their kernels and their number, ``{"features.7:24": "curve"}``;
            up to 40 characters each. They are those that can be typed in the page. Filters that no circuit of the
            diagram has may be among them; a note names these.
        batch_size: Maximum number of images that run at once.
        seed: Seed of the random circuit and of feature visualizations.
        progress: Called with the number of images done and their total (or None) in each pass; for feature
            visualizations, with the number of maps. If it has a method ``phase``, that is called before each pass with
            a description.

    Returns:
        A ``Diagram``. It displays in a notebook, and ``.save`` writes ``.html``, ``.svg``, ``.pdf``, ``.png`` or
        ``.json``.

    Raises:
        ConvCircuitsError: If a circuit belongs to other weights or another feature, the controls to another circuit or
            other images, no kernel lies on a complete path or more than 250,000 do, images do not fit the model, a
            label is of no filter of the model, or an argument is out of range.
    """
    if not isinstance(circuit, Circuit):
        raise ConvCircuitsError(f"Expected a Circuit, got {type(circuit).__name__}.")
    if pictures not in LABELS:
        raise ConvCircuitsError(f"pictures must be one of {', '.join(map(repr, LABELS))}; got {pictures!r}.")
    _check_path(path, circuit)
    if isinstance(controls, Controls):
        _check_circuit(controls, circuit, held_out)
    elif not isinstance(controls, bool):
        raise ConvCircuitsError(f"controls must be Controls, True or False; got {controls!r:.80}.")
    check_progress(progress)
    others = [one for one in path if one != circuit]
    offered = [one for one in others if len(one) <= WIDEST * len(circuit)]
    if others and not offered:
        raise ConvCircuitsError(
            f"All circuits of path are more than {WIDEST} times as large as the one that is drawn; give closer ones of "
            "the descent, or omit path."
        )
    network = Network(model)
    check_labels(network, {} if labels is None else labels)

    def batches(images: Images) -> Batches:
        return Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size, progress=progress)

    def quietly(images: Images) -> Batches:
        return Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)

    kept = None
    if images is not None:
        begin(progress, "reading images")
        kept = first_images(batches(images))
        names = checked_names(images.names if names is None and isinstance(images, Crops) else names, len(kept))
    shape = next((batches(some).first_shape() for some in (kept, held_out) if some is not None), None)
    if fit is None and kept is not None:
        fit = found_on(circuit, batches(kept))
    drawing = lay_out(
        model,
        circuit,
        () if against is None else (against,),
        shape,
        seed,
        None if kept is None else batches(kept),
        progress,
        None if fit is None else batches(fit),
        offered,
    )
    laws = checked(drawing.subject, kept)["laws"]
    seen, choice = None, None
    if images is not None and kept is not None:
        held, all_held = None, None
        if held_out is not None:
            begin(progress, "reading held-out images")
            held, all_held = _alike(held_out, batches(held_out), photographs, kept)
        choice = selectable(
            circuit,
            Listed.of(images, kept, names=names),
            held,
            kept=quietly(kept),
            all_held=all_held,
            fit=None if fit is None else quietly(fit),
        )
        begin(progress, "running the model on images")
        beside = None if choice.held_out is None else quietly(choice.held_out)
        seen = Seen.of(drawing, batches(kept), among=choice.among, held_out=beside)
        if primaries is None:
            every = [kept] if choice.held_out is None else [kept, choice.held_out]
            primaries = primaries_of(part for some in every for part in torch.split(some, 64))
    begin(progress, "laying out the diagram")
    document, turned = document_of(drawing, seen, titles(drawing), title, sentence(laws))
    if labels:
        document = labelled(document, labels)
    if held_out is not None:
        document = measured(drawing, document, model, held_out, fit, controls, photographs, batch_size, seed, progress)
    if against is not None:
        document = dataclasses.replace(document, view=dataclasses.replace(document.view, compare=1))
    shown = figure.drawn(document)
    document = pictured(
        drawing,
        document,
        figure.drawn_by_any(document, len(document.variants)).nodes,
        seen,
        pictures=pictures,
        feature_picture=feature_picture and primaries is not None,
        primaries=primaries,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        names=[names],
        photographs=[images.photographs[: len(kept)]] if isinstance(images, Crops) and kept is not None else None,
    )
    if choice is not None and seen is not None and primaries is not None:
        begin(progress, "drawing maps on images")
        maps = seen.document(drawing, shown, primaries, turned, [choice.names])
        document = dataclasses.replace(document, images=maps)
    return Diagram(figure.with_blocks_collapsed(document))


def _check_path(path: Sequence[Circuit], circuit: Circuit) -> None:
    if not isinstance(path, (list, tuple)) or not all(isinstance(one, Circuit) for one in path):
        raise ConvCircuitsError(
            f"path must be the circuits of a descent, as find_path returns them; got {type(path).__name__}."
        )
    for one in path:
        if one.granularity != circuit.granularity or one.feature != circuit.feature:
            raise ConvCircuitsError(f"{one!r} is not of the descent that found {circuit!r}; leave it out of path.")
        small, large = (one, circuit) if len(one) <= len(circuit) else (circuit, one)
        if list(small.elements) != list(large.elements) or any(
            bool((mask & ~large[layer]).any()) for layer, mask in small.elements.items()
        ):
            raise ConvCircuitsError(f"Neither of {one!r} and {circuit!r} lies inside the other; leave it out of path.")


def titles(drawing: Drawing) -> list[str]:
    """Return the names of a diagram's circuits: two that are compared are named by their criterion and density."""
    named = []
    for role, one in zip(drawing.roles, drawing.circuits, strict=True):
        step = role == "level" and drawing.given
        named.append(ROLES["step" if step else role].format(len(one), one.granularity))
    compared = [n for n, role in enumerate(drawing.roles) if role in ("circuit", "against")]
    if len(compared) > 1:
        for n, name in zip(compared, _apart([drawing.circuits[n] for n in compared]), strict=True):
            named[n] = name
    return named


def _apart(circuits: Sequence[Circuit]) -> list[str]:
    """Return a name of its own for each circuit: "progressive 5 %", all with a number if two would have the same."""
    names = [
        f"{str(one.provenance.get('criterion') or 'circuit').replace('_', ' ')} {100 * one.density:.3g} %"
        for one in circuits
    ]
    return names if len(set(names)) == len(names) else [f"{name}, no. {n}" for n, name in enumerate(names, 1)]


def document_of(
    drawing: Drawing, seen: Seen | None, called: Sequence[str], title: str | None, checks: str
) -> tuple[data.Document, np.ndarray]:
    """Return a document without pictures, and what ``Seen.document`` takes from ``edges_of``."""
    edges, weights, turned = edges_of(drawing, None if seen is None else seen.effect)
    document = data.Document(
        meta=_meta(drawing, title, seen, checks),
        columns=columns_of(drawing),
        layers=layers_of(drawing),
        nodes=nodes_of(drawing),
        edges=edges,
        weights=weights,
        target=drawing.graph.goal,
        variants=variants_of(drawing, called),
        pictures=(),
        tiles=data.Tiles(TILE, ()),
    )
    return document, turned


def first_images(batches: Batches) -> Tensor:
    """Load the first images into memory, on the CPU: a shuffling loader would renumber them in each pass."""
    held: list[Tensor] = []
    for batch in batches:
        held.append(batch.cpu())
        if sum(map(len, held)) >= MOST_IMAGES:
            break
    return torch.cat(held)[:MOST_IMAGES]


def _alike(
    given: Images, batches: Batches, photographs: Sequence[Hashable] | None, kept: Tensor
) -> tuple[Listed, dict[str, Any]]:
    """Return those of the first images that are as large as others, which can be shown beside them.

    The second value is how a circuit that was found on all of them describes these.
    """
    found: list[Tensor] = []
    numbers: list[int] = []
    count = 0
    for batch in batches:
        if batch.shape[1:] == kept.shape[1:] and count < MOST_IMAGES:
            found.append(batch.cpu())
            numbers += range(count, count + len(batch))
        count += len(batch)
    images = torch.cat([kept[:0], *found])
    return Listed.of(given, images, numbers=numbers, photographs=photographs), batches.describe()


def checked_names(names: Sequence[str] | None, count: int) -> Sequence[str] | None:
    """Check that there is a name for every image; names beyond the last image used are allowed."""
    if names is None:
        return None
    if isinstance(names, str) or len(names) < count or not all(isinstance(name, str) for name in names):
        raise ConvCircuitsError(f"names must hold one string for each of {count:,} images; got {names!r:.80}.")
    return names


def _meta(drawing: Drawing, title: str | None, seen: Seen | None, checks: str) -> data.Meta:
    circuit = drawing.circuits[0]
    origin = circuit.provenance
    colors = (
        "Orange and purple show the sign of what a kernel adds to its filter, averaged over the images shown and taken "
        "after the filter's BatchNorm and its depthwise kernel; for kernels outside the circuit, the sign of the sum "
        "of their weights."
        if seen is not None
        else "Orange and purple show the sign of the sum of a kernel's weights, since no images were given."
    )
    model = model_of(drawing)
    return data.Meta(
        title=title or f"Circuit for {_as_in_papers(drawing, circuit.feature)} of {model}",
        feature=str(circuit.feature),
        model=model,
        criterion=None if origin.get("criterion") is None else str(origin["criterion"]),
        granularity=circuit.granularity,  # type: ignore[arg-type]
        notes=sentences(
            [
                colors,
                *drawing.unmeasured,
                *_on_saliency(circuit, measured=drawing.measured[0]),
                *(str(note) for note in origin.get("notes", ())),
                checks,
            ]
        ),
        versions={"convcircuits": __version__, "torch": torch.__version__},
        file=named_after(model, circuit.feature.slug),
    )


def _as_in_papers(drawing: Drawing, feature: Feature) -> str:
    """Return the text form of a feature; of a unit also with the name in papers, "conv3_3:12 (features.14:12)"."""
    alias = aliases_of(drawing).get(feature.layer)
    return f"{alias}:{feature.unit} ({feature})" if alias and isinstance(feature.unit, int) else str(feature)


def _on_saliency(circuit: Circuit, *, measured: bool) -> list[str]:
    """Describe what the saliency of a fitted circuit measures, since its kernels act otherwise than in the model."""
    if not circuit.calibrated:
        return []
    if measured:
        return [
            "Saliency, which sets the width of edges, is a kernel's estimated effect on the feature in the circuit "
            "that is drawn, with its gains and offsets: how much the feature's map changes if the kernel's map is "
            "replaced by its mean."
        ]
    if CRITERIA.get(str(circuit.provenance.get("criterion"))) in DESCENTS:
        return [
            "Saliency, which sets the width of edges, is a kernel's estimated effect on the feature at the last cut: "
            "in the refitted circuit before it, or in the full model if it was the only one."
        ]
    return ["Saliency, which sets the width of edges, was measured before the gains and offsets were fitted."]


def measured(
    drawing: Drawing,
    document: data.Document,
    model: nn.Module,
    held_out: Images,
    fit: Images | None,
    asked: Controls | bool,
    photographs: Sequence[Hashable] | None,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> data.Document:
    """Measure each circuit on held-out images, and the part that the default view draws as a circuit of its own.

    The average map is computed on ``fit``. Of the controls, those of the circuit itself are measured or, if given,
    shown.
    """
    views = figure.drawn_by_each(document, [data.View(variant=n) for n in range(len(document.variants))])
    parts = [_part(drawing, n, view.edges) for n, view in enumerate(views)]
    controls = [_control(drawing, n, seed) for n in range(len(views))] + [None] * len(parts)
    begin(progress, "measuring on held-out images")
    reports = evaluate_all(
        model,
        [*drawing.circuits, *parts],
        held_out,
        fit=fit,
        controls=controls,
        readout=False,
        batch_size=batch_size,
        progress=progress,
    )
    beside = asked if isinstance(asked, Controls) else None
    if beside is not None:
        _check_figures(beside, reports[0])
    elif asked and drawing.circuits[0].calibrated and fit is not None:
        beside = measure_controls(
            model,
            drawing.circuits[0],
            held_out,
            fit=fit,
            draws=1,
            photographs=photographs or (held_out.photographs if isinstance(held_out, Crops) else None),
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    count = len(views)
    variants = [
        dataclasses.replace(
            variant,
            fidelity=_fidelity(
                reports[n],
                found_on=circuit.provenance.get("images") == reports[0].provenance["images"],
                drawn=data.Drawn(kernels=view.kernels, r2=_known(reports[count + n].r2), path=view.path),
                random_refitted=circuit.calibrated and fit is not None,
                controls=None if n or beside is None else _controls(beside, circuit),
            ),
        )
        for n, (variant, circuit, view) in enumerate(zip(document.variants, drawing.circuits, views, strict=True))
    ]
    notes = [*document.meta.notes, *reports[0].notes, *(() if beside is None else beside.notes)]
    meta = dataclasses.replace(document.meta, notes=sentences(notes))
    held = data.HeldOut(reports[0].images)
    return dataclasses.replace(document, meta=meta, variants=tuple(variants), held_out=held)


def _control(drawing: Drawing, n: int, seed: int) -> Circuit | None:
    """Return the random circuit that a circuit is compared with: the drawn one for the circuit itself.

    There is none for the slider's steps of a descent that trains, as each would be trained for minutes, too.
    """
    if drawing.roles[n] == "control":
        return None
    if drawing.roles[n] == "circuit":
        return drawing.circuits[drawing.roles.index("control")]
    if drawing.roles[n] == "level" and "trained" in drawing.circuits[n].provenance.get("calibration", {}):
        return None
    return random_like(drawing.subject, drawing.circuits[n], seed=seed)


def _fidelity(
    report: Evaluation, *, found_on: bool, drawn: data.Drawn, random_refitted: bool, controls: data.Controls | None
) -> data.Fidelity:
    return data.Fidelity(
        r2=_known(report.r2),
        r2_interior=_known(report.r2_interior),
        r2_rectified=_known(report.r2_rectified),
        r2_average_map=_known(report.r2_average_map),
        r2_average_map_interior=_known(report.r2_average_map_interior),
        r2_random=_known(report.r2_random),
        r2_random_interior=_known(report.r2_random_interior),
        interior=report.interior,
        verdict=report.verdict,
        sentence=report.verdict_sentence,
        found_on=found_on,
        drawn=drawn,
        random_refitted=random_refitted,
        controls=controls,
    )


def _controls(beside: Controls, circuit: Circuit) -> data.Controls:
    descended = descent_of(circuit) is not None
    return data.Controls(
        verdict=beside.verdict,
        sentence=beside.verdict_sentence,
        margin=_known(beside.margin),
        noise=_known(beside.noise),
        best=beside.best,  # type: ignore[arg-type]
        rivals=tuple(
            data.Rival(row.name, _known(row.r2), _known(row.r2_interior), _known(row.r2_rectified))  # type: ignore[arg-type]
            for row in beside.controls
            if row.name in RIVALS
        ),
        unmeasured=STRICTEST if descended and all(row.name != "refound" for row in beside.controls) else "",
    )


def _check_circuit(given: Controls, circuit: Circuit, held_out: Images | None) -> None:
    """Refuse controls of another circuit, as far as can be told without running it."""
    if held_out is None:
        raise ConvCircuitsError("Give the images that the controls were measured on as held_out.")
    theirs = (given.feature, given.elements, given.constants, given.provenance.get("circuit"))
    if theirs != (str(circuit.feature), len(circuit), circuit.constants, dict(circuit.provenance)):
        raise ConvCircuitsError(
            f"The controls are of another circuit: of {given.feature}, {given.elements:,} elements and "
            f"{given.constants:,} constants. The one to draw is of {circuit.feature}, {len(circuit):,} elements and "
            f"{circuit.constants:,} constants, and how it was made must be the same, too. Call cc.controls on it."
        )


def _check_figures(given: Controls, report: Evaluation) -> None:
    """Refuse controls that were measured on other images, or beside a circuit that does otherwise on these."""
    if given.provenance.get("images") != report.provenance["images"]:
        raise ConvCircuitsError(
            "The controls were measured on other images than held_out; call cc.controls on the same images."
        )
    if not np.isclose(given.circuit.r2, report.r2, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise ConvCircuitsError(
            f"The controls are of another circuit: of R2 {given.circuit.r2:z.3f} on held_out, where this one has "
            f"{report.r2:z.3f}. Call cc.controls on it."
        )


def _known(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None


def _part(drawing: Drawing, n: int, edges: Sequence[int]) -> Circuit:
    """Return the circuit of those kernels of a circuit that are drawn."""
    circuit, relevant, g = drawing.circuits[n], drawing.subject.survey.kernels, drawing.graph
    drawn = {layer: torch.zeros_like(mask, device="cpu") for layer, mask in relevant.items()}
    for e in edges:
        if g.call[e] >= 0:
            drawn[drawing.call(int(g.call[e])).layer][int(g.out[e]), int(g.inp[e])] = True
    if circuit.granularity == "filter":  # parts of filters are kernels
        shared = kernels_of(circuit, drawn, relevant).saliency
        saliency = {layer: shared[layer].masked_fill(~relevant[layer].cpu(), torch.nan) for layer in drawn}
        return dataclasses.replace(
            circuit,
            elements=LayerTable(drawn),
            saliency=LayerTable(saliency),
            relevant=count_kept(relevant),
            granularity="kernel",
        )
    elements = {
        layer: mask & elements_with(drawn[layer], circuit.granularity, tuple(mask.shape))
        for layer, mask in circuit.elements.items()
    }
    return dataclasses.replace(circuit, elements=LayerTable(elements))
