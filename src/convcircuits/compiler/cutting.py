"""What a circuit keeps of a model: for each value, the channels that are needed and those that are zeroed.

Both come from the analysis of the model's graph in ``reach``, expressed by channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from convcircuits.compiler.layout import Layout, UnextractableError, Value
from convcircuits.network.calls import ConvCall
from convcircuits.network.masking import Masks
from convcircuits.network.reach import Live


@dataclass(frozen=True)
class Cut:
    """What a circuit keeps of a model.

    Attributes:
        need: Number of a value -> which channels are needed, bool (channels,); for a value without an axis, whether it
            is needed, (1,). Missing values are not needed.
        conducting: Number of a kernel call's value -> the kept kernels that read a live channel, (out, in per group).
        silent: (Index of a node, number of a value that it reads) -> where the value is zeroed, bool, broadcasts to the
            value.
        output: Where the output of the feature's layer is zeroed; None if nowhere.
    """

    need: Mapping[int, Tensor]
    conducting: Mapping[int, Tensor]
    silent: Mapping[tuple[int, int], Tensor]
    output: Tensor | None

    @property
    def alive(self) -> bool:
        """Whether any part of the circuit leads to the feature."""
        return bool(self.need)

    def needed(self, value: Value) -> Tensor:
        """Return which channels of a value are needed."""
        return self.need.get(value.number, torch.zeros(value.channels, dtype=torch.bool))


def cut(layout: Layout, masks: Masks | None, rows: Tensor) -> Cut:
    """Find what a circuit keeps of a model.

    Args:
        layout: The layout of the model.
        masks: The circuit's masks; None keeps the full model.
        rows: Channels of the output that the feature reads.
    """
    paths = layout.paths
    silent: dict[tuple[int, int], Tensor] = {}
    output = None
    if masks is None:
        live = paths.full
    elif masks.effective:
        live = paths.live(masks.kernels)
        plan = paths.plan(live)
        silent = {(place, n): ~mark for place, marks in plan.silent.items() for n, mark in marks.items()}
        output = None if plan.output is None else ~plan.output
    else:  # every bias stays, so everything is live that is live in the full model
        live = Live(paths.full.marks, paths.full.reads, _kept(layout, masks))
    marks = {n: mark for n, mark in paths.needed(live, rows).items() if n in layout.values}
    need = {n: layout.values[n].by_channel(mark) for n, mark in marks.items()}
    numbers = {value.place: value.number for value in layout.values.values() if value.call is not None}
    conducting = {numbers[place]: table for place, table in live.conducting.items() if place in numbers}
    return Cut({n: mark for n, mark in need.items() if bool(mark.any())}, conducting, silent, output)


def _kept(layout: Layout, masks: Masks) -> dict[int, Tensor]:
    kept = {}
    for place, table in layout.paths.full.conducting.items():
        call = layout.paths.graph.nodes[place].call
        mask = None if call is None else masks.kernels.get(call.layer)
        kept[place] = table if mask is None else table & mask.cpu()
    return kept


def read_by(value: Value, source: Value, rows: Tensor, conducting: Tensor) -> tuple[Tensor, bool]:
    """Return which input channels some rows of a kernel call read, (groups, channels or blocks).

    The second value is whether they lie along the source's axis; if not, the whole source is read.
    """
    call = value.call
    assert call is not None
    read = (conducting & rows[:, None]).reshape(call.groups, -1, conducting.shape[1]).any(1)
    if source.axis == (0 if isinstance(call, ConvCall) else len(source.shape) - 1):
        return read, True
    return torch.ones_like(read), False


def of_one_image(mark: Tensor, value: Value) -> Tensor:
    """Return the first row, (1, ...), of a mark that is the same for all images.

    Raises:
        UnextractableError: If the mark differs between images.
    """
    if len(mark) > 1 and not bool((mark == mark[:1]).all()):
        raise UnextractableError(
            f"{value.layer or 'The model'} treats the images of a batch differently, so no "
            "module can be extracted; masked runs (evaluate, activations) still work."
        )
    return mark[:1]
