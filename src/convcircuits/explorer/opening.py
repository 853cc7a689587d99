"""What the explorer opens, as plain data that is sent to the worker."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A model, photographs and a folder.

    Attributes:
        model: The model, in the form that ``--model`` takes; None if it is given.
        given: A file with a pickled model and its preprocessing, which each new worker reads.
        path: Where the modules of a given model are found.
        images: A folder, ``"sample"`` or ``"gcompris:FOLDER"``.
        project: The project's folder.
        weights: A file of weights.
        mean: Mean of the model's inputs by channel, from 0 to 1.
        std: Standard deviation of the model's inputs by channel, from 0 to 1.
        size: Side of the images in pixels, or None for the model's own.
        batch_size: Maximum number of images that run at once.
        device: As for ``--device``.
        bundle: A bundle to add to the project first.
        atlases: Folders of atlases of the model's layers, besides those in the project.
    """

    model: str | None = None
    given: Path | None = None
    path: tuple[str, ...] = ()
    images: str = "sample"
    project: Path
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    batch_size: int = 16
    device: str = "auto"
    bundle: Path | None = None
    atlases: tuple[Path, ...] = ()
