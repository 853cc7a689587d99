"""What a module costs beside the full model: figures that can be counted by hand."""

import json

import pytest
import torch

import convcircuits as cc
from convcircuits.compiler.costs import costs
from nets import NETS


@pytest.fixture(scope="module")
def measured():
    case = NETS["plain"]
    model = case.build()
    circuit = cc.prune(cc.score(model, cc.Feature("features.3", 1), case.images(), criterion="random"), density=0.9)
    module = cc.extract(model, circuit, input_shape=case.input_shape)
    return module, costs(model, circuit, module, case.input_shape, batch_size=2, repeats=3)


def test_progress_is_told_of_steps_and_of_timed_runs():
    case, told = NETS["plain"], []
    model = case.build()
    circuit = cc.find(model, cc.Feature("features.3", 1), case.images(), criterion="random", density=0.9)
    module = cc.extract(model, circuit, input_shape=case.input_shape, progress=lambda *n: told.append(n))
    assert told == [(step, 4) for step in (1, 2, 3, 4)]
    told.clear()
    costs(model, circuit, module, case.input_shape, batch_size=1, repeats=3, progress=lambda *n: told.append(n))
    assert told == [(run, 3) for run in (1, 2, 3)]
    with pytest.raises(cc.ConvCircuitsError, match="batch_size must be a whole number from 1 to 65536"):
        costs(model, circuit, module, case.input_shape, batch_size=2**70)


def test_the_full_models_figures_are_those_of_its_layers_up_to_the_feature(measured):
    full = measured[1].full
    assert full.parameters == (4 * 3 * 9 + 4) + (5 * 4 * 9 + 5)
    assert full.macs == 8 * 8 * 4 * 3 * 9 + 4 * 4 * 5 * 4 * 9


def test_the_modules_figures_are_those_of_its_layers(measured):
    module, got = measured
    assert got.module.parameters == sum(p.numel() for p in module.parameters()) < got.full.parameters
    first, last = module.get_submodule("features.0").weight, module.get_submodule("features.3").weight
    assert got.module.macs == 8 * 8 * first.numel() + 4 * 4 * last.numel()


def test_time_ratio_and_difference(measured):
    got = measured[1]
    assert got.module.seconds > 0
    assert got.speedup == got.full.seconds / got.module.seconds
    assert 0 <= got.difference < 1e-12
    assert json.loads(json.dumps(got.as_dict()))["input_shape"] == [3, 8, 8]


def test_the_difference_is_that_from_the_masked_run():
    case = NETS["plain"]
    model = case.build()
    scores = cc.score(model, cc.Feature("features.3", 1), case.images(), criterion="random")
    circuit = cc.prune(scores, density=0.9)
    module = cc.extract(model, circuit, input_shape=case.input_shape)
    with torch.no_grad():
        module.get_submodule("features.3").weight.mul_(1.5)
        module.get_submodule("features.3").bias.mul_(1.5)
    assert costs(model, circuit, module, case.input_shape, repeats=1).difference == pytest.approx(0.5)


@pytest.mark.parametrize(("off", "said", "written"), [(0.0, 0.0, 0.0), (1.0, float("inf"), None)])
def test_a_circuit_that_is_0_on_the_images_has_a_difference_all_the_same(off, said, written):
    case = NETS["plain"]
    model = case.build()
    last = model.get_submodule("features.3")
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    circuit = cc.prune(cc.score(model, cc.Feature("features.3", 1), case.images(), criterion="random"), density=0.9)
    module = cc.extract(model, circuit, input_shape=case.input_shape)
    with torch.no_grad():
        module.get_submodule("features.3").bias.fill_(off)
    got = costs(model, circuit, module, case.input_shape, repeats=1)
    assert (got.difference, got.as_dict()["difference"]) == (said, written)
