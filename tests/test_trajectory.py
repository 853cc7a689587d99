"""Maps of images, layer by layer: alignment, what does not change them, and a unit whose mechanisms are known."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes

import convcircuits as cc
import twofold
from convcircuits.subfeatures.trajectories import common_neighbors, disparity, in_line
from convcircuits.zoo.planted import polysemantic

torch.set_num_threads(1)


def maps(count, images=30, seed=0):
    dice = np.random.default_rng(seed)
    return [dice.normal(size=(images, 2)) * (3, 1) + 5 for _ in range(count)], dice.normal(size=images)


def turned(points, angle, mirrored):
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]]) @ np.diag([1, -1 if mirrored else 1])


def plain(points):
    """Centered, with a mean square distance of 1."""
    points = points - points.mean(0)
    return points / math.sqrt((points**2).sum() / len(points))


def apart(points, labels):
    """Return the distance between two groups' centers relative to the spread within them."""
    centers = torch.stack([points[labels == one].mean(0) for one in (0, 1)])
    within = math.sqrt(sum(((points[labels == n] - centers[n]) ** 2).sum() for n in (0, 1)) / len(points))
    return float((centers[0] - centers[1]).norm()) / max(within, 1e-12)


def test_each_map_is_brought_onto_the_one_before_as_scipy_does():
    raw, response = maps(5)
    found = in_line(raw, response)
    for n in range(1, 5):
        matrix, _ = orthogonal_procrustes(plain(raw[n]), found[n - 1])
        np.testing.assert_allclose(found[n], plain(raw[n]) @ matrix, atol=1e-12)
        assert disparity(raw[n], raw[n - 1]) == pytest.approx(procrustes(raw[n], raw[n - 1])[2])


def test_alignment_never_raises_the_distance_and_keeps_every_shape():
    raw, response = maps(8, images=5)
    found = in_line(raw, response)
    for before, points, own in zip(found, found[1:], raw[1:], strict=False):
        assert ((points - before) ** 2).sum() <= ((plain(own) - before) ** 2).sum() + 1e-12
    for points, own in zip(found, raw, strict=True):
        np.testing.assert_allclose(points.mean(0), 0, atol=1e-12)
        assert (points**2).sum() == pytest.approx(len(points))
        np.testing.assert_allclose(points @ points.T, plain(own) @ plain(own).T, atol=1e-12)


@pytest.mark.parametrize("mirrored", [False, True])
def test_turning_mirroring_moving_or_scaling_a_layers_map_changes_nothing(mirrored):
    raw, response = maps(4)
    expected = in_line(raw, response)
    for n in range(1, 4):
        changed = [7 * turned(points, 0.7, mirrored) + 3 if n == m else points for m, points in enumerate(raw)]
        np.testing.assert_allclose(in_line(changed, response), expected, atol=1e-9)
        assert disparity(changed[n], raw[n]) == pytest.approx(0, abs=1e-12)
        assert common_neighbors(changed[n], raw[n], 5) == pytest.approx(1)
    flipped = [raw[0] * (-1, 1), *raw[1:]]
    np.testing.assert_allclose(in_line(flipped, response), expected, atol=1e-9)
    assert ((response - response.mean()) @ expected[0] >= 0).all()


def test_a_map_of_one_point_is_passed_over():
    raw, response = maps(2)
    found = in_line([raw[0], np.ones_like(raw[0]), raw[1]], response)
    assert not found[1].any()
    np.testing.assert_allclose([found[0], found[2]], in_line(raw, response))
    assert math.isnan(disparity(raw[0], found[1]))
    assert math.isnan(common_neighbors(raw[0], found[1], 3))


def test_neighbors_in_common_are_0_by_chance_and_as_a_slow_count_says():
    unlike = [common_neighbors(*maps(2, images=40, seed=seed)[0], 5) for seed in range(60)]
    assert abs(np.mean(unlike)) < 3 * np.std(unlike) / 60**0.5 + 1e-12
    (one, other), _ = maps(2, images=12)
    shared = 0
    for n in range(12):
        nearest = [set(np.argsort(((p - p[n]) ** 2).sum(1))[1:5]) for p in (one, other)]
        shared += len(nearest[0] & nearest[1]) / 4
    assert common_neighbors(one, other, 4) == pytest.approx((shared / 12 - 4 / 11) / (1 - 4 / 11))


def test_images_at_one_place_are_neighbors_in_any_order():
    (one, other), _ = maps(2, images=12)
    one, other = (np.concatenate([points, points[[0] * 4]]) for points in (one, other))
    expected = common_neighbors(one, other, 3)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(16)
        assert common_neighbors(one[order], other[order], 3) == pytest.approx(expected)
    assert common_neighbors(one, one, 3) == pytest.approx(1)


def test_distances_are_those_of_unit_saliencies_as_far_as_two_components_hold_them():
    """The slow way: an eigenvector of the scalar products, for each layer."""
    from convcircuits.subfeatures.saliencies import image_saliencies

    made, _ = twofold.images(14)
    found = cc.trajectory(twofold.net(), twofold.FEATURE, made)
    for n, (layer, part) in enumerate(image_saliencies(twofold.net(), twofold.FEATURE, made).layers.items()):
        unit = part.double() / part.double().norm(dim=1, keepdim=True)
        centered = unit - unit.mean(0)
        centered = centered / centered.norm(dim=1, keepdim=True)
        centered = centered - centered.mean(0)
        sizes, vectors = torch.linalg.eigh(centered @ centered.T)
        places = vectors[:, -2:] * sizes[-2:].sqrt()
        assert float(found.explained[n]) == pytest.approx(float(sizes[-2:].sum() / sizes.sum()))
        scale = math.sqrt(14 / float(sizes[-2:].sum()))
        torch.testing.assert_close(torch.cdist(found.points[n], found.points[n]), scale * torch.cdist(places, places))
        assert found.layers[n] == layer


def test_two_mechanisms_lie_apart_where_they_differ():
    made, blue = twofold.images(60)
    found = cc.trajectory(twofold.net(), twofold.FEATURE, made, groups=["blue" if b else "red" for b in blue])
    assert found.groups == ("blue", "red")
    assert found.labels.tolist() == (~blue).long().tolist()
    assert all(apart(points, found.labels) > 4 for points in found.points)
    assert (found.explained > 0.5).all()
    assert float(found.disparity[1]) < 0.2
    assert float(found.shared[1]) > 0
    assert found.explained.shape == found.kept.shape == (2,)
    assert math.isnan(found.disparity[0])


def test_planted_mechanisms_lie_apart_in_the_layers_of_their_own_channels():
    """In the last layer one kernel of many tells them apart, and the map does not show it."""
    planted = polysemantic(0)
    made, which = planted.labelled_images(40)
    feature = cc.Feature(planted.feature.layer, planted.feature.unit, position="max")
    found = cc.trajectory(planted.model, feature, made)
    kept = which[found.image]
    shuffled = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))]
    assert apart(found.points[1], kept) > 4
    assert min(apart(points, kept) for points in found.points[:3]) > 1.5
    assert max(apart(points, shuffled) for points in found.points) < 1


def test_a_loader_a_batch_size_and_the_order_of_images_change_nothing():
    made, blue = twofold.images(30)
    expected = cc.trajectory(twofold.net(), twofold.FEATURE, made, groups=blue.tolist())
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(made[order], blue[order]), batch_size=7)
    found = cc.trajectory(twofold.net(), twofold.FEATURE, loader, groups=blue[order].tolist(), batch_size=3)
    torch.testing.assert_close(found.points, expected.points[:, order], atol=1e-4, rtol=1e-4)
    for name in ("explained", "kept", "disparity", "shared"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True, atol=1e-4, rtol=1e-4)
    assert found.groups == expected.groups == ("False", "True")
    assert found.labels.tolist() == expected.labels[order].tolist()


def test_rows_tables_and_what_is_said():
    made, _ = twofold.images(20)
    silent = torch.full((2, 3, 12, 12), -1.0).double()
    parts = cc.split(twofold.net(), twofold.FEATURE, made, groups=2, densities=[0.4], shuffles=1)
    found = cc.trajectory(twofold.net(), twofold.FEATURE, torch.cat([silent, made]), groups=["", None, *"ab" * 10])
    assert len(found) == 20
    assert found.image.tolist() == list(range(2, 22))
    rows = found.rows()
    assert list(rows[0]) == ["image", "layer", "x", "y", "response", "group"]
    assert [(row["image"], row["layer"]) for row in rows[:3]] == [(2, "0"), (3, "0"), (4, "0")]
    assert [row["group"] for row in rows[:2]] == ["a", "b"]
    assert [[row["x"], row["y"]] for row in rows] == found.points.flatten(0, 1).tolist()
    assert found.by_layer()[0]["disparity"] is None
    assert "on 2 of 22 images; they are left out" in found.summary()
    assert "vary much" in found.summary()
    assert found.to_pandas().shape == (40, 6)
    assert "neighbors shared" in found._repr_html_()
    assert repr(found) == "Trajectory(2:0@max, 20 images, 2 layers, pca)"
    assert found.provenance["images"]["count"] == 22
    again = cc.trajectory(twofold.net(), twofold.FEATURE, made, groups=parts)
    assert again.groups == tuple(parts.circuits)
    assert again.labels.tolist() == parts.labels.tolist()
    whole = cc.trajectory(
        twofold.net(), cc.Feature("2", 0), made
    )  # each image's own maximum, though all were asked for
    torch.testing.assert_close(whole.points, again.points)


def test_a_layer_that_computes_all_images_alike_is_one_point_and_said_to_be():
    model = twofold.net()
    with torch.no_grad():
        model[2].weight[:, 1:] = 0
    made, blue = twofold.images(40)
    found = cc.trajectory(model, twofold.FEATURE, made[~blue])
    assert not found.points[1].any()
    assert math.isnan(found.explained[1])
    assert math.isnan(found.disparity[1])
    assert any(note.startswith("2 computes the feature alike") for note in found.notes)


def test_what_cannot_be_placed_is_refused():
    made, _ = twofold.images(20)
    dark = torch.full((4, 3, 12, 12), -1.0).double()

    def refused(match, images=made, **options):
        with pytest.raises(cc.ConvCircuitsError, match=match):
            cc.trajectory(twofold.net(), twofold.FEATURE, images, **options)

    refused("on 0 of 4 images; to place them by pca it takes at least 3", images=dark)
    refused("on 2 of 6 images; to place", images=torch.cat([dark, made[:2]]))
    refused("method must be one of 'pca', 'umap'; got 'tsne'", method="tsne")
    refused("There are 20 images but 3 groups", groups=["a", "b", "c"])
    refused("There are 20 images but 20 groups", groups="a" * 20)
    refused("seed must be", seed=-1)
    refused("progress must be", progress=3)
    assert len(cc.trajectory(twofold.net(), twofold.FEATURE, made[:3])) == 3


def test_umap_is_asked_for_where_it_is_used(monkeypatch):
    made, _ = twofold.images(24)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(cc.ConvCircuitsError, match=r"pip install 'convcircuits\[umap\]'"):
        cc.trajectory(twofold.net(), twofold.FEATURE, made, method="umap")
    asked = []

    def umap(**options):
        asked.append(options)
        return SimpleNamespace(fit_transform=lambda points: turned(options["init"], 1, True).astype(np.float32))

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=umap))
    with pytest.raises(cc.ConvCircuitsError, match="by umap it takes at least 10"):
        cc.trajectory(twofold.net(), twofold.FEATURE, made[:9], method="umap")
    found = cc.trajectory(twofold.net(), twofold.FEATURE, made, method="umap", seed=5)
    assert [one["random_state"] for one in asked] == [5, 5]
    assert found.method == "umap"
    assert found.explained.isnan().all()
    assert any("UMAP keeps neighbors" in note for note in found.notes)
    expected = cc.trajectory(twofold.net(), twofold.FEATURE, made, seed=5)
    for one, other in zip(found.points, expected.points, strict=True):
        torch.testing.assert_close(torch.cdist(one, one), torch.cdist(other, other), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("copies", [[8, 8], [30, 30, 30], [40, 1]])
def test_umap_places_copies_of_few_images(copies):
    """Of two, the first map is a line, so that one of its axes has no spread."""
    made = twofold.images(6)[0][: len(copies)]
    images = made.repeat_interleave(torch.tensor(copies), 0)
    found = cc.trajectory(twofold.net(), twofold.FEATURE, images, method="umap")
    assert found.points.isfinite().all()
    assert torch.equal(found.points, cc.trajectory(twofold.net(), twofold.FEATURE, images, method="umap").points)
    same = np.repeat(np.arange(len(copies)), copies)
    for points in found.points:
        centers = torch.stack([points[torch.from_numpy(same == one)].mean(0) for one in range(len(copies))])
        assert torch.pdist(centers).min() > 0.1
