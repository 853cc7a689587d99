"""Another device than the CPU gives the same results: a GPU where there is one, a far device (see `far`) elsewhere.

`test_devices` runs this file in a process of its own.
"""

import contextlib
import copy
import json
from collections import Counter

import pytest
import torch
from torch import Tensor

import convcircuits as cc
from nets import NETS

if torch.cuda.is_available():
    DEVICE, Far = torch.device("cuda", 0), contextlib.nullcontext
else:
    from far import DEVICE, Far

# Residual connections, depthwise kernels, concatenations, gates, Linear layers, weights that are computed, layers that
# run several times, and padding of their own; groups below.
KINDS = ["residual", "mobile", "dense", "se_conv", "flat_head", "standardised", "twice", "same_pad"]


@pytest.fixture(autouse=True, scope="module")
def far():
    with Far():
        yield


def both(name):
    """A net on the CPU and its copy on the device."""
    model = NETS[name].build()
    return model, copy.deepcopy(model).to(DEVICE)


def images_of(name, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *NETS[name].input_shape, generator=generator, dtype=torch.float64)


def same(here, there):
    """Compare results of any kind: tensors, circuits, reports."""
    if isinstance(here, cc.Circuit):
        here, there = ([one.elements, one.gain, one.offset] for one in (here, there))
    if hasattr(here, "as_dict"):
        here, there = here.as_dict(), there.as_dict()
    if isinstance(here, Tensor):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-9, atol=1e-10)
    elif isinstance(here, float):
        assert there == pytest.approx(here, rel=1e-6, abs=1e-8, nan_ok=True)
    elif hasattr(here, "keys"):
        assert list(here.keys()) == list(there.keys())
        for key in here.keys() - {"seconds", "provenance"}:
            same(here[key], there[key])
    elif isinstance(here, (list, tuple)):
        assert len(here) == len(there)
        for one, other in zip(here, there, strict=True):
            same(one, other)
    else:
        assert here == there


def table(result):
    return result.to_pandas().drop(columns="seconds", errors="ignore").reset_index().to_dict("list")


def test_tensors_of_two_devices_do_not_meet():
    far = torch.ones(2, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match="device"):
        far + torch.ones(2, 3)
    with pytest.raises(TypeError):
        far.numpy()
    assert (far + 1).device == DEVICE
    assert (far + 1).cpu().tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("name", KINDS)
def test_a_circuit_is_found_measured_and_extracted(name):
    here, there = both(name)
    feature, images = cc.Feature(*NETS[name].features[-1]), images_of(name)
    circuit = cc.find(here, feature, images, criterion="gauss_newton", density=0.5)
    same(circuit, cc.find(there, feature, images, criterion="gauss_newton", density=0.5))
    fitted = cc.refit(here, circuit, images)
    same(fitted, cc.refit(there, circuit, images))
    held_out = images_of(name, seed=1)
    same(cc.evaluate(here, fitted, held_out, fit=images), cc.evaluate(there, fitted, held_out, fit=images))
    small = cc.extract(there, fitted)
    assert {one.device for one in (*small.parameters(), *small.buffers())} == {DEVICE}
    same(cc.activations(here, feature, held_out, circuit=fitted), small(held_out.to(DEVICE)).cpu())


@pytest.mark.parametrize("criterion", ["actgrad", "snip", "force", "magnitude", "random"])
@pytest.mark.parametrize("granularity", ["filter", "kernel", "weight"])
@pytest.mark.parametrize("name", ["grouped"])
def test_criteria_of_all_granularities(name, granularity, criterion):
    here, there = both(name)
    feature, given = cc.Feature(*NETS[name].features[-1]), {"criterion": criterion, "granularity": granularity}
    found = (cc.find(model, feature, images_of(name), density=0.4, **given) for model in (here, there))
    same(*found)


@pytest.mark.parametrize(("criterion", "options"), [("progressive", {}), ("learned", {"steps": 3, "final": 6})])
def test_descents_and_their_controls(criterion, options):
    here, there = both("mobile")
    feature, images = cc.Feature(*NETS["mobile"].features[-1]), images_of("mobile", 16)
    paths = [
        list(cc.find_path(model, feature, images, criterion=criterion, density=0.5, **options))
        for model in (here, there)
    ]
    same(*paths)
    if criterion == "progressive":
        held_out = images_of("mobile", 12, seed=1)
        same(*(cc.controls(model, paths[0][-1], held_out, fit=images, draws=1) for model in (here, there)))


def test_files(tmp_path):
    here, there = both("residual")
    feature, images = cc.Feature("head", 0), images_of("residual")
    circuit = cc.find(there, feature, images, criterion="snip", density=0.5)
    cc.save(circuit, tmp_path / "circuit.safetensors")
    cc.save(cc.extract(there, circuit), tmp_path / "small.safetensors")
    same(circuit, cc.load(tmp_path / "circuit.safetensors"))
    expected = cc.activations(here, feature, images, circuit=circuit)
    same(expected, cc.load(tmp_path / "small.safetensors")(images))  # on the CPU, wherever it was made


def test_images_of_a_layer_and_of_a_unit():
    here, there = both("plain")
    feature, images = cc.Feature("features.3", 1), images_of("plain", 12)
    same(*(table(cc.units(model, "features.3", images)) for model in (here, there)))
    same(*(table(cc.top(model, feature, images, count=4)) for model in (here, there)))
    same(*(table(cc.top(here, feature, some, count=4)) for some in (images, images.to(DEVICE))))


def test_subfeatures():
    here, there = both("plain")
    feature, images = cc.Feature("features.3", 1), images_of("plain", 60)
    same(*(table(cc.split(model, feature, images, densities=(0.3,), shuffles=1)) for model in (here, there)))
    same(*(cc.trajectory(model, feature, images) for model in (here, there)))


def test_an_atlas(tmp_path):
    here, there = both("plain")
    images, held_out = images_of("plain"), images_of("plain", seed=1)
    made = [
        cc.atlas(model, "features.3", images, held_out, density=0.5, folder=tmp_path / folder)
        for model, folder in ((here, "here"), (there, "there"))
    ]
    same(*(table(atlas) for atlas in made))


def test_a_diagram(tmp_path):
    here, there = both("plain")
    feature, images = cc.Feature("features.3", 1), images_of("plain")
    circuit = cc.find(here, feature, images, criterion="snip", density=0.3)
    for n, options in enumerate(({"held_out": images_of("plain", seed=1)}, {"pictures": "features"})):
        drawn = []
        for model in (here, there):
            file = tmp_path / f"{n}-{len(drawn)}.json"
            cc.diagram(model, circuit, images=images, **options).save(file)
            drawn.append(json.loads(file.read_text()))
        one, other = drawn
        assert (one["nodes"], one["edges"]["source"], one["target"]) == (
            other["nodes"],
            other["edges"]["source"],
            other["target"],
        )
        for variant, again in zip(one["variants"], other["variants"], strict=True):
            same(variant["fidelity"], again["fidelity"])


@pytest.mark.parametrize(("criterion", "draws"), [("snip", 1), ("actgrad", 1), ("gauss_newton", 4)])
def test_values_go_to_the_cpu_once_a_layer(criterion, draws):
    """Each copy waits for the GPU: a batch ends with one for each layer and draw, and none is made between."""
    if DEVICE.type == "cuda":
        pytest.skip("copies are counted on the far device")
    from far import host

    _, there = both("residual")
    images, options = images_of("residual", 16), {"criterion": criterion, "batch_size": 4}
    scores = cc.score(there, cc.Feature("head", 0), images, **options)  # later ones know the model
    counted = []
    for count in (8, 16):
        host.clear()
        cc.score(there, cc.Feature("head", 0), images[:count], **options)
        counted.append(Counter(host))
    assert counted[1] - counted[0] == {"aten::_to_copy": 2 * draws * len(scores.kernels)}
