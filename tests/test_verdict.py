"""The verdict: each rule at its boundary, and what is not known decides nothing."""

import dataclasses
import itertools
import math

import pytest

from convcircuits.values.verdict import KEEPS, KEEPS_IN_PART, R2, decide, is_of_interior

NONE = R2(-1.0, -1.0)
NAN = math.nan
ORDER = ["does not keep", "keeps in part", "keeps"]


def said_of(circuit, average_map, random, **options):
    return decide(R2(*circuit), R2(*average_map), R2(*random), **{"feature": "a:3"} | options)


def word(circuit, average_map=NONE, random=NONE):
    verdict, sentence = said_of(circuit, average_map, random)
    begins = {
        "keeps": "The circuit keeps a:3: ",
        "keeps in part": "The circuit keeps a:3 in part: ",
        "does not keep": "The circuit does not keep a:3: ",
        "not decided": "Whether the circuit keeps a:3 is not decided: ",
    }
    assert sentence.startswith(begins[verdict])
    assert sentence.endswith(".")
    return verdict


def test_the_rules_are_these():
    """The documentation states them."""
    assert dataclasses.astuple(KEEPS) == (0.8, 0.7, 0.5)
    assert dataclasses.astuple(KEEPS_IN_PART) == (0.4, 0.3, 0.9)


@pytest.mark.parametrize(
    ("circuit", "expected"),
    [
        ((0.8, 0.7), "keeps"),
        ((0.799, 0.7), "keeps in part"),
        ((0.8, 0.699), "keeps in part"),
        ((0.4, 0.3), "keeps in part"),
        ((1.0, 0.3), "keeps in part"),
        ((0.4, 1.0), "keeps in part"),
        ((0.399, 1.0), "does not keep"),
        ((1.0, 0.299), "does not keep"),
        ((-0.25, -3.0), "does not keep"),
    ],
)
def test_r2_itself(circuit, expected):
    assert word(circuit) == expected


@pytest.mark.parametrize("which", ["average_map", "random"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("value", "baseline", "expected"),
    [
        (0.8, 0.6, "keeps"),  # .2 is half of .4
        (0.8, 0.61, "keeps in part"),
        (0.8, 0.777, "keeps in part"),  # .2 is nine tenths of .2222
        (0.8, 0.779, "does not keep"),
        (0.83, 0.78, "keeps in part"),
        (0.98, 0.96, "keeps"),
        (1.0, 1.0, "keeps"),
        (1.0 - 1e-12, 1.0, "keeps"),  # to rounding
        (0.9, 0.95, "does not keep"),
    ],
)
def test_baselines_must_be_beaten_over_all_and_on_the_interior(which, place, value, baseline, expected):
    circuit, beside = [1.0, 1.0], [-1.0, -1.0]
    circuit[place], beside[place] = value, baseline
    assert word(circuit, **{which: beside}) == expected


@pytest.mark.parametrize(
    ("circuit", "average_map", "random", "expected"),
    [
        ((0.9, 0.9), (NAN, NAN), NONE, "not decided"),
        ((0.9, 0.9), NONE, (NAN, NAN), "not decided"),
        ((0.9, NAN), NONE, NONE, "not decided"),
        ((NAN, NAN), NONE, NONE, "not decided"),
        ((0.5, 0.9), (NAN, NAN), NONE, "not decided"),  # in part, or not
        ((0.9, 0.2), (NAN, NAN), NONE, "does not keep"),  # whatever the average map is
        ((0.2, NAN), (NAN, NAN), NONE, "does not keep"),
        ((0.9, NAN), (0.9, NAN), NONE, "does not keep"),
        ((-math.inf, NAN), NONE, NONE, "does not keep"),
    ],
)
def test_what_was_not_measured_decides_nothing(circuit, average_map, random, expected):
    assert word(circuit, average_map, random) == expected


def test_a_better_circuit_beside_the_same_baselines_has_no_worse_verdict():
    values = [-0.5, 0.1, 0.35, 0.5, 0.75, 0.85, 1.0]
    for average_map, random in itertools.product([-1.0, 0.2, 0.7], repeat=2):
        found = {
            (a, b): ORDER.index(word((a, b), (average_map,) * 2, (random,) * 2))
            for a, b in itertools.product(values, repeat=2)
        }
        for (a, b), rank in found.items():
            assert all(other >= rank for (c, d), other in found.items() if c >= a and d >= b)


@pytest.mark.parametrize(
    ("circuit", "average_map", "random", "said"),
    [
        (
            (0.83, -0.12),
            (0.78, 0.0),
            (0.1, 0.1),
            "The circuit does not keep a:3: R2 on the interior is -0.12, below 0.3.",
        ),
        (
            (0.83, 0.81),
            (0.82, 0.2),
            (0.1, 0.1),
            "The circuit does not keep a:3: R2 is 0.83 where the average training map reaches 0.82, so more than 90% "
            "of its squared error is left.",
        ),
        (
            (0.83, 0.5),
            (0.2, 0.2),
            (0.7, 0.1),
            "The circuit keeps a:3 in part: R2 is 0.83 where a random circuit reaches 0.70, so more than 50% of its "
            "squared error is left; R2 on the interior is 0.50, below 0.7.",
        ),
        (
            (0.91, 0.85),
            (0.35, 0.0),
            (-0.2, -0.1),
            "The circuit keeps a:3: R2 is 0.91, on the interior 0.85, where the average training map reaches 0.35 and "
            "0.00, a random circuit of equal size -0.20 and -0.10.",
        ),
        (
            (0.9, NAN),
            (NAN, NAN),
            (0.0, 0.0),
            "Whether the circuit keeps a:3 is not decided: the average training map was not measured; R2 on the "
            "interior is not defined.",
        ),
    ],
)
def test_the_sentence_gives_the_figures_that_tell(circuit, average_map, random, said):
    assert said_of(circuit, average_map, random)[1] == said
    central = said_of(circuit, average_map, random, where="the central positions")[1]
    assert central == said.replace("the interior", "the central positions")


def test_no_figure_is_written_as_a_negative_nothing():
    _, sentence = said_of((-0.001, -0.004), (-0.001, 0.0), (0.0, 0.0))
    assert "R2 is 0.00" in sentence
    assert "-0.00" not in sentence


def test_a_verdict_is_about_the_interior_unless_its_sentence_names_all_positions_alone():
    some = [-0.2, 0.35, 0.6, 0.75, 0.95]
    circuits, average_maps = (list(itertools.product(values, repeat=2)) for values in ([*some, NAN], some))
    seen = set()
    for circuit, average_map in itertools.product(circuits, average_maps):
        verdict, sentence = said_of(circuit, average_map, NONE)
        of_interior = is_of_interior(verdict, R2(*circuit), R2(*average_map), NONE)
        inside = "R2 on the interior" in sentence or "R2 is" not in sentence or verdict == "keeps"
        assert of_interior == (inside and not math.isnan(circuit[1])), sentence
        seen.add((verdict, of_interior))
    assert len(seen) == 6  # a circuit that keeps its feature does so on the interior, too
    assert is_of_interior("not decided", R2(0.9, 0.9), NONE, R2(NAN, NAN))
    assert is_of_interior("not decided", R2(NAN, 0.9), R2(NAN, NAN), R2(NAN, NAN))
