"""An immutable table of tensors by layer."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from convcircuits.errors import ConvCircuitsError


def suggest(given: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests names close to one that was not found, for the end of an error message."""
    known = list(known)
    near = difflib.get_close_matches(given, known, n=5, cutoff=0.4)
    if near:
        return f"Similar names: {', '.join(near)}."
    shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    return f"Known names: {shown}." if known else "There are none."


def count_kept(masks: Mapping[str, torch.Tensor]) -> int:
    """Return how many elements the masks of all layers keep."""
    return sum(int(mask.sum()) for mask in masks.values())


class LayerTable(Mapping[str, torch.Tensor]):
    """Tensors by layer name, in execution order, on the CPU and detached. Items are returned as copies.

    Equality compares names, order, dtypes, shapes and values (NaN equals NaN).
    """

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        self._tensors = {
            layer: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
            for layer, tensor in (tensors or {}).items()
        }

    def __getitem__(self, layer: str) -> torch.Tensor:
        try:
            return self._tensors[layer].clone()  # callers must not write into a shared value
        except KeyError:
            raise ConvCircuitsError(f"There is no layer {layer!r} here. {suggest(str(layer), self._tensors)}") from None

    def get(self, layer: str, default: Any = None) -> Any:
        """Return the tensor of a layer, or the default if there is no such layer."""
        return self[layer] if layer in self._tensors else default

    def __contains__(self, layer: object) -> bool:
        return layer in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerTable):
            return NotImplemented
        return list(self) == list(other) and all(
            a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
            for a, b in zip(self.values(), other.values(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        inside = ", ".join(f"{layer}: {tuple(tensor.shape)}" for layer, tensor in self.items())
        return f"LayerTable({inside})"
