"""What a module of `convcircuits.interpreter` may be told by a file to do: one closed table of operations.

Every operation is a function of tensors that makes tensors and touches nothing else. Each of its parameters has a
kind, which is checked before it is called; a function of a model that is in the table is written as the table says,
whatever spelling the model used (``x + 1``, ``torch.add(x, 1)`` and ``x.add(1)`` are one operation).
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 1 << 16
"""The most values that one argument may have."""
_LARGEST = 1 << 53
_EQUATION = re.compile(r"[a-zA-Z., ]{1,200}(->[a-zA-Z. ]{0,60})?")


@dataclass(frozen=True)
class Ref:
    """Stands for the result of an earlier step; 0 is the batch of images.

    Attributes:
        number: The number of the step, from 1.
        part: Which of several results it is.
    """

    number: int
    part: int | None = None


@dataclass(frozen=True)
class Constant:
    """Stands for a buffer of the module, by its name."""

    name: str


@dataclass(frozen=True)
class Operation:
    """A function of the table.

    Attributes:
        name: Its name in a file.
        function: What is called.
        kinds: The kind of each of its parameters, in their order.
        named: Those that are given by name alone.
    """

    name: str
    function: Callable[..., Any]
    kinds: Mapping[str, str]
    named: tuple[str, ...]

    def wrong(self, given: Mapping[str, Any]) -> str | None:
        """Say which argument, by name, is not what the table asks for; None where all are."""
        for name, value in given.items():
            if name not in self.kinds:
                return f"it has no parameter {name!r}"
            if not is_of_kind(self.kinds[name], value):
                return f"its {name} is {value!r:.80}, which is no {self.kinds[name]}"
        if next(iter(self.kinds)) not in given:
            return f"it has no {next(iter(self.kinds))}"
        return None

    def call(self, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Order arguments as the function takes them: by place as far as there is no gap, then by name."""
        names = list(self.kinds)
        ordered = sorted(given, key=names.index)
        places = 0
        while places < len(ordered) and ordered[places] == names[places] and names[places] not in self.named:
            places += 1
        return tuple(given[n] for n in ordered[:places]), {n: given[n] for n in ordered[places:]}


def adaptive_max_pool2d(x: Tensor, output_size: Any) -> Tensor:
    """Return the maxima alone."""
    maxima: Tensor = F.adaptive_max_pool2d(x, output_size)
    return maxima


def repeat_for(x: Tensor, images: Tensor) -> Tensor:
    """Repeat one image's value for every image of a batch, without a copy."""
    return x.expand(images.shape[0], *x.shape[1:])


def rdiv(x: Tensor, other: Any) -> Tensor:
    """Divide a number by a tensor."""
    quotient: Tensor = other / x
    return quotient


_UNARY = "input:tensor"
_INPLACE = "input:tensor inplace:bool"
_BINARY = "input:value other:value"
_DIM = "input:tensor dim:int? *dtype:dtype?"
_REDUCE = "input:tensor dim:ints? keepdim:bool"
_EXTREME = "input:tensor dim:ref_or_int? keepdim:bool"
_DROPOUT = "input:tensor p:number training:bool inplace:bool"
_POOL = "input:tensor kernel_size:ints stride:ints padding:ints ceil_mode:bool count_include_pad:bool"
_MAX_POOL = "input:tensor kernel_size:ints stride:ints padding:ints dilation:ints ceil_mode:bool"
_WINDOW = "kernel_size:ints dilation:ints padding:ints stride:ints"
_ALPHA = "input:tensor alpha:number inplace:bool"
_NORM = "weight:tensor? bias:tensor? eps:number"
_SWAP = "input:tensor dim0:int dim1:int"
_SPLIT = "input:tensor indices_or_sections:ints dim:int"
_GROUPS: tuple[tuple[str, tuple[Callable[..., Any], ...]], ...] = (
    (_UNARY, (torch.abs, torch.atan, torch.ceil, torch.cos, torch.cosh, torch.erf, torch.exp, torch.exp2)),
    (_UNARY, (torch.expm1, torch.floor, torch.frac, torch.log, torch.log10, torch.log1p, torch.log2, torch.neg)),
    (_UNARY, (torch.reciprocal, torch.rsqrt, torch.sign, torch.sin, torch.sinh, torch.sqrt, torch.square, torch.tan)),
    (_UNARY, (torch.tanh, torch.trunc, torch.sigmoid, torch.logical_not, F.logsigmoid, F.softsign, F.tanhshrink)),
    (_UNARY, (torch.clone, torch.detach, torch.Tensor.bfloat16, torch.Tensor.double, torch.Tensor.float)),
    (_UNARY, (torch.Tensor.half,)),
    (_INPLACE, (F.hardsigmoid, F.hardswish, F.mish, F.relu, F.relu6, F.selu, F.silu)),
    (f"{_BINARY} *alpha:number", (torch.add, torch.sub, torch.rsub)),
    (_BINARY, (torch.mul, torch.maximum, torch.minimum, torch.remainder, rdiv, torch.logical_and, torch.logical_or)),
    (_BINARY, (torch.eq, torch.ne, torch.ge, torch.gt, torch.le, torch.lt)),
    (f"{_BINARY} *rounding_mode:floor|trunc?", (torch.div,)),
    ("input:value exponent:value", (torch.pow,)),
    ("input:tensor tensor1:tensor tensor2:tensor *value:number", (torch.addcmul, torch.addcdiv)),
    ("input:tensor end:tensor weight:value", (torch.lerp,)),
    ("input:tensor min:value? max:value?", (torch.clamp,)),
    ("input:tensor max:number", (torch.clamp_max,)),
    ("input:tensor min:number", (torch.clamp_min,)),
    ("input:tensor *decimals:int", (torch.round,)),
    ("input:tensor nan:number? posinf:number? neginf:number?", (torch.nan_to_num,)),
    ("condition:tensor input:value other:value", (torch.where,)),
    (_ALPHA, (F.celu, F.elu)),
    ("input:tensor *approximate:none|tanh", (F.gelu,)),
    ("input:tensor dim:int", (F.glu, torch.cumsum)),
    ("input:tensor lambd:number", (F.hardshrink, F.softshrink)),
    ("input:tensor min_val:number max_val:number inplace:bool", (F.hardtanh,)),
    ("input:tensor negative_slope:number inplace:bool", (F.leaky_relu,)),
    ("input:tensor weight:tensor", (torch.prelu,)),
    ("input:tensor lower:number upper:number training:false inplace:bool", (F.rrelu,)),
    ("input:tensor beta:number threshold:number", (F.softplus,)),
    ("input:tensor threshold:number value:number inplace:bool", (F.threshold,)),
    (_DIM, (torch.softmax, torch.log_softmax, F.softmin)),
    (_DROPOUT, (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)),
    ("input:tensor output_size:sizes", (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, adaptive_max_pool2d)),
    (f"{_POOL} divisor_override:int?", (F.avg_pool2d,)),
    (_POOL, (F.avg_pool1d,)),
    (_MAX_POOL, (torch.max_pool1d, torch.max_pool2d)),
    ("input:tensor norm_type:number kernel_size:ints stride:ints? ceil_mode:bool", (F.lp_pool2d,)),
    (
        "input:tensor size:sizes? scale_factor:numbers? mode:nearest|linear|bilinear|bicubic|area|nearest-exact "
        "align_corners:bool? recompute_scale_factor:bool? antialias:bool",
        (F.interpolate,),
    ),
    (f"input:tensor output_size:ints {_WINDOW}", (F.fold,)),
    (f"input:tensor {_WINDOW}", (F.unfold,)),
    (
        "input:tensor running_mean:tensor? running_var:tensor? weight:tensor? bias:tensor? training:false "
        "momentum:number eps:number",
        (F.batch_norm,),
    ),
    (
        "input:tensor running_mean:nothing running_var:nothing weight:tensor? bias:tensor? use_input_stats:true "
        "momentum:number eps:number",
        (F.instance_norm,),
    ),
    (f"input:tensor num_groups:int {_NORM}", (F.group_norm,)),
    (f"input:tensor normalized_shape:ints {_NORM}", (F.layer_norm,)),
    ("input:tensor normalized_shape:ints weight:tensor? eps:number?", (F.rms_norm,)),
    ("input:tensor size:int alpha:number beta:number k:number", (F.local_response_norm,)),
    ("input:tensor p:number dim:ints eps:number", (F.normalize,)),
    (f"{_REDUCE} *dtype:dtype?", (torch.mean, torch.sum)),
    (_REDUCE, (torch.amax, torch.amin, torch.logsumexp, torch.all, torch.any)),
    ("input:tensor dim:int? keepdim:bool", (torch.argmax, torch.argmin, torch.prod)),
    ("input:tensor p:number|fro? dim:ints? keepdim:bool *dtype:dtype?", (torch.norm,)),
    ("x:tensor ord:number dim:ints? keepdim:bool *dtype:dtype?", (torch.linalg.vector_norm,)),
    (_EXTREME, (torch.max, torch.min, torch.median)),
    ("input:tensor dim:int descending:bool", (torch.sort,)),
    ("input:tensor k:int dim:int? largest:bool sorted:bool", (torch.topk,)),
    ("input:tensor dim:ints? unbiased:bool keepdim:bool *correction:int?", (torch.std, torch.var)),
    ("input:tensor dim:ints? unbiased:bool keepdim:bool *correction:int?", (torch.std_mean, torch.var_mean)),
    ("input:tensor mat2:tensor", (torch.bmm, torch.mm)),
    ("input:tensor other:tensor", (torch.matmul, torch.Tensor.expand_as, torch.Tensor.view_as)),
    ("input:tensor other:tensor", (torch.Tensor.reshape_as, torch.Tensor.type_as)),
    ("equation:equation operands:tensors", (torch.einsum,)),
    ("tensors:tensors dim:int", (torch.cat, torch.stack)),
    ("tensors:tensors", (torch.hstack, torch.vstack, torch.dstack)),
    ("input:tensor chunks:int dim:int", (torch.chunk,)),
    (_SPLIT, (torch.tensor_split,)),
    ("tensor:tensor split_size_or_sections:ints dim:int", (torch.split,)),
    ("input:tensor dim:int", (torch.unbind, torch.unsqueeze)),
    ("input:tensor dim:int index:tensor", (torch.gather, torch.index_select)),
    ("input:tensor indices:tensor dim:int", (torch.take_along_dim,)),
    ("input:tensor dim:int start:int length:int", (torch.narrow,)),
    ("input:tensor dim:int index:int", (torch.select,)),
    ("input:tensor index:index", (torch.Tensor.__getitem__,)),
    ("input:tensor mask:tensor value:value", (torch.masked_fill,)),
    ("input:tensor size:ints", (torch.broadcast_to, torch.Tensor.expand, torch.Tensor.view, torch.Tensor.repeat)),
    ("input:tensor shape:ints", (torch.Tensor.reshape,)),
    ("input:tensor dims:ints", (torch.Tensor.permute, torch.Tensor.flip, torch.Tensor.tile)),
    ("input:tensor groups:int", (torch.channel_shuffle,)),
    ("input:tensor *memory_format:format", (torch.Tensor.contiguous,)),
    ("input:tensor start_dim:int end_dim:int", (torch.flatten,)),
    ("input:tensor source:ints destination:ints", (torch.movedim,)),
    ("input:tensor pad:ints mode:constant|reflect|replicate|circular value:number?", (F.pad,)),
    ("input:tensor upscale_factor:int", (F.pixel_shuffle,)),
    ("input:tensor downscale_factor:int", (F.pixel_unshuffle,)),
    ("input:tensor repeats:int dim:int?", (torch.repeat_interleave,)),
    ("input:tensor shifts:ints dims:ints", (torch.roll,)),
    ("input:tensor k:int dims:ints", (torch.rot90,)),
    ("input:tensor dim:ints", (torch.squeeze,)),
    (_SWAP, (torch.transpose,)),
    ("input:tensor diagonal:int", (torch.tril, torch.triu)),
    ("input:tensor dim:int sizes:ints", (torch.unflatten,)),
    ("input:tensor *dtype:dtype?", (torch.ones_like, torch.zeros_like)),
    ("input:tensor fill_value:number *dtype:dtype?", (torch.full_like,)),
    ("input:tensor dtype:dtype", (torch.Tensor.to,)),
    ("x:tensor images:tensor", (repeat_for,)),
)


def base_name(function: Any) -> str:
    """Name a function, method or operator as the table does."""
    name: str = getattr(function, "__name__", "")
    if name.startswith("_"):  # an operator of two underscores, or what a public function calls
        name = name.strip("_")
    return _SAME.get(name, name)


_SAME = {"negative": "neg", "subtract": "sub", "multiply": "mul", "divide": "div", "truediv": "div"}
_SAME |= {"true_divide": "div", "clip": "clamp", "concat": "cat", "concatenate": "cat", "swapaxes": "transpose"}
_SAME |= {"swapdims": "transpose", "moveaxis": "movedim", "rpow": "pow", "linalg_vector_norm": "vector_norm"}
_SAME |= {"radd": "add", "rmul": "mul", "rtruediv": "rdiv"}


def _operation(function: Callable[..., Any], signature: str) -> Operation:
    kinds = dict(part.split(":", 1) for part in signature.split())
    named = tuple(name[1:] for name in kinds if name.startswith("*"))
    name = base_name(function)
    return Operation(name, function, {name.removeprefix("*"): kind for name, kind in kinds.items()}, named)


OPERATIONS: dict[str, Operation] = {
    base_name(function): _operation(function, signature) for signature, functions in _GROUPS for function in functions
}
_BY_FUNCTION = {operation.function: operation for operation in OPERATIONS.values()}
_UNUSED = ("return_indices", "out")  # unless they are true
_PARAMETERS = {"axis": "dim", "split_size": "split_size_or_sections"}  # that have a second name


def operation_of(function: Any) -> Operation | None:
    """Return the operation of a function of the table."""
    return _BY_FUNCTION.get(function)


def in_table(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Operation, dict[str, Any]] | None:
    """Say a call of a model in the words of the table; None where it has none."""
    operation = OPERATIONS.get(base_name(function))
    if operation is None:
        return None
    given = _by_name(operation, function, args, kwargs)
    if given is None or operation.wrong(given) is not None:
        return None
    return operation, given


def _by_name(
    operation: Operation, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return a call's arguments under the names that the table has for them."""
    names = list(operation.kinds)
    operator = getattr(function, "__name__", "").startswith("__")
    if function is Tensor.__rpow__:
        args = args[::-1]
    if function is Tensor.where:
        args = (args[1], args[0], args[2]) if len(args) == 3 else ()
    if len(names) == 2 and len(args) > 2 and operation.kinds[names[1]] in ("ints", "tensors"):
        args = (args[0], tuple(args[1:]))  # x.view(2, 3)
    if isinstance(function, FunctionType) and function is not operation.function and not operator:
        try:
            kwargs = inspect.signature(function).bind(*args, **kwargs).arguments
        except TypeError:
            return None
        if "args" not in kwargs:  # else it hands on what it is given
            first = next(iter(kwargs))
            args, kwargs = (kwargs[first],), {k: v for k, v in kwargs.items() if k != first}
        else:
            args, kwargs = kwargs["args"], kwargs.get("kwargs", {})
    if len(args) > len(names):
        return None
    given = dict(zip(names, args, strict=False))
    given |= {_PARAMETERS.get(k, k): v for k, v in kwargs.items() if k != "_stacklevel" and (v or k not in _UNUSED)}
    return {k: v for k, v in given.items() if v is not None or operation.kinds.get(k, "").endswith("?")}


# ---------------------------------------- kinds of arguments


def is_of_kind(kind: str, value: Any) -> bool:
    """Return whether a value is of a kind."""
    if kind.endswith("?"):
        return value is None or is_of_kind(kind[:-1], value)
    return any(_KINDS[one](value) if one in _KINDS else value == one for one in kind.split("|"))


def _is_ref(value: Any) -> bool:
    return isinstance(value, (Ref, Constant))


def _is_int(value: Any) -> bool:
    return type(value) is int and abs(value) < _LARGEST


def _is_number(value: Any) -> bool:
    return _is_int(value) or type(value) in (float, bool)


def _is_sequence(value: Any, kind: Callable[[Any], bool], longest: int = 16) -> bool:
    return type(value) in (tuple, list) and len(value) <= longest and all(map(kind, value))


def _is_place(value: Any) -> bool:
    """Return whether a value is an index along one dimension."""
    if isinstance(value, slice):
        return all(part is None or _is_int(part) for part in (value.start, value.stop, value.step))
    whole = value is None or value is Ellipsis or _is_int(value) or _is_ref(value)
    return whole or (type(value) is list and len(value) <= LONGEST and all(map(_is_int, value)))


_KINDS: dict[str, Callable[[Any], bool]] = {
    "tensor": _is_ref,
    "value": lambda v: _is_ref(v) or _is_number(v),
    "ref_or_int": lambda v: _is_ref(v) or _is_int(v),
    "tensors": lambda v: bool(v) and _is_sequence(v, _is_ref, 4096),
    "int": _is_int,
    "bool": lambda v: type(v) is bool,
    "true": lambda v: v is True,
    "false": lambda v: v is False,
    "nothing": lambda v: v is None,
    "number": _is_number,
    "ints": lambda v: _is_int(v) or _is_sequence(v, _is_int, 4096),
    "sizes": lambda v: _is_int(v) or _is_sequence(v, lambda size: size is None or _is_int(size)),
    "numbers": lambda v: _is_number(v) or _is_sequence(v, lambda x: _is_number(x) and math.isfinite(x)),
    "dtype": lambda v: isinstance(v, torch.dtype),
    "format": lambda v: isinstance(v, torch.memory_format),
    "equation": lambda v: isinstance(v, str) and _EQUATION.fullmatch(v) is not None,
    "index": lambda v: _is_place(v) or (type(v) is tuple and len(v) <= 16 and all(map(_is_place, v))),
}
