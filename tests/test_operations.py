"""Rules of operations against the slowest oracle: change one element of an input and see what changes.

Products are left out: there a gate alone lets nothing through, which is a decision and no dependence (see test_reach).
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
from convcircuits.network.capture import Network
from convcircuits.network.reach import Paths
from convcircuits.network.recording import record_graph

SHAPE = (2, 4, 3, 6)


class One(nn.Module):
    """One function of a map."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function, self.end = nn.Conv2d(4, 4, 1).double(), function, nn.Identity()

    def forward(self, x):
        y = self.function(self.conv(x))
        return self.end(y[:, :, None, None] if y.dim() == 2 else y.reshape(len(y), y.shape[1], -1, 1))


W = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
GRID = torch.rand(2, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6)) * 2 - 1

EXACT = {
    "mean of channels": lambda x: x.mean(1, keepdim=True),
    "mean of space": lambda x: x.mean((2, 3)),
    "sum of rows": lambda x: x.sum(2),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "variance": lambda x: x.var(3),
    "statistics": lambda x: torch.std_mean(x, 2)[0],
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 3),
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "layer norm of two": lambda x: F.layer_norm(x, (3, 6)),
    "group norm": lambda x: F.group_norm(x, 2),
    "instance norm": F.instance_norm,
    "cumsum": lambda x: x.cumsum(1),
    "logcumsumexp": lambda x: x.logcumsumexp(2),
    "diff": lambda x: x.diff(dim=1),
    "flip": lambda x: x.flip(1, 3),
    "roll": lambda x: x.roll(1, 1),
    "permuted": lambda x: x.permute(0, 2, 3, 1),
    "flat": lambda x: x.flatten(1),
    "shuffled": lambda x: F.channel_shuffle(x, 2),
    "pixel shuffled": lambda x: F.pixel_shuffle(x, 2),
    "unfolded": lambda x: F.unfold(x, 2),
    "folded": lambda x: F.fold(F.unfold(x, 2), (3, 6), 2),
    "padded": lambda x: F.pad(x, (1, 0, 2, 1, 0, 1), value=3.0),
    "reflected": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "circular": lambda x: F.pad(x, (1, 2, 1, 0), mode="circular"),
    "indexed": lambda x: x[:, [2, 0, 0]],
    "gathered": lambda x: x.gather(1, torch.tensor([3, 1]).reshape(1, 2, 1, 1).expand(2, 2, 3, 6)),
    "scattered": lambda x: x.scatter(1, torch.zeros(2, 1, 3, 6, dtype=torch.long), 5.0),
    "added at an index": lambda x: x.index_add(1, torch.tensor([0, 0]), x[:, 2:]),
    "repeated": lambda x: x.repeat_interleave(2, 1),
    "triangle": lambda x: x.tril(),
    "matrix": lambda x: x @ W,
    "added": lambda x: x + x.flip(1),
    "filled": lambda x: x.clone().fill_(2.0) + x[:, :1],
    "average of channels": lambda x: F.avg_pool3d(x[:, None], (2, 1, 1), 1)[:, 0],
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(4).double(), torch.ones(4).double()),
    "activation": lambda x: F.gelu(F.silu(x)),
    "clamped": lambda x: x.clamp(-3, 3),
    "inserted": lambda x: torch.cat([x, x[:, :2]], 1),
    "split": lambda x: torch.stack(x.chunk(2, 1), 1).flatten(1, 2),
    "rows added to a product": lambda x: torch.baddbmm(x.flatten(1, 2)[..., :5], x.flatten(1, 2), W.expand(2, 6, 5)),
    "vector added to a product": lambda x: (
        x + torch.addmv(x[..., 0].flatten(), x.flatten(0, 2), W[:, 0]).view(2, 4, 3, 1)
    ),
    "mask written": lambda x: x.index_put((x > 0.5,), torch.tensor(5.0, dtype=x.dtype)),
    "written": lambda x: x.index_put((torch.tensor([0, 1]), torch.tensor([2, 0])), x[:, 1]),
}
# What a window of a pooling or a resized channel holds is one to the rule; an order depends on all that is ordered.
AT_LEAST = {
    "maximum of channels": lambda x: x.amax(1, keepdim=True),
    "median": lambda x: x.median(1, keepdim=True)[0],
    "kth value": lambda x: x.kthvalue(2, 1)[0],
    "range": lambda x: torch.aminmax(x, dim=2)[1],
    "sorted": lambda x: x.sort(1)[0],
    "topk": lambda x: x.topk(2, 1)[0],
    "gathered by an order": lambda x: x.gather(1, x.argsort(1)),
    "chosen channels": lambda x: x[torch.arange(2)[:, None], x.mean((2, 3)).argsort(1)[:, :3]],
    "chosen apart": lambda x: x[torch.arange(2)[:, None], :, x.mean((1, 3)).argsort(1)].movedim(1, -2),
    "gathered from few": lambda x: x.gather(2, x.argsort(2)[:, :2, :1]),
    "written by an order": lambda x: x.scatter(1, x.argsort(1)[:, :1], 5.0),
    "added by an order": lambda x: x.scatter_add(3, x.argsort(3)[:, :3, :, :2], x[:, 1:, :, 4:]),
    "one-hot": lambda x: torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0),
    "unpooled": lambda x: F.max_unpool2d(*F.max_pool2d(x, (1, 2), return_indices=True), (1, 2)),
    "positions written": lambda x: x.movedim(1, -1).index_put((x[:, 0] > 0,), torch.tensor(5.0).to(x)).movedim(-1, 1),
    "max pooling": lambda x: F.max_pool2d(x, 2),
    "average pooling": lambda x: F.avg_pool2d(x, 2),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, 2),
    "bilinear": lambda x: F.interpolate(x, size=(4, 5), mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "trilinear": lambda x: F.interpolate(x[:, None], size=(6, 3, 6), mode="trilinear")[:, 0],
    "sampled": lambda x: F.grid_sample(x, GRID, align_corners=False),
    "rounded": lambda x: (x * 3).round(),
    "compared": lambda x: torch.where(x > 0, x, -x.flip(1)),
    "real spectrum": lambda x: torch.fft.rfft2(x).real,
    "spectrum": lambda x: torch.view_as_real(torch.fft.fft(x, dim=1)).flatten(3),
}


def record(function):
    model = One(function).eval()
    images = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = record_graph(Network(model), cc.Feature("end", 0), images)
    return Paths(graph), images


def dependence(function):
    """Which elements of the result change with which element of the map: bool (result's, map's), over some draws."""
    generator = torch.Generator().manual_seed(1)
    found = None
    for _ in range(3):
        x = torch.randn(SHAPE, dtype=torch.float64, generator=generator)
        base = function(x.clone())
        table = torch.zeros(base.numel(), x.numel(), dtype=torch.bool)
        for element in range(x.numel()):
            for step in (0.37, -2.1, 40.0):
                changed = x.clone()
                changed.view(-1)[element] += step
                table[:, element] |= (function(changed) != base).flatten()
        found = table if found is None else found | table
    return found


def of_rules(paths, images):
    """The same by the rules, from marks of one element of the kernel call's result."""
    graph, columns = paths.graph, []
    start = next(k for k, node in enumerate(graph.nodes) if node.call is not None)
    (first,) = graph.nodes[start].outputs
    for element in range(images.numel()):
        mark = torch.zeros(images.numel())
        mark[element] = 1
        marks = {first: mark.reshape(graph.shapes[first])}
        for place, node in enumerate(graph.nodes[start + 1 :], start + 1):
            results = paths.through(place, [marks[n] for n in dict.fromkeys(node.inputs)])
            marks |= dict(zip(node.outputs, [(r > 0).float() for r in results], strict=True))
        columns.append(marks[graph.output].expand(graph.shapes[graph.output]).flatten() > 0)
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", EXACT)
def test_a_rule_says_exactly_what_depends(name):
    paths, images = record(EXACT[name])
    assert torch.equal(of_rules(paths, images), dependence(EXACT[name]))


@pytest.mark.parametrize("name", AT_LEAST)
def test_a_rule_leaves_nothing_out(name):
    paths, images = record(AT_LEAST[name])
    said, true = of_rules(paths, images), dependence(AT_LEAST[name])
    assert not (true & ~said).any()
    # One image's values never lead to another's.
    apart = said.reshape(2, -1, 2, images[0].numel())
    assert not apart[0, :, 1].any()
    assert not apart[1, :, 0].any()


# ---------------------------------------- what no list has


@torch.library.custom_op("convcircuits_tests::reversed_sum", mutates_args=())
def reversed_sum(x: torch.Tensor) -> torch.Tensor:
    """Adds to each channel the last but it."""
    return x + x.flip(1)


@torch.library.custom_op("convcircuits_tests::tripled", mutates_args=())
def tripled(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@torch.library.custom_op("convcircuits_tests::total", mutates_args=())
def total(x: torch.Tensor) -> torch.Tensor:
    """Adds up each image."""
    return x.flatten(1).sum(1)


@torch.library.custom_op("convcircuits_tests::unsteady", mutates_args=())
def unsteady(x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand(())


@torch.library.custom_op("convcircuits_tests::picky", mutates_args=())
def picky(x: torch.Tensor) -> torch.Tensor:
    if not bool((x == x.round()).all()):
        raise ValueError("whole numbers only")
    return x * 2


def channels(table):
    """Which channels of a result depend on which of the map, of the first image: (result's, map's)."""
    blocks = table.reshape(SHAPE[0], SHAPE[1], -1, SHAPE[0], SHAPE[1], SHAPE[2] * SHAPE[3])[0, :, :, 0]
    return blocks.any(3).any(1)


@pytest.mark.parametrize("function", [reversed_sum, tripled])
def test_an_unknown_operation_is_measured_channel_by_channel(function):
    paths, images = record(lambda x: function(x))
    said, true = of_rules(paths, images), dependence(function)
    assert torch.equal(channels(said), channels(true))
    assert not (true & ~said).any()
    assert not said.reshape(2, -1, 2, images[0].numel())[0, :, 1].any()


@torch.library.custom_op("convcircuits_tests::first_left_out", mutates_args=())
def first_left_out(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1)


def test_what_an_unknown_operation_leaves_out_is_not_needed():
    model = One(lambda x: first_left_out(x).sum(1, keepdim=True)).eval()
    relevant = cc.Circuit.from_masks(model, cc.Feature("end", 0), {}, input_shape=SHAPE[1:]).relevant
    assert relevant == 12


def test_an_unknown_operation_may_leave_dimensions_out():
    paths, images = record(lambda x: x + total(x)[:, None, None, None])
    said = of_rules(paths, images).reshape(2, -1, 2, images[0].numel())
    assert bool(said[0, :, 0].all() & said[1, :, 1].all())
    assert not said[0, :, 1].any()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (unsteady, "different values each time"),
        (lambda x: picky(x.round()), "whole numbers only"),
        (lambda x: tripled(x.argmax(1, keepdim=True)), r"^The model computes .*tripled.*int64.*Choose a feature"),
    ],
)
def test_an_unknown_operation_that_cannot_be_measured_is_refused(function, words):
    with pytest.raises(cc.ConvCircuitsError, match=words):
        record(lambda x: function(x))
