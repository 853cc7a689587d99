"""The smallest circuit that reaches an R2: which sizes are tried, and what is refused."""

import pytest
import torch

import convcircuits as cc
from convcircuits.circuits.reaching import reach
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


@pytest.mark.parametrize("r2", [0, 1, 1.5, float("nan"), True, "much", None])
def test_an_r2_that_says_nothing_is_refused(r2):
    with pytest.raises(cc.ConvCircuitsError, match="above 0 and below 1; got"):
        reach(CASE.build(), FEATURE, CASE.images(1), CASE.images(1), r2=r2)


def test_a_feature_that_does_not_vary_on_the_validation_images_is_refused():
    class Gate(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 1, 1, bias=False)

        def forward(self, x):
            return self.conv(x)

    images = CASE.images(1)[:, :1]
    with pytest.raises(cc.ConvCircuitsError, match="does not vary on the validation images"):
        reach(Gate(), cc.Feature("conv", 0), images, torch.ones_like(images), r2=0.5)


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
