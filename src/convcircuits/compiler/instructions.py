"""The operations that a module from a file may call: a closed table of ATen operations.

``convcircuits.network.operations`` lists them, and their schemas define their arguments. Each computes tensors from
tensors and has no other effect.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tag, Tensor

from convcircuits.network.operations import IN_FILES, NOT_IN_FILES

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""The dtypes that the tensors of a module may have."""
LONGEST = 1 << 12
"""The maximum length of a list argument."""
_LARGEST = 1 << 53


@dataclass(frozen=True)
class Result:
    """A reference to the result of an earlier step; 0 is the batch of images.

    Attributes:
        number: The number of the step, from 1.
        part: Index of the result if the step has several.
    """

    number: int
    part: int | None = None


@dataclass(frozen=True)
class Constant:
    """A reference to a buffer of the module, by name."""

    name: str


def standing_in(value: Any) -> list[Result | Constant]:
    """Return the references to tensors among arguments."""
    if isinstance(value, (Result, Constant)):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [one for part in value for one in standing_in(part)] if isinstance(value, (tuple, list)) else []


@dataclass(frozen=True)
class Entry:
    """An operation of the table.

    Attributes:
        function: The function that is called.
        name: Its name in a file, such as ``"aten.add.Tensor"``.
        parameters: Its parameters by name, as the schema describes them.
    """

    function: Callable[..., Any]
    name: str
    parameters: Mapping[str, Any]

    def kind(self, parameter: str) -> str:
        """Return the kind of a parameter; if no file may set its type, the only allowed value is None."""
        kind = str(self.parameters[parameter].real_type)
        kind = kind if _without_none(kind) in _KINDS else "None"
        return _NARROWED.get(parameter, kind)

    def wrong(self, given: Mapping[str, Any]) -> str | None:
        """Return what is wrong with the arguments, by name, or None if the table allows them."""
        for name, value in given.items():
            if name not in self.parameters:
                return f"it has no parameter {name!r:.80}"
            if not is_of_kind(self.kind(name), value):
                return f"its {name} is {value!r:.80}; expected {self.kind(name)}"
        for name, known in self.parameters.items():
            if name not in given and not known.has_default_value():
                return f"its {name} is missing"
        if any(map(given.get, _WRITING)) and any(given.get(name) is not None for name in _WRITTEN):
            return f"it would write to its {_WRITTEN[0]}"
        return None if standing_in(given) else "it reads no tensor"

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name."""
        return dict(zip(self.parameters, args, strict=False)) | dict(kwargs)

    def call(self, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments as the function takes them: by position up to the first gap, then by name."""
        leading = takewhile(lambda known: known.name in given and not known.kwarg_only, self.parameters.values())
        places = [known.name for known in leading]
        return tuple(given[name] for name in places), {k: v for k, v in given.items() if k not in places}


def repeat_for(x: Tensor, images: Tensor) -> Tensor:
    """Expand the value of one image to every image of a batch, without copying."""
    return x.expand(images.shape[0], *x.shape[1:])


# ---------------------------------------- kinds of arguments


def is_of_kind(kind: str, value: Any) -> bool:
    """Return whether a value is of a kind: a type of torch's schemas, or one of several words."""
    if kind.startswith("Optional["):
        return value is None or is_of_kind(_without_none(kind), value)
    return any(_KINDS[one](value) if one in _KINDS else value == one for one in kind.split("|"))


def _without_none(kind: str) -> str:
    return kind.removeprefix("Optional[")[:-1] if kind.startswith("Optional[") else kind


def _is_ref(value: Any) -> bool:
    return isinstance(value, (Result, Constant))


def _is_int(value: Any) -> bool:
    return type(value) is int and abs(value) < _LARGEST


def _is_number(value: Any) -> bool:
    return _is_int(value) or type(value) in (float, bool)


def _is_list(value: Any, kind: Callable[[Any], bool]) -> bool:
    return type(value) in (tuple, list) and len(value) <= LONGEST and all(map(kind, value))


_KINDS: dict[str, Callable[[Any], bool]] = {
    "Tensor": lambda v: _is_ref(v) or _is_number(v),  # which torch converts to a tensor
    "List[Tensor]": lambda v: bool(v) and _is_list(v, _is_ref),
    "List[Optional[Tensor]]": lambda v: _is_list(v, lambda x: x is None or _is_ref(x)),
    "bool": lambda v: type(v) is bool,
    "int": _is_int,
    "float": _is_number,
    "number": _is_number,
    "List[int]": lambda v: _is_int(v) or _is_list(v, _is_int),
    "List[float]": lambda v: _is_number(v) or _is_list(v, _is_number),
    "ScalarType": lambda v: v in DTYPES,
    "MemoryFormat": lambda v: isinstance(v, torch.memory_format),
    "None": lambda v: v is None,
    "False": lambda v: v is False,
    "0..2": lambda v: type(v) is int and 0 <= v <= 2,
}
# Parameters that allow less than their types.
_NARROWED = {
    "rounding_mode": "floor|None",  # the smallest integer divided by -1 with truncation crashes the process
    "approximate": "none|tanh",
    "norm": "backward|ortho|forward|None",
    "interpolation_mode": "0..2",
    "padding_mode": "0..2",
    "mode": "constant|reflect|replicate|circular",
    "sparse_grad": "False",
    "non_blocking": "False",
    "pin_memory": "None",
    **dict.fromkeys(
        ("scales", "scales_d", "scales_h", "scales_w"), "None"
    ),  # redundant with sizes, which cannot contradict
}
# With these parameters of norms, running statistics would be updated from the images.
_WRITING, _WRITTEN = ("training", "use_input_stats"), ("running_mean", "running_var")


# ---------------------------------------- the table


def _operation(function: Any, schema: Any) -> Entry:
    name = schema.name.replace("::", ".")
    if name.startswith("aten."):
        name += f".{schema.overload_name or 'default'}"
    return Entry(function, name, {known.name: known for known in schema.arguments})


def _is_pure(schema: Any, tags: Sequence[Tag]) -> bool:
    """Return whether an operation returns only tensors, writes to none, and depends on no randomness or values."""
    data = {Tag.nondeterministic_seeded, Tag.data_dependent_output, Tag.dynamic_output_shape} & {*tags}
    made = all(str(known.type) in ("Tensor", "List[Tensor]") for known in schema.returns)
    return made and not data and not schema.is_mutable and len(schema.returns) > 0


def _is_sayable(operation: Entry) -> bool:
    """Return whether a file can set every argument that has no default."""
    return all(
        known.has_default_value() or operation.kind(name) != "None" for name, known in operation.parameters.items()
    )


def _table() -> dict[str, Entry]:
    own = _operation(repeat_for, torch._C.parse_schema("repeat_for(Tensor x, Tensor images) -> Tensor"))
    table = {own.name: own}
    for name in sorted(IN_FILES):
        packet = getattr(torch.ops.aten, name, None)  # some are not in every version of torch
        for overload in () if packet is None else packet.overloads():
            function = getattr(packet, overload)
            operation = _operation(function, function._schema)
            if f"{name}.{overload}" in NOT_IN_FILES or not _is_sayable(operation):
                continue
            if _is_pure(function._schema, function.tags) or function is torch.ops.aten.index.Tensor:
                table[operation.name] = operation
    return table


OPERATIONS = _table()
_BY_FUNCTION = {operation.function: operation for operation in OPERATIONS.values()}
# Activations that may run in place; files name the out-of-place variant.
IN_PLACE = {
    getattr(torch.ops.aten, name).default: getattr(torch.ops.aten, f"{name}_").default
    for name in """
        relu relu6 hardtanh silu hardswish hardsigmoid leaky_relu elu celu selu mish threshold
    """.split()  # noqa: SIM905 (as in the table of operations)
}


def operation_of(function: Any) -> Entry | None:
    """Return the operation of a function of the table."""
    return _BY_FUNCTION.get(function)
