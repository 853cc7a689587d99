"""Criteria against the oracles, and the laws that every score obeys, for kernels, filters and weights."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convcircuits as cc
import oracles
from cases import (
    COMBINATIONS,
    FEATURES,
    FEATURES_BY_GRANULARITY,
    GRANULARITIES,
    LAST,
    assert_same,
    assert_scores,
    is_linear,
    relevant_of,
    units_of,
)
from nets import NETS, seeded

torch.set_num_threads(1)

ORACLES = {"snip": oracles.snip, "actgrad": oracles.actgrad}
ONE_SHOT = {
    "actgrad": {},
    "snip": {},
    "gauss_newton": {},
    "gauss_newton centered": {"centered": True},
    "magnitude": {},
    "random": {},
}


pytestmark = pytest.mark.usefixtures("opened_once")


def options_that_fit(layer_is_linear, combination):
    """A Linear has no positions to choose from."""
    return combination | ({"position": "all"} if layer_is_linear else {})


@functools.cache
def alive_masks(name, layer, unit, density=0.8):
    """Random masks of which every kernel is effective and in which no relevant filter is dead."""
    case = NETS[name]
    model = case.build()
    relevant = relevant_of(case, model, layer, unit)
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        masks = {k: r & (torch.rand(r.shape, generator=generator) < density) for k, r in relevant.items()}
        found = oracles.reachable(model, layer, unit, case.input_shape, masks, blocks=case.blocks)
        masks = {k: found[k] for k in relevant}
        alive = all(torch.equal(masks[k].any(1), relevant[k].any(1)) for k in relevant)
        if alive and oracles.count(masks) < oracles.count(relevant):
            return masks
    raise AssertionError("no such masks")


def split_criterion(text):
    return {"criterion": text.split()[0], **ONE_SHOT[text]}


# ---------------------------------------- SNIP and ActGrad


@pytest.mark.parametrize("criterion", ORACLES)
@pytest.mark.parametrize(("name", "layer", "unit", "granularity"), FEATURES_BY_GRANULARITY)
def test_snip_and_actgrad_equal_the_oracle_on_every_net(name, layer, unit, granularity, criterion):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    relevant = units_of(case, model, layer, unit, granularity)
    start = [p.id for p in FEATURES].index(f"{name}:{layer}:{unit}") * 5
    steps = (0, 18) if granularity == "kernel" else (GRANULARITIES.index(granularity),)
    chosen = [{}, *(COMBINATIONS[(start + step) % len(COMBINATIONS)] for step in steps)]
    for combination in chosen:
        combination = options_that_fit(is_linear(model, layer), combination)
        options = {k: v for k, v in combination.items() if k != "position"}
        feature = cc.Feature(layer, unit, position=combination.get("position", "all"))
        scores = cc.score(model, feature, images, criterion=criterion, granularity=granularity, **options)
        assert scores.relevant == oracles.count(relevant) == scores.relevant_in_model
        assert scores.granularity == scores.provenance["granularity"] == granularity
        given = {"granularity": granularity, "blocks": case.blocks, **combination}
        assert_scores(scores, ORACLES[criterion](model, layer, unit, images, **given), relevant)


@pytest.mark.oracle
@pytest.mark.parametrize("criterion", ORACLES)
@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(map(str, c.values())))
def test_every_combination_of_options_equals_the_oracle(criterion, combination):
    case = NETS["grouped"]
    model, images = case.build(), case.images(2)
    options = {k: v for k, v in combination.items() if k != "position"}
    feature = cc.Feature("conv3", 3, position=combination["position"])
    scores = cc.score(model, feature, images, criterion=criterion, **options)
    expected = ORACLES[criterion](model, "conv3", 3, images, **combination)
    assert_scores(scores, expected, relevant_of(case, model, "conv3", 3))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_signed_actgrad_is_signed_snip_is_the_mask_gradient(name, layer, unit, granularity):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit)
    expected = oracles.mask_gradient(model, layer, unit, images, granularity=granularity, blocks=case.blocks)
    for criterion in ORACLES:
        options = {"criterion": criterion, "signed": True, "normalizer": "sum"}
        scores = cc.score(model, feature, images, granularity=granularity, **options)
        assert_scores(scores, expected, units_of(case, model, layer, unit, granularity))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_direction_is_scored_as_the_oracle_says(granularity):
    case = NETS["residual"]
    model, images = case.build(), case.images(2)
    direction = torch.tensor([0.5, 0.0, -2.0])
    relevant = units_of(case, model, "head", direction, granularity)
    for criterion, oracle in ORACLES.items():
        feature = cc.Feature("head", direction)
        scores = cc.score(model, feature, images, criterion=criterion, granularity=granularity)
        assert_scores(scores, oracle(model, "head", direction, images, granularity=granularity), relevant)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("criterion", ["snip", "actgrad", "magnitude", "gauss_newton"])
@pytest.mark.parametrize("name", ["plain", "mobile", "flat_head"])
def test_layer_l2_is_the_sum_divided_by_each_layers_norm(name, criterion, granularity):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    feature, options = cc.Feature(*case.features[-1]), {"criterion": criterion, "granularity": granularity}
    total = cc.score(model, feature, images, normalizer="sum", **options)
    unit = cc.score(model, feature, images, normalizer="layer_l2", **options)
    for layer, values in total.elements.items():
        norm = values.nan_to_num().square().sum().sqrt()
        torch.testing.assert_close(unit[layer], values / norm, rtol=1e-12, atol=0, equal_nan=True)


# ---------------------------------------- Gauss-Newton


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(("layer", "unit"), NETS["plain"].features)
def test_gauss_newton_with_as_many_draws_as_positions_is_the_change_of_the_map(layer, unit, seed):
    case = NETS["plain"]
    model, images = case.build(), case.images(3)
    positions = oracles.full_map(model, layer, unit, images[:1]).numel()
    scores = cc.score(model, cc.Feature(layer, unit), images, draws=positions, seed=seed)
    relevant = relevant_of(case, model, layer, unit)
    assert_scores(scores, oracles.map_change(model, layer, unit, images), relevant)
    more = cc.score(model, cc.Feature(layer, unit), images, draws=4 * positions, seed=seed)
    assert_same(scores, more)


@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("layer", "unit"), NETS["plain"].features)
def test_gauss_newton_is_exact_with_as_many_draws_as_positions(layer, unit, granularity, centered):
    case = NETS["plain"]
    model, images = case.build(), case.images(3)
    height_width = oracles.full_map(model, layer, unit, images[:1]).shape[1:]
    places = torch.eye(height_width.numel(), dtype=torch.float64).reshape(-1, *height_width)
    options = {"granularity": granularity, "centered": centered}
    mean = oracles.gauss_newton(model, layer, unit, images, signs=list(places), **options)
    # The oracle's list averages over images x draws; the sum over positions is wanted.
    expected = {name: values * len(places) for name, values in mean.items()}
    scores = cc.score(model, cc.Feature(layer, unit), images, draws=len(places), **options)
    assert_scores(scores, expected, units_of(case, model, layer, unit, granularity))


@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
@pytest.mark.parametrize(("name", "layer", "unit", "granularity"), FEATURES_BY_GRANULARITY)
def test_gauss_newton_at_one_position_is_exact_with_any_number_of_draws(name, layer, unit, granularity, centered):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    position = "all" if is_linear(model, layer) else ("max", "center", (0, 1))[unit % 3]
    one = torch.ones_like(oracles.full_map(model, layer, unit, images[:1])[0])
    options = {"granularity": granularity, "centered": centered}
    given = {"signs": [one], "position": position, "blocks": case.blocks}
    expected = oracles.gauss_newton(model, layer, unit, images, **given, **options)
    relevant = units_of(case, model, layer, unit, granularity)
    feature, draws = cc.Feature(layer, unit, position=position), (1, 4)[(unit + centered) % 2]
    scores = cc.score(model, feature, images, draws=draws, seed=draws, **options)
    assert_scores(scores, expected, relevant)


def test_gauss_newton_is_unbiased_over_seeds():
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(1), cc.Feature("features.3", 1)
    exact = cc.score(model, feature, images, draws=16)
    tries = [cc.score(model, feature, images, draws=4, seed=seed) for seed in range(60)]
    for layer, values in exact.elements.items():
        stacked = torch.stack([t[layer] for t in tries])
        mean, error = stacked.mean(0), stacked.std(0) / len(tries) ** 0.5
        kept = ~values.isnan()
        assert ((mean - values).abs()[kept] <= 5 * error[kept] + 1e-12).all()


# ---------------------------------------- baselines


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_magnitude_is_the_mean_weight_that_units_really_use(name, layer, unit, granularity):
    case = NETS[name]
    model, images = case.build(), case.images(1)
    relevant = units_of(case, model, layer, unit, granularity)
    slow, _ = oracles.slow_copy(model, blocks=case.blocks)
    weights = {m.name: m.elements(m.weight, granularity).abs() for m in slow.modules() if isinstance(m, oracles.Slow)}
    for normalizer, sizes in (("published", lambda w: w.mean(-1)), ("sum", lambda w: w.sum(-1))):
        options = {"criterion": "magnitude", "normalizer": normalizer}
        scores = cc.score(model, cc.Feature(layer, unit), images, granularity=granularity, **options)
        assert_scores(scores, {k: sizes(w) for k, w in weights.items()}, relevant)


def test_random_depends_on_the_seed_alone():
    case = NETS["residual"]
    model, feature = case.build(), cc.Feature("head", 0)

    def draw(n=3, **options):
        return cc.score(model, feature, case.images(n), criterion="random", **options).elements

    assert draw() == draw(n=1) == draw(batch_size=1) == draw(n=2, memory=1)
    assert draw() != draw(seed=1)
    values = torch.cat([s[~s.isnan()] for s in draw().values()])
    assert values.min() >= 0
    assert values.max() < 1
    assert len(values.unique()) == len(values)
    assert abs(values.mean() - 0.5) < 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["residual", "mobile", "flat_head"])
def test_layer_random_keeps_as_many_units_in_each_layer_as_the_compared_circuit(name, granularity, seed):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(*case.features[-1])
    like = cc.find(model, feature, images, criterion="snip", density=0.3, granularity=granularity)
    options = {"criterion": "layer_random", "like": like, "granularity": granularity}
    scores = cc.score(model, feature, images, seed=seed, **options)
    circuit = cc.prune(scores, kernels=len(like))
    counts = {layer: int(mask.sum()) for layer, mask in like.elements.items()}
    assert {layer: int(mask.sum()) for layer, mask in circuit.elements.items()} == counts
    assert circuit != like
    other = cc.score(model, feature, images, seed=seed + 10, **options)
    assert other.elements != scores.elements
    again = cc.score(model, feature, images[:1], seed=seed, batch_size=1, **options)
    assert again.elements == scores.elements


# ---------------------------------------- batches, order, memory


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("criterion", ONE_SHOT)
@pytest.mark.parametrize("name", ["residual", "twice", "flat_head"])
def test_scores_do_not_depend_on_how_images_are_batched_or_ordered(name, criterion, granularity):
    case = NETS[name]
    model, images, feature = case.build(), case.images(5), cc.Feature(*case.features[-1])
    labels = torch.arange(5)
    loader = DataLoader(TensorDataset(images, labels), batch_size=2, shuffle=True)
    asked = {"granularity": granularity, **split_criterion(criterion)}
    expected = cc.score(model, feature, images, **asked)
    for given, options in (
        (images, {"batch_size": 1}),
        (images, {"batch_size": 2}),
        (images, {"batch_size": 5}),
        (images[[3, 0, 4, 2, 1]], {"batch_size": 2}),
        (loader, {}),
        ([(images[:1], 0), (images[1:5], 1)], {}),
        ([images[3:], images[:3]], {"batch_size": 2}),
        (images, {"memory": 1}),
        (images, {"memory": 1, "batch_size": 2}),
    ):
        scores = cc.score(model, feature, given, **asked, **options)
        assert_same(expected, scores)
        assert scores.provenance["images"] == expected.provenance["images"]


@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_a_memory_of_one_byte_changes_nothing(name, layer, unit):
    case = NETS[name]
    model, images, feature = case.build(), case.images(3), cc.Feature(layer, unit)
    expected = cc.score(model, feature, images, criterion="actgrad")
    assert_same(expected, cc.score(model, feature, images, criterion="actgrad", memory=1, batch_size=2))


@pytest.mark.parametrize("position", ["max", "center", (1, 1)])
def test_a_position_does_not_depend_on_batches_either(position):
    case = NETS["residual"]
    model, images = case.build(), case.images(5)
    feature = cc.Feature("block2.conv2", 3, position=position)
    circuit = cc.find(model, feature, images, density=0.6)
    for inside in (None, circuit):
        expected = cc.score(model, feature, images, criterion="snip", circuit=inside)
        for given in (images.flip(0), [images[:1], images[1:]]):
            scores = cc.score(model, feature, given, criterion="snip", circuit=inside, batch_size=2)
            assert_same(expected, scores)


# ---------------------------------------- inside a circuit


@pytest.mark.parametrize("criterion", ["snip", "actgrad", "gauss_newton"])
@pytest.mark.parametrize(("name", "layer", "unit"), FEATURES)
def test_inside_a_circuit_without_dead_filters_scores_equal_the_oracle(name, layer, unit, criterion):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    masks = alive_masks(name, layer, unit)
    position = "all" if is_linear(model, layer) else "max"
    feature = cc.Feature(layer, unit, position=position)
    circuit = cc.Circuit.from_masks(model, feature, masks, input_shape=case.input_shape)
    options = {"position": position, "masks": masks, "blocks": case.blocks}
    if criterion == "gauss_newton":
        one = torch.ones_like(oracles.full_map(model, layer, unit, images[:1])[0])
        expected = oracles.gauss_newton(model, layer, unit, images, signs=[one], **options)
    else:
        expected = ORACLES[criterion](model, layer, unit, images, **options)
    scores = cc.score(model, feature, images, criterion=criterion, circuit=circuit)
    assert scores.relevant == len(circuit)
    assert scores.relevant_in_model == circuit.relevant
    assert list(scores.elements) == list(circuit.elements)
    for kernels, mask in circuit.elements.items():
        wanted = expected[kernels].masked_fill(~mask, torch.nan)
        atol = 1e-12 * max(1e-6, float(wanted.nan_to_num().abs().max()))
        torch.testing.assert_close(scores[kernels], wanted, rtol=1e-9, atol=atol, equal_nan=True)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.6])
def test_inside_any_circuit_of_a_net_without_constants_scores_equal_the_oracle(density):
    """Of the sparsest nothing reaches the feature: every score is 0, which is refused."""
    case = NETS["no_bias"]
    model, images, feature = case.build(), case.images(2), cc.Feature("features.5", 0)
    relevant = relevant_of(case, model, "features.5", 0)
    generator = torch.Generator().manual_seed(3)
    masks = {k: r & (torch.rand(r.shape, generator=generator) < density) for k, r in relevant.items()}
    circuit = cc.Circuit.from_masks(model, feature, masks, input_shape=case.input_shape)
    for criterion, oracle in ORACLES.items():
        expected = oracle(model, "features.5", 0, images, masks=masks)
        wanted = {layer: expected[layer].masked_fill(~mask, torch.nan) for layer, mask in masks.items()}
        if not any(bool(values.nan_to_num().any()) for values in wanted.values()):
            assert density == 0.1
            with pytest.raises(cc.ConvCircuitsError, match="scored every kernel 0"):
                cc.score(model, feature, images, criterion=criterion, circuit=circuit)
            continue
        scores = cc.score(model, feature, images, criterion=criterion, circuit=circuit)
        for layer in masks:
            torch.testing.assert_close(scores[layer], wanted[layer], rtol=1e-9, atol=1e-14, equal_nan=True)


def test_a_kernel_that_is_not_effective_scores_zero_inside_its_circuit():
    case = NETS["residual"]
    model, images, feature = case.build(), case.images(2), cc.Feature("head", 0)
    scores = cc.score(model, feature, images, criterion="random", seed=2)
    circuit = cc.prune(scores, density=0.3)
    effective = oracles.reachable(model, "head", 0, case.input_shape, dict(circuit.elements))
    inside = cc.score(model, feature, images, criterion="snip", circuit=circuit)
    dead = {k: m & ~effective[k] for k, m in circuit.elements.items()}
    assert oracles.count(dead) > 0
    assert oracles.count(effective) > 0
    assert all((inside[k][m] == 0).all() for k, m in dead.items())


def test_a_circuit_found_inside_a_circuit_lies_inside_it():
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(2), cc.Feature("features.5", 2)
    outer = cc.find(model, feature, images, density=0.5)
    for criterion in ("snip", "force", "random"):
        inner = cc.find(model, feature, images, criterion=criterion, circuit=outer, kernels=11)
        assert len(inner) == 11
        assert len(inner - outer) == 0
        assert inner.relevant == outer.relevant


def test_a_circuit_of_another_feature_or_model_is_refused():
    case = NETS["plain"]
    model, images = case.build(), case.images(2)
    circuit = cc.find(model, cc.Feature("features.5", 2), images, density=0.5)
    with pytest.raises(cc.ConvCircuitsError):
        cc.score(model, cc.Feature("features.5", 1), images, circuit=circuit)
    other = case.build()
    with torch.no_grad():
        other.features[0].weight[0, 0, 0, 0] += 1
    with pytest.raises(cc.ConvCircuitsError, match="another model"):
        cc.score(other, circuit.feature, images, circuit=circuit)


# ---------------------------------------- FORCE

FORCED = [
    ("plain", 0.5, {}),
    ("plain", 0.2, {"collapse": "sum"}),
    ("no_bias", 0.3, {"steps": 4}),
    ("residual", 0.4, {"normalizer": "sum"}),
    ("mobile", 0.5, {}),
    ("inception", 0.3, {"steps": 1}),
    ("flat_head", 0.4, {"collapse": "square", "steps": 3}),
    ("twice", 0.3, {}),
    ("se_conv", 0.5, {"steps": 5}),
    ("dense", 0.5, {}),
    ("plain", 0.03, {}),
    ("residual", 0.03, {}),
    ("mobile", 0.1, {}),
]


def first_collapse(forced):
    """The number of the step (from 0) whose mask left a layer without any gradient, or None."""
    for step, scores in enumerate([*forced.scores[1:], forced.final_scores]):
        if any(not values.nan_to_num().any() for values in scores.values()):
            return step
    return None


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("name", "density", "options"), FORCED)
def test_force_equals_the_oracle_and_stops_where_a_layer_collapses(name, density, options, granularity):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    layer, unit = case.features[-1]
    feature, options = cc.Feature(layer, unit), options | {"granularity": granularity}
    circuit = cc.find(model, feature, images, criterion="force", density=density, **options)
    k = max(1, round(density * circuit.relevant))
    forced = oracles.force(model, layer, unit, images, k, blocks=case.blocks, **options)
    step = first_collapse(forced)
    expected = forced.circuit if step is None else oracles.topk(forced.scores[step], k)
    assert len(circuit) == k
    assert list(circuit.elements) == list(expected)
    for kernels, mask in expected.items():
        assert torch.equal(circuit[kernels], mask), kernels
    notes = circuit.provenance["notes"]
    assert bool(notes) == (step is not None)
    if step is not None:
        assert f"collapsed at step {step + 1}" in notes[0]
        assert f"{granularity}s kept" in notes[0]


@pytest.mark.parametrize(("name", "density"), [("plain", 0.4), ("no_bias", 0.6), ("nested", 0.25)])
def test_force_can_revive_a_kernel(name, density):
    """A kernel that one step drops and a later one takes back is in the circuit, as in the oracle's."""
    case = NETS[name]
    model, images = case.build(), case.images(2)
    layer, unit = case.features[-1]
    k = round(density * oracles.count(relevant_of(case, model, layer, unit)))
    forced = oracles.force(model, layer, unit, images, k)
    revived = {key: torch.zeros_like(mask) for key, mask in forced.circuit.items()}
    for before, after in itertools.pairwise(forced.masks):
        revived = {key: revived[key] | (after[key] & ~before[key]) for key in revived}
    circuit = cc.find(model, cc.Feature(layer, unit), images, criterion="force", kernels=k)
    assert sum(int((revived[key] & circuit[key]).sum()) for key in revived) > 0
    assert all(torch.equal(circuit[key], mask) for key, mask in forced.circuit.items())


@pytest.mark.parametrize("kernels", [1, 2, 3])
def test_a_collapse_is_told_and_turns_no_dead_layer_on(kernels):
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(2), cc.Feature("features.5", 2)
    circuit = cc.find(model, feature, images, criterion="force", kernels=kernels)
    assert len(circuit) == kernels
    assert sum(int(mask.any()) for mask in circuit.elements.values()) <= kernels
    if kernels < 3:
        assert "collapsed" in circuit.provenance["notes"][0]
        assert any(name in circuit.provenance["notes"][0] for name in circuit.elements)
        assert "collapsed" in circuit.summary()


@pytest.mark.parametrize("criterion", ["force", "snip", "actgrad", "gauss_newton"])
def test_a_net_that_is_dead_from_the_start_is_refused(criterion):
    case = NETS["plain"]
    model, images = case.build(), case.images(2)
    with torch.no_grad():
        model.features[0].bias.fill_(-100.0)
        model.features[3].bias.fill_(-100.0)
    with pytest.raises(cc.ConvCircuitsError, match=r"scored every kernel 0.*dead or silent on these images"):
        cc.find(model, cc.Feature("features.5", 2), images, criterion=criterion, kernels=5)


def test_force_batches_and_memory_change_nothing():
    case = NETS["residual"]
    model, images, feature = case.build(), case.images(5), cc.Feature("head", 0)
    expected = cc.find(model, feature, images, criterion="force", density=0.3)
    for given, options in ((images.flip(0), {"batch_size": 2}), ([images[:1], images[1:]], {"memory": 1})):
        assert cc.find(model, feature, given, criterion="force", density=0.3, **options) == expected


# ---------------------------------------- criteria of one's own, and errors


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_function_is_a_criterion(granularity):
    case = NETS["residual"]
    model, images, feature = case.build(), case.images(3), cc.Feature("head", 0)
    shapes = {}

    def mine(trace, *, power=1):
        """A power of each unit's mask gradient, from the public face of a trace."""
        shapes.update(trace.shapes)
        assert trace.granularity == granularity

        def contribution(batch):
            for layer in batch.backward(torch.ones_like(batch.maps)):
                totals = sum(layer.per_element(product.sum(3)) ** power for product in layer.weight_products())
                yield layer.name, totals

        return trace.mean(contribution)

    scores = cc.score(model, feature, images, criterion=mine, granularity=granularity, power=2, batch_size=2)
    assert scores.provenance["criterion"] == "mine"
    assert scores.provenance["options"] == {"power": 2}
    assert shapes == {layer: tuple(values.shape) for layer, values in scores.elements.items()}
    options = {"granularity": granularity, "collapse": "sum"}
    per_image = [oracles.mask_gradient(model, "head", 0, image[None], **options) for image in images]
    expected = {k: torch.stack([one[k] ** 2 for one in per_image]).mean(0) for k in per_image[0]}
    assert_scores(scores, expected, units_of(case, model, "head", 0, granularity))


def test_a_function_with_a_budget_goes_through_find_alone():
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(2), cc.Feature("features.3", 1)
    asked = []

    def budgeted(trace, kernels):
        asked.append(kernels)
        trace.notes.append("a note")
        return cc.CRITERIA["snip"](trace)

    circuit = cc.find(model, feature, images, criterion=budgeted, density=0.5)
    assert asked == [len(circuit)]
    assert circuit.provenance["notes"] == ["A note."]
    assert circuit == cc.find(model, feature, images, criterion="snip", density=0.5)
    for criterion in (budgeted, "force"):
        with pytest.raises(cc.ConvCircuitsError, match="find"):
            cc.score(model, feature, images, criterion=criterion)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"criterion": "snipp"}, "snip"),
        ({"criterion": "snip", "colapse": "abs"}, "collapse"),
        ({"criterion": "snip", "collapse": "max"}, "abs"),
        ({"criterion": "snip", "normalizer": "l2"}, "layer_l2"),
        ({"criterion": "actgrad", "draws": 2}, "draws"),
        ({"criterion": "gauss_newton", "draws": 0}, "draws"),
        ({"criterion": "gauss_newton", "normalizer": "l2"}, "layer_l2"),
        ({"criterion": "magnitude", "normalizer": "l2"}, "layer_l2"),
        ({"criterion": "random", "signed": True}, "signed"),
        ({"criterion": "layer_random"}, "like"),
        ({"criterion": lambda trace: {"features.3": torch.ones(2, 4)}}, "shape"),
        ({"criterion": lambda trace: {"features.3": torch.ones(1, 1)}}, "shape"),
        ({"criterion": lambda trace: {k: torch.full(s, torch.inf) for k, s in trace.shapes.items()}}, "Inf"),
        ({"criterion": "snip", "memory": 0}, "memory"),
        ({"criterion": "snip", "batch_size": 0}, "batch_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_does_not_fit_is_an_error_that_says_what_does(options, words):
    case = NETS["plain"]
    with pytest.raises(cc.ConvCircuitsError, match=words):
        cc.score(case.build(), cc.Feature("features.3", 1), case.images(2), **options)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_force_wants_a_whole_number_of_steps(steps):
    case = NETS["plain"]
    with pytest.raises(cc.ConvCircuitsError, match="steps"):
        cc.find(
            case.build(),
            cc.Feature("features.3", 1),
            case.images(2),
            criterion="force",
            kernels=5,
            steps=steps,
        )


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_calls_on_maps_of_different_sizes_are_all_counted(granularity):
    """The same conv on two scales: signed scores are the mask gradient whatever the sizes."""

    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            small = self.conv(F.avg_pool2d(x, 2))
            return self.head(F.relu(self.conv(x)) + F.interpolate(F.relu(small), scale_factor=2.0))

    model, images = seeded(Scales, 0)(), NETS["plain"].images(2)
    expected = oracles.mask_gradient(model, "head", 1, images, granularity=granularity)
    for criterion in ORACLES:
        options = {"criterion": criterion, "signed": True, "normalizer": "sum", "granularity": granularity}
        scores = cc.score(model, cc.Feature("head", 1), images, **options)
        for layer, values in scores.elements.items():
            kept = ~values.isnan()
            torch.testing.assert_close(values[kept], expected[layer][kept], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("criterion", ["snip", "actgrad", "gauss_newton"])
def test_bfloat16_does_not_lose_images_in_large_batches(criterion):
    case = NETS["plain"]
    model, images = case.build().bfloat16(), case.images(12).bfloat16()
    one, all_at_once = (
        cc.score(model, cc.Feature("features.3", 1), images, criterion=criterion, batch_size=size) for size in (1, 12)
    )
    for layer in one.elements:
        a, b = one[layer].nan_to_num(), all_at_once[layer].nan_to_num()
        assert float((a - b).abs().mean()) < 2e-3 * float(a.abs().mean())


@pytest.mark.parametrize("value", ["False", 1, None])
def test_a_switch_is_true_or_false(value):
    case = NETS["plain"]
    with pytest.raises(cc.ConvCircuitsError, match="is true or false"):
        cc.score(case.build(), cc.Feature("features.3", 1), case.images(2), centered=value)
