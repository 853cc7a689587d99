"""Run a model up to a feature and intercept every conv and linear call. Models are run nowhere else.

The user's model is never touched. A ``Network`` is a private copy of its module tree that shares all weights. Hooks on
the copy track which module runs, and a ``torch.overrides.TorchFunctionMode`` intercepts the calls of ``conv2d`` and
``linear``; it sees the input and weight that are actually used and is local to the thread. A model that writes to its
weights while it runs gets copies of them.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import ConvCall, KernelCall, LinearCall
from convcircuits.network.copying import WriteGuard, WrittenError, differs, private_copy, storage, tensors_of
from convcircuits.values.feature import Feature
from convcircuits.values.tables import suggest

_FLATTEN = {torch.flatten, Tensor.flatten, Tensor.view, Tensor.reshape, torch.reshape}
_UNSUPPORTED = {
    torch.conv1d: "a 1-D convolution",
    torch.conv3d: "a 3-D convolution",
    torch.conv_transpose1d: "a transposed convolution",
    torch.conv_transpose2d: "a transposed convolution",
    torch.conv_transpose3d: "a transposed convolution",
    F.bilinear: "a bilinear layer",
    F.multi_head_attention_forward: "attention",
    F.scaled_dot_product_attention: "attention",
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), "a recurrent layer"),
    **dict.fromkeys((torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell), "a recurrent layer"),
}

# torch.utils.checkpoint uses hooks on the tensors that autograd saves, to recompute them instead.
_hooks: Any = torch._C._autograd


class _Reached(BaseException):
    """Stop a forward pass after the feature's layer. Not an ``Exception``, so that no model catches it."""


class Network:
    """A private copy of a model's module tree, in eval mode, that shares its weights.

    Args:
        model: The model; it is not changed and not used again.

    Attributes:
        composed: While a recorder runs, computes functions that torch composes of several operations; else None.

    Raises:
        ConvCircuitsError: If the model is not a module, is scripted or has weights without values, or if this is called
            in inference mode.
    """

    def __init__(self, model: nn.Module) -> None:
        if torch.is_inference_mode_enabled():
            raise ConvCircuitsError(
                "convcircuits cannot run inside torch.inference_mode(), which forbids gradients; "
                "use torch.no_grad() or remove it."
            )
        self.module = private_copy(model)
        self.name = type(model).__name__
        self._given = dict(tensors_of(model))
        self._changing: set[str] | None = None
        self.names = dict(self.module.named_modules(remove_duplicate=False))
        self._first_name = {module: name for name, module in self.module.named_modules()}
        self._layer_of_weight = {
            id(parameter): name.removesuffix(".weight") if "." in name else name.removesuffix("weight")
            for name, parameter in self.module.named_parameters()
        }
        parameter = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        if parameter is None:
            raise ConvCircuitsError(f"{self.name} has no floating-point parameters, so it has no kernels.")
        self.device, self.dtype = parameter.device, parameter.dtype
        self._running: list[nn.Module] = []
        self._on_exit: Callable[[nn.Module, Any], None] = lambda module, output: None
        self.composed: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any] | None = None
        self.shared = frozenset(map(storage, self.module.parameters()))
        self._counters = [
            (vars(module), key)
            for module in self._first_name
            for key, value in vars(module).items()
            if isinstance(value, Tensor)
        ]
        self._called: nn.Module | None = None
        for module in self._first_name:
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._exit)
            module.forward = functools.partial(self._forward, module, module.forward)

    def layer(self, name: str) -> nn.Module:
        """Return a module by any of its names.

        Raises:
            ConvCircuitsError: If there is no such module; the message suggests similar names.
        """
        if name not in self.names:
            known = [n for n in self.names if n]
            raise ConvCircuitsError(f"{self.name} has no layer {name!r}. {suggest(name, known)}")
        module: nn.Module = self.names[name]
        return module

    def run(
        self,
        feature: Feature,
        images: Tensor,
        kernel: Callable[[KernelCall], Tensor],
        *,
        rows: Tensor | None = None,
        copied: frozenset[str] = frozenset(),
    ) -> Tensor:
        """Run the model up to the feature's layer and return that layer's output.

        Args:
            feature: The feature, which names the layer and, if it runs several times, the call.
            images: Shape (N, C, H, W), on the model's device and in its dtype.
            kernel: Computes each call of conv2d and linear.
            rows: The only filters of the feature's layer to compute, if its output is that of its one kernel call.
            copied: Layers whose input is overwritten later, so that their calls get a copy.
        """
        target, calls, found = self.layer(feature.layer), 0, None

        def on_exit(module: nn.Module, output: Any) -> None:
            nonlocal calls, found
            if module is target:
                calls += 1
                if calls - 1 == (feature.call or 0):
                    found = output
                    raise _Reached

        def on_kernel(call: KernelCall) -> Tensor:
            if call.layer in copied:
                call = replace(call, x=call.x.clone())
            if rows is not None and self.runs_itself(target):
                bias = None if call.bias is None else call.bias[rows]
                call = replace(call, weight=call.weight[rows], bias=bias, rows=rows)
            return kernel(call)

        try:
            self.forward(images, on_kernel, on_exit)
        except _Reached:
            try:
                return checked_output(feature, found, len(images))
            except ConvCircuitsError as error:
                raise ConvCircuitsError(f"{_if_alone(images)}{error}") from error
        except (RuntimeError, TypeError, IndexError) as error:
            raise ConvCircuitsError(
                f"{self.name} cannot run on images of shape {tuple(images.shape[1:])} in a batch of {len(images)}: "
                f"{error} {_if_alone(images)}"
            ) from error
        raise no_such_call(feature, calls, self.name)

    def forward(
        self,
        images: Tensor,
        kernel: Callable[[KernelCall], Tensor],
        on_exit: Callable[[nn.Module, Any], None],
    ) -> None:
        """Run the whole model, with every kernel call computed by ``kernel`` and ``on_exit`` called after every module.

        Each run starts from the model as it was given, whatever earlier runs changed in it.
        """
        self._restore()
        self._running.clear()
        self._called = None
        self._on_exit = on_exit
        try:
            with self._watched(), _Interception(self, kernel):
                self.module(images.clone())  # the model may overwrite its input
        except WrittenError:
            self.shared, self._changing = frozenset(), None
            self.forward(images, kernel, on_exit)
        finally:
            self._on_exit = lambda module, output: None

    def state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the given model's floating-point parameters and buffers that have these names or whose modules do.

        Buffers that the model writes to while it runs are omitted: they are statistics (counters, ranges), not weights.
        """
        wanted = set(names)
        return {
            name: tensor
            for name, tensor in self._given.items()
            if {name, name.rpartition(".")[0]} & wanted
            and tensor.is_floating_point()
            and name not in (self._changing or ())
        }

    def running(self) -> str:
        """Return the name of the innermost running module."""
        return self._first_name[self._running[-1]] if self._running else ""

    def all_running(self) -> list[str]:
        """Return the names of the running modules, outermost first."""
        return [self._first_name[module] for module in self._running]

    def runs_itself(self, module: nn.Module) -> bool:
        """Return whether a module is the innermost running one."""
        return bool(self._running) and self._running[-1] is module

    def kernel_layer(self, weight: Tensor) -> str:
        """Return the layer that owns a weight; a computed weight belongs to the running module."""
        return self._layer_of_weight.get(id(weight), self.running())

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Record, during the first run, which weights and buffers the model writes to."""
        if self._changing is not None:
            yield
            return
        buffers = dict(self.module.named_buffers())
        guard = WriteGuard(self.shared, buffers)
        try:
            with guard:
                yield
        finally:
            changed = {
                name
                for name, buffer in self.module.named_buffers()
                if buffer is not buffers.get(name) or differs(buffer, self._given[name])
            }
            self._changing = guard.written | changed

    def _restore(self) -> None:
        """Restore the weights and buffers that the last run changed, and release its gradients."""
        for name in self._changing or ():
            prefix, _, key = name.rpartition(".")
            self.names[prefix]._buffers[key] = self._given[name].clone()
        for owner, key in self._counters:
            owner[key] = owner[key].detach()
        if not self.shared:
            for name, parameter in self.module.named_parameters():
                parameter.data = self._given[name].clone()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)
        self._called = module

    def _forward(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a module's ``forward``, and do what hooks would do if the model calls ``forward`` directly."""
        called, self._called = self._called is module, None
        if called:
            return forward(*args, **kwargs)
        self._running.append(module)
        output = forward(*args, **kwargs)
        self._exit(module, args, output)
        return output

    def _exit(self, module: nn.Module, args: Any, output: Any) -> None:
        self._on_exit(module, output)
        self._running.pop()


class _Interception(TorchFunctionMode):
    def __init__(self, network: Network, kernel: Callable[[KernelCall], Tensor]) -> None:
        super().__init__()
        self._network, self._kernel = network, kernel
        self._blocks: Any = WeakIdKeyDictionary()  # flattened map -> number of channels before flattening
        self._turns: Counter[str] = Counter()
        self._with_gradients = torch.is_grad_enabled()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch._C._set_grad_enabled and self._with_gradients:
            return None  # no_grad in forward changes neither values nor paths to the feature
        hooks = _hooks._top_saved_tensors_default_hooks(True)
        if hooks is None:
            return self._call(func, args, kwargs or {})
        _hooks._pop_saved_tensors_default_hooks()
        try:
            return self._call(func, args, kwargs or {})
        finally:
            _hooks._push_saved_tensors_default_hooks(*hooks)

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if func is torch.conv2d or func is F.linear:
            self._check_modes()
            call = self._conv(*args, **kwargs) if func is torch.conv2d else self._linear(*args, **kwargs)
            turn, self._turns[call.layer] = self._turns[call.layer], self._turns[call.layer] + 1
            return self._kernel(replace(call, turn=turn))
        if func in _UNSUPPORTED:
            raise ConvCircuitsError(
                f"{self._network.running()} is {_UNSUPPORTED[func]}; convcircuits supports 2-D convolutions and "
                "linear layers only. Choose a feature before it."
            )
        if _writes_to_first(func) and args and isinstance(args[0], Tensor) and storage(args[0]) in self._network.shared:
            raise WrittenError
        composed = self._network.composed
        result = func(*args, **kwargs) if composed is None else composed(func, args, kwargs)
        self._follow_blocks(func, args, result)
        return result

    def _follow_blocks(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        """Track how many channels a flattened map had, through element-wise functions."""
        if not (isinstance(result, Tensor) and result.dim() == 2 and args and isinstance(args[0], Tensor)):
            return
        x = args[0]
        if func in _FLATTEN and x.dim() == 4 and result.shape == (len(x), math.prod(x.shape[1:])):
            self._blocks[result] = x.shape[1]
        elif x.shape == result.shape and x in self._blocks:
            self._blocks[result] = self._blocks[x]

    def _check_modes(self) -> None:
        """Check that autograd is not disabled at a kernel call."""
        if torch.is_inference_mode_enabled():
            raise ConvCircuitsError(
                f"{self._network.running()} runs inside torch.inference_mode(), which forbids gradients; "
                "use torch.no_grad() in the model's forward, or remove it."
            )
        if self._with_gradients and not torch.is_grad_enabled():
            raise ConvCircuitsError(
                f"{self._network.running()} runs inside a torch.autograd.Function, as torch.utils.checkpoint with "
                "use_reentrant=True does, which hides gradients; turn checkpointing off, or use use_reentrant=False."
            )

    def _conv(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> ConvCall:
        layer = self._network.kernel_layer(weight)
        if input.dim() != 4:
            raise ConvCircuitsError(f"{layer} got an input of shape {tuple(input.shape)}; expected (N, C, H, W).")
        if input.shape[1] != weight.shape[1] * groups:
            raise ConvCircuitsError(
                f"{layer} expects {weight.shape[1] * groups} channels, but got {input.shape[1]}; "
                "give images with the number of channels that the model was built for."
            )
        stride, dilation = _pair(stride), _pair(dilation)
        if padding == "valid":
            padding = 0
        if padding == "same":
            # An even kernel pads one more at the end, which the padding argument of conv2d cannot express.
            rest = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            left = [r // 2 for r in rest]
            if any(2 * a != r for a, r in zip(left, rest, strict=True)):
                pads = (left[1], rest[1] - left[1], left[0], rest[0] - left[0])
                input = self.__torch_function__(F.pad, (), (input, pads))
                padding = 0
            else:
                padding = tuple(left)
        spans = zip(input.shape[2:], weight.shape[2:], _pair(padding), dilation, strict=True)
        if any(n + 2 * p < d * (k - 1) + 1 for n, k, p, d in spans):
            size = f"{input.shape[2]} x {input.shape[3]}"
            raise ConvCircuitsError(f"A map of {size} is too small for {layer}; give larger images.")
        bias = None if bias is None else bias.detach()
        return ConvCall(layer, input, weight.detach(), bias, stride, _pair(padding), dilation, groups)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> LinearCall:
        layer = self._network.kernel_layer(weight)
        if input.shape[-1] != weight.shape[1]:
            raise ConvCircuitsError(
                f"{layer} expects {weight.shape[1]} values, but got {input.shape[-1]}; "
                "give images of the size that the model was built for."
            )
        bias = None if bias is None else bias.detach()
        return LinearCall(layer, input, weight.detach(), bias, self._blocks.get(input, input.shape[-1]))


def _writes_to_first(function: Any) -> bool:
    """Return whether a function writes to its first argument, judging by its name."""
    name: str = function.__name__
    return name.startswith("__i") or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    return (int(value[0]), int(value[-1]))


def _if_alone(images: Tensor) -> str:
    if len(images) != 1:
        return ""
    return (
        "This was a batch of one image, and squeeze() in a model removes its first dimension; if this model does so, "
        "choose a batch_size that leaves no batch of one image. "
    )


def no_such_call(feature: Feature, calls: int, model: str) -> ConvCircuitsError:
    """Return the error for a feature whose layer ran too few times in a forward pass."""
    count = "never runs" if calls == 0 else f"runs only {calls} times"
    return ConvCircuitsError(
        f"{feature.layer} {count} when {model} is called, so there is no such feature; choose another layer or call."
    )


def checked_output(feature: Feature, output: Any, images: int) -> Tensor:
    """Return a layer's output if it is a tensor of maps for this number of images.

    Raises:
        ConvCircuitsError: If it is not.
    """
    if not isinstance(output, Tensor) or output.dim() not in (2, 4) or len(output) != images:
        what = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ConvCircuitsError(
            f"The output of {feature.layer} for {images} image{'s' * (images != 1)} is {what}; expected "
            "(N, C, H, W) or (N, C). Choose a layer inside it or after it."
        )
    return output
