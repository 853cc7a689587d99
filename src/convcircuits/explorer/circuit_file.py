"""A circuit's file as the explorer lists it: its header and how much it keeps, whoever wrote it. No torch."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.numpy import load as from_bytes

from convcircuits import seals


@dataclass(frozen=True)
class CircuitFile:
    """A file in the folder of circuits.

    Attributes:
        id: Hash of its content, 16 hexadecimal digits.
        file: The file.
        header: The file's header: kind, feature, granularity, relevant, provenance.
        kept: Number of elements that it keeps.
        problem: Why it is not a circuit that can be used; empty if it is.
    """

    id: str
    file: Path
    header: Mapping[str, Any] = field(default_factory=dict, repr=False)
    kept: int = 0
    problem: str = ""

    @property
    def name(self) -> str:
        """Name of the file, as text that can be answered also if it is not UTF-8."""
        return os.fsencode(self.file.name).decode("utf-8", "backslashreplace")

    @classmethod
    def read(cls, file: Path) -> "CircuitFile":
        """Read the header of a file; one that is no circuit has a problem."""
        content = file.read_bytes()
        one = cls(hashlib.sha256(content).hexdigest()[:16], file)
        try:
            tensors = from_bytes(content)
            header = json.loads(seals.metadata(content)[seals.KEY])
            if not seals.is_sealed(content, header):
                return replace(one, problem=f"{one.name} is damaged: its checksum does not match.")
            if header["kind"] != "circuit":
                return replace(one, problem=f"{one.name} holds {header['kind']!s:.80}, not a circuit.")
            json.dumps(header, ensure_ascii=False, allow_nan=False).encode()  # it can be answered
            feature, provenance, relevant = header["feature"], header["provenance"], header["relevant"]
            lacks = {"layer", "unit", "position"} - {*feature} or {"granularity"} - {*header}
            if lacks or not isinstance(provenance, dict) or not isinstance(relevant, int):
                raise ValueError("its header is not that of a circuit")
            kept = sum(int(x.sum()) for name, x in tensors.items() if name.startswith("elements/"))
            return replace(one, header=header, kept=kept)
        except Exception as error:  # a foreign or damaged file makes safetensors raise nearly anything
            reason = " ".join(f"{error!r}".split()).encode("utf-8", "replace").decode()
            return replace(one, problem=f"{one.name} is not a circuit ({reason:.200}).")
