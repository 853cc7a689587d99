"""Laws that results rest on hold on every net, a model that breaks one gets no result, and all is in the provenance."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
from convcircuits.circuits.evaluation import evaluate_all
from convcircuits.compiler import extraction
from convcircuits.compiler.layout import UnextractableError
from convcircuits.network import agreement, laws, masking, reach
from convcircuits.network.capture import Network
from convcircuits.network.reach import survey
from nets import NETS, seeded

torch.set_num_threads(1)

FEATURES = [(name, layer, unit) for name, case in NETS.items() for layer, unit in case.features]
CHECKED = ("repeat", "all_relevant", "dead_filters")


@pytest.fixture(autouse=True)
def nothing_passed_yet(monkeypatch):
    monkeypatch.setattr(laws, "_passed", type(laws._passed)())


@pytest.fixture
def checks(monkeypatch):
    """Counts how often laws are really checked."""
    real, seen = laws._check, []
    monkeypatch.setattr(laws, "_check", lambda *given: (seen.append(given), real(*given))[1])
    return seen


class Net(nn.Module):
    """Two convolutions and a head with what a test puts between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.head, self.between = nn.Conv2d(6, 2, 1), between

    def forward(self, x):
        return self.head(self.between(F.relu(self.second(F.relu(self.first(x))))))


FEATURE = cc.Feature("head", 1)
IMAGES = NETS["plain"].images(4)
LARGE = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def net(between=lambda x: x):
    return seeded(lambda: Net(between), 3)()


# ---------------------------------------- every net keeps the laws


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_every_net_keeps_the_laws_and_the_provenance_says_by_how_much(name, layer, unit, dtype):
    case = NETS[name]
    model, images = case.build().to(dtype), case.images(3).to(dtype)
    scores = cc.score(model, cc.Feature(layer, unit), images, criterion="random")
    said = scores.provenance["laws"]
    assert said["images"] == "2 given"
    for law in CHECKED:
        assert said[law] is None or 0 <= said[law] <= 100 * torch.finfo(dtype).eps
    assert said["repeat"] is not None
    assert said["all_relevant"] is not None
    assert ("unchecked" in said) == (said["dead_filters"] is None)


def test_dead_filters_are_checked_in_nets_that_have_several():
    unchecked = []
    for name, case in NETS.items():
        scores = cc.score(case.build(), cc.Feature(*case.features[-1]), case.images(1), criterion="random")
        assert scores.provenance["laws"]["images"] == "1 given"
        if scores.provenance["laws"]["dead_filters"] is None:
            unchecked.append(name)
    assert unchecked == []


def test_equal_images_will_do():
    for name, case in NETS.items():
        images = torch.zeros(2, *case.input_shape, dtype=torch.float64)
        scores = cc.score(case.build(), cc.Feature(*case.features[-1]), images, criterion="random")
        assert scores.provenance["laws"]["dead_filters"] < 1e-13, name


def test_scores_circuits_evaluations_modules_say_what_was_checked():
    model = net()
    scores = cc.score(model, FEATURE, IMAGES)
    circuit = cc.prune(scores, density=0.8)
    found = cc.find(model, FEATURE, IMAGES, density=0.8)
    assert circuit.provenance["laws"] == found.provenance["laws"] == scores.provenance["laws"]
    said = cc.evaluate(model, circuit, IMAGES).provenance["laws"]
    assert said.pop("network") < 1e-13
    assert said == scores.provenance["laws"]
    said = dict(cc.extract(model, circuit).meta["circuit"]["laws"])
    assert said.pop("module") < 1e-13
    assert said == scores.provenance["laws"]


def test_without_images_random_ones_are_run():
    model = net()
    circuit = cc.Circuit.from_masks(model, FEATURE, {"head": torch.ones(2, 6)}, input_shape=(3, 8, 8))
    assert circuit.provenance["laws"]["images"] == "2 random"


# ---------------------------------------- what breaks them gets no result


def unseen(x):
    """Noise that torch does not see."""
    return x + np.random.default_rng().random()


RANDOM = {"functional dropout": F.dropout, "noise": lambda x: x + torch.randn_like(x), "unseen noise": unseen}


@pytest.mark.parametrize("between", RANDOM.values(), ids=RANDOM)
def test_a_model_that_is_random_in_eval_mode_is_refused(between):
    model = net(between)
    for give in (
        lambda: cc.score(model, FEATURE, IMAGES),
        lambda: cc.find(model, FEATURE, IMAGES, density=0.5),
        lambda: cc.Circuit.from_masks(model, FEATURE, {}, input_shape=(3, 8, 8)),
    ):
        with pytest.raises(cc.ConvCircuitsError, match=r"draws (random )?numbers .*self\.training"):
            give()


def test_where_a_model_is_random_is_said():
    with pytest.raises(
        cc.ConvCircuitsError, match=r"different maps of head:1 .* first at head: it draws random numbers outside torch"
    ):
        cc.score(net(unseen), FEATURE, IMAGES)


def test_the_operation_that_draws_is_named():
    network = Network(net(F.dropout))
    subject = masking.Subject(Network(net()), FEATURE, survey(Network(net()), FEATURE, (3, 8, 8)))
    subject.network = network
    assert laws._draws(subject, IMAGES) == "Net draws random numbers (bernoulli_)"


def test_a_circuit_of_a_model_that_became_random_is_not_measured():
    model = net()
    circuit = cc.find(model, FEATURE, IMAGES, density=0.8)
    model.between = unseen
    for give in (
        lambda: cc.evaluate(model, circuit, IMAGES),
        lambda: cc.activations(model, FEATURE, IMAGES, circuit=circuit),
        lambda: cc.extract(model, circuit),
        lambda: cc.diagram(model, circuit, images=IMAGES),
    ):
        with pytest.raises(cc.ConvCircuitsError, match="computes different maps of head:1 for the same images"):
            give()


@pytest.mark.parametrize(
    "place",
    [
        lambda x: x * torch.where(torch.arange(len(x)).reshape(-1, 1, 1, 1) > 3, 2.0, 1.0),
        lambda x: x if len(x) < 4 else 2 * x,
        lambda x: x / len(x),
        lambda x: torch.cat([x[:4], 3 * x[4:]]),
    ],
    ids=["late images", "large batches", "share of a batch", "after the fourth"],
)
def test_a_model_to_which_the_batch_matters_gives_no_result(place):
    """Beyond the two and three images that a recording runs."""
    model = net(place)
    for give in (
        lambda: cc.score(model, FEATURE, IMAGES),
        lambda: cc.find(model, FEATURE, IMAGES, criterion="random", density=0.5),
        lambda: cc.Circuit.from_masks(model, FEATURE, {}, input_shape=(3, 8, 8)),
    ):
        with pytest.raises(cc.ConvCircuitsError, match=r"in a batch of 5 than in one of 2 .*Choose a feature before"):
            give()


def test_a_model_that_fails_in_larger_batches_is_refused_with_the_size():
    model = net(lambda x: x.view(2, -1, *x.shape[1:]).flatten(0, 1) if len(x) == 5 else x)
    with pytest.raises(cc.ConvCircuitsError, match=r"cannot run on images of shape \(3, 8, 8\) in a batch of 5: shape"):
        cc.score(model, FEATURE, IMAGES)


def test_kernels_that_are_missed_are_noticed(monkeypatch):
    """A survey that takes a filter's kernels for irrelevant."""
    real = reach.survey

    def missing(*given):
        found = real(*given)
        kernels = {layer: mask.clone() for layer, mask in found.kernels.items()}
        kernels["second"][2] = False
        return dataclasses.replace(found, kernels=kernels)

    monkeypatch.setattr(reach, "survey", missing)
    with pytest.raises(cc.ConvCircuitsError, match="all relevant kernels does not compute") as error:
        cc.score(net(), FEATURE, IMAGES)
    assert "first at head" in str(error.value)


def loudly(real):
    def maps(self, images, masks=None, watch=None):
        return real(self, images, masks if masks is None else dataclasses.replace(masks, effective=False), watch)

    return maps


def test_a_dead_filter_that_leaks_is_noticed(monkeypatch):
    """Masked runs in which a dead filter's constant is added to live maps."""

    def between(x):
        return x + x.flip(1)

    assert cc.score(net(between), FEATURE, IMAGES).provenance["laws"]["dead_filters"] == 0
    monkeypatch.setattr(masking.Subject, "maps", loudly(masking.Subject.maps))
    laws._passed.clear()
    with pytest.raises(cc.ConvCircuitsError, match="the values of dead filters change the map") as error:
        cc.score(net(between), FEATURE, IMAGES)
    assert "first at head" in str(error.value)


class Gated(nn.Module):
    """A map times a gate that a layer of its own computes, whose filters may be dead."""

    def __init__(self, gate):
        super().__init__()
        self.first, self.gate, self.head, self.how = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1), gate

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.head(self.how(x, self.gate))


GATES = {
    "pooled": lambda x, gate: x * gate(x.mean((2, 3), keepdim=True)).sigmoid(),
    "pooled and spread": lambda x, gate: x * gate(x.mean((2, 3), keepdim=True)).sigmoid().expand_as(x),
    "at every position": lambda x, gate: x * gate(x).sigmoid(),
    "in place": lambda x, gate: (x + 1).mul_(F.hardsigmoid(gate(x.mean((2, 3), keepdim=True)))),
    "of two branches": lambda x, gate: (
        torch.stack([x, x.flip(2)], 1)
        * gate(x.mean((2, 3))[:, :, None, None]).view(-1, 2, 3, 1, 1).softmax(1).repeat(1, 1, 2, 1, 1)
    ).sum(1),
    "a divisor": lambda x, gate: x / (1 + gate(x).square()),
}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_a_dead_gate_stays_the_constant_it_is(gate, monkeypatch):
    """Its constant matters, as is meant; all other uses are found out, even beside it."""
    model = seeded(lambda: Gated(gate), 4)()
    assert cc.score(model, FEATURE, IMAGES, criterion="random").provenance["laws"]["dead_filters"] < 1e-14
    monkeypatch.setattr(masking.Subject, "maps", loudly(masking.Subject.maps))
    leaks = seeded(lambda: Gated(lambda x, layer: gate(x + x.flip(1), layer)), 4)()
    with pytest.raises(cc.ConvCircuitsError, match="the values of dead filters change the map"):
        cc.score(leaks, FEATURE, IMAGES, criterion="random")


def test_a_map_of_nan_is_no_law_broken_and_is_checked_anew():
    model = net()
    with torch.no_grad():
        model.first.weight.mul_(1e300)
        model.second.weight.mul_(1e300)
    for _ in range(2):
        circuit = cc.Circuit.from_masks(model, FEATURE, {}, input_shape=tuple(IMAGES.shape[1:]))
        said = circuit.provenance["laws"]
        assert "NaN or Inf" in said["unchecked"]
        assert [said[law] for law in CHECKED] == [None, None, None]
    assert not laws._passed


# ---------------------------------------- once per weights, feature and shape


def test_laws_are_checked_once_for_the_same_weights_feature_and_shape(checks):
    model = net()
    scores = cc.score(model, FEATURE, IMAGES)
    circuit = cc.prune(scores, density=0.8)
    cc.score(model, FEATURE, IMAGES.flip(0), criterion="snip")
    cc.evaluate(model, circuit, IMAGES)
    cc.activations(model, FEATURE, IMAGES, circuit=circuit)
    cc.extract(model, circuit)
    assert len(checks) == 1
    cc.score(model, cc.Feature("head", 0), IMAGES)
    assert len(checks) == 2
    cc.score(model, FEATURE, IMAGES[:, :, :7])
    assert len(checks) == 3
    with torch.no_grad():
        model.second.bias.add_(1e-9)
    cc.score(model, FEATURE, IMAGES)
    assert len(checks) == 4
    model.between = torch.tanh
    cc.score(model, FEATURE, IMAGES)
    assert len(checks) == 5


def test_only_what_passed_is_remembered(checks):
    model = net(unseen)
    for _ in range(2):
        with pytest.raises(cc.ConvCircuitsError, match="different maps"):
            cc.score(model, FEATURE, IMAGES)
    assert len(checks) == 2


def test_what_is_remembered_is_bounded_and_shared_by_threads(monkeypatch, checks):
    monkeypatch.setattr(laws, "_CACHED", 3)
    model, said = net(), []

    def work(height):
        said.append(cc.score(model, FEATURE, IMAGES[:, :, :height], criterion="random").provenance["laws"]["repeat"])

    threads = [threading.Thread(target=work, args=(height,)) for height in (4, 5, 6, 7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [0.0] * 5
    assert len(laws._passed) == 3


def test_a_caller_who_changes_the_provenance_changes_nothing_else():
    model = net()
    cc.score(model, FEATURE, IMAGES).provenance["laws"]["repeat"] = 7
    assert cc.score(model, FEATURE, IMAGES).provenance["laws"]["repeat"] == 0


# ---------------------------------------- modules and sweeps are what is handed out


def wrong(monkeypatch, change):
    """Write networks that are changed before anyone sees them."""
    write = extraction._written

    def written(*given, **options):
        module = write(*given, **options)
        with torch.no_grad():
            change(module)
        return module

    monkeypatch.setattr(extraction, "_written", written)


@pytest.mark.parametrize(
    ("parameter", "where"),
    [("first.weight", "the input of second"), ("second.bias", "the input of head"), ("head.bias", "first at head.")],
)
def test_a_wrong_module_is_not_handed_out_and_the_error_says_where(monkeypatch, parameter, where):
    model = net()
    circuit = cc.find(model, FEATURE, IMAGES, density=0.8)
    wrong(monkeypatch, lambda module: module.get_parameter(parameter).add_(0.1))
    with pytest.raises(cc.ConvCircuitsError, match="does not compute the same as the circuit's masked run") as error:
        cc.extract(model, circuit)
    assert where in str(error.value)
    with pytest.raises(cc.ConvCircuitsError, match="does not compute the same as the circuit's masked run") as error:
        cc.evaluate(model, circuit, IMAGES)
    assert where in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_agrees_with_nothing(value):
    number, other = torch.ones(3), torch.tensor([1.0, value, 1.0])
    for pair in ((number, other), (other, number), (other, other)):
        assert agreement.difference(*pair)[0] == float("inf")


@pytest.mark.parametrize("which", range(4))
def test_every_circuit_of_a_sweep_is_checked(monkeypatch, which):
    model = net()
    scores = cc.score(model, FEATURE, IMAGES)
    circuits = [cc.prune(scores, density=d) for d in (0.7, 0.8, 0.9)]
    real = extraction._written

    class Wrong(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            maps = self.module(x)
            return tuple(m * (1 + 1e-9 * (n == which)) for n, m in enumerate(maps)) if len(maps) > 2 else maps

    monkeypatch.setattr(extraction, "_written", lambda *given, **options: Wrong(real(*given, **options)))
    what = "the full model" if which == 0 else f"circuit {which} of 6"  # random ones stand beside them
    with pytest.raises(cc.ConvCircuitsError, match=f"that measures {what} from Net does not compute"):
        evaluate_all(model, circuits, IMAGES)


def sweep_on_large_images(model, monkeypatch):
    """Measure a nest of circuits on large images, and return their reports and the sizes of all masked runs."""
    images, real, sizes = LARGE, masking.Subject.maps, []
    circuits = [cc.prune(cc.score(model, FEATURE, images), density=d) for d in (0.7, 0.8, 0.9)]

    def maps(self, images, masks=None, watch=None):
        if masks is not None:
            sizes.append(tuple(images.shape[2:]))
        return real(self, images, masks, watch)

    checked = extraction.Sweep._checked

    def counted(*given):
        with monkeypatch.context() as patch:
            patch.setattr(masking.Subject, "maps", maps)
            return checked(*given)

    monkeypatch.setattr(extraction.Sweep, "_checked", counted)
    reports = evaluate_all(model, circuits, images, controls=[None] * 3)
    kept = [cc.activations(model, FEATURE, images, circuit=circuit) for circuit in circuits]
    full = cc.activations(model, FEATURE, images)
    r2 = [float(1 - (one - full).square().sum() / (full - full.mean()).square().sum()) for one in kept]
    assert [report.r2 for report in reports] == pytest.approx(r2, abs=1e-9)
    return reports, sizes


def test_circuits_are_compared_on_crops_of_large_images_but_for_the_smallest(monkeypatch):
    reports, sizes = sweep_on_large_images(net(), monkeypatch)
    assert sorted(sizes) == [(96, 96), (96, 96), (160, 160)]
    assert all(report.provenance["laws"]["network"] < 1e-12 for report in reports)


def other_if_small(x):
    return x if x.shape[-1] > 100 else 2 * x


def only_large(x):
    if x.shape[-1] < 100:
        raise ValueError("This image is too small.")
    return x


def constant_if_small(x):
    return x if x.shape[-1] > 100 else 0 * x


@pytest.mark.parametrize("between", [other_if_small, only_large, constant_if_small])
def test_where_crops_show_nothing_circuits_are_compared_on_the_images(monkeypatch, between):
    _, sizes = sweep_on_large_images(net(between), monkeypatch)
    assert sizes.count((160, 160)) == 3


@pytest.mark.parametrize(("which", "fit"), [*((n, False) for n in range(4)), *((n, True) for n in range(7))])
def test_a_wrong_circuit_is_found_on_large_images(monkeypatch, which, fit):
    model, images = net(), LARGE
    circuits = [cc.prune(cc.score(model, FEATURE, images), density=d) for d in (0.7, 0.8, 0.9)]
    real = extraction._Written.maps
    monkeypatch.setattr(
        extraction._Written,
        "maps",
        lambda self, x, only: [m * (1 + 1e-9 * (n == which)) for n, m in zip(only, real(self, x, only), strict=True)],
    )
    # The random circuits, 4 to 6, do not run on images to fit on.
    given = {"fit": images} if fit else {"controls": [None] * 3}
    with pytest.raises(cc.ConvCircuitsError, match="does not compute the same as the circuit's masked run"):
        evaluate_all(model, circuits, images, **given)


def test_a_sweep_that_runs_its_images_in_turn_measures_the_same(monkeypatch):
    model = net()
    circuit = cc.find(model, FEATURE, IMAGES, density=0.8)
    together = cc.evaluate(model, circuit, IMAGES)
    monkeypatch.setattr(extraction, "_AT_ONCE", 1)
    alone = cc.evaluate(model, circuit, IMAGES)
    assert alone.r2 == pytest.approx(together.r2, abs=1e-12)
    assert alone.r2_random == pytest.approx(together.r2_random, abs=1e-12)


class Chaotic(nn.Module):
    """Makes of a rounding error, as folding its BatchNorm brings, one so many times as large."""

    def __init__(self, growth):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 3)
        self.growth = growth

    def forward(self, x):
        return self.last(torch.sin(self.growth * self.norm(self.first(x))))


def test_growing_rounding_is_told_from_a_wrong_module(monkeypatch):
    model, images = seeded(lambda: Chaotic(1e5), 7)().float(), IMAGES.float()
    circuit = cc.find(model, cc.Feature("last", 1), images, criterion="random", density=0.9)
    masked = cc.activations(model, circuit.feature, images, circuit=circuit)
    small = cc.extract(model, circuit)
    assert small.meta["circuit"]["laws"]["module"] > 1000 * torch.finfo(torch.float32).eps
    assert (small(images) - masked).abs().max() <= 0.25 * masked.abs().max()
    wrong(monkeypatch, lambda module: module.get_parameter("last.bias").add_(1.0))
    with pytest.raises(cc.ConvCircuitsError, match="does not compute the same as the circuit's masked run"):
        cc.extract(model, circuit)


class Rough(nn.Module):
    """A written network whose maps are off by some share: only in float32, as if by rounding, or always."""

    def __init__(self, module, only, share):
        super().__init__()
        self.module, self.only, self.share, self.meta = module, only, share, getattr(module, "meta", {})

    def forward(self, x):
        def off(one):
            return one * (1 + self.share * (self.only is None or one.dtype == self.only))

        maps = self.module(x)
        return tuple(map(off, maps)) if isinstance(maps, tuple) else off(maps)


def test_rounding_of_the_written_network_alone_is_told_from_a_wrong_one(monkeypatch):
    model, images, write = net().float(), IMAGES.float(), extraction._written
    circuit = cc.find(model, FEATURE, images, density=0.8)

    def roughly(only, share=1e-4):
        monkeypatch.setattr(
            extraction, "_written", lambda *given, **options: Rough(write(*given, **options), only, share)
        )

    roughly(torch.float32)
    for error in (
        cc.extract(model, circuit).meta["circuit"]["laws"]["module"],
        cc.evaluate(model, circuit, images).provenance["laws"]["network"],
    ):
        assert error == pytest.approx(1e-4, rel=0.1)
    for only, share in ((None, 1e-4), (torch.float32, 1e-2)):  # rounding that would change figures is refused, too
        roughly(only, share)
        for give in (lambda: cc.extract(model, circuit), lambda: cc.evaluate(model, circuit, images)):
            with pytest.raises(cc.ConvCircuitsError, match="does not compute the same as the circuit's masked run"):
                give()


def test_where_rounding_is_all_there_is_nothing_is_handed_out():
    model, images = seeded(lambda: Chaotic(1e8), 7)().float(), IMAGES.float()
    circuit = cc.find(model, cc.Feature("last", 1), images, criterion="random", density=0.9)
    for give in (lambda: cc.extract(model, circuit), lambda: cc.evaluate(model, circuit, images)):
        with pytest.raises(
            cc.ConvCircuitsError, match=r"In float32, rounding alone changes the map of last:1 by \d+%.*such as float64"
        ):
            give()
    double = cc.find(model.double(), circuit.feature, IMAGES, criterion="random", density=0.9)
    assert cc.extract(model, double).meta["circuit"]["laws"]["module"] < 1e-3


# ---------------------------------------- the run is said, and nothing is done twice


@pytest.fixture
def unwritable(monkeypatch):
    """No network can be written of any model."""

    def refuse(*given):
        raise UnextractableError("It does what cannot be written.")

    return lambda: monkeypatch.setattr(extraction, "layout_of", refuse)


def test_an_evaluation_says_how_it_was_run(unwritable):
    model = net()
    circuit = cc.find(model, FEATURE, IMAGES, density=0.8)
    report = cc.evaluate(model, circuit, IMAGES)
    assert report.provenance["run"] == "network"
    assert "run_reason" not in report.provenance
    assert not any("masked runs" in note for note in report.notes)
    unwritable()
    other = cc.evaluate(model, circuit, IMAGES)
    assert other.provenance["run"] == "masked"
    assert other.provenance["run_reason"] == "It does what cannot be written."
    assert any("masked runs" in note and "It does what cannot be written." in note for note in other.notes)
    assert "network" not in other.provenance["laws"]
    assert other.r2 == pytest.approx(report.r2, abs=1e-12)
    assert other.effective_kernels == report.effective_kernels


@pytest.mark.parametrize("run", ["network", "masked"])
def test_no_probe_is_repeated_per_batch_or_per_circuit(monkeypatch, unwritable, run):
    model = net()
    scores = cc.score(model, FEATURE, IMAGES)
    circuits = [cc.prune(scores, kernels=k) for k in range(20, 33)]
    if run == "masked":
        unwritable()
    counts = {"survey": 0, "layout_of": 0, "effective": 0}

    def counted(name, real):
        def count(*given, **options):
            counts[name] += 1
            return real(*given, **options)

        return count

    for module in (masking, reach):
        monkeypatch.setattr(module, "survey", counted("survey", module.survey))
    monkeypatch.setattr(extraction, "layout_of", counted("layout_of", extraction.layout_of))
    monkeypatch.setattr(masking.Subject, "effective", counted("effective", masking.Subject.effective))
    reports = evaluate_all(model, circuits, NETS["plain"].images(10), batch_size=2)
    assert [report.provenance["run"] for report in reports] == [run] * 13
    assert counts["layout_of"] == 1
    assert counts["effective"] == 26  # for the masked run of each circuit, and of the control beside it
    assert counts["survey"] == 1


def test_the_yardstick_is_the_most_that_rounding_does():
    """A float32 run differs from the float64 run by less than the measured move, and not by far less."""
    for name in ("plain", "residual", "mobile", "dense", "se_conv"):
        case = NETS[name]
        model, feature = case.build().float(), cc.Feature(*case.features[-1])
        network = Network(model)
        subject = masking.Subject(network, feature, survey(network, feature, case.input_shape))
        images = case.images(2).float()
        with torch.no_grad():
            single = subject.maps(images)
            double = cc.activations(case.build().float().double(), feature, images.double())
            least, *moved = agreement.moves(subject, None, images, single)
        error = float((single - double).abs().max())
        assert max(moved) / 100 < error < max(moved)
        assert 0 < least < min(moved)


def test_the_yardstick_grows_with_gains_and_offsets():
    """Rounding is of the terms that are added, which the calibration of a circuit makes larger."""
    case = NETS["plain"]
    model, feature = case.build().float(), cc.Feature(*case.features[-1])
    whole = cc.prune(cc.score(model, feature, case.images(2).float(), criterion="snip"), density=1.0)
    subject, images = masking.Subject.open(model, feature, case.input_shape), case.images(2).float()
    layer = list(whole.kernels)[-1]

    def moved(gain, offset):
        kernels = whole.kernels[layer]
        calibrated = dataclasses.replace(
            whole,
            gain={layer: torch.full(kernels.shape, gain)},
            offset={layer: torch.full(kernels.shape[:1], offset)},
        )
        with torch.no_grad():
            masks = subject.masks(calibrated, case.input_shape, effective=True)
            return max(agreement.moves(subject, masks, images, subject.maps(images, masks)))

    plain = moved(1.0, 0.0)
    assert moved(100.0, 0.0) > 30 * plain
    assert moved(1.0, 1000.0) > 30 * plain


def test_without_images_gates_are_told_from_leaks_too():
    for name in ("se_conv", "se_linear"):
        for layer, unit in NETS[name].features:
            circuit = cc.Circuit.from_masks(NETS[name].build(), cc.Feature(layer, unit), {}, input_shape=(3, 9, 9))
            assert circuit.provenance["laws"]["dead_filters"] < 1e-13
