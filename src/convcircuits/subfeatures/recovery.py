"""How well the mechanisms of a unit are found where they are known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from convcircuits.circuits.finding import find
from convcircuits.subfeatures.baselines import SALIENCIES, groupings
from convcircuits.values.circuit import Circuit, iou
from convcircuits.values.feature import Feature


@dataclass(frozen=True)
class RecoveredGroups:
    """How well a unit's mechanisms are recovered from images of which each is driven by one.

    Attributes:
        ari: Adjusted Rand index of the groups with the mechanisms: 1 if they are the same, about 0 by chance.
        accuracy: Share of held-out images that are assigned to the group of their mechanism.
        iou: For each group, the overlap of the circuit that is found on its images alone, by progressive, with the
            circuit of the mechanism that drives most of them, at the size of that. The overlap is |A & B| / |A | B|.
    """

    ari: float
    accuracy: float
    iou: tuple[float, ...]


def recover_groups(
    model: nn.Module,
    feature: Feature,
    images: Tensor,
    labels: Tensor,
    mechanisms: Sequence[Mapping[str, Tensor]],
    *,
    batch_size: int = 16,
    seed: int = 0,
) -> RecoveredGroups:
    """Group images by how a unit is computed, as ``split`` does, and compare the groups with its known mechanisms.

    Args:
        model: The model.
        feature: The unit.
        images: (N, C, H, W).
        labels: Number of the mechanism that drives each image, (N,).
        mechanisms: The circuit of each mechanism: layer name -> bool.
        batch_size: Maximum number of images that run at once.
        seed: Seed of everything random.

    Raises:
        ConvCircuitsError: As for ``groupings``.
    """
    compared = groupings(
        model,
        feature,
        images,
        known=labels.tolist(),
        density=None,
        resamples=0,
        batch_size=batch_size,
        seed=seed,
    )
    groups, ious = compared.labels[SALIENCIES], []
    channels, height, width = images.shape[1:]
    for group in sorted({*groups.tolist()} - {-1}):
        own = groups == group
        masks = mechanisms[int(labels[own].mode().values)]
        true = Circuit.from_masks(model, feature, masks, input_shape=(channels, height, width))
        found = find(model, feature, images[own], kernels=len(true), batch_size=batch_size, seed=seed)
        ious.append(iou(found, true))
    figures = compared[SALIENCIES]
    return RecoveredGroups(figures.ari, figures.accuracy, tuple(ious))
