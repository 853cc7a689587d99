"""The cost of an extracted module, compared with the full model up to the same feature."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convcircuits.errors import option, whole_number
from convcircuits.network.batches import Progress, check_progress
from convcircuits.network.capture import Network
from convcircuits.network.masking import Subject
from convcircuits.network.surroundings import environment_kept, outside_autocast
from convcircuits.values.circuit import Circuit
from convcircuits.values.report import without_nan


@dataclass(frozen=True)
class Cost:
    """The cost of one network.

    Attributes:
        parameters: Number of parameters.
        macs: Multiply-accumulate operations for one image.
        seconds: Median time of a batch.
    """

    parameters: int
    macs: int
    seconds: float


@dataclass(frozen=True)
class Costs:
    """The costs of a circuit's module and of the full model up to the feature.

    Attributes:
        module: Cost of the module.
        full: Cost of the full model, up to and including the feature's layer with all of its filters.
        batch_size: Number of images in a timed batch.
        input_shape: (C, H, W) of an image.
        difference: Largest difference between the module and the circuit's masked run, relative to the largest value;
            infinite if only the masked run is 0.
    """

    module: Cost
    full: Cost
    batch_size: int
    input_shape: tuple[int, ...]
    difference: float

    @property
    def speedup(self) -> float:
        """How many times faster the module runs."""
        return self.full.seconds / self.module.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values; an infinite one is None."""
        figures: dict[str, Any] = without_nan({**asdict(self), "speedup": self.speedup})
        return figures


@outside_autocast
def costs(
    model: nn.Module,
    circuit: Circuit,
    module: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    batch_size: int = 16,
    repeats: int = 5,
    progress: Progress | None = None,
) -> Costs:
    """Measure a circuit's module and the full model alternately, on the same random images.

    Args:
        model: The model that the circuit belongs to.
        circuit: The circuit.
        module: The module that ``extract`` returned for them.
        input_shape: (C, H, W) of an image.
        batch_size: Number of images in a batch.
        repeats: How often each is timed.
        progress: Called with the number of timed pairs of runs and the total.

    Raises:
        ConvCircuitsError: If a number is out of range.
    """
    check_progress(progress)
    batch_size, repeats = whole_number(option("batch_size"), batch_size, 1, 2**16), whole_number("repeats", repeats, 1)
    network = Network(model)
    subject = Subject.open(network, circuit.feature, input_shape)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, *input_shape, generator=generator).to(network.device, network.dtype)
    with torch.no_grad():
        masked, small = subject.maps(images, subject.masks(circuit, input_shape, effective=True)), module(images)

        def full(images: Tensor) -> Tensor:
            return network.run(circuit.feature, images, lambda call: call.compute())

        times = []
        for done in range(1, repeats + 1):
            times.append((_seconds(module, images), _seconds(full, images)))
            if progress is not None:
                progress(done, repeats)
        macs = _macs(module, images[:1]), _macs(full, images[:1])
        apart, largest = float((small - masked).abs().max()), float(masked.abs().max())
    silent = 0.0 if apart == 0 else math.inf  # a circuit may be 0 on these images
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    used = network.state(subject.survey.modules)
    parameters = sum(p.numel() for name, p in network.module.named_parameters() if name in used)
    return Costs(
        Cost(sum(p.numel() for p in module.parameters()), macs[0], seconds[0]),
        Cost(parameters, macs[1], seconds[1]),
        batch_size,
        tuple(input_shape),
        apart / largest if largest > 0 else silent,
    )


def _seconds(run: Callable[[Tensor], Tensor], images: Tensor) -> float:
    start = time.perf_counter()
    run(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _macs(run: Callable[[Tensor], Tensor], image: Tensor) -> int:
    with environment_kept(), FlopCounterMode(display=False) as counter:
        run(image)
    return int(counter.get_total_flops()) // 2
