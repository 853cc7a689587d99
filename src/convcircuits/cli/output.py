"""How results are printed and where they may be written."""

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


def say(text: str = "") -> None:
    """Print text, wherever it comes from, with what is not to be seen in it as escapes."""
    sys.stdout.write(printable_lines(text) + "\n")


def print_json(value: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Set cells in columns, whole at any width of the terminal: names in them are there to be copied."""
    lines = [[printable(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def cell(value: Any) -> str:
    """Write a value of a table: a shape as 3 x 5, yes and no, nothing as a dash."""
    if isinstance(value, tuple):
        return " x ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in ("", None) else str(value)


def say_written(folder: Path, files: Mapping[str, str]) -> None:
    """Print which files were written to a folder, and what each is."""
    for name, what in files.items():
        say(f"wrote {folder / name} ({what})")


def names(of: Sequence[str]) -> str:
    """List names, the first twelve of many."""
    return ", ".join(map(printable, of[:12])) + (f" and {len(of) - 12} more" if len(of) > 12 else "")


def check_writable(option: str, path: Path | None, suffix: str) -> None:
    """Refuse a path of another suffix, or that cannot be written, before work is done.

    Raises:
        ConvCircuitsError: If that is so.
    """
    if path is None:
        return
    if path.suffix != suffix:
        raise ConvCircuitsError(f"{option} {path} should end in {suffix}.")
    if not is_folder(path.parent):
        raise ConvCircuitsError(f"There is no folder {path.parent} to write {path.name} to.")
    check_place(path)


def made_folder(path: Path) -> Path:
    """Make a folder to write to, unless it is there.

    Raises:
        ConvCircuitsError: If it is a file or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvCircuitsError(f"The folder {path} cannot be made: {error.strerror}.") from error
    return path


def insist(require: str | None, reports: Sequence["Evaluation"]) -> None:
    """Exit with 3 where a circuit's verdict is not what is required."""
    lacking = [report for report in reports if require is not None and report.verdict not in ENOUGH[require]]
    for report in lacking:
        whose = "" if len(reports) == 1 else f" on {report.feature}"
        typer.echo(f"--require {require}: the verdict{whose} is {report.verdict!r}", err=True)
    if lacking:
        raise typer.Exit(3)
