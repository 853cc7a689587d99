"""Entering a model: nothing of it changes, and whatever it does is seen as it is."""

import copy
import queue
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convcircuits as cc
import oracles
from convcircuits.network import laws
from convcircuits.network.capture import Network
from nets import NETS, seeded
from states import World, everything, state_of

torch.set_num_threads(1)


# ---------------------------------------- nothing changes


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ["plain", "residual", "twice", "standardised", "flat_head", "se_linear", "nested"])
def test_no_public_call_changes_model_images_or_world(name, training, tmp_path):
    case = NETS[name]
    model, images, feature = case.build().train(training), case.images(3), cc.Feature(*case.features[-1])
    model.get_submodule(case.features[-1][0]).eval()  # a mixture of modes must come back as it was
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: None)
    copied = images.clone()
    for parameter in model.parameters():
        parameter.grad = None
    before = state_of(model)
    for what, call in everything(model, feature, images, tmp_path).items():
        with World():
            call()
        assert state_of(model) == before, what
    assert torch.equal(images, copied)
    assert not images.requires_grad
    assert not vars(images)


def test_gradients_that_are_there_stay_as_they_are():
    case = NETS["residual"]
    model, images, feature = case.build(), case.images(2), cc.Feature("head", 0)
    model(images).sum().backward()
    before = {name: (id(p.grad), p.grad.clone()) for name, p in model.named_parameters()}
    cc.find(model, feature, images, criterion="force", density=0.5)
    cc.score(model, feature, images)
    for name, parameter in model.named_parameters():
        assert id(parameter.grad) == before[name][0]
        assert torch.equal(parameter.grad, before[name][1])


def test_images_that_require_gradients_get_none():
    case = NETS["plain"]
    images = case.images(2).requires_grad_()
    cc.score(case.build(), cc.Feature("features.3", 1), images)
    assert images.requires_grad
    assert images.grad is None


class Failing(nn.Module):
    """Fails at one call of forward, counted over all copies."""

    def __init__(self, at):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.log = Log(at)

    def forward(self, x):
        x = self.bn(self.conv(x))
        self.log.tick()
        return self.head(F.relu(x))


class Log:
    def __init__(self, at):
        self.at, self.calls = at, 0

    def __deepcopy__(self, memo):
        return self

    def tick(self):
        self.calls += 1
        if self.calls == self.at:
            raise MemoryError("out of everything")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_exception_in_the_middle_leaves_nothing_behind(at, training):
    model = seeded(lambda: Failing(at), 0)().train(training)
    images, feature = NETS["plain"].images(5), cc.Feature("head", 1)
    before = state_of(model)
    with World(), pytest.raises((MemoryError, cc.ConvCircuitsError), match="out of everything"):
        cc.score(model, feature, images, batch_size=2)
    assert state_of(model) == before
    model.log.at = 0
    circuit = cc.find(model, feature, images, density=0.5)
    for call in (
        lambda: cc.score(model, feature, images, circuit=circuit, batch_size=2),
        lambda: cc.evaluate(model, circuit, images, batch_size=2),
        lambda: cc.activations(model, feature, images, circuit=circuit, batch_size=2),
        lambda: cc.find(model, feature, images, criterion="force", density=0.5),
    ):
        model.log.at, model.log.calls = 0, 0
        laws._passed.clear()
        call()
        if model.log.calls < at:
            continue  # which enters the model less often: a masked run is one of its graph
        model.log.at, model.log.calls = at, 0
        laws._passed.clear()
        with World(), pytest.raises((MemoryError, cc.ConvCircuitsError), match="out of everything"):
            call()
        assert state_of(model) == before
    model.log.at = 0
    assert cc.find(model, feature, images, density=0.5) == circuit


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_image_that_is_not_finite_is_named_and_leaves_nothing_behind(bad):
    case = NETS["residual"]
    model, images, feature = case.build(), case.images(5), cc.Feature("head", 0)
    before = state_of(model)
    images[3, 1, 2, 2] = bad
    for given in (images, [images[:2], images[2:]]):
        for criterion in ("snip", "random"):
            with pytest.raises(cc.ConvCircuitsError, match="NaN or Inf"):
                cc.score(model, feature, given, criterion=criterion)
    assert state_of(model) == before


class Counting(nn.Module):
    """Writes into a buffer at every forward, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.last = None

    def forward(self, x):
        self.seen += len(x)
        self.last = x
        return self.conv(x)


def test_a_buffer_that_forward_writes_to_is_not_the_users():
    model = seeded(Counting, 0)()
    cc.score(model, cc.Feature("conv", 1), NETS["plain"].images(2))
    assert model.last is None
    assert float(model.seen) == 0


# ---------------------------------------- modes of torch


@pytest.mark.parametrize("criterion", ["snip", "actgrad", "gauss_newton"])
def test_no_grad_frozen_weights_and_train_mode_change_no_figure(criterion):
    for name in ("residual", "flat_head"):
        case = NETS[name]
        model, images, feature = case.build(), case.images(3), cc.Feature(*case.features[-1])
        expected = cc.score(model, feature, images, criterion=criterion)
        circuit = cc.prune(expected, density=0.5)
        report = cc.evaluate(model, circuit, images, fit=images).as_dict()
        with torch.no_grad():
            assert cc.score(model, feature, images, criterion=criterion) == expected
            assert not torch.is_grad_enabled()
        model.requires_grad_(False)
        assert cc.score(model, feature, images, criterion=criterion) == expected
        model.train()
        before = state_of(model)
        assert cc.score(model, feature, images, criterion=criterion) == expected
        assert cc.evaluate(model, circuit, images, fit=images).as_dict() == report
        assert state_of(model) == before
        assert all(module.training for module in model.modules())


def test_inference_mode_is_an_error_that_names_no_grad(tmp_path):
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(2), cc.Feature("features.3", 1)
    circuit = cc.find(model, feature, images, density=0.5)
    with torch.inference_mode():
        for call in (
            lambda: cc.score(model, feature, images),
            lambda: cc.evaluate(model, circuit, images),
            lambda: cc.activations(model, feature, images),
        ):
            with pytest.raises(cc.ConvCircuitsError, match="no_grad"):
                call()


def test_images_that_were_made_in_inference_mode_work():
    case = NETS["plain"]
    model, feature = case.build(), cc.Feature("features.3", 1)
    with torch.inference_mode():
        images = case.images(2).clone()
    expected = cc.score(model, feature, case.images(2), criterion="snip")
    assert cc.score(model, feature, images, criterion="snip") == expected


def test_a_default_device_or_dtype_plays_no_part():
    case = NETS["residual"]
    model, images, feature = case.build(), case.images(2), cc.Feature("head", 0)
    expected = cc.score(model, feature, images)
    torch.set_default_dtype(torch.float64)
    try:
        assert cc.score(model, feature, images).elements == expected.kernels
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=str)
@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "flat_head", "se_conv"])
def test_lower_precision_is_near_float64(name, dtype, near):
    case = NETS[name]
    model, images, feature = case.build(), case.images(4), cc.Feature(*case.features[-1])
    low = case.build().to(dtype)
    for criterion, options in (("snip", {}), ("actgrad", {}), ("gauss_newton", {"centered": True})):
        exact = cc.score(model, feature, images, criterion=criterion, **options)
        rough = cc.score(low, feature, images, criterion=criterion, **options)
        for layer, values in exact.kernels.items():
            kept = ~values.isnan()
            assert rough[layer].dtype == torch.float32
            gap = (rough[layer].double() - values)[kept].abs().max()
            assert gap <= near * values[kept].abs().max() * (3 if criterion == "gauss_newton" else 1), layer
    circuit = cc.find(low, feature, images, criterion="force", density=0.5)
    run = cc.activations(low, feature, images, circuit=circuit)
    assert run.dtype == dtype
    same = cc.Circuit.from_masks(model, feature, dict(circuit.elements), input_shape=case.input_shape)
    expected = cc.activations(model, feature, images, circuit=same)
    assert (run.double() - expected).abs().max() <= near * expected.abs().max()


@pytest.mark.parametrize("name", ["residual", "mobile", "flat_head", "dense"])
def test_channels_last_changes_nothing(name):
    case = NETS[name]
    model, images, feature = case.build(), case.images(2), cc.Feature(*case.features[-1])
    last = case.build().to(memory_format=torch.channels_last)
    for criterion in ("snip", "actgrad", "gauss_newton"):
        a = cc.score(model, feature, images, criterion=criterion)
        b = cc.score(last, feature, images.to(memory_format=torch.channels_last), criterion=criterion, memory=1)
        for layer, values in a.elements.items():
            torch.testing.assert_close(b[layer], values, rtol=1e-9, atol=1e-13, equal_nan=True)
        assert a.provenance["images"] == b.provenance["images"]


# ---------------------------------------- threads


class Waiting(nn.Module):
    """Lets a thread stop in the middle of its forward pass."""

    gate = threading.local()

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        stop = getattr(Waiting.gate, "stop", None)
        if stop is not None:
            stop()
        return self.conv2(x)


@pytest.mark.parametrize("what", ["activations", "score", "force"])
def test_another_thread_sees_the_unmasked_model_in_the_middle_of_a_masked_run(what):
    model, images, feature = seeded(Waiting, 0)(), NETS["plain"].images(2), cc.Feature("conv2", 1)
    circuit = cc.find(model, feature, images, density=0.3)
    calls = {
        "activations": lambda: cc.activations(model, feature, images, circuit=circuit),
        "score": lambda: cc.score(model, feature, images, circuit=circuit),
        "force": lambda: cc.find(model, feature, images, criterion="force", density=0.3, steps=2),
    }
    alone, expected, before = calls[what](), model(images), state_of(model)
    stopped, go, results = queue.Queue(), queue.Queue(), []

    def work():
        def stop():
            stopped.put("stopped")
            go.get(timeout=600)

        Waiting.gate.stop = stop
        try:
            results.append(calls[what]())
        finally:
            stopped.put("done")

    thread = threading.Thread(target=work)
    thread.start()
    stops = 0
    while stopped.get(timeout=600) == "stopped":
        stops += 1
        assert torch.equal(model(images), expected)
        assert torch.equal(cc.activations(model, feature, images), expected[:, 1])
        assert state_of(model) == before
        go.put(None)
    thread.join()
    assert stops >= (2 if what == "force" else 1)  # a silent masked run is one of the model's graph
    (result,) = results
    assert torch.equal(result, alone) if what == "activations" else result == alone


def test_threads_at_once_give_what_each_gives_alone():
    case = NETS["residual"]
    model, images = case.build(), case.images(4)
    features = [cc.Feature("head", unit) for unit in range(3)]
    expected = [cc.score(model, feature, images, criterion="actgrad") for feature in features]
    results = {}

    def work(number):
        results[number] = [
            cc.score(model, features[number % 3], images, criterion="actgrad", batch_size=1 + number) for _ in range(2)
        ]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, scores in results.items():
        for one in scores:
            for layer, values in expected[number % 3].kernels.items():
                torch.testing.assert_close(one[layer], values, rtol=1e-10, atol=1e-14, equal_nan=True)
    assert len(results) == 6


# ---------------------------------------- hooks and wrappings of the user's


def test_the_users_own_hooks_stay_take_part_and_can_be_removed():
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(2), cc.Feature("features.3", 1)
    seen = []
    handle = model.features[0].register_forward_hook(lambda m, a, out: seen.append(out.shape))
    cc.score(model, feature, images)
    del seen[:]
    model(images)
    assert len(seen) == 1
    handle.remove()
    model(images)
    assert len(seen) == 1
    model.features[1].register_forward_hook(lambda m, a, out: out * 0.5)
    halved = cc.activations(model, feature, images)
    with torch.no_grad():
        torch.testing.assert_close(halved, model.features[:4](images)[:, 1])


@pytest.mark.parametrize("norm", ["parametrized", "spectral", "old style"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_computed_weights_are_scored_as_the_weights_that_they_give(norm):
    def make():
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        if norm == "parametrized":
            nn.utils.parametrizations.weight_norm(net[2])
        elif norm == "spectral":
            nn.utils.parametrizations.spectral_norm(net[2])
        else:
            nn.utils.weight_norm(net[2])
        return net

    model, images, feature = seeded(make, 0)(), NETS["plain"].images(2), cc.Feature("2", 1)
    model(images)
    plain = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), 0)()
    with torch.no_grad():
        for index in (0, 2):
            plain[index].weight.copy_(model[index].weight)
            plain[index].bias.copy_(model[index].bias)
    before = state_of(model)
    scores = cc.score(model, feature, images, criterion="actgrad")
    assert state_of(model) == before
    expected = cc.score(plain, feature, images, criterion="actgrad")
    assert list(scores.elements) == ["0", "2"]
    for layer, values in expected.kernels.items():
        torch.testing.assert_close(scores[layer], values, rtol=1e-9, atol=1e-13, equal_nan=True)


@pytest.mark.slow
def test_a_compiled_model_is_the_model_it_wraps():
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(2), cc.Feature("features.3", 1)
    compiled = torch.compile(model)
    assert cc.score(compiled, feature, images).elements == cc.score(model, feature, images).elements


def test_a_private_copy_shares_every_parameter_and_no_module():
    model = NETS["residual"].build()
    network = Network(model)
    theirs, ours = dict(model.named_parameters()), dict(network.module.named_parameters())
    assert list(ours) == list(theirs)
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in theirs)
    assert {id(m) for m in network.module.modules()}.isdisjoint(id(m) for m in model.modules())


# ---------------------------------------- layers that run several times


@pytest.mark.parametrize(
    ("name", "layer", "calls"), [("twice", "shared", 2), ("twice", "relu", 3), ("nested", "relu", 4)]
)
def test_a_feature_of_a_layer_that_runs_several_times_must_name_its_call(name, layer, calls):
    case = NETS[name]
    model, images = case.build(), case.images(2)
    for call in (
        lambda: cc.score(model, cc.Feature(layer, 1), images),
        lambda: cc.activations(model, cc.Feature(layer, 1), images),
    ):
        with pytest.raises(cc.ConvCircuitsError, match=f"{calls} times.*call=k.*0 to {calls - 1}"):
            call()
    for number in range(calls):
        run = cc.activations(model, cc.Feature(layer, 1, call=number), images)
        torch.testing.assert_close(run, oracles.full_map(model, layer, 1, images, call=number))
    with pytest.raises(cc.ConvCircuitsError, match=f"{calls} times"):
        cc.activations(model, cc.Feature(layer, 1, call=calls), images)


# ---------------------------------------- what cannot be entered


class Wrapped(nn.Module):
    """Something foreign between two convolutions."""

    def __init__(self, middle):
        super().__init__()
        self.conv, self.middle, self.head = nn.Conv2d(3, 4, 3), middle, nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.middle(self.conv(x)))


class Rows(nn.Module):
    """A 1-D convolution over rows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x.flatten(2)).reshape(x.shape)


class Volume(nn.Module):
    """A 3-D convolution over a volume of one slice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x):
        return self.conv(x[:, :, None])[:, :, 0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize(
    ("middle", "words"),
    [
        (lambda: nn.ConvTranspose2d(4, 4, 3), "middle is a transposed convolution"),
        (Rows, "middle.conv is a 1-D convolution"),
        (Volume, "middle.conv is a 3-D convolution"),
        (Attention, "attention"),
    ],
    ids=["transposed", "1-D", "3-D", "attention"],
)
def test_a_layer_that_is_not_followed_is_an_error_only_before_the_feature(middle, words):
    model, images = seeded(lambda: Wrapped(middle()), 0)(), NETS["plain"].images(2)
    for call in (
        lambda: cc.score(model, cc.Feature("head", 0), images),
        lambda: cc.activations(model, cc.Feature("head", 0), images),
    ):
        with pytest.raises(cc.ConvCircuitsError, match=words):
            call()
    scores = cc.score(model, cc.Feature("conv", 2), images, criterion="snip")
    expected = oracles.snip(nn.Sequential(model.conv), "0", 2, images)["0"]
    torch.testing.assert_close(scores["conv"][2], expected[2], rtol=1e-9, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_and_traced_models_are_errors_that_say_what_to_give():
    case = NETS["plain"]
    model, images, feature = case.build(), case.images(2), cc.Feature("features.3", 1)
    with torch.no_grad():
        frozen = [torch.jit.script(model), torch.jit.trace(model, images)]
    for scripted in frozen:
        with pytest.raises(cc.ConvCircuitsError, match="the model from before"):
            cc.score(scripted, feature, images)


@pytest.mark.parametrize(
    "model",
    [None, "alexnet", lambda x: x, nn.Conv2d, nn.ReLU()],
    ids=["none", "text", "function", "class", "no parameters"],
)
def test_what_is_no_model_is_an_error(model):
    with pytest.raises(cc.ConvCircuitsError):
        cc.score(model, cc.Feature("0", 1), NETS["plain"].images(2))


class Locked(nn.Module):
    """Holds a lock, which cannot be copied."""

    def __init__(self):
        super().__init__()
        self.conv, self.lock = nn.Conv2d(3, 2, 3), threading.Lock()

    def forward(self, x):
        return self.conv(x)


def test_a_model_that_cannot_be_copied_is_an_error_that_says_why():
    with pytest.raises(cc.ConvCircuitsError, match="lock"):
        cc.score(Locked(), cc.Feature("conv", 1), torch.zeros(1, 3, 8, 8))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.rest = nn.Identity()

    def forward(self, x):
        return self.rest((self.conv(x), 1))[0].flatten(1).unsqueeze(1)


@pytest.mark.parametrize("layer", ["rest"])
def test_an_output_that_is_no_map_is_an_error(layer):
    with pytest.raises(cc.ConvCircuitsError, match="tuple"):
        cc.score(seeded(Pair, 0)(), cc.Feature(layer, 1), NETS["plain"].images(2))


@pytest.mark.parametrize(
    ("shape", "words"), [((2, 4, 8, 8), "3 channels"), ((2, 3, 2, 2), "small|larger"), ((3, 8, 8), "N, C, H, W")]
)
def test_images_that_do_not_fit_are_errors(shape, words):
    case = NETS["plain"]
    with pytest.raises(cc.ConvCircuitsError, match=words):
        cc.score(case.build(), cc.Feature("features.5", 1), torch.zeros(shape, dtype=torch.float64))


# ---------------------------------------- names


def test_any_of_a_shared_modules_names_may_be_used():
    case = NETS["nested"]
    model, images = case.build(), case.images(2)
    runs = [
        cc.activations(model, cc.Feature(name, 1, call=3), images) for name in ("relu", "stage.0.act", "stage.1.act")
    ]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_a_bare_sequential_has_numbers_for_names():
    conv = seeded(lambda: nn.Sequential(nn.Conv2d(3, 2, 3)), 0)()
    images = NETS["plain"].images(2)
    scores = cc.score(conv, cc.Feature("0", 1), images, criterion="snip")
    assert list(scores.elements) == ["0"]


def test_models_of_models_and_lists_of_modules_keep_their_names():
    model = nn.Sequential(NETS["nested"].build(), nn.ModuleList([copy.deepcopy(nn.Identity())])[0])
    scores = cc.score(model, cc.Feature("1", 1), NETS["nested"].images(2), criterion="snip")
    assert list(scores.elements) == [
        "0.stage.0.body.first",
        "0.stage.0.body.second",
        "0.stage.1.body.first",
        "0.stage.1.body.second",
        "0.head",
    ]


class Multiplying(nn.Module):
    """Uses a weight where it cannot be followed."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.weight, self.how = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(4, 5)), how
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        y = self.conv(x).mean((2, 3))
        if self.how == "@":
            y = y @ self.weight
        elif self.how == "einsum":
            y = torch.einsum("nc,cd->nd", y, self.weight)
        else:
            y = torch.addmm(torch.zeros(5, dtype=y.dtype), y, self.weight)
        return self.last(y)


@pytest.mark.parametrize("how", ["@", "einsum", "addmm"])
def test_a_weight_that_is_used_elsewhere_is_an_error_that_says_so(how):
    model, images = Multiplying(how).double().eval(), NETS["plain"].images(2)
    with pytest.raises(cc.ConvCircuitsError, match=r"multiplies by a weight with .*nn\.Linear"):
        cc.score(model, cc.Feature("last", 0), images)


def test_reading_a_circuit_gives_copies():
    case = NETS["plain"]
    circuit = cc.find(case.build(), cc.Feature("features.3", 1), case.images(2), density=0.5)
    kept = len(circuit)
    circuit["features.0"][:] = False
    for mask in circuit.elements.values():
        mask[:] = False
    assert len(circuit) == kept


# ---------------------------------------- wrapped and converted models


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()


def test_a_compiled_or_scripted_part_is_entered_or_refused():
    images = torch.randn(2, 3, 10, 10)
    expected = cc.score(small(), cc.Feature("2", 1), images).elements
    model = small()
    compiled = nn.Sequential(torch.compile(model[:2]), model[2])
    found = cc.score(compiled, cc.Feature("1", 1), images).elements
    for a, b in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    assert type(compiled[0]).__name__ == "OptimizedModule"
    model = small()
    model.compile()
    assert cc.score(model, cc.Feature("2", 1), images).elements == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model[1] = torch.jit.script(nn.ReLU())
    with pytest.raises(cc.ConvCircuitsError, match="Scripted"):
        cc.score(model, cc.Feature("2", 1), images)


def test_data_parallel_models_work_by_their_own_names():
    images = torch.randn(2, 3, 10, 10)
    found = cc.score(nn.DataParallel(small()), cc.Feature("module.2", 1), images).elements
    expected = cc.score(small(), cc.Feature("2", 1), images).elements
    assert list(found) == ["module.0", "module.2"]
    for a, b in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_quantised_models_are_refused_from_the_quantised_layer_on():
    images = torch.randn(2, 3, 10, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear})
        stubs = nn.Sequential(torch.ao.quantization.QuantStub(), *small(), torch.ao.quantization.DeQuantStub()).eval()
        stubs.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
        prepared = torch.ao.quantization.prepare(stubs)
        prepared(images)
        static = torch.ao.quantization.convert(prepared)
    with pytest.raises(cc.ConvCircuitsError, match="5 is quantized"):
        cc.score(dynamic, cc.Feature("5", 1), images)
    assert cc.score(dynamic, cc.Feature("2", 1), images).relevant == 16
    with pytest.raises(cc.ConvCircuitsError, match=r"no floating-point parameters|quantized"):
        cc.score(static, cc.Feature("3", 1), images)


@pytest.mark.parametrize(("conv", "shape"), [(nn.Conv1d, (2, 3, 10)), (nn.Conv3d, (2, 3, 8, 8, 8))])
def test_images_of_other_dimensions_are_refused(conv, shape):
    model = nn.Sequential(conv(3, 4, 3), nn.ReLU(), conv(4, 4, 3)).eval()
    with pytest.raises(cc.ConvCircuitsError, match=r"\(N, C, H, W\)"):
        cc.score(model, cc.Feature("2", 1), torch.randn(shape))
