"""Evaluation: every figure against its closed form on the oracles' maps."""

import copy
import dataclasses
import functools
import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convcircuits as cc
import oracles
from cases import COUNTS, FIGURES, agree, calibration, closed_form, counted
from convcircuits.circuits.evaluation import measured
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.values.tables import LayerTable
from nets import NETS

MANY = ["plain", "residual", "inception", "mobile", "flat_head", "se_conv", "dense", "twice"]


@functools.cache
def subject(name):
    case = NETS[name]
    layer, unit = case.features[-1]
    return case, case.build(), layer, unit


@functools.cache
def found(name, density, position="all"):
    case, model, layer, unit = subject(name)
    feature = cc.Feature(layer, unit, position=position)
    return cc.find(model, feature, case.images(4, seed=1), criterion="snip", density=density)


def maps(name, circuit, images, run=oracles.circuit_map, **more):
    case, model, layer, unit = subject(name)
    full = oracles.full_map(model, layer, unit, images)
    return full, run(model, dict(circuit.elements), layer, unit, images, blocks=case.blocks, **more)


def check(name, circuit, position, images, fit=None, run=oracles.circuit_map, **more):
    def pair(given):
        full, kept = maps(name, circuit, given, run, **more)
        return counted(full, position, full), counted(kept, position, full)

    report = cc.evaluate(subject(name)[1], circuit, images, fit=fit, effective=run is oracles.circuit_map, batch_size=3)
    agree(report, closed_form(*pair(images), fit=None if fit is None else pair(fit)))
    return report


# ---------------------------------------- the figures


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("density", [0.4, 0.8])
def test_figures_and_counts_are_those_of_the_oracles(name, density):
    case, model, layer, unit = subject(name)
    circuit = found(name, density)
    report = check(name, circuit, "all", case.images(4), fit=case.images(3, seed=1))
    inside = oracles.reachable(model, layer, unit, case.input_shape, dict(circuit.elements), blocks=case.blocks)
    assert report.kernels == len(circuit)
    assert report.effective_kernels == oracles.count(inside)
    assert report.effective_filters == sum(int(mask.any(1).sum()) for mask in inside.values())
    assert report.filters == sum(int(mask.any(1).sum()) for mask in circuit.elements.values())
    assert report.relevant == circuit.relevant
    assert report.density == circuit.density
    assert report.images == 4
    assert report.feature == str(circuit.feature)


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("position", ["max", "center", (0, 1)], ids=str)
def test_only_the_counted_positions_are_measured(name, position):
    case, *_ = subject(name)
    if name == "flat_head" and position == (0, 1):
        position = (0, 0)
    check(name, found(name, 0.5, position), position, case.images(5), fit=case.images(4, seed=1))


@pytest.mark.parametrize("name", MANY)
def test_the_published_semantics_leave_every_bias(name):
    check(name, found(name, 0.3), "all", subject(name)[0].images(3), run=oracles.masked_map)


@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "flat_head", "twice"])
def test_a_calibration_is_applied_to_live_filters(name):
    case, *_ = subject(name)
    plain = found(name, 0.8)
    tables = calibration(plain.kernels)
    circuit = dataclasses.replace(plain, **tables)
    calibrated = check(name, circuit, "all", case.images(3), **tables)
    assert calibrated.constants == circuit.constants > 0
    assert calibrated.error != cc.evaluate(subject(name)[1], plain, case.images(3)).error


@pytest.mark.parametrize("name", MANY)
def test_the_full_circuit_is_perfect(name):
    case, model, *_ = subject(name)
    for effective in (True, False):
        report = cc.evaluate(model, found(name, 1.0), case.images(3), fit=case.images(4, seed=2), effective=effective)
        agree(
            report,
            {
                "pearson": 1.0,
                "r2": 1.0,
                "r2_readout": 1.0,
                "readout": (1.0, 0.0),
                "error": 0.0,
                "error_at_max": 0.0,
                "pearson_max": 1.0,
                "density": 1.0,
            },
            1e-10,
        )
        assert report.pearson <= 1
        assert report.kernels == report.effective_kernels == report.relevant


def test_most_circuits_of_these_tests_are_alive():
    reports = [cc.evaluate(subject(n)[1], found(n, d), subject(n)[0].images(3)) for n in NETS for d in (0.4, 0.8)]
    assert sum(report.effective_kernels > 0 for report in reports) >= 0.75 * len(reports)


def test_the_bias_of_a_dead_filter_plays_no_part_where_a_layer_runs_twice():
    """shared[1, 2] reads stem filter 2, which is dead, in the first call, and a live filter in the second."""
    case, model = NETS["twice"], NETS["twice"].build()
    masks = {"stem": torch.zeros(4, 3), "shared": torch.zeros(4, 4), "head": torch.zeros(3, 4)}
    masks["stem"][0] = masks["head"][1, :2] = 1
    for kernel in ((1, 0), (1, 2), (0, 1), (2, 0)):
        masks["shared"][kernel] = 1
    maps = []
    for bias in (0.0, 3.0):
        with torch.no_grad():
            model.stem.bias[2] = bias
        circuit = cc.Circuit.from_masks(model, cc.Feature("head", 1), masks, input_shape=case.input_shape)
        maps.append(cc.activations(model, circuit.feature, case.images(), circuit=circuit))
    assert maps[0].std() > 0
    torch.testing.assert_close(maps[0], maps[1])


def test_a_direction_is_measured_as_its_sum():
    case, model, layer, _ = subject("residual")
    direction = torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64)
    circuit = cc.find(model, cc.Feature(layer, direction), case.images(), criterion="snip", density=0.5)
    full = oracles.full_map(model, layer, direction, case.images(4))
    kept = oracles.circuit_map(model, dict(circuit.elements), layer, direction, case.images(4))
    report = cc.evaluate(model, circuit, case.images(4))
    agree(report, closed_form(counted(full, "all", full), counted(kept, "all", full)))


@pytest.mark.parametrize("name", NETS)
def test_activations_are_the_oracles_maps(name):
    case, model, *_ = subject(name)
    circuit, images = found(name, 0.4), case.images(3)
    full, kept = maps(name, circuit, images)
    masked = maps(name, circuit, images, oracles.masked_map)[1]
    for expected, options in (
        (full, {}),
        (kept, {"circuit": circuit}),
        (masked, {"circuit": circuit, "effective": False}),
    ):
        got = cc.activations(model, circuit.feature, images, batch_size=2, **options)
        torch.testing.assert_close(got, expected)


# ---------------------------------------- streaming


def figures(report):
    return {name: getattr(report, name) for name in [*FIGURES, "readout", *COUNTS]}


@pytest.mark.parametrize(("name", "position"), [("plain", "all"), ("residual", "max"), ("flat_head", "all")])
def test_figures_do_not_depend_on_batches_order_or_form(name, position):
    case, model, *_ = subject(name)
    circuit, x, fit = found(name, 0.5, position), case.images(7), case.images(5, seed=1)
    expected = figures(cc.evaluate(model, circuit, x, fit=fit, batch_size=16))
    loader = DataLoader(TensorDataset(x, torch.zeros(7)), batch_size=4, shuffle=True)
    forms = [
        (x, fit, 1),
        (x, fit, 2),
        (x.flip(0), [fit[3:], fit[:3]], 5),
        (loader, DataLoader(TensorDataset(fit)), 3),
    ]
    for images, readout, batch_size in forms:
        report = cc.evaluate(model, circuit, images, fit=readout, batch_size=batch_size)
        agree(report, expected, 1e-10)


def test_a_large_mean_does_not_spoil_the_figures():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1)).double()
    with torch.no_grad():
        model[1].bias.fill_(1e6)
    circuit = cc.find(model, cc.Feature("1", 0), torch.randn(3, 2, 4, 4).double(), kernels=3)
    x = torch.randn(9, 2, 4, 4).double()
    full = cc.activations(model, circuit.feature, x).flatten(1).numpy()
    kept = cc.activations(model, circuit.feature, x, circuit=circuit).flatten(1).numpy()
    agree(cc.evaluate(model, circuit, x, batch_size=2), closed_form(full, kept), 1e-7)


def test_the_readout_is_fitted_on_the_other_images_alone():
    case, model, *_ = subject("plain")
    circuit, x = found("plain", 0.5), case.images(4)
    plain = cc.evaluate(model, circuit, x)
    assert math.isnan(plain.r2_readout)
    assert all(map(math.isnan, plain.readout))
    reports = [cc.evaluate(model, circuit, x, fit=case.images(4, seed=s)) for s in (1, 2)]
    assert reports[0].readout != reports[1].readout
    assert reports[0].pearson == reports[1].pearson == plain.pearson
    own = cc.evaluate(model, circuit, x, fit=x)
    assert own.r2_readout == pytest.approx(own.pearson**2, abs=1e-10)


@pytest.mark.parametrize("position", ["all", "max"])
@pytest.mark.parametrize("name", ["residual", "mobile", "flat_head"])
def test_known_maps_take_the_place_of_the_full_model(name, position):
    case, model, *_ = subject(name)
    circuit, images, others = found(name, 0.5, position), case.images(5), case.images(4, seed=2)
    network = Network(model)
    of, on = (Batches(one, device=network.device, dtype=torch.float64, batch_size=2) for one in (images, others))
    opened = Subject.open(network, circuit.feature, case.input_shape)
    full = {
        (case.input_shape, key): opened.maps(one)[0].detach()
        for batches in (of, on)
        for one, (key,) in batches.in_batches_of(1).hashed()
    }

    def figures(known):
        (report,) = measured(opened, [circuit], of, fit=on, full=known)
        return dataclasses.asdict(dataclasses.replace(report, provenance={}, notes=()))

    alone = figures(None)
    for known in (full, dict(list(full.items())[1:3])):  # the first batches mix known and unknown images
        for key, value in figures(known).items():
            numbers = isinstance(value, float) or key == "readout"
            assert value == (pytest.approx(alone[key], rel=1e-9, abs=1e-12, nan_ok=True) if numbers else alone[key])
    assert figures({key: 2 * one for key, one in full.items()})["r2"] < alone["r2"] - 0.1


@pytest.mark.parametrize("form", ["tensor", "loader"])
def test_progress_is_told_and_ends_with_all_images(form):
    case, model, *_ = subject("plain")
    x, told = case.images(5), []
    given, total = (x, 5) if form == "tensor" else ([x[:2], x[2:]], None)
    cc.evaluate(model, found("plain", 0.5), given, batch_size=2, progress=lambda *n: told.append(n))
    assert told == [(2, total), (4, total), (5, total)]
    told.clear()
    cc.activations(model, found("plain", 0.5).feature, given, batch_size=2, progress=lambda *n: told.append(n))
    assert told[-1] == (5, total)


# ---------------------------------------- what is not defined


def said(report, text):
    return any(text in note for note in report.notes)


@pytest.mark.parametrize(("bias", "dtype"), [(-9.0, torch.float64), (0.3, torch.float64), (0.3, torch.float32)])
def test_a_constant_feature_gives_nan_and_a_note(bias, dtype):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 1), nn.ReLU()).to(dtype)
    with torch.no_grad():
        model[1].weight[1] = 0.0
        model[1].bias[1] = bias
    x = torch.randn(5, 3, 6, 6, dtype=dtype)
    circuit = cc.find(model, cc.Feature("2", 1), x, criterion="magnitude", density=1.0)
    report = cc.evaluate(model, circuit, torch.randn(5, 3, 6, 6, dtype=dtype), fit=x, batch_size=2)
    for name in ("pearson", "r2", "r2_readout", "pearson_max"):
        assert math.isnan(getattr(report, name)), name
    assert said(report, "The feature is constant on these images")
    assert math.isnan(report.error) if bias < 0 else report.error == pytest.approx(0, abs=1e-6)
    assert "constant" in report.summary()


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_a_feature_that_is_constant_to_rounding_is_constant(batch_size):
    """A float32 batch of another size differs in its last bits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
        x = torch.randn(1, 3, 12, 12)
        circuit = cc.find(model, cc.Feature("2", 1, position="center"), torch.randn(4, 3, 12, 12), density=0.5)
    report = cc.evaluate(model, circuit, x.repeat(17, 1, 1, 1), batch_size=batch_size)
    assert math.isnan(report.pearson)
    assert math.isnan(report.r2)
    assert said(report, "constant on these images")


@pytest.mark.parametrize("name", MANY)
def test_an_empty_circuit_can_be_measured(name):
    case, model, *_ = subject(name)
    a = found(name, 0.5)
    report = check(name, a - a, "all", case.images(4), fit=case.images(3, seed=1))
    assert math.isnan(report.pearson)
    assert math.isnan(report.pearson_max)
    assert said(report, "The circuit's feature is constant on these images")
    assert report.readout[0] == 0.0
    assert report.r2 <= 0
    assert report.error == 1.0  # the map is zero
    assert report.kernels == report.effective_kernels == report.filters == report.effective_filters == 0
    published = cc.evaluate(model, a - a, case.images(4), effective=False)
    assert math.isnan(published.pearson) == said(published, "The circuit's feature is constant")


def test_every_nan_has_a_note():
    """The circuit's maxima are all 6 (ReLU6), though its maps vary."""
    model = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.ReLU6()).double()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([1.0, 0.1]).reshape(1, 2, 1, 1)
    x = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    x[:, 0, 0, 0] = 7.0
    x[:, 1] *= -40 * torch.arange(1, 5).reshape(4, 1, 1)
    circuit = cc.Circuit.from_masks(model, cc.Feature("1", 0), {"0": torch.tensor([[1, 0]])})
    report = cc.evaluate(model, circuit, x)
    assert math.isfinite(report.pearson)
    assert math.isnan(report.pearson_max)
    assert said(report, "maxim")


@pytest.mark.parametrize("position", ["all", "max"])
def test_one_image_can_be_measured(position):
    case, *_ = subject("plain")
    report = check("plain", found("plain", 0.6, position), position, case.images(1))
    assert math.isnan(report.pearson_max)
    assert math.isfinite(report.pearson) == (position == "all")
    assert report.images == 1
    assert report.notes


# ---------------------------------------- notes, identity, files

OWN = "the same images that the circuit was found on"
FITTED_HERE = "The readout and the average map come from the same images"


def test_the_images_it_was_found_on_are_noticed_in_any_form():
    case, model, *_ = subject("plain")
    circuit, x = found("plain", 0.5), case.images(4, seed=1)
    other = found("plain", 0.2)
    for images in (x, x.flip(0), [x[3:], x[:3]], DataLoader(TensorDataset(x, torch.zeros(4)), shuffle=True)):
        assert said(cc.evaluate(model, circuit, images), OWN)
    for images in (x[:3], case.images(4), torch.cat([x, x[:1]]), x.flip(3)):
        assert not said(cc.evaluate(model, circuit, images), OWN)
    assert said(cc.evaluate(model, circuit & other, x), OWN)
    assert not said(cc.evaluate(model, cc.Circuit.from_masks(model, circuit.feature, {}), x), OWN)


def test_notes_of_the_circuit_are_passed_on():
    case, model, *_ = subject("plain")
    circuit = found("plain", 0.5)
    noted = dataclasses.replace(circuit, provenance=dict(circuit.provenance) | {"notes": ["it collapsed"]})
    assert said(cc.evaluate(model, noted, case.images()), "It collapsed.")


def step(model):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(NETS["plain"].images()).sum().backward()
    optimiser.step()


def data_add(model):
    model.features[3].weight.data[0, 0, 0, 0] += 0.5


def data_swap(model):
    kernels = model.features[3].weight.data
    kernels[0], kernels[1] = kernels[1].clone(), kernels[0].clone()


def data_little(model):
    model.features[3].weight.data[0, 0, 0, 0] *= 1 + 1e-15


def assign(model):
    model.features[3].weight = nn.Parameter(torch.randn(5, 4, 3, 3, dtype=torch.float64))


def load(model):
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()})


@pytest.mark.parametrize("change", [step, data_add, data_swap, data_little, assign, load])
def test_a_circuit_of_other_weights_is_refused(change):
    case = NETS["plain"]
    model, x = case.build(), case.images()
    circuit = cc.find(model, cc.Feature("features.5", 2), x, kernels=9)
    cc.evaluate(model, circuit, x)
    before = copy.deepcopy(model.state_dict())
    change(model)
    for use in (
        lambda: cc.evaluate(model, circuit, x),
        lambda: cc.activations(model, circuit.feature, x, circuit=circuit),
        lambda: cc.score(model, circuit.feature, x, circuit=circuit),
    ):
        with pytest.raises(cc.ConvCircuitsError, match=r"belongs to another model.*find the circuit again"):
            use()
    model.load_state_dict(before)
    cc.evaluate(model, circuit, x)


def test_weights_that_moved_by_data_with_the_same_sum_are_other_weights():
    case = NETS["plain"]
    model, x = case.build(), case.images()
    weight = model.features[3].weight.data
    weight.zero_()
    weight[0, 0, 0, 0] = 1.0
    circuit = cc.find(model, cc.Feature("features.5", 2), x, criterion="magnitude", kernels=9)
    weight.zero_()
    weight[1, 1, 1, 1] = 1.0
    with pytest.raises(cc.ConvCircuitsError, match="belongs to another model"):
        cc.evaluate(model, circuit, x)


def test_activations_refuse_the_circuit_of_another_feature():
    case, model, layer, _ = subject("plain")
    with pytest.raises(cc.ConvCircuitsError, match=r"preserves features.5:2, not features.5:1"):
        cc.activations(model, cc.Feature(layer, 1), case.images(), circuit=found("plain", 0.5))


@pytest.mark.parametrize("circuit", [None, "c", 3], ids=str)
def test_what_is_no_circuit_is_refused(circuit):
    case, model, *_ = subject("plain")
    with pytest.raises((TypeError, cc.ConvCircuitsError)):
        cc.evaluate(model, circuit, case.images())


@pytest.mark.parametrize("bad", ["images", "fit"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x: x[:0], "There are no images"),
        (lambda x: (b for b in [x]), "one-shot iterator"),
        (lambda x: x * math.nan, "NaN or Inf"),
        (lambda x: x[:, :2], "expects 3 channels, but got 2"),
        (lambda x: x[0], "N, C, H, W"),
    ],
    ids=["none", "generator", "NaN", "channels", "3-D"],
)
def test_bad_images_are_refused(bad, given, message):
    case, model, *_ = subject("plain")
    x = case.images()
    with pytest.raises(cc.ConvCircuitsError, match=message):
        cc.evaluate(model, found("plain", 0.5), **({"images": x} | {bad: given(x)}))


def reports():
    case, model, *_ = subject("plain")
    circuit, x = found("plain", 0.5), case.images(2)

    def mine(trace, *, cap):
        return {layer: torch.rand(shape) for layer, shape in trace.shapes.items()}

    capped = cc.find(model, circuit.feature, x, criterion=mine, kernels=5, cap=math.inf)
    return {
        "plain": cc.evaluate(model, circuit, x),
        "with fit": cc.evaluate(model, circuit, x, fit=x),
        "one image": cc.evaluate(model, circuit, x[:1]),
        "empty": cc.evaluate(model, circuit - circuit, x),
        "union": cc.evaluate(model, circuit | found("plain", 0.2), x),
        "infinite option": cc.evaluate(model, capped, x),
        "infinite option of a union": cc.evaluate(model, capped | capped, x),
        "pair": cc.evaluate(model, found("plain", 0.5, (1, 1)), x),
    }


def test_as_dict_is_strict_json_with_every_figure():
    for name, report in reports().items():
        try:
            text = json.dumps(report.as_dict(), allow_nan=False)
        except ValueError as error:
            raise AssertionError(name) from error
        again = json.loads(text)
        assert set(again) == {field.name for field in dataclasses.fields(report)}
        for figure in FIGURES:
            value = getattr(report, figure)
            assert again[figure] == (None if math.isnan(value) else value)
        assert again["notes"] == list(report.notes)


def test_the_summary_and_the_repr_are_short_and_say_the_notes():
    case, model, *_ = subject("plain")
    report = cc.evaluate(model, found("plain", 0.5), case.images(4, seed=1))
    rows = {line[:30].strip(): line[30:].split() for line in report.summary().splitlines()[2:11]}
    assert rows["R2"] == [f"{report.r2:z.3f}", "-", f"{report.r2_random:z.3f}"]
    assert rows["R2, rectified"] == [f"{report.r2_rectified:z.3f}", "-", f"{report.r2_random_rectified:z.3f}"]
    assert rows["Pearson r"] == [f"{report.pearson:z.3f}"]
    assert report.verdict_sentence in report.summary().splitlines()
    assert OWN in report.summary()
    assert len(report.summary().splitlines()) == 13 + len(report.notes)
    assert "provenance" not in repr(report)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.pearson = 1.0


def test_maps_that_overflow_are_no_perfect_correlation():
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(3), cc.Feature("features.3", 1)
    whole = cc.prune(cc.score(model, feature, images, criterion="random"), density=1.0)
    huge = {layer: torch.full(mask.shape, 1e200, dtype=torch.float64) for layer, mask in whole.kernels.items()}
    report = cc.evaluate(model, dataclasses.replace(whole, gain=LayerTable(huge)), case.images(3, 1))
    assert math.isnan(report.pearson)
    assert any("NaN or Inf" in note for note in report.notes)


def test_a_readout_fitted_on_the_measured_images_is_noted():
    case = NETS["plain"]
    model, feature, others = case.build(), cc.Feature("features.3", 1), case.images(3, 1)
    circuit = cc.find(model, feature, case.images(3), density=0.5)
    fitted = [n for n in cc.evaluate(model, circuit, others, fit=others).notes if FITTED_HERE in n]
    assert len(fitted) == 1
    assert not said(cc.evaluate(model, circuit, others, fit=case.images(3)), FITTED_HERE)
