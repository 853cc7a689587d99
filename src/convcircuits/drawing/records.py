"""Values with typed fields that check themselves, and their one mapping to JSON and back.

A record's fields are annotated with the types below; arrays as ``Annotated[Array, dtype, axes]``, what else is not any
value of its type as ``Annotated[int, Law("minimum", 1)]``. Fields are snake_case here and camelCase in JSON; an array
is there ``{"dtype", "shape", "data"}``, with little-endian bytes in base64. ``tools/diagram_types.py`` writes the
document's JSON schema and TypeScript types from them.
"""

import base64
import binascii
import dataclasses
import math
import numbers
import operator
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin, get_type_hints

import numpy as np

from convcircuits.errors import ConvCircuitsError

Array: TypeAlias = np.ndarray[Any, Any]


class Law(NamedTuple):
    """A limit of a field beyond its type, as a keyword of JSON schema."""

    keyword: Literal["minimum", "maximum", "enum", "minItems", "maxLength", "pattern"]
    value: Any


_LAWS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (operator.ge, "at least {}"),
    "maximum": (operator.le, "at most {}"),
    "enum": (lambda value, among: value in among, "one of {}"),
    "minItems": (lambda value, least: len(value) >= least, "with at least {}"),
    "maxLength": (lambda value, most: len(value) <= most, "of at most {} characters"),
    # The "$" of JSON schema is Python's "\Z".
    "pattern": (lambda value, pattern: bool(re.search(pattern.replace("$", r"\Z"), value)), "that matches {}"),
}


class Record:
    """A frozen dataclass whose fields are of the types that they are annotated with; arrays are read-only copies."""

    partial = False  # whether JSON holds, of the fields that have defaults, only those that differ from them
    later = tuple[str, ...]()  # fields with defaults for which that holds alone: older documents lack them

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            object.__setattr__(self, name, _fit(f"{type(self).__name__}.{name}", getattr(self, name), hint))
        self._check()

    def _check(self) -> None:
        """Raise ConvCircuitsError for anything that the types alone do not rule out."""


def hints(record: Any) -> dict[str, Any]:
    """Return the fields of a record and their types."""
    return get_type_hints(record, include_extras=True)


def defaults(record: Any) -> dict[str, Any]:
    """Return the fields of a record that have defaults, with these."""
    known = {}
    for field in dataclasses.fields(record):
        if field.default is not dataclasses.MISSING:
            known[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            known[field.name] = field.default_factory()
    return known


def omissible(record: Any) -> dict[str, Any]:
    """Return the fields that JSON may lack, with their defaults."""
    known = defaults(record)
    return known if record.partial else {name: known[name] for name in record.later}


def is_array(hint: Any) -> bool:
    """Return whether a field's type is an array's."""
    return get_origin(hint) is Annotated and get_args(hint)[0] == Array


def camel(name: str) -> str:
    """Return a field's name in JSON."""
    first, *rest = name.rstrip("_").split("_")
    return first + "".join(map(str.capitalize, rest))


def arrays(where: str, value: Any) -> Iterator[tuple[str, Array, list[str]]]:
    """Yield all arrays of a value, with the names of their axes."""
    if isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from arrays(f"{where}[{number}]", item)
    if isinstance(value, Record):
        for name, hint in hints(type(value)).items():
            field = f"{where}.{name}".lstrip(".")
            if is_array(hint):
                yield field, getattr(value, name), hint.__metadata__[1].split()
            else:
                yield from arrays(field, getattr(value, name))


def plain(value: Any, *, whole: bool = False) -> Any:
    """Return a value as ``json`` can write it; of what may be lacking only what differs from the defaults."""
    if isinstance(value, Record):
        fields = {name: getattr(value, name) for name in hints(type(value))}
        if not whole:
            default = omissible(type(value))
            fields = {name: field for name, field in fields.items() if name not in default or field != default[name]}
        return {camel(name): plain(field) for name, field in fields.items()}
    if isinstance(value, np.ndarray):
        data = value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
        return {
            "dtype": value.dtype.name,
            "shape": list(value.shape),
            "data": base64.b64encode(data).decode("ascii"),
        }
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    return value


def read(where: str, said: Any, hint: Any) -> Any:
    """Turn what ``json`` read into records and arrays. Records refuse values of another form."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Record) and isinstance(said, Mapping):
        return _read_record(where, said, hint)
    if is_array(hint):
        return _read_array(where, said)
    if origin is Annotated:
        return read(where, said, inner[0])
    if origin is tuple and isinstance(said, list):
        return tuple(read(f"{where}[{i}]", item, inner[0]) for i, item in enumerate(said))
    if origin in (Union, types.UnionType) and said is not None:
        return read(where, said, next(kind for kind in inner if kind is not type(None)))
    if origin is Mapping and inner[0] is int and isinstance(said, Mapping):
        return {int(key) if key.isdecimal() else key: item for key, item in said.items()}
    return said


def _read_record(where: str, said: Mapping[str, Any], record: Any) -> Any:
    names = {camel(field.name): field for field in dataclasses.fields(record)}
    if unknown := said.keys() - names.keys():
        raise ConvCircuitsError(f"{where} has unknown fields: {', '.join(sorted(map(str, unknown)))}.")
    optional = set(map(camel, omissible(record)))
    if missing := sorted(names.keys() - said.keys() - optional):
        raise ConvCircuitsError(f"{where} lacks {', '.join(missing)}.")
    kinds = hints(record)
    return record(**{names[key].name: read(f"{where}.{key}", said[key], kinds[names[key].name]) for key in said})


def _read_array(where: str, said: Any) -> Array:
    try:
        data = base64.b64decode(said["data"], validate=True)
        dtype = np.dtype({"int8": "i1", "uint8": "u1", "int16": "<i2", "int32": "<i4", "float32": "<f4"}[said["dtype"]])
        shape = tuple(operator.index(size) for size in said["shape"])
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ConvCircuitsError(f"{where} is not a buffer of dtype, shape and data in base64: {error}.") from error
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise ConvCircuitsError(f"{where} has {len(data)} bytes, which is not what shape {shape} holds.")
    return np.ndarray(shape, dtype, data).astype(dtype.newbyteorder("="), copy=False)


def _fit(where: str, value: Any, hint: Any) -> Any:
    """Return a value as its field holds it: arrays as read-only copies, NumPy's numbers as Python's."""
    origin, inner = get_origin(hint), get_args(hint)
    if is_array(hint):
        return _fit_array(where, value, *hint.__metadata__)
    if origin is Annotated:
        fitted = _fit(where, value, inner[0])
        if not all(_LAWS[law.keyword][0](fitted, law.value) for law in hint.__metadata__):
            raise ConvCircuitsError(f"{where} is {_words(hint)}; got {value!r:.80}.")
        return fitted
    if origin in (Union, types.UnionType):
        return None if value is None else _fit(where, value, next(k for k in inner if k is not type(None)))
    if origin is Literal and value in inner:
        return inner[inner.index(value)]
    if origin is tuple and isinstance(value, (tuple, list)) and (inner[-1] is Ellipsis or len(value) == len(inner)):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_fit(f"{where}[{i}]", item, kind) for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))
    if origin is Mapping and isinstance(value, Mapping):
        entries = {_fit(where, key, inner[0]): _fit(where, item, inner[1]) for key, item in value.items()}
        return types.MappingProxyType(entries)
    number = not isinstance(value, (bool, np.bool_))
    if hint is int and number and hasattr(value, "__index__"):
        return operator.index(value)
    if hint is float and number and isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    if hint is bool and isinstance(value, (bool, np.bool_)):
        return bool(value)
    if hint is str and isinstance(value, str) and value == value.encode(errors="ignore").decode():
        return str(value)
    if isinstance(hint, type) and issubclass(hint, Record) and isinstance(value, hint):
        return value
    raise ConvCircuitsError(f"{where} is {_words(hint)}; got {value!r:.80}.")


def _fit_array(where: str, value: Any, dtype: str, axes: str) -> Array:
    given = np.asarray(value)
    wanted = np.dtype(dtype)
    dims = len(axes.split())
    real = given.dtype.kind in ("iuf" if wanted.kind == "f" else "iu") or given.size == 0
    if not real or given.ndim != dims:
        raise ConvCircuitsError(
            f"{where} is an array of {dtype} with {dims} axes ({axes}); got {given.dtype} of shape {given.shape}."
        )
    if wanted.kind != "f" and given.size:
        limits = np.iinfo(wanted)
        within(where, given, int(limits.min), int(limits.max) + 1)
    array = np.array(given, dtype=wanted, order="C")
    array.setflags(write=False)
    return array


def within(where: str, values: Array, low: int, high: int) -> None:
    """Refuse values outside low to high - 1."""
    if values.size and (values.min() < low or values.max() >= high):
        raise ConvCircuitsError(f"{where} holds {values.min()} to {values.max()}; expected {low} to {high - 1}.")


def _words(hint: Any) -> str:
    """Return the name of a type for error messages."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return ", ".join([_words(inner[0]), *(_LAWS[law.keyword][1].format(law.value) for law in hint.__metadata__)])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is tuple:
        item = get_args(inner[0])[0] if get_origin(inner[0]) is Annotated else inner[0]
        return f"a sequence of {item.__name__}" if inner[-1] is Ellipsis else f"{len(inner)} whole numbers"
    if origin is Mapping:
        return "a mapping"
    return {
        int: "a whole number",
        float: "a finite number",
        bool: "True or False",
        str: "a text of whole characters",
    }.get(hint, f"a {getattr(hint, '__name__', hint)}")
