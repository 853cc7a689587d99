"""Responses on single images, against the maps themselves and against ``evaluate`` on one image."""

import pytest
import torch

import convcircuits as cc
from convcircuits.circuits.responses import responses
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.reach import survey
from nets import NETS

torch.set_num_threads(1)


def measured(name, layer, unit, position="all", count=5, batch_size=2):
    case = NETS[name]
    model, images = case.build(), case.images(count)
    feature = cc.Feature(layer, unit, position=position)
    circuits = [cc.find(model, feature, images, criterion="random", density=d) for d in (0.9, 0.4)]
    network = Network(model)
    subject = Subject(network, feature, survey(network, feature, case.input_shape))
    masks = [subject.masks(circuit, case.input_shape, effective=True) for circuit in circuits]
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    return model, feature, images, circuits, responses(subject, masks, batches)


@pytest.mark.parametrize("position", ["all", "max", "center", (1, 2)])
def test_mean_and_maximum_are_over_the_positions_that_count_in_the_full_model(position):
    model, feature, images, circuits, found = measured("plain", "features.3", 1, position)
    full = cc.activations(model, feature, images)
    maps = [full, *(cc.activations(model, feature, images, circuit=circuit) for circuit in circuits)]
    assert found.mean.shape == found.maximum.shape == (3, 5)
    for n in range(5):
        at = {"max": divmod(int(full[n].argmax()), 4), "center": (2, 2)}.get(position, position)
        for row, one in enumerate(maps):
            counted = one[n].flatten() if position == "all" else one[n][at][None]
            torch.testing.assert_close(found.mean[row, n], counted.mean())
            torch.testing.assert_close(found.maximum[row, n], counted.max())


@pytest.mark.parametrize(
    ("name", "layer", "unit", "position"),
    [
        ("plain", "features.3", 1, "all"),
        ("plain", "features.3", 1, "interior"),
        ("plain", "features.3", 1, "center"),
        ("plain", "features.5", [0, 2, 3], "all"),
        ("residual", "head", 0, "all"),
        ("flat_head", "classifier.4", 1, "all"),
    ],
)
def test_r2_of_an_image_is_what_evaluate_gives_on_it_alone(name, layer, unit, position):
    model, _, images, circuits, found = measured(name, layer, unit, position)
    assert found.r2.shape == found.r2_interior.shape == (2, 5)
    for row, circuit in enumerate(circuits):
        for n in range(len(images)):
            report = cc.evaluate(model, circuit, images[n : n + 1])
            assert float(found.r2[row, n]) == pytest.approx(report.r2, nan_ok=True, abs=1e-9)
            assert float(found.r2_interior[row, n]) == pytest.approx(report.r2_interior, nan_ok=True, abs=1e-9)


def test_they_do_not_depend_on_the_batch_size():
    *_, some = measured("plain", "features.3", 1, batch_size=1)
    *_, all_ = measured("plain", "features.3", 1, batch_size=5)
    for name in ("mean", "maximum", "r2", "r2_interior"):
        torch.testing.assert_close(getattr(some, name), getattr(all_, name))


def test_without_circuits_there_is_the_full_model_alone():
    case = NETS["plain"]
    network, feature = Network(case.build()), cc.Feature("features.3", 1)
    subject = Subject(network, feature, survey(network, feature, case.input_shape))
    batches = Batches(case.images(4), device=network.device, dtype=network.dtype, batch_size=3)
    found = responses(subject, [], batches)
    assert found.mean.shape == found.maximum.shape == (1, 4)
    assert found.r2.shape == found.r2_interior.shape == (0, 4)
