"""Scores, circuits, paths of circuits and modules as files, one each, with provenance as JSON in the header.

The format is safetensors. Our metadata begins with a checksum over all bytes of the file, in which the checksum itself
counts as zeros, so no bit of a file can change unnoticed.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from convcircuits import seals
from convcircuits.compiler import module_json as graphs
from convcircuits.compiler.interpreter import CircuitModule
from convcircuits.compiler.onnx_export import onnx_bytes
from convcircuits.errors import ConvCircuitsError
from convcircuits.files import is_file, write_whole
from convcircuits.values.boxes import Boxes
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import Feature, Position
from convcircuits.values.origins import check_provenance
from convcircuits.values.scores import Scores
from convcircuits.values.tables import LayerTable

SCHEMA = "convcircuits/3"
_EARLIER = ("convcircuits/1", "convcircuits/2")
_TABLES = {"scores": ("elements",), "circuit": ("elements", "saliency", "gain", "offset")}


def save(value: Scores | Circuit | tuple[Circuit, ...] | CircuitModule, path: str | os.PathLike[str]) -> Path:
    """Write scores, a circuit, a path of circuits or an extracted module to one file, completely or not at all.

    Args:
        value: What to write. A module can be loaded without the code of the model that it came from.
        path: The file: ``.safetensors``, or for a module also ``.onnx`` (any number of images). Its folder must exist;
            an existing file is replaced.

    Returns:
        The path.

    Raises:
        ConvCircuitsError: If the value is of another type, a module calls something that a file may not name, the path
            has another suffix, or the folder does not exist or is not writable.

    Examples:
        >>> path = cc.save(circuit, "circuit.safetensors")
        >>> cc.load(path) == circuit
        True
    """
    path = Path(path)
    is_path = isinstance(value, tuple) and len(value) > 0 and all(isinstance(one, Circuit) for one in value)
    if not is_path and not isinstance(value, (Scores, Circuit, CircuitModule)):
        raise ConvCircuitsError(
            "Only Scores, a Circuit, a tuple of circuits or a module from extract can be saved; got "
            f"{type(value).__name__}."
        )
    if path.suffix == ".onnx" and isinstance(value, CircuitModule):
        write_whole(path, onnx_bytes(value))
        return path
    if path.suffix != ".safetensors":
        also = " or, for ONNX, in .onnx" if isinstance(value, CircuitModule) else ""
        raise ConvCircuitsError(f"{path} must end in .safetensors{also}.")
    header, tensors = (
        _of_module(value)
        if isinstance(value, CircuitModule)
        else _of_path(value)
        if isinstance(value, tuple)
        else _of_tables(value)
    )
    try:
        for one in header.get("circuits", [header]):
            check_provenance(one.get("provenance") or one.get("circuit") or {})
    except ConvCircuitsError as error:
        raise ConvCircuitsError(f"{path} cannot be written: {error}.") from error
    try:
        text = json.dumps({"schema": SCHEMA, **header}, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConvCircuitsError(f"The provenance is not valid JSON ({error}); use plain values.") from error
    write_whole(path, sealed(text, tensors))
    return path


def load(path: str | os.PathLike[str]) -> Scores | Circuit | tuple[Circuit, ...] | CircuitModule:
    """Read a ``.safetensors`` file that ``save`` wrote. Nothing in the file is executed.

    A module is returned in eval mode on the CPU, with the same ``state_dict`` and bit-identical results.

    Raises:
        ConvCircuitsError: If there is no such file, or it is foreign, damaged or of another version.
    """
    path = Path(path)
    if not is_file(path):
        raise ConvCircuitsError(f"There is no file {path}.")
    try:
        content = path.read_bytes()
        tensors = from_bytes(content)
        metadata = seals.metadata(content)
    except Exception as error:  # safetensors raises many types
        raise ConvCircuitsError(
            f"{path} is not a complete .safetensors file ({error}); was it cut off while it was copied?"
        ) from error
    if seals.KEY not in metadata:
        raise ConvCircuitsError(f"{path} is a .safetensors file, but convcircuits did not write it.")
    try:
        header = json.loads(metadata[seals.KEY])
        schema, kind = str(header["schema"]), header["kind"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConvCircuitsError(f"The header of {path} is damaged: {error!r}.") from error
    if schema != SCHEMA:
        raise ConvCircuitsError(f"{path} has the format {schema!r:.80}, {_what_to_do(schema)}")
    if not seals.is_sealed(content, header):
        raise ConvCircuitsError(f"{path} is damaged: its checksum does not match. Copy or make it again.")
    try:
        if kind == "path":
            return _read_path(header, tensors)
        return (_read_module if kind == "module" else _read_tables)(header, tensors)
    except Exception as error:  # a malicious file makes torch raise nearly anything
        raise ConvCircuitsError(f"{path} is damaged: {' '.join(str(error).split()):.500}.") from error


def sealed(text: str, tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a file, with its checksum, from the JSON text of a header and tensors."""
    return seals.filled(to_bytes(dict(tensors), {seals.KEY: f'{{"checksum": "{seals.NO_SUM}", {text[1:]}'}))


def _what_to_do(schema: str) -> str:
    if schema in _EARLIER:
        return f"which an earlier version wrote, but this version reads only {SCHEMA!r}; make the file again."
    return f"but this version of convcircuits reads {SCHEMA!r}; pip install --upgrade convcircuits."


def _of_module(module: CircuitModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in module.state_dict().items()}
    graph = graphs.to_json(module)
    try:
        graphs.from_json(graph, tensors)
    except Exception as error:
        raise ConvCircuitsError(
            f"This module could not be loaded again: {error}; save the module as extract returned it."
        ) from error
    return {"kind": "module", "graph": graph, "circuit": module.meta.get("circuit")}, tensors


def _read_module(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CircuitModule:
    # Tensors in a file may be unaligned, and torch runs other code, with other rounding, on unaligned weights.
    module = graphs.from_json(header["graph"], {name: x.clone() for name, x in tensors.items()})
    circuit = header["circuit"]
    if circuit is not None:
        check_provenance(circuit)
        module.meta["circuit"] = circuit
    return module


def _of_path(path: tuple[Circuit, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    parts = [_of_tables(circuit) for circuit in path]
    tensors = {f"{n}/{name}": x for n, (_, own) in enumerate(parts) for name, x in own.items()}
    return {"kind": "path", "circuits": [header for header, _ in parts]}, tensors


def _read_path(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Circuit, ...]:
    parts: list[dict[str, Tensor]] = [{} for _ in header["circuits"]]
    for name, x in tensors.items():
        number, _, own = name.partition("/")
        parts[int(number)][own] = x
    path = tuple(_read_tables(one, own) for one, own in zip(header["circuits"], parts, strict=True))
    if not path or not all(isinstance(one, Circuit) for one in path):
        raise ConvCircuitsError("its circuits are something else")
    return path  # type: ignore[return-value]


def _of_tables(value: Scores | Circuit) -> tuple[dict[str, Any], dict[str, Tensor]]:
    kind = "circuit" if isinstance(value, Circuit) else "scores"
    tables = {name: getattr(value, name) for name in _TABLES[kind]}
    tensors = {f"{name}/{layer}": t for name, table in tables.items() for layer, t in table.items()}
    feature = value.feature
    if isinstance(feature.unit, Tensor):
        tensors["direction"] = feature.unit
    header = {
        "kind": kind,
        "feature": {
            "layer": feature.layer,
            "unit": None if isinstance(feature.unit, Tensor) else feature.unit,
            "position": feature.position.to_json() if isinstance(feature.position, Boxes) else feature.position,
            "call": feature.call,
        },
        "layers": {name: list(table) for name, table in tables.items()},  # safetensors sorts its keys
        "granularity": value.granularity,
        "relevant": value.relevant if isinstance(value, Circuit) else value.relevant_in_model,
        "provenance": dict(value.provenance),
    }
    return header, tensors


def _read_position(value: Any) -> Position:
    if isinstance(value, dict):
        return Boxes.from_json(value)
    return value if isinstance(value, str) else tuple(value)  # type: ignore[return-value]


def _read_tables(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Scores | Circuit:
    kind, fields = header["kind"], header["feature"]
    feature = Feature(
        fields["layer"],
        tensors["direction"] if fields["unit"] is None else fields["unit"],
        position=_read_position(fields["position"]),
        call=fields["call"],
    )
    tables = {
        name: LayerTable({layer: tensors[f"{name}/{layer}"] for layer in header["layers"][name]})
        for name in _TABLES[kind]
    }
    expected = sum(map(len, tables.values())) + (fields["unit"] is None)
    if expected != len(tensors):
        raise ConvCircuitsError(f"it holds {len(tensors)} tensors, but its header names {expected}")
    relevant, provenance = header["relevant"], header["provenance"]
    granularity = header["granularity"]
    if type(relevant) is not int or type(granularity) is not str:
        raise ConvCircuitsError("its header has values of the wrong type")
    check_provenance(provenance)
    if kind == "circuit":
        return Circuit(feature, relevant=relevant, provenance=provenance, granularity=granularity, **tables)
    return Scores(feature, tables["elements"], relevant, provenance, granularity)
