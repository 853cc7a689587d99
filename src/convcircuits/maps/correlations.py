"""Which units of a layer have similar maps."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convcircuits.errors import ConvCircuitsError
from convcircuits.maps.top import full_maps
from convcircuits.maps.units import all_units
from convcircuits.network.batches import Batches, Images, Progress
from convcircuits.network.capture import Network
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.feature import flattened


@outside_autocast
def correlations(
    model: nn.Module,
    layer: str,
    images: Images,
    *,
    call: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Float[Tensor, "u u"]:
    """Correlate the maps of all units of a layer, over all positions of all images.

    Args:
        model: Any CNN; it runs in eval mode.
        layer: Name of a module whose output is (N, C, H, W) or (N, C).
        images: As for ``score``, of one size.
        call: Index of the layer's call, from 0, if it runs several times in one forward pass.
        batch_size: Maximum number of images that run at once.
        progress: Called with the number of images done and their total (or None).

    Returns:
        Pearson's correlation of each two units, float64, on the CPU; NaN for a unit that is constant.

    Raises:
        ConvCircuitsError: If there is no such layer, images do not fit the model, or a value is not finite.
    """
    network = Network(model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size, progress=progress)
    subject = all_units(network, layer, batches.first_shape(), position="all", call=call)
    count, shift = 0, torch.empty(0)
    sums, products = torch.zeros(len(subject.rows)).double(), torch.zeros(len(subject.rows), len(subject.rows)).double()
    for _, maps, _ in full_maps(subject, batches):
        values = flattened(maps).cpu().transpose(0, 1).flatten(1)
        values = values.to(torch.promote_types(values.dtype, torch.float32))  # products of half precision overflow
        if not bool(values.isfinite().all()):
            raise ConvCircuitsError(f"{layer} has values that are not finite on these images.")
        if not count:
            shift = values.mean(1, keepdim=True)  # of values far from 0, products would cancel
        values = values - shift
        count += values.shape[1]
        sums += values.double().sum(1)
        size = values.abs().amax(1, keepdim=True)  # products of small or large values would leave the range of floats
        size[size == 0] = 1
        unit = values / size
        products += (unit @ unit.T).double() * (size.double() @ size.double().T)
    covariance = products / count - torch.outer(sums, sums) / count**2
    scale = covariance.diagonal().clamp_min(0).sqrt()
    scale[covariance.diagonal() <= 1e-12 * products.diagonal() / count] = torch.nan  # constant, up to rounding
    return (covariance / torch.outer(scale, scale)).clamp(-1, 1)
