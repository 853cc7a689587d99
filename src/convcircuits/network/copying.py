"""Private copies of models, which share the weights but nothing else that a run could change."""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from convcircuits.errors import ConvCircuitsError

# The switches for checkpointing in timm and transformers. It saves memory in training and changes no result.
_CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")


class WrittenError(BaseException):
    """Stop a run before it writes to a shared weight. Not an ``Exception``, so that no model catches it."""


def private_copy(model: nn.Module) -> nn.Module:
    """Copy the module tree in eval mode. Weights are shared, as parameters without gradients.

    Everything else in the modules is copied: buffers, counters, maps kept from an earlier run. The model's ``train``
    and ``eval`` methods are not called, as they may do anything.

    Raises:
        ConvCircuitsError: If the model is not a module, is scripted, has weights without values or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise ConvCircuitsError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ConvCircuitsError(
            "Scripted models are not supported; give the model from before torch.jit.script or torch.jit.trace."
        )
    model = getattr(model, "_orig_mod", model)  # the module that torch.compile wraps
    _check_values(model)
    shared: dict[int, Any] = {id(p): _shared(p) for p in model.parameters()} | _empty_copies(model)
    try:
        with _DetachedCopies():
            copied = _uncompiled(copy.deepcopy(model, shared))
    except Exception as error:
        raise ConvCircuitsError(
            f"{type(model).__name__} cannot be copied ({error}); convcircuits works on a copy of the module tree that "
            "shares your weights, so each module must support copy.deepcopy."
        ) from error
    for module in copied.modules():
        module.training = False
        for name in _CHECKPOINTING:
            if getattr(module, name, False) is True:
                setattr(module, name, False)
    return copied


def _empty_copies(model: nn.Module) -> dict[int, Any]:
    """Return copies of the modules' empty ordered dictionaries, by the id of what they are copies of.

    Each module has a dozen, for its hooks, for which ``copy.deepcopy`` takes as long as for all else together.
    """
    values = (value for module in model.modules() for value in vars(module).values() if type(value) is OrderedDict)
    return {id(value): OrderedDict() for value in values if not value and not vars(value)}


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters and buffers, detached but not copied, with their names in the private copy."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name.replace("_orig_mod.", ""), tensor.detach()


def storage(tensor: Tensor) -> int | None:
    """Return an identifier of a tensor's storage; None for sparse and other layouts without a single storage."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else None


class WriteGuard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Intercept writes: stop before a shared weight is written to, and record which buffers are.

    Every operator is intercepted, however it is called in Python, which takes time.

    Args:
        shared: Storages (see ``storage``) of the weights that must not be written to.
        buffers: Buffers by name.
    """

    def __init__(self, shared: Set[int | None], buffers: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shared = shared - {None}
        self._buffers = {storage(tensor): name for name, tensor in buffers.items()}
        self.written: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which is slow and sets an environment variable

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                self._watch(argument, value)
            for argument in func._schema.arguments:
                if argument.name in kwargs:
                    self._watch(argument, kwargs[argument.name])
        return func(*args, **kwargs)

    def _watch(self, argument: Any, value: Any) -> None:
        if argument.alias_info is None or not argument.alias_info.is_write:
            return
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            memory = storage(tensor) if isinstance(tensor, Tensor) else None
            if memory in self._shared:
                raise WrittenError
            if memory in self._buffers:
                self.written.add(self._buffers[memory])


def differs(a: Tensor, b: Tensor) -> bool:
    """Return whether any value differs; NaN equals NaN."""
    return not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


class _DetachedCopies(TorchFunctionMode):
    """Copy the values of tensors that are results of a computation, which ``copy.deepcopy`` refuses to copy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and (not args[0].is_leaf or args[0].is_inference()):
            tensor, memo = args
            memo[id(tensor)] = _values(tensor)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _values(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _shared(parameter: Tensor) -> nn.Parameter:
    """Return a parameter that shares a weight's memory. Inference tensors are copied, as they cannot have gradients."""
    values = _values(parameter) if parameter.is_inference() else parameter.data  # has its own version counter
    return nn.Parameter(values, requires_grad=False)


def _check_values(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ConvCircuitsError(
                f"{name} of {type(model).__name__} has no shape yet, because its layer is lazy and has not run. "
                "Call the model once on an image first."
            )
        if tensor.is_meta:
            raise ConvCircuitsError(
                f"{name} of {type(model).__name__} is on the meta device, which holds no values. "
                "Move the model to another device (to_empty) and load its weights first."
            )


def _uncompiled(model: nn.Module) -> nn.Module:
    """Replace each compiled module by the module that torch.compile wraps."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            parent._modules[key] = getattr(child, "_orig_mod", child)
    return model
