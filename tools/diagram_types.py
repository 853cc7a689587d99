"""Generate the JSON schema and the TypeScript types of the diagram's document.

    python tools/diagram_types.py    # the first step of `make frontend`; commit the output

Both are generated from the records in ``convcircuits.drawing.data``. The TypeScript file has the renderer's types,
constants and table of arrays.
"""

import inspect
import json
import re
import string
import textwrap
import types
from collections.abc import Collection, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from convcircuits.drawing.data import SCHEMA, Document, EdgeKind, NodeKind, View, view_to_dict
from convcircuits.drawing.records import Record, camel, hints, is_array, omissible

ROOT = Path(__file__).resolve().parents[1]
SCHEMA_FILE = ROOT / "src" / "convcircuits" / "drawing" / "static" / "convcircuits-diagram-2.schema.json"
TYPES_FILE = ROOT / "frontend" / "src" / "core" / "types.ts"

WIDTH = 120
KINDS = (NodeKind, EdgeKind)
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def main() -> None:
    """Write both files."""
    SCHEMA_FILE.write_text(json_schema(), encoding="utf-8")
    TYPES_FILE.write_text(typescript(), encoding="utf-8")


# JSON schema


def definitions() -> dict[str, dict[str, Any]]:
    """Return the schemas of all records and kinds of arrays by name, each after the schemas that it refers to."""
    found: dict[str, dict[str, Any]] = {}
    schema(Document, found)
    return found


def schema(hint: Any, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a field's type. Add the schemas that it refers to to those found so far."""
    origin, inner = get_origin(hint), get_args(hint)
    if is_array(hint):
        dtype, axes = hint.__metadata__
        name = f"{dtype}_{len(axes.split())}d"
        found[name] = of_array(dtype, len(axes.split()))
        return {"$ref": f"#/$defs/{name}", "axes": axes}
    if origin is Annotated:
        return schema(inner[0], found) | {law.keyword: law.value for law in hint.__metadata__}
    if origin in (Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if one is type(None) else schema(one, found) for one in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple:
        size = {} if inner[-1] is Ellipsis else {"minItems": len(inner), "maxItems": len(inner)}
        return {"type": "array", "items": schema(inner[0], found), **size}
    if origin is Mapping:
        keys = {"propertyNames": {"pattern": "^[0-9]+$"}} if inner[0] is int else {}
        return {"type": "object", **keys, "additionalProperties": schema(inner[1], found)}
    if issubclass(hint, Record):
        found[hint.__name__] = of_record(hint, found)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {"type": TYPES[hint]}


def of_record(record: type[Record], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a record, with descriptions from its docstring and from the comments on its fields."""
    source = re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(record), re.MULTILINE)
    comments = {name: {"description": in_json(words)} for name, words in source}
    fields = {camel(name): schema(hint, found) | comments.get(name, {}) for name, hint in hints(record).items()}
    if record is Document:
        fields = {"schema": {"const": SCHEMA}, **fields}
    optional = set(map(camel, omissible(record)))
    words = inspect.cleandoc(record.__doc__ or "").split("\n\nRaises:")[0]
    return {"description": in_json(" ".join(words.split())), **closed(fields, optional)}


def of_array(dtype: str, axes: int) -> dict[str, Any]:
    """Return the schema of arrays."""
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": axes, "maxItems": axes}
    data = {"type": "string", "contentEncoding": "base64"}
    return closed({"dtype": {"const": dtype}, "shape": shape, "data": data})


def closed(fields: dict[str, Any], optional: Collection[str] = ()) -> dict[str, Any]:
    """Return the schema of an object that has these fields, of which some may be left out, and no others."""
    needed = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, "required": needed, "additionalProperties": False}


def in_json(words: str) -> str:
    """Return a Python comment in the terms of JSON."""
    for kind in KINDS:
        words = words.replace(kind.__name__, ", ".join(f"{one.value} {one.name.lower()}" for one in kind))
    return words.replace("None", "null").replace("False", "false").replace("``", "`")


def json_schema() -> str:
    """Return the document's JSON schema."""
    found = definitions()
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:convcircuits-diagram:2",
        "title": "A circuit diagram",
    }
    return broken({**head, **found.pop("Document"), "$defs": found}) + "\n"


def broken(value: Any, indent: int = 0) -> str:
    """Return a value as JSON, on one line if it fits."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or indent + len(line) < WIDTH:
        return line
    inside = indent + 2
    if isinstance(value, list):
        parts, (first, last) = [broken(item, inside) for item in value], "[]"
    else:
        parts, (first, last) = [f"{json.dumps(key)}: {broken(item, inside)}" for key, item in value.items()], "{}"
    pad = "\n" + " " * inside
    return f"{first}{pad}{f',{pad}'.join(parts)}\n{' ' * indent}{last}"


# TypeScript


HEAD = """\
/** The circuit diagram's document and what a view of it is. Written by tools/diagram_types.py from the records of
 *  src/convcircuits/drawing/data.py, where its laws are: change them there and run `make frontend`. */

export const SCHEMA = $schema;
export const SHARES = $shares as const;
export const MODES = $modes as const;
export const PATHS = $paths as const;
export const LONGEST_NAME = $longest;
export const LONGEST_LABEL = $label;
export const LONGEST_NOTE = $note;

$kinds

/** A typed array: little-endian bytes in base64. */
export interface Buffer {
  dtype: $dtypes;
  shape: number[];
  data: string;
}

/** The dtype and the axes of every array, by where it is; of those in a list, by the list. N nodes, E edges,
 *  V variants, I images; 2 is two, and other axes are of any length. */
export const ARRAYS = {
$arrays
} as const;

$interfaces

export const DEFAULT_VIEW: View = {
$view
};
"""


def typescript() -> str:
    """Return the document's types, constants and table of arrays in TypeScript."""
    found = definitions()
    records = {name: one["properties"] for name, one in found.items() if "dtype" not in one["properties"]}
    table = [
        (where if where.isidentifier() else json.dumps(where), kind) for where, kind in arrays(records, "Document")
    ]
    return string.Template(HEAD).substitute(
        schema=json.dumps(SCHEMA),
        shares=json.dumps(records["View"]["share"]["enum"]),
        modes=json.dumps(records["View"]["mode"]["enum"]),
        paths=json.dumps(records["View"]["paths"]["enum"]),
        longest=records["Group"]["name"]["maxLength"],
        label=records["Note"]["label"]["maxLength"],
        note=records["Note"]["note"]["maxLength"],
        kinds="\n".join(map(enumeration, KINDS)),
        dtypes=union(sorted({kind.split()[0] for _, kind in table})),
        arrays="\n".join(f'  {where}: "{kind}",' for where, kind in table),
        interfaces="\n\n".join(interface(name, found[name]) for name in records),
        view="\n".join(f"  {name}: {json.dumps(value)}," for name, value in view_to_dict(View()).items()),
    )


def enumeration(kind: type[IntEnum]) -> str:
    """Return an enumeration as an object in TypeScript."""
    members = ", ".join(f"{one.name.lower()}: {one.value}" for one in kind)
    return f"/** {kind.__doc__} */\nexport const {kind.__name__} = {{ {members} }} as const;"


def arrays(records: dict[str, dict[str, Any]], record: str, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield the places of all arrays, with their dtypes and axes."""
    for name, field in records[record].items():
        place = f"{where}.{name}".lstrip(".")
        if "axes" in field:
            yield place, f"{dtype(field)} {field['axes']}"
        for inner in re.findall(r"#/\$defs/(\w+)", json.dumps(field)):
            if inner in records:
                yield from arrays(records, inner, place)


def dtype(field: dict[str, Any]) -> str:
    """Return the dtype of an array."""
    return str(field["$ref"]).split("/")[-1].split("_")[0]


def interface(name: str, record: dict[str, Any]) -> str:
    """Return a record as an interface in TypeScript."""
    lines = []
    for field, kind in record["properties"].items():
        array = f"{dtype(kind)} ({', '.join(kind['axes'].split())})" if "axes" in kind else ""
        words = "; ".join(filter(None, [array, kind.get("description")]))
        mark = "" if field in record["required"] or name == "View" else "?"
        lines.append(f"  {field}{mark}: {typed(kind)};" + (f" // {words}" if words else ""))
    about = "\n *  ".join(textwrap.wrap(record["description"], WIDTH - 8))
    return f"/** {about} */\nexport interface {name} {{\n" + "\n".join(lines) + "\n}"


def typed(field: dict[str, Any]) -> str:
    """Return a field's type in TypeScript."""
    match field:
        case {"axes": _}:
            return "Buffer"
        case {"$ref": where}:
            name = where.split("/")[-1]
            return f"Partial<{name}>" if name == "View" else name
        case {"const": value}:
            return json.dumps(value)
        case {"enum": values}:
            return union(values)
        case {"anyOf": kinds}:
            return " | ".join(map(typed, kinds))
        case {"type": "array", "maxItems": size}:
            return f"[{', '.join([typed(field['items'])] * size)}]"
        case {"type": "array"}:
            return f"{typed(field['items'])}[]"
        case {"additionalProperties": kind}:
            return f"Record<string, {typed(kind)}>"
    return str(field["type"]).replace("integer", "number")


def union(values: list[Any]) -> str:
    """Return a choice of values as a type in TypeScript."""
    return " | ".join(map(json.dumps, values))


if __name__ == "__main__":
    main()
