"""Circuits: an algebra of sets of kernels, as frozen values."""

import contextlib
import copy
import dataclasses
import functools
import math
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import convcircuits as cc
import oracles
from convcircuits.values.tables import LayerTable
from nets import NETS

FEATURE = cc.Feature("b", 1)
SHAPES = {"z": (2, 3), "a.b": (3, 2), "b": (2, 3)}
SIZE = sum(o * i for o, i in SHAPES.values())
KERNELS = [(layer, o, i) for layer, (outs, ins) in SHAPES.items() for o in range(outs) for i in range(ins)]
sets = st.frozensets(st.sampled_from(KERNELS))
quick = settings(database=None, max_examples=50)


def circuit(kept=(), **changes):
    masks = {layer: torch.zeros(shape, dtype=torch.bool) for layer, shape in SHAPES.items()}
    for layer, o, i in kept:
        masks[layer][o, i] = True
    made = cc.Circuit(
        FEATURE,
        LayerTable(masks),
        LayerTable({layer: torch.rand(shape) for layer, shape in SHAPES.items()}),
        SIZE,
        provenance={"weights": "w", "model": "Net"},
    )
    return dataclasses.replace(made, **changes)


def kernels(made):
    return {(layer, o, i) for layer, mask in made.kernels.items() for o, i in mask.nonzero().tolist()}


def table(layer="b", values=(1.0, 2.0)):
    return LayerTable({layer: torch.tensor(values)})


def gains(layer="b", values=((1.0, 2.0, 3.0), (4.0, 4.0, 4.0))):
    return table(layer, values)


# ---------------------------------------- the algebra


@quick
@given(sets, st.sampled_from(KERNELS))
def test_a_part_that_is_left_out_is_the_only_difference(x, kernel):
    layer, filter, input = kernel
    made = circuit(x, gain=gains("b"))
    of_filter = {one for one in x if one[:2] == (layer, filter)}
    for part, place in (({kernel}, (filter, input)), (of_filter, (filter,))):
        if not part & x:
            with pytest.raises(cc.ConvCircuitsError, match="does not keep"):
                made.without(layer, *place)
            continue
        found = made.without(layer, *place)
        assert kernels(found) == x - part
        assert (found.gain, found.relevant, found.saliency) == (made.gain, made.relevant, made.saliency)
        assert found.provenance["from"] == [made.provenance]


@pytest.mark.parametrize(
    ("place", "said"), [(("b", 9), "2 filters, numbered from 0"), (("b", 0, -1), "3 inputs"), (("c", 0), "'c'")]
)
def test_a_part_that_there_is_not_cannot_be_left_out(place, said):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        circuit(KERNELS).without(*place)


@quick
@given(sets, sets)
def test_operators_are_those_of_sets(x, y):
    a, b = circuit(x), circuit(y)
    for operator in ("__and__", "__or__", "__sub__"):
        made = getattr(a, operator)(b)
        assert kernels(made) == getattr(x, operator)(y)
        assert len(made) == len(getattr(x, operator)(y))
        assert list(made.kernels) == list(SHAPES)
        assert made.feature == FEATURE
        assert made.relevant == SIZE
        assert made.provenance["weights"] == "w"
    assert a & b == b & a
    assert a | b == b | a
    assert (a - b) | (a & b) == a
    assert len(a | b) == len(a) + len(b) - len(a & b)
    assert a & a == a == a | a
    assert len(a - a) == 0
    assert (a == b) is (x == y)


@quick
@given(sets, sets)
def test_overlap_is_that_of_sets(x, y):
    a, b = circuit(x), circuit(y)
    assert cc.iou(a, b) == cc.iou(b, a) == (len(x & y) / len(x | y) if x | y else 1.0)
    by_layer = a.iou_by_layer(b)
    assert list(by_layer) == list(SHAPES)
    for layer, value in by_layer.items():
        mine, theirs = ({k for k in kept if k[0] == layer} for kept in (x, y))
        assert value == (len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0)


@quick
@given(sets)
def test_len_and_density_count_kept_kernels(x):
    made = circuit(x)
    assert len(made) == len(x)
    assert made.density == len(x) / SIZE
    assert bool(made)


def test_an_operator_drops_the_calibration_of_both():
    a = circuit(KERNELS, gain=gains(), offset=table())
    for made in (a & a, a | a, a - circuit(), circuit() | a):
        assert len(made.gain) == len(made.offset) == 0


COMBINE = {
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "-": lambda a, b: a - b,
    "iou": cc.iou,
    "iou_by_layer": lambda a, b: a.iou_by_layer(b),
}
OTHERS = {
    "unit": ({"feature": cc.Feature("b", 0)}, "different features"),
    "position": ({"feature": cc.Feature("b", 1, position="max")}, "different features"),
    "weights": ({"provenance": {"weights": "v"}}, "different weights"),
    "unknown weights": ({"provenance": {}}, "different weights"),
}


@pytest.mark.parametrize("combine", COMBINE.values(), ids=COMBINE)
@pytest.mark.parametrize(("change", "said"), OTHERS.values(), ids=OTHERS)
def test_circuits_of_another_feature_or_model_do_not_combine(combine, change, said):
    a, b = circuit(KERNELS[:3]), circuit(KERNELS[:3], **change)
    assert a != b
    for pair in ((a, b), (b, a)):
        with pytest.raises(cc.ConvCircuitsError, match=f"{said}.*the same feature, model and granularity"):
            combine(*pair)


@pytest.mark.parametrize("combine", COMBINE.values(), ids=COMBINE)
def test_circuits_of_other_layers_or_directions_do_not_combine(combine):
    fewer = circuit(elements=LayerTable({"b": torch.zeros(2, 3).bool()}), saliency=LayerTable({"b": torch.zeros(2, 3)}))
    with pytest.raises(cc.ConvCircuitsError, match="different layers"):
        combine(circuit(), fewer)
    x, y = (circuit(feature=cc.Feature("b", torch.tensor(d))) for d in ([1.0, 0.0], [0.0, 1.0]))
    with pytest.raises(cc.ConvCircuitsError, match="different features"):
        combine(x, y)


@pytest.mark.parametrize("combine", COMBINE.values(), ids=COMBINE)
def test_a_circuit_combines_with_circuits_only(combine):
    with pytest.raises((TypeError, cc.ConvCircuitsError)):
        combine(circuit(), 3)


# ---------------------------------------- a value


def test_equality_is_by_feature_weights_kernels_and_calibration():
    a = circuit(KERNELS[:4])
    assert a == circuit(KERNELS[:4])  # another saliency
    assert a != circuit(KERNELS[:5])
    assert a != circuit(KERNELS[:4], gain=gains())
    assert a != circuit(KERNELS[:4], offset=table())
    assert circuit(gain=gains()) != circuit(gain=gains(values=((1.0, 2.0, 3.0), (4.0, 4.0, 5.0))))
    assert a != 4
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_are_equal(again):
    made = circuit(KERNELS[::2], gain=gains(), offset=table())
    assert again(made) == made
    assert again(made).saliency == made.saliency
    assert again(made).provenance == made.provenance


def test_a_circuit_is_frozen_and_its_own():
    masks = {layer: torch.ones(shape, dtype=torch.bool) for layer, shape in SHAPES.items()}
    saliency = {layer: torch.ones(shape) for layer, shape in SHAPES.items()}
    made = cc.Circuit(FEATURE, LayerTable(masks), LayerTable(saliency), SIZE)
    for tensor in (*masks.values(), *saliency.values()):
        tensor.zero_()
    assert len(made) == SIZE
    assert all(values.all() for values in made.saliency.values())
    for name in [f.name for f in dataclasses.fields(made)]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, None)


BAD = {
    "float mask": ({"elements": LayerTable({"b": torch.ones(2, 3)})}, "The mask of b has dtype torch.float32"),
    "1-D mask": ({"elements": LayerTable({"b": torch.ones(6).bool()})}, r"and shape \(6,\)"),
    "4-D mask": ({"elements": LayerTable({"b": torch.ones(2, 3, 1, 1).bool()})}, r"and shape \(2, 3, 1, 1\)"),
    "fewer saliencies": ({"saliency": LayerTable()}, "same layers and shapes"),
    "other saliencies": (
        {"saliency": LayerTable({k: torch.ones(1, 1) for k in SHAPES})},
        "same layers and shapes",
    ),
    "gain per filter": ({"gain": table()}, r"gain of b has shape \(2,\); expected one value per kernel"),
    "gain of another shape": ({"gain": table(values=((1.0,), (1.0,)))}, "gain of b has shape"),
    "offset of 1": ({"offset": table(values=(1.0,))}, "offset of b has shape"),
    "offset of another layer": ({"offset": table("c")}, "offset of c belongs to no layer of the circuit"),
    "scalar gain": ({"gain": LayerTable({"b": torch.tensor(1.0)})}, "gain of b has shape"),
    "more than relevant": ({"relevant": 5}, "keeps 18 kernels, but only 5 are relevant"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD)
def test_parts_that_do_not_fit_are_refused(change, said):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        circuit(KERNELS, **change)


def test_a_calibration_counts_what_was_fitted():
    assert circuit(KERNELS).constants == 0
    ones = torch.ones(2, 3)
    assert circuit(KERNELS, gain=LayerTable({"b": ones}), offset=table(values=(0.0, 0.0))).constants == 0
    made = circuit(KERNELS, gain=gains(), offset=table(values=(0.0, 2.0)))
    assert made.gain["b"].tolist() == [[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]
    assert made.constants == 3 + 1 + 1  # a gain per kernel, one gain of a filter, one offset
    assert "5 constants fitted" in repr(made)
    kept = [("b", 0, 0), ("b", 0, 1)]  # only two kernels of the first filter are left
    assert dataclasses.replace(made, elements=circuit(kept).elements).constants == 2
    filters = {layer: torch.ones(shape[0]).bool() for layer, shape in SHAPES.items()}
    saliency = {layer: torch.ones(shape[0]) for layer, shape in SHAPES.items()}
    made = dataclasses.replace(made, granularity="filter", elements=filters, saliency=saliency)
    assert made.constants == 5


def test_repr_is_short_and_true():
    assert repr(circuit(KERNELS[:9])) == "Circuit(b:1, 9 of 18 kernels = 50.000%)"
    assert repr(circuit(provenance={"criterion": "snip"})) == "Circuit(b:1, snip, 0 of 18 kernels = 0.000%)"


def test_a_circuit_without_relevant_kernels_has_a_repr():
    made = cc.Circuit(FEATURE, LayerTable(), LayerTable(), 0)
    assert "0 of 0" in repr(made)


def rows(made):
    """Of the summary: {layer: (kernels kept, of how many, filters kept, of how many)}."""
    lines = made.summary().splitlines()[2:]
    found = {}
    for line in lines[: len(made.kernels)]:
        layer, *numbers = re.fullmatch(r"(\S+)\s+([\d,]+) /\s+([\d,]+)\s+([\d,]+) /\s+([\d,]+)", line).groups()
        found[layer] = tuple(int(n.replace(",", "")) for n in numbers)
    return found, lines[len(made.kernels) :]


@quick
@given(sets)
def test_the_summary_is_true(x):
    made = circuit(x, provenance={"notes": ["mind this"]})
    assert made.summary().startswith(repr(made))
    found, notes = rows(made)
    assert notes == ["note: mind this"]
    for layer, (outs, ins) in SHAPES.items():
        mine = {k for k in x if k[0] == layer}
        assert found[layer] == (len(mine), outs * ins, len({o for _, o, _ in mine}), outs)


def test_the_summary_of_a_union_never_keeps_more_than_there_are():
    inside = circuit(KERNELS[:2], saliency=LayerTable({k: torch.full(s, math.nan) for k, s in SHAPES.items()}))
    for made in (inside | circuit(KERNELS), circuit(KERNELS) | inside):
        for kept, among, *_ in rows(made)[0].values():
            assert kept <= among


def test_an_unknown_layer_names_what_is_near():
    with pytest.raises(cc.ConvCircuitsError, match=r"no layer 'a.c' here\. Similar names: a\.b"):
        circuit()["a.c"]


# ---------------------------------------- from masks


@functools.cache
def subject(name):
    case = NETS[name]
    model, (layer, unit) = case.build(), case.features[-1]
    relevant = oracles.reachable(model, layer, unit, case.input_shape, blocks=case.blocks)
    return case, model, cc.Feature(layer, unit), {k: m for k, m in relevant.items() if m.any()}


@pytest.mark.parametrize("name", NETS)
def test_masks_of_ones_keep_exactly_the_relevant_kernels(name):
    case, model, feature, relevant = subject(name)
    made = cc.Circuit.from_masks(
        model, feature, {k: torch.ones_like(m) for k, m in relevant.items()}, input_shape=case.input_shape
    )
    assert list(made.kernels) == list(relevant)
    assert all(torch.equal(made[k], m) for k, m in relevant.items())
    assert len(made) == made.relevant == oracles.count(relevant)
    assert made.density == 1.0
    for layer, mask in relevant.items():
        assert torch.equal(made.saliency[layer].isnan(), ~mask)


@pytest.mark.parametrize("name", ["plain", "flat_head", "residual", "pooled_head", "grouped", "dense"])
def test_the_input_shape_is_guessed_where_it_is_not_given(name):
    case, model, feature, relevant = subject(name)
    masks = {k: m.clone() for k, m in relevant.items()}
    guessed = cc.Circuit.from_masks(model, feature, masks)
    assert guessed == cc.Circuit.from_masks(model, feature, masks, input_shape=case.input_shape)
    cc.evaluate(model, guessed, case.images(2))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32])
def test_masks_are_bools_or_numbers_of_which_not_zero_is_kept(dtype):
    case, model, feature, relevant = subject("plain")
    bools = {k: torch.rand(m.shape, generator=torch.Generator().manual_seed(1)) < 0.5 for k, m in relevant.items()}
    masks = {k: (m * 3).to(dtype) for k, m in bools.items()}
    made = cc.Circuit.from_masks(model, feature, masks, input_shape=case.input_shape)
    assert all(torch.equal(made[k], m & relevant[k]) for k, m in bools.items())
    for layer in masks:
        masks[layer].zero_()
    assert len(made) > 0
    for layer, mask in made.kernels.items():
        assert torch.equal(made.saliency[layer].nan_to_num() == 1, mask)


def test_a_layer_that_is_left_out_keeps_nothing():
    _, model, feature, relevant = subject("plain")
    made = cc.Circuit.from_masks(model, feature, {"features.3": relevant["features.3"]})
    assert [int(made[k].sum()) for k in relevant] == [0, int(relevant["features.3"].sum()), 0]
    assert len(cc.Circuit.from_masks(model, feature, {})) == 0


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({"features.33": torch.ones(5, 4)}, r"no layer 'features.33' here. Similar names: .*features.3"),
        ({"features.1": torch.ones(5, 4)}, r"no layer 'features.1' here"),
        ({"features.3": torch.ones(4, 5)}, r"has shape \(4, 5\); expected \(5, 4\)"),
        ({"features.3": torch.ones(5, 4, 3, 3)}, r"has shape \(5, 4, 3, 3\); expected \(5, 4\)"),
        ({"features.3": torch.ones(5)}, r"has shape \(5,\); expected \(5, 4\)"),
        ({"features.3": torch.tensor(1)}, r"has shape \(\); expected \(5, 4\)"),
    ],
    ids=["unknown", "no kernels", "turned", "weight's", "filters", "scalar"],
)
def test_masks_that_do_not_fit_are_refused(masks, said):
    _, model, feature, _ = subject("plain")
    with pytest.raises(cc.ConvCircuitsError, match=said):
        cc.Circuit.from_masks(model, feature, masks)


@pytest.mark.parametrize("mask", [[[1, 0], [0, 1]], torch.ones(5, 4).numpy(), None], ids=["list", "numpy", "None"])
def test_masks_that_are_no_tensors_are_taken_or_refused_by_an_error_of_ours(mask):
    _, model, feature, _ = subject("plain")
    with contextlib.suppress(cc.ConvCircuitsError):
        cc.Circuit.from_masks(model, feature, {"features.3": mask})


@pytest.mark.parametrize("shape", [(3,), (3, 8), (1, 8, 8), (3, 1, 1), (3, 0, 0)], ids=str)
def test_an_input_shape_that_does_not_fit_is_an_error_of_ours(shape):
    _, model, feature, _ = subject("plain")
    with pytest.raises(cc.ConvCircuitsError):
        cc.Circuit.from_masks(model, feature, {}, input_shape=shape)


def test_no_guess_that_fits_asks_for_the_shape():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 5 * 3, 2))
    with pytest.raises(cc.ConvCircuitsError, match=r"Give input_shape=\(C, H, W\)"):
        cc.Circuit.from_masks(model, cc.Feature("2", 1), {})
    assert cc.Circuit.from_masks(model, cc.Feature("2", 1), {}, input_shape=(3, 7, 5)).relevant == 2 + 6


def test_kernels_are_the_elements_of_a_circuit_of_kernels_alone():
    of_kernels = circuit((("b", 0, 1),))
    assert of_kernels.kernels == of_kernels.elements
    masks = LayerTable({"b": torch.tensor([True, False])})
    of_filters = cc.Circuit(FEATURE, masks, LayerTable({"b": torch.rand(2)}), 2, granularity="filter")
    with pytest.raises(cc.ConvCircuitsError, match="give no input"):
        of_filters.without("b", 0, 0)
    with pytest.raises(cc.ConvCircuitsError, match="The elements are filters, not kernels; read them as"):
        _ = of_filters.kernels


def test_kernels_are_the_elements_of_scores_of_kernels_alone():
    saliency = LayerTable({"b": torch.rand(2, 3)})
    assert cc.Scores(FEATURE, saliency, 6).kernels == saliency
    of_filters = cc.Scores(FEATURE, LayerTable({"b": torch.rand(2)}), 2, granularity="filter")
    with pytest.raises(cc.ConvCircuitsError, match="The elements are filters, not kernels"):
        _ = of_filters.kernels


def test_a_channel_of_a_linear_layer_is_not_dropped_from_a_circuit_of_weights():
    case = NETS["flat_head"]
    given = case.build(), cc.Feature("classifier.4", 1), case.images(1)
    weights = cc.find(*given, criterion="magnitude", granularity="weight", density=1.0)
    with pytest.raises(cc.ConvCircuitsError, match="is a Linear layer, and a circuit of weights does not say"):
        weights.without("classifier.4", 1, 0)
    assert not weights.without("classifier.4", 1)["classifier.4"].any()
    whole = cc.find(*given, criterion="magnitude", density=1.0)
    smaller = whole.without("classifier.4", 1, 0)
    assert len(smaller) == len(whole) - 1
    for made in (smaller, smaller | whole):
        assert made.provenance["input_shape"] == whole.provenance["input_shape"]
