"""Models' names: how they are written, and which of them run nobody else's code. No torch."""

import re
import shlex
from pathlib import Path

from convcircuits.errors import ConvCircuitsError

RANDOM = "@random"
"""The suffix of a model's name that asks for seeded random weights."""


def parts(spec: str) -> tuple[str, str, bool]:
    """Split a spec, whether or not the model exists: ``timm:resnet18@random`` -> (``timm:``, ``resnet18``, True).

    The first part is a key of ``SOURCES`` or the user's module followed by a colon; anything else is unknown.
    """
    source, colon, name = spec.removesuffix(RANDOM).partition(":")
    return source + colon, name, spec.endswith(RANDOM)


def is_plain_name(spec: str) -> bool:
    """Return whether a spec can only name a model of a known package, so that loading it runs nobody else's code."""
    return re.fullmatch(r"((torchvision|timm):)?[\w.-]+", spec.removesuffix(RANDOM)) is not None


def check_runs_no_code_unasked(file: Path, model: str) -> None:
    """Reject a model that is named by a file and built by code other than a library's.

    Raises:
        ConvCircuitsError: If the model is built by such code.
    """
    if not is_plain_name(model):
        raise ConvCircuitsError(
            f"{file} names a model that is built by custom code. Code that a file names only runs if you ask for it. "
            f"If it is yours or you trust it, add: --model {shlex.quote(model)}"
        )
