"""What a circuit does on one image and not on another: its filters and kernels, where the feature's position sees."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from convcircuits.errors import ConvCircuitsError
from convcircuits.maps.interior import Positions
from convcircuits.maps.patches import mean_added
from convcircuits.maps.receptive_fields import Box, Field, output_fields
from convcircuits.network.batches import Batches, Images
from convcircuits.network.calls import KernelCall
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked
from convcircuits.network.masking import Masks, Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.texts import names
from convcircuits.values.circuit import Circuit
from convcircuits.values.feature import at


@dataclass(frozen=True, eq=False)
class LayerContrast:
    """What the filters and kernels of one layer of a circuit do on two images, A and B.

    All values are means over the positions of the layer that the feature's position sees: those whose receptive field
    lies inside of its own. They are in the unit of the layer's raw output, before any BatchNorm and ReLU; other layers
    have other units. A - B of a filter's output is the sum of A - B of what its kernels add, apart from constants that
    it reads beside padding.

    Attributes:
        positions: Number of these positions on A and on B.
        filters: The filters with a kernel on a complete path, (f,), int64.
        outputs: The output of each on A and on B, bias and offset included, (f, 2), float64.
        kernels: The kernels on a complete path: filter, and input channel within its group, (k, 2), int64.
        added: What each adds to its filter on A and on B, (k, 2), float64.
    """

    positions: tuple[int, int]
    filters: Int[Tensor, " f"]
    outputs: Float[Tensor, "f two"]
    kernels: Int[Tensor, "k two"]
    added: Float[Tensor, "k two"]


@dataclass(frozen=True, eq=False)
class Contrast:
    """A circuit on two images, A and B, measured.

    Attributes:
        feature: Text form of the feature.
        position: Row and column of the map on A and on B at which all is measured: of the positions that the feature
            counts, the one where the full model is highest. None for a feature without a map.
        box: The receptive fields of these positions: top, left, height and width, in pixels; the whole image for a
            feature without a map.
        full: The feature there in the full model, on A and on B.
        circuit: The same in the circuit.
        layers: Layer name -> its filters and kernels, in execution order.
        notes: Remarks needed to read the values correctly.
    """

    feature: str
    position: tuple[tuple[int, int], tuple[int, int]] | None
    box: tuple[Box, Box]
    full: tuple[float, float]
    circuit: tuple[float, float]
    layers: Mapping[str, LayerContrast]
    notes: tuple[str, ...] = ()


@outside_autocast
def contrasted(model: nn.Module | Network, circuit: Circuit, images: Images) -> Contrast:
    """Run a circuit on two images, and compare what each filter and kernel does where the feature is highest.

    Nothing is estimated: all values are read off the circuit's own run. They say what differs, not what would change
    without it.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit, of one unit or a direction.
        images: Two images, A and B, as for ``score``.

    Raises:
        ConvCircuitsError: If these are not two images of one size, the feature has several units, the circuit belongs
            to other weights, receptive fields cannot be computed, or images do not fit the model.
    """
    if not isinstance(circuit, Circuit):
        raise ConvCircuitsError(f"Expected a Circuit, got {type(circuit).__name__}.")
    if isinstance(circuit.feature.unit, tuple):
        raise ConvCircuitsError(
            f"{circuit.feature} has several units, which are highest at several positions; give a circuit of one unit."
        )
    network = model if isinstance(model, Network) else Network(model)
    both = list(Batches(images, device=network.device, dtype=network.dtype, batch_size=2))
    if sum(map(len, both)) != 2:
        raise ConvCircuitsError(f"A contrast is of two images; got {sum(map(len, both)):,}.")
    pair = torch.cat(both)
    shape = tuple(pair.shape[1:])
    subject = Subject.open(network, circuit.feature, shape)
    subject.check(circuit)
    checked(subject, pair)
    masks = subject.masks(circuit, shape, effective=True)
    with torch.no_grad():
        full = subject.maps(pair)
    places = _highest(subject, full, pair)
    calls = Counter[str]()

    def count(call: KernelCall, _output: Tensor) -> None:
        calls[call.layer] += call.layer in masks.kernels

    with torch.no_grad():
        subject.maps(pair, masks, count)
    once = [name for name, kernels in masks.kernels.items() if calls[name] == 1 and bool(kernels.any())]
    several = [name for name in masks.kernels if calls[name] > 1]
    width = full.shape[2] if full.dim() > 2 else 1
    where = [divmod(int(place), width) for place in places]
    target, fields = output_fields(subject)
    found: dict[str, LayerContrast] = {}

    def watch(call: KernelCall, output: Tensor) -> None:
        if call.layer in once:
            windows = [_window(fields[call.layer], target, place, call.layer) for place in where]
            found[call.layer] = _measured(call, output, masks, windows)

    with torch.no_grad():
        maps = subject.maps(pair, masks, watch)
    values = [at(some.double().cpu(), places[:, None])[:, 0].tolist() for some in (full, maps)]
    runs = f"{names(several)} run several times for one output, so their filters and kernels are left out."
    return Contrast(
        feature=str(circuit.feature),
        position=(where[0], where[1]) if full.dim() > 2 else None,
        box=(target.box(*where[0]), target.box(*where[1])),
        full=(values[0][0], values[0][1]),
        circuit=(values[1][0], values[1][1]),
        layers=found,
        notes=(runs,) if several else (),
    )


def _highest(subject: Subject, full: Tensor, images: Tensor) -> Int[Tensor, " two"]:
    """Return the flat position where the full model is highest, among those that the feature counts."""
    counted = Positions(subject).counted(full, images)
    best = at(full, counted).flatten(1).argmax(1, keepdim=True)
    return (best if counted is None else counted.gather(1, best))[:, 0].cpu()


def _window(field: Field, target: Field, place: tuple[int, int], layer: str) -> tuple[slice, slice]:
    """Return the rows and columns of a layer's map whose fields lie inside the field of the feature's position.

    Raises:
        ConvCircuitsError: If there are none.
    """
    spans = []
    for axis, own, at_ in zip((field.rows, field.columns), (target.rows, target.columns), place, strict=True):
        inside = [n for n, (first, end) in enumerate(axis) if own[at_][0] <= first and end <= own[at_][1]]
        if len(axis) == 1:  # it sees all that there is, as a gate does
            inside = [0]
        if not inside:
            raise ConvCircuitsError(
                f"No position of {layer} sees only what the feature's position sees, so no part of its map can be told."
            )
        spans.append(slice(inside[0], inside[-1] + 1))
    return spans[0], spans[1]


def _measured(call: KernelCall, output: Tensor, masks: Masks, windows: Sequence[tuple[slice, slice]]) -> LayerContrast:
    """Average the outputs, and what kernels add, over a window of each image."""
    kept = masks.kernels[call.layer].cpu()
    rows = torch.arange(len(kept)) if call.rows is None else call.rows.cpu()
    outputs, added = torch.zeros(len(kept), 2).double(), torch.zeros(*kept.shape, 2).double()
    counts = []
    maps = output if output.dim() == 4 and call.channel_dim == 1 else output.movedim(-1, 1)
    maps = maps.reshape(*maps.shape[:2], *[*maps.shape[2:], 1, 1][:2])
    for n, (tall, wide) in enumerate(windows):
        part = maps[n, :, tall, wide].flatten(1)
        counts.append(part.shape[1])
        outputs[rows, n] = part.double().mean(1).cpu()
        one = replace(call, x=call.x[n : n + 1])
        added[rows, :, n] = mean_added(one, masks, tall, wide).flatten(1, 2)[0].double().cpu()
    filters = kept.any(1).nonzero()[:, 0]
    return LayerContrast((counts[0], counts[1]), filters, outputs[filters], kept.nonzero(), added[kept])
