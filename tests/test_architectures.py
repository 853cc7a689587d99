"""The architectures of torchvision and timm: reach and masked runs against a search in their graphs, and small modules.

All tests of one feature share its model and one opening of it, which takes as long as most of them.
"""

import copy
import functools
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convcircuits as cc
from architectures import ARCHITECTURES, FEW, SUPPORTED, UNSUPPORTED, Architecture
from cases import check_same, through_text
from convcircuits.circuits import evaluation, scoring
from convcircuits.circuits.refitting import Refit, fitted
from convcircuits.circuits.relabelling import Relabelling, relabelled
from convcircuits.compiler import layout
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.network.masking import Masks, Subject
from convcircuits.values.tables import LayerTable
from graph_oracle import Graph

torch.set_num_threads(1)

pytestmark = pytest.mark.zoo

FIRST = [(name, *ARCHITECTURES[name].features[0]) for name in FEW]
# Features whose modules are not extracted, and whose circuits are neither refitted nor relabelled, as another one has
# layers of the same kinds on its paths. (benchmarks/support.py extracts all of them, for the table in docs/support.md.)
COVERED = {
    # A Linear on pooled maps, as those of ResNet-18, MobileNetV3, LCNet and ResNeSt, behind blocks like those before.
    "torchvision:googlenet-fc-1",
    "torchvision:mobilenet_v2-classifier.1-1",
    "torchvision:mnasnet0_5-classifier.1-1",
    "torchvision:shufflenet_v2_x0_5-fc-2",
    "timm:efficientnet_lite0-classifier-3",
    "timm:nf_resnet26-head.fc-1",
    # On all paths to the other feature, or in blocks like those on them.
    "torchvision:inception_v3-Mixed_5c-100",
    "torchvision:lraspp_mobilenet_v3_large-classifier.cbr.0-3",
    "timm:lcnet_050-blocks.4-5",
    "timm:convnext_atto-stages.2.blocks.2.conv_dw-5",
    "torchvision:densenet121-features.denseblock2-300",
    "timm:dpn68-features.conv4_3.c3x3_b.conv-5",
    # Of blocks like those of another architecture: the wide ResNet, RegNet-X, MobileNetV3 small, ConvNeXt atto, the
    # ResNetV2 of BiT behind BatchNorms like those of DenseNet, CSPDarkNet, GhostNetV2, Inception V3, the slim VoVNet.
    "torchvision:resnet50-layer3-9",
    "torchvision:fcn_resnet50-backbone.layer2-7",
    "torchvision:resnext50_32x4d-layer3.2.conv2-9",
    "timm:gernet_s-stages.2-5",
    "torchvision:mobilenet_v3_large-features.12-5",
    "timm:hardcorenas_a-blocks.3-5",
    "torchvision:convnext_tiny-features.3-11",
    "timm:resnetv2_50-stages.2.blocks.2.conv2-7",
    "timm:darknet53-stages.2-5",
    "timm:cspresnet50-stages.1-5",
    "timm:ghostnet_100-blocks.6-5",
    "timm:inception_v4-features.6-5",
    "timm:vovnet39a-stages.2.blocks.0-5",
}
assert {*SUPPORTED} >= COVERED
CASES = [  # COVERED last: pytest runs all tests of one case together, and tells cases by their places in both lists
    pytest.param(SUPPORTED[name], id=name, marks=[pytest.mark.smoke] if SUPPORTED[name] in FIRST else [])
    for name in sorted(SUPPORTED, key=lambda name: name in COVERED)
]
EVERY = pytest.mark.parametrize("case", CASES, indirect=True)
WITHOUT_COVERED = pytest.mark.parametrize("case", CASES[: -len(COVERED)], indirect=True)


@dataclass(frozen=True)
class Case:
    """One feature of an architecture; all that tests of it share."""

    architecture: Architecture
    model: nn.Module
    layer: str
    unit: int
    graph: Graph
    subject: Subject
    before: tuple  # all that there was of the model before it was opened

    @property
    def feature(self):
        return cc.Feature(self.layer, self.unit)

    @property
    def survey(self):
        return self.subject.survey

    @functools.cached_property
    def full(self):
        shape = self.architecture.input_shape
        return cc.Circuit.from_masks(self.model, self.feature, self.survey.kernels, input_shape=shape)

    @functools.cached_property
    def kept(self):
        """The effective kernels, by the oracle, of circuits that keep 0.4 and 0.1 of the kernels."""
        kept = {}
        for density in (0.4, 0.1):
            found = self.graph.reachable(self.unit, thinned(self.survey.kernels, density, self.layer))
            kept[density] = {layer: found[layer] for layer in self.survey.kernels}
        return kept


@functools.lru_cache(maxsize=1)
def built(name):
    return ARCHITECTURES[name].build()


@pytest.fixture(scope="module")
def case(request):
    name, layer, unit = request.param
    architecture, model = ARCHITECTURES[name], built(name)
    before = bytes_of(model), condition_of(model)
    subject = Subject.open(model, cc.Feature(layer, unit), architecture.input_shape)
    return Case(architecture, model, layer, unit, Graph(model, layer, architecture.input_shape), subject, before)


@pytest.fixture
def case_is_open(case, monkeypatch):
    """Circuits, scores, maps and modules of a case come from one opening of its model: all would find the same."""
    monkeypatch.setattr(Subject, "open", lambda *given: case.subject)
    for module in (evaluation, scoring):
        monkeypatch.setattr(module, "Network", lambda model: case.subject.network)


def thinned(kernels, density, whole):
    """Random masks that keep `density` of each layer, about 1.5 kernels of each filter at least, one layer whole."""
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for layer, relevant in kernels.items():
        kept = 1.0 if layer == whole else max(density, min(0.75, 1.5 / relevant.shape[1]))
        masks[layer] = relevant & (torch.rand(relevant.shape, generator=generator) < kept)
    return masks


def bytes_of(model):
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def condition_of(model):
    """All that could be left on a model: hooks, modes, flags, gradients, attributes."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    flags = [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
    return hooks, flags, [m.training for m in model.modules()], [sorted(vars(m)) for m in model.modules()]


def own_map(model, layer, unit, images):
    """The feature's map in the model itself."""
    found = []

    def hook(module, args, output):
        found.append(output[:, unit].clone())

    handle = model.get_submodule(layer).register_forward_hook(hook)
    with torch.no_grad():
        model(images)
    handle.remove()
    return found[0]


# ---------------------------------------- supported


@EVERY
def test_relevant_and_effective_kernels_are_those_of_a_search_in_the_graph(case):
    surveyed = case.survey
    relevant = surveyed.kernels
    expected = case.graph.reachable(case.unit, blocks=case.architecture.blocks)
    assert list(relevant) == [layer for layer, mask in expected.items() if mask.any()]
    for layer, mask in relevant.items():
        assert torch.equal(mask, expected[layer]), layer
    whole = surveyed.inside(relevant)
    assert all(torch.equal(whole[layer], mask) for layer, mask in relevant.items())
    for density, expected in case.kept.items():
        masks = thinned(relevant, density, case.layer)
        found = surveyed.inside(masks)
        for layer, mask in masks.items():
            assert torch.equal(found[layer] & mask, expected[layer]), (density, layer)
        assert density < 0.4 or any(mask.any() for mask in expected.values())


@EVERY
@pytest.mark.usefixtures("case_is_open")
def test_the_full_circuit_is_the_model_itself_and_leaves_it_as_it_was(case):
    model, images = case.model, case.architecture.images()
    before, condition = case.before
    circuit = case.full
    inside = cc.activations(model, case.feature, images, circuit=circuit)
    with torch.no_grad():
        full = case.subject.maps(images)
    assert condition_of(model) == condition
    assert all(torch.equal(tensor, before[key]) for key, tensor in bytes_of(model).items())
    assert circuit.density == 1
    expected = own_map(model, case.layer, case.unit, images)
    assert expected.isfinite().all()
    assert expected.std() > 1e-3 * expected.abs().max()
    tolerance = 1e-5 if case.architecture.dtype is torch.float32 else 1e-12
    for maps in (full, inside):
        assert float((maps - expected).abs().max()) <= tolerance * float(expected.abs().max())


@EVERY
def test_what_only_dead_filters_hold_plays_no_part_in_a_circuit(case):
    model, images = copy.deepcopy(case.model), case.architecture.images()
    found = case.survey
    masks = Masks(case.kept[0.4])
    subject = Subject(Network(model), case.feature, found)  # of the copy
    with torch.no_grad():
        before = subject.maps(images, masks)
        for name, dead in case.graph.dead_constants(masks.kernels).items():
            model.get_parameter(name).data[dead] += 1.7
        after = subject.maps(images, masks)
    assert before.abs().max() > 0
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0)


@WITHOUT_COVERED
@pytest.mark.usefixtures("case_is_open")
def test_a_circuit_is_refitted(case):
    """That the full one stays as it is, is a law of all small nets."""
    images, subject = case.architecture.images(), case.subject
    alive = [masks for masks in case.kept.values() if any(mask.any() for mask in masks.values())]
    masks = alive[-1]  # the sparsest, as equations of many kernels take long
    circuit = replace(case.full, elements=LayerTable(masks))
    size = max(int(mask.sum(1).square().sum()) for mask in masks.values())  # of the largest layer's equations
    method = "kernels" if size < 1e7 else "filters"  # else it takes minutes: Linear layers of AlexNet
    batches = Batches(images, device=subject.network.device, dtype=subject.network.dtype, batch_size=2)
    refitted = fitted(subject, circuit, Refit(subject, batches, positions=100, method=method))
    assert list(refitted.gain) == [layer for layer, mask in masks.items() if mask.any()]
    assert all((gain[~masks[layer].any(1)] == 1).all() for layer, gain in refitted.gain.items())
    assert method == "filters" or refitted.constants > 0.5 * len(circuit)
    inside = subject.masks(refitted, case.architecture.input_shape, effective=True)
    with torch.no_grad():
        assert subject.maps(images, inside).isfinite().all()
    assert any(bool((gain != 1).any()) for gain in refitted.gain.values())


@WITHOUT_COVERED
@pytest.mark.usefixtures("case_is_open")
def test_a_circuit_is_relabelled(case):
    """That the inverse gives it back is a law of all small nets."""
    circuit = replace(case.full, elements=LayerTable(thinned(case.survey.kernels, 0.6, whole=None)))
    relabelling = Relabelling.draw(case.subject)
    made = relabelled(case.subject, circuit, relabelling)  # which compares the effective kernels
    for a, mask in circuit.kernels.items():
        assert made.kernels[a].sum() == mask.sum()
        assert made.kernels[a].any(1).sum() == mask.any(1).sum()
    if case.architecture.name in FEW:
        assert relabelled(case.subject, made, relabelling.inverse()).elements == circuit.elements
    stay = [(places == torch.arange(len(places))).double().mean() for places in relabelling.filters.values()]
    # Two of three layers of a selective kernel net mix channels with positions.
    assert sum(stay) / len(stay) < (0.6 if "skresnet" in case.architecture.name else 0.5)


# ---------------------------------------- the small module


def alive_circuit(case, images, densities=(0.1, 0.3, 0.6, 0.9)):
    """The sparsest circuit that has a map at all, and its map."""
    scores = cc.score(case.model, case.feature, images[:1], normalizer="layer_l2", draws=1)
    for density in densities:
        circuit = cc.prune(scores, density=density)
        maps = cc.activations(case.model, case.feature, images, circuit=circuit)
        if maps.any():
            return circuit, maps
    return case.full, own_map(case.model, case.layer, case.unit, images)


def work(run, images):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(images)
    return counter.get_total_flops()


def error_of(got, expected):
    return float((got.detach() - expected).abs().max() / expected.abs().max())


@WITHOUT_COVERED
@pytest.mark.usefixtures("sizes_are_tried_once", "case_is_open")
def test_the_extracted_module_is_the_circuit_and_smaller_than_the_model(case, monkeypatch):
    monkeypatch.setattr(layout, "_STEPS", (1,))  # the small nets have all six
    model, images = case.model, case.architecture.images()
    tolerance = 2e-5 if case.architecture.dtype is torch.float32 else 1e-11
    circuit, masked = alive_circuit(case, images)
    assert masked.any()
    small, whole = cc.extract(model, circuit), cc.extract(model, case.full)
    assert error_of(small(images), masked) <= tolerance
    check_same(through_text(small), small, images)
    assert error_of(whole(images), own_map(model, case.layer, case.unit, images)) <= tolerance
    sizes = [sum(p.numel() for p in module.parameters()) for module in (small, whole)]
    assert sizes[0] <= sizes[1] <= sum(p.numel() for p in model.parameters())
    if circuit.density < 1:
        assert sizes[0] < sizes[1]
        assert work(small, images) < work(whole, images)


# ---------------------------------------- not supported: a clear error


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_told_is_said(name):
    architecture, model = ARCHITECTURES[name], built(name)
    condition = condition_of(model)
    for layer, unit in architecture.features:
        with pytest.raises(cc.ConvCircuitsError, match=architecture.error):
            cc.Circuit.from_masks(model, cc.Feature(layer, unit), {}, input_shape=architecture.input_shape)
    assert condition_of(model) == condition


@pytest.mark.smoke
def test_the_support_table_lists_these_architectures():
    lines = (Path(__file__).parents[1] / "docs" / "support.md").read_text().splitlines()
    rows = [tuple(cell.strip(" `") for cell in line.split("|")[1:3]) for line in lines if line.startswith("| `")]
    assert rows == [(a.name, f"{layer}:{unit}") for a in ARCHITECTURES.values() for layer, unit in a.features]
