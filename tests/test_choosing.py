"""Constants that are chosen by validation images."""

import pytest
import torch

import convcircuits as cc
from convcircuits.circuits.choosing import AS_FOUND, best_constants
from nets import NETS

METHODS = ["none", "mean", "filters", "kernels"]


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
@pytest.mark.parametrize("criterion", ["snip", "progressive"])
def test_the_constants_with_the_highest_r2_on_validation_images_are_chosen(name, criterion):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(*case.features[-1])
    images, validation = case.images(4, seed=1), case.images(4, seed=2)
    options = {"start": 0.5} if criterion == "progressive" else {}
    circuit = cc.find(model, feature, images, criterion=criterion, density=0.4, effective=True, **options)
    toward = 0 if circuit.calibrated else 1
    expected = {method: cc.refit(model, circuit, images, method=method, toward=toward) for method in METHODS}
    if circuit.calibrated:
        expected[AS_FOUND] = circuit
    chosen = best_constants(model, circuit, images, validation)
    reports = {method: cc.evaluate(model, one, validation) for method, one in expected.items()}
    interior = not torch.tensor(reports["none"].r2_interior).isnan()
    assert chosen.interior == interior
    figures = {method: report.r2_interior if interior else report.r2 for method, report in reports.items()}
    assert chosen.r2 == pytest.approx(figures)
    assert list(chosen.r2) == list(expected)
    assert chosen.method == max(figures, key=figures.get)
    assert chosen.circuit == expected[chosen.method]


def test_of_equals_the_fewest_constants_are_chosen():
    case = NETS["plain"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1]), case.images(4)
    whole = cc.refit(model, cc.find(model, feature, images, density=1.0), images)
    chosen = best_constants(model, whole, images, case.images(4, seed=2))
    assert set(chosen.r2.values()) == {1.0}
    assert chosen.method == "none"
    assert chosen.circuit.constants == 0


def test_a_feature_that_does_not_vary_on_validation_images_is_an_error():
    case = NETS["plain"]
    model, feature, images = case.build(), cc.Feature(*case.features[-1], position="max"), case.images(4)
    circuit = cc.find(model, feature, images, density=0.5)
    with pytest.raises(cc.ConvCircuitsError, match="does not vary on the validation images"):
        best_constants(model, circuit, images, images[:1].repeat(3, 1, 1, 1))
