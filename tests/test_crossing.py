"""The cross-test against masked runs of single images, and on a unit whose mechanisms are known."""

import math
from dataclasses import replace

import pytest
import torch

import convcircuits as cc
import twofold
from convcircuits.subfeatures.again import found_again
from convcircuits.subfeatures.chosen import Chosen, Dealt
from convcircuits.subfeatures.crossing import _resampled
from convcircuits.subfeatures.responses import Answers, selective
from convcircuits.values.boxes import image_hash
from convcircuits.values.cross import FEWEST_HELD_OUT
from convcircuits.zoo.planted import plant, planted_images
from nets import NETS

torch.set_num_threads(1)


def halves(count=8, seed=0):
    made, blue = twofold.images(2 * count, seed)
    return {"red": made[~blue], "blue": made[blue]}


def carried(circuit, model):
    """Return the circuit in a model of the same form."""
    return cc.Circuit.from_masks(model, twofold.FEATURE, circuit.kernels)


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
    assert any("no control" in note and "recognized only if they are all" in note for note in report.notes)


@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "flat_head"])
def test_figures_are_those_of_masked_runs(name):
    case = NETS[name]
    model, images = case.build(), case.images(9)
    feature = cc.Feature(*case.features[-1], position="max")
    if (bias := getattr(model.get_submodule(feature.layer), "bias", None)) is not None:
        bias.data += 1  # so that it is above 0
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
    model, images = case.build(), case.images(5)
    feature = cc.Feature(*case.features[-1], position="max")
    seen = []
    for seed in range(40):
        pair = {
            name: cc.find(model, feature, images, criterion="random", density=0.4, seed=2 * seed + n)
            for n, name in enumerate("ab")
        }
        report = cc.cross(model, pair, {"a": images[:2], "b": images[2:4]})
        seen.append(next(one for one in report.overlaps if one.layer == "all"))
    assert abs(sum(one.above_chance for one in seen) / 40) < 0.05
    assert min(one.iou for one in seen) > 0
    same = cc.cross(model, {"a": pair["a"], "b": pair["a"]}, {"a": images[:2], "b": images[2:4]})
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
    assert [len(one.shuffled) for one in report.selectivity] == [int(n == report.chosen) for n in range(2)]


def test_the_control_is_a_cross_test_of_dealt_images_at_the_size_of_the_verdict():
    """As if each deal were a cross-test of its own, of circuits found on its own groups."""
    trained, held_out = halves(6), halves(8, seed=1)

    def found(groups, sizes):
        scores = {name: cc.score(twofold.net(), twofold.FEATURE, some) for name, some in groups.items()}
        return {
            name: [cc.refit(twofold.net(), cc.prune(one, kernels=k), groups[name], method="filters") for k in sizes]
            for name, one in scores.items()
        }

    report = cc.cross(twofold.net(), found(trained, (10, 8, 6, 2)), held_out, fit=trained, shuffles=2, seed=3)
    one = report.selectivity[report.chosen]
    assert report.chosen == 2
    assert all(not other.shuffled for other in report.selectivity if other.size != report.chosen)
    for n, value in enumerate(one.shuffled):
        dice = torch.Generator().manual_seed(3 + n)
        dealt = []
        for groups in (trained, held_out):
            images = {image_hash(image): image for some in groups.values() for image in some}
            order = torch.randperm(len(images), generator=dice)
            mixed = torch.stack(list(images.values()))[order]
            dealt.append(dict(zip(groups, mixed.split([len(some) for some in groups.values()]), strict=True)))
        alone = cc.cross(twofold.net(), found(dealt[0], [int(one.kernels)]), dealt[1])
        assert value == pytest.approx(alone.selectivity[0].value, abs=1e-5)


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
    again = found_again(model, [circuit], images)
    assert again == circuit
    assert again.provenance["calibration"]["method"] == "filters"


@pytest.mark.parametrize("size", [{"kernels": 25}, {"kernels": [60, 40, 25]}, {"filters": 2, "fan_in": 2}], ids=str)
def test_a_path_is_found_again_from_where_it_began_to_where_it_was(size):
    made, images = plant(0, channels=10, depth=3, live=3, pairs=1, constants=2), planted_images(24)
    path = cc.find_path(made.model, made.feature, images, **size)
    for end in (1, -2, -1, None):
        again = found_again(made.model, path[:end], images)
        assert again == path[:end][-1]
        assert again.provenance["schedule"] == path[:end][-1].provenance["schedule"]


def test_a_circuit_of_a_descent_that_was_ended_early_is_found_again():
    """As for an R2 that is to be reached: no circuit has the one kernel that the descent is aimed at."""
    made, images = plant(0, channels=10, depth=3, live=3, pairs=1, constants=2), planted_images(24)
    path = cc.find_path(made.model, made.feature, images, kernels=1, enough=lambda one: len(one) > 20)
    assert found_again(made.model, path, images) == path[-1]
    edited = replace(path[-1], provenance={**path[-1].provenance, "asked": {"kernels": 1}})
    with pytest.raises(cc.ConvCircuitsError, match="the descent that it is of ends before its size"):
        found_again(made.model, [edited], images)


@pytest.mark.parametrize(
    "how", [{"toward": 1.0}, {"positions": 100}, {"weights": [1.0] * 3 + [0.5] * 3}, {"seed": 5}], ids=str
)
def test_a_circuit_that_was_refitted_otherwise_after_its_descent_is_refitted_again(how):
    model, images = twofold.net(), halves(6)["red"]
    found = cc.find(model, twofold.FEATURE, images, criterion="progressive", kernels=6)
    circuit = cc.refit(model, found, images, **how)
    again = found_again(model, [circuit], images)
    assert again == circuit
    assert again.provenance["calibration"] == circuit.provenance["calibration"] != found.provenance["calibration"]
    if "weights" in how:
        with pytest.raises(cc.ConvCircuitsError, match="with weights of images"):
            found_again(model, [circuit], images.flip(0))


def test_circuits_of_the_same_images_are_not_selective():
    made, _ = twofold.images(24)
    trained, held_out = {"a": made[:6], "b": made[6:12]}, {"a": made[12:18], "b": made[18:]}
    found = {name: cc.find(twofold.net(), twofold.FEATURE, some, kernels=6) for name, some in trained.items()}
    report = cc.cross(twofold.net(), found, held_out, fit=trained, shuffles=3)
    assert report.verdict != "selective"


def test_groups_of_one_mechanism_among_others_are_named():
    """With three groups of two mechanisms the circuits are selective all the same."""
    groups = {**halves(), "scarlet": halves(seed=1)["red"]}
    circuits = {"red": twofold.circuit("red"), "blue": twofold.circuit("blue"), "scarlet": twofold.circuit("red")}
    report = cc.cross(twofold.net(), circuits, groups)
    assert report.selectivity[0].low > 0
    (said,) = (note for note in report.notes if "not told apart" in note)
    assert said.startswith("Groups 'red' and 'scarlet' are not told apart: at ")
    assert "by 0.00 more than on their own (95 % interval 0.00 to 0.00)" in said
    assert not any("not told apart" in note for note in known().notes)


def test_a_report_reads_well():
    report = known()
    assert report.summary().splitlines()[1].split() == (
        ["density", "circuit", "of", "on", "red", "on", "blue", "in", "training", "selectivity", "interval", "shuffled"]
    )
    assert repr(report) == "Cross(2:0@max, 2 groups, not decided)"
    assert "<table" in report._repr_html_()
    assert len(report.to_pandas()) == 4
    assert report.as_dict()["verdict"] == "not decided"
    with pytest.raises(cc.ConvCircuitsError, match=r"no circuit of 'green' on 'red'"):
        report.row("green", "red")


def test_what_cannot_be_tested_is_refused():
    model, groups = twofold.net(), halves()
    circuits = {name: twofold.circuit(name) for name in groups}  # found on no images

    def refused(match, circuits=circuits, groups=groups, **options):
        with pytest.raises(cc.ConvCircuitsError, match=match):
            cc.cross(model, circuits, groups, **options)

    refused("at least two groups", groups={"red": groups["red"]}, circuits={"red": circuits["red"]})
    refused("Names must be those of the groups", circuits={"red": circuits["red"], "green": circuits["blue"]})
    refused("same number of sizes", circuits={"red": circuits["red"], "blue": [circuits["blue"]] * 2})
    refused("must be a Circuit", circuits={"red": circuits["red"], "blue": "blue"})
    refused("again in the held-out images", groups={"red": groups["red"], "blue": groups["red"]})
    refused("again in the images that circuits were found on", fit=groups)
    dark = torch.zeros(2, 3, 12, 12).double()
    refused("is not above 0 on any of the 2 held-out images of group 'blue'", groups={**groups, "blue": dark})
    refused("'red' has 8 held-out images but 1 photographs", photographs={"red": [1], "blue": range(8)})
    refused("Names must be those of the groups", photographs={"red": range(8)})
    other = halves(seed=1)
    refused("not known how to find", fit=other)
    small = {name: some[..., :10, :10] for name, some in other.items()}
    refused(r"shapes \(3, 10, 10\), \(3, 12, 12\), so groups cannot be shuffled", fit=small)
    several = cc.find(model, cc.Feature("2", (0, 1)), other["red"], density=0.5)
    refused("several units", circuits={"red": several, "blue": several})


def test_a_single_image_has_no_interval_and_silent_images_are_counted():
    groups = halves()
    report = cc.cross(
        twofold.net(),
        {name: twofold.circuit(name) for name in groups},
        {"red": groups["red"][:1], "blue": torch.cat([groups["blue"][:2], torch.full((1, 3, 12, 12), -1.0).double()])},
    )
    assert math.isnan(report.selectivity[0].low)
    assert any("only 1 held-out photograph, so no interval" in note for note in report.notes)
    assert any("On 1 of the 3 held-out images of group 'blue'" in note for note in report.notes)


def test_a_feature_that_is_the_same_on_all_images_is_refused():
    model = twofold.net()
    model[2].bias.data[0] = 1.0
    model[2].weight.data[0] = 0
    circuits = {name: carried(twofold.circuit(name), model) for name in ("red", "blue")}
    with pytest.raises(cc.ConvCircuitsError, match="is 1 on all held-out images, whatever they show"):
        cc.cross(model, circuits, halves())


def test_images_that_a_circuit_was_found_on_are_no_held_out_ones():
    model, groups = twofold.net(), halves()
    found = {name: cc.find(model, twofold.FEATURE, some, criterion="snip", kernels=6) for name, some in groups.items()}
    with pytest.raises(cc.ConvCircuitsError, match="'red' were found on the very images of group 'red'"):
        cc.cross(model, found, {name: some.flip(0) for name, some in groups.items()})
    pooled = cc.find(model, twofold.FEATURE, torch.cat(list(groups.values())), criterion="snip", kernels=6)
    with pytest.raises(cc.ConvCircuitsError, match="found on the very images of all groups"):
        cc.cross(model, {"red": pooled, "blue": pooled}, groups)
    fitted = {name: cc.refit(model, twofold.circuit(name), some) for name, some in groups.items()}
    with pytest.raises(cc.ConvCircuitsError, match="found on the very images"):
        cc.cross(model, fitted, groups)
    cc.cross(model, found, halves(seed=1))


def test_a_verdict_takes_photographs_and_crops_of_one_are_no_more():
    """Crops count as their photograph: copies of an image, named as one, leave the interval as it was."""
    groups, model = halves(7), twofold.net(leak=0.1)
    circuits = {name: carried(twofold.circuit("red"), model) for name in groups}
    once = cc.cross(model, circuits, groups)
    again = cc.cross(
        model,
        circuits,
        {name: torch.cat([some, some]) for name, some in groups.items()},
        photographs={name: [*"abcdefg"] * 2 for name in groups},
    )
    (one,), (other,) = once.selectivity, again.selectivity
    assert (one.photographs, other.photographs) == (7, 7)
    assert (other.low, other.high) == pytest.approx((one.low, one.high))
    assert any("only 7 held-out photographs; with fewer than 20" in note for note in again.notes)
    few = {name: some[:5] for name, some in groups.items()}
    trained = halves(6, seed=1)
    found = {name: cc.find(model, twofold.FEATURE, some, kernels=6) for name, some in trained.items()}
    report = cc.cross(model, found, few, fit=trained, shuffles=1)
    assert report.selectivity[0].low > max(report.selectivity[0].shuffled)
    assert report.verdict == "not decided"
    assert any("few images: 6 of group 'red', 6 of group 'blue'" in note for note in report.notes)
    enough = {"red": halves(10, seed=1)["red"], "blue": trained["blue"][:1]}
    report = cc.cross(model, found, few, fit=enough, shuffles=0)
    assert any("few images: 1 of group 'blue';" in note for note in report.notes)
    assert any("only 5 held-out photographs, so the interval is too narrow" in note for note in report.notes)


def test_the_interval_of_circuits_that_do_not_differ_is_rarely_above_0():
    """At the fewest photographs of a verdict; below, more often."""
    dice = torch.Generator().manual_seed(0)
    above = {}
    for count in (2, FEWEST_HELD_OUT):
        found = 0
        for seed in range(200):
            groups = []
            for _ in range(2):
                full = torch.rand(count, generator=dice).double() + 0.5
                wrong = 0.3 * full[:, None, None] * torch.randn(count, 2, 1, generator=dice).double()
                values = full[:, None, None] + wrong
                groups.append(Answers(full, values, []))
            again = torch.Generator().manual_seed(seed)
            weights = [_resampled(torch.arange(count), again) for _ in groups]
            found += float(selective(groups, weights).value[:, 0].quantile(0.025)) > 0
        above[count] = found / 200
    assert above[FEWEST_HELD_OUT] < 0.08 < above[2]


def test_errors_in_training_are_those_on_the_training_images_and_overfitting_is_said():
    trained, held_out = halves(2), halves(8, seed=1)
    model = twofold.net(leak=0.5)
    found = {
        name: cc.refit(model, cc.find(model, twofold.FEATURE, some, criterion="random", kernels=10), some)
        for name, some in trained.items()
    }
    report = cc.cross(model, found, held_out, fit=trained, shuffles=0)
    assert all(math.isnan(row.train_error) for row in cc.cross(model, found, held_out).rows)
    assert all(math.isnan(row.train_error) for row in report.rows if row.circuit != row.group)
    for row in (report.row(name, name) for name in trained):
        some = trained[row.group]
        full, alone = (
            cc.activations(model, twofold.FEATURE, some, circuit=one).flatten(1) for one in (None, found[row.circuit])
        )
        at = full.argmax(1, keepdim=True)
        f, g = full.gather(1, at), alone.gather(1, at)
        assert row.train_error == pytest.approx(float((g - f).abs().sum() / f.abs().sum()), abs=1e-6)
    (one,) = report.selectivity
    assert one.train == pytest.approx(
        (report.row("red", "red").train_error + report.row("blue", "blue").train_error) / 2
    )
    assert any("they overfit" in note for note in report.notes) == (one.own - one.train > 0.1)
    constants = " and ".join(str(circuit.constants) for circuit in found.values())
    assert any(f"the circuits have {constants} constants that were fitted" in note for note in report.notes)
    assert not any("constants" in note for note in known().notes)


def test_the_control_deals_images_of_loaders_in_any_order_without_holding_them():
    """What is dealt is the same for tensors and for parts of one data set, which is read once for each."""
    made, blue = twofold.images(28)
    passes = []

    class Read:
        def __iter__(self):
            passes.append(1)
            yield from torch.split(made, 5)

    read, is_held = Read(), torch.arange(28) >= 12
    parts = {"red": ~blue, "blue": blue}
    tensors, streamed = (
        [{name: take(some & where) for name, some in parts.items()} for where in (~is_held, is_held)]
        for take in (lambda some: made[some], lambda some: Chosen(read, some))
    )
    found = {name: cc.find(twofold.net(), twofold.FEATURE, some, kernels=6) for name, some in tensors[0].items()}
    one, other = (
        cc.cross(twofold.net(), found, held, fit=trained, shuffles=1) for trained, held in (tensors, streamed)
    )
    assert one.selectivity[0].shuffled == pytest.approx(other.selectivity[0].shuffled)
    hashes = {image_hash(image) for image in made[::3]}
    passes.clear()
    dealt = torch.cat(list(Dealt(list(streamed[0].values()), hashes)))
    assert len(passes) == 1
    torch.testing.assert_close(dealt, made[::3])
