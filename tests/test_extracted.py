"""What an extracted module is good for: torch.export, torch.compile, state dicts, copies, other dtypes."""

import copy
import pickle

import pytest
import torch

import convcircuits as cc
from architectures import REAL, real
from cases import extracted
from nets import NETS

LARGE = [f"torchvision:{name}" for name in ("resnet18", "googlenet", "shufflenet_v2_x1_0", "densenet121")]
ZOO = [pytest.param(name, marks=pytest.mark.zoo) for name in LARGE]
TINY = ["residual", "inception", "grouped", "flat_head", "se_linear", "dense"]
MADE = {}


def made(name):
    """A module, made once, and images for it."""
    if name not in MADE:
        if name in LARGE:
            x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
            MADE[name] = extracted(real(name), cc.Feature(REAL[name], 1), x, 0.3), x
        else:
            case = NETS[name]
            MADE[name] = extracted(case.build(), cc.Feature(*case.features[-1]), case.images(), 0.9), case.images()
    return MADE[name]


def run(module, x):
    with torch.no_grad():
        return module(x)


every = pytest.mark.parametrize("name", [*TINY, *ZOO])


@pytest.mark.slow
@every
def test_it_is_exported_with_any_number_of_images(name):
    module, x = made(name)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for count in (1, 2, 3):
        torch.testing.assert_close(run(exported, x[:count]), run(module, x[:count]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "flat_head", *ZOO])
def test_it_compiles_whole(name):
    module, x = made(name)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, x), run(module, x))
    torch._dynamo.reset()


@every
def test_a_copy_is_its_own_and_computes_the_same(name):
    module, x = made(name)
    module.meta["circuit"] = {"feature": name}
    assert copy.deepcopy(module).meta["circuit"] == {"feature": name}
    expected = run(module, x)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(run(again, x), expected)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        assert torch.equal(run(module, x), expected)


@every
def test_its_state_loads_into_another(name):
    module, x = made(name)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in (*other.parameters(), *(b for b in other.buffers() if b.is_floating_point())):
            tensor.zero_()
    other.load_state_dict(module.state_dict())
    assert torch.equal(run(other, x), run(module, x))


@pytest.mark.parametrize("name", TINY)
def test_its_state_loads_into_a_fresh_extraction(name):
    module, x = made(name)
    case = NETS[name]
    fresh = extracted(case.build(), cc.Feature(*case.features[-1]), case.images(), 0.9)
    assert torch.equal(run(fresh, x), run(module, x))
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(run(fresh, x), run(module, x))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@every
def test_it_moves_to_another_dtype(name, dtype, near):
    module, x = made(name)
    expected = run(copy.deepcopy(module).double(), x.double())
    got = run(copy.deepcopy(module).to(dtype), x.to(dtype))
    assert got.dtype == dtype
    assert float((got.double() - expected).abs().max()) <= near * float(expected.abs().max())


@every
def test_it_trains(name):
    module, x = made(name)
    module = copy.deepcopy(module)
    module(x).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())
