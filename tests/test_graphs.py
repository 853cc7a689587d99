"""Extracted modules as JSON: what goes out comes back to the bit, and no word of a file is run."""

import contextlib
import copy
import json
import math
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn

import convcircuits as cc
from cases import check_same, extracted, through_text
from convcircuits.compiler import module_json as graphs
from convcircuits.compiler.instructions import IN_PLACE, OPERATIONS
from convcircuits.compiler.interpreter import one_of, program_of
from convcircuits.compiler.writing import Writer
from convcircuits.storage import SCHEMA, sealed
from handmade import CPU, HANDMADE, SHAPE, aten, handmade, images
from nets import NETS, Named


def of_net(name, which=-1):
    case = NETS[name]
    return extracted(case.build(), cc.Feature(*case.features[which]), case.images(), 0.9), case.images()


# ---------------------------------------- out and back


@pytest.mark.parametrize("name", NETS)
def test_every_net_comes_back(name):
    for which in range(len(NETS[name].features)):
        module, x = of_net(name, which)
        check_same(through_text(module), module, x)


@pytest.mark.parametrize("name", HANDMADE)
def test_modules_that_are_written_come_back(name):
    module = handmade(name)
    check_same(through_text(module), module, images())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype):
    module = handmade("residual").to(dtype)
    check_same(through_text(module), module, images(dtype=dtype))


@pytest.mark.parametrize("name", HANDMADE)
def test_one_that_came_back_goes_again(name):
    module = handmade(name)
    again = through_text(through_text(module))
    check_same(again, module, images())
    assert graphs.to_json(again) == graphs.to_json(module)


def test_several_outputs_come_back_as_several():
    for made in (handmade("flat", always_tuple=True), through_text(handmade("flat", always_tuple=True))):
        (map_,) = made(images())
        assert torch.equal(map_, handmade("flat")(images()))


def test_loading_draws_no_random_numbers():
    before = torch.get_rng_state()
    through_text(handmade("gated"))
    assert torch.equal(torch.get_rng_state(), before)


def test_arguments_of_every_kind_come_back():
    w = Writer((3, 8, 9), CPU)
    stem = nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding="valid", padding_mode="reflect", bias=False)
    x = w.module("inner.a b-c", nn.BatchNorm2d(4, momentum=None, affine=False), w.module("stem", stem, w.image))
    x = w.call(aten.upsample_nearest2d.vec, x, None, [2.0, 2.0])
    x = w.call(aten.nan_to_num.default, w.call(aten.clamp.default, x, -math.inf, math.inf), math.nan)
    x = w.call(aten.mul.Tensor, w.call(aten.add.Tensor, x, 1), 2**40)
    x = w.call(aten.cat.default, [x, w.call(aten.constant_pad_nd.default, x, [0, 0], -0.5)], dim=1)
    parts = w.call(aten.split.Tensor, w.call(aten.to.dtype, x, torch.float64), 4, 1)
    first, second = (w.call(one_of, parts, k) for k in (0, 1))
    second = w.call(aten.index.Tensor, second, [None, w.constant("order", torch.tensor([0, 1, 3, 2]))])
    x = w.call(aten.contiguous.default, first, memory_format=torch.channels_last)
    x = w.call(aten.div.Tensor_mode, w.call(aten.add.Tensor, x, second, alpha=2), 3, rounding_mode="floor")
    x = w.call(aten.to.dtype, w.call(aten.sum.dim_IntList, x, [2, 3], False), torch.float32)
    x = w.call(aten.gelu.default, w.module("flat", nn.BatchNorm1d(4, track_running_stats=False), x), approximate="tanh")
    module = w.finish([x], fold=False, any_size=True, always_tuple=False)
    check_same(through_text(module), module, torch.randn(2, 3, 8, 9))


# ---------------------------------------- as any other module


@pytest.mark.slow
@pytest.mark.parametrize("name", HANDMADE)
@pytest.mark.parametrize("came_back", [False, True])
def test_copies_compiled_and_exported_ones_compute_the_same(name, came_back):
    module, x = handmade(name), images()
    module = through_text(module) if came_back else module
    check_same(copy.deepcopy(module), module, x)
    check_same(pickle.loads(pickle.dumps(module)), module, x)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for count in (1, 4):
            torch.testing.assert_close(program.module()(images(count)), module(images(count)))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["residual", "gated", "tokens"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_modules_go_to_another_dtype(name, dtype):
    module = through_text(handmade(name))
    expected = module(images())
    tolerance = 0.1 if dtype is torch.bfloat16 else 1e-4
    torch.testing.assert_close(module.to(dtype)(images(dtype=dtype)).float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", HANDMADE)
def test_gradients_are_those_of_a_module_that_writes_into_nothing(name):
    def gradients(module):
        x = images().requires_grad_()
        module(x).square().sum().backward()
        return [x.grad, *(p.grad for p in module.parameters())]

    plain = handmade(name)
    program = program_of(plain)
    steps = tuple(replace(step, run=step.function) for step in program.steps)
    plain._program = replace(program, steps=steps)
    for a, b in zip(gradients(handmade(name)), gradients(plain), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("function", "writes"), IN_PLACE.items(), ids=str)
def test_activations_write_into_what_a_layer_made_and_nobody_else_reads(function, writes):
    assert function in {operation.function for operation in OPERATIONS.values()}
    assert writes._schema.is_mutable
    given = (0.1, 0.2) if function is aten.threshold.default else ()

    def module(*, layer, read_again=False):
        w = Writer(SHAPE, CPU)
        x = w.module("conv", nn.Conv2d(3, 4, 3), w.image) if layer else w.image
        y = w.call(function, x, *given)
        y = w.call(aten.add.Tensor, y, x) if read_again else y
        return w.finish([y], fold=False, any_size=True, always_tuple=False)

    run = [step.run for step in program_of(module(layer=True)).steps]
    assert writes in run
    assert writes not in [step.run for step in program_of(module(layer=True, read_again=True)).steps]
    assert writes not in [step.run for step in program_of(module(layer=False)).steps]
    torch.manual_seed(0)
    made = module(layer=True)
    x, conv = images(), made.get_submodule("conv")
    with torch.no_grad():
        assert torch.equal(made(x), function(conv(x.contiguous(memory_format=torch.channels_last)), *given))
    assert str(writes) not in json.dumps(graphs.to_json(made))
    assert graphs.to_json(through_text(made)) == graphs.to_json(made)
    assert writes in [step.run for step in program_of(through_text(made)).steps]
    before = x.clone()
    module(layer=False)(x)
    assert torch.equal(x, before)


# ---------------------------------------- what a file cannot say


def one_call(function, *args, **kwargs):
    """A module of one call on the images."""
    w = Writer(SHAPE, CPU)
    w.call(function, w.image, *args, **kwargs)
    return w.finish([w.call(function, w.image, *args, **kwargs)], fold=False, any_size=True, always_tuple=False)


def with_layer(layer):
    w = Writer(SHAPE, CPU)
    return w.finish([w.module("act", layer, w.image)], fold=False, any_size=True, always_tuple=False)


class MyConv(nn.Conv2d):
    pass


UNSAVABLE = {
    "operation": (lambda: one_call(aten.linalg_inv.default), "it calls aten.linalg_inv.default"),
    "in place": (lambda: one_call(aten.add_.Tensor, 1), "it calls aten.add_.Tensor"),
    "random": (lambda: one_call(aten.bernoulli.default), "it calls aten.bernoulli.default"),
    "function": (lambda: one_call(torch.relu), "it calls .*relu"),
    "layer": (lambda: with_layer(nn.PReLU()), "its layer act is a PReLU"),
    "a subclass of a layer": (lambda: with_layer(MyConv(3, 2, 1)), "its layer act is a MyConv"),
    "argument": (lambda: one_call(aten.add.Tensor, 1j), "its other is 1j; expected Tensor"),
    "device": (lambda: one_call(aten._to_copy.default, device=CPU), r"its device is device\(type='cpu'\)"),
    "truncation": (lambda: one_call(aten.div.Tensor_mode, 2, rounding_mode="trunc"), "its rounding_mode is 'trunc'"),
}


@pytest.mark.parametrize(("make", "said"), UNSAVABLE.values(), ids=UNSAVABLE)
def test_what_a_file_cannot_say_is_named_with_a_way_out(make, said):
    with pytest.raises(cc.ConvCircuitsError, match=said) as caught:
        graphs.to_json(make())
    assert "torch.export.save(" in str(caught.value)


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


def add_tensor(name, *, listed=True, read=False, dtype=torch.float32):
    def change(said, tensors):
        tensors[name] = torch.ones(1, dtype=dtype)
        if listed:
            said["tensors"].append(name)
        if read:
            call("aten.add.Tensor", self=X, other={"constant": name})(said, tensors)

    return change


def many(count):
    def change(said, tensors):
        for _ in range(count):
            call("aten.relu.default", self=said["output"])(said, tensors)

    return change


def growing(name, /, **given):
    """The same step again and again, each on the result of the one before."""

    def change(said, tensors):
        said["output"] = X
        for _ in range(12):
            call(name, self=said["output"], **given)(said, tensors)

    return change


def outer_products(said, tensors):
    call("aten.reshape.default", self=X, shape=[-1, 1])(said, tensors)
    for _ in range(3):
        column = {"result": len(said["steps"])}
        call("aten.transpose.int", self=column, dim0=0, dim1=1)(said, tensors)
        call("aten.matmul.default", self=column, other={"result": len(said["steps"])})(said, tensors)
        call("aten.reshape.default", self={"result": len(said["steps"])}, shape=[-1, 1])(said, tensors)


def all_at_once(said, tensors):
    made = []
    for _ in range(2000):
        call("aten.repeat.default", self=X, repeats=[1, 1, 64, 64])(said, tensors)
        made.append({"result": len(said["steps"])})
    call("aten.cat.default", tensors=made)(said, tensors)


X = {"result": 0}
DEEP = X
for _ in range(400):
    DEEP = [DEEP]
TRICKS = {  # of issue 4: each let a file of the first format run Python
    "a node called self": add_step({"call": "aten.relu.default", "given": {"self": X}, "name": "self"}),
    "an attribute of a method": add_step(
        {"op": "get_attr", "target": "backward.__globals__", "args": [], "kwargs": {}}
    ),
    "a constant that is an attribute": call("aten.add.Tensor", self=X, other={"constant": "backward.__globals__"}),
    "a constant of an own method": call("aten.add.Tensor", self=X, other={"constant": "forward"}),
    "an item by name": call("getitem", input=X, index="__builtins__"),
    "an item of a constant": call("getitem", input={"constant": "backward.__globals__"}, index="__builtins__"),
    "a list as receiver": call("aten.select.int", self=[X], dim=0, index=0),
    "a nested list as receiver": call("aten.select.t", list=[[X]], idx=0),
    "a text as receiver": call("aten.split.str", self="a b", separator=" "),
    "a sort by eval": call("sort", input=["__import__('pathlib').Path('harm').touch()"], key="eval"),
    "a sort of a result by eval": call("aten.sort.default", self=X, key="eval"),
    "a sort by a constant": call("aten.sort.default", self=X, key={"constant": "eval"}),
}
HOSTILE = TRICKS | {
    "os.system": call("os.system", command="touch harm"),
    "builtins": call("builtins.exec", input="import pathlib; pathlib.Path('harm').touch()"),
    "eval": call("eval", input="1"),
    "getattr": call("getattr", input=X, name="__class__"),
    "torch.load": call("torch.load", f="harm"),
    "a private method": call("aten.__class__.default", self=X),
    "another library": call("prim.device.default", self=X),
    "an operation by half its name": call("relu.default", self=X),
    "a packet": call("aten.relu", self=X),
    "strides": call("aten.as_strided.default", self=X, size=[4], stride=[1 << 40]),
    "bits as others": call("aten.view.dtype", self=X, dtype={"dtype": "torch.int32"}),
    "memory that nobody wrote": call("aten.empty_like.default", self=X),
    "memory of a tensor": call("aten.set_.source_Tensor", self=X, source=X),
    "a file": call("aten.from_file.default", filename="harm", shared=True, size=4),
    "a number of a tensor": call("aten.item.default", self=X),
    "a shape": call("aten.sym_size.int", self=X, dim=0),
    "random numbers": call("aten.rand_like.default", self=X),
    "a result written to": call("aten.relu_.default", self=X),
    "out": call("aten.add.out", self=X, other=X, out=X),
    "out as an argument": call("aten.add.Tensor", self=X, other=X, out=X),
    "shapes of values": call("aten.nonzero.default", self=X),
    "shapes of values by a mask": lambda said, t: (
        call("aten.gt.Scalar", self=X, other=0)(said, t),
        call("aten.index.Tensor", self=X, indices=[said["output"]])(said, t),
    ),
    "a name that is no text": add_step({"call": ["aten.add.Tensor"], "given": {"self": X, "other": X}}),
    "a name in code": call("aten.add.Tensor(1); Path('harm').touch(); x.add", self=X, other=1),
    "a parameter in code": call("aten.add.Tensor", self=X, other=X, **{"alpha=1); Path('harm').touch(); (x": 1}),
    "a parameter that is a keyword": call("aten.add.Tensor", self=X, other=X, **{"import": 1}),
    "a parameter of another operation": call("aten.add.Tensor", self=X, other=X, dim=1),
    "no receiver": call("aten.add.Tensor", other=X),
    "a number as receiver": call("aten.relu.default", self=1),
    "no tensor": call("aten.add.Tensor", self=1, other=1),
    "training": call(
        "aten.batch_norm.default",
        **dict.fromkeys(("input", "weight", "bias", "running_mean", "running_var"), X),
        training=True,
        momentum=0.1,
        eps=1e-5,
        cudnn_enabled=True,
    ),
    "a device": call("aten._to_copy.default", self=X, device="cuda"),
    "a device as dtype": call("aten.to.dtype", self=X, dtype="cuda"),
    "a quantised type": call("aten.to.dtype", self=X, dtype={"dtype": "torch.qint8"}),
    "pinned memory": call("aten.ones_like.default", self=X, pin_memory=True),
    "another type of number": call("aten.add.Tensor", self=X, other=X, alpha="1"),
    "a huge number": call("aten.add.Tensor", self=X, other=10**30),
    "a word": call("aten.gelu.default", self=X, approximate="harm"),
    "a number in place of a word": call("aten.grid_sampler_2d.default", input=X, grid=X, interpolation_mode=7),
    "a layer of the module itself": add_step({"layer": "forward", "of": X}),
    "a layer that only holds others": add_step({"layer": "block1", "of": X}),
    "a layer of a text": add_step({"layer": "stem", "of": "harm"}),
    "a layer of a constant": add_step({"layer": "stem", "of": {"constant": "stem.weight"}}),
    "a layer with more": add_step({"layer": "stem", "of": X, "then": X}),
    "a layer and a call": add_step({"layer": "stem", "of": X, "call": "aten.relu.default", "given": {"self": X}}),
    "no step": add_step([]),
    "an old step": add_step({"call": "relu", "given": {"input": X}}),
    "a later result": call("aten.add.Tensor", self={"result": 10**6}, other=1),
    "its own result": lambda said, t: call("aten.relu.default", self={"result": len(said["steps"]) + 1})(said, t),
    "a result before the images": call("aten.relu.default", self={"result": -1}),
    "a result that is no number": call("aten.relu.default", self={"result": True}),
    "part of a tensor": call("aten.relu.default", self={"result": 0, "part": 0}),
    "a result of several": lambda said, t: (
        call("aten.split.Tensor", self=X, split_size=2, dim=1)(said, t),
        call("aten.relu.default", self=said["output"])(said, t),
    ),
    "an output of several": call("aten.split.Tensor", self=X, split_size=2, dim=1),
    "an output that is no result": lambda said, t: said.update(output={"constant": "stem.weight"}),
    "no output": lambda said, t: said.update(output=[]),
    "an unknown argument": call("aten.add.Tensor", self=X, other={"object": "os"}),
    "two arguments in one": call("aten.add.Tensor", self=X, other={"float": "1", "dtype": "torch.int8"}),
    "an unknown constant": call("aten.add.Tensor", self=X, other={"dtype": "os"}),
    "a deep argument": call("aten.reshape.default", self=X, shape=DEEP),
    "a long argument": call("aten.reshape.default", self=X, shape=[1] * 100_000),
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
    "a layer of other size": option("Conv2d", "out_channels", 6),
    "an empty layer": option("Conv2d", "out_channels", 0),
    "no stride": option("Conv2d", "stride", [0, 1]),
    "no dilation": option("Conv2d", "dilation", [1, 0]),
    "negative padding": option("Conv2d", "padding", [-1, 1]),
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
    "a tensor of another type": add_tensor("more", read=True, dtype=torch.float8_e4m3fn),
    "repeat": call("aten.repeat.default", self=X, repeats=[1 << 20, 1 << 20, 1, 1]),
    "expand": call("aten.expand.default", self=X, size=[1 << 30, 1 << 20, 2, 3, 16, 16]),
    "pad": call("aten.constant_pad_nd.default", self=X, pad=[1 << 20, 1 << 20, 1 << 20, 1 << 20]),
    "padding of a layer": option("Conv2d", "padding", [1 << 20, 1 << 20]),
    "resize": call("aten.upsample_nearest2d.vec", input=X, output_size=None, scale_factors=[1e5, 1e5]),
    "a scale that is another than the sizes": call(
        "aten.upsample_bilinear2d.default", self=X, output_size=[4, 4], align_corners=False, scales_h=1e-30
    ),
    "repeat_interleave": growing("aten.repeat_interleave.self_int", repeats=1000, dim=1),
    "fold": lambda said, t: (
        call("aten.reshape.default", self=X, shape=[-1, 3, 256])(said, t),
        call(
            "aten.col2im.default",
            self=said["output"],
            output_size=(15 << 16) + 1,
            kernel_size=1,
            stride=1 << 16,
            dilation=1,
            padding=0,
        )(said, t),
    ),
    "adaptive pooling": call("aten.adaptive_avg_pool2d.default", self=X, output_size=[1 << 20, 1 << 20]),
    "ones": call("aten.new_ones.default", self=X, size=[1 << 20, 1 << 20]),
    "a spectrum": call("aten.fft_fft.default", self=X, n=1 << 40),
    "outer products": outer_products,
    "much at once": all_at_once,
}


def hostile_file(change, path):
    module = handmade("residual")
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
    again = cc.load(hostile_file(lambda said, tensors: None, tmp_path / "f.safetensors"))
    check_same(again, handmade("residual"), images())


def test_images_for_which_results_would_be_too_large_are_refused(tmp_path):
    def change(said, tensors):
        call("aten.reshape.default", self=X, shape=[-1, 1])(said, tensors)
        column = said["output"]
        call("aten.transpose.int", self=column, dim0=0, dim1=1)(said, tensors)
        call("aten.matmul.default", self=column, other=said["output"])(said, tensors)

    module = cc.load(hostile_file(change, tmp_path / "f.safetensors"))
    assert module(torch.zeros(1, 3, 8, 8)).shape == (192, 192)
    with pytest.raises(cc.ConvCircuitsError, match="needs 22,658,678,784 values at once"):
        module(torch.zeros(1, 3, 224, 224))


def test_a_copy_is_made_of_nothing_that_changes_later():
    module = handmade("residual")
    said, tensors = said_by(module), {name: t.clone() for name, t in module.state_dict().items()}
    before = copy.deepcopy(said)
    again = graphs.from_json(said, tensors)
    assert said == before
    check_same(again, module, images())


NAMES = ["global", "class", "in", "None", "self", "meta", "conv/1", 'a"b', "a'b", "back\\slash", "ﬁ", "new\nline", "x"]
NAMES += ["__import__", "output", "shape", "steps", "run", "filters", "é 電", "{x}", "%s"]


def exported(module, x):
    return torch.export.export(module, (x,)).module()


@pytest.mark.slow
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
    x = images()
    module(x)
    with pytest.raises(cc.ConvCircuitsError, match="torch generates code from the names"):
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
    | st.sampled_from([{"dtype": "torch.float32"}, {"dtype": "eval"}, {"float": "inf"}]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
RESULT = st.integers(0, 2).map(lambda n: {"result": n})
LIKELY = {  # so that many of the attacker's steps are taken
    "Tensor": RESULT,
    "List[Tensor]": st.lists(RESULT, min_size=1, max_size=3),
    "List[Optional[Tensor]]": st.lists(RESULT | st.none(), min_size=1, max_size=3),
    "int": st.integers(-2, 9),
    "List[int]": st.lists(st.integers(-1, 64), min_size=1, max_size=5),
    "List[float]": st.lists(st.floats(-2, 2), min_size=1, max_size=3),
    "bool": st.booleans(),
    "number": st.floats(-2, 2),
    "float": st.floats(-2, 2),
    "None": st.none(),
}


@st.composite
def attacks(draw):
    operation = OPERATIONS[draw(st.sampled_from(sorted(OPERATIONS)))]
    given = {}
    for name, known in operation.parameters.items():
        if not known.has_default_value() or not draw(st.integers(0, 3)):
            kind = operation.kind(name).removeprefix("Optional[")
            likely = LIKELY.get(kind, LIKELY.get(kind[:-1], ANY))
            given[name] = draw(likely if draw(st.integers(0, 19)) else ANY)
    if not draw(st.integers(0, 19)):
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
    module = handmade("residual")
    return said_by(module), dict(module.state_dict()), images()


IMAGES = images()
TAKEN = {"refused": 0, "run": 0}


@settings(database=None, max_examples=600, suppress_health_check=list(HealthCheck))
@given(st.lists(attacks(), min_size=1, max_size=3))
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


@pytest.mark.slow
def test_an_attacker_reaches_nothing_but_tensors_and_is_refused_or_run(watched):
    attack(watched)
    assert min(TAKEN.values()) > 20, TAKEN
