"""Planted networks: the truth is the truth, distractors are distractors."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

import convcircuits as cc
from cases import planted_circuit, planted_loss, planted_map
from convcircuits.circuits.truth import agreement
from convcircuits.zoo.planted import plant, planted_images

VARIANTS = {
    "plain": {},
    "batchnorm": {"batchnorm": True},
    "residual": {"residual": True},
    "grouped": {"groups": 2},
    "all": {"batchnorm": True, "residual": True, "groups": 2, "depth": 6},
}
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.oracle) for seed in range(1, 5))]
EACH = pytest.mark.parametrize("variant", VARIANTS)


def planted(seed, variant="plain", **options):
    return plant(seed, dtype=torch.float64, **VARIANTS[variant], **options)


def images(count=6):
    return planted_images(count, seed=1000).double()


def circuit_map(net, masks):
    return planted_map(net, masks, images())


def lost(net, masks):
    return planted_loss(net, masks, images())


def least_squares(net, masks):
    """Yield (layer, filter, gains, offset, relative residual): fits of the full model's outputs by kept kernels.

    Where several fits are exact, the smallest is taken, in units of what the kernels add.
    """
    inputs = {}
    hooks = [
        conv.register_forward_hook(lambda conv, args, y, n=n: inputs.update({f"convs.{n}": (args[0], y)}))
        for n, conv in enumerate(net.model.convs)
    ]
    net.model(images())
    for hook in hooks:
        hook.remove()
    for n, conv in enumerate(net.model.convs):
        layer = f"convs.{n}"
        x, y = inputs[layer]
        filters = [net.feature.unit] if layer == net.feature.layer else masks[layer].any(1).nonzero()[:, 0].tolist()
        for o in filters:
            first = o * conv.groups // len(conv.weight) * conv.weight.shape[1]
            kept = masks[layer][o].nonzero()[:, 0].tolist()
            parts = torch.stack([F.conv2d(x[:, [first + i]], conv.weight[o, None, None, i]) for i in kept], -1)
            parts = parts.flatten(0, -2)
            target = y[:, o].flatten() - (0 if conv.bias is None else conv.bias[o])
            varying, wanted = parts - parts.mean(0), target - target.mean()
            size = varying.std(0).where(varying.std(0) > 1e-9 * parts.abs().amax(0), torch.inf)  # constants: gain 0
            fit = torch.linalg.lstsq(varying / size, wanted[:, None], rcond=1e-9, driver="gelsd").solution[:, 0]
            residual = float((varying / size @ fit - wanted).abs().max() / target.std())
            yield layer, o, fit / size, target.mean() - parts.mean(0) @ (fit / size), residual


def refitted(net):
    """The network with every filter replaced by its fit."""
    model = copy.deepcopy(net.model)
    everything = {f"convs.{n}": torch.ones(conv.weight.shape[:2]) for n, conv in enumerate(model.convs)}
    for layer, o, gains, offset, _ in least_squares(net, everything):
        n = int(layer[-1])
        model.convs[n].weight[o] *= gains[:, None, None]
        if model.convs[n].bias is None:
            model.norms[n].running_mean[o] -= offset
        else:
            model.convs[n].bias[o] += offset
    return dataclasses.replace(net, model=model)


@EACH
@pytest.mark.parametrize("seed", SEEDS)
def test_the_truth_with_its_offsets_computes_the_feature_exactly(seed, variant):
    net = planted(seed, variant)
    full = cc.activations(net.model, net.feature, images())
    torch.testing.assert_close(circuit_map(net, net.truth), full, rtol=0, atol=1e-10)
    assert full.std() > 0.5
    assert sum(int(mask.sum()) for mask in net.truth.values()) < 100


def test_without_constants_the_truth_needs_no_offset():
    net = planted(0, constants=0)
    assert not any(offset.any() for offset in net.offset.values())
    assert lost(net, net.truth) < 1e-20
    assert any(offset.any() for offset in planted(0).offset.values())


def test_the_planting_holds_on_any_images():
    net = planted(2, "residual")
    strange = torch.randn(2, 3, 40, 36, generator=torch.Generator().manual_seed(0)).double() * 30
    full = cc.activations(net.model, net.feature, strange)
    torch.testing.assert_close(planted_map(net, net.truth, strange), full)


@EACH
def test_in_float32_the_library_measures_the_truth_as_perfect(variant):
    net = plant(1, constants=0, **VARIANTS[variant])
    circuit = planted_circuit(net, net.truth, {})
    report = cc.evaluate(net.model, circuit, images().float())
    assert report.r2 > 1 - 1e-8
    assert report.effective_kernels == len(circuit)
    assert report.r2_random < 0.5


@EACH
@pytest.mark.oracle
def test_every_true_kernel_matters(variant):
    net = planted(1, variant, twins=False)
    for layer, mask in net.truth.items():
        for o, i in mask.nonzero().tolist():
            masks = {name: true.clone() for name, true in net.truth.items()}
            masks[layer][o, i] = False
            assert lost(net, masks) > 1e-4


@EACH
@pytest.mark.parametrize("seed", SEEDS)
def test_least_squares_gives_true_kernels_gains_of_one(seed, variant):
    net = planted(seed, variant, twins=False)
    for layer, o, gains, offset, residual in least_squares(net, net.truth):
        torch.testing.assert_close(gains, torch.ones_like(gains), rtol=0, atol=1e-8)
        torch.testing.assert_close(offset, net.offset[layer][o], rtol=1e-8, atol=1e-8)
        assert residual < 1e-9


@EACH
@pytest.mark.parametrize("seed", SEEDS)
def test_either_twin_suffices_with_other_gains(seed, variant):
    net = planted(seed, variant)
    assert len(net.alternatives) == 2
    for masks in net.alternatives:
        assert all(bool((masks[layer] <= mask).all()) for layer, mask in net.truth.items())
        assert any(bool((masks[layer] < mask).any()) for layer, mask in net.truth.items())
        for n, conv in enumerate(net.model.convs[1:]):
            written, read = masks[f"convs.{n}"].any(1), masks[f"convs.{n + 1}"].any(0)
            assert conv.groups > 1 or bool((read <= written).all())  # nothing reads what is not computed
        fits = list(least_squares(net, masks))
        assert max(residual for *_, residual in fits) < 1e-9
        assert max(float(gains.max()) for _, _, gains, _, _ in fits) > 1.3  # 1 / share
        assert lost(net, masks) > 1e-3  # without these gains


@EACH
def test_rescaling_changes_weights_but_neither_function_nor_truth(variant):
    plain, scaled = planted(3, variant, decades=0), planted(3, variant, decades=4)
    torch.testing.assert_close(scaled.model(images()), plain.model(images()), rtol=0, atol=1e-10)
    assert all(torch.equal(scaled.truth[layer], mask) for layer, mask in plain.truth.items())
    sizes = [net.model.convs[1].weight.abs().mean((1, 2, 3)) for net in (plain, scaled)]
    assert float((sizes[1] / sizes[0]).max() / (sizes[1] / sizes[0]).min()) > 100
    assert lost(scaled, scaled.truth) < 1e-20


def test_one_of_a_pair_matters_and_both_do_not():
    net = planted(0, constants=0, twins=False)
    weight = net.model.convs[-1].weight[net.feature.unit]
    unread = [i for i in weight.abs().sum((1, 2)).nonzero()[:, 0].tolist() if not net.truth["convs.3"][0:, i].any()]
    assert len(unread) == 8  # four pairs
    everything = {f"convs.{n}": torch.ones(conv.weight.shape[:2]) for n, conv in enumerate(net.model.convs)}
    everything["convs.3"][:, unread] = 0
    assert lost(net, everything) < 1e-20
    for i in unread:
        everything["convs.3"][:, i] = 1
        assert lost(net, everything) > 0.05
        everything["convs.3"][:, i] = 0


@pytest.mark.parametrize("leak", [0.03, 0.1])
@pytest.mark.parametrize("variant", [name for name, options in VARIANTS.items() if "depth" not in options])
def test_a_leak_costs_the_truth_a_little(variant, leak):
    net = planted(1, variant, leak=leak)
    assert leak**2 < lost(net, net.truth) < 7 * leak**2


def test_a_seed_decides_everything():
    a, b, c = (plant(seed, leak=0.1) for seed in (5, 5, 6))
    weights = b.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in a.model.state_dict().items())
    assert not torch.equal(a.model.convs[0].weight, c.model.convs[0].weight)
    state = torch.random.get_rng_state()
    plant(5)
    assert torch.equal(torch.random.get_rng_state(), state)


def scored(net, criterion, **options):
    data = planted_images(24, seed=1000).to(net.model.convs[0].weight)
    scores = cc.score(net.model, net.feature, data, criterion=criterion, **options)
    return agreement(scores.kernels, net.truths).auroc


@EACH
@pytest.mark.parametrize("seed", SEEDS)
def test_one_shot_criteria_do_not_recover_the_truth(seed, variant):
    net = plant(seed, **VARIANTS[variant])
    assert scored(net, "snip") < 0.8
    assert scored(net, "magnitude") < 0.8
    assert scored(net, "gauss_newton") < scored(net, "gauss_newton", centered=True) < 0.96


@EACH
@pytest.mark.parametrize("seed", SEEDS)
def test_after_a_joint_fit_a_centered_criterion_recovers_the_truth(seed, variant):
    net = planted(seed, variant)
    assert scored(refitted(net), "gauss_newton", centered=True) > 0.95


def test_without_distractors_any_gradient_recovers_the_truth():
    net = plant(0, pairs=0, constants=0)
    assert min(scored(net, criterion) for criterion in ("snip", "actgrad", "gauss_newton")) > 0.99


def test_among_constants_a_centered_criterion_recovers_the_truth():
    net = plant(0, pairs=0, constants=16)
    assert scored(net, "snip") < 0.8
    assert scored(net, "gauss_newton", centered=True) > 0.99


def test_what_does_not_fit_is_an_error():
    with pytest.raises(cc.ConvCircuitsError, match="24 channels in 1 groups cannot contain 4 live ones, 9 pairs"):
        plant(pairs=9)
    with pytest.raises(cc.ConvCircuitsError, match="Each group needs the same number"):
        plant(groups=4, live=8)
    with pytest.raises(cc.ConvCircuitsError, match="live must be at least 2 for each of 3 groups; got 4"):
        plant(groups=3)
    with pytest.raises(cc.ConvCircuitsError, match="pairs must be a whole number from 0"):
        plant(pairs=-1)
    with pytest.raises(cc.ConvCircuitsError, match="depth must be a whole number from 3"):
        plant(depth=2)
