"""The only place where a model is entered: run it up to a feature and meet every kernel call on the way.

The user's model is never touched. A ``Network`` is a private copy of its module tree that shares all weights; what
tells which module runs sits on the copy, and calls of ``conv2d`` and ``linear`` are met by a
``torch.overrides.TorchFunctionMode``, which sees the input and the weight that are really used and is local to the
thread. A model that writes to its weights as it runs gets weights of its own.
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

_CONV = {torch.conv2d}
_LINEAR = {F.linear}
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

# Hooks on what autograd saves, which torch.utils.checkpoint uses to save nothing and run the model again instead.
_hooks: Any = torch._C._autograd


class _Reached(BaseException):
    """Stop a forward pass: the feature's layer has run. Not an ``Exception``, so that no model swallows it."""


class Network:
    """A private copy of a model's module tree, in eval mode, that shares its weights.

    Args:
        model: The model; it is not changed, and not looked at again.

    Raises:
        ConvCircuitsError: If the model cannot be entered: not a module, scripted, in inference mode, or of weights that
            have no values yet.
    """

    def __init__(self, model: nn.Module) -> None:
        if torch.is_inference_mode_enabled():
            raise ConvCircuitsError(
                "convcircuits cannot run inside torch.inference_mode(), which forbids gradients; "
                "use torch.no_grad() or nothing."
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
        """Find a module by any of its names, or say which names are near."""
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
        """Run forward until the feature's layer has run; return that layer's output.

        Args:
            feature: Names the layer, and the call where it runs several times.
            images: Shape (N, C, H, W), of the model's device and dtype.
            kernel: Computes each call of conv2d and linear.
            rows: The only filters that are wanted of the feature's layer, where its output is that of its one
                kernel call.
            copied: Layers whose input is overwritten later, so that the call gets a copy.
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
                f"{self.name} cannot run on images of shape {tuple(images.shape[1:])}: {error} {_if_alone(images)}"
            ) from error
        count = "never runs" if calls == 0 else f"runs only {calls} times"
        raise ConvCircuitsError(
            f"{feature.layer} {count} when {self.name} is called on an image, so it carries no such feature."
        )

    def forward(
        self,
        images: Tensor,
        kernel: Callable[[KernelCall], Tensor],
        on_exit: Callable[[nn.Module, Any], None],
    ) -> None:
        """Run the whole model, with every kernel call computed by ``kernel``; tell of each module's output.

        Whatever the model changes of itself as it runs, each run begins with it as it was given.
        """
        self._restore()
        self._running.clear()
        self._called = None
        self._on_exit = on_exit
        try:
            with self._watched(), _Interception(self, kernel):
                self.module(images.clone())  # which a model may overwrite
        except WrittenError:
            self.shared, self._changing = frozenset(), None
            self.forward(images, kernel, on_exit)
        finally:
            self._on_exit = lambda module, output: None

    def state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the floating-point parameters and buffers of those names, or owned by modules of those names.

        They are the given model's. Buffers that the model writes to as it runs are left out: they are what it has
        seen (counters, ranges), and no weights.
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
        """Name the innermost module that is running."""
        return self._first_name[self._running[-1]] if self._running else ""

    def all_running(self) -> list[str]:
        """Name the modules that are running, the outermost first."""
        return [self._first_name[module] for module in self._running]

    def runs_itself(self, module: nn.Module) -> bool:
        """Return whether a module, and none inside it, runs."""
        return bool(self._running) and self._running[-1] is module

    def kernel_layer(self, weight: Tensor) -> str:
        """Name the layer that a weight belongs to; a computed weight belongs to the module that runs."""
        return self._layer_of_weight.get(id(weight), self.running())

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Find out in the first run, below all that Python can spell, what the model writes to."""
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
        """Undo what the last run changed of weights and buffers, and let go of its gradients."""
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
        """Run a module's ``forward``, which a model may also call as such: then no hook tells that it runs."""
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
        self._blocks: Any = WeakIdKeyDictionary()  # flattened map -> how many channels it was made of
        self._turns: Counter[str] = Counter()
        self._with_gradients = torch.is_grad_enabled()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch._C._set_grad_enabled and self._with_gradients:
            return None  # no_grad in a forward changes no value, and whether kernels lead to the feature neither
        hooks = _hooks._top_saved_tensors_default_hooks(True)
        if hooks is None:
            return self._call(func, args, kwargs or {})
        _hooks._pop_saved_tensors_default_hooks()
        try:
            return self._call(func, args, kwargs or {})
        finally:
            _hooks._push_saved_tensors_default_hooks(*hooks)

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if func in _CONV or func in _LINEAR:
            self._check_modes()
            call = self._conv(*args, **kwargs) if func in _CONV else self._linear(*args, **kwargs)
            turn, self._turns[call.layer] = self._turns[call.layer], self._turns[call.layer] + 1
            return self._kernel(replace(call, turn=turn))
        if func in _UNSUPPORTED:
            raise ConvCircuitsError(
                f"{self._network.running()} is {_UNSUPPORTED[func]}; convcircuits follows 2-D convolutions and "
                "linear layers. Choose a feature before it."
            )
        if _writes_to_first(func) and args and isinstance(args[0], Tensor) and storage(args[0]) in self._network.shared:
            raise WrittenError
        result = func(*args, **kwargs)
        self._follow_blocks(func, args, result)
        return result

    def _follow_blocks(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        """Remember how many channels a flattened map was made of, through element-wise functions."""
        if not (isinstance(result, Tensor) and result.dim() == 2 and args and isinstance(args[0], Tensor)):
            return
        x = args[0]
        if func in _FLATTEN and x.dim() == 4 and result.shape == (len(x), math.prod(x.shape[1:])):
            self._blocks[result] = x.shape[1]
        elif x.shape == result.shape and x in self._blocks:
            self._blocks[result] = self._blocks[x]

    def _check_modes(self) -> None:
        """Refuse a kernel call in a place where autograd is shut out, whoever asks for gradients."""
        if torch.is_inference_mode_enabled():
            raise ConvCircuitsError(
                f"{self._network.running()} runs inside torch.inference_mode(), which forbids gradients; "
                "write torch.no_grad() in the model's forward, or neither."
            )
        if self._with_gradients and not torch.is_grad_enabled():
            raise ConvCircuitsError(
                f"{self._network.running()} runs inside a torch.autograd.Function, as torch.utils.checkpoint with "
                "use_reentrant=True does, and gradients inside it cannot be followed; turn checkpointing off, or use "
                "use_reentrant=False."
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
                f"{layer} reads {weight.shape[1] * groups} channels, but got {input.shape[1]}; "
                "give images with as many channels as the model was made for."
            )
        stride, dilation = _pair(stride), _pair(dilation)
        if padding == "valid":
            padding = 0
        if padding == "same":
            # An even kernel pads one more at the end, which conv2d's own argument cannot say.
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
                f"{layer} reads {weight.shape[1]} values, but got {input.shape[-1]}; "
                "give images of the size the model was made for."
            )
        bias = None if bias is None else bias.detach()
        return LinearCall(layer, input, weight.detach(), bias, self._blocks.get(input, input.shape[-1]))


def _writes_to_first(function: Any) -> bool:
    """Return whether a function works in place, by its name."""
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
        "This was a batch of one image, whose first dimension a squeeze() in a model removes; if it does, choose a "
        "batch_size that leaves no image alone. "
    )


def checked_output(feature: Feature, output: Any, images: int) -> Tensor:
    """Refuse a layer whose output is not maps of channels, for so many images."""
    if not isinstance(output, Tensor) or output.dim() not in (2, 4) or len(output) != images:
        what = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ConvCircuitsError(
            f"The output of {feature.layer} for {images} image{'s' * (images != 1)} is {what}; a feature needs "
            "(N, C, H, W) or (N, C). Choose a layer inside it or after it."
        )
    return output
