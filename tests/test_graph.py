"""A model as a graph of operations: run again it is the model, and what is dead in a circuit cannot matter."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import DeformConv2d

import convcircuits as cc
from convcircuits.compiler.layout import UnextractableError
from convcircuits.network.capture import Network
from convcircuits.network.reach import survey
from convcircuits.network.recording import record_graph
from meetings import MEETINGS, Two
from nets import NETS

FEATURE = cc.Feature("head", 0)


def two(meet):
    torch.manual_seed(0)
    model = Two(meet)
    model(torch.randn(1, 3, 8, 8))
    return model.double().eval()


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, equal_nan=True)


def images(n=2, shape=(3, 8, 8), seed=1):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------- the graph is the model


@pytest.mark.parametrize("meeting", MEETINGS)
def test_a_graph_run_again_is_the_model(meeting):
    model, x = two(MEETINGS[meeting]), images()
    graph = record_graph(Network(model), FEATURE, images(seed=2))
    with torch.no_grad():
        close(graph.run(x, lambda call: call.compute()), model(x))


@pytest.mark.parametrize("name", NETS)
def test_a_graph_of_a_net_is_the_net_whatever_the_number_of_images(name):
    case = NETS[name]
    model, network = case.build(), Network(case.build())
    layer, unit = case.features[-1]
    for n in (1, 3):
        x = case.images(n)
        graph = record_graph(network, cc.Feature(layer, unit, call=0), case.images(n, seed=1))
        outputs = []
        handle = model.get_submodule(layer).register_forward_hook(lambda m, a, out, to=outputs: to.append(out.clone()))
        with torch.no_grad():
            model(x)
            close(graph.run(x, lambda call: call.compute()), outputs[0])
        handle.remove()


def half(x):
    x[:, :4] = x[:, 4:] * 2
    return x


def overlapping(x):
    first, whole = x[:, :6], x.view(len(x), -1)
    first.mul_(2)
    x[:, 4:].add_(first[:, :4])
    return whole.view_as(x)


def through_data(x):
    x.data.clamp_(0)
    return x


def filled(x):
    out = torch.empty(len(x), 8, *x.shape[2:], dtype=x.dtype)
    views = out[:, :4], out[:, 4:]
    views[0].copy_(x[:, 4:])
    views[1].zero_().add_(x[:, :4])
    return out


WRITES = {
    "half": half,
    "overlapping": overlapping,
    "through data": through_data,
    "filled": filled,
    "in a chain": lambda x: x.relu_().mul_(2).sub_(1).sigmoid_(),
    "index put": lambda x: x.index_put_((torch.tensor([0, 1]), torch.tensor([2, 3])), torch.zeros((), dtype=x.dtype)),
    "a list of maps": lambda x: torch.stack([m.mul_(k + 1) for k, m in enumerate(x.unbind(1))], 1),
    "split and written": lambda x: torch.cat([m.add_(1) for m in x.split(2, 1)] + [x], 1)[:, ::2],
    "transposed": lambda x: x.transpose(2, 3).mul_(2).transpose(2, 3) + x,
    "out": lambda x: torch.add(x, 1, out=torch.empty_like(x)),
    "out of another size": lambda x: torch.cat([x, x.flip(1)], 1, out=x.new_empty(0))[:, 2:10],
    "out into a part": lambda x: (lambda y: (torch.mul(x[:, 4:], 2, out=y[:, :4]), y)[1])(torch.ones_like(x)),
    "two outs": lambda x: torch.sort(x, 1, out=(torch.empty_like(x), x.new_empty(0, dtype=torch.long)))[0],
    "lists": lambda x: (torch._foreach_mul_(list(x.chunk(2, 1)), [2.0, 3.0]), x)[1],
    "lists of each other": lambda x: (torch._foreach_add_([x[:, :4], x[:, 4:]], [x[:, 4:], x[:, :4]]), x)[1],
    "copied lists": lambda x: (
        lambda y: (torch._foreach_copy_(list(y.chunk(2, 1)), [x[:, 4:], x[:, :4]]), y.sigmoid())[1]
    )(torch.zeros_like(x)),
    "lists of results": lambda x: torch.cat(torch._foreach_lerp(x.chunk(2, 1), x.flip(1).chunk(2, 1), 0.3), 1),
}


@pytest.mark.parametrize("how", WRITES)
def test_writes_into_maps_and_views_of_them_are_followed(how):
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)

        def forward(self, x):
            return self.head(WRITES[how](self.a(x)))

    torch.manual_seed(0)
    model = Writing().double().eval()
    x = images()
    graph = record_graph(Network(model), FEATURE, images(seed=2))
    with torch.no_grad():
        close(graph.run(x, lambda call: call.compute()), model(x.clone()))


# ---------------------------------------- circuits


def circuit_of(model, kernels):
    return cc.Circuit.from_masks(model, FEATURE, kernels, input_shape=(3, 8, 8))


@pytest.mark.parametrize("meeting", MEETINGS)
def test_all_relevant_kernels_together_are_the_model(meeting):
    model, x = two(MEETINGS[meeting]), images(3)
    everything = circuit_of(model, survey(Network(model), FEATURE, (3, 8, 8)).kernels)
    assert everything.density == 1
    with torch.no_grad():
        close(cc.activations(model, FEATURE, x, circuit=everything), model(x)[:, 0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("meeting", MEETINGS)
def test_what_a_dead_filter_holds_cannot_matter(meeting, seed):
    """Another bias on dead filters changes nothing, but where a dead filter is a gate: its constant scales."""
    model, x = two(MEETINGS[meeting]), images()
    generator = torch.Generator().manual_seed(seed)
    relevant = survey(Network(model), FEATURE, (3, 8, 8)).kernels
    kernels = {layer: r & (torch.rand(r.shape, generator=generator) < 0.6) for layer, r in relevant.items()}
    gated = any(word in meeting for word in ("gate", "softmax", "norm", "response", "glu", "cosine", "in place"))
    dead = {"a": torch.tensor([0, 3, 4])} | ({} if gated else {"b": torch.tensor([1, 3])})
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer, rows in dead.items():
            kernels[layer][rows] = False
            other.get_submodule(layer).bias[rows] += 3.0
    runs = [cc.activations(m, FEATURE, x, circuit=circuit_of(m, kernels)) for m in (model, other)]
    close(*runs)


@pytest.mark.oracle
@pytest.mark.parametrize("meeting", [name for name in MEETINGS if name != "logarithm"])  # which is NaN
def test_an_extracted_module_is_the_masked_run_or_is_refused(meeting):
    model, x = two(MEETINGS[meeting]), images()
    relevant = survey(Network(model), FEATURE, (3, 8, 8)).kernels
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        kernels = {layer: r & (torch.rand(r.shape, generator=generator) < 0.5) for layer, r in relevant.items()}
        for layer in "ab":
            kernels[layer][torch.randperm(8, generator=generator)[:3]] = False
        circuit = circuit_of(model, kernels)
        if not any(mask.any() for mask in survey(Network(model), FEATURE, (3, 8, 8)).inside(kernels).values()):
            continue
        try:
            module = cc.extract(model, circuit)
        except UnextractableError as error:
            assert str(error).endswith("masked runs (evaluate, activations) still work.")  # noqa: PT017
            assert meeting in REFUSED
            continue
        assert meeting not in REFUSED
        with torch.no_grad():
            close(module(x), cc.activations(model, FEATURE, x, circuit=circuit))


REFUSED = {
    "added up at places",
    "beside ones",
}


def sampled(net, a, b):
    """Samples a map by a grid that is made for so many images."""
    grid = F.affine_grid(torch.eye(2, 3).to(a).expand(len(a), 2, 3), list(a.shape), align_corners=False)
    return F.grid_sample(a, grid, align_corners=False) + b


def test_what_is_made_for_a_number_of_images_is_measured_by_masked_runs_that_are_said_and_not_extracted():
    model, x = two(sampled), images(3)
    kernels = survey(Network(model), FEATURE, (3, 8, 8)).kernels
    kept = {layer: kernels[layer] & (torch.arange(8) % 3 > 0)[:, None] for layer in "ab"}
    circuit = circuit_of(model, kernels | kept)
    report = cc.evaluate(model, circuit, x)
    assert report.provenance["run"] == "masked"
    assert "cannot be written as a module" in report.provenance["run_reason"]
    full, part = cc.activations(model, FEATURE, x), cc.activations(model, FEATURE, x, circuit=circuit)
    assert report.r2 == pytest.approx(float(1 - (full - part).square().sum() / (full - full.mean()).square().sum()))
    with pytest.raises(UnextractableError, match="cannot be written as a module"):
        cc.extract(model, circuit)


class ChannelsLast(nn.Module):
    """Flattens a map whose channels lie last, as ported networks do: a block is of all channels."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 2)

    def forward(self, x):
        return self.head(self.a(x).permute(0, 2, 3, 1).flatten(1))


def test_a_dead_channel_of_a_block_of_several_adds_nothing():
    torch.manual_seed(0)
    model, x = ChannelsLast().double().eval(), images()
    kernels = dict(survey(Network(model), FEATURE, (3, 8, 8)).kernels)
    kernels["a"] = kernels["a"] & (torch.arange(8) % 3 > 0)[:, None]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.a.bias[::3] += 3.0
        runs = [cc.activations(m, FEATURE, x, circuit=circuit_of(m, kernels)) for m in (model, other)]
        close(*runs)
        other.a.weight[::3], other.a.bias[::3] = 0, 0
        close(runs[0], other(x)[:, 0])
        close(cc.extract(model, circuit_of(model, kernels))(x), runs[0])


CONSTANTS = {
    "coordinates": lambda net, a, b: torch.cat([a + b, torch.linspace(-1, 1, 6).to(a).expand(len(a), 2, 6, 6)], 1),
    "ones": lambda net, a, b: torch.cat([torch.ones_like(a[:, :3]), a, b], 1),
    "padded with ones": lambda net, a, b: F.pad(a + b, (0, 0, 0, 0, 1, 2), value=1.0),
    "a learned map": lambda net, a, b: torch.cat([a * b, net.scale.expand(len(a), -1, 6, 6) + 1], 1),
    "one-hot": lambda net, a, b: torch.cat([a, b, F.one_hot(torch.arange(6), 6).to(a).expand(len(a), 1, 6, 6)], 1),
}


@pytest.mark.parametrize("how", CONSTANTS)
def test_a_kernel_that_reads_a_constant_is_part_of_its_filters_bias(how):
    """It has no path from the image: it is not counted, runs with its filter, and goes with it."""
    model, x = two(CONSTANTS[how]), images()
    channels = model.head.weight.shape[1]
    found = survey(Network(model), FEATURE, (3, 8, 8))
    constant = channels - (16 if how in ("ones", "one-hot") else 8)
    assert int(found.kernels["head"].sum()) == channels - constant
    assert int(found.constant["head"][0].sum()) == constant
    everything = circuit_of(model, found.kernels)
    with torch.no_grad():
        close(cc.activations(model, FEATURE, x, circuit=everything), model(x)[:, 0])
        close(cc.activations(model, FEATURE, x, circuit=everything, effective=False), model(x)[:, 0])
    nothing = circuit_of(model, {})
    assert not cc.activations(model, FEATURE, x, circuit=nothing).any()


def coordinates(a, side=6):
    """Constants beside a map, as CoordConv joins them."""
    line = torch.linspace(-1, 1, side).to(a)
    both = torch.stack(torch.meshgrid(line, line, indexing="ij"))
    return torch.cat([a, both.expand(len(a), 2, side, side)], 1)


def wider(b):
    return torch.cat([b, b[:, :2]], 1)


SCALED = {
    "product": lambda net, a, b: coordinates(a) * wider(b),
    "product on the left": lambda net, a, b: wider(b) * coordinates(a),
    "relu": lambda net, a, b: coordinates(a) * F.relu(wider(b)),
    "one for all channels": lambda net, a, b: coordinates(a) * b.mean(1, keepdim=True),
    "one for all positions": lambda net, a, b: coordinates(a) * wider(b).mean((2, 3), keepdim=True),
    "of two": lambda net, a, b: torch.addcmul(wider(a), coordinates(a), wider(b)),
    "written": lambda net, a, b: a.index_fill(1, torch.tensor([3]), 2.0) * b,
    "written over": lambda net, a, b: (lambda y: (y[:, 2:4].copy_(coordinates(a)[:, 8:]), y)[1])(a.clone()) * b,
    "padded": lambda net, a, b: F.pad(a, (0, 0, 0, 0, 1, 1), value=2.0) * wider(b),
    "gathered": lambda net, a, b: coordinates(a)[:, [8, 0, 9]] * b[:, :3],
    "sigmoid": lambda net, a, b: coordinates(a) * torch.sigmoid(wider(b)),
    "gated linear unit": lambda net, a, b: F.glu(torch.cat([coordinates(a), wider(b)], 1), 1),
    "constant gate": lambda net, a, b: wider(a) * torch.sigmoid(coordinates(b)),
    "divided": lambda net, a, b: coordinates(a) / (1 + wider(b).square()),
    "divided by constants": lambda net, a, b: wider(a) / (3 + coordinates(b)),
    "normalised": lambda net, a, b: F.normalize(torch.cat([coordinates(a), b], 1), dim=1),
    "by a root mean square": lambda net, a, b: F.rms_norm(
        torch.cat([coordinates(a), b], 1).movedim(1, -1), (18,)
    ).movedim(-1, 1),
}


@pytest.mark.parametrize("how", SCALED)
def test_a_constant_that_something_live_scales_is_live(how):
    model, x = two(SCALED[how]), images()
    found = survey(Network(model), FEATURE, (3, 8, 8))
    assert bool(found.kernels["head"][0].all())
    with torch.no_grad():
        close(cc.activations(model, FEATURE, x, circuit=circuit_of(model, found.kernels)), model(x)[:, 0])
    assert not cc.activations(model, FEATURE, x, circuit=circuit_of(model, {})).any()


@pytest.mark.parametrize("how", list(SCALED)[:10])
def test_a_constant_that_something_dead_scales_is_dead(how):
    """Where dead filters hold zero as they are, the circuit is the model without their weights."""
    model, x = two(SCALED[how]), images()
    with torch.no_grad():
        model.a.bias.zero_()
        model.b.bias.zero_()
    kernels = dict(survey(Network(model), FEATURE, (3, 8, 8)).kernels)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        kept = {layer: kernels[layer] & (torch.rand(8, 1, generator=generator) < 0.6) for layer in "ab"}
        kept["head"] = kernels["head"] & (torch.rand(kernels["head"].shape, generator=generator) < 0.8)
        other = copy.deepcopy(model)
        with torch.no_grad():
            for layer, mask in kept.items():
                other.get_submodule(layer).weight *= mask[:, :, None, None]
            expected = other(x)[:, 0]
        close(cc.activations(model, FEATURE, x, circuit=circuit_of(model, kept)), expected)


FOLLOWED = {
    "gathered at computed places": lambda net, a, b: a.gather(1, b.argsort(1)) + b,
    "a computed place for all": lambda net, a, b: a.gather(1, b.argmax(1, keepdim=True).expand(-1, 3, -1, -1)),
    "along a dimension": lambda net, a, b: torch.take_along_dim(a, b.argsort(2), 2),
    "quantile": lambda net, a, b: a - b.quantile(0.5, dim=1, keepdim=True),
    "winners": lambda net, a, b: torch.zeros_like(a).scatter(1, b.topk(2, 1)[1], 1.0) * a,
    "added at computed places": lambda net, a, b: a.scatter_add(1, b.argsort(1)[:, :2, :3], a[:, :2, :3]),
    "masked out": lambda net, a, b: a.masked_fill(b < 0, 0.0) + a.index_put((b > 1,), torch.tensor(2.0).to(a)),
    "masked positions": lambda net, a, b: (
        a.movedim(1, -1).index_put((b.mean(1) < 0,), torch.tensor(0.0).to(a)).movedim(-1, 1)
    ),
    "unpooled": lambda net, a, b: F.max_unpool2d(*F.max_pool2d(a, 2, return_indices=True), 2) + b,
    "looked up": lambda net, a, b: a + F.embedding(b.argmax(1), torch.eye(8).to(a)).movedim(-1, 1),
    "rows of a table": lambda net, a, b: a + torch.eye(8).to(a)[b.argmax(1)].movedim(-1, 1),
    "parts of each image": lambda net, a, b: (
        a[torch.arange(len(a))[:, None], b.mean((2, 3)).argsort(1)[:, :4]] + b[:, :4]
    ),
    "of each channel": lambda net, a, b: a.flatten(2)[
        torch.arange(len(a))[:, None, None], torch.arange(8)[:, None], b.flatten(2).argsort(2)
    ].view_as(a),
    "counted in bits": lambda net, a, b: a + torch.gcd((b * 9).long() << 1, (a * 9).long()),
    "parts of places": lambda net, a, b: a + b.argsort(1)[:, :1].expand_as(a),
    "a norm that resizes its outputs": lambda net, a, b: nn.CrossMapLRN2d(3)(a) + b,
    "leaky at random in training": lambda net, a, b: F.rrelu(a) + F.rrelu(b, inplace=True),
    "added to a product": lambda net, a, b: torch.baddbmm(
        a.flatten(1, 2), b.flatten(1, 2), torch.eye(6).to(a).flip(0).expand(len(a), -1, -1)
    ).view_as(a),
}


@pytest.mark.parametrize("how", FOLLOWED)
def test_what_was_refused_without_need_is_followed(how):
    model, x = two(FOLLOWED[how]), images(3)
    kernels = dict(survey(Network(model), FEATURE, (3, 8, 8)).kernels)
    assert all(bool(kernels[layer].any(1).all()) for layer in ("ab" if how != "unpooled" else "a"))
    with torch.no_grad():
        close(cc.activations(model, FEATURE, x, circuit=circuit_of(model, kernels)), model(x)[:, 0])
    kept, other = {layer: k.clone() for layer, k in kernels.items()}, copy.deepcopy(model)
    for layer, rows in (("a", [0, 5]), ("b", [1, 3])):
        kept[layer][rows] = False
        with torch.no_grad():
            other.get_submodule(layer).bias[rows] += 3.0
    close(*[cc.activations(m, FEATURE, x, circuit=circuit_of(m, kept)) for m in (model, other)])


# ---------------------------------------- weights that are no kernels


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.conv, self.rnn = nn.Conv2d(3, 8, 3), kind(8, 6, batch_first=True, **options)
        self.last = nn.Linear(12 if options.get("bidirectional") else 6, 4)

    def forward(self, x):
        return self.last(self.rnn(self.conv(x).flatten(2).transpose(1, 2))[0][:, -1])


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_refused_and_carries_features_before_it(kind, options):
    model = Recurrent(kind, **options).double().eval()
    with pytest.raises(cc.ConvCircuitsError, match="rnn is a recurrent layer"):
        cc.score(model, cc.Feature("last", 0), images())
    assert cc.score(model, cc.Feature("conv", 0), images()).relevant == 3


@pytest.mark.parametrize("masked", [False, True])
def test_a_deformable_convolution_is_refused(masked):

    class Deformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.deformed = nn.Conv2d(3, 8, 3), DeformConv2d(8, 4, 3, padding=1)
            self.offset, self.by = nn.Conv2d(8, 18, 3, padding=1), nn.Conv2d(8, 9, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            return self.deformed(y, self.offset(y), torch.sigmoid(self.by(y)) if masked else None)

    model = Deformed().double().eval()
    with pytest.raises(cc.ConvCircuitsError, match="deformed multiplies by a weight with deform_conv2d"):
        cc.score(model, cc.Feature("deformed", 0), images())
    assert cc.score(model, cc.Feature("offset", 0), images()).relevant == 32


WEIGHTS = {
    "tensordot": lambda y, w: torch.tensordot(y, w, dims=([1], [0])).movedim(-1, 1),
    "inner": lambda y, w: torch.inner(y.movedim(1, -1), w).movedim(-1, 1),
    "transposed": lambda y, w: (y.movedim(1, -1) @ w.t()).movedim(-1, 1),
    "unfolded": lambda y, w: (w.repeat(1, 9) @ F.unfold(y, 3)).reshape(len(y), 8, 4, 4),
    "convolved by torch.ops": lambda y, w: torch.ops.aten.convolution(
        y, w[:, :, None, None], None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    ),
}


@pytest.mark.parametrize("how", WEIGHTS)
def test_a_product_with_a_weight_that_is_no_kernel_call_is_refused(how):
    model = two(lambda net, a, b: WEIGHTS[how](a + b, net.scale[:, :, 0] * torch.ones(8, 8, dtype=a.dtype)))
    with pytest.raises(cc.ConvCircuitsError, match="multiplies by a weight with"):
        survey(Network(model), FEATURE, (3, 8, 8))


@pytest.mark.parametrize("dynamic", ["weight", "bias"])
def test_weights_that_are_computed_from_the_image_are_refused(dynamic):
    def meet(net, a, b):
        weight, bias = torch.ones(4, 8, 1, 1, dtype=a.dtype), torch.zeros(4, dtype=a.dtype)
        by = b.mean()
        return F.conv2d(a, weight * by, bias) if dynamic == "weight" else F.conv2d(a, weight, bias + by)

    with pytest.raises(cc.ConvCircuitsError, match="from the image"):
        survey(Network(two(meet)), FEATURE, (3, 8, 8))


@pytest.mark.parametrize(
    "cut_off", [lambda b: b.detach(), lambda b: b.data, lambda b: b.argmax(1, keepdim=True), lambda b: (b > 0).to(b)]
)
def test_criteria_that_follow_gradients_do_not_score_what_the_model_cuts_them_off_from(cut_off):
    model = two(lambda net, a, b: a + cut_off(b))
    for criterion in ("gauss_newton", "snip", "actgrad"):
        with pytest.raises(cc.ConvCircuitsError, match=r"No gradient of head:0 reaches b, .* cuts the gradient off"):
            cc.score(model, FEATURE, images(), criterion=criterion)
    assert cc.score(model, FEATURE, images(), criterion="magnitude").relevant == 56


AT_ONCE = {
    "lerp": (
        lambda net, a, b: torch.lerp(a, F.relu(a), torch.sigmoid(b)),
        lambda net, a, b: a + (F.relu(a) - a) * torch.sigmoid(b),
    ),
    "lerp in place": (
        lambda net, a, b: a.lerp_(end=F.relu(a), weight=torch.sigmoid(b)),
        lambda net, a, b: a + (F.relu(a) - a) * torch.sigmoid(b),
    ),
    "addcmul": (
        lambda net, a, b: torch.addcmul(a, a, torch.sigmoid(b), value=2),
        lambda net, a, b: a + 2 * (a * torch.sigmoid(b)),
    ),
    "addcmul in place": (
        lambda net, a, b: a.addcmul_(a.abs(), torch.sigmoid(b)),
        lambda net, a, b: a + a.abs() * torch.sigmoid(b),
    ),
    "addcdiv": (
        lambda net, a, b: a.addcdiv(b, b.abs() + 1, value=-2),
        lambda net, a, b: a - 2 * (b / (b.abs() + 1)),
    ),
}


@pytest.mark.parametrize("how", AT_ONCE)
def test_scaling_and_adding_at_once_is_scaling_and_adding(how):
    """A dead gate, or divisor, stays the constant it is, however the sum is spelled."""
    kernels, x = survey(Network(two(AT_ONCE[how][1])), FEATURE, (3, 8, 8)).kernels, images()
    kept = {"a": kernels["a"].clone(), "b": kernels["b"].clone()}
    kept["a"][:2], kept["b"][1:4] = False, False
    maps, modules = [], []
    for meet in AT_ONCE[how]:
        model = two(meet)
        circuit = circuit_of(model, kernels | kept)
        maps.append(cc.activations(model, FEATURE, x, circuit=circuit))
        with torch.no_grad():
            modules.append(cc.extract(model, circuit)(x))
    assert bool(maps[1].isfinite().all())
    close(*maps)
    close(*modules)
    close(maps[0], modules[0])


def test_masked_runs_of_an_evaluation_are_those_of_activations():
    """A dead gate over a live norm varies with filters that no path counts: both leave them out."""
    norm = (1, 2, 3)
    model, x = two(lambda net, a, b: sampled(net, a, a) * torch.sigmoid(b / b.std(norm, keepdim=True))), images(3)
    kernels = dict(survey(Network(model), FEATURE, (3, 8, 8)).kernels)
    kernels["a"], kernels["b"], kernels["head"] = (k.clone() for k in (kernels["a"], kernels["b"], kernels["head"]))
    kernels["b"][:4], kernels["a"][4:] = False, False
    circuit = circuit_of(model, kernels)
    report = cc.evaluate(model, circuit, x)
    assert report.provenance["run"] == "masked"
    full, part = cc.activations(model, FEATURE, x), cc.activations(model, FEATURE, x, circuit=circuit)
    assert report.r2 == pytest.approx(float(1 - (full - part).square().sum() / (full - full.mean()).square().sum()))


@pytest.mark.parametrize("value", [0.5, 1.0])
def test_padding_channels_with_a_number_is_measured_by_masked_runs(value):
    model, x = two(lambda net, a, b: F.pad(a[:, :6], (0, 0, 0, 0, 1, 1), value=value) + b), images(3)
    circuit = circuit_of(model, survey(Network(model), FEATURE, (3, 8, 8)).kernels)
    assert cc.evaluate(model, circuit, x).r2 == pytest.approx(1)
    with pytest.raises(UnextractableError, match=r"a nonzero constant \(constant_pad_nd\)"):
        cc.extract(model, circuit)


UNSCORED = {
    "a layer that also reads a constant": (
        lambda net, a, b: a + b + net.a(torch.ones(1, 3, 8, 8).to(a)),
        "a runs on an input without a gradient",
    ),
    "an operation without a derivative": (
        lambda net, a, b: a.scatter(1, torch.zeros(len(a), 1, 6, 6, dtype=torch.long), b[:, :1], reduce="add"),
        "No gradient of head:0 can be computed",
    ),
}


@pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter")
@pytest.mark.parametrize("what", UNSCORED)
def test_what_criteria_cannot_score_is_an_error_that_says_why(what):
    meet, words = UNSCORED[what]
    with pytest.raises(cc.ConvCircuitsError, match=words):
        cc.score(two(meet), FEATURE, images(), criterion="snip")
