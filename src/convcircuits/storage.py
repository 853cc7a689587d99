"""Scores, circuits and extracted modules as files: one each, with provenance as JSON in its header."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, fx

from convcircuits import graphs
from convcircuits.circuit import Circuit
from convcircuits.errors import ConvCircuitsError
from convcircuits.feature import Feature
from convcircuits.onnxfile import onnx_bytes
from convcircuits.scores import Scores
from convcircuits.tables import LayerTable

SCHEMA = "convcircuits/1"
_KEY = "convcircuits"
_TABLES = {"scores": ("kernels",), "circuit": ("kernels", "saliency", "gain", "offset")}


def save(value: Scores | Circuit | fx.GraphModule, path: str | os.PathLike[str]) -> Path:
    """Write scores, a circuit or an extracted module to one file, whole or not at all.

    Args:
        value: What to write. A module needs no code of the model it came from to be loaded.
        path: The file, ``.safetensors``, or for a module also ``.onnx`` (see `convcircuits.onnxfile`); its folder must
            exist. A file of that name is replaced.

    Returns:
        The path.

    Raises:
        ConvCircuitsError: If the value is of another kind, a module calls what a file may not name, the path ends
            otherwise, or the folder is not there or not to be written to.
    """
    path = Path(path)
    if not isinstance(value, (Scores, Circuit, fx.GraphModule)):
        raise ConvCircuitsError(
            f"Only Scores, a Circuit and a module that extract made can be saved; got {type(value).__name__}."
        )
    if path.suffix == ".onnx" and isinstance(value, fx.GraphModule):
        write_whole(path, onnx_bytes(value))
        return path
    if path.suffix != ".safetensors":
        also = " or, for ONNX, in .onnx" if isinstance(value, fx.GraphModule) else ""
        raise ConvCircuitsError(f"{path} should end in .safetensors{also}.")
    header, tensors = _of_module(value) if isinstance(value, fx.GraphModule) else _of_tables(value)
    try:
        text = json.dumps({"schema": SCHEMA, **header}, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ConvCircuitsError(f"The provenance holds what JSON cannot say ({error}); use plain values.") from error
    write_whole(path, to_bytes(tensors, {_KEY: text}))
    return path


def load(path: str | os.PathLike[str]) -> Scores | Circuit | fx.GraphModule:
    """Read what ``save`` wrote to a ``.safetensors`` file. Nothing in the file is run.

    A module comes back in eval mode on the CPU, with the same ``state_dict`` and the same results to the bit.

    Raises:
        ConvCircuitsError: If there is no such file, or it is foreign, damaged or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise ConvCircuitsError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ConvCircuitsError(
            f"{path} is no whole .safetensors file ({error}); was it cut off while it was copied?"
        ) from error
    if _KEY not in metadata:
        raise ConvCircuitsError(f"{path} is a .safetensors file, but convcircuits did not write it.")
    try:
        header = json.loads(metadata[_KEY])
        schema = str(header["schema"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConvCircuitsError(f"The header of {path} is damaged: {error!r}.") from error
    if schema != SCHEMA:
        raise ConvCircuitsError(
            f"{path} has the format {schema!r}, and this version of convcircuits reads {SCHEMA!r}; "
            "pip install --upgrade convcircuits."
        )
    try:
        return (_read_module if header["kind"] == "module" else _read_tables)(header, tensors)
    except Exception as error:  # a damaged file makes torch and torch.fx raise nearly anything
        raise ConvCircuitsError(f"{path} is damaged: {error}.") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that it is never half written.

    Raises:
        ConvCircuitsError: If the folder is not there or not to be written to.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)  # mkstemp makes it private
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise ConvCircuitsError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _of_module(module: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in module.state_dict().items()}
    graph = graphs.to_json(module)
    try:
        graphs.from_json(graph, tensors)
    except Exception as error:
        raise ConvCircuitsError(f"This module could not be loaded again: {error}; save what extract made.") from error
    return {"kind": "module", "graph": graph, "circuit": module.meta.get("circuit")}, tensors


def _read_module(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    # In a file tensors lie at any byte, and torch takes other code, with other rounding, for unaligned weights.
    module = graphs.from_json(header["graph"], {name: x.clone() for name, x in tensors.items()})
    circuit = header["circuit"]
    if circuit is not None:
        module.meta["circuit"] = dict(circuit)
    return module


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
            "position": feature.position,
            "call": feature.call,
        },
        "layers": {name: list(table) for name, table in tables.items()},  # safetensors sorts its keys
        "granularity": value.granularity,
        "relevant": value.relevant if isinstance(value, Circuit) else value.relevant_in_model,
        "provenance": dict(value.provenance),
    }
    return header, tensors


def _read_tables(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Scores | Circuit:
    kind, said = header["kind"], header["feature"]
    position = said["position"]
    feature = Feature(
        said["layer"],
        tensors["direction"] if said["unit"] is None else said["unit"],
        position=position if isinstance(position, str) else tuple(position),  # type: ignore[arg-type]
        call=said["call"],
    )
    tables = {
        name: LayerTable({layer: tensors[f"{name}/{layer}"] for layer in header["layers"][name]})
        for name in _TABLES[kind]
    }
    expected = sum(map(len, tables.values())) + (said["unit"] is None)
    if expected != len(tensors):
        raise ConvCircuitsError(f"it holds {len(tensors)} tensors where its header names {expected}")
    relevant, provenance = header["relevant"], header["provenance"]
    granularity = header.get("granularity", "kernel")  # files of before there were others do not say
    if isinstance(relevant, bool) or not isinstance(relevant, int) or not isinstance(provenance, dict):
        raise ConvCircuitsError("its header has values of another type")
    if kind == "circuit":
        return Circuit(feature, relevant=relevant, provenance=provenance, granularity=granularity, **tables)
    return Scores(feature, tables["kernels"], relevant, provenance, granularity)
