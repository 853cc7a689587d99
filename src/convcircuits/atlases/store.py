"""The folder of an atlas: a file for each circuit, and an index with a row for each unit.

The index is an SQLite database: a row is added in one transaction, so a run that is killed loses no row and leaves
none half written, and it needs nothing but Python. (A Parquet file can only be written as a whole, so it would need a
file for each unit, and one more package.) Each shard has an index of its own and is the only process that writes it,
so that shards can run on several machines which share the folder. Readers read all of them.
"""

import contextlib
import json
import os
import sqlite3
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convcircuits.errors import ConvCircuitsError
from convcircuits.files import is_folder, lock
from convcircuits.storage import save
from convcircuits.values.circuit import Circuit
from convcircuits.values.report import Evaluation

CIRCUITS = "circuits"
"""Name of the folder of the circuits' files."""

FIGURES = (
    "kernels",
    "effective_kernels",
    "relevant",
    "density",
    "constants",
    "r2",
    "r2_interior",
    "r2_rectified",
    "r2_readout",
    "r2_average_map",
    "r2_average_map_interior",
    "r2_random",
    "r2_random_interior",
    "pearson",
    "positive",
    "verdict",
)
"""The figures of ``Evaluation`` that a row of the index has."""

_COLUMNS = ("unit", "file", "problem", *FIGURES, "seconds", "kept", "on_path")
_SCHEMA = 1
_MOST = 1 << 40  # bits of a table that a reader unpacks
_IMAGES = {"images": "images", "held_out": "held-out images"}  # what is known of both is their number and a hash
_OTHER_IMAGES = (
    " Images differ where photographs were added, removed or edited, or are divided, cut or prepared otherwise: in "
    "the command, with another --size, --seed, --held-out, --count, --mean or --std."
)


@dataclass(frozen=True)
class Row:
    """What the index says of a unit.

    Attributes:
        unit: The unit.
        file: The circuit's file, relative to the folder; empty if there is none.
        problem: Why there is no circuit; empty if there is one.
        figures: Name in ``FIGURES`` -> value; None where a figure is not known. Empty if there is no circuit.
        seconds: Time that its circuit and figures took, in seconds, without scores and runs of the full model that
            serve several units.
        kept: Layer name -> bool (out, in per group): the kernels that the circuit keeps.
        relevant: Layer name -> bool of the same shapes: those on a path to the unit in the full model.
    """

    unit: int
    file: str
    problem: str
    figures: Mapping[str, Any]
    seconds: float
    kept: Mapping[str, Tensor]
    relevant: Mapping[str, Tensor]


class Index:
    """The index of one run, or of one shard, open for writing.

    Args:
        folder: The folder of the atlas; it must exist.
        asked: What all circuits of the folder depend on, as JSON values.
        layers: Layer name -> shape of its table of kernels, in execution order.
        shard: Which part of how many, from 1; None for all.

    Raises:
        ConvCircuitsError: If the folder is that of another atlas, another process writes the same index, or it is
            damaged or not writable.
    """

    def __init__(
        self,
        folder: Path,
        asked: Mapping[str, Any],
        layers: Mapping[str, tuple[int, ...]],
        shard: tuple[int, int] | None,
    ) -> None:
        self.folder = folder
        self._layers = dict(layers)
        for path in _indices(folder):
            with _opened(path) as database:
                _check_same(path, _about(path, database)["asked"], asked)
        name = "index.sqlite" if shard is None else f"index-{shard[0]}-of-{shard[1]}.sqlite"
        path = folder / name
        try:
            (folder / CIRCUITS).mkdir(exist_ok=True)
            self._lock = (folder / f".{name}.lock").open("w")
            missing = lock(self._lock)
        except BlockingIOError as error:
            self._lock.close()
            raise ConvCircuitsError(
                f"Another process is writing {path}; wait for it, or give it and this one different shards."
            ) from error
        except OSError as error:
            raise ConvCircuitsError(f"{folder} cannot be written: {error.strerror or error}.") from error
        if missing:
            warnings.warn(
                f"{folder} is on a file system without locks ({missing}), so a second run could write {name} at the "
                "same time; see that only one does.",
                stacklevel=2,
            )
        with _errors(path):
            self._database = sqlite3.connect(path, timeout=60)
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                if not _tables(self._database):
                    self._database.execute(f"PRAGMA user_version = {_SCHEMA}")
                    self._database.execute("CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
                    self._database.execute(
                        f"CREATE TABLE circuits (unit INTEGER PRIMARY KEY, {', '.join(_COLUMNS[1:])})"
                    )
                    said = {"asked": asked, "layers": {name: list(shape) for name, shape in layers.items()}}
                    self._database.executemany(
                        "INSERT INTO about VALUES (?, ?)", [(key, json.dumps(value)) for key, value in said.items()]
                    )

    def finished(self) -> set[int]:
        """Return the units that have a circuit, whichever run found it."""
        done: set[int] = set()
        for path in _indices(self.folder):
            with _opened(path) as database:
                done |= {unit for (unit,) in database.execute("SELECT unit FROM circuits WHERE problem = ''")}
        return done

    def add(
        self,
        unit: int,
        seconds: float,
        *,
        circuit: Circuit | None = None,
        report: Evaluation | None = None,
        problem: str = "",
    ) -> None:
        """Write a circuit and then its row, or the row of a unit without a circuit; each completely or not at all.

        The row takes the place of an earlier one, of a unit that had no circuit.
        """
        file, figures, tables = "", dict.fromkeys(FIGURES), (b"", b"")
        if circuit is not None and report is not None:
            file = f"{CIRCUITS}/{circuit.feature.slug}.safetensors"
            save(circuit, self.folder / file)
            said = report.as_dict()
            figures = {name: said[name] for name in FIGURES}
            kept = dict(circuit.kernels.items())
            on_path = {layer: ~values.isnan() for layer, values in circuit.saliency.items()}
            tables = self._packed(kept), self._packed(on_path)
        row = (unit, file, problem, *figures.values(), seconds, *tables)
        with _errors(self.folder), self._database:
            marks = ", ".join("?" * len(row))
            self._database.execute(f"INSERT OR REPLACE INTO circuits ({', '.join(_COLUMNS)}) VALUES ({marks})", row)

    def close(self) -> None:
        """Close the index, so that another process can write it."""
        self._database.close()
        self._lock.close()

    def _packed(self, tables: Mapping[str, Tensor]) -> bytes:
        parts = [
            tables[layer].flatten() if layer in tables else torch.zeros(shape, dtype=torch.bool).flatten()
            for layer, shape in self._layers.items()
        ]
        return zlib.compress(packed(torch.cat(parts)).numpy().tobytes())


def read_index(
    folders: Sequence[Path],
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], dict[int, tuple[Path, Row]]]:
    """Read the indices in some folders, the shards of one atlas.

    Returns:
        What the circuits depend on, layer name -> shape of its table of kernels, and unit -> its folder and row.

    Raises:
        ConvCircuitsError: If a folder has no index, one is damaged, or they are of different atlases.
    """
    asked: dict[str, Any] | None = None
    layers: dict[str, tuple[int, ...]] = {}
    rows: dict[int, tuple[Path, Row]] = {}
    for folder in folders:
        found = _indices(folder)
        if not found:
            raise ConvCircuitsError(
                f"There is no atlas in {folder}: it has no index.sqlite, or an empty one; give the folder that "
                "cc.atlas, or convcircuits atlas, wrote."
            )
        for path in found:
            with _opened(path) as database:
                about = _about(path, database)
                if asked is not None:
                    _check_same(path, about["asked"], asked)
                asked, layers = about["asked"], {name: tuple(shape) for name, shape in about["layers"].items()}
                every = database.execute(f"SELECT {', '.join(_COLUMNS)} FROM circuits").fetchall()
            with _errors(path):
                for values in every:
                    row = _row(values, layers)
                    if row.unit not in rows or (row.file and not rows[row.unit][1].file):
                        rows[row.unit] = folder, row
    assert asked is not None
    return asked, layers, {unit: rows[unit] for unit in sorted(rows)}


def packed(mask: Tensor) -> Tensor:
    """Return a bool tensor (n,) as bits, uint8 (ceil(n / 8),), the first the lowest."""
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).reshape(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpacked(bits: Tensor, count: int) -> Tensor:
    """Return the first ``count`` bits of each row, packed as by ``packed``: (..., n) -> bool (..., count)."""
    return ((bits[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(-2)[..., :count].bool()


def _row(values: Sequence[Any], layers: Mapping[str, tuple[int, ...]]) -> Row:
    said = dict(zip(_COLUMNS, values, strict=True))
    tables = [_read_tables(said[name], layers) if said["file"] else {} for name in ("kept", "on_path")]
    figures = {name: said[name] for name in FIGURES} if said["file"] else {}
    return Row(said["unit"], said["file"], said["problem"], figures, said["seconds"], *tables)


def _read_tables(blob: bytes, layers: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    sizes = [torch.Size(shape).numel() for shape in layers.values()]
    length = -(-sum(sizes) // 8)
    if not 0 <= sum(sizes) < _MOST:
        raise ValueError("its tables are too large")
    stream = zlib.decompressobj()
    content = stream.decompress(blob, length + 1)  # the end of a stream is only seen with room for one byte more
    if len(content) != length or not stream.eof or stream.unconsumed_tail or stream.unused_data:
        raise ValueError("a table has another size than its layers")
    bits = unpacked(torch.frombuffer(bytearray(content), dtype=torch.uint8), sum(sizes))
    parts = torch.split(bits, sizes)
    return {layer: part.reshape(shape) for (layer, shape), part in zip(layers.items(), parts, strict=True)}


def _indices(folder: Path) -> list[Path]:
    """Return the indices in a folder, but for those that are still empty, whose run ended at its very start."""
    found = sorted(folder.glob("index*.sqlite")) if is_folder(folder) else []
    return [path for path in found if _begun(path)]


def _begun(path: Path) -> bool:
    with _opened(path) as database:
        return bool(_tables(database))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with _errors(path):
        database = sqlite3.connect(path, timeout=60)
        try:
            yield database
        finally:
            database.close()


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, zlib.error, ValueError, TypeError, KeyError) as error:
        if isinstance(error, ConvCircuitsError):
            raise
        raise ConvCircuitsError(
            f"{path} is damaged, or cannot be read or written: {error}. Remove it, and run the same again: circuits "
            "whose rows are lost are found again."
        ) from error


def _tables(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _about(path: Path, database: sqlite3.Connection) -> dict[str, Any]:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version != _SCHEMA:
        raise ConvCircuitsError(
            f"{path} has the format {version}, but this version of convcircuits reads {_SCHEMA}; give another folder."
        )
    return {name: json.loads(value) for name, value in database.execute("SELECT name, value FROM about")}


def _check_same(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Check that an index belongs to the same run.

    Raises:
        ConvCircuitsError: If not; the message names what differs.
    """
    ours = json.loads(json.dumps(ours))
    differing = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    if not differing:
        return
    said, advice = [], ""
    for name in differing:
        if name in _IMAGES:
            there, here = theirs[name]["count"], ours[name]["count"]
            said.append(f"the {_IMAGES[name]} differ ({there:,} there, {here:,} here)")
            advice = _OTHER_IMAGES
        else:
            said.append(f"there {name} is {theirs.get(name)!r:.200}, here it is {ours.get(name)!r:.200}")
    raise ConvCircuitsError(
        f"{os.fspath(path.parent)} holds another atlas: {'; '.join(said)}. Give another folder, or what that one was "
        f"made with.{advice}"
    )
