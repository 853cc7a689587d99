"""What drives each map of a circuit: the images and positions of its highest values, and what kernels add to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from convcircuits.errors import ConvCircuitsError, whole_number
from convcircuits.maps.receptive_fields import Box, Field, Reading, channels_of, feature_map, maps_read, no_such_map
from convcircuits.network.batches import Batches
from convcircuits.network.calls import ConvCall, KernelCall
from convcircuits.network.masking import Masks, Subject
from convcircuits.values.feature import Feature

LARGEST_MAP = 14
"""Maximum rows and columns of a map for display."""

OUTSIDE = 0.5
"""Mid gray, shown where a patch extends beyond its image."""

_ALL = slice(None)

Kernel = tuple[str, int, int]
"""Layer, filter, and input channel (within its group; for a flattened map, the block)."""


@dataclass(frozen=True)
class Best:
    """The images that drive each map most, the best first.

    Attributes:
        image: Index of the image, (R, K).
        position: Row and column of its highest value in the map, away from the border, (R, K, 2); the first if several
            are equally high.
        value: That value, (R, K), float64.
    """

    image: Int[Tensor, "r k"]
    position: Int[Tensor, "r k two"]
    value: Float[Tensor, "r k"]


def best_patches(
    subject: Subject, masks: Masks | None, batches: Batches, fields: Mapping[Reading, Field], top: int = 6
) -> Best:
    """Find the images on which each map is highest, with one position per image, in one pass.

    Only positions that see no padding are considered (``Field.unpadded``): at the border padding often drives a map,
    and a patch cannot show that.

    Args:
        subject: The feature.
        masks: The circuit that runs; None for the full model.
        batches: The images, of the size that the feature was surveyed on.
        fields: The R maps with their fields, from ``receptive_fields``.
        top: Number of images per map, K, or all if there are fewer. Ties go to the earlier image.

    Raises:
        ConvCircuitsError: If there is no such map, or the images have another size.
    """
    top = whole_number("top", top, 1)
    places = {reading: r for r, reading in enumerate(fields)}
    widths = torch.tensor([field.shape[1] for field in fields.values()])[:, None]
    value = torch.empty(len(fields), 0, dtype=torch.float64)
    image, flat = value.long(), value.long()
    insides = {field: field.unpadded() for field in set(fields.values())}
    done = 0
    for images in batches:
        highest = torch.empty(len(fields), len(images), dtype=torch.float64)
        where = torch.empty(len(fields), len(images), dtype=torch.long)

        def see(readings: list[Reading], maps: Tensor, highest: Tensor = highest, where: Tensor = where) -> None:
            rows = [places[reading] for reading in readings]
            inside = torch.stack([insides[fields[reading]] for reading in readings]).to(maps.device)
            values, indices = maps.masked_fill(~inside, -torch.inf).flatten(2).max(2)
            highest[rows], where[rows] = values.T.to("cpu", torch.float64), indices.T.cpu()

        _read(subject, masks, images, fields, see)
        numbers = torch.arange(done, done + len(images)).expand(len(fields), -1)
        value, order = torch.cat([value, highest], 1).sort(dim=1, descending=True, stable=True)
        value, kept = value[:, :top], order[:, :top]
        image = torch.cat([image, numbers], 1).gather(1, kept)
        flat = torch.cat([flat, where], 1).gather(1, kept)
        done += len(images)
    return Best(image, torch.stack([flat // widths, flat % widths], 2), value)


def nearest_patches(
    subject: Subject, masks: Masks | None, batches: Batches, field: Field, seed: int = 0
) -> tuple[Best, Best]:
    """Find where the feature has its median value, and where it is nearest zero: one position per image.

    Only positions that see no padding are considered, as by ``best_patches``. Of positions that are equally near, one
    is drawn at random.

    Args:
        subject: The feature.
        masks: The circuit that runs; None for the full model.
        batches: The images, of the size that the feature was surveyed on.
        field: The receptive fields of the feature's map.
        seed: Seed of the choice among positions that are equally near.

    Returns:
        The images from the one that comes nearest the median over all images and positions, and those from the one
        that comes nearest zero; all N images with R = 1 and K = N.
    """
    order = torch.randperm(field.shape[0] * field.shape[1], generator=torch.Generator().manual_seed(seed))
    order = order[field.unpadded().flatten()[order]]
    parts: list[Tensor] = []

    def see(readings: list[Reading], maps: Tensor) -> None:
        parts.append(maps[:, 0].flatten(1).cpu()[:, order])

    for images in batches:
        _read(subject, masks, images, {None: field}, see)
    values, width = torch.cat(parts), field.shape[1]

    def nearest(level: float) -> Best:
        distance, where = (values.double() - level).abs().min(1)
        image = distance.argsort(stable=True)
        where = where[image]
        position = torch.stack([order[where] // width, order[where] % width], 1)
        return Best(image[None], position[None], values[image, where].double()[None])

    return nearest(float(values.flatten().median())), nearest(0.0)


def activation_maps(
    subject: Subject,
    masks: Masks | None,
    batches: Batches,
    fields: Mapping[Reading, Field],
    largest: int = LARGEST_MAP,
) -> dict[Reading, Tensor]:
    """Return each map on each image, (images, h, w), averaged over areas to at most ``largest`` rows and columns.

    Args:
        subject: The feature.
        masks: The circuit that runs; None for the full model.
        batches: The images, as for ``best_patches``.
        fields: The maps with their fields, as for ``best_patches``.
        largest: Maximum rows and columns of a map.

    Raises:
        ConvCircuitsError: As for ``best_patches``.
    """
    parts: dict[Reading, list[Tensor]] = {reading: [] for reading in fields}

    def see(readings: list[Reading], maps: Tensor) -> None:
        for reading, one in zip(readings, _small(maps, largest).unbind(1), strict=True):
            parts[reading].append(one)

    for images in batches:
        _read(subject, masks, images, fields, see)
    return {reading: torch.cat(maps) for reading, maps in parts.items()}


def presum_maps(
    subject: Subject, masks: Masks | None, batches: Batches, kernels: Sequence[Kernel]
) -> dict[Kernel, Tensor]:
    """Return what single kernels add to their filters, position by position, in the first call of their layers.

    Args:
        subject: The feature.
        masks: The circuit that runs; kernels outside it add nothing, and its gain is part of the kernel.
        batches: The images.
        kernels: Kernels of layers on a path to the feature.

    Returns:
        The pre-sum maps of each kernel (before the bias and any BatchNorm), (images, h, w), at most 14 x 14.

    Raises:
        ConvCircuitsError: If there is no such kernel.
    """
    by_layer: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        by_layer.setdefault(kernel[0], []).append(kernel)
    parts: dict[Kernel, list[Tensor]] = {kernel: [] for kernel in kernels}

    def watch(call: KernelCall) -> None:
        wanted = by_layer.get(call.layer, [])
        if call.turn == 0 and wanted:
            for kernel, one in zip(wanted, _small(_presums(call, masks, wanted)).unbind(1), strict=True):
                parts[kernel].append(one)

    for images in batches:
        _watched(subject, masks, images, watch)
    for kernel, maps in parts.items():
        if not maps:
            raise _no_such_kernel(kernel)
    return {kernel: torch.cat(maps) for kernel, maps in parts.items()}


def effects(subject: Subject, masks: Masks | None, batches: Batches) -> dict[str, Tensor]:
    """Return the mean over positions of what each kernel adds to its filter, on each image.

    Args:
        subject: The feature.
        masks: The circuit that runs; kernels outside it add nothing, and its gain is part of the kernel.
        batches: The images.

    Returns:
        Layer name -> (images, out, in per group) for each layer on a path to the feature; zero for kernels that are
        not kept. For a layer that runs several times, the sum over its calls.
    """
    shapes = {layer: mask.shape for layer, mask in subject.survey.kernels.items()}
    parts: dict[str, list[Tensor]] = {layer: [] for layer in shapes}
    for images in batches:
        totals = {
            layer: torch.zeros(len(images), *shape, dtype=subject.network.dtype) for layer, shape in shapes.items()
        }

        def watch(call: KernelCall, totals: Mapping[str, Tensor] = totals) -> None:
            if call.layer in totals:
                effect = mean_added(call, masks).flatten(1, 2).cpu()
                rows = slice(None) if call.rows is None else call.rows.cpu()
                totals[call.layer][:, rows] += effect

        _watched(subject, masks, images, watch)
        for layer, total in totals.items():
            parts[layer].append(total)
    return {layer: torch.cat(totals) for layer, totals in parts.items()}


def crop(picture: Float[Tensor, "h w rgb"], box: Box) -> Float[Tensor, "height width rgb"]:
    """Cut a box out of a picture; parts outside the picture are mid gray."""
    height, width = picture.shape[:2]
    bottom, right = box.top + box.height, box.left + box.width
    patch = picture.new_full((box.height, box.width, picture.shape[2]), OUTSIDE)
    rows = slice(max(0, box.top), max(0, min(height, bottom)))
    columns = slice(max(0, box.left), max(0, min(width, right)))
    inside = picture[rows, columns]
    if inside.numel():
        top, left = rows.start - box.top, columns.start - box.left
        patch[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return patch


def _read(
    subject: Subject,
    masks: Masks | None,
    images: Tensor,
    fields: Mapping[Reading, Field],
    see: Callable[[list[Reading], Float[Tensor, "n r h w"]], None],
) -> None:
    """Run a batch and pass the maps to ``see``, those of one kernel call together."""
    wanted, seen = channels_of(list(fields)), set[Reading]()

    def found(readings: list[Reading], maps: Tensor) -> None:
        seen.update(readings)
        see(readings, maps)

    def watch(call: KernelCall) -> None:
        channels = wanted.get((call.layer, call.turn), {})
        if channels:
            field = fields[next(iter(channels))]
            numbers = torch.tensor(list(channels.values()), device=call.x.device)
            found(list(channels), maps_read(call, numbers, field.shape, field.padding))

    rows = tuple(subject.rows.tolist())
    feature = Feature(subject.feature.layer, rows, call=subject.feature.call)
    every_channel = Subject(subject.network, feature, subject.survey)
    output = _watched(every_channel, masks, images, watch)
    output = output if output.dim() == 4 else output[..., None, None]
    channels = [reading for reading in fields if isinstance(reading, int) and reading in rows]
    if channels:
        found([*channels], output[:, [rows.index(channel) for channel in channels]])
    if None in fields:
        found([None], feature_map(subject, output))
    for reading in fields:
        if reading not in seen:
            raise no_such_map(reading)


def _watched(subject: Subject, masks: Masks | None, images: Tensor, watch: Callable[[KernelCall], None]) -> Tensor:
    """Run a batch, calling ``watch`` on every kernel call, and return the feature's maps."""
    with torch.no_grad():
        return subject.maps(images, masks, lambda call, output: watch(call))


def _used(call: KernelCall, masks: Masks | None) -> Tensor:
    """Return the weight that a run uses in a call: zero in kernels that do not run; the gain is applied."""
    if masks is None or call.layer not in masks.kernels:
        return call.weight
    return masks.weight_and_bias(call, masks.running(call))[0]


def mean_added(
    call: KernelCall, masks: Masks | None, rows: slice = _ALL, columns: slice = _ALL
) -> Float[Tensor, "n g o i"]:
    """Return the mean over positions of what each kernel of a call adds to its filter.

    Args:
        call: The call.
        masks: The circuit that runs; kernels outside it add nothing, and its gain is part of the kernel.
        rows: The rows of the output to average over.
        columns: Its columns.
    """
    # The mean of a convolution is the weights times the mean of what each weight reads.
    weights = replace(call, weight=_used(call, masks)).kernels
    return torch.einsum("goik,ngik->ngoi", weights, _mean_reads(call, rows, columns))


def _mean_reads(call: KernelCall, rows: slice, columns: slice) -> Float[Tensor, "n g i k"]:
    """Return the mean over positions of what each weight of a kernel reads."""
    if not isinstance(call, ConvCall):
        window = (_ALL, rows, columns)[: call.x.dim() - 1]
        return replace(call, x=call.x[window]).columns(slice(None)).mean(4)
    height, width = call.padding
    x = F.pad(call.x, (width, width, height, height))
    for axis, some in ((1, columns), (0, rows)):  # the last axis is averaged and becomes the kernel's
        kernel, stride, dilation = call.weight.shape[2 + axis], call.stride[axis], call.dilation[axis]
        last = x.shape[3] - 1 - dilation * (kernel - 1)  # last position of the first weight
        reads = [x[..., t * dilation : t * dilation + last + 1 : stride] for t in range(kernel)]
        parts = [read[..., some].mean(3) for read in reads]
        x = torch.stack(parts, 3).transpose(2, 3)
    return x.reshape(len(x), call.groups, x.shape[1] // call.groups, -1)


def _presums(call: KernelCall, masks: Masks | None, kernels: Sequence[Kernel]) -> Float[Tensor, "n r h w"]:
    """Compute the outputs of some kernels of a call, each by itself."""
    computed = list(range(len(call.weight))) if call.rows is None else call.rows.tolist()
    filters = call.kernels.shape[1]
    shape = (len(call.weight), call.kernels.shape[2])
    for kernel in kernels:
        if kernel[1] not in computed or not 0 <= kernel[2] < shape[1]:
            raise _no_such_kernel(kernel)
    rows = [computed.index(out) for _, out, _ in kernels]
    channels = [row // filters * shape[1] + i for row, (_, _, i) in zip(rows, kernels, strict=True)]
    weight = _used(call, masks)
    if isinstance(call, ConvCall):
        alone = weight[rows, [i for _, _, i in kernels]][:, None]
        return replace(call, x=call.x[:, channels], groups=len(kernels)).compute(alone)
    alone = weight.reshape(*shape, -1)[rows, channels]
    x = call.x.reshape(*call.x.shape[:-1], call.blocks, -1)[..., channels, :]
    maps = torch.einsum("n...re,re->nr...", x, alone)
    return maps.reshape(*maps.shape[:2], maps.shape[2] if maps.dim() > 2 else 1, -1)


def _small(maps: Float[Tensor, "n r h w"], largest: int = LARGEST_MAP) -> Float[Tensor, "n r h w"]:
    height, width = maps.shape[2:]
    small = F.adaptive_avg_pool2d(maps, (min(height, largest), min(width, largest)))
    return small.cpu()


def _no_such_kernel(kernel: Kernel) -> ConvCircuitsError:
    return ConvCircuitsError(
        f"There is no kernel {kernel!r} on a path to the feature; give (layer, filter, input channel of its group)."
    )
