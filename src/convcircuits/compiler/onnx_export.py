"""Export extracted modules to ONNX, checked with onnxruntime."""

import copy
import importlib
import warnings
from typing import Any

import torch
from torch import Tensor

from convcircuits.compiler.interpreter import CircuitModule, program_of, with_plain_names
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.surroundings import environment_kept

TOLERANCE = 1e-4  # of the largest value, as another runtime sums in another order
_OPSET = 18


def onnx_bytes(module: CircuitModule) -> bytes:
    """Export a module with a free batch size, and compare onnxruntime with torch for two batch sizes.

    The input is named ``images``, the output ``maps``. The image size is fixed to that for which the circuit was
    extracted.

    Raises:
        ConvCircuitsError: If the extra ``onnx`` is not installed, if the module cannot be exported, or if onnxruntime
            cannot run it or computes other values.
    """
    check_onnx_installed()
    module = with_plain_names(copy.deepcopy(module)).eval().cpu()
    content = _exported(module, _images(module, 2))
    for count in (1, 3):
        images = _images(module, count)
        with torch.no_grad():
            expected = module(images)
        _check(_run(content, images), expected)
    return content


def check_onnx_installed() -> None:
    """Check that the packages needed for an export are installed.

    Raises:
        ConvCircuitsError: If one of them cannot be imported.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _require(package)


def _images(module: CircuitModule, count: int) -> Tensor:
    dtype = next((x.dtype for x in module.state_dict().values() if x.is_floating_point()), torch.float32)
    return torch.randn(count, *program_of(module).shape, generator=torch.Generator().manual_seed(count)).to(dtype)


def _exported(module: CircuitModule, images: Tensor) -> bytes:
    try:
        with environment_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the exporter itself
            program: Any = torch.onnx.export(
                module,
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=["maps"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=_OPSET,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types
        reason = str(error).strip().partition("\n")[0]
        raise ConvCircuitsError(f"torch.onnx cannot export this module: {reason}.") from error
    content: bytes = program.model_proto.SerializeToString()
    return content


def _run(content: bytes, images: Tensor) -> Tensor:
    runtime = _require("onnxruntime")
    try:
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (maps,) = session.run(None, {"images": images.numpy()})
    except Exception as error:  # onnxruntime raises many types
        reason = str(error).strip().partition("\n")[0]
        raise ConvCircuitsError(
            f"onnxruntime cannot run the exported module ({reason}); try a model in float32."
        ) from error
    return torch.from_numpy(maps)


def _check(maps: Tensor, expected: Tensor) -> None:
    largest = float(expected.abs().max())
    worst = float((maps - expected).abs().max()) if maps.shape == expected.shape else float("inf")
    if not worst <= max(TOLERANCE, 10 * torch.finfo(expected.dtype).eps) * largest:
        raise ConvCircuitsError(
            f"onnxruntime and torch disagree on this module: maps of shape {tuple(maps.shape)} differ by {worst:.1e}, "
            f"where the largest value is {largest:.1e}; nothing was written. Please report this model."
        )


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConvCircuitsError(
            f"ONNX export needs the package {package} ({error}): pip install 'convcircuits[onnx]'."
        ) from error
