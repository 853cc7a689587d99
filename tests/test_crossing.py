"""The cross-test against masked runs of single images, and on a unit whose mechanisms are known."""

import math

import pytest
import torch

import convcircuits as cc
import twofold
from convcircuits.subfeatures.again import found_again
from nets import NETS

torch.set_num_threads(1)


def halves(count=8, seed=0):
    made, blue = twofold.images(2 * count, seed)
    return {"red": made[~blue], "blue": made[blue]}


def known(**options):
    return cc.cross(twofold.net(), {name: twofold.circuit(name) for name in ("red", "blue")}, halves(), **options)


def test_circuits_of_two_mechanisms_answer_to_their_own_images_alone():
    report = known()
    for circuit in ("red", "blue"):
        for group in ("red", "blue"):
            row = report.row(circuit, group)
            assert row.error == pytest.approx(float(circuit != group), abs=1e-9)
            assert row.kept == pytest.approx(float(circuit == group), abs=1e-9)
    one = report.selectivity[0]
    assert (one.own, one.others, one.value) == pytest.approx((0, 1, 1), abs=1e-9)
    assert (one.low, one.high) == pytest.approx((1, 1), abs=1e-9)
    shared = next(one for one in report.overlaps if one.layer == "all")
    assert (shared.shared, shared.alone, shared.iou) == (0, (6, 6), 0)
    assert report.verdict == "not decided"  # there is no control
    assert any("no control" in note for note in report.notes)


@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "flat_head"])
def test_figures_are_those_of_masked_runs(name):
    case = NETS[name]
    model, images = case.build(), case.images(9)
    feature = cc.Feature(*case.features[-1], position="max")
    circuits = {
        group: [cc.prune(cc.score(model, feature, some, criterion="snip"), density=density) for density in (0.6, 0.3)]
        for group, some in (("a", images[:2]), ("b", images[2:4]))
    }
    groups = {"a": images[4:6], "b": images[6:]}
    report = cc.cross(model, circuits, groups)
    assert [one.size for one in report.selectivity] == [0, 1]
    for row in report.rows:
        circuit, some = circuits[row.circuit][row.size], groups[row.group]
        full, alone = (
            cc.activations(model, feature, some, circuit=one).reshape(len(some), -1).double() for one in (None, circuit)
        )
        at = full.argmax(1, keepdim=True)
        f, g = full.gather(1, at), alone.gather(1, at)
        assert row.error == pytest.approx(float((g - f).abs().sum() / f.abs().sum()), abs=1e-6)
        assert row.kept == pytest.approx(float(g.mean() / f.mean()), abs=1e-6)
        if full.shape[1] > 1:
            r2 = 1 - float((alone - full).square().sum() / (full - full.mean()).square().sum())
            assert row.r2 == pytest.approx(r2, abs=1e-6)
    for one in report.selectivity:
        errors = {(row.circuit, row.group): row.error for row in report.rows if row.size == one.size}
        assert one.own == pytest.approx((errors["a", "a"] + errors["b", "b"]) / 2)
        assert one.value == pytest.approx((errors["a", "b"] + errors["b", "a"]) / 2 - one.own)
        assert one.low <= one.value <= one.high


def test_overlap_beyond_chance_is_0_on_average_for_random_circuits_and_1_for_equal_ones():
    case = NETS["plain"]
    model, images = case.build(), case.images(4)
    feature = cc.Feature(*case.features[-1], position="max")
    seen = []
    for seed in range(40):
        pair = {
            name: cc.find(model, feature, images, criterion="random", density=0.4, seed=2 * seed + n)
            for n, name in enumerate("ab")
        }
        report = cc.cross(model, pair, {"a": images[:2], "b": images[2:]})
        seen.append(next(one for one in report.overlaps if one.layer == "all"))
    assert abs(sum(one.above_chance for one in seen) / 40) < 0.05
    assert min(one.iou for one in seen) > 0
    same = cc.cross(model, {"a": pair["a"], "b": pair["a"]}, {"a": images[:2], "b": images[2:]})
    assert {one.above_chance for one in same.overlaps if not math.isnan(one.above_chance)} == {1.0}


@pytest.mark.parametrize("criterion", ["snip", "gauss_newton", "force", "progressive"])
def test_the_control_finds_circuits_alike_on_shuffled_groups(criterion):
    trained, held_out = halves(6), halves(8, seed=1)
    found = {
        name: cc.find(twofold.net(), twofold.FEATURE, some, criterion=criterion, kernels=6)
        for name, some in trained.items()
    }
    report = cc.cross(twofold.net(), found, held_out, fit=trained, shuffles=2)
    again = cc.cross(twofold.net(), found, held_out, fit=trained, shuffles=2)
    assert report.as_dict() == again.as_dict()
    (one,) = report.selectivity
    assert len(one.shuffled) == 2
    assert one.value > 0.5
    assert max(one.shuffled) < 0.4
    assert report.verdict == "selective"
    assert "are selective" in report.verdict_sentence


def test_a_refit_is_repeated_in_the_control():
    trained, held_out = halves(6), halves(8, seed=1)
    found = {}
    for name, some in trained.items():
        scores = cc.score(twofold.net(), twofold.FEATURE, some)
        found[name] = [cc.refit(twofold.net(), cc.prune(scores, kernels=k), some, method="filters") for k in (8, 6)]
    report = cc.cross(twofold.net(), found, held_out, fit=trained, shuffles=1)
    assert [one.kernels for one in report.selectivity] == [8, 6]
    assert all(len(one.shuffled) == 1 for one in report.selectivity)


@pytest.mark.parametrize(
    "found_by",
    [
        {"criterion": "force", "kernels": 6},
        {"criterion": "snip", "kernels": 6, "effective": True},
        {"criterion": "progressive", "kernels": 6},
        {"criterion": "progressive", "filters": 2, "fan_in": 2},
    ],
    ids=str,
)
def test_a_refit_is_repeated_whatever_finds_the_circuit(found_by):
    model, images = twofold.net(), halves(6)["red"]
    circuit = cc.refit(model, cc.find(model, twofold.FEATURE, images, **found_by), images, method="filters")
    (again,) = found_again(model, [circuit], images)
    assert again == circuit
    assert again.provenance["calibration"]["method"] == "filters"


def test_circuits_of_the_same_images_are_not_selective():
    made, _ = twofold.images(24)
    trained, held_out = {"a": made[:6], "b": made[6:12]}, {"a": made[12:18], "b": made[18:]}
    found = {name: cc.find(twofold.net(), twofold.FEATURE, some, kernels=6) for name, some in trained.items()}
    report = cc.cross(twofold.net(), found, held_out, fit=trained, shuffles=3)
    assert report.verdict != "selective"


def test_a_report_reads_well():
    report = known()
    assert report.summary().splitlines()[1].split() == (
        ["density", "circuit", "of", "on", "red", "on", "blue", "selectivity", "interval", "shuffled"]
    )
    assert repr(report) == "Cross(2:0@max, 2 groups, not decided)"
    assert "<table" in report._repr_html_()
    assert len(report.to_pandas()) == 4
    assert report.as_dict()["verdict"] == "not decided"
    with pytest.raises(cc.ConvCircuitsError, match=r"no circuit of 'green' on 'red'"):
        report.row("green", "red")


def test_what_cannot_be_tested_is_refused():
    model, groups = twofold.net(), halves()
    circuits = {name: twofold.circuit(name) for name in groups}

    def refused(match, circuits=circuits, groups=groups, **options):
        with pytest.raises(cc.ConvCircuitsError, match=match):
            cc.cross(model, circuits, groups, **options)

    refused("at least two groups", groups={"red": groups["red"]}, circuits={"red": circuits["red"]})
    refused("Names must be those of the groups", circuits={"red": circuits["red"], "green": circuits["blue"]})
    refused("same number of sizes", circuits={"red": circuits["red"], "blue": [circuits["blue"]] * 2})
    refused("must be a Circuit", circuits={"red": circuits["red"], "blue": "blue"})
    refused("again in the held-out images", groups={"red": groups["red"], "blue": groups["red"]})
    refused("again in the images that circuits were found on", fit=groups)
    refused("is 0 on all images", groups={"red": groups["red"], "blue": torch.zeros(2, 3, 12, 12).double()})
    other = halves(seed=1)
    refused("not known how to find", fit=other)
    several = cc.find(model, cc.Feature("2", (0, 1)), groups["red"], density=0.5)
    refused("several units", circuits={"red": several, "blue": several})


def test_a_single_image_has_no_interval_and_silent_images_are_counted():
    groups = halves()
    report = cc.cross(
        twofold.net(),
        {name: twofold.circuit(name) for name in groups},
        {"red": groups["red"][:1], "blue": torch.cat([groups["blue"][:2], torch.full((1, 3, 12, 12), -1.0).double()])},
    )
    assert math.isnan(report.selectivity[0].low)
    assert any("single held-out image" in note for note in report.notes)
    assert any("On 1 of the 3 held-out images of group 'blue'" in note for note in report.notes)
