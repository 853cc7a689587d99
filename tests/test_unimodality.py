"""The dip against a linear program, and its p-value on samples that are unimodal and not."""

import numpy as np
import pytest

import convcircuits as cc
from convcircuits.subfeatures.unimodality import dip, dip_p_value, median_p_value


def program(values):
    """Return the least distance from a function that is convex up to some value and concave from there."""
    from scipy.optimize import linprog

    x, counts = np.unique(values, return_counts=True)
    after = np.cumsum(counts) / len(values)
    before = after - counts / len(values)
    least = 1.0
    for mode in range(len(x)):  # the mode may have an atom: two values, from the left and from the right
        left, right = mode + 1, len(x) - mode
        size = left + right + 1
        rows, bounds = [], []

        def ask(terms, bound, rows=rows, bounds=bounds, size=size):
            row = np.zeros(size)
            for place, factor in terms:
                row[place] += factor
            rows.append(row)
            bounds.append(bound)

        for i in range(left):
            ask([(i, 1), (-1, -1)], before[i])
            ask([(i, -1), (-1, -1)], -(after[i] if i < mode else before[i]))
        for j in range(right):
            i = mode + j
            ask([(left + j, 1), (-1, -1)], before[i] if j else after[i])
            ask([(left + j, -1), (-1, -1)], -after[i])
        ask([(left - 1, 1), (left, -1)], 0)
        for first, count, start, sign in ((0, left, 0, 1), (left, right, mode, -1)):
            for k in range(1, count - 1):
                near, far = x[start + k] - x[start + k - 1], x[start + k + 1] - x[start + k]
                terms = [(first + k, 1 / near + 1 / far), (first + k - 1, -1 / near), (first + k + 1, -1 / far)]
                ask([(place, sign * factor) for place, factor in terms], 0)
        objective = np.zeros(size)
        objective[-1] = 1
        limits = [(None, None)] * (size - 1) + [(0, None)]
        least = min(least, linprog(objective, A_ub=np.array(rows), b_ub=bounds, bounds=limits).fun)
    return least


@pytest.mark.parametrize("seed", range(24))
def test_the_dip_is_the_distance_from_the_nearest_unimodal_distribution(seed):
    dice = np.random.default_rng(seed)
    values = dice.normal(size=dice.integers(3, 13))
    if seed % 3 == 0:
        values = np.concatenate([values, values + 5])  # two equal groups: the gap is equally wide at many places
    if seed % 4 == 0:
        values = np.round(values, 1 if seed % 8 else 0)  # ties
    if len(np.unique(values)) > 1:
        assert dip(values) == pytest.approx(program(values), abs=1e-9)


def test_the_dip_does_not_depend_on_place_scale_sign_or_order():
    values = np.random.default_rng(0).normal(size=50)
    for other in (values[::-1], 3 * values + 2, -values):
        assert dip(other) == pytest.approx(dip(values), abs=1e-12)
    assert dip(np.arange(20.0)) == pytest.approx(1 / 40)
    assert dip(np.repeat([0.0, 1.0], 10)) == pytest.approx(0.25)


def test_samples_of_one_mode_are_rarely_called_bimodal_and_of_two_nearly_always():
    dice = np.random.default_rng(0)
    uniform = [dip_p_value(dice.random(40)) for _ in range(400)]
    assert 0.02 <= np.mean(np.array(uniform) <= 0.05) <= 0.085  # 5 %, and three standard deviations about it
    for draw in (dice.normal, dice.exponential, dice.standard_cauchy):
        assert np.mean([dip_p_value(draw(size=40)) <= 0.05 for _ in range(100)]) <= 0.05
    two = [dip_p_value(np.concatenate([dice.normal(size=20), dice.normal(size=20) + 6])) for _ in range(50)]
    assert np.mean(np.array(two) <= 0.05) >= 0.9


@pytest.mark.parametrize("size", [20, 36, 90])
def test_the_median_over_halves_of_uniform_samples_is_called_small_as_often_as_it_says(size):
    dice, found = np.random.default_rng(size), []
    for _ in range(400):
        sample = dice.random(size)
        halves = [half for _ in range(5) for half in np.array_split(dice.permutation(size), 2)]
        found.append(median_p_value(float(np.median([dip_p_value(sample[half]) for half in halves])), 5))
    for level in (0.05, 0.2, 0.5):
        expected, deviation = level, np.sqrt(level * (1 - level) * (1 / 400 + 1 / 1000))  # of both simulations
        assert abs(np.mean(np.array(found) <= level) - expected) <= 4 * deviation
    assert median_p_value(1.0, 5) == 1.0
    assert median_p_value(0.0, 5) == 1 / 1001


def test_from_200_numbers_on_the_null_distribution_is_scaled():
    dice = np.random.default_rng(1)
    assert np.mean([dip_p_value(dice.random(1000)) <= 0.05 for _ in range(200)]) <= 0.1


@pytest.mark.parametrize("values", [[1.0], [1.0, np.nan], [np.inf, 0.0]])
def test_what_has_no_dip_is_refused(values):
    with pytest.raises(cc.ConvCircuitsError, match="two finite numbers"):
        dip(np.array(values))
