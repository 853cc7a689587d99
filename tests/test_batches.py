"""What may be given as images, and what is refused."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import convcircuits as cc
from convcircuits.circuits.comparison import compare
from convcircuits.compiler.costs import costs
from convcircuits.maps.feature_visualization import visualize
from convcircuits.network.batches import Batches

X = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Again:
    """Yields its batches at every pass."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class OneShot:
    """Looks like an iterable, but hands out one and the same iterator."""

    def __init__(self, *batches):
        self.iterator = iter(batches)

    def __iter__(self):
        return self.iterator


def batches(images, batch_size=3, dtype=torch.float64):
    return Batches(images, device=torch.device("cpu"), dtype=dtype, batch_size=batch_size)


GIVEN = {
    "tensor": X,
    "list": [X[:2], X[2:]],
    "tuple": (X[:2], X[2:]),
    "pairs": [(X[:2], torch.zeros(2)), [X[2:], "label"]],
    "loader": DataLoader(TensorDataset(X, torch.zeros(7)), batch_size=2),
    "custom": Again(X[:6], X[6:]),
    "with gradient": X.clone().requires_grad_(),
    "channels last": X.clone(memory_format=torch.channels_last),
    "permuted": X[torch.tensor([3, 1, 0, 2, 6, 5, 4])],
    "shuffling loader": DataLoader(
        TensorDataset(X), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "with an empty batch": [X[:0], X[:3], X[3:3], X[3:], X[:0]],
}


@pytest.mark.parametrize("images", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("batch_size", [1, 3, 99])
def test_every_form_gives_the_same_images_and_the_same_description_twice(images, batch_size):
    found = batches(images, batch_size)
    for _ in range(2):
        parts = list(found)
        assert all(1 <= len(part) <= batch_size for part in parts)
        assert not any(part.requires_grad for part in parts)
        whole = torch.cat(parts)
        assert sorted(whole.flatten(1)[:, 0].tolist()) == sorted(X.flatten(1)[:, 0].tolist())
        reference = batches(X)
        list(reference)
        assert found.describe() == reference.describe()
        assert found.describe()["count"] == 7
    assert found.first_shape() == (3, 4, 5)
    assert found.total == (7 if isinstance(images, torch.Tensor) else None)


@pytest.mark.parametrize("other", [X[:6], X + 1e-3, torch.cat([X, X[:1]]), X.flip(3), torch.cat([X[:6], X[:1]])])
def test_other_images_have_another_hash(other):
    one, two = batches(X), batches(other)
    list(one), list(two)
    assert one.describe()["hash"] != two.describe()["hash"]


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_come_in_the_models_dtype(given):
    assert {part.dtype for part in batches(X.to(given), dtype=torch.float32)} == {torch.float32}


BAD = {
    "none": (None, "got NoneType"),
    "number": (3, "got int"),
    "generator": ((x for x in [X]), "one-shot iterator .generator.*DataLoader"),
    "iterator": (iter([X]), "one-shot iterator"),
    "map": (map(torch.relu, [X]), "one-shot iterator"),
    "3-D": (X[0], r"\(N, C, H, W\); got shape \(3, 4, 5\)"),
    "5-D": (X[None], r"got shape \(1, 7"),
    "list of 3-D": ([X[0], X[1]], r"got shape \(3, 4, 5\)"),
    "strings": (["a", "b"], "got str"),
    "dicts": ([{"images": X}], "got dict"),
    "empty tuple": ([()], "got tuple"),
    "no batches": ([], "There are no images"),
    "no images": (X[:0], "There are no images"),
    "empty batches": ([X[:0], X[:0]], "There are no images"),
    "integers": ((X * 9).long(), "torch.int64 look unprepared"),
    "bytes": ((X * 9).byte(), "torch.uint8 look unprepared"),
    "bools": (X > 0, "torch.bool look unprepared"),
    "complex": (X + 1j, "look unprepared"),
    "NaN": (torch.cat([X[:2], X[:1] * math.nan]), "Image 2 of a batch contains NaN or Inf"),
    "Inf": (X.clone().index_fill_(3, torch.tensor([1]), math.inf), "Image 0 of a batch contains NaN or Inf"),
}


@pytest.mark.parametrize(("images", "said"), BAD.values(), ids=BAD)
def test_bad_images_are_refused_with_a_reason(images, said):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        list(batches(images))


@pytest.mark.parametrize("images", [X[:0], [X[:0]], []], ids=["tensor", "batch", "list"])
def test_the_first_shape_of_no_images_is_an_error_of_ours(images):
    with pytest.raises(cc.ConvCircuitsError, match="There are no images"):
        batches(images).first_shape()


def test_an_iterable_that_hands_out_one_iterator_is_refused_too():
    with pytest.raises(cc.ConvCircuitsError, match="one-shot"):
        batches(OneShot(X[:3], X[3:]))


def test_a_loader_that_keeps_its_workers_is_no_one_shot_iterator():
    loader = DataLoader(TensorDataset(X), batch_size=2, num_workers=1, persistent_workers=True)
    found = batches(loader)
    for _ in range(2):
        assert torch.equal(torch.cat(list(found)), X)


class Stream(IterableDataset):
    """Hands out one and the same iterator."""

    def __init__(self):
        self.iterator = iter(X)

    def __iter__(self):
        return self.iterator


def test_a_loader_of_a_stream_is_a_one_shot_iterator():
    with pytest.raises(cc.ConvCircuitsError, match=r"one-shot iterator .DataLoader"):
        batches(DataLoader(Stream(), batch_size=2))


class Dwindling:
    """Yields fewer images at every pass."""

    left = 7

    def __iter__(self):
        self.left -= 1
        return iter([X[: self.left]])


def test_images_that_are_not_the_same_in_every_pass_are_refused():
    found = batches(Dwindling())
    list(found)
    with pytest.raises(cc.ConvCircuitsError, match=r"in one pass and .* in the next"):
        list(found)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, None, "4", math.nan])
def test_a_bad_batch_size_is_refused(batch_size):
    with pytest.raises(cc.ConvCircuitsError, match="batch_size must be a whole number"):
        batches(X, batch_size)


def test_a_batch_size_that_torch_cannot_count_to_is_refused_and_any_other_is_taken():
    with pytest.raises(cc.ConvCircuitsError, match=f"must be a whole number from 1 to {2**63 - 1}; got {2**70}"):
        batches(X, 2**70)
    for size in (2**31, 2**63 - 1):
        assert [len(part) for part in batches(X, size)] == [7]


@pytest.mark.parametrize("images", [X, [X[:5], X[5:]]], ids=["tensor", "list"])
def test_progress_is_told_after_each_batch_of_every_pass(images):
    told, seen, given = [], [], 0

    def tell(*progress):
        told.append(progress)
        seen.append(given)

    found = Batches(images, device=torch.device("cpu"), dtype=torch.float64, batch_size=3, progress=tell)
    for _ in range(2):
        for number, _ in enumerate(found):
            given = number + 1
    total = 7 if isinstance(images, torch.Tensor) else None
    ends = [3, 6, 7] if total else [3, 5, 7]
    assert told == [(done, total) for done in ends] * 2
    assert seen == [1, 2, 3] * 2


class Counted(list):
    total_images = 7


def test_progress_has_the_number_that_images_say_of_themselves():
    told = []
    options = {"device": torch.device("cpu"), "dtype": torch.float64, "batch_size": 3}
    found = Batches(Counted([X[:5], X[5:]]), progress=lambda *progress: told.append(progress), **options)
    assert found.total is None  # only a tensor has any of its images at hand
    list(found)
    assert told == [(3, 7), (5, 7), (7, 7)]


class Unrun(torch.nn.Module):
    """A model that may not run."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 2, 3)

    def forward(self, x):
        raise AssertionError


FEATURE = cc.Feature("conv", 0)
CIRCUIT = cc.Circuit.from_masks(
    torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), cc.Feature("0", 0), {"0": torch.ones(2, 3)}
)
CALLS = {
    "score": lambda progress: cc.score(Unrun(), FEATURE, X, progress=progress),
    "find": lambda progress: cc.find(Unrun(), FEATURE, X, density=0.5, progress=progress),
    "evaluate": lambda progress: cc.evaluate(Unrun(), CIRCUIT, X, progress=progress),
    "activations": lambda progress: cc.activations(Unrun(), FEATURE, X, progress=progress),
    "extract": lambda progress: cc.extract(Unrun(), CIRCUIT, input_shape=(3, 4, 5), progress=progress),
    "diagram": lambda progress: cc.diagram(Unrun(), CIRCUIT, images=X, progress=progress),
    "compare": lambda progress: compare(Unrun(), FEATURE, X, X, criteria=["snip"], densities=[0.5], progress=progress),
    "costs": lambda progress: costs(Unrun(), CIRCUIT, torch.nn.Identity(), (3, 4, 5), progress=progress),
    "visualize": lambda progress: visualize(None, {}, progress=progress),
    "batches": lambda progress: Batches(X, device="cpu", dtype=X.dtype, batch_size=1, progress=progress),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("progress", ["x", 3, True])
def test_a_progress_that_cannot_be_called_is_refused_before_the_work(call, progress):
    with pytest.raises(cc.ConvCircuitsError, match=f"progress must be a function .*; got {progress!r}"):
        call(progress)


def test_a_pass_that_breaks_off_describes_nothing():
    found = batches(X)
    next(iter(found))
    assert found.count == 0
