"""Measure the margin of a circuit over its controls: was it found, or made by its constants?"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convcircuits.circuits.control_circuits import (
    descent_of,
    fit_of,
    random_like,
    redrawn,
    refound,
    relabelled_like,
    without,
)
from convcircuits.circuits.moments import Averages
from convcircuits.circuits.refitting import fitted
from convcircuits.compiler.extraction import Sweep
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.maps.interior import Interior, Positions
from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches, Images, Progress, begin, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.circuit import Circuit
from convcircuits.values.controls import CHECKS, RIVALS, STRICTEST, Control, Controls, judged, margins
from convcircuits.values.feature import at
from convcircuits.values.report import WHERE

_RESAMPLES = 1000
_STAYS = 0.1  # of the circuit's elements: from there on, a note says how many stay in the relabelled graphs


@outside_autocast
def controls(
    model: nn.Module,
    circuit: Circuit,
    images: Images,
    *,
    fit: Images,
    draws: int = 3,
    descents: int = 0,
    photographs: Sequence[Hashable] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Controls:
    """Measure a circuit beside controls of equal size and equal treatment, on images that it was not found on.

    With many fitted constants, a wrong graph can be made to imitate a feature. So the circuit's calibration is repeated
    on controls, with the same method and options and as many steps, at most 500 and without iterations of L-BFGS: if
    these do as well, the circuit was not found. Its own kernels are fitted again in the same way, for comparison.

    This is a function and no method of ``Evaluation``, which is data and has no model to run.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit.
        images: Held-out images, as for ``score``.
        fit: The images that the circuit was found on. The controls are fitted on them.
        draws: Number of draws of each control that is drawn at random. One gives none of them a spread, at a third of
            the cost.
        descents: Number of copies of the model with shuffled kernels in which the descent that found the circuit is
            repeated, aimed at the trained model (``refound``). This is the strictest control: it has trained kernels,
            and chooses among them as the circuit was chosen. Each costs as much as finding the circuit. 0 for none.
        photographs: The photograph that each image is a crop of, in order, such as ``Crops.photographs``. Crops of one
            are no independent evidence, so photographs are resampled for the noise. If None, each image counts alone.
        batch_size: Maximum number of images that run at once.
        seed: Seed of what is drawn at random.
        progress: Called with the number of images or steps done in each phase, and their total (or None).

    Raises:
        ConvCircuitsError: If the circuit belongs to other weights, images do not fit the model, there is not one
            photograph for each image, or the circuit was not found by a descent that could be repeated.

    Examples:
        >>> report = cc.controls(model, circuit, held_out, fit=images)
        >>> report.margin == report.circuit.r2_interior - max(0, report[report.best].r2_interior)
        True
        >>> report.margin > report.noise
        True
    """
    check_progress(progress)
    if not isinstance(circuit, Circuit):
        raise ConvCircuitsError(f"Expected a Circuit, got {type(circuit).__name__}.")
    seed, draws = whole_number(option("seed"), seed, 0, 2**32 - 1), whole_number("draws", draws, 1)
    if (descents := whole_number("descents", descents, 0)) and descent_of(circuit) is None:
        raise ConvCircuitsError(
            "The circuit was not found by a descent from the full model, so there is none to repeat among shuffled "
            f"kernels; omit {option('descents')}."
        )
    network = Network(model)
    batches, fit_batches = (
        Batches(some, device=network.device, dtype=network.dtype, batch_size=batch_size) for some in (images, fit)
    )
    first = batches.first(IMAGES)
    subject = Subject.open(network, circuit.feature, tuple(first.shape[1:]))
    subject.check(circuit)
    described = checked(subject, first)
    made = _Made(subject, circuit, fit_batches, draws, descents, seed, progress)
    tally = _measured(subject, made, batches, fit_batches, progress)
    crops = _crops(photographs, len(tally.full))
    interior = tally.interior
    kind: Literal["inside", "central", "unknown"] = (
        "unknown" if interior is None else "inside" if interior.inside else "central"
    )
    provenance = described | {
        "images": batches.describe(),
        "fitted_on": fit_batches.describe(),
        "draws": draws,
        "descents": descents,
        "seed": seed,
        "treated": made.treated,
        "circuit": dict(circuit.provenance),
    }
    return _report(circuit, tally, crops, made, kind, provenance)


def _crops(photographs: Sequence[Hashable] | None, count: int) -> Tensor:
    """Return which images are crops of which photograph, as float64 (photographs, images)."""
    if photographs is None:
        return torch.eye(count, dtype=torch.float64)
    if len(photographs) != count:
        raise ConvCircuitsError(
            f"There are {count} held-out images but {len(photographs)} photographs; give the photograph of each image."
        )
    numbers = {photograph: n for n, photograph in enumerate(dict.fromkeys(photographs))}
    crops = torch.zeros(len(numbers), count, dtype=torch.float64)
    crops[[numbers[photograph] for photograph in photographs], range(count)] = 1
    return crops


class _Made:
    """A circuit and its controls.

    Attributes:
        names: The name of each, the draws of one control in a row.
        circuits: Those of the model itself.
        elsewhere: Controls in redrawn models: their names, the models and the circuits.
        notes: What could not be made, and what must be known of the others.
        treated: How controls are fitted, as JSON values; None if they are not.
    """

    def __init__(
        self,
        subject: Subject,
        circuit: Circuit,
        batches: Batches,
        draws: int,
        descents: int,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.names, self.circuits, self.notes = ["circuit"], [circuit], list[str]()
        self.elsewhere: list[tuple[str, Subject, Circuit]] = []
        fit = fit_of(subject, circuit, batches, progress=progress)
        self.treated = None if fit is None else fit.about()

        def add(name: str, control: Circuit, *, treated: bool = True) -> None:
            if treated and fit is not None:
                begin(progress, f"fitting a control: {name}")
            self.names.append(name)
            self.circuits.append(fitted(subject, control, fit) if treated else control)

        try:
            graphs = [relabelled_like(subject, circuit, seed=seed + n) for n in range(draws)]
        except ConvCircuitsError as problem:
            graphs = []
            self.notes.append(f"The circuit is not compared with its graph on other filters. {problem}")
        for graph in graphs:
            add("relabelled", graph)
        self._note_what_stays(circuit, graphs)
        random = [random_like(subject, circuit, seed=seed + n) for n in range(draws)]
        for one in random:
            add("random", one)
        if fit is not None:
            add("refitted", circuit)
        add("without_circuit", without(subject, circuit), treated=False)
        add("without_random", without(subject, random[0]), treated=False)
        try:
            models = [redrawn(subject, seed=seed + n) for n in range(draws)]
            rewired = [redrawn(subject, whole=True, seed=seed + n) for n in range(descents)]
        except ConvCircuitsError as problem:
            other = f", nor with {RIVALS['refound']}" * bool(descents)
            self.notes.append(f"The circuit is not compared with the same graph of other weights{other}. {problem}")
            return
        for model in models:
            begin(progress, "fitting a control: redrawn")
            again = fit_of(model, circuit, batches, target=subject, progress=progress)
            self.elsewhere.append(("redrawn", model, fitted(model, circuit, again)))
        for model in rewired:
            self.elsewhere.append(("refound", model, refound(subject, circuit, batches, model, progress=progress)))
        if not descents and descent_of(circuit) is not None:
            self.notes.append(f"Not measured: {STRICTEST} ({option('descents', 1)}).")

    def _note_what_stays(self, circuit: Circuit, graphs: list[Circuit]) -> None:
        size = max(1, len(circuit))
        shares = [sum(int((mask & one[a]).sum()) for a, mask in circuit.elements.items()) / size for one in graphs]
        if shares and sum(shares) / len(shares) > _STAYS:
            self.notes.append(
                f"{sum(shares) / len(shares):.0%} of the circuit's {circuit.granularity}s are also in its relabelled "
                "graphs: the circuit is dense, or the network has few channels that can change places."
            )


@dataclass(frozen=True)
class _Tally:
    """Sums of each held-out image: over all positions, the interior, and of the rectified map.

    Attributes:
        names: Names of what was measured.
        full: Number, sum and sum of squares of the full model's values, less ``shift``.
        errors: Squared errors of what was measured.
        shift: What the full model's values are shifted by.
        eps: Relative precision of the model.
        interior: The interior; None if it is not known.
    """

    names: list[str]
    full: Float[Tensor, "n units 3 3"]
    errors: Float[Tensor, "n units 3 measured"]
    shift: Float[Tensor, "units 3"]
    eps: float
    interior: Interior | None

    def r2(self, weights: Float[Tensor, "times n"]) -> Float[Tensor, "times 3 measured"]:
        """Return R2, averaged over units that vary, if each image counts as often as a row of weights says."""
        count, total, squares = torch.einsum("tn,nuws->stuw", weights, self.full)
        spread = squares - total.square() / count
        constant = spread <= count * (8 * self.eps * (total / count + self.shift)).square()
        spread = torch.where(constant, torch.nan, spread)[..., None]
        return (1 - torch.einsum("tn,nuwm->tuwm", weights, self.errors) / spread).nanmean(1)


def _measured(subject: Subject, made: _Made, batches: Batches, fit: Batches, progress: Progress | None) -> _Tally:
    begin(progress, "measuring the controls")
    positions, averages = Positions(subject), Averages()
    with torch.no_grad():
        for images in fit:
            full = subject.maps(images)
            averages.add(at(full, positions.counted(full, images)).double().cpu(), tuple(full.shape[1:]))
    sweep = Sweep(subject, made.circuits, effective=True)
    elsewhere = [Sweep(model, [circuit], effective=True) for _, model, circuit in made.elsewhere]
    names = [*made.names, *(name for name, *_ in made.elsewhere), "average_map"]
    full_sums, errors, done = [], [], 0
    shift, interior, known = torch.zeros(0), None, True
    for images in batches:
        shape = tuple(images.shape[1:])
        with torch.no_grad():
            full, *maps = sweep.maps(images)
            others = [one for other in elsewhere for one in other.maps(images, [1])]
        counted, here = positions.counted(full, images), positions.known(shape)
        values = at(full, counted).double().cpu()
        known = known and here is not None
        interior = here if interior is None or interior.inside else interior
        inside = torch.zeros_like(values) if here is None else here.among(values, counted).double()
        average = averages.of(tuple(full.shape[1:]))
        compared = [at(one, counted).double().cpu() for one in (*maps, *others)]
        compared.append(torch.full_like(values, torch.nan) if average is None else average.expand_as(values))
        counts = torch.stack(
            [_units_second(one) for one in (torch.ones_like(values), inside, torch.ones_like(values))], 2
        )
        expected = _thrice(values)
        shift = shift if done else expected.mean((0, 3))
        centered = expected - shift[..., None]
        full_sums.append(torch.stack([(part * counts).sum(3) for part in (counts, centered, centered.square())], 3))
        errors.append(torch.stack([((_thrice(one) - expected).square() * counts).sum(3) for one in compared], 3))
        done += len(images)
        if progress is not None:
            progress(done, batches.expected)
    eps = torch.finfo(subject.network.dtype).eps
    return _Tally(names, torch.cat(full_sums), torch.cat(errors), shift, eps, interior if known else None)


def _units_second(values: Tensor) -> Float[Tensor, "n units positions"]:
    return values[:, None] if values.dim() == 2 else values


def _thrice(values: Tensor) -> Float[Tensor, "n units 3 positions"]:
    """Return values for all positions, for the interior, and rectified."""
    values = _units_second(values)
    return torch.stack([values, values, values.relu()], 2)


def _report(
    circuit: Circuit,
    tally: _Tally,
    crops: Tensor,
    made: _Made,
    kind: Literal["inside", "central", "unknown"],
    provenance: dict[str, Any],
) -> Controls:
    count = len(tally.full)
    r2 = tally.r2(torch.ones(1, count, dtype=torch.float64))[0]  # (3, measured)
    inside = kind != "unknown" and not bool(r2[1, 0].isnan())
    deciding = 1 if inside else 0
    places: dict[str, int] = {}  # of the best draw of each
    draws: dict[str, list[float]] = {}
    for place, name in enumerate(tally.names):
        value = float(r2[deciding, place])
        draws.setdefault(name, []).append(value)
        if name not in places or value > float(r2[deciding, places[name]].nan_to_num(-math.inf)):
            places[name] = place
    figure = {name: float(r2[deciding, place]) for name, place in places.items()}
    over = margins(figure)
    best = next(iter(over))
    generator = torch.Generator().manual_seed(provenance["seed"])
    again = torch.randint(len(crops), (_RESAMPLES, len(crops)), generator=generator)
    weights = torch.zeros(again.shape, dtype=torch.float64)
    resampled = tally.r2(weights.scatter_add_(1, again, torch.ones_like(weights)) @ crops)[:, deciding]
    noises, once = _noises(over, places, draws, resampled if len(crops) > 1 else resampled[:0])
    rows = {}
    for name in (name for name in ("circuit", *RIVALS, *CHECKS) if name in places):
        everywhere, interior, rectified = r2[:, places[name]].tolist()
        _, margin = over.get(name, (name, math.nan))
        noise = noises.get(name, math.nan)
        rows[name] = Control(name, everywhere, interior, rectified, tuple(draws[name]), margin, noise)
    where = WHERE[kind] if inside else "all positions"
    drawn_once = len(once) == len(over.keys() - {"average_map"})
    verdict, sentence = judged(
        figure,
        noises,
        feature=str(circuit.feature),
        where=where,
        fitted=circuit.calibrated,
        drawn_once=drawn_once,
    )
    notes = [*made.notes]
    if provenance["images"] == provenance["fitted_on"]:
        notes.append("Measured on the same images that the controls were fitted on; on others, the margin may be less.")
    found_on = circuit.provenance.get("images", provenance["fitted_on"])
    if found_on != provenance["fitted_on"]:
        notes.append(
            f"The circuit was found on {found_on['count']} images, and the controls were fitted on another set of "
            f"{provenance['fitted_on']['count']}, so they are not treated alike."
        )
    if len(crops) < count:
        notes.append(
            f"The {count} images are crops of {len(crops)} photographs, and the noise is of resampled photographs."
        )
    notes += [
        f"The circuit is not compared with {RIVALS[name]}, whose R2 on {where} is not defined."
        for name, (_, one) in over.items()
        if math.isnan(one) and not math.isnan(figure["circuit"])
    ]
    if not drawn_once:
        notes += [
            f"{RIVALS[name].capitalize()} was drawn once: the spread of its draws is taken to be the largest of the "
            "other controls'."
            for name in once
        ]
    if {"without_circuit", "without_random"} <= figure.keys():
        notes.append(
            f"The full model without the circuit's elements has R2 {figure['without_circuit']:z.2f} on {where}, and "
            f"without as many others {figure['without_random']:z.2f}."
        )
    return Controls(
        feature=str(circuit.feature),
        circuit=rows.pop("circuit"),
        controls=tuple(rows.values()),
        best=best,
        margin=rows[best].margin,
        noise=rows[best].noise,
        verdict=verdict,
        verdict_sentence=sentence,
        interior=kind if inside else "unknown",
        elements=len(circuit),
        constants=circuit.constants,
        images=count,
        notes=tuple(notes),
        provenance=provenance,
    )


def _noises(
    over: Mapping[str, tuple[str, float]],
    places: Mapping[str, int],
    draws: Mapping[str, list[float]],
    resampled: Float[Tensor, "times measured"],
) -> tuple[dict[str, float], list[str]]:
    """Return the noise of the margin over each rival, and the rivals that were drawn once, without the average map.

    Args:
        over: The rivals, each with the name of what is compared with it, and the margin.
        places: Name -> where its best draw is in ``resampled``.
        draws: Name -> R2 of each draw.
        resampled: R2 on resampled images.
    """
    defined = {name: [max(0.0, r2) for r2 in draws[name] if not math.isnan(r2)] for name in over}
    spreads = {name: statistics.variance(some) for name, some in defined.items() if len(some) > 1}
    once = [name for name in over if name not in spreads and name != "average_map"]
    spreads |= dict.fromkeys(once, max(spreads.values(), default=0.0)) | {"average_map": 0.0}
    noises = {}
    for name, (held, _) in over.items():
        again = resampled[:, places[held]] - resampled[:, places[name]].clamp_min(0)
        again = again[~again.isnan()]
        noises[name] = 2 * math.sqrt(spreads[name] + float(again.var())) if len(again) > 1 else math.nan
    return noises, once
