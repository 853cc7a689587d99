"""The diagram as a whole: what it says it measured, against circuits made and measured by themselves."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convcircuits as cc
from cases import calibration
from convcircuits.circuits.control_circuits import random_like
from convcircuits.drawing import build, figure, sheet
from convcircuits.drawing.data import Document, EdgeKind, NodeKind, View
from convcircuits.drawing.tiles import read_data_url
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from convcircuits.values.controls import RIVALS, STRICTEST
from convcircuits.values.tables import LayerTable
from convcircuits.version import __version__
from nets import NETS, seeded

SHAPE = (3, 12, 12)


class Broad(nn.Module):
    """More filters in a layer, and kernels into a filter, than the default view draws."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 15, 3)
        self.conv2 = nn.Conv2d(15, 16, 3)
        self.head = nn.Conv2d(16, 3, 3)

    def forward(self, x):
        return self.head(self.conv2(self.conv1(x).relu()).relu())


FEATURE = cc.Feature("head", 1)
FIGURES = ["r2", "r2_interior", "r2_rectified", "r2_average_map", "r2_average_map_interior"]
FIGURES += ["r2_random", "r2_random_interior"]


def images(count, seed=0):
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    return seeded(Broad, 5)()


def found(model, granularity="kernel", seed=0, density=0.6, criterion="random"):
    """A circuit that is alive: by a random criterion the first one from a seed on."""
    options = {"criterion": criterion, "density": density, "granularity": granularity}
    tried = (cc.find(model, FEATURE, images(3), seed=seed + step, **options) for step in range(0, 40, 2))
    return next(circuit for circuit in tried if cc.evaluate(model, circuit, images(1)).effective_kernels)


def control_of(model, circuit):
    network = Network(model)
    return random_like(Subject(network, FEATURE, survey(network, FEATURE, SHAPE)), circuit, seed=0)


def part_of(model, document, variant, circuit):
    """A circuit of what the default view draws of one variant, put together by layer, filter and channel."""
    edges, shown = document.edges, figure.drawn(document, View(variant=variant))
    masks = {}
    for layer in document.layers:
        weight = model.get_submodule(layer.name).weight
        masks[layer.name] = torch.zeros(weight.shape[:2], dtype=torch.bool)
    for e in shown.edges:
        masks[document.layers[edges.layer[e]].name][edges.out[e], edges.in_[e]] = True
    if circuit.granularity == "weight":
        masks = {layer: mask[:, :, None, None] & circuit.elements[layer] for layer, mask in masks.items()}
    granularity = "weight" if circuit.granularity == "weight" else "kernel"
    return shown, cc.Circuit.from_masks(model, FEATURE, masks, granularity=granularity, input_shape=SHAPE)


@pytest.mark.parametrize("granularity", ["kernel", "filter", "weight"])
def test_what_it_says_it_measured_is_what_evaluate_says_of_each_circuit_and_of_each_drawn_part(model, granularity):
    circuit, other = found(model, granularity), found(model, granularity, seed=1)
    held_out, fit = images(6, seed=1), images(8, seed=2)
    diagram = cc.diagram(model, circuit, images=images(9, 4), held_out=held_out, fit=fit, against=other, batch_size=4)
    document = diagram.document
    assert [variant.role for variant in document.variants] == ["circuit", "against", "control"]
    assert document.held_out.count == 6
    control = control_of(model, circuit)
    for n, (variant, whole) in enumerate(zip(document.variants, (circuit, other, control), strict=True)):
        report = cc.evaluate(model, whole, held_out, fit=fit)
        for name in FIGURES if variant.role != "control" else FIGURES[:5]:
            assert getattr(variant.fidelity, name) == pytest.approx(getattr(report, name), rel=1e-9), name
        assert variant.fidelity.interior == report.interior
        if variant.role == "control":
            assert variant.fidelity.r2_random is None
        else:
            assert variant.fidelity.verdict == report.verdict
            assert variant.fidelity.sentence == report.verdict_sentence
        assert (variant.kernels, variant.filters) == (report.effective_kernels, report.effective_filters)
        shown, part = part_of(model, document, n, whole)
        assert 0 < shown.kernels < variant.kernels
        measured = cc.evaluate(model, part, held_out)
        assert variant.fidelity.drawn.r2 == pytest.approx(measured.r2, rel=1e-9)
        assert variant.fidelity.drawn.kernels == shown.kernels == measured.effective_kernels
        assert variant.fidelity.drawn.path == pytest.approx(shown.path)
    assert diagram.caption == figure.drawn(document).caption
    fidelity = document.variants[0].fidelity
    assert fidelity.r2_random == document.variants[2].fidelity.r2
    for name in FIGURES:
        number = f"{getattr(fidelity, name):.2f}".replace("-0.00", "0.00")
        assert number.replace("-", "\N{MINUS SIGN}") in diagram.caption, name
    assert re.match(r'"[^"]+, no. 1" (keeps|does not keep)', diagram.caption)
    report = cc.evaluate(model, circuit, held_out, fit=fit)
    assert set(report.notes) <= set(document.meta.notes)
    assert len(set(document.meta.notes)) == len(document.meta.notes)
    assert "6 held-out images" in diagram.caption
    assert "they were not measured" in diagram.caption  # the comparison draws another part than each circuit alone
    assert "not measured" not in figure.drawn(document, View()).caption


def test_the_average_map_is_that_of_the_images_given_for_it(model):
    circuit, held_out, fit = found(model), images(6, seed=1), images(5, seed=3)
    fidelity = (
        cc.diagram(model, circuit, images=images(8, seed=2), held_out=held_out, fit=fit).document.variants[0].fidelity
    )
    report = cc.evaluate(model, circuit, held_out, fit=fit)
    assert report.r2_average_map != cc.evaluate(model, circuit, held_out, fit=images(8, seed=2)).r2_average_map
    for name in FIGURES:
        assert getattr(fidelity, name) == pytest.approx(getattr(report, name), rel=1e-9), name


def test_without_held_out_images_the_caption_says_that_nothing_was_measured(model):
    diagram = cc.diagram(model, found(model), images=images(4))
    assert diagram.document.held_out is None
    assert {variant.fidelity for variant in diagram.document.variants} == {None}
    assert "keeps was not measured on held-out images" in diagram.caption
    assert "as a network of their own they were not measured" in diagram.caption
    assert "R²" not in diagram.caption


def test_without_images_there_are_the_first_kernels_and_nothing_that_images_would_tell(model):
    circuit = found(model)
    diagram = cc.diagram(model, circuit)
    document = diagram.document
    assert document.images is None
    assert [pictures.name for pictures in document.pictures] == ["patches"]
    pictured = document.pictures[0].tiles[:, 0] >= 0
    first = (document.nodes.kind == NodeKind.FILTER) & (document.nodes.column == 0)
    assert np.array_equal(pictured, first)
    assert any("no images were given" in note for note in document.meta.notes)
    assert "sum" in document.meta.notes[0]
    figure.svg(document)
    same = cc.diagram(model, circuit, held_out=images(2)).document
    assert same.images is None
    assert np.array_equal(same.edges.sign, document.edges.sign)


def test_images_that_a_circuit_was_found_on_are_not_called_held_out(model):
    circuit = found(model)
    seen = circuit.provenance["images"]["count"]
    for given, said in ((images(seen), "on the very"), (images(seen, seed=1), "held-out images")):
        diagram = cc.diagram(model, circuit, held_out=given)
        same = circuit.provenance["images"] == cc.evaluate(model, circuit, given).provenance["images"]
        assert diagram.document.variants[0].fidelity.found_on == same == (said == "on the very")
        assert said in diagram.caption.lower()
    assert "held-out" not in cc.diagram(model, circuit, held_out=images(seen)).caption


def test_a_feature_that_is_constant_on_the_held_out_images_has_no_r2(model):
    model.head.bias.data[:] = -1e6
    relu = nn.Sequential(*model.children())
    relu.add_module("3", nn.ReLU())
    feature = cc.Feature("3", 1)
    circuit = cc.find(relu, feature, images(2), criterion="magnitude", density=0.5)
    diagram = cc.diagram(relu, circuit, held_out=images(3))
    assert all(variant.fidelity.r2 is variant.fidelity.drawn.r2 is None for variant in diagram.document.variants)
    assert "Whether the circuit keeps the feature is not decided" in diagram.caption
    assert "has no R\u00b2, as the feature is constant" in diagram.caption
    assert Document.from_json(diagram.document.to_json()).variants[0].fidelity.r2 is None


def test_colours_follow_what_kernels_add_on_the_images(model):
    """On images of the opposite sign, a first kernel adds the opposite."""
    circuit, positive = found(model, density=1.0), images(4).abs()
    some, others = (cc.diagram(model, circuit, images=x).document for x in (positive, -positive))
    first = some.edges.weighted & (some.nodes.kind[some.edges.source] == NodeKind.IMAGE)
    total = model.conv1.weight.detach().sum((2, 3)).numpy()
    for document, sign in ((some, 1), (others, -1)):
        # The mean of a convolution without padding is near the sum of weights times the mean: where that is not small.
        clear = first & (np.abs(total[document.edges.out % 15, document.edges.in_ % 3]) > 0.5)
        assert clear.sum() > 5
        expected = sign * np.sign(total[document.edges.out[clear], document.edges.in_[clear]])
        assert np.array_equal(document.edges.sign[clear], expected)
    assert any("averaged over the images" in note for note in some.meta.notes)


def test_what_it_is_of_is_said(model):
    circuit = found(model, criterion="snip")
    meta = cc.diagram(model, circuit).document.meta
    assert (meta.feature, meta.criterion, meta.granularity) == ("head:1", "snip", "kernel")
    assert "head:1" in meta.title
    assert meta.model in meta.title
    assert meta.file == f"{meta.model}-head-1"
    assert meta.versions == {"convcircuits": __version__, "torch": torch.__version__}
    assert cc.diagram(model, circuit, title="Mine").document.meta.title == "Mine"
    masks = {layer: kept.clone() for layer, kept in circuit.elements.items()}
    by_hand = cc.Circuit.from_masks(model, FEATURE, masks, input_shape=SHAPE)
    assert cc.diagram(model, by_hand).document.meta.criterion is None


def test_the_same_input_gives_the_same_document_and_the_seed_another_random_circuit(model):
    circuit = found(model)
    options = {"images": images(5), "held_out": images(3, seed=1)}
    first = cc.diagram(model, circuit, **options).document
    assert cc.diagram(model, circuit, **options).document.to_json() == first.to_json()
    other = cc.diagram(model, circuit, seed=3, **options).document
    assert [v.kept for v in other.variants] == [v.kept for v in first.variants]
    kept = [
        {
            (d.edges.layer[e], d.edges.out[e], d.edges.in_[e])
            for e in np.flatnonzero(d.edges.weighted & (d.variants[n].rank >= 0))
        }
        for d in (first, other)
        for n in (0, 1)
    ]
    assert kept[0] == kept[2]
    assert kept[1] != kept[3]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_plays_no_part(model, batch_size):
    circuit, options = found(model), {"images": images(5), "held_out": images(3, seed=1)}
    one = cc.diagram(model, circuit, **options).document
    other = cc.diagram(model, circuit, batch_size=batch_size, **options).document
    assert one.images.names == other.images.names
    assert np.array_equal(one.pictures[0].tiles, other.pictures[0].tiles)
    np.testing.assert_allclose(one.images.effect, other.images.effect, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(
        [v.fidelity.r2 for v in one.variants], [v.fidelity.r2 for v in other.variants], rtol=1e-9
    )


def test_a_shuffling_loader_will_do_and_only_so_many_images_are_looked_at(model, monkeypatch):
    monkeypatch.setattr(build, "MOST_IMAGES", 6)
    given = images(20)
    loader = DataLoader(
        TensorDataset(given, torch.zeros(20)),
        batch_size=4,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    document = cc.diagram(model, found(model), images=loader).document
    assert {int(name.split()[1]) for name in document.images.names} <= set(range(6))
    # Each image that is shown is one of those given, with its own response in the full model.
    full = cc.activations(model, FEATURE, given).flatten(1).mean(1).numpy()
    for response in document.images.target.full_mean:
        assert np.abs(full - response).min() < 1e-5
    assert len(set(document.images.names)) == len(document.images.names) > 3


def test_it_works_without_gradients_with_frozen_parameters_and_leaves_the_model_as_it_was(model):
    circuit = found(model)
    model.requires_grad_(False).train()
    before = {name: (value.clone(), value._version) for name, value in model.state_dict(keep_vars=True).items()}
    with torch.no_grad():
        cc.diagram(model, circuit, images=images(3), held_out=images(2, seed=1))
    assert model.training
    for name, value in model.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name][0])
        assert (value._version, value.requires_grad, value.grad) == (before[name][1], False, None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Phases:
    """A progress that is told what begins."""

    def __init__(self):
        self.told = []

    def phase(self, name):
        self.told.append((name, []))

    def __call__(self, done, total):
        self.told[-1][1].append((done, total))


@pytest.mark.slow
@pytest.mark.parametrize("pictures", ["patches", "features"])
def test_a_progress_with_phases_is_told_what_each_pass_is_for(model, pictures):
    """Under one name it is counted once, up to what there is; without phases the same is counted."""
    circuit = cc.find(model, FEATURE, images(5), criterion="force", density=0.6, steps=3)
    both, plain, progress = torch.cat([images(5), images(4, seed=1)]), [], Phases()
    options = {"images": both, "held_out": images(3), "pictures": pictures, "batch_size": 2}
    cc.diagram(model, circuit, progress=lambda *progress: plain.append(progress), **options)
    cc.diagram(model, circuit, progress=progress, **options)
    names = [name for name, told in progress.told if told]
    assert len(set(names)) == len(names)
    assert names[0] == "reading images"
    assert sum(name.startswith("finding ") for name in names) == 3
    assert {"running the model on images", "measuring on held-out images", "choosing patches"} <= set(names)
    assert ("visualizing filters in the circuit" in names) == (pictures == "features")
    assert "visualizing the feature in the full model" in names
    for name, told in progress.told:
        done = [one for one, _ in told]
        assert done == sorted(set(done)), name
        assert len({total for _, total in told}) <= 1, name
    assert plain == [one for _, told in progress.told for one in told]


@pytest.mark.parametrize("given", ["found on", "begin with them", "others", "others and fit", "none"])
def test_the_average_map_is_of_the_images_that_it_was_found_on_or_there_is_none(model, given):
    own, others, held_out = images(5, seed=3), images(7, seed=4), images(6, seed=1)
    circuit = cc.find(model, FEATURE, own, criterion="snip", density=0.6)
    options = {
        "found on": {"images": own},
        "begin with them": {"images": torch.cat([own, others])},
        "others": {"images": others},
        "others and fit": {"images": others, "fit": own},
        "none": {},
    }[given]
    drawn = cc.diagram(model, circuit, held_out=held_out, **options)
    fidelity = drawn.document.variants[0].fidelity
    known = given not in ("others", "none")
    report = cc.evaluate(model, circuit, held_out, fit=own if known else None)
    if known:
        assert fidelity.r2_average_map == pytest.approx(report.r2_average_map, rel=1e-9)
    else:
        assert fidelity.r2_average_map is fidelity.r2_average_map_interior is None
    for said, there in ((", which needs no network, reaches", known), ("there is no baseline", not known)):
        assert (said in drawn.caption) == there
    assert any(note.startswith("There is no average map ") for note in drawn.document.meta.notes) != known
    assert set(report.notes) <= set(drawn.document.meta.notes)


@pytest.mark.slow
def test_progress_is_told_of_images_and_of_visualisations(model):
    told = []
    options = {"held_out": images(3), "progress": lambda *progress: told.append(progress)}
    cc.diagram(model, found(model, density=0.2, criterion="actgrad"), pictures="features", **options)
    totals = list(dict.fromkeys(total for _, total in told))
    assert totals[0] == 3
    assert len(totals) > 1
    assert all(0 <= done <= total for done, total in told)


def test_progress_is_told_while_smaller_circuits_are_found_anew_and_patches_are_sought(model, monkeypatch):
    """FORCE runs again on the 5 images that it was found on; all 9 are looked at, and no map is drawn from them yet."""
    circuit = cc.find(model, FEATURE, images(5), criterion="force", density=0.6, steps=3)
    both = torch.cat([images(5), images(4, seed=1)])
    told = []
    cc.diagram(model, circuit, images=both, batch_size=2, progress=lambda *progress: told.append(progress))
    assert {total for _, total in told} == {9, 4 * 5, 1}  # FORCE is three steps and what begins them; one picture
    assert sum(progress == (20, 20) for progress in told) == 3
    assert sum(progress == (9, 9) for progress in told) >= 3  # held in memory, ranked, patches


@pytest.mark.parametrize("name", ["residual", "mobile", "se_conv", "flat_head", "dense", "twice"])
def test_every_kind_of_net_makes_a_document_that_comes_back_from_json(name):
    case = NETS[name]
    model, (layer, unit) = case.build(), case.features[-1]
    circuit = cc.find(model, cc.Feature(layer, unit), case.images(2), criterion="actgrad", density=0.8)
    document = cc.diagram(model, circuit, images=case.images(4), held_out=case.images(3, seed=1)).document
    assert Document.from_json(document.to_json()).to_json() == document.to_json()
    json.loads(document.to_json(), parse_constant=pytest.fail)
    shown = figure.drawn(document)
    assert document.target in shown.nodes
    assert document.variants[0].fidelity.r2 is not None
    kernels = document.edges.kind == EdgeKind.KERNEL
    read = {document.target, *document.edges.source[kernels].tolist()}  # what a gate alone reads has no map
    assert set(shown.nodes) & read
    assert (document.pictures[0].tiles[sorted(set(shown.nodes) & read), 0] >= 0).all()
    assert "<svg " in figure.svg(document)


# ---------------------------------------------------------------------- errors


def test_what_is_no_circuit_is_refused(model):
    scores = cc.score(model, FEATURE, images(2), criterion="snip")
    for wrong in (scores, scores.elements, "f.safetensors", None):
        with pytest.raises(cc.ConvCircuitsError, match=f"Expected a Circuit, got {type(wrong).__name__}"):
            cc.diagram(model, wrong)
    with pytest.raises(cc.ConvCircuitsError, match="Expected a Circuit, got Scores"):
        cc.diagram(model, found(model), against=scores)


def test_a_circuit_of_other_weights_or_of_another_feature_is_refused(model):
    circuit = found(model)
    with pytest.raises(cc.ConvCircuitsError, match="weights"):
        cc.diagram(seeded(Broad, 6)(), circuit)
    other = cc.find(model, cc.Feature("head", 2), images(2), criterion="random", density=0.5)
    with pytest.raises(cc.ConvCircuitsError, match="head:2"):
        cc.diagram(model, circuit, against=other)


def test_other_pictures_and_primaries_of_other_channels_are_refused(model):
    with pytest.raises(cc.ConvCircuitsError, match="'patches', 'features'; got 'patch'"):
        cc.diagram(model, found(model), pictures="patch")
    with pytest.raises(cc.ConvCircuitsError, match="primaries"):
        cc.diagram(model, found(model), primaries=torch.zeros(4, 1))


def test_images_that_do_not_fit_are_refused(model):
    circuit = found(model)
    with pytest.raises(cc.ConvCircuitsError):
        cc.diagram(model, circuit, images=torch.zeros(2, 1, 12, 12, dtype=torch.float64))
    with pytest.raises(cc.ConvCircuitsError, match="iterator"):
        cc.diagram(model, circuit, images=iter([images(2)]))
    with pytest.raises(cc.ConvCircuitsError):
        cc.diagram(model, circuit, images=images(0))


def test_a_circuit_that_leads_nowhere_is_refused_before_images_are_run(model):
    circuit = cc.Circuit.from_masks(model, FEATURE, {"conv1": torch.ones(15, 3)}, input_shape=SHAPE)
    with pytest.raises(cc.ConvCircuitsError, match="nothing to draw"):
        cc.diagram(model, circuit, held_out=images(2))


def test_gain_and_offset_of_a_circuit_are_measured_too(model):
    plain = found(model)
    circuit = dataclasses.replace(plain, **calibration(plain.kernels))
    held_out = images(4, seed=2)
    (variant, _) = cc.diagram(model, circuit, held_out=held_out).document.variants
    assert variant.fidelity.r2 == pytest.approx(cc.evaluate(model, circuit, held_out).r2, rel=1e-9)
    assert variant.fidelity.r2 != pytest.approx(cc.evaluate(model, plain, held_out).r2, rel=1e-3)


def test_a_drawable_circuit_is_drawn_whole_with_its_constants(model):
    given, held_out = images(12), images(6, seed=1)
    circuit = cc.find(model, FEATURE, given, criterion="progressive", filters=12, fan_in=6, start=0.5)
    report = cc.evaluate(model, circuit, held_out, fit=given)
    kernels, filters = report.effective_kernels, report.effective_filters
    assert kernels > 5 * 12  # more than five kernels of a filter
    drawn = cc.diagram(model, circuit, images=given, held_out=held_out)
    document = drawn.document
    assert [variant.role for variant in document.variants[:2]] == ["circuit", "control"]
    shown = figure.drawn(document)
    assert (shown.kernels, shown.filters) == (kernels, filters)
    assert shown.path == pytest.approx(1)
    assert f"The whole circuit is drawn: {filters} filters and {kernels} kernels." in drawn.caption
    constants = f"has {circuit.constants} constants (gains of kernels, offsets of filters) fitted on 12 images."
    assert constants in drawn.caption
    assert "complete drawn paths" not in drawn.caption
    fidelity = document.variants[0].fidelity
    assert fidelity.r2 == fidelity.drawn.r2 == pytest.approx(report.r2, rel=1e-9)
    assert fidelity.random_refitted
    assert fidelity.r2_random == pytest.approx(report.r2_random, rel=1e-9) == document.variants[1].fidelity.r2
    assert any("in the circuit that is drawn, with its gains" in note for note in document.meta.notes)
    text = figure.svg(document)
    assert "more connections, hidden" not in text
    assert not re.search(r"\+\d+ more", text)


@pytest.mark.parametrize("granularity", ["kernel", "filter"])
def test_widths_are_effects_in_the_refitted_circuit(model, granularity):
    given = images(12)
    plain = found(model, granularity)
    circuit = cc.refit(model, plain, given)
    about = {"criterion": "gauss_newton", "centered": True, "draws": 2, "granularity": granularity}
    scores = cc.score(model, FEATURE, given, circuit=circuit, **about)
    expected = dataclasses.replace(
        plain, saliency=LayerTable({a: s.nan_to_num(0).to(plain.saliency[a].dtype) for a, s in scores.elements.items()})
    )
    document = cc.diagram(model, circuit, images=images(3, seed=8), fit=given).document
    wanted = cc.diagram(model, expected).document
    for made, other in zip(document.variants[:1], wanted.variants[:1], strict=True):
        np.testing.assert_allclose(made.saliency, other.saliency, rtol=1e-5)
        np.testing.assert_array_equal(made.rank, other.rank)
    recorded = cc.diagram(model, circuit).document
    for one, words in (
        (document, "thicker = larger effect in the refitted circuit (estimate)"),
        (recorded, "thicker = mattered more before the constants were fitted"),
        (wanted, "thicker = matters more"),
    ):
        drawn = re.sub("<desc>.*</desc>", "", figure.svg(one))
        assert re.findall("thicker = [^<]*", drawn) == [words]
    assert not np.allclose(document.variants[0].saliency, recorded.variants[0].saliency, equal_nan=True)
    assert any("measured before the gains" in note for note in recorded.meta.notes)
    assert circuit.saliency == plain.saliency


def test_effects_that_cannot_be_measured_are_said(model, monkeypatch):
    circuit = cc.refit(model, found(model), images(12))

    def refuse(*_):
        raise cc.ConvCircuitsError("No gradient reaches conv1.")

    monkeypatch.setattr(sheet, "with_effects", refuse)
    document = cc.diagram(model, circuit, images=images(12)).document
    notes = " ".join(document.meta.notes)
    assert f"The effects of kernels in {circuit!r} could not be measured: No gradient reaches conv1." in notes
    assert "Saliency, which sets the width of edges, was measured before" in notes
    assert document.variants[0].calibration.thicker == sheet.BEFORE


def test_the_slider_offers_the_circuits_of_the_descent(model):
    given, held_out = images(12), images(6, seed=1)
    path = cc.find_path(model, FEATURE, given, filters=4, fan_in=3, start=0.9)
    drawn = cc.diagram(model, path[-1], images=given, held_out=held_out, path=path, controls=False)
    document = drawn.document
    levels = [(n, variant) for n, variant in enumerate(document.variants) if variant.role == "level"]
    offered = [one for one in path[:-1] if len(one) <= 8 * len(path[-1])]
    assert 1 < len(offered) < len(path)
    assert [variant.kept for _, variant in levels] == [len(one) for one in offered]
    for (_, variant), one in zip(levels, offered, strict=True):
        assert variant.name == f"the circuit of the same descent with {len(one):,} kernels"
        assert variant.calibration.constants == one.constants
        assert variant.fidelity.r2 == pytest.approx(cc.evaluate(model, one, held_out).r2, rel=1e-9)
    assert f"{len(path[-1])} kernels" in drawn.caption
    alone = cc.diagram(model, path[-1], images=given, held_out=held_out, controls=False)
    assert drawn.caption == alone.caption
    below = cc.diagram(model, path[-3], path=path).document  # smaller ones, too
    assert min(variant.kept for variant in below.variants if variant.role == "level") == len(path[-1])


def test_a_path_of_another_descent_is_refused(model):
    given = images(12)
    path = cc.find_path(model, FEATURE, given, kernels=40, start=0.9)
    for wrong, said in (
        ([found(model, density=0.3, seed=3)], "Neither of .* lies inside the other"),
        ([found(model, "filter")], "is not of the descent"),
        (path[0], "path must be the circuits of a descent.*; got Circuit"),
        ([3], "path must be the circuits"),
    ):
        with pytest.raises(cc.ConvCircuitsError, match=said):
            cc.diagram(model, path[-1], path=wrong)
    steep = cc.find_path(model, FEATURE, given, kernels=6, start=0.9, ratio=0.05)
    assert len(steep[0]) > 8 * len(steep[-1])
    with pytest.raises(cc.ConvCircuitsError, match="more than 8 times as large as the one that is drawn"):
        cc.diagram(model, steep[-1], path=[steep[0], steep[-1]])


@pytest.mark.parametrize(("criterion", "steps"), [("learned", {"steps": 2, "final": 2}), ("progressive", {})])
def test_only_circuits_of_a_descent_that_trains_have_no_random_one_beside_them(model, criterion, steps):
    given, held_out = images(12), images(6, seed=1)
    path = cc.find_path(model, FEATURE, given, criterion=criterion, filters=4, fan_in=3, start=0.9, **steps)
    drawn = cc.diagram(
        model, path[-1], images=given, held_out=held_out, fit=given, path=path[-3:-1], controls=False
    ).document
    beside = {one.role: one.fidelity.r2_random for one in drawn.variants if one.role != "control"}
    assert list(beside) == ["circuit", "level"]
    assert beside["circuit"] is not None
    assert (beside["level"] is None) == (criterion == "learned")


def fitted_and_controls(model, **asked):
    """A fitted circuit, the images that it was fitted on and others, and its controls."""
    given, held_out = images(12), images(6, seed=1)
    circuit = cc.refit(model, found(model), given)
    return circuit, given, held_out, cc.controls(model, circuit, held_out, fit=given, **asked)


@pytest.mark.parametrize(("seed", "photographs"), [(0, None), (3, "aabbcc")])
def test_a_fitted_circuits_controls_are_those_of_one_draw(model, seed, photographs):
    circuit, given, held_out, report = fitted_and_controls(model, draws=1, seed=seed, photographs=photographs)
    how = {"held_out": held_out, "photographs": photographs, "fit": given, "seed": seed}
    drawn = cc.diagram(model, circuit, against=found(model, seed=1), **how)
    record, *others = (variant.fidelity.controls for variant in drawn.document.variants)
    assert others == [None, None]
    assert (record.verdict, record.sentence, record.best) == (report.verdict, report.verdict_sentence, report.best)
    assert record.margin == pytest.approx(report.margin, rel=1e-9)
    assert record.noise == pytest.approx(report.noise, rel=1e-9)
    assert {rival.name for rival in record.rivals} == {"relabelled", "random", "redrawn", "average_map"}
    for rival in record.rivals:
        for of in ("r2", "r2_interior", "r2_rectified"):
            figure = getattr(report[rival.name], of)
            assert getattr(rival, of) == (pytest.approx(figure, rel=1e-9) if math.isfinite(figure) else None)
    reasons = report.verdict_sentence.split(": ")[-1].replace("R2", "R²").replace(" -", " \N{MINUS SIGN}")
    assert reasons in drawn.caption
    assert "drawn once" in drawn.document.variants[0].fidelity.controls.sentence
    assert set(report.notes) <= set(drawn.document.meta.notes)


@pytest.mark.parametrize("interior", ["inside", "unknown"])
def test_controls_that_are_given_are_shown_and_not_measured_again(model, monkeypatch, interior):
    circuit, _, held_out, report = fitted_and_controls(model, draws=2)
    monkeypatch.setattr(build, "measure_controls", pytest.fail)
    rows = tuple(dataclasses.replace(row, r2=row.r2 - 1) for row in report.controls)
    rows += (dataclasses.replace(rows[0], name="refound"),)
    changes = {"interior": interior, "notes": ("A note of its own.",), "noise": float("nan")}
    report = dataclasses.replace(report, controls=rows, **changes)
    drawn = cc.diagram(model, circuit, held_out=held_out, controls=report)
    record = drawn.document.variants[0].fidelity.controls
    assert (record.sentence, record.margin, record.noise) == (report.verdict_sentence, report.margin, None)
    assert [(rival.name, rival.r2) for rival in record.rivals] == [
        (row.name, row.r2) for row in rows if row.name in RIVALS
    ]
    assert "A note of its own." in drawn.document.meta.notes
    few = tuple(row for row in rows if row.name != "relabelled")
    few = dataclasses.replace(report, controls=few, best="average_map")
    drawn = cc.diagram(model, circuit, held_out=held_out, controls=few)
    record = drawn.document.variants[0].fidelity.controls
    assert "relabelled" not in {rival.name for rival in record.rivals}
    assert record.best == "average_map"


def test_a_verdict_without_the_strictest_control_says_so(model):
    given, held_out = images(12), images(6, seed=1)
    circuit = cc.find(model, FEATURE, given, filters=4, fan_in=3, start=0.9)

    def drawn(circuit, descents):
        report = cc.controls(model, circuit, held_out, fit=given, draws=1, descents=descents)
        report = dataclasses.replace(report, verdict="found", verdict_sentence="The circuit of a:3 was found: so.")
        shown = cc.diagram(model, circuit, held_out=held_out, controls=report)
        return shown.caption, shown.document.variants[0].fidelity.controls.unmeasured

    caption, unmeasured = drawn(circuit, 0)
    assert unmeasured == STRICTEST
    assert f"The circuit was found: so. Not measured: {STRICTEST}." in caption
    caption, unmeasured = drawn(circuit, 1)
    assert unmeasured == ""
    assert "The circuit was found: so. " in caption
    assert STRICTEST not in caption
    caption, unmeasured = drawn(cc.refit(model, found(model), given), 0)  # of no descent, which could be repeated
    assert unmeasured == ""
    assert "The circuit was found: so. " in caption
    assert STRICTEST not in caption


def test_controls_of_another_circuit_or_of_other_images_are_refused(model):
    circuit, _, held_out, report = fitted_and_controls(model, draws=1)

    def refused(words, circuit=circuit, held_out=held_out, report=report):
        with pytest.raises(cc.ConvCircuitsError, match=words):
            cc.diagram(model, circuit, held_out=held_out, controls=report)

    refused("controls must be Controls, True or False; got 'yes'", report="yes")
    refused("Give the images that the controls were measured on as held_out", held_out=None)
    refused("measured on other images than held_out", held_out=held_out[:5])
    refused("of another circuit: of head:2, ", report=dataclasses.replace(report, feature="head:2"))
    refused("of another circuit: .* how it was made", circuit=cc.refit(model, found(model), images(11)))
    refused("of another circuit: .* and 0 constants, and", circuit=found(model))
    smaller = cc.refit(model, found(model, density=0.5), images(12))
    refused(f"The one to draw is of head:1, {len(smaller)} elements", circuit=smaller)
    gain = {layer: torch.where(gain == 1, gain, 1.5 * gain) for layer, gain in circuit.gain.items()}
    refused("of another circuit: of R2 .* on held_out", circuit=dataclasses.replace(circuit, gain=gain))


@pytest.mark.parametrize("why", ["not wanted", "no images that it was found on", "nothing measured"])
def test_without_controls_the_caption_says_so(model, monkeypatch, why):
    given = images(12)
    circuit = cc.refit(model, found(model), given)
    monkeypatch.setattr(build, "measure_controls", pytest.fail)
    options = {
        "not wanted": {"held_out": images(6, seed=1), "fit": given, "controls": False},
        "no images that it was found on": {"held_out": images(6, seed=1)},
        "nothing measured": {"fit": given},
    }[why]
    drawn = cc.diagram(model, circuit, **options)
    assert all(variant.fidelity is None or not variant.fidelity.controls for variant in drawn.document.variants)
    assert "No controls were fitted, so whether its constants made it is not known." in drawn.caption


def test_a_circuit_without_constants_has_no_controls_unless_they_are_given(model, monkeypatch):
    circuit, given, held_out = found(model), images(12), images(6, seed=1)
    report = cc.controls(model, circuit, held_out, fit=given, draws=1)
    monkeypatch.setattr(build, "measure_controls", pytest.fail)
    plain = cc.diagram(model, circuit, held_out=held_out, fit=given)
    assert "controls" not in plain.caption
    assert plain.document.variants[0].fidelity.controls is None
    shown = cc.diagram(model, circuit, held_out=held_out, fit=given, controls=report)
    assert shown.document.variants[0].fidelity.controls.sentence == report.verdict_sentence
    assert f"The circuit was {report.verdict}: R²" in shown.caption


def test_every_edge_has_its_circuits_gain(model):
    plain, other = found(model), found(model, seed=1)
    circuit = dataclasses.replace(plain, **calibration(plain.kernels))
    document = cc.diagram(model, circuit, against=other).document
    edges = document.edges
    assert [variant.calibration is None for variant in document.variants] == [False, True, True]
    assert [variant.name for variant in document.variants] == [
        *(f"random {100 * plain.density:.3g} %, no. {n}" for n in (1, 2)),
        "a random circuit of equal size",
    ]
    calibrated = document.variants[0].calibration
    assert calibrated.constants == circuit.constants
    assert calibrated.images is None
    for e in range(len(edges)):
        gain = circuit.gain[document.layers[edges.layer[e]].name][edges.out[e], edges.in_[e]]
        assert calibrated.gain[e] == np.float32(gain)
    refitted = cc.refit(model, plain, images(7))
    document = cc.diagram(model, refitted).document
    assert document.variants[0].calibration.images == 7
    assert any("was measured before the gains" in note for note in document.meta.notes)


@pytest.mark.parametrize("given", [None, images(4)])
def test_a_negative_gain_turns_the_sign_of_its_kernels_alone(model, given):
    plain = found(model)
    tables = calibration(plain.kernels)
    tables["offset"] = {layer: torch.zeros_like(offset) for layer, offset in tables["offset"].items()}
    turned = {layer: gain.clone() for layer, gain in tables["gain"].items()}
    turned["head"][1, ::2] *= -1
    made = [
        cc.diagram(model, dataclasses.replace(plain, gain=gain, offset=tables["offset"]), images=given).document
        for gain in (tables["gain"], turned)
    ]
    before, after = (document.edges for document in made)
    here = np.array([made[0].layers[layer].name == "head" for layer in before.layer]) & (before.in_ % 2 == 0)
    inside = made[0].variants[0].rank >= 0
    assert 1 < (here & inside).sum() < inside.sum()
    np.testing.assert_array_equal(after.sign[inside], np.where(here, -before.sign, before.sign)[inside])
    np.testing.assert_array_equal(made[0].weights, made[1].weights)


@pytest.mark.parametrize(
    ("granularity", "method"),
    [("kernel", "kernels"), ("kernel", "filters"), ("filter", "kernels"), ("weight", "kernels")],
)
def test_the_drawn_part_of_a_fitted_circuit_runs_as_fitted_beside_a_refitted_random_one(model, granularity, method):
    given, held_out = images(12), images(6, seed=1)
    plain = found(model, granularity)
    circuit = cc.refit(model, plain, given, method=method)
    drawn = cc.diagram(model, circuit, images=images(5, seed=4), held_out=held_out, fit=given)
    document = drawn.document
    fidelity = document.variants[0].fidelity
    shown, part = part_of(model, document, 0, circuit)
    assert shown.kernels < document.variants[0].kernels
    fitted = dataclasses.replace(part, gain=circuit.gain, offset=circuit.offset)
    assert fidelity.drawn.r2 == pytest.approx(cc.evaluate(model, fitted, held_out).r2, rel=1e-9)
    assert fidelity.drawn.r2 != pytest.approx(cc.evaluate(model, part, held_out).r2, rel=1e-3)
    assert "run as a network of their own with its gains and offsets, reach" in drawn.caption
    control = cc.refit(model, control_of(model, plain), given, method=method)
    assert document.variants[1].calibration.constants == control.constants
    measured = cc.evaluate(model, control, held_out).r2
    assert document.variants[1].fidelity.r2 == fidelity.r2_random == pytest.approx(measured, rel=1e-9)
    _, part = part_of(model, document, 1, control)
    fitted = dataclasses.replace(part, gain=control.gain, offset=control.offset)
    assert document.variants[1].fidelity.drawn.r2 == pytest.approx(cc.evaluate(model, fitted, held_out).r2, rel=1e-9)
    assert "a random circuit of equal size, refitted too, drawn the same way: " in drawn.caption
    without = cc.diagram(model, circuit, images=images(5, seed=4), held_out=held_out)
    assert "a random circuit of equal size, not refitted, reaches" in without.caption
    assert without.document.variants[1].calibration is None


@pytest.mark.zoo
def test_grainy_images_are_pictured():
    """Each tile is noise, whose JPEG takes more than a byte a pixel."""
    torch.manual_seed(0)
    model, given = torchvision.models.alexnet().eval(), torch.rand(6, 3, 224, 224)
    circuit = cc.find(model, cc.Feature("features.6", 5), given, criterion="magnitude", density=0.1)
    document = cc.diagram(model, circuit, images=given).document
    assert len(document.tiles) > 300
    for page in document.tiles.pages:  # whole
        assert read_data_url(page.src).shape[1] == page.columns * document.tiles.size
