"""Smaller circuits that are laid beside, as their criterion finds them."""

import copy
import dataclasses

import pytest
import torch

import convcircuits as cc
from convcircuits.drawing.siblings import nested, smaller
from convcircuits.network.batches import Batches
from nets import NETS

CASE = NETS["plain"]
FEATURE = cc.Feature("features.5", 2)


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
    assert nested(more) == nested(fewer) == same
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
    sizes = [len(circuit) // part for part in (2, 4, 8)]
    assert [len(one) for one in made] == [size for size in sizes if size]
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
        assert one.kernels == again.kernels
        assert one.granularity == granularity
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


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
