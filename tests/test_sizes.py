"""Circuits of other sizes: the smallest that reaches an R2, and smaller ones as their criterion finds them."""

import copy
import dataclasses
import itertools

import pytest
import torch

import convcircuits as cc
from convcircuits.circuits import sizes
from convcircuits.circuits.sizes import nested, reach, smaller
from convcircuits.network.batches import Batches
from nets import NETS

CASE = NETS["plain"]
FEATURE = cc.Feature("features.5", 2)


@pytest.mark.parametrize("criterion", ["snip", "random", "force"])
@pytest.mark.parametrize("r2", [0.01, 0.5, 0.999999])
def test_it_reaches_it_and_the_next_smaller_size_that_was_tried_does_not(criterion, r2):
    model, images, validation = CASE.build(), CASE.images(3), CASE.images(3, seed=1)
    options = {"steps": 2} if criterion == "force" else {}
    found = reach(model, FEATURE, images, validation, r2=r2, criterion=criterion, seed=3, **options)
    tried = dict(found.tried)
    assert list(tried) == sorted(tried)
    assert tried[len(found.circuit)] == found.r2 >= r2
    smaller = [size for size in tried if size < len(found.circuit)]
    assert all(tried[size] < r2 for size in smaller)
    assert len(found.circuit) - max(smaller, default=0) <= max(1, len(found.circuit) // 100)
    alone = cc.find(model, FEATURE, images, kernels=len(found.circuit), criterion=criterion, seed=3, **options)
    assert alone == found.circuit
    assert cc.evaluate(model, alone, validation).r2 == pytest.approx(found.r2, abs=1e-6)


@pytest.mark.parametrize(("criterion", "options"), [("progressive", {}), ("learned", {"steps": 4, "final": 8})])
@pytest.mark.parametrize("r2", [0.01, 0.5, 0.99])
def test_a_descent_reaches_it_in_one_run(criterion, options, r2, monkeypatch):
    model, images, validation = CASE.build(), CASE.images(6), CASE.images(6, seed=1)
    runs = []
    monkeypatch.setattr(sizes, "find_path", lambda *a, **k: runs.append(k.get("start")) or cc.find_path(*a, **k))
    found = reach(model, FEATURE, images, validation, r2=r2, criterion=criterion, seed=3, start=0.6, **options)
    tried = dict(found.tried)
    assert list(tried) == sorted(tried)
    assert tried[len(found.circuit)] == found.r2 >= r2
    assert all(value < r2 for size, value in tried.items() if size < len(found.circuit))
    assert sum(value < r2 for size, value in tried.items() if size < len(found.circuit)) <= len(runs)
    assert cc.evaluate(model, found.circuit, validation).r2 == pytest.approx(found.r2, abs=1e-6)
    assert runs == ([0.6] if max(tried) < 0.61 * found.circuit.relevant else [0.6, 1.0])
    chosen = {"criterion": criterion, "seed": 3, "start": runs[-1], **options}
    path = cc.find_path(model, FEATURE, images, kernels=1, enough=lambda one: one != found.circuit, **chosen)
    assert path[-1] == found.circuit


def test_a_descent_that_starts_too_small_starts_again_with_all_kernels():
    model, images, validation = CASE.build(), CASE.images(6), CASE.images(6, seed=1)
    found = reach(model, FEATURE, images, validation, r2=0.9, criterion="progressive", start=0.05)
    assert len(found.circuit) > 0.05 * found.circuit.relevant
    assert max(dict(found.tried)) == found.circuit.relevant
    with pytest.raises(cc.ConvCircuitsError, match="No circuit of the descent reaches R2 = 1 on"):
        reach(model, FEATURE, images, validation, r2=1 - 1e-12, criterion="progressive", ridge=1.0)


@pytest.mark.parametrize("method", ["kernels", "mean"])
def test_circuits_are_measured_as_they_are_refitted(method):
    model, images, validation = CASE.build(), CASE.images(6), CASE.images(6, seed=1)
    found = reach(model, FEATURE, images, validation, r2=0.7, criterion="snip", method=method, seed=3)
    alone = cc.find(model, FEATURE, images, kernels=len(found.circuit), criterion="snip", seed=3)
    assert found.circuit == cc.refit(model, alone, images, method=method, seed=3) != alone
    assert cc.evaluate(model, found.circuit, validation).r2 == pytest.approx(found.r2, abs=1e-6)


@pytest.mark.parametrize("r2", [0, 1, 1.5, float("nan"), True, "much", None])
def test_an_r2_that_says_nothing_is_refused(r2):
    with pytest.raises(cc.ConvCircuitsError, match="above 0 and below 1; got"):
        reach(CASE.build(), FEATURE, CASE.images(1), CASE.images(1), r2=r2, criterion="snip")


def test_a_feature_that_does_not_vary_on_the_validation_images_is_refused():
    class Gate(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 1, 1, bias=False)

        def forward(self, x):
            return self.conv(x)

    images = CASE.images(1)[:, :1]
    with pytest.raises(cc.ConvCircuitsError, match="does not vary on the validation images"):
        reach(Gate(), cc.Feature("conv", 0), images, torch.ones_like(images), r2=0.5, criterion="snip")


def test_it_says_what_it_does():
    phases = []

    class Told:
        def phase(self, what):
            phases.append(what)

        def __call__(self, done, total):
            pass

    reach(CASE.build(), FEATURE, CASE.images(1), CASE.images(1, seed=1), r2=0.5, criterion="snip", progress=Told())
    assert phases[0] == "scoring with snip"
    assert all(what.startswith("measuring on validation images, up to ") for what in phases[1:])


def found(model, criterion="random", density=0.5, granularity="kernel", **options):
    return cc.find(
        model, FEATURE, CASE.images(5), criterion=criterion, density=density, granularity=granularity, **options
    )


def held(images):
    return Batches(images, device=torch.device("cpu"), dtype=torch.float64, batch_size=2)


@pytest.mark.parametrize("criterion", sorted(set(cc.CRITERIA) - {"layer_random"}))
def test_rankings_are_nested_where_fewer_kernels_are_the_first_of_more(criterion):
    """As the criterion itself says, asked for fewer."""
    model = CASE.build()
    more, fewer = found(model, criterion), found(model, criterion, density=0.2)
    inside = all((more.kernels[layer] | ~kept).all() for layer, kept in fewer.kernels.items())
    same = all(torch.allclose(s, fewer.saliency[layer], 0, 0, equal_nan=True) for layer, s in more.saliency.items())
    assert nested(more) == nested(fewer) == (same and not more.constants)  # constants are those of one size
    assert inside or not same


def test_of_circuits_without_a_criterion_the_first_by_saliency_are_all_that_can_be_meant():
    model = CASE.build()
    by_hand = cc.Circuit.from_masks(model, FEATURE, found(model).kernels, input_shape=CASE.input_shape)
    assert nested(by_hand)
    assert smaller(model, by_hand, held(CASE.images(3))) == []


@pytest.mark.parametrize("granularity", ["filter", "weight"])
def test_parts_of_filters_and_kernels_full_of_weights_are_not_what_a_criterion_keeps(granularity):
    assert not nested(found(CASE.build(), granularity=granularity))


@pytest.mark.parametrize("granularity", ["kernel", "filter"])
def test_smaller_circuits_are_those_that_an_iterative_criterion_finds_when_asked_for_them(granularity):
    model = CASE.build()
    before = copy.deepcopy(model.state_dict())
    circuit = found(model, "force", density=0.8, granularity=granularity, steps=4, seed=3)
    images = torch.cat([CASE.images(5), CASE.images(9, seed=2)])
    made = smaller(model, circuit, held(images))
    assert smaller(model, circuit, held(images[1:])) == smaller(model, circuit, held(images[:3])) == []
    counts = [len(circuit) // part for part in (2, 4, 8)]
    assert [len(one) for one in made] == [count for count in counts if count]
    for one in made:
        # On the five images that the circuit was found on, with its own options and seed.
        again = cc.find(
            model,
            FEATURE,
            CASE.images(5),
            criterion="force",
            kernels=len(one),
            granularity=granularity,
            steps=4,
            seed=3,
        )
        assert one.elements == again.elements
        assert one.granularity == granularity
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_smaller_circuits_of_a_descent_are_on_one_path_from_the_circuit(monkeypatch):
    model = CASE.build()
    circuit = found(model, "progressive", density=0.8, start=0.9)
    runs = []
    monkeypatch.setattr(sizes, "find_path", lambda *a, **k: runs.append(k) or cc.find_path(*a, **k))
    made = smaller(model, circuit, held(torch.cat([CASE.images(5), CASE.images(9, seed=2)])))
    assert len(runs) == 1
    assert [len(one) for one in made] == [len(circuit) // part for part in (2, 4, 8)]
    for larger, one in itertools.pairwise([circuit, *made]):
        assert all((larger.kernels[layer] | ~kept).all() for layer, kept in one.kernels.items())
        assert one.constants > 0
        assert one.provenance["images"] == circuit.provenance["images"]
    small = found(model, "progressive", density=0.3)
    assert [len(one) for one in smaller(model, small, held(CASE.images(5)))] == [
        len(small) // 2
    ]  # a path has 3 kernels


def test_smaller_circuits_are_found_with_the_defaults_of_the_circuit_s_time():
    model = CASE.build()
    circuit = found(model, "progressive", density=0.8, start=0.9)
    schedule = circuit.provenance["schedule"] | {"ridge": 0.5}
    old = dataclasses.replace(circuit, provenance={**circuit.provenance, "schedule": schedule})
    made = smaller(model, old, held(CASE.images(5)))
    assert made
    for one in made:
        assert one.provenance["calibration"]["ridge"] == one.provenance["options"]["ridge"] == 0.5


def test_no_smaller_circuit_is_found_where_there_is_no_need_or_no_knowing_how():
    model = CASE.build()
    images = CASE.images(5)
    force = found(model, "force", steps=3)
    assert len(smaller(model, force, held(images))) == 3
    assert smaller(model, found(model, "snip"), held(images)) == []
    of_three = cc.find(model, FEATURE, images, criterion="force", kernels=3, steps=2)
    assert [len(one) for one in smaller(model, of_three, held(images))] == [1]
    inside = cc.find(model, FEATURE, images, criterion="force", density=0.2, circuit=force, steps=3)
    assert smaller(model, inside, held(images)) == []
    for changes in ({"criterion": "mine"}, {"options": {"steps": [1, 2]}}):
        odd = dataclasses.replace(force, provenance={**force.provenance, **changes})
        assert smaller(model, odd, held(images)) == []
