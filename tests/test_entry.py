"""What a model may do as it runs, and what may be done to it before: results are right and nothing of it shows."""

import copy
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import convcircuits as cc
from cases import HEAD
from convcircuits.network.surroundings import environment_kept
from convcircuits.zoo.layers import list_layers
from nets import NETS, Net, net, seeded
from states import World, everything, state_of

X = NETS["plain"].images(4)


def assert_same_results(model, plain, feature=HEAD, plain_feature=HEAD, images=X):
    """Compare every figure of a model with that of one which computes the same in the plainest way."""
    for criterion in ("actgrad", "snip", "gauss_newton", "magnitude"):
        found = cc.score(model, feature, images, criterion=criterion)
        expected = cc.score(plain, plain_feature, images, criterion=criterion)
        for (_, a), (_, b) in zip(found.kernels.items(), expected.kernels.items(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14, equal_nan=True)
    circuit, other = cc.prune(found, density=0.5), cc.prune(expected, density=0.5)
    torch.testing.assert_close(
        cc.activations(model, feature, images, circuit=circuit),
        cc.activations(plain, plain_feature, images, circuit=other),
    )
    assert cc.evaluate(model, circuit, images).r2 == pytest.approx(cc.evaluate(plain, other, images).r2)
    whole = cc.evaluate(model, cc.prune(found, density=1.0), images)
    assert whole.r2 == pytest.approx(1, abs=1e-12)


def untouched(model, folder, feature=HEAD):
    """Run everything; compare the model, with all that it holds, and the environment with what they were."""
    before, held, environment = state_of(model), all_held(model), dict(os.environ)
    for what, call in everything(model, feature, X, folder).items():
        with World():
            call()
        assert state_of(model) == before, what
        assert all_held(model) == held, what
    assert dict(os.environ) == environment


def all_held(model):
    """Whatever modules hold besides modules, parameters and buffers, tensors as lists."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            return value.tolist()
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value

    return {
        (name, key): plain(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_")
    }


# ---------------------------------------- a model that changes as it runs


class Counter(nn.Module):
    """Counts in plain attributes: tensors, in lists and dicts too, and numbers."""

    def __init__(self):
        super().__init__()
        self.count, self.by_name, self.listed, self.n = torch.zeros(()), {"a": torch.zeros(2)}, [torch.zeros(2)], 0
        self.largest = torch.zeros((), dtype=torch.double)

    def forward(self, x):
        self.count.add_(1)
        self.by_name["a"] += 1
        self.listed[0][1] = 7
        self.n += 1
        with torch.no_grad():
            self.largest.copy_(torch.maximum(self.largest, x.abs().amax()))
        return x


class Observer(nn.Module):
    """Keeps the range of what it saw in buffers, written to in place, through data, anew, and by a native function."""

    def __init__(self):
        super().__init__()
        for name in ("highest", "lowest", "seen", "mean"):
            self.register_buffer(name, torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        self.highest.copy_(torch.maximum(self.highest, x.detach().amax((0, 2, 3))))
        self.lowest.data.clamp_(max=-1)
        self.seen = self.seen + len(x)
        F.batch_norm(x.detach(), self.mean, self.var, training=True)
        return x


class Editing(nn.Conv2d):
    """Edits its own weight in place before it uses it."""

    how = "data"

    def forward(self, x):
        if self.how == "data":
            self.weight.data.clamp_(-0.1, 0.1)
        elif self.how == "copy":
            with torch.no_grad():
                self.weight.copy_(self.weight.clamp(-0.1, 0.1))
        elif self.how == "item":
            self.weight.data[:] = self.weight.detach().clamp(-0.1, 0.1)
        elif self.how == "out":
            torch.clamp(self.weight.detach(), -0.1, 0.1, out=self.weight.data)
        elif self.how == "rebound":
            self.weight.data = self.weight.data.clamp(-0.1, 0.1)
        else:
            torch._foreach_clamp_min_([self.weight.data], -0.1)
            torch._foreach_clamp_max_([self.weight.data], 0.1)
        return super().forward(x)


@pytest.mark.parametrize("between", [Counter, Observer], ids=["attributes", "buffers"])
def test_what_a_model_counts_as_it_runs_is_not_counted_in_the_users_model(between, tmp_path):
    model = net(between)
    untouched(model, tmp_path)
    assert_same_results(model, net())


@pytest.mark.parametrize("how", ["data", "copy", "item", "out", "rebound", "native"])
def test_weights_that_a_forward_edits_are_edited_in_the_copy_alone(how, tmp_path):
    model, plain = net(lambda: Editing(4, 4, 3)), net(lambda: nn.Conv2d(4, 4, 3))
    model.between.how = how
    plain.between.weight.data.clamp_(-0.1, 0.1)
    untouched(model, tmp_path)
    assert_same_results(model, plain)


def test_every_run_begins_with_the_model_as_it_was_given():
    """Without that, a result would depend on how images are batched."""

    class Fading(nn.Conv2d):
        def forward(self, x):
            with torch.no_grad():
                self.weight.mul_(0.5)
            return super().forward(x)

    model = net(lambda: Fading(4, 4, 3))
    expected = copy.deepcopy(model)(X)[:, 1]
    for batch_size in (1, 3):
        torch.testing.assert_close(cc.activations(model, HEAD, X, batch_size=batch_size), expected)


def test_a_model_that_has_run_since_is_the_same_model():
    model = net(Observer)
    circuit = cc.find(model, HEAD, X, density=0.5)
    model(X)
    assert cc.find(model, HEAD, X, density=0.5).provenance["weights"] == circuit.provenance["weights"]
    assert cc.evaluate(model, circuit, X).r2 < 1
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] += 1
    with pytest.raises(cc.ConvCircuitsError, match="another model"):
        cc.evaluate(model, circuit, X)


# ---------------------------------------- a model of unusual make


class Keeping(Net):
    """Keeps its maps, in a list and by a hook."""

    def forward(self, x):
        self.kept = [self.conv(x)]
        self.conv.register_forward_hook(lambda module, given, output: setattr(module, "last", output))
        return self.head(F.relu(self.kept[0]))


class Directly(Net):
    """Calls forward itself, which runs no hook."""

    def forward(self, x):
        return self.head.forward(F.relu(self.between.forward(self.conv.forward(x))))


class Stacked(Net):
    """Sums over a dimension before that of the images."""

    def forward(self, x):
        x = self.conv(x)
        return self.head(F.relu(torch.stack([0.25 * x, 0.75 * x]).sum(0)))


class Moody(Net):
    """Overrides the modes and forgets what they give."""

    def train(self, mode=True):
        super().train(mode)

    def eval(self):
        super().eval()


class Locked(Net):
    """Has no other mode than that of training."""

    def train(self, mode=True):
        if not mode:
            raise RuntimeError("never")
        return super().train(mode)


class Checkpointed(Net):
    """Saves memory by computing its middle again."""

    def forward(self, x):
        return self.head(F.relu(checkpoint(self.conv, x, use_reentrant=False)))


class Switched(Net):
    """Saves memory where a switch is set, as timm's models do."""

    grad_checkpointing = True

    def forward(self, x):
        if self.grad_checkpointing:
            return self.head(F.relu(checkpoint(self.conv.forward, x, use_reentrant=True)))
        return super().forward(x)


class Frozen(Net):
    """Takes no gradient in its first layer."""

    def forward(self, x):
        with torch.no_grad():
            x = F.relu(self.conv(x))
        return self.head(x)


class Gradientless(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


KINDS = [Keeping, Directly, Stacked, Moody, Checkpointed, Switched, Frozen, Gradientless]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_a_model_of_unusual_make_gives_what_a_plain_one_gives(kind, tmp_path):
    model = net(kind=kind)
    model(X.clone().requires_grad_())  # may leave maps that copy.deepcopy refuses
    untouched(model, tmp_path)
    assert_same_results(model, net())


def test_the_models_own_train_and_eval_are_not_called():
    model = net(nn.Dropout, kind=Locked).train()
    assert_same_results(model, net())
    assert model.between.training


@pytest.mark.parametrize("where", ["conv", "head"])
def test_a_feature_inside_a_checkpoint_is_one_like_others(where):
    model = net(kind=Checkpointed)
    assert_same_results(model, net(), cc.Feature(where, 2), cc.Feature(where, 2))


def test_weights_made_in_inference_mode_are_weights():
    with torch.inference_mode():
        model = net()
    assert_same_results(model, net())


# ---------------------------------------- what cannot be entered says why


class Reentrant(Net):
    def forward(self, x):
        return self.head(F.relu(checkpoint(self.conv, x, use_reentrant=True)))


class Squeezing(Net):
    """Drops every dimension of size one, that of a single image too."""

    def forward(self, x):
        return super().forward(x).mean((2, 3), keepdim=True).squeeze()


class Averaging(Net):
    def forward(self, x):
        return super().forward(x).mean((2, 3))


class Inference(Net):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


def on_meta():
    with torch.device("meta"):
        return Net().double()


REFUSED = {
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "0.weight .* its layer is lazy and has not run"),
    "meta": (on_meta, "conv.weight .* is on the meta device, which holds no values"),
    "reentrant": (lambda: net(kind=Reentrant), "conv runs inside .* use_reentrant=True"),
    "inference": (lambda: net(kind=Inference), r"conv runs inside torch.inference_mode\(\)"),
}


@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad"
)  # of torch.utils.checkpoint without gradients
@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_entered_says_why(make, said):
    with pytest.raises(cc.ConvCircuitsError, match=said):
        cc.score(make(), HEAD, X)


# ---------------------------------------- the environment


@pytest.mark.parametrize("before", [None, "/there"])
def test_what_torch_sets_in_the_environment_is_taken_back(before, monkeypatch):
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with environment_kept():
        os.environ.setdefault(name, "/elsewhere")
    assert os.environ.get(name) == before


# ---------------------------------------- the list of layers


@pytest.mark.parametrize("kind", [Net, Moody, Locked, Keeping, Gradientless], ids=lambda kind: kind.__name__)
def test_layers_are_listed_of_models_of_any_make(kind):
    model = net(lambda: Editing(4, 4, 3), kind=kind)
    model(X.clone().requires_grad_())
    before, weight = state_of(model), model.between.weight.detach().clone()
    layers = [info.name for info in list_layers(model, (8, 8))]
    assert layers == (["conv", "head"] if kind is Keeping else ["conv", "between", "head"])
    assert state_of(model) == before
    assert torch.equal(model.between.weight, weight)


def test_a_single_image_that_loses_its_dimension_is_told_as_such():
    model, plain = (
        seeded(lambda: nn.Sequential(net(kind=kind), nn.Linear(3, 2)), 1)()  # noqa: B023
        for kind in (Squeezing, Averaging)
    )
    feature = cc.Feature("1", 1)
    with pytest.raises(cc.ConvCircuitsError, match=r"^This was a batch of one image, .* leaves no batch of one image"):
        cc.score(model, feature, X[:3], batch_size=2)
    assert_same_results(model, plain, feature, feature)


def test_a_traced_graph_is_a_model_like_others():
    assert_same_results(torch.fx.symbolic_trace(net()), net())
    circuit = cc.find(net(), HEAD, X, density=0.7)
    module = cc.extract(net(), circuit)
    scores = cc.score(module, cc.Feature("head", 0), X)
    torch.testing.assert_close(cc.activations(module, cc.Feature("head", 0), X), module(X))
    assert scores.relevant > 0
