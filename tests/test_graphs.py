"""Extracted modules as JSON: what goes out comes back to the bit, and no word of a file is run."""

import contextlib
import copy
import json
import math
import operator
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn

import convcircuits as cc
from convcircuits import graphs
from convcircuits.instructions import OPERATIONS
from convcircuits.interpreter import CircuitModule, from_graph, one_of
from convcircuits.storage import SCHEMA, sealed
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


def module_of(net, shape=(3, 8, 8)):
    """The module that does what a traced net does."""
    graph = fx.symbolic_trace(net).graph
    for node in graph.nodes:
        if node.target is operator.getitem and node.args[0].target == "chunk":
            node.target = one_of
    return from_graph(net, graph, shape)


def check_same(again, module, x):
    assert isinstance(again, CircuitModule)
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
    module = module_of(Everything().eval(), (3, 8, 9))
    check_same(through_text(module), module, torch.randn(2, 3, 8, 9))


# ---------------------------------------- what a file cannot say


def traced(function, **layers):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, x):
            return function(self, x)

    return module_of(Net())


class MyConv(nn.Conv2d):
    pass


class Leaf(fx.Tracer):
    def is_leaf_module(self, m, name):
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, name)


UNSAVABLE = {
    "function": (lambda: traced(lambda net, x: torch.fft.fft(x)), "fft_fft"),
    "in place": (lambda: traced(lambda net, x: x.add_(1)), "add_"),
    "method": (lambda: traced(lambda net, x: x.numpy()), "numpy"),
    "layer": (lambda: traced(lambda net, x: net.act(x), act=nn.PReLU()), "its layer act is PReLU"),
    "argument": (lambda: traced(lambda net, x: torch.add(x, 1j)), "its other is 1j, which is no value"),
    "device": (lambda: traced(lambda net, x: x.to("cpu")), "its dtype is 'cpu'"),
}


@pytest.mark.parametrize(("make", "said"), UNSAVABLE.values(), ids=UNSAVABLE)
def test_what_a_file_cannot_say_is_named_with_a_way_out(make, said):
    with pytest.raises(cc.ConvCircuitsError, match=said) as caught:
        graphs.to_json(make())
    assert "torch.export.save(" in str(caught.value)


def test_a_subclass_of_a_layer_may_compute_something_else_and_is_refused():
    net = nn.Sequential(MyConv(3, 2, 1))
    with pytest.raises(cc.ConvCircuitsError, match="its layer 0 is MyConv"):
        graphs.to_json(from_graph(net, Leaf().trace(net), (3, 8, 8)))


# ---------------------------------------- what no file may hold


def said_by(module):
    return json.loads(json.dumps(graphs.to_json(module)))


def add_step(step):
    """A file with one more step, whose result is the output."""

    def change(said, tensors):
        said["steps"].append(step)
        said["output"] = {"result": len(said["steps"])}

    return change


def call(name, /, **given):
    return add_step({"call": name, "given": given})


def rename_layer(name):
    def change(said, tensors):
        layer = next(iter(said["layers"]))
        said["layers"] = {(name if key == layer else key): value for key, value in said["layers"].items()}
        for step in said["steps"]:
            if step.get("layer") == layer:
                step["layer"] = name
        said["tensors"] = [name + key.removeprefix(layer) if key.startswith(layer) else key for key in said["tensors"]]
        for key in [key for key in tensors if key.startswith(f"{layer}.")]:
            tensors[name + key.removeprefix(layer)] = tensors.pop(key)

    return change


def option(kind, name, value):
    def change(said, tensors):
        layer = next(layer for layer in said["layers"].values() if layer["kind"] == kind)
        layer["options"][name] = value

    return change


def add_tensor(name, *, listed=True, read=False):
    def change(said, tensors):
        tensors[name] = torch.ones(2)
        if listed:
            said["tensors"].append(name)
        if read:
            call("add", input={"result": 0}, other={"constant": name})(said, tensors)

    return change


def many(count):
    def change(said, tensors):
        for _ in range(count):
            call("relu", input=said["output"])(said, tensors)

    return change


def growing(name, /, **given):
    """The same step again and again, each on the result of the one before."""

    def change(said, tensors):
        said["output"] = {"result": 0}
        for _ in range(12):
            call(name, input=said["output"], **given)(said, tensors)

    return change


def outer_products(said, tensors):
    call("reshape", input={"result": 0}, shape=[-1, 1])(said, tensors)
    for _ in range(3):
        column = {"result": len(said["steps"])}
        call("transpose", input=column, dim0=0, dim1=1)(said, tensors)
        call("matmul", input=column, other={"result": len(said["steps"])})(said, tensors)
        call("reshape", input={"result": len(said["steps"])}, shape=[-1, 1])(said, tensors)


def all_at_once(said, tensors):
    made = []
    for _ in range(2000):
        call("repeat", input={"result": 0}, size=[1, 1, 64, 64])(said, tensors)
        made.append({"result": len(said["steps"])})
    call("cat", tensors=made)(said, tensors)


X = {"result": 0}
DEEP = X
for _ in range(400):
    DEEP = [DEEP]
TRICKS = {  # of issue 4: each let a file of the first format run Python
    "a node called self": add_step({"call": "relu", "given": {"input": X}, "name": "self"}),
    "an attribute of a method": add_step(
        {"op": "get_attr", "target": "backward.__globals__", "args": [], "kwargs": {}}
    ),
    "a constant that is an attribute": call("add", input=X, other={"constant": "backward.__globals__"}),
    "a constant of an own method": call("add", input=X, other={"constant": "forward"}),
    "an item by name": call("getitem", input=X, index="__builtins__"),
    "an item of a constant": call("getitem", input={"constant": "backward.__globals__"}, index="__builtins__"),
    "a list as receiver": call("getitem", input=[X], index=0),
    "a nested list as receiver": call("getitem", input=[[X]], index=0),
    "a tuple as receiver": call("getitem", input={"tuple": [X]}, index=0),
    "a text as receiver": call("split", tensor="a b", split_size_or_sections=1),
    "a sort by eval": call("sort", input=["__import__('pathlib').Path('harm').touch()"], key="eval"),
    "a sort of a result by eval": call("sort", input=X, key="eval"),
    "a sort by a constant": call("sort", input=X, key={"constant": "eval"}),
}
HOSTILE = TRICKS | {
    "os.system": call("os.system", command="touch harm"),
    "builtins": call("builtins.exec", input="import pathlib; pathlib.Path('harm').touch()"),
    "eval": call("eval", input="1"),
    "getattr": call("getattr", input=X, name="__class__"),
    "torch.load": call("torch.load", f="harm"),
    "load": call("load", f="harm"),
    "methodcaller": call("methodcaller", input="touch"),
    "a private method": call("__reduce_ex__", input=X),
    "an item by its method": call("__getitem__", input=X, index=0),
    "numpy": call("numpy", input=X),
    "a name that is no text": add_step({"call": ["add"], "given": {"input": X, "other": X}}),
    "a name in code": call("add(1); Path('harm').touch(); x.add", input=X, other=1),
    "a parameter in code": call("add", input=X, other=X, **{"alpha=1); Path('harm').touch(); (x": 1}),
    "a parameter that is a keyword": call("add", input=X, other=X, **{"import": 1}),
    "a parameter of another operation": call("add", input=X, other=X, dim=1),
    "out": call("add", input=X, other=X, out=X),
    "in place": call("relu", input=X, inplace=True),
    "no receiver": call("add", other=X),
    "a number as receiver": call("relu", input=1),
    "training": call("batch_norm", input=X, running_mean=None, running_var=None, training=True),
    "a device": call("to", input=X, dtype="cuda"),
    "another type of number": call("add", input=X, other=X, alpha="1"),
    "a huge number": call("add", input=X, other=10**30),
    "a mode": call("pad", input=X, pad=[1, 1], mode="harm"),
    "an equation": call("einsum", equation="'); harm", operands=[X]),
    "a layer of the module itself": add_step({"layer": "forward", "of": X}),
    "a layer that only holds others": add_step({"layer": "block1", "of": X}),
    "a layer of a text": add_step({"layer": "stem", "of": "harm"}),
    "a layer of a constant": add_step({"layer": "stem", "of": {"constant": "stem.weight"}}),
    "a layer with more": add_step({"layer": "stem", "of": X, "then": X}),
    "a layer and a call": add_step({"layer": "stem", "of": X, "call": "relu", "given": {"input": X}}),
    "no step": add_step([]),
    "an old step": add_step({"op": "call_function", "target": "torch.add", "args": [X, 1], "kwargs": {}}),
    "a later result": call("add", input={"result": 10**6}, other=1),
    "its own result": lambda said, t: call("relu", input={"result": len(said["steps"]) + 1})(said, t),
    "a result before the images": call("relu", input={"result": -1}),
    "a result that is no number": call("relu", input={"result": True}),
    "part of a tensor": call("relu", input={"result": 0, "part": 0}),
    "a result of several": lambda said, t: (
        call("chunk", input=X, chunks=2, dim=1)(said, t),
        call("relu", input=said["output"])(said, t),
    ),
    "an output of several": call("chunk", input=X, chunks=2, dim=1),
    "an output that is no result": lambda said, t: said.update(output={"constant": "stem.weight"}),
    "no output": lambda said, t: said.update(output={"tuple": []}),
    "an unknown argument": call("add", input=X, other={"object": "os"}),
    "two arguments in one": call("add", input=X, other={"float": "1", "tuple": []}),
    "an unknown constant": call("add", input=X, other={"dtype": "os"}),
    "a deep argument": call("getitem", input=X, index=DEEP),
    "a long argument": call("getitem", input=X, index=[0] * 100_000),
    "too many steps": many(20_000),
    "a layer in a line": rename_layer("stem\n.to"),
    "a layer inside a method": rename_layer("forward.0"),
    "a layer called forward": rename_layer("forward"),
    "a layer called __class__": rename_layer("__class__"),
    "a layer called _modules": rename_layer("_modules"),
    "a layer without name": rename_layer(""),
    "a layer with an empty part": rename_layer("a..b"),
    "another layer": lambda said, tensors: said["layers"]["stem"].update(kind="Module"),
    "a layer that is not called": lambda said, t: said["layers"].update(more=said["layers"]["stem"]),
    "a huge layer": option("Conv2d", "in_channels", 10**12),
    "a layer of other size": option("Conv2d", "out_channels", 5),
    "an empty layer": option("Conv2d", "out_channels", 0),
    "no stride": option("Conv2d", "stride", {"tuple": [0, 1]}),
    "no dilation": option("Conv2d", "dilation", {"tuple": [1, 0]}),
    "negative padding": option("Conv2d", "padding", {"tuple": [-1, 1]}),
    "more options": option("Conv2d", "device", "cpu"),
    "an option of another type": option("Conv2d", "kernel_size", "harm"),
    "a padding mode": option("Conv2d", "padding_mode", "harm"),
    "an option that is a result": option("Conv2d", "stride", X),
    "a tensor that nobody reads": add_tensor("more"),
    "a tensor that is not listed": add_tensor("more", listed=False),
    "a tensor called forward": add_tensor("forward", read=True),
    "a tensor called __dict__": add_tensor("__dict__", read=True),
    "a tensor called as a layer": add_tensor("stem", read=True),
    "a tensor of a layer": add_tensor("stem.more"),
    "repeat": call("repeat", input=X, size=[1 << 20, 1 << 20, 1, 1]),
    "expand": growing("expand", size=[1 << 30, 1 << 20, 3, 8, 8]),
    "pad": call("pad", input=X, pad=[1 << 20, 1 << 20, 1 << 20, 1 << 20]),
    "padding of a layer": option("Conv2d", "padding", {"tuple": [1 << 20, 1 << 20]}),
    "interpolate": call("interpolate", input=X, scale_factor=1e5),
    "repeat_interleave": growing("repeat_interleave", repeats=1000, dim=1),
    "tile": growing("tile", dims=[1, 10, 10, 10]),
    "fold": call("fold", input=X, output_size=[1 << 20, 1 << 20], kernel_size=1),
    "adaptive pooling": call("adaptive_avg_pool2d", input=X, output_size=[1 << 20, 1 << 20]),
    "outer products": outer_products,
    "einsum": call("einsum", equation="abcd,efgh,ijkl->abcdefghijkl", operands=[X] * 3),
    "much at once": all_at_once,
}


def hostile_file(change, path):
    module, _ = of_net("residual")
    said, tensors = said_by(module), dict(module.state_dict())
    change(said, tensors)
    header = {"schema": SCHEMA, "kind": "module", "graph": said, "circuit": None}
    path.write_bytes(sealed(json.dumps(header), tensors))
    return path


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_in_it_runs(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = hostile_file(change, tmp_path / "f.safetensors")
    with pytest.raises(cc.ConvCircuitsError, match=r"f\.safetensors is damaged: ") as caught:
        cc.load(path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in Path().iterdir()] == ["f.safetensors"]


def test_a_file_that_is_right_is_not_refused(tmp_path):
    module, x = of_net("residual")
    check_same(cc.load(hostile_file(lambda said, tensors: None, tmp_path / "f.safetensors")), module, x)


def test_images_for_which_results_would_be_too_large_are_refused(tmp_path):
    def change(said, tensors):
        call("reshape", input=X, shape=[-1, 1])(said, tensors)
        column = said["output"]
        call("transpose", input=column, dim0=0, dim1=1)(said, tensors)
        call("matmul", input=column, other=said["output"])(said, tensors)

    module = cc.load(hostile_file(change, tmp_path / "f.safetensors"))
    assert module(torch.zeros(1, 3, 8, 8, dtype=torch.float64)).shape == (192, 192)
    with pytest.raises(cc.ConvCircuitsError, match="asks for 22,658,678,784 values at once"):
        module(torch.zeros(1, 3, 224, 224, dtype=torch.float64))


def test_every_operation_says_what_it_reads_first_and_writes_into_nothing():
    for name, operation in OPERATIONS.items():
        assert not name.startswith("_")
        assert not name.endswith("_")
        assert next(iter(operation.kinds.values())) in ("tensor", "tensors", "value", "equation"), name
    forbidden = {"load", "save", "apply_", "map_", "set_", "numpy", "tolist", "item", "data_ptr", "as_strided"}
    assert not forbidden & OPERATIONS.keys()


def test_a_copy_is_made_of_nothing_that_changes_later():
    module, x = of_net("residual")
    said, tensors = said_by(module), {name: t.clone() for name, t in module.state_dict().items()}
    before = copy.deepcopy(said)
    again = graphs.from_json(said, tensors)
    assert said == before
    check_same(again, module, x)


NAMES = ["global", "class", "in", "None", "self", "meta", "conv/1", 'a"b', "a'b", "back\\slash", "ﬁ", "new\nline", "x"]
NAMES += ["__import__", "output", "shape", "steps", "run", "filters", "é 電", "{x}", "%s"]


class Named(nn.Module):
    """A net with layers of one name, at the top and further down."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.add_module(name, nn.Conv2d(3, 4, 3))
        self.inner = nn.ModuleDict({name: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))})
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = F.relu(self._modules[self.name](x))
        return self.last(F.relu(self.inner[self.name](x)))


def exported(module, x):
    return torch.export.export(module, (x,)).module()


@pytest.mark.parametrize("name", NAMES)
def test_layers_keep_any_name_that_torch_allows(name, tmp_path):
    torch.manual_seed(0)
    model, x = Named(name).eval(), torch.randn(3, 3, 8, 8)
    for layer in ("last", name, f"inner.{name}.0"):
        circuit = cc.find(model, cc.Feature(layer, 1), x, density=0.8)
        assert cc.evaluate(model, circuit, x).kernels == len(circuit)
        module = cc.extract(model, circuit)
        torch.testing.assert_close(module(x), cc.activations(model, circuit.feature, x, circuit=circuit))
        assert module.get_submodule(name).filters.tolist() == module.state_dict()[f"{name}.filters"].tolist()
        assert module.meta["circuit"]["feature"] == str(circuit.feature)
        check_same(cc.load(cc.save(module, tmp_path / "f.safetensors")), module, x)
        check_same(copy.deepcopy(module), module, x)
        again = cc.load(cc.save(circuit, tmp_path / "c.safetensors"))
        assert (again, again.feature) == (circuit, circuit.feature)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    torch._dynamo.reset()
    try:
        exported(model, x)(x)
    except Exception:  # of some names torch itself makes no module again
        return
    torch.testing.assert_close(exported(module, x)(x), module(x))


@pytest.mark.parametrize("part", ['stem"); Path("harm").touch(); ("', "stem\\", 'a", 1) or Path("harm").touch(); ("\\'])
def test_no_name_of_a_file_gets_into_the_code_that_torch_makes(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.Path", Path, raising=False)
    module = cc.load(hostile_file(rename_layer(part), tmp_path / "f.safetensors"))
    x = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    module(x)
    with pytest.raises(cc.ConvCircuitsError, match="torch makes code of the names"):
        exported(module, x)
    for made in (fx.symbolic_trace, torch.compile(module, backend="eager")):
        with contextlib.suppress(Exception):
            made(module if made is fx.symbolic_trace else x)
    torch._dynamo.reset()
    assert [path.name for path in tmp_path.iterdir()] == ["f.safetensors"]


# ---------------------------------------- an attacker

WORDS = ["self", "eval", "exec", "__class__", "__globals__", "__builtins__", "backward.__globals__", "__import__('os')"]
WORDS += ["forward", "stem", "stem.weight", "key", "out", "x", "getattr", "numpy", "inf", "same", "fro", "a,b->ab", ""]
ANY = st.recursive(
    st.sampled_from([None, True, 0, 1, -1, 2, 3, 8, 1 << 20, 1 << 60, 0.5, *WORDS])
    | st.integers(-1, 8).map(lambda n: {"result": n})
    | st.builds(lambda n, p: {"result": n, "part": p}, st.integers(0, 8), st.integers(-1, 3))
    | st.sampled_from(WORDS).map(lambda word: {"constant": word})
    | st.sampled_from([{"dtype": "torch.float32"}, {"dtype": "eval"}, {"ellipsis": True}, {"float": "inf"}]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(lambda parts: {"tuple": parts})
        | st.lists(inner, min_size=3, max_size=3).map(lambda parts: {"slice": parts})
    ),
    max_leaves=6,
)
LIKELY = {  # so that many of the attacker's steps are taken
    "tensor": st.integers(0, 4).map(lambda n: {"result": n}),
    "tensors": st.lists(st.integers(0, 4).map(lambda n: {"result": n}), min_size=1, max_size=3),
    "value": st.integers(0, 4).map(lambda n: {"result": n}) | st.floats(-2, 2),
    "int": st.integers(-2, 9),
    "ints": st.lists(st.integers(-1, 64), min_size=1, max_size=5),
    "bool": st.booleans(),
    "number": st.floats(-2, 2),
}


@st.composite
def attacks(draw):
    operation = OPERATIONS[draw(st.sampled_from(sorted(OPERATIONS)))]
    given = {
        name: draw(LIKELY.get(kind.removesuffix("?"), ANY) if draw(st.integers(0, 9)) else ANY)
        for place, (name, kind) in enumerate(operation.kinds.items())
        if place < 2 or draw(st.booleans())
    }
    if not draw(st.integers(0, 9)):
        given[draw(st.sampled_from(WORDS))] = draw(ANY)
    name = draw(st.sampled_from(WORDS)) if not draw(st.integers(0, 19)) else operation.name
    return {"call": name, "given": given}


EVENTS = ("compile", "exec", "open", "os.", "subprocess.", "shutil.", "socket.", "ctypes.", "pickle.", "marshal.")
EVENTS += ("import",)
HEARD, WATCH = [], {"on": False}


def canary(event, args):
    if WATCH["on"] and event.startswith(EVENTS):
        HEARD.append((event, args))


@contextlib.contextmanager
def watching():
    HEARD.clear()
    WATCH["on"] = True
    try:
        yield
    finally:
        WATCH["on"] = False


@pytest.fixture(scope="module")
def watched():
    """An audit hook, which cannot be removed again but switched off, and a module that an attacker changes."""
    sys.addaudithook(canary)
    with watching():
        eval("1")
    assert [event for event, _ in HEARD] == ["compile", "exec"]
    module, x = of_net("residual")
    return said_by(module), dict(module.state_dict()), x


IMAGES = NETS["residual"].images()
TAKEN = {"refused": 0, "run": 0}


@settings(deadline=None, database=None, max_examples=600, suppress_health_check=list(HealthCheck))
@given(st.lists(attacks(), min_size=1, max_size=4))
def attack(watched, steps):
    said, tensors, x = watched
    said = said | {"steps": said["steps"] + steps, "output": {"result": len(said["steps"]) + len(steps)}}
    with watching():
        try:
            maps = graphs.from_json(said, tensors)(x)
        except Exception:  # as cc.load has it, an error of any kind is one of ours
            maps = None
    assert not HEARD
    assert torch.equal(x, IMAGES)
    TAKEN["refused" if maps is None else "run"] += 1
    if maps is not None:
        assert isinstance(maps, torch.Tensor)
        assert maps.numel() < 1 << 25


def test_an_attacker_reaches_nothing_but_tensors_and_is_refused_or_run(watched):
    attack(watched)
    assert min(TAKEN.values()) > 20, TAKEN
