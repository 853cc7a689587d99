"""Provenance: which weights, which images, which versions."""

import copy
import json
import platform

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
from nets import NETS

X = NETS["plain"].images(4)


def weights(model, layer, unit=0, input_shape=None):
    return cc.Circuit.from_masks(model, cc.Feature(layer, unit), {}, input_shape=input_shape).provenance["weights"]


def owners(model, wanted):
    return [
        name
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_floating_point() and wanted(name)
    ]


CASES = {
    "plain": ("features.3", lambda n: n.startswith(("features.0", "features.3"))),
    "residual": ("block1.conv2", lambda n: n.startswith(("stem", "bn.", "block1.conv", "block1.bn1"))),
    "mobile": ("project.0", lambda n: n.startswith(("stem", "expand", "depth", "project.0"))),
    "flat_head": ("classifier.1", lambda n: n.startswith(("features", "classifier.1"))),
    "standardised": ("conv2", lambda n: n.startswith(("conv1", "conv2"))),
    "se_conv": ("conv2", lambda n: not n.startswith("head")),
    "dense": ("layer2.norm", lambda n: n.startswith(("stem", "layer1", "layer2.norm"))),
}


@pytest.mark.parametrize(("name", "layer", "before"), [(n, *c) for n, c in CASES.items()], ids=CASES)
def test_the_hash_changes_with_any_weight_up_to_the_feature_and_with_no_other(name, layer, before):
    case = NETS[name]
    model = case.build()
    hashed = weights(model, layer, input_shape=case.input_shape)
    state = dict([*model.named_parameters(), *model.named_buffers()])
    assert owners(model, before)
    assert owners(model, lambda n: not before(n)), "nothing comes after the feature"
    for tensor in owners(model, lambda n: True):
        with torch.no_grad():
            old = state[tensor].clone()
            state[tensor].view(-1)[-1] += 0.25
        changed = weights(model, layer, input_shape=case.input_shape) != hashed
        assert changed is bool(before(tensor)), tensor
        with torch.no_grad():
            state[tensor].copy_(old)
        assert weights(model, layer, input_shape=case.input_shape) == hashed


def same_weights(model):
    again = NETS["residual"].build()
    again.load_state_dict(model.state_dict())
    return again


@pytest.mark.parametrize(
    "again",
    [
        copy.deepcopy,
        same_weights,
        lambda m: m.train(),
        lambda m: m.requires_grad_(False),
        lambda m: m.to(memory_format=torch.channels_last),
        lambda m: m.to("cpu"),
    ],
    ids=["copy", "state_dict", "train", "frozen", "channels_last", "device"],
)
def test_the_hash_is_that_of_the_values_alone(again):
    model = NETS["residual"].build()
    assert weights(again(copy.deepcopy(model)), "head") == weights(model, "head")


def test_the_hash_tells_dtypes_shapes_and_names_apart():
    model = NETS["plain"].build()
    hashes = {weights(model, "features.3"), weights(copy.deepcopy(model).float(), "features.3")}
    hashes.add(weights(model.features, "3"))
    hashes.add(weights(NETS["no_bias"].build(), "features.3"))
    assert len(hashes) == 4


def test_all_units_and_positions_of_a_layer_share_the_hash():
    model = NETS["plain"].build()
    assert weights(model, "features.3", 0) == weights(model, "features.3", 4)


class Tied(nn.Module):
    """`late` runs after `early`, but the weight they share is registered under `late`."""

    def __init__(self):
        super().__init__()
        self.late, self.early = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.early.weight = self.late.weight

    def forward(self, x):
        return self.late(self.early(x))


class Functional(nn.Module):
    """The weight's own module never runs."""

    def __init__(self):
        super().__init__()
        self.inner, self.early = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.early(F.conv2d(x, self.inner.weight))


def normed():
    model = nn.ModuleDict({"inner": nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))})
    return nn.Sequential(model["inner"], nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize(
    ("make", "layer", "change"),
    [
        (Tied, "early", lambda m: m.early.weight),
        (Functional, "early", lambda m: m.inner.weight),
        (normed, "1", lambda m: m[0].parametrizations.weight.original0),
    ],
    ids=["tied", "functional", "weight_norm"],
)
def test_a_weight_that_is_used_is_hashed_wherever_it_is_registered(make, layer, change):
    model = make()
    before = weights(model, layer, input_shape=(3, 4, 4))
    with torch.no_grad():
        change(model).add_(1.0)
    assert weights(model, layer, input_shape=(3, 4, 4)) != before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_least_change_through_data_is_seen(dtype):
    """Writing through .data raises no version, and a sum rounds it away."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3)).to(dtype)
    weight = model[0].weight.data.fill_(0.5)
    before = weights(model, "0")
    weight[0, 0, 0, 0] *= 1 + 2 * torch.finfo(dtype).eps
    assert weights(model, "0") != before


# ---------------------------------------- what a result carries

FEATURE = cc.Feature("features.5", 2, position="max")


@pytest.mark.parametrize(
    ("criterion", "options"),
    [("snip", {"collapse": "sum"}), ("gauss_newton", {"draws": 2, "centered": True}), ("random", {})],
)
def test_scores_carry_all_that_made_them(criterion, options):
    model = NETS["plain"].build()
    scores = cc.score(model, FEATURE, X, criterion=criterion, seed=7, **options)
    p = scores.provenance
    assert p["model"] == "Plain"
    assert p["weights"] == weights(model, "features.5")
    assert len(p["weights"]) == 32
    assert p["feature"] == "features.5:2@max"
    assert p["criterion"] == criterion
    assert p["options"] == options
    assert p["seed"] == 7
    assert p["images"]["count"] == 4
    assert len(p["images"]["hash"]) == 16
    assert p["notes"] == []
    assert p["versions"] == {
        "convcircuits": cc.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert json.loads(json.dumps(p, allow_nan=False)) == p
    circuit = cc.prune(scores, density=0.2)
    assert circuit.provenance == p | {"elements": len(circuit), "asked": {"density": 0.2}}


def test_a_report_carries_its_circuit_and_its_images():
    model = NETS["plain"].build()
    circuit = cc.find(model, FEATURE, X, kernels=9)
    report = cc.evaluate(model, circuit, X[:3], effective=False)
    assert report.provenance["circuit"] == circuit.provenance
    assert report.provenance["images"]["count"] == 3
    assert report.provenance["effective"] is False
    assert report.provenance["weights"] == circuit.provenance["weights"]


def test_a_circuit_as_an_option_is_told_by_its_provenance():
    model = NETS["plain"].build()
    like = cc.find(model, FEATURE, X, kernels=9)
    scores = cc.score(model, FEATURE, X, criterion="layer_random", like=like)
    assert scores.provenance["options"] == {"like": like.provenance}


def test_a_combination_carries_what_both_share_and_both_origins():
    model = NETS["plain"].build()
    a, b = (cc.find(model, FEATURE, X, criterion=c, kernels=9) for c in ("snip", "magnitude"))
    p = (a | b).provenance
    assert p["weights"] == a.provenance["weights"]
    assert p["images"] == a.provenance["images"]
    assert "criterion" not in p
    assert p["made_by"] == "|"
    assert p["from"] == [a.provenance, b.provenance]


@pytest.mark.parametrize("criterion", ["snip", "random"])
def test_the_images_are_described_whatever_their_order_form_and_batches(criterion):
    model = NETS["plain"].build()

    def described(images, **options):
        return cc.score(model, FEATURE, images, criterion=criterion, **options).provenance["images"]

    expected = described(X)
    assert expected == described(X.flip(0)) == described([X[:3], X[3:]]) == described(X, batch_size=1)
    assert expected != described(X[:3])
    assert expected != described(X.flip(3))


@pytest.mark.parametrize("seed", [3, torch.tensor(3).numpy()[()]], ids=["int", "numpy"])
def test_results_of_any_whole_seed_are_json(seed):
    scores = cc.score(NETS["plain"].build(), FEATURE, X, criterion="random", seed=seed)
    assert json.loads(json.dumps(scores.provenance))["seed"] == 3
