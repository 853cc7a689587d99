"""Images grouped by several descriptions of them, on a unit whose mechanisms are known."""

import math

import pytest
import torch

import convcircuits as cc
import twofold
from convcircuits.values.groupings import KNOWN, SHUFFLED

torch.set_num_threads(1)

OPTIONS = {"density": 0.4, "embedding": "0"}
UNTESTED = OPTIONS | {"density": None}  # no cross-test
DESCRIPTIONS = ["saliencies", "last layer", "activations", "embedding", "pixels"]


@pytest.fixture(scope="module")
def compared():
    made, blue = twofold.images(60)
    return cc.groupings(twofold.net(), twofold.FEATURE, made, known=blue.tolist(), **OPTIONS)


def test_saliencies_find_the_known_groups_and_their_circuits_are_selective(compared):
    assert [row.by for row in compared.rows] == [KNOWN, *DESCRIPTIONS, SHUFFLED]
    found = compared["saliencies"]
    assert (found.ari, found.accuracy, found.stability) == (1, 1, 1)
    assert found.selectivity == pytest.approx(compared[KNOWN].selectivity)
    assert found.low > 0
    assert found.own < 0.1


def test_shuffled_groups_are_those_of_saliencies_dealt_at_random_and_their_circuits_are_not_selective(compared):
    found, shuffled = compared.labels["saliencies"], compared.labels[SHUFFLED]
    assert found.bincount().tolist() == shuffled.bincount().tolist()
    assert found.tolist() != shuffled.tolist()
    assert abs(compared[SHUFFLED].ari) < 0.2
    assert compared[SHUFFLED].low < 0.02
    assert compared[SHUFFLED].selectivity < compared["saliencies"].selectivity / 5


def test_figures_are_those_of_the_labels(compared):
    _, blue = twofold.images(60)
    for row in compared.rows[1:]:
        labels = compared.labels[row.by]
        pairs = torch.combinations(torch.arange(60))
        same, true = (one[pairs[:, 0]] == one[pairs[:, 1]] for one in (labels, blue))
        both, either, total = float((same & true).sum()), float(same.sum() + true.sum()) / 2, len(pairs)
        chance = float(same.sum()) * float(true.sum()) / total  # Hubert and Arabie, 1985, by counting pairs
        assert row.ari == pytest.approx((both - chance) / (either - chance))
        assert 0 <= row.accuracy <= 1
    assert compared.held_out == 24


def test_pixels_do_not_see_what_kernels_do():
    made, blue = twofold.images(60)
    dice = torch.Generator().manual_seed(1)
    made[:, 1] = 20 * torch.rand(60, 1, 12, generator=dice).double()  # a channel that no kernel reads
    found = cc.groupings(twofold.net(), twofold.FEATURE, made, known=blue.tolist(), **UNTESTED)
    assert found["saliencies"].ari == 1
    assert found["pixels"].ari < 0.5


def test_batches_change_nothing_and_known_groups_only_the_figures_about_them(compared):
    made, _ = twofold.images(60)
    other = cc.groupings(twofold.net(), twofold.FEATURE, made, batch_size=7, **UNTESTED)
    assert [row.by for row in other.rows] == DESCRIPTIONS
    for row in other.rows:
        assert other.labels[row.by].tolist() == compared.labels[row.by].tolist()
        assert math.isnan(row.ari)
        assert math.isnan(row.accuracy)
        assert math.isnan(row.selectivity)
        assert "selectivity" not in other.summary()
        assert row.stability == pytest.approx(compared[row.by].stability)
    assert other.rows[0].as_dict()["ari"] is None


def test_sizes_of_descriptions_and_the_default_embedding():
    made, _ = twofold.images(40)
    model = twofold.net()
    found = cc.groupings(model, twofold.FEATURE, made, density=None, resamples=0)
    assert "the mean over space of 2." in " ".join(found.notes)  # the last convolution
    assert math.isnan(found["activations"].stability)
    assert found["activations"].size == 2
    assert found["last layer"].size == 6
    assert found["saliencies"].size == 6 + 18
    assert found["pixels"].size == 3 * 16 * 16


def test_images_that_do_not_activate_the_feature_are_left_out():
    made, blue = twofold.images(40)
    black = torch.cat([made, torch.zeros(3, 3, 12, 12).double()])
    model = twofold.net()
    with torch.no_grad():
        model[2].bias -= 0.1
    found = cc.groupings(model, twofold.FEATURE, black, known=[*blue.tolist(), True, True, True], **UNTESTED)
    assert all(labels[40:].tolist() == [-1] * 3 for labels in found.labels.values())
    assert found["saliencies"].ari == 1
    assert any("3 of 43 images" in note for note in found.notes)


def test_a_logit_and_a_convolution_that_does_not_run():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.unused = twofold.net(), torch.nn.Linear(2, 3), torch.nn.Conv2d(2, 2, 1)
            torch.nn.init.ones_(self.head.weight)

        def forward(self, x):
            return self.head(self.body(x).relu().amax((2, 3)))

    torch.manual_seed(0)
    made, blue = twofold.images(40)
    feature = cc.Feature("head", 1)
    found = cc.groupings(Net().double().eval(), feature, made, known=blue.tolist(), density=None)
    assert found["activations"].size == 3
    assert found["saliencies"].ari == 1
    assert "the mean over space of body.2." in found.notes[-1]


def test_without_a_convolution_the_embedding_must_be_named():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 12, 4)).double().eval()
    torch.nn.init.ones_(model[1].weight)
    made, _ = twofold.images(40)
    with pytest.raises(cc.ConvCircuitsError, match="name a late layer as embedding"):
        cc.groupings(model, cc.Feature("1", 0), made, density=None)
    assert len(cc.groupings(model, cc.Feature("1", 0), made, density=None, embedding="1").rows) == 5


def test_summary_and_table(compared):
    text = compared.summary()
    assert "held-out accuracy" in text.splitlines()[1]
    assert len(text.splitlines()) == 9 + len(compared.notes)
    assert "<table" in compared._repr_html_()
    assert list(compared.to_pandas().index) == [KNOWN, *DESCRIPTIONS, SHUFFLED]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": [0, 1]}, "40 images but 2 labels"),
        ({"known": ["dog"] * 40}, "All known labels are 'dog'"),
        ({"groups": 1}, "groups must be"),
        ({"groups": 30}, "at least 60"),
        ({"held_out": 1.0}, "held_out must be between 0 and 1"),
        ({"density": 0}, r"density must be in \(0, 1\]"),
        ({"refit": "all"}, "refit must be one of"),
        ({"resamples": -1}, "resamples"),
        ({"embedding": "nine"}, "no layer 'nine'"),
    ],
)
def test_wrong_input_is_named(options, message):
    made, _ = twofold.images(40)
    with pytest.raises(cc.ConvCircuitsError, match=message):
        cc.groupings(twofold.net(), twofold.FEATURE, made, **{**OPTIONS, **options})
