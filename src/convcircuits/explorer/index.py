"""What drives every unit of every convolution, in one pass over the photographs that can stop and go on.

The statistics are those of ``cc.units`` and the highest images those of ``cc.top``: the same sums and rankings are
kept, for all layers at once. What is written after some of the photographs says on how many.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load as from_bytes
from torch import Tensor, nn

from convcircuits import seals
from convcircuits.errors import ConvCircuitsError
from convcircuits.explorer.layer_file import INDEX, index_file
from convcircuits.files import write_whole
from convcircuits.maps.interior import Positions
from convcircuits.maps.sums import Sums, parts_in_cache
from convcircuits.maps.top import Ranking
from convcircuits.maps.units import UnitStatistics, all_units
from convcircuits.network.batches import Batches
from convcircuits.network.capture import Network
from convcircuits.storage import sealed
from convcircuits.values.feature import flattened
from convcircuits.zoo.images import Photograph
from convcircuits.zoo.layers import LayerInfo
from convcircuits.zoo.prepared import Prepared
from convcircuits.zoo.preprocessing import Preprocessing

COUNT = 25
"""Number of photographs on which each unit is highest."""

BINS = 128
"""Bins of a histogram, half of them below zero."""

GRID = 28
"""Rows and columns of a map, at most, that a histogram counts."""

_READERS = 4
_BETWEEN = 30  # times as long as a checkpoint takes to write pass before the next, if that is longer than asked for
_LOWEST = -126  # exponent of the narrowest bins


class Histogram:
    """How often each unit has which value, over the positions of a grid on each map.

    Bins of a unit are equally wide, a power of two, and one ends at 0. They are doubled until all values fit. So
    neither the order nor the batches of images matter.

    Args:
        units: Number of units.
        shape: (h, w) of a map.

    Attributes:
        every: Distance of the grid's rows and columns; 1 if all positions count.
    """

    def __init__(self, units: int, shape: tuple[int, int]) -> None:
        self.every = max(1, math.ceil(max(shape) / GRID))
        self.counts = torch.zeros(units, BINS, dtype=torch.long)
        self.exponent = torch.full((units,), _LOWEST, dtype=torch.long)

    def add(self, maps: Float[Tensor, "n u h w"]) -> None:
        """Add the maps of some images, on the CPU."""
        start = (self.every - 1) // 2
        for some, _, grid in parts_in_cache(maps[:, :, start :: self.every, start :: self.every]):
            reach = torch.maximum(-grid.amin((0, 2, 3)), grid.amax((0, 2, 3)))
            # Values from -64 to below 64 bins fit: a lowest value of exactly -64 bins, but no such highest.
            exponent = torch.frexp(reach / (BINS // 2))[1].long()
            self._widen(some, exponent.where(reach > 0, _LOWEST))  # zeros fit in bins of any width
            units = len(reach)
            bins_of_one = torch.ldexp(torch.ones(units, dtype=torch.double), -self.exponent[some])
            grid *= bins_of_one[:, None, None]
            place = grid.floor_().int()
            place += torch.arange(BINS // 2, units * BINS, BINS, dtype=torch.int)[:, None, None]
            self.counts[some] += torch.bincount(place.flatten(), minlength=units * BINS).reshape(units, BINS)

    def _widen(self, some: slice, exponent: Tensor) -> None:
        """Make the bins of some units at least as wide as given."""
        counts, before = self.counts[some], self.exponent[some]
        exponent = torch.maximum(exponent, before)
        if torch.equal(exponent, before):
            return
        doublings = (exponent - before).clamp(max=BINS)
        bins = torch.arange(-(BINS // 2), BINS // 2)
        merged = torch.div(bins, 2.0 ** doublings[:, None].double(), rounding_mode="floor").long() + BINS // 2
        self.counts[some] = torch.zeros_like(counts).scatter_add_(1, merged, counts)
        self.exponent[some] = exponent

    def state(self) -> dict[str, Tensor]:
        """Return the counts so far, to go on from them."""
        return {"counts": self.counts, "exponent": self.exponent}

    def resume(self, state: Mapping[str, Tensor], _images: int) -> None:
        """Go on from the counts of some images."""
        self.counts, self.exponent = state["counts"], state["exponent"]


class LayerTally:
    """What is kept of one layer: sums, histograms, and the highest images on the interior and anywhere.

    Args:
        network: The model.
        info: The layer.
        shape: (C, H, W) of an image.

    Raises:
        ConvCircuitsError: If the receptive fields of the layer's positions are not known.
    """

    def __init__(self, network: Network, info: LayerInfo, shape: tuple[int, ...]) -> None:
        inside = Positions(all_units(network, info.name, shape, position="interior"))
        self.info, self._shape = info, shape
        self._views = inside, inside.at("all")
        self.interior = inside.interior(shape)
        self.begin()

    def begin(self) -> None:
        """Begin without any images."""
        self.inside, self.anywhere = (
            Ranking(positions, count=COUNT, sample=sample, seed=0)
            for sample, positions in zip((1, 0), self._views, strict=True)
        )
        self.sums = Sums(self.interior, self.info.channels)
        self.histogram = Histogram(self.info.channels, self.interior.map)

    def add(self, images: Tensor, maps: Float[Tensor, "n u h w"], hashes: Sequence[int]) -> None:
        """Add the layer's maps of some images.

        Raises:
            ConvCircuitsError: If a value is not finite.
        """
        maps = maps.cpu()
        highest = self.anywhere.positions.highest(maps, images)
        self.inside.add(images, maps, hashes)
        self.anywhere.add(images, maps, hashes, highest)
        self.sums.add(flattened(maps), highest=highest)
        self.histogram.add(maps)

    @property
    def _parts(self) -> dict[str, Any]:
        return {"inside": self.inside, "anywhere": self.anywhere, "sums": self.sums, "histogram": self.histogram}

    def state(self) -> dict[str, Tensor]:
        """Return everything so far, to go on from it."""
        return {
            f"{name}/{key}": x.contiguous() for name, part in self._parts.items() for key, x in part.state().items()
        }

    def resume(self, state: Mapping[str, Tensor], images: int) -> None:
        """Go on from what was found on some images."""
        for name, part in self._parts.items():
            own = {key.removeprefix(f"{name}/"): x for key, x in state.items() if key.startswith(f"{name}/")}
            part.resume(own, images)

    def content(self, about: Mapping[str, Any]) -> bytes:
        """Return the content of the layer's file of the index."""
        statistics = [UnitStatistics(**one).as_dict() for one in self.sums.statistics()]
        pool = self.inside.pool()
        height, width = self.interior.map
        rows, columns = (spans.int() for spans in self.inside.positions.fields(self._shape)[0].spans())
        tensors = {
            "pool/image": pool.image[0].int(),
            "pool/value": pool.value.float(),
            "pool/place": (pool.position[..., 0] * width + pool.position[..., 1]).int(),
            "rows": rows,
            "columns": columns,
            "histogram/counts": self.histogram.counts,
            "histogram/exponent": self.histogram.exponent,
        }
        for name, ranking in (("inside", self.inside), ("anywhere", self.anywhere)):
            found = ranking.highest()
            tensors |= {f"{name}/{key}": getattr(found, key) for key in ("image", "value", "position", "box")}
        header = {
            **about,
            "layer": self.info.name,
            "map": [height, width],
            "field": list(self.interior.field),
            "interior": "inside" if self.interior.inside else "central",
            "every": self.histogram.every,
            "statistics": statistics,
        }
        return sealed(json.dumps(header), {name: x.contiguous() for name, x in tensors.items()})


@dataclass(frozen=True)
class Subjects:
    """What an index is of.

    Attributes:
        model: The model.
        layers: Its convolutions that can be indexed.
        photographs: The photographs, in order.
        preprocess: What turns them into inputs.
        size: (H, W) to resize the inputs to, or None.
    """

    model: nn.Module
    layers: Sequence[LayerInfo]
    photographs: Sequence[Photograph]
    preprocess: Preprocessing
    size: tuple[int, int] | None


def convolutions(model: nn.Module, layers: Sequence[LayerInfo]) -> tuple[list[LayerInfo], dict[str, str]]:
    """Return the convolutions among some layers, and why those that are left out are."""
    modules = dict(model.named_modules(remove_duplicate=False))
    some = [info for info in layers if isinstance(modules[info.name], nn.Conv2d) and info.map]
    left_out = {
        info.name: f"{info.name} runs {info.calls} times in a forward pass; look at one call with convcircuits units."
        for info in some
        if info.calls > 1
    }
    return [info for info in some if info.name not in left_out], left_out


class Stopped(BaseException):
    """Work is to stop, between two batches. Not an ``Exception``, so that nothing on the way catches it."""


def build(
    folder: Path,
    key: str,
    of: Subjects,
    *,
    known: dict[str, "LayerTally | ConvCircuitsError"] | None = None,
    batch_size: int = 16,
    every: float = 20.0,
    progress: Callable[[str, int, int | None], None] = lambda phase, done, total: None,
    saved: Callable[[dict[str, Any]], None] = lambda index: None,
    remark: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Index photographs, from where an earlier run stopped.

    At each checkpoint the layers' files are written, and then the index's own, each completely or not at all.

    Args:
        folder: The folder of this index, which exists.
        key: The hash of what it is of.
        of: What it is of.
        known: Layers that an earlier call with the same ``of`` has prepared; those that this one prepares are added.
        batch_size: Maximum number of images that run at once.
        every: Seconds between two checkpoints; longer where one takes more than a thirtieth of that to write.
        progress: Called with a phase, the steps done and their total, between layers and between batches. If it raises
            ``Stopped``, a checkpoint is written.
        saved: Called with the content of the index's own file after each checkpoint.
        remark: Called with a sentence if a damaged checkpoint is removed.

    Returns:
        The content of the index's own file at the end.

    Raises:
        ConvCircuitsError: If images do not fit the model, or a value is not finite.
    """
    network = Network(of.model)
    wanted: dict[str, Any] = {"device": network.device, "dtype": network.dtype, "batch_size": batch_size}
    first = Prepared(of.photographs, of.preprocess, size=of.size, batch_size=1, threads=1)
    shape = Batches(first, **wanted).first_shape()
    known = {} if known is None else known
    for n, info in enumerate(of.layers):
        progress("following receptive fields", n, len(of.layers))
        if info.name not in known:
            try:
                known[info.name] = LayerTally(network, info, shape)
            except ConvCircuitsError as error:
                known[info.name] = error
    tallies = {name: one for name, one in known.items() if isinstance(one, LayerTally)}
    left_out = {name: str(one) for name, one in known.items() if isinstance(one, ConvCircuitsError)}
    for tally in tallies.values():
        tally.begin()
    if not tallies:
        raise ConvCircuitsError(f"No convolution can be indexed: {' '.join(left_out.values()) or 'there is none.'}")
    run = _Run(folder, key, tallies, left_out, of.photographs, list(shape[1:]))
    run.resume(remark)
    total, due = len(of.photographs), time.monotonic() + every
    rest = of.photographs[run.tried :]
    if rest:
        pictures = Prepared(rest, of.preprocess, size=of.size, batch_size=batch_size, threads=_READERS)
        try:
            progress("indexing photographs", run.tried, total)
            for images, hashes in Batches(pictures, **wanted).hashed():
                if tuple(images.shape[1:]) != shape:
                    raise ConvCircuitsError(
                        f"Images have shapes {shape} and {tuple(images.shape[1:])}; give a size, or a preprocessing "
                        "whose results have one size."
                    )
                with torch.no_grad():
                    takes = {name: partial(tally.add, images, hashes=hashes) for name, tally in tallies.items()}
                    look(network, takes, images)
                run.add(pictures.numbers)
                if (begun := time.monotonic()) >= due:
                    saved(run.write())
                    written = time.monotonic()
                    due = written + max(every, _BETWEEN * (written - begun))
                progress("indexing photographs", run.tried, total)
        except Stopped:
            saved(run.write())
            raise
        except ConvCircuitsError:
            if pictures.numbers or not run.read:  # else none of the rest can be read
                raise
    index = run.write(complete=True)
    saved(index)
    return index


class _Run:
    """The photographs of an index that were read so far, and its files."""

    def __init__(
        self,
        folder: Path,
        key: str,
        tallies: Mapping[str, LayerTally],
        left_out: Mapping[str, str],
        photographs: Sequence[Photograph],
        size: list[int],
    ) -> None:
        self._folder, self._key, self._tallies, self._left_out = folder, key, tallies, left_out
        self._photographs, self._size = photographs, size
        self.read: list[int] = []  # numbers of photographs: image i of the index is photograph read[i]
        self.tried = 0
        self._begun, self._read_before = 0, list[int]()

    def add(self, numbers: Sequence[int]) -> None:
        """Record which photographs, of those that were left at the start, have been looked at."""
        self.read = self._read_before + [self._begun + n for n in numbers]
        self.tried = self.read[-1] + 1

    def resume(self, remark: Callable[[str], None]) -> None:
        """Go on from the last checkpoint, if there is one that is whole."""
        file = self._folder / "checkpoint.safetensors"
        try:
            content = file.read_bytes()
            state, header = from_bytes(content), json.loads(seals.metadata(content)[seals.KEY])
            if (
                not seals.is_sealed(content, header)
                or header["key"] != self._key
                or header["layers"] != [*self._tallies]
            ):
                return
            for n, tally in enumerate(self._tallies.values()):
                own = {k.removeprefix(f"{n}/"): x for k, x in state.items() if k.startswith(f"{n}/")}
                tally.resume(own, len(header["read"]))
        except FileNotFoundError:
            return
        except Exception as error:  # a damaged file makes safetensors and torch raise nearly anything
            for tally in self._tallies.values():
                tally.begin()  # those before the one that failed have gone on already
            file.unlink(missing_ok=True)
            remark(f"{file.name} was damaged ({' '.join(str(error).split()):.200}), so the index began anew.")
            return
        self.read, self.tried = header["read"], header["tried"]
        self._begun, self._read_before = self.tried, self.read

    def write(self, *, complete: bool = False) -> dict[str, Any]:
        """Write a checkpoint, the files of all layers, and then the index's own. Return its content."""
        about = {
            "schema": INDEX,
            "key": self._key,
            "images": len(self.read),
            "photographs": len(self._photographs),
            "complete": complete,
            "size": self._size,
            "read": self.read,
        }
        layers = []
        if len(self.read) > 1:
            for n, tally in enumerate(self._tallies.values()):
                write_whole(self._folder / index_file(n, tally.info.name), tally.content(about))
                file = index_file(n, tally.info.name)
                layers.append({"layer": tally.info.name, "file": file, "field": list(tally.interior.field)})
        elif complete:
            raise ConvCircuitsError("An index needs at least two photographs that can be read; give more.")
        checkpoint = self._folder / "checkpoint.safetensors"
        if complete:
            checkpoint.unlink(missing_ok=True)
        else:
            state = {f"{n}/{k}": x for n, t in enumerate(self._tallies.values()) for k, x in t.state().items()}
            header = {"key": self._key, "layers": [*self._tallies], "read": self.read, "tried": self.tried}
            write_whole(checkpoint, sealed(json.dumps(header), state))
        index = {**about, "layers": layers, "left_out": dict(self._left_out)}
        write_whole(self._folder / "index.json", (json.dumps(index, indent=1) + "\n").encode())
        return index


class _Seen(BaseException):
    """Stop a forward pass after the last layer. Not an ``Exception``, so that no model catches it."""


def look(network: Network, layers: Mapping[str, Callable[[Tensor], None]], images: Tensor) -> None:
    """Run the model up to the last of some layers, and pass on each one's maps before what follows overwrites them.

    Raises:
        ConvCircuitsError: If the model cannot run on the images, or not every layer runs.
    """
    wanted = {id(network.names[name]): take for name, take in layers.items()}

    def on_exit(module: nn.Module, output: Any) -> None:
        take = wanted.pop(id(module), None)
        if take is not None:
            with torch._C.DisableTorchFunction():  # calls in here are not the model's
                take(output.to(network.dtype))
            if not wanted:
                raise _Seen

    try:
        network.forward(images, lambda call: call.compute(), on_exit)
    except _Seen:
        return
    except (RuntimeError, TypeError, IndexError) as error:
        raise ConvCircuitsError(
            f"{network.name} cannot run on images of shape {tuple(images.shape[1:])}: {error}"
        ) from error
    raise ConvCircuitsError(f"Not every layer ran when {network.name} was called on {len(images)} images.")
