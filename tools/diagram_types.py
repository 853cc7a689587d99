"""Write what the diagram's document is for others than Python, from its records in ``convcircuits.drawing.data``.

    python tools/diagram_types.py    # as `make frontend` does first; what it writes is committed

A JSON schema, and the types, the table of arrays and the constants of the renderer in TypeScript.
"""

import dataclasses
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from convcircuits.drawing import data
from convcircuits.drawing.records import Record, camel, hints, is_array

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "src" / "convcircuits" / "drawing" / "static" / "convcircuits-diagram-1.schema.json"
TYPES = ROOT / "frontend" / "src" / "core" / "types.ts"

WIDTH = 120
KINDS = (data.NodeKind, data.EdgeKind)
NAMES = {int: "integer", float: "number", str: "string", bool: "boolean"}  # in JSON schema


def main() -> None:
    """Write both files."""
    SCHEMA.write_text(json_schema(), encoding="utf-8")
    TYPES.write_text(typescript(), encoding="utf-8")


def records(record: type[Record] = data.Document) -> dict[str, type[Record]]:
    """Return a record and all that it holds, by name, those inside first."""
    found = {}
    for hint in hints(record).values():
        for inner in held(hint):
            found |= records(inner)
    return {**found, record.__name__: record}


def held(hint: Any) -> Iterator[type[Record]]:
    """Go through the records that a field's type names."""
    if isinstance(hint, type) and issubclass(hint, Record):
        yield hint
    for inner in () if is_array(hint) else get_args(hint):
        yield from held(inner)


def comments(record: type[Record]) -> dict[str, str]:
    """Return what stands behind a record's fields, by field."""
    found = re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(record), re.MULTILINE)
    return {name: said(comment) for name, comment in found}


def docstring(record: type[Record]) -> str:
    """Return what a record is, as one line."""
    return said(" ".join(inspect.cleandoc(record.__doc__ or "").split("\n\nRaises:")[0].split()))


def said(text: str) -> str:
    """Return what Python says in the words of JSON."""
    return text.replace("None", "null").replace("False", "false").replace("``", "`")


# JSON schema


def json_schema() -> str:
    """Return the document's JSON schema."""
    definitions: dict[str, Any] = {}
    for name, record in records().items():
        definitions[name] = object_schema(record)
    for dtype, axes in sorted({tuple(hint.__metadata__) for _, hint in arrays()}, key=lambda one: array_name(*one)):
        size = {"minItems": len(axes.split()), "maxItems": len(axes.split())}
        definitions[array_name(dtype, axes)] = closed(
            dtype={"const": dtype},
            shape={"type": "array", "items": {"type": "integer", "minimum": 0}, **size},
            data={"type": "string", "contentEncoding": "base64"},
        )
    document = definitions.pop("Document")
    document["properties"] = {"schema": {"const": data.SCHEMA}, **document["properties"]}
    document["required"].insert(0, "schema")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:convcircuits-diagram:1",
        "title": "A circuit diagram",
    }
    return broken({**head, **document, "$defs": definitions}) + "\n"


def object_schema(record: type[Record]) -> dict[str, Any]:
    """Return the schema of a record."""
    comment = comments(record)
    meanings = {kind.__name__: ", ".join(f"{one.value} {one.name.lower()}" for one in kind) for kind in KINDS}
    fields = {}
    for name, hint in hints(record).items():
        words = [f"({', '.join(hint.__metadata__[1].split())})"] if is_array(hint) else []
        words += [meanings.get(comment[name], comment[name])] if name in comment else []
        fields[camel(name)] = schema(hint) | ({"description": "; ".join(words)} if words else {})
    made = closed(**fields)
    return {"description": docstring(record), **made, "required": [] if record.partial else made["required"]}


def closed(**fields: Any) -> dict[str, Any]:
    """Return the schema of an object that has these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def schema(hint: Any) -> dict[str, Any]:
    """Return the schema of a field's type."""
    origin, inner = get_origin(hint), get_args(hint)
    if is_array(hint):
        return {"$ref": f"#/$defs/{array_name(*hint.__metadata__)}"}
    if origin is Annotated:
        return schema(inner[0]) | {law.keyword: law.value for law in hint.__metadata__}
    if origin in (Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if one is type(None) else schema(one) for one in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple:
        size = {} if inner[-1] is Ellipsis else {"minItems": len(inner), "maxItems": len(inner)}
        return {"type": "array", "items": schema(inner[0]), **size}
    if origin is Mapping:
        keys = {"propertyNames": {"pattern": "^[0-9]+$"}} if inner[0] is int else {}
        return {"type": "object", **keys, "additionalProperties": schema(inner[1])}
    if issubclass(hint, Record):
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {"type": NAMES[hint]}


def array_name(dtype: str, axes: str) -> str:
    """Return what the schema calls arrays of a dtype with so many axes."""
    return f"{dtype}_{len(axes.split())}d"


def broken(value: Any, indent: int = 0) -> str:
    """Return a value as JSON, in one line where it fits."""
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


def typescript() -> str:
    """Return the document's types, constants and table of arrays in TypeScript."""
    modes = get_args(hints(data.View)["mode"])
    parts = [
        doc(
            "The circuit diagram's document and what a view of it is. Written by tools/diagram_types.py from the "
            "records of src/convcircuits/drawing/data.py, where its laws are: change them there, run `make frontend`."
        ).rstrip(),
        f"export const SCHEMA = {json.dumps(data.SCHEMA)};",
        constant("SHARES", data.SHARES) + "\n" + constant("MODES", modes),
        f"export const LONGEST_NAME = {data.LONGEST_NAME};",
        *(f"{doc(kind.__doc__ or '')}export const {kind.__name__} = {enumeration(kind)} as const;" for kind in KINDS),
        f"export type Dtype = {' | '.join(map(json.dumps, sorted({hint.__metadata__[0] for _, hint in arrays()})))};",
        "/** A typed array: little-endian bytes in base64. */\n"
        "export interface Buffer {\n  dtype: Dtype;\n  shape: number[];\n  data: string;\n}",
        table(),
        *(interface(record) for record in records().values()),
        f"export const DEFAULT_VIEW: View = {default_view()};",
    ]
    return "\n\n".join(parts) + "\n"


def constant(name: str, values: tuple[Any, ...]) -> str:
    """Write a list of values."""
    return f"export const {name} = [{', '.join(map(json.dumps, values))}] as const;"


def enumeration(kind: Any) -> str:
    """Write the members of an enumeration as an object."""
    return "{ " + ", ".join(f"{one.name.lower()}: {one.value}" for one in kind) + " }"


def table() -> str:
    """Write the dtype and the axes of every array of the document, by where it is."""
    rows = [f'  {quoted(where)}: "{" ".join(hint.__metadata__)}",' for where, hint in arrays()]
    words = "The dtype and the axes of every array, by where it is; that of a list is in each of its entries. N nodes, "
    words += "E edges, V variants, I images; 2 is two, and other letters are of any size."
    return doc(words) + "export const ARRAYS = {\n" + "\n".join(rows) + "\n} as const;"


def arrays(record: type[Record] = data.Document, where: str = "") -> Iterator[tuple[str, Any]]:
    """Go through the places of arrays and their types."""
    for name, hint in hints(record).items():
        place = f"{where}.{camel(name)}".lstrip(".")
        if is_array(hint):
            yield place, hint
        for inner in held(hint):
            yield from arrays(inner, place)


def quoted(where: str) -> str:
    """Return a place as a key of an object."""
    return where if where.isidentifier() else f'"{where}"'


def interface(record: type[Record]) -> str:
    """Write a record's interface."""
    comment = comments(record)
    lines = ["  schema: typeof SCHEMA;"] if record is data.Document else []
    for name, hint in hints(record).items():
        array = f"{hint.__metadata__[0]} ({', '.join(hint.__metadata__[1].split())})" if is_array(hint) else ""
        words = "; ".join(filter(None, [array, comment.get(name)]))
        line = f"  {camel(name)}: {typed(hint)};"
        if not words or len(line) + len(words) + 4 <= WIDTH:
            lines.append(line + (f" // {words}" if words else ""))
        else:
            lines += [*(f"  // {each}" for each in textwrap.wrap(words, WIDTH - 5)), line]
    return doc(docstring(record)) + f"export interface {record.__name__} {{\n" + "\n".join(lines) + "\n}"


def typed(hint: Any) -> str:
    """Write a field's type."""
    origin, inner = get_origin(hint), get_args(hint)
    if is_array(hint):
        return "Buffer"
    if origin is Annotated:
        among = [law.value for law in hint.__metadata__ if law.keyword == "enum"]
        return " | ".join(map(json.dumps, among[0])) if among else typed(inner[0])
    if origin in (Union, types.UnionType):
        return " | ".join("null" if one is type(None) else typed(one) for one in inner)
    if origin is Literal:
        return " | ".join(map(json.dumps, inner))
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"[{', '.join(map(typed, inner))}]"
    if origin is tuple:
        return f"{typed(inner[0])}[]"
    if origin is Mapping:
        return f"Record<string, {typed(inner[1])}>"
    if issubclass(hint, Record):
        return f"Partial<{hint.__name__}>" if hint.partial else hint.__name__
    return NAMES[hint].replace("integer", "number")


def default_view() -> str:
    """Write the default view as an object."""
    fields = [f"  {camel(one.name)}: {json.dumps(one.default)}," for one in dataclasses.fields(data.View)]
    return "{\n" + "\n".join(fields) + "\n}"


def doc(words: str) -> str:
    """Write a comment for people and editors."""
    lines = textwrap.wrap(words, WIDTH - 8)
    return "/** " + "\n *  ".join(lines) + " */\n"


if __name__ == "__main__":
    main()
