"""Go on with a descent from the circuits that an earlier run wrote to a file."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convcircuits.circuits.budgets import Size
from convcircuits.circuits.descent import Level
from convcircuits.circuits.tracing import Trace
from convcircuits.errors import ConvCircuitsError
from convcircuits.files import check_place, is_file
from convcircuits.storage import load
from convcircuits.values.circuit import Circuit


def resumed(path: Path, trace: Trace, sizes: Sequence[Size], run: Mapping[str, Any]) -> list[tuple[Circuit, Level]]:
    """Return the circuits of a checkpoint, none if there is no such file.

    Args:
        path: The file.
        trace: The feature's images.
        sizes: The sizes that circuits have; the last is the size to reach.
        run: Other entries of a circuit's provenance that must be the same: its criterion, options, schedule
            (without the sizes reached) and architecture.

    Raises:
        ConvCircuitsError: If the file cannot be written, holds something else, or is of another run.
    """
    check_place(path)
    if not is_file(path):
        return []
    for _ in trace.batches:  # counted and hashed
        pass
    about = trace.subject.about
    wanted = {
        "weights": about["weights"],
        "feature": about["feature"],
        "seed": trace.seed,
        "images": trace.batches.describe(),
        "versions": about["versions"],  # another one may round in another way
        **run,
    }
    done = load(path)
    if not isinstance(done, tuple):
        raise ConvCircuitsError(f"{path} holds no path of circuits; give another file as the checkpoint.")
    asked = [dataclasses.asdict(size) for size in sizes]
    for number, circuit in enumerate(done):
        for name, value in {**wanted, "path": {"asked": asked, "number": number}}.items():
            found = circuit.provenance.get(name)
            if name == "schedule" and isinstance(found, Mapping):
                found = {key: one for key, one in found.items() if key != "sizes"}
            if found != value:
                raise ConvCircuitsError(
                    f"The checkpoint {path} is of another run, with {name} {found!r:.100}, not {value!r:.100}. Give "
                    "another file, or remove this one."
                )
    return [(circuit, _level(circuit, sizes[-1])) for circuit in done]


def _level(circuit: Circuit, size: Size) -> Level:
    elements, saliency, gain, offset = (
        dict(table) for table in (circuit.elements, circuit.saliency, circuit.gain, circuit.offset)
    )
    about = circuit.provenance
    return Level(size, elements, saliency, gain, offset, dict(about["calibration"]), dict(about["cost"]))
