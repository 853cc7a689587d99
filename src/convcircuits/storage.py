"""Scores and circuits as files: one ``.safetensors`` file each, with their provenance as JSON in its header."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from convcircuits.circuit import Circuit
from convcircuits.errors import ConvCircuitsError
from convcircuits.feature import Feature
from convcircuits.scores import Scores
from convcircuits.tables import LayerTable

SCHEMA = "convcircuits/1"
_KEY = "convcircuits"
_TABLES = {"scores": ("kernels",), "circuit": ("kernels", "saliency", "gain", "offset")}


def save(value: Scores | Circuit, path: str | os.PathLike[str]) -> Path:
    """Write scores or a circuit to one ``.safetensors`` file, whole or not at all.

    Args:
        value: What to write.
        path: The file; its folder must exist. A file of that name is replaced.

    Returns:
        The path.

    Raises:
        ConvCircuitsError: If the value is of another kind, the name does not end in ``.safetensors``, or the folder
            is not there or not to be written to.
    """
    path = Path(path)
    kind = {Scores: "scores", Circuit: "circuit"}.get(type(value))
    if kind is None:
        raise ConvCircuitsError(f"Only Scores and a Circuit can be saved; got {type(value).__name__}.")
    if path.suffix != ".safetensors":
        raise ConvCircuitsError(f"{path} should end in .safetensors.")
    tables = {name: getattr(value, name) for name in _TABLES[kind]}
    tensors = {f"{name}/{layer}": t for name, table in tables.items() for layer, t in table.items()}
    feature = value.feature
    if isinstance(feature.unit, Tensor):
        tensors["direction"] = feature.unit
    header = {
        "schema": SCHEMA,
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
    try:
        text = json.dumps(header, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ConvCircuitsError(f"The provenance holds what JSON cannot say ({error}); use plain values.") from error
    write_whole(path, to_bytes(tensors, {_KEY: text}))
    return path


def load(path: str | os.PathLike[str]) -> Scores | Circuit:
    """Read what ``save`` wrote. Nothing in the file is run.

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
        return _read(header, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
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


def _read(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Scores | Circuit:
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
