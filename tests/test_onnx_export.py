"""ONNX: what is exported computes the same in onnxruntime, for any number of images, or is not written."""

import os
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import convcircuits as cc
from architectures import real
from cases import extracted
from convcircuits.compiler import onnx_export as onnxfile
from handmade import HANDMADE, handmade, images
from nets import Named

pytestmark = pytest.mark.slow


def run(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["maps"]
    return session.run(None, {"images": x.numpy()})[0]


def check(module, x, tmp_path):
    state = {name: t.clone() for name, t in module.state_dict().items()}
    path = cc.save(module, tmp_path / "f.onnx")
    onnx.checker.check_model(path, full_check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["f.onnx"]
    for count in (1, 2, len(x)):
        with torch.no_grad():
            expected = module(x[:count]).numpy()
        np.testing.assert_allclose(run(path, x[:count]), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert all(torch.equal(t, module.state_dict()[name]) for name, t in state.items())


@pytest.mark.parametrize("name", HANDMADE)
def test_modules_run_in_onnxruntime(name, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    environment = dict(os.environ)
    check(handmade(name), images(5), tmp_path)
    assert dict(os.environ) == environment


@pytest.mark.zoo
@pytest.mark.parametrize(("spec", "layer"), [("torchvision:resnet18", "layer2"), ("timm:convnextv2_atto", "stages.1")])
def test_real_networks_run_in_onnxruntime(spec, layer, tmp_path):
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    module = extracted(real(spec), cc.Feature(layer, 1), x, 0.3)
    check(module, x, tmp_path)


@pytest.mark.parametrize("name", ["global", "meta", 'a"b', "new\nline", "ﬁ", "conv/1", "graph"])
def test_layers_of_any_name_run_in_onnxruntime(name, tmp_path):
    torch.manual_seed(0)
    model, x = Named(name).eval(), torch.randn(3, 3, 8, 8)
    circuit = cc.find(model, cc.Feature(f"inner.{name}.0", 1), x, density=0.8)
    module = cc.extract(model, circuit)
    names = [*module.state_dict()]
    check(module, x, tmp_path)
    assert [*module.state_dict()] == names


def refused(module, tmp_path, match):
    with pytest.raises(cc.ConvCircuitsError, match=match):
        cc.save(module, tmp_path / "f.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_it_says_what_to_install(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    refused(handmade("flat"), tmp_path, rf"package {package} .*pip install 'convcircuits\[onnx\]'")


def test_what_differs_in_onnxruntime_is_not_written(tmp_path, monkeypatch):
    module = handmade("flat")
    real_run = onnxfile._run
    for wrong in (lambda maps: maps * 1.001, lambda maps: maps[:, :1], lambda maps: maps * float("nan")):
        monkeypatch.setattr(onnxfile, "_run", lambda content, x, wrong=wrong: wrong(real_run(content, x)))
        refused(module, tmp_path, "onnxruntime and torch disagree")


def test_what_the_runtime_cannot_run_is_an_error_that_says_which_dtype_may(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Conv\nmore")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    refused(handmade("flat"), tmp_path, r"NOT_IMPLEMENTED : Conv\); try a model in float32")


def test_half_precision_is_compared_at_its_own_precision(tmp_path):
    module, x = handmade("residual"), images()
    path = cc.save(module.half(), tmp_path / "f.onnx")
    assert run(path, x.half()).dtype == np.float16


def test_what_the_exporter_cannot_export_is_an_error_of_ours(tmp_path, monkeypatch):
    module = handmade("flat")
    monkeypatch.setattr("torch.onnx.export", lambda *args, **kwargs: 1 / 0)
    refused(module, tmp_path, r"torch\.onnx cannot export this module")
