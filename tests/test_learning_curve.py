"""Circuits found on more and more images, measured on the same held-out ones."""

import math

import pytest
import torch

import convcircuits as cc
from convcircuits.zoo.planted import plant

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def planted():
    return plant(0)


@pytest.fixture(scope="module")
def curve(planted):
    return cc.learning_curve(
        planted.model, planted.feature, planted.images(16, seed=1), planted.images(8, seed=2), **OPTIONS
    )


OPTIONS = {"criterion": "gauss_newton", "density": 0.5, "refit": "kernels", "draws": 2}


def test_figures_are_those_of_find_refit_and_evaluate_on_all_images(planted, curve):
    images, held_out = planted.images(16, seed=1), planted.images(8, seed=2)
    circuit = cc.find(planted.model, planted.feature, images, criterion="gauss_newton", density=0.5)
    circuit = cc.refit(planted.model, circuit, images)
    new, own = (cc.evaluate(planted.model, circuit, some) for some in (held_out, images))
    last = curve.rows[-1]
    assert [last.r2, last.error, last.r2_interior] == pytest.approx(
        [new.r2, new.error_at_max, new.r2_interior], abs=1e-4
    )
    assert [last.train_r2, last.train_error] == pytest.approx([own.r2, own.error_at_max], abs=1e-4)
    assert (last.constants, last.kernels) == (circuit.constants, len(circuit))


def test_counts_double_and_draws_differ(curve):
    assert [(row.images, row.draw) for row in curve.rows] == [(4, 0), (4, 1), (8, 0), (8, 1), (16, 0)]
    assert curve.rows[0].r2 != curve.rows[1].r2
    assert curve.held_out == 8


def test_with_few_images_the_training_figure_is_flattering(curve):
    assert curve.median(4, "train_r2") > curve.median(4, "r2")
    gaps = [curve.median(count, "train_r2") - curve.median(count, "r2") for count in (4, 16)]
    assert gaps[0] > gaps[1]


def test_order_changes_nothing(planted, curve):
    images, held_out = planted.images(16, seed=1), planted.images(8, seed=2)
    other = cc.learning_curve(
        planted.model, planted.feature, images.flip(0), held_out.flip(0), batch_size=5, counts=[8], **OPTIONS
    )
    assert [row.r2 for row in other.rows] == pytest.approx([row.r2 for row in curve.rows[2:4]], abs=1e-4)


@pytest.mark.parametrize(
    ("figures", "ends"),
    [
        ({4: (0.9, math.nan), 8: (0.9, 0.7)}, "R2 is not defined everywhere, so the curve says nothing."),
        ({4: (0.9, 0.5), 8: (0.9, 0.7)}, "It still rises: more images would help."),
        ({4: (0.9, 0.7), 8: (0.9, 0.7)}, "It no longer rises, though the circuit fits its own images better by 0.20."),
        ({4: (0.9, 0.89), 8: (0.9, 0.9)}, "It no longer rises: more images would change little."),
        ({8: (0.9, 0.9)}, "One number of images is no curve."),
    ],
)
def test_the_sentence_follows_from_the_figures(figures, ends):
    row = cc.circuits.learning_curve.Learned
    rows = [row(count, 0, 0, 1, train, r2, r2, 0.1, 0.1) for count, (train, r2) in figures.items()]
    curve = cc.LearningCurve("1:0", tuple(rows), 8)
    assert curve.verdict_sentence.endswith(ends)
    assert curve.summary().startswith(curve.verdict_sentence)


def test_a_gain_that_draws_differ_by_is_no_rise():
    row = cc.circuits.learning_curve.Learned
    rows = [row(4, draw, 0, 1, 0.9, r2, r2, 0.1, 0.1) for draw, r2 in enumerate((0.5, 0.6, 0.8))]
    rows.append(row(8, 0, 0, 1, 0.9, 0.7, 0.7, 0.1, 0.1))
    assert cc.LearningCurve("1:0", tuple(rows), 8).verdict_sentence.endswith("whether more would help is not decided.")


def test_tables(curve):
    assert len(curve.to_pandas()) == 5
    assert len(curve.summary().splitlines()) == 5
    assert "<table" in curve._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": [17]}, "from 1 to 16"),
        ({"counts": []}, "from 1 to 16"),
        ({"draws": 0}, "draws"),
        ({"refit": "all"}, "refit must be one of"),
        ({"density": 2}, "in \\(0, 1\\]"),
    ],
)
def test_wrong_input_is_named(planted, options, message):
    with pytest.raises(cc.ConvCircuitsError, match=message):
        cc.learning_curve(
            planted.model, planted.feature, planted.images(16), planted.images(4, seed=2), **(OPTIONS | options)
        )


def test_images_of_both_kinds_are_refused(planted):
    images = planted.images(8)
    with pytest.raises(cc.ConvCircuitsError, match="3 images are both"):
        cc.learning_curve(planted.model, planted.feature, images, images[:3], **OPTIONS)
