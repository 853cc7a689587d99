"""What a circuit's granularity means: units of one kind, run, counted, nested, saved, never mixed with others."""

import dataclasses
import itertools
import json

import pytest
import torch

import convcircuits as cc
import oracles
from cases import GRANULARITIES, LAST, masks_for_oracle, relevant_of, units_of
from convcircuits.storage import sealed
from convcircuits.values.granularity import by_element, check_inside, elements_with, masks_of
from convcircuits.values.tables import LayerTable
from nets import NETS

pytestmark = pytest.mark.usefixtures("opened_once")

torch.set_num_threads(1)

OTHERS = ["filter", "weight"]
# What is hard: groups, a layer that runs twice, Linear on a flattened map, weights computed in forward, gates.
HARD = [p for p in LAST if p.id in ("grouped", "mobile", "twice", "standardised", "flat_head", "se_linear", "residual")]


def random_circuit(model, feature, images, granularity, density, seed=0):
    scores = cc.score(model, feature, images[:1], criterion="random", granularity=granularity, seed=seed)
    return cc.prune(scores, density=density)


# ---------------------------------------- pruning and sets


@pytest.mark.parametrize("granularity", OTHERS)
@pytest.mark.parametrize("name", ["plain", "mobile", "flat_head"])
def test_prune_keeps_exactly_so_many_and_smaller_circuits_lie_inside_larger_ones(name, granularity):
    case = NETS[name]
    model, images, feature = case.build(), case.images(1), cc.Feature(*case.features[-1])
    scores = cc.score(model, feature, images, criterion="snip", granularity=granularity)
    larger = cc.prune(scores, density=1.0)
    assert len(larger) == scores.relevant
    for kernels in sorted({scores.relevant - 1, scores.relevant // 2, 3, 1}, reverse=True):
        circuit = cc.prune(scores, kernels=kernels)
        assert len(circuit) == kernels
        assert circuit.density == kernels / scores.relevant
        assert len(circuit - larger) == 0
        expected = oracles.topk(dict(scores.elements), kernels)
        assert all(torch.equal(circuit[layer], mask) for layer, mask in expected.items())
        larger = circuit
    with pytest.raises(cc.ConvCircuitsError, match=f"{granularity}s were requested"):
        cc.prune(scores, kernels=scores.relevant + 1)


@pytest.mark.parametrize("granularity", OTHERS)
def test_sets_of_units_are_sets_and_never_mix_with_others(granularity):
    case = NETS["flat_head"]
    model, images, feature = case.build(), case.images(1), cc.Feature("classifier.4", 1)
    a, b = (random_circuit(model, feature, images, granularity, 0.5, seed) for seed in (0, 1))
    assert len(a | b) == len(a) + len(b) - len(a & b)
    assert len(a - b) == len(a) - len(a & b)
    assert cc.iou(a, b) == len(a & b) / len(a | b)
    assert (a | b).granularity == (a | b).provenance["granularity"] == granularity
    assert list(a.iou_by_layer(b)) == list(a.elements)
    kernels = random_circuit(model, feature, images, "kernel", 0.5)
    for mix in (lambda x, y: x & y, lambda x, y: x | y, lambda x, y: x - y, cc.iou):
        for pair in ((a, kernels), (kernels, a)):
            with pytest.raises(cc.ConvCircuitsError, match="different granularities"):
                mix(*pair)


def test_a_circuit_of_weights_is_none_of_kernels_even_where_all_shapes_agree():
    table = {"fc": torch.ones(2, 3, dtype=torch.bool)}
    values = {"fc": torch.ones(2, 3)}
    a = cc.Circuit(cc.Feature("fc", 1), LayerTable(table), LayerTable(values), 6)
    b = dataclasses.replace(a, granularity="weight")
    assert a != b
    assert cc.Scores(a.feature, LayerTable(values), 6) != cc.Scores(a.feature, LayerTable(values), 6, {}, "weight")


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_repr_and_summaries_say_what_is_counted(granularity):
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(1), cc.Feature("features.5", 2)
    scores = cc.score(model, feature, images, criterion="snip", granularity=granularity)
    circuit = cc.prune(scores, density=0.5)
    report = cc.evaluate(model, circuit, images)
    assert f"{scores.relevant} {granularity}s in 3 layers" in repr(scores)
    assert f"{len(circuit)} of {circuit.relevant} {granularity}s = " in repr(circuit)
    assert f"{granularity}s kept" in circuit.summary()
    assert f" {granularity}s" in scores.summary().splitlines()[1]
    assert f"{len(circuit)} of {circuit.relevant} {granularity}s kept" in report.summary()
    assert (f"{report.kernels} kernels, " in report.summary()) == (granularity != "kernel")


@pytest.mark.parametrize("granularity", OTHERS)
def test_layer_random_is_like_a_circuit_of_what_is_scored(granularity):
    case = NETS["residual"]
    model, images, feature = case.build(), case.images(1), cc.Feature("head", 0)
    like = random_circuit(model, feature, images, granularity, 0.4)
    with pytest.raises(cc.ConvCircuitsError, match=f"like is a circuit of {granularity}s, but kernels are scored"):
        cc.score(model, feature, images, criterion="layer_random", like=like)


# ---------------------------------------- runs


@pytest.mark.parametrize("effective", [True, False], ids=["circuit", "published"])
@pytest.mark.parametrize("granularity", OTHERS)
@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_a_run_is_the_oracles_and_so_are_the_counts(name, layer, unit, granularity, effective):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit)
    oracle = oracles.circuit_map if effective else oracles.masked_map
    for density in (0.5, 0.85):
        circuit = random_circuit(model, feature, images, granularity, density)
        masks = masks_for_oracle(case, model, circuit)
        expected = oracle(model, masks, layer, unit, images, blocks=case.blocks)
        maps = cc.activations(model, feature, images, circuit=circuit, effective=effective)
        torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-12)
    if effective:
        report = cc.evaluate(model, circuit, images)
        slow, _ = oracles.slow_copy(model, masks, case.blocks)
        kept = {m.name: m.mask.bool() for m in slow.modules() if isinstance(m, oracles.Slow) and m.name in masks}
        found = oracles.reachable(model, layer, unit, case.input_shape, masks, blocks=case.blocks)
        assert (report.granularity, report.elements, report.relevant) == (granularity, len(circuit), circuit.relevant)
        assert report.density == circuit.density
        assert report.kernels == oracles.count(kept)
        assert report.effective_kernels == oracles.count({k: found[k] for k in kept})
        assert report.filters == sum(int(mask.any(1).sum()) for mask in kept.values())
        assert report.effective_filters == sum(int(found[k].any(1).sum()) for k in kept)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("name", "layer", "unit"), HARD)
def test_all_units_together_are_the_full_model(name, layer, unit, granularity):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit)
    whole = cc.find(model, feature, images, criterion="magnitude", granularity=granularity, density=1.0)
    full = cc.activations(model, feature, images)
    torch.testing.assert_close(cc.activations(model, feature, images, circuit=whole), full, rtol=1e-9, atol=1e-12)


# ---------------------------------------- inside a circuit


def refused(run, model, circuit, images):
    """Tell whether scores are refused for being all zero, as they are only where the circuit's map is constant."""
    try:
        run()
        return False
    except cc.ConvCircuitsError:
        maps = cc.activations(model, circuit.feature, images, circuit=circuit)
        if float((maps - maps[0]).abs().max()) > 1e-12:
            raise
        return True


PAIRS = [(outer, inner) for outer, inner in itertools.product(GRANULARITIES, repeat=2)]


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
@pytest.mark.parametrize("name", ["plain", "mobile", "flat_head"])
def test_inside_a_circuit_units_are_those_it_keeps_and_finer_ones(name, outer, inner):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(*case.features[-1])
    circuit = random_circuit(model, feature, images, outer, 0.7)
    if GRANULARITIES.index(outer) > GRANULARITIES.index(inner):
        with pytest.raises(cc.ConvCircuitsError, match=f"A circuit of {outer}s keeps parts of {inner}s"):
            cc.score(model, feature, images, circuit=circuit, granularity=inner)
        return
    relevant = units_of(case, model, *case.features[-1], inner)
    masks = masks_for_oracle(case, model, circuit)
    kept = masks if outer == "weight" else oracles.relevant_elements(model, masks, inner, case.blocks)
    for criterion in ("magnitude", "snip", "force"):
        options = {"circuit": circuit, "granularity": inner, "criterion": criterion, "density": 0.5}
        if refused(lambda: cc.find(model, feature, images, **options), model, circuit, images):  # noqa: B023
            continue
        found = cc.find(model, feature, images, **options)
        scored = {layer: ~values.isnan() for layer, values in found.saliency.items()}
        assert all(torch.equal(scored[layer], kept[layer] & mask) for layer, mask in relevant.items())
        assert found.relevant == oracles.count(relevant)
        assert all(not (found[layer] & ~mask).any() for layer, mask in scored.items())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("name", "layer", "unit"), LAST)
def test_inside_a_circuit_a_unit_scores_by_what_of_it_is_effective(name, layer, unit, granularity):
    """Signed SNIP with "sum" is dL/dm of the kernels that run; kernels that read a dead channel do not."""
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(layer, unit)
    circuit = random_circuit(model, feature, images, granularity, 0.6, seed=1)
    inside = {"circuit": circuit, "normalizer": "sum", "signed": True}
    unsigned = {"circuit": circuit, "granularity": granularity, "criterion": "snip"}
    by_kernel = granularity if granularity == "weight" else "kernel"
    effective = oracles.reachable(
        model, layer, unit, case.input_shape, masks_for_oracle(case, model, circuit), blocks=case.blocks
    )
    if refused(lambda: cc.score(model, feature, images, **unsigned), model, circuit, images):
        return
    for criterion in ("snip", "actgrad"):
        units = cc.score(model, feature, images, criterion=criterion, granularity=granularity, **inside)
        parts = cc.score(model, feature, images, criterion=criterion, granularity=by_kernel, **inside)
        running = oracles.relevant_elements(model, {k: effective[k] for k in parts.elements}, by_kernel, case.blocks)
        for name_, values in parts.elements.items():
            values = values.nan_to_num()
            assert not values[~running[name_]].any()
            whole = values.sum(1) if granularity == "filter" else values
            torch.testing.assert_close(units[name_].nan_to_num(), whole, rtol=1e-9, atol=1e-12)


# ---------------------------------------- from masks, files, what does not fit


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["plain", "mobile", "flat_head"])
def test_masks_of_ones_keep_exactly_the_relevant_units(name, granularity):
    case = NETS[name]
    model, feature = case.build(), cc.Feature(*case.features[-1])
    relevant = units_of(case, model, *case.features[-1], granularity)
    ones = {layer: torch.ones(mask.shape) for layer, mask in relevant.items()}
    options = {"granularity": granularity, "input_shape": case.input_shape}
    circuit = cc.Circuit.from_masks(model, feature, ones, **options)
    assert circuit.granularity == circuit.provenance["granularity"] == granularity
    assert all(torch.equal(circuit[layer], mask) for layer, mask in relevant.items())
    assert len(circuit) == circuit.relevant == oracles.count(relevant)
    layer, mask = next(iter(relevant.items()))
    one = cc.Circuit.from_masks(model, feature, {layer: mask}, **options)
    assert len(one) == int(mask.sum())
    with pytest.raises(cc.ConvCircuitsError, match=rf"expected \({mask.shape[0]}.*granularity='{granularity}'"):
        cc.Circuit.from_masks(model, feature, {layer: torch.ones(7, 7, 7)}, **options)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_size_of_images_is_guessed_where_it_is_not_given(granularity):
    case = NETS["residual"]
    model, feature = case.build(), cc.Feature("head", 0)
    given, guessed = (
        cc.Circuit.from_masks(model, feature, {}, granularity=granularity, input_shape=shape)
        for shape in (case.input_shape, None)
    )
    assert given == guessed


class Squeezed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3), keepdim=True).squeeze())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_model_that_squeezes_one_image_has_circuits(granularity):
    model, images = Squeezed().double().eval(), NETS["plain"].images(4)
    circuit = cc.find(model, cc.Feature("head", 1), images, criterion="magnitude", granularity=granularity, density=1.0)
    assert cc.evaluate(model, circuit, images).r2 == pytest.approx(1.0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["inception", "flat_head"])
def test_what_is_saved_comes_back(name, granularity, tmp_path):
    case = NETS[name]
    model, images, feature = case.build(), case.images(1), cc.Feature(*case.features[-1])
    scores = cc.score(model, feature, images, granularity=granularity)
    circuit = cc.prune(scores, density=0.5)
    for value in (scores, circuit):
        again = cc.load(cc.save(value, tmp_path / "f.safetensors"))
        assert again == value
        assert again.granularity == granularity
        assert again.summary() == value.summary()


def rewritten(path, change):
    """The file with another header."""
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["convcircuits"])
    del header["checksum"]
    change(header)
    path.write_bytes(sealed(json.dumps(header), {"elements/b": torch.ones(2, 3)}))
    return path


@pytest.fixture
def file(tmp_path):
    return cc.save(cc.Scores(cc.Feature("b", 1), LayerTable({"b": torch.ones(2, 3)}), 6), tmp_path / "f.safetensors")


def test_a_file_that_says_no_granularity_is_refused(file):
    assert cc.load(rewritten(file, lambda header: None)).granularity == "kernel"
    with pytest.raises(cc.ConvCircuitsError, match=r"damaged: .*granularity"):
        cc.load(rewritten(file, lambda header: header.pop("granularity")))


@pytest.mark.parametrize("bad", ["channel", "", None, 3, [], ["kernel"], {"kernel": 1}, "filter"])
def test_a_file_of_a_granularity_that_is_none_or_does_not_fit_is_refused(file, bad):
    with pytest.raises(cc.ConvCircuitsError, match="damaged"):
        cc.load(rewritten(file, lambda header: header.update(granularity=bad)))


@pytest.mark.parametrize("bad", ["channel", "Kernel", None, 1, ["kernel"]])
def test_a_word_that_is_no_granularity_is_an_error_that_lists_them(bad):
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(1), cc.Feature("features.5", 2)
    table = LayerTable({"features.5": torch.ones(4, 5)})
    for make in (
        lambda: cc.score(model, feature, images, granularity=bad),
        lambda: cc.find(model, feature, images, granularity=bad, density=0.5),
        lambda: cc.Circuit.from_masks(model, feature, {}, granularity=bad),
        lambda: cc.Scores(feature, table, 20, {}, bad),
        lambda: cc.Circuit(feature, LayerTable(), LayerTable(), 0, granularity=bad),
    ):
        with pytest.raises(cc.ConvCircuitsError, match="is not a granularity; choose one of 'filter'"):
            make()


@pytest.mark.parametrize(("granularity", "shape"), [("filter", (2, 3)), ("kernel", (2,)), ("weight", (2,))])
def test_tables_of_another_shape_are_refused(granularity, shape):
    table, feature = LayerTable({"b": torch.ones(shape)}), cc.Feature("b", 1)
    with pytest.raises(cc.ConvCircuitsError, match="expected floating point of shape"):
        cc.Scores(feature, table, 6, {}, granularity)
    mask = LayerTable({"b": torch.ones(shape).bool()})
    with pytest.raises(cc.ConvCircuitsError, match="expected bool of shape"):
        cc.Circuit(feature, mask, table, 6, granularity=granularity)


@pytest.mark.parametrize(("granularity", "words"), [("filter", r"\(out,\)"), ("weight", "the weight's own shape")])
def test_scores_of_another_shape_name_the_one_expected(granularity, words):
    case = NETS["plain"]
    kernels = {
        layer: torch.ones(mask.shape) for layer, mask in relevant_of(case, case.build(), "features.5", 2).items()
    }
    with pytest.raises(cc.ConvCircuitsError, match=words):
        cc.score(
            case.build(),
            cc.Feature("features.5", 2),
            case.images(1),
            criterion=lambda trace: kernels,
            granularity=granularity,
        )


# ---------------------------------------- the conversions themselves


def test_units_and_kernels_turn_into_each_other():
    relevant = {"a": torch.tensor([[True, False], [True, True], [False, False]])}
    kept = {"a": torch.tensor([True, False, True])}
    kernels, weights = masks_of(kept, "filter", relevant)
    assert kernels["a"].tolist() == [[True, False], [False, False], [False, False]]
    assert weights == {}
    assert elements_with(relevant["a"], "filter", ()).tolist() == [True, True, False]
    spread = elements_with(relevant["a"], "weight", (3, 2, 2, 1))
    assert spread.shape == (3, 2, 2, 1)
    assert torch.equal(spread.flatten(2).all(2), relevant["a"])
    flat = elements_with(relevant["a"], "weight", (3, 6))
    assert flat[0].tolist() == [True] * 3 + [False] * 3
    kernels, weights = masks_of({"a": flat & (torch.arange(6) == 0)}, "weight", relevant)
    assert kernels["a"].tolist() == [[True, False], [True, False], [False, False]]
    assert weights["a"].sum() == 2


@pytest.mark.parametrize(("granularity", "shape"), [("filter", (2, 3, 1, 20)), ("kernel", (2, 3, 4, 5))])
def test_the_last_axis_is_one_unit(granularity, shape):
    values = torch.randn(2, 3, 4, 5)
    assert by_element(values, granularity).shape == shape
    torch.testing.assert_close(by_element(values, granularity).sum((2, 3)), values.sum((2, 3)))
    assert by_element(values, "weight").shape == (2, 3, 20, 1)


def test_inside_coarser_ones_only():
    check_inside("filter", "weight")
    with pytest.raises(cc.ConvCircuitsError, match="granularity='kernel' or finer"):
        check_inside("kernel", "filter")
