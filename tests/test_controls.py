"""A circuit beside its controls: the figures, their noise and the verdict."""

import json
import math
import re
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

import convcircuits as cc
from convcircuits.circuits import controls as measuring
from convcircuits.circuits import learning
from convcircuits.circuits.asking import options_again
from convcircuits.circuits.control_circuits import random_like, redrawn, refound, relabelled_like
from convcircuits.circuits.criteria import CRITERIA
from convcircuits.network.batches import Batches
from convcircuits.network.masking import Subject
from convcircuits.subfeatures.again import found_again
from convcircuits.values.controls import CHECKS, RIVALS, judged
from convcircuits.values.tables import LayerTable
from convcircuits.zoo.planted import plant, planted_images
from nets import NETS, WithConstant, net

CASE = NETS["plain"]
BY_DEFAULT = [name for name in RIVALS if name != "refound"]
FEATURE = cc.Feature("features.3", 1)


def found(model, feature=FEATURE, criterion="gauss_newton", seed=1, density=0.5, **options):
    return cc.find(model, feature, CASE.images(6, seed), criterion=criterion, density=density, **options)


@cache
def planted():
    """Return a network with a planted circuit, images to fit and to measure on, and the circuit as it is found."""
    made = plant(0, channels=10, depth=3, live=3, pairs=1, constants=2)
    size = sum(int(mask.sum()) for mask in made.truth.values())
    images, held_out = planted_images(24), planted_images(16, seed=1)
    circuit = cc.find(made.model, made.feature, images, criterion="progressive", kernels=size, start=0.5)
    return made, images, held_out, circuit


@cache
def planted_report():
    made, images, held_out, circuit = planted()
    return cc.controls(made.model, circuit, held_out, fit=images)


@pytest.mark.parametrize("feature", ["features.3:1", "features.3:1,3", "features.3:2@max", "features.5:1@interior"])
def test_the_figures_are_those_of_an_evaluation(feature):
    model, held_out, images = CASE.build(), CASE.images(5, 2), CASE.images(6, 1)
    circuit = cc.refit(model, found(model, cc.Feature.parse(feature)), images)
    report = cc.controls(model, circuit, held_out, fit=images, draws=1)
    expected = cc.evaluate(model, circuit, held_out, fit=images)
    for got, figure in (
        (report.circuit.r2, expected.r2),
        (report.circuit.r2_interior, expected.r2_interior),
        (report.circuit.r2_rectified, expected.r2_rectified),
        (report["average_map"].r2, expected.r2_average_map),
        (report["average_map"].r2_interior, expected.r2_average_map_interior),
        (report["random"].r2, expected.r2_random),
        (report["random"].r2_interior, expected.r2_random_interior),
    ):
        assert got == pytest.approx(figure, nan_ok=True)
    assert report["refitted"].r2 == pytest.approx(report.circuit.r2)
    assert report.images == 5
    assert (report.elements, report.constants) == (len(circuit), circuit.constants)


def test_what_is_left_without_a_circuit():
    model, held_out = CASE.build(), CASE.images(5, 2)
    circuit = found(model)
    report = cc.controls(model, circuit, held_out, fit=CASE.images(6, 1), draws=2)
    subject = Subject.open(model, FEATURE, CASE.input_shape)
    relevant = subject.survey.kernels
    for name, removed in (("without_circuit", circuit), ("without_random", random_like(subject, circuit))):
        left = {layer: mask & ~removed[layer] for layer, mask in relevant.items()}
        rest = cc.Circuit.from_masks(model, FEATURE, left, input_shape=CASE.input_shape)
        assert report[name].r2 == pytest.approx(cc.evaluate(model, rest, held_out).r2)
    assert "refitted" not in {row.name for row in report.controls}
    assert [len(row.draws) for row in report.controls] == [2, 2, 2, 1, 1, 1]


def test_the_order_and_the_batches_of_images_do_not_matter():
    model, held_out, images = CASE.build(), CASE.images(7, 2), CASE.images(6, 1)
    circuit = cc.refit(model, found(model), images)
    one = cc.controls(model, circuit, held_out, fit=images)
    other = cc.controls(model, circuit, held_out, fit=images.flip(0), batch_size=2)
    for row in (one.circuit, *one.controls):
        assert other[row.name].r2 == pytest.approx(row.r2)
        assert other[row.name].draws == pytest.approx(row.draws)
    assert other.margin == pytest.approx(one.margin)
    assert other.noise == pytest.approx(one.noise)


def test_a_planted_circuit_is_found_and_its_graph_on_other_filters_is_not():
    made, images, held_out, circuit = planted()
    report = planted_report()
    assert report.verdict == "found"
    assert report.circuit.r2_interior > 0.99
    assert max(report[name].r2_interior for name in BY_DEFAULT) < 0.3
    assert report["without_circuit"].r2 < 0
    subject = Subject.open(made.model, made.feature, (3, 32, 32))
    wrong = cc.refit(made.model, relabelled_like(subject, circuit, seed=8), images, toward=0)
    assert wrong.constants > 10
    report = cc.controls(made.model, wrong, held_out, fit=images)
    assert report.verdict == "not found"
    assert report.margin < 0.2


def test_a_trained_circuit_has_trained_controls():
    made, images, held_out, circuit = planted()
    learned = cc.find(
        made.model, made.feature, images, criterion="learned", kernels=len(circuit), start=0.3, final=120, batch=16
    )
    report = cc.controls(made.model, learned, held_out, fit=images, draws=1)
    assert report["refitted"].r2 == pytest.approx(report.circuit.r2, abs=0.01)
    closed = dict(learned.provenance["calibration"])
    del closed["trained"]
    other = replace(learned, provenance=dict(learned.provenance) | {"calibration": closed})
    untrained = cc.controls(made.model, other, held_out, fit=images, draws=1)
    for name in ("relabelled", "random", "redrawn", "refitted"):
        assert untrained[name].r2 != pytest.approx(report[name].r2, abs=1e-3)


@pytest.mark.parametrize("criterion", ["progressive", "learned"])
@pytest.mark.parametrize("size", [{"kernels": 25}, {"filters": 3, "fan_in": 3}])
def test_the_descent_repeated_in_the_model_itself_finds_the_circuit(criterion, size):
    made, images, _, _ = planted()
    options = {"steps": 3, "final": 9} if criterion == "learned" else {}
    circuit = cc.find(made.model, made.feature, images, criterion=criterion, start=0.5, seed=2, **size, **options)
    subject = Subject.open(made.model, made.feature, (3, 32, 32))
    copy = Subject.open(deepcopy(made.model), made.feature, (3, 32, 32))
    batches = Batches(images, device=torch.device("cpu"), dtype=torch.float32, batch_size=16)
    assert refound(subject, circuit, batches, copy) == circuit
    for how in ({"method": "filters"}, {"method": "kernels", "ridge": 0.5}):  # which the descent did not use
        again = cc.refit(made.model, circuit, images, **how)
        assert refound(subject, again, batches, copy) == again
    bare = replace(circuit, gain=LayerTable(), offset=LayerTable())
    assert refound(subject, bare, batches, copy) == bare


@pytest.mark.parametrize("criterion", ["progressive", "learned"])
@pytest.mark.parametrize("size", [{"kernels": [60, 40, 25]}, {"filters": 2, "fan_in": 2}])
def test_a_descent_is_repeated_as_far_as_the_circuit(criterion, size, monkeypatch):
    """Aimed at the same sizes, also those below the circuit's own; an earlier circuit took fewer steps, for one."""
    monkeypatch.setattr(learning, "_HALF", math.inf)  # controls alone also begin elsewhere
    made, images, _, _ = planted()
    options = {"steps": 3, "final": 9, "tolerance": 0.0} if criterion == "learned" else {}
    path = cc.find_path(made.model, made.feature, images, criterion=criterion, start=0.5, **size, **options)
    subject = Subject.open(made.model, made.feature, (3, 32, 32))
    copy = Subject.open(deepcopy(made.model), made.feature, (3, 32, 32))
    batches = Batches(images, device=torch.device("cpu"), dtype=torch.float32, batch_size=16)
    for circuit in (path[0], path[-3], path[-2], path[-1]):
        assert refound(subject, circuit, batches, copy) == circuit
    edited = replace(path[-1], provenance={**path[-1].provenance, "asked": {"kernels": 1}})
    with pytest.raises(cc.ConvCircuitsError, match="it does not pass through the size that its file says"):
        refound(subject, edited, batches, copy)


SHIFTED = [
    ("residual", "block2.conv2:3"),
    ("residual", "head:0@max"),
    ("plain", "features.3:1,3"),
    ("mobile", "head:1"),
]


@pytest.mark.parametrize("criterion", ["progressive", "learned"])
@pytest.mark.parametrize(("name", "feature"), SHIFTED)
@pytest.mark.parametrize("size", [{"density": 0.3}, {"filters": 2, "fan_in": 2}])
def test_biases_of_another_model_do_not_matter_to_a_descent_in_it(name, feature, size, criterion, monkeypatch):
    """A descent from all kernels fits offsets, which make up for any bias: every step is aimed at the first model."""
    monkeypatch.setattr(learning, "_HALF", math.inf)  # controls alone also begin elsewhere
    case, feature = NETS[name], cc.Feature.parse(feature)
    model, images = case.build(), case.images(24)
    options = {"steps": 4, "final": 10, "polish": 3, "tolerance": 0.0} if criterion == "learned" else {}
    circuit = cc.find(model, feature, images, criterion=criterion, start=1.0, **size, **options)
    subject, shifted = Subject.open(model, feature, case.input_shape), deepcopy(model)
    generator, shifts = torch.Generator().manual_seed(5), {}
    for layer in subject.survey.kernels:
        one = shifted.get_submodule(layer)
        shifts[layer] = torch.randn(len(one.weight), generator=generator, dtype=torch.float64)
        one.bias = nn.Parameter(shifts[layer] + (0 if one.bias is None else one.bias.data))
    other = Subject.open(shifted, feature, case.input_shape)
    batches = Batches(images, device=torch.device("cpu"), dtype=torch.float64, batch_size=16)
    again = refound(subject, circuit, batches, other)
    assert again.elements == circuit.elements
    for layer, kept in circuit.elements.items():
        if kept.any():
            torch.testing.assert_close(again.gain[layer][kept], circuit.gain[layer][kept], rtol=1e-7, atol=1e-9)
            made_up = (again.offset[layer] + shifts[layer])[kept.any(1)]
            torch.testing.assert_close(made_up, circuit.offset[layer][kept.any(1)], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("criterion", ["progressive", "learned"])
def test_a_descent_is_repeated_with_the_defaults_of_its_time(criterion):
    """A file says them, but for options that are younger: gains had any sign, and there was no polish."""
    made, images, _, _ = planted()
    options = {"steps": 3, "final": 9} if criterion == "learned" else {}
    of_its_time = {"positive": False, "ridge": 0.5}
    later = {"positive": False}
    if criterion == "learned":
        of_its_time |= {"polish": 0, "tolerance": 0.1, "rate": 0.03}
        later |= {"polish": 0, "tolerance": 0.1}
    given = {"criterion": criterion, "start": 0.5, "kernels": 25, **options}
    circuit = cc.find(made.model, made.feature, images, **given, **of_its_time)
    said = {**circuit.provenance, "options": {"start": 0.5, **options}}
    for name in ("schedule", "calibration"):
        said[name] = {key: value for key, value in said[name].items() if key not in later}
    if criterion == "learned":  # tolerance and rate were said there only
        del said["schedule"]["rate"]
        trained = said["calibration"]["trained"]
        said["calibration"]["trained"] = {key: value for key, value in trained.items() if key != "polish"}
    old = replace(circuit, provenance=said)
    again = {"start": 0.5, "ridge": 0.5, **options} | (of_its_time if criterion == "learned" else {})
    assert options_again(CRITERIA[criterion], old.provenance) == again
    subject = Subject.open(made.model, made.feature, (3, 32, 32))
    batches = Batches(images, device=torch.device("cpu"), dtype=torch.float32, batch_size=16)
    assert refound(subject, old, batches, subject) == circuit
    assert found_again(made.model, [old], images, batch_size=16, progress=None, called="it") == circuit
    other = redrawn(subject, whole=True)
    assert refound(subject, old, batches, other) == refound(subject, circuit, batches, other)


def test_a_descent_among_shuffled_kernels_does_not_find_a_planted_circuit():
    made, images, held_out, circuit = planted()
    report = cc.controls(made.model, circuit, held_out, fit=images, draws=1, descents=2)
    row = report["refound"]
    assert any(
        note.startswith("Not measured: the strictest control") and "(descents=1)" in note
        for note in planted_report().notes
    )
    assert not any("strictest" in note for note in report.notes)
    assert len(row.draws) == report.provenance["descents"] == 2
    assert row.r2_interior == max(row.draws) < 0.3
    assert report.verdict == "found"
    spread = 2 * float(torch.tensor(row.draws).clamp_min(0).std())
    assert spread > 0.05
    for name in ("relabelled", "random", "redrawn"):  # drawn once
        assert report[name].noise >= spread
        note = f"{RIVALS[name].capitalize()} was drawn once: the spread of its draws is taken to be the largest"
        assert any(one.startswith(note) for one in report.notes)
    assert not any("drawn once" in note for note in planted_report().notes)
    assert report["average_map"].noise == pytest.approx(planted_report()["average_map"].noise)  # it is not drawn
    subject = Subject.open(made.model, made.feature, (3, 32, 32))
    other = redrawn(subject, whole=True)  # as the report's first draw
    batches = Batches(images, device=torch.device("cpu"), dtype=torch.float32, batch_size=16)
    again = refound(subject, circuit, batches, other)
    assert len(again) == len(circuit)
    with torch.no_grad():
        values = other.maps(held_out, other.masks(again, (3, 32, 32), effective=True)).double()
        wanted = subject.maps(held_out).double()
    r2 = 1 - (values - wanted).square().sum() / (wanted - wanted.mean()).square().sum()
    assert row.draws[0] == pytest.approx(float(r2), abs=1e-4)


def test_a_circuit_found_alike_is_compared_with_the_circuit_itself(monkeypatch):
    made, images, held_out, circuit = planted()
    fitted = measuring.fitted

    def badly(subject, control, fit):
        one = fitted(subject, control, fit)
        return replace(one, gain=LayerTable({layer: 0.5 * gain for layer, gain in one.gain.items()}))

    for good in (True, False):  # whether the same kernels, and those of the controls, are fitted well
        monkeypatch.setattr(measuring, "fitted", fitted if good else badly)
        report = cc.controls(made.model, circuit, held_out, fit=images, draws=1, descents=1)
        own, again = report.circuit.r2_interior, min(report.circuit.r2_interior, report["refitted"].r2_interior)
        assert (again > own - 0.05) == good
        margins = {name: again - max(0, report[name].r2_interior) for name in BY_DEFAULT}
        margins["refound"] = own - max(0, report["refound"].r2_interior)
        assert report.margin == margins[report.best] == min(margins.values())


def test_constants_that_the_procedure_does_not_give_do_not_count():
    made, images, held_out, _ = planted()
    one_twin = cc.Circuit.from_masks(made.model, made.feature, made.alternatives[0], input_shape=(3, 32, 32))
    circuit = cc.refit(made.model, one_twin, images, toward=0)  # the gains make up for the other
    circuit = replace(circuit, provenance=dict(circuit.provenance) | {"calibration": {"method": "none"}})
    report = cc.controls(made.model, circuit, held_out, fit=images, draws=1)
    refitted = report["refitted"].r2_interior
    assert refitted < report.circuit.r2_interior - report.noise
    assert report.margin == refitted - max(0, report[report.best].r2_interior)
    assert f"({refitted:.2f} if its kernels are fitted again as the controls are)" in report.verdict_sentence
    assert "fitted again" not in planted_report().verdict_sentence


def test_the_noise_is_that_of_draws_and_of_resampled_images():
    report = planted_report()
    spreads = [torch.tensor(report[name].draws).clamp_min(0).std() for name in ("relabelled", "random", "redrawn")]
    for name, spread in zip(("relabelled", "random", "redrawn"), spreads, strict=True):
        assert report[name].noise >= 2 * spread
    assert report.noise == report[report.best].noise
    assert report.margin == report[report.best].margin == min(report[name].margin for name in BY_DEFAULT)
    for row in (report.circuit, report["refitted"], report["without_circuit"]):
        assert math.isnan(row.margin)
        assert math.isnan(row.noise)
    made, images, held_out, circuit = planted()
    several = cc.controls(made.model, circuit, held_out.repeat(4, 1, 1, 1), fit=images, draws=1)
    once = cc.controls(made.model, circuit, held_out, fit=images, draws=1)
    assert several.margin == pytest.approx(once.margin)
    assert several.noise == pytest.approx(once.noise / 2, rel=0.15)  # four times as many images
    names = list(range(len(held_out))) * 4
    crops = cc.controls(made.model, circuit, held_out.repeat(4, 1, 1, 1), fit=images, draws=1, photographs=names)
    assert (crops.margin, crops.noise) == pytest.approx((once.margin, once.noise))  # but no more photographs
    assert any(f"crops of {len(held_out)} photographs" in note for note in crops.notes)
    with pytest.raises(cc.ConvCircuitsError, match="give the photograph of each image"):
        cc.controls(made.model, circuit, held_out, fit=images, draws=1, photographs=names)
    assert once.verdict_sentence.endswith(", that of the images alone, since each control was drawn once.")
    assert "drawn once" not in report.verdict_sentence


def test_a_dense_circuit_has_graphs_that_are_nearly_the_same():
    model = CASE.build()
    report = cc.controls(model, found(model, density=1.0), CASE.images(4, 2), fit=CASE.images(5, 1), draws=1)
    assert report["relabelled"].r2 == pytest.approx(1)
    assert report.margin == pytest.approx(0)
    assert report.verdict == "not found"
    assert any(
        note.startswith("100% of the circuit's kernels are also in its relabelled graphs") for note in report.notes
    )


def test_controls_that_cannot_be_made_are_left_out_and_noted():
    generator = torch.Generator().manual_seed(0)
    images, held_out = torch.randn(12, 3, 8, 8, generator=generator).split(6)
    model = WithConstant().eval()
    circuit = cc.find(model, cc.Feature("head", 1), images, criterion="snip", density=0.5)
    report = cc.controls(model, circuit, held_out, fit=images)
    assert "relabelled" not in {row.name for row in report.controls}
    assert any(note.startswith("The circuit is not compared with its graph on other filters.") for note in report.notes)
    model = net().float()
    nn.utils.parametrizations.weight_norm(model.conv)
    circuit = cc.find(model, cc.Feature("head", 1), images, criterion="snip", density=0.5)
    report = cc.controls(model, circuit, held_out, fit=images)
    assert "redrawn" not in {row.name for row in report.controls}
    beginning = "The circuit is not compared with the same graph of other weights"
    assert any(note.startswith(f"{beginning}. The weights of conv are computed") for note in report.notes)
    circuit = cc.find(model, cc.Feature("head", 1), images, density=0.5)
    report = cc.controls(model, circuit, held_out, fit=images, draws=1, descents=1)
    assert "refound" not in {row.name for row in report.controls}
    assert any(note.startswith(f"{beginning}, nor with {RIVALS['refound']}. The weights") for note in report.notes)


def test_controls_that_are_fitted_on_other_images_than_the_circuit_are_noted():
    made, _, held_out, circuit = planted()
    note = (
        "The circuit was found on 24 images, and the controls were fitted on another set of 9, so they are not treated"
    )
    assert f"{note} alike." in cc.controls(made.model, circuit, held_out, fit=planted_images(9, seed=4), draws=1).notes
    assert not any("not treated alike" in one for one in planted_report().notes)


@pytest.mark.parametrize("granularity", ["filter", "weight"])
def test_other_granularities(granularity):
    model, images = CASE.build(), CASE.images(6, 1)
    circuit = found(model, granularity=granularity)
    report = cc.controls(model, circuit, CASE.images(4, 2), fit=images, draws=1)
    assert {row.name for row in report.controls} == {*BY_DEFAULT, *CHECKS} - {"refitted"}


def test_the_model_stays_as_it_is():
    model, images = CASE.build(), CASE.images(6, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cc.controls(model, cc.refit(model, found(model), images), CASE.images(4, 2), fit=images, draws=1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_progress_has_a_phase_for_each_fit():
    phases, counts = [], []

    class Told:
        def phase(self, name):
            phases.append(name)

        def __call__(self, done, total):
            counts.append((done, total))

    model, images = CASE.build(), CASE.images(6, 1)
    circuit = cc.refit(model, found(model), images)
    cc.controls(model, circuit, CASE.images(4, 2), fit=images, draws=2, progress=Told())
    fits = ["relabelled"] * 2 + ["random"] * 2 + ["refitted"] + ["redrawn"] * 2
    assert phases == [*(f"fitting a control: {name}" for name in fits), "measuring the controls"]
    assert counts[-1] == (4, 4)


def test_mistakes():
    model, images = CASE.build(), CASE.images(6, 1)
    with pytest.raises(cc.ConvCircuitsError, match="Expected a Circuit, got str"):
        cc.controls(model, "circuit", images, fit=images)
    with pytest.raises(cc.ConvCircuitsError, match="draws must be"):
        cc.controls(model, found(model), images, fit=images, draws=0)
    with pytest.raises(cc.ConvCircuitsError, match="descents must be"):
        cc.controls(model, found(model), images, fit=images, descents=-1)
    with pytest.raises(cc.ConvCircuitsError, match="was not found by a descent from the full model"):
        cc.controls(model, found(model), images, fit=images, descents=1)
    inside = found(model, criterion="progressive", density=0.2, circuit=found(model, density=0.8))
    with pytest.raises(cc.ConvCircuitsError, match="was not found by a descent from the full model"):
        cc.controls(model, inside, images, fit=images, descents=1)
    with pytest.raises(cc.ConvCircuitsError, match="belongs to another model"):
        cc.controls(NETS["no_bias"].build(), found(model), images, fit=images)


def test_it_shows_as_text_html_table_and_json():
    report = planted_report()
    text, html, table = report.summary(), report._repr_html_(), report.to_pandas()
    for words in ("the same graph on other filters", "the full model without the circuit", report.verdict_sentence):
        assert words in text
        assert words in html
    assert f"{report['redrawn'].r2_interior:.3f}" in text
    assert f"{report.constants:,} constants fitted" in text
    assert list(table.index) == ["circuit", *BY_DEFAULT, *CHECKS]
    assert table.loc["random", "r2"] == report["random"].r2
    assert table.loc["random", "margin"] == report["random"].margin
    assert table.loc["random", "noise"] == report["random"].noise
    for kind in ("inside", "central", "unknown"):
        rows = replace(report, interior=kind).summary().splitlines()[1 : 3 + len(report.controls)]
        assert {len(re.split(r" {3,}", row)) for row in rows} == {6}
        assert len({len(row) for row in rows}) == 1
    assert f"{report['redrawn'].margin:.3f}" in text
    assert f"{report['redrawn'].noise:.3f}" in text
    assert report.as_dict()["circuit"]["margin"] is None
    assert json.loads(json.dumps(report.as_dict()))["margin"] == report.margin
    assert replace(report, noise=math.nan).as_dict()["noise"] is None
    with pytest.raises(KeyError):
        report["other"]


def test_the_verdict():
    def said(noise=0.1, *, fitted=True, drawn_once=False, noises=(), **r2):
        noises = dict.fromkeys(RIVALS, noise) | dict(noises)
        about = {"feature": "layer:3", "where": "the interior"}
        return judged(r2, noises, fitted=fitted, drawn_once=drawn_once, **about)

    rivals = {"relabelled": -0.004, "random": 0.2, "average_map": 0.1}
    assert said(circuit=0.7, **rivals) == (
        "found",
        "The circuit of layer:3 was found: R2 on the interior is 0.70; the same graph on other filters, fitted alike, "
        "reaches 0.00, and the best control, a random circuit of equal size, 0.20. The margin of 0.50 is above "
        "its noise of 0.10.",
    )
    assert said(circuit=0.1, average_map=-0.2, random=-0.3, fitted=False) == (
        "not found",
        "The circuit of layer:3 was not found: R2 on the interior is 0.10; the best control, the average training "
        "map, reaches -0.20 (less than a constant). The margin of 0.10 is not above its noise of 0.10.",
    )
    assert said(circuit=0.7, noises={"relabelled": 0.71, "average_map": 0.6}, **rivals) == (
        "not found",
        "The circuit of layer:3 was not found: R2 on the interior is 0.70; the same graph on other filters, fitted "
        "alike, reaches 0.00, and the best control, a random circuit of equal size, 0.20. The margin of 0.50 is above "
        "its noise of 0.10, but the one over the average training map, which reaches 0.10, is 0.60, not above its own "
        "of 0.60.",
    )
    for held, words in (
        (0.696, "is 0.70; "),
        (0.694, "is 0.70 (0.69 if its kernels are fitted again as the controls are); "),
    ):
        assert f"R2 on the interior {words}" in said(circuit=0.7, refitted=held, **rivals)[1]
    _, sentence = said(circuit=0.7, **rivals | {"relabelled": 0.3})
    assert "; the best control, the same graph on other filters, fitted alike, reaches 0.30. The" in sentence
    assert said(circuit=0.7, redrawn=math.nan, noises={"redrawn": math.nan}, **rivals) == said(circuit=0.7, **rivals)
    for undefined in ({"circuit": math.nan}, {"circuit": 0.7, "noises": {"average_map": math.nan}}):
        assert said(**rivals | undefined) == (
            "not decided",
            "Whether the circuit of layer:3 was found is not decided: R2 on the interior, or its noise, is not "
            "defined.",
        )


def test_a_control_without_a_figure_is_left_out_and_noted():
    made, images, held_out, circuit = planted()
    larger = torch.nn.functional.interpolate(held_out, scale_factor=1.25)  # of which there is no average training map
    report = cc.controls(made.model, circuit, larger, fit=images, draws=2)
    assert math.isnan(report["average_map"].r2)
    assert math.isnan(report["average_map"].margin)
    assert report.best != "average_map"
    assert report.verdict in ("found", "not found")
    assert any(note.startswith("The circuit is not compared with the average training map") for note in report.notes)
    over = {"relabelled": ("circuit", 0.5)}
    resampled = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).double()
    for draws in ([0.1, 0.3, math.nan], [math.nan, 0.3, 0.1]):  # a draw that is not defined does not count
        noises, once = measuring._noises(over, {"circuit": 0, "relabelled": 1}, {"relabelled": draws}, resampled)
        assert noises["relabelled"] > 2 * 0.2 / math.sqrt(2)
        assert once == []


def test_a_feature_that_does_not_vary_is_not_decided():
    model, images = CASE.build(), CASE.images(6, 1)
    circuit = found(model)
    same = images[:1].repeat(4, 1, 1, 1)
    feature = cc.Feature("features.3", 1, position="max")
    circuit = replace(circuit, feature=feature, gain=LayerTable())
    report = cc.controls(model, circuit, same, fit=images, draws=1)
    assert report.verdict == "not decided"
    assert report.as_dict()["margin"] is None


def test_images_that_were_fitted_on_are_noted():
    model, images = CASE.build(), CASE.images(6, 1)
    circuit = found(model)
    for held_out, noted in ((images.flip(0), True), (CASE.images(4, 2), False)):
        report = cc.controls(model, circuit, held_out, fit=images, draws=1)
        assert any("the same images that the controls were fitted on" in note for note in report.notes) == noted


def test_one_image_does_not_decide():
    model, images = CASE.build(), CASE.images(6, 1)
    report = cc.controls(model, found(model), images[:1], fit=images, draws=2)
    assert math.isfinite(report.margin)
    assert report.verdict == "not decided"
