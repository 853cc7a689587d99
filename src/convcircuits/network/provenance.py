"""Provenance: enough to identify a result and to compute it again."""

import contextlib
import functools
import hashlib
import inspect
import itertools
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import KernelCall
from convcircuits.network.capture import Network
from convcircuits.network.reach import Survey
from convcircuits.values.feature import Feature
from convcircuits.version import __version__


def describe(network: Network, feature: Feature, survey: Survey) -> dict[str, Any]:
    """Return the feature, the model's weights and the versions."""
    return {
        "model": network.name,
        "weights": weights_hash(network, survey),
        "feature": str(feature),
        "input_shape": list(survey.input_shape),
        "versions": {
            "convcircuits": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def weights_hash(network: Network, survey: Survey) -> str:
    """Return a hash of the weights of the modules that run up to the feature (32 hexadecimal digits).

    Every byte is read, at 1 to 2 GB/s, because a cache by tensor version would miss writes through ``.data``.
    """
    return tensors_hash(network.state(survey.modules))


def weights_up_to(network: Network, feature: Feature, images: Tensor) -> str:
    """Return the hash that ``weights_hash`` gives for a feature's layer, from one run instead of a survey."""
    modules: dict[str, None] = {}
    target, calls = network.layer(feature.layer), itertools.count()

    def kernel(call: KernelCall) -> Tensor:
        modules[call.layer] = None
        return call.compute()

    def on_exit(module: nn.Module, output: Any) -> None:
        modules[network.running()] = None
        if module is target and next(calls) == (feature.call or 0):
            modules.update(dict.fromkeys(network.all_running()))
            raise _Reached

    with torch.no_grad(), contextlib.suppress(_Reached):
        network.forward(images, kernel, on_exit)
    return tensors_hash(network.state(modules))


class _Reached(BaseException):
    """Stop a forward pass after the feature's layer. Not an ``Exception``, so that no model catches it."""


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of named tensors (32 hexadecimal digits)."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()[:32]


def architecture_hash(model: nn.Module) -> str:
    """Return a hash of a model's modules and the code of their classes, but not its weights (32 hexadecimal digits).

    Two models may share all weights and compute different maps: one with another stride, or whose code was edited.
    """
    kinds = {kind for kind in map(type, model.modules()) if not kind.__module__.startswith("torch.")}
    return _hash_of([repr(model).encode(), *sorted(map(_code_of_class, kinds))])


def _code_of_class(kind: type) -> bytes:
    try:
        if kind.__module__ == "__main__":  # the file also holds what is done with the model, which may change
            return inspect.getsource(kind).encode()
        return Path(str(inspect.getsourcefile(sys.modules[kind.__module__]))).read_bytes()
    except (OSError, TypeError, KeyError):
        return f"{kind.__module__}.{kind.__qualname__}".encode()


def code_hash(function: Callable[..., Any]) -> str:
    """Return a hash of a function's source and of the values that it holds, its defaults and those of its closure.

    The code of other functions that it calls is not part of it. The hash is the same in every process.
    """
    held: list[Any] = []
    while isinstance(function, functools.partial):
        held += [function.args, function.keywords]
        function = function.func
    held += [getattr(function, name, None) for name in ("__defaults__", "__kwdefaults__", "__dict__")]
    with contextlib.suppress(TypeError, ValueError):  # an object that can be called, or an empty cell
        held.append(dict(inspect.getclosurevars(function).nonlocals))
    try:
        source = inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        source = repr(function) if code is None else f"{code.co_code!r}{code.co_consts!r}{code.co_names!r}"
    return _hash_of([re.sub(" at 0x[0-9a-fA-F]+", "", text).encode() for text in (source, repr(held))])


def _hash_of(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:32]


def check_same_model(provenance: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Check that a circuit or scores belong to the present weights.

    Raises:
        ConvCircuitsError: If the hashes of the weights differ.
    """
    if provenance.get("weights") != present["weights"]:
        raise ConvCircuitsError(
            f"This belongs to another model: it was made with {provenance.get('model')} with weights "
            f"{str(provenance.get('weights'))[:8]}, but the given model is {present['model']} with weights "
            f"{present['weights'][:8]}. Give the model it was made with, or find the circuit again."
        )
