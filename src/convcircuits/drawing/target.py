"""The target's maps and figures on the images that can be selected, in the full model and in each circuit."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convcircuits.circuits.responses import responses
from convcircuits.drawing import data
from convcircuits.maps.interior import Interior, Positions
from convcircuits.maps.patches import activation_maps
from convcircuits.maps.receptive_fields import Field
from convcircuits.network.batches import Batches
from convcircuits.network.masking import Masks, Subject
from convcircuits.values.boxes import Boxes
from convcircuits.values.feature import Feature

LARGEST = 32
"""Maximum rows and columns of the target's map; larger maps are averaged over areas."""


def target_maps(subject: Subject, circuits: Sequence[Masks], images: Batches, field: Field) -> data.TargetMaps:
    """Return the target's maps on images of one size, with figures over the positions that count.

    Args:
        subject: The feature.
        circuits: The masks of each variant.
        images: The images.
        field: The receptive fields of the feature's map.
    """
    figures = responses(subject, circuits, images)
    runs = [None, *circuits]
    maps = torch.stack([activation_maps(subject, run, images, {None: field}, LARGEST)[None] for run in runs])
    bytes_, scale = in_bytes(maps)
    interior = Positions(subject).known(images.first_shape())
    return data.TargetMaps(
        positions=_positions(subject.feature, field.shape, interior),
        shape=field.shape,
        inside=None if interior is None else _inside(interior),
        full_mean=figures.mean[0].numpy(),
        full_maximum=figures.maximum[0].numpy(),
        mean=figures.mean[1:].numpy(),
        maximum=figures.maximum[1:].numpy(),
        r2=figures.r2.numpy(),
        r2_inside=figures.r2_interior.numpy(),
        full_map=bytes_[0],
        full_scale=scale[0],
        map=bytes_[1:],
        scale=scale[1:],
    )


def in_bytes(maps: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return maps (..., h, w) as int8, scaled so that 127 is each map's largest absolute value, and these values."""
    values = maps.float().numpy()
    largest = np.abs(values).max((-2, -1))
    return np.round(values / np.where(largest > 0, largest, 1)[..., None, None] * 127).astype(np.int8), largest


def _positions(feature: Feature, shape: tuple[int, int], interior: Interior | None) -> str:
    """Describe in words which positions count."""
    height, width = shape
    if isinstance(feature.position, Boxes):
        where = "the one where the full model is highest within the image's box"
    elif feature.position == "max":
        where = "the one where the full model is highest"
    elif feature.position == "center":
        where = f"the central one of {height} \u00d7 {width} positions"
    elif feature.position == "interior":
        kind = "interior" if interior is None or interior.inside else "central"
        where = f"{0 if interior is None else len(interior.positions)} {kind} positions"
    elif feature.position == "all":
        where = "the only position" if height * width == 1 else f"all {height} \u00d7 {width} positions"
    else:
        where = f"row {feature.position[0]}, column {feature.position[1]} of {height} \u00d7 {width} positions"
    return f"{where} of each of {len(feature.unit)} units" if isinstance(feature.unit, tuple) else where


def _inside(interior: Interior) -> data.Inside:
    """Return the interior as ranges of rows and columns of the map."""
    mask = interior.mask.reshape(interior.map)
    rows, columns = (axis.nonzero()[:, 0].tolist() for axis in (mask.any(1), mask.any(0)))
    return data.Inside((rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1), exact=interior.inside)
