"""Train a circuit's gains and offsets to the feature's map by gradient steps, through the circuit's small module.

Refitting brings every layer close to the full model's, which is more than the feature needs and, in small circuits,
more than they can do. Here all constants together serve the one map.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convcircuits.circuits.lockstep import Run
from convcircuits.circuits.refitting import Refit
from convcircuits.circuits.tracing import Trace
from convcircuits.compiler.extraction import Trainable
from convcircuits.compiler.layout import UnextractableError
from convcircuits.errors import ConvCircuitsError
from convcircuits.network.calls import KernelCall
from convcircuits.network.masking import Masks, Subject
from convcircuits.threads import SideBySide
from convcircuits.values.feature import at

_DECAY = 20.0
"""The last step is this many times smaller than the first."""
_AT_ONCE = 16
"""Number of images that run at once, in all threads together."""
_SIDE_BY_SIDE = 4
"""Number of parts of a batch that run at once, at most: every part costs time in Python, where only one runs."""
_IN_MEMORY = 512
_POLISHED = 128
"""L-BFGS runs on at most so many images, which all run for each of its steps."""
_HISTORY = 50
"""Number of earlier steps from which L-BFGS estimates the curvature."""
_STEADY = 0.3
"""Share of the steps before they become smaller."""
_MANY = 400
"""With more constants than this, each moves less, so that all together move as far as so many do."""
_HALF = 0.5
"""Error of a refit, a share of the variance, from which on training also starts from other constants."""
_SLOWER = (1.0, 0.25, 0.0625)
"""Parts of the rate that are tried one after another, until the error falls."""

Tables = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Gains, layer name -> (out, in per group), and offsets, layer name -> (out,)."""

Compute = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From images, the gains of a circuit's kernels and the offsets of its live filters, in order, to the map."""


@dataclass(frozen=True)
class Training:
    """How constants are trained: by Adam, and at the end by L-BFGS.

    Attributes:
        steps: Number of steps; 0 for none.
        final: Number of steps of the last circuit of a descent.
        tolerance: Error on the images, as a share of the variance, from which down a circuit is not trained.
        rate: Size of a step: of gains, and of offsets in standard deviations of their filter's output; less if there
            are more than ``_MANY``, or if the error does not fall.
        batch: Number of images in a step.
        rectified: Share of the error of the rectified map in the loss, from 0 to 1; the rest is the error of the map
            itself. Both are relative to the variance.
        seed: Seed of the order of images.
        polish: Number of iterations of L-BFGS after the steps of the last circuit, if it takes any, on at most
            ``_POLISHED`` images.

    Whether gains stay 0 or more is up to the refit.
    """

    steps: int
    final: int
    rate: float
    batch: int
    rectified: float
    tolerance: float
    seed: int
    polish: int = 0


class Learn:
    """The refitting and training of a feature's circuits on the same images.

    Attributes:
        notes: Sentences on the circuit that was trained last.
        cost: As for ``Refit``, and the number of images that have run forward and backward in training: in steps,
            ``"trained"``, and in iterations of L-BFGS, ``"polished"``.

    Args:
        trace: The feature's images, of which at most ``_IN_MEMORY`` are kept in memory.
        fit: How circuits are refitted before they are trained; they are trained to the map of its target.
        training: How constants are trained.
        control: Whether these are controls, in whose wrong graphs or weights a refit may leave nothing to train.

    Raises:
        ConvCircuitsError: If the images differ in size, or the feature does not vary on them.
    """

    def __init__(self, trace: Trace, fit: Refit, training: Training, *, control: bool = False) -> None:
        self._subject, self._progress = trace.subject, trace.progress
        self._fit, self._training, self._control = fit, training, control
        self._threads = SideBySide(_SIDE_BY_SIDE if trace.subject.network.device.type == "cpu" else 1)
        self.cost, self.notes = fit.cost, list[str]()
        self.cost["trained"] = self.cost["polished"] = 0
        parts = list(trace.batches.sample(_IN_MEMORY, trace.seed))
        if len({part.shape[1:] for part in parts}) > 1:
            raise ConvCircuitsError("Constants are trained on images of one size; crop or resize the images to one.")
        self._images, self._given = torch.cat(parts), trace.batches.count
        with torch.no_grad():
            maps = torch.cat([fit.target.maps(part) for part in parts])
            self.cost["forward"] += len(maps)
            self._counted = trace.positions.counted(maps, self._images)
            self._targets = _units_last(at(maps, self._counted))
        values = self._targets.flatten(0, -2)
        if len(values) < 2 or not bool((values.var(0) > 0).all()):  # one value has no variance
            raise ConvCircuitsError(
                f"{trace.subject.feature} does not vary on these images, so nothing can be trained; give other images."
            )
        self._scale, self._rectified_scale = values.var(0), values.relu().var(0)

    def about(self) -> dict[str, Any]:
        """Return how circuits are fitted, as JSON values."""
        training = self._training
        trained = {key: value for key, value in asdict(training).items() if key != "seed"}
        trained["images"] = len(self._images)
        if self._control:
            trained["starts"] = ["refit", "moments"]
        return self._fit.about() | {"trained": trained}

    def __call__(self, masks: Masks, *, before: Masks | None = None, last: bool = True) -> Tables:
        """Refit and train a circuit without calibration.

        It is refitted to the full model and, if it was cut from another, to what that one computes: training has
        brought its layers to where they serve the feature best together. The better of the two is trained. The error
        on the images never rises: if the steps raise it, the refit is returned, and a note says so.

        A control whose refit explains less than half of the feature is also trained from where every filter has the
        mean and the spread that it has in the full model, and the better result counts.
        Least squares gives a filter that its inputs do not predict, as in a wrong graph, hardly any spread. If its mean
        is negative, a ReLU then passes nothing on, and no gradient back: such a circuit could not be trained.

        Args:
            masks: The circuit, effective.
            before: The circuit that it was cut from, with its calibration.
            last: Whether it is the last one of a descent, or the only one.
        """
        self.notes = []
        start, training = self._fit(masks), self._training
        steps, polish = (training.final, training.polish) if last else (training.steps, 0)
        if not steps or not any(bool(mask.any()) for mask in masks.kernels.values()):
            return start
        run = self._runner(masks)
        error = self._error(self._with(start, masks, run))
        if before is not None and error > training.tolerance:
            other = self._fit(masks, like=before)
            if (of_other := self._error(self._with(other, masks, run))) < error:
                start, error = other, of_other
        if error <= training.tolerance:
            return start
        if len(self._images) < self._given:
            self.notes.append(
                f"Constants are trained on {len(self._images):,} of the {self._given:,} images, drawn at random, and "
                "refitted on all."
            )
        found, after = self._improved(start, error, masks, run, steps, polish)
        if self._control and error > _HALF:
            matched = self._moment_matched(masks)
            of_matched = self._error(self._with(matched, masks, run))
            other, of_other = self._improved(matched, of_matched, masks, run, steps, polish)
            if of_other < after:
                return other
        if found is start:
            self.notes.append(
                f"Training raised the error on its images above the {error:.3g} of the variance that the refit leaves, "
                "even with a sixteenth of the rate, so the constants are those of the refit; choose more steps or a "
                "smaller rate."
            )
        return found

    def _improved(
        self, start: Tables, error: float, masks: Masks, run: Compute, steps: int, polish: int
    ) -> tuple[Tables, float]:
        """Return the constants after some steps at the first of the rates that does not raise the error, and theirs.

        If every rate raises it, or makes it NaN, these are the constants from the start.
        """
        for part in _SLOWER:
            found, after = self._trained(start, masks, run, steps, polish, part)
            if after <= error:
                return found, after
        return start, error

    def _with(self, tables: Tables, masks: Masks, run: Compute) -> Callable[[Tensor], Tensor]:
        """Return the map of a circuit with some constants, as a function of images."""
        gains, offsets = self._constants(_complete(tables, masks), masks)
        return lambda images: run(images, gains, offsets)

    def _constants(self, tables: Tables, masks: Masks) -> tuple[Tensor, Tensor]:
        """Return the gains of a circuit's kernels and the offsets of its live filters, in order."""
        some = (_among(table, kept) for table, kept in zip(tables, _kept_and_live(masks), strict=True))
        gains, offsets = (one.to(self._subject.network.device, self._subject.network.dtype) for one in some)
        return gains, offsets

    def _trained(
        self, start: Tables, masks: Masks, run: Compute, steps: int, polish: int, part: float
    ) -> tuple[Tables, float]:
        """Return the constants after some steps at a part of the rate and some iterations of L-BFGS, and the error."""
        device, dtype = self._subject.network.device, self._subject.network.dtype
        whole, (kept, live) = _complete(start, masks), _kept_and_live(masks)
        gains, offsets = self._constants(whole, masks)
        spread = _among(self._spread(replace(masks, gain=whole[0], offset=whole[1]).to(device, dtype)), live)
        positive = self._fit.positive
        threads = self._threads if isinstance(run, Trainable) else nullcontext()  # masked runs change the model
        with torch.enable_grad(), threads:
            gains.requires_grad_()
            shifts = torch.zeros_like(spread, requires_grad=True)

            def moved() -> Tensor:
                return offsets + shifts * spread

            def maps(images: Tensor) -> Tensor:
                return run(images, gains, moved())

            def maps_of_roots(images: Tensor) -> Tensor:
                return run(images, roots.square(), moved())

            rate = part * self._training.rate * min(1.0, math.sqrt(_MANY / (len(gains) + len(shifts))))
            led_anywhere = self._descend([gains, shifts], maps, steps, rate)
            error, trained = self._error(maps), [gains.detach().clone(), moved().detach()]
            if polish and led_anywhere:
                if positive:  # squares of what is moved stay so; a gain of 0 has slope 0 and stays 0
                    roots = gains.detach().sqrt().requires_grad_()
                    self._polish([roots, shifts], maps_of_roots, polish)
                    gains = roots.detach().square()
                else:
                    self._polish([gains, shifts], maps, polish)
                if (polished := self._error(maps)) < error:  # it may not be, on images that it did not run on
                    error, trained = polished, [gains.detach(), moved().detach()]
        gain, offset = (one.cpu() for one in trained)
        return (_with(whole[0], kept, gain), _with(whole[1], live, offset)), error

    def _error(self, maps: Callable[[Tensor], Tensor]) -> float:
        """Return the loss on all images."""
        with torch.no_grad():
            loss, _ = self._loss_and_slopes(maps, torch.arange(len(self._images)), [])
        self.cost["forward"] += len(self._images)
        return float(loss)

    def _loss_and_slopes(
        self, maps: Callable[[Tensor], Tensor], some: Tensor, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the loss on some of the images, and its slopes with respect to some parameters."""
        parts = self._threads.count * math.ceil(len(some) / _AT_ONCE)

        def of(part: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            counted = None if self._counted is None else self._counted[part]
            got = _units_last(at(maps(self._images[part]), counted))
            loss = self._loss(got, self._targets[part]) * (len(part) / len(some))
            return loss.detach(), torch.autograd.grad(loss, parameters) if parameters else ()

        losses, slopes = zip(*self._threads.map(of, torch.tensor_split(some, min(parts, len(some)))), strict=True)
        return sum(losses[1:], losses[0]), [sum(each[1:], each[0]) for each in zip(*slopes, strict=True)]

    def _descend(self, parameters: list[Tensor], maps: Callable[[Tensor], Tensor], steps: int, rate: float) -> bool:
        """Take the steps, and return whether they led anywhere. Of the parameters, the first are the gains."""
        training = self._training
        optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
        generator, order = torch.Generator().manual_seed(training.seed), torch.zeros(0, dtype=torch.long)
        for step in range(steps):
            for group in optimizer.param_groups:
                late = max(0.0, step / steps - _STEADY) / (1 - _STEADY)
                group["lr"] = rate * _DECAY**-late
            if len(order) < min(training.batch, len(self._images)):
                order = torch.cat([order, torch.randperm(len(self._images), generator=generator)])
            some, order = order[: training.batch], order[training.batch :]
            loss, slopes = self._loss_and_slopes(maps, some, parameters)
            if not bool(loss.isfinite()):
                return False  # the error on all images will say so
            if step == 0 and not any(bool(slope.any()) for slope in slopes):
                return False  # nothing reaches the map, on these images and so hardly on others
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.grad = slope
            optimizer.step()
            if self._fit.positive:
                parameters[0].data.clamp_(min=0)
            self.cost["trained"] += len(some)
            if self._progress is not None:
                self._progress(step + 1, steps)
        return True

    def _polish(self, parameters: list[Tensor], maps: Callable[[Tensor], Tensor], iterations: int) -> None:
        """Take iterations of L-BFGS on images that are the same in all: its steps follow a loss without noise."""
        order = torch.randperm(len(self._images), generator=torch.Generator().manual_seed(self._training.seed))
        images, evaluations = order[:_POLISHED], 0
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=iterations, history_size=_HISTORY, line_search_fn="strong_wolfe"
        )

        def loss() -> float:
            nonlocal evaluations
            total, slopes = self._loss_and_slopes(maps, images, parameters)
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.grad = slope
            self.cost["polished"] += len(images)
            evaluations += 1
            if self._progress is not None:
                self._progress(min(evaluations, iterations), iterations)
            return float(total)

        optimizer.step(loss)  # type: ignore[no-untyped-call]

    def _loss(self, maps: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error relative to the variance, of the map and of the rectified map."""
        raw = ((maps - targets).square() / self._scale).mean()
        share, varies = self._training.rectified, self._rectified_scale > 0
        if share == 0 or not bool(varies.any()):
            return raw
        scale = torch.where(varies, self._rectified_scale, torch.inf)
        rectified = ((maps.relu() - targets.relu()).square() / scale).mean()
        return (1 - share) * raw + share * rectified

    def _runner(self, masks: Masks) -> Compute:
        """Return the circuit's small module, or masked runs."""
        try:
            return Trainable.of(self._subject, masks)
        except UnextractableError as problem:
            self.notes.append(f"Constants are trained by masked runs of the whole model, which are slower: {problem}")

        def run(images: Tensor, gains: Tensor, offsets: Tensor) -> Tensor:
            (gain, offset), (kept, live) = _complete(({}, {}), masks), _kept_and_live(masks)
            gain, offset = _with(gain, kept, gains), _with(offset, live, offsets)
            return self._subject.maps(images, replace(masks, gain=gain, offset=offset))

        return run

    def _spread(self, masks: Masks) -> dict[str, Tensor]:
        """Return the standard deviation of each filter's output in the circuit, (out,); 1 if it does not vary."""
        moments = self._moments(self._subject, masks)
        return {layer: torch.where(moments[layer][1] > 0, moments[layer][1], 1) for layer in masks.kernels}

    def _moment_matched(self, masks: Masks) -> Tables:
        """Return gains and offsets that give every live filter the mean and the spread of its output in the full model.

        A filter that does not vary in the circuit keeps gain 1, and gets the mean.
        """
        network, some = self._subject.network, self._images[:_AT_ONCE]
        gain, offset = (
            {layer: one.to(network.device, network.dtype) for layer, one in table.items()}
            for table in _complete(({}, {}), masks)
        )
        fitted = replace(masks, gain=gain, offset=offset)  # grows with every layer
        calls = [node.call.layer for node in self._subject.survey.paths.graph.nodes if node.call is not None]
        run: Run | None = None

        def now(layer: str) -> Tensor:
            nonlocal run
            again = calls.count(layer) > 1  # its earlier calls must run with what was fitted since
            if run is None or again:
                run = Run(self._subject.steps(some, fitted), fitted)
                self.cost["forward"] += len(some)
            run.advance_to(len(calls) - 1 - calls[::-1].index(layer))
            moments = self._moments_of(run.call, run.output())
            run = None if again else run
            return moments

        with torch.no_grad():
            for layer, kernels in masks.kernels.items():  # in the order in which they run: each reads those before it
                mean, spread = self._wanted[layer]
                before = now(layer)[1]
                gain[layer] = gain[layer] * torch.where(before > 0, spread / before, 1)[:, None]
                offset[layer] = torch.where(kernels.any(1), mean - now(layer)[0], 0)
        return {layer: one.cpu() for layer, one in gain.items()}, {layer: one.cpu() for layer, one in offset.items()}

    @cached_property
    def _wanted(self) -> dict[str, Tensor]:
        """Mean and standard deviation of each filter's output in the full model, as ``_moments`` returns them."""
        return self._moments(self._fit.target, None)

    def _moments(self, subject: Subject, masks: Masks | None) -> dict[str, Tensor]:
        """Return mean and standard deviation of each filter's output in a circuit, or in a model: layer -> (2, out).

        They are those of the first images and, in a layer that runs several times, of its last call; 0 for filters that
        are not computed.
        """
        found = {layer: self._nothing(layer) for layer in self._subject.survey.kernels}

        def watch(call: KernelCall, output: Tensor) -> None:
            if call.layer in found:
                found[call.layer] = self._moments_of(call, output)

        some = self._images[:_AT_ONCE]
        with torch.no_grad():
            subject.maps(some, masks, watch)
        self.cost["forward"] += len(some)
        return found

    def _moments_of(self, call: KernelCall, output: Tensor) -> Tensor:
        """Return mean and standard deviation of each filter's output, (2, out); 0 for those that are not computed."""
        values = call.by_position(output).flatten(1, 2).transpose(0, 1).flatten(1)
        found = self._nothing(call.layer)
        found[:, slice(None) if call.rows is None else call.rows] = torch.stack(
            [values.mean(1), values.std(1, correction=0)]
        ).to(found)
        return found

    def _nothing(self, layer: str) -> Tensor:
        """Return zeros for means and standard deviations of a layer, (2, out)."""
        network, filters = self._subject.network, len(self._subject.survey.kernels[layer])
        return torch.zeros(2, filters, device=network.device, dtype=network.dtype)


def _units_last(values: Tensor) -> Float[Tensor, "n p u"]:
    """Return counted values, (n, p) or (n, u, p), with the units last."""
    return values[..., None] if values.dim() == 2 else values.transpose(1, 2)


def _complete(tables: Tables, masks: Masks) -> Tables:
    """Return tables of all layers: without an entry, gain 1 and offset 0."""
    gain, offset = tables
    return (
        {layer: gain.get(layer, torch.ones(mask.shape)) for layer, mask in masks.kernels.items()},
        {layer: offset.get(layer, torch.zeros(len(mask))) for layer, mask in masks.kernels.items()},
    )


def _kept_and_live(masks: Masks) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return which kernels are in a circuit, (out, in per group), and which filters are live, (out,)."""
    return dict(masks.kernels), {layer: mask.any(1) for layer, mask in masks.kernels.items()}


def _among(table: Mapping[str, Tensor], some: Mapping[str, Tensor]) -> Tensor:
    """Return the values of a table where another one says so, in order."""
    return torch.cat([table[layer][where.to(table[layer].device)] for layer, where in some.items()])


def _with(table: Mapping[str, Tensor], some: Mapping[str, Tensor], values: Tensor) -> dict[str, Tensor]:
    """Return a table with these values, in order, where another one says so; on their device, and of their dtype."""
    parts = torch.split(values, [int(where.sum()) for where in some.values()])
    return {
        layer: table[layer].to(values).masked_scatter(where.to(values.device), part)
        for (layer, where), part in zip(some.items(), parts, strict=True)
    }
