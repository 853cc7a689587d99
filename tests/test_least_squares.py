"""Least squares of many filters at once, against SciPy's solver of one."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from convcircuits.circuits import least_squares
from convcircuits.circuits.least_squares import ByProducts, ByValues

WIDTH = 12


def problems(positions, *, apart=1.0, seed=0):
    """What is missing in six filters, at 0, and what their kernels add, less their means; some are not free."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(6, 3, positions, generator=generator, dtype=torch.float64)
    mixed = torch.randn(6, WIDTH, 3, generator=generator, dtype=torch.float64) @ shared
    own = torch.randn(6, WIDTH, positions, generator=generator, dtype=torch.float64)
    missing = 20 * torch.randn(6, 1, positions, generator=generator, dtype=torch.float64)
    values = torch.cat([missing, mixed + apart * own], 1)
    free = torch.rand(6, WIDTH, generator=generator) < 0.8
    free[0] = False
    return values - values.mean(2, keepdim=True), free


def expected(values, free, pull, toward, *, positive):
    """The gains of a filter's free kernels, by SciPy's or NumPy's solver; the others have gain 1."""
    gains = np.ones(WIDTH)
    if free.any():
        missing, z, root = values[0].numpy(), values[1:][free].T.numpy(), pull[free].sqrt().numpy()
        system = np.concatenate([z, np.diag(root)])
        wanted = np.concatenate([missing + z.sum(1), root * toward])
        gains[free.numpy()] = (nnls if positive else np.linalg.lstsq)(system, wanted)[0]
    return gains


def both(values, pull, toward):
    products = values @ values.transpose(1, 2)
    return ByProducts(products, pull, toward, None), ByValues(values, pull, toward)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("toward", [0.0, 1.0])
@pytest.mark.parametrize("positions", [60, 7])
@pytest.mark.parametrize("apart", [1.0, 0.05])
@pytest.mark.parametrize("missing", [1.0, 1e-9, 0.0])
def test_changes_are_those_of_a_solver_of_one_filter(positions, toward, positive, apart, missing):
    values, free = problems(positions, apart=apart)
    values[:, 0] *= missing
    pull = 0.01 * values[:, 1:].square().sum(2) + 0.1
    gains = [expected(*one, toward, positive=positive) for one in zip(values, free, pull, strict=True)]
    for problem in both(values, pull, toward):
        found = problem.solve_positive(free) if positive else problem.solve(free)
        assert 1 + found.numpy() == pytest.approx(np.stack(gains), abs=1e-7)
        assert not found[~free].any()
    if missing == 1:
        assert positive == all((row >= 0).all() for row in gains)


@pytest.mark.parametrize("toward", [0.0, 1.0])
def test_kernels_at_zero_are_let_go_again(toward, monkeypatch):
    """What is set to 0 at first may do better above it once others are at 0; one exchange at a time ends there, too."""
    pinned_only, released = 0, 0
    for seed, patience in itertools.product(range(8), [3, 0]):
        monkeypatch.setattr(least_squares, "_PATIENCE", patience)
        values, free = problems(60, apart=0.1, seed=seed)
        pull = 0.001 * values[:, 1:].square().sum(2)
        problem = both(values, pull, toward)[0]
        gains = np.stack([expected(*one, toward, positive=True) for one in zip(values, free, pull, strict=True)])
        assert 1 + problem.solve_positive(free).numpy() == pytest.approx(gains, abs=1e-7)
        first = problem.solve(free) < -1
        released += int((first.numpy() & (gains > 1e-9)).sum())
        pinned_only += int((~first.numpy() & (gains == 0)).sum())
    assert released > 0
    assert pinned_only > 0


def test_without_a_pull_kernels_that_depend_on_each_other_share_a_gain_of_zero_or_more():
    values, free = problems(60)
    values[:, 2], free[1:] = values[:, 1], True
    problem = ByProducts(values @ values.transpose(1, 2), torch.zeros(6, WIDTH, dtype=torch.float64), 0.0, 1e-10)
    found = problem.solve_positive(free)
    assert bool((found >= -1).all())
    assert torch.allclose(found[:, 0], found[:, 1], atol=1e-9)
    left = (values[:, 0] - (found[:, None] @ values[:, 1:])[:, 0]).square().sum(1)
    for o in range(1, 6):  # all but the first twin span the same
        _, distance = nnls(values[o, 2:].T.numpy(), (values[o, 0] + values[o, 1:].sum(0)).numpy())
        assert float(left[o].sqrt()) == pytest.approx(distance, rel=1e-9)
