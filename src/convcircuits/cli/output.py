"""Print results, and check where they can be written."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from convcircuits.errors import ConvCircuitsError
from convcircuits.files import check_place, is_folder
from convcircuits.texts import printable, printable_lines
from convcircuits.values.verdict import ENOUGH

if TYPE_CHECKING:
    from convcircuits.values.report import Evaluation


CHECKPOINT = "checkpoint"
"""Name of the folder, in that of the results, from which a run that was stopped goes on."""


def say(text: str = "") -> None:
    """Print text from any source, with invisible characters escaped."""
    sys.stdout.write(printable_lines(text) + "\n")


def print_json(value: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Align cells in columns. They are never shortened to the terminal's width, so that names can be copied."""
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def cell(value: Any) -> str:
    """Format a value of a table: a shape as 3 x 5, a bool as yes or no, an empty value as a dash."""
    if isinstance(value, tuple):
        return " x ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in ("", None) else str(value)


def say_written(folder: Path, files: Mapping[str, str]) -> None:
    """Print which files were written to a folder, and what each one holds."""
    for name, what in files.items():
        say(f"wrote {folder / name} ({what})")


def check_writable(option: str, path: Path | None, suffix: str) -> None:
    """Check, before any work is done, that a path has the right suffix and can be written.

    Raises:
        ConvCircuitsError: If it has another suffix or cannot be written.
    """
    if path is None:
        return
    if path.suffix != suffix:
        raise ConvCircuitsError(f"{option} {path} must end in {suffix}.")
    if not is_folder(path.parent):
        raise ConvCircuitsError(f"There is no folder {path.parent} to write {path.name} to.")
    check_place(path)


def check_folder(path: Path | None) -> None:
    """Check, before any work is done, that ``--out`` is not a file.

    Raises:
        ConvCircuitsError: If it is a file.
    """
    if path is not None and path.exists() and not path.is_dir():
        raise ConvCircuitsError(f"--out {path} is a file; give a folder.")


def made_folder(path: Path) -> Path:
    """Create a folder to write to, unless it exists.

    Raises:
        ConvCircuitsError: If it is a file or cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvCircuitsError(f"The folder {path} cannot be created: {error.strerror}.") from error
    return path


def insist(require: str | None, reports: Sequence["Evaluation"]) -> None:
    """Exit with code 3 if the verdict on any circuit falls short of the required one."""
    lacking = [report for report in reports if require is not None and report.verdict not in ENOUGH[require]]
    for report in lacking:
        whose = "" if len(reports) == 1 else f" on {report.feature}"
        typer.echo(f"--require {require}: the verdict{whose} is {report.verdict!r}", err=True)
    if lacking:
        raise typer.Exit(3)
