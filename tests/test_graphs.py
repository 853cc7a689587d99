"""Extracted modules as JSON: what goes out comes back to the bit, and no word of a file is run."""

import copy
import json
import math
import operator
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import fx, nn

import convcircuits as cc
from convcircuits import graphs
from nets import NETS

REAL = {
    "torchvision:resnet18": "layer2",
    "torchvision:densenet121": "features.denseblock2",
    "torchvision:googlenet": "inception4a",
    "torchvision:shufflenet_v2_x1_0": "stage3",
    "torchvision:mobilenet_v3_small": "features.6",
    "timm:convnextv2_atto": "stages.1",
    "timm:skresnet18": "layer2",
    "timm:resnest14d": "layer2",
    "timm:nf_resnet26": "stages.1",
    "timm:mixnet_s": "blocks.2",
    "timm:starnet_s1": "stages.1",
    "timm:hrnet_w18_small": "stage3.0.branches.0",
    "timm:ghostnet_100": "blocks.3",
}


def real(spec):
    library, _, name = spec.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if library == "timm":
            return timm.create_model(name, pretrained=False).eval()
        options = {"init_weights": False} if name == "googlenet" else {}
        return getattr(torchvision.models, name)(weights=None, **options).eval()


def small(model, feature, x, density):
    scores = cc.score(model, feature, x, criterion="random")
    return cc.extract(model, cc.prune(scores, density=density), input_shape=tuple(x.shape[1:]))


def of_net(name, which=-1):
    case = NETS[name]
    return small(case.build(), cc.Feature(*case.features[which]), case.images(), 0.9), case.images()


def through_text(module):
    said = json.loads(json.dumps(graphs.to_json(module), allow_nan=False))
    return graphs.from_json(said, {name: x.clone() for name, x in module.state_dict().items()})


def check_same(again, module, x):
    assert isinstance(again, fx.GraphModule)
    assert not again.training
    assert again.state_dict().keys() == module.state_dict().keys()
    assert all(x.dtype == again.state_dict()[name].dtype for name, x in module.state_dict().items())
    assert [p for p, _ in again.named_parameters()] == [p for p, _ in module.named_parameters()]
    with torch.no_grad():
        assert torch.equal(again(x), module(x))


# ---------------------------------------- out and back


@pytest.mark.parametrize("name", NETS)
def test_every_net_comes_back(name):
    for which in range(len(NETS[name].features)):
        module, x = of_net(name, which)
        check_same(through_text(module), module, x)


@pytest.mark.parametrize("spec", REAL)
def test_real_networks_come_back(spec):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    module = small(real(spec), cc.Feature(REAL[spec], 1), x, 0.3)
    check_same(through_text(module), module, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype):
    module, x = of_net("residual")
    module = module.to(dtype)
    check_same(through_text(module), module, x.to(dtype))


def test_one_that_came_back_goes_again():
    module, x = of_net("dense")
    again = through_text(through_text(module))
    check_same(again, module, x)
    assert graphs.to_json(again) == graphs.to_json(through_text(again))


def test_loading_draws_no_random_numbers():
    module, _ = of_net("inception")
    before = torch.get_rng_state()
    through_text(module)
    assert torch.equal(torch.get_rng_state(), before)


class Everything(nn.Module):
    """Arguments of every kind."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding="valid", padding_mode="reflect", bias=False)
        self.inner = nn.ModuleDict({"a b-c": nn.BatchNorm2d(4, momentum=None, affine=False)})
        self.flat = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x):
        x = self.inner["a b-c"](self.stem(x))[..., 1:, :-1]
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = torch.clamp(x, -math.inf, math.inf).nan_to_num(nan=math.nan)
        x = operator.add(x, 1) * 2**40
        x = torch.cat([x, F.pad(x, (1, 0), "constant", -0.5)[:, :, :, 1:]], dim=1)
        first, second = x.to(torch.float64).chunk(2, 1)
        x = first.contiguous(memory_format=torch.channels_last) + second[:, [0, 1, 3, 2]]
        x = x.sum((2, 3), keepdim=False).to(torch.float32)
        return self.flat(x)[:, None, ::2]


def test_arguments_of_every_kind_come_back():
    module = fx.symbolic_trace(Everything().eval())
    check_same(through_text(module), module, torch.randn(2, 3, 8, 9))


# ---------------------------------------- what no file may hold


def traced(function, **layers):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, x):
            return function(self, x)

    return fx.symbolic_trace(Net())


def written(write):
    graph = fx.Graph()
    graph.output(write(graph, graph.placeholder("x")))
    return fx.GraphModule(nn.Module(), graph)


class MyConv(nn.Conv2d):
    pass


class Leaf(fx.Tracer):
    def is_leaf_module(self, m, name):
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, name)


UNSAVABLE = {
    "function": (lambda: traced(lambda net, x: torch.fft.fft(x).real), "fft_fft"),
    "in place": (lambda: traced(lambda net, x: x.add_(1)), "add_"),
    "method": (lambda: traced(lambda net, x: x.numpy()), "numpy"),
    "layer": (lambda: traced(lambda net, x: net.act(x), act=nn.PReLU()), "its layer act is PReLU"),
    "two inputs": (lambda: written(lambda graph, x: graph.placeholder("y")), "other than one batch"),
    "dict": (lambda: written(lambda graph, x: graph.call_function(torch.add, (x, {"a": x}))), "of type immutable_dict"),
}


@pytest.mark.parametrize(("make", "said"), UNSAVABLE.values(), ids=UNSAVABLE)
def test_what_a_file_cannot_say_is_named_with_a_way_out(make, said):
    with pytest.raises(cc.ConvCircuitsError, match=said) as caught:
        graphs.to_json(make())
    assert "torch.export.save(" in str(caught.value)


def test_a_subclass_of_a_layer_may_compute_something_else_and_is_refused():
    net = nn.Sequential(MyConv(3, 2, 1))
    module = fx.GraphModule(net, Leaf().trace(net))
    with pytest.raises(cc.ConvCircuitsError, match="its layer 0 is MyConv"):
        graphs.to_json(module)


def said_by(module):
    return json.loads(json.dumps(graphs.to_json(module)))


def add_call(op, target, *args, **kwargs):
    def change(said, tensors):
        said["calls"].append({"op": op, "target": target, "args": list(args), "kwargs": kwargs})

    return change


def rename_layer(name):
    def change(said, tensors):
        layer = next(iter(said["layers"]))
        said["layers"] = {(name if key == layer else key): value for key, value in said["layers"].items()}
        for call in said["calls"]:
            call["target"] = name if call["target"] == layer else call["target"]
        said["tensors"] = [name + key.removeprefix(layer) if key.startswith(layer) else key for key in said["tensors"]]
        for key in [key for key in tensors if key.startswith(f"{layer}.")]:
            tensors[name + key.removeprefix(layer)] = tensors.pop(key)

    return change


def option(kind, name, value):
    def change(said, tensors):
        layer = next(layer for layer in said["layers"].values() if layer["kind"] == kind)
        layer["options"][name] = value

    return change


def add_tensor(name, *, listed=True):
    def change(said, tensors):
        tensors[name] = torch.ones(2)
        if listed:
            said["tensors"].append(name)

    return change


X = {"node": 0}
RUN = "Path('harm').touch()"
HOSTILE = {
    "os.system": add_call("call_function", "os.system", "touch harm"),
    "builtins": add_call("call_function", "builtins.exec", "import pathlib; pathlib.Path('harm').touch()"),
    "torch.load": add_call("call_function", "torch.load", "harm"),
    "torch.save": add_call("call_function", "torch.save", X, "harm"),
    "operator.methodcaller": add_call("call_function", "operator.methodcaller", "touch"),
    "function by path": add_call("call_function", "torch.serialization.os.system", "touch harm"),
    "function is no text": add_call("call_function", ["torch.add"], X, X),
    "private method": add_call("call_method", "__reduce_ex__", X, 2),
    "method": add_call("call_method", "numpy", X),
    "method of a text": add_call("call_method", "split", "a b", " "),
    "method in code": add_call("call_method", f"add(1); {RUN}; x.add", X, 1),
    "keyword in code": add_call("call_function", "torch.add", X, X, **{f"alpha=1); {RUN}; (x": 1}),
    "keyword": add_call("call_function", "torch.add", X, X, **{"import": 1}),
    "out": add_call("call_function", "torch.add", X, X, out=X),
    "module of the graph itself": add_call("call_module", "to_folder", X),
    "module is no layer": add_call("call_module", "block1", X),
    "module with two arguments": add_call("call_module", "stem", X, X),
    "module with a text": add_call("call_module", "stem", "harm"),
    "attribute": add_call("get_attr", "__class__"),
    "attribute of a layer": add_call("get_attr", "stem.forward"),
    "attribute in code": add_call("get_attr", f'stem"); {RUN}; ("'),
    "placeholder": add_call("placeholder", f"y={RUN}"),
    "output": add_call("output", "output", X),
    "unknown op": add_call("exec", "harm"),
    "later node": add_call("call_function", "torch.add", {"node": 10**6}, 1),
    "unknown argument": add_call("call_function", "torch.add", X, {"object": "os"}),
    "two arguments in one": add_call("call_function", "torch.add", X, {"float": "1", "tuple": []}),
    "unknown constant": add_call("call_function", "torch.add", X, {"constant": "os"}),
    "layer in code": rename_layer(f'stem"); {RUN}; ("'),
    "layer in a line": rename_layer("stem\n"),
    "layer called as a method that writes": rename_layer("to_folder"),
    "layer inside one": rename_layer("to_folder.0"),
    "layer called forward": rename_layer("forward"),
    "layer called graph": rename_layer("graph"),
    "layer called __class__": rename_layer("__class__"),
    "layer called _modules": rename_layer("_modules"),
    "layer without name": rename_layer(""),
    "other layer": lambda said, tensors: said["layers"]["stem"].update(kind="Module"),
    "huge layer": option("Conv2d", "in_channels", 10**12),
    "layer of other size": option("Conv2d", "out_channels", 5),
    "empty layer": option("Conv2d", "out_channels", 0),
    "more options": option("Conv2d", "device", "cpu"),
    "option of another type": option("Conv2d", "kernel_size", "harm"),
    "padding mode": option("Conv2d", "padding_mode", "harm"),
    "option is a node": option("Conv2d", "stride", X),
    "tensor that nobody reads": add_tensor("more"),
    "tensor that is not listed": add_tensor("more", listed=False),
    "tensor called forward": add_tensor("forward"),
    "tensor called __dict__": add_tensor("__dict__"),
    "tensor in code": add_tensor(f'x"); {RUN}; ("'),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_in_it_runs(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, _ = of_net("residual")
    said, tensors = said_by(module), dict(module.state_dict())
    change(said, tensors)
    header = {"schema": "convcircuits/1", "kind": "module", "graph": said, "circuit": None}
    save_file(tensors, "f.safetensors", {"convcircuits": json.dumps(header)})
    with pytest.raises(cc.ConvCircuitsError, match=r"f\.safetensors is damaged"):
        cc.load("f.safetensors")
    assert [path.name for path in Path().iterdir()] == ["f.safetensors"]


def test_texts_in_a_file_stay_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, x = of_net("residual")
    for text in ("'); Path('harm').touch(); ('", '"\n\\', "\ud800", "{x}"):
        said = said_by(module)
        add_call("call_function", "torch.nn.functional.interpolate", X, mode=text)(said, {})
        add_call("call_function", "operator.getitem", {"tuple": [said["output"], text]}, 0)(said, {})
        said["output"] = {"node": len(said["calls"])}
        again = graphs.from_json(said, module.state_dict())
        with pytest.raises((NotImplementedError, ValueError)):
            again(x)
    assert not list(tmp_path.iterdir())


def test_deep_nesting_is_refused(tmp_path):
    module, _ = of_net("residual")
    said = said_by(module)
    deep = 1
    for _ in range(400):
        deep = [deep]
    said["calls"][0]["args"].append(deep)
    header = {"schema": "convcircuits/1", "kind": "module", "graph": said, "circuit": None}
    save_file(dict(module.state_dict()), tmp_path / "f.safetensors", {"convcircuits": json.dumps(header)})
    with pytest.raises(cc.ConvCircuitsError, match="is damaged"):
        cc.load(tmp_path / "f.safetensors")


def test_what_may_be_called_writes_into_nothing_and_has_a_rule_for_its_name():
    for name, function in graphs._FUNCTIONS.items():
        assert not name.endswith("_")
        assert graphs._FUNCTIONS[graphs._FUNCTION_NAMES[function]] is function
    forbidden = {"load", "save", "apply_", "map_", "set_", "numpy", "tolist", "item", "share_memory_", "data_ptr"}
    assert not forbidden & (graphs._METHODS | {name.rpartition(".")[2] for name in graphs._FUNCTIONS})


def test_a_copy_is_made_of_nothing_that_changes_later():
    module, x = of_net("residual")
    said, tensors = said_by(module), {name: t.clone() for name, t in module.state_dict().items()}
    before = copy.deepcopy(said)
    again = graphs.from_json(said, tensors)
    assert said == before
    check_same(again, module, x)
