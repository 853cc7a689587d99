"""Random circuits of equal size."""

import pytest
import torch

import convcircuits as cc
from convcircuits.circuits.controls import random_like
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from nets import NETS

CASE = NETS["plain"]
FEATURE = cc.Feature("features.5", 2)


def subject_of(model):
    network = Network(model)
    return Subject(network, FEATURE, survey(network, FEATURE, CASE.input_shape))


def found(model, criterion="random", density=0.5, granularity="kernel", **options):
    images = CASE.images(5).to(next(model.parameters()).dtype)
    return cc.find(model, FEATURE, images, criterion=criterion, density=density, granularity=granularity, **options)


@pytest.mark.parametrize("granularity", ["kernel", "filter", "weight"])
@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_it_keeps_as_many_units_of_each_layer_and_no_others_than_are_relevant(granularity, density):
    model = CASE.build()
    circuit = found(model, granularity=granularity, density=density)
    made = [random_like(subject_of(model), circuit, seed=seed) for seed in range(3)]
    for other in made:
        assert other.granularity == granularity
        assert other.feature == circuit.feature
        assert other.relevant == circuit.relevant
        for layer, kept in circuit.elements.items():
            assert other.elements[layer].sum() == kept.sum()
            assert not (other.elements[layer] & circuit.saliency[layer].isnan()).any()
    assert random_like(subject_of(model), circuit, seed=1) == made[1]
    tables = {tuple(torch.cat([kept.flatten() for kept in other.elements.values()]).tolist()) for other in made}
    assert (len(tables) > 1) == (density < 1)


def test_it_runs_where_the_circuit_does():
    for model in (CASE.build(), CASE.build().float()):
        circuit, images = found(model), CASE.images(2).to(next(model.parameters()).dtype)
        maps = cc.activations(model, FEATURE, images, circuit=random_like(subject_of(model), circuit))
        assert maps.dtype == images.dtype


def test_it_is_what_the_criterion_layer_random_keeps():
    model = CASE.build()
    circuit = found(model, "snip")
    made = random_like(subject_of(model), circuit, seed=3)
    again = cc.find(
        model,
        FEATURE,
        CASE.images(1),
        criterion="layer_random",
        kernels=len(circuit),
        like=circuit,
        seed=made.provenance["seed"],
    )
    assert made == again


def test_a_random_circuit_has_a_control_of_its_own():
    model = CASE.build()
    like = found(model, "random", density=0.5)
    circuit = cc.find(model, FEATURE, CASE.images(1), criterion="layer_random", kernels=len(like), like=like, seed=0)
    assert random_like(subject_of(model), circuit, seed=0).kernels != circuit.elements


def test_the_control_of_an_empty_circuit_is_empty():
    model = CASE.build()
    circuit = found(model)
    assert len(random_like(subject_of(model), circuit - circuit)) == 0
