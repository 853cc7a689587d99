"""Refit a circuit: fit gains of its kernels and offsets of its filters, so that its layers compute what the model's do.

Layer after layer, on the inputs that the layer gets in the circuit refitted so far, each live filter o is fitted to the
full model's raw output of the same call by least squares:

    min over a, d of  sum_p w_p (y_o(p) - sum_i a_i z_oi(p) - b_o - d)^2 + ridge sum_i (G_ii + F Y_o) (a_i - t)^2

p runs over positions of all images, w_p is the weight of the image (1 by default), z_oi is the pre-sum map of a kept
kernel, G_ii its weighted sum of squared deviations from its mean and Y_o that of y_o, b_o the bias, and t is 1 or 0.
With ``positive``, all a_i are 0 or more, so that no kernel does the opposite of what it does in the model.
Only the normal equations are kept, in float64. Regression onto a full model's outputs is how channel pruning
reconstructs layers (He et al., arXiv 1707.06168; Luo et al., arXiv 1707.06342).
"""

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from convcircuits.circuits.equations import Equations, Method
from convcircuits.circuits.lockstep import Runs, Targets
from convcircuits.errors import ConvCircuitsError, option, whole_number
from convcircuits.network.agreement import IMAGES
from convcircuits.network.batches import Batches, Images, Progress, check_progress
from convcircuits.network.calls import KernelCall
from convcircuits.network.capture import Network
from convcircuits.network.laws import checked
from convcircuits.network.masking import Masks, Subject
from convcircuits.network.surroundings import outside_autocast
from convcircuits.values.boxes import image_hash
from convcircuits.values.circuit import Circuit
from convcircuits.values.tables import LayerTable

if TYPE_CHECKING:
    from convcircuits.circuits.learning import Learn

METHODS: dict[str, str] = {
    "kernels": "a gain for each kernel and an offset for each filter",
    "filters": "a gain and an offset for each filter",
    "mean": "an offset for each filter",
    "none": "nothing",
}
"""What each method fits."""

RIDGE = 0.01
"""Default strength of the pull toward gain 1."""

POSITIONS = 10_000
"""Default number of positions, over all images, on which a layer is fitted."""

ROOM = 2**30
"""Default bytes for the runs that wait at a layer, and for the normal equations of a layer."""


@outside_autocast
def refit(
    model: nn.Module,
    circuit: Circuit,
    images: Images,
    *,
    method: Method = "kernels",
    ridge: float = RIDGE,
    toward: float = 1.0,
    positive: bool = False,
    positions: int | None = POSITIONS,
    weights: Sequence[float] | Tensor | None = None,
    batch_size: int = 16,
    seed: int = 0,
    memory: int = ROOM,
    progress: Progress | None = None,
) -> Circuit:
    """Fit gains and offsets, so that each layer of a circuit computes what it does in the full model.

    Calls of a layer that runs several times share their gains. Filters and kernels that are not effective keep gain 1
    and offset 0, and so do those that miss nothing or whose maps do not vary on these images. With ``"filters"`` all
    kernels of a filter get its gain. The circuit's own calibration, if any, is replaced.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit.
        images: The images to fit on, as for ``score``; never those that the circuit is to be measured on.
        method: What is fitted: ``"kernels"``, a gain for each kernel and an offset for each filter; ``"filters"``, one
            gain and offset for each filter; ``"mean"``, an offset alone; ``"none"`` removes the calibration.
        ridge: The pull of the gains, relative to the spread of each kernel's map; 0 for none. Methods that
            fit no gains take no notice of it.
        toward: The gain toward which they are pulled, 1 or 0. Toward 0, kernels of a filter that cancel each other
            fade; toward 1 they stay, no filter's error given its inputs rises, and the full circuit is the model.
            Methods that fit no gains take no notice of it.
        positive: Whether gains are 0 or more, so that no kernel does the opposite of what it does in the model. Methods
            that fit no gains take no notice of it.
        positions: Number of positions over all images on which a layer is fitted, the same in every image, drawn at
            random; at least one an image. None for all.
        weights: A number from 0 for each image, in their order, that its squared error is multiplied by; only their
            proportions matter. An image of weight 2 counts as two, one of weight 0 not at all. The images must be a
            tensor, or come in the same order in every pass. None for equal ones.
        batch_size: Maximum number of images that run at once.
        seed: Seed of the drawn positions.
        memory: Bytes for the runs that wait for the gains of a layer, and for the equations of a layer. If they do not
            fit, images run again for each layer, or several times for a layer; the result is the same.
        progress: Called with the number of images done, over all passes, and their total.

    Returns:
        The circuit with new ``gain`` and ``offset``; its provenance says how they were fitted.

    Raises:
        ConvCircuitsError: If the circuit belongs to other weights, an option is invalid, or images do not fit the model
            or give values that are not finite.

    Examples:
        >>> refitted = cc.refit(model, circuit, images)
        >>> cc.evaluate(model, refitted, images).r2 > cc.evaluate(model, circuit, images).r2
        True
    """
    check_progress(progress)
    if method not in METHODS:
        raise ConvCircuitsError(f"method must be one of {', '.join(map(repr, METHODS))}; got {method!r}.")
    if method == "none" and weights is not None:
        raise ConvCircuitsError(
            "method 'none' fits nothing, so it takes no weights; omit them or choose another method."
        )
    ridge, toward, positive, positions = check_fit(ridge, toward, positive, positions)
    memory = whole_number("memory, in bytes,", memory, 1)
    seed = whole_number(option("seed"), seed, 0, 2**32 - 1)
    network = Network(model)
    batches = Batches(images, device=network.device, dtype=network.dtype, batch_size=batch_size)
    first = batches.first(IMAGES)
    if not isinstance(circuit, Circuit):
        raise ConvCircuitsError(f"Expected a Circuit, got {type(circuit).__name__}.")
    subject = Subject.open(network, circuit.feature, tuple(first.shape[1:]))
    subject.check(circuit)
    checked(subject, first)
    fit = Refit(
        subject,
        batches,
        method=method,
        ridge=ridge,
        toward=toward,
        positive=positive,
        positions=positions,
        weights=weights,
        seed=seed,
        memory=memory,
        progress=progress,
    )
    return fitted(subject, circuit, fit)


def fitted(subject: Subject, circuit: Circuit, fit: "Refit | Learn | None") -> Circuit:
    """Return a circuit whose calibration is replaced by a new one; without any if there is no fit."""
    about = {key: value for key, value in circuit.provenance.items() if key != "calibration"}
    bare = replace(circuit, gain=LayerTable(), offset=LayerTable(), provenance=about)
    if fit is None:
        return bare
    before = Counter(fit.cost)  # a fit may have served other circuits
    gain, offset = fit(subject.masks(bare, subject.survey.input_shape, effective=True))
    about["calibration"] = fit.about()
    about["cost"] = dict(Counter[str](about.get("cost", {})) + (fit.cost - before))
    return replace(bare, gain=LayerTable(gain), offset=LayerTable(offset), provenance=about)


def check_fit(
    ridge: float, toward: float, positive: bool, positions: int | None
) -> tuple[float, float, bool, int | None]:
    """Return the options of a fit if they are valid.

    Raises:
        ConvCircuitsError: If they are not.
    """
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 <= ridge < math.inf:
        raise ConvCircuitsError(f"ridge must be a finite number from 0; got {ridge!r}.")
    if isinstance(toward, bool) or toward not in (0, 1):
        raise ConvCircuitsError(f"toward must be 1 or 0, a gain; got {toward!r}.")
    if not isinstance(positive, bool):
        raise ConvCircuitsError(f"positive must be True or False; got {positive!r}.")
    positions = None if positions is None else whole_number("positions", positions, 1)
    return float(ridge), float(toward), positive, positions


def order_of(batches: Batches) -> str:
    """Return a hash of images in their order, 16 hexadecimal digits: what their weights belong to."""
    digest = hashlib.sha256()
    for batch in batches:
        for image in batch:
            digest.update(image_hash(image).to_bytes(8, "big"))
    return digest.hexdigest()[:16]


def _weights(weights: Sequence[float] | Tensor, images: int) -> Tensor:
    """Return weights of images, divided by their mean.

    Raises:
        ConvCircuitsError: If they are not one finite number from 0 for each image, or all 0.
    """
    try:
        found = torch.as_tensor(weights, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConvCircuitsError(f"weights must be numbers, one for each image; got {weights!r:.80}.") from error
    if found.shape != (images,):
        raise ConvCircuitsError(
            f"weights must be one number for each of the {images:,} images; got the shape {tuple(found.shape)}."
        )
    if not bool(found.isfinite().all() and (found >= 0).all() and found.any()):
        raise ConvCircuitsError("weights must be finite numbers from 0, not all 0; give others.")
    return found / found.mean()


class Refit:
    """The refitting of a feature's circuits on the same images; the other arguments are those of ``refit``.

    Args:
        subject: The model that the circuits belong to.
        batches: The images.
        target: The model whose layers they are fitted to, if it is another one of the same architecture.

    Attributes:
        target: The model whose layers circuits are fitted to.
        positive: Whether gains are 0 or more.
        cost: Number of images that have run forward, in whole or in part, in the full model and in circuits.
        notes: Sentences on the last circuit; a refit has none.
    """

    def __init__(
        self,
        subject: Subject,
        batches: Batches,
        *,
        target: Subject | None = None,
        method: Method = "kernels",
        ridge: float = RIDGE,
        toward: float = 1.0,
        positive: bool = False,
        positions: int | None = POSITIONS,
        weights: Sequence[float] | Tensor | None = None,
        seed: int = 0,
        memory: int = ROOM,
        progress: Progress | None = None,
    ) -> None:
        self._subject, self._batches, self._method = subject, batches, method
        self.target = target or subject
        self._ridge, self._toward, self.positive = ridge, toward, positive
        self._positions, self._seed, self._memory, self._progress = positions, seed, memory, progress
        self._images = sum(len(batch) for batch in batches)
        self._weights = None if weights is None else _weights(weights, self._images)
        self._order = None if weights is None else order_of(batches)
        self._targets = Targets(memory // 2, positions is not None and batches.total is not None)
        self.cost, self.notes = Counter(forward=0), list[str]()

    def about(self) -> dict[str, Any]:
        """Return how circuits are fitted, as JSON values."""
        return {
            "method": self._method,
            "ridge": self._ridge,
            "toward": self._toward,
            "positive": self.positive,
            "positions": self._positions,
            "seed": self._seed,
            "images": self._batches.describe(),
            **({} if self._weights is None else {"weights": self._weights.tolist(), "order": self._order}),
        }

    def __call__(self, masks: Masks, *, like: Masks | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Fit the gains and offsets of a circuit without calibration.

        Args:
            masks: The circuit, effective.
            like: Another circuit of the subject's model, with its calibration, to whose layers this one is fitted in
                place of the target's.

        Returns:
            The gains, layer name -> (out, in per group), and the offsets, layer name -> (out,), of the layers with any
            kernel; float64 for a float64 model, otherwise float32; on the CPU.
        """
        gain: dict[str, Tensor] = {}
        offset: dict[str, Tensor] = {}
        if self._method == "none":
            return gain, offset
        network = self._subject.network
        fitted = replace(masks, gain={}, offset={})  # grows with every layer
        parts = {layer: self._parts(mask.cpu()) for layer, mask in masks.kernels.items()}
        done, total = 0, self._images * sum(len(filters) for filters in parts.values())
        with torch.no_grad():
            model, known = (self.target, self._targets) if like is None else (self._subject, Targets(0, usable=False))
            runs = Runs(self._subject, model, fitted, like, self._batches, known, self._memory, self.cost)
            for layer, numbers in runs.layers():
                shape = masks.kernels[layer].shape
                gains, offsets = torch.ones(shape, dtype=torch.float64), torch.zeros(shape[0], dtype=torch.float64)
                for filters in parts[layer]:
                    equations, before = Equations(fitted, layer, filters, self._method), 0
                    for images, full, circuit in runs.at(numbers):
                        call = circuit.call
                        positions = self._drawn(call, len(numbers))
                        target = full.fitted(call, positions)
                        weights = self._weights
                        if weights is not None:
                            weights = weights[before : before + len(call.x)]
                        equations.add(call, target, circuit.output_at(positions), positions, weights)
                        if filters is parts[layer][-1]:
                            full.advance()
                        before += images
                        done += images
                        if images and self._progress is not None:
                            self._progress(done, total)
                    gains[filters], offsets[filters] = equations.solve(
                        self._ridge, self._toward, positive=self.positive
                    )
                if parts[layer]:
                    dtype = network.dtype if network.dtype == torch.float64 else torch.float32
                    gain[layer], offset[layer] = gains.to(dtype), offsets.to(dtype)
                if bool((gains != 1).any() | (offsets != 0).any()):  # else the layer runs as it is, without rounding
                    fitted.gain[layer] = gains.to(network.device, network.dtype)  # type: ignore[index]
                    fitted.offset[layer] = offsets.to(network.device, network.dtype)  # type: ignore[index]
        return gain, offset

    def _parts(self, kernels: Bool[Tensor, "out in"]) -> list[Tensor]:
        """Split the filters of a layer that have kernels into those whose equations fit into memory together."""
        widths = kernels.sum(1)
        filters = widths.argsort(descending=True, stable=True)[: int((widths > 0).sum())]  # like ones together
        parts = []
        while len(filters):
            width = int(widths[filters[0]]) if self._method == "kernels" else 1
            count = max(1, self._memory // (64 * (width + 1) ** 2))  # eight tables, such as the products
            parts.append(filters[:count])
            filters = filters[count:]
        return parts

    def _drawn(self, call: KernelCall, calls: int) -> Tensor | None:
        """Return the positions on which a call is fitted; None for all."""
        count = call.positions
        if self._positions is None:
            return None
        wanted = math.ceil(self._positions / self._images / calls)
        if wanted >= count:
            return None
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}|{call.layer}|{call.turn}".encode()))
        return torch.randperm(count, generator=generator)[:wanted].sort().values.to(call.x.device)
